# SPDX-License-Identifier: Apache-2.0
"""inotify_add_watch(2) of an ordinary user of the guest, on files of the share."""

import errno
import pwd
import shlex

import pytest
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.testbed import Share, Testbed

NOBODY = pwd.getpwnam("nobody")
#: Adds a watch for all events on its argument; its output is the errno, 0 for success.
PROGRAM = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
group = libc.inotify_init1(0)
wd = libc.inotify_add_watch(group, os.fsencode(sys.argv[1]), 0xfff)
print(ctypes.get_errno() if wd < 0 else 0)
"""


@pytest.mark.patch("notifications")
@pytest.mark.parametrize("is_dir", [False, True], ids=["file", "directory"])
def test_watch_needs_the_right_to_read(testbed: Testbed, share: Share, is_dir: bool) -> None:
    guest = testbed.guest
    path = f"{share.guest}/object"
    guest.shell(f"mkdir {path}" if is_dir else f"touch {path}")
    for directory in (testbed.mount_point, share.guest):
        guest.os("chmod", str(directory), 0o755)
    found = []
    for mode in (0o755, 0o700, 0o711, 0o755):
        guest.os("chmod", path, mode)
        found.append(errno_of_watch(guest, path))
    assert found == [0, errno.EACCES, errno.EACCES, 0]


def errno_of_watch(guest: Guest, path: str) -> int:
    ids = f"--reuid={NOBODY.pw_uid} --regid={NOBODY.pw_gid} --clear-groups"
    return int(guest.shell(f"setpriv {ids} python3 -c {shlex.quote(PROGRAM)} {path}"))
