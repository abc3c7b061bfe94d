"""Trains the demo model in four parts, each under ten minutes on one GPU, each from where the last stopped.

  train.py vae  --out RUN --minutes 4.5            the autoencoder
  train.py text --out RUN --minutes 2              the text encoder, on captions alone
  train.py base --out RUN --minutes 8 --crop 16    UNet and ControlNet together, on crops of 16x16 latents
  train.py tune --out RUN --minutes 6              the same, down to a small rate
  train.py export --out RUN --to models/demo       averaged weights -> model.safetensors

A part looks for RUN/*.pt first, then for the weights of --from (a model.safetensors).
"""
import argparse
import copy
import json
import math
import os
import time

import numpy as np
import torch
import torch.nn.functional as F

import bpe
import data
import evaluate
import scenes
import model as M
from edges import agreement, canny

HERE = os.path.dirname(os.path.abspath(__file__))
MODELS = os.path.join(HERE, "..", "..", "models", "demo")
SCALE = M.CONFIG["scale_factor"]
NAME = "linework demo"
TAGS = "bright colors, clean lines"

# What a person may put where the model wants nothing in particular. Such texts are trained to mean no text.
NEUTRAL = ["longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, fewer digits, cropped, worst quality, low quality",
           "best quality, extremely detailed", TAGS, "lowres, worst quality, low quality", "blurry, noisy, ugly", ", " + TAGS, ", "]


def log(path, **values):
    line = " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
    print(line, flush=True)
    with open(path, "a") as f:
        f.write(line + "\n")


def rate(progress, step, peak, warm, floor=.02):
    """Linear start, a flat third, cosine to the end."""
    late = max(0.0, (progress - .35) / .65)
    return peak * min(1.0, (step + 1) / warm) * (floor + (1 - floor) * .5 * (1 + math.cos(math.pi * min(1.0, late))))


def fast_type(device):
    """What to multiply in: bfloat16 where there is hardware for it."""
    return torch.bfloat16 if device == "cuda" or torch.cpu._is_avx512_bf16_supported() else torch.float32


class Trainer:
    """bf16 weights to compute with (where that is faster), float32 weights to learn with, and their running average."""

    def __init__(self, net, device, decay, amount=.01):
        self.device = device
        self.dtype = fast_type(device)
        self.average = copy.deepcopy(net).to(device).float()
        self.average.requires_grad_(False)
        self.net = net.to(device).to(self.dtype).to(memory_format=torch.channels_last)
        # Frozen weights are left out: weight decay would shrink them.
        mine = [n for n, p in self.net.named_parameters() if p.requires_grad]
        self.names = mine
        params, avg = dict(self.net.named_parameters()), dict(self.average.named_parameters())
        self.params, self.avg = [params[n] for n in mine], [avg[n] for n in mine]
        self.master = [p.detach().float().clone() for p in self.avg]
        for m in self.master:
            m.requires_grad_(True)
        plain = [m for m in self.master if m.ndim < 2]
        rest = [m for m in self.master if m.ndim >= 2]
        self.opt = torch.optim.AdamW([{"params": rest, "weight_decay": amount}, {"params": plain, "weight_decay": 0.0}],
                                     lr=1e-4, betas=(.9, .99), eps=1e-8, fused=device == "cuda")
        self.decay, self.step = decay, 0

    def update(self, lr, clip=1.0):
        for m, p in zip(self.master, self.params):
            m.grad = torch.zeros_like(m) if p.grad is None else torch.empty_like(m).copy_(p.grad)  # fused Adam wants the same strides
        norm = torch.nn.utils.clip_grad_norm_(self.master, clip)
        for g in self.opt.param_groups:
            g["lr"] = lr
        self.opt.step()
        with torch.no_grad():
            torch._foreach_copy_(self.params, self.master)
            d = min(self.decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.avg, self.master, 1 - d)
        for p in self.params:
            p.grad = None
        self.step += 1
        return norm

    def state(self):
        return {"names": self.names, "master": [m.detach() for m in self.master], "avg": self.average.state_dict(), "opt": self.opt.state_dict(), "step": self.step}

    @torch.no_grad()
    def load(self, s):
        self.average.load_state_dict(s["avg"])
        self.net.load_state_dict(s["avg"])
        self.step = s["step"]
        if s["names"] == self.names:
            for m, v in zip(self.master, s["master"]):
                m.copy_(v)
            self.opt.load_state_dict(s["opt"])
        else:  # other parts were frozen then
            torch._foreach_copy_(self.master, self.avg)
        torch._foreach_copy_(self.params, self.master)


