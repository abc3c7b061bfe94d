#!/bin/sh
# SPDX-License-Identifier: MIT
# demo.sh PROGRAM DATA SOURCES: the embedded model, found from any folder; the command that demo prints makes the same files.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
sources=$3
[ -f "$sources/models/demo/model.safetensors" ] || { echo "SKIPPED: there is no embedded model yet"; exit 77; }

run 0 demo -o out-demo.$png
prints "seed     "
again=$(sed -n 's/^again    //p' out)
mv out-demo.$png first.$png
mv out-demo-edges.$png first-edges.$png
checks=$((checks + 1))
sh -c "$again" >out 2>err || fail "the command that demo prints: $again"
that cmp -s first.$png out-demo.$png
that cmp -s first-edges.$png out-demo-edges.$png
run 0 demo --picture photo -o photo.$png --json
prints "\"control\": \"photo-edges.$png\""
run 0 generate -i in.ppm -p "a red house" -s 7 -r 64 --steps 2 -o own.$png
run 0 tokenize "a red house"
run 0 info "$sources/models/demo/model.safetensors"
run 2 demo -o -
run 7 demo -o /nowhere/x.$png

finish
