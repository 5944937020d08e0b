# SPDX-License-Identifier: Apache-2.0
"""Checks that no two modules and no two classes of the project have one name."""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

#: Modules that many packages have, for the same purpose.
GENERIC = {
    "__init__": "Python's",
    "__main__": "Python's",
    "conftest": "pytest's",
    "cli": "the command line of a program",
    "errors": "the exceptions of a package",
    "options": "the options of a part of the daemon",
    "run": "the entry of the matrix, the benchmark, the stress test",
}
#: Modules that are named after others, or as others on purpose.
NAMED_AFTER = {
    "*/test_*.py": "what is tested, on the host or in a guest",
    "host-daemon/farwatchd/fuse/handlers/*": "the operations that the handlers call",
    "guest-tests/posix_cases/*": "the operations of which they are cases",
    "harness/farwatch_harness/adversary/*": "the part that the adversary plays",
}


@dataclass(frozen=True)
class SharedName:
    """A name of several modules, or of several classes."""

    kind: str
    name: str
    locations: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {', '.join(self.locations)}; rename all but one"


def check(root: Path, paths: Iterable[str]) -> Iterator[SharedName]:
    """Yield what is shared among the Python files at `paths` below `root`."""
    modules: dict[str, list[str]] = {}
    classes: dict[str, list[str]] = {}
    for path in paths:
        if PurePosixPath(path).suffix != ".py" or not (root / path).is_file():
            continue
        module = PurePosixPath(path).stem
        if module not in GENERIC and not any(fnmatch(path, each) for each in NAMED_AFTER):
            modules.setdefault(module, []).append(path)
        for node in ast.walk(ast.parse((root / path).read_bytes())):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(f"{path}:{node.lineno}")
    for kind, found in (("module", modules), ("class", classes)):
        for name, locations in sorted(found.items()):
            if len(locations) > 1:
                yield SharedName(kind, name, tuple(locations))
