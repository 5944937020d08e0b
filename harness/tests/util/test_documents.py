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
