#!/bin/sh
# SPDX-License-Identifier: MIT
# Whole jobs on the tiny random model: files, replays, latents, failures in the middle.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
model=$data/tiny/model.safetensors
[ -f "$model" ] || { echo "SKIPPED: there is no $model"; exit 77; }

job() { want=$1; shift; run "$want" generate -m "$model" -p "a red house" -s 7 --steps 2 -r 64 "$@"; }
json() { sed -n "s/.*\"$1\": \([^,}]*\).*/\1/p" out | head -1; }

job 0 -i in.ppm -o a.$png --save-control edges.$png --save-latents a.npy
prints "seed 7"; prints "a.$png"
that test -s edges.$png
job 0 -i in.ppm -o b.$png -t 1; that cmp -s a.$png b.$png
job 0 -i in.ppm -o b.$png -t 2; that cmp -s a.$png b.$png
run 0 canny -i in.ppm -r 64 -o edges2.$png; that cmp -s edges.$png edges2.$png
job 0 -i in.ppm -o c.$png --json
for key in '"images": ["c.' '"control": null' '"seed": 7' '"width": 128' '"height": 64' '"steps": 2' '"device": "cpu"' \
    '"precision": "fp32"' '"model": {"path": ' '"load": ' '"canny": ' '"text": ' '"hint": ' '"steps": [' '"decode": ' \
    '"encode": ' '"total": ' '"peak_bytes": {"host": '; do prints "$key"; done
job 0 -i in.ppm -o d.$png -q; checks=$((checks + 1)); [ -s err ] && fail "-q is not quiet"

# A GPU that is not there: one error. auto: the CPU where no GPU shows.
job 6 -i in.ppm -o x.$png --device cuda:998; says "cuda:998"; absent x.$png
export CUDA_VISIBLE_DEVICES=
job 0 -i in.ppm -o b.$png --device auto; that cmp -s a.$png b.$png
job 6 -i in.ppm -o x.$png --device cuda; says "cuda:0"; absent x.$png
unset CUDA_VISIBLE_DEVICES

# bf16 where the CPU has products of it, else one error; fp16 on none.
job 2 -i in.ppm -o x.$png --device cpu --precision fp16; says "precision fp16: a CPU runs fp32"; absent x.$png
if grep -q avx512_bf16 /proc/cpuinfo; then
    job 0 -i in.ppm -o half.$png --device cpu --precision bf16 --json; prints '"precision": "bf16"'
    checks=$((checks + 1)); cmp -s a.$png half.$png && fail "--precision bf16 changes nothing"
    if [ $png = png ]; then
        run 0 generate -m "$model" --from-image half.png -i in.ppm -o again.png --device cpu; that cmp -s half.png again.png
    fi
else
    job 2 -i in.ppm -o x.$png --device cpu --precision bf16; says "precision bf16: this CPU has no avx512_bf16"; absent x.$png
fi

# The edges as a ready map, and latents out and in.
job 0 --control-image edges.$png -o e.$png --save-latents e.npy; that cmp -s a.npy e.npy
job 0 -i in.ppm -o f.$png --init-latents a.npy
checks=$((checks + 1)); cmp -s a.$png f.$png && fail "--init-latents changes nothing"
job 4 -i in.ppm -o x.$png --init-latents a.npy -b 2; says "(1, 4, 8, 16), the job needs (2, 4, 8, 16)"
head -c 300 a.npy >cut.npy
job 4 -i in.ppm -o x.$png --init-latents cut.npy; says "its shape asks for"
head -c 20 a.npy >cut.npy
job 4 -i in.ppm -o x.$png --init-latents cut.npy
job 4 -i in.ppm -o x.$png --init-latents in.ppm; says "not a .npy"
{ head -c 128 a.npy; printf '\000\000\300\177'; tail -c +133 a.npy; } >nan.npy
job 4 -i in.ppm -o x.$png --init-latents nan.npy; says "nan"
absent x.$png

# Another part of the steps, another layer of the text encoder, another VAE: each changes what it should and no more.
job 0 -i in.ppm -o p.$png --control-end 0 --save-latents p.npy; says "ControlNet 0 is used in none of the 2 steps"
job 0 -i in.ppm -o q.$png --control-strength 0 --save-latents q.npy; that cmp -s p.npy q.npy
that test -z "$(grep 'in none of' err)"
checks=$((checks + 1)); cmp -s a.npy p.npy && fail "--control-end changes nothing"
job 0 -i in.ppm -o p.$png --control-start 0.5 --save-latents p.npy
checks=$((checks + 1)); cmp -s a.npy p.npy && fail "--control-start changes nothing"
job 0 -i in.ppm -o p.$png --clip-skip 1 --save-latents p.npy; that cmp -s a.npy p.npy
job 0 -i in.ppm -o p.$png --clip-skip 2 --save-latents p.npy
checks=$((checks + 1)); cmp -s a.npy p.npy && fail "--clip-skip changes nothing"
if [ $png = png ]; then
    run 0 info p.png; prints "Clip skip: 2"
    run 0 generate -m "$model" --from-image p.png -i in.ppm -o again.png; that cmp -s p.png again.png
