# SPDX-License-Identifier: Apache-2.0
"""Inodes are found in the whole share by what identifies them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.migration.path_search import find_paths
from farwatchd.passthrough.procfd import ProcFd
from farwatchd.state_dir.places import PlaceIdentity, Places
from tests.support.passthrough_share import open_descriptors


class SearchedShare:
    """A directory, and identities of what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_PATH)
        self.places = Places(lambda: self.fd, ProcFd())

    def identity(self, name: str) -> PlaceIdentity:
        fd = os.open(self.path / name, os.O_PATH | os.O_NOFOLLOW)
        try:
            return self.places.identity(fd)
        finally:
            os.close(fd)

    def find(self, *identities: PlaceIdentity) -> dict[int, bytes]:
        return find_paths(self.places, self.fd, dict(enumerate(identities)))


@pytest.fixture
def share(tmp_path: Path) -> Iterator[SearchedShare]:
    shared = tmp_path / "shared"
    (shared / "a" / "b").mkdir(parents=True)
    (shared / "a" / "b" / "file").touch()
    (shared / "a" / "link").symlink_to("b")
    (shared / "other").touch()
    share = SearchedShare(shared)
    yield share
    os.close(share.fd)


def test_files_directories_and_links_are_found(share: SearchedShare) -> None:
    names = ["a/b/file", "a/b", "a/link", "other"]
    found = share.find(*map(share.identity, names))
    assert found == dict(enumerate(name.encode() for name in names))


def test_renamed_file_is_found_where_it_is(share: SearchedShare) -> None:
    wanted = share.identity("other")
    (share.path / "other").rename(share.path / "a" / "new")
    (share.path / "other").touch()
    assert share.find(wanted) == {0: b"a/new"}


def test_deleted_file_is_not_found(share: SearchedShare) -> None:
    wanted = share.identity("other")
    (share.path / "other").unlink()
    assert share.find(wanted, share.identity("a")) == {1: b"a"}


def test_other_file_with_the_same_number_is_not_found(share: SearchedShare) -> None:
    wanted = share.identity("other")._replace(birth=1)
    assert share.find(wanted) == {}


def test_file_outside_is_not_found_by_a_link_to_it(share: SearchedShare, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").touch()
    (share.path / "way").symlink_to(tmp_path / "outside")
    assert share.find(share.identity("../outside/file")) == {}


def test_directory_that_cannot_be_read_is_passed_over(share: SearchedShare) -> None:
    wanted = share.identity("other")
    (share.path / "a").chmod(0)
    assert share.find(wanted) == {0: b"other"}
    (share.path / "a").chmod(0o755)


#: Fewer than descriptors may be open.
DEPTH = 600


@pytest.fixture
def few_nested_calls() -> Iterator[None]:
    """Permit fewer nested calls than DEPTH."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(DEPTH - 100)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.usefixtures("few_nested_calls")
def test_file_in_a_deep_directory_is_found(share: SearchedShare) -> None:
    fd = os.open(share.path, os.O_PATH)
    for _ in range(DEPTH):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = below
    file = os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    wanted = share.places.identity(file)
    os.close(file)
    os.close(fd)
    before = open_descriptors()
    assert share.find(wanted) == {0: b"d/" * DEPTH + b"file"}
    assert open_descriptors() == before
