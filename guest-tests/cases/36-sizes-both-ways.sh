#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: anthropics/claude-code#62531, wasmerio/wasmer#6551
# A file grows on one side and is appended to or truncated on the other; open files follow: fstat,
# SEEK_END, O_APPEND, ftruncate by the host under a guest's dirty or clean pages.
. "$(dirname "$0")/lib.sh"
host 'printf 12345 > f; : > o'
guest_py "
def step(n):
    open('$T/at' + str(n), 'w').close()
    for _ in range(200):
        if os.path.exists('$T/go' + str(n)): return
        time.sleep(0.05)
out = open('$T/answer', 'w', buffering=1)
r = os.open('f', os.O_RDWR); a = os.open('f', os.O_WRONLY | os.O_APPEND)
print(os.pread(r, 99, 0), os.fstat(r).st_size, file=out)
step(1); print(os.lseek(r, 0, 2), os.pread(r, 99, 0), file=out)
os.write(a, b'G'); step(2); print(os.fstat(r).st_size, os.pread(r, 99, 0), file=out)
os.write(a, b'g'); print(os.pread(r, 99, 0), file=out)" &
at() { n=0; until guest "[ -e \$T/at$1 ]"; do sleep 0.1; n=$((n + 1)); [ $n -gt 60 ] && break; done; }
watch w top=.                                # GUEST
at 1; host 'printf 67890 >> f'; arrive; guest 'touch $T/go1'    # HOST appends
at 2; same "the host reads what the guest appended" 1234567890G "$(host 'cat f')"
host 'printf ab > f'; arrive; guest 'touch $T/go2'; wait         # HOST truncates and writes
same "what the guest saw" "b'12345' 5;10 b'1234567890';2 b'ab';b'abg'" "$(guest 'cat $T/answer' | tr '\n' ';' | sed 's/;$//')"
same "in the end, on the host" abg "$(host 'cat f')"
