# SPDX-License-Identifier: Apache-2.0
"""Drops privileges: what remains are the capabilities of a file server, and no way to more."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from farwatchd.linux.capabilities import Capability, keep_only
from farwatchd.linux.libc import check, function

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38

_prctl = function("prctl", ctypes.c_int, *[ctypes.c_ulong] * 4)

#: The capabilities to serve files for all users of the guest; the same as virtiofsd's. fanotify
#: needs none: the kernel checked them when the group was made, which was before.
FILE_SERVER = (
    Capability.CHOWN
    | Capability.DAC_OVERRIDE
    | Capability.FOWNER
    | Capability.FSETID
    | Capability.MKNOD
    | Capability.SETFCAP
    | Capability.SETGID
    | Capability.SETUID
)
#: For open_by_handle_at(2): following a file that has moved, inodes without a descriptor.
FILE_HANDLES = Capability.DAC_READ_SEARCH


@dataclass(frozen=True, slots=True)
class CapabilityChanges:
    """Capabilities to add to those that serving takes, and to drop from them."""

    add: Capability = Capability.NONE
    drop: Capability = Capability.NONE


def parse_changes(text: str) -> CapabilityChanges:
    """Parse the value of ``--modcaps``, "+name:-name:..."; ``ValueError`` names what is wrong."""
    add = remove = Capability.NONE
    for item in text.split(":"):
        sign, name = item[:1], item[1:].upper().removeprefix("CAP_")
        if sign not in ("+", "-") or name not in Capability.__members__:
            raise ValueError(f"{item!r} is not a capability with + or - before it")
        if sign == "+":
            add |= Capability[name]
        else:
            remove |= Capability[name]
    return CapabilityChanges(add, remove)


def drop(kept: Capability) -> Capability:
    """Drop all capabilities but ``kept`` and every way to new privileges, for good.

    Return the remaining capabilities.
    """
    check(_prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    return keep_only(kept)


def forbid_core_dumps() -> None:
    """Disable core dumps, which would have the guest's memory, and debuggers."""
    check(_prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))
