# SPDX-License-Identifier: Apache-2.0
"""The units of systemd and the AppArmor profile: their programs take them without a word."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from farwatchd.options import parse

PACKAGING = Path(__file__).resolve().parents[3] / "packaging"
TIMEOUT = 60
#: What systemd-analyze(1) gives the service, of 10: less is better.
EXPOSURE = 4.2

pytestmark = pytest.mark.packages


@pytest.fixture
def units(tmp_path: Path) -> list[str]:
    """Write an instance of each unit, of a daemon and a manual that are installed."""
    for path in (PACKAGING / "systemd").iterdir():
        text = path.read_text().replace("/usr/bin/farwatchd", shutil.which("true") or "/bin/true")
        text = re.sub("^Documentation=.*\n", "", text, flags=re.MULTILINE)
        (tmp_path / path.name.replace("@", "@data")).write_text(text)
    return sorted(str(path) for path in tmp_path.iterdir())


def run(*words: str) -> str:
    done = subprocess.run(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_units_are_right_and_confine_the_daemon(units: list[str]) -> None:
    said = run("systemd-analyze", "verify", *units)
    # It reads what else is installed, too.
    assert [line for line in said.splitlines() if "farwatchd" in line] == []
    service = next(unit for unit in units if unit.endswith(".service"))
    table = run("systemd-analyze", "security", "--offline=true", service)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", table)
    assert found and float(found[1]) <= EXPOSURE, table[-300:]


def test_service_starts_the_daemon_with_words_that_it_takes() -> None:
    text = (PACKAGING / "systemd/farwatchd@.service").read_text()
    (words,) = re.findall("^ExecStart=/usr/bin/farwatchd (.*)$", text, re.MULTILINE)
    words = words.replace("${SHARE}", "/srv/data").replace("$OPTIONS", "--cache=auto")
    config = parse(words.split())
    assert (config.socket.fd, str(config.shared_dir)) == (3, "/srv/data")


def test_profile_is_right() -> None:
    said = run(
        "apparmor_parser",
        "--skip-kernel-load",
        "--skip-cache",
        "--skip-read-cache",
        str(PACKAGING / "apparmor/usr.bin.farwatchd"),
    )
    assert "error" not in said.lower()
