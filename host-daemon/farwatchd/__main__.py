# SPDX-License-Identifier: Apache-2.0
"""``python -m farwatchd``."""

import sys

from farwatchd.cli import main

sys.exit(main())
