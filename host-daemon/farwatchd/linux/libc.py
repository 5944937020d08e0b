# SPDX-License-Identifier: Apache-2.0
"""Errors that the file system finds by itself, in the shape of the kernel's."""

from __future__ import annotations

import os


def failure(number: int) -> OSError:
    """The exception of an errno."""
    return OSError(number, os.strerror(number))
