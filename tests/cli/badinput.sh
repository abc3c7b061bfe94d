#!/bin/sh
# SPDX-License-Identifier: MIT
# badinput.sh PROGRAM DATA: every kind of bad input, each one clear error with its exit code, nothing half-written, and the program
# still works afterwards. usage.sh has what is refused before a file is read.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
model=$data/tiny/model.safetensors
[ -f "$model" ] || { echo "SKIPPED: there is no $model"; exit 77; }
job() { want=$1; shift; run "$want" generate --device cpu -m "$model" -p "a red house" -s 7 --steps 2 -r 64 "$@"; }
mkdir folder
cp "$model" kept.safetensors

# ---- every numeric flag of every command, as the option table has them: no number, and beyond both ends of its range
commands=$("$program" help | sed -n 's/^  \([a-z][a-z-]*\)  .*/\1/p')
n_flags=0
for command in $commands; do
    "$program" help "$command" | awk '/^  *(-., )?--/ { if (line) print line; line = "" } { line = line " " $0 } END { print line }' |
        sed -nE 's/^ *(-., )?--([a-z-]+) (N|X|BYTES) .*/\2 &/p' | sed -E 's/^([a-z-]+) .*\((-?[0-9]+)\.\.([0-9]+)[;)].*/\1 \2 \3/; s/^([a-z-]+) .*(N|BYTES) .*/\1 1 9007199254740993/' >flags
    while read -r flag low high; do
        n_flags=$((n_flags + 1))
        for value in nan NaN -nan inf -inf infinity 1e999 1x 0x10 1,5 + - . "" " 1" "1 " "$((low - 1))" "-1000000000" "$((high + 1))" 99999999999999999999; do
            case $command in
            info | tokenize | make-model) run 2 "$command" "--$flag=$value" nowhere ;;
            convert) run 2 convert "--$flag=$value" nowhere.safetensors out.safetensors ;;
            *) run 2 "$command" "--$flag=$value" ;;
            esac
            says "--$flag"
        done
    done <flags
done
checks=$((checks + 1))
[ $n_flags -ge 20 ] || fail "only $n_flags numeric flags were found in the help"
for steps in 0 1000000000; do job 2 -i in.ppm -o x.$png --steps $steps; says "1000"; done

# ---- no file, a folder, an empty file, no picture: for every input
: >empty
printf 'not a picture at all' >text
for bad in nowhere.png folder empty text; do
    job 4 -i $bad -o x.$png; says "$bad"
    job 4 --control-image $bad -o x.$png; says "$bad"
    job 4 -i in.ppm --init-latents $bad -o x.$png; says "$bad"
    run 4 generate --from-image $bad -i in.ppm -o x.$png; says "$bad"
    run 4 canny -i $bad -o x.$png; says "$bad"
    job 3 -i in.ppm --control-net $bad -o x.$png; says "$bad"
    job 3 -i in.ppm --vae $bad -o x.$png; says "$bad"
    job 3 -i in.ppm --vocab $bad -o x.$png; says "$bad"
    run 3 generate -m $bad -p x -i in.ppm -o x.$png; says "$bad"
    run 3 convert $bad x.safetensors; says "$bad"
    run 3 info $bad; says "$bad"
    run 3 tokenize --vocab $bad x; says "$bad"
done
job 4 -i in.ppm -o x.$png -p "$(printf 'a\377')"; says "UTF-8"

# ---- pictures: cut anywhere, far too large, and as small as can be
printf 'P6\n65535 65535\n255\n' >huge.ppm
printf 'P5\n99999999999 2\n255\n' >huge2.ppm
printf 'P6\n8193 8193\n255\n' >over.ppm
for bad in huge huge2 over; do job 4 -i $bad.ppm -o x.$png; says "$bad.ppm"; done
if [ $png = png ]; then
    run 0 canny -i in.ppm -o whole.png
    size=$(wc -c <whole.png) at=1
    while [ $at -lt "$size" ]; do
        head -c $at whole.png >cut.png
        run 4 canny -i cut.png -o x.png; says "cut.png"
        at=$((at + 7))
    done
    printf '\211\120\116\107\015\012\032\012\000\000\000\015\111\110\104\122\000\000\377\377\000\000\377\377\010\002\000\000\000\071\147\116\007' >huge.png
    job 4 -i huge.png -o x.png; says "65535"
