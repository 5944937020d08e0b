# SPDX-License-Identifier: Apache-2.0
"""Nothing that the host sends, delays or leaves unanswered can crash or block the guest's kernel.

Events, mounts and devices end in bounded time and without a warning.
"""

import base64
import dataclasses
import errno
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from farwatch_harness.adversary.script import SECONDARY_BUS
from farwatch_harness.oracle.compare import In
from farwatch_harness.vm.boot import QemuDevice
from farwatch_harness.vm.environment import Environment
from farwatch_harness.vm.guest_client import Guest, GuestProcess
from farwatch_harness.vm.testbed import DRIVER, TAG, Testbed, start_testbed, virtio_device
from farwatchd.watch.event_record import OVERFLOW, WATCHES_LOST, EventRecord, watch_ended
from farwatchd.wire.fsnotify import Event

pytestmark = pytest.mark.patch("overflow")

PROGRAM = Path(__file__).parent / "servers" / "scripted_daemon.py"
SUBMOUNT = 'mount -t tmpfs none "$1/mounted" && touch "$1/mounted/file" && shift && exec "$@"'


@dataclasses.dataclass
class Scripted:
    """A testbed, and the control socket of its daemon."""

    testbed: Testbed
    control: socket.socket

    @property
    def guest(self) -> Guest:
        return self.testbed.guest

    @property
    def mounted(self) -> str:
        return str(self.testbed.mount_point)

    def order(self, do: str, **arguments: Any) -> Any:
        """Give the daemon an order; return its answer."""
        self.control.send(json.dumps({"do": do, **arguments}).encode())
        return json.loads(self.control.recv(1 << 20))

    def send(self, *records: EventRecord) -> None:
        """Report these records in one notification."""
        payload = b"".join(record.encode() for record in records)
        self.order("send", payload=base64.b64encode(payload).decode())

    def watches(self) -> dict[int, int]:
        """Return what the daemon watches: masks by nodeid."""
        return {int(nodeid): mask for nodeid, mask in self.order("watches").items()}

    def log(self) -> list[tuple[str, int, int | None]]:
        """Return the requests since the last call: opcode, nodeid, mask."""
        return [tuple(entry) for entry in self.order("log")]

    def device(self) -> str:
        """Return the name of the virtio device in the guest."""
        return virtio_device(self.guest)


@contextmanager
def scripted_testbed(
    environment: Environment,
    folder: Path,
    cache: str = "auto",
    numbers: Mapping[str, int] | None = None,
    submount: bool = False,
    **changes: Any,
) -> Iterator[Scripted]:
    """Boot a testbed with a scripted daemon; `folder`/share is shared, `changes` are TestbedSpec's.

    `numbers` are the daemon's. With `submount` a file system is mounted at "mounted", with a file.
    The console must have no complaint at the end.
    """
    shared = folder / "share"
    shared.mkdir()
    command: tuple[str, ...] = (
        *(sys.executable, str(PROGRAM)),
        *("{socket}", "{shared}", "{tag}", str(folder / "control"), cache),
        json.dumps(dict(numbers or {})).replace("{", "{{").replace("}", "}}"),
    )
    if submount:
        (shared / "mounted").mkdir()
        command = ("unshare", "-m", "sh", "-c", SUBMOUNT, "-", "{shared}", *command)
    spec = environment.testbed_spec(folder.name, shared)
    spec = dataclasses.replace(spec, daemon_command=command, **changes)
    with (
        start_testbed(spec) as testbed,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control,
    ):
        control.settimeout(20)
        control.connect(str(folder / "control"))
        yield Scripted(testbed, control)
        if testbed.alive:
            testbed.guest.ping()
        assert testbed.problems() == []


Start = Callable[..., Scripted]
LIMIT = 20.0
MNT_DETACH = 2
OVERFLOWED = (-1, In.Q_OVERFLOW, "")


