# SPDX-License-Identifier: Apache-2.0
"""Debian packages: installs those that a step needs and that are missing."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from farwatch_harness.util import progress, subprocesses
from farwatch_harness.util.errors import HarnessError

KERNEL_BUILD = (
    "bc",
    "bison",
    "flex",
    "gcc",
    "make",
    "libelf-dev",
    "libssl-dev",
    "xz-utils",
    "cpio",
    "patch",
)
#: Beside those: what the kernel's own target bindeb-pkg runs.
KERNEL_PACKAGE = ("debhelper", "dpkg-dev", "kmod", "rsync")
DEBIAN_TREE = ("mmdebstrap", "debian-archive-keyring")
#: The daemon does not start without its system call filter.
GUEST = ("inotify-tools", "libseccomp2")
MODULE_BUILD = ("gcc-12", "make", "libelf-dev", "patch")
#: virtme-ng boots a kernel that has 9p as a module from an initramfs.
DISTRIBUTION_KERNEL = ("kmod", "busybox-static")
MATRIX = ("git", "perl", "sparse")
QEMU_BUILD = (
    "gcc",
    "libattr1-dev",
    "libc6-dev",
    "libfdt-dev",
    "libglib2.0-dev",
    "libpixman-1-dev",
    "ninja-build",
    "patch",
    "xz-utils",
)
HOST_CHECKS = (
    "gcc",
    "libc6-dev",
    "linux-libc-dev",
    "git",
    "patch",
    "apparmor",
    "btrfs-progs",
    "e2fsprogs",
    "libseccomp2",
    "chromium",
    "chromium-driver",
    # What `make deb` needs.
    "debhelper",
    "dh-dkms",
    "dh-python",
    "pybuild-plugin-pyproject",
    "python3-all",
    "python3-argparse-manpage",
    "python3-construct",
    "python3-setuptools",
    "python3-shtab",
    "lintian",
    "man-db",
)


def missing(packages: Iterable[str]) -> list[str]:
    """Return the packages that dpkg does not list as installed."""
    names = list(packages)
    query = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *names]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    installed = {
        line.split()[0] for line in done.stdout.splitlines() if line.endswith(" installed")
    }
    return [name for name in names if name not in installed]


def as_root() -> list[str]:
    """Return the words before a command that run it as root.

    HarnessError: this is not root, and there is no sudo.
    """
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo"):
        return ["sudo"]
    raise HarnessError("packages must be installed: run this as root, or install sudo")


def install(packages: Iterable[str], log: Path) -> None:
    """Install those of the packages that are missing.

    On another distribution than Debian, only print what is needed. HarnessError: apt-get fails.
    """
    if not (shutil.which("dpkg-query") and shutil.which("apt-get")):
        progress.say(
            "  this is not Debian: make sure that you have what these packages contain:"
            f" {' '.join(packages)}"
        )
        return
    wanted = missing(packages)
    if not wanted:
        return
    with progress.step(f"installing {' '.join(wanted)}") as step:
        if not try_install(wanted, log, step):
            run_apt(["update"], log.with_name("apt-update.log"), step)
            if not try_install(wanted, log, step):
                raise HarnessError(f"apt-get could not install {' '.join(wanted)}, see {log}")


def try_install(packages: list[str], log: Path, step: progress.Step) -> bool:
    """Install the packages; return whether apt-get could.

    It cannot if the package lists are old, or were never fetched.
    """
    try:
        run_apt(["install", "--yes", "--no-install-recommends", *packages], log, step)
    except HarnessError:
        return False
    return True


def run_apt(words: list[str], log: Path, step: progress.Step) -> None:
    """Run apt-get with these arguments, without questions."""
    # Another apt may be running, for example on a machine that has just started: wait up to 300 s.
    argv = [
        *as_root(),
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "-o",
        "DPkg::Lock::Timeout=300",
        *words,
    ]
    for line in subprocesses.lines_of(argv, log):
        step.update(line[:60])


def candidate_version(package: str, environment: Mapping[str, str] | None = None) -> str | None:
    """Return the version of the package that apt would install; None if it has none.

    environment: of apt, as by archive.lists_of(); None is the machine's own apt.
    """
    text = subprocesses.run(["apt-cache", "policy", package], env=environment)
    found = [
        line.split()[-1] for line in text.splitlines() if line.strip().startswith("Candidate:")
    ]
    return found[0] if found and found[0] != "(none)" else None


def download(
    words: Iterable[str],
    target: Path,
    log: Path,
    step: progress.Step,
    environment: Mapping[str, str] | None,
) -> None:
    """Run apt-get with these arguments in the directory `target`, where it puts what it fetches.

    HarnessError: apt-get fails.
    """
    # apt's download helper runs as a user of its own, who must be able to write there.
    target.chmod(0o777)
    for line in subprocesses.lines_of(["apt-get", *words], log, cwd=target, env=environment):
        step.update(line[:60])
    target.chmod(0o755)


def unpack(
    packages: Iterable[str],
    target: Path,
    log: Path,
    step: progress.Step,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Download packages and unpack them into the directory `target`; nothing is installed.

    packages: each as "NAME=VERSION". environment: as for candidate_version().
    HarnessError: apt-get or dpkg-deb fails.
    """
    download(["download", *packages], target, log, step, environment)
    for archive in sorted(target.glob("*.deb")):
        subprocesses.run(["dpkg-deb", "--extract", archive, target])
        archive.unlink()


def newest_source(
    package: str, prefix: str, environment: Mapping[str, str] | None = None
) -> str | None:
    """Return the newest version of a source package that begins with `prefix`; None if none does.

    environment: as for candidate_version().
    """
    text = subprocesses.run(["apt-cache", "showsrc", package], env=environment)
    found = [
        words[1]
        for line in text.splitlines()
        if (words := line.split())[:1] == ["Version:"] and words[1].startswith(prefix)
    ]
    return max(found, key=numbers_in, default=None)


def numbers_in(text: str) -> list[int]:
    """Return the numbers in a version, which compares versions of one package."""
    return [int(number) for number in re.findall(r"\d+", text)]


def download_upstream(
    package: str,
    version: str,
    target: Path,
    log: Path,
    step: progress.Step,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Download the upstream tarball of a source package into the directory `target`.

    environment: as for candidate_version(). HarnessError: apt-get fails.
    """
    words = ["--download-only", "--tar-only", "source", f"{package}={version}"]
    download(words, target, log, step, environment)
