# SPDX-License-Identifier: Apache-2.0
"""``farwatch doctor`` on directories that stand for a guest's, and ``--answer-doctor``."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.daemon_process import COMMAND, TIMEOUT, wait_until

SCRIPT = Path(__file__).resolve().parents[2] / "farwatch"
SHELLS = [shell for shell in ("sh", "bash", "busybox") if shutil.which(shell)]
#: The programs that the doctor needs, but for the one that watches.
PROGRAMS = ("cat", "head", "sort", "tail", "uname", "sh")
#: Seconds that the doctor waits for an answer that does not come.
WAIT = 1


class Machine:
    """What /proc and /sys say of a guest, and a directory that stands for its share."""

    def __init__(self, folder: Path) -> None:
        self.share = folder / "the share"
        self.share.mkdir()
        self.proc, self.sys = folder / "proc", folder / "sys"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "sys/kernel").mkdir(parents=True)
        (self.proc / "sys/kernel/osrelease").write_text("6.12.1-test\n")
        self.limits = self.proc / "sys/fs/inotify"
        self.limits.mkdir(parents=True)
        for name, value in (("watches", 65536), ("instances", 128)):
            (self.limits / f"max_user_{name}").write_text(f"{value}\n")
        (self.limits / "max_queued_events").write_text("16384\n")
        self.mounted("virtiofs")
        self.instance = self.sys / "fs/virtiofs/0"
        self.driver()

    def mounted(self, kind: str, access: str = "rw") -> None:
        """Have the share mounted with this type."""
        place = str(self.share).replace(" ", r"\040")
        (self.proc / "self/mountinfo").write_text(
            "21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
            f"30 21 0:30 / {place} {access},relatime - {kind} src\\0400 rw\n"
            f"31 30 0:31 / {place}/below rw - tmpfs none rw\n"
        )

    def driver(self, kind: str = "virtiofs", features: str = "1000") -> None:
        """Have the driver of this kind serve the share."""
        self.instance = self.sys / f"fs/{kind}/7"
        (self.instance / "device").mkdir(parents=True)
        (self.instance / "tag").write_text("src 0\n")
        (self.instance / "notify_dropped").write_text("0\n")
        (self.instance / "device/features").write_text(features + "\n")

    def doctor(
        self, *words: str, shell: str = "sh", path: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the doctor as in this guest, on its share."""
        interpreter = ["busybox", "sh"] if shell == "busybox" else [shell]
        environment = {
            "PATH": path or os.environ["PATH"],
            "FARWATCH_PROC": str(self.proc),
            "FARWATCH_SYS": str(self.sys),
        }
        return subprocess.run(
            [*interpreter, str(SCRIPT), "doctor", f"--wait={WAIT}", *(words or [str(self.share)])],
            capture_output=True, text=True, timeout=TIMEOUT, check=False, env=environment,
        )  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@contextlib.contextmanager
