# SPDX-License-Identifier: Apache-2.0
"""Ends the interpreter's own use of files: once the share is the root, its search paths lead to the
guest's files."""

from __future__ import annotations

import linecache
import os
import sys
import time
import traceback
from importlib.machinery import BuiltinImporter, FrozenImporter
from types import TracebackType
from typing import Any


def hold_time_zone() -> None:
    """Keep the C library from looking at /etc/localtime, which would be the share's, for every line
    that is logged."""
    os.environ.setdefault("TZ", ":/etc/localtime")
    time.tzset()


def seal() -> None:
    """Let no module be imported and no source be read from files any more, for the rest of the
    process's life.

    Modules that are loaded stay; importing another one is ``ModuleNotFoundError``. Tracebacks name
    file and line, but do not quote.
    """
    importers: list[Any] = [BuiltinImporter, FrozenImporter]
    sys.meta_path[:] = importers
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    sys.path.clear()
    linecache.clearcache()
    linecache.updatecache = _no_lines
    # The interpreter's own hook quotes source without linecache.
    sys.excepthook = _report


def _no_lines(filename: str, module_globals: dict[str, Any] | None = None) -> list[str]:
    return []


def _report(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    traceback.print_exception(kind, error, where)
