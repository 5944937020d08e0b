#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: lima-vm/lima#2450, #4671, #4672, #3871, abiosoft/colima#261, rancher-sandbox/rancher-
#   desktop#9813
# Work-arounds that touch files to make events broke chmod, unpacking and installs, or made reload
# loops. While the tree is watched from the guest, an install in the guest and one on the host
# must run through with the right modes and times, and no event may come that nobody caused.
. "$(dirname "$0")/lib.sh"
watch w -r top=.                             # GUEST
make_tree='
def tree(top):
    for p in range(30):
        for d in ("lib", "bin"): os.makedirs(f"{top}/p{p}/{d}")
        for i in range(30):
            n = f"{top}/p{p}/lib/{i}.js"; fd = os.open(n + ".t", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            os.write(fd, b"x" * i); os.fchmod(fd, 0o444 if i % 3 else 0o755); os.close(fd)
            os.utime(n + ".t", (499162500, 499162500)); os.rename(n + ".t", n)
        os.symlink("../lib/0.js", f"{top}/p{p}/bin/x")
'
guest_py "$make_tree
tree('g')"
host_py "$make_tree
tree('h')"
arrive
sum='find g h -type f | sort | xargs stat -c "%n %a %s %Y" | sed "s/^..//" | sort | uniq -c | awk "{print \$1}" | sort | uniq -c | tr -s " "'
same "modes, sizes and times of both trees are alike, on the host" " 900 2" "$(host "$sum" | head -1)"
same "and in the guest" " 900 2" "$(guest "$sum" | head -1)"
n=$(seen w | wc -l); arrive
same "no events by themselves" "$n" "$(seen w | wc -l)"
