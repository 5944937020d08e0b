# SPDX-License-Identifier: Apache-2.0
"""The names that files have lost, which programs may still have open.

The events of such a file have the name under which it was opened. A watch with IN_EXCL_UNLINK does
not get them.
"""

from __future__ import annotations

from collections import OrderedDict

from farwatchd.watch.watch_backend import Entry
from farwatchd.wire.state import LostNameState

#: Names that are remembered. The events of a file whose name is forgotten look like those of a file
#: that has it.
_LIMIT = 4096


class LostNames:
    """The last names that were removed or replaced, as the events of directories tell them."""

    def __init__(self, limit: int = _LIMIT) -> None:
        self._limit = limit
        # The inode that has the name now; None when no inode has it.
        self._inodes: OrderedDict[Entry, bytes | None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._inodes)

    def removed(self, entry: Entry) -> None:
        """Record that an inode has lost a name."""
        self._remember(entry, None)

    def added(self, entry: Entry, inode: bytes, replaces: bool) -> None:
        """Record that an inode has got a name.

        ``inode``: its identity, empty if it is unknown. ``replaces``: another inode may have had
        the name until then.
        """
        if not inode:
            self._inodes.pop(entry, None)
        elif replaces or entry in self._inodes:
            self._remember(entry, inode)

    def is_lost(self, entry: Entry, inode: bytes) -> bool:
        """Return whether an inode has had the name, and has lost it.

        ``inode`` as in ``added``.
        """
        if entry not in self._inodes:
            return False
        present = self._inodes[entry]
        return present is None or (bool(inode) and present != inode)

    def export_state(self) -> list[LostNameState]:
        """Return the names, those that were lost first at the front."""
        return [
            LostNameState(mark_id, name, inode is not None, inode or b"")
            for (mark_id, name), inode in self._inodes.items()
        ]

    def restore_state(self, records: list[LostNameState]) -> None:
        """Add the names of a state."""
        for record in records:
            inode = record.identity if record.present else None
            self._remember((record.mark_id, record.name), inode)

    def clear(self) -> None:
        """Forget all names."""
        self._inodes.clear()

    def _remember(self, entry: Entry, inode: bytes | None) -> None:
        self._inodes[entry] = inode
        self._inodes.move_to_end(entry)
        if len(self._inodes) > self._limit:
            self._inodes.popitem(last=False)
