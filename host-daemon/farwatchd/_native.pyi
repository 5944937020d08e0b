# SPDX-License-Identifier: Apache-2.0
"""What native.c has."""

from collections.abc import Callable

from farwatchd.passthrough.changes import StateChanges
from farwatchd.virtqueue.chains import Chain

class Ring:
    base: int
    seen: int
    @property
    def used(self) -> int: ...
    def __new__(
        cls,
        views: tuple[memoryview, ...],
        starts: tuple[int, ...],
        size: int,
        base: int,
        used: int,
        event_idx: bool,
        indirect: bool,
        chain: Callable[[int], Chain],
        error: type[Exception],
        /,
    ) -> Ring: ...
    def pop(self) -> tuple[int, Chain] | None: ...
    def has_more(self) -> bool: ...
    def add_used(self, head: int, written: int, /) -> None: ...
    def needs_notification(self) -> bool: ...
    def enable_notification(self) -> bool: ...
    def go_idle(self) -> tuple[bool, bool]: ...
    def disable_notification(self) -> None: ...

class PlainRequests:
    opcodes: int
    def __new__(
        cls,
        objects: dict[str, object],
        attr_start: bytes,
        entry_times: bytes,
        proc: str,
        passed_flags: int,
        open_flags: int,
        readonly: bool,
        announce_submounts: bool,
        /,
    ) -> PlainRequests: ...
    def serve(self, ring: object, most: int, until_ns: int, /) -> int: ...
    def known_entry(self, parent: int, name: bytes, /) -> bytes | None: ...
    def keep_journal(self, changes: StateChanges, in_flight: memoryview, /) -> None: ...
    def intend_entry(self, unique: int, directory: int, args: bytes, at: int, /) -> bool: ...
    def use_journal(self, view: memoryview | None, /) -> None: ...
    def commit(self, unique: int, mounts: set[int], /) -> bool: ...
