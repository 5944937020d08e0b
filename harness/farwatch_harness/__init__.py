# SPDX-License-Identifier: Apache-2.0
"""The harness: applies the series, builds the kernel, boots it with the daemon attached and drives
the guest."""
