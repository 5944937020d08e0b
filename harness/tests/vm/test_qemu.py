# SPDX-License-Identifier: Apache-2.0
"""Which of a QEMU's devices has the notification queue."""

from pathlib import Path

import pytest
from farwatch_harness.util.errors import HarnessError
from farwatch_harness.vm.patched_qemu import absent_firmware
from farwatch_harness.vm.qemu import NotificationDevice, find_qemu, notification_device

FILE_SYSTEM, GENERIC = NotificationDevice

PROGRAM = """#!/bin/sh
case "$*" in
*--version*) echo "QEMU emulator version 1.2.3" ;;
{cases}
*) exit 1 ;;
esac
"""
FILE_SYSTEM_CASE = '*vhost-user-fs-pci,help*) echo "  {option}=<type>" ;;'
GENERIC_CASE = '*vhost-user-test-device-pci,help*) echo "  virtio-id=<uint16>" ;;'
PATCHED = FILE_SYSTEM_CASE.format(option="notification-queue")
STOCK = FILE_SYSTEM_CASE.format(option="tag")


@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        ([STOCK], None),
        ([STOCK, GENERIC_CASE], GENERIC),
        ([PATCHED], FILE_SYSTEM),
        ([PATCHED, GENERIC_CASE], FILE_SYSTEM),
        ([], None),
    ],
)
def test_device_is_found_by_its_property(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cases: list[str],
    expected: NotificationDevice | None,
) -> None:
    program = tmp_path / "qemu"
    program.write_text(PROGRAM.format(cases="\n".join(cases)))
    program.chmod(0o755)
    assert notification_device(program) is expected
    monkeypatch.setenv("FARWATCH_QEMU", str(program))
    if expected is None:
        with pytest.raises(HarnessError, match="has no device with the notification queue"):
            find_qemu()
    else:
        assert find_qemu().notification_device is expected


def test_program_that_does_not_exist_has_no_device(tmp_path: Path) -> None:
    assert notification_device(tmp_path / "absent") is None


def test_firmware_that_the_build_names_is_found() -> None:
    text = "fds = [\n    'edk2-a.fd',\n    'edk2-b-vars.fd',\n]\nblobs = [\n  'bios.bin',\n]\n"
    assert absent_firmware(text) == ["edk2-a.fd.bz2", "edk2-b-vars.fd.bz2"]
