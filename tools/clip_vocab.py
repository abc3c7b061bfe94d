#!/usr/bin/env python3
"""Vocabularies in CLIP's format: reading them, transformers' tokenizer for one, and training a small one.

    tools/clip_vocab.py train N_MERGES OUT TEXT…     a merges.txt of N_MERGES from the words of the texts

Ids: 256 bytes, 256 bytes + "</w>", the merges in order, start, end.
"""
import collections
import gzip
import re
import sys


def alphabet():
    """[byte in id order], {byte: its character}: printable bytes stand for themselves, others for U+0100 and on."""
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = {b: chr(b) for b in order}
    for b in range(256):
        if b not in characters:
            characters[b] = chr(256 + len(characters) - 188)
            order.append(b)
    return order, characters


def read(path, n_merges=48894):
    """{token: id}, [(left, right)]."""
    with (gzip.open(path) if path.endswith(".gz") else open(path, "rb")) as f:
        lines = f.read().decode().split("\n")[1:]
    merges = [tuple(line.split(" ")) for line in lines[:n_merges] if line]
    order, characters = alphabet()
    tokens = [characters[b] for b in order]
    tokens += [t + "</w>" for t in tokens] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    return {t: i for i, t in enumerate(tokens)}, merges


def transformers_tokenizer(path):
    from transformers import AddedToken, CLIPTokenizer

    vocab, merges = read(path)
    special = lambda text: AddedToken(text, normalized=True, special=True)
    start, end = special("<|startoftext|>"), special("<|endoftext|>")
    return CLIPTokenizer(vocab=vocab, merges=merges, bos_token=start, eos_token=end, unk_token=end, pad_token=end)


def train(texts, n_merges):
    """Plain BPE: the most frequent pair, ties by spelling, so that the same texts give the same file."""
    characters = alphabet()[1]
    counts = collections.Counter()
    for text in texts:
        counts.update(re.findall(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|[^\s\w]+", text.lower()))
    words = [([characters[b] for b in w.encode()], n) for w, n in counts.items()]
    for symbols, _ in words:
        symbols[-1] += "</w>"
    merges, made = [], set()
    while len(merges) < n_merges:
        pairs = collections.Counter()
        for symbols, n in words:
            for pair in zip(symbols, symbols[1:]):
                pairs[pair] += n
        pairs = {p: n for p, n in pairs.items() if "".join(p) not in made}
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        made.add("".join(best))
        for symbols, _ in words:
            i = 0
            while i + 1 < len(symbols):
                if (symbols[i], symbols[i + 1]) == best:
                    symbols[i : i + 2] = ["".join(best)]
                i += 1
    return merges


if __name__ == "__main__":
    if len(sys.argv) < 5 or sys.argv[1] != "train":
        sys.exit(__doc__)
    merges = train([open(p, encoding="utf-8").read() for p in sys.argv[4:]], int(sys.argv[2]))
    with open(sys.argv[3], "w", encoding="utf-8") as f:
        f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    print(f"{len(merges)} merges, a vocabulary of {len(merges) + 514}")
