# SPDX-License-Identifier: Apache-2.0
"""A guest with a hostile device: plays scripts one after the other, and checks after each round
that nothing broke."""

import contextlib
import itertools
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from farwatchd.wire import fsnotify as wire
from farwatchd.wire.fuse import InitFlag

from farwatch_harness.adversary import records
from farwatch_harness.adversary.device import Device, Lies
from farwatch_harness.adversary.filesystem import Belief, Tree
from farwatch_harness.adversary.script import MOUNT, PCI, USERS, VIRTIO, Round, Script
from farwatch_harness.adversary.storm import Heard, Storm, Watch
from farwatch_harness.util import paths
from farwatch_harness.util.errors import GuestLostError, HarnessError
from farwatch_harness.vm.boot import Vm, socket_folder
from farwatch_harness.vm.environment import Equipment
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.kmemleak import fail_on_leaks
from farwatch_harness.vm.testbed import TAG, vm_spec

#: How long actors may take once the server answers everything: emulation is slow, and a round has
#: hundreds of steps.
ACTORS_LIMIT = 45.0
#: How long an unmount may take once the server answers everything.
UMOUNT_LIMIT = 15.0
#: How long the client may take until the server's belief agrees with what is watched.
AGREE_LIMIT = 8.0
#: Events are heard when none has come for so long.
QUIET = 0.3
HEAR_ROUNDS = 4
INTERVAL = 0.1
#: Events that inotify and the wire number alike.
PLAIN_BITS = 0xFFF
ATTRIB, Q_OVERFLOW = 0x4, 0x4000
VIRTIO_FS_DEVICE = "0x001a"
OURS = ("virtiofs", "fuse")
BLOCKED = """
import os
def main():
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for task in os.listdir(f"/proc/{pid}/task") if os.path.exists(f"/proc/{pid}/task") else ():
            place = f"/proc/{pid}/task/{task}"
            try:
                state = open(f"{place}/stat").read().rpartition(")")[2].split()[0]
                if state == "D":
                    name = open(f"{place}/comm").read().strip()
                    found.append(name + ": " + open(f"{place}/stack").read())
            except OSError:
                pass
    return found
"""


@dataclass(frozen=True)
class Finding:
    """What a script made wrong: `kind` is the same for the same fault, `text` says more; `round`
    counts from 0."""

    kind: str
    text: str
    round: int

    def __str__(self) -> str:
        return f"{self.kind}: {self.text} (round {self.round})"


@dataclass(frozen=True)
class Mount:
    """One of our mounts as /proc/self/mountinfo has it; `device` as fdinfo writes it."""

    path: str
    device: int


