#!/usr/bin/env python3
"""Writes src/text/unicode_data.c: letters, numbers, lower case and canonical (de)composition, as ranges.

The tokenizer must agree with transformers' CLIPTokenizer on every code point, and its parts do not know one Unicode
version but three: letters and numbers of 16, lower case of 17, normalisation of 9. Characters keep these properties
for ever once they are assigned, so each version is Python's own table plus what is newer than Python's, or minus what
is newer than the wanted version; both are listed here. tools/check_tokenizer.py holds every code point against the
tokenizers package. Any Python from 3.11 (Unicode 14) to 3.14 (Unicode 16) writes the same file.

    tools/unicode_tables.py > src/text/unicode_data.c
"""
import sys
import unicodedata


def code_points(text):
    for part in text.split():
        first, _, last = part.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1)


# Letters and numbers that came with Unicode 15, 15.1 and 16.
NEW_LETTERS = set(code_points("""
    1C89-1C8A A7CB-A7CD A7DA-A7DC 105C0-105F3 10D4A-10D65 10D6F-10D85 10EC2-10EC4 1123F-11240 11380-11389 1138B 1138E
    11390-113B5 113B7 113D1 113D3 11BC0-11BE0 11F02 11F04-11F10 11F12-11F33 1342F 13441-13446 13460-143FA 16100-1611D
    16D40-16D6C 18CFF 1B132 1B155 1DF25-1DF2A 1E030-1E06D 1E4D0-1E4EB 1E5D0-1E5ED 1E5F0 2B739 2EBF0-2EE5D 31350-323AF
    """))
NEW_NUMBERS = set(code_points("""
    10D40-10D49 116D0-116E3 11BF0-11BF9 11F50-11F59 16130-16139 16D70-16D79 1CCF0-1CCF9 1D2C0-1D2D3 1E4F0-1E4F9
    1E5F1-1E5FA
    """))
# Lower case that came with Unicode 16 and 17.
NEW_LOWER = {0x1C89: 0x1C8A, 0xA7CB: 0x264, 0xA7DC: 0x19B}
NEW_LOWER.update({c: c + 1 for c in code_points("A7CC A7CE A7D2 A7D4 A7DA")})
NEW_LOWER.update({c: c + 0x20 for c in code_points("10D50-10D65")})
NEW_LOWER.update({c: c + 0x1B for c in code_points("16EA0-16EB8")})
# Characters that Unicode 9 did not know, of those that have a combining class or a canonical decomposition.
UNKNOWN_MARKS = set(code_points("""
    7FD 897-89F 8CA-8D3 9FE C3C D3B-D3C EBA 1715 1ABF-1ACE 1DF6-1DFA A82C 10D24-10D27 10D69-10D6D 10EAB-10EAC 10EFD-10EFF
    10F46-10F50 10F82-10F85 11070 1133B 113CE-113D0 1145E 11839-1183A 1193D-1193E 11943 119E0 11A34 11A47 11A99 11D42
    11D44-11D45 11D97 11F41-11F42 1612F 16FF0-16FF1 1E08F 1E130-1E136 1E2AE 1E2EC-1E2EF 1E4EC-1E4EF 1E5EE-1E5EF
    """))
UNKNOWN_DECOMPOSITIONS = set(code_points("105C9 105E4 11383 11385 1138E 11391 113C5 113C7-113C8 11938 16121-16128 16D68-16D6A"))

CODES = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def ranges(value_of):
    """[first, last, value] of neighbours with the same value, without those whose value is 0."""
    out = []
    for c in CODES:
        v = value_of(c)
        if not v:
            continue
        if out and out[-1][1] == c - 1 and out[-1][2] == v:
            out[-1][1] = c
        else:
            out.append([c, c, v])
    return out


def char_class(c):
    kind = unicodedata.category(chr(c))[0]
    if c in NEW_LETTERS or kind == "L":
        return 1
    return 2 if c in NEW_NUMBERS or kind == "N" else 0


def combining_class(c):
    return 0 if c in UNKNOWN_MARKS else unicodedata.combining(chr(c))


def lower_runs():
    """[first, last, step, delta]: every step-th character from first to last has its lower case delta further on."""
    pairs = []
    for c in CODES:
        low = chr(c).lower()
        if c == 0x130:  # the only one that becomes two characters: unicode.c knows it
            continue
        to = NEW_LOWER.get(c, ord(low) if len(low) == 1 else c)
        if to != c:
            pairs.append((c, to - c))
    out = []
    for c, delta in pairs:
        if out and out[-1][3] == delta:
            first, last, step, _ = out[-1]
            gap = c - last
            if gap in (1, 2) and (first == last or gap == step):
                out[-1][1:3] = [c, gap]
                continue
        out.append([c, c, 1, delta])
    return out


def decompositions():
    """[character, first, second or 0], one level; and which of the pairs compose again."""
    rows, composed = [], []
    for c in CODES:
        d = unicodedata.decomposition(chr(c))
        if not d or d.startswith("<") or c in UNKNOWN_DECOMPOSITIONS:
            continue
        parts = [int(x, 16) for x in d.split()] + [0]
        rows.append((c, parts[0], parts[1]))
        if parts[1] and unicodedata.normalize("NFC", chr(c)) == chr(c):
            composed.append((parts[0], parts[1], len(rows) - 1))
    return rows, [row for _, _, row in sorted(composed)]


def table(kind, name, rows, per_line):
    print(f"\nconst {kind} {name}[] = {{")
    for i in range(0, len(rows), per_line):
        print("    " + " ".join(f"{r}," for r in rows[i : i + per_line]))
    print("};")
    print(f"const size_t {name}_n = sizeof {name} / sizeof *{name};")


def main():
    version = tuple(map(int, unicodedata.unidata_version.split(".")))
    if not (14, 0, 0) <= version <= (16, 0, 0):
        sys.exit(f"unicode_tables.py: this Python has Unicode {unicodedata.unidata_version}, wanted is 14 to 16")
    print("/* SPDX-License-Identifier: MIT")
    print(" * Written by tools/unicode_tables.py from the Unicode Character Database; do not edit. */")
    print("/* clang-format off */")
    print('#include "text/unicode.h"')
    row = lambda r: "{" + ",".join(f"0x{x:X}" if i < 2 else str(x) for i, x in enumerate(r)) + "}"
    table("lw_unicode_range", "lw_unicode_classes", [row(r) for r in ranges(char_class)], 7)
    table("lw_unicode_range", "lw_unicode_combining", [row(r) for r in ranges(combining_class)], 7)
    table("lw_unicode_lower_run", "lw_unicode_lower_runs", [row(r) for r in lower_runs()], 6)
    rows, composed = decompositions()
    hexes = lambda r: "{" + ",".join(f"0x{x:X}" for x in r) + "}"
    table("lw_unicode_decomposition", "lw_unicode_decompositions", [hexes(r) for r in rows], 6)
    table("uint16_t", "lw_unicode_compositions", composed, 18)


main()
