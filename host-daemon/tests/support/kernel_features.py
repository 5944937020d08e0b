# SPDX-License-Identifier: Apache-2.0
"""What the host's kernel can do."""

from __future__ import annotations

import os
from pathlib import Path

from farwatchd.linux.file_handles import HandleReader, handle_of, open_handle, with_path


def kernel_knows_paths(directory: Path) -> bool:
    """Return whether a handle is opened only if a path leads to its inode: Linux 6.13 and later.

    ``directory`` is on the file system in question.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.close(open_handle(fd, with_path(handle_of(HandleReader().read(fd)))))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
