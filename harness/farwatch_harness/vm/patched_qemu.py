# SPDX-License-Identifier: Apache-2.0
"""QEMU with patches/qemu, built once: its vhost-user-fs-pci passes the notification queue on.

The source is that of Debian 13's package, without Debian's changes. Only what a guest of the tests
needs is built. Firmware comes from the tree that vm/qemu.py unpacks.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from farwatch_harness.kernel import series
from farwatch_harness.util import apt, archive, cache, paths, progress, subprocesses
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm import qemu

PACKAGE = "qemu"
#: The release of QEMU that the patches are for, with the epoch of Debian's versions.
RELEASE = "1:10.0."
PATCHES = paths.CHECKOUT / "patches" / "qemu"
#: QEMU's configure takes these from the Python environment that runs it.
PYTHON_PACKAGES = ("meson>=1.5", "pycotap")
OPTIONS = (
    "--target-list=x86_64-softmmu",
    "--without-default-features",
    "--enable-tcg",
    "--enable-kvm",
    "--enable-vhost-user",
    "--enable-virtfs",
    "--enable-attr",
    "--disable-docs",
    "--disable-debug-info",
    "--disable-install-blobs",
)
#: Debian's tarball has no firmware. QEMU's build files name these, and nothing reads them here.
ABSENT_FIRMWARE = "pc-bios/meson.build"

WRAPPER = """#!/bin/sh
# Runs the QEMU beside this script with the firmware of a Debian tree; nothing is installed.
exec "$(dirname "$(readlink -f "$0")")/{program}.built" \\
    -L {tree}/usr/share/qemu -L {tree}/usr/share/seabios "$@"
"""


def build() -> Path:
    """Return the program from the cache; build it first if it is not there (8 CPU minutes).

    HarnessError: Debian has no source of RELEASE any more, a patch does not apply, or the build
    fails.
    """
    patches = series.read_series(PATCHES)
    tree = qemu.TREE.unpacked()
    key = cache.content_key(RELEASE, str(tree), *OPTIONS, *(patch.content for patch in patches))

    def make(target: Path) -> None:
        log = paths.LOGS / "qemu-build.log"
        apt.install(apt.QEMU_BUILD, paths.LOGS / "apt-qemu-build.log")
        work = target / "work"
        source = unpacked_source(work / "source", log)
        for patch in patches:
            series.apply_one(source, patch)
        compile_in(work / "build", source, make_python(work / "python", log), log)
        shutil.move(work / "build" / qemu.PROGRAM, target / f"{qemu.PROGRAM}.built")
        wrapper = target / qemu.PROGRAM
        wrapper.write_text(WRAPPER.format(program=qemu.PROGRAM, tree=tree))
        wrapper.chmod(0o755)
        shutil.rmtree(work)

    return cache.published(paths.cache_root() / "qemu" / f"patched-{key}", make) / qemu.PROGRAM


def unpacked_source(target: Path, log: Path) -> Path:
    """Unpack the newest source of RELEASE that Debian has into `target`; return it.

    HarnessError: there is none.
    """
    environment = archive.lists_of(qemu.SUITE)
    version = apt.newest_source(PACKAGE, RELEASE, environment)
    if version is None:
        raise HarnessError(
            f"Debian's {qemu.SUITE} has no source of {PACKAGE} {RELEASE}x any more: the patches of"
            f" {PATCHES} need another base"
        )
    target.mkdir(parents=True)
    with progress.step(f"fetching the source of {PACKAGE} {version}") as step:
        apt.download_upstream(PACKAGE, version, target.parent, log, step, environment)
        (tarball,) = target.parent.glob("*.tar.xz")
        subprocesses.run(["tar", "-xf", str(tarball), "-C", str(target), "--strip-components=1"])
    for name in absent_firmware((target / ABSENT_FIRMWARE).read_text()):
        (target / "pc-bios" / name).touch()
    return target


def absent_firmware(build_file: str) -> list[str]:
    """Return the compressed firmware files that the build file pc-bios/meson.build names."""
    words = build_file.replace(",", " ").split()
    return [f"{word.strip(chr(39))}.bz2" for word in words if word.endswith(".fd'")]


def make_python(folder: Path, log: Path) -> Path:
    """Make a Python environment with meson in `folder`; return its interpreter."""
    with progress.step("fetching meson") as step:
        argv = [sys.executable, "-m", "venv", str(folder)]
        python = folder / "bin" / "python3"
        install = [
            str(python),
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            *PYTHON_PACKAGES,
        ]
        for command in (argv, install):
            for line in subprocesses.lines_of(command, log):
                step.update(line[:60])
    return python


def compile_in(folder: Path, source: Path, python: Path, log: Path) -> None:
    """Build the program in `folder`. HarnessError: has the last words of the build."""
    folder.mkdir(parents=True)
    configure = [str(source / "configure"), f"--python={python}", *OPTIONS]
    processes = f"-j{os.cpu_count() or 1}"
    with progress.step(f"building {qemu.PROGRAM} (8 CPU minutes)") as step:
        for command in (configure, ["ninja", processes, qemu.PROGRAM]):
            for line in subprocesses.lines_of(command, log, cwd=folder):
                step.update(line.strip()[:60])
