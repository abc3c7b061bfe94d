#!/bin/sh
# SPDX-License-Identifier: MIT
# What is refused before a model is opened, and the commands that need none.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
none=/nowhere/none.ppm # exit 2 has to come before it is looked for

run 0; prints "linework demo"; prints "linework generate"; prints "linework help"
run 0 --help; prints "exit codes"
run 0 --version; prints "linework 0."
run 0 --version --json; prints '"libraries"'
run 0 help generate; prints "--control-strength"
run 0 generate --help; prints "--control-strength"
run 0 help --man; prints ".Dt LINEWORK 1"
run 0 help --completion; prints "complete -o filenames"
run 2 genrate; says "did you mean generate?"
run 2 help genrate
for name in pd score serve; do run 2 $name; says "reserved"; done

# Flags: near names, values that are missing, exclusive, or given to those that take none.
run 2 generate --stesp 3; says "did you mean --steps?"
run 2 generate --qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq
run 2 generate -i $none -p x --steps; says "needs a value"
run 2 generate -i $none -p x -s; says "needs a value"
run 2 generate -i $none -p x -y
run 2 generate -i $none -p x --json=1; says "takes no value"
run 2 generate -i $none -p x left-over
run 2 generate -i $none -p x --scheduler karas; says "did you mean karras?"
run 2 generate -i $none -p x --sampling-method "$(printf 'a\nb')"
run 2 generate -i $none -p x --device gpu
run 2 generate -i $none -p x --device cuda:x
run 2 generate -i $none -p x --device cuda:-1
run 2 generate -p x; says "no picture"
run 2 generate -i $none; says "--prompt"
run 2 generate -i $none --control-image $none -p x; says "only one"
run 2 generate -i $none -p x --control-net a --control-image b --control-net c --control-image d
run 2 generate -p x --control-net a --control-image b --control-net c; says "1 of 2"
run 2 generate -i - --from-image -; says "read once"
run 2 generate -i $none -p x -W 512; says "give both"
run 2 generate -i $none -p x -W 512 -H 512 -r 512
run 2 generate -i $none -p x -W 511 -H 512
run 2 generate -i $none -p x -o - --json
run 2 generate -i $none -p x -o - -b 2
run 2 generate -i $none -p x --save-control -
run 2 generate -i $none -p x --eta 0.5 --sampling-method euler
run 2 tokenize -m a --vocab b x
run 2 canny -i $none
run 2 canny -o x.$png
run 2 info
run 2 info a b

# Numbers (badinput.sh has every flag's range): whole ones are not rounded, and fractions stay inside.
for value in 2.5 1e2; do run 2 generate -i $none -p x "--steps=$value"; done
run 2 generate -i $none -p x --samples 1.5
run 2 generate -i $none -p x --seed 1.5
run 2 generate -i $none -p x --cfg-scale 100.001
run 2 generate -i $none -p x --control-strength -0.001

# Step counts that the reference fails on are refused by name; the last of a flag given twice counts.
for steps in 3 9 27 36 37 101 111 251 333 501 1000; do run 2 generate -i $none -p x --steps $steps; done
run 4 generate -m $none -i $none -o x.$png -p x --steps 3 --steps 20
run 2 generate -i $none -p x --steps 20 --steps 3
run 4 generate -m $none -i $none -o x.$png -p x --steps 3 --scheduler discrete
run 4 generate -m $none -i $none -o x.$png -p x -qb4 -s-1 -W 512 -H512
run 4 generate -m $none -i $none -o x.$png -p x -- # nothing after the end of the flags

# Inputs.
run 4 canny -i $none -o x.$png; says "No such file"
run 4 canny -i . -o x.$png; says "folder"
: >empty
run 4 canny -i empty -o x.$png
printf 'not a picture at all' >text
run 4 canny -i text -o x.$png
run 3 info text
run 3 info $none
printf 'P6\n65535 65535\n255\n' >huge.ppm
run 4 canny -i huge.ppm -o x.$png
if [ $png = png ]; then
    printf '\211\120\116\107\015\012\032\012\000\000\000\015\111\110\104\122\000\000\377\377\000\000\377\377\010\002\000\000\000\071\147\116\007' >huge.png
    run 4 canny -i huge.png -o x.png; says "65535"
    run 0 canny -i in.ppm -o whole.png
    head -c 60 whole.png >cut.png
    run 4 canny -i cut.png -o x.png
fi
absent x.png x.ppm
run 0 canny -i in.ppm -o edges.$png --json; prints '"width": 48'
run 0 canny -i in.ppm -o edges.$png -r 64 --save-resized resized.$png; that test -s resized.$png
run 0 info edges.$png; prints "128x64"
run 0 info in.ppm --json; prints '"parameters": null'
printf 'P6\n1 1\n255\nabc' >one.ppm
run 0 canny -i one.ppm -o one.$png
checks=$((checks + 1))
"$program" canny -i - -o - <in.ppm >piped 2>err && cmp -s piped edges.$png && fail "-r is not the default"
"$program" canny -i - -o piped.$png <in.ppm >out 2>err || fail "standard input"
if [ $png = png ]; then run 0 canny -i in.ppm -o whole.png; that cmp -s whole.png piped.png; that cmp -s whole.png piped; fi

# Outputs, refused before the input is looked for.
run 7 canny -i $none -o /nowhere/x.$png; says "folder /nowhere"
run 7 canny -i $none -o .
run 7 canny -i $none -o in.ppm/x.$png
run 2 canny -i $none -o x.txt; says "extension"
run 2 canny -i $none -o x
run 2 canny -i in.ppm -o x.$png --save-resized x.$png
run 7 canny -i in.ppm -o /dev/full
that test -c /dev/full
run 0 canny -i in.ppm -o /dev/null
that test -c /dev/null
mkdir shut && chmod 555 shut
if [ "$(id -u)" -ne 0 ]; then # root may write anywhere
    run 7 canny -i $none -o shut/x.$png
    : >locked.$png && chmod 444 locked.$png
    run 7 canny -i $none -o locked.$png
    chmod 000 empty
    run 4 canny -i empty -o x.$png
fi
checks=$((checks + 1))
"$program" canny -i in.ppm -o whole.$png >/dev/full 2>err
[ $? -eq 7 ] || fail "a full standard output is not exit 7"
checks=$((checks + 1))
"$program" canny -i in.ppm -o closed.$png >&- 2>err
[ $? -eq 7 ] || fail "a closed standard output is not exit 7"
"$program" canny -i in.ppm -o closed.$png -q >out 2>err
checks=$((checks + 1))
"$program" canny -i in.ppm -o closed2.$png >out 2>&- <&- || fail "closed standard error and input"
that cmp -s closed.$png closed2.$png
# A file that may not grow over 512 bytes stands for a full disk: nothing half-written stays.
awk 'BEGIN { srand(1); printf "P6\n256 256\n255\n"; for (i = 0; i < 196608; i++) printf "%c", 33 + int(rand() * 90) }' >noise.ppm
checks=$((checks + 1))
(ulimit -f 1; exec "$program" canny -i noise.ppm -o full.$png >/dev/null 2>err)
[ $? -eq 7 ] || fail "a full disk is not exit 7"
absent full.$png
checks=$((checks + 1))
[ -z "$(find . -maxdepth 1 -name '*full*')" ] || fail "a temporary file is left"
mkfifo pipe && { timeout 20 cat pipe >through & }
run 0 canny -i in.ppm -o pipe
wait
that test -p pipe
that test -s through

finish
