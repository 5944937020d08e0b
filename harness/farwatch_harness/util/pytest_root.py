# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin: a test that needs root and does not have it fails."""

import os

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail what needs root and does not have it: a skip would pass unnoticed."""
    if item.get_closest_marker("root") is not None and os.geteuid() != 0:
        pytest.fail("needs root: run `make check` as root, or `make unit`, which leaves it out")
