# SPDX-License-Identifier: Apache-2.0
"""A watch is on what its name means now, and what is read after it was placed is not older than
it."""

from collections.abc import Callable
from pathlib import PurePosixPath

import pytest
from farwatch_harness.oracle.compare import In
from farwatch_harness.vm.guest_client import Guest
from farwatch_harness.vm.testbed import Share, Testbed

pytestmark = pytest.mark.patch("watch-caches")

LOOK = """
cd {0}
stat -c '%n %s' file; cat file; ls
for name in file gone new; do test -e $name && echo $name is there; done; true
"""


def change_in_place(share: Share) -> None:
    (share.host / "file").write_text("longer text\n")


def rename_over(share: Share) -> None:
    (share.host / "other").write_text("longer text\n")
    (share.host / "other").rename(share.host / "file")


def keep_the_old_one(share: Share) -> None:
    (share.host / "file").rename(share.host / "file~")
    (share.host / "file").write_text("longer text\n")


def make_and_delete(share: Share) -> None:
    (share.host / "new").touch()
    (share.host / "gone").unlink()


CHANGES = [change_in_place, rename_over, keep_the_old_one, make_and_delete]


def look(guest: Guest, directory: PurePosixPath) -> str:
    return guest.shell(LOOK.format(directory))


def fill(share: Share) -> None:
    (share.host / "file").write_text("one\n")
    (share.host / "gone").touch()


@pytest.mark.parametrize("change", CHANGES)
def test_watcher_of_a_directory_sees_no_older_state(
    testbed: Testbed, share: Share, change: Callable[[Share], None]
) -> None:
    fill(share)
    look(testbed.guest, share.guest)
    with testbed.guest.inotify() as listener:
        change(share)
        listener.add(share.guest, In.ALL)
        seen = look(testbed.guest, share.guest)
    assert seen == look_on_host(share)


def look_on_host(share: Share) -> str:
    """What the same commands say on the host."""
    text = (share.host / "file").read_text()
    names = sorted(path.name for path in share.host.iterdir())
    lines = [f"file {len(text)}", text.rstrip("\n"), *names]
    lines += [
        f"{name} is there" for name in ("file", "gone", "new") if (share.host / name).exists()
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("change", [rename_over, keep_the_old_one])
def test_watch_is_on_the_file_that_has_the_name_now(
    testbed: Testbed, share: Share, change: Callable[[Share], None]
) -> None:
    fill(share)
    guest = testbed.guest
    guest.os("stat", str(share.guest / "file"))
    change(share)
    with guest.inotify() as listener:
        listener.add(share.guest / "file", In.MODIFY)
        guest.shell(f"echo more >> {share.guest}/file")
        assert [In(event.mask) for event in listener.read(1)] == [In.MODIFY]
    assert (share.host / "file").read_text() == "longer text\nmore\n"


def test_watch_on_a_name_that_is_gone_fails_as_natively(testbed: Testbed, share: Share) -> None:
    fill(share)
    testbed.guest.os("stat", str(share.guest / "gone"))
    (share.host / "gone").unlink()
    with testbed.guest.inotify() as listener, pytest.raises(FileNotFoundError):
        listener.add(share.guest / "gone", In.MODIFY)


@pytest.mark.patch("move-dentries")
def test_process_in_a_directory_that_is_renamed_gets_the_new_path(
    testbed: Testbed, share: Share
) -> None:
    (share.host / "old").mkdir()
    (share.host / "elsewhere").mkdir()
    with testbed.guest.inotify() as listener:
        listener.add(share.guest, In.MOVED_FROM | In.MOVED_TO)
        listener.add(share.guest / "elsewhere", In.MOVED_FROM | In.MOVED_TO)
        job = testbed.guest.spawn("sh", "-c", f"cd {share.guest}/old; echo in; exec sleep 600")
        assert job.lines(until="in") == ["in"]
        place = share.host / "old"
        for name in ("new", "elsewhere/newer"):
            place = place.rename(share.host / name)
            listener.read(until=place.name)
            cwd = testbed.guest.os("readlink", f"/proc/{job.pid}/cwd")
            assert cwd == str(share.guest / name)
        job.stop()
