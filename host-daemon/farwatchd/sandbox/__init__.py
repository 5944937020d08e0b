# SPDX-License-Identifier: Apache-2.0
"""Confinement, before a guest is served: the shared directory becomes the root, limits are set."""
