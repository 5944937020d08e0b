#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: docker/for-mac#7246, docker/desktop-linux#99, docker/for-mac#6350
# Deletions on the host must arrive: of a file, of a directory, of a directory in a directory.
. "$(dirname "$0")/lib.sh"
host 'mkdir -p d/e; touch f d/g d/e/h'
watch w top=. d=d e=d/e                      # GUEST
host 'rm f d/e/h; rmdir d/e; rm d/g; rmdir d'                         # HOST
expect w "file and tree deleted" <<X
top: DELETE f
e: DELETE h
e: DELETE_SELF
e: IGNORED
d: DELETE,ISDIR e
d: DELETE g
d: DELETE_SELF
d: IGNORED
top: DELETE,ISDIR d
X
