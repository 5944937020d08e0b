# SPDX-License-Identifier: Apache-2.0
"""Events of shares on overlayfs, on btrfs with subvolumes, and with clones of one file system."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from farwatchd.inode_store.options import InodeFileHandles
from farwatchd.inode_store.store import InodeStore
from farwatchd.watch import fanotify_backend
from farwatchd.watch.backend_probe import WatchMode, open_backend
from farwatchd.watch.event_record import EventRecord
from farwatchd.watch.fanotify_backend import FanotifyBackend
from farwatchd.watch.options import BackendName
from farwatchd.wire.fsnotify import Event
from tests.support.watch_host import Host, by_handle

pytestmark = pytest.mark.root


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def mounted(place: Path, *options: str | Path) -> Iterator[None]:
    place.mkdir(exist_ok=True)
    run("mount", *options, place)
    try:
        yield
    finally:
        run("umount", "--lazy", place)


@pytest.fixture(params=["by descriptor", "by handle"])
def opener(request: pytest.FixtureRequest) -> Callable[[int], FanotifyBackend]:
    return by_handle(FanotifyBackend) if request.param == "by handle" else FanotifyBackend  # type: ignore[return-value]


def test_overlayfs_is_watched_in_mode_others() -> None:
    with contextlib.ExitStack() as stack:
        # An upper directory must not be on the overlayfs on which a container's /tmp is.
        base = Path("/dev/shm", f"farwatch-overlay-{os.getpid()}")
        stack.enter_context(mounted(base, "-t", "tmpfs", "none"))
        for name in ("lower", "upper", "work"):
            (base / name).mkdir()
        (base / "lower/dir").mkdir()
        layers = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
        share = base / "share"
        stack.enter_context(mounted(share, "-t", "overlay", "-o", layers, "overlay"))
        inodes = InodeStore(InodeFileHandles.PREFER)
        host = Host(
            share,
            open_backend=lambda fd: open_backend(
                BackendName.AUTO, fd, inodes, mode=WatchMode.OTHERS
            ),
        )
        stack.callback(host.close)
        assert host.backend.name == "fanotify"
        host.watch(2, share / "dir", Event.CREATE | Event.DELETE | Event.RENAME)
        (share / "dir/mine").touch()
        run("sh", "-c", 'cd "$0" && : > theirs && mv theirs moved && rm moved', share / "dir")
        assert host.records() == [
            EventRecord(2, 0, Event.CREATE, b"theirs"),
            EventRecord(2, 0, Event.RENAME, b"theirs", newdir=2, newname=b"moved"),
            EventRecord(2, 0, Event.DELETE, b"moved"),
        ]
    base.rmdir()


@pytest.fixture
def clones(tmp_path: Path) -> Iterator[Path]:
    """Yield a share with an ext4 in ``disk`` and its copy in ``clone``, a ``d`` in each."""
    share = tmp_path / "share"
    share.mkdir()
    image, copy = tmp_path / "image", tmp_path / "copy"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    run("mkfs.ext4", "-q", image)
    with mounted(share / "disk", "-o", "loop", image):
        (share / "disk/d").mkdir()
    copy.write_bytes(image.read_bytes())
    with (
        mounted(share / "disk", "-o", "loop", image),
        mounted(share / "clone", "-o", "loop", copy),
    ):
        yield share


@pytest.mark.packages
def test_clone_of_a_watched_file_system_is_refused(
    clones: Path, opener: Callable[[int], FanotifyBackend], caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(clones, 30, opener)
    host.watch(10, clones / "disk/d", Event.CREATE)
    with pytest.raises(OSError, match="clone of another file system") as caught:
        host.watch(20, clones / "clone/d", Event.CREATE)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert f"no events of the host for '{clones}/clone" in caplog.text
    (clones / "disk/d/on-disk").touch()
    (clones / "clone/d/on-clone").touch()
    assert host.records() == [EventRecord(10, 0, Event.CREATE, b"on-disk")]
    host.table.forget(10)
    # Now the clone can be watched.
    host.watch(20, clones / "clone/d", Event.CREATE)
    (clones / "clone/d/again").touch()
    assert host.records() == [EventRecord(20, 0, Event.CREATE, b"again")]
    host.table.forget(20)
    assert host.backend.count == 0
    host.close()


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Path]:
    """Yield a btrfs with subvolumes ``sub``, ``sub/nested`` and ``sub/other``, a ``d`` in each."""
    image = tmp_path / "btrfs.image"
    with image.open("wb") as file:
        file.truncate(160 << 20)
    run("mkfs.btrfs", "-q", image)
    with mounted(tmp_path / "b", "-o", "loop", image):
        for name in ("sub", "sub/nested", "sub/other"):
            run("btrfs", "-q", "subvolume", "create", tmp_path / "b" / name)
            (tmp_path / "b" / name / "d").mkdir()
        yield tmp_path / "b"


@pytest.mark.packages
@pytest.mark.parametrize("root", [".", "sub"])
def test_btrfs_subvolumes_are_watched(
    btrfs: Path, root: str, opener: Callable[[int], FanotifyBackend]
) -> None:
    host = Host(btrfs / root, 30, opener)
    places = [btrfs / name / "d" for name in ("sub/nested", "sub", "sub/other")]
    for nodeid, place in enumerate(places, start=10):
        host.watch(nodeid, place, Event.CREATE | Event.DELETE_SELF)
    for place in places:
        (place / "new").touch()
    # Events of different subvolumes are in no common order.
    assert sorted(host.records(), key=lambda record: record.nodeid) == [
        EventRecord(nodeid, 0, Event.CREATE, b"new") for nodeid in (10, 11, 12)
    ]
    (places[0] / "new").unlink()
    places[0].rmdir()
    assert host.records() == [EventRecord(10, 0, Event.DELETE_SELF | Event.ISDIR)]
    # In another order, after all marks are removed.
    host.table.reset()
    assert host.backend.count == 0
    for nodeid, place in enumerate(reversed(places[1:]), start=20):
        host.watch(nodeid, place, Event.CREATE)
        (place / "newer").touch()
        assert host.records() == [EventRecord(nodeid, 0, Event.CREATE, b"newer")]
    host.close()


@pytest.mark.packages
def test_btrfs_subvolume_without_a_group_is_refused_with_one_warning(
    btrfs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fanotify_backend, "_SPARE_GROUPS", 1)
    host = Host(btrfs / "sub", 30, partial(FanotifyBackend))
    host.watch(10, btrfs / "sub/d", Event.CREATE)
    host.watch(11, btrfs / "sub/nested/d", Event.CREATE)
    for _ in range(2):
        with pytest.raises(OSError, match="btrfs subvolume") as caught:
            host.watch(12, btrfs / "sub/other/d", Event.CREATE)
        assert caught.value.errno == errno.EOPNOTSUPP
    (warning,) = caplog.messages
    assert f"no events of the host for '{btrfs}/sub/other" in warning
    (btrfs / "sub/nested/d/new").touch()
    assert host.records() == [EventRecord(11, 0, Event.CREATE, b"new")]
    host.close()
