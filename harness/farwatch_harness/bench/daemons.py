# SPDX-License-Identifier: Apache-2.0
"""The daemons to be compared: farwatchd, Debian's virtiofsd in C, and its successor in Rust.

Or farwatchd and that of another checkout.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.util import apt, paths, progress, subprocesses
from farwatch_harness.util.debian_tree import DebianTree
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.boot import QemuDevice
from farwatch_harness.vm.environment import Environment
from farwatch_harness.vm.testbed import TestbedSpec
from farwatch_harness.vm.virtiofs_daemon import READY

C_PACKAGE = "qemu-system-common"
C_PROGRAM = Path("/usr/lib/qemu/virtiofsd")
RUST_PACKAGE = "virtiofsd"
RUST_SUITE = "trixie"
RUST_PROGRAM = "virtiofsd"
# The line that both log when they listen.
WAITING = "Waiting for vhost-user socket connection"

UNCACHED = "--cache=never"
WITHOUT_EVENTS = (UNCACHED, "--fsnotify=off")

WRAPPER = """#!/bin/sh
# Runs the virtiofsd of the Debian tree beside this script with that tree's own loader and
# libraries.
tree=$(dirname "$(readlink -f "$0")")
exec "$tree/usr/lib64/ld-linux-x86-64.so.2" --library-path "$tree/usr/lib/x86_64-linux-gnu" \\
    "$tree/usr/libexec/virtiofsd" "$@"
"""
#: About 20 MB.
RUST_TREE = DebianTree(
    name="virtiofsd",
    package=RUST_PACKAGE,
    suites=(RUST_SUITE,),
    program=RUST_PROGRAM,
    wrapper=WRAPPER,
)


@dataclass(frozen=True)
class MeasuredDaemon:
    """A daemon to be measured.

    command: None is farwatchd with `options`.
    ready: the text that the daemon logs when it listens.
    """

    name: str
    version: str
    device: QemuDevice
    options: tuple[str, ...] = ()
    command: tuple[str, ...] | None = None
    ready: str = READY

    def testbed_spec(self, environment: Environment, shared: Path) -> TestbedSpec:
        """Return the spec of a testbed whose share this daemon serves."""
        return dataclasses.replace(
            environment.testbed_spec(f"bench-{self.name.replace(' ', '-')}", shared, self.device),
            daemon_options=self.options,
            daemon_command=self.command,
            daemon_ready=self.ready,
        )


def farwatchd() -> list[MeasuredDaemon]:
    """Return farwatchd on the device without events, and on the one with events.

    On the device without events it differs from virtiofsd in nothing else.
    """
    version = f"commit {commit()}"
    return [
        MeasuredDaemon("farwatchd", version, QemuDevice.PLAIN, WITHOUT_EVENTS),
        MeasuredDaemon("farwatchd events", version, QemuDevice.EVENTS, (UNCACHED,)),
    ]


def farwatchd_in_mode(mode: str) -> MeasuredDaemon:
    """Return farwatchd with its defaults, in one mode of events."""
    return MeasuredDaemon(
        f"farwatchd {mode}", f"commit {commit()}", QemuDevice.EVENTS, (f"--fsnotify={mode}",)
    )


def farwatchd_with(options: Sequence[str]) -> MeasuredDaemon:
    """Return farwatchd with further options, on the device without events."""
    name = "farwatchd with options"
    return MeasuredDaemon(name, " ".join(options), QemuDevice.PLAIN, (*WITHOUT_EVENTS, *options))


def another_farwatchd(program: Path) -> MeasuredDaemon:
    """Return the farwatchd of another checkout, on the device without events."""
    command = (
        str(program),
        "--socket-path={socket}",
        "--shared-dir={shared}",
        "--tag={tag}",
        *WITHOUT_EVENTS,
    )
    return MeasuredDaemon("another", str(program), QemuDevice.PLAIN, command=command)


def commit() -> str:
    """Return this checkout's commit, with a + if a tracked file was changed since."""
    try:
        name = subprocesses.run(
            ["git", "-C", paths.CHECKOUT, "rev-parse", "--short", "HEAD"]
        ).strip()
        changed = subprocesses.run(
            ["git", "-C", paths.CHECKOUT, "status", "--porcelain", "--untracked-files=no"]
        ).strip()
    except HarnessError:
        return "unknown"
    return f"{name}+" if changed else name


def virtiofsd_c() -> list[MeasuredDaemon]:
    """Return Debian 12's virtiofsd in C; nothing if the distribution does not have it."""
    if not C_PROGRAM.exists():
        try:
            apt.install([C_PACKAGE], paths.LOGS / "apt-virtiofsd.log")
        except HarnessError as error:
            progress.say(f"  {error}")
    if not C_PROGRAM.exists():
        progress.say(f"  virtiofsd in C is not measured: there is no {C_PROGRAM}")
        return []
    command = (
        str(C_PROGRAM),
        "--socket-path={socket}",
        "-o",
        "source={shared}",
        "-o",
        "cache=none",
    )
    return [
        MeasuredDaemon(
            "virtiofsd C", version_of(C_PROGRAM), QemuDevice.PLAIN, command=command, ready=WAITING
        )
    ]


def virtiofsd_rust() -> list[MeasuredDaemon]:
    """Return Debian 13's virtiofsd in Rust, from the cache; nothing if it cannot be fetched."""
    try:
        program = RUST_TREE.unpacked() / RUST_PROGRAM
        version = version_of(program)
    except HarnessError as error:
        progress.say(f"  virtiofsd in Rust is not measured: {error}")
        return []
    command = (str(program), "--socket-path={socket}", "--shared-dir={shared}", "--cache=never")
    return [
        MeasuredDaemon("virtiofsd Rust", version, QemuDevice.PLAIN, command=command, ready=WAITING)
    ]


def version_of(program: Path) -> str:
    """Return the first line that the program prints about its version."""
    words: Sequence[str] = subprocesses.run([program, "--version"]).splitlines()
    return words[0] if words else "unknown"
