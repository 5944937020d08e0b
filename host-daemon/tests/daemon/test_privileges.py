# SPDX-License-Identifier: Apache-2.0
"""The privileges of a serving daemon: capabilities, namespaces, system calls.

The tests run it as root and as an ordinary user.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatchd.linux.capabilities import Capability
from farwatchd.sandbox.privileges import FILE_HANDLES, FILE_SERVER, parse_changes
from farwatchd.wire.fuse import Opcode, create_in, entry_out, open_out
from tests.support.daemon_guest import ROOT, MountedGuest
from tests.support.daemon_process import (
    AS_USER,
    TIMEOUT,
    USER,
    DaemonProcess,
    error_line,
    running,
    status,
)
from tests.support.sandboxes import SANDBOXES

NO_FILE_HANDLES = ("--fsnotify=off", "--inode-file-handles=never")
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def sets(pid: int) -> dict[str, Capability]:
    """Return the capability sets of a process."""
    found = status(pid)
    return {name: Capability(int(found[name], 16)) for name in SETS}


def test_threads_have_the_capabilities_of_the_daemon(tmp_path: Path) -> None:
    with running(tmp_path / "socket", tmp_path, "--thread-pool-size=3") as daemon:
        threads = [int(task.name) for task in Path(f"/proc/{daemon.pid}/task").iterdir()]
        # The event loop, those for disks and for servers, and the one that waits for signals.
        assert len(threads) == 8
        kept = (*SETS, "NoNewPrivs", "Seccomp", "Seccomp_filters", "Uid", "Gid", "Groups")
        found = {tuple(status(thread)[name] for name in kept) for thread in threads}
        assert len(found) == 1


def test_daemon_without_pool_has_a_thread_for_signals_alone(tmp_path: Path) -> None:
    with running(tmp_path / "socket", tmp_path, "--thread-pool-size=0") as daemon:
        assert len(list(Path(f"/proc/{daemon.pid}/task").iterdir())) == 2


@pytest.mark.root
@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_only_the_capabilities_of_a_file_server_are_left(sandbox: str, tmp_path: Path) -> None:
    with running(tmp_path / "socket", tmp_path, f"--sandbox={sandbox}", *NO_FILE_HANDLES) as daemon:
        assert sets(daemon.pid) == {
            "CapInh": Capability.NONE,
            "CapPrm": FILE_SERVER,
            "CapEff": FILE_SERVER,
            "CapBnd": FILE_SERVER,
            "CapAmb": Capability.NONE,
        }
        assert status(daemon.pid)["NoNewPrivs"] == "1"


def test_watching_by_fanotify_keeps_file_handles_and_nothing_else(tmp_path: Path) -> None:
    options = ("--fsnotify-backend=fanotify", "--inode-file-handles=never")
    with running(tmp_path / "socket", tmp_path, *options) as daemon:
        assert sets(daemon.pid)["CapPrm"] == FILE_SERVER | FILE_HANDLES


@pytest.mark.root
def test_inodes_by_file_handle_keep_file_handles_and_nothing_else(tmp_path: Path) -> None:
    with running(
        tmp_path / "socket", tmp_path, "--fsnotify=off", "--inode-file-handles=mandatory"
    ) as daemon:
        assert sets(daemon.pid)["CapPrm"] == FILE_SERVER | FILE_HANDLES


def test_modcaps_adds_and_drops_capabilities(tmp_path: Path) -> None:
    options = (*NO_FILE_HANDLES, "--modcaps=+sys_admin:-MKNOD:-cap_setfcap")
    with running(tmp_path / "socket", tmp_path, *options) as daemon:
        wanted = FILE_SERVER & ~(Capability.MKNOD | Capability.SETFCAP) | Capability.SYS_ADMIN
        assert sets(daemon.pid)["CapEff"] == wanted


@pytest.mark.root
def test_new_files_belong_to_the_daemon_when_it_may_not_change_ids(tmp_path: Path) -> None:
    with running(tmp_path / "socket", tmp_path, "--modcaps=-setuid") as daemon:
        guest = MountedGuest(daemon)
        payload = create_in.pack(flags=os.O_RDWR | os.O_CREAT, mode=0o100644) + b"file\0"
        error, _ = guest.front_end.request(
            Opcode.CREATE, ROOT, payload, entry_out.size + open_out.size, uid=1000, gid=1000
        )
        assert error == 0
        assert (tmp_path / "file").stat().st_uid == os.geteuid()
        guest.leave()


@pytest.mark.root
@pytest.mark.parametrize("kind", ["mnt", "net", "ipc", "uts", "pid"])
def test_daemon_has_namespaces_of_its_own(kind: str, tmp_path: Path) -> None:
    with running(tmp_path / "socket", tmp_path) as daemon:
        own = Path(f"/proc/{daemon.pid}/ns/{kind}").stat().st_ino
        assert own != Path(f"/proc/self/ns/{kind}").stat().st_ino


def test_share_has_no_devices_and_no_programs_for_the_daemon(tmp_path: Path) -> None:
    with running(tmp_path / "socket", tmp_path) as daemon:
        mounts = Path(f"/proc/{daemon.pid}/mountinfo").read_text().splitlines()
        (root,) = [line.split() for line in mounts if line.split()[4] == "/"]
        assert {"nosuid", "nodev", "noexec"} <= set(root[5].split(","))
    own = Path("/proc/self/mountinfo").read_text()
    assert str(tmp_path) not in own


@pytest.mark.parametrize("text", ["", "chown", "+", "+chow", "+chown:", "-none,chown", "+0"])
def test_invalid_modcaps_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a capability"):
        parse_changes(text)


@pytest.mark.parametrize("sandbox", SANDBOXES)
@pytest.mark.parametrize("action", ["kill", "log", "trap", "none"])
def test_filter_is_loaded_unless_seccomp_is_none(action: str, sandbox: str, tmp_path: Path) -> None:
    with running(
        tmp_path / "socket", tmp_path, f"--seccomp={action}", f"--sandbox={sandbox}"
    ) as daemon:
        assert status(daemon.pid)["Seccomp"] == ("0" if action == "none" else "2")


# An ordinary user


@pytest.fixture
def theirs() -> Iterator[Path]:
    """Yield a directory of an ordinary user, who can also reach it."""
    path = Path(tempfile.mkdtemp(prefix="farwatch-user-"))
    (path / "shared").mkdir()
    for each in (path, path / "shared"):
        os.chown(each, USER.pw_uid, USER.pw_gid)
        each.chmod(0o755)
    yield path
    shutil.rmtree(path)


class UserDaemon(DaemonProcess):
    """A daemon that an ordinary user runs."""

    command = (sys.executable, "-c", AS_USER)


@pytest.mark.root
@pytest.mark.parametrize("sandbox", ["namespace", "none"])
def test_ordinary_user_s_daemon_serves_and_owns_what_the_guest_makes(
    sandbox: str, theirs: Path
) -> None:
    options = [
        f"--socket-path={theirs}/socket",
        f"--shared-dir={theirs}/shared",
        f"--sandbox={sandbox}",
    ]
    daemon = UserDaemon(theirs / "socket", options)
    daemon.wait_for("listening on")
    assert status(daemon.pid)["Uid"].split() == [str(USER.pw_uid)] * 4
    assert status(daemon.pid)["Seccomp"] == "2"
    if os.geteuid() == 0:
        # Root owns what a process shows that dumps no core.
        assert Path(f"/proc/{daemon.pid}/environ").stat().st_uid == 0
    guest = MountedGuest(daemon)
    nodeid, fh = guest.create(ROOT, b"file")
    assert guest.write(nodeid, fh, 0, b"text") == 4
    made = theirs / "shared" / "file"
    assert made.read_bytes() == b"text"
    assert (made.stat().st_uid, made.stat().st_gid) == (USER.pw_uid, USER.pw_gid)
    if sandbox == "namespace":
        # Of the host's files nothing but the share is left to be reached by name.
        assert Path(f"/proc/{daemon.pid}/root").stat().st_ino == (theirs / "shared").stat().st_ino
    guest.leave()
    assert daemon.end() == 0
    assert "Traceback" not in daemon.log and "ERROR" not in daemon.log


def test_ordinary_user_s_ids_are_mapped_by_the_programs_for_it_or_not_at_all(theirs: Path) -> None:
    # Whether they are installed or not, nobody has ids of the range.
    options = [
        f"--socket-path={theirs}/socket",
        f"--shared-dir={theirs}/shared",
        "--gid-map=:0:100000:10:",
    ]
    daemon = UserDaemon(theirs / "socket", options)
    assert daemon.process.wait(TIMEOUT) == 1
    daemon.wait_for("\n")
    line = error_line(daemon.log)
    assert re.fullmatch(
        r"farwatchd: --uid-map, --gid-map: (cannot run newgidmap: .*; install"
        r" uidmap|newgidmap: .*)",
        line,
    )
