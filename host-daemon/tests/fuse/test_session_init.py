# SPDX-License-Identifier: Apache-2.0
"""INIT and the session's life: what is agreed on, what comes before it, what ends it."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from farwatchd.event_loop import Loop
from farwatchd.fuse.blocking_locks import BlockingLocks
from farwatchd.fuse.options import Negotiation, SessionOptions
from farwatchd.fuse.session import Session
from farwatchd.wire import fuse
from farwatchd.wire.fsnotify import FUSE_FSNOTIFY_OTHERS_ONLY, FUSE_HAS_FSNOTIFY, Event
from farwatchd.wire.fuse import InitFlag, Opcode
from tests.support.fake_fs import FakeFs, FakeWatches
from tests.support.fuse_client import OFFER, Client

OPTIONAL = (
    InitFlag.WRITEBACK_CACHE | InitFlag.POSIX_ACL | InitFlag.DONT_MASK | InitFlag.HANDLE_KILLPRIV_V2
    | InitFlag.DO_READDIRPLUS | InitFlag.READDIRPLUS_AUTO | InitFlag.POSIX_LOCKS
    | InitFlag.FLOCK_LOCKS
    | InitFlag.SUBMOUNTS | InitFlag.SECURITY_CTX | InitFlag.DIRECT_IO_ALLOW_MMAP
)  # fmt: skip
ALWAYS = InitFlag(sum(InitFlag)) & ~OPTIONAL
WATCHABLE = Event.CREATE | Event.DELETE | Event.RENAME | Event.ON_CHILD


def flags_of(init_out: object) -> int:
    return int(init_out.flags | init_out.flags2 << 32)  # type: ignore[attr-defined]


def agree(options: SessionOptions, offer: int = OFFER, watches: FakeWatches | None = None) -> int:
    loop = Loop()
    try:
        return flags_of(
            Client(Session(FakeFs(), watches, options, BlockingLocks(loop.call_later))).init(offer)
        )
    finally:
        loop.close()


def test_init_reply_has_the_limits_of_virtiofsd() -> None:
    reply = Client(Session(FakeFs(), None, SessionOptions())).init()
    assert (reply.major, reply.minor) == (7, 42)
    assert (reply.max_write, reply.max_pages, reply.time_gran) == (1 << 20, 256, 1)
    assert (reply.max_background, reply.congestion_threshold) == (65535, 49149)
    assert reply.max_readahead == 1 << 17
    assert reply.unused == bytes(20)


def test_init_reply_has_only_offered_flags() -> None:
    assert agree(SessionOptions(), 0) == 0
    assert agree(SessionOptions(), int(InitFlag.ASYNC_READ)) == InitFlag.ASYNC_READ


@pytest.mark.parametrize(
    ("options", "answered"),
    [
        ({}, InitFlag(0)),
        ({"readdirplus": True}, InitFlag.DO_READDIRPLUS | InitFlag.READDIRPLUS_AUTO),
        ({"writeback": True}, InitFlag.WRITEBACK_CACHE),
        ({"posix_acl": Negotiation.ALWAYS}, InitFlag.POSIX_ACL | InitFlag.DONT_MASK),
        ({"posix_acl": Negotiation.AUTO}, InitFlag.POSIX_ACL | InitFlag.DONT_MASK),
        ({"killpriv_v2": True}, InitFlag.HANDLE_KILLPRIV_V2),
        ({"posix_lock": True}, InitFlag.POSIX_LOCKS),
        ({"flock": True}, InitFlag.FLOCK_LOCKS),
        ({"announce_submounts": True}, InitFlag.SUBMOUNTS),
        ({"security_label": Negotiation.ALWAYS}, InitFlag.SECURITY_CTX),
        ({"security_label": Negotiation.AUTO}, InitFlag.SECURITY_CTX),
        ({"allow_mmap": True}, InitFlag.DIRECT_IO_ALLOW_MMAP),
    ],
)
def test_options_choose_the_negotiated_flags(options: dict[str, Any], answered: InitFlag) -> None:
    chosen = SessionOptions(**{"readdirplus": False, "announce_submounts": False, **options})
    assert agree(chosen) == ALWAYS | answered


def test_high_flags_count_with_init_ext_alone() -> None:
    offer = int(InitFlag.CREATE_SUPP_GROUP) | FUSE_HAS_FSNOTIFY
    assert agree(SessionOptions(), offer, FakeWatches()) == 0
    assert (
        agree(SessionOptions(), offer | InitFlag.INIT_EXT, FakeWatches())
        == offer | InitFlag.INIT_EXT
    )


def test_posix_acl_without_the_guest_s_support_is_refused() -> None:
    client = Client(Session(FakeFs(), None, SessionOptions(posix_acl=Negotiation.ALWAYS)))
    with pytest.raises(OSError) as caught:
        client.init(OFFER & ~InitFlag.DONT_MASK)
    assert caught.value.errno == errno.EPROTO


def test_security_labels_without_the_guests_support_are_refused_only_if_mandatory() -> None:
    offer = OFFER & ~InitFlag.SECURITY_CTX
    client = Client(Session(FakeFs(), None, SessionOptions(security_label=Negotiation.ALWAYS)))
    with pytest.raises(OSError) as caught:
        client.init(offer)
    assert caught.value.errno == errno.EPROTO
    client.init()
    assert not agree(SessionOptions(security_label=Negotiation.AUTO), offer) & InitFlag.SECURITY_CTX


def test_writeback_needs_the_offer_of_the_guest() -> None:
    fs = FakeFs()
    client = Client(Session(fs, None, SessionOptions(writeback=True)))
    client.init(OFFER & ~InitFlag.WRITEBACK_CACHE)
    assert not fs.writeback
    client.init(OFFER | InitFlag.WRITEBACK_CACHE)
    assert fs.writeback


def test_posix_acl_auto_is_not_negotiated_without_the_guest_s_support() -> None:
    fs = FakeFs()
    client = Client(Session(fs, None, SessionOptions(posix_acl=Negotiation.AUTO)))
    assert not flags_of(client.init(OFFER & ~InitFlag.DONT_MASK)) & (
        InitFlag.POSIX_ACL | InitFlag.DONT_MASK
    )
    assert not fs.posix_acls
    client.init()
    assert fs.posix_acls


def test_init_reply_has_the_supported_events() -> None:
    reply = Client(Session(FakeFs(), FakeWatches(WATCHABLE), SessionOptions())).init()
    assert flags_of(reply) & FUSE_HAS_FSNOTIFY
    assert not flags_of(reply) & FUSE_FSNOTIFY_OTHERS_ONLY
    assert reply.fsnotify_mask == WATCHABLE


@pytest.mark.parametrize("watches", [None, FakeWatches(Event(0))])
def test_events_are_not_negotiated_without_a_watch_back_end(watches: FakeWatches | None) -> None:
    reply = Client(Session(FakeFs(), watches, SessionOptions(others_only=True))).init(
        OFFER | FUSE_FSNOTIFY_OTHERS_ONLY
    )
    assert not flags_of(reply) & (FUSE_HAS_FSNOTIFY | FUSE_FSNOTIFY_OTHERS_ONLY)
    assert reply.fsnotify_mask == 0


def test_others_only_needs_option_and_offer() -> None:
    both = FUSE_HAS_FSNOTIFY | FUSE_FSNOTIFY_OTHERS_ONLY
    offer = OFFER | FUSE_FSNOTIFY_OTHERS_ONLY
    assert agree(SessionOptions(others_only=True), offer, FakeWatches()) & both == both
    assert agree(SessionOptions(others_only=True), OFFER, FakeWatches()) & both == FUSE_HAS_FSNOTIFY
    assert agree(SessionOptions(), offer, FakeWatches()) & both == FUSE_HAS_FSNOTIFY
    assert (
        agree(SessionOptions(others_only=True), offer & ~FUSE_HAS_FSNOTIFY, FakeWatches()) & both
        == 0
    )


@pytest.mark.parametrize(("theirs", "ours"), [(27, 27), (31, 31), (36, 36), (42, 42), (45, 42)])
def test_smaller_minor_version_is_negotiated(theirs: int, ours: int) -> None:
    assert Client(Session(FakeFs(), None, SessionOptions())).init(minor=theirs).minor == ours


@pytest.mark.parametrize(("major", "minor"), [(6, 99), (7, 26), (0, 0)])
def test_a_client_too_old_is_refused(
    major: int, minor: int, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(Session(FakeFs(), None, SessionOptions()))
    with pytest.raises(OSError) as caught:
        client.init(major=major, minor=minor)
    assert caught.value.errno == errno.EPROTO
    assert "cannot mount" in caplog.text
    with pytest.raises(OSError):
        client.getattr(1)


def test_client_of_a_newer_major_version_retries_with_ours() -> None:
    fs = FakeFs()
    client = Client(Session(fs, None, SessionOptions()))
    args = fuse.init_in.pack(major=8, minor=3)
    assert client.call(Opcode.INIT, 0, args, 64) == (7).to_bytes(4, "little") + (42).to_bytes(
        4, "little"
    )
    with pytest.raises(OSError):
        client.getattr(1)
    client.init()
    client.getattr(1)


def test_requests_before_init_are_refused() -> None:
    fs = FakeFs()
    client = Client(Session(fs, None, SessionOptions()))
    with pytest.raises(OSError) as caught:
        client.lookup(1, b"a")
    assert caught.value.errno == errno.EIO
    client.forget(1)
    assert fs.calls == []


def test_init_after_destroy_starts_an_empty_session() -> None:
    fs, watches = FakeFs(), FakeWatches()
    client = Client(Session(fs, watches, SessionOptions()))
    client.init()
    fs.calls.clear()
    watches.calls.clear()
    client.destroy()
    assert fs.calls == [("reset",)]
    assert watches.calls == [("reset",)]
    with pytest.raises(OSError) as caught:
        client.getattr(1)
    assert caught.value.errno == errno.EIO
    client.init()
    client.getattr(1)


def test_init_without_destroy_resets_the_session() -> None:
    fs, watches = FakeFs(), FakeWatches()
    client = Client(Session(fs, watches, SessionOptions()))
    client.init()
    client.getattr(1)
    fs.calls.clear()
    watches.calls.clear()
    client.init()
    assert fs.calls == [("reset",)]
    assert watches.calls == [("reset",)]


def test_reset_ends_the_negotiated_session() -> None:
    fs, watches = FakeFs(), FakeWatches()
    session = Session(fs, watches, SessionOptions())
    client = Client(session)
    client.init()
    fs.calls.clear()
    session.reset()
    assert fs.calls == [("reset",)]
    with pytest.raises(OSError):
        client.getattr(1)


def test_an_init_reply_that_does_not_fit_changes_nothing() -> None:
    fs = FakeFs()
    client = Client(Session(fs, None, SessionOptions()))
    args = fuse.init_in.pack(major=7, minor=41)
    with pytest.raises(OSError) as caught:
        client.call(Opcode.INIT, 0, args, 63)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError):
        client.getattr(1)


@pytest.mark.parametrize(
    ("offer", "tell"), [(OFFER, True), (OFFER | FUSE_FSNOTIFY_OTHERS_ONLY, False)]
)
def test_own_events_are_not_reported_in_mode_others(offer: int, tell: bool) -> None:
    watches = FakeWatches()
    Client(Session(FakeFs(), watches, SessionOptions(others_only=True))).init(offer)
    assert watches.reported_own is tell


def test_refused_init_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    client = Client(Session(FakeFs(), None, SessionOptions()))
    for _ in range(3):
        with pytest.raises(OSError):
            client.init(minor=5)
    assert len(caplog.records) == 1
