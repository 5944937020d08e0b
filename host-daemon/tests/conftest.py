# SPDX-License-Identifier: Apache-2.0
"""Lets the tests import their helpers as ``tests.NAME``, and take the files and the time they need.

A busy machine may take any time for an example of hypothesis.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

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
