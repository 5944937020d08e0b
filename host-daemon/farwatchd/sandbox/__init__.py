# SPDX-License-Identifier: Apache-2.0
"""Confinement: the daemon's root becomes the shared directory, and limits are set, before a guest
is served."""