@pytest.fixture
def start(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Yield a function that boots a testbed with a scripted daemon.

    Its arguments are `cache` and the fields of TestbedSpec.
    """
    with ExitStack() as stack:

        def begin(**changes: Any) -> Scripted:
            folder = tmp_path_factory.mktemp("scripted")
            return stack.enter_context(scripted_testbed(environment, folder, **changes))

        yield begin


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until the condition holds; the test fails after LIMIT seconds."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, f"waited {LIMIT:.0f} s for {what}"
        time.sleep(0.02)


def rebind(scripted: Scripted) -> None:
    """Unbind the device from its driver and bind it again: then nothing has ever been mounted."""
    device = scripted.device()
    scripted.guest.umount(scripted.mounted)
    scripted.guest.shell(f"echo {device} > {DRIVER}/unbind; echo {device} > {DRIVER}/bind")


CREATED = EventRecord(1, 0, Event.CREATE, b"name")


@pytest.mark.patch("notifications")
def test_notification_before_the_first_mount_is_dropped(start: Start) -> None:
    scripted = start()
    rebind(scripted)
    scripted.send(CREATED)
    scripted.guest.ping()
    scripted.testbed.mount()
    assert scripted.guest.os("listdir", scripted.mounted) == []


@pytest.mark.patch("notifications")
def test_notification_after_a_failed_mount_is_dropped(start: Start) -> None:
    scripted = start()
    rebind(scripted)
    with pytest.raises(OSError, match="Invalid argument"):
        scripted.guest.mount(TAG, scripted.mounted, "virtiofs", options="dax=always")
    scripted.send(CREATED)
    scripted.guest.ping()
    scripted.testbed.mount()
    assert scripted.guest.os("listdir", scripted.mounted) == []


DNOTIFY = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.fcntl(fd, fcntl.F_NOTIFY, fcntl.DN_CREATE | fcntl.DN_MULTISHOT)
print("ready", flush=True)
signal.pause()
"""


@pytest.mark.patch("notifications")
def test_dnotify_keeps_its_mark_on_an_open_directory_that_the_server_says_is_deleted(
    start: Start,
) -> None:
    scripted = start()
    (scripted.testbed.shared / "dir").mkdir()
    with scripted.guest.inotify() as listener:
        watcher = scripted.guest.spawn(sys.executable, "-c", DNOTIFY, f"{scripted.mounted}/dir")
        watcher.lines(until="ready")
        wait_for(lambda: bool(scripted.watches()), "the watch of the directory")
        (nodeid,) = scripted.watches()
        listener.add(f"{scripted.mounted}/dir", In.DELETE_SELF)
        scripted.send(EventRecord(nodeid, 0, Event.DELETE_SELF | Event.ISDIR))
        masks = [In(event.mask) & ~In.ISDIR for event in listener.read(2)]
        assert masks == [In.DELETE_SELF, In.IGNORED]
        watcher.stop()
    scripted.guest.umount(scripted.mounted)


def test_caches_are_dropped_before_an_overflow_is_reported(start: Start) -> None:
    scripted = start(cache="always")
    guest, top = scripted.guest, scripted.mounted
    directory = scripted.testbed.shared / "dir"
    directory.mkdir()
    (directory / "file").write_text("one\n")
    (directory / "gone").touch()
    look = (
        f"cd {top}/dir; cat file; stat -c %s file; ls; test -e gone && echo gone is there;"
        " test -e new && echo new is there; true"
    )
    with guest.inotify() as listener:
        listener.add(f"{top}/dir", In.CREATE | In.DELETE)
        listener.add(f"{top}/dir/file", In.MODIFY)
        guest.shell(look)
        (directory / "file").write_text("longer text\n")
        (directory / "gone").unlink()
        (directory / "new").touch()
        size = guest.shell(f"stat -c %s {top}/dir/file; test -e {top}/dir/gone")
        assert size == "4\n", "nothing was reported, so it is cached"
        scripted.send(OVERFLOW)
        reported = [(event.wd, In(event.mask), event.name) for event in listener.read(1)]
        assert reported == [OVERFLOWED]
        assert guest.shell(look) == "longer text\n12\nfile\nnew\nnew is there\n"


def test_overflows_that_come_together_are_reported_once(start: Start) -> None:
    scripted = start()
    for number in range(200):
        (scripted.testbed.shared / f"file{number}").touch()
    with scripted.guest.inotify() as listener:
        for number in range(200):
            listener.add(f"{scripted.mounted}/file{number}", In.MODIFY)
        scripted.send(*([OVERFLOW] * 40))
        assert [In(event.mask) for event in listener.read(1)] == [In.Q_OVERFLOW]
        assert len(listener.read(quiet=0.5, limit=5.0)) <= 1


def test_watch_that_the_server_ended_is_renewed_at_the_next_lookup(start: Start) -> None:
    scripted = start(cache="never")
    (scripted.testbed.shared / "file").write_text("content")
    with scripted.guest.inotify() as listener:
        listener.add(f"{scripted.mounted}/file", In.MODIFY)
        ((nodeid, mask),) = scripted.watches().items()
        scripted.order("drop_watches")
        scripted.send(watch_ended(nodeid, 0))
        scripted.guest.ping()
        assert scripted.watches() == {}
        wait_for(
            lambda: (
                bool(scripted.guest.os("stat", f"{scripted.mounted}/file"))
                and scripted.watches() == {nodeid: mask}
            ),
            "the guest to ask again",
        )
        assert [In(event.mask) for event in listener.read(1)] == [In.Q_OVERFLOW]
        scripted.send(EventRecord(nodeid, 0, Event.MODIFY))
        assert [In(event.mask) for event in listener.read(1)] == [In.MODIFY]


def test_all_watches_are_renewed_after_the_server_lost_them(start: Start) -> None:
    scripted = start()
    for number in range(100):
        (scripted.testbed.shared / f"file{number}").touch()
    with scripted.guest.inotify() as listener:
        for number in range(100):
            listener.add(f"{scripted.mounted}/file{number}", In.MODIFY)
        watched = scripted.watches()
        assert len(watched) == 100
        scripted.order("drop_watches")
        scripted.send(WATCHES_LOST)
        wait_for(lambda: scripted.watches() == watched, "all watches to be there again")
        assert [In(event.mask) for event in listener.read(1)] == [In.Q_OVERFLOW]
        assert listener.read(quiet=0.5, limit=5.0) == []


def test_watch_that_is_said_to_have_ended_is_removed_with_its_mark(start: Start) -> None:
    """The report may be older than the answer that the guest has already seen."""
    scripted = start()
    (scripted.testbed.shared / "file").touch()
    with scripted.guest.inotify() as listener:
        watch = listener.add(f"{scripted.mounted}/file", In.MODIFY)
        ((nodeid, _mask),) = scripted.watches().items()
        scripted.send(watch_ended(nodeid, 0), EventRecord(nodeid, 0, Event.MODIFY))
        assert [In(event.mask) for event in listener.read(1)] == [In.MODIFY]
        listener.remove(watch)
        wait_for(lambda: scripted.watches() == {}, "the removal of the watch")


def test_watches_that_are_said_to_be_lost_are_removed_with_their_marks(start: Start) -> None:
    """Marks go while their renewals wait for those of others."""
    scripted = start()
    for number in range(100):
        (scripted.testbed.shared / f"file{number}").touch()
    with scripted.guest.inotify() as listener:
        for number in range(100):
            listener.add(f"{scripted.mounted}/file{number}", In.MODIFY)
        nodeid, *_ = scripted.watches()
        scripted.order("delay", seconds=3, times=1)
        scripted.send(WATCHES_LOST, EventRecord(nodeid, 0, Event.MODIFY))
        assert [In(event.mask) for event in listener.read(1)] == [In.MODIFY]
    wait_for(lambda: scripted.watches() == {}, "the removal of the watches")


def test_refused_renewal_of_a_watch_is_retried(start: Start) -> None:
    scripted = start()
    (scripted.testbed.shared / "file").touch()
    with scripted.guest.inotify() as listener:
        listener.add(f"{scripted.mounted}/file", In.MODIFY)
        watched = scripted.watches()
        scripted.order("drop_watches")
        scripted.order("fail", errno=28, times=1)
        scripted.send(WATCHES_LOST)
        wait_for(lambda: scripted.watches() == watched, "the guest to ask a second time")
        assert [In(event.mask) for event in listener.read(1)] == [In.Q_OVERFLOW]


@pytest.mark.parametrize("error", [errno.EACCES, errno.ENOSPC, errno.ESTALE])
def test_refused_renewal_of_a_watch_is_reported_as_overflow(start: Start, error: int) -> None:
    """Each watcher reads an overflow, whatever the server answers."""
    scripted = start()
    for name in ("one", "other"):
        (scripted.testbed.shared / name).touch()
    with scripted.guest.inotify() as first, scripted.guest.inotify() as second:
        first.add(f"{scripted.mounted}/one", In.MODIFY)
        second.add(f"{scripted.mounted}/other", In.MODIFY)
        scripted.order("drop_watches")
        scripted.order("fail", errno=error, times=1)
        scripted.send(WATCHES_LOST)
        for listener in (first, second):
            assert [In(event.mask) for event in listener.read(1)] == [In.Q_OVERFLOW]


@pytest.mark.patch("wait-request")
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.ENOMEM])
def test_error_of_a_wait_request_is_reported_as_overflow(start: Start, error: int) -> None:
    scripted = start(device=QemuDevice.PLAIN)
    (scripted.testbed.shared / "file").touch()
    with scripted.guest.inotify() as listener:
        listener.add(f"{scripted.mounted}/file", In.MODIFY)
        (nodeid,) = scripted.watches()
        scripted.log()
        scripted.order("fail_wait", errno=error)
        scripted.send(EventRecord(nodeid, 0, Event.MODIFY))
        reported = [In(event.mask) for event in listener.read(2)]
        assert reported == [In.MODIFY, In.Q_OVERFLOW]
        listener.add(f"{scripted.mounted}", In.CREATE)
        scripted.guest.shell(f"touch {scripted.mounted}/new")
        assert [event.name for event in listener.read(1)] == ["new"]
        waits = [opcode for opcode, _nodeid, _mask in scripted.log() if opcode == "FSNOTIFY_WAIT"]
        assert len(waits) == 1, "the error has ended the reports"


