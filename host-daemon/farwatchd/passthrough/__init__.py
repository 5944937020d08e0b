# SPDX-License-Identifier: Apache-2.0
"""The passthrough file system: the shared directory's files, by descriptors and never by path."""
