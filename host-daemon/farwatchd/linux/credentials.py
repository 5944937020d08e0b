# SPDX-License-Identifier: Apache-2.0
"""The ids of the calling thread alone, as credentials(7) describes them for the kernel.

The C library's functions, and so Python's, change the ids of all threads, one after the other.
Another thread would meanwhile act with the requester's ids, or with capabilities that it has just
dropped.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import NamedTuple

from farwatchd.linux.libc import check, function


class _Numbers(NamedTuple):
    """Numbers of system calls."""

    setgroups: int
    setresuid: int
    setresgid: int


_GENERIC = _Numbers(setgroups=159, setresuid=147, setresgid=149)
_NUMBERS = {
    "x86_64": _Numbers(setgroups=116, setresuid=117, setresgid=119),
    "ppc64le": _Numbers(setgroups=81, setresuid=164, setresgid=169),
    "aarch64": _GENERIC,
    "loongarch64": _GENERIC,
    "riscv64": _GENERIC,
}.get(os.uname().machine)
#: Whether the numbers are known for this machine; without them nothing here may be called.
KNOWN = _NUMBERS is not None

_syscall = function("syscall", result=ctypes.c_long)
_KEEP = -1


def set_effective_uid(uid: int) -> None:
    """Set the thread's effective uid, 0 to 2^32 - 2 (setresuid(2))."""
    assert _NUMBERS is not None
    check(_syscall(_NUMBERS.setresuid, _KEEP, ctypes.c_uint32(uid), _KEEP))


def set_effective_gid(gid: int) -> None:
    """Set the thread's effective gid, 0 to 2^32 - 2 (setresgid(2))."""
    assert _NUMBERS is not None
    check(_syscall(_NUMBERS.setresgid, _KEEP, ctypes.c_uint32(gid), _KEEP))


def set_groups(groups: Sequence[int]) -> None:
    """Set the thread's supplementary groups (setgroups(2))."""
    assert _NUMBERS is not None
    check(_syscall(_NUMBERS.setgroups, len(groups), (ctypes.c_uint32 * len(groups))(*groups)))