def compile_blocks(net, kinds):
    """Block by block: short compilations, and one for all sizes of picture."""
    torch._dynamo.config.suppress_errors = True
    for knob in ("recompile_limit", "cache_size_limit", "accumulated_recompile_limit", "accumulated_cache_size_limit"):
        if hasattr(torch._dynamo.config, knob):
            setattr(torch._dynamo.config, knob, 512)
    for m in net.modules():
        if isinstance(m, kinds):
            m.compile(dynamic=True)


def start_weights(path, net, prefixes):
    """Loads what a model.safetensors has for net; prefixes: {prefix in the file: prefix in net}."""
    if not path or not os.path.exists(path):
        return False
    from safetensors.torch import load_file
    have = load_file(path)
    mine = {}
    for theirs, ours in prefixes.items():
        mine.update({ours + k[len(theirs):]: v.float() for k, v in have.items() if k.startswith(theirs)})
    net.load_state_dict(mine)
    return True


def resume(a, net, name, prefixes):
    """Loads what an earlier part left in --out, or what --from has."""
    path = os.path.join(a.out, name)
    if not os.path.exists(path):
        return start_weights(a.start, net, prefixes)
    saved = torch.load(path, map_location="cpu")
    net.load_state_dict(saved.get("avg", saved))
    return True


FIRST_STAGE = {"first_stage_model.": ""}
REST = {p: p for p in ("model.diffusion_model.", "control_model.", "cond_stage_model.")}


# ---------------------------------------------------------------- part one

def reconstruct(vae, x, stats=None, noise=None):
    """The posterior's mean is normalised per channel over the batch, so that noise of a known size can be added."""
    mean, _ = vae.moments(x)
    mean = mean.float()
    if stats is None:
        m = mean.mean((0, 2, 3), keepdim=True)
        s = mean.var((0, 2, 3), keepdim=True).add(1e-5).sqrt()
    else:
        m, s = stats
    z = (mean - m) / s
    if noise is not None:
        z = z + noise * torch.randn_like(z)
    return vae.decode(z.to(x.dtype)), z


class Autoencoder(torch.nn.Module):
    """The VAE, and a linear guess of a latent's mean colour."""

    def __init__(self, cfg):
        super().__init__()
        self.vae = M.VAE(cfg)
        self.colours = torch.nn.Conv2d(4, 3, 1)


def colour_loss(colours, z, x):
    """Colours are to be large and simple in latents, so that a word can name them: a linear guess finds them under
    noise of half their size. Without it pink, gray, white and purple were 0.7 to 1.0 apart, where others were 3."""
    guess = colours((z + .5 * torch.randn_like(z)).to(colours.weight.dtype))
    return (guess.float() - F.avg_pool2d(x.float(), 8)).abs().mean()


def picture_loss(y, x):
    y, x = y.float(), x.float()
    loss = (y - x).abs().mean()
    for a in (2, 3):
        dy, dx = torch.diff(y, dim=a), torch.diff(x, dim=a)
        loss = loss + (dy - dx).abs().mean()
    y2, x2 = F.avg_pool2d(y, 4), F.avg_pool2d(x, 4)
    return loss + .5 * (y2 - x2).abs().mean()


