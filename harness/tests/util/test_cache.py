# SPDX-License-Identifier: Apache-2.0
"""The shared cache: complete entries, locks between processes, and keys."""

import multiprocessing
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from farwatch_harness.util import cache

LIMIT = 20.0


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def fill(folder: Path) -> None:
    (folder / "file").write_text("whole")


def test_entry_is_made_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        fill(folder)

    target = tmp_path / "things" / "one"
    assert cache.published(target, make) == cache.published(target, make) == target
    assert len(made) == 1
    assert (target / "file").read_text() == "whole"


def test_failure_leaves_no_entry_and_no_temporary_directory(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        fill(folder)
        raise KeyboardInterrupt

    target = tmp_path / "things" / "one"
    with pytest.raises(KeyboardInterrupt):
        cache.published(target, fail)
    assert list(target.parent.iterdir()) == []


def test_temporary_directory_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "things" / "one"
    leftover = target.parent / f"{cache.TEMPORARY}one-abc"
    leftover.mkdir(parents=True)
    (leftover / "file").write_text("ha")
    cache.published(target, fill)
    assert [path.name for path in target.parent.iterdir()] == ["one"]
    assert (target / "file").read_text() == "whole"


def make_slowly(target: Path, started: Event, go_on: Event) -> None:
    def make(folder: Path) -> None:
        started.set()
        assert go_on.wait(LIMIT)
        fill(folder)

    cache.published(target, make)


def make_quickly(target: Path, asked: Event, wrong: Event) -> None:
    asked.set()
    cache.published(target, lambda _folder: wrong.set())


def test_second_process_waits_and_uses_the_entry_of_the_first(tmp_path: Path) -> None:
    target = tmp_path / "things" / "one"
    context = multiprocessing.get_context("fork")
    started, go_on, asked, wrong = (context.Event() for _ in range(4))
    first = context.Process(target=make_slowly, args=(target, started, go_on))
    first.start()
    assert started.wait(LIMIT)
    second = context.Process(target=make_quickly, args=(target, asked, wrong))
    second.start()
    assert asked.wait(LIMIT)
    go_on.set()
    for process in (first, second):
        process.join(LIMIT)
        assert process.exitcode == 0
    assert not wrong.is_set()
    assert (target / "file").read_text() == "whole"


def test_content_keys_depend_on_the_boundaries_of_parts() -> None:
    assert cache.content_key("ab", "c") != cache.content_key("a", "bc")
    assert cache.content_key("a") == cache.content_key(b"a")


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    cache.write_atomically(path, b"one")
    cache.write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [item.name for item in path.parent.iterdir()] == ["file"]
