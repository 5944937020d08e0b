# SPDX-License-Identifier: Apache-2.0
"""Boots a guest with virtme-ng: pure functions make the command line, a class runs it."""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pexpect

from farwatch_harness.kernel import versions
from farwatch_harness.util import paths
from farwatch_harness.util.errors import GuestLostError, HarnessError
from farwatch_harness.vm.console import Console, Severity
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.qemu import Accelerator, NotificationDevice, Qemu

AGENT_PORT = "farwatch.agent"
VIRTIO_FS_ID = 26
CONFIG_SIZE = 44
QUEUE_SIZE = 128
BOOT_LIMIT = 120.0
STOP_LIMIT = 20.0
# Seconds for a crashing kernel to print its trace.
TRACE_LIMIT = 5.0
INTERVAL = 0.02
#: As virtme-ng's; the cache mode is the kernel version's.
ROOT_FLAGS = "version=9p2000.L,trans=virtio,access=any,msize=524288"


class QemuDevice(Enum):
    """Which of QEMU's devices attaches the daemon."""

    #: QEMU's NotificationDevice.
    EVENTS = "device with the notification queue"
    PLAIN = "vhost-user-fs-pci"


@dataclass(frozen=True)
class VmSpec:
    """What a guest is made of.

    agent_socket: where QEMU makes the host's end of the agent's channel.
    tag: names the share for mount(8).
    memory_mib: the guest's memory, in MiB.
    """

    image: Path
    qemu: Qemu
    accelerator: Accelerator
    device: QemuDevice
    daemon_socket: Path
    agent_socket: Path
    tag: str
    memory_mib: int = 1024
    cpus: int = 1
    request_queues: int = 1
    kernel_options: tuple[str, ...] = ()
    #: Further arguments of QEMU.
    qemu_options: tuple[str, ...] = ()
    #: Whether the share's device is behind a PCIe port of its own, where it can be pulled out.
    behind_port: bool = False


def share_options(
    device: QemuDevice,
    daemon_socket: Path,
    tag: str,
    memory_mib: int,
    request_queues: int,
    behind_port: bool = False,
    notification_device: NotificationDevice = NotificationDevice.GENERIC,
) -> list[str]:
    """Return QEMU's arguments that attach a virtio-fs daemon.

    They are shared memory, the daemon's socket, and the device, with `behind_port` behind a PCIe
    port of its own. `notification_device` is that of QemuDevice.EVENTS.
    """
    port = ["-device", "pcie-root-port,id=fsport,chassis=1"] if behind_port else []
    if device is QemuDevice.EVENTS and notification_device is NotificationDevice.GENERIC:
        # The queues are the hiprio queue, the notification queue and the request queues. The
        # daemon's configuration space has the tag.
        name, _ = notification_device.value
        attach = f"{name},chardev=fs,virtio-id={VIRTIO_FS_ID},num_vqs={2 + request_queues}"
        attach += f",vq_size={QUEUE_SIZE},config_size={CONFIG_SIZE}"
    else:
        attach = (
            f"{QemuDevice.PLAIN.value},chardev=fs,tag={tag},"
            f"num-request-queues={request_queues},queue-size={QUEUE_SIZE}"
        )
        if device is QemuDevice.EVENTS:
            _, option = notification_device.value
            attach += f",{option}=on"
    if behind_port:
        attach += ",bus=fsport"
    return [
        *port,
        "-object",
        f"memory-backend-memfd,id=mem,size={memory_mib}M,share=on",
        "-numa",
        "node,memdev=mem",
        "-chardev",
        f"socket,id=fs,path={daemon_socket}",
        "-device",
        attach,
    ]


def agent_options(agent_socket: Path) -> list[str]:
    """Return QEMU's arguments for the agent's channel."""
    return [
        "-device",
        "virtio-serial-pci,id=agentbus",
        "-chardev",
        f"socket,id=agent,path={agent_socket},server=on,wait=off",
        "-device",
        f"virtserialport,bus=agentbus.0,chardev=agent,name={AGENT_PORT}",
    ]


def agent_command() -> str:
    """Return the guest's command that runs the agent.

    It uses the host's own Python, which the guest sees in its root.
    """
    python = Path(sys.executable).resolve()
    isolated = ["-X", "utf8", "-I", "-S", "-B"]
    return f"exec {shlex.join([str(python), *isolated, str(paths.GUEST_AGENT), AGENT_PORT])}"


def vng_command(spec: VmSpec, program: str | Path, guest_command: str | None) -> list[str]:
    """Return virtme-ng's command line.

    guest_command: without it the guest runs a shell on the console.
    """
    options = share_options(
        spec.device,
        spec.daemon_socket,
        spec.tag,
        spec.memory_mib,
        spec.request_queues,
        spec.behind_port,
        spec.qemu.notification_device,
    )
    options += [*agent_options(spec.agent_socket), *spec.qemu_options]
    command = [
        str(program),
        "--run",
        str(spec.image),
        "--force-9p",
        "--user=root",
        "--cwd=/",
        f"--cpus={spec.cpus}",
        f"--memory={spec.memory_mib}M",
        f"--qemu={spec.qemu.program}",
        f"--qemu-opts={shlex.join(options)}",
        f"--append=rootflags={ROOT_FLAGS},cache={versions.current().root_cache}",
        *(f"--append={option}" for option in spec.kernel_options),
    ]
    if spec.accelerator is Accelerator.TCG:
        command.append("--disable-kvm")
    if guest_command is None:
        return command
    return [*command, "--verbose", "--", guest_command]


