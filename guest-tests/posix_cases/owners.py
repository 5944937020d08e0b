# SPDX-License-Identifier: Apache-2.0
"""Cases: owners, permissions, set-id bits, times."""

import os
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from posix_cases.kit import (
    GROUP,
    IDENTITIES,
    OTHER_GROUP,
    STRANGER,
    USER,
    Cases,
    Identity,
    Observation,
    done,
    elsewhere,
    mode,
    opened,
    owner,
)

CASES = Cases()
AS_USER = IDENTITIES["user"]
AS_STRANGER = Identity("stranger", STRANGER, STRANGER, ())
ROOT_ALONE = "root has to set it up"
MODES = (0, 0o400, 0o200, 0o100, 0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o7777, 0o6000)


def is_root() -> bool:
    """Return whether root runs this."""
    return os.geteuid() == 0


@CASES.add
def modes_are_set_and_kept(at: Path) -> Iterator[Observation]:
    (at / "f").touch()
    (at / "d").mkdir()
    (at / "l").symlink_to("f")
    for bits in MODES:
        for name in ("f", "d"):
            yield f"chmod {bits:o} {name}", (done(os.chmod, at / name, bits), mode(at / name))
    yield "through a link", (done(os.chmod, at / "l", 0o640), mode(at / "f"), mode(at / "l"))
    (at / "d").chmod(0o755)
    fd = os.open(at / "d", os.O_RDONLY)
    yield "of a descriptor", (done(os.fchmod, fd, 0o711), mode(at / "d"))
    os.close(fd)
    yield "missing", done(os.chmod, at / "none", 0o600)


@CASES.add
def umask_clears_bits_of_new_files(at: Path) -> Iterator[Observation]:
    for number, mask in enumerate((0, 0o022, 0o077, 0o777)):
        os.umask(mask)
        made: dict[str, Callable[[Path], object]] = {
            "file": lambda path: os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o7777)),
            "directory": lambda path: os.mkdir(path, 0o7777),
            "fifo": lambda path: os.mkfifo(path, 0o666),
            "node": lambda path: os.mknod(path, 0o6666 | stat.S_IFREG),
            "link": lambda path: os.symlink("x", path),
        }
        for name, make in made.items():
            path = at / f"{name}{number}"
            yield f"{mask:o} {name}", (done(make, path), mode(path))
        fd = os.open(at, os.O_TMPFILE | os.O_RDWR, 0o7777)
        yield f"{mask:o} tmpfile", f"{os.fstat(fd).st_mode:o}"
        os.close(fd)
    os.umask(0o022)


@CASES.add
def new_files_belong_to_their_creator(at: Path) -> Iterator[Observation]:
    def make_all(where: Path) -> None:
        os.umask(0o022)
        (where / "file").touch()
        (where / "directory").mkdir()
        os.mkfifo(where / "fifo")
        (where / "link").symlink_to("x")

    for bits in (0o777, 0o2777):
        for group in (GROUP, OTHER_GROUP) if not is_root() else (0, GROUP, OTHER_GROUP, 4000):
            where = at / f"{bits:o}-{group}"
            where.mkdir()
            os.chown(where, -1, group)
            where.chmod(bits)
            outcome = elsewhere(partial(make_all, where), AS_USER if is_root() else None)
            found = {
                name: (owner(where / name), mode(where / name))
                for name in sorted(os.listdir(where))
            }
            yield f"in {bits:o} of {group}", (outcome, found)


@CASES.add
def chown_is_permitted_by_identity(at: Path) -> Iterator[Observation]:
    ids = (
        (-1, -1),
        (0, 0),
        (USER, GROUP),
        (-1, OTHER_GROUP),
        (-1, 5555),
        (STRANGER, -1),
        (USER, OTHER_GROUP),
    )
    for bits in (0o644, 0o6755, 0o2644, 0o4711):
        for number, (uid, gid) in enumerate(ids):
            path = at / f"{bits:o}-{number}"
            path.touch()
            path.chmod(bits)
            yield (
                f"{bits:o} to {uid}:{gid}",
                (done(os.chown, path, uid, gid), owner(path), mode(path)),
            )
    (at / "directory").mkdir(mode=0o755)
    (at / "directory").chmod(0o6755)
    yield "a directory", (done(os.chown, at / "directory", USER, GROUP), mode(at / "directory"))
    (at / "link").symlink_to("644-0")
    yield (
        "of a link",
        (done(os.lchown, at / "link", USER, GROUP), owner(at / "link"), owner(at / "644-0")),
    )


