# SPDX-License-Identifier: Apache-2.0
"""A suite that the machine's apt does not list: its apt is separate from the machine's."""

import os
import subprocess
from pathlib import Path

import pytest
from farwatch_harness.util import archive

# apt.
pytestmark = pytest.mark.packages


def test_the_configuration_is_separate_from_the_machine_s(tmp_path: Path) -> None:
    archive.configure(tmp_path, "trixie-backports", "http://archive.example/debian")
    environment = {**os.environ, "APT_CONFIG": str(tmp_path / "apt.conf")}
    fetched = subprocess.run(
        ["apt-get", "--print-uris", "update"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    release = "'http://archive.example/debian/dists/trixie-backports/"
    assert [line for line in fetched if not line.startswith(release)] == []
    assert any("InRelease" in line for line in fetched)
    settings = subprocess.run(
        ["apt-config", "shell", "lists", "Dir::State::lists/d", "cache", "Dir::Cache::archives/d"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert settings.count(str(tmp_path)) == 2
    assert str(archive.KEYRING) in (tmp_path / "sources.list").read_text()
