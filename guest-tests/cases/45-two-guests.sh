#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports (demand): microsoft/WSL#4739, docker/for-win#14078, apple/container#141,
#   containers/podman#22343
# Two guests (two daemons) share a directory. Each sees the other's changes once, its own once,
# and caches nothing stale. Set GUEST2 (as GUEST; the mount must be at the same path).
. "$(dirname "$0")/lib.sh"
: "${GUEST2:=}"
if [ -z "$GUEST2" ]; then [ "$SHARE_HOST" = "$SHARE_GUEST" ] && GUEST2=$GUEST || needs GUEST2; fi
guest2() { { printf 'cd %s || exit 1\n' "'$G'"; printf '%s\n' "$*"; } | $GUEST2; }
host 'echo 0 > f'; guest 'cat f' >/dev/null; guest2 'cat f' >/dev/null
watch w top=.                                # GUEST
guest2 'echo 1 > g; mv g h'; arrive          # GUEST 2
guest 'echo 22 > f; rm h'                    # GUEST 1
expect w "another guest's, then its own" <<X
top: CREATE g
top: MODIFY g
top: CLOSE_WRITE g
top: MOVED_FROM g #1
top: MOVED_TO h #1
top: MODIFY f
top: CLOSE_WRITE f
top: DELETE h
X
sleep 1.5
same "the other guest reads what the first wrote" 22 "$(guest2 'cat f')"
same "and does not find what it removed" "" "$(guest2 'ls h 2>/dev/null')"
