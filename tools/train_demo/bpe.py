"""CLIP's byte-level BPE: training of the merges, and the tokenizer."""
import re
from collections import Counter

LENGTH = 77
# CLIP's split: its special tokens, English endings, runs of letters, single digits, runs of anything else.
SPLIT = re.compile(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")


def byte_letters():
    """Each byte as one printable letter, in the order of CLIP's ids."""
    kept = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    letters = {b: chr(b) for b in kept}
    for b in range(256):
        if b not in letters:
            letters[b] = chr(256 + len(letters) - len(kept))
    return letters


def words_of(text):
    return SPLIT.findall(re.sub(r"\s+", " ", text).strip().lower())


def spell(word, letters):
    s = [letters[b] for b in word.encode("utf-8")]
    s[-1] += "</w>"
    return tuple(s)


def merge(word, pair):
    out, i = [], 0
    while i < len(word):
        if i + 1 < len(word) and (word[i], word[i + 1]) == pair:
            out.append(word[i] + word[i + 1])
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)


def train(counts, n):
    """The n merges that are most frequent, one after the other; ties go to the smaller pair, so runs agree."""
    letters = byte_letters()
    words = [(spell(w, letters), c) for w, c in sorted(counts.items())]
    merges = []
    while len(merges) < n:
        pairs = Counter()
        for w, c in words:
            for p in zip(w, w[1:]):
                pairs[p] += c
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        words = [(merge(w, best), c) for w, c in words]
    return merges


class Tokenizer:
    def __init__(self, path):
        with open(path, encoding="utf-8") as f:
            lines = f.read().split("\n")[1:]
        self.merges = [tuple(line.split()) for line in lines if line]
        self.letters = byte_letters()
        tokens = list(self.letters_in_order())
        tokens += [t + "</w>" for t in tokens]
        tokens += ["".join(m) for m in self.merges] + ["<|startoftext|>", "<|endoftext|>"]
        self.ids = {t: i for i, t in enumerate(tokens)}
        self.size = len(tokens)
        self.start, self.end = self.size - 2, self.size - 1
        self.rank = {m: i for i, m in enumerate(self.merges)}
        self.cache = {"<|startoftext|>": [self.start], "<|endoftext|>": [self.end]}

    def letters_in_order(self):
        kept = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
        rest = [b for b in range(256) if b not in set(kept)]
        return [self.letters[b] for b in kept + rest]

    def word(self, word):
        if word not in self.cache:
            w = spell(word, self.letters)
            while len(w) > 1:
                pair = min(zip(w, w[1:]), key=lambda p: self.rank.get(p, 1 << 30))
                if pair not in self.rank:
                    break
                w = merge(w, pair)
            self.cache[word] = [self.ids[t] for t in w]
        return self.cache[word]

    def __call__(self, text):
        ids = [self.start]
        for w in words_of(text):
            ids += self.word(w)
        ids = ids[:LENGTH - 1] + [self.end]
        return ids + [self.end] * (LENGTH - len(ids))
