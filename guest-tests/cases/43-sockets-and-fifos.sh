#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: superradcompany/microsandbox#248, libfuse/libfuse#1475
# Sockets and fifos on the share: their creation is reported, connecting works within one kernel,
# across the border it is refused and hangs nobody; a watcher never opens them.
. "$(dirname "$0")/lib.sh"
watch w top=.                                # GUEST
host 'mkfifo p'; host_py 'import socket; s = socket.socket(socket.AF_UNIX); s.bind("s"); s.listen()'   # HOST
expect w "made on the host" <<X
top: CREATE p
top: CREATE s
X
same "within the guest a socket works" hello "$(guest_py '
import socket, threading
s = socket.socket(socket.AF_UNIX); s.bind("gs"); s.listen()
c = socket.socket(socket.AF_UNIX); c.connect("gs"); c.sendall(b"hello"); print(s.accept()[0].recv(9).decode())' 2>&1 | tail -1)"
same "and a fifo" hello "$(guest 'mkfifo gp; (echo hello > gp &) ; timeout 5 cat gp' 2>&1)"
same "across the border a socket refuses immediately" refused "$(guest 'timeout 5 python3 -c "
import socket
try: socket.socket(socket.AF_UNIX).connect(\"s\")
except OSError: print(\"refused\")"')"
