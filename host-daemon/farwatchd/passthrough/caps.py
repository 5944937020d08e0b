# SPDX-License-Identifier: Apache-2.0
"""The thread's effective capabilities, taken away or kept for the length of one operation (capabilities(7))."""

from __future__ import annotations

import contextlib
import ctypes
import struct
from collections.abc import Iterator
from enum import IntFlag

from farwatchd.passthrough.errors import failure

_VERSION_3 = 0x20080522
_HEADER = struct.Struct("=Ii")
# Effective, permitted and inheritable, first the low 32 capabilities and then the high ones.
_SETS = struct.Struct("=6I")

_libc = ctypes.CDLL(None, use_errno=True)


class Capability(IntFlag):
    """Those that matter here, as bits of a set."""

    NONE = 0
    DAC_OVERRIDE = 1 << 1
    FSETID = 1 << 4
    SETGID = 1 << 6
    SETUID = 1 << 7


def effective() -> Capability:
    """The low 32 effective capabilities."""
    return Capability(_get()[0])


@contextlib.contextmanager
def without(capability: Capability) -> Iterator[None]:
    """Give up ``capability`` for a while, if it is there."""
    sets = _get()
    if not sets[0] & capability:
        yield
        return
    _set((sets[0] & ~capability, *sets[1:]))
    try:
        yield
    finally:
        _set(sets)


def raise_permitted(capability: Capability) -> None:
    """Make ``capability`` effective, if it is permitted."""
    sets = _get()
    if sets[1] & capability:
        _set((sets[0] | capability, *sets[1:]))


def _get() -> tuple[int, ...]:
    sets = ctypes.create_string_buffer(_SETS.size)
    _check(_libc.capget(_HEADER.pack(_VERSION_3, 0), sets))
    return _SETS.unpack(sets.raw)


def _set(sets: tuple[int, ...]) -> None:
    _check(_libc.capset(_HEADER.pack(_VERSION_3, 0), _SETS.pack(*sets)))


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise failure(number)
