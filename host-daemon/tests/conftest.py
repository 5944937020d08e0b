# SPDX-License-Identifier: Apache-2.0
"""Lets the tests import their helpers as ``tests.NAME``."""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parent.parent)
if _ROOT not in sys.path:
    sys.path.insert(0, _ROOT)
