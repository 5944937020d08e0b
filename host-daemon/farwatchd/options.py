# SPDX-License-Identifier: Apache-2.0
"""The options of the command ``farwatchd``, named as virtiofsd's."""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import TypeVar

from farwatchd.config import FsnotifyMode
from farwatchd.fuse.init import Negotiation
from farwatchd.inode_store.store import InodeFileHandles
from farwatchd.linux.capabilities import Capability
from farwatchd.passthrough.id_map import parse_rule
from farwatchd.passthrough.inode_table import MAX_INODES
from farwatchd.passthrough.options import Cache
from farwatchd.passthrough.xattrmap import parse
from farwatchd.sandbox.enter import Sandbox
from farwatchd.sandbox.idmaps import parse_range
from farwatchd.sandbox.privileges import parse_changes
from farwatchd.sandbox.seccomp import Seccomp
from farwatchd.virtiofsd_compat import WITHOUT_EFFECT
from farwatchd.watch.probe import BackendName

_T = TypeVar("_T")

#: Log levels as virtiofsd calls them.
LOG_LEVELS = {
    "off": logging.CRITICAL + 1,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
}

EPILOG = """\
attach it to QEMU 10.2 or later with (events need a guest kernel with the Farwatch patches):

  qemu-system-x86_64 ... \\
    -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem \\
    -chardev socket,id=fs,path=SOCKET \\
    -device vhost-user-test-device-pci,chardev=fs,virtio-id=26,num_vqs=3,vq_size=128,config_size=44

or to any QEMU, where such a guest keeps a request waiting for events:

    -device vhost-user-fs-pci,chardev=fs,tag=TAG

size= is the guest's memory and must equal -m. num_vqs= is two more than --num-request-queues.
In the guest: mount -t virtiofs TAG /mnt
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser: its result's names are those of ``Config``'s fields, and some that ``cli`` sees
    to."""
    parser = argparse.ArgumentParser(
        prog="farwatchd",
        description=(
            "A virtio-fs daemon (vhost-user back end) whose guest sees what happens to the share on"
            " the host."
        ),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_where(parser.add_argument_group("where"))
    files = parser.add_argument_group("the file system")
    _add_files(files)
    _add_owners(files)
    _add_events(parser.add_argument_group("events"))
    _add_process(parser.add_argument_group("the process"))
    _add_compatible(parser.add_argument_group("for compatibility"))
    return parser


def _add_where(where: argparse._ArgumentGroup) -> None:
    socket = where.add_mutually_exclusive_group()
    socket.add_argument(
        "--socket-path", type=Path, metavar="SOCKET", help="listen on this UNIX socket"
    )
    socket.add_argument(
        "--fd", type=_number(0, 1 << 20), help="use this inherited socket, listening or connected"
    )
    where.add_argument(
        "--socket-group", metavar="GROUP", help="let the members of this group connect"
    )
    where.add_argument("--shared-dir", type=Path, metavar="DIR", help="the directory to share")
    where.add_argument(
        "--tag", default="share", help="what the guest mounts (default: %(default)s)"
    )
    where.add_argument(
        "--num-request-queues", type=_number(1, 64), default=1, metavar="N", help="default: 1"
    )


def _add_files(files: argparse._ArgumentGroup) -> None:
    files.add_argument(
        "--cache",
        type=Cache,
        default=Cache.AUTO,
        metavar=_choices(Cache),
        help="what the guest may cache",
    )
    files.add_argument("--writeback", action="store_true", help="let the guest write back later")
    files.add_argument("--readonly", action="store_true", help="refuse all changes by the guest")
    files.add_argument("--xattr", action="store_true", help="support extended attributes")
    files.add_argument(
        "--posix-acl",
        type=Negotiation,
        nargs="?",
        const=Negotiation.ALWAYS,
        default=Negotiation.NEVER,
        metavar=_choices(Negotiation),
        help=(
            "support POSIX ACLs, includes --xattr; auto: if the guest does (default: never; without"
            " value: always)"
        ),
    )
    files.add_argument(
        "--security-label",
        action="store_true",
        help=(
            "store the label that the guest's security module gives to a new file; includes --xattr"
        ),
    )
    files.add_argument(
        "--xattrmap",
        type=_parsed(parse),
        metavar="RULES",
        help=(
            "other names on the host for extended attributes, by virtiofsd's rules"
            " (:map::user.virtiofs.: gives all of the guest's this prefix); includes --xattr"
        ),
    )
    files.add_argument(
        "--allow-direct-io", action="store_true", help="pass O_DIRECT on to the host"
    )
    files.add_argument(
        "--allow-mmap",
        action="store_true",
        help="let the guest map files with --cache=never and metadata, too",
    )
    files.add_argument(
        "--preserve-noatime", action="store_true", help="pass O_NOATIME on to the host"
    )
    files.add_argument(
        "--announce-submounts",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show mount points in the share as such (default: yes)",
    )
    files.add_argument(
        "--inode-file-handles",
        type=InodeFileHandles,
        default=InodeFileHandles.PREFER,
        metavar=_choices(InodeFileHandles),
        help=(
            "keep what the guest knows by file handle, not by open file (default: prefer, where"
            " that works)"
        ),
    )
    files.add_argument(
        "--max-inodes",
        type=_number(2, 1_000_000_000),
        default=MAX_INODES,
        metavar="N",
        help="inodes that the guest may know at once; one more is ENFILE (default: %(default)s)",
    )
    files.add_argument(
        "--posix-lock",
        action=argparse.BooleanOptionalAction,
        default=False,
        help=(
            "let POSIX record locks hold on the host and for other guests, too; a program of the"
            " guest that waits for one cannot be killed until it has it (default: within the guest)"
        ),
    )
    files.add_argument(
        "--flock",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="the same for flock(2)'s locks",
    )
    files.add_argument(
        "--killpriv-v2",
        action=argparse.BooleanOptionalAction,
        default=False,
        help=(
            "take set-id bits away here when a file is written, so that the guest need not ask"
            " (default: no)"
        ),
    )
    files.add_argument(
        "--no-readdirplus", action="store_false", dest="readdirplus", help="list names only"
    )


def _add_owners(files: argparse._ArgumentGroup) -> None:
    for option, whose in (("--translate-uid", "users"), ("--translate-gid", "groups")):
        files.add_argument(
            option,
            type=_parsed(parse_rule),
            action="append",
            default=[],
            metavar="RULE",
            help=(
                f"other {whose} on the host than in the guest, by virtiofsd's rules"
                " (map:1000:5000:1 makes the guest's 1000 the host's 5000); as often as there are"
                " rules, not with --posix-acl"
            ),
        )


def _add_events(events: argparse._ArgumentGroup) -> None:
    events.add_argument(
        "--fsnotify",
        type=_fsnotify_mode,
        default=FsnotifyMode.AUTO,
        metavar=_choices(FsnotifyMode),
        help=(
            "which events the guest gets: others: of changes that it did not make; remote: of all"
            " changes on the host; off: none (default: auto, the best that works here)"
        ),
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
        help=(
            "events that wait for the guest; more are dropped and the guest is told so (default:"
            " %(default)s)"
        ),
    )


def _add_process(process: argparse._ArgumentGroup) -> None:
    process.add_argument(
        "--sandbox",
        type=Sandbox,
        default=Sandbox.NAMESPACE,
        metavar=_choices(Sandbox),
        help="how the daemon is confined to the shared directory (default: namespace)",
    )
    for option, whose in (("--uid-map", "users"), ("--gid-map", "groups")):
        process.add_argument(
            option,
            type=_parsed(parse_range),
            action="append",
            default=[],
            metavar=":INSIDE:OUTSIDE:COUNT:",
            help=(
                f"put the daemon into a namespace where {whose} from INSIDE on are the host's from"
                " OUTSIDE on; as often as there are ranges; an ordinary user needs newuidmap and"
                " newgidmap for it"
            ),
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
        type=_parsed(parse_changes),
        default=(Capability.NONE, Capability.NONE),
        metavar="{+,-}CAP[:...]",
        help=(
            "capabilities to keep besides those of a file server, or to give up:"
            " --modcaps=+sys_admin:-mknod"
        ),
    )
    process.add_argument(
        "--rlimit-nofile",
        type=_limit_of_files,
        metavar="N",
        help=(
            "limit of open files; 0 leaves it as it is (default: as many as can be had, at most"
            " 1000000)"
        ),
    )
    process.add_argument(
        "--thread-pool-size",
        type=_number(0, 64),
        default=4,
        metavar="N",
        help=(
            "threads for what waits for a disk (syncing, allocating, copying, reading what is not"
            " in memory, O_DIRECT, O_SYNC) while other requests are served; 0: those wait as well"
            " (default: %(default)s)"
        ),
    )
    process.add_argument(
        "--busy-poll",
        type=_number(0, 1000),
        default=200,
        metavar="MICROSECONDS",
        help=(
            "while requests come closely, look for the next one so long before sleeping: faster,"
            " for more processor time; 0: never, as on a host with one processor (default:"
            " %(default)s)"
        ),
    )
    process.add_argument(
        "--log-level", choices=LOG_LEVELS, default="info", help="default: %(default)s"
    )
    process.add_argument(
        "--syslog", action="store_true", help="log to syslog, not to the standard error output"
    )
    process.add_argument(
        "--print-capabilities",
        action="store_true",
        help="say as JSON what this back end is, and exit",
    )
    process.add_argument(
        "-V", "--version", action=_Version, help="say which version this is, and exit"
    )


def _add_compatible(compatible: argparse._ArgumentGroup) -> None:
    compatible.add_argument(
        "-o", metavar="NAME[=VALUE],...", help="virtiofsd's older form of options"
    )
    compatible.add_argument(
        "-d", action="store_const", const="debug", dest="log_level", help="--log-level=debug"
    )
    compatible.add_argument(
        "-f", action="store_true", dest="foreground", help="as ever: the daemon stays where it is"
    )
    for name, reason in WITHOUT_EFFECT.items():
        option = f"--{name.replace('_', '-')}"
        if name in ("migration_verify_handles", "migration_confirm_paths"):
            compatible.add_argument(option, action="store_true", help=f"no effect: {reason}")
        else:
            compatible.add_argument(option, metavar="X", help=f"no effect: {reason}")


def _parsed(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """What argparse calls for a value: the text of ``parse``'s ``ValueError`` is for the user."""

    def convert(text: str) -> _T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


class _Version(argparse.Action):
    """Prints the version of the package; only then is it looked up."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(
            option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help
        )

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print it and exit."""
        try:
            version = importlib.metadata.version("farwatch")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        print(f"farwatchd {version}")
        parser.exit()


def _fsnotify_mode(text: str) -> FsnotifyMode:
    """Accept also the name that mode ``others`` had in 0.1."""
    return FsnotifyMode("others" if text == "merged" else text)


def _number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not between {low} and {high}")
        return value

    return parse


def _limit_of_files(text: str) -> int:
    return 0 if text == "0" else _number(64, 1 << 30)(text)


def _choices(kind: type[Enum]) -> str:
    return "{" + ",".join(str(member.value) for member in kind) + "}"
