# SPDX-License-Identifier: Apache-2.0
"""The installed package: the daemon, the doctor for guests, and the description for libvirt."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from farwatchd.options import CAPABILITIES

CHECKOUT = Path(__file__).resolve().parents[3]
TIMEOUT = 120
DESCRIPTION = "share/qemu/vhost-user/50-farwatchd.json"
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md")
NATIVE = "farwatchd/_native.abi3.so"
#: Whether the native part can be built here.
HEADERS = Path(sysconfig.get_path("include"), "Python.h").exists()


def run(words: Sequence[str], **environment: str) -> str:
    """Run a program that must succeed, and that sees only its own packages; return its output."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        env={**own, **environment},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a copy of what the package is built of."""
    source = tmp_path_factory.mktemp("source")
    for name in FILES:
        shutil.copy(CHECKOUT / name, source)
    shutil.copytree(CHECKOUT / "packaging", source / "packaging")
    shutil.copytree(
        CHECKOUT / "host-daemon",
        source / "host-daemon",
        ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so"),
    )
    return source


def build_wheel(source: Path, folder: Path, **environment: str) -> Path:
    """Build the wheel of a tree or a source distribution, and return it."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(
        [
            *pip,
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            str(folder),
            str(source),
        ],
        **environment,
    )
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the package of the tree, and return it."""
    return build_wheel(tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution of the tree, and return it."""
    folder = tmp_path_factory.mktemp("sdist")
    code = "import sys, setuptools.build_meta as m; m.build_sdist(sys.argv[1])"
    run(["env", "-C", str(tree), sys.executable, "-c", code, str(folder)])
    (built,) = folder.iterdir()
    return built


def test_package_has_the_daemon_only_and_few_requirements(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        folder = next(name for name in names if name.endswith("/METADATA")).partition("/")[0]
        metadata = archive.read(f"{folder}/METADATA").decode()
        scripts = archive.read(f"{folder}/entry_points.txt").decode()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"farwatchd", "farwatch"}
    modules = {
        str(path.relative_to(CHECKOUT / "host-daemon"))
        for path in (CHECKOUT / "host-daemon/farwatchd").rglob("*.py")
    }
    assert {name for name in names if name.startswith("farwatchd/")} == {
        *modules,
        "farwatchd/py.typed",
        "farwatchd/_native.pyi",
        *([NATIVE] if HEADERS else []),
    }
    assert wheel.name.partition("-py")[0].partition("-cp")[2].startswith("311-abi3-")
    assert "License-Expression: Apache-2.0" in metadata.splitlines()
    needs = [
        line.split()[1].partition(">")[0]
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist:") and "extra ==" not in line
    ]
    assert sorted(needs) == ["construct", "pyseccomp"]
    assert scripts.split() == ["[console_scripts]", "farwatchd", "=", "farwatchd.cli:main"]


def test_package_is_built_without_a_compiler(tree: Path, tmp_path: Path) -> None:
    without = shutil.copytree(tree, tmp_path / "source", ignore=shutil.ignore_patterns("build"))
    wheel = build_wheel(without, tmp_path / "wheels", CC="false")
    place = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        assert NATIVE not in archive.namelist()
        archive.extractall(place)
    code = (
        "from farwatchd.native import NativeUse, load\n"
        "assert load(NativeUse.AUTO) is None\n"
        "load(NativeUse.ON)"
    )
    libraries = f"{place}{os.pathsep}{sysconfig.get_path('purelib')}"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        env={**os.environ, "PYTHONPATH": libraries},
    )
    assert "UserError: --native=on: " in done.stderr.splitlines()[-1]


def test_description_is_one_that_the_index_shows(wheel: Path, sdist: Path) -> None:
    said = run([sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)])
    assert said.count("PASSED") == 2


def test_source_distribution_makes_the_same_package(
    wheel: Path, sdist: Path, tmp_path: Path
) -> None:
    built = build_wheel(sdist, tmp_path)
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(built) as other:
        assert {name: one.read(name) for name in one.namelist() if "/RECORD" not in name} == {
            name: other.read(name) for name in other.namelist() if "/RECORD" not in name
        }
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"packaging/Containerfile", "packaging/debian/rules", "CHANGELOG.md"} <= names


def test_new_environment_gets_the_commands_and_the_description(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    run([sys.executable, "-m", "venv", "--without-pip", str(environment)])
    before = set((environment / "bin").iterdir())
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin/python")]
    run(
        [
            *pip,
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-index",
            "--no-deps",
            str(wheel),
        ]
    )
    doctor, command = sorted(set((environment / "bin").iterdir()) - before)
    assert (doctor.name, command.name) == ("farwatch", "farwatchd")
    assert doctor.read_text() == (CHECKOUT / "host-daemon/farwatch").read_text()
    assert os.access(doctor, os.X_OK)
    # The packages that it requires come from the environment that runs the tests.
    libraries = sysconfig.get_path("purelib")
    assert run([str(command), "--version"], PYTHONPATH=libraries).startswith("farwatchd ")
    printed = json.loads(run([str(command), "--print-capabilities"], PYTHONPATH=libraries))
    described = json.loads((environment / DESCRIPTION).read_text())
    assert printed == CAPABILITIES == {name: described[name] for name in ("type", "features")}
    assert (
        Path(described["binary"]).is_absolute() and Path(described["binary"]).name == command.name
    )
