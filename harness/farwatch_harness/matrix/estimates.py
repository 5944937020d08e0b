# SPDX-License-Identifier: Apache-2.0
"""How long the rest of a run will take, by how long the same took before; remembered in the
cache."""

import json
from collections.abc import Iterable

from farwatch_harness.kernel import build
from farwatch_harness.matrix.prefixes import Row
from farwatch_harness.results import CheckName
from farwatch_harness.util import cache, paths
from farwatch_harness.util.errors import HarnessError

#: Seconds, for what has not been timed here: 2 cores, no KVM.
USUAL = {
    CheckName.APPLY: 0.2,
    CheckName.CHECKPATCH: 1.0,
    CheckName.BUILD: 40.0,
    CheckName.SPARSE: 20.0,
    CheckName.BOOT: 9.0,
    CheckName.TESTS: 20.0,
}
WHOLE_BUILD = 300.0
WHOLE_TESTS = 200.0
# What is in the cache is there at once.
KEPT = 0.5


class Forecast:
    """Knows how long each check of each of these rows has to be expected to take."""

    def __init__(self, rows: Iterable[Row]) -> None:
        # Asked once: a kernel that is built now has taken its time all the same.
        self.kept = {row.number for row in rows if is_kept(row)}
        self.place = paths.cache_root() / "matrix-times.json"
        try:
            self.times: dict[str, float] = json.loads(self.place.read_text())
        except (FileNotFoundError, ValueError):
            self.times = {}

    def seconds(self, row: Row, name: CheckName) -> float:
        """What to expect of one check."""
        return self.times.get(self.name(row, name), self.usual(row, name))

    def left(self, cells: Iterable[tuple[Row, CheckName]]) -> float:
        """What to expect of several."""
        return sum(self.seconds(row, name) for row, name in cells)

    def learn(self, row: Row, name: CheckName, seconds: float) -> None:
        """Remembers how long a check took now."""
        self.times[self.name(row, name)] = round(seconds, 1)
        cache.write_atomically(self.place, json.dumps(self.times).encode())

    def is_at_hand(self, row: Row, name: CheckName) -> bool:
        """Whether the check looks at a kernel that has been built before, and need do little."""
        return name in (CheckName.BUILD, CheckName.SPARSE) and row.number in self.kept

    def name(self, row: Row, name: CheckName) -> str:
        kept = " kept" if self.is_at_hand(row, name) else ""
        scope = " all" if row.last and name is CheckName.TESTS else ""
        return f"{name}{kept}{scope} {row.title}"

    def usual(self, row: Row, name: CheckName) -> float:
        """What is usual for a check that has not been timed."""
        if name is CheckName.TESTS and row.last:
            return WHOLE_TESTS
        if self.is_at_hand(row, name):
            return KEPT
        headers = row.patch is None or any(
            file.startswith("include/linux/") for file in row.patch.touched()
        )
        return WHOLE_BUILD if name is CheckName.BUILD and headers else USUAL[name]


def is_kept(row: Row) -> bool:
    """Whether the row's kernel has been built before."""
    try:
        return build.kept_at(build.wanted(row.patches)).is_dir()
    except HarnessError:
        return False
