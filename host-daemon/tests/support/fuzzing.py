# SPDX-License-Identifier: Apache-2.0
"""Random inputs that can be reproduced.

FARWATCH_EXAMPLES=N tries N inputs a test, FARWATCH_SEED=N others.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from random import Random

EDGES = [0, 1, 2, 7, 8, 15, 16, 17, 255, 256, 4095, 4096, 65535, 65536]
#: The edge of a field of that many bytes.
LAST = {2: (1 << 16) - 1, 4: (1 << 32) - 1, 8: (1 << 64) - 1}


def inputs(default: int) -> Iterator[tuple[int, Random]]:
    """Numbers of inputs and for each a generator of its own."""
    seed = int(os.environ.get("FARWATCH_SEED", "1"))
    for number in range(int(os.environ.get("FARWATCH_EXAMPLES", default))):
        random = Random(f"{seed} {number}")
        try:
            yield number, random
        except GeneratorExit:
            # The loop was left, by an error mostly, which cannot be noted here.
            print(f"input {number} of FARWATCH_SEED={seed}")
            raise


def number(random: Random, width: int) -> int:
    """Choose a number for a field of ``width`` bytes: small, at an edge, or anything."""
    last = LAST[width]
    match random.randrange(4):
        case 0:
            return random.choice(EDGES) & last
        case 1:
            return last - random.choice(EDGES) & last
        case 2:
            return 1 << random.randrange(8 * width)
    return random.randrange(last + 1)


def noise(random: Random, most: int) -> bytes:
    """Up to ``most`` bytes of anything."""
    return random.randbytes(random.randrange(most + 1))


def spoiled(random: Random, data: bytes) -> bytes:
    """Return the bytes with a few of them changed, cut off or added."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 5))):
        match random.randrange(4):
            case 0 if changed:
                changed[random.randrange(len(changed))] = random.randrange(256)
            case 1 if changed:
                changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
            case 2:
                del changed[random.randrange(len(changed) + 1) :]
            case _:
                changed += noise(random, 16)
    return bytes(changed)


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(
            record.getMessage() + ("" if record.exc_info is None else " with a traceback")
        )


@contextlib.contextmanager
def errors_logged() -> Iterator[list[str]]:
    """Yield the errors that the daemon logs.

    pytest's own capture would keep references to logged objects, guest memory among them.
    """
    logger = logging.getLogger("farwatchd")
    handler = _Lines()
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield handler.lines
    finally:
        logger.propagate = True
        logger.removeHandler(handler)
