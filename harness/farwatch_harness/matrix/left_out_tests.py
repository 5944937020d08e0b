# SPDX-License-Identifier: Apache-2.0
"""Which guest tests do not hold for a kernel: the module's, or that of one version."""

import fnmatch
import tomllib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LeftOut:
    """Tests that are left out, and why.

    modes: modes of the fixture `testbed`.
    patches: names of the series file.
    tests: patterns of the names that pytest has for tests, below guest-tests.
    """

    reason: str
    modes: tuple[str, ...] = ()
    patches: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()

    def leaves_out(self, name: str, patches: Collection[str], mode: object) -> bool:
        """Return whether the test is left out.

        patches, mode: those of the test; without a mode None.
        """
        return (
            mode in self.modes
            or not set(patches).isdisjoint(self.patches)
            or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.tests)
        )

    def problems(
        self, names: Sequence[str], patches: Collection[str], modes: Collection[str]
    ) -> Iterator[str]:
        """Yield what in the rule does not exist.

        names: all tests of some files; patterns of other files are not judged.
        patches, modes: all that there are.
        """
        files = {name.partition("::")[0] for name in names}
        for pattern in self.tests:
            if pattern.partition("::")[0] in files and not fnmatch.filter(names, pattern):
                yield f"no test is called {pattern}"
        for mode in set(self.modes).difference(modes):
            yield f"no mode is called {mode}"
        for patch in set(self.patches).difference(patches):
            yield f"no patch is called {patch}"


def read_rules(path: Path) -> tuple[LeftOut, ...]:
    """Return the rules in a file."""
    return tuple(
        LeftOut(
            entry["reason"],
            *(tuple(entry.get(key, ())) for key in ("modes", "patches", "tests")),
        )
        for entry in tomllib.loads(path.read_text())["left-out"]
    )
