"""canny2image after the edge map, written from its description: Philox noise, DDIM, guidance, scaled controls."""
import math
from typing import NamedTuple

import numpy as np
import torch

GRID_THREADS = 270336  # resident threads of a GPU with 132 SMs


def philox_randn(seed, offset, n):
    """torch.randn of n values on CUDA. offset: 0 for the first draw of a generator, 4 more for each one after."""
    if n > GRID_THREADS * 4:
        raise ValueError("one round of the grid only")
    threads = min(GRID_THREADS, (n + 255) // 256 * 256)
    mask = np.uint64(0xFFFFFFFF)
    idx = np.arange(threads, dtype=np.uint64)
    c = [np.full_like(idx, offset // 4), np.zeros_like(idx), idx & mask, idx >> np.uint64(32)]
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p, q = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(q >> np.uint64(32)) ^ c[1] ^ np.uint64(k0), q & mask,
             (p >> np.uint64(32)) ^ c[3] ^ np.uint64(k1), p & mask]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    out = np.empty((4, threads))
    f, tau = np.float32(2.3283064e-10), np.float32(np.float32(2.3283064e-10) * np.float32(6.2831855))
    for pair in (0, 1):
        u = (c[2 * pair].astype(np.float32) * f + f / np.float32(2)).astype(np.float64)
        v = (c[2 * pair + 1].astype(np.float32) * tau + tau / np.float32(2)).astype(np.float64)
        r = np.sqrt(-2 * np.log(u))
        out[2 * pair], out[2 * pair + 1] = r * np.sin(v), r * np.cos(v)
    return out.reshape(-1)[:n].astype(np.float32)


class Noise:
    """Draws one after the other, as one generator gives them."""

    def __init__(self, seed, kind="cuda"):
        self.seed, self.kind, self.draws = seed, kind, 0
        self.generator = torch.Generator("cpu").manual_seed(seed)

    def draw(self, shape):
        self.draws += 1
        if self.kind == "cpu":
            return torch.randn(shape, generator=self.generator)
        return torch.from_numpy(philox_randn(self.seed, 4 * (self.draws - 1), math.prod(shape)).reshape(shape))


def alphas_cumprod():
    betas = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float().double()


def control_scales(n, strength, mode):
    if mode == "balanced":
        return [strength] * n
    return [strength * 0.825 ** (n - 1 - i) for i in range(n)]


class Control(NamedTuple):
    """A ControlNet's part in a job: whose it is, its edge map uint8 [H,W], and how strongly it acts and when."""
    model: object
    edges: np.ndarray
    strength: float = 1.0
    window: tuple = (0.0, 1.0)

    def acts(self, done, steps):
        return self.strength > 0 and done / steps >= self.window[0] and (done + 1) / steps <= self.window[1]


def added(controls, done, steps, x, t, context, mode):
    """The sum of what the ControlNets add to the UNet after `done` of its steps; None where none of them acts."""
    out = None
    for c in controls:
        if not c.acts(done, steps):
            continue
        hint = (torch.as_tensor(c.edges).to(x.dtype) / 255).expand(x.shape[0], 3, -1, -1)
        taps = c.model.controls(x, t, context, hint)
        taps = [tap * s for tap, s in zip(taps, control_scales(len(taps), c.strength, mode))]
        out = taps if out is None else [a + b for a, b in zip(out, taps)]
    return out


def guided(model, context, controls, done, steps, x, t, guidance, mode="balanced"):
    """eps of both texts' passes, or of the first alone where guidance is 1."""
    eps = []
    for side in (0, 1):
        if side and guidance == 1.0:
            break
        taps = None
        if not (side and mode == "control"):
            taps = added(controls, done, steps, x, t, context[side], mode)
        eps.append(model.eps(x, t, context[side], taps))
    return eps[0] if len(eps) == 1 else eps[1] + guidance * (eps[0] - eps[1])


def run(model, cond_ids, uncond_ids, controls, x, steps=20, guidance=9.0, eta=0.0, mode="balanced", clip_skip=1,
        noise=None, keep=None):
    """From ids [1,77] and Controls to final latents. mode: balanced, prompt, control (guess mode).

    clip_skip: as A1111 counts, 1 is the last layer. keep: a list that gets the latents after each step."""
    dtype = model.dtype
    n = x.shape[0]
    x = x.to(dtype)
    ac = alphas_cumprod()
    ts = [t + 1 for t in range(0, 1000, 1000 // steps)]
    context = [model.text(ids, clip_skip - 1).expand(n, -1, -1) for ids in (cond_ids, uncond_ids)]
    for done, i in enumerate(reversed(range(len(ts)))):
        a, prev = ac[ts[i]], ac[ts[i - 1]] if i else ac[0]
        e = guided(model, context, controls, done, len(ts), x, torch.tensor(ts[i]), guidance, mode)
        sigma = eta * ((1 - prev) / (1 - a) * (1 - a / prev)).sqrt()
        x0 = (x - (1 - a).sqrt() * e) / a.sqrt()
        x = prev.sqrt() * x0 + (1 - prev - sigma ** 2).sqrt() * e
        if noise is not None:
            x = x + sigma * noise.draw(x.shape).to(dtype)
        x = x.to(dtype)
        if keep is not None:
            keep.append(x.float())
    return x


def to_bytes(pictures):
    """[N,3,H,W] to uint8 [N,H,W,3], truncated as the reference does."""
    return (pictures * 127.5 + 127.5).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).contiguous()