@pytest.mark.patch("send-request")
def test_no_request_names_a_forgotten_node(start: Start) -> None:
    scripted = start()
    names = [f"file{number}" for number in range(200)]
    for name in names:
        (scripted.testbed.shared / name).touch()
    with scripted.guest.inotify() as listener:
        for name in names:
            listener.add(f"{scripted.mounted}/{name}", In.ALL)
        scripted.log()
        scripted.order("delay", seconds=0.005, times=1_000_000)
        scripted.guest.shell(f"rm {scripted.mounted}/file*", limit=60.0)
        scripted.order("delay", seconds=0, times=0)
        log: list[tuple[str, int, int | None]] = []

        def all_forgotten() -> bool:
            log.extend(scripted.log())
            return sum(opcode == "FORGET" for opcode, _nodeid, _mask in log) >= len(names)

        wait_for(all_forgotten, "every file to be forgotten")
    forgotten: set[int] = set()
    for opcode, nodeid, _mask in log:
        if opcode == "FORGET":
            forgotten.add(nodeid)
        assert opcode != "FSNOTIFY" or nodeid not in forgotten, "asked for a forgotten node"


@pytest.mark.patch("notifications")
@pytest.mark.parametrize("device", [QemuDevice.EVENTS, QemuDevice.PLAIN])
def test_destroy_is_the_last_request_of_a_mount(start: Start, device: QemuDevice) -> None:
    scripted = start(device=device, cpus=2)
    for number in range(150):
        (scripted.testbed.shared / f"file{number}").touch()
    for _round in range(3):
        with scripted.guest.inotify() as listener:
            for number in range(150):
                listener.add(f"{scripted.mounted}/file{number}", In.MODIFY)
            scripted.order("delay", seconds=0.01, times=1_000_000)
        # The requests that remove the watches are in flight now.
        scripted.guest.umount(scripted.mounted)
        scripted.order("delay", seconds=0, times=0)
        opcodes = [opcode for opcode, _nodeid, _mask in scripted.log()]
        assert opcodes[-1] == "DESTROY"
        scripted.testbed.mount()
        assert len(scripted.guest.os("listdir", scripted.mounted)) == 150


