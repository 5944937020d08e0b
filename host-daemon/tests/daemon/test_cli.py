# SPDX-License-Identifier: Apache-2.0
"""The command line: what it accepts and refuses, what it says, how the command ends."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest
from farwatchd import virtiofsd_compat
from farwatchd.cli import main
from farwatchd.fuse.options import Negotiation
from farwatchd.inode_store.options import InodeFileHandles
from farwatchd.migration.options import MigrationMode, MigrationOptions, OnMigrationError
from farwatchd.options import make_parser, parse
from farwatchd.passthrough.options import Cache
from farwatchd.sandbox.options import Sandbox, Seccomp
from farwatchd.watch.options import BackendName, FsnotifyMode
from tests.support.daemon_process import (
    COMMAND,
    TIMEOUT,
    DaemonProcess,
    children,
    error_line,
    running,
    wait_until,
)
from tests.support.sandboxes import CONFINING, SANDBOXES

#: VHOST_USER_GET_FEATURES.
GET_FEATURES = struct.pack("<III", 1, 1, 0)
NEEDED = ("--socket-path=/run/s", "--shared-dir=/srv")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


def _refusal(*arguments: str) -> str:
    """Return the error line of a command that cannot serve."""
    done = _run(*arguments)
    assert done.returncode == 1, done
    assert done.stdout == ""
    return error_line(done.stderr)


def test_help_shows_how_to_attach_qemu_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for part in (
        "-object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem",
        (
            "-device"
            " vhost-user-test-device-pci,chardev=fs,virtio-id=26,num_vqs=3,"
            "vq_size=128,config_size=44"
        ),
        "-device vhost-user-fs-pci,chardev=fs,tag=TAG",
        "mount -t virtiofs TAG /mnt",
    ):
        assert part in text


def test_capabilities_are_json_and_need_no_other_option() -> None:
    done = _run("--print-capabilities")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {
        "type": "fs",
        "features": [
            "separate-options",
            "migrate-precopy",
            "posix-acl-negotiation-mode",
            "security-label-negotiation-mode",
        ],
    }


def test_defaults_are_those_of_virtiofsd() -> None:
    config = parse(NEEDED)
    assert (config.socket.socket_path, config.shared_dir, config.socket.fd) == (
        Path("/run/s"),
        Path("/srv"),
        None,
    )
    share, session = config.share, config.session
    assert (share.cache, config.sandbox.sandbox) == (Cache.AUTO, Sandbox.NAMESPACE)
    assert not (
        share.writeback
        or share.readonly
        or share.xattr
        or share.allow_direct_io
        or share.security_labels
        or share.preserve_noatime
    )
    assert not (session.posix_lock or session.flock or session.killpriv_v2 or session.allow_mmap)
    assert share.announce_submounts and session.readdirplus
    assert (session.posix_acl, config.sandbox.seccomp) == (Negotiation.NEVER, Seccomp.KILL)
    assert config.watch.fsnotify is FsnotifyMode.AUTO
    assert config.watch.fsnotify_backend is BackendName.AUTO


def test_options_of_the_share_reach_the_session() -> None:
    config = parse([*NEEDED, "--writeback", "--security-label", "--no-announce-submounts"])
    for record in (config.share, config.session):
        assert record.writeback and not record.announce_submounts
    assert config.share.security_labels
    assert not parse([*NEEDED, "--cache=never"]).session.readdirplus
    assert not parse([*NEEDED, "--fsnotify=off"]).device.notification


@pytest.mark.parametrize("name", ["others", "merged"])
def test_mode_others_is_accepted_by_its_former_name(name: str) -> None:
    assert parse([*NEEDED, f"--fsnotify={name}"]).watch.fsnotify is FsnotifyMode.OTHERS
    assert "merged" not in make_parser().format_help()


@pytest.mark.parametrize(
    "option", ["--posix-acl", "--posix-acl=auto", "--security-label", "--xattrmap=:map::user.x.:"]
)
def test_options_that_need_xattrs_enable_them(option: str) -> None:
    assert parse([*NEEDED, option]).share.xattr
    assert not parse([*NEEDED, "--posix-acl=never"]).share.xattr


def test_rules_for_uid_and_gid_translation_add_up() -> None:
    rules = (
        "--translate-uid=map:1000:5000:1",
        "--translate-uid=guest:0:7:1",
        "--translate-gid=squash-host:0:3:10",
    )
    found = parse([*NEEDED, *rules]).share.id_translation
    assert found is not None
    assert [found.users.to_host(number) for number in (0, 1, 1000)] == [7, 1, 5000]
    assert [found.groups.to_guest(number) for number in (0, 9, 10)] == [3, 3, 10]
    assert parse(NEEDED).share.id_translation is None


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (("--posix-acl",), "session.posix_acl", Negotiation.ALWAYS),
        (("--posix-acl=auto",), "session.posix_acl", Negotiation.AUTO),
        (("--no-announce-submounts",), "share.announce_submounts", False),
        (("--killpriv-v2",), "session.killpriv_v2", True),
        (("--killpriv-v2", "--no-killpriv-v2"), "session.killpriv_v2", False),
        (("--no-readdirplus",), "session.readdirplus", False),
        (("--rlimit-nofile=0",), "sandbox.rlimit_nofile", 0),
        (("-d",), "process.log_level", "debug"),
        (("--socket=/other",), "socket.socket_path", Path("/other")),
        (("--socket", "/other"), "socket.socket_path", Path("/other")),
        (("--inode-file-handles=fallback",), "share.inode_file_handles", InodeFileHandles.PREFER),
        (("--security-label=auto",), "session.security_label", Negotiation.AUTO),
        (("--security-label=always",), "session.security_label", Negotiation.ALWAYS),
        (("--security-label=never",), "share.xattr", False),
        (("--security-label",), "session.security_label", Negotiation.ALWAYS),
        (("--thread-pool-size=128",), "process.thread_pool_size", 128),
        (("--max-inodes=7",), "share.max_inodes", 7),
        (("--cache=never", "--cache=always"), "share.cache", Cache.ALWAYS),
        (("-o", "source=/other"), "shared_dir", Path("/other")),
        (("-osandbox=chroot",), "sandbox.sandbox", Sandbox.CHROOT),
        (("-o", "no_flock,cache=none"), "share.cache", Cache.NEVER),
        (("-o", "flock"), "session.flock", True),
        (("-o", "xattr,posix_lock,writeback"), "session.posix_lock", True),
        (("-o", "no_posix_acl"), "session.posix_acl", Negotiation.NEVER),
        (("-o", "no_announce_submounts"), "share.announce_submounts", False),
        (("-f", "-o", "allow_root"), "share.xattr", False),
    ],
)
def test_both_forms_of_options_are_understood(
    arguments: tuple[str, ...], field: str, value: object
) -> None:
    assert attrgetter(field)(parse([*NEEDED, *arguments])) == value


def test_each_old_option_is_translated_to_an_existing_one() -> None:
    samples = {
        "source": "/srv",
        "cache": "auto",
        "log_level": "err",
        "modcaps": "+chown",
        "timeout": "5",
        "sandbox": "none",
    }
    samples["xattrmap"] = ":map::user.x.:"
    for name in virtiofsd_compat._FLAGS:
        parse([*NEEDED, "-o", name])
    for name in virtiofsd_compat._VALUES:
        parse([*NEEDED, "-o", f"{name}={samples[name]}"])


def test_options_without_effect_are_logged_at_start(tmp_path: Path) -> None:
    options = ("--timeout=1", "--writeback", "--readonly")
    with running(tmp_path / "socket", tmp_path, *options) as daemon:
        for text in (
            "--timeout has no effect: --cache sets",
            "--writeback has no effect: --readonly",
        ):
            assert daemon.log.count(text) == 1


def test_migration_options_are_virtiofsds() -> None:
    assert parse(NEEDED).migration == MigrationOptions()
    options = (
        "--migration-on-error=guest-error",
        "--migration-mode=file-handles",
        "--migration-confirm-paths",
        "--migration-verify-handles",
    )
    assert parse([*NEEDED, *options]).migration == MigrationOptions(
        MigrationMode.FILE_HANDLES, OnMigrationError.GUEST_ERROR, True, True
    )


def test_options_that_were_not_given_are_not_logged() -> None:
    assert parse(NEEDED).without_effect == ()


def test_version_option_prints_the_version() -> None:
    for option in ("-V", "--version"):
        done = _run(option)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("farwatchd ")


def test_limit_of_open_files_can_stay_unchanged(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with running(tmp_path / "socket", tmp_path, "--rlimit-nofile=0") as daemon:
        assert resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE) == (soft, hard)
    with running(tmp_path / "socket", tmp_path, "--rlimit-nofile=100") as daemon:
        assert resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)[0] == 100


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "one of --socket-path and --fd is needed"),
        (("--socket-path=/s",), "--shared-dir is needed"),
        ((*NEEDED, "--fd=3"), "--socket-path and --fd exclude each other"),
        (
            ("--fd=3", "--shared-dir=/srv", "--socket-group=root"),
            "--socket-group needs --socket-path",
        ),
        ((*NEEDED, "--tag=" + "t" * 37), "has 37 bytes; it must have 1 to 36"),
        ((*NEEDED, "--cache=sometimes"), "'sometimes' is not one of never, auto, metadata, always"),
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
        ((*NEEDED, "--thread-pool=4"), "unrecognized arguments"),
        ((*NEEDED, "-o", "sauce=/srv"), "-o sauce=/srv: there is no such option"),
        ((*NEEDED, "-o", "xattr=yes"), "there is no such option"),
        ((*NEEDED, "-o"), "there is no such option"),
        ((*NEEDED, "--rlimit-nofile=5"), "5 is not between"),
        ((*NEEDED, "--posix-acl=maybe"), "maybe"),
        (
            (*NEEDED, "--translate-uid=map:1:2"),
            "'map:1:2' is not map:source base:target base:count",
        ),
        (
            (*NEEDED, "--translate-gid=map:1:2:3", "--translate-gid=host:4:0:1"),
            "are about the same id: 4",
        ),
        ((*NEEDED, "--translate-uid=map:1:2:3", "--posix-acl"), "exclude --posix-acl"),
        ((*NEEDED, "--uid-map=0:1:2"), "'0:1:2' is not :namespace id:host id:count:"),
        ((*NEEDED, "--gid-map=:0:1:2:", "--sandbox=chroot"), "need --sandbox=namespace"),
        ((*NEEDED, "--thread-pool-size=65537"), "65537 is not between"),
        ((*NEEDED, "--busy-poll=1001"), "1001 is not between"),
        (
            (*NEEDED, "--xattrmap=:nap::user.x.:"),
            "'nap' is not one of prefix, ok, bad, unsupported, map",
        ),
    ],
)
def test_wrong_usage_ends_with_status_2_and_the_reason(
    arguments: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse(arguments)
    assert end.value.code == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("kind", ["path", "fd"])
def test_daemon_ends_when_its_vmm_disconnects(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    shared = tmp_path / "shared"
    shared.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        where = [f"--socket-path={path}"]
        inherited: tuple[int, ...] = ()
        if kind == "fd":
            listener.bind(str(path))
            listener.listen()
            where, inherited = [f"--fd={listener.fileno()}"], (listener.fileno(),)
        daemon = DaemonProcess(path, [*where, f"--shared-dir={shared}"], inherited)
    daemon.wait_for("Waiting for vhost-user socket connection")
    with daemon.connect() as front_end:
        front_end.settimeout(TIMEOUT)
        front_end.sendall(GET_FEATURES)
        assert len(front_end.recv(20)) == 20
    assert daemon.wait() == 0
    assert "Traceback" not in daemon.log
    assert path.exists() == (kind == "fd")


def test_background_daemon_is_ready_when_the_command_returns(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    shared = tmp_path / "shared"
    shared.mkdir()
    done = _run("--daemonize", f"--socket-path={path}", f"--shared-dir={shared}")
    assert done.returncode == 0
    assert "listening on" in done.stderr
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.settimeout(TIMEOUT)
        front_end.connect(str(path))
        front_end.sendall(GET_FEATURES)
        assert len(front_end.recv(20)) == 20
    wait_until(lambda: not path.exists(), "the end of the daemon")
    refused = _run("--daemonize", f"--socket-path={path}", f"--shared-dir={tmp_path}/none")
    assert refused.returncode == 1


#: The command lines with which VM managers start virtiofsd; SOCKET and FD stand for the socket.
COMMAND_LINES = {
    "libvirt": "--fd=FD --cache always --sandbox namespace --xattr --thread-pool-size=4"
    " --rlimit-nofile=4096",
    "libvirt, older": "--fd=FD -o source=SHARE,cache=none,sandbox=chroot,no_xattr,no_flock -d",
    "libvirt, session": "--fd=FD --uid-map=:0:0:1: --gid-map=:0:0:1: --uid-map=:1:100000:65536:",
    "Incus": "--fd=FD --cache=metadata --posix-acl=auto",
    "Incus, ids": "--fd=FD --translate-uid=map:0:1000000:65536"
    " --translate-uid=forbid-guest:65536:4294901759",
    "Incus, no ids left": "--fd=FD --translate-uid=forbid-guest:4294967295:0",
    "Kata, Go": "--syslog --cache=auto --fd=FD --inode-file-handles=prefer --thread-pool-size=1"
    " --announce-submounts",
    "Kata, Rust": "--socket-path SOCKET --cache auto --thread-pool-size=1 -o announce_submounts"
    " --xattr",
    "Podman": "--sandbox none --socket-path SOCKET --seccomp=none",
    "Proxmox": "--fd=FD --xattr --posix-acl --announce-submounts --allow-direct-io --cache=auto"
    " --syslog",
    "KubeVirt": "--socket-path=SOCKET --sandbox=none --cache=auto --migration-on-error=guest-error"
    " --migration-mode=find-paths",
    "systemd-vmspawn": "--xattr --fd FD --no-announce-submounts --log-level=error --modcaps=-mknod",
    "virtme-ng": "--syslog --no-announce-submounts --posix-acl --readonly --socket-path SOCKET"
    " --sandbox none --cache auto",
    "bcvk": "--socket-path SOCKET --cache=never --allow-mmap --sandbox=none --readonly"
    " --inode-file-handles=fallback",
    "microvm.nix": "--socket-path=SOCKET --socket-group=root --rlimit-nofile 4096"
    " --thread-pool-size 128 --posix-acl --xattr",
    "virtiofsd 1.14": "--socket-path=SOCKET --security-label=auto --posix-acl=auto",
    "virtiofsd, older": "--socket SOCKET -o timeout=5 -f",
}


@pytest.mark.parametrize("words", COMMAND_LINES.values(), ids=COMMAND_LINES)
def test_command_line_of_a_vm_manager_is_accepted(words: str) -> None:
    arguments = words.replace("SOCKET", "/run/s").replace("FD", "5").split()
    config = parse(["--shared-dir=/srv", *arguments])
    assert config.socket.name in ("/run/s", "descriptor 5")


def test_missing_directory_is_refused_without_a_socket_left(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    line = _refusal(f"--socket-path={path}", f"--shared-dir={tmp_path}/none")
    assert f"{tmp_path}/none" in line and "No such file or directory" in line
    assert not path.exists()


@pytest.mark.parametrize("sandbox", ["none", pytest.param("chroot", marks=pytest.mark.root)])
def test_single_file_needs_the_namespace_sandbox(sandbox: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is a file: it can be shared with --sandbox=namespace" in _refusal(
        f"--socket-path={tmp_path}/socket",
        f"--shared-dir={tmp_path}/file",
        f"--sandbox={sandbox}",
    )


def test_file_at_the_path_of_the_socket_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "socket").write_text("precious")
    line = _refusal(f"--socket-path={tmp_path}/socket", f"--shared-dir={tmp_path}")
    assert "is not a socket" in line
    assert (tmp_path / "socket").read_text() == "precious"


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    where = (f"--socket-path={tmp_path}/socket", f"--shared-dir={tmp_path}")
    assert "there is no such group" in _refusal(*where, "--socket-group=no-such-group")
    assert "not an open socket" in _refusal("--fd=99", f"--shared-dir={tmp_path}")
    assert not (tmp_path / "socket").exists()


def test_living_daemons_socket_is_refused_and_a_dead_ones_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with running(path, tmp_path) as first:
        assert "another daemon listens" in _refusal(
            f"--socket-path={path}", f"--shared-dir={tmp_path}"
        )
        first.connect().close()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.is_socket()
    with running(path, tmp_path) as second:
        assert "replacing the socket" in second.log
        second.connect().close()


def test_killed_daemon_s_socket_is_removed_but_not_another_s(tmp_path: Path) -> None:
    path, pid_file = tmp_path / "socket", tmp_path / "socket.pid"
    with running(path, tmp_path) as daemon:
        assert (pid_file.read_text(), pid_file.stat().st_mode & 0o777) == (
            f"{daemon.process.pid}\n",
            0o644,
        )
        pid_file.unlink()
        pid_file.write_text("another's")
        (helper,) = set(children(daemon.process.pid)) - {daemon.pid}
        daemon.process.kill()
        daemon.wait()
        wait_until(lambda: not Path(f"/proc/{helper}").exists(), "the end of the helper")
    assert not path.exists()
    assert pid_file.read_text() == "another's"


def test_socket_cleanup_has_no_descriptor_of_the_daemon(tmp_path: Path) -> None:
    with running(tmp_path / "socket", tmp_path) as daemon:
        (helper,) = set(children(daemon.process.pid)) - {daemon.pid}
        # It comes to rest by itself.
        wait_until(lambda: len(list(Path(f"/proc/{helper}/fd").iterdir())) == 4, "few descriptors")
        targets = {Path(f"/proc/{helper}/fd/{number}").readlink() for number in range(3)}
        assert targets == {Path(os.devnull)}
        os.kill(helper, signal.SIGTERM)
        assert daemon.end() == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize("closed", [(0,), (1,), (0, 1), (1, 2), (0, 1, 2)])
def test_closed_standard_descriptors_are_opened(closed: tuple[int, ...], tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    arguments = [f"--socket-path={tmp_path}/socket", f"--shared-dir={shared}"]
    command = " ".join(["exec", *(f"{number}>&-" for number in closed)]) + ' && exec "$@"'
    process = subprocess.Popen(
        ["sh", "-c", command, "sh", *COMMAND, *arguments], stderr=subprocess.DEVNULL
    )
    try:
        wait_until((tmp_path / "socket.pid").exists, "the pid file")
        with socket.socket(socket.AF_UNIX) as front_end:
            front_end.settimeout(TIMEOUT)
            front_end.connect(str(tmp_path / "socket"))
            front_end.sendall(GET_FEATURES)
            assert len(front_end.recv(20)) == 20
            assert (tmp_path / "socket").exists() and (tmp_path / "socket.pid").exists()
            for pid in (process.pid, *children(process.pid)):
                for number in closed:
                    assert Path(f"/proc/{pid}/fd/{number}").readlink().name == "null"
    finally:
        process.terminate()
        process.wait(TIMEOUT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shared"]


@pytest.mark.root
@pytest.mark.parametrize("sandbox", CONFINING)
def test_serving_daemon_has_no_descriptor_of_a_directory_outside_the_share(
    sandbox: str, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    with running(tmp_path / "socket", shared, f"--sandbox={sandbox}") as daemon:
        inside = shared.stat().st_dev, shared.stat().st_ino
        for fd in Path(f"/proc/{daemon.pid}/fd").iterdir():
            found = fd.stat()
            assert not stat.S_ISDIR(found.st_mode) or (found.st_dev, found.st_ino) == inside


@pytest.mark.parametrize("sandbox", SANDBOXES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_daemon_and_its_socket(
    sandbox: str, number: signal.Signals, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    with running(path, tmp_path, f"--sandbox={sandbox}") as daemon:
        assert path.is_socket()
        assert path.stat().st_mode & 0o777 == 0o600
        assert daemon.end(number) == 0
    assert not path.exists()


@pytest.mark.root
def test_socket_is_given_to_the_group(tmp_path: Path) -> None:
    with running(tmp_path / "socket", tmp_path, "--socket-group=daemon"):
        status = (tmp_path / "socket").stat()
        assert status.st_mode & 0o777 == 0o660
        assert status.st_gid == 1


#: A /dev with nothing but a syslog that the test has, in a mount namespace of the daemon's.
WITH_SYSLOG = """
touch "$0/null" && mount --bind /dev/null "$0/null" && mount -t tmpfs none /dev &&
touch /dev/null &&
mount --bind "$0/null" /dev/null && ln -s "$0/log" /dev/log && exec "$@"
"""


class LoggingDaemon(DaemonProcess):
    """A daemon that logs to the test's syslog."""

    command = ("unshare", "-m", "sh", "-c", WITH_SYSLOG)


