# SPDX-License-Identifier: Apache-2.0
"""Restricted daemons: one without privileges, mounts in the share, symlinks out of the share."""

import errno
import os
import pwd
import shlex
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from farwatch_harness.oracle.compare import In
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.testbed import Share, Testbed

pytestmark = pytest.mark.daemon

#: Import all modules while still root: an ordinary user may not be able to read them.
AS_USER = """
import ctypes, os, sys
import farwatchd.daemon, pyseccomp
from farwatchd.cli import main
os.setgroups([])
os.setresgid(*[int(sys.argv[2])] * 3)
os.setresuid(*[int(sys.argv[1])] * 3)
PR_SET_DUMPABLE = 4
ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
sys.exit(main(sys.argv[3:]))
"""
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def theirs() -> Iterator[Path]:
    """Yield a directory that an ordinary user owns and can reach."""
    path = Path(tempfile.mkdtemp(prefix="farwatch-user-"))
    os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def user_command(sandbox: str) -> tuple[str, ...]:
    """Return the command of a daemon that an ordinary user runs.

    It makes the directory of the socket the user's.
    """
    user, group = NOBODY.pw_uid, NOBODY.pw_gid
    script = (
        f'at=$(dirname "$1"); chmod 755 "$at"; chown {user} "$at"; shift; '
        f'exec {shlex.quote(sys.executable)} -c "$0" {user} {group} "$@"'
    )
    options = (
        "--socket-path={socket}",
        "--shared-dir={shared}",
        "--tag={tag}",
        f"--sandbox={sandbox}",
        "--xattr",
    )
    # str.format() must not replace anything in the program.
    program = AS_USER.replace("{", "{{").replace("}", "}}")
    return ("sh", "-c", script.replace("{", "{{").replace("}", "}}"), program, "{socket}", *options)


@pytest.mark.patch("notifications")
@pytest.mark.parametrize("sandbox", ["namespace", "none"])
def test_daemon_of_an_ordinary_user_serves_and_reports_events(
    sandbox: str, boot: Any, theirs: Path
) -> None:
    testbed: Testbed = boot(shared=theirs, daemon_command=user_command(sandbox))
    guest, at = testbed.guest, testbed.mount_point
    (theirs / "secret").write_text("root's alone")
    (theirs / "secret").chmod(0o600)
    guest.shell(
        f"cd {at}; mkdir made; echo text > made/file; ln -s file made/link; mv made/file made/moved"
    )
    for name in ("made", "made/moved"):
        assert (theirs / name).stat().st_uid == NOBODY.pw_uid
    assert (theirs / "made" / "moved").read_text() == "text\n"
    # Root of the guest is nobody on the host.
    for call, *arguments in (("chown", 0, 0), ("mknod", 0o20600, os.makedev(1, 3))):
        target = f"{at}/made/moved" if call == "chown" else f"{at}/device"
        # EINVAL: the daemon's user namespace does not map the owner.
        with pytest.raises(
            OSError, match=f"{os.strerror(errno.EPERM)}|{os.strerror(errno.EINVAL)}"
        ):
            guest.os(call, target, *arguments)
    with pytest.raises(OSError, match=os.strerror(errno.EACCES)):
        guest.read_file(f"{at}/secret")
    with guest.inotify() as listener:
        listener.add(f"{at}/made", In.CREATE)
        (theirs / "made" / "by-host").touch()
        assert [event.name for event in listener.read(count=1)] == ["by-host"]


MOUNTS = """
mount -t tmpfs none "$1/mounted" && mkdir "$1/mounted/below" && echo inner > "$1/mounted/file" &&
mount --bind "$1/directory" "$1/again" && shift && exec "$@"
"""


