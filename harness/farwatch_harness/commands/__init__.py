# SPDX-License-Identifier: Apache-2.0
"""What one command of the harness does."""
