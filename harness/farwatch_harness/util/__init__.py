# SPDX-License-Identifier: Apache-2.0
"""Paths, cache, subprocesses, packages, progress and errors."""
