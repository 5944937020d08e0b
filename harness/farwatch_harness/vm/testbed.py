# SPDX-License-Identifier: Apache-2.0
"""A testbed: a VM, the daemon that serves its share, and the share. They start and stop together.

docs/harness.md has a script of ten lines that uses it outside pytest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from farwatch_harness.util import paths
from farwatch_harness.util.errors import GuestLostError, HarnessError
from farwatch_harness.vm.boot import QemuDevice, Vm, VmSpec, socket_folder
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.kmemleak import fail_on_leaks
from farwatch_harness.vm.qemu import Accelerator, Qemu
from farwatch_harness.vm.virtiofs_daemon import READY, Daemon, farwatchd_command

TAG = "farwatch"
MOUNT_POINT = PurePosixPath("/run/farwatch/share")
#: What a daemon logs that has replaced another one.
REPLACED = "replaced the daemon"
VIRTIOFS = "virtiofs"
#: The directory of the kernel's own driver, with a link for each of its devices.
DRIVER = f"/sys/bus/virtio/drivers/{VIRTIOFS}"
#: Where the driver, the kernel's own or the module, counts the notifications that it dropped. Linux
#: 6.1 has no /sys/fs/virtiofs: the count is an attribute of the device there.
DROPPED = ("/sys/fs/*/*/notify_dropped", "/sys/bus/virtio/drivers/*/*/notify_dropped")


@dataclass(frozen=True)
class TestbedSpec:
    """What a testbed is made of. Environment.testbed_spec() fills in kernel, QEMU and accelerator.

    name: names the logs, build/logs/NAME-console.log and NAME-daemon.log.
    image: the guest's kernel.
    shared: the host directory that the daemon serves. The caller owns it.
    device: QEMU's device; QemuDevice.PLAIN has no notification queue.
    daemon_options: further options of farwatchd.
    daemon_command: replaces farwatchd and its options; {socket}, {shared} and {tag} are filled in.
    daemon_ready: the text that the daemon logs when it listens.
    mount_options: options of mount(8) for the share.
    request_queues: the number of request queues, 1 or more.
    cpus: the guest's CPUs. Emulated CPUs spin while they wait for each other, so several of them
        are slow on a busy host.
    memory_mib: the guest's memory, in MiB.
    kernel_options: further words of the kernel's command line.
    qemu_options: further arguments of QEMU.
    behind_port: whether the share's device is behind a PCIe port of its own, where it can be pulled
        out.
    module: the virtio-fs driver that the guest loads, and binds in the place of the kernel's own;
        None uses the kernel's own.
    """

    #: Not a test of pytest's.
    __test__ = False

    name: str
    image: Path
    qemu: Qemu
    accelerator: Accelerator
    shared: Path
    device: QemuDevice = QemuDevice.EVENTS
    daemon_options: tuple[str, ...] = ()
    daemon_command: tuple[str, ...] | None = None
    daemon_ready: str = READY
    mount_options: str = ""
    request_queues: int = 1
    cpus: int = 1
    memory_mib: int = 1024
    kernel_options: tuple[str, ...] = ()
    qemu_options: tuple[str, ...] = ()
    behind_port: bool = False
    module: Path | None = None


@dataclass(frozen=True)
class LogPosition:
    """A position in the console and in the daemon's log of a testbed.

    replaced: how often the daemon was replaced before; each one has its own log.
    """

    problems: int
    daemon_lines: int
    replaced: int = 0


@dataclass(frozen=True)
class Share:
    """A directory of the share, as the host and as the guest see it."""

    host: Path
    guest: PurePosixPath


class Testbed:
    """A running VM, its daemon and its share. start_testbed() makes and owns it.

    guest: runs commands in the guest; see guest_client.Guest.
    daemon: the daemon's process and log.
    vm: the VM and its console.
    shared: the shared directory on the host.
    command, replaced: the first daemon's command line; how often a daemon was replaced.
    mount_point: the shared directory in the guest.
    """

    #: Not a test of pytest's.
    __test__ = False

    def __init__(self, spec: TestbedSpec, daemon: Daemon, vm: Vm) -> None:
        self.spec = spec
        self.daemon = daemon
        self.vm = vm
        self.shared = spec.shared
        self.mount_point = MOUNT_POINT
        self.guest = vm.guest_or_fail()
        self.command = daemon.command
        self.replaced = 0

    def mount(self) -> None:
        """Mount the share in the guest.

        OSError: mount(2) failed in the guest.
        """
        self.guest.os("makedirs", str(MOUNT_POINT), exist_ok=True)
        if self.spec.module is not None:
            self.guest.shell(bind_module(self.spec.module))
        self.guest.mount(
            TAG,
            str(MOUNT_POINT),
            file_system_of(self.spec.module),
            options=self.spec.mount_options,
        )

    def replace_daemon(self) -> None:
        """Have a new daemon of the same command replace it; `daemon` is that one then.

        HarnessError: it did not, or the former one did not end well.
        """
        former = self.daemon
        self.replaced += 1
        # Two logs in turn: one is of the running daemon.
        log = paths.LOGS / f"{self.spec.name}-daemon-{self.replaced % 2}.log"
        self.daemon = Daemon.start([*self.command, "--replace"], log, REPLACED)
        status = former.wait()
        problems = [*former.tracebacks(), *former.warnings()]
        if status or problems:
            raise HarnessError(
                f"a daemon that was replaced ended with {status}: {problems} (see {former.log})"
            )

    def kill_daemon(self) -> None:
        """Kill the daemon, and start another one of the same command.

        The guest goes on if that has a state directory.
        """
        former = self.daemon
        os.kill(former.pid, signal.SIGKILL)
        former.wait()
        self.replaced += 1
        log = paths.LOGS / f"{self.spec.name}-daemon-{self.replaced % 2}.log"
        self.daemon = Daemon.start(self.command, log)

    def problems(self, since: LogPosition | None = None) -> list[str]:
        """Return the kernel's warnings and the daemon's tracebacks after `since`."""
        start = since or LogPosition(0, 0)
        found = [problem.line for problem in self.vm.console.problems[start.problems :]]
        return [f"guest kernel: {line}" for line in found] + self.daemon.tracebacks(
            self.lines_before(start)
        )

    def lines_before(self, position: LogPosition) -> int:
        """Return how many lines of the present daemon's log come before a position."""
        return position.daemon_lines if position.replaced == self.replaced else 0

    def log_position(self) -> LogPosition:
        """Return the end of both logs, for a later problems(since)."""
        return LogPosition(len(self.vm.console.problems), self.daemon.log_length, self.replaced)

    @property
    def alive(self) -> bool:
        """Whether the guest and the daemon run."""
        return self.vm.alive and self.daemon.running


