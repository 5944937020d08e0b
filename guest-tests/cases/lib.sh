# SPDX-License-Identifier: Apache-2.0
# Sourced by each case. Without settings all of it runs on this machine: the reference, native inotify.
#
#   SHARE_HOST   the shared directory on the host            (default: a new temporary directory)
#   SHARE_GUEST  where the guest mounts it                   (default: SHARE_HOST)
#   GUEST        a command that runs the sh script on its standard input, as root in the guest
#                (default: sh; "ssh root@vm sh")
#   LIMIT        seconds to wait for each condition          (default: 20)
#
# A case exits with 0 if all is as it is natively, 1 if not, 77 if something that it needs is missing.
#
#   host CODE, guest CODE          run sh code in the case's directory, on either side
#   host_py CODE, guest_py CODE    run Python code there
#   watch NAME [OPTION] LABEL=PATH…  starts watch.py in the guest
#   arrive                         wait until the guest has the events of all that the host did
#   expect NAME WHAT               compare what a watcher saw with standard input. Equal neighbours
#                                  count once, because inotify coalesces them.
#   has/hasnt NAME LINE WHAT       search for a line, a pattern of grep -x
#   same WHAT WANTED GOT           compare two texts
CASES=$(cd "$(dirname "$0")" && pwd)
NAME=$(basename "$0" .sh)
: "${GUEST:=sh}" "${LIMIT:=20}"
if [ -z "${SHARE_HOST:-}" ]; then
    TOP=$(mktemp -d /var/tmp/farwatch-case.XXXXXX)
    chmod 755 "$TOP"
    SHARE_HOST=$TOP/share
    mkdir "$SHARE_HOST"
fi
: "${SHARE_GUEST:=$SHARE_HOST}"
H=$SHARE_HOST/$NAME.$$ G=$SHARE_GUEST/$NAME.$$
OUT=${SHARE_HOST%/}.out.$$  # Beside the share, on the same file system, and not shared.
ARRIVALS=$NAME.arrivals.$$  # Below the share: what the host makes here follows all earlier events.
T=/tmp/farwatch-$NAME-$$    # The watchers' files, in the guest.
FAILED=0 ARRIVED=0

host() { ( cd "$H" && export H OUT && eval "$*" ); }
guest() {
    {
        printf 'cd %s || exit 1\nG=%s T=%s\n' "'$G'" "'$G'" "'$T'"
        printf '%s\n' "$*"
    } | $GUEST
}
host_py() { ( cd "$H" && OUT=$OUT python3 -c "import os, time, sys
$*" ); }
guest_py() {
    guest "python3 - <<'PYTHON_END'
import os, time, sys
$*
PYTHON_END"
}
# until_true CONDITION: code that waits for a condition, on either side.
until_true() {
    printf '%s\n' "n=0; until $1; do n=\$((n + 1)); [ \$n -le $((LIMIT * 20)) ] ||
        { echo '$NAME: waited $LIMIT s in vain for: $(printf %s "$1" | tr "'" '"')'; exit 1; }
        sleep 0.05; done"
}

fail() {
    FAILED=1
    printf 'FAIL %s: %s\n' "$NAME" "$1"
    [ -z "${2:-}" ] || printf '%s\n' "$2" | sed 's/^/     | /'
}
ok() { printf 'ok   %s: %s\n' "$NAME" "$1"; }
needs() { printf 'skip %s: needs %s\n' "$NAME" "$1"; exit 77; }
same() {
    if [ "$2" = "$3" ]; then ok "$1"; else fail "$1" "wanted: $2
got:    $3"; fi
}

watch() {
    watcher=$1
    shift
    guest "python3 \$T/watch.py \$T/$watcher $* </dev/null >\$T/$watcher.err 2>&1 &
        $(until_true "[ -e \$T/$watcher.ready ]")" || fail "watcher $watcher" "$(guest "cat \$T/$watcher.err")"
}
# Stop watchers; without names all but that of `arrive`.
unwatch() {
    guest "for each in ${*:-\$(ls \$T | sed -n 's/\.pid\$//p' | grep -vx arrivals)}; do
        rmdir \$T/\$each.flush && kill \$(cat \$T/\$each.pid); rm -f \$T/\$each.pid
    done"
}
arrive() {
    ARRIVED=$((ARRIVED + 1))
    : > "$SHARE_HOST/$ARRIVALS/$ARRIVED"
    # The instances have all of it when one has the last of it; each watcher then empties its own.
    guest "$(until_true "grep -qx 'arrivals: CREATE $ARRIVED' \$T/arrivals.out")
        for each in \$T/*.flush; do
            : > \$each/$ARRIVED
            $(until_true "[ ! -e \$each/$ARRIVED ]")
        done" || fail "events of the host arrive"
}
seen() { guest "cat \$T/$1.out"; }
expect() {
    want=$(uniq)
    arrive
    got=$(seen "$1" | uniq)
    if [ "$want" = "$got" ]; then ok "$2"; else
        printf '%s\n' "$want" > "$OUT/want"
        printf '%s\n' "$got" > "$OUT/got"
        fail "$2: events differ, native first" "$(diff "$OUT/want" "$OUT/got")"
    fi
}
has() {
    if seen "$1" | grep -qx -- "$2"; then ok "$3"; else
        fail "$3 (no line $2)" "$(seen "$1" | tail -20)"
    fi
}
hasnt() {
    if seen "$1" | grep -qx -- "$2"; then
        fail "$3 (line $2)" "$(seen "$1" | tail -20)"
    else ok "$3"; fi
}
line() { tr '\n' ' ' | sed 's/ $//'; }

ended() {
    guest "unset CDPATH; cd /; kill \$(cat \$T/pids \$T/*.pid) 2>/dev/null; rm -rf \$T" 2>/dev/null
    chmod -R u+rwX "$H" "$OUT" 2>/dev/null
    rm -rf "$H" "$OUT" "${SHARE_HOST:?}/$ARRIVALS"
    [ -z "${TOP:-}" ] || rm -rf "$TOP"
}
trap 'r=$?; ended; [ $r -ne 0 ] && exit $r; exit $FAILED' EXIT

mkdir -p "$H" "$OUT" "$SHARE_HOST/$ARRIVALS"
[ "$(guest 'echo here')" = here ] || { echo "$NAME: GUEST does not run scripts in $G"; exit 2; }
guest "mkdir -p $T; cat > $T/watch.py <<'WATCH_END'
$(cat "$CASES/watch.py")
WATCH_END"
watch arrivals -m CREATE "arrivals='$SHARE_GUEST/$ARRIVALS'"