fi
job 2 -i in.ppm -o x.$png --clip-skip 4; says "clip skip 4 leaves none of the text encoder's 3 layers"
job 0 -i in.ppm -o p.$png --vae "$model" --save-latents p.npy; that cmp -s a.npy p.npy
job 3 -i in.ppm -o x.$png --vae in.ppm
job 3 -i in.ppm -o x.$png --vae nowhere; says "nowhere"

# Sizes, batches, names, standard output.
job 0 -i in.ppm -o n.$png -b 3
for i in 1 2 3; do that test -s n-$i.$png; done
absent n.$png
run 0 generate -m "$model" -p x -i in.ppm -s 1 --steps 1 -W 64 -H 64 -b 12 -o many.$png -q; that test -s many-12.$png
run 0 generate -m "$model" -p x -i in.ppm -s 1 --steps 2 -W 192 -H 64 -o w.$png --json; prints '"width": 192'
run 2 generate -m "$model" -p x -i in.ppm --steps 2 -W 72 -H 64 -o x.$png
printf 'P6\n1 1\n255\nabc' >one.ppm
job 0 -i one.ppm -o one.$png; prints "64x64"
checks=$((checks + 1))
"$program" generate -m "$model" -p "a red house" -s 7 --steps 2 -r 64 -i - -o - <in.ppm >piped 2>err || fail "-i - -o -"
[ $png = png ] && that cmp -s piped a.png
run 0 generate -m "$model" -p x -i in.ppm --steps 2 -r 64 -o s.$png --json
checks=$((checks + 1)); seed=$(json seed); [ "$seed" -ge 0 ] && [ "$seed" -le 65535 ] || fail "drawn seed is $seed"
run 0 generate -m "$model" -p x -i in.ppm --steps 15 -r 64 -o s.$png --json; prints '"steps": 16'; says "note: 15 steps"
job 0 -i in.ppm -o s.$png -b 2 --dry-run; prints "weights"; absent s-1.$png
job 0 -i in.ppm -o s.$png --dry-run --json; prints '"bytes"'
job 0 -i in.ppm -o g.$png --guess-mode; checks=$((checks + 1)); cmp -s a.$png g.$png && fail "--guess-mode changes nothing"
job 0 -i in.ppm -o g.$png --guess-mode --control-mode balanced; that cmp -s a.$png g.$png
job 0 -i in.ppm -o v.$png --preview so-far.$png; that test -s so-far.$png

# The table's spellings are the library's: none of them is an unknown name there.
spell() {
    flag=$1
    shift
    for name; do
        checks=$((checks + 1))
        "$program" generate -m "$model" -p x -i in.ppm -r 64 --dry-run "--$flag=$name" >out 2>err </dev/null
        grep -q "is none of" err && fail "--$flag=$name is unknown to the library"
    done
}
spell sampling-method ddim euler euler_a dpm++2m unipc lcm
spell scheduler reference discrete karras
spell rng cuda cpu
spell control-mode balanced prompt control
spell precision auto fp32 fp16 bf16

# Two ControlNets, one on a ready map.
job 0 -i in.ppm -o two.$png --control-net "$model" --control-strength 0.5 --control-net "$model" --control-image edges.$png --control-end 0.5
if [ $png = png ]; then
    run 0 info two.png; prints "ControlNet 1: \"Module: none"
    run 0 generate -m "$model" --from-image two.png -i in.ppm -o two-again.png --control-net "$model" --control-net "$model" --control-image edges.png
    that cmp -s two.png two-again.png
    run 2 generate -m "$model" --from-image two.png -i in.ppm -o x.png; says "ControlNet 1 of the parameters"
fi

# What stands before the first --control-net holds for all of them, what follows one for that one alone.
nets() { job 0 -i in.ppm -o nets.$png --save-latents "$@"; }
nets one.npy --control-strength 0.5 --control-net "$model" --control-net "$model"
nets other.npy --control-net "$model" --control-strength 0.5 --control-net "$model" --control-strength 0.5; that cmp -s one.npy other.npy
nets one.npy --control-net "$model" --control-strength 0.5 --control-end 0.5 --control-net "$model"
checks=$((checks + 1)); cmp -s one.npy other.npy && fail "the second ControlNet has the first one's strength"
nets other.npy --control-net "$model" --control-strength 0.5 --control-end 0.5 --control-net "$model" --control-strength 1 --control-end 1
that cmp -s one.npy other.npy

