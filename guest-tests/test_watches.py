# SPDX-License-Identifier: Apache-2.0
"""Watches in the guest and on the host come, change and go together."""

import errno
import os
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from farwatch_harness.oracle.compare import In
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.boot import QemuDevice
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.testbed import Share, Testbed

LIMIT = 10.0
MANY = 2000
#: Open files that the daemon may have.
FEW_FILES = 200
#: Watches of a process that is killed: more with FARWATCH_WATCHES.
KILLED_WATCHES = int(os.environ.get("FARWATCH_WATCHES", "5000"))
UNMOUNT_LIMIT = 5.0
WATCH_MANY = Path(__file__).parent / "programs" / "watch_many.py"
MODES = pytest.mark.parametrize("testbed", ["others", "remote", "wait"], indirect=True)


def await_host_watches(testbed: Testbed, wanted: int) -> None:
    """Wait until the daemon has this many host watches.

    The guest does not wait for their removal.
    """
    deadline = time.monotonic() + LIMIT
    while (count := testbed.daemon.host_watches()) != wanted:
        if time.monotonic() > deadline:
            raise HarnessError(
                f"the daemon has {count} watches on the host, not {wanted}, after {LIMIT:.0f} s"
            )
        time.sleep(0.01)


def await_no_host_watches(testbed: Testbed) -> int:
    """Wait until the host watches of earlier tests are removed; return 0."""
    await_host_watches(testbed, 0)
    return 0


@pytest.fixture
def files(share: Share) -> list[str]:
    """Create three files on the share; return their paths in the guest."""
    for name in ("one", "two", "three"):
        (share.host / name).write_text(name)
    return [f"{share.guest}/{name}" for name in ("one", "two", "three")]


@pytest.mark.patch("send-request")
def test_inotify_rm_watch_removes_the_host_watch(
    testbed: Testbed, guest: Guest, files: list[str]
) -> None:
    before = await_no_host_watches(testbed)
    with guest.inotify() as listener:
        wds = [listener.add(path, In.MODIFY) for path in files]
        assert testbed.daemon.host_watches() == before + 3
        listener.remove(wds[0])
        await_host_watches(testbed, before + 2)
        for wd in wds[1:]:
            listener.remove(wd)
        await_host_watches(testbed, before)


@pytest.mark.patch("send-request")
def test_close_of_inotify_removes_its_host_watches(
    testbed: Testbed, guest: Guest, files: list[str]
) -> None:
    before = await_no_host_watches(testbed)
    with guest.inotify() as listener:
        for path in files:
            listener.add(path, In.ALL)
        assert testbed.daemon.host_watches() == before + 3
    await_host_watches(testbed, before)


