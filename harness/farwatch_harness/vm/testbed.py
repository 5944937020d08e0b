# SPDX-License-Identifier: Apache-2.0
"""A guest together with the daemon that serves it a share: started and ended as one."""

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from farwatch_harness.util import paths
from farwatch_harness.util.errors import GuestLostError, HarnessError
from farwatch_harness.vm.boot import Device, Vm, VmSpec, socket_folder
from farwatch_harness.vm.daemon_process import READY, Daemon, farwatchd_command
from farwatch_harness.vm.kmemleak import fail_on_leaks
from farwatch_harness.vm.qemu import Accelerator, Qemu

TAG = "farwatch"
MOUNT_POINT = PurePosixPath("/run/farwatch/share")


@dataclass(frozen=True)
class TestbedSpec:
    """What a machine is made of; `name` names its logs.

    `daemon_command` replaces farwatchd and its options: {socket}, {shared} and {tag} in its words
    are filled in. `daemon_ready` is what that daemon says when it listens.
    """

    #: Not a test of pytest's.
    __test__ = False

    name: str
    image: Path
    qemu: Qemu
    accelerator: Accelerator
    shared: Path
    device: Device = Device.EVENTS
    daemon_options: tuple[str, ...] = ()
    daemon_command: tuple[str, ...] | None = None
    daemon_ready: str = READY
    mount_options: str = ""
    request_queues: int = 1
    # Emulated processors wait for each other actively: several that share the host's with others'
    # are slow.
    cpus: int = 1
    kernel_options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mark:
    """A moment in the logs of a machine."""

    findings: int
    daemon_lines: int


@dataclass(frozen=True)
class Share:
    """A directory on the share, as the host and as the guest see it."""

    host: Path
    guest: PurePosixPath


class Testbed:
    """A booted guest, its daemon and the share: `shared` on the host is `mount_point` in the
    guest."""

    #: Not a test of pytest's.
    __test__ = False

    def __init__(self, spec: TestbedSpec, daemon: Daemon, vm: Vm) -> None:
        self.spec = spec
        self.daemon = daemon
        self.vm = vm
        self.shared = spec.shared
        self.mount_point = MOUNT_POINT
        self.guest = vm.guest_or_fail()

    def mount(self) -> None:
        """Mounts the share in the guest."""
        self.guest.os("makedirs", str(MOUNT_POINT), exist_ok=True)
        self.guest.mount(TAG, str(MOUNT_POINT), "virtiofs", options=self.spec.mount_options)

    def problems(self, since: "Mark | None" = None) -> list[str]:
        """What is wrong by the console and the daemon's log, of what was said after `since`."""
        start = since or Mark(0, 0)
        found = [finding.line for finding in self.vm.console.findings[start.findings :]]
        return [f"guest kernel: {line}" for line in found] + self.daemon.tracebacks(
            start.daemon_lines
        )

    def mark(self) -> "Mark":
        """Now, to ask later what has been said since."""
        return Mark(len(self.vm.console.findings), self.daemon.mark)

    @property
    def alive(self) -> bool:
        """Whether both the guest and the daemon run."""
        return self.vm.alive and self.daemon.running


def daemon_words(spec: TestbedSpec, socket: Path) -> list[str]:
    """The command line of the machine's daemon."""
    if spec.daemon_command is None:
        return farwatchd_command(socket, spec.shared, TAG, spec.daemon_options)
    return [word.format(socket=socket, shared=spec.shared, tag=TAG) for word in spec.daemon_command]


def vm_spec(spec: TestbedSpec, sockets: Path) -> VmSpec:
    """The machine's guest, with its sockets in the directory `sockets`."""
    return VmSpec(
        image=spec.image,
        qemu=spec.qemu,
        accelerator=spec.accelerator,
        device=spec.device,
        daemon_socket=sockets / "fs",
        agent_socket=sockets / "agent",
        tag=TAG,
        cpus=spec.cpus,
        request_queues=spec.request_queues,
        kernel_options=spec.kernel_options,
    )


@contextmanager
def start_testbed(spec: TestbedSpec) -> Iterator[Testbed]:
    """Starts the daemon and the guest and mounts the share; ends both when the block does.

    Raises GuestLostError or HarnessError when one of them does not come up; its text tells where
    the logs are. With kmemleak in the kernel, HarnessError at the end when it has leaked.
    """
    with contextlib.ExitStack() as stack:
        sockets = socket_folder()
        stack.callback(shutil.rmtree, sockets, ignore_errors=True)
        log = paths.LOGS / f"{spec.name}-daemon.log"
        daemon = Daemon.start(daemon_words(spec, sockets / "fs"), log, spec.daemon_ready)
        stack.callback(daemon.stop)
        vm = Vm.boot(vm_spec(spec, sockets), paths.LOGS / f"{spec.name}-console.log")
        stack.callback(vm.kill)
        testbed = Testbed(spec, daemon, vm)
        try:
            testbed.mount()
        except OSError as error:
            words = daemon.log.read_text().splitlines()[-3:]
            raise HarnessError(
                f"the guest cannot mount the share: {error}; the daemon says: {words}"
            ) from None
        yield testbed
        with contextlib.suppress(GuestLostError):
            # A test that crashes its guest on purpose leaves none to ask.
            fail_on_leaks(testbed.guest)
        with contextlib.suppress(GuestLostError):
            vm.shut_down()
