# SPDX-License-Identifier: Apache-2.0
"""Has the guest's kernel audit the writes to one path, as auditctl -w PATH -p w does.

Usage: audit_writes.py PATH. It is the audit daemon meanwhile: it prints "auditing" once the rule
is in force, and then "written by COMMAND" for each record of a system call that the rule matches.
SIGTERM ends it, and the rule. Processes that are older than the first rule of a guest are not
audited.
"""

import os
import re
import select
import signal
import socket
import struct
import sys
from itertools import count

# linux/netlink.h
NETLINK_AUDIT, REQUEST, ACK, ERROR = 9, 1, 4, 2
# linux/audit.h
SET, ADD_RULE, DEL_RULE, SYSCALL = 1001, 1011, 1012, 1300
STATUS_ENABLED, STATUS_PID = 1, 4
FILTER_EXIT, ALWAYS, EQUAL = 4, 2, 0x40000000
WATCH, PERM, FILTERKEY = 105, 106, 210
PERM_WRITE = 2
FIELDS = 64
KEY = b"farwatch"
LIMIT = 10.0

netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_AUDIT)
netlink.bind((0, 0))
numbers = count(1)


def show(kind: int, text: bytes) -> None:
    """Print who made the system call of a record."""
    if kind == SYSCALL and b'key="' + KEY in text:
        command = re.search(rb' comm="([^"]*)"', text)
        print("written by", command.group(1).decode() if command else "?", flush=True)


def send(kind: int, payload: bytes) -> None:
    """Send a request and wait for its acknowledgement."""
    number = next(numbers)
    netlink.send(struct.pack("=IHHII", 16 + len(payload), kind, REQUEST | ACK, number, 0) + payload)
    while select.select([netlink], [], [], LIMIT)[0]:
        data = netlink.recv(65536)
        _, got, _, sequence, _ = struct.unpack_from("=IHHII", data)
        if got != ERROR:
            show(got, data[16:])
        elif sequence == number:
            (error,) = struct.unpack_from("=i", data, 16)
            if error:
                raise OSError(-error, os.strerror(-error))
            return
    raise TimeoutError(f"no answer to the audit request {kind} in {LIMIT:.0f} s")


def status(mask: int, enabled: int, pid: int) -> bytes:
    """Return struct audit_status."""
    return struct.pack("=4I", mask, enabled, 0, pid) + bytes(28)


def rule(path: bytes) -> bytes:
    """Return struct audit_rule_data: all system calls that write to the path."""
    fields = [(WATCH, len(path)), (PERM, PERM_WRITE), (FILTERKEY, len(KEY))]
    empty = [0] * (FIELDS - len(fields))
    words = [
        *(FILTER_EXIT, ALWAYS, len(fields)),
        *[0xFFFFFFFF] * 64,
        *[field for field, _ in fields],
        *empty,
        *[value for _, value in fields],
        *empty,
        *[EQUAL for _ in fields],
        *empty,
        len(path) + len(KEY),
    ]
    return struct.pack(f"={len(words)}I", *words) + path + KEY


watched = rule(os.fsencode(sys.argv[1]))
send(SET, status(STATUS_PID, 0, os.getpid()))
send(SET, status(STATUS_ENABLED, 1, 0))
send(ADD_RULE, watched)
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
print("auditing", flush=True)
try:
    while True:
        data = netlink.recv(65536)
        show(struct.unpack_from("=IHHII", data)[1], data[16:])
finally:
    send(DEL_RULE, watched)
    send(SET, status(STATUS_ENABLED, 0, 0))
    send(SET, status(STATUS_PID, 0, 0))
