# SPDX-License-Identifier: Apache-2.0
"""Trees of Debian packages of another release: unpacked by mmdebstrap, not installed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.util import apt, cache, paths, progress, subprocesses
from farwatch_harness.util.errors import HarnessError


@dataclass(frozen=True)
class DebianTree:
    """A tree with a package and what it depends on.

    name: names the directory in the cache, and the logs.
    package: the package.
    suites: where it comes from; the first one is the release.
    program: the name of the wrapper in the tree's root.
    wrapper: a script that runs the program with the tree's own loader and libraries.
    options: further options of mmdebstrap.
    """

    name: str
    package: str
    suites: tuple[str, ...]
    program: str
    wrapper: str
    options: Sequence[str] = ()

    def unpacked(self) -> Path:
        """Return the tree's directory in the cache; unpack it first if it does not exist."""
        return cache.published(paths.cache_root() / self.name / f"{self.suites[-1]}-1", self._make)

    def _make(self, target: Path) -> None:
        apt.install(apt.DEBIAN_TREE, paths.LOGS / f"apt-{self.name}.log")
        title = f"unpacking {self.package} from Debian's {self.suites[-1]}"
        with progress.step(title) as step:
            archive = archive_of(step)
            root = target / "root"
            argv = [
                "mmdebstrap",
                "--variant=extract",
                f"--include={self.package}",
                *self.options,
                self.suites[0],
                str(root),
                *(f"deb {archive} {suite} main" for suite in self.suites),
            ]
            log = paths.LOGS / f"{self.name}-tree.log"
            for line in subprocesses.lines_of([*apt.as_root(), *argv], log):
                step.update(line[:60])
            subprocesses.run([*apt.as_root(), "mv", root / "usr", target / "usr"])
            subprocesses.run([*apt.as_root(), "rm", "-rf", root])
            wrapper = target / self.program
            wrapper.write_text(self.wrapper)
            wrapper.chmod(0o755)


def mirror() -> str:
    """Return the Debian archive that this machine's apt uses.

    HarnessError: apt has no list of one.
    """
    text = subprocesses.run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI) $(ORIGIN) $(LABEL)",
            "Created-By: Packages",
        ]
    )
    found = [
        words[0]
        for line in text.splitlines()
        if (words := line.split())[1:] == ["Debian", "Debian"]
    ]
    if not found:
        raise HarnessError(
            "apt has no list of a Debian archive: run apt-get update, or name a QEMU with"
            " FARWATCH_QEMU"
        )
    return found[0].rstrip("/")


def archive_of(step: progress.Step) -> str:
    """Return mirror(); fetch apt's package lists first if it has none."""
    try:
        return mirror()
    except HarnessError:
        apt.run_apt(["update"], paths.LOGS / "apt-update.log", step)
        return mirror()
