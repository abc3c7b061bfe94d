#!/bin/sh
# SPDX-License-Identifier: MIT
# linework-bench from outside, on the tiny model: BENCH DATA. What it prints adds up; no time is judged.
set -u
bench=$1 model=$2/tiny/model.safetensors
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
out=$work/out failures=0
fail() { failures=$((failures + 1)); echo "FAILED: $*"; cat "$out" 2>/dev/null; }

"$bench" >"$out" 2>&1 && fail "no command is no error"
"$bench" ladder --device cpu >"$out" 2>&1 && fail "a ladder without a model is no error"
grep -q "needs --model" "$out" || fail "ladder does not say what it needs"

"$bench" ops --model "$model" --size 64x64 --repeat 1 >"$out" 2>&1 || fail "ops"
grep -q "^conv2d" "$out" && grep -q "^advance" "$out" || fail "ops lacks ops"
"$bench" latency --model "$model" --size 64x64 --steps 2 --repeat 1 >"$out" 2>&1 || fail "latency"
grep -q "all values finite" "$out" || fail "latency: values"

# every rung's picture is the first one's, within what another order of sums gives
"$bench" ladder --model "$model" --size 64x64 --steps 2 --repeat 1 >"$out" 2>&1 || fail "ladder"
[ "$(grep -c 'x  *[0-9.]*$' "$out")" -ge 11 ] || fail "ladder: rungs are missing"
awk 'NR > 2 && /x  / { if ($NF < 40) bad = 1 } END { exit bad }' "$out" || fail "ladder: a rung's picture is another one"

[ "$failures" -eq 0 ]