class Arena:
    """A booted guest. After a finding it is not to be trusted any more."""

    def __init__(self, vm: Vm, device: Device) -> None:
        self.vm = vm
        self.guest: Guest = vm.guest_or_fail()
        self.device = device
        self.storm = Storm(self.guest)
        self.virtio, self.pci = self.names()
        self.round = 0
        self.seen_lines = 0
        for process, user in enumerate(USERS):
            self.storm.spawn(process, user)
        self.guest.shell(f"mkdir -p {MOUNT}; echo 20 > /proc/sys/kernel/hung_task_timeout_secs")

    def names(self) -> tuple[str, str]:
        """What the guest calls the device on its virtio and PCI buses."""
        script = f"grep -l {VIRTIO_FS_DEVICE} /sys/bus/virtio/devices/*/device | head -1"
        place = Path(self.guest.shell(script).strip()).parent
        pci = self.guest.shell(f"basename $(readlink -f {place}/..)").strip()
        return place.name, pci

    # A script.

    def play(self, script: Script) -> Finding | None:
        """Plays it to its end and cleans up; returns the first thing that was wrong."""
        self.device.call(lambda: self.prepare(script))
        try:
            for self.round, each in enumerate(script.rounds):
                found = self.play_round(each) or self.check()
                if found:
                    return found
            return self.end()
        except GuestLostError:
            return self.crashed()

    def prepare(self, script: Script) -> None:
        """Runs in the device's thread."""
        device, tree = self.device, self.device.tree
        device.random.seed(script.seed)
        device.lies = Lies()
        device.payloads.clear()
        tree.init_flags = init_flags(script.mode)
        tree.entry_valid = script.entry_valid
        tree.max_background = script.max_background
        tree.reuse = False
        tree.violations.clear()
        tree.build()

    def play_round(self, each: Round) -> Finding | None:
        """Lets all do their parts, lets the server go, and waits for the guest's actors."""
        parts = {actor: [self.named(op) for op in ops] for actor, ops in each.actors.items() if ops}
        for process in sorted(self.storm.dead):
            self.storm.spawn(process, USERS[process])

        def begin() -> None:
            self.device.lies = each.lies
            self.device.run_timeline(each.server)

        self.device.call(begin)
        self.storm.start(parts)
        longest = max((at for at, *_ in each.server), default=0) / 1000
        # The storm itself: until all are done, or as long as those wait that the server does not
        # answer.
        self.storm.wait(max(longest, 2.0))
        if not any(action[1] == "kill" for action in each.server):
            self.device.call(self.device.settle)
        running = self.storm.wait(ACTORS_LIMIT)
        if running:
            return Finding(
                "hang", f"actors {sorted(running)} do not end; {self.blocked()}", self.round
            )
        return None

    def named(self, op: str) -> str:
        return op.replace(VIRTIO, self.virtio).replace(PCI, self.pci)

    def blocked(self) -> str:
        """The tasks that cannot be interrupted, with where they are."""
        try:
            return "\n".join(self.guest.python(BLOCKED, limit=10.0)) or "no task is blocked"
        except (GuestLostError, HarnessError, OSError) as error:
            return f"blocked tasks are not to be seen: {error}"

    def crashed(self) -> Finding:
        """The guest is gone: what its console says."""
        return self.console() or Finding("lost", self.vm.explain_loss(), self.round)

    # What must hold.

    def check(self) -> Finding | None:
        """All that must hold when everybody pauses."""
        self.guest.ping()
        for test in (self.console, self.bad_lines, self.violations, self.locks):
            found = test()
            if found:
                return found
        if self.device.server is None:
            return None
        return self.beliefs() or self.events() or self.console()

    def console(self) -> Finding | None:
        findings = self.vm.console.findings
        if not findings:
            return None
        line = next(
            (each for each in findings if not each.line.endswith("cut here ]")), findings[0]
        )
        start = max(line.number - 2, 0)
        return Finding(
            signature(line.line),
            "\n".join([line.line, *self.vm.console.lines[start : start + 70]]),
            self.round,
        )

    def bad_lines(self) -> Finding | None:
        if not self.storm.bad:
            return None
        text, self.storm.bad = self.storm.bad[0], []
        return Finding(f"call: {words_of(text)}", text, self.round)

    def violations(self) -> Finding | None:
        """Requests that a client must not send."""
        found = self.device.call(lambda: list(self.device.tree.violations))
        return (
            Finding(f"request: {words_of(found[0])}", "; ".join(found), self.round)
            if found
            else None
        )

    def locks(self) -> Finding | None:
        """Whether lockdep still looks."""
        with contextlib.suppress(OSError):
            text = self.guest.read_file("/proc/lockdep_stats").decode()
            state = re.search(r"debug_locks: +(\d)", text)
            if state and state[1] != "1":
                return self.console() or Finding("lockdep is off", state[0], self.round)
        return None

    def mounts(self) -> list[Mount]:
        """Our mounts, the innermost last."""
        found = []
        for line in self.guest.read_file("/proc/self/mountinfo").decode().splitlines():
            words = line.split()
            if words[words.index("-") + 1] in OURS:
                major, minor = map(int, words[2].split(":"))
                found.append(Mount(words[4], (major << 20) | minor))
        return found

    def beliefs(self) -> Finding | None:
        """Whether the server believes to be watched what is watched; they have some time to
        agree."""
        deadline = time.monotonic() + AGREE_LIMIT
        while True:
            devices = {mount.device for mount in self.mounts()}
            watches = [watch for watch in self.storm.watches() if watch.device in devices]
            different = self.compare(watches)
            if not different:
                return None
            if time.monotonic() > deadline:
                kind = words_of(different[0])
                return Finding(f"belief: {kind}", "; ".join(different), self.round)
            time.sleep(INTERVAL)

    def compare(self, watches: list[Watch]) -> list[str]:
        return self.device.call(lambda: disagreements(self.device.tree, watches))

    def events(self) -> Finding | None:
        """Whether each watch hears what the server reports, or has been told that events were
        lost."""
        devices = {mount.device for mount in self.mounts()}
        if not devices:
            return None
        lost = {(each.process, each.fd) for each in self.storm.heard(0.0) if each.mask & Q_OVERFLOW}
        watches = [watch for watch in self.storm.watches() if watch.device in devices]
        expected = self.device.call(lambda: self.probe(watches))
        missing: set[tuple[int, int, str, int]] = set()
        heard: set[Heard] = set()
        for _ in range(HEAR_ROUNDS):
            heard |= self.storm.heard(QUIET)
            got = {
                (each.process, each.fd, each.kind, each.key) for each in heard if each.mask & ATTRIB
            }
            lost |= {(each.process, each.fd) for each in heard if each.mask & Q_OVERFLOW}
            missing = {each for each in expected if each not in got and each[:2] not in lost}
            if not missing:
                return None
        still = {(each.process, each.fd, each.kind, key_of(each)) for each in self.storm.watches()}
        missing &= still
        if not missing:
            return None
        waits = self.device.call(lambda: (len(self.device.waiting), len(self.device.payloads)))
        text = f"{len(missing)} of {len(expected)} watches hear nothing: {sorted(missing)[:5]}"
        return Finding("deaf", f"{text}; {waits[0]} requests wait, {waits[1]} payloads", self.round)

    def probe(self, watches: list[Watch]) -> set[tuple[int, int, str, int]]:
        """Reports a change of attributes of all that is watched; returns who must hear. In the
        device's thread."""
        tree = self.device.tree
        expected = set()
        for nodeid, belief in list(tree.beliefs.items()):
            node = tree.nodes.get(nodeid)
            if node is None or not belief.certain or belief.generations != {node.generation}:
                continue
            if not belief.mask & wire.Event.ATTRIB:
                continue
            interested = [
                each
                for each in watches
                if each.ino == nodeid and each.mask & ATTRIB and each.kind != "dnotify"
            ]
            # Two inodes with one number, below and above a mount, are told apart by nobody here.
            if len({each.device for each in interested}) != 1:
                continue
            expected |= {(each.process, each.fd, each.kind, key_of(each)) for each in interested}
            self.device.notify(records.probe(node))
        return expected

    # The end.

    def end(self) -> Finding | None:
        """Unmounts what is left, which must not take long, and brings the device back."""
        dead = self.device.server is None
        if not dead:
            self.device.call(self.device.settle)
        for process in sorted(self.storm.dead):
            self.storm.spawn(process, USERS[process])
        steps = [f"umount {mount.path} 2" for mount in reversed(self.mounts())]
        if dead:
            steps = []
        everybody = {
            2 * process: ["chdir /", *(f"close {slot}" for slot in range(8))]
            for process in range(len(USERS))
        }
        everybody[0] += ["put /proc/sys/vm/drop_caches 2", *steps]
        self.storm.start(everybody)
        running = self.storm.wait(UMOUNT_LIMIT + (ACTORS_LIMIT if dead else 0))
        if running:
            return Finding("hang", f"unmounting does not end; {self.blocked()}", self.round)
        if dead:
            return self.check()
        left = self.mounts()
        if left:
            return Finding("mounts stay", str(left), self.round)
        found = self.restore_device() or self.check()
        if found:
            return found
        held = self.device.call(
            lambda: dict(self.device.tree.beliefs) if self.device.tree.initialized else {}
        )
        return Finding("belief: watches after the unmount", str(held), self.round) if held else None

    def restore_device(self) -> Finding | None:
        """Binds the driver again where a script has unbound it."""
        place = f"/sys/bus/virtio/devices/{self.virtio}"
        if not self.guest.os("access", place, 0):
            self.guest.shell("echo 1 > /sys/bus/pci/rescan")
            self.virtio, self.pci = self.names()
            place = f"/sys/bus/virtio/devices/{self.virtio}"
        if not self.guest.os("access", f"{place}/driver", 0):
            self.guest.shell(f"echo {self.virtio} > /sys/bus/virtio/drivers/virtiofs/bind")
        return None

    def leaks(self) -> Finding | None:
        """What kmemleak finds of all scripts so far."""
        try:
            fail_on_leaks(self.guest)
        except GuestLostError:
            return self.crashed()
        except HarnessError as error:
            return Finding("leak", str(error), self.round)
        return None


