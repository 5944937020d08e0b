# SPDX-License-Identifier: Apache-2.0
"""A daemon that is killed while the guest uses the share, and started again."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from farwatch_harness.oracle.compare import In
from farwatch_harness.vm.boot import QemuDevice
from farwatch_harness.vm.testbed import Testbed

pytestmark = [pytest.mark.patch("overflow"), pytest.mark.daemon]

TIMES = 5
#: Watches that the next daemon gets, and the seconds that this takes at most.
MANY = int(os.environ.get("FARWATCH_WATCHES", "10000"))
SOON = 30.0 * max(MANY, 10000) / 10000
WATCH_MANY = Path(__file__).parent / "programs" / "watch_many.py"

#: Writes, reads and renames until it is to end; the first error ends it earlier.
LOAD = """
cd {directory}
exec 3<> kept
echo started
while [ ! -e end ]; do
    echo text > new && [ "$(cat new)" = text ] && mv new old && rm old || exit 1
    mkdir dir && rmdir dir && ln -s target link && rm link || exit 2
    echo line >> log && echo line >> expected.$$ || exit 3
done
cmp log expected.$$ && echo more >&3 && echo ended
"""


@pytest.mark.parametrize("device", [QemuDevice.EVENTS, QemuDevice.PLAIN])
def test_guest_goes_on_after_its_daemon_was_killed(
    boot: Any, tmp_path: Path, device: QemuDevice
) -> None:
    shared, state = tmp_path / "shared", tmp_path / "state"
    for directory in (shared, shared / "load", shared / "watched"):
        directory.mkdir()
    testbed: Testbed = boot(
        shared=shared,
        daemon_options=(f"--state-dir={state}",),
        device=device,
    )
    guest, at = testbed.guest, testbed.mount_point
    with guest.inotify() as listener:
        listener.add(at / "watched", In.CREATE | In.DELETE | In.MOVED_FROM | In.MOVED_TO)
        load = guest.spawn("sh", "-c", LOAD.format(directory=f"{at}/load"))
        assert load.lines(until="started") == ["started"]
        for number in range(TIMES):
            (shared / "watched" / f"before {number}").touch()
            events = listener.read(until=f"before {number}")
            assert [event.name for event in events] == [f"before {number}"]
            testbed.kill_daemon()
            (shared / "watched" / f"between {number}").touch()
            guest.shell(f"touch '{at}/watched/by guest {number}'")
            (shared / "watched" / f"after {number}").touch()
            events = listener.read(until=f"after {number}")
            assert [event.mask for event in events].count(int(In.Q_OVERFLOW)) == 1, events
            names = [event.name for event in events]
            assert len(names) == len(set(names)), events
        (shared / "load" / "end").touch()
        assert load.lines(until="ended") == ["ended"]


def test_many_watches_are_there_again_soon(boot: Any, tmp_path: Path) -> None:
    shared, state = tmp_path / "shared", tmp_path / "state"
    shared.mkdir()
    for number in range(MANY):
        (shared / str(number)).touch()
    testbed: Testbed = boot(shared=shared, daemon_options=(f"--state-dir={state}",))
    guest = testbed.guest
    for name in ("max_user_watches", "max_queued_events"):
        guest.write_file(f"/proc/sys/fs/inotify/{name}", str(2 * MANY).encode())
    watcher = guest.spawn("python3", WATCH_MANY, testbed.mount_point, str(MANY))
    lines = watcher.lines(until="watching", limit=60 + MANY / 50)
    assert lines[-1] == f"watching {MANY}"
    watches = testbed.daemon.host_watches()
    testbed.kill_daemon()
    began = time.monotonic()
    while (found := testbed.daemon.host_watches()) != watches:
        assert time.monotonic() - began < SOON, f"{found} of {watches} watches after {SOON} s"
        time.sleep(0.05)
    print(f"{watches} watches in {time.monotonic() - began:.2f} s")
    for number in range(MANY):
        (shared / str(number)).chmod(0o600)
    lines = watcher.lines(count=MANY + 1, limit=60 + MANY / 50)
    # One overflow, then each event once: the watch descriptors start at 1.
    assert lines[0] == "event -1"
    assert sorted(int(line.split()[1]) for line in lines[1:]) == list(range(1, MANY + 1))
