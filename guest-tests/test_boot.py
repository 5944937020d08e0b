# SPDX-License-Identifier: Apache-2.0
"""What all other tests need: the guest boots, the share works both ways, local inotify works."""

import errno
import os
from collections.abc import Callable

import pytest
from farwatch_harness.kernel import build
from farwatch_harness.util.errors import GuestLostError
from farwatch_harness.vm.boot import QemuDevice
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.testbed import Share, Testbed

IN_MODIFY = 0x2
IN_CLOSE_WRITE = 0x8
IN_OPEN = 0x20
IN_CREATE = 0x100


@pytest.mark.patch("base")
def test_the_guest_boots(testbed: Testbed) -> None:
    """Boot the guest. This is the check "boot", which runs before all other tests."""
    assert testbed.guest.os("getpid") > 0
    assert testbed.problems() == []


@pytest.mark.patch("base")
def test_share_has_the_same_content_on_both_sides(guest: Guest, share: Share) -> None:
    (share.host / "from the host").write_bytes(b"\0one\xff")
    assert guest.read_file(f"{share.guest}/from the host") == b"\0one\xff"
    guest.write_file(f"{share.guest}/from the guest", b"two")
    assert (share.host / "from the guest").read_bytes() == b"two"
    assert sorted(guest.os("listdir", str(share.guest))) == sorted(os.listdir(share.host))  # noqa: PTH208


@pytest.mark.patch("base")
def test_error_in_the_guest_has_its_errno(guest: Guest, share: Share) -> None:
    with pytest.raises(OSError) as caught:
        guest.os("rmdir", f"{share.guest}/nothing")
    assert caught.value.errno == errno.ENOENT


@pytest.mark.patch("base")
def test_local_inotify_in_the_guest_is_unchanged(guest: Guest) -> None:
    folder = guest.shell("mktemp -d").strip()
    with guest.inotify() as listener:
        wd = listener.add(folder, IN_CREATE | IN_OPEN | IN_MODIFY | IN_CLOSE_WRITE)
        guest.write_file(f"{folder}/ä", b"x")
        events = listener.read(4)
    assert [(event.wd, event.mask, event.name) for event in events] == [
        (wd, mask, "ä") for mask in (IN_CREATE, IN_OPEN, IN_MODIFY, IN_CLOSE_WRITE)
    ]


@pytest.mark.patch("base")
def test_kernel_panic_raises_guest_lost_error_with_its_trace(boot: Callable[..., Testbed]) -> None:
    testbed = boot(expect_trouble=True)
    with pytest.raises(
        GuestLostError, match=r"Kernel panic - not syncing(.|\n)*sysrq_handle_crash"
    ):
        testbed.guest.shell("echo c > /proc/sysrq-trigger; sleep 60", limit=60)
    assert not testbed.alive


@pytest.mark.patch("base")
def test_unpatched_kernel_uses_the_share_through_the_plain_device(
    boot: Callable[..., Testbed], plain_kernel: build.Kernel
) -> None:
    testbed = boot(image=plain_kernel.image, device=QemuDevice.PLAIN)
    (testbed.shared / "file").write_text("seen\n")
    assert testbed.guest.read_file(f"{testbed.mount_point}/file") == b"seen\n"
    with testbed.guest.inotify() as listener:
        listener.add(str(testbed.mount_point), IN_CREATE)
        (testbed.shared / "not reported").touch()
        testbed.guest.write_file(f"{testbed.mount_point}/reported", b"")
        assert [event.name for event in listener.read(until="reported")] == ["reported"]


@pytest.mark.patch("base")
def test_loopback_interface_is_up(guest: Guest) -> None:
    echo = """
import socket
def main():
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname(), 5) as client:
            return client.getpeername()[0]
"""
    assert guest.python(echo) == "127.0.0.1"


@pytest.mark.patch("base")
def test_memory_mib_of_a_testbed_is_the_guests_memory(boot: Callable[..., Testbed]) -> None:
    meminfo = boot(memory_mib=1536).guest.read_file("/proc/meminfo").decode()
    total_kib = int(meminfo.split()[1])
    assert 1300 * 1024 < total_kib <= 1536 * 1024