def key_of(watch: Watch) -> int:
    """What an event is known by."""
    return watch.wd if watch.kind == "inotify" else watch.ino


def disagreements(tree: Tree, watches: list[Watch]) -> list[str]:
    """Where what the server believes is not what /proc says; in the device's thread."""
    wanted: dict[int, int] = {}
    for watch in watches:
        wanted[watch.ino] = wanted.get(watch.ino, 0) | (watch.mask & PLAIN_BITS)
    found = []
    if not tree.initialized or not tree.negotiated & wire.FUSE_HAS_FSNOTIFY:
        return []
    for ino in sorted({*wanted, *tree.beliefs}):
        belief = tree.beliefs.get(ino, Belief(0))
        node = tree.nodes.get(ino)
        if not belief.certain or (node is not None and belief.generations - {node.generation}):
            continue
        mask = belief.mask & PLAIN_BITS
        lost, extra = wanted.get(ino, 0) & ~mask, mask & ~wanted.get(ino, 0)
        if lost and mask:
            found.append(
                "events that are watched are not asked for: "
                f"node {ino}, {lost:#x} of {wanted[ino]:#x}"
            )
        elif lost:
            found.append(f"a watched node is not watched at the server: node {ino}, {lost:#x}")
        elif extra and wanted.get(ino):
            found.append(
                f"events that nobody watches are asked for: node {ino}, {extra:#x} of {mask:#x}"
            )
        elif extra:
            found.append(
                f"a node that nobody watches is watched at the server: node {ino}, {extra:#x}"
            )
    return found


