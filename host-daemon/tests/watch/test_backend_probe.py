# SPDX-License-Identifier: Apache-2.0
"""Probing opens a usable back end, or explains in one line why there is none, and leaks nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.inode_store.store import InodeStore
from farwatchd.linux.fanotify import Fanotify
from farwatchd.linux.inotify import Inotify
from farwatchd.watch.backend_probe import BackendUnavailableError, WatchMode, open_backend
from farwatchd.watch.options import BackendName
from tests.support.passthrough_share import open_descriptors


@pytest.fixture
def root_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_PATH)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("choice", "mode", "name"),
    [
        (BackendName.AUTO, WatchMode.REMOTE, "inotify"),
        (BackendName.INOTIFY, WatchMode.REMOTE, "inotify"),
        (BackendName.FANOTIFY, WatchMode.REMOTE, "fanotify"),
        (BackendName.AUTO, WatchMode.OTHERS, "fanotify"),
        (BackendName.FANOTIFY, WatchMode.OTHERS, "fanotify"),
    ],
)
def test_working_back_end_is_opened_without_a_watch(
    choice: BackendName, mode: WatchMode, name: str, root_fd: int
) -> None:
    before = open_descriptors()
    backend = open_backend(choice, root_fd, InodeStore(), mode=mode)
    assert backend.name == name
    assert backend.count == 0
    assert backend.others_only == (mode is WatchMode.OTHERS)
    backend.close()
    backend.close()
    assert open_descriptors() <= before


def test_inotify_cannot_serve_mode_others(root_fd: int) -> None:
    with pytest.raises(BackendUnavailableError, match="mode others needs fanotify"):
        open_backend(BackendName.INOTIFY, root_fd, InodeStore(), mode=WatchMode.OTHERS)


@pytest.mark.parametrize("choice", BackendName)
def test_missing_proc_is_an_error_of_one_line(
    choice: BackendName, root_fd: int, tmp_path: Path
) -> None:
    before = open_descriptors()
    with pytest.raises(BackendUnavailableError, match="is /proc mounted") as caught:
        open_backend(choice, root_fd, InodeStore(), lambda fd: f"{tmp_path}/no-proc/{fd}")
    assert "\n" not in str(caught.value)
    assert open_descriptors() <= before


@pytest.mark.parametrize(
    ("choice", "number", "advice"),
    [
        (BackendName.INOTIFY, errno.ENOSPC, "max_user_watches"),
        (BackendName.INOTIFY, errno.EIO, "Input/output error"),
        (BackendName.FANOTIFY, errno.ENOSPC, "max_user_marks"),
        (BackendName.FANOTIFY, errno.ENODEV, "its file system has no id"),
        (BackendName.FANOTIFY, errno.EXDEV, "btrfs subvolume"),
        (BackendName.FANOTIFY, errno.EOPNOTSUPP, "no file handles"),
        (BackendName.AUTO, errno.EPERM, "inotify: .*; nor with fanotify: "),
    ],
)
def test_refused_watch_names_the_remedy(
    root_fd: int, monkeypatch: pytest.MonkeyPatch, choice: BackendName, number: int, advice: str
) -> None:
    def refuse(_self: object, _path: str, _mask: int) -> int:
        raise OSError(number, "refused")

    before = open_descriptors()
    monkeypatch.setattr(Inotify, "add", refuse)
    monkeypatch.setattr(Fanotify, "add", refuse)
    with pytest.raises(BackendUnavailableError, match=advice):
        open_backend(choice, root_fd, InodeStore())
    assert open_descriptors() <= before


def test_fanotify_is_used_when_inotify_has_no_watch_left(
    root_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: Inotify, _path: str, _mask: int) -> int:
        raise OSError(errno.ENOSPC, "refused")

    monkeypatch.setattr(Inotify, "add", refuse)
    backend = open_backend(BackendName.AUTO, root_fd, InodeStore())
    assert backend.name == "fanotify"
    assert not backend.others_only
    backend.close()
