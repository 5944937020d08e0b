# SPDX-License-Identifier: Apache-2.0
"""The QEMU to run, and its accelerator: found by trying and cached.

FARWATCH_QEMU names a QEMU program. FARWATCH_ACCEL (kvm or tcg) replaces the trial.
"""

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from farwatch_harness.util import cache, paths, progress, subprocesses
from farwatch_harness.util.debian_tree import DebianTree
from farwatch_harness.util.errors import HarnessError

PROGRAM = "qemu-system-x86_64"
SUITE = "trixie"
BACKPORTS = f"{SUITE}-backports"
# Seconds for a kernel under KVM to print its first line; it needs less than one.
KVM_LIMIT = 20.0
FIRST_LINE = b"Linux version"

WRAPPER = """#!/bin/sh
# Runs the QEMU of the Debian tree beside this script with that tree's own loader and libraries;
# nothing is installed.
tree=$(dirname "$(readlink -f "$0")")
export QEMU_MODULE_DIR="$tree/usr/lib/x86_64-linux-gnu/qemu"
exec "$tree/usr/lib64/ld-linux-x86-64.so.2" --library-path "$tree/usr/lib/x86_64-linux-gnu" \\
    "$tree/usr/bin/qemu-system-x86_64" -L "$tree/usr/share/qemu" -L "$tree/usr/share/seabios" "$@"
"""
#: About 170 MB.
TREE = DebianTree(
    name="qemu",
    package="qemu-system-x86",
    suites=(SUITE, BACKPORTS),
    program=PROGRAM,
    wrapper=WRAPPER,
    options=(f'--aptopt=APT::Default-Release "{BACKPORTS}"',),
)


class Accelerator(Enum):
    """How the guest's instructions are run."""

    KVM = "kvm"
    TCG = "tcg"


class NotificationDevice(Enum):
    """A device of QEMU that passes the notification queue on.

    The value is its name, and a property that it has then.
    """

    #: The file system device of a QEMU with patches/qemu.
    FILE_SYSTEM = ("vhost-user-fs-pci", "notification-queue")
    #: A generic device for tests. QEMU 10.2 and later have it.
    GENERIC = ("vhost-user-test-device-pci", "virtio-id")


@dataclass(frozen=True)
class Qemu:
    """A QEMU that can offer the notification queue.

    origin: where it was found, for people.
    notification_device: the device that offers it.
    """

    program: Path
    version: str
    origin: str
    notification_device: NotificationDevice


def notification_device(program: Path | str) -> NotificationDevice | None:
    """Return this QEMU's device with the notification queue; None if it has none."""
    for device in NotificationDevice:
        name, option = device.value
        try:
            done = subprocess.run(
                [str(program), "-device", f"{name},help"],
                capture_output=True,
                timeout=30,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode == 0 and f" {option}=".encode() in done.stdout:
            return device
    return None


def find_qemu() -> Qemu:
    """Return the named QEMU, else a usable one on PATH, else the one in the cache.

    HarnessError: none of them is usable.
    """
    named = os.environ.get("FARWATCH_QEMU")
    if named:
        if found := described(Path(named), "named by FARWATCH_QEMU"):
            return found
        raise HarnessError(
            f"FARWATCH_QEMU={named} has no device with the notification queue (QEMU 10.2 and later"
            " have one, and so does the one of make qemu-patched)"
        )
    on_path = shutil.which(PROGRAM)
    if on_path and (found := described(Path(on_path), "found on PATH")):
        return found
    program = TREE.unpacked() / PROGRAM
    if found := described(program, f"unpacked from {BACKPORTS}"):
        return found
    raise HarnessError(
        f"{program} does not run here; name another QEMU (10.2 or later) with FARWATCH_QEMU"
    )


def described(program: Path, origin: str) -> Qemu | None:
    """Return the QEMU with its version and device; None if it has no notification queue.

    HarnessError: the program does not run.
    """
    device = notification_device(program)
    if device is None:
        return None
    version = subprocesses.run([program, "--version"]).splitlines()[0]
    return Qemu(program, version, origin, device)


def find_accelerator(qemu: Qemu, image: Path) -> Accelerator:
    """Return KVM if a kernel boots with it, else TCG.

    The answer is cached for this host, its kernel and this QEMU.
    """
    named = os.environ.get("FARWATCH_ACCEL")
    if named:
        try:
            return Accelerator(named)
        except ValueError:
            raise HarnessError(f"FARWATCH_ACCEL={named} is not one of kvm, tcg") from None
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Accelerator.TCG
    answer = (
        paths.cache_root()
        / "kvm"
        / cache.content_key(host_identity(), str(qemu.program), qemu.version)
    )
    try:
        return Accelerator(answer.read_text().strip())
    except (FileNotFoundError, ValueError):
        pass
    with progress.step("trying whether a kernel boots with KVM"):
        found = Accelerator.KVM if boots_with_kvm(qemu, image) else Accelerator.TCG
    cache.write_atomically(answer, found.value.encode())
    return found


def host_identity() -> str:
    """Return what the answer about KVM depends on: this host, its CPU and its kernel."""
    identity = Path("/etc/machine-id")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = [line for line in lines if line.startswith("model name")]
    return f"{identity.read_text() if identity.exists() else ''} {model[:1]} {platform.release()}"


def boots_with_kvm(qemu: Qemu, image: Path) -> bool:
    """Return whether a kernel under KVM prints its first line within the limit.

    That /dev/kvm exists proves nothing.
    """
    machine_options = [
        "-machine",
        "q35,accel=kvm",
        "-cpu",
        "host",
        "-m",
        "256",
        "-nodefaults",
        "-no-reboot",
    ]
    boot_options = [
        "-display",
        "none",
        "-serial",
        "stdio",
        "-kernel",
        str(image),
        "-append",
        "console=ttyS0 panic=-1",
    ]
    argv = [str(qemu.program), *machine_options, *boot_options]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=KVM_LIMIT, check=False
        )
        output = done.stdout
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""
    return FIRST_LINE in output
