# SPDX-License-Identifier: Apache-2.0
"""Makes the shared directory the daemon's root, so that no path leads outside.

Afterwards the current directory is /proc/self/fd, by which an inode is opened again if only its
O_PATH descriptor is open.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from farwatchd.linux.libc import AT_FDCWD, function, last_errno
from farwatchd.sandbox.disable_imports import disable_imports, hold_time_zone
from farwatchd.sandbox.idmaps import IdMaps, MapError, be_root, unshare_mapped
from farwatchd.sandbox.options import Sandbox

_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWPID = 0x20000000
_MS_RDONLY = 1
_MS_NOSUID = 2
_MS_NODEV = 4
_MS_NOEXEC = 8
_MS_REMOUNT = 32
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_SLAVE = 0x80000
_MNT_DETACH = 2
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41}

#: The same on all architectures.
_SYS_MOUNT_SETATTR = 442
_MOUNT_ATTR_NOSUID = 2
_MOUNT_ATTR_NODEV = 4
_MOUNT_ATTR_NOEXEC = 8
_AT_RECURSIVE = 0x8000

_PROC_FD = "/proc/self/fd"

_log = logging.getLogger(__name__)

_mount = function(
    "mount",
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
)
_umount2 = function("umount2", ctypes.c_char_p, ctypes.c_int)
_unshare = function("unshare", ctypes.c_int)
_setns = function("setns", ctypes.c_int, ctypes.c_int)
_syscall = function("syscall", result=ctypes.c_long)


class Namespaces:
    """Descriptors of a daemon's namespaces of mounts and of users, by which a successor enters."""

    def __init__(self, fds: Sequence[int] = ()) -> None:
        """``fds``: of another daemon's; their ownership is taken."""
        self.fds = list(fds)

    def open(self, names: Sequence[str]) -> None:
        """Open namespaces of this process, before /proc is out of reach; ``SandboxError``."""
        try:
            for name in names:
                self.fds.append(os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise SandboxError(f"cannot open /proc/self/ns: {error.strerror}") from error


class SandboxError(Exception):
    """The sandbox cannot be entered. The text is one line for the user."""


def enter(
    sandbox: Sandbox,
    shared_dir: Path,
    maps: IdMaps | None = None,
    go_on_in_child: Callable[[], None] | None = None,
    namespaces: Namespaces | None = None,
) -> int:
    """Enter the sandbox and return an O_PATH descriptor of the share's root.

    The caller owns it. ``NAMESPACE`` works for root, and for others where user namespaces are
    allowed; with ``maps`` its ids are these. It shares a single file, too: in a directory that has
    nothing else. ``CHROOT`` works for root only. ``SandboxError``: the sandbox cannot be entered.

    ``go_on_in_child`` returns in a child of the process. With it the child is the first process of
    a PID namespace, where there is one.

    ``namespaces``: of another daemon, which are entered; or empty, and gets those that are made.
    """
    hold_time_zone()
    proc_fd = _open_proc(_PROC_FD)
    try:
        try:
            shared_fd = os.open(shared_dir, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise SandboxError(
                f"cannot open the shared directory {shared_dir}: {error.strerror}"
            ) from error
        _check_kind(sandbox, shared_dir, os.fstat(shared_fd).st_mode)
        if sandbox is Sandbox.NONE:
            os.fchdir(proc_fd)
            return shared_fd
        os.close(shared_fd)
        if sandbox is Sandbox.CHROOT:
            _chroot(shared_dir)
        else:
            if namespaces is not None and namespaces.fds:
                sandbox_proc_fd = _join(maps, go_on_in_child, namespaces)
            else:
                sandbox_proc_fd = _namespace(shared_dir, maps, go_on_in_child, namespaces)
            os.close(proc_fd)
            proc_fd = sandbox_proc_fd
        disable_imports()
        root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fchdir(proc_fd)
    finally:
        os.close(proc_fd)
    return root_fd


def _check_kind(sandbox: Sandbox, path: Path, mode: int) -> None:
    """Refuse a share that the sandbox cannot make its root."""
    if stat.S_ISDIR(mode):
        return
    if not stat.S_ISREG(mode):
        raise SandboxError(f"{path} is neither a directory nor a regular file")
    if sandbox is not Sandbox.NAMESPACE:
        raise SandboxError(f"{path} is a file: it can be shared with --sandbox=namespace only")


def _open_proc(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SandboxError(f"cannot use /proc/self/fd: {error.strerror}; mount /proc") from error


def _check(result: int, what: str, advice: str) -> None:
    if result < 0:
        raise SandboxError(f"cannot {what}: {os.strerror(last_errno())}{advice}")


def _chroot(shared_dir: Path) -> None:
    try:
        os.chroot(shared_dir)
        os.chdir("/")
    except OSError as error:
        advice = "; --sandbox=chroot needs root" if error.errno == errno.EPERM else ""
        raise SandboxError(
            f"cannot make {shared_dir} the root: {error.strerror}{advice}"
        ) from error


def _namespace(
    shared_dir: Path,
    maps: IdMaps | None,
    go_on_in_child: Callable[[], None] | None,
    namespaces: Namespaces | None,
) -> int:
    """Enter namespaces and change the root; returns a descriptor of /proc/self/fd."""
    advice = "; choose --sandbox=chroot or --sandbox=none where namespaces are not allowed"
    _enter_namespaces(maps, 0 if go_on_in_child is None else _CLONE_NEWPID, advice)
    if go_on_in_child is not None:
        # Before /proc/self is bound, which is another one in the child.
        go_on_in_child()
    if namespaces is not None:
        own_users = maps is not None or os.geteuid() != 0
        namespaces.open(("mnt", "user") if own_users else ("mnt",))
    # What is mounted here later on the host still shows in the share, what we do here does not show
    # on the host.
    _check(
        _mount(None, b"/", None, _MS_SLAVE | _MS_REC, None),
        "detach from the host's mounts",
        advice,
    )
    if shared_dir.resolve() == Path("/"):
        # Nothing is outside of it, and pivot_root(2) cannot replace it by itself.
        os.chdir("/")
        return _open_proc(_PROC_FD)
    # Then the current directory, which is below /proc, has nothing else of /proc above it.
    _check(_mount(_PROC_FD.encode(), b"/proc", None, _MS_BIND, None), "bind /proc/self/fd", advice)
    proc_fd = _open_proc("/proc")
    if shared_dir.is_file():
        shared_dir = _directory_of_one(shared_dir, proc_fd)
    path = os.fsencode(shared_dir)
    _check(_mount(path, path, None, _MS_BIND | _MS_REC, None), "bind the shared directory", advice)
    _forbid_programs(shared_dir)
    try:
        os.chdir(shared_dir)
    except OSError as error:
        raise SandboxError(
            f"cannot enter {shared_dir} in the namespace: {error.strerror}"
        ) from error
    number = _SYS_PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise SandboxError(
            f"no --sandbox=namespace on {os.uname().machine}; choose --sandbox=chroot"
        )
    # The old root is then mounted over the new one, so no directory for it is needed.
    _check(_syscall(ctypes.c_long(number), b".", b"."), "change the root", advice)
    _check(_umount2(b".", _MNT_DETACH), "leave the old root", advice)
    os.chdir("/")
    return proc_fd


def _join(
    maps: IdMaps | None, go_on_in_child: Callable[[], None] | None, namespaces: Namespaces
) -> int:
    """Enter another daemon's namespaces of mounts and users; the others are new.

    The ids of mounts are the same then, and mounts of the share are seen by both. Return a
    descriptor of /proc/self/fd.
    """
    advice = "; restart the daemon instead"
    own_users = maps is not None or os.geteuid() != 0
    if len(namespaces.fds) != (2 if own_users else 1):
        raise SandboxError(f"the running daemon has other namespaces{advice}")
    if own_users:
        _check(_setns(namespaces.fds[1], _CLONE_NEWUSER), "enter the user namespace", advice)
    if maps is not None:
        try:
            be_root(maps.users, maps.groups)
        except MapError as error:
            raise SandboxError(f"--uid-map, --gid-map: {error}") from error
    flags = _CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS
    flags |= 0 if go_on_in_child is None else _CLONE_NEWPID
    _check(_unshare(flags), "make namespaces", advice)
    if go_on_in_child is not None:
        go_on_in_child()
    _check(_mount(None, b"/", None, _MS_SLAVE | _MS_REC, None), "detach the mounts", advice)
    # As in _namespace, in a namespace of mounts that has nothing but this process.
    _check(_mount(_PROC_FD.encode(), b"/proc", None, _MS_BIND, None), "bind /proc/self/fd", advice)
    proc_fd = _open_proc("/proc")
    # The root and the current directory are those of the other daemon then.
    _check(_setns(namespaces.fds[0], _CLONE_NEWNS), "enter the mount namespace", advice)
    os.chdir("/")
    return proc_fd


def _directory_of_one(file: Path, proc_fd: int) -> Path:
    """Return a directory that exists in this namespace only and has nothing but ``file``.

    It covers /proc, whose descriptor is ``proc_fd``.
    """
    advice = "; share the directory of the file"
    directory = Path("/proc")
    # In this namespace: what is opened before belongs to another one, and cannot be bound.
    fd = os.open(file, os.O_PATH | os.O_CLOEXEC)
    try:
        os.fchdir(proc_fd)
        flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
        options = b"mode=0755,size=64k"
        place = os.fsencode(directory)
        _check(
            _mount(b"farwatchd", place, b"tmpfs", flags, options),
            "mount a directory for the file",
            advice,
        )
        (directory / file.name).touch()
        _check(
            _mount(b"%d" % fd, os.fsencode(directory / file.name), None, _MS_BIND, None),
            "bind the shared file",
            advice,
        )
        _check(
            _mount(None, place, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | flags, None),
            "make the directory of the file read-only",
            advice,
        )
    finally:
        os.close(fd)
    return directory


def _forbid_programs(shared_dir: Path) -> None:
    """Mount the share so that the daemon itself can use no device and no program in it.

    Needs Linux 5.12; without it, log that.
    """
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd.
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | _MOUNT_ATTR_NOEXEC)
    result = _syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(AT_FDCWD),
        os.fsencode(shared_dir),
        ctypes.c_uint(_AT_RECURSIVE),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    if result < 0:
        _log.info(
            "the share is not mounted nodev, nosuid, noexec for the daemon: %s",
            os.strerror(last_errno()),
        )


def _enter_namespaces(maps: IdMaps | None, more: int, advice: str) -> None:
    uid, gid = os.geteuid(), os.getegid()
    flags = _CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS | more
    if maps is not None:
        try:
            unshare_mapped(flags | _CLONE_NEWUSER, maps)
        except MapError as error:
            raise SandboxError(f"--uid-map, --gid-map: {error}") from error
        return
    _check(_unshare(flags | (_CLONE_NEWUSER if uid != 0 else 0)), "make namespaces", advice)
    if uid != 0:
        _map_ids(uid, gid)


def _map_ids(uid: int, gid: int) -> None:
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    except OSError as error:
        raise SandboxError(f"cannot map ids into the user namespace: {error.strerror}") from error
