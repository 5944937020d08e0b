# SPDX-License-Identifier: Apache-2.0
"""What may follow the arguments of a request that makes an inode: a supplementary group, security
labels (7.38)."""

from __future__ import annotations

import errno

from farwatchd.wire.fuse import EXT_GROUPS, MAX_NR_SECCTX, ext_header, secctx, supp_groups

_NO_ID = 0xFFFFFFFF
_XATTR_NAME_MAX = 255
_XATTR_SIZE_MAX = 65536

Labels = tuple[tuple[bytes, bytes], ...]


def parse(extensions: bytes) -> tuple[int, Labels]:
    """The group, or -1, and the labels as names and values of extended attributes; EINVAL when it
    is malformed.

    Extensions of unknown types are left out.
    """
    position = 0
    group: int | None = None
    labels: Labels | None = None
    while position < len(extensions):
        if len(extensions) - position < ext_header.size:
            raise _invalid("a short extension")
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
            if labels is not None:
                raise _invalid("two lists of labels")
            labels = _labels(body, header.type)
        position = end
    return -1 if group is None else group, labels or ()


def _only_group(body: bytes) -> int:
    """The one group of a ``fuse_supp_groups``: the client sends none or the parent directory's."""
    if len(body) < supp_groups.size:
        raise _invalid("a short list of groups")
    count = supp_groups.unpack_from(body).nr_groups
    if count == 0:
        return -1
    if count > 1 or len(body) < supp_groups.size + 4:
        raise _invalid(f"a list of {count} groups")
    group = int.from_bytes(body[supp_groups.size : supp_groups.size + 4], "little")
    if group == _NO_ID:
        raise _invalid("not a group")
    return group


def _labels(body: bytes, count: int) -> Labels:
    """``count`` times ``fuse_secctx``, a name with its NUL and the value, padded to 8 bytes."""
    labels = []
    position = 0
    for _ in range(count):
        start = position + secctx.size
        if start > len(body):
            raise _invalid("a short label")
        size = secctx.unpack_from(body, position).size
        name, end_of_name, _rest = body[start:].partition(b"\0")
        value = start + len(name) + 1
        if not end_of_name or not 0 < len(name) <= _XATTR_NAME_MAX or size > _XATTR_SIZE_MAX:
            raise _invalid("a label's name or size")
        if value + size > len(body):
            raise _invalid("a label's length")
        labels.append((name, body[value : value + size]))
        position = value + size
        position += -position % 8
    return tuple(labels)


def _invalid(what: str) -> OSError:
    return OSError(errno.EINVAL, what)
