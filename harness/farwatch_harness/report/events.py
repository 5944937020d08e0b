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
class Event:
    """An event and where it comes from: in each mode, the guest's own operations and those of the
    host.

    `wire` is the FUSE_FSN_ bit, empty for what is never sent. An empty cell: such an event does not
    arrive.
    """

    wire: str
    listeners: str
    others: tuple[str, str]
    remote: tuple[str, str]
    off: tuple[str, str]
    note: str = ""


MODES = (
    Mode(
        "others",
        "the host lets the daemon use fanotify, which tells whose event it is (the default then)",
    ),
    Mode("remote", "--fsnotify=remote, or the host has inotify only"),
    Mode("off", "--fsnotify=off, or the guest has no patches"),
)

LOCAL = "guest"
HOST = "host"
#: What each cell's word means.
ORIGINS = {
    LOCAL: "raised by the guest's kernel, at once",
    HOST: "raised when the host reports it",
}

BOTH = ((LOCAL, HOST), (HOST, HOST), (LOCAL, ""))
#: What the guest's kernel goes on raising itself, whatever the server reports.
KEPT = ((LOCAL, HOST), (LOCAL, HOST), (LOCAL, ""))
ONLY_LOCAL = ((LOCAL, ""), (LOCAL, ""), (LOCAL, ""))

EVENTS = (
    Event("CREATE", "IN_CREATE, FAN_CREATE, DN_CREATE", *BOTH),
    Event("DELETE", "IN_DELETE, FAN_DELETE, DN_DELETE", *BOTH),
    Event("MODIFY", "IN_MODIFY, FAN_MODIFY, DN_MODIFY", *BOTH),
    Event("ATTRIB", "IN_ATTRIB, FAN_ATTRIB, DN_ATTRIB", *BOTH),
    Event("ACCESS", "IN_ACCESS, FAN_ACCESS, DN_ACCESS", *BOTH),
    Event("OPEN", "IN_OPEN, FAN_OPEN", *BOTH),
    Event("CLOSE_WRITE", "IN_CLOSE_WRITE, FAN_CLOSE_WRITE", *BOTH),
    Event("CLOSE_NOWRITE", "IN_CLOSE_NOWRITE, FAN_CLOSE_NOWRITE", *BOTH),
    Event(
        "OPEN_EXEC",
        "FAN_OPEN_EXEC",
        *BOTH,
        "local where the daemon watches with inotify, which does not tell it",
    ),
    Event(
        "RENAME",
        "FAN_RENAME, DN_RENAME; the two below",
        *BOTH,
        "one record; a pair with one cookie in inotify",
    ),
    Event(
        "MOVED_FROM",
        "IN_MOVED_FROM, FAN_MOVED_FROM, DN_DELETE",
        *BOTH,
        "alone where the other side is not known",
    ),
    Event(
        "MOVED_TO",
        "IN_MOVED_TO, FAN_MOVED_TO, DN_CREATE",
        *BOTH,
        "alone where the other side is not known",
    ),
    Event("MOVE_SELF", "IN_MOVE_SELF, FAN_MOVE_SELF", *BOTH),
    Event(
        "DELETE_SELF",
        "IN_DELETE_SELF, FAN_DELETE_SELF",
        *KEPT,
        "when the last name goes; IN_IGNORED follows",
    ),
    Event(
        "OVERFLOW",
        "IN_Q_OVERFLOW, FAN_Q_OVERFLOW",
        *KEPT,
        "for loss on the way: once at every watcher of the share",
    ),
    Event("", "IN_UNMOUNT, permission events, marks on the mount or the file system", *ONLY_LOCAL),
)
