# SPDX-License-Identifier: Apache-2.0
"""The tools of the cases: an outcome is plain data; the outcome of an error is its name."""

import errno
import os
import pickle
import shutil
import stat
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: An ordinary user of the guest, and one of its groups beside its own.
USER, GROUP, OTHER_GROUP = 1000, 1000, 2000
STRANGER = 3000
#: What a case yields: what was done, and what came of it.
Observation = tuple[str, Any]
Case = Callable[[Path], Iterator[Observation]]


@dataclass(frozen=True)
class Identity:
    """The user that runs a case."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


IDENTITIES = {
    who.name: who
    for who in (Identity("root", 0, 0, ()), Identity("user", USER, GROUP, (OTHER_GROUP,)))
}


class Cases:
    """The cases of one file, in order."""

    def __init__(self) -> None:
        self.list: list[Case] = []

    def add(self, case: Case) -> Case:
        """Add a case: a generator of observations, which gets an empty directory."""
        self.list.append(case)
        return case


def attempt(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the result of `call`, or the name of its errno."""
    try:
        value = call(*args, **kwargs)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return value.hex() if isinstance(value, bytes | bytearray) and len(value) > 64 else plain(value)


def plain(value: Any) -> Any:
    """Return `value` in a form that JSON can represent."""
    if isinstance(value, bytes | bytearray):
        return value.decode("latin-1")
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple | set):
        items = [plain(item) for item in value]
        return sorted(items, key=str) if isinstance(value, set) else items
    return value


def done(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Do as `attempt`, but return "ok" for any success."""
    return attempt(lambda: (call(*args, **kwargs), "ok")[1])


def opened(path: Path | str, flags: int, mode: int = 0o644, within: int | None = None) -> Any:
    """Open a file in the directory `within`, and close it."""
    return done(lambda: os.close(os.open(path, flags, mode, dir_fd=within)))


def mode(path: Path) -> str:
    """Return the mode with the file type, in octal."""
    return f"{path.lstat().st_mode:o}"


def owner(path: Path) -> tuple[int, int]:
    """Return owner and group."""
    status = path.lstat()
    return status.st_uid, status.st_gid


def kind(path: Path) -> str:
    """Return the file type, and the size unless the file is a directory."""
    try:
        status = path.lstat()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    letter = stat.filemode(status.st_mode)[0]
    return letter if letter == "d" else f"{letter}{status.st_size}"


def tree(path: Path) -> list[str]:
    """Return all names below `path`, with types and sizes."""
    return sorted(f"{found.relative_to(path)} {kind(found)}" for found in path.rglob("*"))


def become(who: Identity) -> None:
    """Switch this process to the user."""
    os.setgroups(who.groups)
    os.setresgid(who.gid, who.gid, who.gid)
    os.setresuid(who.uid, who.uid, who.uid)


def elsewhere(call: Callable[[], Any], who: Identity | None = None) -> Any:
    """Return the result of `call` in a new process, run by `who`.

    If there is none, return how the process ended.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            if who is not None:
                become(who)
            result = attempt(call)
            os.write(writer, pickle.dumps(result))
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        data = stream.read()
    _, status = os.waitpid(child, 0)
    return pickle.loads(data) if data else f"ended with {status}"


class Child:
    """A process that calls `first`, reports the result, and waits for end().

    Then it calls `then`.
    """

    def __init__(self, first: Callable[[], Any], then: Callable[[], Any] | None = None) -> None:
        self._said, said = os.pipe()
        go, self.go = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.close(self._said)
                os.close(self.go)
                os.write(said, pickle.dumps(attempt(first)))
                os.read(go, 1)
                if then is not None:
                    attempt(then)
            finally:
                os._exit(0)
        os.close(said)
        os.close(go)
        self.first = pickle.loads(os.read(self._said, 4096))

    def end(self) -> None:
        """Let the process call `then`, and wait for its end."""
        os.close(self.go)
        os.waitpid(self.pid, 0)
        os.close(self._said)


def run(cases: list[Case], folder: Path) -> dict[str, dict[str, Any]]:
    """Run each case in an empty directory of its own in `folder`; return the outcomes by name."""
    outcomes: dict[str, dict[str, Any]] = {}
    for case in cases:
        at = folder / case.__name__
        at.mkdir()
        os.umask(0o022)
        found: dict[str, Any] = {}
        try:
            for what, outcome in case(at):
                if what in found:
                    raise AssertionError(f"'{what}' is observed twice")
                found[what] = plain(outcome)
        except Exception as error:
            found["broken off"] = (
                f"{error!r} at {traceback.extract_tb(error.__traceback__)[-1].line}"
            )
        os.chdir("/")
        outcomes[case.__name__] = found
        shutil.rmtree(at, ignore_errors=True)
    return outcomes
