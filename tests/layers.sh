#!/bin/sh
# Who may see whom (ARCHITECTURE.md), read off the sources and the built library:
#   #includes point down only; no #if and no backend's name above src/ops; all symbols are ours by name, the exported ones are those
#   of linework.h; no mutable globals but the fault counter; PTX and shared memory in one file; every header compiles alone, the public
#   one in C99, C11 and C++17.
# usage: layers.sh SOURCE_DIR C_COMPILER SHARED_LIBRARY STATIC_LIBRARY SANITIZER
set -u
source=$1 cc=$2 shared=$3 static=$4 sanitizer=$5
cd "$source" || exit 2
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
failures=$work/failures
: >"$failures"
fail() { echo "layers: $*" | tee -a "$failures"; }

# ---- includes: folder, then what it may see: folders or single headers
sees() {
    case $1 in
    base) echo base ;;
    image | text | weights | ops) echo "$1 base" ;;
    cpu | cuda) echo "$1 ops base" ;;
    nets) echo nets ops weights base ;;
    pipe) echo pipe nets image text base ops/backend.h ops/row.h ops/tune.h ops/pass.h ;; # a session binds plans, fills rows, tunes; recipes
    api) echo pipe base cpu cuda ;;                                 # names the backends
    bench) echo bench gpu base weights ops cpu cuda nets pipe ;; # it measures what is inside
    *) echo "$1" ;;
    esac
}

check_include() { # folder, file, included
    folder=$1 file=$2 included=$3
    [ "$included" = linework.h ] && return
    for allowed in $(sees "$folder"); do
        case $included in
        "$allowed" | "$allowed"/*) return ;;
        */*) ;;
        *) [ -e "${file%/*}/$included" ] && return ;; # beside it: cli/cli.h, bench/gpu/gpu.cuh
        esac
    done
    fail "$file includes $included, which $folder must not see"
}

for file in $(find src cli server bench -name '*.c' -o -name '*.h' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null); do
    case $file in
    src/*/*) folder=${file#src/} ;;
    src/*) folder=${file#src/} folder=${folder%.*} ;;
    *) folder=$file ;;
    esac
    folder=${folder%%/*}
    for included in $(sed -n 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*"\([^"]*\)".*/\1/p' "$file"); do
        check_include "$folder" "$file" "$included"
    done
done

# ---- above the seam: no #if but a header's own guard, no backend by name (the public names of devices and generators aside)
for file in src/nets/*.[ch] src/pipe/*.[ch]; do
    guard=$(sed -n 's/^#ifndef \(LW_[A-Z0-9_]*_H\)$/\1/p' "$file" | head -n 1)
    "$cc" -fpreprocessed -dD -E -P "$file" 2>/dev/null >"$work/bare" # without comments
    grep -nE '^[[:space:]]*#[[:space:]]*(if|ifdef|ifndef|elif)' "$work/bare" | grep -v "ifndef ${guard:-none}\$" >"$work/found"
    while read -r line; do fail "$file: $line: no #if above src/ops"; done <"$work/found"
    grep -nE '\<(lw_cpu_|lw_cuda_|lw_ref_|ref_|dnnl|onednn|cuda|cublas|cudnn|cu_)[A-Za-z_0-9]*' "$work/bare" |
        sed 's/"[^"]*"/""/g' | grep -E '\<(lw_cpu_|lw_cuda_|lw_ref_|ref_|dnnl|onednn|cuda|cublas|cudnn|cu_)' |
        grep -vE '\<lw_cpu_count\>' >"$work/found"
    while read -r line; do fail "$file: $line: names a backend"; done <"$work/found"
done

# ---- kernels: what tests/simulator cannot run is in one file, which it replaces
grep -nE '\<(asm|__shared__)\>' src/cuda/*.cu src/cuda/*.cuh src/cuda/*.[ch] | grep -v '^src/cuda/ptx.cuh:' >"$work/found"
while read -r line; do fail "$line: belongs in src/cuda/ptx.cuh"; done <"$work/found"

# ---- symbols
nm -D --defined-only "$shared" | awk '$2 ~ /[TDBRVW]/ {print $3}' | grep -vE '^(__asan|__odr_asan|__ubsan|__sanitizer|_init$|_fini$)' | sort >"$work/exported"
tr '\n' ' ' <include/linework.h | grep -oE 'LW_API [^;{#]*;' | sed -E 's/^LW_API ([^(]*[ *])([a-z_0-9]+)\(.*/\2/' | sort >"$work/declared"
[ -s "$work/declared" ] || fail "no declaration was found in linework.h"
for name in $(comm -23 "$work/exported" "$work/declared"); do fail "$name is exported and not in linework.h"; done
for name in $(comm -13 "$work/exported" "$work/declared"); do fail "$name is in linework.h and not exported"; done
# _Z: what nvcc makes of kernels in anonymous namespaces, hidden in the shared library; nvtx: weak, NVTX's header's own
nm -g --defined-only "$static" 2>/dev/null | awk 'NF == 3 {print $3}' | grep -vE '^(lw_|ref_|cu_|_Z|__asan|__odr_asan|__ubsan|__sanitizer|__tsan)' |
    grep -vE '^(DW\.ref|nvtx|InitializeInjectionNvtx2_fnptr$)' >"$work/found"
while read -r name; do fail "$name has external linkage and does not begin with lw_, ref_ or cu_"; done <"$work/found"
if [ -z "$sanitizer" ]; then # _Z, __nv, __fat: how nvcc registers kernels; NVTX's table of a profiler's functions
    objdump -t "$static" | awk '($4 == ".data" || $4 == ".bss" || $4 ~ /^\.(data|bss)\.[a-z_]/) && $4 !~ /rel\.ro/ && $NF !~ /^\./ {print $NF}
                                ($3 == ".data" || $3 == ".bss") && $NF !~ /^\./ {print $NF}' | grep -vE '^(fault_at|fault_calls|fault_again|_Z.*|__nv.*|__fat.*|nvtxGlobals_v3|InitializeInjectionNvtx2_fnptr)$' | sort -u >"$work/found"
    while read -r name; do fail "$name is a mutable global: the library keeps none"; done <"$work/found"
fi

# ---- headers
compile() { # what, flags…; reads the source from stdin
    what=$1
    shift
    "$cc" "$@" -fsyntax-only -Wall -Wextra -pedantic -Werror -Iinclude - 2>"$work/errors" || fail "$what: $(head -n 3 "$work/errors" | tr '\n' ' ')"
}
public='#include "linework.h"
int main(void) { lw_error err; err.code = LW_OK; return (int)err.code; }'
echo "$public" | compile "linework.h as C99" -x c -std=c99
echo "$public" | compile "linework.h as C11" -x c -std=c11
if echo 'int main() {}' | "$cc" -x c++ -fsyntax-only - 2>/dev/null; then
    echo "$public" | compile "linework.h as C++17" -x c++ -std=c++17
else
    echo "layers: skipped: $cc has no C++ compiler beside it, linework.h as C++17 was not compiled"
fi
for header in $(find src -name '*.h' ! -path 'src/cuda/*'); do
    echo "#include \"${header#src/}\"
extern int unused;" | compile "$header alone" -x c -std=c11 -D_GNU_SOURCE -Isrc
done

n=$(wc -l <"$failures")
echo "layers: $n failed"
[ "$n" -eq 0 ]
