# SPDX-License-Identifier: Apache-2.0
"""A shared directory, and a host that watches it by each back end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.watch_host import BACKENDS, Host


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """Return an empty directory to share."""
    path = tmp_path / "share"
    path.mkdir()
    return path


@pytest.fixture(params=BACKENDS)
def host(request: pytest.FixtureRequest, share: Path) -> Iterator[Host]:
    """Yield a host with each watch back end."""
    host = Host(share, open_backend=BACKENDS[request.param])
    yield host
    host.close()
