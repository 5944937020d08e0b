# SPDX-License-Identifier: Apache-2.0
"""INIT: negotiation between client and server."""

from __future__ import annotations

import errno
import mmap
from dataclasses import dataclass

from farwatchd.fuse.options import Negotiation, SessionOptions
from farwatchd.wire.fsnotify import (
    FUSE_FSNOTIFY_OTHERS_ONLY,
    FUSE_HAS_FSNOTIFY,
    FUSE_HAS_FSNOTIFY_WAIT,
    Event,
)
from farwatchd.wire.fuse import KERNEL_MINOR_VERSION, KERNEL_VERSION, InitFlag, init_in, init_out
from farwatchd.wire.state import StateError

#: The oldest client that is served: before 7.27 no client speaks virtio-fs, and structures differ.
MIN_MINOR = 27
#: ``fuse_init_in`` before 7.36.
_SHORT_INIT_IN_SIZE = 16
#: ``fuse_init_out`` as far as a client reads it that speaks another major version.
_VERSION_SIZE = 8
#: Bytes of one WRITE.
MAX_WRITE = 1 << 20
#: ``max_pages`` counts the guest's pages, whose size INIT does not contain: mostly the host's.
_MAX_PAGES = max(1, MAX_WRITE // mmap.PAGESIZE)
#: Bytes of one READ or READDIR: ``max_pages`` of the largest pages that Linux has.
MAX_READ = _MAX_PAGES * (64 << 10)
_MAX_BACKGROUND = 0xFFFF
_CONGESTION_THRESHOLD = 0xFFFF // 4 * 3

_ALWAYS = (
    InitFlag.ASYNC_READ
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.BIG_WRITES
    | InitFlag.HAS_IOCTL_DIR
    | InitFlag.AUTO_INVAL_DATA
    | InitFlag.ASYNC_DIO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.SETXATTR_EXT
    | InitFlag.INIT_EXT
    | InitFlag.CREATE_SUPP_GROUP
)


_POSIX_ACL = InitFlag.POSIX_ACL | InitFlag.DONT_MASK | InitFlag.SETXATTR_EXT


@dataclass(frozen=True, slots=True)
class Negotiated:
    """The outcome: the reply's payload, and the negotiated flags.

    ``flags`` is None when the client must send INIT again, with another version.
    """

    reply: bytes
    flags: int | None
    minor: int

    @property
    def fsnotify(self) -> bool:
        """Whether the client gets events of the host."""
        return bool((self.flags or 0) & FUSE_HAS_FSNOTIFY)

    @property
    def others_only(self) -> bool:
        """Whether the events that this client causes are left out: mode ``others``."""
        return bool((self.flags or 0) & FUSE_FSNOTIFY_OTHERS_ONLY)

    @property
    def wait_requests(self) -> bool:
        """Whether WAIT requests deliver events: the guest's transport has no notifications."""
        return bool((self.flags or 0) & FUSE_HAS_FSNOTIFY_WAIT)

    @property
    def mode(self) -> str:
        """The mode's name, as in docs/protocol.md."""
        if not self.fsnotify:
            return "off"
        return ("others" if self.others_only else "remote") + (
            " (by WAIT requests)" if self.wait_requests else ""
        )

    @property
    def posix_lock(self) -> bool:
        """Whether the client sends POSIX locks."""
        return bool((self.flags or 0) & InitFlag.POSIX_LOCKS)

    @property
    def posix_acl(self) -> bool:
        """Whether the client checks POSIX ACLs."""
        return bool((self.flags or 0) & InitFlag.POSIX_ACL)

    @property
    def writeback(self) -> bool:
        """Whether the client caches writes."""
        return bool((self.flags or 0) & InitFlag.WRITEBACK_CACHE)

    @property
    def killpriv_v2(self) -> bool:
        """Whether the client says when to clear set-id bits."""
        return bool((self.flags or 0) & InitFlag.HANDLE_KILLPRIV_V2)

    @property
    def flock(self) -> bool:
        """Whether the client sends whole-file locks."""
        return bool((self.flags or 0) & InitFlag.FLOCK_LOCKS)

    @property
    def setxattr_ext(self) -> bool:
        """Whether SETXATTR has its long form."""
        return bool((self.flags or 0) & InitFlag.SETXATTR_EXT)


def negotiate(args: bytes, options: SessionOptions, watchable: Event) -> Negotiated:
    """Negotiate by INIT's arguments; ``watchable`` is 0 when there are no watches.

    ``OSError``: EPROTO for a client that is too old, or lacks a feature that must be there; EINVAL
    for a short request.
    """
    if len(args) < _SHORT_INIT_IN_SIZE:
        raise OSError(errno.EINVAL, "a short INIT")
    asked = init_in.unpack_from(args[: init_in.size].ljust(init_in.size, b"\0"))
    if asked.major > KERNEL_VERSION:
        reply = init_out.pack(major=KERNEL_VERSION, minor=KERNEL_MINOR_VERSION)[:_VERSION_SIZE]
        return Negotiated(reply, None, 0)
    if asked.major < KERNEL_VERSION or asked.minor < MIN_MINOR:
        raise OSError(
            errno.EPROTO,
            f"the guest speaks FUSE {asked.major}.{asked.minor}, 7.{MIN_MINOR} is needed",
        )
    offered = int(asked.flags)
    if offered & InitFlag.INIT_EXT:
        offered |= asked.flags2 << 32
    wanted = _wanted(options, watchable)
    flags = offered & wanted
    if flags & _POSIX_ACL != _POSIX_ACL:
        if options.posix_acl is Negotiation.ALWAYS:
            raise OSError(errno.EPROTO, "the guest cannot handle POSIX ACLs, start without them")
        flags &= ~int(InitFlag.POSIX_ACL | InitFlag.DONT_MASK)
    if options.security_label is Negotiation.ALWAYS and not flags & InitFlag.SECURITY_CTX:
        raise OSError(
            errno.EPROTO, "the guest gives no security labels, use --security-label=auto or never"
        )
    if not flags & FUSE_HAS_FSNOTIFY:
        flags &= ~(FUSE_FSNOTIFY_OTHERS_ONLY | FUSE_HAS_FSNOTIFY_WAIT)
    minor = min(asked.minor, KERNEL_MINOR_VERSION)
    reply = init_out.pack(
        major=KERNEL_VERSION,
        minor=minor,
        max_readahead=asked.max_readahead,
        flags=flags & 0xFFFFFFFF,
        flags2=flags >> 32,
        max_background=_MAX_BACKGROUND,
        congestion_threshold=_CONGESTION_THRESHOLD,
        max_write=MAX_WRITE,
        time_gran=1,
        max_pages=_MAX_PAGES if flags & InitFlag.MAX_PAGES else 0,
        fsnotify_mask=int(watchable) if flags & FUSE_HAS_FSNOTIFY else 0,
    )
    return Negotiated(reply, flags, minor)


def restored(flags: int, minor: int, options: SessionOptions, watchable: Event) -> Negotiated:
    """Return what another process has negotiated; ``StateError`` if these options exclude it."""
    missing = flags & ~_wanted(options, watchable)
    if missing:
        names = " ".join(str(flag.name) for flag in InitFlag if flag & missing) or "events"
        raise StateError(f"the guest uses what the options exclude here: {names}")
    return Negotiated(b"", flags, minor)


def _wanted(options: SessionOptions, watchable: Event) -> int:
    wanted = int(_ALWAYS)
    if options.readdirplus:
        wanted |= InitFlag.DO_READDIRPLUS | InitFlag.READDIRPLUS_AUTO
    if options.writeback:
        wanted |= InitFlag.WRITEBACK_CACHE
    if options.posix_acl is not Negotiation.NEVER:
        wanted |= _POSIX_ACL
    if options.announce_submounts:
        wanted |= InitFlag.SUBMOUNTS
    if options.security_label is not Negotiation.NEVER:
        wanted |= InitFlag.SECURITY_CTX
    if options.allow_mmap:
        wanted |= InitFlag.DIRECT_IO_ALLOW_MMAP
    if options.posix_lock:
        wanted |= InitFlag.POSIX_LOCKS
    if options.flock:
        wanted |= InitFlag.FLOCK_LOCKS
    if options.killpriv_v2:
        wanted |= InitFlag.HANDLE_KILLPRIV_V2
    if watchable:
        wanted |= FUSE_HAS_FSNOTIFY | FUSE_HAS_FSNOTIFY_WAIT
        if options.others_only:
            wanted |= FUSE_FSNOTIFY_OTHERS_ONLY
    return int(wanted)
