# SPDX-License-Identifier: Apache-2.0
"""What requests change of the state that a later process would have to know."""

from __future__ import annotations


class StateChanges:
    """What has changed since the last ``clear``; the tables of the share add to it."""

    __slots__ = ("files", "flocks", "inodes", "new", "owners", "renames")

    def __init__(self) -> None:
        #: Nodeids that the guest did not know before.
        self.new: set[int] = set()
        #: Nodeids whose lookup count has changed; they may be forgotten.
        self.inodes: set[int] = set()
        #: Numbers of files that were opened or closed.
        self.files: set[int] = set()
        #: The last flock(2) lock of an open file, by its number.
        self.flocks: dict[int, int] = {}
        #: Nodeids and lock owners whose locks have changed.
        self.owners: set[tuple[int, int]] = set()
        #: Paths from the share's root, of inodes by descriptor: the old one, the new one, and
        #: whether they were exchanged.
        self.renames: list[tuple[bytes, bytes, bool]] = []

    def __bool__(self) -> bool:
        return bool(
            self.inodes or self.new or self.files or self.owners or self.flocks or self.renames
        )

    @property
    def has_more_than_files(self) -> bool:
        """Whether anything but open files has changed."""
        return bool(self.inodes or self.new or self.owners or self.flocks or self.renames)

    def __len__(self) -> int:
        return sum(
            map(len, (self.inodes, self.new, self.files, self.flocks, self.owners, self.renames))
        )

    def add(self, others: StateChanges) -> None:
        """Add other changes, which came later, but for renames."""
        self.new |= others.new
        self.inodes |= others.inodes
        self.files |= others.files
        self.flocks.update(others.flocks)
        self.owners |= others.owners

    def clear(self) -> None:
        """Forget all changes."""
        self.new.clear()
        self.inodes.clear()
        self.files.clear()
        self.flocks.clear()
        self.owners.clear()
        self.renames.clear()
