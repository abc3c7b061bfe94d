"""LDM names (control_sd15_canny.pth) to diffusers' and transformers' names, for any number of levels and blocks.

What is there is read off the LDM names, so a level without attention or a block without a skip needs no flag.
"""
import re

UNET = "model.diffusion_model."
CONTROL = "control_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer.text_model."

_RESNET = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
           "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def count(names, pattern):
    """One more than the largest number that pattern's group matches in any name, 0 for none."""
    found = [int(m.group(1)) for m in (re.match(pattern, n) for n in names) if m]
    return max(found) + 1 if found else 0


def unet_layout(names):
    """(levels, res blocks a level, attention of each level) of a UNet or ControlNet's names without prefix."""
    downs = sorted({int(m.group(1)) for m in (re.match(r"input_blocks\.(\d+)\.0\.op\.", n) for n in names) if m})
    levels = len(downs) + 1
    blocks = downs[0] - 1
    attention = [f"input_blocks.{1 + i * (blocks + 1)}.1.norm.weight" in names for i in range(levels)]
    return levels, blocks, attention


def _unet_module(name, levels, blocks):
    """The diffusers module of one LDM module of a UNet or ControlNet, with what remains of the name after it."""
    fixed = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
             "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
             "middle_block_out.0": "controlnet_mid_block"}
    stem = name.rsplit(".", 1)[0]
    if stem in fixed:
        return fixed[stem], name[len(stem):]
    m = re.match(r"(input_blocks|output_blocks)\.(\d+)\.(\d+)\.(.*)", name)
    if m:
        i, j, rest = int(m.group(2)), int(m.group(3)), m.group(4)
        if m.group(1) == "input_blocks":
            level, k, side = (i - 1) // (blocks + 1), (i - 1) % (blocks + 1), "down_blocks"
        else:
            level, k, side = i // (blocks + 1), i % (blocks + 1), "up_blocks"
        if rest.startswith("op."):
            return f"{side}.{level}.downsamplers.0.conv", rest[2:]
        if rest.startswith("conv."):
            return f"{side}.{level}.upsamplers.0.conv", rest[4:]
        return f"{side}.{level}.{'attentions' if j else 'resnets'}.{k}", "." + rest
    m = re.match(r"middle_block\.(\d)\.(.*)", name)
    if m:
        at = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}[m.group(1)]
        return f"mid_block.{at}", "." + m.group(2)
    m = re.match(r"zero_convs\.(\d+)\.0(\..*)", name)
    if m:
        return f"controlnet_down_blocks.{m.group(1)}", m.group(2)
    m = re.match(r"input_hint_block\.(\d+)(\..*)", name)
    if m:
        i = int(m.group(1))
        at = {0: "conv_in", 14: "conv_out"}.get(i, f"blocks.{i // 2 - 1}")
        return f"controlnet_cond_embedding.{at}", m.group(2)
    raise KeyError(name)


def unet(names):
    """{LDM name: diffusers name} of a UNet's or ControlNet's names, all without prefix."""
    levels, blocks, _ = unet_layout(names)
    out = {}
    for name in names:
        module, rest = _unet_module(name, levels, blocks)
        part = rest[1:].rsplit(".", 1)
        if "resnets" in module:
            rest = f".{_RESNET[part[0]]}.{part[1]}"
        out[name] = module + rest
    return out


def vae(names):
    """{LDM name: diffusers name} of a VAE's names without prefix. Attention weights have another rank there."""
    levels = count(names, r"decoder\.up\.(\d+)\.")
    out = {}
    for name in names:
        d = name.replace("norm_out", "conv_norm_out").replace("nin_shortcut", "conv_shortcut")
        d = re.sub(r"encoder\.down\.(\d+)\.block\.(\d+)", r"encoder.down_blocks.\1.resnets.\2", d)
        d = re.sub(r"encoder\.down\.(\d+)\.downsample", r"encoder.down_blocks.\1.downsamplers.0", d)
        d = re.sub(r"decoder\.up\.(\d+)\.block\.(\d+)",
                   lambda m: f"decoder.up_blocks.{levels - 1 - int(m.group(1))}.resnets.{m.group(2)}", d)
        d = re.sub(r"decoder\.up\.(\d+)\.upsample",
                   lambda m: f"decoder.up_blocks.{levels - 1 - int(m.group(1))}.upsamplers.0", d)
        d = re.sub(r"mid\.block_(\d)", lambda m: f"mid_block.resnets.{int(m.group(1)) - 1}", d)
        d = re.sub(r"mid\.attn_1\.(\w+)", lambda m: f"mid_block.attentions.0.{_ATTENTION[m.group(1)]}", d)
        out[name] = d
    return out
