"""Scenes on their way to the device: processes that draw without end, and rings of what they drew."""
import multiprocessing as mp
import os
import queue

import numpy as np
import torch

import bpe
import scenes
from edges import canny

CHUNK = 48
FIRST_SEED = 1_000_000  # smaller seeds are kept for the evaluation
# Squares as often as the two others together.
PATTERN = [0, 1, 0, 2]
CAPTIONS = 3  # a scene
ITEMS = 24  # ids a scene may have, 0 among them
UNSURE = 255


def tokens_of(marked, tokenizer):
    """A marked caption's tokens, and at which of them each item's name ends (0: not named): row 0 is no item, but the
    caption's end, where the text that has no item (time, place) is summed up."""
    text, ends = scenes.nouns(marked)
    at = np.zeros(ITEMS, np.uint8)
    for i, end in ends.items():
        at[i] = length_of(text[:end], tokenizer) - 1
    at[0] = length_of(text, tokenizer)
    at[at >= bpe.LENGTH - 1] = 0
    return tokenizer(text), at


def length_of(text, tokenizer):
    return 1 + sum(len(tokenizer.word(w)) for w in bpe.words_of(text))


def cells(ids):
    """The item that fills at least half of a latent's 8x8 pixels, 0 where there is none at all, else UNSURE."""
    h, w = ids.shape
    ids = ids.reshape(h // 8, 8, w // 8, 8)
    out = np.where((ids == 0).all((1, 3)), 0, UNSURE).astype(np.uint8)
    for i in range(1, min(ITEMS, int(ids.max()) + 1)):
        out[(ids == i).sum((1, 3)) >= 32] = i
    return out


def draw_chunk(number, tokenizer):
    """images, tokens of CAPTIONS captions each, where they name what (tokens_of), and what is where (cells)."""
    size = scenes.SIZES[PATTERN[number % 4]]
    images = np.empty((CHUNK, *size, 3), np.uint8)
    tokens = np.empty((CHUNK, CAPTIONS, bpe.LENGTH), np.int16)
    named = np.empty((CHUNK, CAPTIONS, ITEMS), np.uint8)
    where = np.empty((CHUNK, size[0] // 8, size[1] // 8), np.uint8)
    for k in range(CHUNK):
        seed = FIRST_SEED + number * CHUNK + k
        sc = scenes.scene(seed, size)
        rng = np.random.Generator(np.random.PCG64([seed, 1]))
        images[k], where[k] = sc.image, cells(sc.ids)
        for j in range(CAPTIONS):
            tokens[k, j], named[k, j] = tokens_of(scenes.marked_caption(sc, rng), tokenizer)
    return images, tokens, named, where


def artist(first, step, folder, merges, ready, stop):
    os.nice(5)
    tokenizer = bpe.Tokenizer(merges)
    number = first
    while not stop.is_set():
        path = os.path.join(folder, f"{number}.npz")
        np.savez(path, *draw_chunk(number, tokenizer))
        while not stop.is_set():
            try:
                ready.put((number, path), timeout=1)
                break
            except queue.Full:
                pass
        number += step


class Farm:
    def __init__(self, workers, folder, merges, start=0):
        os.makedirs(folder, exist_ok=True)
        ctx = mp.get_context("spawn")
        self.ready, self.stop = ctx.Queue(32), ctx.Event()
        self.workers = [ctx.Process(target=artist, args=(start + i, workers, folder, merges, self.ready, self.stop), daemon=True)
                        for i in range(workers)]
        for w in self.workers:
            w.start()

    def get(self, wait):
        """(size's index, what draw_chunk gives) or None."""
        try:
            number, path = self.ready.get(timeout=600) if wait else self.ready.get_nowait()
        except queue.Empty:
            return None
        with np.load(path) as z:
            out = PATTERN[number % 4], *(torch.from_numpy(z[k]) for k in z.files)
        os.unlink(path)
        return out

    def close(self):
        self.stop.set()
        for w in self.workers:
            w.terminate()
            w.join()


class Ring:
    """The newest rows of several tensors, on the device."""

    def __init__(self, capacity):
        self.capacity, self.count, self.at, self.rows = capacity, 0, 0, None

    def add(self, *rows):
        if self.rows is None:
            self.rows = [torch.empty((self.capacity, *r.shape[1:]), dtype=r.dtype, device=r.device) for r in rows]
        n = rows[0].shape[0]
        if self.at + n > self.capacity:
            self.at = 0
        for mine, r in zip(self.rows, rows):
            mine[self.at:self.at + n] = r
        self.at += n
        self.count = max(self.count, self.at)

    def pick(self, n):
        i = torch.randint(self.count, (n,), device=self.rows[0].device)
        return [r[i] for r in self.rows]


def cut(size, rows, scales):
    """The same random square of each row's tensors: size latents wide, which are scale steps each in a tensor; all, if
    a side is not longer."""
    n, dev = rows[0].shape[0], rows[0].device
    h, w = rows[0].shape[-2] // scales[0], rows[0].shape[-1] // scales[0]
    y, x = (torch.randint(max(side - size, 0) + 1, (n, 1), device=dev) for side in (h, w))
    out = []
    for r, s in zip(rows, scales):
        ys = (y * s + torch.arange(min(size, h) * s, device=dev))[:, :, None]
        xs = (x * s + torch.arange(min(size, w) * s, device=dev))[:, None, :]
        row = torch.arange(n, device=dev)[:, None, None]
        out.append(r[row, ys, xs] if r.ndim == 3 else r.permute(0, 2, 3, 1)[row, ys, xs].permute(0, 3, 1, 2))
    return out


def edge_maps(images):
    """bit 0: the edges; bit 1: what another photographer or draughtsman might have got."""
    n, dev = images.shape[0], images.device
    exact = canny(images)
    x = images.float()
    noise = (torch.randn(n, 1, 1, 1, device=dev) * 7).abs() * (torch.rand(n, 1, 1, 1, device=dev) < .7)
    gain = torch.empty(n, 1, 1, 1, device=dev).uniform_(.6, 1.35)
    bias = torch.empty(n, 1, 1, 1, device=dev).uniform_(-25, 25)
    soft = torch.nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), 3, 1, 1, count_include_pad=False).permute(0, 2, 3, 1)
    blur = (torch.rand(n, 1, 1, 1, device=dev) < .35) * torch.rand(n, 1, 1, 1, device=dev)
    x = x + blur * (soft - x)
    x = (x - 128) * gain + 128 + bias + noise * torch.randn_like(x)
    low = torch.randint(40, 140, (n,), device=dev)
    other = canny(x.clamp(0, 255).to(torch.uint8), low, low + torch.randint(40, 140, (n,), device=dev))
    return exact.to(torch.uint8) | (other.to(torch.uint8) << 1)


def blocks(n, h, w, share, device, cell=16):
    """A random half of the picture's cells or less, as a mask [n,h,w]: share is each picture's part."""
    grid = torch.rand(n, 1, h // cell, w // cell, device=device) < share.view(n, 1, 1, 1)
    return torch.nn.functional.interpolate(grid.float(), size=(h, w), mode="nearest")[:, 0] > 0


def hints(maps):
    """Control images [N,3,H,W] of 0 and 1 from edge_maps(): mostly exact, some with lost, false or thick lines."""
    n, h, w = maps.shape
    dev = maps.device

    def some(p):
        return (torch.rand(n, 1, 1, device=dev) < p)

    e = torch.where(some(.3), maps & 2, (maps & 1) * 2) > 0
    lost = blocks(n, h, w, torch.rand(n, device=dev) * .5, dev) & some(.15)
    specks = (torch.rand(n, h, w, device=dev) < torch.rand(n, 1, 1, device=dev) * .25) & some(.12)
    false = blocks(n, h, w, torch.rand(n, device=dev) * .25, dev) & some(.1) & (maps.roll(1, 0) > 0)
    e = (e & ~lost & ~specks) | false
    e = e.to(torch.float32)[:, None]
    thick = torch.nn.functional.max_pool2d(e, 3, 1, 1)
    e = torch.where(some(.06)[:, None], thick, e)
    return e.expand(n, 3, h, w)
