#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: nanovms/nanos#2047, #2051, envoyproxy/envoy#23821
# A watcher of a directory in which the guest and the host make files without names and name them
# later (linkat of /proc/self/fd), or make, unlink and close: no wrong names, and IN_EXCL_UNLINK
# leaves out unlinked children.
. "$(dirname "$0")/lib.sh"
host 'mkdir d'
watch w d=d                                  # GUEST
watch x -m CREATE,DELETE,MODIFY,CLOSE_WRITE,ATTRIB,EXCL_UNLINK d=d
link='
d = os.open("d", os.O_RDONLY); fd = os.open("d", os.O_TMPFILE | os.O_RDWR, 0o600); os.write(fd, b"1")
os.link(f"/proc/self/fd/{fd}", "d/named", src_dir_fd=d, follow_symlinks=True); os.close(fd)'
host_py "$link"; arrive                      # HOST
same "host: the name is reported when it is given" "CREATE named" "$(seen w | grep -o 'CREATE named')"
same "host: read" 1 "$(guest 'cat d/named')"
same "no names but this one (natively the unnamed inode may be called #NUMBER)" "named" "$(seen w | awk '{print $3}' | grep -v '^#[0-9]*$' | sort -u)"
unwatch
watch y -m CREATE,DELETE,MODIFY,CLOSE_WRITE,ATTRIB,EXCL_UNLINK d=d
host_py 'fd = os.open("d/gone", os.O_CREAT | os.O_RDWR); os.unlink("d/gone"); time.sleep(0.3); os.write(fd, b"2"); os.close(fd)'   # HOST
expect y "IN_EXCL_UNLINK, an unlinked child of the host's" <<X
d: CREATE gone
d: DELETE gone
X
watch z -m CREATE,DELETE,MODIFY,CLOSE_WRITE,ATTRIB d=d
host_py 'fd = os.open("d/gone2", os.O_CREAT | os.O_RDWR); os.unlink("d/gone2"); time.sleep(0.3); os.write(fd, b"2"); os.close(fd)'   # HOST
expect z "without the flag all of it is reported" <<X
d: CREATE gone2
d: DELETE gone2
d: MODIFY gone2
d: CLOSE_WRITE gone2
X
