# SPDX-License-Identifier: Apache-2.0
"""The matrix: every patch of the series by every check, each found by running it."""
