# SPDX-License-Identifier: Apache-2.0
"""``--check``: what it finds, what it advises, and its exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from farwatchd.check import Result, in_child, mounted_as, transport
from tests.support.daemon_process import AS_USER, COMMAND, running

TIMEOUT = 60
MOUNTS = """\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 21 0:30 / /srv rw - btrfs /dev/vdb rw
31 30 0:31 / /srv/over\\040lay rw - overlay overlay rw
32 21 0:32 / /mnt rw - ext4 /dev/vdc rw
33 21 0:33 / /mnt rw - fuse.sshfs host: rw
"""


def run(*words: str, command: Sequence[str] = COMMAND) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *words], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


def rows(text: str) -> dict[str, tuple[str, str]]:
    """Return the result and what was found of each thing."""
    found = {}
    for line in text.splitlines():
        if line[:8].strip() in [result.value for result in Result]:
            thing, _, rest = line[9:].partition("  ")
            found[thing.strip()] = (line[:8].strip(), rest.strip())
    return found


@pytest.mark.root
def test_what_it_says_would_work_does(tmp_path: Path) -> None:
    done = run(f"--check={tmp_path}")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.splitlines()[-1] == (
        f"It works here: farwatchd --socket-path=SOCKET --shared-dir={tmp_path}"
    )
    found = rows(done.stdout)
    result, events = found["events"]
    assert result == "ok"
    with running(tmp_path / "socket", tmp_path) as daemon:
        mode = events.split()[1]
        assert f"mode {mode}" in daemon.log
        by_handle = "by file handle" in daemon.log
        assert by_handle == (found["file handles"][0] == "ok")
        by_native = "serving by the native part" in daemon.log
        assert by_native == (found["native part"][0] == "ok")
    assert found["sandbox"] == ("ok", "namespaces can be made")
    assert found["capabilities"][0] == "ok"
    watches = Path("/proc/sys/fs/inotify/max_user_watches").read_text().strip()
    assert found["fs.inotify.max_user_watches"][1] == watches
    assert list(tmp_path.iterdir()) == []


def test_missing_directory_would_not_work(tmp_path: Path) -> None:
    done = run("--check", f"{tmp_path}/none")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "It would not work here: shared directory."
    assert "-> name a directory that this user can read" in done.stdout


def test_ordinary_user_learns_what_that_means() -> None:
    done = run("--check=/usr", command=(sys.executable, "-c", AS_USER))
    found = rows(done.stdout)
    assert found["capabilities"][0] == found["file handles"][0] == "limited", done
    assert found["events"][0] != "MISSING"
    assert "-> run the daemon as root" in done.stdout


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home", "ext4"),
        ("/srv", "btrfs"),
        ("/srvx", "ext4"),
        ("/srv/over lay/below", "overlay"),
        ("/mnt/dir", "fuse.sshfs"),
    ],
)
def test_file_system_is_that_of_the_last_mount(path: str, kind: str) -> None:
    assert mounted_as(Path(path), MOUNTS) == kind


@pytest.mark.parametrize(
    ("devices", "result", "words"),
    [
        ('name "vhost-user-fs-pci", bus PCI', Result.OK, "WAIT requests"),
        ('name "vhost-user-test-device-pci"', Result.OK, "notification queue"),
        ('name "virtio-9p-pci"', Result.LIMITED, "no vhost-user-fs-pci"),
    ],
)
def test_devices_decide_how_events_reach_the_guest(
    devices: str, result: Result, words: str
) -> None:
    finding = transport("qemu", "7.2", devices)
    assert finding.result is result and words in finding.found


def test_action_in_a_child_leaves_this_process_alone() -> None:
    before = os.getcwd()  # noqa: PTH109
    assert in_child(lambda: os.chdir("/proc"), OSError) == ""
    assert "No such file" in in_child(lambda: os.chdir("/nonexistent"), OSError)
    assert in_child(lambda: 1 // 0, OSError) == "it failed"
    assert os.getcwd() == before  # noqa: PTH109