@pytest.mark.parametrize("sandbox", ["namespace", "none"])
@pytest.mark.root
def test_messages_go_to_syslog_which_may_end(sandbox: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(tmp_path / "log"))
        syslog.settimeout(TIMEOUT)
        shared = tmp_path / "shared"
        shared.mkdir()
        options = [
            f"--socket-path={tmp_path}/socket",
            f"--shared-dir={shared}",
            "--syslog",
            "--keep-serving",
            f"--sandbox={sandbox}",
        ]
        daemon = LoggingDaemon(tmp_path / "socket", [str(tmp_path), *COMMAND, *options])
        lines: list[str] = []
        while not lines or "listening on" not in lines[-1]:
            lines.append(syslog.recv(1 << 16).decode())
    # The facility is daemon (3), the level info (6).
    assert all(line.startswith(f"<{3 * 8 + 6}>farwatchd[") for line in lines), lines
    for _ in range(2):
        daemon.connect().close()
    daemon.wait_for("syslog has gone")
    daemon.connect().close()
    assert daemon.end() == 0
    assert daemon.log.splitlines() == ["farwatchd: syslog has gone: later messages are lost"]


@pytest.mark.root
def test_without_syslog_the_daemon_warns_and_logs_to_stderr(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    options = [f"--socket-path={tmp_path}/socket", f"--shared-dir={shared}", "--syslog"]
    daemon = LoggingDaemon(tmp_path / "socket", [str(tmp_path), *COMMAND, *options])
    daemon.wait_for("listening on")
    assert "WARNING" in daemon.log and "there is no syslog at /dev/log" in daemon.log
    assert daemon.end() == 0


def test_relative_paths_are_those_of_the_caller(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    daemon = subprocess.Popen(
        [*COMMAND, "--socket-path=socket", "--shared-dir=shared"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
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


def test_c_library_without_a_needed_function_ends_the_daemon_with_one_line(tmp_path: Path) -> None:
    code = """
import ctypes, sys
find = ctypes.CDLL.__getitem__
def without(library, name):
    if name == "renameat2":
        raise AttributeError(name)
    return find(library, name)
ctypes.CDLL.__getitem__ = without
from farwatchd.cli import main
sys.exit(main(sys.argv[1:]))
"""
    options = [f"--socket-path={tmp_path}/socket", f"--shared-dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *options],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 1
    assert error_line(done.stderr) == (
        "farwatchd: the C library has no renameat2(); glibc 2.30 or later is needed"
    )
    assert not (tmp_path / "socket").exists()


@pytest.mark.parametrize(
    ("module", "late"),
    [
        # The socket is made then.
        ("cli", {"argparse", "dataclasses", "logging", "pathlib", "socket", "typing"}),
        # The options are read then, and errors of them are found.
        (
            "command",
            {
                "construct",
                "farwatchd.daemon",
                "farwatchd.fuse.filesystem",
                "farwatchd.inode_store.store",
                "farwatchd.wire.fuse",
                "farwatchd.wire.state",
                "pyseccomp",
                "subprocess",
            },
        ),
    ],
)
def test_what_takes_long_to_load_is_loaded_later(module: str, late: set[str]) -> None:
    # Without what an environment of the tests loads in each interpreter.
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; import farwatchd.{module}; print(*sys.modules)"
    )
    loaded = subprocess.run(
        [COMMAND[0], "-S", "-c", code], capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()
    assert late & set(loaded) == set()
