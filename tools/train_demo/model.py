"""The demo model: Stable Diffusion 1.5 + ControlNet with small widths.

Every module is named so that state_dict() has the names of control_sd15_canny.pth: an export is a copy,
and a start from exported weights is a load.
"""
import json
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

CONFIG = {
    "unet_widths": [64, 96, 112],
    "unet_blocks": 2,
    # Like SD1.5: attention on every level but the last, and in the middle.
    "unet_attention": [True, True, False],
    "unet_heads": 2,
    "hint_widths": [16, 16, 32, 64],
    "norm_groups": 8,
    "context": 128,
    "clip_layers": 2,
    "clip_heads": 4,
    "vocab": 1024,
    "encoder_widths": [24, 48, 64, 80],
    "decoder_widths": [32, 64, 96, 112],
    "encoder_blocks": 1,
    "decoder_blocks": 1,
    "scale_factor": 0.18215,
}


def betas_to_alphas():
    betas = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def time_embedding(t, width):
    half = width // 2
    freqs = torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angle = t.float()[:, None] * freqs
    return torch.cat([angle.cos(), angle.sin()], 1)


def zero(module):
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


class Run(nn.ModuleList):
    """Children called in order; the ones that want the time embedding or the text get it."""

    def forward(self, x, emb, context):
        for child in self:
            if isinstance(child, ResBlock):
                x = child(x, emb)
            elif isinstance(child, SpatialTransformer):
                x = child(x, context)
            else:
                x = child(x)
        return x


class ResBlock(nn.Module):
    def __init__(self, cin, cout, emb, groups):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, cin, 1e-5), nn.SiLU(), nn.Conv2d(cin, cout, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, cout))
        # Index 2 is SD's dropout, which has no weights: it only holds the place.
        self.out_layers = nn.Sequential(nn.GroupNorm(groups, cout, 1e-5), nn.SiLU(), nn.Identity(),
                                        zero(nn.Conv2d(cout, cout, 3, padding=1)))
        self.skip_connection = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x, emb):
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None].to(x.dtype)
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    def __init__(self, width, context, heads):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x, context):
        b, n, c = x.shape
        q, k, v = (m.view(b, -1, self.heads, c // self.heads).transpose(1, 2)
                   for m in (self.to_q(x), self.to_k(context), self.to_v(context)))
        if x.is_cuda:
            y = F.scaled_dot_product_attention(q, k, v)
        else:  # the fused one's backward is three times slower on a CPU
            y = (q @ k.transpose(-1, -2) * (c // self.heads) ** -.5).softmax(-1) @ v
        return self.to_out(y.transpose(1, 2).reshape(b, n, c))


class GEGLU(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.proj = nn.Linear(cin, 2 * cout)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x):
        return self.net(x)


class Block(nn.Module):
    def __init__(self, width, context, heads):
        super().__init__()
        self.attn1 = Attention(width, width, heads)
        self.attn2 = Attention(width, context, heads)
        self.ff = FeedForward(width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x, context):
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, width, context, heads, groups):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, 1e-6)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([Block(width, context, heads)])
        self.proj_out = zero(nn.Conv2d(width, width, 1))

    def forward(self, x, context):
        b, c, h, w = x.shape
        y = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).reshape(b, h * w, c)
        y = self.transformer_blocks[0](y, context)
        return x + self.proj_out(y.reshape(b, h, w, c).permute(0, 3, 1, 2))


class Downsample(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x):
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Encoder(nn.Module):
    """What UNet and ControlNet share: time embedding, input blocks, middle block."""

    def __init__(self, cfg):
        super().__init__()
        widths, groups, heads, ctx = cfg["unet_widths"], cfg["norm_groups"], cfg["unet_heads"], cfg["context"]
        self.model_channels = widths[0]
        emb = 4 * widths[0]
        self.time_embed = nn.Sequential(nn.Linear(widths[0], emb), nn.SiLU(), nn.Linear(emb, emb))
        blocks = [Run([nn.Conv2d(4, widths[0], 3, padding=1)])]
        self.skip_widths = [widths[0]]
        width = widths[0]
        for level, out in enumerate(widths):
            for _ in range(cfg["unet_blocks"]):
                run = [ResBlock(width, out, emb, groups)]
                width = out
                if cfg["unet_attention"][level]:
                    run.append(SpatialTransformer(width, ctx, heads, groups))
                blocks.append(Run(run))
                self.skip_widths.append(width)
            if level + 1 < len(widths):
                blocks.append(Run([Downsample(width)]))
                self.skip_widths.append(width)
        self.input_blocks = nn.ModuleList(blocks)
        self.middle_block = Run([ResBlock(width, width, emb, groups), SpatialTransformer(width, ctx, heads, groups),
                                 ResBlock(width, width, emb, groups)])

    def embed(self, t, like):
        return self.time_embed(time_embedding(t, self.model_channels).to(like.dtype))


