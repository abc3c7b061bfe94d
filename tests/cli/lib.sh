# SPDX-License-Identifier: MIT
# Sourced by the scripts beside it: TEST.sh PROGRAM DATA. Each check prints what went wrong; the script's end counts.
set -u
export LC_ALL=C
program=$1
data=$2
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
export XDG_CACHE_HOME="$work/cache"
[ -x "$program" ] || { echo "$program: no such program"; exit 1; }
cd "$work" || exit 1
checks=0 failures=0

fail() {
    failures=$((failures + 1))
    echo "FAILED: $*"
    sed 's/^/    stderr: /' err 2>/dev/null
}

# run CODE ARGUMENTS...: runs the program, checks its exit code and what every failure promises: nothing on standard
# output, one line on standard error beside the notes, of the form "linework: WHAT: ...".
run() {
    want=$1
    shift
    checks=$((checks + 1))
    "$program" "$@" >out 2>err </dev/null
    got=$?
    [ "$got" -eq "$want" ] || { fail "exit $got, not $want: linework $*"; return 1; }
    [ "$want" -eq 0 ] && return 0
    [ -s out ] && { fail "standard output is not empty: linework $*"; return 1; }
    lines=$(grep -c '^linework: [^ ]' err)
    notes=$(grep -c '^linework: note: ' err)
    [ $((lines - notes)) -eq 1 ] || { fail "$((lines - notes)) error lines: linework $*"; return 1; }
}

# says TEXT: the last run's standard error holds it. prints TEXT: its standard output does.
says() { checks=$((checks + 1)); grep -qF -e "$1" err || fail "standard error does not say: $1"; }
prints() { checks=$((checks + 1)); grep -qF -e "$1" out || { fail "standard output does not say: $1"; sed 's/^/    stdout: /' out | head -5; }; }
that() { checks=$((checks + 1)); "$@" || fail "not so: $*"; }
absent() { checks=$((checks + 1)); for f in "$@"; do [ ! -e "$f" ] || fail "$f is there"; done; }

finish() {
    echo "$checks checks, $failures failed"
    [ "$failures" -eq 0 ]
}

# A 48x32 picture of one square, and whether this build writes PNG.
{ printf 'P6\n48 32\n255\n'; awk 'BEGIN { for (y = 0; y < 32; y++) for (x = 0; x < 48; x++)
    printf "%s", (x > 12 && x < 30 && y > 8 && y < 24) ? "zzz" : "   " }'; } >in.ppm
if "$program" canny -i in.ppm -o probe.png >out 2>err; then png=png; else png=ppm; fi
rm -f probe.png
