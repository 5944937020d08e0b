# SPDX-License-Identifier: Apache-2.0
"""The configuration of the daemon, and the command line that it is read from.

Options are declared in the records below (``config.option``), named as virtiofsd's; what is only
about the command line itself is declared here.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from farwatchd.config import Option, UserError, declared, number, option, size
from farwatchd.fuse.options import Negotiation, SessionOptions
from farwatchd.listener import SocketOptions
from farwatchd.migration.options import MigrationOptions
from farwatchd.native import NativeUse
from farwatchd.passthrough.id_map import make_translation
from farwatchd.passthrough.options import DEFAULT_MAX_INODES, Cache
from farwatchd.passthrough.options import ShareOptions as ShareOptions
from farwatchd.sandbox.idmaps import IdMaps
from farwatchd.sandbox.limits import usable_memory
from farwatchd.sandbox.options import Sandbox, SandboxOptions
from farwatchd.virtio_fs.options import DeviceConfig
from farwatchd.virtiofsd_compat import WITHOUT_EFFECT, modern
from farwatchd.watch.options import (
    DEFAULT_EVENT_QUEUE,
    DEFAULT_MAX_WATCHES,
    FsnotifyMode,
    WatchOptions,
)

_R = TypeVar("_R")

#: Log levels as virtiofsd calls them.
LOG_LEVELS = {
    "off": logging.CRITICAL + 1,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
}

#: What --print-capabilities prints (QEMU's docs/interop/vhost-user.json); libvirt asks for the
#: feature.
CAPABILITIES = {
    "type": "fs",
    "features": [
        "separate-options",
        "migrate-precopy",
        "posix-acl-negotiation-mode",
        "security-label-negotiation-mode",
    ],
}

#: What an inode that the guest knows, a watch, and an event of the longest names take of the
#: daemon's memory, in bytes, as measured.
INODE_BYTES = 640
WATCH_BYTES = 420
EVENT_BYTES = 640
#: The least limit of inodes that is set without --max-memory.
MIN_MAX_INODES = 65536
#: The least value of --max-memory: enough to work with.
MIN_MEMORY = 1 << 20

EPILOG = """\
attach it to QEMU 10.2 or later with (events need a guest kernel with the Farwatch patches):

  qemu-system-x86_64 ... \\
    -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem \\
    -chardev socket,id=fs,path=SOCKET \\
    -device vhost-user-test-device-pci,chardev=fs,virtio-id=26,num_vqs=3,vq_size=128,config_size=44

or to any QEMU, where such a guest keeps a WAIT request for events in flight:

    -device vhost-user-fs-pci,chardev=fs,tag=TAG

