# SPDX-License-Identifier: Apache-2.0
"""A Debian guest with Debian's kernel and the module, booted as a VM manager boots it.

FARWATCH_GUEST=patched boots the one with a patched kernel instead. Nothing of it is virtme-ng's: a
disk image, systemd, fstab, and QEMU's vhost-user-fs-pci.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from farwatch_harness.clients import catalog
from farwatch_harness.commands import debian_guest
from farwatch_harness.util import paths
from farwatch_harness.vm.boot import QemuDevice, share_options
from farwatch_harness.vm.qemu import find_qemu
from farwatch_harness.vm.virtiofs_daemon import Daemon

#: Whether the guest has a patched kernel, and not the module.
PATCHED = os.environ.get("FARWATCH_GUEST") == "patched"
FARWATCHD = str(Path(sys.executable).parent / "farwatchd")
MEMORY_MIB = 1024
#: Seconds for an emulated guest to boot on a busy machine.
BOOT_LIMIT = 600.0
LIMIT = 60.0
#: Seconds for an interpreter, or a container, to start in an emulated guest on a busy machine.
START_LIMIT = 240.0
#: The command line of a watcher of /mnt/watched, and what it prints of a new file.
WATCHERS = {
    "watchdog": ("python3 /mnt/programs/watchdog_watch.py", "created"),
    "watchfiles": ("python3 /mnt/programs/watchfiles_watch.py", "added"),
    "chokidar": ("node /mnt/programs/chokidar.mjs chokidar", "add"),
    "Go fsnotify": ("/mnt/programs/gowatch", "CREATE"),
}
#: A container's root: a directory of the guest's disk, or the lower layer of an overlay.
ROOTS = {"disk": "/root/programs", "overlay of the share": "/mnt/programs:O"}
PATH_UNIT = """[Path]
PathChanged=/mnt/trigger
"""
SERVICE = """[Service]
ExecStart=/bin/sh -c "echo fired > /mnt/fired"
"""


class DebianGuest:
    """The running guest: its console, its daemon and its share."""

    def __init__(self, folder: Path, share: Path) -> None:
        image = debian_guest.make_image(PATCHED)
        self.share = share
        self.qmp_socket = folder / "qmp"
        # As the managers start it: without --tag, and it ends with the VM.
        command = [FARWATCHD, f"--socket-path={folder / 'fs'}", f"--shared-dir={share}"]
        self.daemon = Daemon.start(command, paths.LOGS / "debian-guest-daemon.log")
        qemu = [
            str(find_qemu().program),
            *("-machine", "q35", "-m", f"{MEMORY_MIB}M", "-display", "none"),
            # Ctrl-C is for the guest.
            *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
            *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
            *("-append", "root=/dev/vda rw console=ttyS0"),
            *("-drive", f"file={image.disk},format=raw,if=virtio,snapshot=on"),
            *("-qmp", f"unix:{self.qmp_socket},server=on,wait=off"),
            *share_options(QemuDevice.PLAIN, folder / "fs", "data", MEMORY_MIB, 1),
        ]
        self.console = pexpect.spawn(
            qemu[0], qemu[1:], encoding="utf-8", codec_errors="replace", dimensions=(50, 500)
        )
        self.log = (paths.LOGS / "debian-guest-console.log").open("w")
        self.console.logfile_read = self.log

    def boot(self) -> None:
        """Wait for the prompt."""
        self.console.expect_exact("root@guest:~# ", timeout=BOOT_LIMIT)
        self.run("dmesg --console-off; cd /")

    def run(self, script: str, limit: float = LIMIT) -> tuple[int, str]:
        """Run a script in the guest's shell; return its status and what it printed."""
        self.console.sendline(f"{script}; echo end=$?=")
        self.console.expect(r"end=(\d+)=", timeout=limit)
        assert self.console.match is not None and self.console.before is not None
        return int(self.console.match[1]), self.console.before

    def wait_for(self, text: str, limit: float = LIMIT) -> None:
        """Wait until the console shows this text."""
        self.console.expect_exact(text, timeout=limit)

    def qmp(self, *commands: str) -> None:
        """Run QMP commands."""
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(str(self.qmp_socket))
            with channel.makefile("rw") as lines:
                lines.readline()
                for command in ("qmp_capabilities", *commands):
                    lines.write(json.dumps({"execute": command}))
                    lines.flush()
                    while "return" not in (answer := json.loads(lines.readline())):
                        assert "error" not in answer, answer

    def close(self) -> None:
        """End all."""
        self.console.close(force=True)
        self.daemon.stop()
        self.log.close()


@pytest.fixture(scope="module")
def guest() -> Iterator[DebianGuest]:
    # The path of a socket has at most 108 bytes.
    folder = Path(tempfile.mkdtemp(prefix="farwatch-"))
    (folder / "share").mkdir()
    running = DebianGuest(folder, folder / "share")
    try:
        running.boot()
        yield running
    finally:
        running.close()
        shutil.rmtree(folder)


