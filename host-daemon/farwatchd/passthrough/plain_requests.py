# SPDX-License-Identifier: Apache-2.0
"""Gives the native part what it serves with. Importing this fails where that was not built."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping

from farwatchd import _native
from farwatchd.fuse.encode import Encoder
from farwatchd.fuse.reply import Handler
from farwatchd.passthrough.cache_flags import FILE_FLAGS
from farwatchd.passthrough.open import passed_flags
from farwatchd.passthrough.open_file_table import OpenFileTable, Reading
from farwatchd.passthrough.passthrough_fs import PassthroughFs


def plain_requests(
    fs: PassthroughFs, handlers: Mapping[int, Handler], count_duration: Callable[[int, int], None]
) -> _native.PlainRequests | None:
    """Return what serves the plain requests to ``fs``; None with options that concern all of them.

    ``handlers`` count the requests, by opcode. ``count_duration`` is called with an opcode and
    nanoseconds.
    """
    share = fs.share
    if share.options.id_translation is not None:
        return None
    encoder = Encoder(fs.timeout)
    objects = {
        "handlers": handlers,
        **share.inodes.tables(),
        **share.open_files.tables(),
        "add": share.open_files.add,
        "release": _releasing(share.open_files),
        "count_duration": count_duration,
        "immediate": Reading.IMMEDIATE,
        "if_in_memory": Reading.IF_IN_MEMORY,
    }
    return _native.PlainRequests(
        objects,
        encoder.attr_start,
        encoder.entry_times,
        share.proc.prefix,
        passed_flags(share.options),
        FILE_FLAGS[share.options.cache],
        share.options.readonly,
        share.options.announce_submounts,
    )


def _releasing(files: OpenFileTable) -> Callable[[int, int], int]:
    def release(nodeid: int, fh: int) -> int:
        """Close a file; return an errno, or 0."""
        try:
            files.release(nodeid, fh)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    return release
