"""CLIP's byte-level BPE over a merges file, by transformers' own tokenizer, and the learning of a few merges."""
import collections
import json
import os
import re
import tempfile

from transformers import CLIPTokenizer

LENGTH = 77


def letters():
    """CLIP's printable letter of each byte, in the order of its first 256 ids."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(other)}}


def learn(text, n):
    """n merges over the ASCII words of text; the most frequent pair first, ties by spelling."""
    words = collections.Counter(re.findall(r"[a-z]+", text))
    spelt = {w: tuple(w[:-1]) + (w[-1] + "</w>",) for w in words}
    merges = []
    while len(merges) < n:
        pairs = collections.Counter()
        for w, s in spelt.items():
            for pair in zip(s, s[1:]):
                pairs[pair] += words[w]
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        for w, s in spelt.items():
            joined, i = [], 0
            while i < len(s):
                step = 2 if s[i:i + 2] == best else 1
                joined.append("".join(s[i:i + step]))
                i += step
            spelt[w] = tuple(joined)
    return merges


def write_merges(path, merges):
    with open(path, "w", encoding="utf-8") as f:
        f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


class Tokenizer:
    def __init__(self, merges_path):
        with open(merges_path, encoding="utf-8") as f:
            merges = [line.split() for line in f.read().splitlines()[1:] if line.strip()]
        tokens = list(letters().values())
        tokens += [t + "</w>" for t in tokens] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "vocab.json"), "w", encoding="utf-8") as f:
                json.dump({t: i for i, t in enumerate(tokens)}, f)
            write_merges(os.path.join(folder, "merges.txt"), merges)
            with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as f:
                json.dump({"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH}, f)
            self.inner = CLIPTokenizer.from_pretrained(folder)
        self.size = len(tokens)

    def encode(self, text):
        """77 ids: start, tokens, end, padded with end."""
        return self.inner(text, padding="max_length", truncation=True, max_length=LENGTH)["input_ids"]
