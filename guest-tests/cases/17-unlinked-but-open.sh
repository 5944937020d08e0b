#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: nfs-ganesha/nfs-ganesha#980, nanovms/nanos#2047, #2051
# The guest holds a file open whose name goes: by itself, by the host. Writing, reading, fstat,
# ftruncate, fchmod work on.
. "$(dirname "$0")/lib.sh"
work='
import errno
def use(fd, who):
    os.write(fd, b"hello"); os.ftruncate(fd, 4); os.fchmod(fd, 0o600); os.fsync(fd)
    s = os.fstat(fd); print(who, os.pread(fd, 9, 0).decode(), s.st_size, s.st_nlink, oct(s.st_mode & 0o777))
'
same "the guest removed it" "self hell 4 0 0o600" "$(guest_py "$work
fd = os.open('f', os.O_RDWR | os.O_CREAT); os.unlink('f'); use(fd, 'self')")"
host 'touch g'
guest_py "$work
fd = os.open('g', os.O_RDWR); open('$T/opened', 'w').close()
for _ in range(100):
    if not os.path.exists('g'): break
    time.sleep(0.1)
sys.stdout = open('$T/answer', 'w')
try: use(fd, 'host')
except OSError as e: print(errno.errorcode[e.errno])
sys.stdout.close()" &
n=0; until guest '[ -e $T/opened ]'; do sleep 0.1; n=$((n + 1)); [ $n -gt 50 ] && break; done
host 'rm g'; wait
same "the host removed it" "host hell 4 0 0o600" "$(guest 'cat $T/answer')"
same "O_TMPFILE, linked in" "tmp" "$(guest_py '
fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600); os.write(fd, b"tmp")
os.link(f"/proc/self/fd/{fd}", "named", src_dir_fd=os.open(".", os.O_RDONLY), follow_symlinks=True); print(open("named").read())' 2>&1 | tail -1)"
same "seen by the host" tmp "$(host 'cat named 2>&1')"
