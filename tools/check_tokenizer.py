#!/usr/bin/env python3
"""Holds linework's tokenizer against transformers 5's CLIPTokenizer: every code point, then generated strings.

    tools/check_tokenizer.py [--vocab MERGES] [--strings 100000] [--seed 0] [--library build/lib/liblinework.so]
    tools/check_tokenizer.py --vocab tests/data/text/merges.txt --fixture tests/data/text/tokens.jsonl

Without --vocab `linework fetch-vocab` (beside the library) brings the real one into a temporary folder.
Needs transformers >= 5. Exit 1 on any difference. --fixture writes a small set of strings with transformers' ids,
without the padding, for tests/unit/bpe_test.c.

The special tokens are declared as in the tokenizer folders of SD1.5, "normalized": they match after lower case.
"""
import argparse
import ctypes
import json
import os
import random
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__))))
import clip_vocab

WORDS = """a cat sat on the mat best quality, extremely detailed longbody lowres bad anatomy it's don't we'll I'M they'd
they've you're rock'n'roll 3d 4k 1girl masterpiece (house:1.2) trending_on_artstation <lora:x> 'tis '' 's's 'S 'Re""".split()
SPECIAL = ["<|startoftext|>", "<|endoftext|>", "<|StartOfText|>", "<|ENDOFTEXT|>", "<|endoftext|", "|endoftext|>", "<|", "|>"]
SPACES = [chr(c) for c in [*range(9, 14), 28, 29, 30, 31, 32, 0x85, 0xA0, 0x1680, 0x180E, *range(0x2000, 0x200E), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000, 0xFEFF]]
MARKS = [chr(c) for c in [*range(0x300, 0x370), 0x5B0, 0x5BF, 0x64B, 0x651, 0x93C, 0x94D, 0xE38, 0xE48, 0xF71, 0xF72, 0xF74, 0x1161, 0x1175, 0x11A8, 0x11C2,
                         0x1DC0, 0x20D0, 0x3099, 0x309A, 0xFE20, 0x1D165, 0x1D16E]]
HANGUL = [chr(c) for c in [*range(0x1100, 0x1113), *range(0x1161, 0x1176), *range(0x11A7, 0x11C3), 0xAC00, 0xAC01, 0xAC1C, 0xD7A3]]
BLOCK = 128  # code points drawn together: a Unicode block or a part of one


def code_points():
    return [c for c in range(1, 0x110000) if not 0xD800 <= c < 0xE000]


def strings(n, seed):
    """Over all blocks: each string takes its characters from one or a few of them, and from what is known to be hard."""
    rng = random.Random(seed)
    blocks = [b for b in range(0, 0x110000, BLOCK) if not 0xD800 <= b < 0xE000]
    dense = [b for b in blocks if b < 0x3400 or 0xA000 <= b < 0xAC00 or 0xF900 <= b < 0x12000 or 0x16000 <= b < 0x19000 or 0x1B000 <= b < 0x20000]
    char = lambda b: chr(rng.randrange(max(b, 1), b + BLOCK))
    for i in range(n):
        block = blocks[i % len(blocks)] if i % 3 == 0 else rng.choice(dense)
        other = rng.choice(dense)
        parts = []
        for _ in range(rng.choice([1, 2, 3, 5, 8, 13, 30, 60, 120]) if i % 50 else 300):
            kind = rng.random()
            if kind < 0.45: parts.append(char(block))
            elif kind < 0.55: parts.append(char(other))
            elif kind < 0.68: parts.append("".join(rng.choice(MARKS) for _ in range(rng.randrange(1, 4))))
            elif kind < 0.76: parts.append(rng.choice(SPACES) * rng.randrange(1, 3))
            elif kind < 0.84: parts.append(rng.choice(WORDS))
            elif kind < 0.88: parts.append(rng.choice(HANGUL))
            elif kind < 0.90: parts.append(rng.choice(SPECIAL))
            elif kind < 0.95: parts.append(rng.choice("'\"!?.,-_()0123456789:;/\\#@"))
            else: parts.append(rng.choice("aAeEiIoOuUcCnNsSzZ\u0130\u0131\u017f\u212a\u1e9e\u03a3\u0345"))
        yield "".join(parts)


