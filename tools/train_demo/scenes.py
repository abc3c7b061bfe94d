"""Draws the scenes that the demo model learns from.

A scene is a function of its seed alone. Shapes are signed distances evaluated on their bounding box with
numpy, so that nothing but numpy is needed, edges are smooth, and outline and filling come from one field.
"""
import math

import numpy as np

SIZES = [(256, 256), (256, 384), (384, 256)]  # height, width

PALETTE = {
    "red": (212, 38, 36), "orange": (242, 138, 26), "yellow": (248, 214, 52), "green": (54, 152, 60),
    "blue": (40, 92, 208), "purple": (130, 58, 176), "pink": (246, 146, 186), "brown": (124, 76, 42),
    "white": (246, 246, 242), "black": (36, 36, 42), "gray": (142, 144, 148),
}
COLOURS = list(PALETTE)
LIGHT = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.84, 0.72), "night": (0.60, 0.64, 0.84)}
OUTLINE = np.float32([0.10, 0.09, 0.12])


def rgb(r, g, b):
    return np.float32([r, g, b]) / 255


# ---------------------------------------------------------------- canvas

class Canvas:
    def __init__(self, height, width):
        self.h, self.w = height, width
        self.y = np.arange(height, dtype=np.float32)[:, None] + 0.5
        self.x = np.arange(width, dtype=np.float32)[None, :] + 0.5
        self.img = np.zeros((height, width, 3), np.float32)
        self.ids = np.zeros((height, width), np.uint8)
        self.light = np.ones(3, np.float32)
        self.outline = 0.0
        self.shade = (0.0, 0.0)
        self.lines = None  # an array here collects the outlines alone: a drawing not coloured in

    def box(self, x0, y0, x1, y1):
        pad = self.outline + 2
        a, b = max(0, int(x0 - pad)), min(self.w, int(x1 + pad) + 1)
        c, d = max(0, int(y0 - pad)), min(self.h, int(y1 + pad) + 1)
        return (slice(c, d), slice(a, b)) if a < b and c < d else None

    def paint(self, dist, box, colour, oid=0, outline=True, lit=True, alpha=1.0, flat=False):
        """dist: signed distance over box, negative inside."""
        part = self.img[box]
        light = self.light if lit else np.ones(3, np.float32)
        half = self.outline / 2 if outline else 0.0
        if half:
            cover = np.clip(0.5 - (dist - half), 0, 1)[..., None]
            line = (0.16 * colour + 0.75 * OUTLINE) * light
            part += cover * (line - part)
            if self.lines is not None:
                self.lines[box] += cover[..., 0] * (1 - self.lines[box])
        cover = np.clip(0.5 - (dist + half), 0, 1)[..., None]
        if half and self.lines is not None:
            self.lines[box] *= 1 - cover[..., 0]
        if alpha != 1.0:
            cover = cover * np.float32(alpha)
        fill = colour * light
        if not flat:
            ys, xs = self.y[box[0]], self.x[:, box[1]]
            sx = (xs - xs.mean()) / max(8, xs.size)
            sy = (ys - ys.mean()) / max(8, ys.size)
            fill = fill * (1 + self.shade[0] * sx + self.shade[1] * sy)[..., None]
        part += cover * (fill - part)
        inside = dist < (half if half else 0)
        # The outline belongs to no object: a mask is what carries the object's own colour.
        self.ids[box][inside] = 0
        if oid:
            self.ids[box][dist < -half - 0.5] = oid


# ---------------------------------------------------------------- shapes, in pixels: (distance, box)

def ellipse(cv, cx, cy, rx, ry):
    box = cv.box(cx - rx, cy - ry, cx + rx, cy + ry)
    if box is None:
        return None
    rx, ry = max(rx, 0.4), max(ry, 0.4)
    u = (cv.x[:, box[1]] - cx) / rx
    v = (cv.y[box[0]] - cy) / ry
    k0 = np.sqrt(u * u + v * v)
    k1 = np.sqrt((u / rx) ** 2 + (v / ry) ** 2) + np.float32(1e-6)
    return (k0 * (k0 - 1) / k1).astype(np.float32), box


def convex(cv, pts):
    p = np.asarray(pts, np.float32)
    box = cv.box(p[:, 0].min(), p[:, 1].min(), p[:, 0].max(), p[:, 1].max())
    if box is None:
        return None
    x, y = cv.x[:, box[1]], cv.y[box[0]]
    q = np.roll(p, -1, 0)
    area = float((p[:, 0] * q[:, 1] - q[:, 0] * p[:, 1]).sum())
    sign = 1.0 if area > 0 else -1.0
    dist = None
    for (ax, ay), (bx, by) in zip(p, q):
        length = math.hypot(bx - ax, by - ay)
        if length < 1e-3:
            continue
        nx, ny = sign * (by - ay) / length, -sign * (bx - ax) / length
        d = nx * (x - ax) + ny * (y - ay)
        dist = d if dist is None else np.maximum(dist, d)
    return (None if dist is None else (dist.astype(np.float32), box))


def polygon(cv, pts):
    p = np.asarray(pts, np.float32)
    box = cv.box(p[:, 0].min(), p[:, 1].min(), p[:, 0].max(), p[:, 1].max())
    if box is None:
        return None
    x, y = cv.x[:, box[1]], cv.y[box[0]]
    shape = (y.shape[0], x.shape[1])
    best = np.full(shape, 1e12, np.float32)
    inside = np.zeros(shape, bool)
    for (ax, ay), (bx, by) in zip(p, np.roll(p, -1, 0)):
        ex, ey = bx - ax, by - ay
        wx, wy = x - ax, y - ay
        t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey + 1e-6), 0, 1)
        best = np.minimum(best, (wx - ex * t) ** 2 + (wy - ey * t) ** 2)
        if abs(ey) > 1e-6:
            crosses = (y >= min(ay, by)) & (y < max(ay, by))
            inside ^= crosses & (x < ax + (y - ay) * (ex / ey))
    d = np.sqrt(best)
    return np.where(inside, -d, d), box


def stroke(cv, pts, width):
    p = np.asarray(pts, np.float32)
    r = width / 2
    box = cv.box(p[:, 0].min() - r, p[:, 1].min() - r, p[:, 0].max() + r, p[:, 1].max() + r)
    if box is None:
        return None
    x, y = cv.x[:, box[1]], cv.y[box[0]]
    best = None
    for (ax, ay), (bx, by) in zip(p[:-1], p[1:]):
        ex, ey = bx - ax, by - ay
        wx, wy = x - ax, y - ay
        t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey + 1e-6), 0, 1)
        d = (wx - ex * t) ** 2 + (wy - ey * t) ** 2
        best = d if best is None else np.minimum(best, d)
    return (np.sqrt(best) - r).astype(np.float32), box


def union(cv, shapes):
    shapes = [s for s in shapes if s is not None]
    if not shapes:
        return None
    c = min(b[0].start for _, b in shapes), max(b[0].stop for _, b in shapes)
    a = min(b[1].start for _, b in shapes), max(b[1].stop for _, b in shapes)
    dist = np.full((c[1] - c[0], a[1] - a[0]), 1e3, np.float32)
    for d, b in shapes:
        view = dist[b[0].start - c[0]:b[0].stop - c[0], b[1].start - a[0]:b[1].stop - a[0]]
        np.minimum(view, d, out=view)
    return dist, (slice(*c), slice(*a))


