#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Report: kata-containers/kata-containers#5634
# A program opens a file "a+b", writes, maps the file through the same descriptor and changes the
# mapping: the page that is written back must land where it was, not at the end (the size must not
# change).
. "$(dirname "$0")/lib.sh"
guest_py '
import mmap
f = open("f", "a+b"); f.write(b"x" * 1024); f.flush()
m = mmap.mmap(f.fileno(), 1024); m[0:3] = b"new"; m.flush(); m.close(); os.fsync(f.fileno()); f.close()
os.sync()'                                   # GUEST
same "size on the host" 1024 "$(host 'stat -c %s f')"
same "size in the guest" 1024 "$(guest 'stat -c %s f')"
same "the change is where it was made" new "$(host 'head -c 3 f')"
