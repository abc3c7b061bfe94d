#!/usr/bin/env python3
"""Writes tests/data/image: what OpenCV gives for pictures that both sides make from a seed (hashes), and small files of
every kind that the codecs know, with the pixels they must give. Needs opencv-python-headless==4.11.*, numpy, pillow."""
import os
import random
import struct
import sys
import zlib

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from image_pictures import KINDS, fnv, picture

OUT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests/data/image")


def canny_cases():
    sizes = [(1, 1), (1, 9), (9, 1), (2, 2), (3, 5), (17, 3), (31, 31), (64, 48), (65, 33), (100, 75), (128, 96)]
    pairs = [(100, 200), (50, 150), (200, 100), (1, 255), (0, 0), (30.7, 60.2), (255, 255), (400, 900)]
    lines = ["# kind seed width height channels low high: edge pixels, FNV-1a of the map (cv2.Canny)"]
    for i in range(72):
        kind, (w, h), (low, high), c = KINDS[i % 6], sizes[i % 11], pairs[i % 8], (1, 3)[(i // 6) % 2]
        a = picture(kind, 100 + i, w, h, c)
        edges = cv2.Canny(a if c == 3 else a[:, :, 0], low, high)
        lines.append(f"{i % 6} {100 + i} {w} {h} {c} {low} {high} {np.count_nonzero(edges)} {fnv(edges):016x}")
    open(f"{OUT}/canny.txt", "w").write("\n".join(lines) + "\n")


def resize_cases():
    lines = ["# kind seed width height channels to_width to_height: FNV-1a of the pixels (cv2.resize, Lanczos-4 where the short side grows, area else)"]
    sizes = [(1, 1, 64, 64), (1, 1, 1, 1), (5, 3, 192, 128), (40, 30, 128, 64), (63, 64, 64, 64), (96, 64, 192, 128),  # Lanczos
             (33, 50, 64, 128), (50, 40, 7, 60), (64, 80, 65, 65),
             (128, 64, 64, 64), (128, 128, 64, 64), (192, 128, 64, 64), (192, 192, 64, 64), (256, 64, 32, 16), (90, 60, 1, 1),  # whole
             (100, 75, 64, 64), (129, 65, 64, 64), (200, 131, 97, 64), (130, 64, 129, 64), (300, 70, 64, 64), (77, 99, 76, 98),  # shares
             (64, 76, 64, 128), (76, 64, 128, 64), (80, 70, 128, 64), (64, 90, 63, 91), (100, 64, 192, 64), (65, 64, 64, 640)]  # a side grows
    for i, (w, h, to_w, to_h) in enumerate(sizes):
        for c in (1, 3, 4):
            kind = (i + c) % 6
            a = picture(KINDS[kind], i, w, h, c)
            out = cv2.resize(a, (to_w, to_h), interpolation=cv2.INTER_LANCZOS4 if min(to_w, to_h) > min(w, h) else cv2.INTER_AREA)
            lines.append(f"{kind} {i} {w} {h} {c} {to_w} {to_h} {fnv(out):016x}")
    open(f"{OUT}/resize.txt", "w").write("\n".join(lines) + "\n")


# ---- PNG of every kind, by an encoder of our own: Pillow writes neither interlaced nor many of these

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def pack_row(row, depth):
    row = row.reshape(-1)
    if depth == 16:
        return row.astype(">u2").tobytes()
    if depth == 8:
        return row.astype(np.uint8).tobytes()
    bits = (row[:, None] >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.reshape(-1).astype(np.uint8)).tobytes()


def filter_row(kind, row, above, bpp):
    a = np.frombuffer(row, np.uint8).astype(int)
    b = np.frombuffer(above, np.uint8).astype(int)
    left, corner = (np.concatenate([np.zeros(bpp, int), v])[:len(v)] for v in (a, b))
    if kind == 4:
        p = left + b - corner
        d = [abs(p - left), abs(p - b), abs(p - corner)]
        guess = np.where((d[0] <= d[1]) & (d[0] <= d[2]), left, np.where(d[1] <= d[2], b, corner))
    else:
        guess = (0, left, b, (left + b) // 2)[kind]
    return bytes([kind]) + ((a - guess) & 255).astype(np.uint8).tobytes()


def png(samples, colour, depth, interlace=0, palette=None, trns=None, before=b"", after=b"", pieces=1):
    h, w, c = samples.shape
    passes = [(0, 0, 1, 1)] if not interlace else [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    raw, bpp = b"", max(1, c * depth // 8)
    for x0, y0, dx, dy in passes:
        part = samples[y0::dy, x0::dx]
        if part.shape[0] == 0 or part.shape[1] == 0:
            continue
        above = None
        for i, row in enumerate(part):
            row = pack_row(row, depth)
            raw += filter_row((i + len(raw)) % 5, row, above or bytes(len(row)), bpp)
            above = row
    z = zlib.compress(raw, 9)
    cuts = [len(z) * i // pieces for i in range(pieces + 1)]
    out = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, interlace)) + before
    out += chunk(b"PLTE", palette.astype(np.uint8).tobytes()) if palette is not None else b""
    out += chunk(b"tRNS", trns) if trns is not None else b""
    for a, b in zip(cuts, cuts[1:]):
        out += chunk(b"IDAT", z[a:b])
    return out + after + chunk(b"IEND", b"")


def png_cases():
    """name -> (bytes, the pixels that must come out)"""
    rng = np.random.default_rng(5)
    cases = {}
    for interlace in (0, 1):
        i = "i" if interlace else "n"
        w, h = (13, 11) if interlace else (9, 7)
        for depth in (1, 2, 4, 8, 16):
            v = rng.integers(0, 1 << depth, (h, w, 1))
            gray = v >> 8 if depth == 16 else v * 255 // ((1 << depth) - 1)
            cases[f"gray{depth}{i}"] = png(v, 0, depth, interlace), gray
            key = int(v[0, 0, 0])
            alpha = np.where(v == key, 0, 255)
            cases[f"gray{depth}{i}-trns"] = png(v, 0, depth, interlace, trns=struct.pack(">H", key)), np.concatenate([gray] * 3 + [alpha], 2)
            if depth <= 8:
                n = min(1 << depth, 200)
                palette, v = rng.integers(0, 256, (n, 3)), rng.integers(0, n, (h, w, 1))
                rgb = palette[v[:, :, 0]]
                cases[f"palette{depth}{i}"] = png(v, 3, depth, interlace, palette), rgb
                some = rng.integers(0, 256, (n + 1) // 2)
                alpha = np.concatenate([some, np.full(n, 255)])[v]
                cases[f"palette{depth}{i}-trns"] = png(v, 3, depth, interlace, palette, some.astype(np.uint8).tobytes()), np.concatenate([rgb, alpha], 2)
        for depth in (8, 16):
            for colour, c in ((2, 3), (4, 2), (6, 4)):
                v = rng.integers(0, 1 << depth, (h, w, c))
                p = v >> (depth - 8)
                if c == 2:
                    p = p[:, :, [0, 0, 0, 1]]
                cases[f"colour{colour}-{depth}{i}"] = png(v, colour, depth, interlace, pieces=1 + interlace * 3), p
            v = rng.integers(0, 1 << depth, (h, w, 3))
            key = v[1, 1]
            alpha = np.where((v == key).all(2, keepdims=True), 0, 255)
            if depth == 16:  # same high bytes, another low one: opaque
                v[2, 2] = key ^ 1
                alpha = np.where((v == key).all(2, keepdims=True), 0, 255)
            cases[f"rgb{depth}{i}-trns"] = png(v, 2, depth, interlace, trns=struct.pack(">HHH", *key)), np.concatenate([v >> (depth - 8), alpha], 2)
    for w, h in ((1, 1), (1, 8), (8, 1), (2, 3), (5, 5)):
        v = rng.integers(0, 256, (h, w, 3))
        cases[f"small{w}x{h}i"] = png(v, 2, 8, 1), v
    v = rng.integers(0, 256, (4, 4, 3))
    extra = chunk(b"gAMA", struct.pack(">I", 1)) + chunk(b"iCCP", b"bad\0\0notzlib") + chunk(b"pHYs", b"\0" * 9) + chunk(b"prVt", b"x" * 40)
    text = (chunk(b"tEXt", b"parameters\0caf\xe9 line\nnext") + chunk(b"zTXt", b"Long\0\0" + zlib.compress(b"z" * 3000)) +
            chunk(b"iTXt", b"Title\0\0\0de\0T\xc3\xaftel\0" + "\u7dda \u2192 \U0001f3a8".encode()) +
            chunk(b"iTXt", b"Packed\0\1\0\0\0" + zlib.compress("\u00e9t\u00e9".encode())) + chunk(b"tEXt", b"Empty\0"))
    cases["text"] = png(v, 2, 8, before=extra + text, after=chunk(b"tEXt", b"After\0the pixels")), v
    cases["trailing-bytes"] = png(v, 2, 8) + b"and more", v
    return cases


def codec_cases():
    lines = ["# file width height channels: FNV-1a of the pixels (PNG); the others are checked in codec_test.c"]
    for name, (data, pixels) in sorted(png_cases().items()):
        open(f"{OUT}/png/{name}.png", "wb").write(data)
        h, w, c = pixels.shape
        lines.append(f"{name}.png {w} {h} {c} {fnv(pixels.astype(np.uint8)):016x}")
    open(f"{OUT}/png.txt", "w").write("\n".join(lines) + "\n")
    smooth = Image.fromarray(picture("smooth", 1, 48, 32, 3))
    smooth.save(f"{OUT}/progressive.jpg", quality=90, progressive=True)
    smooth.save(f"{OUT}/restarts.jpg", quality=90, subsampling=0, restart_marker_rows=1)
    smooth.convert("CMYK").save(f"{OUT}/cmyk.jpg", quality=50)
    smooth.convert("L").save(f"{OUT}/gray.jpg", quality=90)
    smooth.save(f"{OUT}/lossy.webp", quality=90)
    alpha = Image.fromarray(picture("smooth", 2, 24, 16, 4))
    alpha.save(f"{OUT}/alpha.webp", lossless=True, exact=True)
    alpha.save(f"{OUT}/alpha-lossy.webp", quality=80)
    frames = [Image.fromarray(picture("blocks", s, 24, 16, 3)) for s in (1, 2)]
    frames[0].save(f"{OUT}/animated.webp", save_all=True, append_images=frames[1:], duration=50)
    frames[0].save(f"{OUT}/animated.png", save_all=True, append_images=frames[1:], duration=50)


if __name__ == "__main__":
    os.makedirs(f"{OUT}/png", exist_ok=True)
    print("OpenCV", cv2.__version__)
    random.seed(1)
    canny_cases()
    resize_cases()
    codec_cases()
