# SPDX-License-Identifier: Apache-2.0
"""What the reply to an open says of the guest's cache, by ``--cache``.

Not in options.py, which is loaded before the socket is there: the wire formats take long to load.
"""

from __future__ import annotations

from farwatchd.passthrough.options import Cache
from farwatchd.wire.fuse import OpenFlag

#: The flags of an open file.
FILE_FLAGS = {
    Cache.NEVER: OpenFlag.DIRECT_IO,
    Cache.METADATA: OpenFlag.DIRECT_IO,
    Cache.AUTO: OpenFlag(0),
    Cache.ALWAYS: OpenFlag.KEEP_CACHE,
}
#: The flags of an open directory.
DIRECTORY_FLAGS = {
    Cache.NEVER: OpenFlag(0),
    Cache.METADATA: OpenFlag.CACHE_DIR | OpenFlag.KEEP_CACHE,
    Cache.AUTO: OpenFlag(0),
    Cache.ALWAYS: OpenFlag.CACHE_DIR | OpenFlag.KEEP_CACHE,
}
