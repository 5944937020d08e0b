# SPDX-License-Identifier: Apache-2.0
"""The adversary: drives the guest's kernel from both sides at random (docs/harness.md)."""
