# SPDX-License-Identifier: Apache-2.0
"""The command ``farwatchd``: options in, a served share out."""

from __future__ import annotations

import argparse
import json
import logging
import logging.handlers
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from farwatchd.capabilities import Capability
from farwatchd.config import Config, FsnotifyMode
from farwatchd.daemon import run
from farwatchd.errors import UserError
from farwatchd.fsnotify.probe import BackendName
from farwatchd.objects.table import InodeFileHandles
from farwatchd.passthrough.options import Cache
from farwatchd.sandbox.enter import Sandbox
from farwatchd.sandbox.privileges import parse_changes
from farwatchd.sandbox.seccomp import Seccomp

#: Log levels as virtiofsd calls them.
LOG_LEVELS = {
    "off": logging.CRITICAL + 1,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}

EPILOG = """\
attach it to QEMU with (events need QEMU 10.2 or later and a guest kernel with the Farwatch patches):

  qemu-system-x86_64 ... \\
    -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem \\
    -chardev socket,id=fs,path=SOCKET \\
    -device vhost-user-test-device-pci,chardev=fs,virtio-id=26,num_vqs=3,vq_size=128,config_size=44

or, with any QEMU and any guest, without events:

    -device vhost-user-fs-pci,chardev=fs,tag=TAG

size= is the guest's memory and must equal -m. num_vqs= is two more than --num-request-queues.
In the guest: mount -t virtiofs TAG /mnt
"""


def _number(low: int, high: int) -> type[int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not between {low} and {high}")
        return value

    return parse  # type: ignore[return-value]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="farwatchd",
        description="A virtio-fs daemon (vhost-user back end) whose guest sees what happens to the share on the host.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    where = parser.add_argument_group("where")
    socket = where.add_mutually_exclusive_group()
    socket.add_argument("--socket-path", type=Path, metavar="SOCKET", help="listen on this UNIX socket")
    socket.add_argument("--fd", type=_number(0, 1 << 20), help="use this inherited socket, listening or connected")
    where.add_argument("--socket-group", metavar="GROUP", help="let the members of this group connect")
    where.add_argument("--shared-dir", type=Path, metavar="DIR", help="the directory to share")
    where.add_argument("--tag", default="share", help="what the guest mounts (default: %(default)s)")
    where.add_argument("--num-request-queues", type=_number(1, 64), default=1, metavar="N", help="default: 1")

    files = parser.add_argument_group("the file system")
    files.add_argument(
        "--cache",
        type=Cache,
        default=Cache.AUTO,
        metavar="{auto,always,metadata,never}",
        help="what the guest may cache",
    )
    files.add_argument("--writeback", action="store_true", help="let the guest write back later")
    files.add_argument("--readonly", action="store_true", help="refuse all changes by the guest")
    files.add_argument("--xattr", action="store_true", help="support extended attributes")
    files.add_argument("--posix-acl", action="store_true", help="support POSIX ACLs; includes --xattr")
    files.add_argument("--allow-direct-io", action="store_true", help="pass O_DIRECT on to the host")
    files.add_argument(
        "--inode-file-handles",
        type=InodeFileHandles,
        default=InodeFileHandles.PREFER,
        metavar=_choices(InodeFileHandles),
        help="keep what the guest knows by file handle, not by open file (default: prefer, where that works)",
    )
    files.add_argument(
        "--posix-lock",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="let POSIX record locks hold on the host and for other guests, too (default: within the guest)",
    )
    files.add_argument(
        "--flock", action=argparse.BooleanOptionalAction, default=False, help="the same for flock(2)'s locks"
    )

    events = parser.add_argument_group("events")
    events.add_argument(
        "--fsnotify",
        type=FsnotifyMode,
        default=FsnotifyMode.AUTO,
        metavar=_choices(FsnotifyMode),
        help="what the guest is told of changes on the host (default: auto, the best that works here)",
    )
    events.add_argument(
        "--fsnotify-backend",
        type=BackendName,
        default=BackendName.AUTO,
        metavar=_choices(BackendName),
        help="how the host is watched (default: auto)",
    )
    events.add_argument(
        "--max-watches",
        type=_number(1, 100_000_000),
        default=1_000_000,
        metavar="N",
        help="watches that the guest may have; one more is ENOSPC (default: %(default)s)",
    )
    events.add_argument(
        "--event-queue",
        type=_number(2, 10_000_000),
        default=16384,
        metavar="N",
        help="events that wait for the guest; more are dropped and the guest is told so (default: %(default)s)",
    )

    process = parser.add_argument_group("the process")
    process.add_argument(
        "--sandbox",
        type=Sandbox,
        default=Sandbox.NAMESPACE,
        metavar=_choices(Sandbox),
        help="how the daemon is confined to the shared directory (default: namespace)",
    )
    process.add_argument(
        "--seccomp",
        type=Seccomp,
        default=Seccomp.KILL,
        metavar=_choices(Seccomp),
        help="what happens at a system call that serving does not take (default: kill)",
    )
    process.add_argument(
        "--modcaps",
        type=_capability_changes,
        default=(Capability.NONE, Capability.NONE),
        metavar="{+,-}CAP[:...]",
        help="capabilities to keep besides those of a file server, or to give up: --modcaps=+sys_admin:-mknod",
    )
    process.add_argument("--rlimit-nofile", type=_number(64, 1 << 30), metavar="N", help="limit of open files")
    process.add_argument("--log-level", choices=LOG_LEVELS, default="info", help="default: %(default)s")
    process.add_argument("--syslog", action="store_true", help="log to syslog, not to the standard error output")
    process.add_argument(
        "--print-capabilities", action="store_true", help="say as JSON what this back end is, and exit"
    )
    return parser


def _capability_changes(text: str) -> tuple[Capability, Capability]:
    try:
        return parse_changes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _choices(kind: type[Enum]) -> str:
    return "{" + ",".join(str(member.value) for member in kind) + "}"


def parse(arguments: Sequence[str]) -> Config:
    """Turn the command line into a ``Config``; exits as argparse does on errors and on ``--help``."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.print_capabilities:
        print(json.dumps({"type": "fs", "features": []}))
        sys.exit(0)
    if options.socket_path is None and options.fd is None:
        parser.error("one of --socket-path and --fd is needed")
    if options.shared_dir is None:
        parser.error("--shared-dir is needed")
    if options.socket_group is not None and options.socket_path is None:
        parser.error("--socket-group goes with --socket-path")
    values = vars(options)
    del values["print_capabilities"]
    values["xattr"] = options.xattr or options.posix_acl
    return Config(**values)


def _start_logging(config: Config) -> None:
    handler: logging.Handler = logging.StreamHandler()
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    if config.syslog:
        try:
            handler = logging.handlers.SysLogHandler("/dev/log", logging.handlers.SysLogHandler.LOG_DAEMON)
        except OSError as error:
            raise UserError(f"cannot reach syslog at /dev/log: {error.strerror}; leave out --syslog") from error
        formatter = logging.Formatter("farwatchd[%(process)d]: %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(formatter)
    logging.basicConfig(level=LOG_LEVELS[config.log_level], handlers=[handler])


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; returns the exit status: 0 ended, 1 cannot serve (one line says why), 2 usage."""
    config = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        _start_logging(config)
        run(config)
    except UserError as error:
        print(f"farwatchd: {error}", file=sys.stderr)
        return 1
    return 0
