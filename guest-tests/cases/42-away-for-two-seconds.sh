#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Report: spring-projects/spring-boot#19543 (a compiler takes the class file away and puts it back
#   seconds later)
# Both moves are reported, and names that are not there are not cached longer than the event.
. "$(dirname "$0")/lib.sh"
host 'echo 1 > A.class'
guest 'cat A.class >/dev/null'
watch w top=.                                # GUEST
host 'mv A.class "$OUT/A"'; arrive           # HOST: out of the share
same "gone" "" "$(guest 'cat A.class 2>/dev/null')"
sleep 2
host 'mv "$OUT/A" A.class'; arrive           # HOST: back
same "back" 1 "$(guest 'cat A.class 2>&1')"
has w 'top: MOVED_FROM A.class #[1-9]' "the first half"
has w 'top: \(MOVED_TO A.class #[1-9]\|CREATE A.class\)' "the second half"
