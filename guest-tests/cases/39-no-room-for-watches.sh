#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: obsidian-remote#33, docker-sync#125, coder/code-server#628, dotnet/runtime#27272
# More watches than allowed: inotify_add_watch must say ENOSPC ("No space left on device"), what
# is watched keeps working, and after one watch is removed a new one fits. In the guest by
# fs.inotify.max_user_watches, then by the daemon's limit (start it with a small --max-watches, or
# a small limit on the host in mode remote, and set MOST to that).
. "$(dirname "$0")/lib.sh"
: "${MOST:=}"
[ -n "$MOST" ] || [ "$SHARE_HOST" != "$SHARE_GUEST" ] || needs "a guest: it would lower a limit of this whole machine"
host 'for i in $(seq 60); do mkdir d$i; done'
guest_py "
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True); fd = libc.inotify_init(); limit = '$MOST'; old = None
path = '/proc/sys/fs/inotify/max_user_watches'
if not limit:
    old = open(path).read()
def add(i): return libc.inotify_add_watch(fd, f'd{i}'.encode(), 0x300)
try:
    wds = []
    if old: wds = [add(1)]; open(path, 'w').write('1')
    for i in range(2, 61):
        wd = add(i)
        if wd < 0: print(errno.errorcode[ctypes.get_errno()]); break
        wds.append(wd)
    else: print('no limit')
    if old: open(path, 'w').write(old)
    libc.inotify_rm_watch(fd, wds.pop()); time.sleep(0.5)
    print('fits' if add(60) >= 0 else errno.errorcode[ctypes.get_errno()])
    open('d60/x', 'w').close(); time.sleep(0.5); os.set_blocking(fd, False)
    print('reported' if b'x' in os.read(fd, 4096) else 'not reported')
finally:
    if old: open(path, 'w').write(old)
" > "$OUT/said" 2>&1
same "over the limit; after one is removed; what it reports" "ENOSPC fits reported" "$(tr '\n' ' ' < "$OUT/said" | sed 's/ $//')"
