#!/bin/sh
# SPDX-License-Identifier: MIT
# linework tune from outside, on the tiny model: the table, the file in the cache, that jobs take it up, and that no job tunes.
. "$(dirname "$0")/lib.sh"
model=$data/tiny/model.safetensors
file=$XDG_CACHE_HOME/linework/tactics-cpu.json
size="-W 64 -H 64"
generate() { run 0 generate -m "$model" -i in.ppm $size -p "a red house" -s 3 --steps 2 -t 2 -o "$1.$png" --save-latents "$1.npy" -q; }

# ---- what is refused
run 2 tune -W 64
says "--width and --height"
run 2 tune -W 64 -H 64 -r 64
run 2 tune --samples 13
run 2 tune --device gpu
run 3 tune -m nowhere.safetensors
absent "$file"

# ---- no job tunes
generate before
absent "$file"

# ---- tuning: text and file, then JSON for another thread count, which leaves the first's table
run 0 tune -m "$model" $size -t 2
that grep -q "kinds of op get another tactic\|no op of this job" out # the second: no AVX-512
prints "kept in $file"
that test -s "$file"
that grep -q '2 threads' "$file"
generate after
run 0 tune -m "$model" $size -t 1 --json -q
that test ! -s err
prints '"ops": ['
prints '"heuristic_us": '
that grep -q '1 thread"' "$file"
that grep -q '2 threads"' "$file"

# ---- a job takes up what the file says: a choice written by hand changes the hash that a picture's text names
run 0 generate -m "$model" -i in.ppm $size -p "a red house" -s 3 --steps 2 -t 2 -o a.$png -v
tuned=$(sed -n 's/.*tactics \([0-9a-f]*\).*/\1/p' out)
if grep -q conv2d_onednn "$program" "$(dirname "$program")"/../lib/liblinework.so* 2>/dev/null && grep -q '"op": "conv2d' "$file"; then
    sed -i 's/"conv2d_[a-z0-9_]*"/"conv2d_onednn"/' "$file"
    run 0 generate -m "$model" -i in.ppm $size -p "a red house" -s 3 --steps 2 -t 2 -o b.$png -v
    forced=$(sed -n 's/.*tactics \([0-9a-f]*\).*/\1/p' out)
    that test -n "$tuned"
    that test "$tuned" != "$forced"
fi

# ---- a damaged file is a note, one of another version is none, and neither changes a job
echo '{"linework": "0.1.0", "devices": {' >"$file"
run 0 generate -m "$model" -i in.ppm $size -p "a red house" -s 3 --steps 2 -t 2 -o c.$png --save-latents c.npy
says "is damaged and not used"
that cmp -s before.npy c.npy
echo '{"linework": "0.0.0", "devices": {}}' >"$file"
run 0 generate -m "$model" -i in.ppm $size -p "a red house" -s 3 --steps 2 -t 2 -o c.$png --save-latents c.npy
that test ! -s err -o "$(grep -c damaged err)" -eq 0
that cmp -s before.npy c.npy

# ---- a cache that can't be written is refused before the work
rm "$file"
mkdir "$file"
run 7 tune -m "$model" $size -t 2 -q
finish
