# SPDX-License-Identifier: Apache-2.0
"""Builds the native part where that is possible; pyproject.toml has all else."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from setuptools import Extension, setup

SOURCES = Path("host-daemon/native")
NATIVE = Extension(
    "farwatchd._native",
    sorted(map(str, SOURCES.glob("*.c"))),
    depends=sorted(map(str, SOURCES.glob("*.h"))),
    extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-g0"],
    py_limited_api=True,
    # Without a compiler or Python's headers, the interpreter's code serves alone.
    optional=True,
)

# The native part relies on the interpreter's lock.
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    setup()
else:
    setup(ext_modules=[NATIVE], options={"bdist_wheel": {"py_limited_api": "cp311"}})
