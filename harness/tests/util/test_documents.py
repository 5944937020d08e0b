# SPDX-License-Identifier: Apache-2.0
"""The documents against the tree: the files that they name exist."""

import re
from pathlib import Path

import pytest
from farwatch_harness.util import paths

FOLDERS = (
    ".",
    "docs",
    "harness/farwatch_harness",
    "host-daemon/farwatchd",
    "host-daemon/farwatchd/passthrough",
    "host-daemon/tests",
)
#: A file or a folder, as `watch/backend_probe.py` or `vm/`.
NAMED = re.compile(r"`([\w.-]+(?:/[\w*.-]+)*(?:\.(?:py|c|md|toml|config)|/))`")
DOCUMENTS = (
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "README.md",
    "docs/farwatchd.md",
    "docs/harness.md",
    "docs/threat-model.md",
)
#: The guest kernel's, and what is made, as the cache's folders.
ELSEWHERE = ("fs/", "build/", "builds/", "kernels/", "kvm/", "qemu/", "sources/", "...")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_a_document_names_exist(document: str) -> None:
    named = set(NAMED.findall((paths.CHECKOUT / document).read_text()))
    missing = sorted(
        name
        for name in named
        if not name.startswith(ELSEWHERE)
        and not any(list((paths.CHECKOUT / folder).glob(name)) for folder in FOLDERS)
    )
    assert missing == []


@pytest.mark.parametrize("document", ["SECURITY.md", "docs/threat-model.md"])
def test_each_promise_names_tests_that_exist(document: str) -> None:
    rows = promises((paths.CHECKOUT / document).read_text())
    assert len(rows) >= 6
    problems = []
    for promise, tests in rows:
        named = re.findall(r"`([^`]+)`", tests)
        problems += [] if named else [f"{promise}: no test"]
        problems += [f"{promise}: {name}" for name in named if not is_test(name)]
    assert problems == []


def promises(text: str) -> list[tuple[str, str]]:
    """Return the first and the last cell of each row in the tables with a column "tested by"."""
    rows = []
    tested = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            tested = False
        elif cells[-1] == "tested by":
            tested = True
        elif tested and cells[0] != "--":
            rows.append((cells[0], cells[-1]))
    return rows


def is_test(name: str) -> bool:
    """Return whether a test exists, named as `fuse/test_x.py::test_y`: a file shows no promise."""
    path, _, function = name.partition("::")
    for folder in (".", "host-daemon/tests"):
        file = paths.CHECKOUT / folder / path
        if file.is_file() and file.name.startswith("test_"):
            return bool(function) and f"\ndef {function}(" in file.read_text()
    return False


@pytest.mark.parametrize("diagram", ["request", "event", "result"])
def test_files_in_a_diagram_exist_and_the_drawing_has_them(diagram: str) -> None:
    pictures = paths.CHECKOUT / "docs" / "pictures"
    source = (pictures / f"{diagram}.dot").read_text().replace("\\n", " ")
    named = set(re.findall(r"\w[\w/]*\.py", source))
    assert named
    drawn = (pictures / f"{diagram}.svg").read_text()
    for name in sorted(named):
        assert name in drawn, f"{diagram}.svg is older than its source: make pictures"
        assert any(Path(paths.CHECKOUT / folder / name).exists() for folder in FOLDERS), name
