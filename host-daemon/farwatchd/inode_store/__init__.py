# SPDX-License-Identifier: Apache-2.0
"""The host's inodes that a guest knows or watches, by file handle or by descriptor."""
