# SPDX-License-Identifier: Apache-2.0
"""The watchers: where each comes from, and how it is started.

Debian's packages are unpacked, those of npm and PyPI installed, all below build/clients.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from farwatch_harness.util import apt, paths, progress, subprocesses

FOLDER = paths.CHECKOUT / "build" / "clients"
PROGRAMS = Path(__file__).parent / "programs"
NODE_MODULES = {
    "chokidar3": "npm:chokidar@3",
    "chokidar4": "npm:chokidar@4",
    "chokidar5": "npm:chokidar@5",
    "@parcel/watcher": "2",
    "nodemon": "3",
    "watchpack": "2",
    "webpack": "5",
    "vite": "8",
    "typescript": "5",
    "jest-haste-map": "30",
}
PYTHON_PACKAGES = ("watchdog", "watchfiles")
DEBIAN_PACKAGES = ("entr", "libglib2.0-bin", "inotify-tools")
GO_LIBRARY = "golang-github-fsnotify-fsnotify-dev"
DIRECTORY = "{directory}"


@dataclass(frozen=True)
class WatchProgram:
    """A watcher.

    argv: its command line; {directory} is filled in.
    version: returns its version. ready: a line with this text says that it watches.
    """

    name: str
    argv: tuple[str, ...]
    version: Callable[[], str]
    ready: str = "READY"


def module_version(name: str) -> str:
    """Return the version of a module of npm."""
    folder = FOLDER / "node_modules" / name
    code = "console.log(require(process.argv[1] + '/package.json').version)"
    return subprocesses.run(["node", "-e", code, folder]).strip()


def python_version(name: str) -> str:
    """Return the version of a package of PyPI."""
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocesses.run([FOLDER / "venv/bin/python", "-c", code]).strip()


def debian_version(package: str) -> str:
    """Return the version of a package of Debian."""
    return apt.candidate_version(package) or "unknown"


def java_version() -> str:
    """Return the version of Java."""
    done = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()[0].split('"')[1]


def install() -> list[WatchProgram]:
    """Install the watchers that can be had here; return them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    clients = [*debian_clients(), *python_clients()]
    if shutil.which("npm"):
        clients += node_clients()
    else:
        progress.say("  without npm: no watchers of node")
    if shutil.which("javac"):
        clients.append(java_client())
    return [*clients, go_client()]


def go_client() -> WatchProgram:
    """Compile the watcher of Go, which is Debian's."""
    apt.install(("golang-go", GO_LIBRARY), paths.LOGS / "clients-go.log")
    program = FOLDER / "gowatch"
    # Debian's libraries are no modules.
    build = ["env", "GO111MODULE=off", "GOPATH=/usr/share/gocode", "CGO_ENABLED=0", "go", "build"]
    subprocesses.run([*build, "-o", program, PROGRAMS / "gowatch.go"])
    return WatchProgram(
        "Go fsnotify", (str(program), DIRECTORY), lambda: debian_version(GO_LIBRARY)
    )


def java_client() -> WatchProgram:
    """Compile the watcher of Java's library: an emulated guest would take minutes for that."""
    subprocesses.run(["javac", "-d", FOLDER, PROGRAMS / "Watch.java"])
    java = ("java", "-XX:TieredStopAtLevel=1", "-cp", str(FOLDER), "Watch", DIRECTORY)
    return WatchProgram("Java WatchService", java, java_version)


def debian_clients() -> list[WatchProgram]:
    """Install the watchers of Debian."""
    apt.install(DEBIAN_PACKAGES, paths.LOGS / "clients-apt.log")
    watch = ("inotifywait", "-m", "-r", "--format", "%e %w%f", DIRECTORY)
    listed = f"find {DIRECTORY} -type f | sort | exec entr -n -p echo changed"
    return [
        WatchProgram("inotifywait", watch, lambda: debian_version("inotify-tools"), "established"),
        WatchProgram(
            "gio monitor",
            ("sh", "-c", f"echo READY; exec gio monitor {DIRECTORY}"),
            lambda: debian_version("libglib2.0-bin"),
        ),
        WatchProgram("entr", ("sh", "-c", f"echo READY; {listed}"), lambda: debian_version("entr")),
    ]


def python_clients() -> list[WatchProgram]:
    """Install the watchers of PyPI."""
    python = FOLDER / "venv/bin/python"
    with progress.step("installing watchers of PyPI"):
        if not python.exists():
            subprocesses.run([sys.executable, "-m", "venv", FOLDER / "venv"])
        subprocesses.run([python, "-m", "pip", "install", "--quiet", *PYTHON_PACKAGES])
    return [
        WatchProgram(
            name,
            (str(python), str(PROGRAMS / f"{name}_watch.py"), DIRECTORY),
            lambda name=name: python_version(name),  # type: ignore[misc]
        )
        for name in PYTHON_PACKAGES
    ]


def node_clients() -> list[WatchProgram]:
    """Install the watchers of npm."""
    wanted = [f"{name}@{source}" for name, source in NODE_MODULES.items()]
    with progress.step("installing watchers of npm"):
        subprocesses.run(
            ["npm", "install", "--no-audit", "--no-fund", "--prefix", FOLDER, *wanted], cwd=FOLDER
        )

    def node(name: str, program: str, *words: str, module: str = "") -> WatchProgram:
        argv = ("env", "-C", str(FOLDER), "node", str(PROGRAMS / program), *words, DIRECTORY)
        return WatchProgram(name, argv, lambda: module_version(module or name))

    nodemon = str(FOLDER / "node_modules/.bin/nodemon")
    return [
        *(
            node(
                f"chokidar {number}",
                "chokidar.mjs",
                f"chokidar{number}",
                module=f"chokidar{number}",
            )
            for number in (3, 4, 5)
        ),
        node("@parcel/watcher", "parcel.mjs"),
        node("watchpack", "watchpack.mjs"),
        node("webpack", "webpack.mjs"),
        node("vite", "vite.mjs"),
        node("TypeScript", "typescript.mjs", module="typescript"),
        node("jest", "jest.mjs", module="jest-haste-map"),
        WatchProgram(
            "node fs.watch",
            ("node", str(PROGRAMS / "fswatch.mjs"), DIRECTORY),
            lambda: subprocesses.run(["node", "--version"]).strip().lstrip("v"),
        ),
        WatchProgram(
            "nodemon",
            ("env", "-C", "/", nodemon, "-w", DIRECTORY, "-e", "txt", "--exec", "echo READY"),
            lambda: module_version("nodemon"),
        ),
    ]
