#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: webpack/watchpack#291, #296, microsoft/vscode#134369, parcel-bundler/watcher#62, lima-
#   vm/lima#1913
# The watched root is a symlink; the same directory is also watched by its real path: one watch
# descriptor, each event once per watcher.
. "$(dirname "$0")/lib.sh"
host 'mkdir real; ln -s real link; ln -s "$H/real" absolute'
watch a l=link r=real                        # GUEST: the same inode twice in one instance: one watch, one event
watch b l=link/                              # GUEST: another instance
host 'echo 1 > real/f; echo 2 > link/g'      # HOST
arrive
same "in one instance each once" "CREATE f MODIFY f CLOSE_WRITE f CREATE g MODIFY g CLOSE_WRITE g" "$(seen a | sed 's/^[lr]: //' | line)"
same "in another as well" "CREATE f MODIFY f CLOSE_WRITE f CREATE g MODIFY g CLOSE_WRITE g" "$(seen b | sed 's/^l: //' | line)"
