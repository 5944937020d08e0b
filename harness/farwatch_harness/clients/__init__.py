# SPDX-License-Identifier: Apache-2.0
"""Compares watchers that people use: natively on the host, and on a share in a guest."""