@pytest.mark.patch("notifications")
@pytest.mark.parametrize("device", [QemuDevice.EVENTS, QemuDevice.PLAIN])
def test_device_of_a_dead_daemon_can_be_removed(
    boot: Callable[..., Testbed], device: QemuDevice
) -> None:
    testbed = boot(device=device, expect_trouble=True)
    (testbed.shared / "file").touch()
    guest = testbed.guest
    with guest.inotify() as listener:
        listener.add(f"{testbed.mount_point}/file", In.MODIFY)
        name = virtio_device(guest)
        os.kill(testbed.daemon.pid, signal.SIGKILL)
        testbed.daemon.process.wait()
        # touch(1) waits for a reply that never comes.
        waiting = guest.spawn("touch", f"{testbed.mount_point}/new")
        unbind = f"echo {name} > {DRIVER}/unbind"
        done = guest.run("timeout", "15", "sh", "-c", unbind, limit=20.0)
        assert (done.status, done.timed_out) == (0, False)
        assert "Transport endpoint is not connected" in "\n".join(waiting.lines())
    guest.umount(str(testbed.mount_point))
    assert [line for line in testbed.problems() if line.startswith("guest kernel")] == []


# umount(8) would look at the file system before.
UNMOUNT = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).umount2(sys.argv[1].encode(), 0) < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
print("unmounted")
"""


@pytest.mark.patch("notifications")
@pytest.mark.parametrize("device", [QemuDevice.EVENTS, QemuDevice.PLAIN])
def test_unmount_that_waits_for_a_dead_daemon_ends_when_the_device_is_removed(
    boot: Callable[..., Testbed], device: QemuDevice
) -> None:
    testbed = boot(device=device, expect_trouble=True)
    (testbed.shared / "file").touch()
    guest = testbed.guest
    listener = guest.inotify()
    listener.add(f"{testbed.mount_point}/file", In.MODIFY)
    name = virtio_device(guest)
    os.kill(testbed.daemon.pid, signal.SIGKILL)
    testbed.daemon.process.wait()
    # The removal of the watch is in flight when the file system is unmounted.
    listener.close()
    unmounting = guest.spawn(sys.executable, "-c", UNMOUNT, str(testbed.mount_point))
    waiting = f"grep -q '^State:.D' /proc/{unmounting.pid}/status"
    wait_for(lambda: guest.run("sh", "-c", waiting).status == 0, "the unmount to wait")
    unbind = f"echo {name} > {DRIVER}/unbind"
    done = guest.run("timeout", "15", "sh", "-c", unbind, limit=20.0)
    assert (done.status, done.timed_out) == (0, False)
    assert unmounting.lines() == ["unmounted"]
    assert [line for line in testbed.problems() if line.startswith("guest kernel")] == []


# What a removal has to end: the opcode that the daemon leaves unanswered, the program that
# sends such requests, what is reported then, and how many workers wait for an answer.
STORE = """
import mmap, signal, sys
with open(sys.argv[1], "r+b") as file:
    memory = mmap.mmap(file.fileno(), 0)
