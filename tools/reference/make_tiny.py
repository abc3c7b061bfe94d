"""Writes tests/data/tiny: a random SD1.5-shaped model with LDM names, and what PyTorch computes with it.

usage: make_tiny.py [OUTDIR]
"""
import json
import math
import os
import sys

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

import bpe
import job
import model as reference
import names
import schedulers

HERE = os.path.dirname(os.path.abspath(__file__))
META = {"unet_heads": 2, "norm_groups": 4, "clip_heads": 4, "clip_act": "quick_gelu", "scale_factor": 0.25,
        "resolution": 128, "name": "tiny", "added_prompt": "best quality", "negative_prompt": "lowres, bad",
        "latent_rgb": [0.3, 0.2, 0.1, -0.2, 0.3, 0.1, 0.1, -0.1, 0.3, 0.2, 0.1, -0.3, 0.0, 0.05, 0.1]}
# Groups of the concatenated skips (48 and 32 channels in 4) straddle the two tensors, as in SD1.5's 1920 and 960.
WIDTHS = (16, 16, 32, 32)
NARROW = {"unet_heads": 1, "norm_groups": 4, "name": "small residual"}
NARROW_WIDTHS = (8, 8, 16, 16)
CONTEXT = 32
N_MERGES = 86
PROMPTS = ("a red house and a yellow moon, best quality", "lowres, bad")
CORPUS = ("a red house and a yellow moon at night, a blue car by the green tree, the white boat on the lake, "
          "best quality, extremely detailed, longbody, lowres, bad anatomy, bad hands, worst quality, low quality, "
          "a house with a tree, the moon over the hills, two apples and three boats")


def make_modules(widths, heads, groups):
    """Modules as diffusers makes them; their weights are drawn anew in randomise()."""
    down = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    common = dict(block_out_channels=widths, down_block_types=down, cross_attention_dim=CONTEXT,
                  attention_head_dim=heads, norm_num_groups=groups)
    unet = UNet2DConditionModel(sample_size=64, up_block_types=up, **common)
    control = ControlNetModel(conditioning_embedding_out_channels=(8, 8, 16, 24), **common)
    vae = AutoencoderKL(block_out_channels=(8, 16, 16, 16), latent_channels=4, layers_per_block=2,
                        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                        norm_num_groups=groups)
    clip = CLIPTextModel(CLIPTextConfig(vocab_size=514 + N_MERGES, hidden_size=CONTEXT, intermediate_size=4 * CONTEXT,
                                        num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=77,
                                        hidden_act="quick_gelu", bos_token_id=512 + N_MERGES,
                                        eos_token_id=513 + N_MERGES))
    return unet, control, vae, clip


def randomise(module, generator):
    """Gains that keep activations near 1, attention uneven and every tensor felt; then rounded to fp16."""
    for name, p in module.state_dict().items():
        if not p.is_floating_point():
            continue
        z = torch.randn(p.shape, generator=generator)
        if "embedding.weight" in name:
            z = 0.7 * z
        elif p.dim() == 1:
            z = 1 + 0.2 * z if "norm" in name and name.endswith("weight") else 0.2 * z
        else:
            gain = 1.6 if any(k in name for k in ("to_q", "to_k", "q_proj", "k_proj")) else 1.0
            z = z * gain / math.sqrt(p[0].numel())
        p.copy_(z.half())


def to_ldm(unet, control, vae, clip):
    """One flat LDM state dict, by inverting the maps of names.py over the LDM names of SD1.5's layout."""
    out = {}
    for module, prefix, mapping in ((unet, names.UNET, names.unet), (control, names.CONTROL, names.unet),
                                    (vae, names.VAE, names.vae)):
        if module is None:
            continue
        state = module.state_dict()
        back = {d: n for n, d in mapping(ldm_names(state)).items()}
        for d, tensor in state.items():
            name = back[d]
            if ".attn_1." in name and name.endswith("weight") and tensor.dim() == 2:
                tensor = tensor[:, :, None, None]
            out[prefix + name] = tensor.half().contiguous()
    if clip is not None:
        for k, v in clip.state_dict().items():
            k = k.removeprefix("text_model.")
            if not k.endswith("position_ids"):
                out[names.CLIP + k] = v.half().contiguous()
        out[names.CLIP + "embeddings.position_ids"] = torch.arange(77)[None]
    return out


