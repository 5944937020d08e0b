# SPDX-License-Identifier: Apache-2.0
"""The sandboxes as parameters of tests."""

from __future__ import annotations

import pytest
from farwatchd.sandbox.options import Sandbox


def _parameters(sandboxes: list[Sandbox]) -> list[object]:
    """Return the option values; chroot(2) needs root."""
    return [
        pytest.param(sandbox.value, marks=pytest.mark.root if sandbox is Sandbox.CHROOT else ())
        for sandbox in sandboxes
    ]


#: Each value of ``--sandbox``.
SANDBOXES = _parameters(list(Sandbox))
#: Those after which only the share can be reached.
CONFINING = _parameters([Sandbox.NAMESPACE, Sandbox.CHROOT])