fi
printf 'P6\n1 1\n255\nabc' >one.ppm
job 0 -i one.ppm -o one.$png; prints "64x64"
printf 'P6\n2000 1\n255\n' >thin.ppm && head -c 6000 /dev/zero >>thin.ppm
job 4 -i thin.ppm -o x.$png; says "2000 x 1"
run 0 canny -i thin.ppm -o thin.$png

# ---- models: cut, a tensor missing, misshaped or unknown, values that are no number
change() { sed "$1" kept.safetensors >changed.safetensors; cmp -s changed.safetensors kept.safetensors && fail "nothing was changed by $1"; }
again() { run "$1" generate -m changed.safetensors --vocab "$data/tiny/merges.txt" --device cpu -p x -i in.ppm -r 64 --steps 2 -s 7 -o "$2"; }
refused() { again 3 x.$png; says "$1"; }
for part in 1 4 100 100000 2000000; do
    head -c $part kept.safetensors >changed.safetensors
    refused changed.safetensors
done
change 's/model\.diffusion_model\.out\.2\.bias/model_diffusion_model.out.2.bias/'; refused "out.2.bias"
change 's/control_model\.zero_convs\.0\.0\.bias/contro1_model.zero_convs.0.0.bias/'; refused "zero_convs.0.0.bias"
change 's/model\.diffusion_model\.out\.2\.bias/model.diffusion_model.out.9.bias/'; refused "model.diffusion_model.out.9.bias"
change 's/control_model\.zero_convs\.0\.0\.bias/control_model.zero_convs.0.9.bias/'; refused "control_model.zero_convs.0.9.bias"
change 's/\("first_stage_model\.decoder\.conv_out\.weight":{"dtype":"F16","shape":\)\[3,\([0-9]*\),3,3\]/\1[\2,3,3,3]/'; refused "conv_out.weight"
change 's/\("model\.diffusion_model\.out\.2\.weight":{"dtype":"F16","shape":\)\[4,\([0-9]*\),3,3\]/\1[\2,4,3,3]/'; refused "out.2.weight"
change 's/first_stage_model\.encoder\.conv_in\.bias/first_stage_mode1.encoder.conv_in.bias/'
run 0 info changed.safetensors; prints "ignored            1"
again 0 ignored.$png

header=$(od -An -t u8 -N 8 kept.safetensors | tr -d ' ')
put() { # TENSOR BYTES-IN-OCTAL: its third value
    cp kept.safetensors changed.safetensors
    begin=$(head -c $((header + 8)) kept.safetensors | tr '}' '\n' | grep -aF "\"$1\":" | sed 's/.*"data_offsets":\[\([0-9]*\),.*/\1/')
    [ -n "$begin" ] || { fail "there is no tensor $1"; return; }
    printf "$2" | dd of=changed.safetensors bs=1 seek=$((8 + header + begin + 4)) conv=notrunc 2>/dev/null
}
for tensor in model.diffusion_model.out.2.weight control_model.input_blocks.0.0.weight first_stage_model.decoder.conv_out.weight \
    cond_stage_model.transformer.text_model.final_layer_norm.weight; do
    put $tensor '\000\176'; refused NaN
    put $tensor '\000\374'; refused infinite
done
absent x.$png x.safetensors

# ---- outputs: a folder, a folder that is not there, a path through a file, no room
for output in folder nowhere/x.$png in.ppm/x.$png folder/; do
    job 7 -i in.ppm -o $output
    job 7 -i in.ppm -o x.$png --save-latents $output
    job 7 -i in.ppm -o x.$png --save-control $output
    job 7 -i in.ppm -o x.$png --preview $output
    run 7 canny -i in.ppm -o $output
done
run 7 convert "$model" nowhere/x.safetensors
run 7 convert "$model" folder
run 2 convert kept.safetensors kept.safetensors
that cmp -s kept.safetensors "$model"
job 7 -i in.ppm -o /dev/full
job 7 -i in.ppm -o x.$png --save-control /dev/full
job 7 -i in.ppm -o x.$png --save-latents /dev/full
absent x.$png

