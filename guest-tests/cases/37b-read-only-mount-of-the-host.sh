#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Report: kata-containers/kata-containers#1553
# The host makes a mount in the share read-only while the guest uses it. Such a change stays in
# the host's mount namespace: a server that has one of its own (a sandbox) does not see it.
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || needs "root on the host"
host 'mkdir m "$OUT/src"; echo one > "$OUT/src/f"; mount --bind "$OUT/src" m' || needs "mounts on the host"
same "writable" one "$(guest 'echo one > m/f && cat m/f')"
host 'mount -o remount,bind,ro m'
same "read-only" "Read-only file system" "$(guest 'touch m/no' 2>&1 | sed 's/.*: //')"
same "still read" one "$(guest 'cat m/f')"
host 'umount m'
