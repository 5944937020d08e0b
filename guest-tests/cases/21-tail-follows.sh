#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: fluent/fluent-bit#1621, uutils/coreutils#12177
# Logs on the share: appended, rotated by rename and creation, by copy and truncation, by a link
# that is moved over the name. `tail -F` in the guest shows every line, by inotify or by polling,
# without "inaccessible" for ever.
. "$(dirname "$0")/lib.sh"
host 'echo 0 > log'
guest 'tail -n +1 -F log > $T/tail 2> $T/tail.err </dev/null & echo $! >> $T/pids'; sleep 1
# GNU tail takes FUSE for a remote file system and polls there; then it looks for a new file only
# after 5 quiet seconds.
if guest 'ls -l /proc/$(cat $T/pids)/fd' | grep -q inotify; then step=1.2; echo "     tail uses inotify"; else step=8; echo "     tail polls"; fi
host 'echo 1 >> log'; sleep $step
host 'mv log log.1; echo 2 > log'; sleep $step          # HOST: rename and create
host 'echo 3 >> log'; sleep $step
host 'cp log log.2; : > log'; sleep $step; host 'echo 4 >> log'; sleep $step    # HOST: copytruncate
host 'echo 5 > b; ln b now.tmp; mv -f now.tmp log'; sleep $step   # HOST: a link moved over the name
host 'echo 6 >> b'; sleep $step                         # HOST: changed by its other name
arrive
same "lines" "0 1 2 3 4 5 6" "$(guest 'tr "\n" " " < $T/tail | sed "s/ $//"')"
guest 'sed "s/^/     tail: /" $T/tail.err'
