# SPDX-License-Identifier: Apache-2.0
"""The command ``farwatchd`` after its socket: options in, a served share out."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence

from farwatchd.config import UserError
from farwatchd.early_socket import EarlySocket
from farwatchd.listener import open_sockets
from farwatchd.log import start_logging
from farwatchd.options import LOG_LEVELS, Config, parse
from farwatchd.service_manager import ServiceManager
from farwatchd.termination import hold_status_signal

_log = logging.getLogger(__name__)


def run(arguments: Sequence[str], early: EarlySocket | None) -> int:
    """Serve as ``cli.main`` says; ``early`` is the socket, if it was made."""
    hold_status_signal()
    config = parse(arguments)
    ready = _daemonize() if config.process.daemonize else _do_nothing
    try:
        start_logging(
            LOG_LEVELS[config.process.log_level],
            config.process.syslog,
            str(config.shared_dir),
            config.device.tag,
        )
        for line in config.without_effect:
            _log.info("%s", line)
        _serve(config, early, ServiceManager.from_environment(os.environ), ready)
    except UserError as error:
        print(f"farwatchd: {error}", file=sys.stderr)
        return 1
    return 0


def _serve(
    config: Config, early: EarlySocket | None, manager: ServiceManager, ready: Callable[[], None]
) -> None:
    with open_sockets(config.socket, early) as sockets:
        # The words for which Kata's runtime waits before it starts the VMM.
        _log.info("Waiting for vhost-user socket connection on %s", config.socket.name)
        # Most of the daemon, and most of the time to load it. A VMM can connect meanwhile.
        from farwatchd import daemon

        daemon.run(config, sockets, manager, ready)


def _do_nothing() -> None:
    """Nobody waits until requests can be served."""


def _daemonize() -> Callable[[], None]:
    """Go on in a child; the parent exits with status 0 when the result is called, else with 1."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        os._exit(0 if os.read(reader, 1) else 1)
    os.close(reader)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)

    def ready() -> None:
        # Whoever reads the output of the command would wait for the daemon's end.
        for number in range(3):
            os.dup2(nothing, number)
        os.close(nothing)
        os.write(writer, b"\0")
        os.close(writer)

    return ready
