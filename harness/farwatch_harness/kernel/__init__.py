# SPDX-License-Identifier: Apache-2.0
"""The kernel: its source, the patch series, the build."""
