# SPDX-License-Identifier: Apache-2.0
"""The behaviour of a file system: cases whose outcomes are compared between file systems.

They use the standard library only.
"""
