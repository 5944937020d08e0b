# SPDX-License-Identifier: Apache-2.0
"""The C library: one handle for all modules, and its errors as ``OSError``."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import Any

#: Flags of many calls: work on the descriptor itself; on the current directory.
AT_EMPTY_PATH = 0x1000
AT_FDCWD = -100
#: The largest ``off_t``.
OFFSET_MAX = (1 << 63) - 1
#: The uid and gid that no user and no group has; in chown(2): leave it as it is.
NO_ID = 0xFFFFFFFF
NANOSECONDS = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)
#: The functions that ``function`` has not found.
missing: list[str] = []


def function(
    name: str, *arguments: type[Any], result: type[Any] = ctypes.c_int
) -> Callable[..., int]:
    """Return a function of the C library, or a wrapper of a system call in it.

    Without ``arguments`` the function converts none of them: it takes ``int``, ``bytes`` and
    ctypes' objects, which is faster. A function that the C library lacks is added to ``missing``,
    and fails with ENOSYS.
    """
    # By subscription and not as an attribute, which all modules would share with its types.
    try:
        found = _libc[name]
    except AttributeError:
        missing.append(name)
        return _absent
    if arguments:
        found.argtypes = arguments
    found.restype = result
    return found


def _absent(*_arguments: Any) -> int:
    raise failure(errno.ENOSYS)


#: Return the errno of the last call of this thread that failed.
last_errno = ctypes.get_errno


def failure(number: int, call: str = "") -> OSError:
    """Return the exception of an errno; its text names the ``call``, if given."""
    text = os.strerror(number)
    return OSError(number, f"{call}: {text}" if call else text)


def check(result: int, call: str = "") -> int:
    """Return the result of a call; raise ``OSError`` with its errno if it is negative."""
    if result < 0:
        raise failure(ctypes.get_errno(), call)
    return result
