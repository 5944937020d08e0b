# SPDX-License-Identifier: Apache-2.0
"""Cases: names, directories, links, opening."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from posix_cases.kit import Cases, Observation, attempt, done, elsewhere, kind, mode, opened, tree

CASES = Cases()
RENAME_FLAGS = {"plain": 0, "noreplace": 1, "exchange": 2, "both": 3}


def rename2(source: Path, target: Path, flags: int) -> None:
    """Rename with the flags of renameat2."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(source), -100, os.fsencode(target), flags) < 0:
        raise OSError(ctypes.get_errno(), "renameat2")


KINDS = ("file", "directory", "full", "link", "dangling", "loop", "to-directory", "fifo", "socket")


def links(path: Path) -> int:
    """Return the link count."""
    return path.lstat().st_nlink


def node(path: Path) -> tuple[str, int]:
    """Return mode and device number."""
    return mode(path), path.lstat().st_rdev


def make(at: Path, *names: str) -> None:
    """Create files of these kinds; each has its kind as name."""
    for name in names:
        path = at / name
        if name == "file":
            path.write_bytes(b"content")
        elif name in ("directory", "full"):
            path.mkdir()
        elif name == "fifo":
            os.mkfifo(path)
        elif name == "socket":
            with socket.socket(socket.AF_UNIX) as sock:
                os.chdir(at)
                sock.bind("socket")
        elif name in TARGETS:
            path.symlink_to(TARGETS[name])
        if name == "full":
            (path / "inside").touch()


TARGETS = {"link": "file", "dangling": "nowhere", "loop": "loop", "to-directory": "directory"}


@CASES.add
def directories_are_made_and_removed(at: Path) -> Iterator[Observation]:
    yield "mkdir", done(os.mkdir, at / "d")
    yield "again", done(os.mkdir, at / "d")
    yield "below nothing", done(os.mkdir, at / "none" / "d")
    (at / "f").touch()
    yield "below a file", done(os.mkdir, at / "f" / "d")
    yield "with a slash", done(os.mkdir, f"{at}/slash/")
    for name in ("", ".", "..", "d/.", "d/.."):
        yield f"mkdir '{name}'", done(os.mkdir, f"{at}/{name}" if name else "")
        yield f"rmdir '{name}'", done(os.rmdir, f"{at}/{name}" if name else "")
    (at / "d" / "below").mkdir()
    yield "rmdir full", done(os.rmdir, at / "d")
    yield "rmdir file", done(os.rmdir, at / "f")
    yield "rmdir missing", done(os.rmdir, at / "none")
    yield "unlink directory", done(os.unlink, at / "d")
    yield "unlink file/", done(os.unlink, f"{at}/f/")
    (at / "l").symlink_to("d")
    yield "rmdir link", done(os.rmdir, at / "l")
    yield "rmdir link/", done(os.rmdir, f"{at}/l/")
    yield "left", tree(at)


@CASES.add
def links_of_directories_are_counted(at: Path) -> Iterator[Observation]:
    (at / "d").mkdir()
    yield "empty", (at / "d").stat().st_nlink
    for name in "abc":
        (at / "d" / name).mkdir()
    (at / "d" / "file").touch()
    yield "three below", (at / "d").stat().st_nlink
    (at / "d" / "a").rmdir()
    (at / "d" / "b").rename(at / "b")
    yield "one below", (at / "d").stat().st_nlink
    fd = os.open(at / "b", os.O_RDONLY)
    (at / "b").rmdir()
    yield "removed", os.fstat(fd).st_nlink
    yield "listing it", attempt(os.listdir, fd)
    yield "making in it", done(os.mkdir, "x", dir_fd=fd)
    os.close(fd)


@CASES.add
def names_have_their_limits(at: Path) -> Iterator[Observation]:
    for length in (254, 255, 256, 1000):
        yield f"name of {length}", opened(at / ("n" * length), os.O_CREAT | os.O_RDWR)
        yield f"mkdir of {length}", done(os.mkdir, at / ("d" * length))
        yield f"lookup of {length}", done(os.stat, at / ("x" * length))
    for length in (4094, 4095, 4096):
        path = str(at) + "/" * (length - len(str(at)) - 1) + "p"
        yield f"path of {length}", opened(path, os.O_CREAT | os.O_RDWR)
    for length in (1, 100, 4095):
        yield f"target of {length}", done(os.symlink, "t" * length, at / f"l{length}")
        yield f"target of {length} read", attempt(os.readlink, at / f"l{length}")
        yield f"size of {length}", kind(at / f"l{length}")
    yield "target of 4096", done(os.symlink, "t" * 4096, at / "l4096")
    yield "empty target", done(os.symlink, "", at / "empty")


