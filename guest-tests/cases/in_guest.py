# SPDX-License-Identifier: Apache-2.0
"""Run the sh script on standard input in the guest of a running test: in_guest.py SOCKET.

`test_cases.py` listens on the socket.
"""

import json
import socket
import sys

with socket.socket(socket.AF_UNIX) as channel:
    channel.connect(sys.argv[1])
    channel.sendall(sys.stdin.buffer.read())
    channel.shutdown(socket.SHUT_WR)
    with channel.makefile("rb") as stream:
        done = json.load(stream)
sys.stdout.buffer.write(done["stdout"].encode("utf-8", "surrogateescape"))
sys.stderr.buffer.write(done["stderr"].encode("utf-8", "surrogateescape"))
sys.exit(done["status"])
