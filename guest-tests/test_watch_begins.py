# SPDX-License-Identifier: Apache-2.0
"""A new watch is on the current file of its name, and cached state from before it is dropped."""

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
def test_new_watch_of_a_directory_drops_its_caches(
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
    """Return what the same commands print on the host."""
    text = (share.host / "file").read_text()
    names = sorted(path.name for path in share.host.iterdir())
    lines = [f"file {len(text)}", text.rstrip("\n"), *names]
    lines += [
        f"{name} is there" for name in ("file", "gone", "new") if (share.host / name).exists()
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("change", [rename_over, keep_the_old_one])
def test_watch_is_on_the_current_file_of_the_name(
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


def test_watch_on_a_deleted_name_is_enoent(testbed: Testbed, share: Share) -> None:
    fill(share)
    testbed.guest.os("stat", str(share.guest / "gone"))
    (share.host / "gone").unlink()
    with testbed.guest.inotify() as listener, pytest.raises(FileNotFoundError):
        listener.add(share.guest / "gone", In.MODIFY)


@pytest.mark.patch("move-dentries")
def test_process_in_a_renamed_directory_gets_the_new_path(testbed: Testbed, share: Share) -> None:
    (share.host / "old").mkdir()
    (share.host / "elsewhere").mkdir()
    with testbed.guest.inotify() as listener:
        listener.add(share.guest, In.MOVED_FROM | In.MOVED_TO)
        listener.add(share.guest / "elsewhere", In.MOVED_FROM | In.MOVED_TO)
        process = testbed.guest.spawn("sh", "-c", f"cd {share.guest}/old; echo in; exec sleep 600")
        assert process.lines(until="in") == ["in"]
        moved = share.host / "old"
        for name in ("new", "elsewhere/newer"):
            moved = moved.rename(share.host / name)
            listener.read(until=moved.name)
            cwd = testbed.guest.os("readlink", f"/proc/{process.pid}/cwd")
            assert cwd == str(share.guest / name)
        process.stop()
