# SPDX-License-Identifier: Apache-2.0
"""QEMU with patches/qemu: its vhost-user-fs-pci passes the notification queue on."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from farwatch_harness.oracle.compare import In
from farwatch_harness.vm import patched_qemu
from farwatch_harness.vm.boot import QemuDevice
from farwatch_harness.vm.environment import (
    Environment,
    patches_of_series,
    prepare_environment,
)
from farwatch_harness.vm.qemu import NotificationDevice
from farwatch_harness.vm.testbed import Testbed, TestbedSpec, start_testbed


@pytest.fixture(scope="module")
def environment() -> Iterator[Environment]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FARWATCH_QEMU", str(patched_qemu.build()))
        found = prepare_environment(patches_of_series())
        assert found.qemu.notification_device is NotificationDevice.FILE_SYSTEM
        yield found


@pytest.fixture
def spec(environment: Environment, tmp_path: Path) -> TestbedSpec:
    (tmp_path / "shared").mkdir()
    return environment.testbed_spec("patched-qemu", tmp_path / "shared")


def interrupts(testbed: Testbed) -> dict[str, int]:
    """Return how often each of the share's virtqueues has interrupted the guest, by its name."""
    lines = testbed.guest.shell("cat /proc/interrupts")
    found = re.findall(
        r"^ *\d+:((?: +\d+)+) .*virtio\d+-(hiprio|notification|requests\.\d+)$", lines, re.M
    )
    return {name: sum(map(int, counts.split())) for counts, name in found}


def hears_the_host(testbed: Testbed) -> bool:
    """Return whether a watcher in the guest gets the event of a file made on the host."""
    with testbed.guest.inotify() as listener:
        listener.add(str(testbed.mount_point), In.CREATE)
        (testbed.shared / "made").touch()
        return [event.name for event in listener.read(1)] == ["made"]


@pytest.mark.parametrize("request_queues", [1, 2])
def test_events_arrive_by_a_queue_with_a_vector_of_its_own(
    spec: TestbedSpec, request_queues: int
) -> None:
    options = (f"--num-request-queues={request_queues}",)
    spec = dataclasses.replace(
        spec, request_queues=request_queues, cpus=request_queues, daemon_options=options
    )
    with start_testbed(spec) as testbed:
        before = interrupts(testbed)
        assert len(before) == 2 + request_queues
        assert hears_the_host(testbed)
        assert interrupts(testbed)["notification"] > before["notification"]


def test_without_the_property_events_arrive_as_replies_to_wait(spec: TestbedSpec) -> None:
    with start_testbed(dataclasses.replace(spec, device=QemuDevice.PLAIN)) as testbed:
        assert "notification" not in interrupts(testbed)
        assert hears_the_host(testbed)


def test_back_end_without_the_queue_is_used_without_it(spec: TestbedSpec) -> None:
    with start_testbed(dataclasses.replace(spec, daemon_options=("--fsnotify=off",))) as testbed:
        assert "notification" not in interrupts(testbed)
        (testbed.shared / "file").write_text("content")
        assert testbed.guest.shell(f"cat {testbed.mount_point}/file") == "content"


def test_driver_without_the_queue_uses_the_share(spec: TestbedSpec) -> None:
    image = prepare_environment([]).kernel.image
    with start_testbed(dataclasses.replace(spec, image=image)) as testbed:
        assert "notification" not in interrupts(testbed)
        (testbed.shared / "file").write_text("content")
        assert testbed.guest.shell(f"cat {testbed.mount_point}/file") == "content"
