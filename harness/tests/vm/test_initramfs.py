# SPDX-License-Identifier: Apache-2.0
"""The root file system of guests that migrate."""

import sys
from pathlib import Path

from farwatch_harness.util import paths
from farwatch_harness.vm import initramfs


def names_in(archive: bytes) -> set[str]:
    """Return the names in a cpio archive of the form that Linux reads (newc)."""
    names, at = set(), 0
    while archive[at : at + 6] == b"070701":
        size, length = (int(archive[at + start : at + start + 8], 16) for start in (54, 94))
        name = archive[at + 110 : at + 110 + length - 1].decode()
        names.add(name)
        at = -(-(at + 110 + length) // 4) * 4
        at = -(-(at + size) // 4) * 4
    return names


def test_archive_has_all_that_the_agent_needs() -> None:
    names = names_in(initramfs.make("a.port").read_bytes())
    python = Path(sys.executable).resolve()
    for path in (python, paths.GUEST_AGENT):
        assert str(path).lstrip("/") in names
    assert {"init", "proc", "sys", "dev", "dev/console", "run"} <= names
    for module in ("/json/decoder.py", "/soak/guest.py", "/oracle/file_operations.py"):
        assert any(name.endswith(module) for name in names), module
    # The interpreter's loader, as each program that is not static has one.
    assert any("ld-linux" in name for name in names)


def test_init_is_python_that_starts_the_agent_on_its_port() -> None:
    text = initramfs.INIT.format(python="/usr/bin/python3", agent="/agent.py", port="a.port")
    compile(text, "init", "exec")
    assert text.startswith("#!/usr/bin/python3 -ISB\n")
    assert "'/agent.py', 'a.port'" in text


def test_archive_of_another_port_is_another_one() -> None:
    assert initramfs.make("a.port") != initramfs.make("b.port")
    assert initramfs.make("a.port") == initramfs.make("a.port")
