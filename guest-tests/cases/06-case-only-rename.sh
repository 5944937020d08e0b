#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: docker/desktop-feedback#251, docker/for-mac#7218
# Renames that change only case; then back and forth quickly. Both names must be reported and the
# old one must be gone.
. "$(dirname "$0")/lib.sh"
host 'echo 1 > Readme'
guest 'cat Readme >/dev/null; ls >/dev/null' # GUEST: cached
watch w top=.                                # GUEST
host 'mv Readme README'                      # HOST
expect w "Readme to README" <<X
top: MOVED_FROM Readme #1
top: MOVED_TO README #1
X
same "only the new name is there" "README" "$(guest 'ls; cat Readme 2>/dev/null')"
watch v top=.                                # GUEST
host_py 'os.rename("README","Readme"); os.rename("Readme","README"); os.rename("README","readme")'
arrive
same "the last pair is the last rename" "top: MOVED_FROM README #3 top: MOVED_TO readme #3" "$(seen v | tail -2 | line)"
same "and only that name is there" "readme" "$(guest ls)"
