# SPDX-License-Identifier: Apache-2.0
"""An atomic change of memory that other processes share, by futex(2).

Python has no atomic operations, and the C library exports none.
"""

from __future__ import annotations

import ctypes
import platform

from farwatchd.linux.libc import check, function

#: The number of futex(2), by machine.
_NUMBERS = {"x86_64": 202, "i386": 240, "i486": 240, "i586": 240, "i686": 240}
_NUMBER = _NUMBERS.get(platform.machine(), -1)
_WAKE_OP_PRIVATE = 5 | 128
#: ``FUTEX_OP_OR | FUTEX_OP_OPARG_SHIFT``: set the bit of that number.
_SET_BIT = (2 | 8) << 28
_ARGUMENT_SHIFT = 12

_syscall = function(
    "syscall",
    ctypes.c_long,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_uint,
    result=ctypes.c_long,
)


def set_bit(address: int, bit: int) -> None:
    """Set bit ``bit`` of the 32-bit word at ``address``, a multiple of 4; ``OSError``.

    It is one atomic operation, and a full memory barrier.
    """
    # Nobody waits for the word: FUTEX_WAKE_OP wakes nobody, and is left with its second half.
    operation = _SET_BIT | bit << _ARGUMENT_SHIFT
    check(_syscall(_NUMBER, address, _WAKE_OP_PRIVATE, 0, 0, address, operation), "futex")
