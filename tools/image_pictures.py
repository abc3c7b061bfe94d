"""Pictures made from a seed, the same bytes as tests/unit/pictures.h makes. Needs numpy."""
import numpy as np

KINDS = ("noise", "blocks", "ramps", "rings", "ties", "smooth")


def mix(*values):
    """splitmix64's finaliser over several integers (arrays broadcast)."""
    v = np.uint64(0)
    with np.errstate(over="ignore"):
        for x in values:
            v = v ^ (np.asarray(x).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
            v = (v ^ (v >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            v = (v ^ (v >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            v = v ^ (v >> np.uint64(31))
    return v


def picture(kind, seed, w, h, c):
    y, x, k = np.meshgrid(np.arange(h), np.arange(w), np.arange(c), indexing="ij")
    if kind == "noise":
        v = mix(seed, x, y, k)
    elif kind == "blocks":
        v = mix(seed, x >> 3, y >> 3, k)
    elif kind == "ramps":
        v = (x * (1 + seed % 5) + y * (1 + seed % 3) + k * 40).astype(np.uint64) + (mix(seed, x, y, k) & np.uint64(7))
    elif kind == "rings":
        cx, cy = (int(mix(seed, i)) % n for i, n in ((0, w), (1, h)))
        v = (((x - cx) ** 2 + (y - cy) ** 2) >> (2 + seed % 4)) + k * 60
    elif kind == "ties":
        v = (mix(seed, x >> 2, y >> 2) & np.uint64(3)) * np.uint64(64) + (k * 0).astype(np.uint64)
    else:
        fx, fy, x0, y0 = x & 15, y & 15, x >> 4, y >> 4
        at = lambda dx, dy: (mix(seed, x0 + dx, y0 + dy, k) & np.uint64(255)).astype(np.int64)
        v = (at(0, 0) * (16 - fx) * (16 - fy) + at(1, 0) * fx * (16 - fy) + at(0, 1) * (16 - fx) * fy + at(1, 1) * fx * fy) >> 8
    return (np.asarray(v).astype(np.uint64) & np.uint64(255)).astype(np.uint8)


def fnv(array):
    """64-bit FNV-1a of an array's bytes."""
    v = 0xCBF29CE484222325
    for b in np.ascontiguousarray(array).tobytes():
        v = (v ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return v
