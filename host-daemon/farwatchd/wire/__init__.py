# SPDX-License-Identifier: Apache-2.0
"""Wire formats, each declared once with construct; no I/O and no state."""
