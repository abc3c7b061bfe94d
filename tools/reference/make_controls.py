"""Writes tests/data/controls.safetensors: jobs with several ControlNets, a VAE of another model, and clip skip.

The models are make-model's small ones, which the C test makes anew: UNet and CLIP of seed 1, ControlNets of seeds 2
and 3, the other VAE of seed 4, all fp16. Everything is computed in double by job.py. What diffusers has of it (the sum
over ControlNets, windows, the hidden state of a clip skip) is asked of its own pipeline too and has to be the same.
"""
import os
import subprocess
import sys
import tempfile

import diffusers
import torch
from diffusers import DDIMScheduler, MultiControlNetModel, StableDiffusionControlNetPipeline
from safetensors.torch import save_file

import bpe
import job
import model as reference
from make_tiny import edge_map

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "../../tests/data/controls.safetensors")
SIZE = (64, 128)
TEXTS = ("a red house, best quality", "lowres")
STEPS, GUIDANCE = 10, 5.0
# Of 10 steps the first control takes 0..5 and the second 3..9: both ends are met exactly, and no step goes without.
WINDOWS = ((0.0, 0.6), (0.3, 1.0))
STRENGTHS = (0.8, 0.5)


def make(folder, seed):
    path = os.path.join(folder, f"{seed}.safetensors")
    subprocess.run([sys.executable, os.path.join(HERE, "../make_model.py"), "--small", "--dtype", "fp16", "--seed",
                    str(seed), path], check=True)
    return reference.load(path, torch.float64)


class Vae(torch.nn.Module):
    """As much of an AutoencoderKL as a pipeline that returns latents asks about."""

    class config:
        block_out_channels, scaling_factor, force_upcast = (1, 1, 1, 1), 1.0, False

    dtype, device = torch.float64, torch.device("cpu")


def pipeline(m, nets, tokenizer):
    scheduler = DDIMScheduler(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012,
                              beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False, clip_sample=False)
    return StableDiffusionControlNetPipeline(
        vae=Vae(), text_encoder=m.clip, tokenizer=tokenizer.inner, unet=m.unet,
        controlnet=MultiControlNetModel([n.control for n in nets]), scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False)


def check_pipeline(m, controls, tokenizer, x_t, ids, want, clip_skip):
    """diffusers' own loop over the same parts. It leaves the negative text without clip skip; A1111 does not, nor do
    we: so both texts are given as what they become, the positive one by diffusers."""
    pipe = pipeline(m, [c.model for c in controls], tokenizer)
    pipe.set_progress_bar_config(disable=True)
    if not hasattr(m.clip, "text_model"):  # transformers 5 has none, diffusers 0.42 asks it for the last norm
        object.__setattr__(m.clip, "text_model", m.clip)
    embeds = pipe.encode_prompt(TEXTS[0], "cpu", 1, False, clip_skip=clip_skip - 1 or None)[0]
    pictures = [torch.from_numpy(c.edges).double().expand(1, 3, -1, -1) / 255 for c in controls]
    got = pipe(prompt_embeds=embeds, negative_prompt_embeds=m.text(ids[1:], clip_skip - 1), image=pictures,
               height=SIZE[0], width=SIZE[1], num_inference_steps=STEPS, guidance_scale=GUIDANCE, latents=x_t.double(),
               controlnet_conditioning_scale=[c.strength for c in controls],
               control_guidance_start=[c.window[0] for c in controls],
               control_guidance_end=[c.window[1] for c in controls], output_type="latent", return_dict=False)[0]
    apart = float((got - want).abs().max())
    print(f"  diffusers' pipeline is {apart:.1e} away")
    assert apart < 2e-4, apart  # its alphas are float32 throughout


def main():
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    diffusers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        m, first, second, other = (make(folder, seed) for seed in (1, 2, 3, 4))
        merges = os.path.join(folder, "merges.txt")
        bpe.write_merges(merges, [])  # its 514 tokens are bytes alone
        tokenizer = bpe.Tokenizer(merges)
    ids = torch.tensor([tokenizer.encode(t) for t in TEXTS])
    edges = [edge_map(*SIZE, seed) for seed in (2, 5)]
    both = [job.Control(n, e, s, w) for n, e, s, w in zip((first, second), edges, STRENGTHS, WINDOWS)]
    one = [job.Control(first, edges[0])]
    jobs = {"two": (both, {}), "two_prompt": (both, {"mode": "prompt"}), "two_guess": (both, {"mode": "control"}),
            "two_scale1": (both, {"guidance": 1.0}), "two_batch": (both, {}), "clip_skip": (one, {"clip_skip": 2})}
    out = {"ids": ids.int(), "edges.0": torch.from_numpy(edges[0]), "edges.1": torch.from_numpy(edges[1])}
    for name, (controls, options) in jobs.items():
        x_t = job.Noise(7).draw((2 if name == "two_batch" else 1, 4, SIZE[0] // 8, SIZE[1] // 8))
        latents = job.run(m, ids[:1], ids[1:], controls, x_t, **{"steps": STEPS, "guidance": GUIDANCE, **options})
        out[name + ".latents"] = latents.float()
        print(f"{name:12} latents std {latents.std():.2f}, largest {latents.abs().max():.2f}")
        if name == "clip_skip":
            plain = job.run(m, ids[:1], ids[1:], controls, x_t, steps=STEPS, guidance=GUIDANCE)
            assert (plain - latents).abs().max() > 0.1  # else nothing would be shown
        if name in ("two", "clip_skip"):
            check_pipeline(m, controls, tokenizer, x_t, ids, latents, options.get("clip_skip", 1))
        if name == "two":
            for vae, of in (("own", m), ("other", other)):
                out[f"{vae}_vae.bytes"] = job.to_bytes(of.decode(latents))
                print(f"{vae} vae: bytes std {out[f'{vae}_vae.bytes'].float().std():.1f}")
    save_file({k: v.contiguous() for k, v in out.items()}, OUT)
    os.chmod(OUT, 0o644)
    print(os.path.getsize(OUT), "bytes")


if __name__ == "__main__":
    main()
