#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: apple/container#2021, docker/desktop-feedback#168, openai/tart#700,
#   milankinen/airlock#5, docker/for-mac#7133
# The guest has seen (stat, read, closed) a big file; the host deletes it. Its space must be free
# immediately, or soon, as when no guest had seen it: the daemon must not keep it open. Likewise
# when the guest deletes it.
. "$(dirname "$0")/lib.sh"
used() { df --output=used -m "$H" | tail -1; }
for who in host guest; do
    host 'fallocate -l 2G big'; a=$(used)
    guest 'stat big >/dev/null; head -c 1 big >/dev/null'
    $who 'rm big'; sleep 3; b=$(used)
    if [ $((a - b)) -gt 1500 ]; then ok "deleted by the $who: the space is free"; else fail "deleted by the $who: $((a - b)) of 2048 MB are free after 3 s"; fi
    guest 'echo 3 > /proc/sys/vm/drop_caches' 2>/dev/null; arrive
done
# The directory of a mount that the host wants back (docker/for-mac#7133): see case 37.
