#!/bin/sh
# SPDX-License-Identifier: MIT
# readme.sh PROGRAM DATA EXAMPLE SOURCES: the README's program is the one in examples/, which runs, and its flags exist.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
example=$3 sources=$4 model=$data/tiny/model.safetensors

awk '/^```c$/ { inside = 1; next } /^```$/ { inside = 0 } inside' "$sources/README.md" >block.c
checks=$((checks + 1))
diff block.c "$sources/examples/canny2image.c" >diff || { fail "README.md's program is not examples/canny2image.c"; head -20 diff; }

"$program" help --completion >completion
for flag in $(grep '^|' "$sources/README.md" | grep -o -e '--[a-z][a-z-]*' | sort -u); do
    checks=$((checks + 1))
    grep -qE -e "[\" ]$flag[\" ]" completion || fail "README.md has $flag, the program has not"
done
for command in generate canny demo info tokenize; do that grep -q "linework $command" "$sources/README.md"; done
"$program" help generate | grep -o -e '--[a-z][a-z-]* ' | tr -d ' ' | sort -u | while read -r flag; do
    case $flag in --help | --version) continue ;; esac
    grep -q -e "$flag" "$sources/README.md" || echo "$flag"
done >missing
checks=$((checks + 1))
[ -s missing ] && fail "README.md lacks $(tr '\n' ' ' <missing)"

if [ -f "$model" ]; then
    checks=$((checks + 1))
    "$example" "$model" in.ppm "a red house" made.$png 7 64 >out 2>err || fail "the example fails"
    prints "seed 7"; says "step 20 of 20"
    run 0 generate -m "$model" -i in.ppm -p "a red house" -s 7 -r 64 -o same.ppm
    [ $png = ppm ] && that cmp -s made.ppm same.ppm
    [ $png = png ] && { run 0 info made.png; prints "a red house"; }
    checks=$((checks + 1))
    "$example" nowhere in.ppm x made.$png >out 2>err && fail "the example takes a model that is not there"
    says "LW_EMODEL"
fi
finish
