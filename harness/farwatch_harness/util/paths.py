# SPDX-License-Identifier: Apache-2.0
"""Paths of the checkout, of its build directory, and of the cache that all checkouts share."""

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
MODULE_PATCHES = CHECKOUT / "patches" / "module"
HARNESS = Path(__file__).resolve().parents[1]
KERNEL_CONFIG = HARNESS / "kernel" / "kernel.config"
DEBUG_CONFIG = KERNEL_CONFIG.with_name("debug.config")
GUEST_AGENT = HARNESS / "vm" / "agent.py"
REPORT = CHECKOUT / "build" / "report"
LOGS = Path(os.environ.get("FARWATCH_LOGS") or CHECKOUT / "build" / "logs")


def cache_root() -> Path:
    """Return the shared cache, $XDG_CACHE_HOME/farwatch; make it if it does not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(base) / "farwatch"
    root.mkdir(parents=True, exist_ok=True)
    return root
