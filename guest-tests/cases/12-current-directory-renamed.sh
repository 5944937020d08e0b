#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: docker/sbx-releases#507, bazil/fuse#250, gluster/glusterfs#1294, nodejs/node#32579
# A guest's shell stands in a directory of the share. The host makes files in it, then renames the
# directory or its parent: getcwd must work on and give the new path (native), never "(deleted)",
# and relative names must work.
. "$(dirname "$0")/lib.sh"
host 'mkdir -p a/b'
guest '( cd a/b && n=0; while [ ! -e $T/stop ]; do if [ -e $T/ask ]; then rm $T/ask; { /bin/pwd 2>&1; ls 2>&1 | wc -l; echo hi > made 2>&1 && cat made; } > $T/answer.tmp; mv $T/answer.tmp $T/answer; fi; sleep 0.05; done ) >/dev/null 2>&1 </dev/null &
echo $! >> $T/pids'
ask() { guest 'rm -f $T/answer; touch $T/ask; n=0; until [ -e $T/answer ] || [ $n -gt 50 ]; do sleep 0.1; n=$((n+1)); done; sed "s,^$G/,," $T/answer | tr "\n" " "'; }
watch w top=. a=a                            # GUEST
same "at first" "a/b 0 hi " "$(ask)"
host 'for i in $(seq 300); do echo $i > a/b/$i; done'; arrive   # HOST
same "after many files" "a/b 301 hi " "$(ask)"
host 'mv a/b a/c'; arrive                    # HOST
same "after a rename of the directory" "a/c 301 hi " "$(ask)"
host 'mv a z'; arrive                        # HOST
same "after a rename of its parent" "z/c 301 hi " "$(ask)"
sleep 2                                      # longer than the time-out of names
same "and 2 s later" "z/c 301 hi " "$(ask)"
guest 'touch $T/stop'
