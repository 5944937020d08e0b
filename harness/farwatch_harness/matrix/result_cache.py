# SPDX-License-Identifier: Apache-2.0
"""What a tool said of something that has not changed since: kept in the cache by what it was asked
about."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from farwatch_harness.util import cache, paths


@dataclass(frozen=True)
class Said:
    """A tool's output, and how long it took when it was run."""

    output: str
    seconds: float


def kept(about: Sequence[str | bytes], run: Callable[[], str]) -> Said:
    """What run() says about these things, from the cache if it was asked before; a failure is not
    kept."""
    place = paths.cache_root() / "said" / f"{cache.content_key(*about)}.json"
    try:
        return Said(**json.loads(place.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        pass
    began = time.monotonic()
    said = Said(run(), round(time.monotonic() - began, 1))
    cache.write_atomically(place, json.dumps(said.__dict__).encode())
    return said
