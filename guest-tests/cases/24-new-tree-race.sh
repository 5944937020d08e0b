#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: parcel-bundler/watcher#97, #243, microsoft/vscode#142694, #227252, seb-m/pyinotify#2,
#   inotify-tools#160
# mkdir -p a/b/c and files. A recursive watcher adds its watch when "a" is reported: what was made
# meanwhile must then be in its listing (not in a cached, older one), what comes later in its
# events. Nothing may be in neither.
. "$(dirname "$0")/lib.sh"
watch w -r top=.                             # GUEST, recursive: lists each new directory after its watch
host_py '
for t in range(12):
    os.makedirs(f"t{t}/a/b/c")
    for i in range(25): open(f"t{t}/a/b/c/f{i}", "w").close(); open(f"t{t}/a/g{i}", "w").close()'   # HOST
arrive
for t in 0 5 11; do
    same "t$t: files neither listed nor reported" "50" "$(seen w | grep -E "^top/t$t/a(/b/c)?: (listed|CREATE) [fg][0-9]+$" | sed 's/listed\|CREATE//' | sort -u | wc -l)"
done