def test_fstab_mounts_the_share_with_the_driver_that_has_events(guest: DebianGuest) -> None:
    status, said = guest.run("findmnt --noheadings --output SOURCE,FSTYPE /mnt")
    driver = "virtiofs" if PATCHED else "farwatchfs"
    assert status == 0 and re.search(rf"\bdata\s+{driver}\b", said), said


def test_inotifywait_sees_the_host(guest: DebianGuest) -> None:
    guest.console.sendline("inotifywait -m -r /mnt")
    guest.wait_for("Watches established.")
    (guest.share / "made").mkdir()
    guest.wait_for("/mnt/ CREATE,ISDIR made")
    (guest.share / "made").rename(guest.share / "moved")
    guest.wait_for("/mnt/ MOVED_FROM,ISDIR made")
    guest.wait_for("/mnt/ MOVED_TO,ISDIR moved")
    guest.qmp("stop")
    (guest.share / "while paused").touch()
    guest.qmp("cont")
    guest.wait_for("/mnt/ CREATE while paused")
    guest.console.sendintr()


def test_path_unit_is_fired_by_the_host(guest: DebianGuest) -> None:
    for name, text in (("seen.path", PATH_UNIT), ("seen.service", SERVICE)):
        guest.run(f"printf %b {shlex.quote(repr(text)[1:-1])} > /run/systemd/system/{name}")
    assert guest.run("systemctl daemon-reload && systemctl start seen.path")[0] == 0
    (guest.share / "trigger").write_text("now")
    assert guest.run("until [ -s /mnt/fired ]; do sleep 0.1; done")[0] == 0
    assert (guest.share / "fired").read_text() == "fired\n"


def test_bind_mount_in_another_namespace_gets_events(guest: DebianGuest) -> None:
    (guest.share / "volume").mkdir()
    watch = "mount --bind /mnt/volume /srv && inotifywait -m /srv"
    guest.console.sendline(f"unshare --mount sh -c {shlex.quote(watch)}")
    guest.wait_for("Watches established.")
    (guest.share / "volume/config").touch()
    guest.wait_for("/srv/ CREATE config")
    guest.console.sendintr()


@pytest.fixture(scope="module")
def programs(guest: DebianGuest) -> Path:
    """Copy the watchers' programs to the share; return the directory."""
    shutil.copytree(catalog.PROGRAMS, guest.share / "programs")
    shutil.copy(catalog.go_client().argv[0], guest.share / "programs")
    return guest.share / "programs"


@pytest.mark.parametrize("name", WATCHERS)
@pytest.mark.usefixtures("programs")
def test_watcher_sees_the_host(guest: DebianGuest, name: str) -> None:
    program, event = WATCHERS[name]
    (guest.share / "watched").mkdir(exist_ok=True)
    guest.console.sendline(f"{program} /mnt/watched")
    guest.wait_for("READY", START_LIMIT)
    (guest.share / "watched" / name).touch()
    guest.wait_for(f"{event} /mnt/watched/{name}")
    guest.console.sendintr()


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.usefixtures("programs")
def test_container_with_the_share_as_a_volume_gets_events(guest: DebianGuest, root: str) -> None:
    (guest.share / "data").mkdir(exist_ok=True)
    assert guest.run("[ -e /root/programs ] || cp -r /mnt/programs /root/")[0] == 0
    container = "podman run --rm --network=none --volume=/mnt/data:/data"
    guest.console.sendline(f"{container} --rootfs {ROOTS[root]} /gowatch /data")
    guest.wait_for("READY", START_LIMIT)
    (guest.share / "data" / root).touch()
    guest.wait_for(f"CREATE /data/{root}")
    guest.console.sendintr()


def test_doctor_sees_the_round_trip(guest: DebianGuest) -> None:
    answering = [FARWATCHD, "--answer-doctor", str(guest.share)]
    with subprocess.Popen(answering, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline()
        status, said = guest.run("farwatch doctor /mnt")
        process.terminate()
    assert status == 0, said
    driver = "the series" if PATCHED else "the module farwatchfs"
    assert re.search(rf"ok +kernel .*{driver}", said), said
    assert re.search(r"ok +transport +WAIT requests", said), said


def test_events_arrive_after_a_reboot_and_the_daemon_ends_with_the_vm(guest: DebianGuest) -> None:
    guest.console.sendline("reboot")
    guest.boot()
    guest.console.sendline("inotifywait -m /mnt")
    guest.wait_for("Watches established.")
    (guest.share / "after").touch()
    guest.wait_for("/mnt/ CREATE after")
    guest.console.sendintr()
    guest.console.sendline("poweroff")
    guest.console.expect(pexpect.EOF, timeout=LIMIT)
    assert guest.daemon.process.wait(LIMIT) == 0
    assert guest.daemon.tracebacks() == guest.daemon.warnings() == []
