# SPDX-License-Identifier: Apache-2.0
"""Host watching: watch table, back ends, event records, outgoing queue. Knows no FUSE requests."""