def ldm_names(state):
    """LDM names of SD1.5's layout (4 levels, 2 blocks) that map to the modules' parameters in state."""
    def leaves(stem, modules):
        return [f"{stem}.{m}.{leaf}" for m in modules for leaf in ("weight", "bias")]

    resnet = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection"]
    block = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v",
             "attn2.to_out.0", "ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"]
    transformer = ["norm", "proj_in", "proj_out"] + ["transformer_blocks.0." + b for b in block]
    every = leaves("time_embed", ["0", "2"]) + leaves("input_blocks.0", ["0"]) + leaves("out", ["0", "2"])
    every += leaves("middle_block_out", ["0"]) + leaves("input_hint_block", [str(i) for i in range(0, 16, 2)])
    for i in range(12):
        every += leaves(f"zero_convs.{i}", ["0"])
        for side in ("input_blocks", "output_blocks"):
            every += leaves(f"{side}.{i}.0", resnet) + leaves(f"{side}.{i}.1", transformer)
        every += leaves(f"input_blocks.{i}.0", ["op"] if i in (3, 6, 9) else [])
        every += leaves(f"output_blocks.{i}.{1 if i == 2 else 2}", ["conv"] if i in (2, 5, 8) else [])
    every += leaves("middle_block.0", resnet) + leaves("middle_block.1", transformer) + leaves("middle_block.2", resnet)
    vae_block = ["norm1", "conv1", "norm2", "conv2", "nin_shortcut"]
    for half in ("encoder", "decoder"):
        every += leaves(half, ["conv_in", "conv_out", "norm_out"])
        every += leaves(half + ".mid.attn_1", ["norm", "q", "k", "v", "proj_out"])
        every += leaves(half + ".mid.block_1", vae_block) + leaves(half + ".mid.block_2", vae_block)
        for i in range(4):
            for j in range(3):
                every += leaves(f"{half}.{'down' if half == 'encoder' else 'up'}.{i}.block.{j}", vae_block)
    every += [n for i in (0, 1, 2) for n in leaves(f"encoder.down.{i}.downsample", ["conv"])]
    every += [n for i in (1, 2, 3) for n in leaves(f"decoder.up.{i}.upsample", ["conv"])]
    if "decoder.conv_in.weight" in state:
        every = [n for n in every if n.startswith(("encoder.", "decoder."))]
        every += leaves("quant_conv", [""]) + leaves("post_quant_conv", [""])
        every = [n.replace("..", ".") for n in every]
        mapping = names.vae(every)
    else:
        every = [n for n in every if not n.startswith(("encoder.", "decoder."))]
        mapping = names.unet(every)
    return [n for n in every if mapping[n] in state]


def shrink(state, factor):
    """Scales the residual stream of a UNet state: everything that is added to it, and the biases on its path."""
    for name, v in state.items():
        stream = name.endswith((".out_layers.3.weight", ".out_layers.3.bias", ".1.proj_out.weight", ".1.proj_out.bias"))
        first = ".input_blocks.0.0." in name
        path = name.endswith((".skip_connection.bias", ".op.bias", ".conv.bias"))
        if stream or first or path:
            state[name] = (v.float() * factor).half()