memory[0] ^= 1
print("stored", flush=True)
signal.pause()
"""
READER, WRITER = ("cat",), (sys.executable, "-c", STORE)
# Without the flag of "others-only" a reported change may be the guest's own, and the pages
# of a file that the guest has open for writing stay: the handler has nothing to wait for.
WAITING = {
    "read": ("READ", READER, (Event.MODIFY,), 1),
    "write": ("WRITE", WRITER, (Event.MODIFY,), 1),
    "read-and-overflow": ("READ", READER, (None, Event.MODIFY), 2),
    "write-and-overflow": ("WRITE", WRITER, (None, Event.MODIFY), 2),
}
BLOCKED = "grep -l '^State:.D' /proc/[0-9]*/task/*/status | xargs -r grep -h ^Name:"


def blocked(guest: Guest, name: str = "") -> list[str]:
    """Return the names of the tasks that cannot be interrupted, of those that begin with `name`."""
    found = guest.run("sh", "-c", BLOCKED).stdout.split("\n")
    return [line for line in found if line.partition("\t")[2].startswith(name) and line]


def unbind(scripted: Scripted) -> str:
    """Return a shell script that takes the driver from the device."""
    return f"echo {scripted.device()} > {DRIVER}/unbind"


def pull_out(scripted: Scripted) -> str:
    """Return a shell script that pulls the device out, and lets the kernel notice it."""
    place = Path(scripted.guest.shell(f"readlink -f {DRIVER}/{scripted.device()}").strip()).parent
    port = f"/sys/bus/pci/devices/{place.parent.name}/config"
    return (
        f"printf '\\177' | dd of={port} bs=1 seek={SECONDARY_BUS} conv=notrunc 2>/dev/null &&"
        f" echo 1 > /sys/bus/pci/devices/{place.name}/remove"
    )


def remove_device(scripted: Scripted, script: str) -> None:
    """Run a script that removes the device; it must end soon."""
    begin = time.monotonic()
    removing = scripted.guest.spawn("sh", "-c", f"{script} && echo removed")
    assert removing.lines(limit=10.0) == ["removed"], blocked(scripted.guest)
    print(f"the device was removed in {time.monotonic() - begin:.1f} s")
    wait_for(lambda: not blocked(scripted.guest), "all tasks to go on")


def handle_notification_without_answer(scripted: Scripted, case: str) -> GuestProcess:
    """Report a change of a file while a request about it has no answer; return what uses it.

    The kernel waits for the answer then.
    """
    opcode, program, reported, workers = WAITING[case]
    guest, path = scripted.guest, f"{scripted.mounted}/file"
    scripted.order("withhold", opcodes=[opcode])
    (nodeid,) = scripted.watches()
    user = guest.spawn(*program, path)
    if opcode == "WRITE":
        user.lines(until="stored")
    else:
        wait_for(lambda: bool(scripted.order("withheld")), "the request that is not answered")
    scripted.send(*(EventRecord(nodeid, 0, events) if events else OVERFLOW for events in reported))
    wait_for(lambda: bool(scripted.order("withheld")), "the request that is not answered")
    wait_for(lambda: len(blocked(guest, "kworker")) >= workers, "the handler to wait")
    return user


@pytest.mark.patch("overflow")
@pytest.mark.parametrize("device", [QemuDevice.EVENTS, QemuDevice.PLAIN])
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.patch("others-only") if opcode == "WRITE" else ())
        for case, (opcode, *_) in WAITING.items()
    ],
)
def test_device_is_removed_while_a_notification_waits_for_an_answer(
    start: Start, case: str, device: QemuDevice
) -> None:
    scripted = start(cpus=2, device=device)
    (scripted.testbed.shared / "file").write_bytes(bytes(4096))
    with scripted.guest.inotify() as listener:
        listener.add(f"{scripted.mounted}/file", In.MODIFY)
        user = handle_notification_without_answer(scripted, case)
        remove_device(scripted, unbind(scripted))
        user.stop(signal.SIGKILL)
    scripted.guest.umount(scripted.mounted)


@pytest.mark.patch("notifications")
def test_device_that_is_pulled_out_is_removed_while_a_notification_waits(start: Start) -> None:
    scripted = start(cpus=2, behind_port=True)
    (scripted.testbed.shared / "file").write_bytes(bytes(4096))
    with scripted.guest.inotify() as listener:
        listener.add(f"{scripted.mounted}/file", In.MODIFY)
        user = handle_notification_without_answer(scripted, "read")
        remove_device(scripted, pull_out(scripted))
        user.stop(signal.SIGKILL)
    scripted.guest.umount(scripted.mounted)


@pytest.mark.patch("notifications")
def test_unmount_that_waits_for_a_notification_ends_when_the_device_is_removed(
    start: Start,
) -> None:
    scripted = start(cpus=2)
    guest = scripted.guest
    (scripted.testbed.shared / "file").write_bytes(bytes(4096))
    with guest.inotify() as listener:
        listener.add(f"{scripted.mounted}/file", In.MODIFY)
        handle_notification_without_answer(scripted, "read").stop(signal.SIGKILL)
    unmounting = guest.spawn(sys.executable, "-c", UNMOUNT, scripted.mounted)
    wait_for(lambda: bool(blocked(guest, "python")), "the unmount to wait")
    remove_device(scripted, unbind(scripted))
    assert unmounting.lines() == ["unmounted"]


@pytest.mark.patch("overflow")
@pytest.mark.parametrize("device", [QemuDevice.EVENTS, QemuDevice.PLAIN])
def test_removal_of_the_device_is_reported_as_overflow(start: Start, device: QemuDevice) -> None:
    scripted = start(device=device)
    (scripted.testbed.shared / "file").touch()
    with scripted.guest.inotify() as first, scripted.guest.inotify() as second:
        first.add(f"{scripted.mounted}/file", In.MODIFY)
        second.add(scripted.mounted, In.CREATE)
        remove_device(scripted, unbind(scripted))
        for listener in (first, second):
            assert [In(event.mask) for event in listener.read(1)] == [In.Q_OVERFLOW]
    scripted.guest.umount(scripted.mounted)


@pytest.mark.patch("send-request")
def test_positive_error_of_the_server_is_an_error_of_the_caller(start: Start) -> None:
    scripted = start()
    (scripted.testbed.shared / "file").touch()
    with scripted.guest.inotify() as listener:
        scripted.order("fail", errno=-5, times=1)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            listener.add(f"{scripted.mounted}/file", In.MODIFY)


@pytest.mark.patch("wait-request")
def test_waiting_request_takes_no_room_of_the_background_requests(start: Start) -> None:
    scripted = start(device=QemuDevice.PLAIN, numbers={"max_background": 1})
    content = os.urandom(1 << 20)
    (scripted.testbed.shared / "file").write_bytes(content)
    with scripted.guest.inotify() as listener:
        listener.add(f"{scripted.mounted}/file", In.MODIFY)
        # Read ahead, and released, by requests in the background.
        assert scripted.guest.read_file(f"{scripted.mounted}/file") == content
        scripted.guest.shell(f"cp {scripted.mounted}/file {scripted.mounted}/copy")
        assert (scripted.testbed.shared / "copy").read_bytes() == content


def process_in(guest: Guest, path: str) -> GuestProcess:
    """Start a process that stands in a directory, which keeps the mount in use; return it."""
    user = guest.spawn("sh", "-c", f"cd {path} && echo in use && exec sleep 600")
    assert user.lines(until="in use") == ["in use"]
    return user


@pytest.mark.patch("notifications")
def test_watches_of_a_submount_end_when_it_is_unmounted(start: Start) -> None:
    scripted = start(submount=True)
    at = f"{scripted.mounted}/mounted"
    with scripted.guest.inotify() as listener:
        listener.add(f"{at}/.", In.CREATE)
        listener.add(f"{at}/file", In.MODIFY)
        assert len(scripted.watches()) == 2
        scripted.guest.umount(at)
        wait_for(lambda: scripted.watches() == {}, "both watches to end at the server")
        masks = sorted(In(event.mask) & ~In.ISDIR for event in listener.read(4))
        assert masks == sorted([In.UNMOUNT, In.IGNORED] * 2)


@pytest.mark.patch("notifications")
def test_watch_of_a_mount_point_is_not_a_watch_of_the_submount(start: Start) -> None:
    scripted = start(submount=True)
    at = f"{scripted.mounted}/mounted"
    with scripted.guest.inotify() as outer, scripted.guest.inotify() as inner:
        # Without a path that leads into it nothing is mounted.
        wd = outer.add(at, In.ATTRIB)
        assert scripted.watches() == {}
        inner.add(f"{at}/.", In.CREATE)
        watched = scripted.watches()
        assert len(watched) == 1
        outer.remove(wd)
        # A request for it would come before this one's.
        outer.add(scripted.mounted, In.CREATE)
        assert watched.items() <= scripted.watches().items()


@pytest.mark.patch("notifications")
def test_root_of_a_submount_has_its_generation(start: Start) -> None:
    scripted = start(submount=True, numbers={"generation": 5})
    at = f"{scripted.mounted}/mounted"
    with scripted.guest.inotify() as listener:
        listener.add(f"{at}/.", In.CREATE)
        (nodeid,) = scripted.watches()
        scripted.send(EventRecord(nodeid, 5, Event.CREATE, b"name"))
        assert [event.name for event in listener.read(1)] == ["name"]


@pytest.mark.patch("notifications")
def test_watches_below_a_submount_that_was_mounted_again_are_all_served(start: Start) -> None:
    scripted = start(submount=True)
    at = f"{scripted.mounted}/mounted"
    with scripted.guest.inotify() as former:
        former.add(f"{at}/.", In.CREATE)
        ((nodeid, wanted),) = scripted.watches().items()
        # The watch does not end with the mount, which is in use.
        user = process_in(scripted.guest, at)
        scripted.guest.umount(at, MNT_DETACH)
        with scripted.guest.inotify() as latter:
            latter.add(f"{at}/.", In.DELETE)
            assert scripted.watches() == {nodeid: wanted | Event.DELETE}
            scripted.send(EventRecord(nodeid, 0, Event.CREATE, b"new"))
            assert [event.name for event in former.read(1)] == ["new"]
            scripted.send(EventRecord(nodeid, 0, Event.DELETE, b"old"))
            assert [event.name for event in latter.read(1)] == ["old"]
        wait_for(lambda: scripted.watches() == {nodeid: wanted}, "the latter watch to end")
        scripted.send(EventRecord(nodeid, 0, Event.CREATE, b"newer"))
        assert [event.name for event in former.read(1)] == ["newer"]
        user.stop(signal.SIGKILL)


@pytest.mark.patch("notifications")
def test_watch_in_a_former_submount_ends_though_the_new_one_knows_its_inode(start: Start) -> None:
    scripted = start(submount=True)
    at = f"{scripted.mounted}/mounted"
    others = [f"{scripted.mounted}/other{number}" for number in range(12)]
    scripted.guest.shell(f"touch {' '.join(others)}")
    with scripted.guest.inotify() as former:
        former.add(f"{at}/file", In.MODIFY)
        user = process_in(scripted.guest, at)
        scripted.guest.umount(at, MNT_DETACH)
        # This looks the file up once more, for another inode with its nodeid.
        scripted.guest.os("stat", f"{at}/file")
        with scripted.guest.inotify() as many:
            for path in others:
                many.add(path, In.MODIFY)
            assert len(scripted.watches()) == len(others) + 1
            scripted.order("delay", seconds=0.2, times=1_000_000)
        # The removals of the others are under way, and that of the file waits for its turn.
        user.stop(signal.SIGKILL)
        scripted.order("delay", seconds=0, times=0)
        wait_for(lambda: scripted.watches() == {}, "the watch to end at the server")


@pytest.mark.patch("submount-lookups")
def test_watched_inodes_of_a_submount_are_forgotten_when_it_is_unmounted(start: Start) -> None:
    scripted = start(submount=True)
    at = f"{scripted.mounted}/mounted"
    files = [f"{at}/file{number}" for number in range(3)]
    scripted.guest.shell(f"touch {' '.join(files)}")
    with scripted.guest.inotify() as listener:
        for path in (f"{at}/.", *files):
            listener.add(path, In.ATTRIB)
        scripted.log()
        scripted.guest.umount(at)
        found: list[tuple[str, int, int | None]] = []

        def all_forgotten() -> bool:
            found.extend(scripted.log())
            return len({nodeid for opcode, nodeid, _ in found if opcode == "FORGET"}) >= len(files)

        wait_for(all_forgotten, "FORGET of the watched files")
    # The submount is mounted again by the next path into it.
    assert len(scripted.guest.os("listdir", at)) == len(files) + 1


@pytest.mark.patch("second-mount")
def test_share_is_mounted_a_second_time_while_a_submount_is_mounted(start: Start) -> None:
    scripted = start(submount=True)
    (scripted.testbed.shared / "top").touch()
    assert scripted.guest.os("listdir", f"{scripted.mounted}/mounted") == ["file"]
    second = "/run/second"
    scripted.guest.shell(f"mkdir -p {second} && mount -t virtiofs {TAG} {second}")
    try:
        assert sorted(scripted.guest.os("listdir", second)) == ["mounted", "top"]
    finally:
        scripted.guest.umount(second)


@pytest.mark.patch("second-mount")
def test_device_of_a_detached_submount_in_use_cannot_be_mounted(start: Start) -> None:
    scripted = start(submount=True)
    at = f"{scripted.mounted}/mounted"
    user = process_in(scripted.guest, at)
    scripted.guest.umount(scripted.mounted, MNT_DETACH)
    with pytest.raises(OSError, match=r"[Bb]usy") as caught:
        scripted.guest.mount(TAG, scripted.mounted, "virtiofs")
    assert caught.value.errno == errno.EBUSY
    user.stop(signal.SIGKILL)

    def mounted() -> bool:
        with suppress(OSError):
            scripted.testbed.mount()
            return True
        return False

    wait_for(mounted, "the device to be free")
    assert scripted.guest.os("listdir", at) == ["file"]


ADD_AND_REMOVE = """
import ctypes, sys
libc = ctypes.CDLL(None)
fd = libc.inotify_init1(0)
print("begun", flush=True)
while True:
    libc.inotify_rm_watch(fd, libc.inotify_add_watch(fd, sys.argv[1].encode(), 2))