@pytest.mark.patch("notifications")
def test_mounts_in_the_share_are_mounts_in_the_guest(boot: Any, tmp_path: Path) -> None:
    for name in ("mounted", "directory", "again"):
        (tmp_path / name).mkdir()
    (tmp_path / "directory" / "file").write_text("outer")
    daemon = str(Path(sys.executable).with_name("farwatchd"))
    options = ("--socket-path={socket}", "--shared-dir={shared}", "--tag={tag}")
    command = ("unshare", "-m", "sh", "-c", MOUNTS, "-", "{shared}", daemon, *options)
    testbed: Testbed = boot(shared=tmp_path, daemon_command=command)
    guest, at = testbed.guest, testbed.mount_point
    # The guest mounts them when it resolves a path into them.
    devices = {
        name: guest.os("stat", f"{at}/{name}/.")["st_dev"]
        for name in ("mounted", "directory", "again", "")
    }
    assert devices["directory"] == devices[""]
    assert len({devices["mounted"], devices["again"], devices[""]}) == 3
    assert guest.read_file(f"{at}/mounted/file") == b"inner\n"
    assert guest.read_file(f"{at}/again/file") == b"outer"
    with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
        guest.os("rename", f"{at}/directory/file", f"{at}/mounted/other")
    guest.shell(
        f"cd {at}/mounted; echo more >> file; sync -f file; df . > /dev/null; find . > /dev/null"
    )
    with guest.inotify() as listener:
        listener.add(f"{at}/again", In.CREATE | In.DELETE)
        (tmp_path / "directory" / "new").touch()
        (tmp_path / "directory" / "new").unlink()
        reported = [(In(event.mask), event.name) for event in listener.read(count=2)]
    assert reported == [(In.CREATE, "new"), (In.DELETE, "new")]


@pytest.mark.patch("base")
def test_symlink_targets_are_resolved_in_the_guest(guest: Guest, share: Share) -> None:
    # /tmp is the guest's own; most of its root is the host's.
    guest.shell("echo the guest > /tmp/whose")
    (share.host / "absolute").symlink_to("/tmp/whose")
    (share.host / "up").symlink_to("../" * 20 + "tmp/whose")
    (share.host / "root").symlink_to("/proc/self/root/tmp/whose")
    for name in ("absolute", "up", "root"):
        assert guest.read_file(share.guest / name) == b"the guest\n"
    assert guest.os("listdir", f"{share.guest}/../..") == guest.os(
        "listdir", str(share.guest.parent.parent)
    )


SWAP_AND_READ = """
import time

def main(path, times, wanted, limit):
    seen = {}
    end = time.monotonic() + limit
    # Lookups are cached for a second, in which many reads find the same file.
    while (sum(seen.values()) < times or wanted not in seen) and time.monotonic() < end:
        try:
            with open(path, "rb") as stream:
                found = stream.read().decode()
        except OSError as error:
            found = error.errno
        seen[str(found)] = seen.get(str(found), 0) + 1
    return seen
"""


@pytest.mark.patch("base")
def test_renames_during_path_resolution_do_not_leave_the_share(guest: Guest, share: Share) -> None:
    secret = share.host.parent / "secret-of-the-host"
    secret.write_text("secret")
    (share.host / "directory").mkdir()
    (share.host / "directory" / secret.name).write_text("decoy")
    (share.host / "link").symlink_to("/" + "../" * 3)
    going = threading.Event()

    def swap() -> None:
        first, second, aside = (share.host / name for name in ("directory", "link", "aside"))
        while not going.is_set():
            first.rename(aside)
            second.rename(first)
            aside.rename(second)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        path = str(share.guest / "directory" / secret.name)
        seen = guest.python(SWAP_AND_READ, path, 400, "decoy", 30.0, limit=60.0)
    finally:
        going.set()
        swapper.join()
        secret.unlink()
    assert set(seen) <= {
        "decoy",
        str(errno.ENOENT),
        str(errno.ENOTDIR),
        str(errno.ESTALE),
        str(errno.ELOOP),
    }
    assert "decoy" in seen