class ControlNet(Encoder):
    def __init__(self, cfg):
        super().__init__(cfg)
        a, b, c, d = cfg["hint_widths"]
        plan = [(3, a, 1), (a, a, 1), (a, b, 2), (b, b, 1), (b, c, 2), (c, c, 1), (c, d, 2)]
        layers = []
        for cin, cout, stride in plan:
            layers += [nn.Conv2d(cin, cout, 3, stride=stride, padding=1), nn.SiLU()]
        # Not zero at the start, unlike a ControlNet added to a finished UNet: both learn together here.
        layers.append(nn.Conv2d(d, cfg["unet_widths"][0], 3, padding=1))
        self.input_hint_block = nn.Sequential(*layers)
        self.zero_convs = nn.ModuleList([nn.Sequential(zero(nn.Conv2d(w, w, 1))) for w in self.skip_widths])
        w = cfg["unet_widths"][-1]
        self.middle_block_out = nn.Sequential(zero(nn.Conv2d(w, w, 1)))

    def hint(self, hint):
        return self.input_hint_block(hint)

    def forward(self, x, guided, t, context):
        emb = self.embed(t, x)
        controls = []
        h = x
        for i, block in enumerate(self.input_blocks):
            h = block(h, emb, context)
            if i == 0:
                h = h + guided
            controls.append(self.zero_convs[i](h))
        h = self.middle_block(h, emb, context)
        return controls + [self.middle_block_out(h)]


class UNet(Encoder):
    def __init__(self, cfg):
        super().__init__(cfg)
        widths, groups, heads, ctx = cfg["unet_widths"], cfg["norm_groups"], cfg["unet_heads"], cfg["context"]
        emb = 4 * widths[0]
        skips = list(self.skip_widths)
        width = widths[-1]
        blocks = []
        for level in reversed(range(len(widths))):
            for i in range(cfg["unet_blocks"] + 1):
                run = [ResBlock(width + skips.pop(), widths[level], emb, groups)]
                width = widths[level]
                if cfg["unet_attention"][level]:
                    run.append(SpatialTransformer(width, ctx, heads, groups))
                if level and i == cfg["unet_blocks"]:
                    run.append(Upsample(width))
                blocks.append(Run(run))
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(nn.GroupNorm(groups, width, 1e-5), nn.SiLU(), zero(nn.Conv2d(width, 4, 3, padding=1)))

    def forward(self, x, t, context, controls=None):
        emb = self.embed(t, x)
        skips = []
        h = x
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        if controls is not None:
            h = h + controls[-1]
            skips = [s + c for s, c in zip(skips, controls)]
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], 1), emb, context)
        return self.out(h)


class VaeResBlock(nn.Module):
    def __init__(self, cin, cout, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, cin, 1e-6)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, cout, 1e-6)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        if cin != cout:
            self.nin_shortcut = nn.Conv2d(cin, cout, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class VaeAttention(nn.Module):
    def __init__(self, width, groups):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, 1e-6)
        self.q, self.k, self.v = (nn.Conv2d(width, width, 1) for _ in range(3))
        self.proj_out = zero(nn.Conv2d(width, width, 1))

    def forward(self, x):
        b, c, h, w = x.shape
        y = self.norm(x)
        q, k, v = (m(y).permute(0, 2, 3, 1).reshape(b, 1, h * w, c) for m in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).reshape(b, h, w, c).permute(0, 3, 1, 2)
        return x + self.proj_out(y)


class VaeMiddle(nn.Module):
    def __init__(self, width, groups):
        super().__init__()
        self.block_1 = VaeResBlock(width, width, groups)
        self.attn_1 = VaeAttention(width, groups)
        self.block_2 = VaeResBlock(width, width, groups)

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class VaeDown(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class VaeLevel(nn.Module):
    pass


class VaeEncoder(nn.Module):
    def __init__(self, widths, blocks, groups):
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        width = widths[0]
        for i, out in enumerate(widths):
            level = VaeLevel()
            level.block = nn.ModuleList()
            for _ in range(blocks):
                level.block.append(VaeResBlock(width, out, groups))
                width = out
            if i + 1 < len(widths):
                level.downsample = VaeDown(width)
            self.down.append(level)
        self.mid = VaeMiddle(width, groups)
        self.norm_out = nn.GroupNorm(groups, width, 1e-6)
        self.conv_out = nn.Conv2d(width, 8, 3, padding=1)

    def forward(self, x):
        h = self.conv_in(x)
        for level in self.down:
            for block in level.block:
                h = block(h)
            if hasattr(level, "downsample"):
                h = level.downsample(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class VaeDecoder(nn.Module):
    def __init__(self, widths, blocks, groups):
        super().__init__()
        width = widths[-1]
        self.conv_in = nn.Conv2d(4, width, 3, padding=1)
        self.mid = VaeMiddle(width, groups)
        levels = []
        for i in reversed(range(len(widths))):
            level = VaeLevel()
            level.block = nn.ModuleList()
            for _ in range(blocks + 1):
                level.block.append(VaeResBlock(width, widths[i], groups))
                width = widths[i]
            if i:
                level.upsample = Upsample(width)
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(groups, width, 1e-6)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z):
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            for block in level.block:
                h = block(h)
            if hasattr(level, "upsample"):
                h = level.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class VAE(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.encoder = VaeEncoder(cfg["encoder_widths"], cfg["encoder_blocks"], cfg["norm_groups"])
        self.decoder = VaeDecoder(cfg["decoder_widths"], cfg["decoder_blocks"], cfg["norm_groups"])
        self.quant_conv = nn.Conv2d(8, 8, 1)
        self.post_quant_conv = nn.Conv2d(4, 4, 1)

    def moments(self, x):
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, 1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, z):
        return self.decoder(self.post_quant_conv(z))


class ClipAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = (m(x).view(b, n, self.heads, c // self.heads).transpose(1, 2)
                   for m in (self.q_proj, self.k_proj, self.v_proj))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(y.transpose(1, 2).reshape(b, n, c))


class ClipMlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x):
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h))