@CASES.add
def any_byte_is_in_names(at: Path) -> Iterator[Observation]:
    folder = os.fsencode(at)
    for byte in range(1, 256):
        if byte not in b"/.":
            os.close(os.open(folder + b"/" + bytes([byte]), os.O_CREAT | os.O_WRONLY))
    yield "listed", b"".join(sorted(os.listdir(folder))).hex()
    os.rename(folder + b"/\xff", folder + b"/\xfe\xff")
    yield "renamed", opened(os.fsdecode(folder + b"/\xfe\xff"), os.O_RDONLY)
    yield "gone", opened(os.fsdecode(folder + b"/\xff"), os.O_RDONLY)


@CASES.add
def deep_directories_are_reached(at: Path) -> Iterator[Observation]:
    os.chdir(at)
    for _ in range(40):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    yield "made at the bottom", opened("file", os.O_CREAT | os.O_RDWR)
    yield "getcwd", attempt(lambda: len(os.getcwd()))
    for _ in range(40):
        os.chdir("..")
    yield "back", Path.cwd() == at
    inner = os.open("d" * 200, os.O_PATH)
    yield "up by ..", os.stat("..", dir_fd=inner).st_ino == at.stat().st_ino
    os.close(inner)


@CASES.add
def open_follows_its_flags(at: Path) -> Iterator[Observation]:
    ways = {
        "nothing": 0,
        "creat": os.O_CREAT,
        "excl": os.O_CREAT | os.O_EXCL,
        "trunc": os.O_TRUNC,
        "creat+trunc": os.O_CREAT | os.O_TRUNC,
        "append": os.O_APPEND,
        "directory": os.O_DIRECTORY,
        "nofollow": os.O_NOFOLLOW,
        "path": os.O_PATH,
        "path+nofollow": os.O_PATH | os.O_NOFOLLOW,
        "noatime": os.O_NOATIME,
        "sync": os.O_SYNC,
        "tmpfile": os.O_TMPFILE,
    }
    access = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}
    harmless = at / "harmless"
    harmless.mkdir()
    make(harmless, *KINDS)
    for how, flags in ways.items():
        for letter, mask in access.items():
            folder = harmless
            if flags & (os.O_CREAT | os.O_TRUNC):
                folder = at / f"{how}-{letter}"
                folder.mkdir()
                make(folder, *KINDS)
            for name in ("missing", *KINDS):
                outcome = opened(folder / name, flags | mask | os.O_NONBLOCK)
                yield f"{how} {letter} {name}", (outcome, kind(folder / name))


@CASES.add
def trailing_slashes_and_dots_mean_directories(at: Path) -> Iterator[Observation]:
    make(at, *KINDS)
    for name in ("missing", *KINDS):
        for suffix in ("/", "/.", "/..", "//", "/./"):
            yield f"stat {name}{suffix}", done(os.stat, f"{at}/{name}{suffix}")
            yield f"lstat {name}{suffix}", done(os.lstat, f"{at}/{name}{suffix}")
            yield (
                f"open {name}{suffix}",
                opened(f"{at}/{name}{suffix}", os.O_RDONLY | os.O_NONBLOCK),
            )
        yield f"create {name}/", opened(f"{at}/{name}/", os.O_CREAT | os.O_RDWR | os.O_NONBLOCK)


@CASES.add
def renaming_replaces_what_it_may(at: Path) -> Iterator[Observation]:
    number = 0
    for how, flags in RENAME_FLAGS.items():
        for source in ("missing", "file", "directory", "full", "link"):
            for target in ("missing", "file", "directory", "full", "dangling"):
                number += 1
                folder = at / str(number)
                folder.mkdir()
                make(folder, *{source, target})
                old, new = folder / source, folder / target
                yield (
                    f"{how} {source} to {target}",
                    (done(rename2, old, new, flags), kind(old), kind(new)),
                )


@CASES.add
def renaming_between_directories(at: Path) -> Iterator[Observation]:
    (at / "a" / "sub").mkdir(parents=True)
    (at / "b").mkdir()
    (at / "a" / "file").write_bytes(b"one")
    os.link(at / "a" / "file", at / "b" / "same")
    yield "hard links of one another", done(os.rename, at / "a" / "file", at / "b" / "same")
    yield "both still there", tree(at)
    yield "into itself", done(os.rename, at / "a", at / "a" / "sub" / "a")
    yield "onto its parent", done(os.rename, at / "a" / "sub", at / "a")
    yield "exchange with a child", done(rename2, at / "a", at / "a" / "sub", 2)
    yield "dot", done(os.rename, f"{at}/a/.", f"{at}/c")
    yield "dots", done(os.rename, f"{at}/a/sub/..", f"{at}/c")
    yield "file with slash", done(os.rename, f"{at}/a/file", f"{at}/c/")
    yield "directory with slash", done(os.rename, f"{at}/a/sub/", f"{at}/sub/")
    yield "a directory moved", done(os.rename, at / "sub", at / "b" / "sub")
    yield "its parent", (at / "b" / "sub" / "..").stat().st_ino == (at / "b").stat().st_ino
    inode = (at / "a" / "file").stat().st_ino
    yield "a file moved", done(os.rename, at / "a" / "file", at / "b" / "file")
    yield "is the same", (at / "b" / "file").stat().st_ino == inode
    yield "whiteout", done(rename2, at / "b" / "file", at / "b" / "white", 4)
    yield "unknown flag", done(rename2, at / "b" / "same", at / "b" / "x", 8)
    yield "left", [line for line in tree(at) if "file" not in line and "white" not in line]


