# SPDX-License-Identifier: Apache-2.0
"""The error of a virtqueue."""

from __future__ import annotations


class VirtqueueError(Exception):
    """The ring or a chain breaks the specification: the queue is not served any more.

    The text is for the log.
    """
