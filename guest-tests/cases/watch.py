# SPDX-License-Identifier: Apache-2.0
"""Watch with inotify and print a line for each event: "LABEL: EVENT,EVENT NAME #PAIR".

Usage: watch.py FILES [-a] [-r] [-m MASK,MASK] LABEL=PATH ...

-a: also OPEN, ACCESS and CLOSE_NOWRITE. -r: watch new directories below too, and list what is in
them. -m: these bits only, named as below. #PAIR numbers the cookies in the order in which they
arrive; half of a rename without a cookie has #0.

It writes FILES.out, and FILES.ready when the watches are there. A file that is made in the
directory FILES.flush is removed when all earlier events are in FILES.out.
"""

import ctypes
import os
import select
import struct
import sys
from pathlib import Path

EVENTS = {
    "ACCESS": 1,
    "MODIFY": 2,
    "ATTRIB": 4,
    "CLOSE_WRITE": 8,
    "CLOSE_NOWRITE": 0x10,
    "OPEN": 0x20,
    "MOVED_FROM": 0x40,
    "MOVED_TO": 0x80,
    "CREATE": 0x100,
    "DELETE": 0x200,
    "DELETE_SELF": 0x400,
    "MOVE_SELF": 0x800,
    "UNMOUNT": 0x2000,
    "Q_OVERFLOW": 0x4000,
    "IGNORED": 0x8000,
    "ISDIR": 0x40000000,
}
FLAGS = {
    "ONLYDIR": 0x1000000,
    "DONT_FOLLOW": 0x2000000,
    "EXCL_UNLINK": 0x4000000,
    "MASK_CREATE": 0x10000000,
    "MASK_ADD": 0x20000000,
    "ONESHOT": 0x80000000,
}
ALL = 0xFFF
OPENS = EVENTS["ACCESS"] | EVENTS["CLOSE_NOWRITE"] | EVENTS["OPEN"]
MOVED = EVENTS["MOVED_FROM"] | EVENTS["MOVED_TO"]
HEADER = struct.Struct("=iIII")

files, args = sys.argv[1], sys.argv[2:]
mask, recursive, pairs = ALL & ~OPENS, False, []
while args:
    word = args.pop(0)
    if word == "-a":
        mask = ALL
    elif word == "-r":
        recursive = True
    elif word == "-m":
        mask = sum({**EVENTS, **FLAGS}[name] for name in args.pop(0).split(","))
    else:
        pairs.append(word.split("=", 1))

libc = ctypes.CDLL(None, use_errno=True)
instance = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
# Open until the process is killed.
out = Path(f"{files}.out").open("w", 1, "utf-8", "surrogateescape")  # noqa: SIM115
labels: dict[int, tuple[str, str]] = {}
cookies: dict[int, int] = {}


def add(label: str, path: str) -> None:
    """Watch a path; print an error as a line."""
    number = libc.inotify_add_watch(instance, os.fsencode(path), ctypes.c_uint32(mask))
    if number < 0:
        print(f"{label}: ! {os.strerror(ctypes.get_errno())}", file=out)
        return
    labels[number] = (label, path)
    if recursive:
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            print(f"{label}: listed {entry.name}", file=out)
            if entry.is_dir(follow_symlinks=False):
                add(f"{label}/{entry.name}", entry.path)


def show(number: int, bits: int, cookie: int, name: str) -> None:
    """Print an event, and follow new directories."""
    label, path = labels.get(number, ("-", ""))
    text = f"{label}: " + ",".join(word for word, bit in EVENTS.items() if bits & bit)
    if name:
        shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        text += " " + shown.replace("\n", "\\n")
    if bits & MOVED:
        text += f" #{cookies.setdefault(cookie, len(cookies) + 1) if cookie else 0}"
    print(text, file=out)
    if recursive and bits & EVENTS["ISDIR"] and bits & (EVENTS["CREATE"] | EVENTS["MOVED_TO"]):
        try:
            add(f"{label}/{name}", f"{path}/{name}")
        except OSError as error:
            print(f"{label}/{name}: ! {error.strerror}", file=out)
    if bits & EVENTS["IGNORED"]:
        labels.pop(number, None)


Path(f"{files}.pid").write_text(str(os.getpid()))
for label, path in pairs:
    add(label, path)
flush = Path(f"{files}.flush")
flush.mkdir()
flush_number = libc.inotify_add_watch(instance, os.fsencode(flush), EVENTS["CREATE"])
Path(f"{files}.ready").touch()
while True:
    select.select([instance], [], [])
    data, position = os.read(instance, 1 << 16), 0
    while position < len(data):
        number, bits, cookie, length = HEADER.unpack_from(data, position)
        position += HEADER.size
        name = os.fsdecode(data[position : position + length].split(b"\0")[0])
        position += length
        if number == flush_number:
            (flush / name).unlink()
        else:
            show(number, bits, cookie, name)
