#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: systemd/systemd#31941, #20934, #27884, Unitech/pm2#1261
# A symlink (deploys: "current") is replaced by rename. A watch on the link itself (DONT_FOLLOW,
# as systemd's path units add) ends; one that followed stays on the old target; readlink and open
# see the new one immediately.
. "$(dirname "$0")/lib.sh"
host 'mkdir r1 r2; echo 1 > r1/v; echo 2 > r2/v; ln -s r1 current'
same "before" 1 "$(guest 'readlink current >/dev/null; cat current/v')"
watch top top=.                              # GUEST
watch link -m MODIFY,ATTRIB,DELETE_SELF,MOVE_SELF,DONT_FOLLOW link=current
watch target target=current                  # GUEST: follows, so r1
host 'ln -s r2 tmp; mv -T tmp current'       # HOST
expect link "the link itself" <<X
link: ATTRIB
link: DELETE_SELF
link: IGNORED
X
same "the target immediately" "r2 2" "$(guest 'echo $(readlink current) $(cat current/v)')"
host 'echo 3 > r1/w; echo 3 > r2/w'; arrive
same "the watch that followed is on the old target" "target: CREATE w target: MODIFY w target: CLOSE_WRITE w" "$(seen target | line)"
has top 'top: MOVED_TO current #1' "the directory's watch"
