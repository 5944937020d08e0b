# SPDX-License-Identifier: Apache-2.0
"""Cases: extended attributes and POSIX ACLs."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from posix_cases.kit import (
    GROUP,
    IDENTITIES,
    OTHER_GROUP,
    USER,
    Cases,
    Observation,
    attempt,
    done,
    elsewhere,
    mode,
    opened,
)

CASES = Cases()
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, NAMED_USER, GROUP_OBJ, NAMED_GROUP, MASK, OTHERS = 1, 2, 4, 8, 16, 32
NO_ID = 0xFFFFFFFF
Entry = tuple[int, int, int]


def acl(*entries: Entry) -> bytes:
    """Return the value of an attribute with an ACL; an entry is (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def base(user: int, group: int, others: int, *named: Entry, mask: int = 7) -> bytes:
    """Return an ACL with its three base entries, and a mask if there are other entries."""
    users = [entry for entry in named if entry[0] == NAMED_USER]
    groups = [entry for entry in named if entry[0] == NAMED_GROUP]
    masks = [(MASK, mask, NO_ID)] if named else []
    return acl(
        (USER_OBJ, user, NO_ID),
        *users,
        (GROUP_OBJ, group, NO_ID),
        *groups,
        *masks,
        (OTHERS, others, NO_ID),
    )


def listed(path: Path) -> list[str]:
    """Return the names of all attributes."""
    return sorted(os.listxattr(path))


@CASES.add
def extended_attributes_come_and_go(at: Path) -> Iterator[Observation]:
    (at / "file").touch()
    (at / "directory").mkdir()
    (at / "link").symlink_to("file")
    os.mkfifo(at / "fifo")
    for name in ("file", "directory", "fifo"):
        path = at / name
        yield f"{name}: none", attempt(os.getxattr, path, "user.a")
        yield f"{name}: set", done(os.setxattr, path, "user.a", b"value\0with")
        yield f"{name}: get", attempt(os.getxattr, path, "user.a")
        yield f"{name}: list", attempt(listed, path)
        yield f"{name}: create", done(os.setxattr, path, "user.a", b"x", os.XATTR_CREATE)
        yield f"{name}: replace", done(os.setxattr, path, "user.a", b"", os.XATTR_REPLACE)
        yield f"{name}: empty", attempt(os.getxattr, path, "user.a")
        yield f"{name}: replace none", done(os.setxattr, path, "user.b", b"x", os.XATTR_REPLACE)
        yield f"{name}: remove", done(os.removexattr, path, "user.a")
        yield f"{name}: again", done(os.removexattr, path, "user.a")
    yield "on a link", done(os.setxattr, at / "link", "user.a", b"x", follow_symlinks=False)
    yield (
        "through a link",
        (
            done(os.setxattr, at / "link", "user.l", b"x"),
            attempt(os.getxattr, at / "file", "user.l"),
        ),
    )
    yield "list of a link", attempt(os.listxattr, at / "link", follow_symlinks=False)
    for name in ("user", "user.", "", "nonsense.a", "a", "user." + "n" * 250, "user." + "n" * 251):
        yield f"name '{name[:20]}' of {len(name)}", done(os.setxattr, at / "file", name, b"x")
        yield f"get '{name[:20]}' of {len(name)}", attempt(os.getxattr, at / "file", name)
    for size in (1, 255, 3000):
        yield f"value of {size}", done(os.setxattr, at / "file", "user.large", b"v" * size)
        yield f"value of {size} got", attempt(lambda: len(os.getxattr(at / "file", "user.large")))
    yield "value of 65537", done(os.setxattr, at / "file", "user.huge", b"v" * 65537)
    fd = os.open(at / "file", os.O_RDONLY)
    yield "of a descriptor", attempt(os.getxattr, fd, "user.l")
    os.unlink(at / "file")
    yield (
        "of an unlinked file",
        (done(os.setxattr, fd, "user.x", b"y"), attempt(os.getxattr, fd, "user.x")),
    )
    os.close(fd)


@CASES.add
def attributes_are_guarded(at: Path) -> Iterator[Observation]:
    path = at / "file"
    path.touch()
    path.chmod(0o400)
    yield "user. without permission to write", done(os.setxattr, path, "user.a", b"x")
    capability = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
    yield "security.capability", done(os.setxattr, path, "security.capability", capability)
    yield "its value", attempt(os.getxattr, path, "security.capability")
    path.chmod(0o600)
    path.write_bytes(b"x")
    yield "after writing", attempt(os.getxattr, path, "security.capability")
    yield "list", attempt(listed, path)


@CASES.add
def acls_and_modes_say_the_same(at: Path) -> Iterator[Observation]:
    path = at / "file"
    path.touch()
    for bits in (0o000, 0o640, 0o777):
        path.chmod(bits)
        yield f"{bits:o}: none", attempt(os.getxattr, path, ACCESS)
    named = (NAMED_USER, 6, USER), (NAMED_GROUP, 4, OTHER_GROUP)
    yield "set", done(os.setxattr, path, ACCESS, base(6, 4, 0, *named, mask=4))
    yield "mode", mode(path)
    yield "get", attempt(os.getxattr, path, ACCESS)
    path.chmod(0o751)
    yield "after chmod", attempt(os.getxattr, path, ACCESS)
    yield "list", attempt(listed, path)
    yield (
        "minimal",
        (
            done(os.setxattr, path, ACCESS, base(4, 4, 4)),
            mode(path),
            attempt(os.getxattr, path, ACCESS),
        ),
    )
    os.setxattr(path, ACCESS, base(7, 7, 7, *named))
    yield (
        "remove",
        (done(os.removexattr, path, ACCESS), mode(path), attempt(os.getxattr, path, ACCESS)),
    )
    yield "default on a file", done(os.setxattr, path, DEFAULT, base(7, 5, 5))
    for what, value in {
        "short": b"\2\0\0",
        "version": b"\3\0\0\0",
        "no others": acl((USER_OBJ, 7, NO_ID), (GROUP_OBJ, 7, NO_ID)),
        "order": acl((OTHERS, 7, NO_ID), (USER_OBJ, 7, NO_ID), (GROUP_OBJ, 7, NO_ID)),
        "no mask": acl(
            (USER_OBJ, 7, NO_ID), (NAMED_USER, 7, 5), (GROUP_OBJ, 7, NO_ID), (OTHERS, 7, NO_ID)
        ),
        "tag": acl((USER_OBJ, 7, NO_ID), (GROUP_OBJ, 7, NO_ID), (64, 7, NO_ID), (OTHERS, 7, NO_ID)),
        "permissions": base(8, 7, 7),
        "empty": b"",
    }.items():
        yield f"wrong: {what}", (done(os.setxattr, path, ACCESS, value), mode(path))
    (at / "link").symlink_to("file")
    yield "on a link", done(os.setxattr, at / "link", ACCESS, base(7, 7, 7), follow_symlinks=False)


@CASES.add
def default_acls_are_inherited(at: Path) -> Iterator[Observation]:
    folder = at / "d"
    folder.mkdir()
    named = (NAMED_USER, 7, USER), (NAMED_GROUP, 5, OTHER_GROUP)
    for number, (value, mask) in enumerate(
        ((base(7, 5, 0, *named), 0o077), (base(6, 4, 4), 0o077), (base(7, 7, 7, *named, mask=5), 0))
    ):
        yield f"{number}: set", done(os.setxattr, folder, DEFAULT, value)
        os.umask(mask)
        for name, make in {
            "file": lambda path: os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o666)),
            "directory": lambda path: os.mkdir(path, 0o777),
            "fifo": lambda path: os.mkfifo(path, 0o666),
            "closed": lambda path: os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600)),
        }.items():
            path = folder / f"{name}{number}"
            outcome = done(make, path)
            inherited = attempt(os.getxattr, path, ACCESS), attempt(os.getxattr, path, DEFAULT)
            yield f"{number}: {name}", (outcome, mode(path), *inherited)
    os.umask(0o022)
    yield "remove", (done(os.removexattr, folder, DEFAULT), attempt(os.getxattr, folder, DEFAULT))
    (folder / "later").touch()
    yield "afterwards", mode(folder / "later")


