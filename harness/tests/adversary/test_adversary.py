# SPDX-License-Identifier: Apache-2.0
"""The adversary without a guest: its scripts, their shortening, its file system, and what it
compares."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from farwatch_harness.adversary.arena import disagreements, signature
from farwatch_harness.adversary.filesystem import ROOT, Tree
from farwatch_harness.adversary.script import Script, generate, init_flags
from farwatch_harness.adversary.shrink import shrink
from farwatch_harness.adversary.storm import Watch, program
from farwatchd.wire import fsnotify as wire
from farwatchd.wire import fuse
from farwatchd.wire.fuse import Opcode

WATCHABLE = 0x1FFF


@pytest.fixture
def tree() -> Tree:
    """A file system with a session."""
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


def test_a_seed_gives_the_same_script_each_time() -> None:
    assert generate("seed") == generate("seed")
    assert generate("seed") != generate("another")


@pytest.mark.parametrize("seed", range(30))
def test_a_script_that_was_saved_is_the_same_when_it_is_read(seed: int) -> None:
    script = generate(str(seed))
    assert Script.from_json(script.to_json()) == script


def test_what_is_not_needed_for_a_finding_is_left_out() -> None:
    script = generate("seed")
    actor, ops = max(script.rounds[1].actors.items(), key=lambda part: len(part[1]))
    needed = ops[len(ops) // 2]

    def fails(candidate: Script) -> bool:
        return any(needed in each.actors.get(actor, []) for each in candidate.rounds)

    short = shrink(script, fails, lambda: True)
    assert [each.actors for each in short.rounds] == [{actor: [needed]}]
    assert not short.rounds[0].server


def test_shortening_ends_when_its_time_is_over() -> None:
    script = generate("seed")
    assert shrink(script, lambda _candidate: True, lambda: False) == script


def test_a_request_for_a_node_that_was_forgotten_is_noticed(tree: Tree) -> None:
    nodeid = look_up(tree, b"f0")
    tree.handle(Opcode.UNLINK, ROOT, b"f0\0")
    watch(tree, nodeid, 4)
    assert tree.violations == []
    forget(tree, nodeid)
    with pytest.raises(OSError, match="unknown node"):
        watch(tree, nodeid, 0)
    assert tree.violations == [f"FSNOTIFY for node {nodeid}, which was forgotten"]


def test_a_request_after_destroy_is_noticed(tree: Tree) -> None:
    tree.handle(Opcode.DESTROY, 0, b"")
    tree.handle(Opcode.GETATTR, ROOT, b"")
    assert tree.violations == [f"GETATTR for node {ROOT} while there is no session"]


def test_more_forgets_than_lookups_are_noticed(tree: Tree) -> None:
    nodeid = look_up(tree, b"f0")
    forget(tree, nodeid, 2)
    assert tree.violations == [f"FORGET of 2 lookups for node {nodeid}, 1 more than there were"]


def test_the_last_forget_ends_what_is_watched(tree: Tree) -> None:
    nodeid = look_up(tree, b"f0")
    watch(tree, nodeid, 4)
    assert tree.beliefs[nodeid].mask == 4
    forget(tree, nodeid)
    assert tree.beliefs == {}


def watched(ino: int, mask: int) -> Watch:
    return Watch(0, 3, "inotify", 1, ino, 50, mask)


@pytest.mark.parametrize(
    ("believed", "there", "said"),
    [
        (0x6, 0x6, None),
        (0x2, 0x6, "events that are watched are not asked for"),
        (0, 0x6, "a watched node is not watched at the server"),
        (0x6, 0x2, "events that nobody watches are asked for"),
        (0x6, 0, "a node that nobody watches is watched at the server"),
    ],
)
def test_a_belief_that_differs_is_noticed(
    tree: Tree, believed: int, there: int, said: str | None
) -> None:
    nodeid = look_up(tree, b"f0")
    watch(tree, nodeid, believed)
    found = disagreements(tree, [watched(nodeid, there)] if there else [])
    assert [text.split(":")[0] for text in found] == ([said] if said else [])


def test_a_belief_that_the_client_cannot_know_is_not_compared(tree: Tree) -> None:
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
    """The storm program, here instead of in a guest."""
    with subprocess.Popen(
        [program()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def ask(storm: "subprocess.Popen[str]", line: str, until: str) -> list[str]:
    """Gives the program a line and returns what it says up to the line `until`."""
    assert storm.stdin is not None
    assert storm.stdout is not None
    print(line, file=storm.stdin, flush=True)
    found: list[str] = []
    for said in storm.stdout:
        if said.strip() == until:
            return found
        found.append(said.strip())
    raise AssertionError(f"the program ended before it said '{until}'")


def test_the_storm_program_reports_what_is_watched(
    storm: "subprocess.Popen[str]", tmp_path: Path
) -> None:
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


def test_a_script_keeps_what_a_round_is_made_of() -> None:
    script = generate("seed")
    assert replace(script, rounds=script.rounds[:1]).size == script.rounds[0].size
