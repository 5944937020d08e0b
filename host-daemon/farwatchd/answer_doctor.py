# SPDX-License-Identifier: Apache-2.0
"""Answer the questions of `farwatch doctor` in a guest, on the host: --answer-doctor.

The doctor makes a file in the share, and measures until it gets the event of another file, which
is made here. This process is not the daemon, so in mode ``others`` its changes are reported.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
from pathlib import Path

from farwatchd.linux.inotify import Inotify, InotifyBit

#: A question's name. The guest chooses what lies in the directory, so nothing else is made from it.
_QUESTION = re.compile(rb"(\.farwatch-doctor\.[0-9]{1,10}-[0-9])\.ask")
_CHUNK = 65536
#: Answers that are there, one for each question that has not been removed.
_MAX_ANSWERS = 64


class Answers:
    """The answers in one directory: made when a question appears, removed with it.

    ``root_fd`` is the directory and stays the caller's.
    """

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._inotify = Inotify()
        self._inotify.add(f"/proc/self/fd/{root_fd}", InotifyBit.CREATE | InotifyBit.DELETE)
        self._there: set[bytes] = set()

    def fileno(self) -> int:
        """Return the descriptor that is readable when there is something to do."""
        return self._inotify.fileno()

    def process(self) -> int:
        """Answer what has come, and remove what is not needed any more.

        Return how many questions were answered.
        """
        answered = 0
        for event in self._inotify.read(_CHUNK):
            found = _QUESTION.fullmatch(event.name)
            if found is None:
                continue
            name = found[1] + b".answer"
            if event.mask & InotifyBit.DELETE:
                self._remove(name)
            elif len(self._there) < _MAX_ANSWERS:
                answered += self._make(name)
        return answered

    def close(self) -> None:
        """Remove all answers, and end."""
        for name in list(self._there):
            self._remove(name)
        self._inotify.close()

    def _make(self, name: bytes) -> bool:
        # Follows no symlink and opens no file that is there.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            os.close(os.open(name, flags, 0o600, dir_fd=self._root_fd))
        except OSError:
            return False
        self._there.add(name)
        return True

    def _remove(self, name: bytes) -> None:
        if name in self._there:
            self._there.discard(name)
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._root_fd)


def answer_doctor(directory: Path) -> int:
    """Answer until SIGINT or SIGTERM, and return the exit status."""
    try:
        root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        answers = Answers(root_fd)
    except OSError as error:
        print(f"farwatchd: --answer-doctor: {directory}: {error.strerror}", file=sys.stderr)
        return 1
    # A signal makes the pipe readable: poll(2) waits for events and signals together.
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    print(f"answering farwatch doctor in {directory}; end with Ctrl-C", flush=True)
    poll = select.poll()
    poll.register(answers.fileno(), select.POLLIN)
    poll.register(reader, select.POLLIN)
    total = 0
    while not any(fd == reader for fd, _ in poll.poll()):
        total += answers.process()
    answers.close()
    print(f"answered {total} times")
    return 0
