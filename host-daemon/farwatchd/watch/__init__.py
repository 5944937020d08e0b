# SPDX-License-Identifier: Apache-2.0
"""Host watching: watch table, back ends, event records, event queue. Knows no FUSE request."""
