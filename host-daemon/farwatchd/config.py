# SPDX-License-Identifier: Apache-2.0
"""The daemon's configuration: one frozen record."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from farwatchd.fuse.init import Negotiation
from farwatchd.inode_store.store import InodeFileHandles
from farwatchd.linux.capabilities import Capability
from farwatchd.passthrough.id_map import Owners
from farwatchd.passthrough.options import Cache
from farwatchd.passthrough.xattrmap import XattrMap
from farwatchd.sandbox.enter import Sandbox
from farwatchd.sandbox.idmaps import IdMaps
from farwatchd.sandbox.seccomp import Seccomp
from farwatchd.watch.probe import BackendName


class FsnotifyMode(Enum):
    """What the guest is told of changes on the host (``--fsnotify``)."""

    AUTO = "auto"
    OFF = "off"
    REMOTE = "remote"
    OTHERS = "others"


@dataclass(frozen=True)
class Config:
    """What the command line says. Exactly one of ``socket_path`` and ``fd`` is set.

    ``rlimit_nofile``: None for as many as can be had, 0 for those there are. ``modcaps``:
    capabilities to keep beyond what serving takes, and to give up of that. ``without_effect``: what
    to say of options that change nothing.
    """

    shared_dir: Path
    socket_path: Path | None
    fd: int | None
    socket_group: str | None
    tag: str
    num_request_queues: int
    thread_pool_size: int
    busy_poll: int
    cache: Cache
    writeback: bool
    readonly: bool
    xattr: bool
    posix_acl: Negotiation
    security_label: bool
    xattrmap: XattrMap | None
    owners: Owners | None
    allow_direct_io: bool
    allow_mmap: bool
    preserve_noatime: bool
    announce_submounts: bool
    readdirplus: bool
    killpriv_v2: bool
    inode_file_handles: InodeFileHandles
    max_inodes: int
    posix_lock: bool
    flock: bool
    sandbox: Sandbox
    id_maps: IdMaps | None
    seccomp: Seccomp
    modcaps: tuple[Capability, Capability]
    rlimit_nofile: int | None
    log_level: str
    syslog: bool
    fsnotify: FsnotifyMode
    fsnotify_backend: BackendName
    max_watches: int
    event_queue: int
    without_effect: tuple[str, ...]
