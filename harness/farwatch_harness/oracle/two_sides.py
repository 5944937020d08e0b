# SPDX-License-Identifier: Apache-2.0
"""Scripts in which the host and the guest use one directory, step by step.

A script runs twice: on the share, where its side performs each step, and in a reference directory
of the host, where this process performs all of them, as two processes of one system would. The
results of each step, and the events that the guest's watcher reads after it, must be equal.

A step is Python code, with the names of SIDE. Its result is that of its last expression, or the
name of an errno. Variables stay until the end of the script: open files, mappings, sockets.
"""

import ctypes
import errno
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from farwatch_harness.oracle.compare import (
    LIMIT,
    ObservedEvent,
    coalesced,
    normalize,
)
from farwatch_harness.oracle.native_inotify import In, NativeInotify
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.agent import pack, unpack
from farwatch_harness.vm.guest_client import Guest, GuestInotify, GuestInotifyEvent
from farwatch_harness.vm.testbed import Share

LIBC = ctypes.CDLL(None, use_errno=True)
#: The directory in which the host marks the end of each step.
MARKS = "marks"
NUMBERS = itertools.count(1)

#: The code that each side runs before the first step. "base" is the script's directory, "O" is
#: the module os.
SIDE = '''
import ast, ctypes, errno, fcntl, mmap, os, socket, stat, subprocess, time

O = os
fds = []

def at(name):
    """Return the path of a name in the script's directory."""
    return os.path.join(os.fsencode(base), os.fsencode(name))

def opened(name, flags=os.O_RDONLY, mode=0o644):
    """Open a file until the end of the script."""
    fd = os.open(at(name), flags | os.O_CLOEXEC, mode)
    fds.append(fd)
    return fd

def write(name, data, flags=os.O_CREAT | os.O_TRUNC, mode=0o644):
    fd = os.open(at(name), os.O_WRONLY | flags | os.O_CLOEXEC, mode)
    try:
        return os.write(fd, data.encode() if isinstance(data, str) else data)
    finally:
        os.close(fd)

def append(name, data):
    return write(name, data, os.O_APPEND)

def read(name):
    fd = os.open(at(name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 20)
    finally:
        os.close(fd)

def ls(name="."):
    """List a directory."""
    return sorted(os.listdir(at(name)))

def tree(name="."):
    """Return all that is below a directory: each name with what look() finds."""
    found = []
    for entry in ls(name):
        if name == "." and entry == b"marks":
            continue
        path = os.path.join(os.fsencode(name), entry)
        found.append([path, look(path)])
        if stat.S_ISDIR(os.lstat(at(path)).st_mode):
            found += tree(path)
    return found

def look(name):
    """Return what a name is: type, mode, links, ids, size, and content or target."""
    found = os.lstat(at(name))
    what = [oct(found.st_mode), found.st_nlink, found.st_uid, found.st_gid]
    if stat.S_ISREG(found.st_mode):
        return [*what, found.st_size, read(name)]
    return [*what, os.readlink(at(name))] if stat.S_ISLNK(found.st_mode) else what

def there(name):
    return os.path.lexists(at(name))

def mv(old, new):
    os.rename(at(old), at(new))

def rename(old, new, flags):
    """Call renameat2(2)."""
    if libc.renameat2(-100, at(old), -100, at(new), flags) < 0:
        raise OSError(ctypes.get_errno(), old)

def rm(name):
    os.unlink(at(name))

def mkdir(name, mode=0o755):
    os.mkdir(at(name), mode)

def rmdir(name):
    os.rmdir(at(name))

def ln(old, new):
    os.link(at(old), at(new), follow_symlinks=False)

def symlink(target, name):
    os.symlink(target, at(name))

def outside(name):
    """Return a path beside the script's directory, outside of the share; only for the host."""
    return os.path.join(os.fsencode(beside), os.fsencode(name))

def errors(*calls):
    """Return the result or the errno of each call."""
    return [error(call) for call in calls]

def error(call):
    try:
        return call()
    except OSError as problem:
        return errno.errorcode[problem.errno]

def as_user(code, uid=1000, gid=1000, groups=()):
    """Run code in a process of a user; return the result of its last expression, as text."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setgroups(list(groups)); os.setgid(gid); os.setuid(uid)
            os.write(write_end, repr(perform(code)).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as stream:
        result = stream.read().decode()
    os.waitpid(pid, 0)
    return result

def sh(script):
    """Run a shell script in the script's directory; return its status and output."""
    done = subprocess.run(["sh", "-c", script], cwd=base, capture_output=True, text=True)
    return [done.returncode, done.stdout, done.stderr]

def perform(code):
    """Run a step; return the result of its last expression, or the name of an errno."""
    step = ast.parse(code)
    last = step.body.pop() if step.body and isinstance(step.body[-1], ast.Expr) else None
    try:
        exec(compile(step, "step", "exec"), globals())
        if last is None:
            return None
        return eval(compile(ast.Expression(last.value), "step", "eval"), globals())
    except OSError as problem:
        return errno.errorcode.get(problem.errno, str(problem))

def finish():
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass
'''
#: Runs a step in the guest's agent; the variables are kept as a module.
IN_GUEST = """
import sys, types
def main(key, side, base, beside, code):
    module = sys.modules.get(key)
    if module is None:
        module = sys.modules[key] = types.ModuleType(key)
        module.__dict__.update(base=base, beside=beside, libc=libc)
        exec(compile(side, "side", "exec"), module.__dict__)
    if code is None:
        module.finish()
        del sys.modules[key]
        return None
    return module.perform(code)
"""


