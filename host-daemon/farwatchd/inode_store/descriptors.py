# SPDX-License-Identifier: Apache-2.0
"""The part of the process's descriptors that the guest may use.

The rest is the daemon's own: memory regions, queues, threads, event groups, the next connection,
and descriptors that an operation opens and closes itself.
"""

from __future__ import annotations

import errno

from farwatchd.linux.libc import failure

#: Descriptors that the guest cannot touch; of a low limit, half of it.
_RESERVE = 256
#: Errors of a call that makes a descriptor when there is none left.
OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class DescriptorBudget:
    """Counts the descriptors that are open for the guest.

    These are open files, inodes without a file handle, and lock owners.
    """

    __slots__ = ("_most", "used")

    def __init__(self, most: int) -> None:
        """Allow ``most`` descriptors at a time."""
        self._most = most
        self.used = 0

    def check(self, wanted: int) -> None:
        """Raise ENFILE unless ``wanted`` more descriptors may be opened."""
        if self.used + wanted > self._most:
            raise failure(errno.ENFILE)


def for_guest(open_files: int) -> int:
    """Return how many descriptors a guest may use, in a process that may open ``open_files``."""
    return open_files - min(_RESERVE, open_files // 2)