def save(out, topic, tensors):
    tensors = {k: v.detach().contiguous().float() if v.is_floating_point() else v.contiguous()
               for k, v in tensors.items()}
    path = os.path.join(out, topic + ".safetensors")
    save_file(tensors, path)
    os.chmod(path, 0o644)
    size = os.path.getsize(path)
    if size > 1 << 20:
        raise ValueError(f"{topic}: {size} bytes is over 1 MiB")
    spread = {k: float(v.float().std()) for k, v in tensors.items() if v.numel() > 1}
    print(f"{topic:12} {size:7} bytes, std " + " ".join(f"{k} {s:.2g}" for k, s in list(spread.items())[:6]))


def edge_map(height, width, seed):
    """Thin closed curves and lines, 0 or 255: what Canny would leave."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    rng = np.random.default_rng(seed)
    out = np.zeros((height, width), np.uint8)
    for _ in range(4):
        cy, cx, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(8, height / 2)
        out[np.abs(np.hypot(y - cy, x - cx) - r) < 0.6] = 255
    out[np.abs(y - 0.3 * x - height / 4) < 0.6] = 255
    return out


def grab(module, calls, name):
    """Keeps what a submodule is called with and returns."""
    def hook(_, args, kwargs, result):
        calls[name] = (args, kwargs, result[0] if isinstance(result, tuple) else result)
    return module.register_forward_hook(hook, with_kwargs=True)


def block_fixtures(m, step):
    """ResBlocks and transformers inside a UNet's step, of topic unet: {topic: tensors}."""
    context, controls = step["context"], [v for k, v in step.items() if k.startswith("control.")]
    down, mid, up = m.unet.down_blocks, m.unet.mid_block, m.unet.up_blocks
    names_of = {"input_blocks.1.0": down[0].resnets[0], "input_blocks.7.0": down[2].resnets[0],
                "output_blocks.5.0": up[1].resnets[2], "output_blocks.6.0": up[2].resnets[0],
                "input_blocks.1.1": down[0].attentions[0], "middle_block.1": mid.attentions[0],
                "output_blocks.5.1": up[1].attentions[2]}
    calls = {}
    hooks = [grab(module, calls, name) for name, module in names_of.items()]
    hooks.append(grab(m.unet.time_embedding, calls, "time_embed"))
    hooks.append(grab(m.unet.time_proj, calls, "time_proj"))
    m.eps(step["x"], step["t"][0], context, controls)
    for h in hooks:
        h.remove()
    resnets, transformers = {"temb": calls["time_embed"][2]}, {"context": context}
    for name in names_of:
        args, _, y = calls[name]
        kind = transformers if name.endswith(".1") else resnets
        kind[name + ".x"], kind[name + ".y"] = args[0], y
    return {"resblock": resnets, "transformer": transformers}


def net_fixtures(m, ids, generator, step_size, size):
    """What each network makes of inputs of these sizes, in latents: {topic: tensors}."""
    out, t = {}, torch.tensor(601)
    context = m.text(ids)
    # Two layers' worth, for clip_skip 2, is what is left without the last layer.
    out["clip"] = {"ids": ids.to(torch.int32), "hidden": context, "hidden_skip2": m.text(ids, 1)}
    x = torch.randn((2, 4) + step_size, generator=generator).to(m.dtype)
    hint, small = (torch.from_numpy(edge_map(8 * h, 8 * w, seed)).to(m.dtype).expand(1, 3, -1, -1) / 255
                   for (h, w), seed in ((step_size, 1), (size, 2)))
    out["hint"] = {"hint": small, "out": m.hint(small)}
    t_all = torch.tensor([1, 51, 501, 951, 999])
    sinus = m.unet.time_proj(t_all)
    out["time"] = {"t": t_all.float(), "sinusoid": sinus, "temb": m.unet.time_embedding(sinus.to(m.dtype)),
                   "temb_control": m.control.time_embedding(sinus.to(m.dtype))}
    step = {"x": x, "t": t.float()[None], "context": context}
    controls = m.controls(x, t, context, hint)
    taps = {f"control.{i}": c for i, c in enumerate(controls)}
    out["control"] = {**step, "hint": hint, **taps}
    out["unet"] = {**step, "eps": m.eps(x, t, context, controls), "eps_no_control": m.eps(x, t, context), **taps}
    z = 4 * torch.randn((1, 4) + size, generator=generator).to(m.dtype)
    picture = m.vae.decode(z / m.meta["scale_factor"])
    out["vae"] = {"latent": z, "z": z / m.meta["scale_factor"], "image": picture, "bytes": job.to_bytes(picture)}
    return out


