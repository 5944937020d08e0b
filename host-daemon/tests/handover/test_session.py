# SPDX-License-Identifier: Apache-2.0
"""A FUSE session goes on in another process with what INIT negotiated, or is refused there."""

from __future__ import annotations

import errno
import fcntl
from typing import Any

import pytest
from farwatchd.fuse.blocking_locks import BlockingLocks
from farwatchd.fuse.options import Negotiation, SessionOptions
from farwatchd.fuse.session import Session
from farwatchd.virtio_fs.interfaces import DeferredReply
from farwatchd.virtqueue import Chain
from farwatchd.watch.event_record import RECORD_MAX
from farwatchd.wire import fuse
from farwatchd.wire.fsnotify import (
    FUSE_FSNOTIFY_OTHERS_ONLY,
    FUSE_HAS_FSNOTIFY_WAIT,
    Event,
    fsnotify_wait_in,
)
from farwatchd.wire.fuse import InitFlag, Opcode
from farwatchd.wire.state import NONE, SessionState, State, StateError
from farwatchd.wire.state_codec import decode, encode
from tests.support.fake_fs import FakeFs, FakeWatches
from tests.support.fuse_client import OFFER, Client, slices_of

#: What a guest offers that has the patches.
ALL = OFFER | FUSE_FSNOTIFY_OTHERS_ONLY | FUSE_HAS_FSNOTIFY_WAIT
LOCKS = SessionOptions(posix_lock=True, flock=True)
LOCK = fuse.lk_in.pack(fh=9, owner=1, lk_end=1, lk_type=fcntl.F_WRLCK)


class Side:
    """A session in one process, with what it calls."""

    def __init__(self, options: SessionOptions, watches: bool = True) -> None:
        self.fs = FakeFs()
        self.watches = FakeWatches() if watches else None
        self.locks = BlockingLocks(lambda _seconds, _callback: None)
        self.session = Session(self.fs, self.watches, options, self.locks)

    def export(self, dropped: int = 0) -> State:
        state = State()
        self.session.export_state(state, dropped)
        return decode(encode(state))


def handed_over(
    first: SessionOptions, second: SessionOptions | None = None, offer: int = ALL
) -> tuple[Client, Side]:
    """Return a client whose session another process has taken, and that process's side."""
    former, successor = Side(first), Side(second or first)
    client = Client(former.session)
    client.init(offer)
    successor.session.restore_state(former.export())
    client.handler = successor.session
    return client, successor


def refused(client: Client, opcode: int, args: bytes = b"", room: int = 4096) -> int | None:
    with pytest.raises(OSError) as caught:
        client.call(opcode, 42, args, room)
    return caught.value.errno


def test_session_goes_on_without_another_init() -> None:
    client, successor = handed_over(SessionOptions())
    assert client.getattr(42).attr_ino == 77
    assert successor.fs.calls == [("getattr", 42, None)]


def test_session_before_init_waits_for_it() -> None:
    former, successor = Side(SessionOptions()), Side(SessionOptions())
    state = former.export(dropped=3)
    assert state.session == [SessionState(NONE, 0, 3)]
    successor.session.restore_state(state)
    client = Client(successor.session)
    assert refused(client, Opcode.GETATTR, fuse.getattr_in.pack()) == errno.EIO
    client.init()
    client.getattr(42)


@pytest.mark.parametrize("agreed", [False, True])
def test_negotiated_flags_reach_the_file_system_of_the_successor(agreed: bool) -> None:
    options = SessionOptions(
        writeback=agreed,
        posix_acl=Negotiation.ALWAYS if agreed else Negotiation.NEVER,
        others_only=agreed,
        killpriv_v2=agreed,
    )
    client, successor = handed_over(options)
    assert (successor.fs.posix_acls, successor.fs.writeback) == (agreed, agreed)
    assert successor.watches is not None
    assert successor.watches.reported_own is not agreed
    client.uid = 1000
    client.fallocate(42, 9, 0, 0, 10)
    assert successor.fs.calls == [("fallocate", 42, 9, 0, 0, 10, agreed)]


@pytest.mark.parametrize("extended", [False, True])
def test_setxattr_keeps_its_form(extended: bool) -> None:
    offer = ALL if extended else ALL & ~int(InitFlag.SETXATTR_EXT)
    client, successor = handed_over(SessionOptions(), offer=offer)
    client.setxattr(42, b"user.a", b"value")
    assert successor.fs.calls == [("setxattr", 42, b"user.a", b"value", 0, False)]


def test_locks_stay_on_the_host_as_negotiated() -> None:
    client, successor = handed_over(LOCKS)
    client.call(Opcode.SETLK, 42, LOCK, 0)
    assert successor.fs.calls[0][:4] == ("setlk", 42, 9, 1)
    client, _ = handed_over(SessionOptions(), LOCKS)
    assert refused(client, Opcode.SETLK, LOCK, 0) == errno.ENOSYS


def test_interrupt_that_came_before_its_request_goes_along() -> None:
    former, successor = Side(LOCKS), Side(LOCKS)
    client = Client(former.session)
    client.init(ALL)
    client.silent(Opcode.INTERRUPT, 0, fuse.interrupt_in.pack(unique=6))
    successor.session.restore_state(former.export())
    client.handler = successor.session
    successor.fs.error = BlockingIOError(errno.EAGAIN, "another owner has it")
    assert refused(client, Opcode.SETLKW, LOCK, 0) == errno.EINTR
    assert len(successor.locks) == 0


def handle(client: Client, opcode: int, args: bytes, room: int) -> int | DeferredReply:
    """Pass a request to the session, whose reply may be deferred."""
    request = client.request(opcode, 0, args)
    return client.handler.handle(
        Chain.of(slices_of(request, []), slices_of(bytes(fuse.out_header.size + room), []))
    )


def test_wait_requests_stay_pending_as_negotiated() -> None:
    client, _ = handed_over(SessionOptions())
    args = fsnotify_wait_in.pack(size=RECORD_MAX)
    assert isinstance(handle(client, Opcode.FSNOTIFY_WAIT, args, RECORD_MAX), DeferredReply)
    client, _ = handed_over(SessionOptions(), offer=ALL & ~FUSE_HAS_FSNOTIFY_WAIT)
    assert refused(client, Opcode.FSNOTIFY_WAIT, args) == errno.ENOSYS


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"writeback": True}, "WRITEBACK_CACHE"),
        ({"posix_lock": True}, "POSIX_LOCKS"),
        ({"flock": True}, "FLOCK_LOCKS"),
        ({"security_label": Negotiation.ALWAYS}, "SECURITY_CTX"),
        ({"others_only": True}, "events"),
    ],
)
def test_options_that_exclude_what_was_negotiated_are_refused(
    options: dict[str, Any], missing: str
) -> None:
    with pytest.raises(StateError, match=f"the options exclude here: .*{missing}"):
        handed_over(SessionOptions(**options), SessionOptions())


def test_successor_that_cannot_watch_is_refused() -> None:
    former = Side(SessionOptions())
    Client(former.session).init(ALL)
    for successor in (Side(SessionOptions(), watches=False), Side(SessionOptions())):
        if successor.watches is not None:
            successor.watches.supported = Event(0)
        with pytest.raises(StateError, match="the options exclude here: events"):
            successor.session.restore_state(former.export())
