# SPDX-License-Identifier: Apache-2.0
"""The inputs that coverage-guided fuzzing has found, one after the other: none finds a fault."""

from __future__ import annotations

import pytest
from tests.fuzz.targets import TARGETS, Input, read_corpus
from tests.support.passthrough_share import open_descriptors

#: What `make fuzz ARGS=--keep` has left of a target at least.
FEWEST = 3


#: Requests may make device nodes.
NAMES = [pytest.param(name, marks=[pytest.mark.root] * (name == "requests")) for name in TARGETS]


@pytest.mark.parametrize("name", NAMES)
def test_kept_inputs_find_no_fault(name: str) -> None:
    before = open_descriptors()
    target = TARGETS[name]()
    kept = read_corpus(name)
    assert len(kept) >= FEWEST
    for number, data in enumerate(kept):
        try:
            target.run(data)
        except Exception as error:
            error.add_note(f"input {number} of {name}: {data.hex()}")
            raise
    target.close()
    assert open_descriptors() <= before


def test_choices_are_those_of_the_input() -> None:
    chosen = Input(bytes([3, 255, 0x34, 0x12, 7]))
    assert chosen.randrange(8) == 3
    assert 0.99 < chosen.random() < 1
    assert chosen.getrandbits(16) == 0x1234
    assert chosen.left == 1
    assert chosen.randbytes(2) == b"\x07\0"
    assert (chosen.left, chosen.randrange(10), chosen.choice("ab")) == (0, 0, "a")
    assert Input(b"\x05").randbytes(1000) == b"\x05" * 1000
