#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: docker/for-mac#4519
# A deletion on the host gave CREATE and DELETE in the guest; a deletion is DELETE alone, a change
# never CREATE.
. "$(dirname "$0")/lib.sh"
host 'echo 1 > f; echo 1 > g; ln f f2'
watch w top=.                                # GUEST
host 'rm f'                                  # HOST: the inode lives on as f2
host 'echo 2 >> g'                           # HOST
host 'rm g'                                  # HOST
expect w "rm of a name, append, rm" <<X
top: DELETE f
top: MODIFY g
top: CLOSE_WRITE g
top: DELETE g
X
