# SPDX-License-Identifier: Apache-2.0
"""The options of confinement."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from farwatchd.config import Option, number, option, options
from farwatchd.sandbox.idmaps import IdMaps, parse_range
from farwatchd.sandbox.privileges import CapabilityChanges, parse_changes


class Sandbox(Enum):
    """How the daemon is confined to the share (``--sandbox``)."""

    NAMESPACE = "namespace"
    CHROOT = "chroot"
    NONE = "none"


class Seccomp(Enum):
    """What happens at a system call that is not on the allow list (``--seccomp``)."""

    KILL = "kill"
    LOG = "log"
    TRAP = "trap"
    NONE = "none"


def _ids(name: str, ids: str) -> Option:
    text = (
        f"enter a user namespace where {ids} from INSIDE on are the host's from OUTSIDE on; may be"
        " repeated; an ordinary user needs newuidmap and newgidmap for it"
    )
    metavar = ":INSIDE:OUTSIDE:COUNT:"
    return Option(name, text, parse_range, {"action": "append", "default": [], "metavar": metavar})


def _open_files(text: str) -> int:
    return 0 if text == "0" else number(64, 1 << 30)(text)


@dataclass(frozen=True, slots=True)
class SandboxOptions:
    """The options of confinement.

    ``rlimit_nofile``: None for as many open files as the system allows, 0 for the limit as it is.
    """

    sandbox: Sandbox = option(
        "sandbox",
        "how the daemon is confined to the shared directory (default: namespace)",
        Sandbox.NAMESPACE,
    )
    id_maps: IdMaps | None = options(_ids("uid-map", "uids"), _ids("gid-map", "gids"), default=None)
    seccomp: Seccomp = option(
        "seccomp",
        "action on a system call outside the allow list (default: kill)",
        Seccomp.KILL,
    )
    modcaps: CapabilityChanges = option(
        "modcaps",
        "capabilities to add to those of a file server, or to drop: --modcaps=+sys_admin:-mknod",
        CapabilityChanges(),
        parse_changes,
        metavar="{+,-}CAP[:...]",
    )
    rlimit_nofile: int | None = option(
        "rlimit-nofile",
        "limit of open files; 0 leaves it unchanged (default: as many as the system allows, at most"
        " 1000000)",
        None,
        _open_files,
        metavar="N",
    )