JOBS = {"ddim": {}, "scale1": {"guidance": 1.0}, "guess": {"mode": "control", "guidance": 4.0},
        "prompt_mode": {"mode": "prompt"}, "eta1": {"eta": 1.0}, "strength05": {"control": (0.5,)},
        "strength0": {"control": (0.0,)}, "window": {"control": (1.0, (0.25, 0.75))}, "steps15": {"steps": 15}}


def job_fixtures(out, m, ids, dtype_check):
    """The whole job, several ways. dtype_check: the same model in fp32, to say how far
    PyTorch is from itself."""
    edges = edge_map(64, 128, 2)
    shape = (1, 4, 8, 16)
    tensors = {"ids_cond": ids[:1].to(torch.int32), "ids_uncond": ids[1:].to(torch.int32),
               "edges": torch.from_numpy(edges)}
    for name, of in JOBS.items():
        options = {k: v for k, v in of.items() if k != "control"}
        controls = [[job.Control(one, edges, *of.get("control", ()))] for one in (m, dtype_check)]
        noise = job.Noise(7)
        x_t = noise.draw(shape)
        steps = []
        draws = noise if options.get("eta") else None
        latents = job.run(m, ids[:1], ids[1:], controls[0], x_t, noise=draws, keep=steps, **options)
        pictures = m.decode(latents)
        tensors["x_T"] = x_t
        tensors[name + ".latents"] = latents
        tensors[name + ".bytes"] = job.to_bytes(pictures)
        if name in ("ddim", "eta1"):
            tensors[name + ".steps"] = torch.cat(steps)
        again = job.Noise(7)
        x_t = again.draw(shape)
        single = job.run(dtype_check, ids[:1], ids[1:], controls[1], x_t, noise=again if draws else None, **options)
        drift = (single.double() - latents.double()).abs().max()
        same = (job.to_bytes(dtype_check.decode(single)).int() - job.to_bytes(pictures).int()).abs()
        print(f"  {name:12} latents std {latents.std():.2f} max {latents.abs().max():.2f}, fp32 differs by {drift:.2e}, "
              f"bytes by {same.max()}, byte std {job.to_bytes(pictures).float().std():.1f}")
    noise = job.Noise(7)
    noise.draw(shape)
    tensors["eta1.noise"] = torch.cat([noise.draw(shape) for _ in range(20)])
    # One draw for a batch of two: sample 1 is not what seed 8 would give.
    x_t = job.Noise(7).draw((2,) + shape[1:])
    tensors["batch2.x_T"] = x_t
    tensors["batch2.latents"] = job.run(m, ids[:1], ids[1:], [job.Control(m, edges)], x_t)
    save(out, "job", tensors)


# sampler, scheduler, steps, guidance, samples, latents' height and width
SAMPLED = (("ddim", "discrete", 10, 9.0, 1, (8, 8)), ("euler", "karras", 10, 5.0, 1, (16, 8)),
           ("euler_a", "discrete", 10, 5.0, 2, (8, 16)), ("euler_a", "reference", 15, 5.0, 1, (8, 8)),
           ("dpm++2m", "karras", 10, 5.0, 1, (8, 24)), ("dpm++2m", "discrete", 10, 5.0, 3, (8, 8)),
           ("unipc", "discrete", 10, 5.0, 1, (16, 16)), ("unipc", "karras", 10, 5.0, 1, (8, 8)),
           ("lcm", "discrete", 4, 1.0, 1, (8, 8)))


