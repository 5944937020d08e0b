# SPDX-License-Identifier: Apache-2.0
"""Where log messages go, and in which form.

No destination can stop the daemon: a pipe that is not read, a journal or syslog that has gone.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import sys

from farwatchd.log_limit import RepetitionLimit

_log = logging.getLogger(__name__)

_SYSLOG = "/dev/log"
_DAEMON_FACILITY = 3
#: The priorities of syslog(3).
_PRIORITIES = {
    logging.CRITICAL: 2,
    logging.ERROR: 3,
    logging.WARNING: 4,
    logging.INFO: 6,
    logging.DEBUG: 7,
}
#: Bytes that a pipe takes without blocking, once poll(2) says that it takes any (``PIPE_BUF``).
_PIPE_BUF = 4096


def start_logging(level: int, to_syslog: bool, share: str, tag: str | None) -> None:
    """Log messages from ``level`` on, to standard error or, where there is one, to syslog.

    Each names the ``share`` and its ``tag``: several daemons may log to one place.
    """
    handler: logging.Handler
    problem = None
    # repr() for what would be lines of its own; the rest would be conversions of the form.
    name = repr(share)[1:-1] if not share.isprintable() else share
    subject = f"[{name if tag is None else f'{tag} {name}'}]".replace("%", "%%")
    form = f"%(asctime)s %(levelname)s %(name)s: {subject} %(message)s"
    if to_syslog:
        try:
            handler = _SyslogHandler()
        except OSError as error:
            problem = error.strerror
            handler = _StreamHandler()
        else:
            # Not the number that the process has in its PID namespace.
            form = f"farwatchd[{os.getpid()}]: %(levelname)s %(name)s: {subject} %(message)s"
    elif _is_journal(sys.stderr.fileno()):
        # It adds time and level by itself.
        handler = _JournalHandler()
        form = f"%(name)s: {subject} %(message)s"
    else:
        handler = _StreamHandler()
    handler.addFilter(RepetitionLimit())
    handler.setFormatter(logging.Formatter(form))
    logging.basicConfig(level=level, handlers=[handler])
    if problem is not None:
        _log.warning("there is no syslog at %s (%s): messages come here", _SYSLOG, problem)


def _is_journal(fd: int) -> bool:
    """Return whether a descriptor is the stream that JOURNAL_STREAM names (systemd.exec(5))."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _StreamHandler(logging.Handler):
    """Writes to the standard error output, unless it would block: a pipe that nobody reads.

    What is left out is counted, and the number logged when the pipe is read again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fd = sys.stderr.fileno()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message, or count it."""
        try:
            if not self._poll.poll(0):
                self._dropped += 1
                return
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                text = "%d messages were left out: the log was not read"
                self._write(_like(record, logging.WARNING, text, dropped))
            self._write(record)
        except OSError:
            self._dropped += 1

    def text(self, record: logging.LogRecord) -> str:
        """Return the line of a message."""
        return self.format(record)

    def _write(self, record: logging.LogRecord) -> None:
        line = self.text(record).encode(errors="replace") + b"\n"
        for start in range(0, len(line), _PIPE_BUF):
            if start and not self._poll.poll(0):
                return
            os.write(self._fd, line[start : start + _PIPE_BUF])


class _JournalHandler(_StreamHandler):
    """Writes lines with their priority before them, as sd-daemon(3) has it."""

    def text(self, record: logging.LogRecord) -> str:
        """Return the lines of a message, each with its priority."""
        mark = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return mark + self.format(record).replace("\n", f"\n{mark}")


def _like(record: logging.LogRecord, level: int, text: str, number: int) -> logging.LogRecord:
    return logging.LogRecord(__name__, level, record.pathname, record.lineno, text, (number,), None)


class _SyslogHandler(logging.Handler):
    """Sends messages to syslog through a socket that is connected once.

    The sandbox forbids to connect another one. ``OSError`` where there is no syslog.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lost = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.connect(_SYSLOG)
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one message; say once on the standard error output that syslog has gone."""
        priority = _DAEMON_FACILITY * 8 + _PRIORITIES.get(record.levelno, 6)
        try:
            self._socket.send(f"<{priority}>{self.format(record)}".encode(errors="replace"))
        except BlockingIOError:
            # It does not keep up: as with a pipe, the daemon does not wait for it.
            return
        except OSError:
            if not self._lost:
                self._lost = True
                print("farwatchd: syslog has gone: later messages are lost", file=sys.stderr)
