# SPDX-License-Identifier: Apache-2.0
"""A guest that migrates between two QEMUs on this host, each with a daemon of its own.

Its root is an initramfs: see initramfs.py. It has one CPU and no module.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from farwatch_harness.util import paths
from farwatch_harness.util.errors import GuestLostError, HarnessError
from farwatch_harness.vm import initramfs
from farwatch_harness.vm.boot import (
    AGENT_PORT,
    QemuDevice,
    agent_options,
    share_options,
    socket_folder,
)
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.testbed import MOUNT_POINT, TAG, VIRTIOFS, TestbedSpec
from farwatch_harness.vm.virtiofs_daemon import Daemon, farwatchd_command

MEMORY_MIB = 256
#: Seconds for QEMU to start, to end, and to answer.
QEMU_LIMIT = 60.0
#: Seconds to boot: an emulated guest on a busy host unpacks its root for long.
BOOT_LIMIT = 300.0
#: Seconds for a migration under load.
MIGRATION_LIMIT = 180.0
_INTERVAL = 0.05


class Qmp:
    """A connection to QEMU's monitor."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(QEMU_LIMIT)
        self.sock.connect(str(path))
        self.stream = self.sock.makefile("rwb")
        self.stream.readline()
        self.run("qmp_capabilities")

    def run(self, command: str, **arguments: Any) -> Any:
        """Run a command, and return what it returns. HarnessError: it failed."""
        request = {"execute": command, "arguments": arguments}
        try:
            self.stream.write(json.dumps(request).encode() + b"\n")
            self.stream.flush()
            return self.answer(command)
        except OSError as error:
            raise HarnessError(f"QEMU has ended at {command}: {error}") from None

    def answer(self, command: str) -> Any:
        """Wait for what a command returns."""
        while True:
            line = self.stream.readline()
            if not line:
                raise HarnessError(f"QEMU has ended at {command}")
            answer = json.loads(line)
            if "error" in answer:
                raise HarnessError(f"QEMU refuses {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def close(self) -> None:
        """Close the connection."""
        self.stream.close()
        self.sock.close()


class MigratingHost:
    """One side: a daemon and a QEMU, in which the guest is or may come.

    number: is part of the names of its logs.
    incoming: where a guest comes from, as QEMU's -incoming has it; None boots one.
    memory_mib: the guest's memory.
    channel: to the guest's agent; nothing is read from it here.
    """

    def __init__(
        self,
        spec: TestbedSpec,
        shared: Path,
        number: int,
        sockets: Path,
        incoming: str | None,
        memory_mib: int,
    ) -> None:
        self.sockets = sockets / str(number)
        self.sockets.mkdir()
        self.console = paths.LOGS / f"{spec.name}-{number}-console.log"
        self.qemu_log = paths.LOGS / f"{spec.name}-{number}-qemu.log"
        command = farwatchd_command(self.sockets / "fs", shared, TAG, spec.daemon_options)
        self.daemon = Daemon.start(command, paths.LOGS / f"{spec.name}-{number}-daemon.log")
        self.process: subprocess.Popen[bytes] | None = None
        self.qmp: Qmp | None = None
        self.channel = socket.socket(socket.AF_UNIX)
        try:
            self.start(spec, incoming, memory_mib)
        except BaseException:
            self.stop()
            raise

    def start(self, spec: TestbedSpec, incoming: str | None, memory_mib: int) -> None:
        """Start QEMU, and connect to its monitor and to the agent's channel."""
        command = [
            *(str(spec.qemu.program), "-machine", f"q35,accel={spec.accelerator.value}"),
            *("-cpu", "max", "-m", f"{memory_mib}M", "-nodefaults", "-no-reboot"),
            *("-display", "none", "-serial", f"file:{self.console}"),
            *("-qmp", f"unix:{self.sockets / 'qmp'},server=on,wait=off"),
            *("-kernel", str(spec.image), "-initrd", str(initramfs.make(AGENT_PORT))),
            *("-append", "console=ttyS0 rdinit=/init panic=-1"),
            *share_options(QemuDevice.PLAIN, self.sockets / "fs", TAG, memory_mib, 1),
            *agent_options(self.sockets / "agent"),
            *spec.qemu_options,
            *(() if incoming is None else ("-incoming", incoming)),
        ]
        with self.qemu_log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.wait_for_socket(self.sockets / "qmp")
        self.qmp = Qmp(self.sockets / "qmp")
        self.wait_for_socket(self.sockets / "agent")
        # The guest's driver of the port must find this end open when the guest comes.
        self.channel.connect(str(self.sockets / "agent"))

    def wait_for_socket(self, path: Path) -> None:
        """Wait until QEMU has made a socket."""
        assert self.process is not None
        deadline = time.monotonic() + QEMU_LIMIT
        while not path.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise HarnessError(f"QEMU did not start: {self.qemu_log.read_text()[-500:]}")
            time.sleep(_INTERVAL)

    def explain_loss(self) -> str:
        """Return why the guest was lost, as far as the logs show it."""
        console = self.console.read_text(errors="replace").splitlines()[-5:]
        return f"{console}; {self.qemu_log.read_text()[-500:]} (see {self.console})"

    def ask(self, command: str, **arguments: Any) -> Any:
        """Run a command of QEMU's monitor."""
        assert self.qmp is not None
        return self.qmp.run(command, **arguments)

    def stop_qemu(self) -> None:
        """Stop QEMU. What the guest's agent has sent until then can be read."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(QEMU_LIMIT)

    def stop(self) -> None:
        """Stop QEMU and the daemon."""
        self.stop_qemu()
        self.channel.close()
        if self.qmp is not None:
            self.qmp.close()
        self.daemon.stop()

    def problems(self) -> list[str]:
        """Return the daemon's tracebacks and warnings."""
        return [*self.daemon.tracebacks(), *self.daemon.warnings()]


class MigratingGuest:
    """A guest, and the host where it is.

    guest: its agent, at each host.
    """

    def __init__(self, spec: TestbedSpec, sockets: Path, memory_mib: int) -> None:
        self.spec = spec
        self.sockets = sockets
        self.memory_mib = memory_mib
        self.number = 0
        self.host = MigratingHost(spec, spec.shared, 0, sockets, None, memory_mib)
        self.guest = Guest(self.host.channel, lambda: self.host.explain_loss())
        self.mount_point: PurePosixPath = MOUNT_POINT

    def mount(self) -> None:
        """Wait for the guest, and mount the share there."""
        self.guest.wait_until_ready(BOOT_LIMIT)
        self.guest.os("makedirs", str(MOUNT_POINT), exist_ok=True)
        self.guest.mount(TAG, str(MOUNT_POINT), VIRTIOFS)

    def migrate(self, shared: Path | None = None) -> None:
        """Migrate to a new host, which may share another directory; the former one ends.

        HarnessError: the guest was not migrated; it runs where it was.
        """
        source = self.host
        address = f"unix:{self.sockets / 'incoming'}"
        target = self.next_host(shared or self.spec.shared, address)
        try:
            # Else the source has migrated when all is sent, whatever the destination makes of it.
            capability = {"capability": "return-path", "state": True}
            source.ask("migrate-set-capabilities", capabilities=[capability])
            self.guest.hold()
            source.ask("migrate", uri=address)
            self.wait_until_migrated(source)
        except BaseException:
            self.guest.release()
            target.stop()
            raise
        problems = source.problems()
        source.stop_qemu()
        self.arrive(target)
        source.stop()
        refuse(problems)

    def save(self, file: Path) -> None:
        """Save the guest to a file, and stop it; QEMU and the daemon end."""
        source = self.host
        self.guest.hold()
        source.ask("migrate", uri=f"file:{file}")
        self.wait_until_migrated(source)
        problems = source.problems()
        source.stop_qemu()
        refuse(problems)

    def restore(self, file: Path) -> None:
        """Let the guest go on that was saved."""
        source = self.host
        self.arrive(self.next_host(self.spec.shared, f"file:{file}"))
        source.stop()

    def arrive(self, target: MigratingHost) -> None:
        """Go on at a host."""
        self.host = target
        self.guest.follow(target.channel)

    def next_host(self, shared: Path, incoming: str) -> MigratingHost:
        """Start one more host, for a guest that comes."""
        self.number += 1
        return MigratingHost(
            self.spec, shared, self.number, self.sockets, incoming, self.memory_mib
        )

    def wait_until_migrated(self, source: MigratingHost) -> None:
        """Wait for the end of a migration."""
        deadline = time.monotonic() + MIGRATION_LIMIT
        while time.monotonic() < deadline:
            status = source.ask("query-migrate")
            if status.get("status") == "completed":
                return
            if status.get("status") in ("failed", "cancelled"):
                raise HarnessError(f"the guest was not migrated: {status.get('error-desc')}")
            time.sleep(_INTERVAL)
        raise HarnessError(f"the guest has not migrated in {MIGRATION_LIMIT:.0f} s")

    def stop(self) -> None:
        """Stop the guest where it is."""
        self.guest.mark_lost()
        self.host.stop()


def refuse(problems: list[str]) -> None:
    """Raise HarnessError if the daemon where a guest was has had problems."""
    if problems:
        raise HarnessError(f"the daemon at the source: {problems}")


@contextmanager
def start_migrating_guest(
    spec: TestbedSpec, memory_mib: int = MEMORY_MIB
) -> Iterator[MigratingGuest]:
    """Boot a guest that can migrate, mount the share, and stop it when the block ends."""
    sockets = socket_folder()
    try:
        migrating = MigratingGuest(spec, sockets, memory_mib)
        try:
            try:
                migrating.mount()
            except OSError as error:
                raise GuestLostError(f"the guest cannot mount the share: {error}") from None
            yield migrating
        finally:
            migrating.stop()
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