class Frame:
    """An object's own coordinates: u to the right, v up from its foot, in units of its size."""

    def __init__(self, cv, ox, oy, size, flip, colour, oid):
        self.cv, self.ox, self.oy, self.s, self.f = cv, ox, oy, size, flip
        self.colour, self.oid = colour, oid

    def xy(self, pts):
        return [(self.ox + self.f * self.s * u, self.oy - self.s * v) for u, v in pts]

    def shape(self, kind, *a):
        cv, s = self.cv, self.s
        if kind == "ell":
            (x, y), = self.xy([a[:2]])
            return ellipse(cv, x, y, a[2] * s, a[3] * s)
        if kind == "line":
            return stroke(cv, self.xy(a[0]), max(1.2, a[1] * s))
        if kind == "rect":
            u0, v0, u1, v1 = a[:4]
            if len(a) == 4:
                return convex(cv, self.xy([(u0, v0), (u1, v0), (u1, v1), (u0, v1)]))
            r = a[4]
            made = convex(cv, self.xy([(u0 + r, v0 + r), (u1 - r, v0 + r), (u1 - r, v1 - r), (u0 + r, v1 - r)]))
            # Rounded: the distance to a smaller box, whose corners are rounded by measuring beyond them.
            (xa, ya), (xb, yb) = self.xy([(u0, v0), (u1, v1)])
            xa, xb, ya, yb = min(xa, xb), max(xa, xb), min(ya, yb), max(ya, yb)
            box = cv.box(xa, ya, xb, yb)
            if made is None or box is None:
                return None
            px = np.abs(cv.x[:, box[1]] - (xa + xb) / 2) - (xb - xa) / 2 + r * s
            py = np.abs(cv.y[box[0]] - (ya + yb) / 2) - (yb - ya) / 2 + r * s
            d = np.hypot(np.maximum(px, 0), np.maximum(py, 0)) + np.minimum(np.maximum(px, py), 0) - r * s
            return d.astype(np.float32), box
        if kind == "conv":
            return convex(cv, self.xy(a[0]))
        if kind == "poly":
            return polygon(cv, self.xy(a[0]))
        if kind == "union":
            return union(cv, [self.shape(*p) for p in a[0]])
        raise ValueError(kind)

    def draw(self, role, *shape, **kw):
        made = self.shape(*shape)
        if made is None:
            return
        oid = 0
        if isinstance(role, str):
            colour = {"m": self.colour, "d": self.colour * 0.72,
                      "l": self.colour + (1 - self.colour) * 0.45}[role]
            oid = self.oid if role == "m" else 0
        else:
            colour = role
        self.cv.paint(made[0], made[1], colour, oid, **kw)


WOOD, DARK, STEEL = rgb(116, 74, 44), rgb(46, 44, 52), rgb(176, 182, 190)
LEAF, CREAM, GLASS = rgb(70, 160, 66), rgb(250, 238, 214), rgb(176, 220, 240)
BEAK, WHITE, GOLD = rgb(246, 160, 40), rgb(250, 250, 248), rgb(250, 206, 70)


def arc(cx, cy, rx, ry, a0, a1, n=9):
    return [(cx + rx * math.cos(a0 + (a1 - a0) * i / (n - 1)), cy + ry * math.sin(a0 + (a1 - a0) * i / (n - 1)))
            for i in range(n)]


# ---------------------------------------------------------------- things; r(a, b) draws a number in a..b

def house(f, r, env):
    w, h = r(.36, .5), r(.42, .6)
    if r(0, 1) < .5:
        f.draw(rgb(150, 84, 70), "rect", w * .4, h, w * .66, r(.88, 1.0))
    f.draw("m", "rect", -w, 0, w, h)
    f.part("roof", "conv", [(-w - .08, h), (w + .08, h), (r(-.1, .1), 1)]) if r(0, 1) < .6 else \
        f.part("roof", "conv", [(-w - .08, h), (w + .08, h), (w * .6, r(.85, 1)), (-w * .6, .9)])
    f.draw(WOOD, "rect", -.09, 0, .09, h * .58)
    glow = rgb(255, 226, 130) if env["time"] != "day" else GLASS
    for u in (-w * .62, w * .62):
        f.draw(glow, "rect", u - .085, h * .4, u + .085, h * .78, lit=env["time"] == "day")
        if f.s > 70:
            f.draw(DARK, "line", [(u, h * .4), (u, h * .78)], .012, outline=False)


def castle(f, r, env):
    f.draw("m", "rect", -.3, 0, .3, .5)
    for u in (-.38, .38):
        f.draw("m", "rect", u - .12, 0, u + .12, .72)
        f.part("roof", "conv", [(u - .16, .72), (u + .16, .72), (u, 1)])
        f.draw(DARK, "ell", u, .55, .035, .06)
    for u in (-.2, 0, .2):
        f.draw("m", "rect", u - .06, .5, u + .06, .59)
    f.draw(WOOD, "union", [("rect", -.1, 0, .1, .2), ("ell", 0, .2, .1, .1)])


def lighthouse(f, r, env):
    f.draw("m", "conv", [(-.2, 0), (.2, 0), (.12, .72), (-.12, .72)])
    f.draw(WHITE, "conv", [(-.178, .2), (.178, .2), (.162, .36), (-.162, .36)])
    f.draw(GOLD, "rect", -.1, .72, .1, .86, lit=False)
    f.draw(DARK, "conv", [(-.15, .86), (.15, .86), (0, 1)])


def tent(f, r, env):
    w = r(.5, .65)
    f.draw("m", "conv", [(-w, 0), (w, 0), (0, r(.7, .95))])
    f.draw(DARK, "conv", [(-.14, 0), (.14, 0), (0, .5)])


def tree(f, r, env):
    t = r(.28, .42)
    f.draw(WOOD, "conv", [(-.07, 0), (.07, 0), (.045, t + .15), (-.045, t + .15)])
    k = r(0, 1)
    if k < .35:
        f.draw("m", "ell", 0, t + .3, r(.3, .4), r(.28, .34))
    else:
        f.draw("m", "union", [("ell", -.2, t + .16, .22, .19), ("ell", .2, t + .16, .22, .19),
                              ("ell", -.1, t + .38, .2, .19), ("ell", .12, t + .36, .22, .2), ("ell", 0, t + .22, .26, .2)])


def pine(f, r, env):
    f.draw(WOOD, "rect", -.05, 0, .05, .2)
    for v, w in ((.15, r(.3, .38)), (.4, r(.23, .29)), (.63, .18)):
        f.draw("m", "conv", [(-w, v), (w, v), (0, min(1, v + .4))])


def palm(f, r, env):
    lean = r(-.15, .15)
    f.draw(WOOD, "line", [(0, 0), (lean * .6, .35), (lean, .72)], .07)
    for a in (20, 75, 110, 160, -15, 195):
        c, s = math.cos(math.radians(a)), math.sin(math.radians(a))
        f.draw("m", "conv", [(lean, .72), (lean + c * .2 - s * .06, .74 + s * .16 + abs(c) * .06),
                             (lean + c * .42, .7 + s * .26 - .06), (lean + c * .2 + s * .06, .70 + s * .1)])


def bush(f, r, env):
    f.draw("m", "union", [("ell", -.3, .22, .26, .24), ("ell", .28, .24, .28, .25), ("ell", 0, .4, .3, .3)])


def flower(f, r, env):
    f.draw(LEAF, "line", [(0, 0), (r(-.04, .04), .3), (0, .66)], .05)
    f.draw(LEAF, "ell", .12, .25, .12, .05)
    n = 5 + int(r(0, 2))
    k = .16
    f.draw("m", "union", [("ell", .19 * math.cos(6.2832 * i / n + 1.57), .72 + .19 * math.sin(6.2832 * i / n + 1.57), k, k)
                          for i in range(n)])
    f.draw(GOLD if f.colour[2] > .3 or f.colour[0] < .9 else WOOD, "ell", 0, .72, .1, .1)


def tulip(f, r, env):
    f.draw(LEAF, "line", [(0, 0), (0, .6)], .05)
    f.draw(LEAF, "conv", [(0, .05), (.2, .42), (.05, .3)])
    f.draw("m", "poly", [(-.19, .92), (-.2, .66), (-.1, .53), (.1, .53), (.2, .66), (.19, .92), (.09, .78), (0, .98), (-.09, .78)])


