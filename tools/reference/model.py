"""A checkpoint with LDM names as diffusers and transformers modules, its configuration read off the shapes.

The modules are diffusers' own, so that what the C program is compared with was written by others.
"""
import json

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.autoencoders.vae import Decoder, Encoder
from safetensors import safe_open
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

import names

DEFAULTS = {"unet_heads": 8, "norm_groups": 32, "clip_act": "quick_gelu", "scale_factor": 0.18215, "resolution": 512}


class Vae(nn.Module):
    """Not AutoencoderKL: a small model's encoder and decoder may have other widths."""

    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.quant_conv = nn.Conv2d(8, 8, 1) if encoder else None
        self.post_quant_conv = nn.Conv2d(4, 4, 1)

    def decode(self, z):
        return self.decoder(self.post_quant_conv(z))


def strip(state, prefix):
    return {k[len(prefix):]: v for k, v in state.items() if k.startswith(prefix)}


def _unet_config(state, meta):
    levels, blocks, attention = names.unet_layout(state)
    widths = tuple(state[f"input_blocks.{1 + i * (blocks + 1)}.0.in_layers.2.weight"].shape[0] for i in range(levels))
    return dict(block_out_channels=widths, layers_per_block=blocks,
                down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
                cross_attention_dim=state["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
                # diffusers' name for it notwithstanding, this is the number of heads.
                attention_head_dim=meta["unet_heads"], norm_num_groups=meta["norm_groups"], norm_eps=1e-5)


def make_unet(state, meta):
    config = _unet_config(state, meta)
    config["up_block_types"] = tuple("CrossAttnUpBlock2D" if d.startswith("Cross") else "UpBlock2D"
                                     for d in reversed(config["down_block_types"]))
    return UNet2DConditionModel(sample_size=64, **config)


def make_control(state, meta):
    hint = tuple(state[f"input_hint_block.{i}.weight"].shape[0] for i in (0, 4, 8, 12))
    return ControlNetModel(conditioning_embedding_out_channels=hint, **_unet_config(state, meta))


def make_vae(state, meta):
    groups = meta["norm_groups"]
    levels = names.count(state, r"decoder\.up\.(\d+)\.")
    widths = tuple(state[f"decoder.up.{i}.block.0.conv1.weight"].shape[0] for i in range(levels))
    blocks = names.count(state, r"decoder\.up\.0\.block\.(\d+)\.") - 1
    decoder = Decoder(4, 3, ("UpDecoderBlock2D",) * levels, widths, blocks, groups)
    encoder = None
    if "encoder.conv_in.weight" in state:
        widths = tuple(state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels))
        blocks = names.count(state, r"encoder\.down\.0\.block\.(\d+)\.")
        encoder = Encoder(3, 4, ("DownEncoderBlock2D",) * levels, widths, blocks, groups)
    return Vae(encoder, decoder)


def make_clip(state, meta):
    vocab, width = state["embeddings.token_embedding.weight"].shape
    config = CLIPTextConfig(vocab_size=vocab, hidden_size=width,
                            intermediate_size=state["encoder.layers.0.mlp.fc1.weight"].shape[0],
                            num_hidden_layers=names.count(state, r"encoder\.layers\.(\d+)\."),
                            num_attention_heads=meta.get("clip_heads") or width // 64, max_position_embeddings=77,
                            hidden_act=meta["clip_act"], bos_token_id=vocab - 2, eos_token_id=vocab - 1,
                            attn_implementation="eager")
    return CLIPTextModel(config)


def clip_module_names(module, ldm_names):
    """transformers 5 has no `text_model.` before its names, earlier ones have."""
    prefix = "text_model." if any(k.startswith("text_model.") for k in module.state_dict()) else ""
    return {k: prefix + k for k in ldm_names if not k.endswith("position_ids")}


def fill(module, state, mapping, dtype):
    """Makes an LDM state a module's parameters. Every one must be there, and nothing else."""
    own = module.state_dict()
    new = {mapping[k]: state[k].to(dtype).reshape(own[mapping[k]].shape) for k in mapping}
    missing = [k for k in own if k not in new and not k.endswith("position_ids")]
    if missing:
        raise KeyError(f"not in the checkpoint: {missing[:4]} of {len(missing)}")
    module.load_state_dict(new, strict=False, assign=True)
    return module.eval().requires_grad_(False)


class Model:
    """unet, control, vae, clip: modules, or None where the checkpoint has none of it; meta: its metadata."""

    def __init__(self, state, meta, dtype=torch.float32):
        self.meta = {**DEFAULTS, **meta}
        self.dtype = dtype
        self.unet = self._load(strip(state, names.UNET), make_unet, names.unet)
        self.control = self._load(strip(state, names.CONTROL), make_control, names.unet)
        self.vae = self._load(strip(state, names.VAE), make_vae, names.vae)
        clip = strip(state, names.CLIP)
        self.clip = None
        if clip:
            module = make_clip(clip, self.meta)
            self.clip = fill(module, clip, clip_module_names(module, clip), dtype)

    def _load(self, state, make, mapping):
        if not state:
            return None
        with torch.device("meta"):  # a full-sized model is not to be drawn and held beside the one of the file
            module = make(state, self.meta)
        return fill(module, state, mapping(state), self.dtype)

    def text(self, ids, skip=0):
        """Hidden states after the final norm; skip: layers left out at the end."""
        if not skip:
            return self.clip(input_ids=ids.long()).last_hidden_state
        hidden = self.clip(input_ids=ids.long(), output_hidden_states=True).hidden_states[-1 - skip]
        return getattr(self.clip, "text_model", self.clip).final_layer_norm(hidden)

    def hint(self, hint):
        return self.control.controlnet_cond_embedding(hint)

    def controls(self, x, t, context, hint):
        """The 13 controls (for four levels), unscaled."""
        out = self.control(x, t, context, hint, 1.0, return_dict=False)
        return list(out[0]) + [out[1]]

    def eps(self, x, t, context, controls=None):
        down, mid = (tuple(controls[:-1]), controls[-1]) if controls else (None, None)
        return self.unet(x, t, context, down_block_additional_residuals=down,
                         mid_block_additional_residual=mid, return_dict=False)[0]

    def decode(self, latents):
        return self.vae.decode(latents / self.meta["scale_factor"])


def load(path, dtype=torch.float32):
    with safe_open(path, framework="pt") as f:
        meta = json.loads((f.metadata() or {}).get("linework", "{}"))
        state = {k: f.get_tensor(k) for k in f.keys()}
    return Model(state, meta, dtype)
