#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: react/metro#1559, paulmillr/chokidar#570, pnpm/pnpm#4382
# Package managers (pnpm, uv, bun, ostree) install by hard links from a store: a name is unlinked
# and linked again to the same inode by one process within a millisecond. The last event must
# agree with what is there.
. "$(dirname "$0")/lib.sh"
host 'mkdir store pkg; echo x > store/f; ln store/f pkg/f'
watch w pkg=pkg                              # GUEST
host_py 'os.unlink("pkg/f"); os.link("store/f", "pkg/f")'           # HOST, one process
expect w "unlink and link of the same inode" <<X
pkg: DELETE f
pkg: CREATE f
X
host_py 'for i in range(100): os.link("store/f", f"pkg/x{i}")'; arrive
watch t pkg=pkg                              # GUEST
host_py 'for i in range(100): os.unlink(f"pkg/x{i}"); os.link("store/f", f"pkg/x{i}")'   # HOST, one process
arrive
same "of 100 names made again so, those whose last event is CREATE" 100 "$(seen t | awk '{ last[$3] = $2 } END { for (n in last) if (last[n] == "CREATE") c++; print c + 0 }')"
host 'rm pkg/f'; arrive
watch v pkg=pkg                              # GUEST
host_py '
for i in range(3): os.link("store/f", "pkg/g"); os.unlink("pkg/g")
os.link("store/f", "pkg/g")'                                          # HOST, one process
arrive
same "the last event of a toggled name agrees with the directory" "pkg: CREATE g" "$(seen v | tail -1)"
watch u pkg=pkg                              # GUEST
host_py 'os.rename("pkg/g", "pkg/h"); os.link("store/f", "pkg/g"); os.rename("pkg/g", "pkg/i"); os.link("store/f", "pkg/g")'
arrive
same "link, rename, link: the name is reported again" "pkg: CREATE g" "$(seen u | tail -1)"
