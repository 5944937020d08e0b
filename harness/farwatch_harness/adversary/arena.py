# SPDX-License-Identifier: Apache-2.0
"""A guest with a hostile device: plays scripts, and checks after each round that nothing broke."""

import contextlib
import itertools
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from farwatchd.wire import fsnotify as wire

from farwatch_harness.adversary import records
from farwatch_harness.adversary.device import HostileDevice, VirtioServer
from farwatch_harness.adversary.faults import Faults
from farwatch_harness.adversary.filesystem import Belief, Known, Tree
from farwatch_harness.adversary.fuse_server import WATCHABLE, FuseServer
from farwatch_harness.adversary.script import (
    DEV_FUSE,
    MOUNT,
    PCI,
    PORT,
    REMOVING,
    SECONDARY_BUS,
    USERS,
    VIRTIO,
    WAIT,
    Lies,
    Round,
    Script,
    init_flags,
)
from farwatch_harness.adversary.storm import Heard, Storm, Watch
from farwatch_harness.util import paths
from farwatch_harness.util.errors import GuestLostError, HarnessError
from farwatch_harness.vm.boot import Vm, socket_folder
from farwatch_harness.vm.environment import Environment
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.kmemleak import fail_on_leaks
from farwatch_harness.vm.testbed import TAG, vm_spec

#: Seconds for which actors may do nothing, once the server answers everything.
STUCK_LIMIT = 30.0
#: Seconds for an unmount, once the server answers everything.
UMOUNT_LIMIT = 15.0
#: How long the client may ask for nothing while the server's belief differs from what is watched,
#: and after which time nothing is waited for any more.
AGREE_LIMIT = 8.0
AGREE_AT_LAST = 90.0
#: Seconds without an event after which all events were read.
QUIET = 0.3
#: For how long an event that must come is waited for.
HEAR_LIMIT = 10.0
INTERVAL = 0.1
#: The parts that differ between two lines about the same fault.
VARYING = (
    r"\+0x[0-9a-f]+/0x[0-9a-f]+",
    r"CPU: \d+",
    r"PID: \d+",
    "0x[0-9a-f]+",
    r"\bat addr [0-9a-f]+",
    r"\bby task .*",
)
#: Kinds of findings after which the guest can still be used.
HARMLESS = ("belief", "deaf", "call", "objects")
#: A debug kernel takes a minute to boot on a quiet machine.
BOOT_LIMIT = 400.0
#: The events that have the same bits in inotify and in the protocol.
PLAIN_BITS = 0xFFF
ATTRIB, Q_OVERFLOW = 0x4, 0x4000
VIRTIO_FS_DEVICE = "0x001a"
OURS = ("virtiofs", "fuse")
CGROUP = "/run/fw-cgroup"
#: With 0, in scripts with the theme "local", only groups of these kinds get remote events.
SYSCTL = "/proc/sys/fs/fsnotify/remote_events"
ASKING = ("asking", "only")
SET_UP = f"""
set -e
mkdir -p {MOUNT} {CGROUP}
mount -t cgroup2 none {CGROUP}
mkdir {CGROUP}/storm
echo 20 > /proc/sys/kernel/hung_task_timeout_secs
"""
#: Slab caches without an object when nothing is mounted and nothing is watched.
CACHES = (
    "fuse_inode",
    "fuse_request",
    "inotify_inode_mark",
    "fanotify_mark",
    "dnotify_mark",
    "fsnotify_mark_connector",
)
#: Free objects in the lists of a CPU or of KASAN count as used until the cache is shrunk.
COUNT_OBJECTS = f"""
for name in {" ".join(CACHES)}; do
    place=/sys/kernel/slab/$name
    [ -e $place/objects ] || continue
    echo 1 > $place/shrink
    read -r count rest < $place/objects
    echo $name $count
done
"""
OBJECTS_LIMIT = 20.0
#: Return the tasks that cannot be interrupted, and the active ones of the storm, with their stacks.
BLOCKED = """
import os
IDLE = ("pipe_read", "do_poll", "poll_schedule")
def read(path):
    try:
        return open(path).read().strip()
    except OSError:
        return ""
def main():
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for task in os.listdir(f"/proc/{pid}/task") if os.path.exists(f"/proc/{pid}/task") else ():
            place = f"/proc/{pid}/task/{task}"
            name, state = read(f"{place}/comm"), read(f"{place}/stat").rpartition(")")[2].split()
            where = read(f"{place}/stack") or read(f"{place}/wchan")
            busy = name == "storm" and where and not any(idle in where for idle in IDLE)
            if state and (state[0] == "D" or busy):
                found.append(f"{name} ({state[0]}): {where}")
    return found
"""