def attempts_on(path: Path, folder: Path) -> dict[str, Callable[[], object]]:
    """Return what to try on a file and a directory of another user."""
    return {
        "read": lambda: opened(path, os.O_RDONLY),
        "write": lambda: opened(path, os.O_WRONLY),
        "truncate": lambda: done(os.truncate, path, 1),
        "chmod": lambda: done(os.chmod, path, 0o666),
        "utime": lambda: done(os.utime, path),
        "utime to": lambda: done(os.utime, path, (1, 1)),
        "list": lambda: done(os.listdir, folder),
        "look in": lambda: done(os.stat, folder / "file"),
        "make in": lambda: opened(folder / "new", os.O_CREAT | os.O_RDWR),
        "remove in": lambda: done(os.unlink, folder / "file"),
        "access": lambda: [os.access(path, which) for which in (4, 2, 1)],
    }


def run_all(attempts: dict[str, Callable[[], object]]) -> Callable[[], list[object]]:
    """Return a function that makes all the attempts."""
    return lambda: [call() for call in attempts.values()]


@CASES.add
def access_of_other_users_follows_the_mode(at: Path) -> Iterator[Observation]:
    if not is_root():
        yield "nothing", ROOT_ALONE
        return
    at.chmod(0o755)
    for who, name in ((AS_USER, "user"), (AS_STRANGER, "stranger")):
        for bits in (0o700, 0o070, 0o007, 0o444, 0o222, 0o111):
            path = at / f"{name}-{bits:o}"
            path.write_bytes(b"text")
            folder = at / f"{name}-{bits:o}-d"
            folder.mkdir()
            (folder / "file").touch()
            for each in (path, folder):
                os.chown(each, 7777, OTHER_GROUP)
                each.chmod(bits)
            attempts = attempts_on(path, folder)
            outcomes = elsewhere(run_all(attempts), who)
            for what, outcome in zip(attempts, outcomes, strict=True):
                yield f"{name} {bits:o} {what}", outcome
            yield f"{name} {bits:o} execute", elsewhere(partial(done, os.execv, path, ["x"]), who)


@CASES.add
def sticky_directories_protect_their_entries(at: Path) -> Iterator[Observation]:
    if not is_root():
        yield "nothing", ROOT_ALONE
        return
    at.chmod(0o755)
    sticky = at / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    for name in ("mine", "theirs", "directory"):
        (sticky / name).mkdir() if name == "directory" else (sticky / name).touch()
    os.chown(sticky / "mine", USER, GROUP)
    (sticky / "theirs").chmod(0o666)
    yield (
        "rename theirs",
        elsewhere(lambda: done(os.rename, sticky / "theirs", sticky / "x"), AS_USER),
    )
    yield (
        "replace theirs",
        elsewhere(lambda: done(os.rename, sticky / "mine", sticky / "theirs"), AS_USER),
    )
    yield "unlink theirs", elsewhere(lambda: done(os.unlink, sticky / "theirs"), AS_USER)
    yield "rmdir theirs", elsewhere(lambda: done(os.rmdir, sticky / "directory"), AS_USER)
    yield "write theirs", elsewhere(lambda: opened(sticky / "theirs", os.O_WRONLY), AS_USER)
    yield (
        "create theirs again",
        elsewhere(lambda: opened(sticky / "theirs", os.O_CREAT | os.O_WRONLY), AS_USER),
    )
    yield "unlink mine", elsewhere(lambda: done(os.unlink, sticky / "mine"), AS_USER)
    yield "left", sorted(os.listdir(sticky))


@CASES.add
def writing_clears_set_id_bits(at: Path) -> Iterator[Observation]:
    def changed(path: Path, change: Callable[[int], object]) -> None:
        fd = os.open(path, os.O_RDWR)
        change(fd)
        os.close(fd)

    changes: dict[str, Callable[[int], object]] = {
        "write": lambda fd: os.write(fd, b"x"),
        "pwrite": lambda fd: os.pwrite(fd, b"x", 100),
        "write nothing": lambda fd: os.write(fd, b""),
        "truncate": lambda fd: os.ftruncate(fd, 1),
        "truncate to the same": lambda fd: os.ftruncate(fd, 10),
        "allocate": lambda fd: os.posix_fallocate(fd, 0, 8192),
        "copy": lambda fd: os.copy_file_range(fd, fd, 3, 0, 7),
        "utime": lambda fd: os.utime(fd),
    }
    at.chmod(0o777)
    who = AS_STRANGER if is_root() else None
    for bits in (0o6777, 0o2767, 0o7666):
        for what, change in changes.items():
            path = at / f"{bits:o} {what}"
            path.write_bytes(b"0123456789")
            path.chmod(bits)
            outcome = elsewhere(partial(changed, path, change), who)
            yield f"{bits:o} {what}", (outcome, mode(path))
    path = at / "opened"
    path.touch()
    path.chmod(0o6777)
    yield (
        "O_TRUNC",
        (
            elsewhere(
                lambda: opened(path, os.O_RDWR | os.O_TRUNC), AS_STRANGER if is_root() else None
            ),
            mode(path),
        ),
    )


