#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: kata-containers/kata-containers#13137, #10502, #1553
# The host mounts into the share: before the guest looks, after it looked; and unmounts. What is
# mounted must show, be reported when it is watched, and must not keep the host from unmounting.
# Start the daemon first, then run this.
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || needs "root on the host"
case $(findmnt -n -o PROPAGATION -T "$SHARE_HOST") in *shared*) ;; *) [ "$SHARE_HOST" = "$SHARE_GUEST" ] || needs "a host whose mounts are shared (mount --make-rshared /): else no daemon with a mount namespace sees new ones";; esac
host 'mkdir m n; echo under > m/f; mkdir "$OUT/src"; echo one > "$OUT/src/f"'
same "before" under "$(guest 'cat m/f')"
host 'mount --bind "$OUT/src" m' || needs "mounts on the host"
sleep 1.5                                    # the time-out of names
same "what was mounted after the guest had looked" one "$(guest 'cat m/f')"
watch w m=m                                  # GUEST
host 'echo 2 > "$OUT/src/g"; echo 2 > m/h'; arrive   # HOST: behind the mount and through it
has w 'm: CREATE g' "a change behind the mount is reported"
has w 'm: CREATE h' "a change through the mount is reported"
unwatch
host 'umount m && echo gone'; sleep 1.5
same "unmounted again" under "$(guest 'cat m/f')"
