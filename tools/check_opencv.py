#!/usr/bin/env python3
"""Holds the built library against OpenCV: lw_canny, lw_image_resize and lw_image_resize_to, bit for bit.

    python3 -m venv v && v/bin/pip install 'opencv-python-headless==4.11.*' && v/bin/python tools/check_opencv.py [build/lib/liblinework.so]

Prints a line for each difference and a summary; exit 1 where a Canny differs at all or a resize by more than a level."""
import ctypes as C
import os
import random
import sys

import cv2
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from image_pictures import KINDS, picture


class Image(C.Structure):
    _fields_ = [("size", C.c_uint32), ("width", C.c_int32), ("height", C.c_int32), ("channels", C.c_int32),
                ("stride", C.c_size_t), ("data", C.c_void_p)]


class Error(C.Structure):
    _fields_ = [("code", C.c_int), ("message", C.c_char * 1000)]


root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
lib = C.CDLL(sys.argv[1] if len(sys.argv) > 1 else os.path.join(root, "build/lib/liblinework.so"))


def call(name, array, *args):
    array = np.ascontiguousarray(array)
    h, w, c = array.shape
    image = Image(C.sizeof(Image), w, h, c, w * c, array.ctypes.data)
    out, err = Image(), Error()
    if getattr(lib, name)(C.byref(image), *args, C.byref(out), C.byref(err)) != 0:
        raise RuntimeError(err.message.decode())
    n = out.height * out.stride
    result = np.frombuffer(C.string_at(out.data, n), np.uint8).reshape(out.height, out.width, out.channels)
    lib.lw_image_free(C.byref(out))
    return result


def reference_resize(array, short_side):
    h, w = array.shape[:2]
    k = float(short_side) / min(h, w)
    to_h, to_w = (int(np.round(v * k / 64.0)) * 64 for v in (float(h), float(w)))
    out = cv2.resize(array, (to_w, to_h), interpolation=cv2.INTER_LANCZOS4 if k > 1 else cv2.INTER_AREA)
    return out.reshape(to_h, to_w, -1)


def compare(ours, theirs, what, worst):
    if ours.shape != theirs.shape:
        print(what, "shapes", ours.shape, theirs.shape)
        return 999
    d = np.abs(ours.astype(int) - theirs.astype(int))
    if d.max():
        print(f"{what}: {np.count_nonzero(d)} of {d.size} bytes differ, at most {d.max()}")
    return max(worst, int(d.max()))


def check_canny(rng, n):
    bad = 0
    for i in range(n):
        kind, c = KINDS[i % len(KINDS)], rng.choice((1, 3, 3))
        w, h = (rng.choice((1, 2, 3, 7)), rng.randint(1, 40)) if i % 9 == 0 else (rng.randint(1, 300), rng.randint(1, 300))
        low, high = rng.choice(((100, 200), (50, 150), (200, 100), (1, 255), (0, 0), (30.7, 60.2), (255, 255), (-1, 5),
                                (rng.uniform(0, 400), rng.uniform(0, 800)), (10000, 10000)))
        a = picture(kind, rng.getrandbits(30), w, h, c)
        theirs = cv2.Canny(a if c == 3 else a[:, :, 0], low, high)[:, :, None]
        bad += compare(call("lw_canny", a, C.c_double(low), C.c_double(high)), theirs, f"canny {kind} {w}x{h}x{c} {low} {high}", 0) != 0
    print(f"canny: {n} pictures, {bad} differ")
    return bad == 0


def check_resize(rng, n):
    worst, sizes = 0, set()
    while len(sizes) < n:
        i = len(sizes)
        c, kind = rng.choice((1, 3, 3, 4)), KINDS[i % len(KINDS)]
        if i % 5 == 0:  # k == 1 and k just below: one side may grow
            r = rng.choice((256, 512, 320))
            w, h = r + rng.choice((0, 0, 1, 3, 20)), r + rng.randint(0, 300)
        elif i % 5 == 1:  # whole ratios
            r, m = rng.choice((64, 128, 192)), rng.randint(2, 6)
            w, h = r * m, 64 * rng.randint(r // 64, 6) * m
        elif i % 5 == 2:
            r, w, h = rng.choice((64, 128, 256)), rng.randint(1, 60), rng.randint(1, 60)
        else:
            r, w, h = rng.randint(64, 600), rng.randint(30, 1000), rng.randint(30, 1000)
        if rng.random() < 0.5:
            w, h = h, w
        k = r / min(w, h)
        to = [int(np.round(v * k / 64.0)) * 64 for v in (float(w), float(h))]
        if min(to) == 0 or max(to) > 2048 or (w, h, r, c) in sizes:
            continue
        sizes.add((w, h, r, c))
        a = picture(kind, rng.getrandbits(30), w, h, c)
        worst = compare(call("lw_image_resize", a, r), reference_resize(a, r), f"resize {w}x{h}x{c} at {r}, {kind}", worst)
    for i in range(n // 3):  # exact sizes: every filter, sides not multiples of 64
        w, h, to_w, to_h = (rng.choice((rng.randint(1, 16), rng.randint(1, 700))) for _ in range(4))
        c, grow = rng.choice((1, 3, 4)), min(to_w, to_h) > min(w, h)
        a = picture(KINDS[i % len(KINDS)], i, w, h, c)
        theirs = cv2.resize(a, (to_w, to_h), interpolation=cv2.INTER_LANCZOS4 if grow else cv2.INTER_AREA)
        worst = compare(call("lw_image_resize_to", a, to_w, to_h), theirs.reshape(to_h, to_w, -1),
                        f"resize_to {w}x{h}x{c} -> {to_w}x{to_h}", worst)
    print(f"resize: {n} sizes by resolution and {n // 3} exact ones, largest difference {worst}")
    return worst <= 1


def check_rgb():
    a = np.stack(np.meshgrid(np.arange(256), np.arange(256)), -1).astype(np.uint8)
    a = np.ascontiguousarray(a[:, :, [0, 0, 0, 1]])
    a[:, :, 1] = 255 - a[:, :, 1]
    colour, alpha = a[:, :, :3].astype(np.float32), a[:, :, 3:].astype(np.float32) / 255.0
    theirs = (colour * alpha + 255.0 * (1.0 - alpha)).clip(0, 255).astype(np.uint8)
    worst = compare(call("lw_image_to_rgb", a), theirs, "to_rgb", 0)
    print(f"to_rgb: all 65536 pairs of colour and alpha, largest difference {worst}")
    return worst == 0


print("OpenCV", cv2.__version__)
rng = random.Random(7)
results = [check_canny(rng, 540), check_resize(rng, 330), check_rgb()]
sys.exit(0 if all(results) else 1)
