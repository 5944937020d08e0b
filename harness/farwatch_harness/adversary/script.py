# SPDX-License-Identifier: Apache-2.0
"""Scripts of the adversary: the actions of each side, by round, and random scripts. No I/O here.

In a round the actors of the guest and the server act concurrently; after it everything is checked.
A script is plain data, so that it can be saved, shortened and run again.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from farwatchd.wire import fsnotify as wire
from farwatchd.wire.fuse import InitFlag

MOUNT = "/run/fw"
#: Replaced by the names of the device, and of the PCIe port above it, in the guest.
VIRTIO, PCI, PORT = "@VIRTIO@", "@PCI@", "@PORT@"
#: The user of each process; two actors are the threads of one process.
USERS = (0, 0, 1000, 1001)
ACTORS = range(2 * len(USERS))
ROOT_ACTORS = (0, 1, 2, 3)
#: The transports: the notification queue, WAIT requests, or /dev/fuse in the guest.
QUEUE, WAIT, DEV_FUSE = "queue", "wait", "dev-fuse"
TRANSPORTS = (QUEUE, WAIT, DEV_FUSE)
MODES = ("others", "remote")
#: The subjects of scripts; each script has some of them.
THEMES = (
    "contention",
    "many",
    "cross",
    "submount",
    "late",
    "refused",
    "held",
    "odd answers",
    "broken wait",
    "early",
    "flood",
    "overflow",
    "malformed",
    "lost watches",
    "kill",
    "changes",
    "silent",
    "reclaim",
    "bad mounts",
    "remount",
    "unbind",
    "faults",
    "freeze",
    "frozen",
    "meet",
    "never",
    "restart",
    "unplug",
    "fanotify",
    "dnotify",
    "local",
    "dead server",
    "unanswered",
    "automount",
    "children",
)
#: Themes that need a new guest afterwards are rare.
RARE = {
    "dead server": 0.06,
    "never": 0.1,
    "unplug": 0.1,
    "meet": 0.1,
    "unbind": 0.2,
    "faults": 0.2,
    "frozen": 0.2,
    "restart": 0.2,
}
#: Themes in which a device is removed while its mount stays.
REMOVING = frozenset({"unbind", "unplug", "never"})
#: What fails in a round with faults: calls of actors that want it, or whatever calls FUSE's code.
ACTORS_FAIL, FUSE_FAILS = "actors", "fuse"
USUAL = 0.33
#: If only a few themes were chosen, each script has most of them.
FEW, FEW_USUAL = 6, 0.7
#: The number of names in the directory "many", which is for many watches.
MANY = 120
IN_BITS = [1 << bit for bit in range(12)]
IN_MODIFY, IN_ATTRIB = 0x2, 0x4
IN_MASK_CREATE, IN_MASK_ADD, IN_ONLYDIR = 0x10000000, 0x20000000, 0x01000000
FAN_BITS = (
    0x1,
    0x2,
    0x4,
    0x8,
    0x10,
    0x20,
    0x40,
    0x80,
    0x100,
    0x200,
    0x400,
    0x800,
    0x1000,
    0x10000000,
)
FAN_ATTRIB, FAN_ONDIR, FAN_EVENT_ON_CHILD = 0x4, 0x40000000, 0x08000000
#: Flags of groups: none, FAN_REPORT_REMOTE, and that with FAN_REMOTE_ONLY.
FAN_GROUPS = (0, 0x8000, 0x18000)
WATCHED = (
    "",
    "d0",
    "d1",
    "d0/e",
    "f0",
    "f1",
    "f2",
    "d0/f",
    "d1/f",
    "quiet/q0",
    "quiet/q1",
    "quiet/q2",
    "quiet",
)
SUBMOUNTED = ("sub", "sub/", "sub/.", "sub/d", "sub/f", "sub/d/f")
#: They have content at the beginning.
FILLED = ("f0", "f1", "quiet/q0", "quiet/q1")
CHANGED = ("f0", "f1", "f2", "d0/f", "d1/f", "d0/e/f", "d0/new", "d1/new", "new")
CHANGES = ("write", "read", "unlink", "mkdir", "rename", "chmod", "truncate", "ls", "stat", "open")
REFUSALS = (1, 2, 5, 12, 13, 22, 28, 95, 107)
DRIVER = "/sys/bus/virtio/drivers/virtiofs"
UNBIND, BIND = f"put {DRIVER}/unbind {VIRTIO}", f"put {DRIVER}/bind {VIRTIO}"
REMOVE, RESCAN = f"put /sys/bus/pci/devices/{PCI}/remove 1", "put /sys/bus/pci/rescan 1"
#: The number of the bus behind a port (PCI-to-PCI Bridge Architecture Specification 3.2.5.4): with
#: another one nothing answers there any more, as if the device had been pulled out.
SECONDARY_BUS = 0x19
UNPLUG = f"poke /sys/bus/pci/devices/{PORT}/config {SECONDARY_BUS} 0x7f"
PLUG = f"poke /sys/bus/pci/devices/{PORT}/config {SECONDARY_BUS} 1"


@dataclass(frozen=True)
class Lie:
    """How requests are answered: `what` happens with `probability`.

    number: its meaning depends on `what`.
    - delay: reply `number` milliseconds late.
    - error: reply with the negated errno; a negative number is no valid errno.
    - hold: reply when the server is settled.
    - never: do not reply before the connection ends.
    - partial: reply with fewer events than requested.
    - short: reply with a header alone.
    - twice: reply twice, if the transport permits it.
    """

    what: str
    probability: float
    number: int = 0


@dataclass(frozen=True)
class Lies:
    """The lies about each kind of request; `data` are READ and WRITE.

    A server on /dev/fuse has none about `wait` and `data`.
    """

    fsnotify: tuple[Lie, ...] = ()
    wait: tuple[Lie, ...] = ()
    rest: tuple[Lie, ...] = ()
    data: tuple[Lie, ...] = ()


@dataclass(frozen=True)
class Round:
    """What happens concurrently.

    actors: the operations of each actor.
    server: the server's actions, with milliseconds from the beginning.
    lies: how requests are answered.
    """

    actors: dict[int, list[str]] = field(default_factory=dict)
    server: list[list[Any]] = field(default_factory=list)
    lies: Lies = field(default_factory=Lies)
    #: What fails by itself meanwhile, where the kernel can inject faults: nothing, ACTORS_FAIL or
    #: FUSE_FAILS.
    faults: str = ""

    @property
    def size(self) -> int:
        """The number of steps."""
        return sum(map(len, self.actors.values())) + len(self.server)


@dataclass(frozen=True)
class Script:
    """A whole run, which begins and ends without a mount."""

    seed: str
    transport: str
    mode: str
    entry_valid: int
    max_background: int
    request_queues: int
    rounds: list[Round]
    themes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The number of steps."""
        return sum(each.size for each in self.rounds)

    def to_json(self) -> str:
        """Return the script as text for `from_json`."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Script":
        """Return the script that `to_json` wrote.

        ValueError, KeyError: the text is something else.
        """
        data = json.loads(text)
        rounds = [
            Round(
                {int(actor): list(ops) for actor, ops in each["actors"].items()},
                each["server"],
                Lies(
                    **{
                        kind: tuple(Lie(**lie) for lie in lies)
                        for kind, lies in each["lies"].items()
                    }
                ),
                each.get("faults", ""),
            )
            for each in data.pop("rounds")
        ]
        return cls(**data, rounds=rounds)

    @classmethod
    def load(cls, path: Path) -> "Script":
        """Read a saved script."""
        return cls.from_json(path.read_text())


def init_flags(mode: str) -> int:
    """Return the flags that the server offers in INIT."""
    flags = InitFlag.ASYNC_READ | InitFlag.BIG_WRITES | InitFlag.MAX_PAGES
    flags |= InitFlag.PARALLEL_DIROPS | InitFlag.SUBMOUNTS | InitFlag.ATOMIC_O_TRUNC
    offered = int(flags) | wire.FUSE_HAS_FSNOTIFY | wire.FUSE_HAS_FSNOTIFY_WAIT
    return offered | wire.FUSE_FSNOTIFY_OTHERS_ONLY if mode == "others" else offered


def generate(
    seed: str, transports: Sequence[str] = TRANSPORTS, pool: Sequence[str] = THEMES
) -> Script:
    """Return the script of a seed and the other arguments; the same one each time.

    pool: the themes that it may have. A known fault hides later ones, so its theme can be left out.
    """
    random = Random(seed)
    usual = USUAL if len(pool) > FEW else FEW_USUAL
    rare = RARE if len(pool) > FEW else {}
    themes = [theme for theme in THEMES if random.random() < rare.get(theme, usual)]
    themes = [theme for theme in themes if theme in pool]
    transport = random.choice(list(transports))
    maker = Maker(random, set(themes), transport)
    rounds = [maker.first()] + [maker.storm() for _ in range(random.randint(1, 4))] + [maker.last()]
    return Script(
        seed=seed,
        transport=transport,
        mode=random.choice(MODES) if random.random() < 0.5 else MODES[0],
        entry_valid=random.choice((0, 0, 1, 1000)),
        max_background=random.choice((0, 0, 2, 12)),
        request_queues=random.choice((1, 1, 2)),
        rounds=rounds,
        themes=themes,
    )


def at_most(count: int, name: str, steps: list[str]) -> list[str]:
    """Return the steps with only the first `count` of that name.

    Such a step takes as long as a hundred others.
    """
    found = []
    for step in steps:
        count -= step.startswith(f"{name} ")
        if count >= 0 or not step.startswith(f"{name} "):
            found.append(step)
    return found


class Maker:
    """Makes the rounds of one script."""

    def __init__(self, random: Random, themes: set[str], transport: str) -> None:
        self.random = random
        self.transport = transport
        self.themes = themes

    # Single steps.

    def chance(self, probability: float) -> bool:
        """Return true with this probability."""
        return self.random.random() < probability

    def mask(self) -> int:
        """Return an inotify mask, which mostly has the event of the probe."""
        found = sum(self.random.sample(IN_BITS, self.random.randint(1, 4)))
        return found | IN_ATTRIB if self.chance(0.8) else found

    def watched(self) -> str:
        """Return the path of a file to watch."""
        if "submount" in self.themes and self.chance(0.4):
            return f"{MOUNT}/{self.random.choice(SUBMOUNTED)}"
        if "contention" in self.themes and self.chance(0.8):
            return f"{MOUNT}/quiet/q0"
        return f"{MOUNT}/{self.random.choice(WATCHED)}"

    def changed(self) -> str:
        """Return the path of a file to change."""
        return f"{MOUNT}/{self.random.choice(CHANGED)}"

    def slot(self, actor: int) -> int:
        """Return a slot: 0 and 1, or 2 and 3, are a thread's own, 4 and 5 its process's."""
        return self.random.choice((0, 1, 4) if actor % 2 == 0 else (2, 3, 4))

    def inotify(self, actor: int) -> str:
        """Return an operation on an inotify instance."""
        slot = self.slot(actor)
        kind = self.random.random()
        if kind < 0.65:
            flags = self.random.choice((0, 0, 0, IN_MASK_ADD, IN_MASK_CREATE, IN_ONLYDIR))
            return f"iadd {slot} {self.watched()} {self.mask() | flags:#x}"
        if kind < 0.9:
            return f"irm {slot} {self.random.randrange(8)}"
        return f"close {slot}"

    def many(self, actor: int) -> str:
        """Return an operation on many watches."""
        count = self.random.choice((40, 80, MANY))
        return f"imany {self.slot(actor)} {MOUNT}/many {count} {self.mask():#x}"

    def cross(self, actor: int) -> str:
        """Return an operation that uses the instance of the other thread."""
        seed = self.random.getrandbits(31)
        return f"icross {self.slot(actor)} {MOUNT}/many {MANY} {seed}"

    def meeting(self, actor: int) -> str:
        """Return an operation in which both threads of a process meet."""
        role = "fail" if actor % 2 else "add"
        # A slot of the thread's own: a failing call must not use the watch of the other thread.
        slot = 2 if actor % 2 else 0
        seed = self.random.getrandbits(31)
        return f"imeet {slot} {MOUNT}/many {MANY} {role} {seed}"

    def fanotify(self, actor: int) -> str:
        """Return an operation on a fanotify group."""
        mask = sum(self.random.sample(FAN_BITS, self.random.randint(1, 4))) | FAN_ATTRIB | FAN_ONDIR
        if self.chance(0.3):
            mask |= FAN_EVENT_ON_CHILD
        if self.chance(0.1):
            return f"fgroup 6 {self.random.choice(FAN_GROUPS):#x}"
        if self.chance(0.1):
            return "close 6"
        # A slot of its own: an instance is of one kind.
        return f"fmark 6 {self.watched()} {self.random.choice(('add', 'add', 'remove'))} {mask:#x}"

    def dnotify(self, actor: int) -> str:
        """Return an operation on a dnotify watch."""
        directory = self.random.choice(("", "d0", "d1", "sub/d", "quiet"))
        # A slot of the thread's own: then only this thread changes what it watches.
        slot = 7 + actor % 2
        if self.chance(0.3):
            return f"close {slot}"
        return f"dnotify {slot} {MOUNT}/{directory} {self.random.randrange(1, 64):#x}"

    def change(self, actor: int) -> str:
        """Return an operation that changes the share."""
        kind = self.random.choice(CHANGES)
        path = self.changed()
        if kind == "rename":
            return f"rename {path} {self.changed()}"
        if kind == "chmod":
            return f"chmod {path} 0{self.random.choice(('666', '600', '777'))}"
        if kind == "truncate":
            return f"truncate {path} {self.random.randrange(5000)}"
        if kind == "mkdir":
            return f"mkdir {MOUNT}/{self.random.choice(('d0/new', 'd1/new', 'new'))}"
        if kind == "open":
            return f"open 5 {path} {self.random.choice((0, 1, 2)):#x}"
        if kind == "ls":
            return f"ls {MOUNT}/{self.random.choice(('', 'd0', 'd1', 'sub', 'sub/d', 'many'))}"
        return f"{kind} {path}"

    def reclaim(self, actor: int) -> str:
        """Return an operation that makes the kernel reclaim memory."""
        if self.chance(0.2):
            return f"eat {self.random.choice((16, 64))}"
        return f"put /proc/sys/vm/drop_caches {self.random.choice((1, 2, 3))}"

    def access(self, actor: int) -> str:
        """Return an operation that needs a file's content, or watches the file."""
        path = f"{MOUNT}/{self.random.choice(FILLED)}"
        if self.chance(0.3):
            return f"iadd {self.slot(actor)} {path} {self.mask() | IN_MODIFY:#x}"
        return f"{self.random.choice(('read', 'read', 'write'))} {path}"

    def automount(self, actor: int) -> str:
        """Return an operation that has the submount mounted, unmounted or watched again."""
        kind = self.random.random()
        if kind < 0.3 and actor in ROOT_ACTORS:
            return f"umount {MOUNT}/sub {self.flags()}"
        if kind < 0.4 and actor in ROOT_ACTORS:
            return "put /proc/sys/vm/drop_caches 2"
        if kind < 0.6:
            return f"irm {self.slot(actor)} {self.random.randrange(4)}"
        path = f"{MOUNT}/{self.random.choice(('sub/f', 'sub/d/f', 'sub/.'))}"
        if kind < 0.7:
            return f"read {path}"
        return f"iadd {self.slot(actor)} {path} {self.mask():#x}"

    def child(self, actor: int) -> str:
        """Return an operation that makes dentries of a watched directory, or ends them."""
        kind = self.random.random()
        if kind < 0.2:
            return f"iadd {self.slot(actor)} {MOUNT}/many {self.mask():#x}"
        if kind < 0.5:
            return self.many(actor)
        if kind < 0.7 and actor in ROOT_ACTORS:
            return "put /proc/sys/vm/drop_caches 2"
        name = f"many/{self.random.randrange(MANY)}"
        return f"{self.random.choice(('stat', 'stat', 'write'))} {MOUNT}/{name}"

    def mount(self) -> str:
        """Return a mount of the share."""
        return f"mount farwatch {MOUNT} virtiofs"

    def bad_mount(self) -> str:
        """Return a mount that must fail."""
        return self.random.choice(
            (
                f"mount farwatch {MOUNT} virtiofs dax=always",
                f"mount nothing {MOUNT} virtiofs",
                f"mount farwatch {MOUNT} virtiofs nonsense",
            )
        )

    def umount(self) -> str:
        """Return an unmount."""
        where = "/sub" if "submount" in self.themes and self.chance(0.5) else ""
        return f"umount {MOUNT}{where} {self.flags()}"

    def flags(self) -> int:
        """Return the flags of an unmount: MNT_DETACH, or none.

        If the device is removed, a detached mount of it cannot be distinguished from one of the
        current device.
        """
        distinct = not REMOVING & self.themes and self.transport != DEV_FUSE
        return self.random.choice((0, 0, 2)) if distinct else 0

    def sleep(self) -> str:
        """Return a sleep."""
        return f"sleep {self.random.choice((0, 100, 1000, 5000, 20000, 50000))}"

    # Parts of rounds.

    def kinds(self, actor: int) -> list[Callable[[int], str]]:
        """Return the kinds of operations of an actor; a repeated one is more frequent."""
        found: list[Callable[[int], str]] = [self.inotify, self.inotify]
        if "many" in self.themes:
            found.append(self.many)
        if "cross" in self.themes:
            found.append(self.cross)
        if "changes" in self.themes:
            found.append(self.change)
        if actor in ROOT_ACTORS:
            if "fanotify" in self.themes:
                found.append(self.fanotify)
            if "reclaim" in self.themes:
                found.append(self.reclaim)
        if "dnotify" in self.themes:
            found.append(self.dnotify)
        for theme, kind in (
            ("unanswered", self.access),
            ("automount", self.automount),
            ("children", self.child),
        ):
            if theme in self.themes:
                found += [kind, kind]
        return found

    def part(self, actor: int, most: int) -> list[str]:
        """Return the operations of one actor in a storm."""
        kinds = self.kinds(actor)
        steps = []
        for _ in range(self.random.randint(1, most)):
            if self.chance(0.15):
                steps.append(self.sleep())
            steps.append(self.random.choice(kinds)(actor))
        steps = at_most(2, "icross", at_most(3, "imany", steps))
        if "meet" in self.themes:
            # Last, so that the watches do not change afterwards.
            steps.append(self.meeting(actor))
        if "kill" in self.themes and actor in ROOT_ACTORS and self.chance(0.3):
            steps.insert(
                self.random.randrange(len(steps) + 1), f"kill {self.random.randrange(len(USERS))}"
            )
        # To let one's own calls fail takes CAP_SYS_RESOURCE.
        if "faults" in self.themes and actor in ROOT_ACTORS and self.chance(0.7):
            steps = ["fail 1", *steps, "fail 0"]
        return steps

    def mounting(self, actor: int) -> list[str]:
        """Return mounts and unmounts among other operations, for an actor of root."""
        steps = []
        if "remount" in self.themes:
            for _ in range(self.random.randint(1, 3)):
                steps += [self.sleep(), self.umount(), self.sleep(), self.mount()]
        if "bad mounts" in self.themes and self.chance(0.5):
            steps += [self.umount(), self.bad_mount(), self.mount()]
        if "unbind" in self.themes and self.chance(0.5):
            steps += self.random.choice(
                (
                    [UNBIND, self.sleep(), BIND],
                    [REMOVE, self.sleep(), RESCAN],
                    [UNBIND, self.umount(), BIND, self.mount()],
                )
            )
        if "unplug" in self.themes and self.chance(0.5):
            steps += [self.sleep(), UNPLUG, REMOVE, self.sleep(), PLUG, RESCAN, self.mount()]
        if "submount" in self.themes:
            steps += [
                f"stat {MOUNT}/sub/",
                self.sleep(),
                f"umount {MOUNT}/sub {self.random.choice((0, 2))}",
            ]
        return steps

    def lies(self) -> Lies:
        """Return the lies of a round."""
        fsnotify: list[Lie] = []
        wait: list[Lie] = []
        rest: list[Lie] = []
        if "late" in self.themes:
            fsnotify.append(
                Lie(
                    "delay",
                    self.random.choice((0.2, 0.6, 1.0)),
                    self.random.choice((1, 5, 15, 100)),
                )
            )
            if self.chance(0.3):
                rest.append(Lie("delay", 0.2, self.random.choice((1, 10))))
        if "refused" in self.themes:
            fsnotify.insert(
                0, Lie("error", self.random.choice((0.1, 0.3, 0.6)), self.random.choice(REFUSALS))
            )
        if "held" in self.themes and self.chance(0.5):
            fsnotify.insert(0, Lie("hold", self.random.choice((0.05, 0.3))))
        if "odd answers" in self.themes:
            odd = [Lie("partial", 0.3), Lie("short", 0.2), Lie("error", 0.2, -5)]
            if self.transport == DEV_FUSE:
                odd.append(Lie("twice", 0.3))
            fsnotify.insert(0, self.random.choice(odd))
        if "broken wait" in self.themes:
            wait.append(Lie("error", self.random.choice((0.3, 1.0)), self.random.choice(REFUSALS)))
        data = [Lie("hold", self.random.choice((0.05, 0.3)))] if "unanswered" in self.themes else []
        if "automount" in self.themes:
            data.append(Lie("delay", 0.5, self.random.choice((1, 5, 20))))
        return Lies(tuple(fsnotify), tuple(wait), tuple(rest), tuple(data))

    def server(self, length: int) -> list[list[Any]]:
        """Return the server's own actions within `length` milliseconds."""
        steps: list[list[Any]] = []

        def at() -> int:
            return self.random.randrange(length)

        for _ in range(self.random.randint(0, 6)):
            steps.append([at(), "records", "event", self.random.randint(1, 10), 1])
        if "flood" in self.themes:
            kind = self.random.choice(("event", "rename", "event"))
            steps.append([at(), "records", kind, 40, self.random.choice((10, 40, 150))])
        if "overflow" in self.themes:
            steps.append(
                [
                    at(),
                    "records",
                    "overflow",
                    self.random.choice((1, 10, 50)),
                    self.random.choice((1, 1, 50)),
                ]
            )
        if "malformed" in self.themes:
            for _ in range(self.random.randint(1, 5)):
                steps.append(
                    [
                        at(),
                        "records",
                        self.random.choice(("garbage", "mutant")),
                        self.random.randint(1, 5),
                        1,
                    ]
                )
            if self.chance(0.2):
                steps.append([at(), "raw", self.random.randint(0, 100)])
        if "silent" in self.themes:
            for _ in range(self.random.randint(1, 4)):
                action = self.random.choice(("remove", "replace"))
                steps.append([at(), action, self.random.choice(CHANGED)])
            steps.append([at(), "records", "delete-self", 1, 1])
            steps.append([at(), "reuse", self.random.choice((True, False))])
        if "lost watches" in self.themes:
            kind = self.random.choice(("watches-lost", "watches-lost", "watch-ended"))
            steps.append([at(), "records", kind, 1, self.random.choice((1, 1, 20))])
        if "unanswered" in self.themes:
            steps.append([at(), "records", "overflow", 1, 1])
            steps.append([at(), "records", "event", 10, 5])
        if "automount" in self.themes:
            for _ in range(5):
                steps.append([at(), "records", "watches-lost", 1, self.random.choice((1, 5))])
        if "children" in self.themes:
            steps.append([at(), "records", "overflow", 50, self.random.choice((50, 150))])
        if "restart" in self.themes and self.chance(0.5):
            steps.append([at(), "restart", self.random.choice((0, 50, 500))])
        if "freeze" in self.themes and self.chance(0.5):
            steps.append([at(), "freeze", self.random.choice((50, 500, 2000))])
        return sorted(steps, key=lambda step: int(step[0]))

    # Rounds.

    def first(self) -> Round:
        """Return the round that mounts, perhaps after faults."""
        server = []
        steps = []
        if "early" in self.themes:
            kind = self.random.choice(("event", "overflow", "mutant"))
            server = [[0, "records", kind, 1, self.random.choice((1, 20))]]
            steps.append(f"sleep {self.random.choice((0, 50000, 200000))}")
        if "bad mounts" in self.themes:
            steps += [self.bad_mount() for _ in range(self.random.randint(1, 4))]
        return Round({0: [*steps, self.mount()]}, server)

    def storm(self) -> Round:
        """Return a round in which every actor acts."""
        actors = {actor: self.part(actor, 30) for actor in ACTORS if self.chance(0.6)}
        if "meet" in self.themes:
            for actor in (4, 5, 6, 7):
                actors.setdefault(actor, self.part(actor, 5))
        mounting = self.mounting(2)
        if mounting:
            actors[2] = mounting + self.part(2, 5)
        if "frozen" in self.themes:
            for _ in range(self.random.randint(1, 3)):
                actor = self.random.choice(ROOT_ACTORS)
                pause = self.random.choice((1000, 20000, 200000))
                actors.setdefault(actor, []).insert(0, f"frozen {pause}")
                actors[actor].insert(0, self.sleep())
        return Round(actors, self.server(300), self.lies(), self.faults())

    def faults(self) -> str:
        """Return the fault injection of a round."""
        if "faults" not in self.themes:
            return ""
        return self.random.choice((ACTORS_FAIL, FUSE_FAILS))

    def last(self) -> Round:
        """Return the last round: watchers close or are killed during the unmount."""
        actors: dict[int, list[str]] = {}
        for actor in ACTORS:
            if self.chance(0.4):
                actors[actor] = self.part(actor, 10)
        end = [f"umount {MOUNT} {self.flags()}"]
        if "many" in self.themes:
            slot = self.slot(0)
            end = [f"imany {slot} {MOUNT}/many 120 {self.mask():#x}", f"close {slot}", *end]
        if "dead server" in self.themes:
            # No request is in flight: it could never be answered, with or without the patches.
            pause = f"sleep {self.random.choice((0, 50000, 300000))}"
            return Round({2: [pause, self.random.choice((UNBIND, REMOVE))]}, [[0, "kill"]])
        if "never" in self.themes:
            # Only the end of the connection ends the wait of the current watchers.
            pause = f"sleep {self.random.choice((20000, 300000))}"
            cut = "ask kill" if self.transport == DEV_FUSE else self.random.choice((UNBIND, REMOVE))
            actors[2] = [pause, cut]
            data = (Lie("never", 0.5),) if "unanswered" in self.themes else ()
            return Round(actors, self.server(100), Lies((Lie("never", 0.3),), data=data))
        actors[0] = end
        return Round(actors, self.server(100), self.lies(), self.faults())


def with_rounds(script: Script, rounds: list[Round]) -> Script:
    """Return the script with other rounds."""
    return replace(script, rounds=rounds)