def vng_program() -> Path:
    """Return virtme-ng's program, from beside this interpreter or from PATH."""
    beside = Path(sys.executable).parent / "vng"
    found = str(beside) if beside.exists() else shutil.which("vng")
    if not found:
        raise HarnessError("virtme-ng is not installed: run make venv")
    return Path(found)


class Vm:
    """A booting or running guest.

    A thread reads its console, writes it to `log`, and finds problems in it.
    """

    def __init__(self, spec: VmSpec, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.spec = spec
        self.log = log
        self.console = Console()
        self.guest: Guest | None = None
        self.ended = threading.Event()
        program = vng_program()
        command = vng_command(spec, program, agent_command())
        # A pseudo-terminal, because virtme-ng runs nothing without one.
        self.process = pexpect.spawn(
            command[0],
            command[1:],
            cwd="/",
            # virtme-ng calls its own programs by name.
            env={**os.environ, "PATH": f"{program.parent}:{os.environ.get('PATH', os.defpath)}"},
            encoding="utf-8",
            codec_errors="replace",
            timeout=None,
            dimensions=(50, 500),
        )
        self.reader = threading.Thread(
            target=self.watch_console, name=f"console {log.name}", daemon=True
        )
        self.reader.start()

    @classmethod
    def boot(cls, spec: VmSpec, log: Path, limit: float = BOOT_LIMIT) -> "Vm":
        """Boot a guest and wait for its agent, up to `limit` seconds each.

        GuestLostError: the guest did not boot; the text has the end of its console.
        """
        vm = cls(spec, log)
        try:
            vm.guest = Guest(vm.connect(time.monotonic() + limit), vm.explain_loss)
            vm.guest.wait_until_ready(limit)
        except BaseException:
            vm.kill()
            raise
        return vm

    def connect(self, deadline: float) -> socket.socket:
        """Connect to the agent's channel as soon as QEMU offers it."""
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        while time.monotonic() < deadline:
            try:
                channel.connect(str(self.spec.agent_socket))
            except (FileNotFoundError, ConnectionRefusedError):
                # QEMU makes the socket when it starts. The wait ends early if QEMU ends.
                if self.ended.wait(INTERVAL):
                    break
                continue
            return channel
        channel.close()
        raise GuestLostError(f"QEMU did not start; {self.explain_loss()}")

    def watch_console(self) -> None:
        """Read the console until QEMU ends; after a fatal problem the guest soon counts as lost."""
        with self.log.open("w") as keep:
            while True:
                try:
                    text = self.process.read_nonblocking(size=1 << 16, timeout=None)
                except (pexpect.EOF, OSError, ValueError):
                    break
                keep.write(text)
                keep.flush()
                found = self.console.feed(text)
                if any(problem.severity is Severity.FATAL for problem in found):
                    # Leave the kernel time to print its trace.
                    threading.Thread(target=self.end_soon, daemon=True).start()
        self.ended.set()
        if self.guest:
            self.guest.mark_lost()

    def end_soon(self) -> None:
        """Mark the guest lost, unless QEMU ends by itself, as it does after a panic."""
        if not self.ended.wait(TRACE_LIMIT) and self.guest:
            self.guest.mark_lost()

    def explain_loss(self) -> str:
        """Return why the guest was lost, as far as its console shows it, and the console's path."""
        if self.guest and self.guest.lost:
            # The agent's channel may end before the console has been read to its end.
            self.ended.wait(TRACE_LIMIT)
        fatal = [
            problem.line for problem in self.console.problems if problem.severity is Severity.FATAL
        ]
        lost = "the guest has ended" if self.ended.is_set() else "the guest does not answer"
        reason = f"the guest crashed: {fatal[0]}" if fatal else lost
        return f"{reason}\n{self.console.last_lines()}\n(the whole console is in {self.log})"

    def guest_or_fail(self) -> Guest:
        """Return the guest's agent. GuestLostError: there is none."""
        if self.guest is None:
            raise GuestLostError(self.explain_loss())
        return self.guest

    @property
    def alive(self) -> bool:
        """Whether the guest runs and has answered so far."""
        return not self.ended.is_set() and self.guest is not None and not self.guest.lost

    def shut_down(self) -> None:
        """End the agent, upon which virtme-ng's init powers the guest off.

        GuestLostError: it took longer than STOP_LIMIT; QEMU is killed.
        """
        if self.guest and self.alive:
            self.guest.leave()
        if not self.ended.wait(STOP_LIMIT):
            self.kill()
            raise GuestLostError(
                f"the guest did not power off in {STOP_LIMIT:.0f} s; {self.explain_loss()}"
            )
        self.kill()

    def kill(self) -> None:
        """Kill QEMU immediately, in any state."""
        # The pseudo-terminal made the child a session leader: virtme-ng and QEMU are in its process
        # group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.ended.wait(STOP_LIMIT)
        self.process.close(force=True)
        if self.guest:
            self.guest.mark_lost()
            self.guest.channel.close()


def socket_folder() -> Path:
    """Make a directory for sockets, whose paths must be short: 108 bytes. The caller removes it."""
    return Path(tempfile.mkdtemp(prefix="farwatch-"))
