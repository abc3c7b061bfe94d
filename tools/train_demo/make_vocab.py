"""Trains merges.txt on the captions. Usage: make_vocab.py OUT [MERGES]"""
import sys
from collections import Counter

import numpy as np

import bpe
import scenes

# Words that people may write and no caption has: so that they are few tokens rather than many.
EXTRA = """the of and in on at with my your his her this that is are was very one four five six seven ten red light
dark sky sea water wood old new nice happy sunny rainy cold warm morning noon evening winter summer spring autumn man woman
child boy girl people cow horse pig chicken mouse bear lion tiger elephant monkey fox wolf frog snake spider dragon flowers
garden forest park city town village road street bridge river lake mountain island beach desert fence door window roof wall
grass leaf leaves rock stone sand snow rain fire smoke cloud clouds table chair bed sofa lamp plate bowl glass bread cheese
orange strawberry tomato carrot best quality extremely detailed longbody lowres bad anatomy hands missing fingers extra digit
fewer digits cropped worst low colors clean lines sharp beautiful photo photograph drawing sketch painting cartoon style
bicycle bike motorcycle van tractor helicopter airplane teal turquoise golden gold silver grey violet magenta crimson navy
standing sitting flying swimming running front behind next near under above left right middle between inside outside""".split()


def main():
    out, n = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 510
    counts = Counter()
    for seed in range(6000):
        sc = scenes.scene(10_000_000 + seed, size=(256, 256))
        rng = np.random.Generator(np.random.PCG64(seed))
        for _ in range(3):
            counts.update(bpe.words_of(scenes.caption(sc, rng)))
    # Roots, so that rare names of things become one token too.
    soft = {w: max(3, int(c ** 0.5)) for w, c in counts.items()}
    for w in EXTRA:
        soft[w] = max(soft.get(w, 0), 2)
    merges = bpe.train(soft, n)
    with open(out, "w", encoding="utf-8") as f:
        f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    t = bpe.Tokenizer(out)
    split = [w for w in counts if len(t.word(w)) > 1]
    print(len(merges), "merges,", t.size, "rows,", len(counts), "words;", len(split), "of more than one token:", *split)


if __name__ == "__main__":
    main()
