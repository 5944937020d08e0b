# SPDX-License-Identifier: Apache-2.0
"""Find out what works here for a shared directory, and what to do about the rest: --check."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from farwatchd.inode_store.handle_probe import HandlesUnavailableError, open_store
from farwatchd.inode_store.options import InodeFileHandles
from farwatchd.inode_store.store import InodeStore
from farwatchd.linux.capabilities import effective
from farwatchd.native import NativeUse, load
from farwatchd.passthrough.procfd import ProcFd
from farwatchd.sandbox.enter import SandboxError, enter
from farwatchd.sandbox.limits import usable_cpus, usable_memory
from farwatchd.sandbox.options import Sandbox
from farwatchd.sandbox.privileges import FILE_SERVER
from farwatchd.sandbox.seccomp import SeccompError, import_library
from farwatchd.virtqueue import unsupported_machine
from farwatchd.watch.backend_probe import BackendUnavailableError, WatchMode, open_backend
from farwatchd.watch.options import BackendName

#: Seconds for a program that is asked what it has.
_LIMIT = 10
_QEMU = ("qemu-system-x86_64", "qemu-kvm", "/usr/libexec/qemu-kvm")
_DESCRIPTIONS = ("/usr/share/qemu/vhost-user", "/etc/qemu/vhost-user", "~/.config/qemu/vhost-user")
#: Whose changes by other machines the host's kernel does not see.
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "9p", "fuse", "virtiofs"}


class Result(Enum):
    """Whether a thing works."""

    OK = "ok"
    LIMITED = "limited"
    MISSING = "MISSING"


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One row: a thing, what was found, and what to do if it is not well.

    ``needed``: without it the daemon does not start as it does by default, or has no events.
    """

    thing: str
    result: Result
    found: str
    advice: str = ""
    needed: bool = False


def check(directory: Path) -> int:
    """Print a table of what works for ``directory``, and return the exit status.

    It is 0 if the daemon would serve the directory with events.
    """
    # The table says what the log would.
    logging.disable(logging.CRITICAL)
    rows = list(_rows(directory))
    width = max(len(row.thing) for row in rows)
    for row in rows:
        print(f"{row.result.value:8} {row.thing:{width}}  {row.found}")
        if row.advice:
            print(f"{'':8} {'':{width}}  -> {row.advice}")
    lacking = [one.thing for one in rows if one.needed and one.result is Result.MISSING]
    print()
    if lacking:
        print(f"It would not work here: {', '.join(lacking)}.")
        return 1
    print(f"It works here: farwatchd --socket-path=SOCKET --shared-dir={directory}")
    return 0


def _rows(directory: Path) -> Iterator[CheckRow]:
    problem = unsupported_machine(os.uname().machine)
    yield CheckRow(
        "machine",
        Result.MISSING if problem else Result.OK,
        problem or f"{os.uname().machine}, {usable_cpus():g} CPUs, Linux {os.uname().release}",
        needed=True,
    )
    try:
        root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        yield CheckRow(
            "shared directory",
            Result.MISSING,
            f"{directory}: {error.strerror}",
            "name a directory that this user can read",
            needed=True,
        )
        return
    yield _file_system(directory)
    yield from _share(root_fd)
    yield from _rights(directory)
    yield from _limits()
    yield _native_part()
    yield from _qemu()
    yield _description()


def _file_system(directory: Path) -> CheckRow:
    kind = mounted_as(directory.resolve(), Path("/proc/self/mountinfo").read_text())
    thing = "file system"
    if kind.partition(".")[0] in _NETWORK:
        return CheckRow(
            thing,
            Result.LIMITED,
            f"{kind}: the host sees what it changes itself, nothing of other machines",
            "run the daemon where the files are",
        )
    if kind == "overlay":
        return CheckRow(
            thing, Result.LIMITED, "overlay: mode others needs Linux 6.6", "share a volume instead"
        )
    if kind == "btrfs":
        return CheckRow(
            thing, Result.OK, "btrfs: before Linux 6.8 mode others works in no subvolume"
        )
    return CheckRow(thing, Result.OK, kind)


def mounted_as(path: Path, mountinfo: str) -> str:
    """Return the type of the file system of ``path``, by the text of proc(5)'s ``mountinfo``."""
    best, kind = -1, "unknown"
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        # Spaces and the like are octal.
        place = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split()[4]))
        # The last one of several mounts at one place is what can be seen.
        if path.is_relative_to(place) and len(place.parts) >= best:
            best, kind = len(place.parts), after.split()[0]
    return kind


def _share(root_fd: int) -> Iterator[CheckRow]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    store = InodeStore()
    try:
        store = open_store(InodeFileHandles.MANDATORY, root_fd, hard)
        yield CheckRow("file handles", Result.OK, "a known inode costs no descriptor")
    except HandlesUnavailableError as error:
        yield CheckRow(
            "file handles",
            Result.LIMITED,
            f"{str(error).partition(';')[0]}: each inode costs one of {hard} descriptors",
            "run the daemon as root, on ext4, XFS, btrfs or tmpfs; or raise the limit (ulimit -Hn)",
        )
    problems = []
    for mode in (WatchMode.OTHERS, WatchMode.REMOTE):
        try:
            backend = open_backend(BackendName.AUTO, root_fd, store, ProcFd().path, mode)
        except BackendUnavailableError as error:
            problems.append(f"mode {mode.value}: {error}")
            continue
        backend.close()
        found = f"mode {mode.value} by {backend.name} would be offered to the guest"
        if problems:
            yield CheckRow("events", Result.LIMITED, found, problems[0])
        else:
            yield CheckRow("events", Result.OK, found)
        return
    yield CheckRow("events", Result.MISSING, problems[-1], problems[0], needed=True)