#: Return the descriptors and directories of processes that are on none of the visible mounts.
DETACHED = """
import os
def main():
    visible = {line.split()[0] for line in open("/proc/self/mountinfo")}
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for task in os.listdir(f"/proc/{pid}/task") if os.path.exists(f"/proc/{pid}/task") else ():
            place = f"/proc/{pid}/task/{task}"
            try:
                name = open(f"{place}/comm").read().strip()
                for fd in os.listdir(f"{place}/fdinfo"):
                    lines = open(f"{place}/fdinfo/{fd}").read().splitlines()
                    fields = dict(line.split(None, 1) for line in lines if line.count("\t"))
                    path = os.readlink(f"{place}/fd/{fd}")
                    if path.startswith("/") and fields.get("mnt_id:") not in visible:
                        found.append(f"{name} ({task}) has {path} open")
                path = os.readlink(f"{place}/cwd")
                if os.stat(f"{place}/cwd").st_dev != os.stat("/").st_dev:
                    found.append(f"{name} ({task}) is in {path}")
            except OSError:
                continue
    return found
"""


@dataclass(frozen=True)
class Finding:
    """A fault that a script showed.

    kind: is the same for the same fault.
    text: describes the fault.
    round: counts from 0.
    """

    kind: str
    text: str
    round: int

    @property
    def harmless(self) -> bool:
        """Whether the guest can still be used: its kernel was wrong, but is not broken."""
        return self.kind.startswith(HARMLESS)

    def __str__(self) -> str:
        return f"{self.kind}: {self.text} (round {self.round})"


@dataclass(frozen=True)
class GuestMount:
    """One of our mounts, as /proc/self/mountinfo shows it; `device` is as in fdinfo."""

    path: str
    device: int
    number: int
    parent: int


class Opponent(Protocol):
    """The server, on any transport."""

    @property
    def gone(self) -> bool:
        """Whether the server was killed and does not come back."""

    def prepare(self, script: Script) -> None:
        """Begin a script."""

    def begin(self, lies: Lies, timeline: list[list[Any]]) -> None:
        """Begin a round with these lies, and act by the timeline."""

    def settle(self) -> None:
        """End all lies, and answer the held requests."""

    def known(self) -> Known:
        """Return what the server knows."""

    def violations(self) -> list[str]:
        """Return the rules that the client has broken."""

    def history(self, nodeid: int) -> list[str]:
        """Return what has come and been sent about a nodeid, if the server remembers it."""

    def requests(self) -> int:
        """Return how many requests have come."""

    def send(self, payloads: list[bytes]) -> None:
        """Send notifications."""

    def state(self) -> str:
        """Return in words what the server waits for."""


