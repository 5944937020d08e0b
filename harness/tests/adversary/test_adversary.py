# SPDX-License-Identifier: Apache-2.0
"""The adversary's parts without a guest: scripts, the file system's checks, the storm program."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from farwatch_harness.adversary.arena import disagreements, signature
from farwatch_harness.adversary.faults import FOLDER, PROBABILITIES, TIMES, Faults
from farwatch_harness.adversary.filesystem import ROOT, Tree
from farwatch_harness.adversary.script import (
    ACTORS_FAIL,
    FUSE_FAILS,
    Script,
    generate,
    init_flags,
)
from farwatch_harness.adversary.shrink import shrink
from farwatch_harness.adversary.storm import Watch, program
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.guest_client import Guest
from farwatchd.wire import fsnotify as wire
from farwatchd.wire import fuse
from farwatchd.wire.fuse import Opcode

WATCHABLE = 0x1FFF


@pytest.fixture
def tree() -> Tree:
    """Return a file system with a session."""
    made = Tree(init_flags("others"), WATCHABLE)
    made.handle(Opcode.INIT, 0, fuse.init_in.pack(major=7, minor=41, flags=1 << 30, flags2=1 << 24))
    return made


def look_up(tree: Tree, name: bytes) -> int:
    reply = tree.handle(Opcode.LOOKUP, ROOT, name + b"\0")
    assert reply is not None
    return int(fuse.entry_out.unpack_from(reply).nodeid)


def watch(tree: Tree, nodeid: int, mask: int) -> None:
    tree.handle(Opcode.FSNOTIFY, nodeid, wire.fsnotify_in.pack(mask=mask))


def forget(tree: Tree, nodeid: int, count: int = 1) -> None:
    tree.handle(Opcode.FORGET, nodeid, fuse.forget_in.pack(nlookup=count))


def test_seed_gives_the_same_script_each_time() -> None:
    assert generate("seed") == generate("seed")
    assert generate("seed") != generate("another")


@pytest.mark.parametrize("seed", range(30))
def test_script_survives_a_round_trip_through_json(seed: int) -> None:
    script = generate(str(seed))
    assert Script.from_json(script.to_json()) == script


@pytest.mark.parametrize(
    ("theme", "step"),
    [
        ("unplug", "poke "),
        ("unbind", "put /sys/bus/"),
        ("frozen", "frozen "),
        ("meet", "imeet "),
        ("faults", "fail 1"),
        ("kill", "kill "),
        ("reclaim", "put /proc/sys/vm/drop_caches"),
        ("fanotify", "fgroup "),
        ("unanswered", "read "),
        ("automount", "umount /run/fw/sub "),
        ("children", "stat /run/fw/many/"),
    ],
)
def test_actors_do_what_a_theme_is_about(theme: str, step: str) -> None:
    scripts = [generate(str(seed), pool=[theme]) for seed in range(40)]
    with_theme = [script for script in scripts if script.themes == [theme]]
    assert len(with_theme) > 10
    found = [
        any(
            op.startswith(step)
            for each in script.rounds
            for ops in each.actors.values()
            for op in ops
        )
        for script in with_theme
    ]
    assert sum(found) > len(found) / 2


def test_servers_restart_and_never_answer_where_a_theme_is_about_it() -> None:
    restarts = [generate(str(seed), pool=["restart"]) for seed in range(20)]
    actions = [action[1] for script in restarts for each in script.rounds for action in each.server]
    assert "restart" in actions
    never = [generate(str(seed), ["queue"], ["never"]) for seed in range(20)]
    ends = [script.rounds[-1] for script in never if script.themes]
    assert ends
    for each in ends:
        assert [lie.what for lie in each.lies.fsnotify] == ["never"]
        # Only the end of the connection ends the wait.
        assert each.actors[2][-1].startswith("put /sys/")


def test_device_goes_while_content_is_not_answered_where_themes_are_about_both() -> None:
    scripts = [generate(str(seed), ["queue"], ["never", "unanswered"]) for seed in range(40)]
    ends = [script.rounds[-1] for script in scripts if len(script.themes) == 2]
    assert ends
    for each in ends:
        assert [lie.what for lie in each.lies.data] == ["never"]
        assert ["records", "overflow"] in [action[1:3] for action in each.server]
        assert each.actors[2][-1].startswith("put /sys/")


def test_rounds_with_faults_are_saved_with_what_fails() -> None:
    scripts = [generate(str(seed), pool=["faults"]) for seed in range(40)]
    kinds = {each.faults for script in scripts for each in script.rounds}
    assert kinds == {"", ACTORS_FAIL, FUSE_FAILS}


class InjectingGuest:
    """A guest whose fault injection fails `failures` calls of each capability in a round."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.programs = 0
        self.written: dict[str, bytes] = {}

    def os(self, _name: str, _path: str, _mode: int) -> bool:
        return True

    def shell(self, script: str) -> str:
        self.programs += 1
        if "v9fs" in script:
            return "ffffffff82000000\nffffffff82000200\n"
        return "ffffffff81000000\nffffffff81000100\nffffffff8f000000\n"

    def write_file(self, path: str, data: bytes) -> None:
        self.written[path] = data

    def read_file(self, _path: str) -> bytes:
        return b"%d\n" % (TIMES - self.failures)


