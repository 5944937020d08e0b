# SPDX-License-Identifier: Apache-2.0
"""`make demo`: changes files on the host; inotifywait in the guest prints the events.

inotifywait is Debian's, unmodified.
"""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.util.errors import HarnessError
from farwatch_harness.util.progress import step
from farwatch_harness.vm.environment import Environment
from farwatch_harness.vm.guest_client import GuestProcess
from farwatch_harness.vm.testbed import MOUNT_POINT, start_testbed

ESTABLISHED = "Watches established"
# Seconds for the events of one action to arrive; they take some milliseconds.
EVENT_LIMIT = 10.0


@dataclass(frozen=True)
class Action:
    """An action on the host, and the lines that inotifywait must print for it, in order.

    command: the action as a user of a shell would write it.
    """

    command: str
    run: Callable[[Path], object]
    expected: tuple[str, ...]


def write(name: str, text: str) -> Callable[[Path], object]:
    """Return an action that writes `text` to the file `name` of the share."""
    return lambda share: (share / name).write_text(text)


ACTIONS = (
    Action(
        "echo hello > notes.txt",
        write("notes.txt", "hello\n"),
        ("CREATE notes.txt", "MODIFY notes.txt", "CLOSE_WRITE,CLOSE notes.txt"),
    ),
    Action(
        "echo again > notes.txt",
        write("notes.txt", "again\n"),
        ("MODIFY notes.txt", "CLOSE_WRITE,CLOSE notes.txt"),
    ),
    Action(
        "chmod 600 notes.txt",
        lambda share: (share / "notes.txt").chmod(0o600),
        ("ATTRIB notes.txt",),
    ),
    Action(
        "mv notes.txt kept.txt",
        lambda share: (share / "notes.txt").rename(share / "kept.txt"),
        ("MOVED_FROM notes.txt", "MOVED_TO kept.txt"),
    ),
    Action("mkdir folder", lambda share: (share / "folder").mkdir(), ("CREATE,ISDIR folder",)),
    Action("rm kept.txt", lambda share: (share / "kept.txt").unlink(), ("DELETE kept.txt",)),
    Action("rmdir folder", lambda share: (share / "folder").rmdir(), ("DELETE,ISDIR folder",)),
)


def unseen(expected: Sequence[str], seen: Sequence[str]) -> list[str]:
    """Return the expected events that `seen` does not have in this order.

    Other events may stand between them.
    """
    rest = list(expected)
    for event in seen:
        if rest and event == rest[0]:
            rest.pop(0)
    return rest


def show(action: Action, share: Path, watcher: GuestProcess) -> None:
    """Perform one action and print both sides.

    HarnessError: an expected event does not arrive.
    """
    print(f"host   $ {action.command}", flush=True)
    action.run(share)
    seen: list[str] = []
    while missing := unseen(action.expected, seen):
        lines = watcher.lines(limit=EVENT_LIMIT, count=1)
        for line in lines:
            print(f"guest    {line}", flush=True)
            seen.append(line.split(" ", 1)[1])
        if not lines:
            raise HarnessError(
                f"the guest did not report: {', '.join(missing)}; the logs are in build/logs"
            )


def demonstrate(environment: Environment) -> None:
    """Run the demonstration on a share of its own.

    HarnessError: an event is missing.
    """
    with (
        tempfile.TemporaryDirectory(prefix="farwatch-demo-") as name,
        contextlib.ExitStack() as stack,
    ):
        share = Path(name)
        with step("booting the guest, the daemon attached"):
            testbed = stack.enter_context(start_testbed(environment.testbed_spec("demo", share)))
        print(f"\nhost     the share is {share}")
        print(f"guest    it is mounted at {MOUNT_POINT}")
        print(f"guest  $ inotifywait -m {MOUNT_POINT}", flush=True)
        watcher = testbed.guest.spawn("inotifywait", "-m", str(MOUNT_POINT))
        started = watcher.lines(until=ESTABLISHED)
        if not any(ESTABLISHED in line for line in started):
            raise HarnessError(f"inotifywait did not start in the guest: {' / '.join(started)}")
        for action in ACTIONS:
            show(action, share, watcher)
        watcher.stop()
        with step("powering the guest off"):
            stack.close()
        if problems := testbed.problems():
            raise HarnessError(f"all events arrived, but something is wrong: {problems[0]}")
    print(
        f"\nAll expected events of {len(ACTIONS)} actions on the host arrived in the guest.",
        flush=True,
    )
