# SPDX-License-Identifier: Apache-2.0
"""Watches many files for IN_ATTRIB in the guest, and prints each event as it comes.

Usage: watch_many.py DIRECTORY COUNT. The files are named 0, 1, ...; the watch descriptors start at
1, and an overflow has -1. It prints "watching N" once N watches exist, and "event DESCRIPTOR" for
each event.
"""

import ctypes
import os
import struct
import sys

IN_ATTRIB = 4

libc = ctypes.CDLL(None)
fd = libc.inotify_init1(0)
numbers = [
    libc.inotify_add_watch(fd, f"{sys.argv[1]}/{n}".encode(), IN_ATTRIB)
    for n in range(int(sys.argv[2]))
]
print("watching", sum(number > 0 for number in numbers), flush=True)
while True:
    # An event without a name.
    print("event", *struct.unpack("=i", os.read(fd, 16)[:4]), flush=True)
