# SPDX-License-Identifier: Apache-2.0
"""System calls, constants and structures of Linux that the standard library lacks."""