def answering(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the host's side; it must end in order, and leave nothing behind."""
    process = subprocess.Popen(
        [*COMMAND, "--answer-doctor", str(directory)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("answering farwatch doctor in ")
        yield process
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0 and said.startswith("answered "), said
        assert list(directory.iterdir()) == []
    finally:
        process.kill()
        process.wait()


def rows(text: str) -> dict[str, tuple[str, str]]:
    """Return the result and what was found of each thing; with the advice."""
    found: dict[str, tuple[str, str]] = {}
    thing = ""
    for line in text.partition("\n\n")[0].splitlines():
        result, rest = line[:8].strip(), line[9:]
        if result:
            thing, _, said = rest.partition("  ")
            thing = thing.strip()
            found[thing] = (result, said.strip())
        else:
            found[thing] = (found[thing][0], f"{found[thing][1]} {rest.strip()}")
    return found


@pytest.mark.parametrize("shell", SHELLS)
def test_answer_that_arrives_is_timed(machine: Machine, shell: str) -> None:
    with answering(machine.share):
        done = machine.doctor(shell=shell)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    found = rows(done.stdout)
    assert {result for result, _ in found.values()} == {"ok"}
    assert found["share"][1] == "src 0 is mounted as virtiofs"
    assert found["kernel"][1] == "Linux 6.12.1-test with the series"
    assert found["transport"][1] == "the notification queue"
    fastest, to, slowest, unit = found["round trip"][1].split()[:4]
    assert (to, unit) == ("to", "us") and 0 < int(fastest) <= int(slowest) < WAIT * 1e6
    assert done.stdout.splitlines()[-1] == "It works here: programs get the host's events."


@pytest.mark.skipif(not shutil.which("perl"), reason="needs perl")
def test_perl_is_enough(machine: Machine, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in (*PROGRAMS, "perl"):
        (programs / name).symlink_to(str(shutil.which(name)))
    with answering(machine.share):
        assert machine.doctor(path=str(programs)).returncode == 0
    done = machine.doctor(path=str(programs))
    assert done.returncode == 3 and "no answer from the host" in done.stdout
    (programs / "perl").unlink()
    done = machine.doctor(path=str(programs))
    assert done.returncode == 3 and "no python3 or perl" in done.stdout
    assert list(machine.share.iterdir()) == []


def test_host_that_does_not_answer_is_a_status_of_its_own(machine: Machine) -> None:
    done = machine.doctor()
    assert done.returncode == 3
    result, said = rows(done.stdout)["round trip"]
    assert result == "limited" and said.startswith(f"no answer from the host in {WAIT} s")
    assert (
        f'-> run "farwatchd --answer-doctor DIR" on the host, DIR being what {machine.share}'
        in said
    )
    assert list(machine.share.iterdir()) == []


def test_kernel_without_the_series_lacks_events(machine: Machine) -> None:
    (machine.instance / "notify_dropped").unlink()
    done = machine.doctor()
    assert done.returncode == 1
    result, said = rows(done.stdout)["kernel"]
    assert result == "MISSING" and "-> build the module farwatchfs" in said
    assert done.stdout.splitlines()[-1] == "Programs here do not get the host's events: kernel."
    (machine.sys / "module/farwatchfs").mkdir(parents=True)
    assert "install mount.virtiofs" in rows(machine.doctor().stdout)["kernel"][1]


def test_module_and_wait_requests_are_named(machine: Machine) -> None:
    shutil.rmtree(machine.instance)
    machine.mounted("farwatchfs")
    machine.driver("farwatchfs", features="0000")
    found = rows(machine.doctor().stdout)
    assert found["kernel"] == ("ok", "Linux 6.12.1-test with the module farwatchfs")
    assert found["transport"][1].startswith("WAIT requests")


def test_devices_of_linux_6_1_are_known_without_tags(machine: Machine) -> None:
    shutil.rmtree(machine.instance.parent)
    assert rows(machine.doctor().stdout)["kernel"][0] == "MISSING"
    devices = machine.sys / "bus/virtio/drivers/virtiofs"
    for number, name in enumerate(("virtio2", "virtio3")):
        (devices / name).mkdir(parents=True)
        (devices / name / "features").write_text(f"{number}000\n")
    assert rows(machine.doctor().stdout)["kernel"][0] == "MISSING"
    (devices / "virtio3/notify_dropped").write_text("0\n")
    found = rows(machine.doctor().stdout)
    assert found["kernel"] == ("ok", "Linux 6.12.1-test with the series")
    assert found["transport"] == ("ok", "the notification queue")
    (devices / "virtio2/notify_dropped").write_text("0\n")
    found = rows(machine.doctor().stdout)
    assert found["kernel"][0] == "ok"
    assert "transport" not in found, "it is not known which of the devices has the share"


def test_read_only_share_is_not_written_to(machine: Machine) -> None:
    machine.mounted("virtiofs", access="ro")
    done = machine.doctor()
    assert done.returncode == 3
    assert rows(done.stdout)["round trip"][1].startswith("not tried: the share is read-only")


def test_low_limit_says_what_to_set(machine: Machine) -> None:
    (machine.limits / "max_user_watches").write_text("8316\n")
    result, said = rows(machine.doctor().stdout)["fs.inotify.max_user_watches"]
    assert (result, said) == ("limited", "8316 -> sysctl -w fs.inotify.max_user_watches=65536")


def test_kernel_without_inotify_is_missing_it(machine: Machine) -> None:
    (machine.limits / "max_user_watches").unlink()
    done = machine.doctor()
    assert done.returncode == 1 and "set CONFIG_INOTIFY_USER" in done.stdout


def test_mount_below_the_share_is_not_the_share(machine: Machine) -> None:
    (machine.share / "below").mkdir()
    empty = machine.share.parent / "empty"
    empty.mkdir()
    for name in PROGRAMS:
        (empty / name).symlink_to(str(shutil.which(name)))
    done = machine.doctor(str(machine.share / "below"), path=str(empty))
    assert done.returncode == 1 and "is tmpfs, no virtiofs" in done.stdout


def test_directory_of_the_host_is_checked_by_the_daemon(machine: Machine, tmp_path: Path) -> None:
    machine.mounted("ext4")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "farwatchd").write_text('#!/bin/sh\necho "$@"\nexit 42\n')
    (programs / "farwatchd").chmod(0o755)
    done = machine.doctor(path=f"{programs}:{os.environ['PATH']}")
    assert (done.returncode, done.stdout) == (42, f"--check={machine.share}\n")
    # One that was installed with the doctor needs no PATH.
    shutil.copy(SCRIPT, programs)
    done = subprocess.run(
        [str(programs / "farwatch"), "doctor", "/"],
        capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (42, "--check=/\n")


@pytest.mark.parametrize("words", [["/nonexistent"], ["--help"], ["--wait=soon", "/"], ["/", "/"]])
def test_wrong_usage_is_said(machine: Machine, words: list[str]) -> None:
    done = machine.doctor(*words)
    if words == ["/nonexistent"]:
        assert done.returncode == 1 and "-> name where the share is mounted" in done.stdout
    else:
        assert (done.returncode, done.stderr.split(":")[0]) == (2, "usage")


def test_answer_follows_no_symlink_and_opens_no_file(tmp_path: Path) -> None:
    share, outside = tmp_path / "share", tmp_path / "outside"
    share.mkdir()
    with answering(share) as process:
        (share / ".farwatch-doctor.1-0.answer").symlink_to(outside)
        (share / ".farwatch-doctor.2-0.answer").write_text("mine")
        for name in ("1-0", "2-0", "../3-0", "x", "4-0.ask"):
            with contextlib.suppress(FileNotFoundError):
                (share / f".farwatch-doctor.{name}.ask").touch()
        (share / ".farwatch-doctor.5-0.ask").touch()
        answer = share / ".farwatch-doctor.5-0.answer"
        wait_until(answer.exists, "the answer")
        assert (answer.stat().st_mode & 0o777, process.poll()) == (0o600, None)
        assert not outside.exists()
        assert (share / ".farwatch-doctor.2-0.answer").read_text() == "mine"
        answers = [path.name for path in share.glob("*.answer")]
        assert sorted(answers) == [f".farwatch-doctor.{n}-0.answer" for n in (1, 2, 5)]
        for path in share.iterdir():
            if path != answer:
                path.unlink()
        wait_until(lambda: not answer.exists(), "the end of the answer")


def test_answers_are_limited_and_end_with_the_process(tmp_path: Path) -> None:
    with answering(tmp_path) as process:
        for number in range(200):
            (tmp_path / f".farwatch-doctor.{number}-0.ask").touch()
        wait_until(lambda: len(list(tmp_path.glob("*.answer"))) == 64, "64 answers")
        process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT)
        assert list(tmp_path.glob("*.answer")) == []
        for path in tmp_path.iterdir():
            path.unlink()


def test_directory_that_is_missing_is_an_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--answer-doctor", str(tmp_path / "none")],
        capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "No such file or directory" in done.stderr
