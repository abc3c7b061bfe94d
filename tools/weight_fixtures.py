#!/usr/bin/env python3
"""Writes tests/data/weights: tiny files made by safetensors', torch's and diffusers' own writers, for tests/unit.

    tools/weight_fixtures.py [KEYS.tsv]

Needs torch, safetensors, diffusers, transformers. Values are whole numbers under 256, exact in every type. The same tiny
model (two levels, one block each) is written in all layouts, so that a test can hold them against each other. With the
list of the released checkpoint's keys (name, shape), names.tsv is written too: its LDM names and what diffusers makes of
them.
"""
import os
import sys

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils as convert
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "data", "weights")
PREFIX = {"unet": "model.diffusion_model.", "control": "control_model.", "vae": "first_stage_model.", "clip": "cond_stage_model.transformer."}


def count(*shape, dtype=torch.float32):
    n = 1
    for d in shape:
        n *= d
    return torch.arange(n).reshape(shape).to(dtype)


def official():
    ldm = {
        "model.diffusion_model.time_embed.0.weight": count(4, 2),
        "model.diffusion_model.time_embed.0.bias": count(4, dtype=torch.float16),
        "model.diffusion_model.out.2.weight": count(2, 3, 1, 1, dtype=torch.bfloat16),
        "control_model.zero_convs.0.0.bias": count(3, dtype=torch.float64),
        "first_stage_model.quant_conv.bias": count(5, dtype=torch.float16),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": count(1, 7, dtype=torch.int64),
        "cond_stage_model.transformer.text_model.final_layer_norm.bias": count(3),
        "betas": count(2),
        "some.bool": torch.tensor([True, False, True]),
        "some.i8": count(3, dtype=torch.int8),
        "some.u8": count(3, dtype=torch.uint8),
        "some.i16": count(3, dtype=torch.int16),
        "some.i32": count(3, dtype=torch.int32),
        "some.empty": torch.zeros(0, 4),
        "some.scalar": torch.tensor(7.0),
    }
    save_file(ldm, path("official.safetensors"), metadata={"linework": '{"name":"t\u00e9st \\"q\\""}'})


def path(*parts):
    p = os.path.join(OUT, *parts)
    os.makedirs(os.path.dirname(p), exist_ok=True)
    return p


# ---- the tiny model

def tiny():
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    shape = dict(block_out_channels=(2, 4), layers_per_block=1, cross_attention_dim=2, attention_head_dim=1, norm_num_groups=1)
    models = {
        "unet": UNet2DConditionModel(down_block_types=down, up_block_types=up, sample_size=8, **shape),
        "control": ControlNetModel(down_block_types=down, conditioning_embedding_out_channels=(2, 3, 4), **shape),
        "vae": AutoencoderKL(block_out_channels=(2, 4), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=1),
        "clip": CLIPTextModel(CLIPTextConfig(vocab_size=516, hidden_size=2, intermediate_size=4, num_hidden_layers=2, num_attention_heads=1, max_position_embeddings=77)),
    }
    at = 0
    for model in models.values():
        for p in model.parameters():
            p.data = ((torch.arange(p.numel()) + at) % 256).reshape(p.shape).float()
            at += p.numel() + 7
    return models


RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
SIMPLE = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0",
          "conv_out": "out.2", "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2",
          "controlnet_mid_block": "middle_block_out.0", "controlnet_cond_embedding.conv_in": "input_hint_block.0"}


def unet_to_ldm(state, up_attention):
    """Of the tiny UNet and ControlNet: one block a level, so LDM's blocks are 1 (block), 2 (downsampler), 3 (block)."""
    out = {}
    for key, value in state.items():
        name, leaf = key.rsplit(".", 1)
        p = name.split(".")
        if p[0] == "down_blocks":
            b, what, j = int(p[1]), p[2], int(p[3])
            new = f"input_blocks.{2 * b + j + 1}.{'1' if what == 'attentions' else '0'}" if what != "downsamplers" else f"input_blocks.{2 * (b + 1)}.0.op"
            rest = [] if what == "downsamplers" else p[4:]
        elif p[0] == "up_blocks":
            b, what, j = int(p[1]), p[2], int(p[3])
            new = f"output_blocks.{2 * b + j}.{'1' if what == 'attentions' else '0'}" if what != "upsamplers" else f"output_blocks.{2 * b + 1}.{2 if b in up_attention else 1}.conv"
            rest = [] if what == "upsamplers" else p[4:]
        elif name.startswith("controlnet_cond_embedding.blocks."):
            new, rest = f"input_hint_block.{2 * int(p[2]) + 2}", []
        elif name == "controlnet_cond_embedding.conv_out":
            new, rest = "input_hint_block.10", []
        elif p[0] == "controlnet_down_blocks":
            new, rest = f"zero_convs.{p[1]}.0", []
        else:
            old = max((s for s in SIMPLE if name == s or name.startswith(s + ".")), key=len)
            new, rest = SIMPLE[old], name[len(old) + 1 :].split(".") if name != old else []
        if "resnets" in p:
            rest = [RESNET[rest[0]]]
        out[".".join([new, *rest, leaf])] = value
    return out