@dataclass(frozen=True)
class ScriptStep:
    """Code that one side runs.

    on_host: the host runs it, else the guest.
    events: whether the events after it are compared.
    """

    on_host: bool
    code: str
    events: bool = True


@dataclass(frozen=True)
class WatchStep:
    """The guest's watcher watches paths below the script's directory."""

    paths: tuple[str, ...]
    mask: int = int(In.ALL)


Script = Sequence[ScriptStep | WatchStep]


def host(code: str, events: bool = True) -> ScriptStep:
    """Return a step of the host."""
    return ScriptStep(True, code, events)


def guest(code: str, events: bool = True) -> ScriptStep:
    """Return a step of the guest."""
    return ScriptStep(False, code, events)


def watch(*paths: str, mask: int = int(In.ALL)) -> WatchStep:
    """Return a step in which the guest's watcher watches `paths`, or the script's directory."""
    return WatchStep(paths or (".",), mask)


@dataclass(frozen=True)
class StepResult:
    """What a step gave: its result, and the events after it; None: not compared."""

    step: str
    result: Any
    events: list[ObservedEvent] | None


Perform = Callable[[str], Any]


@contextmanager
def local_side(base: PurePath, beside: Path) -> Iterator[Perform]:
    """Yield what runs a step in this process."""
    names: dict[str, Any] = {"base": str(base), "beside": str(beside), "libc": LIBC}
    exec(compile(SIDE, "side", "exec"), names)
    try:
        # As the guest's results arrive.
        yield lambda code: unpack(pack(names["perform"](code)))
    finally:
        names["finish"]()


@contextmanager
def guest_side(guest: Guest, base: PurePath) -> Iterator[Perform]:
    """Yield what runs a step in the guest."""
    key = f"two_sides_{next(NUMBERS)}"

    def perform(code: str | None) -> Any:
        return guest.python(IN_GUEST, key, SIDE, str(base), "", code)

    try:
        yield perform
    finally:
        if not guest.lost:
            perform(None)