def words_of(text: str) -> str:
    """The text without what differs from run to run."""
    short = text.split(":")[0] if ":" in text else text
    return re.sub(r"0x[0-9a-f]+|\d+", "N", short)[:100]


def signature(line: str) -> str:
    """The line of a console without what differs from run to run."""
    text = re.sub(r"^\[ *[\d.]+\] ", "", line)
    text = re.sub(
        r"\+0x[0-9a-f]+/0x[0-9a-f]+|CPU: \d+|PID: \d+|0x[0-9a-f]+|\bat addr [0-9a-f]+", "", text
    )
    return "kernel: " + re.sub(r"\b[0-9a-f]{8,}\b|\d+", "N", text)[:120]


def init_flags(mode: str) -> int:
    """What the server offers in INIT."""
    flags = (
        InitFlag.ASYNC_READ | InitFlag.BIG_WRITES | InitFlag.MAX_PAGES | InitFlag.PARALLEL_DIROPS
    )
    flags |= InitFlag.SUBMOUNTS | InitFlag.ATOMIC_O_TRUNC
    offered = int(flags) | wire.FUSE_HAS_FSNOTIFY | wire.FUSE_FSNOTIFY_PARKED
    return offered | wire.FUSE_FSNOTIFY_MERGED if mode == "others" else offered


NUMBERS = itertools.count(1)


@contextmanager
def running(
    equipment: Equipment, transport: str, request_queues: int = 1, cpus: int = 2
) -> Iterator[Arena]:
    """Boots a guest with a hostile device; both end with the block."""
    with contextlib.ExitStack() as stack:
        sockets = socket_folder()
        stack.callback(shutil.rmtree, sockets, ignore_errors=True)
        name = f"adversary-{next(NUMBERS)}"
        tree = Tree(
            init_flags("others"), int(wire.Event(0x1FFF) | wire.Event.ON_CHILD | wire.Event.RENAME)
        )
        device = Device(tree, TAG, transport == "queue", request_queues)
        device.start(sockets / "fs")
        stack.callback(device.stop)
        spec = replace(equipment.machine(name, sockets), cpus=cpus, request_queues=request_queues)
        vm = Vm.boot(vm_spec(spec, sockets), paths.LOGS / f"{name}-console.log")
        stack.callback(vm.kill)
        yield Arena(vm, device)
