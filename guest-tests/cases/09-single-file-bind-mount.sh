#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: docker/for-win#12775, moby/moby#22627, docker/for-mac#6692
# One file of the share is bind-mounted (docker -v file:file). Changes in place are reported and
# read at both paths. When the host replaces the file by rename, a bind mount natively keeps the
# old inode; the watch on it ends only with the inode.
. "$(dirname "$0")/lib.sh"
host 'echo one > conf'
guest 'touch $T/conf; mount --bind conf $T/conf' || needs "root and mounts in the guest"
watch w bound=$T/conf                        # GUEST: a watch of the mounted file
host 'echo two >> conf'; arrive              # HOST: in place
same "the append is read at the bind mount" "one two" "$(guest 'cat $T/conf' | line)"
has w 'bound: MODIFY' "and reported"
host 'echo three > conf.tmp; mv conf.tmp conf'; arrive   # HOST: atomic save
has w 'bound: ATTRIB' "the watched inode lost its name"
same "the share has the new file" three "$(guest 'cat conf')"
# A server that keeps no deleted file alive (case 50) does not have it any more: then the error
# must say so.
case $(guest 'cat $T/conf 2>&1' | line) in
    "one two") ok "the bind mount has the old one" ;;
    *"Stale file handle") ok "the bind mount is stale: the server does not have the old one any more" ;;
    *) fail "the bind mount has the old one" "$(guest 'cat $T/conf 2>&1')" ;;
esac
guest 'umount $T/conf'
