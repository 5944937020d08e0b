# SPDX-License-Identifier: Apache-2.0
"""The thread's capabilities (capabilities(7)): read them, drop them for a while, or for good."""

from __future__ import annotations

import contextlib
import ctypes
import struct
from collections.abc import Iterator
from enum import IntFlag
from typing import NamedTuple

from farwatchd.linux.libc import check, function

_VERSION_3 = 0x20080522
_HEADER = struct.Struct("=Ii")
# Effective, permitted and inheritable, first the low 32 capabilities and then the high ones.
_SETS = struct.Struct("=6I")
_LOW = (1 << 32) - 1

_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4

_prctl = function("prctl", ctypes.c_int, *[ctypes.c_ulong] * 4)
_capget = function("capget", ctypes.c_char_p, ctypes.c_char_p)
_capset = function("capset", ctypes.c_char_p, ctypes.c_char_p)


class Capability(IntFlag):
    """``CAP_*`` of ``linux/capability.h``, as bits of a set."""

    NONE = 0
    CHOWN = 1 << 0
    DAC_OVERRIDE = 1 << 1
    DAC_READ_SEARCH = 1 << 2
    FOWNER = 1 << 3
    FSETID = 1 << 4
    KILL = 1 << 5
    SETGID = 1 << 6
    SETUID = 1 << 7
    SETPCAP = 1 << 8
    LINUX_IMMUTABLE = 1 << 9
    NET_BIND_SERVICE = 1 << 10
    NET_BROADCAST = 1 << 11
    NET_ADMIN = 1 << 12
    NET_RAW = 1 << 13
    IPC_LOCK = 1 << 14
    IPC_OWNER = 1 << 15
    SYS_MODULE = 1 << 16
    SYS_RAWIO = 1 << 17
    SYS_CHROOT = 1 << 18
    SYS_PTRACE = 1 << 19
    SYS_PACCT = 1 << 20
    SYS_ADMIN = 1 << 21
    SYS_BOOT = 1 << 22
    SYS_NICE = 1 << 23
    SYS_RESOURCE = 1 << 24
    SYS_TIME = 1 << 25
    SYS_TTY_CONFIG = 1 << 26
    MKNOD = 1 << 27
    LEASE = 1 << 28
    AUDIT_WRITE = 1 << 29
    AUDIT_CONTROL = 1 << 30
    SETFCAP = 1 << 31
    MAC_OVERRIDE = 1 << 32
    MAC_ADMIN = 1 << 33
    SYSLOG = 1 << 34
    WAKE_ALARM = 1 << 35
    BLOCK_SUSPEND = 1 << 36
    AUDIT_READ = 1 << 37
    PERFMON = 1 << 38
    BPF = 1 << 39
    CHECKPOINT_RESTORE = 1 << 40


class _Sets(NamedTuple):
    effective: int
    permitted: int
    inheritable: int


def effective() -> Capability:
    """Return the effective capabilities."""
    return Capability(_get().effective)


@contextlib.contextmanager
def without(capability: Capability) -> Iterator[None]:
    """Drop ``capability`` for a while, if it is effective."""
    sets = _get()
    if not sets.effective & capability:
        yield
        return
    _set(sets._replace(effective=sets.effective & ~int(capability)))
    try:
        yield
    finally:
        _set(sets)


def raise_permitted(capability: Capability) -> None:
    """Make ``capability`` effective, if it is permitted."""
    sets = _get()
    if sets.permitted & capability:
        _set(sets._replace(effective=sets.effective | int(capability)))


def keep_only(kept: Capability) -> Capability:
    """Drop all capabilities but ``kept`` for good, for programs executed later as well.

    Return those of ``kept`` that were permitted.
    """
    sets = _get()
    if sets.effective & Capability.SETPCAP:
        number = 0
        while (there := _prctl(_PR_CAPBSET_READ, number, 0, 0, 0)) >= 0:
            if there and not kept & (1 << number):
                check(_prctl(_PR_CAPBSET_DROP, number, 0, 0, 0))
            number += 1
    check(_prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    left = sets.permitted & int(kept)
    _set(_Sets(left, left, 0))
    return Capability(left)


def _get() -> _Sets:
    buffer = ctypes.create_string_buffer(_SETS.size)
    check(_capget(_HEADER.pack(_VERSION_3, 0), buffer))
    low = _SETS.unpack(buffer.raw)
    return _Sets(*(low[which] | low[which + 3] << 32 for which in range(3)))


def _set(sets: _Sets) -> None:
    low = [which & _LOW for which in sets]
    high = [which >> 32 for which in sets]
    check(_capset(_HEADER.pack(_VERSION_3, 0), _SETS.pack(*low, *high)))
