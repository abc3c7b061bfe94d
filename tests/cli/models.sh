#!/bin/sh
# SPDX-License-Identifier: MIT
# Model files made, opened in every layout, and (with numpy there) made again by Python, byte for byte.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
tools=$data/../../tools

# A picture of a small model's; OUT MODEL MORE...
draw() {
    out=$1 model=$2
    shift 2
    run 0 generate -m "$model" --vocab "$data/tiny/merges.txt" -i in.ppm -p "a house" -W 64 -H 64 -t 1 --steps 4 -s 3 -q -o "$out" "$@"
}

run 2 make-model; says "OUT"
run 2 make-model a b
run 2 make-model x --like sdxl
run 2 make-model x --layout difusers; says "did you mean diffusers?"
run 2 make-model x --dtype int8
run 2 make-model x --seed -1
run 7 make-model --small /nowhere/x
run 7 make-model --small --layout diffusers /nowhere/x
absent x

# Every layout opens, and those of the same values make the same picture.
for layout in ldm sd control control-bare combined-pth sd-pth control-pth diffusers; do
    run 0 make-model --small --dtype fp16 --layout $layout m-$layout; prints "$layout of sd15"
    run 0 info m-$layout; prints "F16"
done
run 7 make-model --small --layout diffusers m-diffusers; says "there already"
run 0 make-model --small --dtype fp16 again --json; prints '"seed": 1'
that cmp -s again m-ldm
run 0 make-model --small --dtype fp16 --seed 2 other
checks=$((checks + 1)); cmp -s other m-ldm && fail "two seeds make the same model"
draw ldm.ppm m-ldm
draw pth.ppm m-combined-pth; that cmp -s ldm.ppm pth.ppm
draw diffusers.ppm m-diffusers; that cmp -s ldm.ppm diffusers.ppm
draw two.ppm m-sd --control-net m-control-bare; that cmp -s ldm.ppm two.ppm
draw three.ppm m-sd-pth --control-net m-control-pth; that cmp -s ldm.ppm three.ppm
draw four.ppm m-diffusers --control-net m-control; that cmp -s ldm.ppm four.ppm
draw other.ppm other
checks=$((checks + 1)); cmp -s other.ppm ldm.ppm && fail "two models make the same picture"

python3 -c 'import numpy' 2>/dev/null && numpy=true || numpy=false
if $numpy; then
    for dtype in fp32 fp16 bf16; do
        run 0 make-model --small --dtype $dtype --seed 4294967295 c
        checks=$((checks + 1))
        python3 "$tools/make_model.py" --small --dtype $dtype --seed 4294967295 python || fail "make_model.py $dtype"
        that cmp -s c python
    done
    made="m-ldm m-sd m-control m-control-bare m-combined-pth m-sd-pth m-control-pth m-diffusers"
    checks=$((checks + 1))
    # shellcheck disable=SC2086
    python3 "$tools/make_model.py" --check --small --dtype fp16 $made >out 2>err || fail "make_model.py --check"
    for model in $made; do that grep -q "^$model: .*, as described$" out; done
    checks=$((checks + 1))
    python3 "$tools/make_model.py" --check --small --dtype fp16 --seed 2 m-combined-pth >/dev/null 2>&1 && fail "make_model.py --check sees no other seed"
fi
checks=$((checks + 1))
! command -v python3 >/dev/null || python3 - m-combined-pth m-sd-pth 2>err <<'PYTHON' || fail "torch.load"
import sys
try: import torch # once: it starts slower than all else here
except ImportError: sys.exit()
for file in sys.argv[1:]:
    d = torch.load(file, weights_only=True)
    d = d.get("state_dict", d)
    assert d["betas"].shape == (1000,) and d["model.diffusion_model.out.2.weight"].dtype == torch.float16, file
PYTHON

# convert: from every layout the same file, whose picture is the original's.
run 2 convert m-ldm
run 2 convert m-ldm m-ldm; says "is a file of"
ln m-ldm linked
run 2 convert linked m-ldm; says "is a file of"
run 2 convert m-diffusers m-diffusers/unet/diffusion_pytorch_model.safetensors; says "is a file of"
run 2 convert m-ldm x --transfer m-sd
run 2 convert m-ldm x --dtype fp8
run 3 convert m-nowhere x
run 3 convert in.ppm x
run 7 convert m-ldm /nowhere/x
absent x
run 0 convert m-ldm c-ldm; draw x.ppm c-ldm; that cmp -s ldm.ppm x.ppm
run 0 convert m-combined-pth c-pth --json; prints '"transferred": false'
draw x.ppm c-pth; that cmp -s ldm.ppm x.ppm
run 0 convert m-diffusers c-diffusers; draw x.ppm c-diffusers; that cmp -s ldm.ppm x.ppm
run 0 convert m-control-bare c-control; that cmp -s c-control m-control
draw x.ppm m-sd --control-net c-control; that cmp -s ldm.ppm x.ppm
run 0 convert m-ldm c-fp32 --dtype fp32; draw x.ppm c-fp32; that cmp -s ldm.ppm x.ppm
run 0 convert c-fp32 c-fp16 --dtype fp16; that cmp -s c-fp16 c-ldm
run 0 make-model --small wide
run 0 convert wide narrow --dtype fp16; run 0 convert m-ldm same; that cmp -s narrow same