@CASES.add
def times_are_set(at: Path) -> Iterator[Observation]:
    path = at / "f"
    path.touch()
    os.utime(path, ns=(1, 2))
    for atime, mtime in (
        (0, 0),
        (1, 999_999_999),
        (1_500_000_000_123_456_789, 1_600_000_000_987_654_321),
        (-1, -1_000_000_000),
        (-1_500_000_000, 5),
        ((1 << 31) * 10**9, (1 << 32) * 10**9 + 7),
    ):
        outcome = done(os.utime, path, ns=(atime, mtime))
        status = path.stat()
        yield f"{atime} {mtime}", (outcome, status.st_atime_ns, status.st_mtime_ns)
    (at / "l").symlink_to("f")
    os.utime(at / "l", ns=(5, 6), follow_symlinks=False)
    yield "of a link", ((at / "l").lstat().st_mtime_ns, path.stat().st_mtime_ns != 6)
    before = time.time_ns()
    os.utime(path)
    status = path.stat()
    yield (
        "now",
        status.st_mtime_ns == status.st_atime_ns and abs(status.st_mtime_ns - before) < 60 * 10**9,
    )
    fd = os.open(path, os.O_RDONLY)
    yield "of a descriptor", (done(os.utime, fd, ns=(7, 8)), os.fstat(fd).st_mtime_ns)
    os.close(fd)
    yield "missing", done(os.utime, at / "none")


@CASES.add
def operations_update_file_times(at: Path) -> Iterator[Observation]:
    (at / "d").mkdir()
    path, folder = at / "d" / "f", at / "d"
    path.write_bytes(b"x" * 100)
    fd = os.open(path, os.O_RDWR)
    operations: dict[str, Callable[[], object]] = {
        "write": lambda: os.pwrite(fd, b"y", 0),
        "truncate": lambda: os.ftruncate(fd, 50),
        "truncate to the same": lambda: os.ftruncate(fd, 50),
        "chmod": lambda: path.chmod(0o600),
        "chown": lambda: os.chown(path, -1, os.getegid()),
        "link": lambda: os.link(path, folder / "l"),
        "unlink link": lambda: os.unlink(folder / "l"),
        "rename": lambda: os.rename(path, folder / "g"),
        "rename back": lambda: os.rename(folder / "g", path),
        "create": lambda: (folder / "n").touch(),
        "unlink": lambda: os.unlink(folder / "n"),
        "mkdir": lambda: os.mkdir(folder / "m"),
        "rmdir": lambda: os.rmdir(folder / "m"),
        "symlink": lambda: os.symlink("x", folder / "s"),
        "utime": lambda: os.utime(path, ns=(5, 5)),
        "read": lambda: os.pread(fd, 1, 0),
        "stat": lambda: os.stat(path),
        "open": lambda: opened(path, os.O_RDWR),
        "allocate": lambda: os.posix_fallocate(fd, 0, 4096),
    }
    past = 10**18
    for what, operation in operations.items():
        for each in (fd, folder):
            os.utime(each, ns=(past, past))
        changed_at = [os.stat(each).st_ctime_ns for each in (fd, folder)]
        # Wait until the clock of file times has advanced.
        probe = at / "probe"
        while True:
            probe.touch()
            os.chmod(probe, 0o600)
            if probe.stat().st_ctime_ns > max(changed_at):
                break
        operation()
        after = [os.fstat(fd), os.stat(folder)]
        yield (
            what,
            [
                (status.st_mtime_ns != past, status.st_ctime_ns != before)
                for status, before in zip(after, changed_at, strict=True)
            ],
        )
    os.close(fd)


@CASES.add
def statistics_make_sense(at: Path) -> Iterator[Observation]:
    status = os.statvfs(at)
    yield "name", status.f_namemax
    yield "sizes", status.f_frsize > 0 and 0 < status.f_bavail <= status.f_blocks
    path = at / "f"
    path.write_bytes(b"x" * 100_000)
    found = path.stat()
    yield (
        "file",
        (found.st_size, found.st_nlink, found.st_blocks * 512 >= 100_000, found.st_blksize >= 512),
    )
    yield "device", found.st_dev == at.stat().st_dev
    yield "inodes", len({(at / name).stat().st_ino for name in ("f", ".")}) == 2
