# SPDX-License-Identifier: Apache-2.0
"""Cached output of tools, by what the tools read."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from farwatch_harness.util import cache, paths


@dataclass(frozen=True)
class ToolOutput:
    """A tool's output, and the seconds that the tool took when it ran."""

    output: str
    seconds: float


def cached(inputs: Sequence[str | bytes], run: Callable[[], str]) -> ToolOutput:
    """Return run()'s output for these inputs, from the cache if it has them.

    An exception of run() is passed on, and nothing is cached.
    """
    path = paths.cache_root() / "said" / f"{cache.content_key(*inputs)}.json"
    try:
        return ToolOutput(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        pass
    start = time.monotonic()
    found = ToolOutput(run(), round(time.monotonic() - start, 1))
    cache.write_atomically(path, json.dumps(found.__dict__).encode())
    return found
