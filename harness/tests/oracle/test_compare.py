# SPDX-License-Identifier: Apache-2.0
"""The oracle itself, with this machine instead of a guest: both sides are native inotify."""

import contextlib
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from farwatch_harness.oracle.compare import (
    KNOWN_DIFFERENCES,
    Comparison,
    EventLog,
    HostWatch,
    In,
    ObservedEvent,
    coalesced,
    compare_in_the_guest,
    compare_on_the_host,
    normalize,
    watches,
)
from farwatch_harness.oracle.file_operations import (
    HOST_KINDS,
    INITIAL_FILES,
    KINDS,
    NAMES,
    choices,
    perform,
    random_script,
)
from farwatch_harness.oracle.script_runners import GuestScriptRunners, HostScriptRunners
from farwatch_harness.util import paths
from farwatch_harness.vm.guest_client import Guest, GuestInotifyEvent
from farwatch_harness.vm.testbed import Share
from tests.support.local_agent import local_agent


@pytest.fixture
def here() -> Iterator[Guest]:
    """Yield a client of an agent that runs on this machine instead of in a guest."""
    with local_agent() as client:
        yield client


def tree_after(base: Path, *script: list[str]) -> set[str]:
    """Return the names below the base after INITIAL_FILES and the script."""
    base.mkdir()
    for operation in [*INITIAL_FILES, *script]:
        perform(str(base), operation)
    return tree_of(base)


def tree_of(base: Path) -> set[str]:
    return {str(path.relative_to(base)) for path in base.rglob("*")}


def test_each_kind_of_operation_has_its_effect(tmp_path: Path) -> None:
    base = tmp_path / "base"
    assert tree_after(base) == {"d", "e", "d/sub", "d/f", "e/g", "link"}
    (base / "e/g").write_bytes(b"g")
    perform(str(base), ["exchange", "d/f", "e/g"])
    assert ((base / "d/f").read_bytes(), (base / "e/g").read_bytes()) == (b"g", b"written")
    perform(str(base), ["rename new", "d/f", "e/g"])
    assert (base / "d/f").exists()
    perform(str(base), ["link unnamed", "e", "top"])
    assert (base / "top").read_bytes() == b"unnamed"
    perform(str(base), ["write mapped", "top"])
    assert (base / "top").read_bytes() == b"mnnamed"
    perform(str(base), ["write unnamed", "e"])
    assert {path.name for path in (base / "e").iterdir()} == {"g"}


def test_what_leaves_the_share_returns_in_order(tmp_path: Path) -> None:
    base, outside = tmp_path / "base", str(tmp_path / "outside")
    tree_after(base)
    for operation in (["leave", "d"], ["leave", "e"], ["return", "e"], ["lease", "e/f"]):
        assert perform(str(base), operation, outside)
    assert tree_of(base) == {"e", "e/sub", "e/f", "link"}
    assert (base / "e/f").read_bytes() == b"leasedn"
    assert not perform(str(base), ["return", "e"], outside)
    assert perform(str(base), ["return", "d"], outside)
    assert not perform(str(base), ["return", "d"], outside)
    assert tree_of(base) == {"e", "e/sub", "e/f", "link", "d", "d/g"}


def test_impossible_operations_are_left_out(tmp_path: Path) -> None:
    before = tree_after(tmp_path / "base")
    for kind in HOST_KINDS:
        operation = [kind, *(["e/d/f"] * len(choices(kind)))]
        assert not perform(str(tmp_path / "base"), operation, str(tmp_path / "outside"))
    assert tree_of(tmp_path / "base") == before


def test_same_seed_makes_the_same_script() -> None:
    scripts = [random_script(random.Random("seed"), 1000) for _ in range(2)]
    assert scripts[0] == scripts[1]
    assert {kind for kind, *_names in scripts[0]} == set(KINDS)
    assert {name for _kind, *names in scripts[0] for name in names} >= set(NAMES)


def test_random_scripts_succeed_with_each_kind(tmp_path: Path) -> None:
    tried, done = Counter[str](), Counter[str]()
    for number in range(200):
        base = tmp_path / str(number)
        tree_after(base)
        for operation in random_script(random.Random(number), 10, HOST_KINDS):
            tried[operation[0]] += 1
            done[operation[0]] += perform(str(base), operation, str(tmp_path / "outside"))
    rare = {kind: done[kind] / tried[kind] for kind in HOST_KINDS if done[kind] < tried[kind] / 10}
    # A file seldom has the attribute that is to be removed, and seldom has something left before.
    assert rare.keys() <= {"removexattr", "return"}, rare
    assert done["removexattr"] > 0 < done["return"]


@pytest.mark.parametrize("watch", HostWatch)
def test_host_comparison_with_the_host_finds_no_difference(
    here: Guest, tmp_path: Path, watch: HostWatch
) -> None:
    threads = [
        random_script(random.Random(f"{watch}{thread}"), 60, HOST_KINDS) for thread in range(3)
    ]
    share = Share(tmp_path / "share", PurePosixPath(tmp_path / "share"))
    with contextlib.closing(HostScriptRunners(3, tmp_path / "outside")) as several:
        result = compare_on_the_host(here, share, tmp_path / "reference", threads, several, watch)
    assert not result.difference(), result.difference()
    assert len(result.native) > 50