def mushroom(f, r, env):
    f.draw(CREAM, "rect", -.12, 0, .12, .5, .05)
    f.draw("m", "conv", arc(0, .42, r(.42, .5), r(.42, .54), 0, math.pi, 13))
    for u, v, k in ((-.2, .56, .06), (.05, .72, .07), (.24, .54, .05)):
        f.draw(WHITE, "ell", u, v, k, k)


def car(f, r, env):
    a = r(-.06, .06)
    f.draw("m", "conv", [(-.3 + a, .24), (.34 + a, .24), (.2 + a, .47), (-.2 + a, .47)])
    f.draw(GLASS, "conv", [(-.22 + a, .28), (.0 + a, .28), (.0 + a, .42), (-.15 + a, .42)])
    f.draw(GLASS, "conv", [(.04 + a, .28), (.25 + a, .28), (.16 + a, .42), (.04 + a, .42)])
    f.draw("m", "rect", -.5, .07, .5, .28, .06)
    f.draw(GOLD, "ell", .46, .2, .035, .035, lit=False)
    for u in (-.28, .28):
        f.draw(DARK, "ell", u, .1, .105, .105)
        f.draw(STEEL, "ell", u, .1, .045, .045, outline=False)


def truck(f, r, env):
    f.draw("m", "rect", -.5, .1, .16, r(.5, .62))
    f.draw("m", "conv", [(.19, .1), (.5, .1), (.5, .28), (.42, .44), (.19, .44)])
    f.draw(GLASS, "conv", [(.25, .27), (.45, .27), (.4, .4), (.25, .4)])
    for u in (-.32, -.08, .34):
        f.draw(DARK, "ell", u, .09, .09, .09)
        f.draw(STEEL, "ell", u, .09, .035, .035, outline=False)


def bus(f, r, env):
    f.draw("m", "rect", -.52, .08, .52, .52, .05)
    for i in range(5):
        f.draw(GLASS, "rect", -.46 + .19 * i, .3, -.31 + .19 * i, .46)
    for u in (-.3, .3):
        f.draw(DARK, "ell", u, .09, .09, .09)
        f.draw(STEEL, "ell", u, .09, .035, .035, outline=False)


def train(f, r, env):
    f.draw("m", "rect", -.5, .1, .3, .36)
    f.draw("m", "rect", -.5, .3, -.16, .62)
    f.draw(GLASS, "rect", -.42, .4, -.24, .55)
    f.draw(DARK, "rect", .12, .36, .22, .56)
    f.draw("d", "conv", [(.3, .1), (.46, .1), (.3, .34)])
    for u in (-.36, -.1, .16):
        f.draw(DARK, "ell", u, .09, .09, .09)


def eye(f, u, v, k=.028):
    f.draw(DARK, "ell", u, v, k, k, outline=False)


def cat(f, r, env):
    f.draw("m", "line", [(-.26, .2), (-.42, .34), (-.38, .58)], .08)
    f.draw("m", "union", [("ell", -.04, .3, .28, .2), ("rect", -.24, 0, -.14, .3), ("rect", .1, 0, .2, .3)])
    f.draw("m", "union", [("ell", .24, .56, .19, .17), ("conv", [(.08, .62), (.2, .72), (.1, .84)]),
                          ("conv", [(.28, .72), (.4, .62), (.38, .84)])])
    eye(f, .18, .58), eye(f, .31, .58)
    f.draw(rgb(240, 150, 160), "ell", .25, .51, .025, .02, outline=False)


def dog(f, r, env):
    f.draw("m", "line", [(-.3, .42), (-.46, .6)], .08)
    f.draw("m", "union", [("ell", -.04, .38, .32, .17)] + [("rect", u, 0, u + .1, .36) for u in (-.3, -.16, .06, .2)])
    f.draw("m", "union", [("ell", .3, .62, .17, .16), ("ell", .44, .57, .11, .08)])
    f.draw("d", "ell", .19, .6, .065, .14)
    eye(f, .33, .66)
    f.draw(DARK, "ell", .53, .6, .035, .03, outline=False)


def rabbit(f, r, env):
    f.draw(WHITE, "ell", -.3, .2, .08, .08)
    f.draw("m", "union", [("ell", -.02, .24, .27, .23), ("ell", .16, .06, .14, .06)])
    f.draw("m", "union", [("ell", .18, .52, .16, .15), ("ell", .1, .8, .055, .18), ("ell", .24, .81, .055, .18)])
    eye(f, .24, .55)


def sheep(f, r, env):
    for u in (-.2, .16):
        f.draw(DARK, "rect", u, 0, u + .07, .25)
    f.draw("m", "union", [("ell", -.22, .4, .17, .17), ("ell", .18, .4, .17, .17), ("ell", 0, .5, .2, .17), ("ell", 0, .3, .2, .15)])
    f.draw(rgb(70, 62, 66), "ell", .36, .5, .12, .1)
    f.draw(WHITE, "ell", .38, .53, .025, .025, outline=False)


def bird(f, r, env):
    f.draw(BEAK, "conv", [(.3, .66), (.48, .6), (.3, .55)])
    for u in (-.05, .06):
        f.draw(BEAK, "line", [(u, 0), (u, .2)], .03, outline=False)
    f.draw("m", "union", [("ell", -.02, .36, .28, .2), ("ell", .2, .6, .15, .14), ("conv", [(-.2, .34), (-.5, .5), (-.44, .3)])])
    f.draw("d", "ell", -.06, .37, .16, .1)
    eye(f, .24, .64)


def duck(f, r, env):
    f.draw(BEAK, "ell", .44, .58, .1, .045)
    f.draw("m", "union", [("ell", -.04, .22, .36, .22), ("ell", .26, .58, .16, .15), ("conv", [(.1, .3), (.36, .3), (.34, .55), (.16, .55)]),
                          ("conv", [(-.3, .2), (-.5, .42), (-.16, .38)])])
    f.draw("d", "ell", -.08, .24, .18, .1)
    eye(f, .29, .62)


def fish(f, r, env):
    f.draw("m", "union", [("ell", .06, .3, .36, .22), ("conv", [(-.2, .3), (-.5, .5), (-.5, .1)])])
    f.draw("d", "conv", [(.0, .3), (-.14, .38), (-.14, .22)])
    f.draw(WHITE, "ell", .26, .36, .055, .055)
    eye(f, .27, .36)


def butterfly(f, r, env):
    for s in (-1, 1):
        f.draw("m", "union", [("ell", s * .26, .62, .24, .24), ("ell", s * .2, .28, .18, .18)])
        f.draw(CREAM, "ell", s * .28, .64, .09, .09)
    f.draw(DARK, "ell", 0, .46, .05, .3)
    f.draw(DARK, "line", [(0, .7), (-.1, .92)], .02, outline=False)
    f.draw(DARK, "line", [(0, .7), (.1, .92)], .02, outline=False)


def owl(f, r, env):
    f.draw("m", "union", [("ell", 0, .42, .32, .42), ("conv", [(-.28, .7), (-.24, .96), (-.06, .8)]), ("conv", [(.28, .7), (.24, .96), (.06, .8)])])
    for s in (-1, 1):
        f.draw(WHITE, "ell", s * .13, .62, .12, .12)
        eye(f, s * .13, .62, .05)
    f.draw(BEAK, "conv", [(-.05, .56), (.05, .56), (0, .44)])


def turtle(f, r, env):
    f.draw(rgb(150, 170, 90), "ell", .44, .26, .12, .1)
    for u in (-.24, .22):
        f.draw(rgb(150, 170, 90), "ell", u, .08, .1, .08)
    f.draw("m", "conv", arc(0, .12, .4, .42, 0, math.pi, 13))
    eye(f, .48, .29, .022)


