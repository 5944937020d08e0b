# SPDX-License-Identifier: Apache-2.0
"""Puts the parts together that keep a session's state in files."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from farwatchd.config import UserError
from farwatchd.fuse.session import Session
from farwatchd.inode_store.store import InodeStore
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.state_dir.contents import Contents
from farwatchd.state_dir.directory import StateFiles
from farwatchd.state_dir.in_flight import InFlight
from farwatchd.state_dir.journal_files import JournalFiles
from farwatchd.state_dir.journal_writer import Journal
from farwatchd.state_dir.recovery import Recovery
from farwatchd.state_dir.replay import Replay
from farwatchd.state_dir.stored_connection import StoredConnection
from farwatchd.vhost_user.server import Server
from farwatchd.virtio_fs.device import Device
from farwatchd.watch.event_queue import EventQueue
from farwatchd.wire.journal import Transaction, decode
from farwatchd.wire.state import StateError

_log = logging.getLogger(__name__)

#: The options that a daemon must have to go on with a session.
_FITTING = (
    "shared-dir",
    "tag",
    "num-request-queues",
    "uid-map and --gid-map",
    "inode-file-handles",
)


class SavedSession:
    """Keeps the state of the sessions; owns the files."""

    def __init__(
        self,
        files: StateFiles,
        boot: bytes,
        options: Mapping[str, str],
        fs: PassthroughFs,
        store: InodeStore,
        session: Session,
        queue: EventQueue | None,
        device: Device,
        call_soon: Callable[[Callable[[], None]], object],
    ) -> None:
        """``boot``: the id of the host's boot. ``UserError``: the files cannot be used."""
        try:
            self._in_flight = InFlight(files.in_flight)
        except OSError as error:
            raise _no_room(error) from error
        self._options = "\0".join(f"{name}={options[name]}" for name in _FITTING).encode()
        self.connection = StoredConnection(files.store, self._in_flight)
        self._files = JournalFiles(files.journals, boot)
        self._device = device
        self._journal = Journal(
            self._files, self._in_flight, fs.share, session, self._options, call_soon
        )
        self._replay = Replay(self._journal, self._in_flight, session, fs)
        self._parts = session, fs, store, queue
        session.on_reset = self._ended
        device.record_in_flight(self._in_flight, self._journal.commit)

    def begin(self, server: Server) -> None:
        """Expect the session of a former process, if there is one that fits.

        ``server`` gets the connection of that one, if it is still there.
        """
        server.pause()
        connected = self.connection.restore(server)
        self._in_flight.bound_intent(self.connection.ended_ns or time.time_ns())
        self._expect_former(connected)
        server.resume()

    def _expect_former(self, connected: bool) -> None:
        transactions: list[Transaction] = []
        try:
            transactions = self._load()
        except (StateError, OSError) as error:
            _log.warning(
                "the state of a former daemon is of no use: %s; starting afresh",
                getattr(error, "strerror", None) or error,
            )
        try:
            self._files.check_room()
        except OSError as error:
            raise _no_room(error) from error
        if not transactions and not self._in_flight.queues():
            self._in_flight.clear()
            self._journal.start()
            return
        self._device.expect_former(
            Recovery(transactions, self._in_flight, self._journal, self._replay, *self._parts)
        )
        if transactions and not connected:
            _log.info("the state of a former daemon waits for its guest")

    def go_on(self) -> None:
        """Go on with the state of a daemon that was replaced."""
        self.connection.leave_alone()
        self._journal.go_on()

    def _load(self) -> list[Transaction]:
        """Return the transactions of a session, none if there was none; ``StateError``."""
        transactions = list(decode(memoryview(self._files.load())))
        contents = Contents()
        contents.apply(transactions)
        if contents.session is None:
            return []
        if self._in_flight.damaged:
            raise StateError("the table of its requests is damaged, or of another version")
        if contents.options != self._options:
            raise StateError("it is of a daemon with other options")
        return transactions

    def restart(self) -> None:
        """Keep the session that has come from elsewhere."""
        self._replay.forget()
        self._in_flight.clear()
        self._journal.start()

    def _ended(self) -> None:
        self._replay.forget()
        self._journal.reset()
        # The next session may have begun, with the rings that run.
        for queue in self._device.running_queues():
            self._in_flight.has_run(queue)


def _no_room(error: OSError) -> UserError:
    return UserError(f"--state-dir: there is no room for the state: {error.strerror}")
