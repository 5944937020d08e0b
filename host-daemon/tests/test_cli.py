# SPDX-License-Identifier: Apache-2.0
"""The command line: what it accepts and refuses, what it says, how the command ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from farwatchd.cli import main, parse
from farwatchd.config import FsnotifyMode
from farwatchd.fsnotify.probe import BackendName
from farwatchd.passthrough.options import Cache
from farwatchd.sandbox.enter import Sandbox
from tests.daemon_process import COMMAND, TIMEOUT, DaemonProcess, running

NEEDED = ("--socket-path=/run/s", "--shared-dir=/srv")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=False)


def _refusal(*arguments: str) -> str:
    """The only line with which the command ends that cannot serve."""
    done = _run(*arguments)
    assert done.returncode == 1, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("farwatchd: ")
    return line


def test_help_shows_how_to_attach_qemu_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for part in (
        "-object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem",
        "-device vhost-user-test-device-pci,chardev=fs,virtio-id=26,num_vqs=3,vq_size=128,config_size=44",
        "-device vhost-user-fs-pci,chardev=fs,tag=TAG",
        "mount -t virtiofs TAG /mnt",
    ):
        assert part in text


def test_capabilities_are_json_and_need_no_other_option() -> None:
    done = _run("--print-capabilities")
    assert done.returncode == 0
    assert json.loads(done.stdout)["type"] == "fs"


def test_defaults_are_those_of_virtiofsd() -> None:
    config = parse(NEEDED)
    assert (config.socket_path, config.shared_dir, config.fd) == (Path("/run/s"), Path("/srv"), None)
    assert (config.cache, config.sandbox) == (Cache.AUTO, Sandbox.NAMESPACE)
    assert not (config.writeback or config.readonly or config.xattr or config.posix_acl or config.allow_direct_io)
    assert (config.fsnotify, config.fsnotify_backend) == (FsnotifyMode.AUTO, BackendName.AUTO)


def test_acls_bring_extended_attributes_with_them() -> None:
    assert parse([*NEEDED, "--posix-acl"]).xattr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "one of --socket-path and --fd is needed"),
        (("--socket-path=/s",), "--shared-dir is needed"),
        ((*NEEDED, "--fd=3"), "not allowed with argument"),
        (("--fd=3", "--shared-dir=/srv", "--socket-group=root"), "--socket-group goes with --socket-path"),
        ((*NEEDED, "--cache=sometimes"), "sometimes"),
        ((*NEEDED, "--sandbox=castle"), "castle"),
        ((*NEEDED, "--fsnotify=maybe"), "maybe"),
        ((*NEEDED, "--seccomp=maybe"), "maybe"),
        ((*NEEDED, "--modcaps=+chown:fly"), "'fly' is not a capability"),
        ((*NEEDED, "--fsnotify-backend=dnotify"), "dnotify"),
        ((*NEEDED, "--log-level=loud"), "loud"),
        ((*NEEDED, "--num-request-queues=0"), "0 is not between"),
        ((*NEEDED, "--max-watches=many"), "'many' is not a number"),
        ((*NEEDED, "--event-queue=1"), "1 is not between 2 and"),
        ((*NEEDED, "--shared=/other"), "unrecognized arguments"),
        ((*NEEDED, "--thread-pool-size=4"), "unrecognized arguments"),
    ],
)
def test_wrong_usage_ends_with_status_2_and_the_reason(
    arguments: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse(arguments)
    assert end.value.code == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]


def test_missing_directory_is_refused_and_no_socket_left(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    line = _refusal(f"--socket-path={path}", f"--shared-dir={tmp_path}/none")
    assert f"{tmp_path}/none" in line and "No such file or directory" in line
    assert not path.exists()


def test_file_is_no_shared_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory" in _refusal(f"--socket-path={tmp_path}/socket", f"--shared-dir={tmp_path}/file")


def test_file_in_the_sockets_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "socket").write_text("precious")
    line = _refusal(f"--socket-path={tmp_path}/socket", f"--shared-dir={tmp_path}")
    assert "is not a socket" in line
    assert (tmp_path / "socket").read_text() == "precious"


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    where = (f"--socket-path={tmp_path}/socket", f"--shared-dir={tmp_path}")
    assert "tag" in _refusal(*where, "--tag=" + "t" * 37)
    assert "there is no such group" in _refusal(*where, "--socket-group=no-such-group")
    assert "not an open socket" in _refusal("--fd=99", f"--shared-dir={tmp_path}")
    assert not (tmp_path / "socket").exists()


def test_living_daemons_socket_is_refused_and_a_dead_ones_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with running(path, tmp_path) as first:
        assert "another daemon listens" in _refusal(f"--socket-path={path}", f"--shared-dir={tmp_path}")
        first.connect().close()
        first.process.kill()
        first.wait()
    assert path.is_socket()
    with running(path, tmp_path) as second:
        assert "replacing the socket" in second.log
        second.connect().close()


@pytest.mark.parametrize("sandbox", [sandbox.value for sandbox in Sandbox])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_daemon_and_its_socket(sandbox: str, number: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with running(path, tmp_path, f"--sandbox={sandbox}") as daemon:
        assert path.is_socket()
        assert path.stat().st_mode & 0o777 == 0o600
        assert daemon.end(number) == 0
    assert not path.exists()


def test_socket_is_given_to_the_group(tmp_path: Path) -> None:
    with running(tmp_path / "socket", tmp_path, "--socket-group=daemon"):
        status = (tmp_path / "socket").stat()
        assert status.st_mode & 0o777 == 0o660
        assert status.st_gid == 1


def test_relative_paths_are_those_of_the_caller(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    daemon = subprocess.Popen(
        [*COMMAND, "--socket-path=socket", "--shared-dir=shared"], cwd=tmp_path, stderr=subprocess.PIPE
    )
    try:
        assert daemon.stderr is not None
        for line in daemon.stderr:
            if b"listening on socket" in line:
                break
        assert (tmp_path / "socket").is_socket()
    finally:
        daemon.terminate()
        daemon.communicate(timeout=TIMEOUT)
    assert daemon.returncode == 0
    assert not (tmp_path / "socket").exists()


def test_daemon_on_a_connected_socket_ends_when_its_front_end_leaves(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        os.set_inheritable(theirs.fileno(), True)
        fd = theirs.fileno()
        daemon = DaemonProcess(tmp_path, [f"--fd={fd}", f"--shared-dir={tmp_path}"], [fd])
        daemon.wait_for("listening on")
        ours.close()
        assert daemon.wait() == 0
    assert "Traceback" not in daemon.log
