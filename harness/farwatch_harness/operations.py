# SPDX-License-Identifier: Apache-2.0
"""File operations as data, for scripts that run alike on the host and in the guest.

An operation is a list: its kind and the names it is about, relative to the script's base directory. What cannot be done
(a name is there already, is missing, is a directory) is left out, on both sides alike.
"""

import inspect
from typing import Any

Operation = list[str]

#: What is there before a script begins, and which of it is watched.
TREE: list[Operation] = [
    ["mkdir", "d"],
    ["mkdir", "e"],
    ["mkdir", "d/sub"],
    ["write", "d/f"],
    ["write", "e/g"],
    ["symlink", "d/f", "link"],
]
WATCHED = (".", "d", "e", "d/sub", "d/f", "e/g")
#: Names to choose from: what is there, what may come, what can never be.
NAMES = ("d", "e", "d/f", "d/n", "d/sub", "d/sub/f", "e/g", "e/d", "e/d/f", "e/sub", "top", "link")
#: The kinds by the number of names.
ONE = (
    "create", "write", "append", "truncate", "read", "open", "chmod", "private", "utimes", "mkdir", "rmdir", "unlink",
    "list",
)  # fmt: skip
TWO = ("rename", "link", "symlink")


def perform(base: str, operation: list[str]) -> None:
    """Run one operation below ``base``. Needs nothing but what it imports: its source runs in the guest as well."""
    import contextlib
    import os

    def opened(path: str, flags: int, data: bytes = b"") -> None:
        fd = os.open(path, flags, 0o644)
        if data:
            os.write(fd, data)
        elif flags & 3 == os.O_RDONLY and not flags & os.O_NONBLOCK:
            os.read(fd, 100)
        os.close(fd)

    kind, *names = operation
    # A symlink's target is no name below the base.
    paths = [name if (kind, at) == ("symlink", 0) else f"{base}/{name}" for at, name in enumerate(names)]
    steps: dict[str, Any] = {
        "create": lambda path: opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL),
        "write": lambda path: opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, b"written"),
        "append": lambda path: opened(path, os.O_WRONLY | os.O_APPEND, b"appended"),
        "truncate": lambda path: os.truncate(path, 1),
        "read": lambda path: opened(path, os.O_RDONLY),
        "open": lambda path: opened(path, os.O_RDONLY | os.O_NONBLOCK),
        "chmod": lambda path: os.chmod(path, 0o755),  # noqa: PTH101
        "private": lambda path: os.chmod(path, 0o700),  # noqa: PTH101
        "utimes": lambda path: os.utime(path, (1, 2)),
        "mkdir": lambda path: os.mkdir(path, 0o755),  # noqa: PTH102
        "rmdir": os.rmdir,
        "unlink": os.unlink,
        "list": os.listdir,
        "rename": os.rename,
        "link": os.link,
        "symlink": os.symlink,
    }
    with contextlib.suppress(OSError):
        steps[kind](*paths)


#: For the guest: defines perform().
PERFORM = "from typing import Any\n" + inspect.getsource(perform)
