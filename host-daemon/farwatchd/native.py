# SPDX-License-Identifier: Apache-2.0
"""Chooses between the native part and the interpreter's code (``--native``)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from farwatchd.config import UserError

if TYPE_CHECKING:
    from farwatchd._native import PlainRequests
    from farwatchd.fuse.reply import Handler
    from farwatchd.passthrough.passthrough_fs import PassthroughFs
    from farwatchd.vhost_user.vring import RingMaker

_log = logging.getLogger(__name__)


class NativeUse(Enum):
    """Whether the native part is used. AUTO: if it was built."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class NativePart(NamedTuple):
    """The native part: what makes rings, and what makes a server of plain requests."""

    make_ring: RingMaker
    plain_requests: Callable[
        [PassthroughFs, Mapping[int, Handler], Callable[[int, int], None]], PlainRequests | None
    ]


def load(choice: NativeUse) -> NativePart | None:
    """Return the native part; None if it is not used. Call it while modules can be imported.

    ``UserError``: it must be used, and was not built.
    """
    if choice is NativeUse.OFF:
        return None
    try:
        from farwatchd.passthrough.plain_requests import plain_requests
        from farwatchd.virtqueue.native_ring import native_ring
    except ImportError as error:
        if choice is NativeUse.ON:
            raise UserError(
                f"--native=on: {error}; install farwatchd where there is a C compiler, or use"
                " --native=auto"
            ) from error
        return None
    return NativePart(native_ring, plain_requests)