class Arena:
    """A booted guest. After a finding that is not harmless it must not be used."""

    def __init__(
        self, vm: Vm, device: HostileDevice, transport: str, looks_for_leaks: bool
    ) -> None:
        self.vm = vm
        self.looks_for_leaks = looks_for_leaks
        self.guest: Guest = vm.guest_or_fail()
        self.transport = transport
        self.storm = Storm(self.guest)
        self.virtio, self.pci, self.port = self.names()
        self.round = 0
        #: The watchers at the last check, and whether the end of all reports was checked.
        self.watchers: set[tuple[int, int]] = set()
        self.end_was_checked = False
        self.unbinds = False
        self.local = False
        self.others: set[int] = set()
        self.guest.shell(SET_UP)
        self.faults = Faults(self.guest)
        self.server: Opponent = (
            FuseServer(self.guest) if transport == DEV_FUSE else VirtioServer(device)
        )
        for process, user in enumerate(USERS):
            self.storm.spawn(process, user)
        self.objects = self.count_objects()

    def names(self) -> tuple[str, str, str]:
        """Find the device's names on the guest's virtio and PCI buses, and the port above it."""
        script = f"grep -l {VIRTIO_FS_DEVICE} /sys/bus/virtio/devices/*/device | head -1"
        place = self.guest.shell(f"dirname $(readlink -f $({script}))").strip()
        if not place.startswith("/sys/devices/"):
            raise HarnessError("the guest has no virtio-fs device any more")
        pci = Path(place).parent
        return Path(place).name, pci.name, pci.parent.name

    # A script.

    def clean_up(self) -> bool:
        """Return the guest to the state before a script, after a harmless finding.

        Return whether that was possible.
        """
        try:
            self.server.settle()
            return self.end() is None
        except (GuestLostError, HarnessError):
            return False

    def play(self, script: Script) -> Finding | None:
        """Play a script to its end and clean up; return the first finding."""
        try:
            self.server.prepare(script)
            self.watchers, self.end_was_checked = set(), False
            self.unbinds = bool(REMOVING & set(script.themes))
            has_sysctl = self.guest.os("access", SYSCTL, 0)
            self.local = has_sysctl and "local" in script.themes
            if has_sysctl:
                self.guest.write_file(SYSCTL, b"0" if self.local else b"1")
            for self.round, each in enumerate(script.rounds):
                found = self.play_round(each) or self.check()
                if found:
                    return found
            return self.end()
        except GuestLostError:
            return self.crashed()

    def play_round(self, each: Round) -> Finding | None:
        """Run all parts, let the server behave correctly again, and wait for the guest's actors."""
        parts = {actor: [self.named(op) for op in ops] for actor, ops in each.actors.items() if ops}
        for process in sorted(self.storm.dead):
            self.storm.spawn(process, USERS[process])
        self.server.begin(each.lies, each.server)
        self.faults.begin(each.faults)
        self.storm.start(parts)
        longest = max((at for at, *_ in each.server), default=0) / 1000
        # The storm itself runs until all are done, or until the time of the last action. Requests
        # that the server does not answer wait longer.
        self.storm.wait(max(longest, 2.0))
        self.server.settle()
        self.faults.end()
        running = self.wait(STUCK_LIMIT)
        if running:
            return Finding(
                "hang", f"actors {sorted(running)} do not end; {self.blocked()}", self.round
            )
        return None

    def wait(self, limit: float) -> set[int]:
        """Wait until all actors are done, or nothing has been done for `limit` seconds.

        Return the actors that are not done. There is no limit while anything is done, because
        emulation is slow.
        """
        before = self.progress()
        while running := self.storm.wait(limit):
            now = self.progress()
            if now == before:
                return running
            before = now
        return set()

    def progress(self) -> tuple[int, int]:
        """Return numbers that change while anything is done."""
        return self.storm.steps(), self.server.requests()

    def named(self, op: str) -> str:
        """Return the operation with the names of this guest."""
        if self.transport == DEV_FUSE and op.startswith("mount farwatch "):
            return "ask mount allow_other,default_permissions"
        return op.replace(VIRTIO, self.virtio).replace(PCI, self.pci).replace(PORT, self.port)

    def blocked(self) -> str:
        """Return the tasks that cannot be interrupted, with their stacks."""
        try:
            return "\n".join(self.guest.python(BLOCKED, limit=10.0)) or "no task is blocked"
        except (GuestLostError, HarnessError, OSError) as error:
            return f"blocked tasks are not to be seen: {error}"

    def crashed(self) -> Finding:
        """Return the finding of a lost guest, from its console."""
        return self.console() or Finding("lost", self.vm.explain_loss(), self.round)

    # What must hold.

    def check(self) -> Finding | None:
        """Check everything that must hold between two rounds."""
        self.guest.ping()
        for test in (self.console, self.bad_lines, self.violations, self.locks):
            found = test()
            if found:
                return found
        if self.server.gone:
            return None
        return self.beliefs() or self.events() or self.console()

    def console(self) -> Finding | None:
        """Check that the kernel has printed no report."""
        findings = self.vm.console.problems
        if not findings:
            return None
        line = next(
            (each for each in findings if not each.line.endswith("cut here ]")), findings[0]
        )
        start = max(line.number - 2, 0)
        context = self.vm.console.lines[start : start + 70]
        return Finding(signature(line.line, context), "\n".join(context), self.round)

    def bad_lines(self) -> Finding | None:
        """Check that the storm program has reported no wrong result."""
        if not self.storm.bad:
            return None
        text, self.storm.bad = self.storm.bad[0], []
        return Finding(f"call: {words_of(text)}", text, self.round)

    def violations(self) -> Finding | None:
        """Check that the client has sent no forbidden request."""
        found = self.server.violations()
        return (
            Finding(f"request: {words_of(found[0])}", "; ".join(found), self.round)
            if found
            else None
        )

    def locks(self) -> Finding | None:
        """Check that lockdep is still on."""
        with contextlib.suppress(OSError):
            text = self.guest.read_file("/proc/lockdep_stats").decode()
            state = re.search(r"debug_locks: +(\d)", text)
            if state and state[1] != "1":
                return self.console() or Finding("lockdep is off", state[0], self.round)
        return None

    def mounts(self) -> list[GuestMount]:
        """Return our mounts, the innermost last; record the devices of the others."""
        found = []
        self.others = set()
        for line in self.guest.read_file("/proc/self/mountinfo").decode().splitlines():
            words = line.split()
            major, minor = map(int, words[2].split(":"))
            device = (major << 20) | minor
            if words[words.index("-") + 1] not in OURS:
                self.others.add(device)
            else:
                found.append(GuestMount(words[4], device, int(words[0]), int(words[1])))
        return found

    def live_devices(self, known: Known) -> set[int]:
        """Return the devices of the mounts that the server's current session is for."""
        mounts = self.mounts()
        if known.device is None:
            tops = [mount for mount in mounts if mount.path == MOUNT][-1:]
        else:
            tops = [mount for mount in mounts if mount.device == known.device]
        numbers = {mount.number for mount in tops}
        devices = {mount.device for mount in (*tops, *mounts) if mount.number in numbers}
        devices |= {mount.device for mount in mounts if mount.parent in numbers}
        if known.device is not None:
            return devices | {known.device}
        if self.unbinds:
            return devices
        # A detached mount exists as long as it is used, and so does its session.
        return {watch.device for watch in self.storm.watches()} - self.others | devices

    def relevant_watches(self, known: Known, devices: set[int]) -> list[Watch]:
        """Return the watches of the session's inodes.

        A watch of the directory that a submount covers is none: it sees local events only. Its
        inode has the number of the submount's root, but is the share's.
        """
        shares = {mount.device for mount in self.mounts() if mount.path == MOUNT}
        covered = {nodeid for nodeid, node in known.nodes.items() if node.submount}
        return [
            watch
            for watch in self.storm.watches()
            if watch.device in devices
            and not (watch.ino in covered and watch.device in shares)
            and (watch.kind in ASKING or not self.local)
        ]

    def beliefs(self) -> Finding | None:
        """Check that the server's beliefs agree with what is watched."""
        began = changed = time.monotonic()
        requests = self.server.requests()
        while True:
            known = self.server.known()
            # Requests that still come are on the way to agreement, but not for ever.
            requests, before = self.server.requests(), requests
            if requests != before and time.monotonic() < began + AGREE_AT_LAST:
                changed = time.monotonic()
            devices = self.live_devices(known)
            watches = self.relevant_watches(known, devices)
            different = disagreements(known, watches)
            if not different:
                return None
            if time.monotonic() > changed + AGREE_LIMIT:
                kind = words_of(different[0])
                beliefs = "\n".join(
                    f"{known.path(nodeid)} ({nodeid}): {belief}"
                    for nodeid, belief in known.beliefs.items()
                )
                state = f"mounts: {self.mounts()}\ndevices: {devices}\nbeliefs:\n{beliefs}"
                there = "\n".join(map(str, self.storm.watches()))
                histories = "\n".join(
                    f"node {nodeid}: {line}"
                    for nodeid in nodes_of(different)
                    for line in self.server.history(nodeid)
                )
                text = f"{'; '.join(different)}\n{state}\nwatches:\n{there}\n{histories}\n"
                return Finding(f"belief: {kind}", text, self.round)
            time.sleep(INTERVAL)

    def events(self) -> Finding | None:
        """Check that each watch reports the server's events, or reported an overflow."""
        known = self.server.known()
        devices = self.live_devices(known)
        if not devices or not known.initialized:
            return None
        already = self.storm.heard(QUIET if known.ended else INTERVAL)
        lost = {(each.process, each.fd) for each in already if each.mask & Q_OVERFLOW}
        watches = self.relevant_watches(known, devices)
        before, self.watchers = self.watchers, {(each.process, each.fd) for each in watches}
        if known.ended:
            return None if self.end_was_checked else self.end_of_reports(before, lost)
        self.end_was_checked = False
        expected = self.probe(watches)
        missing: set[tuple[int, int, str, int]] = set()
        heard: set[Heard] = set()
        deadline = time.monotonic() + HEAR_LIMIT
        while time.monotonic() < deadline:
            heard |= self.storm.heard(QUIET)
            got = {
                (each.process, each.fd, each.kind, each.key) for each in heard if each.mask & ATTRIB
            }
            lost |= {(each.process, each.fd) for each in heard if each.mask & Q_OVERFLOW}
            uninvited = [
                each
                for each in heard
                if self.local and each.mask & ATTRIB and each.kind not in ASKING
            ]
            if uninvited:
                return Finding("uninvited", f"they did not ask: {uninvited[:5]}", self.round)
            missing = {each for each in expected if each not in got and each[:2] not in lost}
            if not missing:
                return None
        still = {(each.process, each.fd, each.kind, key_of(each)) for each in self.storm.watches()}
        missing &= still
        if not missing:
            return None
        text = f"{len(missing)} of {len(expected)} watches hear nothing: {sorted(missing)[:5]}"
        return Finding("deaf", f"{text}; {self.server.state()}", self.round)

    def end_of_reports(
        self, before: set[tuple[int, int]], lost: set[tuple[int, int]]
    ) -> Finding | None:
        """Check that earlier watchers got an overflow when the server ended its reports."""
        self.end_was_checked = True
        silent = before & self.watchers
        # Some may have begun to watch after that, by the same number of a descriptor.
        if len(silent) < 2:
            return None
        deadline = time.monotonic() + HEAR_LIMIT
        while not silent & lost and time.monotonic() < deadline:
            heard = self.storm.heard(QUIET)
            lost |= {(each.process, each.fd) for each in heard if each.mask & Q_OVERFLOW}
        if silent & lost:
            return None
        text = f"the server has ended its reports, and {sorted(silent)} got no overflow"
        return Finding("deaf", text, self.round)

    def probe(self, watches: list[Watch]) -> set[tuple[int, int, str, int]]:
        """Report an attribute change of everything that is watched; return who must read it."""
        tree = self.server.known()
        expected = set()
        payloads = []
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
            # Two inodes with one number, below and above a mount, cannot be distinguished here.
            if len({each.device for each in interested}) != 1:
                continue
            expected |= {(each.process, each.fd, each.kind, key_of(each)) for each in interested}
            payloads.append(records.probe(node))
        self.server.send(payloads)
        return expected

    # The end.

    def end(self) -> Finding | None:
        """Unmount everything, within a limit, and restore the device."""
        dead = self.server.gone
        if not dead:
            self.server.settle()
        for process in sorted(self.storm.dead):
            self.storm.spawn(process, USERS[process])
        steps = [f"umount {mount.path} 2" for mount in reversed(self.mounts())]
        everybody = {
            2 * process: ["chdir /", *(f"close {slot}" for slot in range(9))]
            for process in range(len(USERS))
        }
        everybody[0] += ["put /proc/sys/vm/drop_caches 2", *steps]
        self.storm.start(everybody)
        running = self.wait(UMOUNT_LIMIT)
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
        if not self.session_ends():
            users = "; ".join(self.guest.python(DETACHED)) or "no process uses a mount"
            return Finding("session stays", f"{self.server.state()}; {users}", self.round)
        return self.left_objects()

    def session_ends(self) -> bool:
        """Return whether the session ends, which it does with the last use of the last mount."""
        deadline = time.monotonic() + UMOUNT_LIMIT
        while self.server.known().initialized:
            if time.monotonic() > deadline:
                return False
            time.sleep(INTERVAL)
        return True

    def count_objects(self) -> dict[str, int]:
        """Return the objects in use, by slab cache; nothing without SLUB_DEBUG."""
        lines = self.guest.shell(COUNT_OBJECTS, limit=OBJECTS_LIMIT).splitlines()
        return {name: int(count) for name, count in map(str.split, lines)}

    def left_objects(self) -> Finding | None:
        """Check that no object of a script is left; works and RCU have some time."""
        deadline = time.monotonic() + OBJECTS_LIMIT
        while True:
            left = {
                name: (self.objects.get(name, 0), count)
                for name, count in self.count_objects().items()
                if count > self.objects.get(name, 0)
            }
            if not left:
                return None
            if time.monotonic() > deadline:
                text = "; ".join(f"{name}: {was}, now {now}" for name, (was, now) in left.items())
                return Finding(f"objects stay: {', '.join(sorted(left))}", text, self.round)
            time.sleep(INTERVAL)

    def restore_device(self) -> Finding | None:
        """Bind the driver again if a script has unbound it."""
        place = f"/sys/bus/virtio/devices/{self.virtio}"
        if not self.guest.os("access", place, 0):
            config = f"/sys/bus/pci/devices/{self.port}/config"
            plug = f"printf '\\001' | dd of={config} bs=1 seek={SECONDARY_BUS} conv=notrunc"
            self.guest.shell(f"{plug} && echo 1 > /sys/bus/pci/rescan")
            self.virtio, self.pci, self.port = self.names()
            place = f"/sys/bus/virtio/devices/{self.virtio}"
        if not self.guest.os("access", f"{place}/driver", 0):
            self.guest.shell(f"echo {self.virtio} > /sys/bus/virtio/drivers/virtiofs/bind")
        return None

    def leaks(self) -> Finding | None:
        """Check that kmemleak finds no leak of all scripts so far."""
        if not self.looks_for_leaks:
            return None
        try:
            fail_on_leaks(self.guest)
        except GuestLostError:
            return self.crashed()
        except HarnessError as error:
            return Finding("leak", str(error), self.round)
        return None


