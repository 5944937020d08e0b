# SPDX-License-Identifier: Apache-2.0
"""Where log messages go, and in which form."""

from __future__ import annotations

import logging
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


def start_logging(level: int, to_syslog: bool) -> None:
    """Log messages from ``level`` on, to standard error or, where there is one, to syslog."""
    handler: logging.Handler = logging.StreamHandler()
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    problem = None
    if to_syslog:
        try:
            handler = _SyslogHandler()
        except OSError as error:
            problem = error.strerror
        else:
            form = "farwatchd[%(process)d]: %(levelname)s %(name)s: %(message)s"
    handler.addFilter(RepetitionLimit())
    handler.setFormatter(logging.Formatter(form))
    logging.basicConfig(level=level, handlers=[handler])
    if problem is not None:
        _log.warning("there is no syslog at %s (%s): messages come here", _SYSLOG, problem)


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

    def emit(self, record: logging.LogRecord) -> None:
        """Send one message; say once on the standard error output that syslog has gone."""
        priority = _DAEMON_FACILITY * 8 + _PRIORITIES.get(record.levelno, 6)
        try:
            self._socket.send(f"<{priority}>{self.format(record)}".encode(errors="replace"))
        except OSError:
            if not self._lost:
                self._lost = True
                print("farwatchd: syslog has gone: later messages are lost", file=sys.stderr)