def _rights(directory: Path) -> Iterator[CheckRow]:
    lacking = [str(one.name).lower() for one in FILE_SERVER & ~effective()]
    yield CheckRow(
        "capabilities",
        Result.LIMITED if lacking else Result.OK,
        f"without {' '.join(lacking)}: the guest's files are all this user's"
        if lacking
        else "files of all users can be served",
        "run the daemon as root, or use --uid-map and --gid-map" if lacking else "",
    )
    problem = in_child(lambda: enter(Sandbox.NAMESPACE, directory.absolute()), SandboxError)
    advice = "use --sandbox=chroot (root) or --sandbox=none inside a container that confines it"
    yield CheckRow(
        "sandbox",
        Result.MISSING if problem else Result.OK,
        problem or "namespaces can be made",
        advice if problem else "",
        needed=True,
    )
    try:
        import_library()
    except SeccompError as error:
        yield CheckRow("seccomp", Result.MISSING, str(error), needed=True)
    else:
        yield CheckRow("seccomp", Result.OK, "libseccomp is there")


def in_child(action: Callable[[], object], kind: type[Exception]) -> str:
    """Run ``action`` in a process of its own, as it cannot be undone.

    Return the text of its exception of that kind, or an empty one.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        text = "it failed"
        try:
            action()
            text = ""
        except kind as error:
            text = str(error)
        finally:
            os.write(writer, text.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return text


def _limits() -> Iterator[CheckRow]:
    low, high = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield CheckRow(
        "descriptors",
        Result.OK if high >= 4096 else Result.LIMITED,
        f"{high} may be open (soft limit {low})",
        "" if high >= 4096 else "raise the hard limit (ulimit -Hn, LimitNOFILE=)",
    )
    for name, least in (
        ("fs/inotify/max_user_watches", 65536),
        ("fs/inotify/max_user_instances", 16),
        ("fs/fanotify/max_user_marks", 65536),
        ("fs/fanotify/max_user_groups", 16),
        ("fs/fanotify/max_queued_events", 4096),
    ):
        thing = name.replace("/", ".")
        try:
            value = int((Path("/proc/sys") / name).read_text())
        except OSError:
            yield CheckRow(thing, Result.LIMITED, "this kernel does not have it")
            continue
        enough = value >= least
        yield CheckRow(
            thing,
            Result.OK if enough else Result.LIMITED,
            str(value),
            "" if enough else f"sysctl -w {thing}={least}",
        )
    yield CheckRow("memory", Result.OK, f"{usable_memory() >> 20} MiB: see --max-memory")


def _native_part() -> CheckRow:
    if load(NativeUse.AUTO) is not None:
        return CheckRow("native part", Result.OK, "it serves plain requests: see --native")
    return CheckRow(
        "native part",
        Result.LIMITED,
        "not built: plain requests take several times as much CPU time",
        "install farwatchd by pip where there are a C compiler and Python's headers",
    )


def _qemu() -> Iterator[CheckRow]:
    programs = [program for name in _QEMU if (program := shutil.which(name))]
    if not programs:
        yield CheckRow("QEMU", Result.LIMITED, "none found", "install one, or use another VMM")
    for program in programs:
        try:
            version = _output(program, "--version").splitlines()[0].partition("version ")[2]
            devices = _output(program, "-device", "help")
        except (OSError, subprocess.SubprocessError, IndexError) as error:
            yield CheckRow("QEMU", Result.LIMITED, f"{program}: {error}")
            continue
        yield transport(program, version, devices)


def transport(program: str, version: str, devices: str) -> CheckRow:
    """Return how events would reach the guest with this QEMU, by its list of devices."""
    what = f"{program} {version}"
    if '"vhost-user-test-device-pci"' in devices:
        return CheckRow("QEMU", Result.OK, f"{what}: notification queue, or WAIT requests")
    if '"vhost-user-fs-pci"' in devices:
        return CheckRow("QEMU", Result.OK, f"{what}: events by WAIT requests")
    return CheckRow(
        "QEMU",
        Result.LIMITED,
        f"{what}: it has no vhost-user-fs-pci",
        "install the distribution's package of QEMU with vhost-user devices",
    )


def _output(*words: str) -> str:
    return subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT, check=True
    ).stdout


def _description() -> CheckRow:
    for folder in _DESCRIPTIONS:
        for path in _files(Path(folder).expanduser()):
            try:
                found = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
            if isinstance(found, dict) and "farwatchd" in str(found.get("binary")):
                if os.access(found["binary"], os.X_OK):
                    return CheckRow("libvirt and Lima", Result.OK, f"{path} names the daemon")
                advice = f"set its binary to {shutil.which('farwatchd') or 'the daemon'}"
                text = f"{path} names {found['binary']}, which is no program"
                return CheckRow("libvirt and Lima", Result.LIMITED, text, advice)
    return CheckRow(
        "libvirt and Lima",
        Result.LIMITED,
        "no description of the daemon in /usr/share/qemu/vhost-user",
        "copy 50-farwatchd.json there, or name the daemon in the domain (<binary path=...>)",
    )


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
