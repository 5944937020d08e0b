# SPDX-License-Identifier: Apache-2.0
"""The command ``farwatchd``: options in, a served share out."""

from __future__ import annotations

import argparse
import json
import logging
import logging.handlers
import sys
from collections.abc import Sequence
from socket import socket as Socket  # noqa: N812

from farwatchd.config import Config
from farwatchd.daemon import run
from farwatchd.errors import UserError
from farwatchd.fuse.init import Negotiation
from farwatchd.options import LOG_LEVELS, make_parser
from farwatchd.passthrough.id_map import Owners, owners
from farwatchd.sandbox.enter import Sandbox
from farwatchd.sandbox.idmaps import IdMaps
from farwatchd.virtiofsd_compat import WITHOUT_EFFECT, modern

_log = logging.getLogger(__name__)

#: What --print-capabilities says (QEMU's docs/interop/vhost-user.json); libvirt asks for the
#: feature.
CAPABILITIES = {"type": "fs", "features": ["separate-options"]}


def parse(arguments: Sequence[str]) -> Config:
    """Turn the command line into a ``Config``; exits as argparse does on errors and on
    ``--help``."""
    parser = make_parser()
    try:
        options = parser.parse_args(modern(arguments))
    except ValueError as error:
        parser.error(str(error))
    if options.print_capabilities:
        print(json.dumps(CAPABILITIES))
        sys.exit(0)
    if options.socket_path is None and options.fd is None:
        parser.error("one of --socket-path and --fd is needed")
    if options.shared_dir is None:
        parser.error("--shared-dir is needed")
    if options.socket_group is not None and options.socket_path is None:
        parser.error("--socket-group goes with --socket-path")
    options.owners = _owners(parser, options)
    options.id_maps = _id_maps(parser, options)
    options.without_effect = _without_effect(options)
    options.xattr = (
        options.xattr
        or options.security_label
        or options.xattrmap is not None
        or options.posix_acl is not Negotiation.NEVER
    )
    values = vars(options)
    for name in (
        "print_capabilities",
        "o",
        "foreground",
        "translate_uid",
        "translate_gid",
        "uid_map",
        "gid_map",
    ):
        del values[name]
    return Config(**values)


def _owners(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Owners | None:
    """What --translate-uid and --translate-gid say."""
    try:
        found = owners(options.translate_uid, options.translate_gid)
    except ValueError as error:
        parser.error(f"--translate-uid, --translate-gid: {error}")
    if found is not None and options.posix_acl is not Negotiation.NEVER:
        parser.error(
            "--translate-uid and --translate-gid do not go with --posix-acl: who is named in an ACL"
            " stays"
        )
    return found


def _id_maps(parser: argparse.ArgumentParser, options: argparse.Namespace) -> IdMaps | None:
    """What --uid-map and --gid-map say."""
    if not options.uid_map and not options.gid_map:
        return None
    if options.sandbox is not Sandbox.NAMESPACE:
        parser.error(
            "--uid-map and --gid-map go with --sandbox=namespace; --translate-uid does without"
        )
    return IdMaps(tuple(options.uid_map), tuple(options.gid_map))


def _without_effect(options: argparse.Namespace) -> tuple[str, ...]:
    """A line for each option that was given and has no effect; they are taken out of
    ``options``."""
    lines = []
    for name, reason in WITHOUT_EFFECT.items():
        if vars(options).pop(name) not in (None, False):
            lines.append(f"--{name.replace('_', '-')} has no effect: {reason}")
    if options.writeback and options.readonly:
        lines.append("--writeback has no effect: --readonly leaves nothing to write")
    return tuple(lines)


class _Syslog(logging.handlers.SysLogHandler):
    """Says once on the standard error output when syslog cannot be reached any more, and goes
    on."""

    socket: Socket
    _told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Called for each message that is lost; the sandbox lets nobody connect to syslog again."""
        if not self._told:
            self._told = True
            print(
                "farwatchd: syslog has gone, and with it what is logged from now on",
                file=sys.stderr,
            )


def _start_logging(config: Config) -> None:
    handler: logging.Handler = logging.StreamHandler()
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    problem = None
    if config.syslog:
        syslog = _Syslog("/dev/log", logging.handlers.SysLogHandler.LOG_DAEMON)
        try:
            # The handler itself takes no notice of a failure so far.
            syslog.socket.getpeername()
        except OSError as error:
            problem = error.strerror
        else:
            handler = syslog
            formatter = logging.Formatter(
                "farwatchd[%(process)d]: %(levelname)s %(name)s: %(message)s"
            )
    handler.setFormatter(formatter)
    logging.basicConfig(level=LOG_LEVELS[config.log_level], handlers=[handler])
    if problem is not None:
        _log.warning("there is no syslog at /dev/log (%s): what is logged comes here", problem)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; returns the exit status: 0 ended, 1 cannot serve (one line says
    why), 2 usage."""
    config = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        _start_logging(config)
        for line in config.without_effect:
            _log.info("%s", line)
        run(config)
    except UserError as error:
        print(f"farwatchd: {error}", file=sys.stderr)
        return 1
    return 0
