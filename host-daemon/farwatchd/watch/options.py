# SPDX-License-Identifier: Apache-2.0
"""The options of watching: which events the guest gets, and the limits."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from farwatchd.config import Option, choice, choices, number, option, options

DEFAULT_MAX_WATCHES = 1_000_000
DEFAULT_EVENT_QUEUE = 16384


class FsnotifyMode(Enum):
    """Which events of the host the guest gets (``--fsnotify``)."""

    AUTO = "auto"
    OFF = "off"
    REMOTE = "remote"
    OTHERS = "others"


class BackendName(Enum):
    """What the host is watched with (``--fsnotify-backend``)."""

    AUTO = "auto"
    INOTIFY = "inotify"
    FANOTIFY = "fanotify"


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """The options of watching."""

    fsnotify: FsnotifyMode = option(
        "fsnotify",
        "which events the guest gets: others: of changes that it did not make; remote: of all"
        " changes on the host; off: none (default: auto, the best that works here)",
        FsnotifyMode.AUTO,
        choice(FsnotifyMode, merged=FsnotifyMode.OTHERS),
        metavar=choices(FsnotifyMode),
    )
    fsnotify_backend: BackendName = option(
        "fsnotify-backend", "how the host is watched (default: auto)", BackendName.AUTO
    )
    max_watches: int = options(
        Option(
            "max-watches",
            f"watches that the guest may have; one more is ENOSPC (default: {DEFAULT_MAX_WATCHES})",
            number(1, 100_000_000),
            {"default": None, "metavar": "N"},
        ),
        default=DEFAULT_MAX_WATCHES,
    )
    trace_events: bool = option(
        "trace-events",
        "log each event on its way from the host to the guest, and why one is left out",
        False,
    )
    event_queue: int = options(
        Option(
            "event-queue",
            "events that wait for the guest; more are dropped, and the guest gets an overflow"
            " event; with more than 16384 the host's own queue is unlimited, where the daemon may"
            f" have that (default: {DEFAULT_EVENT_QUEUE})",
            number(2, 10_000_000),
            {"default": None, "metavar": "N"},
        ),
        default=DEFAULT_EVENT_QUEUE,
    )
