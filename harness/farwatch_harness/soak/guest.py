# SPDX-License-Identifier: Apache-2.0
"""The soak's programs in the guest: watchers of the numbered streams, and a writer of one.

    steady DIR FIRST            watches a stream that the host writes, says each marker it sees,
    ends upon any input own DIR FIRST SECONDS       lets a process of its own write a stream, and
    watches it passing SECONDS SEED DIR... watchers that come and go

FIRST is the number of the stream's next file. Each says "ready" first; its last line is JSON:
{"tally": {...}, "notes": [...]} or {"error": "..."}.
"""

import contextlib
import dataclasses
import json
import select
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from farwatch_harness.oracle.native_inotify import In, NativeInotify
from farwatch_harness.oracle.script_runners import HostScriptRunners
from farwatch_harness.soak.stream import (
    ALL,
    MARKER,
    Account,
    Counter,
    Judge,
    Kind,
    burst,
    mask_of,
    not_begun,
)
from farwatch_harness.util.errors import HarnessError

#: Seconds without an event after which a stream that should go on is taken for dead.
LIMIT = 60.0
#: Seconds in which an event would come that should not.
LATE = 0.2
BURST = 50
#: A marker comes and goes.
MARKER_EVENTS = 2
#: What watchers that come and go watch for.
CHOICES: Sequence[Sequence[Kind]] = (
    ALL,
    (Kind.CREATED,),
    (Kind.LEFT, Kind.CAME),
    (Kind.CREATED, Kind.DELETED),
)
#: Seconds that one of them stays at most.
STAY = 0.5
MOST_DIRECTORIES = 3


def steady(directory: Path, first: int, account: Account) -> None:
    """Watches a stream that another writes, until told to end."""
    judge = Judge(first)
    with NativeInotify() as native:
        native.add(directory, mask_of(ALL))
        print("ready", flush=True)
        while True:
            ready = select.select([native.fd, sys.stdin], [], [], LIMIT)[0]
            if not ready:
                raise HarnessError(f"no event in {directory} for {LIMIT:.0f} s")
            # Told to end when all has been seen: what still comes is too much.
            events = native.read_ready(LATE if sys.stdin in ready else 0)
            for event in events:
                if (marker := judge.see(event)) and event.mask & In.DELETE:
                    print(marker, flush=True)
            if sys.stdin in ready and not events:
                account.add(directory.name, judge)
                return


def own(directory: Path, first: int, seconds: float, account: Account) -> None:
    """Writes a stream for so long, and watches it."""
    judge = Judge(first)
    end = time.monotonic() + seconds
    with (
        NativeInotify() as native,
        contextlib.closing(HostScriptRunners(1)) as runners,
        contextlib.closing(Counter(directory)) as counter,
    ):
        native.add(directory, mask_of(ALL))
        print("ready", flush=True)
        while time.monotonic() < end:
            counter.set(first + BURST)
            runners.start([[(directory, burst(first, BURST))]])
            first += BURST
            markers = 0
            while markers < MARKER_EVENTS:
                events = native.read_ready(LIMIT)
                if not events:
                    raise HarnessError(f"no event in {directory} for {LIMIT:.0f} s")
                markers += sum(judge.see(event) == f"{MARKER}{first}" for event in events)
            runners.finish(1)
    account.add(directory.name, judge)


def passing(seconds: float, random: Random, directories: Sequence[Path], account: Account) -> None:
    """Watchers that come and go for so long, each on some of the directories, for some of the
    events."""
    end = time.monotonic() + seconds
    print("ready", flush=True)
    while time.monotonic() < end:
        count = random.randint(1, min(MOST_DIRECTORIES, len(directories)))
        passer(random, random.sample(list(directories), count), account)


def passer(random: Random, directories: Sequence[Path], account: Account) -> None:
    """One watcher: comes, reads for a while, takes one of its watches away, reads on, and goes with
    events unread."""
    removed = None
    with NativeInotify() as native:
        judges = {}
        for directory in directories:
            kinds = random.choice(CHOICES)
            wd = native.add(directory, mask_of(kinds))
            judges[wd] = directory.name, Judge(not_begun(directory), kinds)
        for stay in (random.uniform(0, STAY), random.uniform(0, STAY)):
            end = time.monotonic() + stay
            while (left := end - time.monotonic()) > 0:
                for event in native.read_ready(left):
                    if event.mask & In.IGNORED and event.wd == removed:
                        continue
                    _name, judge = judges.get(event.wd) or next(iter(judges.values()))
                    judge.see(event)
            if removed is None:
                removed = random.choice(list(judges))
                native.remove(removed)
    for name, judge in judges.values():
        account.add(name, judge)


def main(arguments: Sequence[str]) -> None:
    """Runs the program that is asked for."""
    kind, *words = arguments
    account = Account()
    try:
        if kind == "steady":
            steady(Path(words[0]), int(words[1]), account)
        elif kind == "own":
            own(Path(words[0]), int(words[1]), float(words[2]), account)
        else:
            passing(float(words[0]), Random(words[1]), [Path(word) for word in words[2:]], account)
        print(json.dumps(dataclasses.asdict(account)), flush=True)
    except (HarnessError, OSError) as error:
        print(json.dumps({"error": f"{kind}: {error}"}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