def key_of(watch: Watch) -> int:
    """Return what identifies the watch in an event."""
    return watch.wd if watch.kind == "inotify" else watch.ino


def disagreements(tree: Known, watches: list[Watch]) -> list[str]:
    """Return the differences between the server's beliefs and /proc."""
    wanted: dict[int, int] = {}
    for watch in watches:
        wanted[watch.ino] = wanted.get(watch.ino, 0) | (watch.mask & PLAIN_BITS)
    found = []
    if not tree.initialized or tree.ended or not tree.negotiated & wire.FUSE_HAS_FSNOTIFY:
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
            found.append(f"unwatched events are requested: node {ino}, {extra:#x} of {mask:#x}")
        elif extra:
            found.append(f"an unwatched node is watched at the server: node {ino}, {extra:#x}")
    return found


def nodes_of(different: list[str]) -> list[int]:
    """Return the nodeids in differences."""
    return [int(each) for text in different for each in re.findall(r"\bnode (\d+)", text)]


def words_of(text: str) -> str:
    """Return the text without the parts that differ from run to run."""
    short = text.split(":")[0] if ":" in text else text
    return re.sub(r"0x[0-9a-f]+|\d+", "N", short)[:100]


def signature(line: str, context: Sequence[str] = ()) -> str:
    """Return a line of a console without the parts that differ from run to run.

    It has the function that the following trace names first.
    """
    text = re.sub(r"^\[ *[\d.]+\] ", "", line)
    for pattern in VARYING:
        text = re.sub(pattern, "", text)
    places = (re.search(r"RIP: \S+:(\w+)\+", each) for each in context)
    place = next((found[1] for found in places if found), "")
    text = re.sub(r"\b[0-9a-f]{8,}\b|\d+", "N", text)[:120]
    return f"kernel: {text} in {place}" if place and place not in text else f"kernel: {text}"


NUMBERS = itertools.count(1)


@contextmanager
def running(
    environment: Environment,
    transport: str,
    request_queues: int = 1,
    cpus: int = 2,
    leaks: bool = True,
) -> Iterator[Arena]:
    """Boot a guest with a hostile device; both end with the block.

    leaks: False turns kmemleak off, which makes the debug kernel much faster.
    """
    with contextlib.ExitStack() as stack:
        sockets = socket_folder()
        stack.callback(shutil.rmtree, sockets, ignore_errors=True)
        name = f"adversary-{os.getpid()}-{next(NUMBERS)}"
        tree = Tree(init_flags("others"), WATCHABLE)
        device = HostileDevice(tree, TAG, transport != WAIT, request_queues)
        device.start(sockets / "fs")
        stack.callback(device.stop)
        spec = replace(
            environment.testbed_spec(name, sockets),
            cpus=cpus,
            request_queues=request_queues,
            kernel_options=() if leaks else ("kmemleak=off",),
            behind_port=True,
        )
        log = paths.LOGS / f"{name}-console.log"
        vm = Vm.boot(vm_spec(spec, sockets), log, BOOT_LIMIT)
        stack.callback(vm.kill)
        yield Arena(vm, device, transport, leaks)