# Ready maps of two sizes are refused, and made one size where one is given.
{ printf 'P6\n64 64\n255\n' && head -c 12288 /dev/zero; } >square.ppm
two() {
    run "$@" -m "$model" -p x -s 1 --steps 1 --control-net "$model" --control-image edges.$png --control-net "$model" \
        --control-image square.ppm
}
two 4 generate -o x.$png; says "the map of control 1 is 64x64, that of control 0 128x64"
two 0 generate -o sized.$png -W 64 -H 64
run 4 generate -m "$model" -p x -o x.$png --control-image in.ppm; says "the map of control 0 is 48x32"

# A picture's parameters, and the same picture again from them.
if [ $png = png ]; then
    job 0 -i in.ppm -o long.png -a ""
    run 0 info long.png; that grep -q "a red house, $" out
    job 0 -i in.ppm -o long.png --cfg-scale 7.25 --control-strength 0.5 --control-end 0.75 --canny-low 50 --rng cpu -n "no, \"nothing\"" -a ""
    run 0 info long.png; prints "Negative prompt: no, \"nothing\""; prints "CFG scale: 7.25"; prints "Weight: 0.5"; prints "RNG: CPU"
    run 0 info --json long.png; prints '"kind": "picture"'; prints '"cfg_scale": 7.25'
    run 0 generate -m "$model" --from-image long.png -i in.ppm -o again.png; that cmp -s long.png again.png
    run 0 generate -m "$model" --from-image long.png -i in.ppm -o again.png --cfg-scale 3
    checks=$((checks + 1)); cmp -s long.png again.png && fail "a flag does not override --from-image"
    run 0 generate -m "$model" --from-image long.png -i one.ppm -o again.png; says "note: one.ppm: is not the picture"
    run 4 generate -m "$model" --from-image edges.png -i in.ppm -o x.png; says "edges.png"
    run 4 generate -m "$model" --from-image in.ppm -i in.ppm -o x.png
    run 0 generate -m "$model" --from-image n-2.png -i in.ppm -o m.png
    for i in 1 2 3; do that cmp -s n-$i.png m-$i.png; done
    printf broken >cache/linework/hashes.json
    job 0 -i in.ppm -o b.png; that cmp -s a.png b.png
    grep -q sha256 cache/linework/hashes.json || fail "the hash is not remembered"
fi

# Models, memory, devices and outputs that fail.
run 3 generate -m nowhere.safetensors -p x -i in.ppm -o x.$png; says "huggingface.co"
job 3 --control-net nowhere.pth -i in.ppm -o x.$png; says "nowhere.pth"
run 3 generate -m in.ppm -p x -i in.ppm -o x.$png
run 3 generate -m . -p x -i in.ppm -o x.$png
job 3 --vocab in.ppm -i in.ppm -o x.$png
job 5 -i in.ppm -o x.$png --max-memory 1000; says "1000"
job 4 -i nowhere.png -o x.$png
job 7 -i in.ppm -o /nowhere/x.$png
job 7 -i in.ppm -o /dev/full
job 7 -i in.ppm -o x.$png --save-latents /dev/full
job 2 -i in.ppm -o x.$png --preview x.$png
absent x.$png
that test -c /dev/full

# A signal ends the job within a step and leaves nothing.
for signal in INT TERM; do
    checks=$((checks + 1))
    timeout -s $signal --preserve-status 1 "$program" generate -m "$model" -p x -i in.ppm -s 1 --steps 500 -b 2 -W 192 -H 128 \
        -o stopped.$png --save-latents stopped.npy >out 2>err
    got=$?
    [ $got -eq 130 ] || fail "exit $got after SIG$signal"
    [ -s out ] && fail "standard output after SIG$signal"
    says "cancelled"
done
checks=$((checks + 1))
[ -z "$(find . -name '*stopped*')" ] || fail "a cancelled job leaves files"

# Tokens.
run 0 tokenize -m "$model" "a red house" ""
checks=$((checks + 1)); [ "$(awk '{ print NF }' out | tr '\n' ' ')" = "77 77 " ] || fail "not 77 ids a line"
cp out ids
checks=$((checks + 1))
printf 'a red house\n\n' | "$program" tokenize -m "$model" >out 2>err && cmp -s out ids || fail "lines of standard input"
run 0 tokenize --vocab "$data/tiny/merges.txt" "a red house"
run 0 tokenize -m "$model" --json x; prints '{"ids": [['
run 4 tokenize -m "$model" "$(printf 'a\377')"
run 3 tokenize --vocab nowhere.txt x
run 0 info "$model"; prints "kind"
run 0 info "$model" --json; prints '"kind": "model"'

finish
