# SPDX-License-Identifier: Apache-2.0
"""Which events reach a watcher in the guest in which mode, as a table.

The sources are docs/modes.md and docs/protocol.md.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """A mode, and when it is agreed."""

    name: str
    when: str


@dataclass(frozen=True)
class EventSource:
    """An event, and its source in each mode: for the guest's own operations, and for the host's.

    wire: the name after FUSE_FSN_; empty for an event that is never sent.
    others, remote, off: LOCAL or HOST; empty if there is no such event in the mode.
    """

    wire: str
    watchers: str
    others: tuple[str, str]
    remote: tuple[str, str]
    off: tuple[str, str]
    note: str = ""


MODES = (
    Mode(
        "others",
        "the host lets the daemon use fanotify, which reports the process of each event (default)",
    ),
    Mode("remote", "--fsnotify=remote, or the host has inotify only"),
    Mode("off", "--fsnotify=off, or the guest has no patches"),
)

LOCAL = "guest"
HOST = "host"
#: The meaning of each cell's word.
ORIGINS = {
    LOCAL: "raised immediately by the guest's kernel",
    HOST: "raised when the host reports it",
}

BOTH = ((LOCAL, HOST), (HOST, HOST), (LOCAL, ""))
#: Events that the guest's kernel always raises for its own operations.
ALWAYS_LOCAL = ((LOCAL, HOST), (LOCAL, HOST), (LOCAL, ""))
ONLY_LOCAL = ((LOCAL, ""), (LOCAL, ""), (LOCAL, ""))

EVENTS = (
    EventSource("CREATE", "IN_CREATE, FAN_CREATE, DN_CREATE", *BOTH),
    EventSource("DELETE", "IN_DELETE, FAN_DELETE, DN_DELETE", *BOTH),
    EventSource("MODIFY", "IN_MODIFY, FAN_MODIFY, DN_MODIFY", *BOTH),
    EventSource("ATTRIB", "IN_ATTRIB, FAN_ATTRIB, DN_ATTRIB", *BOTH),
    EventSource("ACCESS", "IN_ACCESS, FAN_ACCESS, DN_ACCESS", *BOTH),
    EventSource("OPEN", "IN_OPEN, FAN_OPEN", *BOTH),
    EventSource("CLOSE_WRITE", "IN_CLOSE_WRITE, FAN_CLOSE_WRITE", *BOTH),
    EventSource("CLOSE_NOWRITE", "IN_CLOSE_NOWRITE, FAN_CLOSE_NOWRITE", *BOTH),
    EventSource(
        "OPEN_EXEC",
        "FAN_OPEN_EXEC",
        *BOTH,
        "local if the daemon watches with inotify, which does not report it",
    ),
    EventSource(
        "RENAME",
        "FAN_RENAME, DN_RENAME; the two below",
        *BOTH,
        "one record; in inotify a pair of events with one cookie",
    ),
    EventSource(
        "MOVED_FROM",
        "IN_MOVED_FROM, FAN_MOVED_FROM, DN_DELETE",
        *BOTH,
        "alone where the other side is not known",
    ),
    EventSource(
        "MOVED_TO",
        "IN_MOVED_TO, FAN_MOVED_TO, DN_CREATE",
        *BOTH,
        "alone where the other side is not known",
    ),
    EventSource("MOVE_SELF", "IN_MOVE_SELF, FAN_MOVE_SELF", *BOTH),
    EventSource(
        "DELETE_SELF",
        "IN_DELETE_SELF, FAN_DELETE_SELF",
        *ALWAYS_LOCAL,
        "when the last name is deleted; IN_IGNORED follows",
    ),
    EventSource(
        "OVERFLOW",
        "IN_Q_OVERFLOW, FAN_Q_OVERFLOW",
        *ALWAYS_LOCAL,
        "events were lost: once for every watcher of the share",
    ),
    EventSource(
        "", "IN_UNMOUNT, permission events, marks on the mount or the file system", *ONLY_LOCAL
    ),
)