@CASES.add
def open_files_outlive_their_names(at: Path) -> Iterator[Observation]:
    path = at / "file"
    path.write_bytes(b"content")
    fd = os.open(path, os.O_RDWR)
    path.unlink()
    yield "links", os.fstat(fd).st_nlink
    yield "read", attempt(os.pread, fd, 100, 0)
    yield "write", attempt(os.pwrite, fd, b"more", 7)
    yield "size", os.fstat(fd).st_size
    yield "truncate", done(os.ftruncate, fd, 2)
    yield "chmod", done(os.fchmod, fd, 0o600)
    yield "by proc", opened(f"/proc/self/fd/{fd}", os.O_RDONLY)
    yield "link back", done(os.link, f"/proc/self/fd/{fd}", at / "back", follow_symlinks=True)
    path.write_bytes(b"another")
    yield "another by the name", (os.pread(fd, 100, 0), path.read_bytes())
    os.close(fd)
    replaced = os.open(path, os.O_RDONLY)
    (at / "new").write_bytes(b"new")
    os.rename(at / "new", path)
    yield "replaced", (os.pread(replaced, 100, 0), os.fstat(replaced).st_nlink, path.read_bytes())
    os.close(replaced)


@CASES.add
def hard_links_are_one_inode(at: Path) -> Iterator[Observation]:
    make(at, *KINDS)
    for name in ("missing", *KINDS):
        yield f"link {name}", done(os.link, at / name, at / f"{name}-2", follow_symlinks=False)
        yield f"links {name}", attempt(links, at / name)
        yield f"kind {name}", kind(at / f"{name}-2")
    yield "existing", done(os.link, at / "file", at / "fifo")
    yield "follow", done(os.link, at / "link", at / "followed", follow_symlinks=True)
    yield "followed", kind(at / "followed")
    yield "into nothing", done(os.link, at / "file", at / "none" / "x")
    (at / "file").write_bytes(b"changed")
    yield "content", (at / "file-2").read_bytes()
    (at / "file").unlink()
    yield "after unlink", (at / "file-2").stat().st_nlink
    os.link(at / "file-2", at / "directory" / "third")
    yield "third", (at / "directory" / "third").stat().st_ino == (at / "file-2").stat().st_ino


@CASES.add
def symlinks_are_followed(at: Path) -> Iterator[Observation]:
    (at / "d").mkdir()
    (at / "d" / "file").write_bytes(b"here")
    (at / "0").symlink_to("d/file")
    for number in range(45):
        (at / str(number + 1)).symlink_to(str(number))
    for number in (1, 10, 39, 40, 41, 45):
        yield f"{number} links", opened(at / str(number), os.O_RDONLY)
    (at / "up").symlink_to("d/../d/./file")
    yield "with dots", attempt((at / "up").read_bytes)
    (at / "absolute").symlink_to(at / "d")
    yield "absolute", attempt((at / "absolute" / "file").read_bytes)
    yield "readlink of a file", attempt(os.readlink, at / "d" / "file")
    yield "readlink", os.readlink(at / "up")
    yield "existing", done(os.symlink, "x", at / "0")
    yield "mode", mode(at / "0")
    (at / "new").symlink_to("d/created")
    yield "create through", opened(at / "new", os.O_CREAT | os.O_RDWR)
    yield "create through, exclusive", opened(at / "new", os.O_CREAT | os.O_EXCL | os.O_RDWR)
    yield "left", kind(at / "d" / "created")