def boat(f, r, env):
    f.draw(WOOD, "line", [(0, .2), (0, 1)], .03)
    f.part("sail", "conv", [(.03, .28), (.03, .98), (r(.36, .46), .28)])
    if r(0, 1) < .5:
        f.draw(CREAM, "conv", [(-.03, .28), (-.03, .85), (-.32, .28)])
    f.draw("m", "conv", [(-.5, .22), (.5, .22), (.36, 0), (-.36, 0)])


def ship(f, r, env):
    f.draw(WHITE, "rect", -.28, .2, .24, .4)
    for u in (-.2, -.05, .1):
        f.draw(GLASS, "ell", u, .3, .04, .04)
    f.draw(rgb(200, 70, 60), "rect", -.1, .4, .02, .62)
    f.draw("m", "conv", [(-.5, .22), (.55, .22), (.4, 0), (-.42, 0)])


def hotair(f, r, env):
    f.draw(WOOD, "line", [(-.09, .14), (-.2, .42)], .015, outline=False)
    f.draw(WOOD, "line", [(.09, .14), (.2, .42)], .015, outline=False)
    f.draw("m", "union", [("ell", 0, .64, .36, .36), ("conv", [(-.3, .45), (.3, .45), (.1, .24), (-.1, .24)])])
    f.draw("l", "ell", 0, .64, .12, .355)
    f.draw(WOOD, "rect", -.1, 0, .1, .14)


def toyballoon(f, r, env):
    f.draw(DARK, "line", [(0, 0), (.03, .15), (-.02, .3), (0, .4)], .015, outline=False)
    f.draw("m", "union", [("ell", 0, .68, .26, .31), ("conv", [(-.05, .34), (.05, .34), (0, .42)])])
    f.draw(WHITE, "ell", -.1, .78, .04, .07, outline=False, alpha=.7)


def kite(f, r, env):
    f.draw(DARK, "line", [(0, .35), (.08, .2), (-.06, .1), (.04, 0)], .02, outline=False)
    f.draw("m", "conv", [(0, 1), (.28, .68), (0, .34), (-.28, .68)])
    f.draw(DARK, "line", [(0, 1), (0, .34)], .015, outline=False)
    f.draw(DARK, "line", [(-.28, .68), (.28, .68)], .015, outline=False)


def plane(f, r, env):
    f.draw("m", "conv", [(-.48, .62), (-.38, .62), (-.28, .34), (-.48, .34)])
    f.draw("m", "ell", 0, .32, .5, .13)
    f.draw("d", "conv", [(.1, .3), (-.06, .3), (-.26, .02), (-.14, .02)])
    for u in (-.1, .04, .18):
        f.draw(GLASS, "ell", u, .36, .035, .035)


def rocket(f, r, env):
    f.draw(rgb(250, 160, 50), "conv", [(-.1, .14), (.1, .14), (0, -.06)], lit=False)
    f.draw("d", "conv", [(-.14, .36), (-.3, .08), (-.1, .14)])
    f.draw("d", "conv", [(.14, .36), (.3, .08), (.1, .14)])
    f.draw("m", "conv", [(-.12, .12), (.12, .12), (.17, .4), (.13, .72), (0, 1), (-.13, .72), (-.17, .4)])
    f.draw(GLASS, "ell", 0, .6, .07, .07)


def sun(f, r, env):
    if r(0, 1) < .5:
        for i in range(10):
            a = 6.2832 * i / 10
            c, s = math.cos(a), math.sin(a)
            f.draw("m", "line", [(.38 * c, .5 + .38 * s), (.5 * c, .5 + .5 * s)], .05, lit=False)
        f.draw("m", "ell", 0, .5, .3, .3, lit=False)
    else:
        f.draw("m", "ell", 0, .5, .4, .4, lit=False)


def moon(f, r, env):
    if r(0, 1) < .5:
        f.draw("m", "ell", 0, .5, .4, .4, lit=False)
        for u, v, k in ((-.12, .6, .07), (.14, .42, .09), (-.05, .3, .05)):
            f.draw("d", "ell", u, v, k, k, outline=False, lit=False, alpha=.35)
    else:
        outer, inner = arc(0, .5, .42, .42, 1.0, 5.28, 17), arc(.16, .5, .33, .36, 5.1, 1.18, 13)
        f.draw("m", "poly", outer + inner, lit=False)


def cloud(f, r, env):
    f.draw("m", "union", [("ell", -.26, .24, .2, .16), ("ell", .28, .22, .2, .15), ("ell", -.02, .36, .24, .22), ("ell", 0, .2, .4, .12)])


def star(f, r, env):
    a0 = 1.5708 + r(-.2, .2)
    f.draw("m", "poly", [((.5 if i % 2 == 0 else .21) * math.cos(a0 + i * .62832), .5 + (.5 if i % 2 == 0 else .21) * math.sin(a0 + i * .62832))
                         for i in range(10)])


def heart(f, r, env):
    f.draw("m", "union", [("ell", -.21, .68, .24, .24), ("ell", .21, .68, .24, .24), ("conv", [(-.44, .6), (0, .05), (.44, .6), (0, .72)])])


def circle(f, r, env):
    f.draw("m", "ell", 0, .5, .46, .46)


def square(f, r, env):
    f.draw("m", "rect", -.42, .06, .42, .9)


def triangle(f, r, env):
    f.draw("m", "conv", [(-.5, .05), (.5, .05), (r(-.2, .2), .95)])