@CASES.add
def acls_are_obeyed(at: Path) -> Iterator[Observation]:
    if os.geteuid() != 0:
        yield "nothing", "root has to set it up"
        return
    at.chmod(0o755)
    who = IDENTITIES["user"]
    for number, (value, what) in enumerate(
        (
            (base(7, 0, 0, (NAMED_USER, 6, USER)), "named user"),
            (base(7, 0, 0, (NAMED_USER, 6, USER), mask=4), "named user, masked"),
            (base(7, 0, 0, (NAMED_GROUP, 4, OTHER_GROUP)), "supplementary group"),
            (base(7, 0, 0, (NAMED_GROUP, 4, GROUP), (NAMED_GROUP, 2, OTHER_GROUP)), "either group"),
            (base(7, 0, 7, (NAMED_USER, 0, USER)), "named user without any"),
            (base(7, 0, 7, (NAMED_GROUP, 0, OTHER_GROUP)), "group without any"),
        )
    ):
        path = at / f"f{number}"
        path.write_bytes(b"x")
        os.setxattr(path, ACCESS, value)

        def use(path: Path = path) -> list[str]:
            ways = [opened(path, flags) for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)]
            return [*ways, done(os.setxattr, path, ACCESS, base(7, 7, 7))]

        yield f"{what}: read, write, both, change it", elsewhere(use, who)
