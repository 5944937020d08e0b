#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reports: kata-containers/runtime#2770, #1902
# The host deletes what the guest knows; the guest immediately makes it again, in each way there is.
# The result must be the one of a local directory, on the host too: nothing goes to the dead inode.
. "$(dirname "$0")/lib.sh"
# Each way is tried in a directory of its own, which has x and source.
code='
WAYS = r"""open("x", "w").write("new")
open("x", "a").write("new")
os.close(os.open("x", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
os.mkdir("x"); open("x/y", "w").write("new")
os.symlink("target", "x")
os.mkfifo("x")
os.link("source", "x")
os.rename("source", "x")
os.truncate("x", 0)
open("x", "r+").write("n")
os.rename("x", "z")
os.unlink("x")""".splitlines()
def prepare(top, kind):
    for number in range(len(WAYS)):
        folder = f"{top}/{number}"
        os.makedirs(folder)
        for name in ("x", "source"):
            if kind == "directory" and name == "x": os.mkdir(f"{folder}/x"); name = "x/y"
            open(f"{folder}/{name}", "w").write("old")
def look(top):
    for folder, folders, files in os.walk(top): [os.stat(f"{folder}/{name}") for name in folders + files]
def remove(top, how):
    for number in range(len(WAYS)): os.system(f"cd {top}/{number} && {how}")
def make(top):
    for number, way in enumerate(WAYS):
        os.chdir(f"{top}/{number}")
        try: exec(way); print(way)
        except OSError as error: print(way, "#", error.strerror)
def result(top):
    for number, way in enumerate(WAYS):
        print(way, "#", [(os.path.relpath(folder, top), sorted(folders), [
            (name, oct(os.lstat(f"{folder}/{name}").st_mode), os.path.isfile(f"{folder}/{name}") and open(f"{folder}/{name}").read())
            for name in sorted(files)]) for folder, folders, files in sorted(os.walk(f"{top}/{number}"))])
'
for how in unwatched watched; do
    [ $how = unwatched ] || { host 'mkdir watched'; watch w -r watched=watched; }
    for kind in file directory; do
        for gone in "rm -r x" "mv x away"; do
            # Within the second in which a name is cached without a watch, what was moved is still found
            # by it, and the guest answers itself what a directory answers: "Is a directory".
            [ "$how $kind $gone" = "unwatched file rm -r x" ] || [ $how = watched ] || continue
            top=$how/$kind.$(echo $gone | tr -d ' ')
            wanted=$(host_py "$code
os.chdir(OUT := os.environ['OUT']); prepare('$top', '$kind'); remove('$top', '$gone'); make(OUT + '/$top'); result(OUT + '/$top')")
            host_py "$code
prepare('$top', '$kind')"
            arrive
            guest_py "$code
look('$top')"
            host_py "$code
remove('$top', '$gone')"
            [ $how = unwatched ] || arrive
            got=$(guest_py "$code
make(os.path.abspath('$top'))"; host_py "$code
result(os.path.abspath('$top'))")
            same "$how $kind, $gone" "$wanted" "$got"
        done
    done
done
