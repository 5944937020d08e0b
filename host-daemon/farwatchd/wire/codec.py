# SPDX-License-Identifier: Apache-2.0
"""Derives fast codecs from construct declarations, so that each wire format is declared once."""

from __future__ import annotations

import struct
from collections import namedtuple
from collections.abc import Callable
from functools import cached_property
from typing import Any

import construct

_ORDER = "<"


def _format(field: construct.Construct) -> str:
    """Return the struct format of one fixed-size field.

    ``TypeError``: it is of another kind, or of another byte order.
    """
    if isinstance(field, construct.Renamed):
        return _format(field.subcon)
    if isinstance(field, construct.FormatField) and field.fmtstr[0] == _ORDER:
        return str(field.fmtstr[1:])
    if isinstance(field, construct.Bytes) and isinstance(field.length, int):
        return f"{field.length}s"
    raise TypeError(f"no fixed-size little-endian codec for {field!r}")


class Codec:
    """Packs and unpacks one fixed-size, little-endian structure without padding.

    Built from a ``construct.Struct`` of integers and fixed ``Bytes``. ``unpack_from`` gives a named
    tuple whose fields are the declaration's; ``pack`` takes the fields by keyword, those left out
    being zero.

    The hot path's forms have all fields in the order of the declaration, without names:
    ``values(buffer, offset=0)`` decodes, ``pack_values(*values)`` encodes, ``pack_into(buffer,
    offset, *values)`` encodes into a writable buffer. ``struct.error`` when the buffer is too short
    or a value out of range.
    """

    values: Callable[..., tuple[Any, ...]]
    pack_values: Callable[..., bytes]
    pack_into: Callable[..., None]

    def __init__(self, layout: construct.Struct, name: str) -> None:
        names = [field.name for field in layout.subcons]
        formats = [_format(field) for field in layout.subcons]
        self.layout = layout
        self.name = name
        self._struct = struct.Struct(_ORDER + "".join(formats))
        self._names = names
        self._zero = {
            name: b"" if form.endswith("s") else 0
            for name, form in zip(names, formats, strict=True)
        }
        self.size = self._struct.size
        self.values = self._struct.unpack_from
        self.pack_values = self._struct.pack
        self.pack_into = self._struct.pack_into

    @cached_property
    def _tuple(self) -> Any:
        # Made when it is needed: most structures are read by their values alone.
        make_type: Any = namedtuple
        return make_type(self.name, self._names)

    def unpack_from(self, buffer: Any, offset: int = 0) -> Any:
        """Decode ``size`` bytes at ``offset``.

        Raises ``struct.error`` when the buffer is shorter.
        """
        return self._tuple._make(self.values(buffer, offset))

    def pack(self, **fields: Any) -> bytes:
        """Encode the given fields, the others zero.

        ``ValueError`` on an unknown field, ``struct.error`` on range.
        """
        if not fields.keys() <= self._zero.keys():
            raise ValueError(f"{self.name} has no fields {sorted(fields.keys() - self._zero)}")
        return self.pack_values(*{**self._zero, **fields}.values())
