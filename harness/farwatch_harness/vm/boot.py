# SPDX-License-Identifier: Apache-2.0
"""Boots a guest with virtme-ng: pure functions turn facts into a command line, a class runs it."""

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

from farwatch_harness.util import paths
from farwatch_harness.util.errors import GuestLostError, HarnessError
from farwatch_harness.vm.console import Console, Severity
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.qemu import Accelerator, Qemu

AGENT_PORT = "farwatch.agent"
VIRTIO_FS_ID = 26
CONFIG_SIZE = 44
QUEUE_SIZE = 128
BOOT_LIMIT = 120.0
STOP_LIMIT = 20.0
# Seconds for a dying kernel to write its trace.
TRACE_LIMIT = 5.0
INTERVAL = 0.02
#: virtme-ng's, and what is read of the host's root is kept: programs start in half the time.
ROOT_FLAGS = "version=9p2000.L,trans=virtio,access=any,msize=524288,cache=readahead"


class Device(Enum):
    """Which of QEMU's devices attaches the daemon."""

    EVENTS = "vhost-user-test-device-pci"
    PLAIN = "vhost-user-fs-pci"


@dataclass(frozen=True)
class VmSpec:
    """All that a guest is made of. `agent_socket` is where QEMU puts the host's end of the agent's
    channel."""

    image: Path
    qemu: Qemu
    accelerator: Accelerator
    device: Device
    daemon_socket: Path
    agent_socket: Path
    tag: str
    memory_mib: int = 1024
    cpus: int = 1
    request_queues: int = 1
    kernel_options: tuple[str, ...] = ()


def share_options(
    device: Device, daemon_socket: Path, tag: str, memory_mib: int, request_queues: int
) -> list[str]:
    """QEMU's arguments that attach a virtio-fs daemon: shared memory, the daemon's socket, the
    device."""
    if device is Device.EVENTS:
        # Hiprio and notification queue, then the request queues. The tag comes from the daemon's
        # configuration space.
        attach = f"{device.value},chardev=fs,virtio-id={VIRTIO_FS_ID},num_vqs={2 + request_queues}"
        attach += f",vq_size={QUEUE_SIZE},config_size={CONFIG_SIZE}"
    else:
        attach = (
            f"{device.value},chardev=fs,tag={tag},"
            f"num-request-queues={request_queues},queue-size={QUEUE_SIZE}"
        )
    return [
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
    """QEMU's arguments for the agent's channel."""
    return [
        "-device",
        "virtio-serial-pci,id=agentbus",
        "-chardev",
        f"socket,id=agent,path={agent_socket},server=on,wait=off",
        "-device",
        f"virtserialport,bus=agentbus.0,chardev=agent,name={AGENT_PORT}",
    ]


def agent_command() -> str:
    """What the guest runs: the agent, with the host's own Python, which the guest sees in its
    root."""
    python = Path(sys.executable).resolve()
    isolated = ["-X", "utf8", "-I", "-S", "-B"]
    return f"exec {shlex.join([str(python), *isolated, str(paths.GUEST_AGENT), AGENT_PORT])}"


def vng_command(spec: VmSpec, program: str | Path, guest_command: str | None) -> list[str]:
    """virtme-ng's command line; without `guest_command` the guest gives a shell on the console."""
    options = share_options(
        spec.device, spec.daemon_socket, spec.tag, spec.memory_mib, spec.request_queues
    )
    options += agent_options(spec.agent_socket)
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
        f"--append=rootflags={ROOT_FLAGS}",
        *(f"--append={option}" for option in spec.kernel_options),
    ]
    if spec.accelerator is Accelerator.TCG:
        command.append("--disable-kvm")
    if guest_command is None:
        return command
    return [*command, "--verbose", "--", guest_command]


def vng_program() -> Path:
    """virtme-ng's program, beside the interpreter that runs us or on PATH."""
    beside = Path(sys.executable).parent / "vng"
    found = str(beside) if beside.exists() else shutil.which("vng")
    if not found:
        raise HarnessError("virtme-ng is not installed: run make venv")
    return Path(found)


class Vm:
    """A booting or running guest. Its console is read all the time, kept in `log`, and watched for
    trouble."""

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
        """Boots a guest and waits for its agent, for `limit` seconds each.

        GuestLostError with its last words when it does not come up.
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
        """Connects to the agent's channel as soon as QEMU offers it."""
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        while time.monotonic() < deadline:
            try:
                channel.connect(str(self.spec.agent_socket))
            except (FileNotFoundError, ConnectionRefusedError):
                # QEMU makes the socket when it starts; the wait ends at once when QEMU does.
                if self.ended.wait(INTERVAL):
                    break
                continue
            return channel
        channel.close()
        raise GuestLostError(f"QEMU did not start; {self.explain_loss()}")

    def watch_console(self) -> None:
        """Reads the console to its end. After a fatal finding the guest is given up before long."""
        with self.log.open("w") as keep:
            while True:
                try:
                    text = self.process.read_nonblocking(size=1 << 16, timeout=None)
                except (pexpect.EOF, OSError, ValueError):
                    break
                keep.write(text)
                keep.flush()
                found = self.console.feed(text)
                if any(finding.severity is Severity.FATAL for finding in found):
                    # The trace that follows is worth a moment.
                    threading.Thread(target=self.end_soon, daemon=True).start()
        self.ended.set()
        if self.guest:
            self.guest.mark_lost()

    def end_soon(self) -> None:
        """Gives the guest up unless QEMU ends by itself, as it does after a panic."""
        if not self.ended.wait(TRACE_LIMIT) and self.guest:
            self.guest.mark_lost()

    def explain_loss(self) -> str:
        """Why the guest is gone, as far as its console tells, and where to read on."""
        if self.guest and self.guest.lost:
            # The agent's channel may end a moment before the console has been read.
            self.ended.wait(TRACE_LIMIT)
        fatal = [
            finding.line for finding in self.console.findings if finding.severity is Severity.FATAL
        ]
        gone = "the guest is gone" if self.ended.is_set() else "the guest does not answer"
        reason = f"the guest crashed: {fatal[0]}" if fatal else gone
        return f"{reason}\n{self.console.last_words()}\n(the whole console is in {self.log})"

    def guest_or_fail(self) -> Guest:
        """The guest's agent; GuestLostError when there is none."""
        if self.guest is None:
            raise GuestLostError(self.explain_loss())
        return self.guest

    @property
    def alive(self) -> bool:
        """Whether the guest runs and answers as far as is known."""
        return not self.ended.is_set() and self.guest is not None and not self.guest.lost

    def shut_down(self) -> None:
        """Ends the agent, upon which virtme-ng's init powers the guest off; by force when that
        takes too long."""
        if self.guest and self.alive:
            self.guest.leave()
        if not self.ended.wait(STOP_LIMIT):
            self.kill()
            raise GuestLostError(
                f"the guest did not power off in {STOP_LIMIT:.0f} s; {self.explain_loss()}"
            )
        self.kill()

    def kill(self) -> None:
        """Ends QEMU at once, whatever state it is in."""
        # The pseudo-terminal made the child a session of its own: virtme-ng and QEMU are both in
        # its process group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.ended.wait(STOP_LIMIT)
        self.process.close(force=True)
        if self.guest:
            self.guest.mark_lost()
            self.guest.channel.close()


def socket_folder() -> Path:
    """A new directory for sockets, whose paths must be short (108 bytes)."""
    return Path(tempfile.mkdtemp(prefix="farwatch-"))
