# SPDX-License-Identifier: Apache-2.0
"""The stress test that runs for minutes or hours."""
