# SPDX-License-Identifier: Apache-2.0
"""Features that worked before the series, and must work after each patch.

They are local notification and a share without events.
"""

from collections.abc import Iterator

import pytest
from farwatch_harness.oracle.compare import In
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.testbed import Share

pytestmark = pytest.mark.patch("base")

#: fanotify_init(2) and fanotify_mark(2).
REPORT_DFID_NAME = 0xC00
CREATE, DELETE, MODIFY = 0x100, 0x200, 0x2
ON_CHILD = 0x08000000

FANOTIFY = """
import ctypes, os, select, struct, threading

def fail(what):
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)

def main(folder, init, mask):
    fd = libc.fanotify_init(init, os.O_RDONLY)
    if fd < 0 or libc.fanotify_mark(fd, 1, ctypes.c_uint64(mask), -100, folder.encode()) < 0:
        fail(folder)
    def act():
        with open(folder + "/new", "w") as stream:
            stream.write("x")
        os.unlink(folder + "/new")
    actor = threading.Thread(target=act)
    actor.start()
    seen = 0
    while not seen & 0x200 and select.select([fd], [], [], 10)[0]:
        data = os.read(fd, 65536)
        while data:
            length, _version, _reserved, _header, bits, file, _pid = struct.unpack_from(
                "=IBBHQii", data
            )
            seen |= bits
            data = data[length:]
    actor.join(10)
    os.close(fd)
    return seen
"""


@pytest.fixture
def folder(guest: Guest) -> Iterator[str]:
    """Yield a directory on a tmpfs of the guest."""
    path = guest.shell("d=$(mktemp -d) && mount -t tmpfs farwatch $d && echo $d").strip()
    yield path
    guest.umount(path)


def test_local_fanotify_reports_create_delete_and_modify(guest: Guest, folder: str) -> None:
    seen = guest.python(FANOTIFY, folder, REPORT_DFID_NAME, CREATE | DELETE | MODIFY | ON_CHILD)
    assert seen == CREATE | DELETE | MODIFY


def test_local_dnotify_reports_dn_create(guest: Guest, folder: str) -> None:
    watcher = (
        "import fcntl, os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO]);"
        " fd = os.open(sys.argv[1], os.O_RDONLY); fcntl.fcntl(fd, fcntl.F_NOTIFY, fcntl.DN_CREATE);"
        " print('watching', flush=True); print(signal.sigtimedwait([signal.SIGIO], 20) is not None,"
        " flush=True)"
    )
    process = guest.spawn("python3", "-c", watcher, folder)
    try:
        assert process.lines(count=1) == ["watching"]
        guest.write_file(f"{folder}/new", b"")
        assert process.lines(count=1) == ["True"]
    finally:
        process.stop()


def test_local_inotify_reports_rename_with_one_cookie(guest: Guest, folder: str) -> None:
    guest.write_file(f"{folder}/old", b"")
    with guest.inotify() as listener:
        listener.add(folder, In.MOVED_FROM | In.MOVED_TO | In.DELETE)
        guest.os("rename", f"{folder}/old", f"{folder}/new")
        guest.os("unlink", f"{folder}/new")
        events = listener.read(3)
    assert [(In(event.mask), event.name) for event in events] == [
        (In.MOVED_FROM, "old"),
        (In.MOVED_TO, "new"),
        (In.DELETE, "new"),
    ]
    assert events[0].cookie == events[1].cookie != 0


def test_own_operations_on_the_share_are_reported(guest: Guest, share: Share) -> None:
    with guest.inotify() as listener:
        listener.add(share.guest, In.CREATE | In.MODIFY | In.DELETE)
        guest.write_file(f"{share.guest}/file", b"x")
        guest.os("unlink", f"{share.guest}/file")
        reported = [(In(event.mask), event.name) for event in listener.read(3)]
    assert reported == [(mask, "file") for mask in (In.CREATE, In.MODIFY, In.DELETE)]


def test_files_of_the_share_can_be_changed_from_both_sides(guest: Guest, share: Share) -> None:
    guest.os("mkdir", f"{share.guest}/dir")
    guest.write_file(f"{share.guest}/dir/file", b"one")
    guest.os("rename", f"{share.guest}/dir/file", f"{share.guest}/file")
    guest.os("symlink", "file", f"{share.guest}/link")
    assert (share.host / "link").read_bytes() == b"one"
    (share.host / "second").write_bytes(b"two")
    assert guest.read_file(f"{share.guest}/second") == b"two"
    guest.os("rmdir", f"{share.guest}/dir")
    assert sorted(path.name for path in share.host.iterdir()) == ["file", "link", "second"]
