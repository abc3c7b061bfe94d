#!/bin/sh
# SPDX-License-Identifier: MIT
# install.sh PROGRAM DATA SOURCES BUILD: what is installed works from any folder, and the header is clean by itself.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
sources=$3 build=$4
for standard in c99 c11; do
    checks=$((checks + 1))
    echo '#include <linework.h>' >header.c
    cc -std=$standard -Wall -Wextra -Wpedantic -Werror -I"$sources/include" -fsyntax-only header.c 2>err || fail "linework.h as $standard"
done
if command -v c++ >/dev/null; then
    checks=$((checks + 1))
    cp header.c header.cc
    c++ -std=c++17 -Wall -Wextra -Wpedantic -Werror -I"$sources/include" -fsyntax-only header.cc 2>err || fail "linework.h as C++17"
fi
[ -d "$sources/models/demo" ] || { finish; exit; }

checks=$((checks + 1))
cmake --install "$build" --prefix "$work/inst" >out 2>err || fail "cmake --install"
lib=$(dirname "$(find inst -name liblinework.a)")
for file in bin/linework include/linework.h share/man/man1/linework.1 share/bash-completion/completions/linework; do
    that test -s "inst/$file"
done
if command -v mandoc >/dev/null; then
    checks=$((checks + 1))
    mandoc -T lint -W style inst/share/man/man1/linework.1 >out 2>err || { fail "the manual page"; head -5 out; }
fi
if command -v bash >/dev/null; then
    cat >complete.bash <<'B'
set -eu
. inst/share/bash-completion/completions/linework
try() { # WANT WORDS...: the last word completed
    want=$1 && shift
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    _linework
    [ "${COMPREPLY[*]}" = "$want" ] || { echo "$*: ${COMPREPLY[*]}, not $want" >&2; exit 1; }
}
try generate linework gen
try --scheduler linework generate --sche
try karras linework generate --scheduler k
try "reference discrete karras" linework generate --scheduler ""
try "--dtype" linework convert --d
try in.ppm linework info in.p
B
    checks=$((checks + 1))
    bash complete.bash 2>err || fail "bash completion"
fi
checks=$((checks + 1))
PKG_CONFIG_PATH="$lib/pkgconfig" pkg-config --define-variable=prefix="$work/inst" --cflags --libs linework >flags 2>err || fail "pkg-config"
checks=$((checks + 1))
# shellcheck disable=SC2046
cc -std=c99 "$sources/examples/canny2image.c" $(cat flags) -Wl,-rpath,"$work/$lib" -o example 2>err || fail "the example against what is installed"
checks=$((checks + 1))
./example >out 2>err
[ $? -eq 2 ] || fail "the installed library does not start"
checks=$((checks + 1))
PKG_CONFIG_PATH="$lib/pkgconfig" pkg-config --static --define-variable=prefix="$work/inst" --cflags --libs linework | sed 's/-llinework/-l:liblinework.a/' >flags 2>err || fail "pkg-config --static"
checks=$((checks + 1))
# shellcheck disable=SC2046
cc -std=c99 "$sources/examples/canny2image.c" $(cat flags) -o example_static 2>err || fail "the example against the static library"
checks=$((checks + 1))
./example_static >out 2>err
[ $? -eq 2 ] || fail "the static library does not start"
program=$work/inst/bin/linework
run 0 --version
if [ -f inst/share/linework/models/demo/model.safetensors ]; then run 0 tokenize x; fi
finish