def vae_part(a):
    dev = a.device
    logfile = os.path.join(a.out, "vae.log")
    torch.manual_seed(a.seed)
    net = Autoencoder(M.CONFIG)
    vae = net.vae
    if resume(a, vae, "vae.pt", FIRST_STAGE):
        unfold(vae)
    if a.freeze_encoder:
        # Latents stay as they are, so that what was trained on them stays valid.
        for m in (vae.encoder, vae.quant_conv):
            m.requires_grad_(False)
    t = Trainer(net, dev, .998)
    farm = data.Farm(a.workers, a.scratch, a.merges, start=a.first_chunk)
    if a.compile:
        compile_blocks(t.net, (M.VaeResBlock, M.VaeAttention))
    rings = [data.Ring(a.pictures // 2), data.Ring(a.pictures // 4), data.Ring(a.pictures // 4)]
    still = (0.0, 1 / SCALE)  # what fold() made of the encoder
    begin = mark = time.time()
    seen = 0
    for size in (0, 1, 2):
        while rings[size].count == 0:
            k, images, *_ = farm.get(True)
            rings[k].add(images.to(dev))
    while True:
        progress = max(t.step / a.steps, (time.time() - begin) / 60 / a.minutes)
        if progress >= 1:
            break
        # While the rings are short of scenes every step, then now and then: reading costs as much as a small step.
        if sum(r.count for r in rings) < 4000 or t.step % 4 == 0:
            got = farm.get(False)
            if got:
                rings[got[0]].add(got[1].to(dev))
        size = data.PATTERN[t.step % 4]
        x, = rings[size].pick(a.batch if size == 0 else a.batch * 2 // 3)
        x = (x.permute(0, 3, 1, 2).to(t.dtype) / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        noise = torch.rand(x.shape[0], 1, 1, 1, device=dev) * .16
        y, z = reconstruct(t.net.vae, x, still if a.freeze_encoder else None, noise)
        loss, colours = picture_loss(y, x), colour_loss(t.net.colours, z, x)
        (loss + .5 * colours).backward()
        norm = t.update(rate(progress, t.step, a.rate, 150))
        seen += x.shape[0]
        if t.step % a.report == 0:
            log(logfile, part="vae", step=t.step, progress=progress, loss=loss.item(), colours=colours.item(), norm=norm.item(),
                per_s=seen / (time.time() - mark), pictures=sum(r.count for r in rings))
            seen, mark = 0, time.time()
    vae = t.average.vae
    if a.freeze_encoder:
        with torch.no_grad():
            vae.post_quant_conv.weight *= SCALE
    else:
        fold(vae, [r.pick(min(128, r.count))[0] for r in rings])
    torch.save(vae.state_dict(), os.path.join(a.out, "vae.pt"))
    with torch.no_grad():
        x = rings[0].pick(24)[0]
        xf = x.permute(0, 3, 1, 2).float() / 127.5 - 1
        y = M.to_bytes(vae.decode(vae.moments(xf)[0]))
        f1 = agreement(canny(y.permute(0, 2, 3, 1).contiguous()), canny(x)).mean().item()
        err = (y.permute(0, 2, 3, 1).float() - x.float()).abs().mean().item()
        log(logfile, part="vae", done=t.step, mean_error=err, edges_f1=f1, minutes=(time.time() - begin) / 60)
        sheet = torch.cat([x.permute(0, 3, 1, 2), y], 3).permute(0, 2, 3, 1).cpu().numpy()
        evaluate.contact_sheet(os.path.join(a.out, "vae.png"), list(sheet), 3)
    farm.close()


@torch.no_grad()
def fold(vae, pictures):
    """Puts the normalisation and SD's scale into the two 1x1 convolutions: latents * 0.18215 have mean 0, variance 1."""
    means = [vae.moments(x[i:i + 16].permute(0, 3, 1, 2).float() / 127.5 - 1)[0] for x in pictures for i in range(0, len(x), 16)]
    flat = torch.cat([m.permute(1, 0, 2, 3).flatten(1) for m in means], 1)
    m, s = flat.mean(1), flat.std(1)
    q, p = vae.quant_conv, vae.post_quant_conv
    k = 1 / (s * SCALE)
    q.weight[:4] *= k[:, None, None, None]
    q.bias[:4] = (q.bias[:4] - m) * k
    # The noise that the decoder was trained with, as the posterior's variance.
    q.weight[4:] = 0
    q.bias[4:] = 2 * math.log(.08 / SCALE)
    p.weight *= SCALE


@torch.no_grad()
def unfold(vae):
    """Back to what training works with: the decoder takes latents of variance 1."""
    vae.post_quant_conv.weight /= SCALE


# ---------------------------------------------------------------- part two

PLACES = ["land", "sea", "street", "table", "plain"]
BACKS = ["hills", "mountains", "island", "wall", "table", "background", "ground"]
KINDS = list(scenes.THINGS) + BACKS + sorted(set(scenes.PARTS.values()))
TIMES = list(scenes.TIMES)


class Reader(torch.nn.Module):
    """The text encoder, and what it must know of a caption: where an item's name ends, its kind and its colour; at
    the end, the place and the time."""

    def __init__(self, cfg):
        super().__init__()
        self.text = M.CondStage(cfg)
        self.colour = torch.nn.Linear(cfg["context"], len(scenes.COLOURS))
        self.kind = torch.nn.Linear(cfg["context"], len(KINDS))
        self.place = torch.nn.Linear(cfg["context"], len(PLACES))
        self.time = torch.nn.Linear(cfg["context"], len(TIMES))


def text_part(a):
    dev = a.device
    logfile = os.path.join(a.out, "text.log")
    torch.manual_seed(a.seed)
    tokenizer = bpe.Tokenizer(a.merges)
    rng = np.random.Generator(np.random.PCG64([a.seed, 3]))
    t = Trainer(Reader(M.CONFIG), dev, .99)
    pool = [scenes.scene(data.FIRST_SEED + a.first_chunk * data.CHUNK + i) for i in range(a.pictures)]
    begin = mark = time.time()
    seen = 0
    while True:
        progress = max(t.step / a.steps, (time.time() - begin) / 60 / a.minutes)
        if progress >= 1:
            break
        tokens, row, at, kind, colour, place, when = [], [], [], [], [], [], []
        for b in range(a.batch):
            sc = pool[rng.integers(0, len(pool))]
            colours, hour = scenes.recolour(sc, rng)
            ids, named = data.tokens_of(scenes.marked_caption(sc, rng, colours, hour, plain=rng.random() < .2), tokenizer)
            tokens.append(ids)
            place.append(PLACES.index(sc.place))
            when.append(TIMES.index(hour))
            for i in sc.items:
                if named[i["id"]]:
                    row.append(b), at.append(int(named[i["id"]]))
                    kind.append(KINDS.index(i["kind"])), colour.append(scenes.COLOURS.index(colours[i["id"]]))
        tokens, row, at, kind, colour, place, when = (torch.tensor(v, device=dev) for v in (tokens, row, at, kind, colour, place, when))
        # Attention is causal: to cut the padding off changes nothing before the cut. The end's marks are all the same to
        # the UNet, so any of them is asked.
        ends = (tokens != tokenizer.end).sum(1)
        length = int(torch.randint(int(ends.max()) + 1, bpe.LENGTH + 1, (1,)))
        out = t.net.text(tokens[:, :length])
        last = out[torch.arange(len(out), device=dev), (ends + torch.rand(len(out), device=dev) * (length - ends)).long()]
        noun = out[row, at]
        parts = [F.cross_entropy(head(x).float(), want) for head, x, want in
                 ((t.net.colour, noun, colour), (t.net.kind, noun, kind), (t.net.place, last, place), (t.net.time, last, when))]
        sum(parts).backward()
        norm = t.update(rate(progress, t.step, a.rate, 100))
        seen += a.batch
        if t.step % a.report == 0:
            log(logfile, part="text", step=t.step, progress=progress, colour=parts[0].item(), kind=parts[1].item(), place=parts[2].item(),
                time=parts[3].item(), norm=norm.item(), per_s=seen / (time.time() - mark))
            seen, mark = 0, time.time()
    torch.save(t.average.text.state_dict(), os.path.join(a.out, "text.pt"))


# ---------------------------------------------------------------- parts three and four

class Pointing:
    """Teaches the first head of the cross-attentions after the control is added where to look: from an item to where
    its name ends, from what is no item to the caption's end. Pictures teach it too, but take many times as long."""

    def __init__(self, unet):
        self.allowed = None
        for run in unet.output_blocks:
            for m in run:
                if isinstance(m, M.SpatialTransformer):
                    m.transformer_blocks[0].attn2.register_forward_hook(self.look)

    def begin(self, where, named, ends, sure):
        """where: each latent's item (data.cells); named: where each item's name ends; ends: where captions do;
        sure: the rows that have a caption and a control."""
        n, device = where.shape[0], where.device
        token = torch.arange(bpe.LENGTH, device=device)
        self.allowed = F.one_hot(named.long(), bpe.LENGTH)
        self.allowed[:, 0] = token >= ends[:, None]
        where = where.long()
        item = where.clamp(max=data.ITEMS - 1)
        known = (where != data.UNSURE) & (named.long().gather(1, item.flatten(1)) > 0).view_as(where) & sure[:, None, None]
        self.item, self.known = item, known
        self.lost, self.count = [], []

    def look(self, attn, inputs, _):
        if self.allowed is None:
            return
        x, context = inputs
        d = x.shape[2] // attn.heads
        q, k = F.linear(x, attn.to_q.weight[:d]), F.linear(context, attn.to_k.weight[:d])
        p = (q @ k.transpose(1, 2) * d ** -.5).float().softmax(-1)
        mass = p @ self.allowed.transpose(1, 2).float()
        # Nearest: a coarser level's cell is one of the finer's.
        step = math.isqrt(self.item[0].numel() // x.shape[1])
        item, known = (v[:, ::step, ::step].flatten(1) for v in (self.item, self.known))
        miss = -mass.gather(2, item[..., None])[..., 0].clamp(min=1e-6).log()
        self.lost.append((miss * known).sum() / known.sum().clamp(min=1))

    def end(self):
        """The mean of -log of the attention that went where it should."""
        self.allowed = None
        return sum(self.lost) / len(self.lost)


def uncaption(tokens, neutral, p):
    """Some captions become texts that say nothing: they are what guidance steers away from."""
    n, dev = tokens.shape[0], tokens.device
    drop = torch.rand(n, device=dev)
    pick = neutral[torch.randint(neutral.shape[0], (n,), device=dev)]
    out = torch.where((drop < p)[:, None], pick, tokens)
    return torch.where((drop < p * .7)[:, None], neutral[0], out)


def diffusion_part(a):
    dev, tune = a.device, a.part == "tune"
    logfile = os.path.join(a.out, a.part + ".log")
    torch.manual_seed(a.seed + (2 if tune else 1))
    vae = M.VAE(M.CONFIG)
    if not resume(a, vae, "vae.pt", FIRST_STAGE):
        raise SystemExit("no autoencoder: train it first, or give --from")
    vae = vae.to(dev).float().requires_grad_(False)
    encoder = copy.deepcopy(vae).to(memory_format=torch.channels_last).to(torch.float16 if dev == "cuda" else fast_type(dev))

    net = M.Diffusion(M.CONFIG)
    saved = os.path.join(a.out, "diffusion.pt")
    if not os.path.exists(saved):
        start_weights(a.start, net, REST)
        text = os.path.join(a.out, "text.pt")
        if os.path.exists(text):
            net.cond_stage_model.load_state_dict(torch.load(text, map_location="cpu"))
    # As in Stable Diffusion, what reads the text was trained before and stays.
    net.cond_stage_model.requires_grad_(False)
    if a.attention_only:
        net.requires_grad_(False)
        unet = net.model.diffusion_model
        for m in [*unet.middle_block.modules(), *unet.output_blocks.modules()]:
            if isinstance(m, M.SpatialTransformer):
                m.requires_grad_(True)
    t = Trainer(net, dev, .9985)
    if os.path.exists(saved):
        t.load(torch.load(saved, map_location=dev))
    first = t.step
    if a.compile:
        compile_blocks(t.net, (M.ResBlock, M.SpatialTransformer, M.ClipLayer))
    pointing = Pointing(t.net.model.diffusion_model)
    farm = data.Farm(a.workers, a.scratch, a.merges, start=a.first_chunk)
    tokenizer = bpe.Tokenizer(a.merges)
    neutral = torch.tensor([tokenizer("")] + [tokenizer(s) for s in NEUTRAL], device=dev)
    alphas = M.betas_to_alphas().to(dev)
    rings = [data.Ring(a.pictures // 2), data.Ring(a.pictures // 4), data.Ring(a.pictures // 4)]

    @torch.no_grad()
    def ingest(got):
        k, images, tokens, named, where = got
        images = images.to(dev, non_blocking=True)
        x = images.permute(0, 3, 1, 2).to(next(encoder.parameters()).dtype) / 127.5 - 1
        z = encoder.moments(x)[0].float() * SCALE
        rings[k].add(z.to(torch.bfloat16), data.edge_maps(images), tokens.to(dev), named.to(dev), where.to(dev))

    while min(r.count for r in rings) < a.fill:
        ingest(farm.get(True))
    begin = mark = last_save = time.time()
    seen, sums = 0, torch.zeros(4, device=dev)
    shown = 0
    while True:
        progress = max((t.step - first) / a.steps, (time.time() - begin) / 60 / a.minutes)
        if progress >= 1:
            break
        if t.step % a.fresh == 0:
            got = farm.get(False)
            if got:
                ingest(got)
        size = data.PATTERN[t.step % 4]
        n = a.batch if size == 0 or a.crop else a.batch * 2 // 3
        z, maps, tokens, named, where = rings[size].pick(n)
        with torch.no_grad():
            if a.crop:
                z, maps, where = data.cut(a.crop, (z, maps, where), (1, 8, 1))
            z = z.float()
            eps = torch.randn_like(z)
            # From the text alone colours are known where a region's latents together say little: half the steps go there.
            step = torch.randint(1000, (n,), device=dev)
            step = torch.where(torch.rand(n, device=dev) < .3, step, 999 - (999 - step) * 3 // 10)
            al = alphas[step].view(n, 1, 1, 1)
            x = al.sqrt() * z + (1 - al).sqrt() * eps
            row = torch.arange(n, device=dev), torch.randint(data.CAPTIONS, (n,), device=dev)
            told, named = tokens[row].long(), named[row]
            ids = uncaption(told, neutral, .1)
            hint = data.hints(maps).to(t.dtype).contiguous(memory_format=torch.channels_last)
            s = torch.rand(n, device=dev)
            strength = torch.where(s < .08, torch.zeros_like(s), torch.where(s < .14, torch.rand_like(s), torch.ones_like(s)))
            x = x.to(t.dtype).contiguous(memory_format=torch.channels_last)
            sure = (ids == told).all(1) & (strength > .5)
        pointing.begin(where, named, (told != tokenizer.end).sum(1), sure)
        out = t.net(x, step, ids, hint, strength).float()
        # An error in eps is an error of sqrt((1-a)/a) in the picture. Colours are decided at the noisy steps, where plain
        # eps loss hardly sees them: without the weight 1/a the pictures follow the edges long before they follow the words.
        error = (out - eps).square().mean((1, 2, 3)) / al.flatten()
        # From 20 on, as at the first steps, the weight falls back to that of plain eps.
        loss = (error / (1 + error / 20)).mean() / 6
        missed = pointing.end()
        (loss + .1 * missed).backward()
        noisy = sure & (step > 850)
        sums += torch.stack([loss.detach(), missed.detach(), (error.detach() * noisy).sum(), noisy.sum()])
        norm = t.update(rate(progress, t.step - first, a.rate, 100 if first else 250, .02 if tune else .3))
        seen += n
        if t.step % a.report == 0:
            mean = (sums / sums.new_tensor([a.report, a.report, 1, 1])).tolist()
            log(logfile, part=a.part, step=t.step, progress=progress, loss=mean[0], missed=mean[1], noisy=mean[2] / max(1, mean[3]),
                norm=norm.item(), per_s=seen / (time.time() - mark), scenes=sum(r.count for r in rings))
            seen, mark = 0, time.time()
            sums.zero_()
        if time.time() - begin > (shown + 1) * a.show * 60:
            shown += 1
            show(a, t.average, vae, tokenizer, f"{a.part}-{shown}", logfile)
            mark, seen = time.time(), 0
        if time.time() - last_save > 120:
            torch.save(t.state(), saved + ".new")
            os.replace(saved + ".new", saved)
            last_save = time.time()
    torch.save(t.state(), saved)
    log(logfile, part=a.part, done=t.step, minutes=(time.time() - begin) / 60)
    show(a, t.average, vae, tokenizer, f"{a.part}-end", logfile, pairs=a.pairs)
    farm.close()


def show(a, average, vae, tokenizer, name, logfile, pairs=24):
    """The evaluation's table so far, and a sheet to look at."""
    at = time.time()
    half = torch.float16 if a.device == "cuda" else torch.float32
    net = copy.deepcopy(average).to(half)
    table, pictures = evaluate.run(net, vae, tokenizer, evaluate.make_pairs(pairs), a.device, TAGS, steps=a.sample_steps)
    log(logfile, part=a.part, table=name, **table, seconds=time.time() - at)
    evaluate.contact_sheet(os.path.join(a.out, name + ".png"), pictures[:24], 4)


def export_part(a):
    from safetensors.torch import save_file
    vae, rest = M.VAE(M.CONFIG), M.Diffusion(M.CONFIG)
    for net, name, prefixes in ((vae, "vae.pt", FIRST_STAGE), (rest, "diffusion.pt", REST)):
        if not resume(a, net, name, prefixes):
            raise SystemExit(f"no {name} in {a.out}: train it first, or give --from")
    tensors = {"first_stage_model." + k: v for k, v in vae.state_dict().items()}
    tensors.update(rest.state_dict())
    tensors = {k: v.half().contiguous() for k, v in sorted(tensors.items())}
    for k, v in tensors.items():
        if not torch.isfinite(v).all():
            raise SystemExit(f"{k} is not finite in float16")
    meta = M.metadata(M.CONFIG, {"name": NAME, "resolution": 256, "added_prompt": TAGS, "negative_prompt": "",
                                 "latent_rgb": latent_rgb(vae)})
    os.makedirs(a.to, exist_ok=True)
    path = os.path.join(a.to, "model.safetensors")
    save_file(tensors, path, metadata={"format": "pt", "linework": meta})
    print(path, os.path.getsize(path), "bytes,", sum(v.numel() for v in tensors.values()), "values")
    print(meta)


@torch.no_grad()
def latent_rgb(vae):
    """The best linear guess of a picture's colours (0..1) from latents as the sampler has them: 3 rows of 4, then 3."""
    zs, cs = [], []
    for seed in range(500_000, 500_048):
        x = torch.from_numpy(scenes.scene(seed, (256, 256)).image).permute(2, 0, 1)[None].float()
        zs.append((vae.moments(x / 127.5 - 1)[0] * SCALE)[0].flatten(1).T)
        cs.append(F.avg_pool2d(x / 255, 8)[0].flatten(1).T)
    z, c = torch.cat(zs), torch.cat(cs)
    z = torch.cat([z, torch.ones(len(z), 1)], 1)
    fit = torch.linalg.lstsq(z, c).solution  # [5,3]
    return [round(v, 5) for v in fit[:4].T.flatten().tolist() + fit[4].tolist()]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("part", choices=["vae", "text", "base", "tune", "export"])
    p.add_argument("--out", required=True, help="folder for checkpoints, logs and sheets")
    p.add_argument("--to", default=MODELS)
    p.add_argument("--from", dest="start", default=None, help="a model.safetensors to go on from")
    p.add_argument("--merges", default=os.path.join(MODELS, "merges.txt"))
    p.add_argument("--minutes", type=float, default=5)
    p.add_argument("--steps", type=int, default=10 ** 9)
    p.add_argument("--batch", type=int, default=0)
    p.add_argument("--rate", type=float, default=0)
    p.add_argument("--crop", type=int, default=0, help="base, tune: train on random squares of so many latents a side (default: whole scenes)")
    p.add_argument("--pictures", type=int, default=0, help="how many scenes are kept on the device")
    p.add_argument("--fill", type=int, default=400, help="scenes of each size before the first step")
    p.add_argument("--fresh", type=int, default=2, help="steps between chunks of new scenes")
    p.add_argument("--freeze-encoder", action="store_true", help="vae: train the decoder alone")
    p.add_argument("--attention-only", action="store_true", help="base, tune: train the UNet's attention where control was added: half the work a step")
    p.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    p.add_argument("--threads", type=int, default=0, help="PyTorch's, on a CPU")
    p.add_argument("--first-chunk", type=int, default=0)
    p.add_argument("--scratch", default="/dev/shm/linework-scenes")
    p.add_argument("--report", type=int, default=100)
    p.add_argument("--show", type=float, default=4, help="minutes between tables")
    p.add_argument("--pairs", type=int, default=64, help="pairs in the last table")
    p.add_argument("--sample-steps", type=int, default=20)
    p.add_argument("--compile", action="store_true")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    if a.threads:
        torch.set_num_threads(a.threads)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    if a.part == "vae":
        a.batch, a.rate, a.pictures = a.batch or 48, a.rate or 1e-3, a.pictures or 48_000
        vae_part(a)
    elif a.part == "text":
        a.batch, a.rate, a.pictures = a.batch or 128, a.rate or 1e-3, a.pictures or 4000
        text_part(a)
    elif a.part == "export":
        export_part(a)
    else:
        tune = a.part == "tune"
        a.batch, a.rate, a.pictures = a.batch or 192, a.rate or (4e-4 if tune else 8e-4), a.pictures or 200_000
        diffusion_part(a)


if __name__ == "__main__":
    main()