def real_vocabulary(library, folder):
    program = os.path.join(os.path.dirname(library), "..", "bin", "linework")
    subprocess.run([program, "fetch-vocab"], env=os.environ | {"XDG_CACHE_HOME": folder}, stdout=sys.stderr, check=True)
    return os.path.join(folder, "linework", "merges.txt")


def write_fixture(path, vocab):
    theirs, kept, room = clip_vocab.transformers_tokenizer(vocab), [], 190_000
    blocks = [b for b in range(0, 0x110000, 256) if not 0xD800 <= b < 0xE000 and any(chr(c).isprintable() for c in range(b, b + 256))]
    rng = random.Random(0)
    # A short string for each block with anything in it, then the generator's own, the shorter ones.
    texts = ["", " ", "a", *WORDS, " ".join(WORDS), " ".join(WORDS[:9]) * 12, *SPECIAL, " ".join(SPECIAL), *(f"x{s}y" for s in SPACES)]
    texts += ["".join(chr(rng.randrange(max(b, 1), b + 256)) for _ in range(3)) for b in blocks if b < 0x20000 for _ in range(4)]
    texts += ["".join(chr(rng.randrange(b, b + 256)) for _ in range(2)) for b in blocks[::8] if b >= 0x20000]
    texts += [t for t in strings(20000, 1) if len(t) < 16] + [t for t in strings(300, 2) if len(t) > 60][:20]
    for text in dict.fromkeys(texts):
        ids = theirs(text, truncation=True, max_length=77)["input_ids"]
        row = json.dumps([text, ids], ensure_ascii=False, separators=(",", ":")) + "\n"
        if len(row.encode()) <= room:
            room -= len(row.encode())
            kept.append(row)
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(kept)
    print(f"{len(kept)} strings, {190_000 - room} bytes")


class Linework:
    class Error(ctypes.Structure):
        _fields_ = [("code", ctypes.c_int), ("message", ctypes.c_char * 1000)]

    def __init__(self, library, vocab):
        self.lib, self.handle, self.err = ctypes.CDLL(library), ctypes.c_void_p(), self.Error()
        self.ids = (ctypes.c_int32 * 77)()
        if self.lib.lw_tokenizer_open(ctypes.byref(self.handle), vocab.encode(), 0, ctypes.byref(self.err)):
            sys.exit(self.err.message.decode())

    def __call__(self, text):
        if self.lib.lw_tokenize(self.handle, text.encode(), self.ids, None, ctypes.byref(self.err)):
            sys.exit(f"{text!r}: {self.err.message.decode()}")
        return list(self.ids)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--vocab")
    parser.add_argument("--strings", type=int, default=100000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--library", default="build/lib/liblinework.so")
    parser.add_argument("--fixture")
    args = parser.parse_args()
    if args.fixture:
        return write_fixture(args.fixture, args.vocab)
    with tempfile.TemporaryDirectory() as folder:
        vocab = args.vocab or real_vocabulary(args.library, folder)
        ours, theirs = Linework(args.library, vocab), clip_vocab.transformers_tokenizer(vocab)
    bad = n = cut = 0
    singles = [t for c in code_points() for t in (chr(c), f"a{chr(c)}1")]
    batches = [singles[i : i + 2000] for i in range(0, len(singles), 2000)]
    many = list(strings(args.strings, args.seed))
    batches += [many[i : i + 1000] for i in range(0, len(many), 1000)]
    for batch in batches:
        wanted = theirs(batch, padding="max_length", truncation=True, max_length=77)["input_ids"]
        for text, want in zip(batch, wanted):
            n += 1
            cut += want[-2] != want[-1]
            if ours(text) != want:
                bad += 1
                if bad <= 20:
                    print(f"differs: {ascii(text)}\n  wanted {want}\n  got    {ours(text)}")
    print(f"{n} strings ({len(singles)} of single code points, {cut} cut at 77): {bad} differences")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
