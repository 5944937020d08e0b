# SPDX-License-Identifier: Apache-2.0
"""The daemon's configuration: one frozen record."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from farwatchd.capabilities import Capability
from farwatchd.fsnotify.probe import BackendName
from farwatchd.objects.table import InodeFileHandles
from farwatchd.passthrough.options import Cache
from farwatchd.sandbox.enter import Sandbox
from farwatchd.sandbox.seccomp import Seccomp


class FsnotifyMode(Enum):
    """What the guest is told of changes on the host (``--fsnotify``)."""

    AUTO = "auto"
    OFF = "off"
    REMOTE = "remote"
    MERGED = "merged"


@dataclass(frozen=True)
class Config:
    """What the command line says. Exactly one of ``socket_path`` and ``fd`` is set.

    ``modcaps``: capabilities to keep beyond what serving takes, and to give up of that.
    """

    shared_dir: Path
    socket_path: Path | None
    fd: int | None
    socket_group: str | None
    tag: str
    num_request_queues: int
    cache: Cache
    writeback: bool
    readonly: bool
    xattr: bool
    posix_acl: bool
    allow_direct_io: bool
    inode_file_handles: InodeFileHandles
    posix_lock: bool
    flock: bool
    sandbox: Sandbox
    seccomp: Seccomp
    modcaps: tuple[Capability, Capability]
    rlimit_nofile: int | None
    log_level: str
    syslog: bool
    fsnotify: FsnotifyMode
    fsnotify_backend: BackendName
    max_watches: int
    event_queue: int
