# SPDX-License-Identifier: Apache-2.0
"""`farwatch doctor` in a real guest: what it says is what is there."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest
from farwatch_harness.kernel import build
from farwatch_harness.util import paths
from farwatch_harness.vm.boot import QemuDevice
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.testbed import Share, Testbed

DOCTOR = paths.CHECKOUT / "host-daemon/farwatch"
#: Seconds that the doctor waits for an answer.
WAIT = 30


@contextlib.contextmanager
def answering(directory: Path) -> Iterator[None]:
    """Answer the doctor on the host."""
    command = [str(Path(sys.executable).parent / "farwatchd"), "--answer-doctor", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("answering")
            yield
        finally:
            process.terminate()


def examine(guest: Guest, directory: PurePosixPath) -> tuple[int, list[str]]:
    """Run the doctor; return its status and the lines that it prints, without advice."""
    done = guest.run("sh", str(DOCTOR), "doctor", f"--wait={WAIT}", str(directory), limit=120)
    return done.status, [line for line in done.stdout.splitlines() if "->" not in line]


@pytest.mark.patch("others-only")
def test_round_trip_by_the_host_is_seen(testbed: Testbed, share: Share) -> None:
    with answering(share.host):
        status, lines = examine(testbed.guest, share.guest)
    assert status == 0, lines
    assert any("kernel" in line and line.startswith("ok") for line in lines)
    assert any("the notification queue" in line for line in lines)
    assert any(line.startswith("ok       round trip") for line in lines)


@pytest.mark.patch("wait-request")
def test_device_without_the_queue_is_named(boot: Callable[..., Testbed]) -> None:
    testbed = boot(device=QemuDevice.PLAIN)
    with answering(testbed.shared):
        status, lines = examine(testbed.guest, testbed.mount_point)
    assert status == 0, lines
    assert any("WAIT requests" in line for line in lines)


@pytest.mark.patch("base")
def test_kernel_without_the_series_is_what_is_missing(
    boot: Callable[..., Testbed], plain_kernel: build.Kernel
) -> None:
    testbed = boot(image=plain_kernel.image, device=QemuDevice.PLAIN)
    status, lines = examine(testbed.guest, testbed.mount_point)
    assert status == 1, lines
    assert lines[-1] == "Programs here do not get the host's events: kernel."