def test_faults_that_came_are_counted() -> None:
    guest = InjectingGuest(7)
    faults = Faults(cast(Guest, guest))
    guest.programs = 0
    faults.begin(FUSE_FAILS)
    written = {path.removeprefix(FOLDER): data for path, data in guest.written.items()}
    assert written["/failslab/require-end"] == b"0xffffffff81000100"
    # The guest's root would not work any more.
    assert written["/failslab/reject-start"] == b"0xffffffff82000000"
    assert written["/failslab/reject-end"] == b"0xffffffff82000200"
    assert written["/failslab/probability"] == b"5"
    faults.end()
    assert faults.injected == 21
    assert {
        guest.written[f"{FOLDER}/{name}/probability"] for name in PROBABILITIES[FUSE_FAILS]
    } == {b"0"}
    assert guest.programs == 0, "a new process could fail"
    faults.check()


def test_faults_that_never_come_are_an_error() -> None:
    faults = Faults(cast(Guest, InjectingGuest(0)))
    faults.check()
    faults.begin(ACTORS_FAIL)
    faults.end()
    with pytest.raises(HarnessError, match="none was injected"):
        faults.check()


def test_shrink_leaves_out_what_the_finding_does_not_need() -> None:
    script = generate("seed")
    actor, ops = max(script.rounds[1].actors.items(), key=lambda part: len(part[1]))
    needed = ops[len(ops) // 2]

    def fails(candidate: Script) -> bool:
        return any(needed in each.actors.get(actor, []) for each in candidate.rounds)

    short = shrink(script, fails, lambda: True)
    assert [each.actors for each in short.rounds] == [{actor: [needed]}]
    assert not short.rounds[0].server


def test_shrink_ends_when_its_time_is_over() -> None:
    script = generate("seed")
    assert shrink(script, lambda _candidate: True, lambda: False) == script


def test_request_for_a_forgotten_node_is_a_violation(tree: Tree) -> None:
    nodeid = look_up(tree, b"f0")
    tree.handle(Opcode.UNLINK, ROOT, b"f0\0")
    watch(tree, nodeid, 4)
    assert tree.violations == []
    forget(tree, nodeid)
    with pytest.raises(OSError, match="unknown node"):
        watch(tree, nodeid, 0)
    assert tree.violations == [f"FSNOTIFY for node {nodeid}, which was forgotten"]


def test_request_after_destroy_is_a_violation(tree: Tree) -> None:
    tree.handle(Opcode.DESTROY, 0, b"")
    tree.handle(Opcode.GETATTR, ROOT, b"")
    assert tree.violations == [f"GETATTR for node {ROOT} while there is no session"]


def test_more_forgets_than_lookups_are_a_violation(tree: Tree) -> None:
    nodeid = look_up(tree, b"f0")
    forget(tree, nodeid, 2)
    assert tree.violations == [f"FORGET of 2 lookups for node {nodeid}, 1 more than there were"]


def test_last_forget_ends_the_watch(tree: Tree) -> None:
    nodeid = look_up(tree, b"f0")
    watch(tree, nodeid, 4)
    assert tree.beliefs[nodeid].mask == 4
    forget(tree, nodeid)
    assert tree.beliefs == {}


def test_generation_that_was_watched_stays_known_when_the_watches_are_lost(tree: Tree) -> None:
    nodeid = look_up(tree, b"f0")
    watch(tree, nodeid, 4)
    tree.lose_watches()
    tree.replace_silently("f0")
    tree.watch(tree.find("f0"), 2)
    # The client still has a watch of the former object, which does not watch this one.
    assert disagreements(tree, [watched(nodeid, 6)]) == []


def watched(ino: int, mask: int) -> Watch:
    return Watch(0, 3, "inotify", 1, ino, 50, mask)


@pytest.mark.parametrize(
    ("believed", "there", "said"),
    [
        (0x6, 0x6, None),
        (0x2, 0x6, "events that are watched are not asked for"),
        (0, 0x6, "a watched node is not watched at the server"),
        (0x6, 0x2, "unwatched events are requested"),
        (0x6, 0, "an unwatched node is watched at the server"),
    ],
)
def test_wrong_belief_is_a_disagreement(
    tree: Tree, believed: int, there: int, said: str | None
) -> None:
    nodeid = look_up(tree, b"f0")
    watch(tree, nodeid, believed)
    found = disagreements(tree, [watched(nodeid, there)] if there else [])
    assert [text.split(":")[0] for text in found] == ([said] if said else [])


def test_uncertain_belief_is_not_compared(tree: Tree) -> None:
    nodeid = look_up(tree, b"f0")
    watch(tree, nodeid, 4)
    tree.doubt(nodeid)
    assert disagreements(tree, []) == []


def test_findings_of_one_kind_have_one_signature() -> None:
    one = "[   12.345678] BUG: KASAN: slab-use-after-free in fuse_notify+0x1d2/0x300"
    other = "[   99.000001] BUG: KASAN: slab-use-after-free in fuse_notify+0x1d6/0x304"
    assert signature(one) == signature(other)
    assert signature(one) != signature(one.replace("fuse_notify", "fuse_request_end"))


@pytest.fixture(scope="module")
def storm() -> Iterator["subprocess.Popen[str]"]:
    """Run the storm program, here instead of in a guest."""
    with subprocess.Popen(
        [program()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def ask(storm: "subprocess.Popen[str]", line: str, until: str) -> list[str]:
    """Write a line to the program; return its output up to the line `until`."""
    assert storm.stdin is not None
    assert storm.stdout is not None
    print(line, file=storm.stdin, flush=True)
    found: list[str] = []
    for said in storm.stdout:
        if said.strip() == until:
            return found
        found.append(said.strip())
    raise AssertionError(f"the program ended before it said '{until}'")


def test_storm_program_reports_watches(storm: "subprocess.Popen[str]", tmp_path: Path) -> None:
    ask(storm, "spawn 1 0", "ok spawn")
    ops = f"iadd 0 {tmp_path} 0x100;dnotify 7 {tmp_path} 0x4"
    ask(storm, f"do 2 {ops}", "done 2")
    found = [line.split() for line in ask(storm, "report", "ok report")]
    ino = tmp_path.stat().st_ino
    assert {(words[3], int(words[5], 0), int(words[7], 0)) for words in found} == {
        ("inotify", ino, 0x100),
        ("dnotify", ino, 0x180),
    }
    (tmp_path / "file").touch()
    assert any(line.endswith("0x100") for line in ask(storm, "heard 100", "ok heard"))
    ask(storm, "do 3 kill 1", "died 1")
    assert ask(storm, "report", "ok report") == []


def test_the_storm_program_has_two_threads_meet_at_each_file(
    storm: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    for number in range(20):
        (tmp_path / str(number)).touch()
    ask(storm, "spawn 2 0", "ok spawn")
    assert storm.stdin is not None
    print(f"do 4 imeet 0 {tmp_path} 20 add 1", file=storm.stdin, flush=True)
    ended = set(ask(storm, f"do 5 imeet 2 {tmp_path} 20 fail 2", "done 4"))
    if "done 5" not in ended:
        ask(storm, "steps", "done 5")
    inodes = [line.split()[5] for line in ask(storm, "report", "ok report") if "inotify" in line]
    assert sorted(inodes.count(each) for each in set(inodes)) == [2] * 20


def test_script_has_all_parts_of_a_round() -> None:
    script = generate("seed")
    assert replace(script, rounds=script.rounds[:1]).size == script.rounds[0].size
