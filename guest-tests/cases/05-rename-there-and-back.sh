#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: paulmillr/chokidar#331, inotify-tools/inotify-tools#130
# One process renames A to B, B to A, A to B immediately (a file; a directory in and out of
# another). A watcher that follows the pairs must end at B.
. "$(dirname "$0")/lib.sh"
host 'echo 1 > a; mkdir d sub'
watch w top=. sub=sub                        # GUEST
host_py 'os.rename("a","b"); os.rename("b","a"); os.rename("a","b")'  # HOST, one process
expect w "a file, three renames" <<X
top: MOVED_FROM a #1
top: MOVED_TO b #1
top: MOVED_FROM b #2
top: MOVED_TO a #2
top: MOVED_FROM a #3
top: MOVED_TO b #3
X
watch v top=. sub=sub                        # GUEST
host_py 'os.rename("d","sub/d"); os.rename("sub/d","d"); os.rename("d","sub/d")'
expect v "a directory, out, in, out" <<X
top: MOVED_FROM,ISDIR d #1
sub: MOVED_TO,ISDIR d #1
sub: MOVED_FROM,ISDIR d #2
top: MOVED_TO,ISDIR d #2
top: MOVED_FROM,ISDIR d #3
sub: MOVED_TO,ISDIR d #3
X
