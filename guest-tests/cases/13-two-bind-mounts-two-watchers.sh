#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Report: docker/for-win#5701
# /dir is mounted in one container and /dir/sub in another; both watch the inner directory; one
# leaves. The other must still get each event, once.
. "$(dirname "$0")/lib.sh"
host 'mkdir -p dir/sub'
guest 'mkdir $T/one $T/two; mount --bind dir $T/one && mount --bind dir/sub $T/two' || needs "root and mounts in the guest"
watch one sub=$T/one/sub                     # GUEST
watch two sub=$T/two                         # GUEST
host 'echo 1 > dir/sub/f'                    # HOST
for w in one two; do expect $w "container $w" <<X
sub: CREATE f
sub: MODIFY f
sub: CLOSE_WRITE f
X
done
unwatch one      # GUEST: the first watcher ends
guest 'umount $T/one'
host 'rm dir/sub/f'; arrive                  # HOST
same "the other gets the next one, once" "sub: DELETE f" "$(seen two | tail -n +4)"
unwatch
guest 'umount $T/two'
