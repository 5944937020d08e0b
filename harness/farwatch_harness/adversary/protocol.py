# SPDX-License-Identifier: Apache-2.0
"""The protocol as far as the adversary must know it, by both editions' names."""

from farwatchd.wire import fsnotify as wire


def constant(*names: str) -> int:
    """The first of these names that the protocol has; 0 when it has none of them."""
    return next((int(getattr(wire, name)) for name in names if hasattr(wire, name)), 0)


#: INIT flags: the server reports what others did; a request may wait for events.
OTHERS_ONLY = constant("FUSE_FSNOTIFY_OTHERS_ONLY", "FUSE_FSNOTIFY_MERGED")
HAS_WAIT = constant("FUSE_HAS_FSNOTIFY_WAIT", "FUSE_FSNOTIFY_PARKED")
#: Flag of the waiting request that ends all of them, where there is such a one.
WAIT_END = int(getattr(getattr(wire, "WaitFlag", None), "END", 0))
#: Records of the second edition that are no events.
WATCHES_LOST, WATCH_ENDED = (
    int(getattr(wire.Event, name, 0)) for name in ("WATCHES_LOST", "WATCH_ENDED")
)
