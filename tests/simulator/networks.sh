#!/bin/sh
# The embedded model's networks on the simulator against the CPU in fp32; the same bits whatever order the simulated device does things
# in; and whole pictures of a small model, by graphs of a step each.
# usage: networks.sh BENCH SIMULATED_BENCH SOURCE_DIR
set -u
bench=$1 simulated=$2 source=$3
demo=$source/models/demo/model.safetensors tiny=$source/tests/data/tiny/model.safetensors
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
fail() { echo "networks: $*"; exit 1; }

"$bench" outputs --device cpu --model "$demo" --size 64x64 --write "$work/want" || fail "the CPU's outputs"
"$simulated" outputs --device cuda --model "$demo" --size 64x64 --compare "$work/want" || fail "outputs on the simulator"
for seed in 1 2; do
    SIMULATOR_RACES=0 SIMULATOR_SEED=$seed "$simulated" outputs --device cuda --model "$demo" --size 64x64 --write "$work/$seed" || fail "seed $seed"
done
cmp "$work/1" "$work/2" || fail "other bits where things come in another order"
SIMULATOR_RACES=0 "$simulated" latency --device cuda --model "$tiny" --size 64x64 --steps 2 --repeat 2 >"$work/latency" || fail "pictures"
cat "$work/latency"
grep -q 'all values finite, .*the same bits in all runs' "$work/latency" || fail "pictures differ or are not finite"