class ClipLayer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.self_attn = ClipAttention(width, heads)
        self.layer_norm1 = nn.LayerNorm(width)
        self.mlp = ClipMlp(width)
        self.layer_norm2 = nn.LayerNorm(width)

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class TextModel(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        width = cfg["context"]
        self.embeddings = nn.Module()
        self.embeddings.token_embedding = nn.Embedding(cfg["vocab"], width)
        self.embeddings.position_embedding = nn.Embedding(77, width)
        nn.init.normal_(self.embeddings.token_embedding.weight, std=0.3)
        nn.init.normal_(self.embeddings.position_embedding.weight, std=0.1)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList([ClipLayer(width, cfg["clip_heads"]) for _ in range(cfg["clip_layers"])])
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, ids):
        x = self.embeddings.token_embedding(ids) + self.embeddings.position_embedding.weight[:ids.shape[1]]
        for layer in self.encoder.layers:
            x = layer(x)
        return self.final_layer_norm(x)


class CondStage(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.text_model = TextModel(cfg)

    def forward(self, ids):
        return self.transformer.text_model(ids)


class Diffusion(nn.Module):
    """Everything but the VAE: what the second stage trains."""

    def __init__(self, cfg):
        super().__init__()
        self.model = nn.Module()
        self.model.diffusion_model = UNet(cfg)
        self.control_model = ControlNet(cfg)
        self.cond_stage_model = CondStage(cfg)

    def forward(self, x, t, ids, hint, strength):
        """strength: one factor per sample."""
        context = self.cond_stage_model(ids)
        return self.denoise(x, t, context, self.control_model.hint(hint), strength)

    def denoise(self, x, t, context, guided, strength):
        controls = self.control_model(x, guided, t, context)
        scale = strength[:, None, None, None].to(x.dtype)
        return self.model.diffusion_model(x, t, context, [c * scale for c in controls])


@torch.no_grad()
def sample(net, vae, ids, uncond_ids, hint, strength=1.0, guidance=9.0, steps=20, seed=0, scale=0.18215, noise=None):
    """The reference's DDIM at eta 0; pictures in -1..1. hint is [N,3,H,W] of zeros and ones."""
    n, _, h, w = hint.shape
    device = hint.device
    if noise is None:
        gen = torch.Generator("cpu").manual_seed(seed)
        noise = torch.randn((n, 4, h // 8, w // 8), generator=gen)
    x = noise.to(device)
    alphas = betas_to_alphas().to(device)
    ts = list(range(0, 1000, 1000 // steps))
    ts = [t + 1 for t in ts]
    context = torch.cat([net.cond_stage_model(ids), net.cond_stage_model(uncond_ids)])
    guided = net.control_model.hint(hint)
    guided = torch.cat([guided, guided])
    factor = torch.full((2 * n,), float(strength), device=device)
    for i in reversed(range(len(ts))):
        a, prev = alphas[ts[i]], alphas[ts[i - 1]] if i else alphas[0]
        t = torch.full((2 * n,), ts[i], device=device)
        cond, uncond = net.denoise(torch.cat([x, x]), t, context, guided, factor).float().chunk(2)
        e = uncond + guidance * (cond - uncond)
        x0 = (x - (1 - a).sqrt() * e) / a.sqrt()
        x = prev.sqrt() * x0 + (1 - prev).sqrt() * e
    return vae.decode(x / scale).float(), x


def to_bytes(pictures):
    """Truncates, as the reference does."""
    return (pictures * 127.5 + 127.5).clamp(0, 255).to(torch.uint8)


def metadata(cfg, extra):
    keys = ("unet_heads", "norm_groups", "clip_heads", "scale_factor")
    return json.dumps({**{k: cfg[k] for k in keys}, "clip_act": "quick_gelu", **extra}, sort_keys=True)
