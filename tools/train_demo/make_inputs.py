"""Makes what ships beside the model, and the pairs of the C tests.

  make_inputs.py shipped models/demo       drawing.png and photo.png
  make_inputs.py pairs tests/data/demo     eight of the evaluation's pairs
"""
import json
import os
import sys

import numpy as np

import evaluate
import scenes as S

SHIPPED = [
    {"image": "drawing.png", "prompt": "a red house with a blue roof, a green tree and the yellow sun in a field in the day", "seed": 7},
    {"image": "photo.png", "prompt": "a blue car and an orange tree on the road at sunset", "seed": 7},
]
CHOSEN = [0, 1, 2, 4, 5, 6, 9, 11]


def thing(cv, rng, kind, x, y, size, colour):
    tone = S.rgb(*S.PALETTE[colour])
    part = S.PARTS.get(kind)
    S.draw_thing(cv, rng, kind, x, y, size, tone, 1, {"time": "day", "accent": tone}, {part: (S.PARTS_DEFAULT[part], 0)} if part else None)


def drawing():
    """Pencil on paper: outlines only."""
    cv, rng = S.Canvas(256, 384), np.random.Generator(np.random.PCG64(11))
    cv.outline, cv.lines = 2.4, np.zeros((256, 384), np.float32)
    S.land(cv, S.smooth(rng, 384, 2, 118, 140), S.rgb(200, 220, 180))
    S.land(cv, S.smooth(rng, 384, 1, 150, 162), S.rgb(200, 220, 180))
    thing(cv, rng, "sun", 320, 84, 66, "white")
    thing(cv, rng, "house", 140, 232, 150, "white")
    thing(cv, rng, "tree", 290, 236, 140, "white")
    paper = S.rgb(250, 248, 240) * (1 - 0.02 * cv.y / 256)[..., None] * np.ones((256, 384, 1), np.float32)
    ink = S.rgb(52, 50, 60)
    image = paper + cv.lines[..., None] * (ink - paper)
    return (np.clip(image, 0, 1) * 255 + .5).astype(np.uint8)


def smooth_grid(grid, cell, h, w):
    """Values between a grid's points, linear along each axis."""
    ys, xs = np.arange(h) / cell, np.arange(w) / cell
    rows = np.stack([np.interp(xs, np.arange(grid.shape[1]), row) for row in grid])
    return np.stack([np.interp(ys, np.arange(len(rows)), column) for column in rows.T], 1).astype(np.float32)


def photo():
    """No outlines; soft light, grain, texture, a lens that is not quite sharp."""
    cv, rng = S.Canvas(256, 384), np.random.Generator(np.random.PCG64(5))
    cv.shade = (-.3, -.45)
    S.sky(cv, rng, "day", 150)
    S.land(cv, S.smooth(rng, 384, 2, 96, 128), S.rgb(122, 142, 128))
    S.land(cv, np.full(384, 138, np.float32), S.rgb(118, 150, 84))
    made = S.convex(cv, [(-9, 178), (393, 178), (393, 265), (-9, 265)])
    cv.paint(*made, S.rgb(92, 94, 100))
    for x in range(10, 384, 64):
        made = S.convex(cv, [(x, 218), (x + 32, 218), (x + 32, 223), (x, 223)])
        cv.paint(*made, S.rgb(226, 224, 214))
    for x, y, size in ((318, 176, 138),):
        thing(cv, rng, "tree", x, y, size, "green")
    made = S.ellipse(cv, 140, 240, 92, 8)
    cv.paint(*made, S.OUTLINE, alpha=.4, flat=True)
    thing(cv, rng, "car", 140, 244, 190, "red")
    image = cv.img.copy()
    # Texture at three scales, then a small blur, then grain.
    for cell, amount in ((32, .05), (8, .04), (2, .03)):
        grid = rng.standard_normal((256 // cell + 2, 384 // cell + 2)).astype(np.float32)
        image *= 1 + amount * smooth_grid(grid, cell, 256, 384)[..., None]
    for _ in range(2):
        p = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
        image = (p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] + 4 * p[1:-1, 1:-1]) / 8
    v = np.hypot((cv.x - 192) / 192, (cv.y - 128) / 128)[..., None]
    image = image * (1.04 - .14 * v * v) + .012 * rng.standard_normal(image.shape).astype(np.float32)
    return (np.clip(image, 0, 1) * 255 + .5).astype(np.uint8)


def main():
    what, folder = sys.argv[1], sys.argv[2]
    os.makedirs(folder, exist_ok=True)
    if what == "shipped":
        evaluate.write_png(os.path.join(folder, "drawing.png"), drawing())
        evaluate.write_png(os.path.join(folder, "photo.png"), photo())
        with open(os.path.join(folder, "inputs.json"), "w") as f:
            json.dump(SHIPPED, f, indent=1)
            f.write("\n")
    else:
        pairs = evaluate.make_pairs(max(CHOSEN) + 1)
        evaluate.save_pairs([pairs[i] for i in CHOSEN], folder)


if __name__ == "__main__":
    main()
