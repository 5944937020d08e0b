# SPDX-License-Identifier: Apache-2.0
"""Open the null device for each standard descriptor that is closed, when this is imported.

Otherwise the next file to be opened gets its number, and what is written to it: a socket, or a file
of the guest. That begins with modules: ctypes keeps a descriptor of libffi (3.5) open.
"""

from __future__ import annotations

import os
import sys

for _number in range(3):
    try:
        os.fstat(_number)
    except OSError:
        # The lowest number that is free.
        os.open(os.devnull, os.O_RDWR)
for _name in ("stdin", "stdout", "stderr"):
    if getattr(sys, _name) is None:
        setattr(sys, _name, open(os.devnull, "r+"))  # noqa: PTH123, SIM115