@pytest.mark.patch("notifications")
@pytest.mark.parametrize("mode", ["others", "remote"])
def test_many_watches_use_few_descriptors_and_end_with_their_process(
    boot: Callable[..., Testbed], mode: str
) -> None:
    testbed = boot(daemon_options=(f"--fsnotify={mode}", f"--rlimit-nofile={FEW_FILES}"))
    for number in range(MANY):
        (testbed.shared / str(number)).touch()
    listener = testbed.guest.spawn("python3", WATCH_MANY, testbed.mount_point, str(MANY))
    assert listener.lines(until="watching")[-1] == f"watching {MANY}"
    assert testbed.daemon.host_watches() == MANY
    assert testbed.daemon.descriptors() < FEW_FILES
    for number in (0, MANY // 2, MANY - 1):
        (testbed.shared / str(number)).chmod(0o600)
        assert listener.lines(count=1) == [f"event {number + 1}"]
    listener.stop(signal.SIGKILL)
    await_host_watches(testbed, 0)


@pytest.mark.patch("notifications")
def test_two_watchers_share_a_host_watch_and_get_one_event_each(
    testbed: Testbed, guest: Guest, share: Share, files: list[str]
) -> None:
    before = await_no_host_watches(testbed)
    with guest.inotify() as one, guest.inotify() as two:
        one.add(files[0], In.MODIFY)
        assert testbed.daemon.host_watches() == before + 1
        two.add(files[0], In.MODIFY | In.CLOSE_WRITE)
        assert testbed.daemon.host_watches() == before + 1
        (share.host / "one").write_text("changed")
        reported = [event.mask for event in two.read(until=None, count=2)]
        assert reported == [In.MODIFY, In.CLOSE_WRITE] or reported == [In.MODIFY, In.MODIFY]
        (share.host / "one").chmod(0o600)
        assert {event.mask for event in one.read(quiet=1.0)} == {int(In.MODIFY)}


@pytest.mark.patch("notifications")
def test_close_of_one_inotify_keeps_the_watch_of_another(
    testbed: Testbed, guest: Guest, share: Share, files: list[str]
) -> None:
    before = await_no_host_watches(testbed)
    with guest.inotify() as stays:
        stays.add(files[0], In.ATTRIB)
        with guest.inotify() as leaves:
            leaves.add(files[0], In.MODIFY)
        (share.host / "one").chmod(0o600)
        assert [event.mask for event in stays.read(1)] == [In.ATTRIB]
        assert testbed.daemon.host_watches() == before + 1
    await_host_watches(testbed, before)


@pytest.mark.patch("notifications")
def test_inotify_mask_can_be_replaced_and_extended(
    guest: Guest, share: Share, files: list[str]
) -> None:
    with guest.inotify() as listener:
        wd = listener.add(files[0], In.ATTRIB)
        assert listener.add(files[0], In.OPEN | In.MASK_ADD) == wd
        (share.host / "one").chmod(0o600)
        (share.host / "one").read_text()
        # fanotify coalesces pending events of one object, so the order is open.
        assert {event.mask for event in listener.read(2)} == {int(In.ATTRIB), int(In.OPEN)}
        assert listener.add(files[0], In.CLOSE_NOWRITE) == wd
        (share.host / "one").chmod(0o644)
        (share.host / "one").read_text()
        assert [event.mask for event in listener.read(1)] == [In.CLOSE_NOWRITE]


@pytest.mark.patch("update-mark")
def test_flags_of_inotify_add_watch_are_unchanged(
    guest: Guest, share: Share, files: list[str]
) -> None:
    with guest.inotify() as listener:
        for path, mask, error in (
            (files[0], In.ATTRIB | In.ONLYDIR, errno.ENOTDIR),
            (f"{share.guest}/none", In.ATTRIB, errno.ENOENT),
        ):
            with pytest.raises(OSError) as caught:
                listener.add(path, mask)
            assert caught.value.errno == error
        listener.add(files[0], In.ATTRIB | In.MASK_CREATE)
        with pytest.raises(OSError) as caught:
            listener.add(files[0], In.ATTRIB | In.MASK_CREATE)
        assert caught.value.errno == errno.EEXIST


@pytest.mark.patch("notifications")
def test_in_oneshot_watch_ends_with_its_event(
    testbed: Testbed, guest: Guest, share: Share, files: list[str]
) -> None:
    before = await_no_host_watches(testbed)
    with guest.inotify() as listener:
        listener.add(files[0], In.ATTRIB | In.ONESHOT)
        (share.host / "one").chmod(0o600)
        (share.host / "one").chmod(0o644)
        assert [event.mask for event in listener.read(2)] == [In.ATTRIB, In.IGNORED]
        await_host_watches(testbed, before)
        assert listener.read(quiet=0.5, limit=2.0) == []


@pytest.mark.patch("notifications")
def test_watch_limit_is_enospc_of_inotify_add_watch(boot: Callable[..., Testbed]) -> None:
    testbed = boot(daemon_options=("--max-watches=2",))
    for name in ("one", "two", "three"):
        (testbed.shared / name).touch()
    with testbed.guest.inotify() as listener:
        wd = listener.add(f"{testbed.mount_point}/one", In.MODIFY)
        listener.add(f"{testbed.mount_point}/two", In.MODIFY)
        with pytest.raises(OSError) as caught:
            listener.add(f"{testbed.mount_point}/three", In.MODIFY)
        assert caught.value.errno == errno.ENOSPC
        # The refused watch left nothing behind; the other watches are unchanged.
        assert listener.read(quiet=0.5, limit=2.0) == []
        (testbed.shared / "two").write_text("x")
        assert listener.read(1)[0].mask == In.MODIFY
        listener.remove(wd)
        await_host_watches(testbed, 1)
        listener.add(f"{testbed.mount_point}/three", In.MODIFY)


@pytest.mark.patch("send-request")
def test_hanging_server_blocks_no_close_and_its_waiters_can_be_killed(
    boot: Callable[..., Testbed],
) -> None:
    testbed = boot(daemon_options=("--cache=always",))
    guest = testbed.guest
    for name in ("watched", "new"):
        (testbed.shared / name).touch()
        guest.os("stat", f"{testbed.mount_point}/{name}")
    adder = (
        "import ctypes,sys; c=ctypes.CDLL(None); fd=c.inotify_init1(0); print('adding',flush=True);"
        " print(c.inotify_add_watch(fd,sys.argv[1].encode(),2),flush=True)"
    )
    listener = guest.inotify()
    wd = listener.add(f"{testbed.mount_point}/watched", In.MODIFY)
    os.kill(testbed.daemon.pid, signal.SIGSTOP)
    try:
        waiting = guest.spawn("python3", "-c", adder, f"{testbed.mount_point}/new")
        assert waiting.lines(count=1) == ["adding"]
        # Neither inotify_rm_watch(2) nor close(2) waits for the server.
        listener.remove(wd)
        listener.close()
        # inotify_add_watch(2) waits for it, and can be killed.
        assert waiting.stop(signal.SIGKILL) == -signal.SIGKILL
    finally:
        os.kill(testbed.daemon.pid, signal.SIGCONT)
    await_host_watches(testbed, 0)


@pytest.mark.patch("send-request")
def test_unmount_ends_soon_after_a_watcher_of_many_files_was_killed(
    boot: Callable[..., Testbed],
) -> None:
    testbed = boot()
    guest = testbed.guest
    for number in range(KILLED_WATCHES):
        (testbed.shared / str(number)).touch()
    guest.write_file("/proc/sys/fs/inotify/max_user_watches", str(2 * KILLED_WATCHES).encode())
    for _ in range(2):
        words = ("python3", WATCH_MANY, testbed.mount_point, str(KILLED_WATCHES))
        watcher = guest.spawn(*words)
        lines = watcher.lines(limit=60 + KILLED_WATCHES / 50, until="watching")
        assert lines[-1] == f"watching {KILLED_WATCHES}"
        script = "cut -d' ' -f1 /proc/uptime; kill -9 $0; umount $1; cut -d' ' -f1 /proc/uptime"
        times = guest.shell(f"sh -ec {shlex.quote(script)} {watcher.pid} {testbed.mount_point}")
        begun, ended = map(float, times.split())
        assert ended - begun < UNMOUNT_LIMIT
        await_host_watches(testbed, 0)
        testbed.mount()


@pytest.mark.patch("capability")
def test_without_the_capability_events_are_those_of_an_unpatched_kernel(
    boot: Callable[..., Testbed],
) -> None:
    testbed = boot(daemon_options=("--fsnotify=off",))
    guest = testbed.guest
    with guest.inotify() as listener:
        listener.add(str(testbed.mount_point), In.ALL)
        (testbed.shared / "from the host").touch()
        guest.write_file(f"{testbed.mount_point}/from the guest", b"x")
        reported = [(event.name, event.mask) for event in listener.read(4)]
    assert reported == [
        ("from the guest", mask) for mask in (In.CREATE, In.OPEN, In.MODIFY, In.CLOSE_WRITE)
    ]
    assert testbed.daemon.host_watches() == 0


@pytest.mark.patch("notifications")
@pytest.mark.parametrize("device", QemuDevice)
def test_unmount_is_reported_and_the_share_can_be_mounted_again(
    boot: Callable[..., Testbed], device: QemuDevice
) -> None:
    testbed = boot(device=device)
    guest = testbed.guest
    (testbed.shared / "file").touch()
    with guest.inotify() as listener:
        listener.add(f"{testbed.mount_point}/file", In.MODIFY)
        listener.add(str(testbed.mount_point), In.CREATE)
        guest.umount(str(testbed.mount_point))
        masks = [event.mask & ~In.ISDIR for event in listener.read(4)]
    assert sorted(masks) == sorted([In.UNMOUNT, In.IGNORED] * 2)
    await_host_watches(testbed, 0)
    testbed.mount()
    with guest.inotify() as listener:
        listener.add(str(testbed.mount_point), In.CREATE)
        (testbed.shared / "again").touch()
        assert [event.name for event in listener.read(1)] == ["again"]


@pytest.mark.patch("notifications")
@pytest.mark.parametrize("device", QemuDevice)
def test_guest_shuts_down_with_live_watches(
    boot: Callable[..., Testbed], device: QemuDevice
) -> None:
    testbed = boot(device=device)
    with testbed.guest.inotify() as listener:
        listener.add(str(testbed.mount_point), In.ALL)
        (testbed.shared / "file").touch()
        listener.read(1)
        testbed.vm.shut_down()
    assert testbed.daemon.running
    await_host_watches(testbed, 0)


@pytest.mark.patch("notifications")
@MODES
def test_own_operations_are_reported_once(guest: Guest, share: Share) -> None:
    with guest.inotify() as listener:
        listener.add(share.guest, In.CREATE | In.DELETE | In.MOVED_FROM | In.MOVED_TO)
        guest.shell(f"cd {share.guest}; mkdir one; mv one two; rmdir two; mkdir end")
        reported = [
            (In(event.mask) & ~In.ISDIR, event.name) for event in listener.read(until="end")
        ]
        assert reported == [
            (In.CREATE, "one"),
            (In.MOVED_FROM, "one"),
            (In.MOVED_TO, "two"),
            (In.DELETE, "two"),
            (In.CREATE, "end"),
        ]
        assert listener.read(quiet=0.5, limit=2.0) == []


@MODES
@pytest.mark.patch("notifications")
def test_own_deletion_ends_its_watch_once(guest: Guest, share: Share) -> None:
    """Delete in the guest, while the host reports the deletion at the same moment."""
    with guest.inotify() as listener:
        watches = []
        for number in range(20):
            (share.host / f"file{number}").touch()
            (share.host / f"dir{number}").mkdir()
            watches += [
                listener.add(share.guest / f"{kind}{number}", In.DELETE_SELF)
                for kind in ("file", "dir")
            ]
        guest.shell(f"cd {share.guest}; for i in $(seq 0 19); do rm file$i; rmdir dir$i; done")
        reported = [
            (event.wd, In(event.mask) & ~In.ISDIR)
            for event in listener.read(quiet=0.5, limit=LIMIT)
        ]
    reported.sort(key=lambda event: event[0])
    assert reported == [
        (wd, mask) for wd in sorted(watches) for mask in (In.DELETE_SELF, In.IGNORED)
    ]
