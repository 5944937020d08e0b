# SPDX-License-Identifier: Apache-2.0
"""The module on Debian's own kernel: how it is loaded, and what only it does.

The tests of the series say what its events are; conftest.py leaves out those in module.toml.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from farwatch_harness.oracle.compare import In
from farwatch_harness.util import paths, subprocesses
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.testbed import TAG, VIRTIOFS, Share, Testbed

pytestmark = pytest.mark.module

MOUNT_HELPER = paths.MODULE_PATCHES / "mount.virtiofs"
SOURCE = Path(__file__).parent / "programs" / "watch_by_int80.c"
LIMIT = 10.0
#: The driver looks every 5 s for marks that were placed 10 s ago or earlier and are removed.
SCAN_LIMIT = 30.0


def file_system(guest: Guest, mount_point: str) -> str:
    """Return the type of the file system that is mounted there."""
    return guest.shell(f"findmnt --noheadings --output FSTYPE {mount_point}").strip()


def module_of(testbed: Testbed) -> Path:
    assert testbed.spec.module is not None
    return testbed.spec.module


def unload(testbed: Testbed) -> None:
    """Give the device back to the kernel's own driver, as after a start of the guest."""
    testbed.guest.umount(str(testbed.mount_point))
    testbed.guest.shell(
        # The kernel's own driver takes it when it is loaded, where it is a module.
        f"rmmod {module_of(testbed).stem}; modprobe {VIRTIOFS}; cd /sys/bus/virtio/devices;"
        " for device in virtio*; do [ -e $device/driver ] ||"
        f" echo $device > /sys/bus/virtio/drivers/{VIRTIOFS}/bind; done"
    )


def mount_by_helper(testbed: Testbed) -> str:
    """Mount the share as mount(8) does for -t virtiofs; return what the helper printed."""
    done = testbed.guest.run(
        "env",
        f"FARWATCHFS_MODULE={module_of(testbed)}",
        "sh",
        str(MOUNT_HELPER),
        TAG,
        str(testbed.mount_point),
        "-o",
        "rw",
    )
    assert done.status == 0, done.stderr
    return done.stdout + done.stderr


def test_the_mount_helper_gives_the_device_to_the_module(boot: Callable[..., Testbed]) -> None:
    testbed = boot()
    unload(testbed)
    assert mount_by_helper(testbed) == ""
    assert file_system(testbed.guest, str(testbed.mount_point)) == module_of(testbed).stem
    with testbed.guest.inotify() as listener:
        listener.add(testbed.mount_point, In.CREATE)
        (testbed.shared / "file").touch()
        assert [event.name for event in listener.read(count=1)] == ["file"]


def test_the_mount_helper_leaves_a_mounted_device_alone(boot: Callable[..., Testbed]) -> None:
    testbed = boot()
    unload(testbed)
    testbed.guest.os("makedirs", "/run/first")
    testbed.guest.mount(TAG, "/run/first", VIRTIOFS)
    assert "without the host's events" in mount_by_helper(testbed)
    assert file_system(testbed.guest, "/run/first") == VIRTIOFS
    assert file_system(testbed.guest, str(testbed.mount_point)) == VIRTIOFS
    testbed.guest.umount("/run/first")


def test_the_module_cannot_be_removed_while_the_share_is_mounted(testbed: Testbed) -> None:
    done = testbed.guest.run("rmmod", module_of(testbed).stem)
    assert done.status != 0
    assert "in use" in done.stderr


def test_a_32_bit_program_s_watch_is_live_when_the_call_returns(
    testbed: Testbed, guest: Guest, share: Share, tmp_path: Path
) -> None:
    program = tmp_path / "watch_by_int80"
    subprocesses.run(["gcc", "-O2", "-Wall", "-Werror", "-static", "-o", program, SOURCE])
    listener = guest.spawn(program, share.guest)
    assert listener.lines(count=1) == ["watch 1"]
    (share.host / "file").touch()
    assert listener.lines(count=1, limit=LIMIT) == ["event file"]
    listener.stop()


def test_a_removed_mark_is_found(testbed: Testbed, guest: Guest, share: Share) -> None:
    with guest.inotify() as listener:
        listener.add(share.guest, In.CREATE)
        before = testbed.daemon.host_watches()
        assert before > 0
    deadline = time.monotonic() + SCAN_LIMIT
    while testbed.daemon.host_watches() >= before:
        if time.monotonic() > deadline:
            raise HarnessError(
                f"the host still watches {SCAN_LIMIT:.0f} s after the mark was removed"
            )
        time.sleep(0.1)


def test_mode_remote_is_refused_and_the_log_says_why(boot: Callable[..., Testbed]) -> None:
    testbed = boot(daemon_options=("--fsnotify=remote",))
    with testbed.guest.inotify() as listener:
        listener.add(testbed.mount_point, In.ALL)
        (testbed.shared / "host").touch()
        testbed.guest.shell(f"echo > {testbed.mount_point}/guest")
        # The guest's own events are local, and there once.
        names = [event.name for event in listener.read(count=4)]
    assert names == ["guest"] * 4
    assert "its server reports what this guest does as well" in testbed.guest.shell("dmesg")


def test_an_overlay_on_the_share_sees_its_lower_directory(
    testbed: Testbed, guest: Guest, share: Share
) -> None:
    (share.host / "lower").mkdir()
    (share.host / "lower" / "file").write_text("host")
    guest.shell(
        "mkdir -p /run/over/upper /run/over/work /run/over/all;"
        f" mount -t overlay overlay -o lowerdir={share.guest}/lower,"
        "upperdir=/run/over/upper,workdir=/run/over/work /run/over/all"
    )
    try:
        assert guest.shell("cat /run/over/all/file") == "host"
        guest.shell("echo guest > /run/over/all/file")
        assert (share.host / "lower" / "file").read_text() == "host"
    finally:
        guest.shell("umount /run/over/all")
