#!/bin/sh
# SPDX-License-Identifier: MIT
# demo.sh PROGRAM DATA SOURCES: the embedded model, found from any folder; the command that demo prints makes the same files.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
sources=$3
[ -f "$sources/models/demo/model.safetensors" ] || { echo "SKIPPED: there is no embedded model yet"; exit 77; }

for picture in drawing photo; do
    run 0 demo --picture $picture -o $picture.$png
    that test -s $picture.$png
    that test -s $picture-edges.$png
    prints "seed     7"
    again=$(sed -n 's/^again    //p' out)
    mv $picture.$png first.$png
    mv $picture-edges.$png first-edges.$png
    checks=$((checks + 1))
    sh -c "$again" >out 2>err || fail "the command that demo prints: $again"
    that cmp -s first.$png $picture.$png
    that cmp -s first-edges.$png $picture-edges.$png
done
run 0 generate -i in.ppm -p "a red house" -s 7 -o own.$png
run 0 tokenize "a red house"
run 0 info "$sources/models/demo/model.safetensors"
run 2 demo -o -
run 7 demo -o /nowhere/x.$png

finish