def vae_to_ldm(state):
    out = {}
    for key, value in state.items():
        name = key
        for b in range(2):
            name = name.replace(f"encoder.down_blocks.{b}.resnets.", f"encoder.down.{b}.block.").replace(f"encoder.down_blocks.{b}.downsamplers.0.conv", f"encoder.down.{b}.downsample.conv")
            name = name.replace(f"decoder.up_blocks.{b}.resnets.", f"decoder.up.{1 - b}.block.").replace(f"decoder.up_blocks.{b}.upsamplers.0.conv", f"decoder.up.{1 - b}.upsample.conv")
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut").replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        if "mid_block.attentions.0." in name:
            head, tail = name.split("mid_block.attentions.0.")
            part, leaf = tail.rsplit(".", 1)
            name = f"{head}mid.attn_1.{VAE_ATTENTION[part]}.{leaf}"
            value = value[:, :, None, None] if value.dim() == 2 else value
        out[name] = value
    return out


def check(ours, theirs, what):
    assert ours.keys() == theirs.keys(), (what, ours.keys() ^ theirs.keys())
    assert all(torch.equal(ours[k].reshape(-1), theirs[k].reshape(-1)) for k in ours), what


def layouts():
    models = tiny()
    state = {n: {k: v.contiguous() for k, v in m.state_dict().items()} for n, m in models.items()}
    ldm = {"unet": unet_to_ldm(state["unet"], {1}), "control": unet_to_ldm(state["control"], ()), "vae": vae_to_ldm(state["vae"])}
    clip = {k if k.startswith("text_model.") else "text_model." + k: v for k, v in state["clip"].items()}
    ldm["clip"] = {**clip, "text_model.embeddings.position_ids": torch.arange(77)[None]}
    # diffusers' own converters agree
    config = dict(models["unet"].config)
    check(state["unet"], convert.convert_ldm_unet_checkpoint({PREFIX["unet"] + k: v for k, v in ldm["unet"].items()}, config), "unet")
    control = convert.convert_controlnet_checkpoint({PREFIX["control"] + k: v for k, v in ldm["control"].items()}, dict(models["control"].config))
    shared = {k: v for k, v in state["control"].items() if "cond_embedding" not in k}  # it knows the hint block's full depth only
    check(shared, {k: v for k, v in control.items() if "cond_embedding" not in k}, "control")
    check(state["vae"], convert.convert_ldm_vae_checkpoint({PREFIX["vae"] + k: v for k, v in ldm["vae"].items()}, dict(models["vae"].config)), "vae")

    full = {PREFIX[n] + k: v.contiguous() for n in ldm for k, v in ldm[n].items()}
    save_file({k: v.half() if v.is_floating_point() else v for k, v in full.items()}, path("tiny-ldm.safetensors"))
    # A Lightning checkpoint: nested, with extras, an EMA copy, a parameter, a transposed and a shared tensor.
    some = PREFIX["unet"] + "time_embed.0.weight"
    mixed = dict(full)
    mixed[some] = full[some].t().contiguous().t()
    mixed["model_ema.decay"] = torch.tensor(0.9999)
    mixed["model_ema.diffusion_modeltime_embed0weight"] = full[some]
    key = PREFIX["vae"] + "quant_conv.weight"
    mixed[key] = torch.nn.Parameter(full[key])
    big = torch.cat([torch.full((5,), 99.0), full[PREFIX["unet"] + "out.2.bias"]])
    mixed[PREFIX["unet"] + "out.2.bias"] = big[5:]
    keep = {k: v for k, v in mixed.items() if not k.startswith((PREFIX["clip"], PREFIX["control"])) }
    import numpy
    torch.save({"epoch": 3, "global_step": 7, "state_dict": keep, "callbacks": {"a": numpy.float64(1.5)}, "lr_schedulers": [], "huge": 2**80}, path("lightning.ckpt"))
    torch.save({k[len(PREFIX["control"]):]: v.bfloat16() for k, v in full.items() if k.startswith(PREFIX["control"])}, path("control-bare.pth"))
    models["unet"].save_pretrained(path("diffusers", "unet"))
    models["vae"].half().save_pretrained(path("diffusers", "vae"), variant="fp16")
    models["clip"].save_pretrained(path("diffusers", "text_encoder"))
    models["control"].save_pretrained(path("diffusers", "controlnet"), safe_serialization=False)
    # The VAE as older diffusers wrote it.
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae = {}
    for k, v in state["vae"].items():
        for new, was in old.items():
            k = k.replace(f"attentions.0.{new}.", f"attentions.0.{was}.")
        vae[k] = v.float()
    save_file(vae, path("vae-old.safetensors"))


def names(keys):
    """ldm name, diffusers name, of the weights; the biases go with them."""
    rows = [line.split("\t") for line in open(keys).read().splitlines()[1:]]
    number, state = {}, {}
    for i, (name, shape) in enumerate(rows):
        state[name] = torch.full([1] * len(shape.split("x")), float(i))
        number[float(i)] = name
    down = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    up = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    config = {"layers_per_block": 2, "down_block_types": down, "up_block_types": up}
    with open(path("names.tsv"), "w") as f:
        for network, made in [("unet", convert.convert_ldm_unet_checkpoint(dict(state), config)), ("control", convert.convert_controlnet_checkpoint(dict(state), config)),
                              ("vae", convert.convert_ldm_vae_checkpoint(dict(state), config))]:
            for theirs, value in made.items():
                ours = number[float(value.reshape(-1)[0])]
                assert ours.startswith(PREFIX[network])
                if theirs.endswith(".weight"):
                    f.write(f"{network}\t{ours[len(PREFIX[network]):-7]}\t{theirs[:-7]}\n")


def main():
    official()
    layouts()
    if len(sys.argv) > 1:
        names(sys.argv[1])


main()
