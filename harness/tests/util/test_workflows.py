# SPDX-License-Identifier: Apache-2.0
"""The CI workflows against what they run."""

import re

from farwatch_harness.kernel import series, versions
from farwatch_harness.util import paths

WORKFLOWS = paths.CHECKOUT / ".github" / "workflows"


def test_parts_of_the_series_are_all_of_it_once() -> None:
    parts = re.findall(r"test PATCH=(\d+)-(\d+)", (WORKFLOWS / "series.yml").read_text())
    numbers = [number for first, last in parts for number in range(int(first), int(last) + 1)]
    assert numbers == list(range(1, len(series.read_series(versions.DEFAULT.folder)) + 1))


def test_targets_exist() -> None:
    rules = set(re.findall(r"^([a-z-]+):", (paths.CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    for workflow in WORKFLOWS.glob("*.yml"):
        assert set(re.findall(r"- run: make ([a-z-]+)", workflow.read_text())) <= rules
