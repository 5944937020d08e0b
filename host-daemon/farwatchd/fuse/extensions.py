# SPDX-License-Identifier: Apache-2.0
"""Extensions after the arguments of a request that makes an inode (7.38).

They are a supplementary group, and security contexts.
"""

from __future__ import annotations

import errno

from farwatchd.linux.libc import NO_ID
from farwatchd.wire.fuse import EXT_GROUPS, MAX_NR_SECCTX, ext_header, secctx, supp_groups

#: Of linux/limits.h.
XATTR_NAME_MAX = 255
XATTR_SIZE_MAX = 65536

SecurityXattrs = tuple[tuple[bytes, bytes], ...]


def parse(extensions: bytes) -> tuple[int, SecurityXattrs]:
    """Return the group, or -1, and the security xattrs as names and values.

    EINVAL: an extension is malformed. Those of unknown types are ignored.
    """
    position = 0
    group: int | None = None
    xattrs: SecurityXattrs | None = None
    while position < len(extensions):
        # Whole: the length of all is a multiple of its size (fuse_in_header, total_extlen).
        header = ext_header.unpack_from(extensions, position)
        end = position + header.size
        if header.size < ext_header.size or header.size % 8 or end > len(extensions):
            raise _invalid("an extension's length")
        body = extensions[position + ext_header.size : end]
        if header.type == EXT_GROUPS:
            if group is not None:
                raise _invalid("two lists of groups")
            group = _only_group(body)
        elif header.type <= MAX_NR_SECCTX:
            if xattrs is not None:
                raise _invalid("two lists of security contexts")
            xattrs = _security_xattrs(body, header.type)
        position = end
    return -1 if group is None else group, xattrs or ()


def _only_group(body: bytes) -> int:
    """Return the one group of a ``fuse_supp_groups``: the client sends at most one."""
    if len(body) < supp_groups.size:
        raise _invalid("a short list of groups")
    count = supp_groups.unpack_from(body).nr_groups
    if count == 0:
        return -1
    if count > 1 or len(body) < supp_groups.size + 4:
        raise _invalid(f"a list of {count} groups")
    group = int.from_bytes(body[supp_groups.size : supp_groups.size + 4], "little")
    if group == NO_ID:
        raise _invalid("not a group")
    return group


def _security_xattrs(body: bytes, count: int) -> SecurityXattrs:
    """Decode ``count`` times ``fuse_secctx``: a name with its NUL, and a value; padded to 8."""
    xattrs = []
    position = 0
    for _ in range(count):
        start = position + secctx.size
        if start > len(body):
            raise _invalid("a short security context")
        size = secctx.unpack_from(body, position).size
        name, end_of_name, _rest = body[start:].partition(b"\0")
        value = start + len(name) + 1
        if not end_of_name or not 0 < len(name) <= XATTR_NAME_MAX or size > XATTR_SIZE_MAX:
            raise _invalid("a security context's name or size")
        if value + size > len(body):
            raise _invalid("a security context's length")
        xattrs.append((name, body[value : value + size]))
        position = value + size
        position += -position % 8
    return tuple(xattrs)


def _invalid(what: str) -> OSError:
    return OSError(errno.EINVAL, what)
