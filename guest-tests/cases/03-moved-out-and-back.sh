#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: parcel-bundler/watcher#185, microsoft/vscode#29766, atom/watcher#117
# A watched directory goes to the trash (outside the share) and comes back by undo: its watches
# must work on. A native watch belongs to the inode, so it never stopped. No server can report
# what happens outside. The watch must report again when the directory is back, or have ended with
# IGNORED.
. "$(dirname "$0")/lib.sh"
host 'mkdir -p sub/deep'
watch w top=. sub=sub deep=sub/deep          # GUEST
host 'mv sub "$OUT/sub"'; arrive             # HOST: out of the share
host 'mv "$OUT/sub" sub'; arrive             # HOST: undo
host 'echo 1 > sub/new; echo 1 > sub/deep/new'; arrive   # HOST
has w 'top: MOVED_FROM,ISDIR sub #[0-9]*' "its way out is reported"
has w 'top: MOVED_TO,ISDIR sub #[0-9]*' "its way back is reported"
for d in sub deep; do
    if seen w | grep -q "^$d: IGNORED"; then ok "$d: the watch ended and the watcher knows"
    else has w "$d: CREATE new" "$d: still watched after it came back"; fi
done
# What every watcher does on MOVED_TO of a directory: it adds a watch by path (the same inode,
# perhaps the same mask).
watch again sub=sub deep=sub/deep            # GUEST
host 'echo 1 > sub/newer; echo 1 > sub/deep/newer'; arrive
has again 'sub: CREATE newer' "a watch added after the return reports"
has again 'deep: CREATE newer' "a watch added below after the return reports"
