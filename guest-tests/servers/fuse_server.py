# SPDX-License-Identifier: Apache-2.0
"""A FUSE server on /dev/fuse that reports events: farwatchd's session without virtio.

It runs in the guest. Usage: fuse_server.py DIRECTORY MOUNT_POINT [CACHE [locks]]. It serves
DIRECTORY at MOUNT_POINT and prints "mounted" when it does. Watchers of MOUNT_POINT get the events
of DIRECTORY. CACHE is as of farwatchd's --cache. With "locks" it takes the locks, too; none may
block.
"""

import ctypes
import errno
import logging
import os
import sys
from pathlib import Path

from farwatchd.event_loop import Loop
from farwatchd.fuse.blocking_locks import BlockingLocks
from farwatchd.fuse.options import SessionOptions
from farwatchd.fuse.session import Session
from farwatchd.passthrough.options import Cache, ShareOptions
from farwatchd.passthrough.passthrough_fs import PassthroughFs
from farwatchd.virtio_fs.headers import notification
from farwatchd.virtqueue import Chain
from farwatchd.watch.event_queue import EventQueue
from farwatchd.watch.inotify_backend import InotifyBackend
from farwatchd.watch.watch_table import WatchTable

BUFFER_SIZE = (1 << 20) + 4096
#: As much as farwatchd puts into one notification.
MAX_PAYLOAD = 4080


def mount(fuse: int, target: str) -> None:
    """Mount the connection behind the descriptor `fuse`.

    OSError: mount(2) failed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    if libc.mount(b"fuse_server", target.encode(), b"fuse", 0, options.encode()) < 0:
        raise OSError(ctypes.get_errno(), f"mount: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    """Serve until unmounted."""
    logging.basicConfig(level=logging.INFO)
    directory, target, *words = sys.argv[1:]
    options = ShareOptions(cache=Cache(words[0])) if words else ShareOptions()
    locked = "locks" in words
    os.umask(0)
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    loop, queue = Loop(), EventQueue(1000)
    backend = InotifyBackend(os.open(directory, os.O_PATH))
    watches = WatchTable(backend, queue, 1000, loop.call_later)
    session = Session(
        PassthroughFs(Path(directory), options),
        watches,
        SessionOptions(posix_lock=locked, flock=locked),
        BlockingLocks(loop.call_later),
    )
    request, reply = memoryview(bytearray(BUFFER_SIZE)), memoryview(bytearray(BUFFER_SIZE))

    def serve() -> None:
        try:
            size = os.readv(fuse, [request])
            written = session.handle(Chain.of([request[:size]], [reply]))
            assert isinstance(written, int), "nothing defers a reply here"
            if written:
                os.write(fuse, reply[:written])
        except OSError as error:
            if error.errno == errno.ENODEV:
                loop.stop()
            elif error.errno not in (errno.EAGAIN, errno.ENOENT, errno.EINTR):
                raise

    def notify() -> None:
        while (payload := queue.take(MAX_PAYLOAD)) is not None:
            os.write(fuse, notification(payload))

    queue.set_wakeup(notify)
    loop.add(backend.fileno(), watches.process)
    mount(fuse, target)
    loop.add(fuse, serve)
    print("mounted", flush=True)
    loop.run()
    print("unmounted", flush=True)


main()
