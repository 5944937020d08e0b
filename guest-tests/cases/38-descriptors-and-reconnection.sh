#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: kata-containers/kata-containers#6455, kubevirt/kubevirt#13589
# The daemon's descriptors must not grow with use: 3 rounds of create, look up, watch, delete. Set
# DAEMON_PID; without it the case only makes the load. (For reconnection: kill the VMM, start it
# again on the same socket or a new daemon.)
. "$(dirname "$0")/lib.sh"
count() { [ -z "${DAEMON_PID:-}" ] && echo 0 || ls "/proc/$DAEMON_PID/fd" | wc -l; }
round() {
    host 'mkdir t; for i in $(seq 400); do echo 1 > t/$i; done'
    watch "w$1" t=t
    guest 'cat t/* >/dev/null; ls -l t >/dev/null; for i in $(seq 100); do echo 2 > t/g$i; mkdir t/d$i; done'
    host 'rm -r t'; arrive
    unwatch
    guest 'echo 2 > /proc/sys/vm/drop_caches'
}
round 1; a=$(count); round 2; round 3; b=$(count)
if [ "$b" -le $((a + 8)) ]; then ok "descriptors: $a, two rounds later $b"; else fail "descriptors grow: $a, two rounds later $b"; fi
