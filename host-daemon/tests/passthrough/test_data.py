# SPDX-License-Identifier: Apache-2.0
"""Contents of files through the passthrough file system, and by the same calls on the host."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from farwatchd.fuse.filesystem import ROOT, Changes
from farwatchd.passthrough import data
from farwatchd.passthrough.options import Cache, ShareOptions
from farwatchd.wire.fuse import OpenFlag
from tests.support.passthrough_share import (
    DAEMON,
    IS_ROOT,
    SharedDirectory,
    done,
    errno_of,
    settled,
)

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
FAR = 2**64 - 4096
#: Seconds.
LIMIT = 10


@pytest.fixture
def share(tmp_path: Path) -> Iterator[SharedDirectory]:
    share = SharedDirectory(tmp_path)
    yield share
    share.close()


def test_data_is_read_and_written_by_iovecs_at_any_offset(share: SharedDirectory) -> None:
    entry, opened = share.create(b"file")
    assert share.write(entry.nodeid, opened.fh, 0, b"hello ", b"", b"world") == 11
    assert share.write(entry.nodeid, opened.fh, 5000, b"far") == 3
    assert (share.path / "file").read_bytes() == b"hello world" + bytes(4989) + b"far"
    assert share.read(entry.nodeid, opened.fh, 3, 2, 3, 1) == b"lo wor"
    assert share.read(entry.nodeid, opened.fh, 5001, 100, 100) == b"ar"
    assert share.read(entry.nodeid, opened.fh, 5003, 100) == b""
    assert share.read(entry.nodeid, opened.fh, 9000, 100) == b""
    assert share.read(entry.nodeid, opened.fh, 0) == b""


def test_iovec_longer_than_iov_max_is_transferred(share: SharedDirectory) -> None:
    entry, opened = share.create(b"file")
    buffers = [bytes([number % 251]) * 3 for number in range(2500)]
    assert share.write(entry.nodeid, opened.fh, 7, *buffers) == 7500
    assert (share.path / "file").read_bytes()[7:] == b"".join(buffers)
    assert share.read(entry.nodeid, opened.fh, 7, *[3] * 2500) == b"".join(buffers)
    assert share.read(entry.nodeid, opened.fh, 7 + 4500, *[3] * 2500) == b"".join(buffers[1500:])


def test_only_what_was_asked_for_is_touched_in_the_buffers(share: SharedDirectory) -> None:
    (share.path / "file").write_bytes(b"abc")
    nodeid, fh = share.open("file", os.O_RDONLY)
    memory = bytearray(b"." * 10)
    assert share.fs.read(nodeid, fh, 0, [memoryview(memory)[2:4], memoryview(memory)[6:8]], 4) == 3
    assert memory == b"..ab..c..."


def test_offsets_out_of_range_are_the_kernel_s_errors(share: SharedDirectory) -> None:
    entry, opened = share.create(b"file")
    nodeid, fh, fs = entry.nodeid, opened.fh, share.fs
    assert errno_of(share.read, nodeid, fh, FAR, 10) == errno.EINVAL
    assert errno_of(share.write, nodeid, fh, FAR, b"x") == errno.EINVAL
    assert errno_of(share.write, nodeid, fh, 2**63 - 1, b"x") in (errno.EFBIG, errno.EINVAL)
    assert errno_of(fs.fallocate, nodeid, fh, 0, FAR, 10, False) == errno.EINVAL
    assert errno_of(fs.fallocate, nodeid, fh, 0, 0, 0, False) == errno.EINVAL
    assert errno_of(fs.lseek, nodeid, fh, FAR, os.SEEK_SET) == errno.EINVAL
    assert errno_of(fs.lseek, nodeid, fh, 0, 77) == errno.EINVAL
    assert errno_of(fs.setattr, nodeid, Changes(size=FAR)) == errno.EINVAL
    assert errno_of(fs.copy_file_range, nodeid, fh, FAR, nodeid, fh, 0, 10, False) in (
        errno.EINVAL,
        errno.EOVERFLOW,
    )


def test_unknown_fh_and_fh_of_another_inode_are_ebadf(share: SharedDirectory) -> None:
    first, first_opened = share.create(b"first")
    second, _ = share.create(b"second")
    fs, fh = share.fs, first_opened.fh
    for nodeid, handle in ((first.nodeid, 999), (second.nodeid, fh), (999, fh)):
        assert errno_of(share.read, nodeid, handle, 0, 1) == errno.EBADF
        assert errno_of(share.write, nodeid, handle, 0, b"x") == errno.EBADF
        assert errno_of(fs.flush, nodeid, handle) == errno.EBADF
        assert errno_of(fs.release, nodeid, handle) == errno.EBADF
        assert errno_of(fs.fsync, nodeid, handle, False) == errno.EBADF
        assert errno_of(fs.readdir, nodeid, handle, 0) == errno.EBADF
        assert errno_of(fs.getattr, nodeid, handle) in (errno.EBADF, errno.ESTALE)
    fs.release(first.nodeid, fh)
    assert errno_of(fs.release, first.nodeid, fh) == errno.EBADF


def test_fh_has_only_the_access_mode_of_open(share: SharedDirectory) -> None:
    (share.path / "file").write_bytes(b"abc")
    nodeid, reading = share.open("file", os.O_RDONLY)
    _, writing = share.open("file", os.O_WRONLY)
    assert errno_of(share.write, nodeid, reading, 0, b"x") == errno.EBADF
    assert errno_of(share.read, nodeid, writing, 0, 1) == errno.EBADF


def test_appending_appends_on_the_host(share: SharedDirectory) -> None:
    (share.path / "file").write_bytes(b"abc")
    nodeid, fh = share.open("file", os.O_WRONLY | os.O_APPEND)
    share.write(nodeid, fh, 0, b"def")
    assert (share.path / "file").read_bytes() == b"abcdef"


@pytest.mark.parametrize("by_create", [False, True], ids=["open", "create"])
@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "O_DIRECT"])
def test_page_of_the_guests_cache_is_written_where_it_was(
    tmp_path: Path, by_create: bool, direct: bool
) -> None:
    share = SharedDirectory(tmp_path, ShareOptions(allow_direct_io=True))
    flags = os.O_RDWR | os.O_APPEND | (os.O_DIRECT if direct else 0)
    if by_create:
        entry, opened = share.create(b"file", flags=flags)
        nodeid, fh = entry.nodeid, opened.fh
    else:
        (tmp_path / "file").touch()
        nodeid, fh = share.open("file", flags)
    (tmp_path / "file").write_bytes(b"abcdef")
    assert share.write(nodeid, fh, 2, b"XY", cached=True) == 2
    assert share.write(nodeid, fh, 0, *[b"."] * 2000, cached=True) == 2000
    assert (tmp_path / "file").read_bytes() == b"." * 2000
    share.close()


def test_appending_goes_to_the_end_that_the_host_knows(share: SharedDirectory) -> None:
    nodeid, fh = share.open_made("file", os.O_WRONLY | os.O_APPEND)
    buffers = [b"ab"] * 2000
    assert share.write(nodeid, fh, 0, b"one") == 3
    with (share.path / "file").open("ab") as host:
        host.write(b"host")
    assert share.write(nodeid, fh, 3, *buffers) == 4000
    assert share.write(nodeid, fh, 0, b"!", kill_suidgid=True) == 1
    assert (share.path / "file").read_bytes() == b"onehost" + b"ab" * 2000 + b"!"


def test_copying_into_a_file_opened_to_append_is_refused(share: SharedDirectory) -> None:
    nodeid, fh = share.open_made("file", os.O_RDWR | os.O_APPEND)
    arguments = (nodeid, fh, 0, nodeid, fh, 10, 5, False)
    assert errno_of(share.fs.copy_file_range, *arguments) == errno.EBADF


@pytest.mark.root
def test_append_only_file_can_be_appended_to_and_nothing_else(tmp_path: Path) -> None:
    share = SharedDirectory(tmp_path)
    (tmp_path / "file").write_bytes(b"abc")
    if subprocess.run(["chattr", "+a", tmp_path / "file"], check=False).returncode:
        pytest.skip("the file system has no append-only files")
    try:
        nodeid, fh = share.open("file", os.O_WRONLY | os.O_APPEND)
        assert share.write(nodeid, fh, 0, b"d") == 1
        assert errno_of(share.write, nodeid, fh, 0, b"X") == 0
        with pytest.raises(PermissionError):
            share.write(nodeid, fh, 0, b"X", cached=True)
        assert (tmp_path / "file").read_bytes() == b"abcdX"
        with pytest.raises(PermissionError):
            share.open("file", os.O_WRONLY)
    finally:
        subprocess.run(["chattr", "-a", tmp_path / "file"], check=True)
        share.close()


def test_write_only_files_are_readable_and_append_is_the_guest_s_with_writeback(
    share: SharedDirectory,
) -> None:
    (share.path / "file").write_bytes(b"abc")
    share.fs.set_negotiated(posix_acls=False, writeback=True)
    nodeid, fh = share.open("file", os.O_WRONLY | os.O_APPEND)
    share.write(nodeid, fh, 0, b"d")
    assert share.read(nodeid, fh, 0, 10) == b"dbc"
    share.fs.set_negotiated(posix_acls=False, writeback=False)
    nodeid, fh = share.open("file", os.O_WRONLY | os.O_APPEND)
    share.write(nodeid, fh, 0, b"e")
    assert errno_of(share.read, nodeid, fh, 0, 10) == errno.EBADF
    assert (share.path / "file").read_bytes() == b"dbce"


def test_open_truncates(share: SharedDirectory) -> None:
    (share.path / "file").write_bytes(b"abc")
    share.open("file", os.O_WRONLY | os.O_TRUNC)
    assert (share.path / "file").read_bytes() == b""


def test_flags_that_are_not_for_the_host_do_not_reach_it(share: SharedDirectory) -> None:
    (share.path / "file").write_bytes(b"abc")
    everything = ~(os.O_ACCMODE | os.O_TRUNC | os.O_APPEND) & 0xFFFFFFFF
    nodeid, fh = share.open("file", os.O_RDWR | everything)
    assert share.write(nodeid, fh, 1, b"x") == 1
    assert share.read(nodeid, fh, 0, 10) == b"axc"


@pytest.mark.parametrize(("allowed", "on_host"), [(False, 0), (True, os.O_DIRECT)])
def test_direct_io_reaches_the_host_only_if_allowed(
    tmp_path: Path, allowed: bool, on_host: int
) -> None:
    (tmp_path / "file").write_bytes(bytes(8192))
    share = SharedDirectory(tmp_path, ShareOptions(allow_direct_io=allowed))

    def read_unaligned_on_host() -> None:
        fd = os.open(tmp_path / "file", os.O_RDONLY | on_host)
        try:
            os.preadv(fd, [bytearray(100)], 1)
        finally:
            os.close(fd)

    def read_unaligned() -> None:
        nodeid, fh = share.open("file", os.O_RDONLY | os.O_DIRECT)
        share.read(nodeid, fh, 1, 100)

    assert errno_of(read_unaligned) == errno_of(read_unaligned_on_host)
    share.close()


@pytest.mark.parametrize(
    ("cache", "seconds", "file", "directory"),
    [
        (Cache.NEVER, 0, OpenFlag.DIRECT_IO, OpenFlag(0)),
        (Cache.AUTO, 1, OpenFlag(0), OpenFlag(0)),
        (Cache.METADATA, 86400, OpenFlag.DIRECT_IO, OpenFlag.CACHE_DIR | OpenFlag.KEEP_CACHE),
        (Cache.ALWAYS, 86400, OpenFlag.KEEP_CACHE, OpenFlag.CACHE_DIR | OpenFlag.KEEP_CACHE),
    ],
)
def test_cache_option_decides_timeouts_and_open_flags(
    tmp_path: Path, cache: Cache, seconds: float, file: OpenFlag, directory: OpenFlag
) -> None:
    share = SharedDirectory(tmp_path, ShareOptions(cache=cache))
    _, opened = share.create(b"file")
    assert share.fs.timeout == seconds
    assert (opened.flags, share.fs.opendir(ROOT, 0).flags) == (file, directory)
    share.close()


def test_lseek_finds_data_and_holes_as_on_the_host(share: SharedDirectory) -> None:
    path = share.path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"data")
    nodeid, fh = share.open("sparse", os.O_RDONLY)
    host = os.open(path, os.O_RDONLY)
    for whence in (os.SEEK_DATA, os.SEEK_HOLE, os.SEEK_END, os.SEEK_SET):
        for offset in (0, 100, 1 << 19, (1 << 19) + 8192):
            expected = errno_of(os.lseek, host, offset, whence)
            assert errno_of(share.fs.lseek, nodeid, fh, offset, whence) == expected
            if not expected:
                assert share.fs.lseek(nodeid, fh, offset, whence) == os.lseek(host, offset, whence)
    assert errno_of(share.fs.lseek, nodeid, fh, 1 << 21, os.SEEK_DATA) == errno.ENXIO
    os.close(host)


def test_cached_data_of_any_size_is_written_through_a_direct_handle(tmp_path: Path) -> None:
    share = SharedDirectory(tmp_path, ShareOptions(allow_direct_io=True))
    (tmp_path / "file").write_bytes(bytes(10_000))
    nodeid, fh = share.open("file", os.O_RDWR | os.O_DIRECT)
    assert share.write(nodeid, fh, 5000, b"unaligned", cached=True) == 9
    assert (tmp_path / "file").read_bytes()[5000:5009] == b"unaligned"
    # Everything else is the guest's own, and stays direct.
    flags = fcntl.fcntl(share.passthrough.share.open_files.fd(nodeid, fh), fcntl.F_GETFL)
    assert flags & os.O_DIRECT
    share.close()


def test_pages_are_written_by_two_threads_through_a_direct_handle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = SharedDirectory(tmp_path, ShareOptions(allow_direct_io=True))
    (tmp_path / "file").write_bytes(bytes(10_000))
    nodeid, fh = share.open("file", os.O_RDWR | os.O_DIRECT)
    file = share.passthrough.share.open_files.get(nodeid, fh)
    # As on a file system whose server may not answer: threads write its pages.
    file.remote = True
    first_writes, second_writes = threading.Event(), threading.Event()

    def ordered(_: object, fd: int, views: Sequence[memoryview], offset: int) -> int:
        if offset == 1000:
            first_writes.set()
            assert second_writes.wait(LIMIT)
        else:
            second_writes.set()
            first.join(LIMIT)
        return os.pwritev(fd, views, offset)

    monkeypatch.setattr(data, "_transfer", ordered)
    first = threading.Thread(
        target=share.write, args=(nodeid, fh, 1000, b"unaligned"), kwargs={"cached": True}
    )
    first.start()
    assert first_writes.wait(LIMIT)
    assert share.write(nodeid, fh, 5000, b"unaligned", cached=True) == 9
    assert not first.is_alive()
    content = (tmp_path / "file").read_bytes()
    assert content[1000:1009] == content[5000:5009] == b"unaligned"
    assert fcntl.fcntl(file.fd, fcntl.F_GETFL) & os.O_DIRECT
    file.remote = False
    share.close()


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.root
def test_set_id_bits_are_cleared_with_kill_suidgid(share: SharedDirectory, kill: bool) -> None:
    for name in ("allocated", "copied"):
        (share.path / name).write_bytes(bytes(100))
        (share.path / name).chmod(0o6777)
    allocated, fh = share.open("allocated")
    copied, target = share.open("copied")
    share.fs.fallocate(allocated, fh, 0, 0, 4096, kill)()
    share.fs.copy_file_range(allocated, fh, 0, copied, target, 0, 10, kill)()
    modes = {(share.path / name).stat().st_mode & 0o7777 for name in ("allocated", "copied")}
    assert modes == {0o777 if kill else 0o6777}


def test_copy_file_range_copies_on_the_host(share: SharedDirectory) -> None:
    (share.path / "from").write_bytes(bytes(range(256)) * 64)
    source, source_fh = share.open("from", os.O_RDONLY)
    target, opened = share.create(b"to")

    def copy(*arguments: int) -> int:
        nodeid, fh, offset, nodeid_out, fh_out, offset_out, length = arguments
        return share.fs.copy_file_range(
            nodeid, fh, offset, nodeid_out, fh_out, offset_out, length, False
        )()

    assert copy(source, source_fh, 100, target.nodeid, opened.fh, 50, 1000) == 1000
    assert (share.path / "to").read_bytes() == bytes(50) + (bytes(range(256)) * 64)[100:1100]
    assert copy(source, source_fh, 16000, target.nodeid, opened.fh, 0, 2**64 - 1) == 384
    assert copy(source, source_fh, 20000, target.nodeid, opened.fh, 0, 10) == 0
    assert errno_of(copy, source, source_fh, 0, target.nodeid, 999, 0, 10) == errno.EBADF
    assert (
        errno_of(copy, target.nodeid, opened.fh, 0, target.nodeid, opened.fh, 10, 100)
        == errno.EINVAL
    )


def test_fallocate_with_its_modes(share: SharedDirectory) -> None:
    entry, opened = share.create(b"file")
    status = (share.path / "file").stat
    share.fs.fallocate(entry.nodeid, opened.fh, 0, 0, 65536, False)()
    assert (status().st_size, status().st_blocks >= 128) == (65536, True)
    share.fs.fallocate(entry.nodeid, opened.fh, FALLOC_FL_KEEP_SIZE, 65536, 65536, False)()
    assert status().st_size == 65536
    share.write(entry.nodeid, opened.fh, 0, b"x" * 65536)
    share.fs.fallocate(
        entry.nodeid, opened.fh, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 4096, 4096, False
    )()
    assert (share.path / "file").read_bytes() == b"x" * 4096 + bytes(4096) + b"x" * 57344
    assert (
        errno_of(share.fs.fallocate, entry.nodeid, opened.fh, FALLOC_FL_PUNCH_HOLE, 0, 10, False)
        == errno.EOPNOTSUPP
    )


def test_syncing_and_flushing_succeed(share: SharedDirectory) -> None:
    entry, opened = share.create(b"file")
    share.fs.flush(entry.nodeid, opened.fh)
    share.fs.fsync(entry.nodeid, opened.fh, False)()
    share.fs.fsync(entry.nodeid, opened.fh, True)()
    directory = share.fs.opendir(ROOT, 0)
    share.fs.fsyncdir(ROOT, directory.fh, False)()
    share.fs.fsyncdir(ROOT, directory.fh, True)()
    share.fs.syncfs(ROOT)()
    assert share.write(entry.nodeid, opened.fh, 0, b"still open") == 10


def _set_id_file(share: SharedDirectory) -> Path:
    path = share.path / "set-id"
    path.write_bytes(b"program")
    path.chmod(0o6755)
    return path


def _set_id_bits(path: Path) -> int:
    return path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)


def test_set_id_bits_are_cleared_by_a_write_with_the_kill_flag(share: SharedDirectory) -> None:
    path = _set_id_file(share)
    nodeid, fh = share.open("set-id", os.O_RDWR)
    share.write(nodeid, fh, 0, b"x", kill_suidgid=True)
    assert not _set_id_bits(path)

    path = _set_id_file(share)
    settled(share.fs.setattr, nodeid, Changes(size=3, kill_suidgid=True))
    assert not _set_id_bits(path)

    path = _set_id_file(share)
    settled(share.fs.setattr, nodeid, Changes(size=2, fh=fh, kill_suidgid=True))
    assert not _set_id_bits(path)

    path = _set_id_file(share)
    share.open("set-id", os.O_WRONLY | os.O_TRUNC, True)
    assert not _set_id_bits(path)

    path = _set_id_file(share)
    share.fs.create(DAEMON, ROOT, b"set-id", 0o644, os.O_WRONLY | os.O_TRUNC, 0, True)
    assert not _set_id_bits(path)


def test_set_id_bits_stay_without_the_kill_flag(share: SharedDirectory) -> None:
    path = _set_id_file(share)
    kept = stat.S_ISUID | stat.S_ISGID if IS_ROOT else 0
    nodeid, fh = share.open("set-id", os.O_RDWR)
    share.write(nodeid, fh, 0, b"x")
    assert _set_id_bits(path) == kept
    settled(share.fs.setattr, nodeid, Changes(size=3))
    assert _set_id_bits(path) == kept


def test_copy_beyond_the_limit_is_short(share: SharedDirectory) -> None:
    """One request must not keep a thread, and what waits for it, for gigabytes."""
    (share.path / "source").touch()
    os.truncate(share.path / "source", 65 << 20)
    source, target = share.open("source"), share.open_made("target")
    copied = done(share.fs.copy_file_range(*source, 0, *target, 0, 65 << 20, False))
    assert copied == 64 << 20
    assert (share.path / "target").stat().st_size == 64 << 20