def file_system_of(module: Path | None) -> str:
    """Return the type by which the share is mounted; None is the kernel's own driver."""
    return VIRTIOFS if module is None else module.stem


def bind_module(module: Path) -> str:
    """Return a shell script that loads the module and gives it the devices of virtiofs."""
    name = module.stem
    return f"""set -e
[ -e /sys/module/{name} ] || insmod {module}
for device in {DRIVER}/virtio*; do
    [ -e "$device" ] || continue
    echo "${{device##*/}}" > {DRIVER}/unbind
    echo "${{device##*/}}" > /sys/bus/virtio/drivers/{name}/bind
done
"""


def virtio_device(guest: Guest) -> str:
    """Return the name of the share's virtio device, which the kernel's own driver has."""
    return guest.shell(f"basename {DRIVER}/virtio*").strip()


def dropped_notifications(guest: Guest) -> int:
    """Return how many notifications of the device its driver has dropped."""
    places = " ".join(DROPPED)
    return int(guest.shell(f'for place in {places}; do [ ! -e "$place" ] || cat "$place"; done'))


def daemon_argv(spec: TestbedSpec, socket: Path) -> list[str]:
    """Return the command line of the testbed's daemon."""
    if spec.daemon_command is None:
        return farwatchd_command(socket, spec.shared, TAG, spec.daemon_options)
    return [word.format(socket=socket, shared=spec.shared, tag=TAG) for word in spec.daemon_command]


def vm_spec(spec: TestbedSpec, sockets: Path) -> VmSpec:
    """Return the testbed's VM, with its sockets in the directory `sockets`."""
    return VmSpec(
        image=spec.image,
        qemu=spec.qemu,
        accelerator=spec.accelerator,
        device=spec.device,
        daemon_socket=sockets / "fs",
        agent_socket=sockets / "agent",
        tag=TAG,
        memory_mib=spec.memory_mib,
        cpus=spec.cpus,
        request_queues=spec.request_queues,
        kernel_options=spec.kernel_options,
        qemu_options=spec.qemu_options,
        behind_port=spec.behind_port,
    )


@contextmanager
def start_testbed(spec: TestbedSpec) -> Iterator[Testbed]:
    """Start the daemon and the VM, mount the share, and stop both when the block ends.

    The daemon and the VM also stop when this process ends without leaving the block, as on SIGTERM.

    GuestLostError: the guest did not boot or did not power off. HarnessError: the daemon did not
    start, the share could not be mounted, or a kernel with kmemleak has leaked memory. The text
    names the logs.
    """
    with contextlib.ExitStack() as stack:
        sockets = socket_folder()
        stack.callback(shutil.rmtree, sockets, ignore_errors=True)
        log = paths.LOGS / f"{spec.name}-daemon.log"
        daemon = Daemon.start(daemon_argv(spec, sockets / "fs"), log, spec.daemon_ready)
        testbed: Testbed | None = None
        # The last one, if it was replaced.
        stack.callback(lambda: (daemon if testbed is None else testbed.daemon).stop())
        vm = Vm.boot(vm_spec(spec, sockets), paths.LOGS / f"{spec.name}-console.log")
        stack.callback(vm.kill)
        testbed = Testbed(spec, daemon, vm)
        try:
            testbed.mount()
        except OSError as error:
            words = daemon.log.read_text().splitlines()[-3:]
            raise HarnessError(
                f"the guest cannot mount the share: {error}; the daemon's last lines: {words}"
            ) from None
        yield testbed
        with contextlib.suppress(GuestLostError):
            # A test that crashes its guest on purpose leaves no guest to scan.
            fail_on_leaks(testbed.guest)
        with contextlib.suppress(GuestLostError):
            vm.shut_down()
