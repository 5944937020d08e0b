# SPDX-License-Identifier: Apache-2.0
"""The harness: builds kernels of the series, boots them and tests them.

It applies the patches, builds the kernel, boots it in a guest with the daemon attached, and runs
commands in the guest.
"""
