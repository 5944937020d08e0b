# SPDX-License-Identifier: Apache-2.0
"""A root file system in memory, with the agent and this interpreter, for guests that migrate.

virtme-ng's root is a directory of the host, mounted with 9p, and QEMU migrates no guest that has
one.
"""

import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from virtme.cpiowriter import CpioWriter

from farwatch_harness.util import cache, paths, subprocesses

NAME = "initramfs"
#: The directory of the harness's package.
HARNESS = str(Path(paths.__file__).parents[2])
INIT = """#!{python} -ISB
import ctypes, os, sys
libc = ctypes.CDLL(None)
for kind, at in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run")):
    libc.mount(kind.encode(), at.encode(), kind.encode(), ctypes.c_ulong(0), None)
for fd, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
    os.dup2(os.open("/dev/console", flags), fd)
# The agent ends, and the guest with it.
pid = os.fork()
if not pid:
    os.setsid()
    os.execv({python!r}, [{python!r}, "-X", "utf8", "-ISB", {agent!r}, {port!r}])
while os.wait()[0] != pid:
    pass
libc.reboot(0x4321FEDC)
"""
#: Prints the files of all modules that the agent imports, of those imported when needed, and of the
#: programs of the stress test.
MODULES = """
import runpy, sys
runpy.run_path({agent!r}, run_name="agent")
import contextlib, encodings.idna, random, shutil, tempfile
sys.path.insert(0, {harness!r})
import farwatch_harness.oracle.file_operations, farwatch_harness.soak.guest
for module in list(sys.modules.values()):
    if getattr(module, "__file__", None):
        print(module.__file__)
"""


def make(port: str) -> Path:
    """Return an initramfs whose init starts the agent on the virtio-serial port `port`."""
    python = Path(sys.executable).resolve()
    files = sorted(needed_files(python))
    init = INIT.format(python=str(python), agent=str(paths.GUEST_AGENT), port=port)
    key = cache.content_key(init, *(f"{each} {each.stat().st_mtime_ns}" for each in files))
    folder = cache.published(
        paths.cache_root() / "initramfs" / f"{key}-1",
        lambda target: write(target / NAME, files, init.encode()),
    )
    return folder / NAME


def needed_files(python: Path) -> Iterator[Path]:
    """Yield the interpreter, the agent's modules, and the libraries of all of them."""
    command = [str(python), "-X", "utf8", "-ISB", "-c"]
    listed = subprocesses.run(
        [*command, MODULES.format(agent=str(paths.GUEST_AGENT), harness=HARNESS)]
    )
    # From its first directory the interpreter finds its own.
    modules = {Path(line) for line in listed.splitlines()} | {Path(sysconfig.__file__)}
    yield from modules
    yield paths.GUEST_AGENT
    yield python
    libraries: set[Path] = set()
    for binary in [python, *(each for each in modules if each.suffix == ".so")]:
        done = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False)
        libraries |= {Path(word) for word in done.stdout.split() if word.startswith("/")}
    yield from libraries


def write(target: Path, files: list[Path], init: bytes) -> None:
    """Write the archive: the files at the places that they have here, and the init."""
    made: set[Path] = set()
    with target.open("wb") as stream:
        archive = CpioWriter(stream)

        def make_directory(path: Path) -> None:
            if path in made or path == Path("/"):
                return
            make_directory(path.parent)
            made.add(path)
            archive.mkdir(str(path).lstrip("/").encode(), 0o755)

        for name in ("/proc", "/sys", "/dev", "/run", "/tmp"):
            make_directory(Path(name))
        archive.mkchardev(b"dev/console", (5, 1), 0o600)
        for each in files:
            make_directory(each.parent)
            mode = 0o755 if each.stat().st_mode & 0o111 else 0o644
            archive.write_file(str(each).lstrip("/").encode(), each.read_bytes(), mode)
        archive.write_file(b"init", init, 0o755)
        archive.write_trailer()
