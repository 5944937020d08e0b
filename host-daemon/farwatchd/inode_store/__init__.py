# SPDX-License-Identifier: Apache-2.0
"""The host's files as inodes and watches hold on to them: by file handle where that works, else by
descriptor."""