def sampler_fixtures(out, m, ids):
    """The whole job with diffusers' schedulers, in several sizes and batches."""
    context = [m.text(ids[i:i + 1]) for i in (0, 1)]
    tensors = {}
    for sampler, scheduler, steps, guidance, n, size in SAMPLED:
        edges = edge_map(8 * size[0], 8 * size[1], 2)
        noise, shape = job.Noise(7), (n, 4) + size
        x_t, draws = noise.draw(shape).double(), [noise.draw(shape).double() for _ in range(2 * steps)]
        texts, controls = [c.expand(n, -1, -1) for c in context], [job.Control(m, edges)]

        def network(x, t, done, of):
            return job.guided(m, texts, controls, done, of, x, t, guidance)

        latents = schedulers.run(sampler, scheduler, steps, x_t, draws, network=network)[0][-n:]
        name = f"{sampler}.{scheduler}"
        tensors[name + ".edges"], tensors[name + ".latents"] = torch.from_numpy(edges), latents
        print(f"  {name:20} latents std {latents.std():.2f} max {latents.abs().max():.2f}")
    save(out, "samplers", tensors)


def small_residual(out, generator):
    """A narrower UNet whose residual stream is 0.003 of the usual: there eps 1e-5 and 1e-6 differ visibly."""
    unet = make_modules(NARROW_WIDTHS, NARROW["unet_heads"], NARROW["norm_groups"])[0]
    randomise(unet, generator)
    state = to_ldm(unet, None, None, None)
    shrink(state, 0.003)
    path = os.path.join(out, "small_model.safetensors")
    save_file(state, path, {"linework": json.dumps(NARROW)})
    os.chmod(path, 0o644)
    m = reference.load(path, torch.float64)
    x = torch.randn((2, 4, 16, 24), generator=generator).double()
    context = torch.randn((2, 77, CONTEXT), generator=generator).double()
    t = torch.tensor(301)
    calls = {}
    hook = grab(m.unet.mid_block, calls, "mid")
    eps = m.eps(x, t, context)
    hook.remove()
    save(out, "small", {"x": x, "t": t.float()[None], "context": context, "eps": eps, "mid": calls["mid"][2]})
    for module in m.unet.modules():
        if isinstance(module, torch.nn.GroupNorm) and module.eps == 1e-6:
            module.eps = 1e-5
    print(f"  1e-5 for 1e-6 moves eps by {(m.eps(x, t, context) - eps).abs().max() / eps.std():.2f} of its std")


def main():
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    diffusers.logging.set_verbosity_error()  # it warns of every cast to float64
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "../../tests/data/tiny")
    os.makedirs(out, exist_ok=True)
    generator = torch.Generator().manual_seed(2946901)
    modules = make_modules(WIDTHS, META["unet_heads"], META["norm_groups"])
    for module in modules:
        randomise(module, generator)
    path = os.path.join(out, "model.safetensors")
    save_file(to_ldm(*modules), path, {"linework": json.dumps(META)})
    os.chmod(path, 0o644)
    print(f"model {os.path.getsize(path)} bytes, {sum(p.numel() for m in modules for p in m.parameters())} values")
    bpe.write_merges(os.path.join(out, "merges.txt"), bpe.learn(CORPUS, N_MERGES))
    ids = torch.tensor([bpe.Tokenizer(os.path.join(out, "merges.txt")).encode(p) for p in PROMPTS])
    m = reference.load(path, torch.float64)
    topics = net_fixtures(m, ids, generator, (16, 24), (8, 16))
    for topic, tensors in {**topics, **block_fixtures(m, topics["unet"])}.items():
        save(out, topic, tensors)
    job_fixtures(out, m, ids, reference.load(path))
    sampler_fixtures(out, m, ids)
    small_residual(out, generator)


if __name__ == "__main__":
    main()
