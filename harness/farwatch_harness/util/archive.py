# SPDX-License-Identifier: Apache-2.0
"""Suites of Debian's archive that this machine's apt does not list.

Each suite has an apt configuration and package lists of its own, in the cache. The machine's apt is
left as it is; signatures are checked with Debian's keyring.
"""

import os
from pathlib import Path

from farwatch_harness.util import apt, cache, paths, progress, subprocesses
from farwatch_harness.util.debian_tree import archive_of

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def configure(folder: Path, suite: str, place: str) -> None:
    """Write the configuration of an apt that knows only `suite` of the archive at `place`."""
    (folder / "lists" / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    options = f"[signed-by={KEYRING}]"
    sources = "".join(f"{kind} {options} {place} {suite} main\n" for kind in ("deb", "deb-src"))
    settings = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State": folder / "lists",
        "Dir::Cache": folder / "cache",
        # apt's own user may not enter the cache.
        "APT::Sandbox::User": "root",
    }
    text = "".join(f'{name} "{value}";\n' for name, value in settings.items())
    cache.write_atomically(folder / "sources.list", sources.encode())
    cache.write_atomically(folder / "apt.conf", text.encode())


def lists_of(suite: str) -> dict[str, str]:
    """Return the environment in which apt's commands know only this suite of Debian's archive.

    Its lists are fetched again each time, so that a package is not missing that has been replaced.
    HarnessError: they cannot be fetched.
    """
    apt.install(("debian-archive-keyring",), paths.LOGS / "apt-keyring.log")
    folder = paths.cache_root() / "apt" / suite
    environment = {**os.environ, "APT_CONFIG": str(folder / "apt.conf")}
    with (
        cache.locked(f"apt-{suite}"),
        progress.step(f"fetching the package lists of Debian's {suite}") as step,
    ):
        configure(folder, suite, archive_of(step))
        log = paths.LOGS / f"apt-update-{suite}.log"
        for line in subprocesses.lines_of(["apt-get", "update"], log, env=environment):
            step.update(line[:60])
    return environment
