# SPDX-License-Identifier: Apache-2.0
"""``python -m farwatchd``."""

from __future__ import annotations

import sys

from farwatchd.cli import main

sys.exit(main())
