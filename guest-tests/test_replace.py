# SPDX-License-Identifier: Apache-2.0
"""A daemon that is replaced while the guest uses the share."""

from pathlib import Path
from typing import Any

import pytest
from farwatch_harness.oracle.compare import In
from farwatch_harness.vm.boot import QemuDevice
from farwatch_harness.vm.testbed import Testbed

pytestmark = [pytest.mark.patch("notifications"), pytest.mark.daemon]

TIMES = 5

#: Writes, reads and renames until it is to end; the first error ends it earlier.
LOAD = """
cd {directory}
exec 3<> kept; rm kept; echo deleted >&3
echo started
while [ ! -e end ]; do
    echo text > new && [ "$(cat new)" = text ] && mv new old && rm old || exit 1
done
echo more >&3 && echo ended
"""


@pytest.mark.parametrize("device", [QemuDevice.EVENTS, QemuDevice.PLAIN])
def test_guest_notices_nothing_of_new_daemons(
    boot: Any, tmp_path: Path, device: QemuDevice
) -> None:
    (tmp_path / "load").mkdir()
    (tmp_path / "watched").mkdir()
    testbed: Testbed = boot(shared=tmp_path, device=device)
    guest, at = testbed.guest, testbed.mount_point
    with guest.inotify() as listener:
        listener.add(at / "watched", In.CREATE | In.DELETE | In.MOVED_FROM | In.MOVED_TO)
        load = guest.spawn("sh", "-c", LOAD.format(directory=f"{at}/load"))
        assert load.lines(until="started") == ["started"]
        expected = []
        for number in range(TIMES):
            (tmp_path / "watched" / f"before {number}").touch()
            testbed.replace_daemon()
            (tmp_path / "watched" / f"after {number}").touch()
            guest.shell(f"touch '{at}/watched/by guest {number}'")
            expected += [f"before {number}", f"after {number}", f"by guest {number}"]
        (tmp_path / "watched" / "last").touch()
        events = listener.read(until="last")
        assert sorted(event.name for event in events) == sorted([*expected, "last"])
        assert {event.mask for event in events} == {int(In.CREATE)}
        (tmp_path / "load" / "end").touch()
        assert load.lines(until="ended") == ["ended"]