@CASES.add
def listings_are_complete(at: Path) -> Iterator[Observation]:
    for number in range(300):
        (at / f"{number:0>{1 + number % 60}}").touch()
    (at / "dir").mkdir()
    (at / "link").symlink_to("dir")
    names = os.listdir(at)
    yield "count", (len(names), len(set(names)))
    with os.scandir(at) as entries:
        found = list(entries)
    yield "inodes", all(entry.inode() == os.lstat(entry.path).st_ino for entry in found)
    yield (
        "types",
        sorted(
            {
                stat.filemode(os.lstat(entry.path).st_mode)[0] + str(entry.is_symlink())
                for entry in found
            }
        ),
    )
    fd = os.open(at, os.O_RDONLY)
    first = set(os.listdir(fd))
    for name in sorted(first)[:150]:
        os.unlink(name, dir_fd=fd) if name not in ("dir",) else None
    yield "after removal", len(os.listdir(fd))
    os.close(fd)
    with os.scandir(at) as entries:
        for entry in entries:
            os.unlink(entry.path) if not entry.is_dir(follow_symlinks=False) else None
    yield "removed while listed", sorted(os.listdir(at))
    yield "not empty", done(os.rmdir, at)


@CASES.add
def special_files_belong_to_the_guest(at: Path) -> Iterator[Observation]:
    for name, kinds, device in (
        ("null", stat.S_IFCHR, os.makedev(1, 3)),
        ("disk", stat.S_IFBLK, os.makedev(240, 1)),
        ("large", stat.S_IFCHR, os.makedev(4095, 1048575)),
        ("fifo", stat.S_IFIFO, 0),
        ("socket", stat.S_IFSOCK, 0),
        ("regular", stat.S_IFREG, 0),
        ("directory", stat.S_IFDIR, 0),
    ):
        yield f"mknod {name}", done(os.mknod, at / name, kinds | 0o640, device)
        yield f"found {name}", attempt(node, at / name)
    if (at / "null").exists():
        yield "null takes all", attempt((at / "null").write_bytes, b"x" * 10)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as caller:
        os.chdir(at)
        listener.bind("bound")
        yield "connect too early", done(caller.connect, "bound")
        listener.listen()
        yield "connect", done(caller.connect, "bound")
        yield "connect to fifo", done(socket.socket(socket.AF_UNIX).connect, "fifo")
    reader = os.open(at / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(at / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"through")
    yield "fifo", attempt(os.read, reader, 100)
    os.close(reader)
    os.close(writer)


@CASES.add
def directories_are_used_by_descriptor(at: Path) -> Iterator[Observation]:
    (at / "d").mkdir()
    fd = os.open(at / "d", os.O_RDONLY | os.O_DIRECTORY)
    yield "create", opened("f", os.O_CREAT | os.O_RDWR, within=fd)
    os.rename(at / "d", at / "moved")
    yield "after a move", opened("f", os.O_RDONLY, within=fd)
    yield "stat", attempt(lambda: os.stat("f", dir_fd=fd).st_size)
    yield "fchdir", done(os.fchdir, fd)
    yield "cwd", Path.cwd().name
    yield "read it", attempt(os.read, fd, 10)
    yield "write it", attempt(os.write, fd, b"x")
    yield "truncate it", done(os.ftruncate, fd, 0)
    yield "sync it", (done(os.fsync, fd), done(os.fdatasync, fd))
    yield "truncate by name", done(os.truncate, at / "moved", 0)
    os.close(fd)
    (at / "gone").mkdir()
    os.chdir(at / "gone")
    (at / "gone").rmdir()
    yield "gone: cwd", attempt(os.getcwd)
    yield "gone: list", attempt(os.listdir, ".")
    yield "gone: create", opened("x", os.O_CREAT | os.O_RDWR)
    yield "gone: up", done(os.stat, "..")


@CASES.add
def files_are_executed(at: Path) -> Iterator[Observation]:
    script = at / "script"
    script.write_text("#!/bin/sh\nexit 7\n")
    yield "not executable", attempt(lambda: os.spawnv(os.P_WAIT, str(script), ["script"]))
    script.chmod(0o755)
    yield "script", attempt(lambda: os.spawnv(os.P_WAIT, str(script), ["script"]))
    program = at / "program"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    yield "program", os.spawnv(os.P_WAIT, str(program), ["sleep", "0"])
    child = os.spawnv(os.P_NOWAIT, str(program), ["sleep", "60"])
    # ETXTBSY is raised from execve(2) on, which also changes the name of the process.
    while Path(f"/proc/{child}/comm").read_text().strip() != "program":
        os.sched_yield()
    yield "write while it runs", opened(program, os.O_WRONLY)
    yield "truncate while it runs", done(os.truncate, program, 0)
    yield "unlink while it runs", done(os.unlink, program)
    os.kill(child, 9)
    os.waitpid(child, 0)
    busy = at / "busy"
    busy.write_bytes(Path("/bin/sleep").read_bytes())
    busy.chmod(0o755)
    fd = os.open(busy, os.O_WRONLY)
    yield "run while written", elsewhere(lambda: os.execv(busy, ["sleep", "0"]))
    os.close(fd)
    (at / "directory").mkdir()
    yield "run a directory", elsewhere(lambda: os.execv(at / "directory", ["x"]))
