# SPDX-License-Identifier: Apache-2.0
"""Requests that must not be done twice: their intents, and how one is served again.

A process that is killed may have done a request whose reply the guest has not got. The guest's
kernel waits, and the next process serves it again. Most requests may be done twice: a read, a write
at a position. For those that may not, the intent is recorded before: when that was, and which
inodes its names mean. Which they mean now shows whether the request was done; for what makes a
name, also when its inode was made. Where that cannot be seen the request fails with EIO.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Sequence
from functools import partial

from farwatchd.fuse.filesystem import Requester
from farwatchd.fuse.reply import EMPTY, Reply
from farwatchd.fuse.request import Request
from farwatchd.fuse.session import Session
from farwatchd.inode_store.store import HostInode
from farwatchd.iovec import gather
from farwatchd.linux.libc import failure
from farwatchd.linux.syscalls import statx
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.state_dir.in_flight import InFlight, Intent
from farwatchd.state_dir.journal_writer import Journal
from farwatchd.wire.fuse import (
    Opcode,
    create_in,
    fallocate_in,
    link_in,
    mkdir_in,
    mknod_in,
    rename2_in,
    rename_in,
    write_in,
    write_out,
)

Handle = Callable[[Request], Reply]

_RENAME_EXCHANGE = 2
#: Flags and padding of RENAME2.
_NO_FLAGS = bytes(8)
#: FALLOC_FL_COLLAPSE_RANGE and FALLOC_FL_INSERT_RANGE.
_MOVES_DATA = 0x08 | 0x20
#: Where the new name is among the arguments of what makes one.
_NAME_AT = {
    Opcode.SYMLINK: 0,
    Opcode.MKNOD: mknod_in.size,
    Opcode.MKDIR: mkdir_in.size,
    Opcode.LINK: link_in.size,
    Opcode.CREATE: create_in.size,
}
#: What changes open files alone, mostly, and may be done twice.
_FILES = (Opcode.OPEN, Opcode.OPENDIR, Opcode.RELEASE, Opcode.RELEASEDIR)
#: What else changes the state that the journal has, and may be done twice.
_JOURNALED = (
    Opcode.READDIRPLUS,
    Opcode.FLUSH,
    Opcode.SETLK,
    Opcode.SETLKW,
    Opcode.BATCH_FORGET,
    Opcode.TMPFILE,
)


#: What is not done twice: these ask whether they may have been done.
NOT_TWICE = frozenset(
    {
        *_NAME_AT,
        Opcode.UNLINK,
        Opcode.RMDIR,
        Opcode.RENAME,
        Opcode.RENAME2,
        Opcode.WRITE,
        Opcode.FALLOCATE,
        Opcode.SETXATTR,
        Opcode.REMOVEXATTR,
    }
)


class Replay:
    """Serves requests with a journal. ``again``: what a former process has left."""

    def __init__(
        self, journal: Journal, in_flight: InFlight, session: Session, fs: PassthroughFs
    ) -> None:
        self._journal = journal
        self._in_flight = in_flight
        self._fs = fs
        self._share = fs.share
        #: Records what an entry is in one step, if it can.
        self._intend_entry = (
            _intend_nothing if session.plain is None else session.plain.intend_entry
        )
        self._intent: Intent | None = None
        #: Requests that threads of the former process worked on.
        self._uncertain: set[int] = set()
        #: Whether a request may come that a former process has done.
        self.expects = False
        self._lookup: Handle = _unknown
        self._install(session)

    def expect(self, intent: Intent | None, uncertain: Collection[int]) -> None:
        """Serve again the request of ``intent``, which may have been done.

        ``uncertain``: requests of which nothing is known, all of ``NOT_TWICE``.
        """
        self._intent = intent
        self._uncertain = set(uncertain)
        self.expects = intent is not None or bool(self._uncertain)

    def forget(self) -> None:
        """Expect nothing: the session has ended."""
        self.expect(None, ())

    def _install(self, session: Session) -> None:
        for opcode in _JOURNALED:
            session.intercept(opcode, self._journaled)
        for opcode in _FILES:
            session.intercept(opcode, partial(self._journaled, commit=self._journal.commit_file))
        session.intercept(
            Opcode.FORGET, partial(self._journaled, commit=self._journal.commit_lookup)
        )
        session.intercept(Opcode.INIT, self._around_init)
        session.intercept(Opcode.LOOKUP, self._around_lookup)
        for opcode, at in _NAME_AT.items():
            session.intercept(opcode, self._around_new(opcode, at))
        for opcode in (Opcode.UNLINK, Opcode.RMDIR):
            session.intercept(opcode, self._around_removal)
        session.intercept(Opcode.RENAME, self._around_rename(rename_in.size))
        session.intercept(Opcode.RENAME2, self._around_rename(rename2_in.size))
        session.intercept(Opcode.WRITE, self._around_write)
        session.intercept(Opcode.FALLOCATE, self._around_fallocate)
        session.intercept(Opcode.SETXATTR, self._around_setxattr)
        session.intercept(Opcode.REMOVEXATTR, self._around_removexattr)

    def _journaled(self, handle: Handle, commit: Callable[[int], None] | None = None) -> Handle:
        commit = self._journal.commit if commit is None else commit
        changes = self._journal.changes

        def served(request: Request) -> Reply:
            try:
                return handle(request)
            finally:
                if changes:
                    commit(request.header[2])

        return served

    def _around_init(self, handle: Handle) -> Handle:
        def served(request: Request) -> Reply:
            try:
                return handle(request)
            finally:
                self._journal.commit_session(request.unique)

        return served

    def _around_lookup(self, handle: Handle) -> Handle:
        self._lookup = self._journaled(handle, self._journal.commit_lookup)
        return self._lookup

    def _again(self, request: Request) -> Intent | None:
        """Return the intent of a request that may have been done; EIO if that is unknown."""
        if not self.expects:
            return None
        unique, intent = request.unique, self._intent
        uncertain = unique in self._uncertain
        if intent is not None and intent.unique != unique:
            intent = None
        self.expect(
            None if intent is not None else self._intent, self._uncertain.difference((unique,))
        )
        if uncertain:
            raise OSError(errno.EIO, "the daemon was killed while a thread worked on it")
        if intent is not None and self._share.inodes.get(request.nodeid).remote:
            raise OSError(errno.EIO, "a server may have done it before the daemon was killed")
        return intent

    def _fd(self, nodeid: int) -> int:
        return self._share.inodes.get(nodeid).fd

    def _identity(self, directory: int, name: bytes) -> bytes:
        inode = self._share.inodes.get(directory)
        # A server may not answer; threads do what there is to do.
        return b"" if inode.remote else self._journal.places.identity_at(inode.fd, name)

    def _intend(self, request: Request, name: bytes) -> None:
        """Record what an entry of the request's directory is."""
        self._in_flight.intend(request.header[2], self._identity(request.nodeid, name))

    def _intends(self, request: Request, directory: HostInode, at: int) -> bool:
        """Record what an entry of the request's directory is, in one step; return if it is done.

        ``directory`` is open, the name is at ``at`` among the arguments. No request is expected
        that a former process may have served.
        """
        return (
            not self.expects
            and not directory.remote
            and self._intend_entry(request.header[2], directory.fd, request.args, at)
        )

    # New names

    def _around_new(self, opcode: Opcode, at: int) -> Callable[[Handle], Handle]:
        def around(handle: Handle) -> Handle:
            journaled = self._journaled(
                handle,
                self._journal.commit_created
                if opcode == Opcode.CREATE
                else self._journal.commit_lookup,
            )
            find = self._share.inodes.get

            def served(request: Request) -> Reply:
                if self._intends(request, find(request.nodeid).host_inode, at):
                    return journaled(request)
                intent = self._again(request)
                name = request.name(at)
                if (
                    intent is not None
                    and not intent.first
                    and self._was_made(opcode, request, name, intent)
                ):
                    return self._made(opcode, journaled, request, name)
                self._intend(request, name)
                return journaled(request)

            return served

        return around

    def _was_made(self, opcode: Opcode, request: Request, name: bytes, intent: Intent) -> bool:
        """Return whether a name is what the request has made."""
        inode = self._share.inodes.get(request.nodeid)
        if inode.remote:
            return False
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inode.fd)
        except FileNotFoundError:
            return False
        try:
            if opcode == Opcode.LINK:
                target = self._fd(link_in.unpack_from(request.args).oldnodeid)
                return self._journal.places.identity(fd) == self._journal.places.identity(target)
            status = os.fstat(fd)
            if not _is_kind(opcode, request, fd, status.st_mode):
                return False
            born = statx(fd).btime_ns
            made = status.st_ctime_ns if born is None else born
            return intent.time_ns <= made and (not intent.until_ns or made <= intent.until_ns)
        finally:
            os.close(fd)

    def _made(self, opcode: Opcode, handle: Handle, request: Request, name: bytes) -> Reply:
        if opcode == Opcode.CREATE:
            flags = create_in.unpack_from(request.args).flags & ~os.O_EXCL
            request.args = flags.to_bytes(4, "little") + request.args[4:]
            return handle(request)
        requester = None if opcode == Opcode.LINK else request.requester()
        request.args = name + b"\0"
        reply = self._lookup(request)
        if isinstance(requester, Requester) and requester.security_xattrs:
            self._set_security_xattrs(requester, request.nodeid, name)
        return reply

    def _set_security_xattrs(self, requester: Requester, parent: int, name: bytes) -> None:
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=self._fd(parent))
        try:
            self._share.set_security_xattrs(requester, fd)
        finally:
            os.close(fd)

    # Removed and renamed ones

    def _around_removal(self, handle: Handle) -> Handle:
        journaled = self._journaled(handle)
        find = self._share.inodes.get

        def served(request: Request) -> Reply:
            if self._intends(request, find(request.nodeid).host_inode, 0):
                return journaled(request)
            name = request.name(0)
            intent = self._again(request)
            if intent is not None and self._was_removed(request, name, intent):
                return EMPTY
            self._intend(request, name)
            return journaled(request)

        return served

    def _was_removed(self, request: Request, name: bytes, intent: Intent) -> bool:
        """Return whether a name was removed since the intent.

        ENOENT: there was none, and another process has made one since.
        """
        if self._identity(request.nodeid, name) == intent.first:
            return False
        if not intent.first:
            raise failure(errno.ENOENT)
        return True

    def _around_rename(self, at: int) -> Callable[[Handle], Handle]:
        find = self._share.inodes.get

        def stays_by_handle(request: Request) -> bool:
            """Return whether it is moved, not exchanged, to a directory that has a handle."""
            args = request.args
            newdir = int.from_bytes(args[:8], "little")
            return (at == rename_in.size or args[8:16] == _NO_FLAGS) and (
                newdir == request.nodeid or find(newdir).host_inode.by_handle
            )

        def around(handle: Handle) -> Handle:
            def served(request: Request) -> Reply:
                directory = find(request.nodeid).host_inode
                if (
                    directory.by_handle
                    and stays_by_handle(request)
                    and self._intends(request, directory, at)
                ):
                    return handle(request)
                if at == rename_in.size:
                    (newdir,), flags = rename_in.values(request.args), 0
                else:
                    newdir, flags, _ = rename2_in.values(request.args)
                exchanged = flags & _RENAME_EXCHANGE
                by_path = self._by_path(request.nodeid) or self._by_path(newdir)
                names = request.names(at, 2)
                intent = self._again(request)
                done = intent is not None and (
                    self._was_exchanged(request, newdir, names, intent)
                    if exchanged
                    else self._was_renamed(request, newdir, names, intent)
                )
                if not done and exchanged:
                    identities = self._identities(request.nodeid, newdir, names)
                    self._in_flight.intend(request.header[2], *identities)
                elif not done:
                    self._intend(request, names[0])
                if by_path:
                    # Before: an inode may be at either path if this is the last request.
                    self._record_rename(request, newdir, names, exchanged)
                try:
                    return EMPTY if done else handle(request)
                except BaseException:
                    if by_path:
                        self._record_rename(request, newdir, names, exchanged, undone=True)
                    raise

            return served

        return around

    def _identities(self, nodeid: int, newdir: int, names: Sequence[bytes]) -> tuple[bytes, bytes]:
        return self._identity(nodeid, names[0]), self._identity(newdir, names[1])

    def _was_exchanged(
        self, request: Request, newdir: int, names: Sequence[bytes], intent: Intent
    ) -> bool:
        now = self._identities(request.nodeid, newdir, names)
        if not intent.first or now[0] == intent.first:
            return False
        if now != (intent.second, intent.first):
            raise OSError(errno.EIO, "its names have changed since it was done")
        return True

    def _was_renamed(
        self, request: Request, newdir: int, names: Sequence[bytes], intent: Intent
    ) -> bool:
        """Return whether a file was renamed since the intent; EIO if nobody can know.

        ENOENT: there was none, and another process has made one since.
        """
        if self._identity(request.nodeid, names[0]) == intent.first:
            return False
        if not intent.first:
            raise failure(errno.ENOENT)
        if self._identity(newdir, names[1]) != intent.first:
            raise OSError(errno.EIO, "its names have changed since it was done")
        return True

    def _by_path(self, nodeid: int) -> bool:
        return not self._share.inodes.get(nodeid).host_inode.by_handle

    def _record_rename(
        self,
        request: Request,
        newdir: int,
        names: Sequence[bytes],
        exchanged: int,
        undone: bool = False,
    ) -> None:
        places = self._journal.places
        old, new = places.path(self._fd(request.nodeid)), places.path(self._fd(newdir))
        if old is None or new is None:
            return
        paths = _joined(old, names[0]), _joined(new, names[1])
        if undone:
            paths = paths[1], paths[0]
        self._journal.changes.renames.append((*paths, bool(exchanged)))
        self._journal.commit(request.header[2])

    # Data and attributes

    def _around_write(self, handle: Handle) -> Handle:
        find = self._share.open_files.find

        def served(request: Request) -> Reply:
            file = find(int.from_bytes(request.args[:8], "little"))
            if file is None or not file.flags & os.O_APPEND:
                if self.expects:
                    self.expect(self._intent, self._uncertain.difference((request.unique,)))
                return handle(request)
            intent = self._again(request)
            if file.remote:
                return handle(request)
            size = os.fstat(file.fd).st_size
            if intent is not None and size != intent.number:
                data = gather(request.data, 0, write_in.unpack_from(request.args).size)
                if os.pread(file.fd, len(data), intent.number) != data:
                    raise OSError(errno.EIO, "it was appended in part, or others have written")
                return write_out.pack_values(len(data), 0)
            self._in_flight.intend(request.header[2], number=size)
            return handle(request)

        return served

    def _around_fallocate(self, handle: Handle) -> Handle:
        def served(request: Request) -> Reply:
            if fallocate_in.unpack_from(request.args).mode & _MOVES_DATA:
                if self._again(request) is not None:
                    raise OSError(errno.EIO, "the daemon was killed meanwhile")
                self._in_flight.intend(request.header[2])
            return handle(request)

        return served

    def _around_setxattr(self, handle: Handle) -> Handle:
        def served(request: Request) -> Reply:
            intent = self._again(request)
            if intent is None:
                self._in_flight.intend(request.header[2])
            try:
                return handle(request)
            except FileExistsError:
                if intent is None:
                    raise
                # XATTR_CREATE of what was made before the process was killed, or by others since.
                raise OSError(errno.EIO, "an attribute that may have been made") from None

        return served

    def _around_removexattr(self, handle: Handle) -> Handle:
        def served(request: Request) -> Reply:
            intent = self._again(request)
            if intent is None:
                was_set = self._has_xattr(request.nodeid, request.strings(0, 1)[0])
                self._in_flight.intend(request.header[2], number=was_set)
            try:
                return handle(request)
            except OSError as error:
                if intent is None or not intent.number or error.errno != errno.ENODATA:
                    raise
                return EMPTY

        return served

    def _has_xattr(self, nodeid: int, name: bytes) -> bool:
        if self._share.inodes.get(nodeid).remote:
            return False
        try:
            self._fs.getxattr(nodeid, name)
        except OSError:
            return False
        return True


def _is_kind(opcode: Opcode, request: Request, fd: int, mode: int) -> bool:
    """Return whether an inode is of the kind that a request makes."""
    if opcode == Opcode.SYMLINK:
        target = request.strings(0, 2)[1]
        return stat.S_ISLNK(mode) and os.readlink(b"", dir_fd=fd) == target
    if opcode == Opcode.MKDIR:
        return stat.S_ISDIR(mode)
    made = mknod_in.unpack_from(request.args).mode if opcode == Opcode.MKNOD else 0
    return stat.S_IFMT(mode) == (stat.S_IFMT(made) or stat.S_IFREG)


def _intend_nothing(_unique: int, _directory: int, _args: bytes, _at: int) -> bool:
    return False


def _joined(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _unknown(_: Request) -> Reply:
    raise failure(errno.ENOSYS)
