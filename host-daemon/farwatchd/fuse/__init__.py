# SPDX-License-Identifier: Apache-2.0
"""The FUSE server: decodes requests, calls a file system, encodes replies. No I/O of its own."""