# The transfer: to the base itself nothing changes; to another model, its UNet, and twins move by the difference.
run 0 convert m-ldm t-same --transfer m-sd --community m-sd; that cmp -s t-same c-ldm
run 0 make-model --small --layout sd --seed 2 community
run 0 convert wide t-other --transfer m-sd --community community
run 3 convert m-sd x --transfer m-sd --community community; says "no ControlNet"
run 3 convert m-ldm x --transfer m-control --community community; says "no UNet"
if $numpy; then
    checks=$((checks + 1))
    python3 - wide m-sd community t-other <<'PYTHON' || fail "the transfer is not the reference's"
import json, sys
import numpy as np
def read(path):
    b = memoryview(open(path, "rb").read()) # slices of bytes would each be a copy
    n = int.from_bytes(b[:8], "little")
    types = {"F32": np.float32, "F16": np.float16, "I64": np.int64}
    return {k: np.frombuffer(b[8 + n:][slice(*v["data_offsets"])], types[v["dtype"]]).astype(np.float32)
            for k, v in json.loads(bytes(b[8:8 + n])).items() if k != "__metadata__"}
model, base, community, got = map(read, sys.argv[1:])
for k, v in got.items():
    twin = k.replace("control_model.", "model.diffusion_model.")
    if k.startswith(("first_stage", "cond_stage")): want = community[k]
    elif twin in base: want = model[k] + community[twin] - base[twin]
    else: want = model[k]
    assert (v == want).all(), k
assert len(got) == len(model) - 13
PYTHON
fi

# doctor: what is made here is fine; what is broken is named, with exit 3 and the report all the same.
sick() { # FILE TEXT...
    file=$1
    shift
    checks=$((checks + 1))
    "$program" doctor "$file" >out 2>err </dev/null
    [ $? -eq 3 ] || fail "doctor $file is not exit 3"
    [ "$(grep -c '^linework: ' err)" -eq 1 ] || fail "doctor $file: not one line on standard error"
    says "can't be used"; prints "not usable"
    for text in "$@"; do prints "$text"; done
}
run 2 doctor
run 2 doctor m-ldm --control
run 0 doctor m-ldm; prints "canny2image, as -m"; prints "512x512"
run 0 doctor m-combined-pth m-diffusers --json; prints '"usable": true'; prints "diffusers-folder"
run 0 doctor m-sd; prints "together with --control-net"; prints "no ControlNet in it"
run 0 doctor m-sd --control-net m-control-bare; prints "a ControlNet, as --control-net"; prints "512x512"
run 0 doctor m-control m-control-pth; prints "a ControlNet, as --control-net"
run 0 doctor "$data/tiny/model.safetensors"; prints "384x256"
sick m-nowhere
sick in.ppm
head -c 1000000 m-ldm >cut; sick cut
if command -v python3 >/dev/null; then
    cat >edit.py <<'PYTHON'
import json, sys
path, out, what, key = sys.argv[1:]
b = open(path, "rb").read()
n = int.from_bytes(b[:8], "little")
head, data = json.loads(b[8:8 + n]), bytearray(b[8 + n:])
new = {"__metadata__": head.pop("__metadata__", {})}
if what == "nan": i = head[key]["data_offsets"][0]; data[i:i + 2] = b"\x00\x7e"
if what == "add": head[key] = {"dtype": "F16", "shape": [4], "data_offsets": [len(data), len(data) + 8]}; data += bytes(8)
if what == "drop":
    a, e = head.pop(key)["data_offsets"]
    del data[a:e]
    for v in head.values():
        if v["data_offsets"][0] >= e: v["data_offsets"] = [x - (e - a) for x in v["data_offsets"]]
