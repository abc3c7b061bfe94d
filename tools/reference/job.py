"""canny2image after the edge map, written from its description: Philox noise, DDIM, guidance, scaled controls."""
import math

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


def run(model, cond_ids, uncond_ids, edges, x, steps=20, guidance=9.0, strength=1.0, eta=0.0, mode="balanced",
        window=(0.0, 1.0), noise=None, keep=None):
    """From ids [1,77] and an edge map uint8 [H,W] to final latents. mode: balanced, prompt, control (guess mode).

    keep: a list that gets the latents after each step."""
    dtype = model.dtype
    n = x.shape[0]
    x = x.to(dtype)
    ac = alphas_cumprod()
    ts = [t + 1 for t in range(0, 1000, 1000 // steps)]
    context = [model.text(ids).expand(n, -1, -1) for ids in (cond_ids, uncond_ids)]
    hint = (torch.as_tensor(edges).to(dtype) / 255).expand(n, 3, -1, -1)
    for done, i in enumerate(reversed(range(len(ts)))):
        a, prev = ac[ts[i]], ac[ts[i - 1]] if i else ac[0]
        t = torch.tensor(ts[i])
        active = strength > 0 and done / len(ts) >= window[0] and (done + 1) / len(ts) <= window[1]
        eps = []
        for side in (0, 1):
            if side and guidance == 1.0:
                break
            controls = None
            if active and not (side and mode == "control"):
                controls = model.controls(x, t, context[side], hint)
                controls = [c * s for c, s in zip(controls, control_scales(len(controls), strength, mode))]
            eps.append(model.eps(x, t, context[side], controls))
        e = eps[0] if len(eps) == 1 else eps[1] + guidance * (eps[0] - eps[1])
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
