# SPDX-License-Identifier: Apache-2.0
"""What a watch back end is: it watches open objects and reports what happens to them, by key, in
order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from farwatchd.wire.fsnotify import Event

#: Events of a directory entry: the directory is the object, the name is part of the event.
DIRENT = Event.CREATE | Event.DELETE | Event.MOVED_FROM | Event.MOVED_TO


@dataclass(frozen=True, slots=True)
class HostEvent:
    """One event of a watch, in the protocol's bits.

    ``newkey`` and ``newname`` belong to RENAME: the watch of the directory moved into, and the name
    there. ``half`` marks a move of which the other side is not watched. ``ended`` says that the
    watch is over with this event; the back end has dropped it already. With OVERFLOW ``key`` is 0.
    """

    key: int
    mask: Event
    name: bytes = b""
    half: bool = False
    newkey: int = 0
    newname: bytes = b""
    ended: bool = False


class Backend(Protocol):
    """Watches objects of the host. One thread; no call blocks."""

    @property
    def name(self) -> str:
        """The name the user knows it by."""

    @property
    def supported(self) -> Event:
        """The event bits that it can watch, with ON_CHILD and RENAME; ISDIR and OVERFLOW go without
        saying."""

    @property
    def others_only(self) -> bool:
        """Whether events that this process causes can be left out (FUSE_FSNOTIFY_MERGED), and are
        until told else."""

    def tell_own(self, tell: bool) -> None:
        """Report what this process causes, or leave it out if the back end is ``others_only``."""

    @property
    def count(self) -> int:
        """Host watches in use, those included that it keeps for its own purposes."""

    def fileno(self) -> int:
        """The descriptor that is readable when ``read`` has something to do."""

    def watch(self, fd: int, mask: Event, is_dir: bool) -> int:
        """Watch the object behind ``fd`` (O_PATH will do) and return its key, never 0; live on
        return.

        An object that is watched already keeps its key, and its mask grows by ``mask``. Raises
        ``OSError`` with the errno meant for the guest: ENOSPC no host watch left, ENOENT the object
        has no name any more, EACCES not in the share.
        """

    def modify(self, key: int, mask: Event) -> None:
        """Replace the mask of a watch; ``OSError`` as in ``watch``, ENOENT when the watch has
        ended."""

    def unwatch(self, key: int) -> None:
        """End a watch; events of it that come late are left out. An unknown key is no error."""

    def reset(self) -> None:
        """End all watches and forget what was held back."""

    def read(self) -> list[HostEvent]:
        """Return what happened, a bounded amount, without waiting; the descriptor stays readable
        when there is more."""

    def delay(self) -> float | None:
        """Seconds after which ``read`` is to be called even if the descriptor stays silent; None:
        no need."""

    def close(self) -> None:
        """Give back all descriptors."""
