# SPDX-License-Identifier: Apache-2.0
"""Estimates how long checks will take, from how long they took before. The times are cached."""

import json
from collections.abc import Iterable

from farwatch_harness.kernel import build, versions
from farwatch_harness.matrix.prefixes import Prefix
from farwatch_harness.results import CheckName
from farwatch_harness.util import cache, paths
from farwatch_harness.util.errors import HarnessError

#: Seconds for a check that has not been timed here: 2 cores, no KVM.
USUAL = {
    CheckName.APPLY: 0.2,
    CheckName.CHECKPATCH: 1.0,
    CheckName.BUILD: 40.0,
    CheckName.SPARSE: 20.0,
    CheckName.OPTIONS: 200.0,
    CheckName.BOOT: 9.0,
    CheckName.TESTS: 20.0,
}
WHOLE_BUILD = 300.0
WHOLE_TESTS = 200.0
CACHED = 0.5


class Estimates:
    """Estimates the seconds of each check of these patches."""

    def __init__(self, prefixes: Iterable[Prefix]) -> None:
        # Read once: a kernel that this run builds has taken its time all the same.
        self.cached_kernels = {prefix.number for prefix in prefixes if has_cached_kernel(prefix)}
        self.path = paths.cache_root() / "matrix-times.json"
        try:
            self.times: dict[str, float] = json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):
            self.times = {}

    def seconds(self, prefix: Prefix, name: CheckName) -> float:
        """Return the estimate for one check."""
        return self.times.get(self.key(prefix, name), self.usual(prefix, name))

    def total(self, checks: Iterable[tuple[Prefix, CheckName]]) -> float:
        """Return the estimate for several checks, one after the other."""
        return sum(self.seconds(prefix, name) for prefix, name in checks)

    def record(self, prefix: Prefix, name: CheckName, seconds: float) -> None:
        """Record how long a check took now."""
        self.times[self.key(prefix, name)] = round(seconds, 1)
        cache.write_atomically(self.path, json.dumps(self.times).encode())

    def is_cached(self, prefix: Prefix, name: CheckName) -> bool:
        """Return whether the check uses a kernel that was built before this run."""
        tools = (CheckName.BUILD, CheckName.SPARSE, CheckName.OPTIONS)
        return name in tools and prefix.number in self.cached_kernels

    def key(self, prefix: Prefix, name: CheckName) -> str:
        """Return the name by which a check's time is cached."""
        cached = " cached" if self.is_cached(prefix, name) else ""
        scope = " all" if prefix.last and name is CheckName.TESTS else ""
        return f"{versions.current().name} {name}{cached}{scope} {prefix.title}"

    def usual(self, prefix: Prefix, name: CheckName) -> float:
        """Return the usual seconds of a check that has not been timed."""
        if name is CheckName.TESTS and prefix.last:
            return WHOLE_TESTS
        if self.is_cached(prefix, name):
            return CACHED
        headers = prefix.patch is None or any(
            file.startswith("include/linux/") for file in prefix.patch.touched()
        )
        return WHOLE_BUILD if name is CheckName.BUILD and headers else USUAL[name]


def has_cached_kernel(prefix: Prefix) -> bool:
    """Return whether the cache has the kernel of this prefix."""
    try:
        return build.cached_at(build.recipe_of(prefix.patches)).is_dir()
    except HarnessError:
        return False