def blob(f, r, env):
    a = [r(-.12, .12) for _ in range(6)]
    pts = []
    for i in range(20):
        t = 6.2832 * i / 20
        k = .38 + sum(a[j] * math.cos((j // 2 + 2) * t + 1.57 * (j % 2)) * .6 for j in range(6))
        pts.append((k * math.cos(t), .5 + k * math.sin(t)))
    f.draw("m", "poly", pts)


def ball(f, r, env):
    f.draw("m", "ell", 0, .45, .45, .45)
    if r(0, 1) < .5:
        f.draw(WHITE, "poly", arc(0, .45, .45, .14, math.pi, 2 * math.pi) + arc(0, .45, .45, .06, 0, math.pi)[::1])
    f.draw(WHITE, "ell", -.16, .64, .07, .06, outline=False, alpha=.7)


def umbrella(f, r, env):
    f.draw(DARK, "line", [(0, .5), (0, .08), (.05, .02), (.12, .05)], .035)
    f.draw("m", "conv", arc(0, .48, .48, .46, 0, math.pi, 13))
    for u in (-.16, .16):
        f.draw(DARK, "line", [(u, .48), (u * .55, .8), (0, .94)], .012, outline=False)


def gift(f, r, env):
    f.draw("m", "rect", -.4, 0, .4, .62)
    f.draw(GOLD, "rect", -.07, 0, .07, .62)
    for s in (-1, 1):
        f.draw(GOLD, "ell", s * .14, .7, .14, .08)


def hat(f, r, env):
    f.draw("m", "rect", -.26, .1, .26, .62, .06)
    f.draw("m", "ell", 0, .12, .5, .1)
    f.draw(DARK, "rect", -.26, .17, .26, .27, outline=False)


def apple(f, r, env):
    f.draw(WOOD, "line", [(0, .68), (.04, .9)], .045)
    f.draw("m", "union", [("ell", -.16, .38, .27, .35), ("ell", .16, .38, .27, .35)])
    f.draw(LEAF, "ell", .17, .84, .13, .06)
    f.draw(WHITE, "ell", -.22, .52, .05, .08, outline=False, alpha=.6)


def pear(f, r, env):
    f.draw(WOOD, "line", [(0, .85), (.04, 1)], .045)
    f.draw("m", "union", [("ell", 0, .32, .31, .31), ("ell", 0, .68, .18, .22), ("conv", [(-.27, .42), (.27, .42), (.17, .66), (-.17, .66)])])
    f.draw(WHITE, "ell", -.14, .4, .04, .08, outline=False, alpha=.6)


def banana(f, r, env):
    f.draw("m", "poly", arc(0, .62, .5, .55, math.pi * 1.04, math.pi * 1.96, 13) + arc(0, .66, .42, .3, math.pi * 1.94, math.pi * 1.06, 11))
    f.draw(WOOD, "ell", .48, .56, .035, .045)


def cherries(f, r, env):
    f.draw(LEAF, "line", [(-.2, .3), (-.08, .65), (.08, .92)], .04)
    f.draw(LEAF, "line", [(.22, .3), (.16, .65), (.08, .92)], .04)
    f.draw("m", "ell", -.22, .22, .21, .21)
    f.draw("m", "ell", .24, .2, .2, .2)
    f.draw(LEAF, "ell", .22, .9, .14, .06)


def lemon(f, r, env):
    f.draw("m", "union", [("ell", 0, .32, .36, .28), ("ell", .38, .34, .09, .07), ("ell", -.38, .32, .06, .06)])
    f.draw(WHITE, "ell", -.12, .43, .09, .05, outline=False, alpha=.6)


def grapes(f, r, env):
    f.draw(WOOD, "line", [(0, .75), (.03, .98)], .04)
    for row, n in enumerate((1, 2, 3, 4)):
        for i in range(n):
            f.draw("m", "ell", (i - (n - 1) / 2) * .2, .12 + .19 * row, .115, .115)


def cup(f, r, env):
    f.draw("m", "line", [(.24, .5), (.42, .48), (.42, .26), (.24, .2)], .07)
    f.draw("m", "conv", [(-.3, .66), (.3, .66), (.23, 0), (-.23, 0)])
    f.draw(rgb(90, 60, 44), "ell", 0, .65, .28, .06)


def vase(f, r, env):
    for u, v in ((-.16, .86), (.02, .94), (.18, .84)):
        f.draw(LEAF, "line", [(u * .3, .55), (u, v)], .03)
        f.draw(env["accent"], "ell", u, v, .09, .09)
    f.draw("m", "union", [("ell", 0, .24, .26, .24), ("conv", [(-.1, .3), (.1, .3), (.14, .6), (-.14, .6)])])


def bottle(f, r, env):
    f.draw(WOOD, "rect", -.06, .9, .06, 1)
    f.draw("m", "union", [("rect", -.17, 0, .17, .58, .04), ("conv", [(-.17, .54), (.17, .54), (.07, .72), (-.07, .72)]), ("rect", -.07, .68, .07, .92)])
    f.draw(CREAM, "rect", -.17, .2, .17, .42)


def lamp(f, r, env):
    f.draw(STEEL, "rect", -.04, .05, .04, .6)
    f.draw(STEEL, "ell", 0, .05, .2, .05)
    f.draw("m", "conv", [(-.36, .5), (.36, .5), (.2, .98), (-.2, .98)])


def cake(f, r, env):
    f.draw(STEEL, "ell", 0, .06, .5, .06)
    f.draw("m", "rect", -.4, .06, .4, .46)
    f.draw(WHITE, "union", [("rect", -.42, .38, .42, .52, .05)] + [("ell", -.32 + .16 * i, .38, .08, .07) for i in range(5)])
    for u in (-.2, 0, .2):
        f.draw(env["accent"], "rect", u - .025, .5, u + .025, .72)
        f.draw(GOLD, "ell", u, .78, .03, .05, lit=False)


def teapot(f, r, env):
    f.draw("m", "line", [(-.28, .5), (-.48, .46), (-.46, .22), (-.26, .18)], .07)
    f.draw("m", "conv", [(.2, .18), (.5, .5), (.4, .54), (.18, .4)])
    f.draw("m", "ell", 0, .32, .33, .3)
    f.draw("d", "ell", 0, .62, .15, .05)
    f.draw("d", "ell", 0, .69, .05, .045)


def book(f, r, env):
    f.draw(CREAM, "rect", -.36, .0, .4, .12)
    f.draw("m", "conv", [(-.42, .1), (.38, .1), (.44, .2), (-.36, .2)])
    f.draw("m", "rect", -.42, 0, -.34, .18)


# name: (draw, plural, other names, where, size as a share of the short side, most of one kind)
THINGS = {
    "house": (house, "houses", ["cottage", "home"], "land", (.34, .62), 2),
    "castle": (castle, "castles", [], "land", (.42, .7), 1),
    "lighthouse": (lighthouse, "lighthouses", [], "land sea", (.45, .7), 1),
    "tent": (tent, "tents", [], "land", (.25, .42), 2),
    "tree": (tree, "trees", [], "land street", (.32, .68), 3),
    "pine tree": (pine, "pine trees", ["fir tree", "pine"], "land", (.34, .68), 3),
    "palm tree": (palm, "palm trees", ["palm"], "land", (.42, .7), 2),
    "bush": (bush, "bushes", [], "land street", (.2, .34), 2),
    "flower": (flower, "flowers", [], "land plain", (.26, .5), 3),
    "tulip": (tulip, "tulips", [], "land plain", (.26, .46), 3),
    "mushroom": (mushroom, "mushrooms", [], "land plain", (.22, .46), 2),
    "car": (car, "cars", [], "land street plain", (.36, .66), 2),
    "truck": (truck, "trucks", [], "street land plain", (.42, .7), 1),
    "bus": (bus, "buses", [], "street", (.45, .72), 1),
    "train": (train, "trains", [], "land street", (.45, .72), 1),
    "cat": (cat, "cats", ["kitten"], "land plain table", (.28, .56), 2),
    "dog": (dog, "dogs", ["puppy"], "land plain street", (.28, .56), 2),
    "rabbit": (rabbit, "rabbits", ["bunny"], "land plain", (.26, .5), 2),
    "sheep": (sheep, "sheep", [], "land", (.26, .46), 3),
    "bird": (bird, "birds", [], "land sky plain", (.2, .46), 2),
    "duck": (duck, "ducks", [], "sea land plain", (.24, .5), 3),
    "fish": (fish, "fish", [], "sea plain", (.26, .56), 2),
    "butterfly": (butterfly, "butterflies", [], "sky plain", (.2, .46), 2),
    "owl": (owl, "owls", [], "land plain", (.26, .56), 1),
    "turtle": (turtle, "turtles", ["tortoise"], "land plain", (.28, .5), 1),
    "boat": (boat, "boats", ["sailboat", "sailing boat"], "sea", (.34, .66), 2),
    "ship": (ship, "ships", [], "sea", (.4, .68), 1),
    "hot air balloon": (hotair, "hot air balloons", [], "sky", (.26, .42), 2),
    "balloon": (toyballoon, "balloons", [], "sky plain", (.28, .5), 3),
    "kite": (kite, "kites", [], "sky plain", (.26, .46), 1),
    "plane": (plane, "planes", ["airplane"], "sky plain", (.3, .5), 1),
    "rocket": (rocket, "rockets", [], "sky plain land", (.34, .6), 1),
    "sun": (sun, "suns", [], "orb", (.16, .32), 1),
    "moon": (moon, "moons", [], "orb", (.16, .32), 1),
    "cloud": (cloud, "clouds", [], "sky", (.2, .4), 3),
    "star": (star, "stars", [], "plain sky", (.18, .5), 3),
    "heart": (heart, "hearts", [], "plain", (.28, .6), 2),
    "circle": (circle, "circles", ["disc"], "plain", (.25, .6), 3),
    "square": (square, "squares", ["box"], "plain", (.25, .6), 2),
    "triangle": (triangle, "triangles", [], "plain", (.25, .6), 2),
    "shape": (blob, "shapes", ["blob", "thing"], "plain land table", (.25, .6), 3),
    "ball": (ball, "balls", [], "plain land table", (.18, .46), 3),
    "umbrella": (umbrella, "umbrellas", [], "plain land", (.34, .6), 1),
    "gift": (gift, "gifts", ["present"], "plain table", (.26, .5), 2),
    "hat": (hat, "hats", [], "plain table", (.3, .5), 1),
    "apple": (apple, "apples", [], "table plain", (.22, .5), 3),
    "pear": (pear, "pears", [], "table plain", (.26, .5), 2),
    "banana": (banana, "bananas", [], "table plain", (.28, .5), 1),
    "cherries": (cherries, "cherries", ["cherry"], "table plain", (.24, .46), 1),
    "lemon": (lemon, "lemons", [], "table plain", (.22, .42), 2),
    "grapes": (grapes, "grapes", [], "table plain", (.28, .46), 1),
    "cup": (cup, "cups", ["mug"], "table plain", (.24, .46), 2),
    "vase": (vase, "vases", [], "table", (.4, .62), 1),
    "bottle": (bottle, "bottles", [], "table", (.42, .62), 2),
    "lamp": (lamp, "lamps", [], "table", (.38, .58), 1),
    "cake": (cake, "cakes", [], "table plain", (.34, .56), 1),
    "teapot": (teapot, "teapots", ["kettle"], "table plain", (.3, .52), 1),
    "book": (book, "books", [], "table", (.36, .56), 1),
}
PLURAL_ONLY = {"cherries", "grapes"}
PARTS = {"house": "roof", "castle": "roof", "boat": "sail"}
PARTS_DEFAULT = {"roof": rgb(148, 76, 60), "sail": CREAM}
GROUNDS = {  # name: (near colour, far colour, phrases)
    "grass": (rgb(112, 184, 84), rgb(150, 200, 110), ["in a field", "on the grass", "in the countryside", "in a meadow"]),
    "snow": (rgb(236, 242, 250), rgb(214, 226, 240), ["in the snow", "in winter"]),
    "sand": (rgb(238, 212, 150), rgb(228, 196, 136), ["on the beach", "in the desert", "on sand"]),
    "earth": (rgb(186, 142, 98), rgb(200, 160, 112), ["on a farm", "in autumn"]),
}
TIMES = {"day": ["in the day", "by day", "on a sunny day", "during the day", "in daylight"],
         "sunset": ["at sunset", "in the evening", "at dusk", "in the sunset"],
         "night": ["at night", "by night", "in the night", "under the stars", "in the dark"]}


# ---------------------------------------------------------------- scenery

def smooth(rng, width, waves, lo, hi):
    x = np.arange(width, dtype=np.float32) / max(width, 256)
    y = np.zeros(width, np.float32)
    for k in range(1, waves + 1):
        y += np.float32(rng.uniform(.4, 1) / k) * np.sin(x * np.float32(6.2832 * k * rng.uniform(.5, 1.1)) + np.float32(rng.uniform(0, 6.28)))
    y = (y - y.min()) / max(1e-3, float(y.max() - y.min()))
    return lo + (hi - lo) * y


def ridge(rng, width, lo, hi):
    """Mountain tops: straight lines between random points."""
    n = rng.integers(4, 8)
    xs = np.linspace(-20, width + 20, n)
    ys = np.where(np.arange(n) % 2 == rng.integers(0, 2), lo, hi) + rng.uniform(-.15, .15, n) * (hi - lo)
    return np.interp(np.arange(width), xs, ys).astype(np.float32)


def land(cv, top, colour, oid=0, outline=True, light=None):
    """Fills below the curve top[x]."""
    y0 = max(0, int(top.min()) - 4)
    box = (slice(y0, cv.h), slice(0, cv.w))
    slope = np.abs(np.gradient(top))
    dist = (top[None, :] - cv.y[box[0]]) / np.sqrt(1 + slope * slope)[None, :]
    cv.paint(dist.astype(np.float32), box, colour, oid, outline=outline)


def vary(rng, colour, amount=.03):
    return np.clip(np.float32(colour) * np.float32(1 + rng.uniform(-amount, amount)) + rng.uniform(-amount, amount, 3).astype(np.float32) * .6, 0, 1).astype(np.float32)


def palette(rng, name):
    return vary(rng, np.float32(PALETTE[name]) / 255)


SKIES = {"day": [((86, 160, 236), (206, 232, 252)), ((120, 190, 244), (232, 244, 252)), ((70, 140, 220), (180, 220, 246))],
         "sunset": [((104, 74, 150), (255, 190, 110)), ((226, 96, 84), (255, 214, 130)), ((70, 60, 120), (250, 150, 110))],
         "night": [((14, 18, 54), (58, 70, 134)), ((20, 26, 72), (44, 54, 112)), ((10, 14, 44), (72, 64, 128))]}


def sky(cv, rng, time, horizon):
    top, low = SKIES[time][rng.integers(0, 3)]
    top, low = vary(rng, rgb(*top)), vary(rng, rgb(*low))
    t = np.clip(cv.y / max(horizon, 1), 0, 1)[..., None]
    cv.img[:] = top * (1 - t) + low * t
    if time == "night":
        for _ in range(rng.integers(6, 26)):
            made = ellipse(cv, rng.uniform(0, cv.w), rng.uniform(0, horizon * .9), *[rng.uniform(.7, 1.8)] * 2)
            if made:
                cv.paint(*made, rgb(255, 250, 220), outline=False, lit=False, flat=True)


def add_part(frame, colours):
    """Named parts of a thing (a roof, a sail) have a colour and a mask of their own."""
    def part(name, *shape):
        colour, oid = colours[name]
        made = frame.shape(*shape)
        if made is not None:
            frame.cv.paint(made[0], made[1], colour, oid)
    frame.part = part


def draw_thing(cv, rng, kind, x, y, size, colour, oid, env, colours=None):
    frame = Frame(cv, x, y, size, 1 if rng.random() < .5 else -1, colour, oid)
    add_part(frame, colours or {})
    THINGS[kind][0](frame, lambda a, b: float(rng.uniform(a, b)), env)


def extent(kind):
    return {"castle": .52, "tent": .62, "bus": .54, "ship": .56}.get(kind, .5)


class Scene:
    """image: uint8 RGB; ids: the object's number at each pixel of its own colour, 0 elsewhere;
    items: [{kind, colour, count, id, part of}], in the order drawn."""


def scene(seed, size=None, place=None, time=None, styles=None):
    rng = np.random.Generator(np.random.PCG64(seed))
    h, w = size or SIZES[rng.integers(0, 3)]
    cv = Canvas(h, w)
    place = place or rng.choice(["land", "sea", "street", "table", "plain"], p=[.36, .14, .14, .18, .18])
    outdoors = place in ("land", "sea", "street")
    time = (time or rng.choice(["day", "sunset", "night"], p=[.46, .27, .27])) if outdoors else "day"
    cv.light = np.float32(LIGHT[time])
    cv.outline = float(rng.uniform(1.5, 3.2)) if rng.random() < .78 else 0.0
    if styles and "outline" in styles:
        cv.outline = styles["outline"]
    cv.shade = (float(rng.uniform(-.25, .25)), float(rng.uniform(-.32, .05)))
    env = {"time": time, "accent": palette(rng, COLOURS[rng.integers(0, 11)])}
    short = min(h, w)
    items, phrase = [], None
    next_id = [1]

    def item(kind, colour, count=1, part_of=None, named=True):
        items.append({"kind": kind, "colour": colour, "count": count, "id": next_id[0], "part_of": part_of, "named": named})
        next_id[0] += 1
        return items[-1]["id"]

    def any_colour():
        return COLOURS[rng.integers(0, len(COLOURS))]

    queue = []  # (depth, draw) so that near things cover far ones
    if outdoors:
        horizon = h * rng.uniform(.42, .66)
        sky(cv, rng, time, horizon)
        orb = rng.random()
        if orb < .6:
            kind = "moon" if time == "night" else "sun"
            named = rng.random() < .5
            colour = any_colour() if named else ("white" if kind == "moon" else ("orange" if time == "sunset" else "yellow"))
            s = short * rng.uniform(*THINGS[kind][4])
            oid = item(kind, colour, named=named or rng.random() < .3)
            draw_thing(cv, rng, kind, rng.uniform(s * .5, w - s * .5), s + rng.uniform(2, max(3, horizon * .5 - s * .5)), s, palette(rng, colour), oid, env)
        if rng.random() < .45:
            named = rng.random() < .3
            colour = any_colour() if named else "white"
            n = int(rng.integers(1, 4))
            oid = item("cloud", colour, n, named=named)
            for _ in range(n):
                s = short * rng.uniform(.2, .4)
                draw_thing(cv, rng, "cloud", rng.uniform(0, w), rng.uniform(s * .6, horizon * .6), s, palette(rng, colour), oid, env)
        if place == "sea":
            sea = vary(rng, [rgb(46, 120, 190), rgb(40, 150, 180), rgb(60, 100, 170)][rng.integers(0, 3)], .05)
            if rng.random() < .4:
                named = rng.random() < .5
                colour = any_colour() if named else "green"
                oid = item("island", colour, named=named)
                land_top = horizon - np.maximum(0, 1 - ((np.arange(w) - rng.uniform(0, w)) / (w * rng.uniform(.2, .4))) ** 2).astype(np.float32) * h * rng.uniform(.08, .2) + 1.5
                land(cv, land_top, palette(rng, colour), oid)
            land(cv, np.full(w, horizon, np.float32), sea)
            for _ in range(rng.integers(3, 10)):
                y, x, l = rng.uniform(horizon + 8, h), rng.uniform(0, w), rng.uniform(10, 34)
                made = stroke(cv, [(x, y), (x + l * .5, y - 2), (x + l, y)], rng.uniform(1.2, 2.4))
                if made:
                    cv.paint(*made, sea + (1 - sea) * .45, outline=False)
            phrase = ["at sea", "on the sea", "on the water", "on a lake"]
            ground_kinds, sky_ok = "sea", True
        else:
            if rng.random() < .3:
                named = rng.random() < .6
                colour = any_colour() if named else "gray"
                oid = item("mountains", colour, named=named)
                land(cv, ridge(rng, w, horizon - h * rng.uniform(.1, .3), horizon), palette(rng, colour), oid)
            if place == "land":
                name = list(GROUNDS)[rng.choice(4, p=[.58, .16, .16, .1])]
                near, far, phrase = GROUNDS[name]
                if rng.random() < .55:
                    named = rng.random() < .6
                    colour = any_colour() if named else None
                    oid = item("hills", colour, 2, named=named) if named else 0
                    for k in range(rng.integers(1, 3)):
                        tone = palette(rng, colour) if named else vary(rng, far, .06)
                        land(cv, smooth(rng, w, 2, horizon - h * rng.uniform(.04, .16), horizon + h * .04 * (k + 1)), tone, oid)
                if rng.random() < .15:
                    colour = any_colour()
                    oid = item("ground", colour)
                    land(cv, smooth(rng, w, 1, horizon, horizon + h * .06), palette(rng, colour), oid)
                    phrase = None
                else:
                    land(cv, smooth(rng, w, 1, horizon, horizon + h * .06), vary(rng, near, .05))
                    if name == "grass" and rng.random() < .5:
                        for _ in range(rng.integers(4, 12)):
                            x, y = rng.uniform(0, w), rng.uniform(horizon + .1 * h, h)
                            made = stroke(cv, [(x - 3, y - 6), (x, y), (x + 3, y - 7)], 1.5)
                            if made:
                                cv.paint(*made, near * .72, outline=False)
            else:
                land(cv, np.full(w, horizon, np.float32), vary(rng, GROUNDS["grass"][0], .06))
                road = horizon + (h - horizon) * rng.uniform(.3, .5)
                made = convex(cv, [(-9, road), (w + 9, road), (w + 9, h + 9), (-9, h + 9)])
                cv.paint(*made, vary(rng, rgb(104, 106, 114)))
                y = road + (h - road) * .55
                for x in range(-int(rng.integers(0, 40)), w, 56):
                    made = convex(cv, [(x, y - 2.5), (x + 30, y - 2.5), (x + 30, y + 2.5), (x, y + 2.5)])
                    if made:
                        cv.paint(*made, WHITE, outline=False)
                phrase = ["on a road", "on the street", "in a street", "on the road"]
            ground_kinds, sky_ok = place, True
    elif place == "table":
        horizon = h * rng.uniform(.5, .72)
        wall = any_colour()
        named = rng.random() < .5
        oid = item("wall", wall, named=named)
        cv.ids[:] = oid
        t = np.clip(cv.y / h, 0, 1)[..., None]
        cv.img[:] = palette(rng, wall) * (1.04 - .1 * t)
        table_colour = any_colour() if rng.random() < .7 else "brown"
        while table_colour == wall:
            table_colour = any_colour()
        oid = item("table", table_colour, named=True)
        land(cv, np.full(w, horizon, np.float32), palette(rng, table_colour), oid)
        ground_kinds, sky_ok = "table", False
    else:
        horizon = h * .3
        back = any_colour() if rng.random() < .7 else "white"
        named = rng.random() < .75
        oid = item("background", back, named=named)
        cv.ids[:] = oid
        t = np.clip(cv.y / h, 0, 1)[..., None]
        cv.img[:] = palette(rng, back) * (1.0 - .06 * t)
        ground_kinds, sky_ok = "plain", False

    taken = []

    def free(x0, y0, x1, y1):
        for a, b, c, d in taken:
            ox, oy = min(c, x1) - max(a, x0), min(d, y1) - max(b, y0)
            if ox > 0 and oy > 0 and ox * oy > .16 * min((x1 - x0) * (y1 - y0), (c - a) * (d - b)):
                return False
        return True

    pool = [k for k, v in THINGS.items() if ground_kinds in v[3].split()]
    air = [k for k, v in THINGS.items() if "sky" in v[3].split() and k != "cloud"]
    want = int(rng.choice([1, 2, 3, 4], p=[.26, .36, .26, .12]))
    used = set()
    for _ in range(want):
        flying = sky_ok and rng.random() < .2
        kind = (air if flying else pool)[rng.integers(0, len(air if flying else pool))]
        if kind in used:
            continue
        used.add(kind)
        colour = any_colour()
        # A black thing on a black table would have a mask and no edges to follow.
        backs = [i["colour"] for i in items if i["kind"] in ("wall", "table", "background", "ground")]
        if place in ("table", "plain"):
            for _ in range(20):
                if colour not in backs:
                    break
                colour = any_colour()
        _, _, _, where, (lo, hi), most = THINGS[kind]
        count = int(min(most, rng.choice([1, 2, 3], p=[.68, .2, .12])))
        grow = 1.15 if want == 1 else 1.0
        s0 = short * rng.uniform(lo, hi) * grow * (1.0, .82, .7)[count - 1]
        spots = []
        for _ in range(count):
            for _ in range(14):
                s = s0 * rng.uniform(.88, 1.12)
                half = s * extent(kind)
                x = rng.uniform(half * .85, w - half * .85) if w > 1.7 * half else w / 2
                if flying:
                    y = rng.uniform(s * 1.02, max(s * 1.05, horizon * .95))
                elif place == "plain":
                    y = rng.uniform(min(s * 1.02, h - 3), h - 2)
                elif place == "table":
                    y = rng.uniform(horizon + (h - horizon) * .12, h - 6)
                elif place == "street" and kind in ("tree", "bush"):
                    y = horizon + (h - horizon) * rng.uniform(.08, .3)
                else:
                    y = rng.uniform(horizon + (h - horizon) * .18, h - 4)
                if y - s < -s * .12:
                    continue
                if free(x - half, y - s, x + half, y):
                    spots.append((x, y, s))
                    taken.append((x - half, y - s, x + half, y))
                    break
        if not spots:
            continue
        oid = item(kind, colour, len(spots))
        colours = {}
        if kind in PARTS:
            name = PARTS[kind]
            if rng.random() < .4:
                part = any_colour()
                colours[name] = (palette(rng, part), item(name, part, len(spots), part_of=kind))
            else:
                colours[name] = (PARTS_DEFAULT[name], 0)
        tone = palette(rng, colour)
        for x, y, s in spots:
            queue.append((0 if flying else y, flying, kind, x, y, s, tone, oid, colours))
    shadow = outdoors and place != "sea" or place == "table"
    for _, flying, kind, x, y, s, tone, oid, colours in sorted(queue, key=lambda q: q[0]):
        if shadow and not flying and rng.random() < .8:
            made = ellipse(cv, x, y, s * extent(kind) * .8, s * .045)
            if made:
                keep = cv.ids[made[1]].copy()
                cv.paint(*made, OUTLINE, outline=False, alpha=.22, flat=True)
                cv.ids[made[1]] = keep
        draw_thing(cv, rng, kind, x, y, s, tone, oid, env, colours)

    out = Scene()
    out.image = (np.clip(cv.img, 0, 1) * 255 + .5).astype(np.uint8)
    out.ids = cv.ids
    out.place, out.time, out.phrases, out.seed = place, time, phrase, seed
    area = np.bincount(cv.ids.ravel(), minlength=next_id[0])
    for i in items:
        i["area"] = int(area[i["id"]])
        # What can hardly be seen is not named.
        i["named"] = i["named"] and i["area"] >= 160 and i["colour"] is not None
    out.items = items
    return out


# ---------------------------------------------------------------- captions

NUMBER = {2: ["two", "two", "some"], 3: ["three", "three", "some", "many"]}


def article(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


def phrase_of(item, rng, names=True, colour=None):
    kind, count = item["kind"], item["count"]
    colour = colour or item["colour"]
    if kind in ("hills", "mountains"):
        return f"{colour} {kind}"
    if kind in ("wall", "table", "background", "ground", "island"):
        return article(f"{colour} {kind}")
    if kind in PLURAL_ONLY:
        return f"{colour} {kind}"
    _, plural, others, *_ = THINGS[kind]
    if kind in ("sun", "moon"):
        return f"the {colour} {kind}" if rng.random() < .3 else article(f"{colour} {kind}")
    if count > 1:
        lead = NUMBER[count][rng.integers(0, len(NUMBER[count]))] + " " if rng.random() < .7 else ""
        return f"{lead}{colour} {plural}"
    name = others[rng.integers(0, len(others))] if names and others and rng.random() < .25 else kind
    shade = ""
    if names and rng.random() < .12:
        shade = ("big ", "small ", "little ", "large ", "pretty ", "bright ")[rng.integers(0, 6)]
    return article(f"{shade}{colour} {name}")


LEADS = ["", "", "", "", "", "a drawing of ", "a picture of ", "an illustration of ", "there is ", "a painting of ", "a photo of "]
TAGS = "bright colors, clean lines"


MARK = 0xE000  # the first private character: MARK + id ends the phrase that names an item


def caption(sc, rng, colours=None, time=None, plain=False):
    """plain: names every thing, as the evaluation needs; else some are left out, as people do.
    colours: {id: colour} instead of the scene's own."""
    return nouns(marked_caption(sc, rng, colours, time, plain))[0]


def nouns(marked):
    """The caption without marks, and where in it each item's name ends: {id: characters before}."""
    text, ends = [], {}
    for c in marked:
        if ord(c) >= MARK:
            ends[ord(c) - MARK] = len(text)
        else:
            text.append(c)
    return "".join(text), ends


def marked_caption(sc, rng, colours=None, time=None, plain=False):
    mark = lambda i: chr(MARK + i["id"])
    colours = colours or {}
    things, parts, backs = [], {}, {}
    for i in sc.items:
        if not i["named"]:
            continue
        c = colours.get(i["id"], i["colour"])
        if i["part_of"]:
            words = f"{c} {i['kind']}"
            parts[i["part_of"]] = " with " + (words + "s" if i["count"] > 1 else article(words)) + mark(i)
        elif i["kind"] in ("table", "background", "ground", "wall"):
            backs[i["kind"]] = article(f"{c} {i['kind']}") + mark(i)
        elif plain or rng.random() > .1:
            things.append((i, c))
    order = rng.permutation(len(things))
    words = []
    for k in order:
        i, c = things[k]
        text = phrase_of(i, rng, not plain, c) + mark(i)
        if i["kind"] in parts and (plain or rng.random() < .9):
            text += parts[i["kind"]]
        words.append(text)
    if not words:
        text = ""
    elif len(words) == 1:
        text = words[0]
    elif plain or rng.random() < .7:
        text = ", ".join(words[:-1]) + " and " + words[-1]
    else:
        text = ", ".join(words)
    if not plain:
        text = LEADS[rng.integers(0, len(LEADS))] + text
    if "table" in backs:
        text += " on " + backs["table"]
        if "wall" in backs and (plain or rng.random() < .9):
            text += (" in front of " if rng.random() < .6 else " and ") + backs["wall"]
    elif "wall" in backs:
        text += " in front of " + backs["wall"]
    if "background" in backs and (plain or rng.random() < .9):
        text += " on " + backs["background"]
    if "ground" in backs:
        text += " on " + backs["ground"]
    if sc.phrases and (rng.random() < .6):
        text += " " + sc.phrases[rng.integers(0, len(sc.phrases))]
    when = time or sc.time
    if sc.place in ("land", "sea", "street") and (plain or when != "day" and rng.random() < .92 or rng.random() < .5):
        text += " " + TIMES[when][0 if plain else rng.integers(0, len(TIMES[when]))]
    text = text.strip()
    if not words and not plain and not backs:
        text = text.replace(" of on ", " on ").removesuffix(" of").removesuffix(" is")
    tail = rng.random()
    if not plain and tail < .55:
        text += ", " + (TAGS if tail < .45 else "")
    return text


def recolour(sc, rng):
    """Other colours for the scene's things, and another time: {id: colour}, time."""
    colours = {}
    for i in sc.items:
        if i["colour"] is not None:
            colours[i["id"]] = COLOURS[rng.integers(0, len(COLOURS))]
    return colours, ["day", "sunset", "night"][rng.integers(0, 3)]


# ---------------------------------------------------------------- colours measured

def to_lab(c):
    c = np.asarray(c, np.float64) / 255
    c = np.where(c <= .04045, c / 12.92, ((c + .055) / 1.055) ** 2.4)
    xyz = c @ np.array([[.4124564, .2126729, .0193339], [.3575761, .7151522, .1191920], [.1804375, .0721750, .9503041]])
    t = xyz / np.array([.95047, 1.0, 1.08883])
    f = np.where(t > .008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def nearest_colour(pixel, time, lit=True):
    """The palette's name for an sRGB colour seen in a time's light. Lightness counts half: shading changes it."""
    light = np.float64(LIGHT[time]) if lit else np.ones(3)
    names = COLOURS
    refs = to_lab(np.float64([PALETTE[n] for n in names]) * light)
    d = (to_lab(pixel) - refs) * np.array([.5, 1, 1])
    return names[int((d * d).sum(-1).argmin())]


UNLIT = ("sun", "moon")  # they shine by themselves


def measured_colour(image, mask, time, kind):
    """The colour that an object shows: the median over its mask less its rim, so that outlines don't count."""
    inner = mask.copy()
    for _ in range(2):
        p = np.pad(inner, 1)
        inner = p[1:-1, 1:-1] & p[:-2, 1:-1] & p[2:, 1:-1] & p[1:-1, :-2] & p[1:-1, 2:]
    if inner.sum() < 30:
        inner = mask
    return nearest_colour(np.median(image[inner], 0), time, kind not in UNLIT)
