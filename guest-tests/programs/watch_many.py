# SPDX-License-Identifier: Apache-2.0
"""For the guest: watches many files for IN_ATTRIB, and tells of each event by the number of its
watch.

Usage: watch_many.py DIRECTORY COUNT. The files are called 0, 1, ...; their watches have the numbers
from 1 on, and an overflow has -1. Says "watching N" when there are N watches, then "event NUMBER"
for each event.
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