size= is the guest's memory and must equal -m. num_vqs= is two more than --num-request-queues.
In the guest: mount -t virtiofs TAG /mnt
"""


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """The options of the process."""

    thread_pool_size: int = option(
        "thread-pool-size",
        "threads for requests that wait for a disk (syncing, allocating, copying, reading what is"
        " not in memory, O_DIRECT, O_SYNC) while other requests are served; 0: other requests wait,"
        " too (default: %(default)s)",
        4,
        number(0, 1 << 16),
        metavar="N",
    )
    max_memory: int | None = option(
        "max-memory",
        "memory that all that the guest knows and watches may take, besides some 40M for the"
        " daemon itself: sets --max-inodes, --max-watches and --event-queue where they are not"
        " given (K, M, G; default: a quarter of the memory for inodes)",
        None,
        size(MIN_MEMORY),
        metavar="SIZE",
    )
    state_dir: Path | None = option(
        "state-dir",
        "keep the state of the guest's session in this directory, so that the guest goes on when"
        " this daemon was stopped or killed and is started again",
        None,
        Path,
        metavar="DIR",
    )
    native: NativeUse = option(
        "native",
        "serve the rings and plain requests by compiled code (auto: if it was built; default:"
        " auto)",
        NativeUse.AUTO,
    )
    log_level: str = option("log-level", "default: %(default)s", "info", choices=tuple(LOG_LEVELS))
    daemonize: bool = option(
        "daemonize",
        "return when requests can be served, and serve on in the background",
        False,
    )
    syslog: bool = option("syslog", "log to syslog instead of the standard error output", False)


@dataclass(frozen=True)
class Config:
    """All options of one daemon, a record for each of its parts.

    ``without_effect``: a log line for each option that was given and has no effect.
    """

    shared_dir: Path
    socket: SocketOptions
    share: ShareOptions
    device: DeviceConfig
    session: SessionOptions
    watch: WatchOptions
    sandbox: SandboxOptions
    process: ProcessOptions
    migration: MigrationOptions
    without_effect: tuple[str, ...] = ()


#: The groups of ``--help``, in its order.
_GROUPS: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("the socket and the device", (SocketOptions, DeviceConfig)),
    ("the share", (ShareOptions, SessionOptions)),
    ("events", (WatchOptions,)),
    ("live migration", (MigrationOptions,)),
    ("the process", (SandboxOptions, ProcessOptions)),
)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; its result has the names of the records' fields."""
    parser = argparse.ArgumentParser(
        prog="farwatchd",
        usage="%(prog)s {--socket-path SOCKET | --fd FD} --shared-dir DIR [OPTION ...]",
        description=(
            "A virtio-fs daemon (vhost-user back-end) that reports changes on the host to programs"
            " in the guest."
        ),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--shared-dir", type=Path, metavar="DIR", help="the directory to share")
    for title, records in _GROUPS:
        group = parser.add_argument_group(title)
        for record in records:
            for field, one in declared(record):
                _add(group, one, field.default)
    about = parser.add_argument_group("about the daemon")
    about.add_argument(
        "--print-capabilities",
        action=_Print,
        text=_capabilities,
        help="print what this back-end is, as JSON, and exit",
    )
    about.add_argument(
        "--check",
        action=_Act,
        act=_check_directory,
        metavar="DIR",
        help="print what works here for a shared directory, and what to do about the rest, and exit"
        " with status 0 if the daemon would serve it with events",
    )
    about.add_argument(
        "--answer-doctor",
        action=_Act,
        act=_answer_doctor,
        metavar="DIR",
        help="answer `farwatch doctor` in a guest that has mounted this directory, until Ctrl-C",
    )
    about.add_argument(
        "-V", "--version", action=_Print, text=_version, help="print the version, and exit"
    )
    _add_compatible(parser.add_argument_group("for compatibility"))
    return parser


def _add(group: argparse._ArgumentGroup, one: Option, default: object) -> None:
    """Add one declared option to the parser."""
    arguments = {"default": default, **one.arguments, "help": one.help}
    if one.parse is not None:
        arguments["type"] = _converter(one.parse)
    if arguments.pop("negatable", False):
        arguments["action"] = argparse.BooleanOptionalAction
    group.add_argument(f"--{one.name}", **arguments)


def _add_compatible(compatible: argparse._ArgumentGroup) -> None:
    compatible.add_argument(
        "-o", metavar="NAME[=VALUE],...", help="virtiofsd's older form of options"
    )
    compatible.add_argument(
        "-d", action="store_const", const="debug", dest="log_level", help="--log-level=debug"
    )
    compatible.add_argument(
        "-f", action="store_true", dest="foreground", help="no effect: always in the foreground"
    )
    for name, (metavar, reason) in WITHOUT_EFFECT.items():
        flag = f"--{name.replace('_', '-')}"
        text = f"no effect: {reason}"
        if metavar is None:
            compatible.add_argument(flag, action="store_true", help=text)
        else:
            compatible.add_argument(flag, metavar=metavar, help=text)


def parse(arguments: Sequence[str]) -> Config:
    """Turn the command line into a ``Config``.

    Exits as argparse does on errors, and on options that only print something.
    """
    parser = make_parser()
    try:
        given = parser.parse_args(modern(arguments))
    except ValueError as error:
        parser.error(str(error))
    try:
        _check(given)
        _derive(given)
    except UserError as error:
        parser.error(str(error))
    return Config(
        shared_dir=given.shared_dir,
        socket=_fill(SocketOptions, given),
        share=_fill(ShareOptions, given),
        device=_fill(DeviceConfig, given),
        session=_fill(SessionOptions, given),
        watch=_fill(WatchOptions, given),
        sandbox=_fill(SandboxOptions, given),
        process=_fill(ProcessOptions, given),
        migration=_fill(MigrationOptions, given),
        without_effect=tuple(_without_effect(given)),
    )


def _fill(record: type[_R], given: argparse.Namespace) -> _R:
    """Make a record of the options that have the names of its fields, whoever declares them."""
    values = vars(given)
    assert isinstance(record, type)
    names = [field.name for field in fields(record)]  # type: ignore[arg-type]
    return record(**{name: values[name] for name in names if name in values})


def _check(given: argparse.Namespace) -> None:
    """Refuse options that exclude each other; ``UserError``."""
    if given.socket_path is None and given.fd is None:
        raise UserError("one of --socket-path and --fd is needed")
    if given.socket_path is not None and given.fd is not None:
        raise UserError("--socket-path and --fd exclude each other")
    if given.shared_dir is None:
        raise UserError("--shared-dir is needed")
    if given.replace and given.socket_path is None:
        raise UserError("--replace needs --socket-path")
    if given.socket_group is not None and given.socket_path is None:
        raise UserError("--socket-group needs --socket-path")
    translated = given.translate_uid or given.translate_gid
    if translated and given.posix_acl is not Negotiation.NEVER:
        raise UserError(
            "--translate-uid and --translate-gid exclude --posix-acl: ids in an ACL are not"
            " translated"
        )
    if (given.uid_map or given.gid_map) and given.sandbox is not Sandbox.NAMESPACE:
        raise UserError(
            "--uid-map and --gid-map need --sandbox=namespace; --translate-uid and --translate-gid"
            " do not"
        )


def _derive(given: argparse.Namespace) -> None:
    """Set what follows from several options; ``UserError``."""
    try:
        given.id_translation = make_translation(given.translate_uid, given.translate_gid)
    except ValueError as error:
        raise UserError(f"--translate-uid, --translate-gid: {error}") from error
    if given.uid_map or given.gid_map:
        given.id_maps = IdMaps(tuple(given.uid_map), tuple(given.gid_map))
    _set_memory_limits(given)
    given.security_labels = given.security_label is not Negotiation.NEVER
    given.notification = given.fsnotify is not FsnotifyMode.OFF
    given.readdirplus = given.readdirplus and given.cache is not Cache.NEVER
    given.xattr = (
        given.xattr
        or given.security_labels
        or given.xattrmap is not None
        or given.posix_acl is not Negotiation.NEVER
    )


def _set_memory_limits(given: argparse.Namespace) -> None:
    """Set the limits that were not given by the memory there is, or by --max-memory."""
    if given.max_memory is None:
        inodes = max(MIN_MAX_INODES, usable_memory() // 4 // INODE_BYTES)
        watches, events = DEFAULT_MAX_WATCHES, DEFAULT_EVENT_QUEUE
    else:
        # A watched inode is a known one as well.
        eighth = given.max_memory // 8
        inodes = 4 * eighth // INODE_BYTES
        watches = 3 * eighth // WATCH_BYTES
        events = eighth // EVENT_BYTES
    for name, number_of, most in (
        ("max_inodes", inodes, DEFAULT_MAX_INODES),
        ("max_watches", watches, DEFAULT_MAX_WATCHES),
        ("event_queue", events, DEFAULT_EVENT_QUEUE),
    ):
        if vars(given)[name] is None:
            setattr(given, name, min(most, number_of))


def _without_effect(given: argparse.Namespace) -> list[str]:
    """Return a line for each option that was given and has no effect."""
    lines = [
        f"--{name.replace('_', '-')} has no effect: {reason}"
        for name, (_, reason) in WITHOUT_EFFECT.items()
        if vars(given)[name] not in (None, False)
    ]
    if given.writeback and given.readonly:
        lines.append("--writeback has no effect: --readonly leaves nothing to write")
    return lines


def _converter(parse: Callable[[str], object]) -> Callable[[str], object]:
    """Return what argparse calls for a value.

    The text of ``parse``'s ``ValueError`` is for the user.
    """

    def convert(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


class _Print(argparse.Action):
    """Prints what ``text`` returns, and exits."""

    def __init__(
        self,
        option_strings: Sequence[str],
        dest: str,
        text: Callable[[], str],
        help: str | None = None,
    ) -> None:
        super().__init__(
            option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help
        )
        self._text = text

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print it and exit."""
        print(self._text())
        parser.exit()


class _Act(argparse.Action):
    """Calls ``act`` with a directory, and exits with the status that it returns."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, act: Callable[[Path], int], **arguments: Any
    ) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, default=argparse.SUPPRESS, **arguments)
        self._act = act

    def __call__(
        self, parser: argparse.ArgumentParser, _: argparse.Namespace, value: object, *__: object
    ) -> None:
        """Do it and exit."""
        sys.exit(self._act(Path(str(value))))


def _check_directory(directory: Path) -> int:
    # It has most of the daemon.
    from farwatchd.check import check

    return check(directory)


def _answer_doctor(directory: Path) -> int:
    from farwatchd.answer_doctor import answer_doctor

    return answer_doctor(directory)


def _version() -> str:
    # Takes long to load, and longer to find out.
    import importlib.metadata

    try:
        version = importlib.metadata.version("farwatch")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    return f"farwatchd {version}"


def _capabilities() -> str:
    return json.dumps(CAPABILITIES)