"""


@pytest.mark.patch("notifications")
def test_unmount_of_a_submount_does_not_wait_for_other_watchers(start: Start) -> None:
    scripted = start(submount=True)
    at = f"{scripted.mounted}/mounted"
    names = [f"other{number}" for number in range(3)]
    for name in names:
        (scripted.testbed.shared / name).touch()
    scripted.guest.os("listdir", at)
    others = [
        scripted.guest.spawn(sys.executable, "-c", ADD_AND_REMOVE, f"{scripted.mounted}/{name}")
        for name in names
    ]
    for other in others:
        other.lines(until="begun")
    done = scripted.guest.run("timeout", "10", "umount", at, limit=20.0)
    for other in others:
        other.stop(signal.SIGKILL)
    assert done.status == 0


MEASURE_ADD = """
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None)
top, count = sys.argv[1], int(sys.argv[2])
fd, many = libc.inotify_init1(0), libc.inotify_init1(0)

def add():
    begin = time.monotonic()
    wd = libc.inotify_add_watch(fd, f"{top}/one".encode(), 2)
    end = time.monotonic()
    assert wd > 0, wd
    libc.inotify_rm_watch(fd, wd)
    return end - begin

for number in range(count):
    assert libc.inotify_add_watch(many, f"{top}/{number}".encode(), 2) > 0
alone = sorted(add() for _ in range(30))[15]
closing = threading.Thread(target=os.close, args=(many,))
closing.start()
beside = [add() for _ in range(10)]
closing.join()
print(alone, sorted(beside)[5])
"""
MANY = 5000


@pytest.mark.patch("notifications")
def test_add_takes_at_most_ten_times_as_long_beside_thousands_of_removals(
    boot: Callable[..., Testbed],
) -> None:
    testbed = boot(cpus=2)
    for name in ["one", *map(str, range(MANY))]:
        (testbed.shared / name).touch()
    done = testbed.guest.run(
        *(sys.executable, "-c", MEASURE_ADD, str(testbed.mount_point), str(MANY)), limit=300.0
    )
    assert done.status == 0, done.stderr
    alone, beside = map(float, done.stdout.split())
    print(f"add alone {alone * 1e3:.2f} ms, beside {MANY} removals {beside * 1e3:.2f} ms")
    assert beside <= 10 * alone
