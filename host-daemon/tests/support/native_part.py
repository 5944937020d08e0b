# SPDX-License-Identifier: Apache-2.0
"""By which code a test serves: the interpreter's, or the native part.

``conftest.py`` runs the tests of some directories by each.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farwatchd.native import NativeUse, load
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.virtqueue import Ring, SplitRing

if TYPE_CHECKING:
    from farwatchd.fuse.session import PlainMaker

_loaded = load(NativeUse.AUTO)
PARTS = {"python": None} if _loaded is None else {"python": None, "native": _loaded}
_chosen = "python"


def sources() -> str:
    """Return the text of the native part's sources."""
    folder = Path(__file__).parents[2] / "native"
    return "".join(path.read_text() for path in sorted(folder.glob("*.[ch]")))


def choose(name: str) -> None:
    """Serve by that code from now on."""
    global _chosen
    _chosen = name


def make_ring(*args: Any) -> Ring:
    """Make a ring of the arguments of ``SplitRing``."""
    part = PARTS[_chosen]
    return SplitRing(*args) if part is None else part.make_ring(*args)


def make_plain(fs: PassthroughFs) -> PlainMaker | None:
    """Return what a session makes its server of plain requests with."""
    part = PARTS[_chosen]
    return None if part is None else partial(part.plain_requests, fs)