def test_guest_comparison_with_the_host_finds_no_difference(here: Guest, tmp_path: Path) -> None:
    threads = [random_script(random.Random(thread), 60) for thread in range(3)]
    share = Share(tmp_path / "share", PurePosixPath(tmp_path / "share"))
    with contextlib.closing(GuestScriptRunners(here, 3)) as several:
        result = compare_in_the_guest(
            here, share, PurePosixPath(tmp_path / "local"), threads, several
        )
    assert not result.difference(), result.difference()
    assert len(result.native) > 50


def test_round_is_whole_script_or_one_operation_of_each_thread() -> None:
    threads = [[["read", "a"], ["read", "b"]], [["read", "c"]]]
    assert HostWatch.INOTIFY.rounds(threads) == [threads]
    assert HostWatch.FANOTIFY.rounds(threads) == [
        [[["read", "a"]], [["read", "c"]]],
        [[["read", "b"]], []],
    ]


def event(wd: int, mask: In, name: str = "", cookie: int = 0) -> GuestInotifyEvent:
    return GuestInotifyEvent(wd, int(mask), cookie, name, 0.0)


def test_normalize_removes_repeats_of_the_previous_event_only() -> None:
    modify, attrib = event(1, In.MODIFY, "x"), event(1, In.ATTRIB, "x")
    events_seen = normalize([modify, modify, attrib, modify], {1: "."})
    assert [one.what for one in events_seen] == [In.MODIFY, In.ATTRIB, In.MODIFY]


def test_normalize_numbers_moves_and_hides_names_of_unnamed_files() -> None:
    events = [
        event(1, In.MOVED_FROM, "a", 77),
        event(1, In.MOVED_TO, "b", 77),
        event(1, In.OPEN, "#4711"),
    ]
    assert normalize(events, {1: "."}) == [
        ObservedEvent(".", In.MOVED_FROM, "a", 1),
        ObservedEvent(".", In.MOVED_TO, "b", 1),
        ObservedEvent(".", In.OPEN, "#"),
    ]


def test_order_counts_within_a_thread_and_not_between_threads() -> None:
    wds = {path: wd for wd, (path, _mask) in enumerate(watches(2), 1)}
    first, second = event(wds["0/d"], In.CREATE, "x"), event(wds["1/d"], In.CREATE, "y")
    third = event(wds["1/d"], In.DELETE, "y")
    by_thread = []
    for events in ([first, second, third], [second, third, first], [third, second, first]):
        side = EventLog(list(wds.values()), 2)
        side.take(events)
        by_thread.append(side.events_seen)
    assert by_thread[0] == by_thread[1] != by_thread[2]


def test_overflow_is_added_to_each_thread() -> None:
    side = EventLog(range(1, 1 + len(watches(2))), 2)
    side.take([event(-1, In.Q_OVERFLOW)])
    assert [one.what for one in side.events_seen] == [In.Q_OVERFLOW] * 2


@pytest.mark.parametrize(
    "guest", [[], [ObservedEvent(".", In.CREATE, "a")] * 2, [ObservedEvent(".", In.DELETE, "a")]]
)
def test_lost_repeated_and_other_events_are_differences(guest: list[ObservedEvent]) -> None:
    native = [ObservedEvent(".", In.CREATE, "a")]
    assert Comparison(native, native).difference() == ""
    assert "part at event" in Comparison(native, guest).difference()


def test_documents_list_the_known_differences_of_the_oracle() -> None:
    listed = (
        (paths.CHECKOUT / "docs" / "modes.md")
        .read_text()
        .partition("\n## Differences from a local file system\n")[2]
        .partition("\n## ")[0]
        .partition("\n\n- ")[2]
    )
    bullets = {" ".join(bullet.split()) for bullet in listed.strip().split("\n- ")}
    assert bullets == {f"{known.what}: {known.why}." for known in KNOWN_DIFFERENCES}


def test_coalesced_joins_events_of_one_object_and_nothing_else() -> None:
    opened, written, closed = (
        ObservedEvent("d", what, "f") for what in (In.OPEN, In.MODIFY, In.CLOSE_WRITE)
    )
    made = ObservedEvent("d", In.CREATE, "n")
    # All events of one object stand together, each type once.
    assert coalesced([opened, made, written, closed]) == coalesced([opened, written, closed, made])
    assert coalesced([opened, written, opened]) == coalesced([opened, written])
    # No event is missing, and neither events of another object nor renames move.
    assert coalesced([opened, written, closed]) != coalesced([opened, closed])
    assert coalesced([made, opened]) != coalesced([opened, made])
    moves = [
        ObservedEvent("d", In.MOVED_FROM, "f", 1),
        ObservedEvent("d", In.MOVED_TO, "g", 1),
        ObservedEvent("d", In.MOVED_FROM, "f", 2),
    ]
    assert coalesced([opened, *moves, closed])[-3:] == moves
