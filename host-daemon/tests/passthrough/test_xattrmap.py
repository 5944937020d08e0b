# SPDX-License-Identifier: Apache-2.0
"""Rules for the names of extended attributes: what the guest sets and sees, what the host has."""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from pathlib import Path

import pytest
from farwatchd.fuse.filesystem import Requester
from farwatchd.passthrough.options import ShareOptions
from farwatchd.passthrough.xattrmap import XattrMap, parse
from hypothesis import given
from hypothesis import strategies as st
from tests.support.passthrough_share import SharedDirectory, errno_of

#: The examples of virtiofsd's documentation.
PREFIX_ALL = ":prefix:all::user.virtiofs.::bad:all:::"
PREFIX_TRUSTED = (
    "/prefix/all/trusted./user.virtiofs./\n /bad/server//trusted./\n /bad/client/user.virtiofs.//\n"
    " /ok/all///"
)
NO_SELINUX = "/unsupported/all/security.selinux/security.selinux//ok/all///"


@pytest.mark.parametrize(
    "rules, name, host",
    [
        (PREFIX_ALL, b"trusted.a", b"user.virtiofs.trusted.a"),
        (PREFIX_ALL, b"user.virtiofs.a", b"user.virtiofs.user.virtiofs.a"),
        (PREFIX_TRUSTED, b"trusted.a", b"user.virtiofs.trusted.a"),
        (PREFIX_TRUSTED, b"user.a", b"user.a"),
        (PREFIX_TRUSTED, b"user.virtiofs.a", errno.EPERM),
        (NO_SELINUX, b"security.selinux", errno.EOPNOTSUPP),
        (NO_SELINUX, b"user.a", b"user.a"),
        (":ok:client:user.:::bad:server:::", b"trusted.a", errno.EPERM),
    ],
)
def test_names_of_the_guest_are_translated(rules: str, name: bytes, host: bytes | int) -> None:
    if isinstance(host, int):
        assert errno_of(parse(rules).to_host, name) == host
    else:
        assert parse(rules).to_host(name) == host


@pytest.mark.parametrize(
    "rules, name, guest",
    [
        (PREFIX_ALL, b"user.virtiofs.trusted.a", b"trusted.a"),
        (PREFIX_ALL, b"trusted.a", None),
        (PREFIX_TRUSTED, b"user.virtiofs.trusted.a", b"trusted.a"),
        (PREFIX_TRUSTED, b"trusted.a", None),
        (PREFIX_TRUSTED, b"user.a", b"user.a"),
        (NO_SELINUX, b"security.selinux", None),
        (":ok:client:::", b"user.a", None),
    ],
)
def test_names_of_the_host_are_translated(rules: str, name: bytes, guest: bytes | None) -> None:
    assert parse(rules).to_guest(name) == guest


NAMES = st.sampled_from([b"user.", b"trusted.", b"user.virtiofs.", b"security."]).flatmap(
    lambda prefix: st.binary(min_size=1, max_size=8).map(lambda rest: prefix + rest)
)


@pytest.mark.parametrize(
    "short, long",
    [(":map::user.virtiofs.:", PREFIX_ALL), (":map:trusted.:user.virtiofs.:", PREFIX_TRUSTED)],
)
@given(name=NAMES)
def test_a_map_rule_stands_for_those_of_the_documentation(
    short: str, long: str, name: bytes
) -> None:
    def seen(rules: XattrMap) -> tuple[object, ...]:
        error = errno_of(rules.to_host, name)
        return error, None if error else rules.to_host(name), rules.to_guest(name)

    assert seen(parse(short)) == seen(parse(long))


@pytest.mark.parametrize("rules", [":map::user.virtiofs.:", ":map:trusted.:user.virtiofs.:"])
@given(name=NAMES)
def test_attribute_is_listed_by_the_name_it_was_set_by(rules: str, name: bytes) -> None:
    mapped = parse(rules)
    if not errno_of(mapped.to_host, name):
        assert mapped.to_guest(mapped.to_host(name)) == name


@pytest.mark.parametrize(
    "rules, problem",
    [
        ("  ", "there is no rule"),
        (":good:all:::", "'good' is not one of prefix, ok, bad, unsupported, map"),
        (":ok:both:::", "'both' is not one of client, server, all"),
        (":ok:all:user", "'user': no ':' after the key"),
        (":ok:all::", "'': no ':' after the prepend"),
        (":map:a:b::ok:all:::", "nothing may follow a rule of type map"),
    ],
)
def test_error_of_an_invalid_rule_explains_it(rules: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        parse(rules)


def test_the_file_system_uses_the_hosts_names(tmp_path: Path) -> None:
    share = SharedDirectory(
        tmp_path,
        ShareOptions(xattr=True, security_labels=True, xattrmap=parse(":map::user.guest.:")),
    )
    file = tmp_path / "file"
    file.touch()
    os.setxattr(file, "user.host", b"its own")
    nodeid = share.lookup("file")
    share.fs.setxattr(nodeid, b"security.label", b"value", 0, False)
    assert os.listxattr(file) == ["user.host", "user.guest.security.label"]
    assert list(share.fs.listxattr(nodeid)) == [b"security.label"]
    assert share.fs.getxattr(nodeid, b"security.label") == b"value"
    assert errno_of(share.fs.getxattr, nodeid, b"user.host") == errno.ENODATA
    share.fs.removexattr(nodeid, b"security.label")
    assert os.listxattr(file) == ["user.host"]
    labelled = Requester(
        os.geteuid(), os.getegid(), 1, security_xattrs=((b"security.selinux", b"label"),)
    )
    share.create(b"new", requester=labelled)
    assert os.getxattr(tmp_path / "new", "user.guest.security.selinux") == b"label"


def test_refused_names_can_neither_be_set_nor_read(tmp_path: Path) -> None:
    share = SharedDirectory(
        tmp_path,
        ShareOptions(xattr=True, xattrmap=parse(":bad:all:user.:user.::unsupported:all:::")),
    )
    os.setxattr(tmp_path, "user.a", b"value")
    nodeid = share.lookup("")
    assert errno_of(share.fs.setxattr, nodeid, b"user.a", b"value", 0, False) == errno.EPERM
    assert errno_of(share.fs.removexattr, nodeid, b"user.a") == errno.EPERM
    assert errno_of(share.fs.getxattr, nodeid, b"user.a") == errno.ENODATA
    assert errno_of(share.fs.getxattr, nodeid, b"security.a") == errno.EOPNOTSUPP
    assert list(share.fs.listxattr(nodeid)) == []


def test_rules_do_not_lead_to_acls_that_are_off(tmp_path: Path) -> None:
    rules = ":prefix:all:posix_acl_:system.::ok:all:::"
    share = SharedDirectory(tmp_path, ShareOptions(xattr=True, xattrmap=parse(rules)))
    mode = tmp_path.stat().st_mode
    nodeid = share.lookup("")
    name = b"posix_acl_access"
    # An owner without rights, a group and others with all.
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, rights, 0xFFFFFFFF) for tag, rights in ((1, 0), (4, 7), (32, 7))
    )
    assert errno_of(share.fs.setxattr, nodeid, name, acl, 0, False) == errno.EOPNOTSUPP
    assert errno_of(share.fs.removexattr, nodeid, name) == errno.EOPNOTSUPP
    assert errno_of(share.fs.getxattr, nodeid, name) == errno.EOPNOTSUPP
    assert tmp_path.stat().st_mode == mode
    share.passthrough.set_negotiated(posix_acls=True, writeback=False)
    share.fs.setxattr(nodeid, name, acl, 0, False)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o077
    tmp_path.chmod(0o700)
