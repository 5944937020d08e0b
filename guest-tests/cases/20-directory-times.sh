#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: docker/for-mac#7616, #7027, #7034
# Tools that compare times: a directory's mtime must change when the host adds to it, times must
# carry nanoseconds both ways, and a file that nobody changed must not change times (nor give
# events) because it is watched or listed.
. "$(dirname "$0")/lib.sh"
host 'mkdir d; echo 1 > d/f; touch -d "2020-01-01 00:00:00.123456789" d/f'
same "nanoseconds" "$(host 'stat -c %y d/f')" "$(guest 'stat -c %y d/f')"
guest 'touch -d "2021-02-03 04:05:06.987654321" d/g'
same "nanoseconds, from the guest" "$(guest 'stat -c %y d/g')" "$(host 'stat -c %y d/g')"
guest 'stat d >/dev/null'
watch w d=d                                  # GUEST
host 'sleep 0.1; touch d/new'; arrive        # HOST
same "the directory's times after an addition" "$(host 'stat -c "%y %z" d')" "$(guest 'stat -c "%y %z" d')"
before=$(host 'stat -c "%y %z" d/f d')
guest 'for i in 1 2 3; do ls -l d; cat d/f; done >/dev/null'; arrive
same "times that reading must not change" "$before" "$(host 'stat -c "%y %z" d/f d')"
same "the events of one addition alone" "d: CREATE new d: ATTRIB new d: CLOSE_WRITE new" "$(seen w | grep new | line)"