if what == "flat": head[key]["shape"] = [head[key]["data_offsets"][1] // 2 - head[key]["data_offsets"][0] // 2]
text = json.dumps({**new, **head}).encode()
open(out, "wb").write(len(text).to_bytes(8, "little") + text + data)
PYTHON
    edit() { python3 edit.py m-ldm "$@" || fail "edit.py $*"; }
    edit b nan first_stage_model.decoder.conv_out.weight; sick b "1 tensor damaged" "first_stage_model.decoder.conv_out.weight: value 0 of"
    edit b drop model.diffusion_model.out.2.bias; sick b "1 tensor missing" "unet.out.2.bias"
    edit b drop control_model.zero_convs.4.0.weight; sick b "control.zero_convs.4.0.weight"
    edit b drop first_stage_model.encoder.conv_in.bias; run 0 doctor b
    edit b add model.diffusion_model.input_blocks.2.0.skip_connection.weight; sick b "1 tensor of no block" "skip_connection"
    edit b add model.diffusion_model.label_emb.0.0.weight; sick b "label_emb"
    edit b add conditioner.embedders.0.x; sick b "Stable Diffusion XL"
    edit b add cond_stage_model.model.ln_final.weight; sick b "Stable Diffusion 2"
    edit b add lora_unet_mid.lora_down.weight; sick b "a LoRA"
    edit b flat model.diffusion_model.out.2.weight; sick b "out.2.weight is [1152], not [4,32,3,3]"
fi

# fetch-vocab, offline: what fails leaves nothing, and what is there is kept. tools/check_tokenizer.py fetches the real one.
run 2 fetch-vocab x
checks=$((checks + 1))
(PATH=/nowhere; exec "$program" fetch-vocab >out 2>err)
[ $? -eq 3 ] || fail "no python3 is not exit 3"
says "python3 with pip is needed"
if python3 -m pip --version >/dev/null 2>&1; then
    export PIP_NO_INDEX=1 PIP_FIND_LINKS="$work/wheels"
    mkdir wheels
    run 3 fetch-vocab; says "No matching distribution found for open-clip-torch"
    cat >wheel.py <<'PYTHON'
import gzip, sys, zipfile
with zipfile.ZipFile("wheels/open_clip_torch-9.9-py3-none-any.whl", "w") as z:
    z.writestr("open_clip/" + sys.argv[1], gzip.compress(b"#\n"))
    z.writestr("open_clip_torch-9.9.dist-info/METADATA", "Metadata-Version: 2.1\nName: open-clip-torch\nVersion: 9.9\n")
    z.writestr("open_clip_torch-9.9.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    z.writestr("open_clip_torch-9.9.dist-info/RECORD", "")
PYTHON
    python3 wheel.py bpe_simple_vocab_16e6.txt.gz; run 3 fetch-vocab; says "has the SHA-256"; says "not 924691ac288e5440"
    python3 wheel.py other.txt; run 3 fetch-vocab; says "no bpe_simple_vocab_16e6.txt.gz in it"
    unset PIP_NO_INDEX PIP_FIND_LINKS
    (export XDG_CACHE_HOME=/proc/none; run 7 fetch-vocab; says "can't be written"; [ "$failures" -eq 0 ]) || failures=$((failures + 1))
fi
checks=$((checks + 1))
[ -z "$(find cache -name 'fetch-*' -o -name merges.txt)" ] || fail "fetch-vocab left something"
mkdir -p cache/linework slow
printf '#!/bin/sh\nexec sleep 60\n' >slow/python3; chmod +x slow/python3
checks=$((checks + 1))
(PATH=$work/slow:$PATH; exec "$program" fetch-vocab >out 2>err) & pid=$!
while [ -z "$(ls cache/linework/fetch-* 2>/dev/null)" ] && kill -0 $pid 2>/dev/null; do sleep 0.1; done
kill -TERM $pid; wait $pid
[ $? -eq 130 ] || fail "fetch-vocab told to stop is not exit 130"
says "cancelled"; that [ -z "$(find cache -name 'fetch-*')" ]
run 3 generate -m m-ldm -i in.ppm -p x -W 64 -H 64 -o unmade.ppm; says "no vocabulary of 514 entries: none beside the model and none in the cache $work/cache/linework"; absent unmade.ppm
awk 'BEGIN { # as many merges as CLIP has: all pairs of 94 characters, then the first triples
    print "#version: 0.2"
    for (i = 0; i < 8836; i++) print pair[i] = sprintf("%c %c", 33 + int(i / 94), 33 + i % 94)
    for (i = 0; i < 48894 - 8836; i++) { two = pair[int(i / 94)]; sub(" ", "", two); printf "%s %c\n", two, 33 + i % 94 }
}' </dev/null >cache/linework/merges.txt
cp cache/linework/merges.txt had
(PATH=/nowhere; exec "$program" fetch-vocab >out 2>err) || fail "fetch-vocab with a vocabulary there is not exit 0"
prints "was there already"; that cmp -s had cache/linework/merges.txt
rm -r cache/linework

# A file that may not grow stands for a full disk.
checks=$((checks + 1))
(ulimit -f 100; exec "$program" make-model --small full >/dev/null 2>err)
[ $? -eq 7 ] || fail "a full disk is not exit 7"
checks=$((checks + 1))
(ulimit -f 100; exec "$program" make-model --small --layout diffusers full >/dev/null 2>err)
[ $? -eq 7 ] || fail "a full disk is not exit 7"
checks=$((checks + 1))
[ -z "$(find . -maxdepth 1 -name '*full*')" ] || fail "something half-written is left"

finish
