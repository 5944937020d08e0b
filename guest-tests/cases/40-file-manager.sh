#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: tiiuae/ghaf#1041, virtio-win/kvm-guest-drivers-windows#945, #1616
# GLib's monitor (file managers; it adds IN_EXCL_UNLINK and IN_ONLYDIR) on a directory of the
# share, by `gio monitor`: a rename is one "renamed", a new file "created", a deletion "deleted",
# the list is never stale.
. "$(dirname "$0")/lib.sh"
guest 'command -v gio >/dev/null' || needs "gio (libglib2.0-bin) in the guest"
host 'mkdir d; echo 1 > d/old'
guest 'gio monitor -d d > $T/gio </dev/null 2>&1 & echo $! >> $T/pids'; sleep 1
host 'echo 1 > d/new; mv d/old d/other; rm d/new'; arrive; sleep 1
same "what it printed" "created renamed deleted" "$(guest "grep -oE 'created|renamed|deleted|moved_(in|out)' \$T/gio" | uniq | line)"
same "the list" other "$(guest 'ls d')"