# A file system of 64 KiB, and one that is read-only, mounted by nobody else to see: where the kernel lets us.
cat >small.sh <<'S'
top=$PWD
mount -t tmpfs -o size=64k none folder && cd folder || exit 99
code() { want=$1; shift; "$@" >"$top/out" 2>"$top/err" </dev/null; got=$?; [ $got -eq $want ] || { echo "exit $got, not $want: $*"; exit 1; }; }
none() { [ -z "$(ls -A)" ] || { echo "half-written: $(ls -A)"; exit 1; }; }
code 7 "$1" canny -i ../noise.ppm -o full.ppm; none
code 7 "$1" generate -m "$2" -p x -i ../in.ppm -s 1 --steps 2 -r 64 -W 192 -H 192 -o full.ppm; none
code 7 "$1" generate -m "$2" -p x -i ../in.ppm -s 1 --steps 1 --scheduler discrete -W 128 -H 64 -b 6 -o full.ppm
[ "$(ls -A | sed 's/^full-[1-6]\.ppm$//' | tr -d '\n')" = "" ] || { echo "half-written: $(ls -A)"; exit 1; } # those that had room are whole
for f in full-*.ppm; do [ "$(wc -c <"$f")" -eq $((14 + 128 * 64 * 3)) ] || { echo "$f is cut"; exit 1; }; done
rm full-*.ppm
code 7 "$1" convert "$2" full.safetensors; none
code 7 "$1" make-model --small full.safetensors; none
code 7 "$1" make-model --small --layout diffusers full; none
code 0 "$1" generate -m "$2" -p x -i ../in.ppm -s 1 --steps 2 -W 64 -H 64 -o fits.ppm
cd .. && mount -o remount,ro folder || exit 99
code 7 "$1" canny -i in.ppm -o folder/x.ppm
grep -q "Read-only file system" err || { echo "not said: Read-only"; exit 1; }
code 7 "$1" generate -m "$2" -p x -i in.ppm -o folder/fits.ppm
code 7 "$1" generate -m "$2" -p x -i in.ppm -o x.ppm --save-latents folder/x.npy
XDG_CACHE_HOME=$PWD/folder/cache code 0 "$1" generate -m "$2" -p x -i in.ppm -s 1 --steps 2 -r 64 -o x.ppm
rm x.ppm
S
sed -i 's/ -r 64 -W 192/ -W 192/' small.sh
awk 'BEGIN { srand(1); printf "P6\n256 256\n255\n"; for (i = 0; i < 196608; i++) printf "%c", 33 + int(rand() * 90) }' >noise.ppm
checks=$((checks + 1))
if unshare -rm true 2>/dev/null; then
    unshare -rm sh small.sh "$program" "$model" >small 2>&1
    case $? in 0) ;; 99) echo "skipped: no tmpfs can be mounted" ;; *) fail "a small or read-only disk: $(cat small)" ;; esac
else
    echo "skipped: a full and a read-only disk need user namespaces"
fi

# What a plain user may not read or write.
if [ "$(id -u)" -eq 0 ] && command -v setpriv >/dev/null && setpriv --reuid 65534 --regid 65534 --clear-groups "$program" --version >/dev/null 2>&1; then
    as() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
elif [ "$(id -u)" -ne 0 ]; then
    as() { "$@"; }
else
    as() { return 99; }
fi
chmod 755 "$work" && mkdir -m 777 open && mkdir -m 555 shut
cp in.ppm secret.ppm && cp kept.safetensors secret.safetensors && chmod 000 secret.*
: >open/locked.ppm && chmod 444 open/locked.ppm
denied() {
    want=$1
    shift
    checks=$((checks + 1))
    as "$program" "$@" >out 2>err </dev/null
    got=$?
    [ $got -eq 99 ] && { echo "skipped: no user to become"; return; }
    [ $got -eq "$want" ] || fail "exit $got, not $want: linework $*"
    grep -q "Permission denied" err || fail "standard error does not say: Permission denied"
}
XDG_CACHE_HOME=
denied 4 canny -i secret.ppm -o open/x.ppm
denied 4 generate -m "$model" -p x -i secret.ppm -o open/x.ppm
denied 3 generate -m secret.safetensors -p x -i in.ppm -o open/x.ppm
denied 3 info secret.safetensors
denied 7 canny -i in.ppm -o shut/x.ppm
denied 7 generate -m "$model" -p x -i in.ppm -o open/locked.ppm
denied 7 generate -m "$model" -p x -i in.ppm -o open/x.ppm --save-control shut/x.ppm
absent open/x.ppm shut/x.ppm

# ---- and after all of it a job works
job 0 -i in.ppm -o last.$png
finish
