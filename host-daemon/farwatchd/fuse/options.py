# SPDX-License-Identifier: Apache-2.0
"""The options of a session: what INIT offers to the client."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from farwatchd.config import choice, choices, option


class Negotiation(Enum):
    """Whether a feature is offered that needs the client's consent.

    ALWAYS refuses a client without it.
    """

    NEVER = "never"
    AUTO = "auto"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """The options of a session.

    ``writeback`` and ``announce_submounts`` are options of the share. ``others_only`` is probed at
    start: whether the watches can leave out the events that this client causes.
    """

    posix_acl: Negotiation = option(
        "posix-acl",
        "support POSIX ACLs, includes --xattr; auto: if the guest does (default: never; without"
        " value: always)",
        Negotiation.NEVER,
        choice(Negotiation),
        nargs="?",
        const=Negotiation.ALWAYS,
        metavar=choices(Negotiation),
    )
    security_label: Negotiation = option(
        "security-label",
        "store the security xattr that the guest gives to a new file, includes --xattr; auto: if"
        " the guest does (default: never; without value: always)",
        Negotiation.NEVER,
        choice(Negotiation),
        nargs="?",
        const=Negotiation.ALWAYS,
        metavar=choices(Negotiation),
    )
    killpriv_v2: bool = option(
        "killpriv-v2",
        "clear set-id bits on the host when a file is written, so that the guest need not ask"
        " (default: no)",
        False,
        negatable=True,
    )
    readdirplus: bool = option(
        "no-readdirplus",
        "list names only, without attributes",
        True,
        action="store_false",
        dest="readdirplus",
    )
    posix_lock: bool = option(
        "posix-lock",
        "apply POSIX record locks on the host, so that they hold for other guests, too; a program"
        " of the guest that waits for one cannot be killed until it has it (default: within the"
        " guest)",
        False,
        negatable=True,
    )
    flock: bool = option("flock", "the same for locks of flock(2)", False, negatable=True)
    allow_mmap: bool = option(
        "allow-mmap", "let the guest map files with --cache=never and metadata, too", False
    )
    writeback: bool = False
    announce_submounts: bool = True
    others_only: bool = False
