# SPDX-License-Identifier: Apache-2.0
"""Disables imports, and source lines in tracebacks.

Once the share is the root, the interpreter's paths lead to the guest's files.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
import threading
import time
import traceback
from importlib.machinery import BuiltinImporter, FrozenImporter
from types import TracebackType
from typing import Any


def hold_time_zone() -> None:
    """Read the time zone now, so that the C library does not read the share's /etc/localtime.

    It would do that for every line that is logged.
    """
    os.environ.setdefault("TZ", ":/etc/localtime")
    time.tzset()


def disable_imports() -> None:
    """Let no module be imported and no source be read from files, until the process ends.

    Loaded modules stay; importing another one raises ``ModuleNotFoundError``. Tracebacks name file
    and line, without the source line.
    """
    importers: list[Any] = [BuiltinImporter, FrozenImporter]
    sys.meta_path[:] = importers
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    sys.path.clear()
    linecache.clearcache()
    linecache.updatecache = _no_lines
    # The interpreter's own hooks read the source without linecache.
    sys.excepthook = _report
    sys.unraisablehook = _report_unraisable
    threading.excepthook = _report_in_thread


def _no_lines(filename: str, module_globals: dict[str, Any] | None = None) -> list[str]:
    return []


def _report(
    kind: type[BaseException], error: BaseException | None, where: TracebackType | None
) -> None:
    # If a hook fails, the interpreter prints the exception itself, with the source line.
    with contextlib.suppress(Exception):
        traceback.print_exception(kind, error, where)


def _report_unraisable(args: sys.UnraisableHookArgs) -> None:
    with contextlib.suppress(Exception):
        print(f"{args.err_msg or 'Exception ignored in'}: {args.object!r}", file=sys.stderr)
    _report(args.exc_type, args.exc_value, args.exc_traceback)


def _report_in_thread(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread is not None else "unknown"
    with contextlib.suppress(Exception):
        print(f"Exception in thread {name}:", file=sys.stderr)
    _report(args.exc_type, args.exc_value, args.exc_traceback)