class SideEvents:
    """The events of one watcher."""

    def __init__(
        self,
        watcher: NativeInotify | GuestInotify,
        base: PurePath,
        read: Callable[[str], list[GuestInotifyEvent]],
    ) -> None:
        self.watcher = watcher
        self.base = base
        self.read_until = read
        self.labels: dict[int, str] = {}
        self.moves: dict[int, int] = {}
        self.marks = watcher.add(self.path(MARKS), int(In.CREATE))

    def path(self, name: str) -> Any:
        """Return the path of a name below the base."""
        return self.base / name

    def add(self, path: str, mask: int) -> str:
        """Add a watch; return "", or the error."""
        try:
            wd = self.watcher.add(self.path(path), mask)
        except OSError as error:
            return errno_name(error)
        known = self.labels.get(wd)
        self.labels.setdefault(wd, path)
        return "" if known is None else f"the watch of {known}"

    def until(self, mark: str) -> list[ObservedEvent]:
        """Return the events up to a mark, without those of marks."""
        events = [event for event in self.read_until(mark) if event.wd != self.marks]
        return coalesced(normalize(events, self.labels, self.moves))


def errno_name(error: OSError) -> str:
    """Return the name of an errno."""
    return errno.errorcode[error.errno or 0]


def play(
    script: Script, on_host: Perform, in_guest: Perform, host_base: Path, events: SideEvents
) -> list[StepResult]:
    """Perform a script; return what each step gave."""
    seen = []
    for number, step in enumerate(script):
        if isinstance(step, WatchStep):
            added = [events.add(path, step.mask) for path in step.paths]
            seen.append(StepResult(f"watch {step.paths}", added, None))
            continue
        result = (on_host if step.on_host else in_guest)(step.code)
        mark = f"end of step {number}"
        # A symlink, because it is created without an open and raises one event.
        (host_base / MARKS / mark).symlink_to("nowhere")
        observed = events.until(mark)
        side = "host" if step.on_host else "guest"
        seen.append(
            StepResult(f"{side}: {step.code.strip()}", result, observed if step.events else None)
        )
    return seen


def differences(native: Sequence[StepResult], shared: Sequence[StepResult]) -> list[str]:
    """Return how the share differs from the reference directory: a text for each step."""
    found = []
    for one, other in zip(native, shared, strict=True):
        if one.result != other.result:
            found.append(f"{one.step}\n  native: {one.result}\n  share:  {other.result}")
        if one.events != other.events:
            events = [
                f"\n    {side}: " + (", ".join(map(str, each.events or ())) or "no event")
                for side, each in (("native", one), ("share", other))
            ]
            found.append(f"{one.step}\n  events:{''.join(events)}")
    return found


def compare_two_sides(guest: Guest, share: Share, reference: Path, script: Script) -> list[str]:
    """Run a script in `reference` and on the share, in new directories.

    Return the differences; none: both are equal.
    """
    return differences(play_natively(reference, script), play_on_the_share(guest, share, script))


def prepare(base: Path) -> Path:
    """Make the script's directory, and the one beside it; return the latter."""
    beside = base.parent / f"{base.name}-beside"
    for path in (base, beside):
        path.mkdir(parents=True, exist_ok=True)
    (base / MARKS).mkdir()
    return beside


def play_natively(reference: Path, script: Script) -> list[StepResult]:
    """Run a script in a directory of this system."""
    base = reference / "native"
    beside = prepare(base)
    with ExitStack() as stack:
        on_host = stack.enter_context(local_side(base, beside))
        in_guest = stack.enter_context(local_side(base, beside))
        watcher = stack.enter_context(NativeInotify())
        return play(script, on_host, in_guest, base, SideEvents(watcher, base, watcher.read))


def play_on_the_share(guest: Guest, share: Share, script: Script) -> list[StepResult]:
    """Run a script on the share."""
    beside = share.host.parent.parent / f"{share.host.name}-beside"
    beside.mkdir()
    (share.host / MARKS).mkdir()
    with ExitStack() as stack:
        on_host = stack.enter_context(local_side(share.host, beside))
        in_guest = stack.enter_context(guest_side(guest, share.guest))
        watcher = stack.enter_context(guest.inotify())

        def read(mark: str) -> list[GuestInotifyEvent]:
            events = watcher.read(until=mark, limit=LIMIT)
            if not any(event.name == mark for event in events):
                raise HarnessError(f"the guest's inotify did not report {mark!r}: {events}")
            return events

        return play(script, on_host, in_guest, share.host, SideEvents(watcher, share.guest, read))
