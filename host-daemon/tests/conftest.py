# SPDX-License-Identifier: Apache-2.0
"""Lets the tests import their helpers as ``tests.NAME``, and take the files and the time they need.

A busy machine may take any time for an example of hypothesis.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from hypothesis import settings

_ROOT = str(Path(__file__).resolve().parent.parent)
if _ROOT not in sys.path:
    sys.path.insert(0, _ROOT)

settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")

#: More than the usual soft limit: some tests have thousands of inodes and watches.
_OPEN_FILES = 20_000


def pytest_configure() -> None:
    """Raise the soft limit of open files, as far as the hard one allows and the tests need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if (path := os.environ.get("FARWATCH_NATIVE_MODULE")) is not None:
    # Another build of the native part: `make sanitize`.
    spec = spec_from_file_location("farwatchd._native", path)
    assert spec is not None and spec.loader is not None
    sys.modules["farwatchd._native"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["farwatchd._native"])

if find_spec("farwatchd._native") is None:
    # It is compared with the interpreter's code there.
    collect_ignore = ["native"]

#: What is run by the interpreter's code and by the native part, if that was built.
_BY_BOTH = ("virtqueue/", "virtio_fs/", "fuzz/", "fuse/test_session_share.py")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run some tests by each code that serves."""
    from tests.support.native_part import PARTS

    path = str(metafunc.definition.path.relative_to(Path(__file__).parent))
    if path.startswith(_BY_BOTH):
        metafunc.fixturenames.insert(0, "native_part")
        metafunc.parametrize("native_part", list(PARTS), indirect=True, scope="module")


@pytest.fixture(scope="module")
def native_part(request: pytest.FixtureRequest) -> Iterator[None]:
    """Serve by one of both codes."""
    from tests.support.native_part import choose

    choose(request.param)
    yield
    choose("python")
