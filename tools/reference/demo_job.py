"""The whole job in PyTorch on any model with LDM names, to compare linework's latents and bytes with.

usage: demo_job.py EDGES.png -p PROMPT [options]          makes reference.png and reference.npy
       … --linework build/bin/linework                    runs the command on the same request and compares
       … --latents L.npy --image I.png                    compares with what it made before
       … --fixture F.safetensors                          writes what tests/ keeps

Exit status 1 where latents differ by more than 1e-3 or more than 0.1 % of the bytes by more than 1.
"""
import argparse
import os
import subprocess
import sys
import tempfile

import diffusers
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import bpe
import job
import model as reference

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = os.path.join(HERE, "../../models/demo/model.safetensors")


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("edges", help="edge map, white on black, used at its own size")
    p.add_argument("-p", "--prompt", required=True)
    p.add_argument("-a", "--added-prompt", help="default: the model's")
    p.add_argument("-n", "--negative-prompt", help="default: the model's")
    p.add_argument("-m", "--model", default=MODEL)
    p.add_argument("--merges", help="default: merges.txt beside the model")
    p.add_argument("-s", "--seed", type=int, default=7)
    p.add_argument("-b", "--samples", type=int, default=1)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--cfg-scale", type=float, default=9.0)
    p.add_argument("--control-strength", type=float, default=1.0)
    p.add_argument("--control-mode", choices=("balanced", "prompt", "control"), default="balanced")
    p.add_argument("--control-start", type=float, default=0.0)
    p.add_argument("--control-end", type=float, default=1.0)
    p.add_argument("--eta", type=float, default=0.0)
    p.add_argument("--clip-skip", type=int, default=1)
    p.add_argument("--rng", choices=("cuda", "cpu"), default="cuda")
    p.add_argument("--double", action="store_true", help="compute in float64")
    p.add_argument("-t", "--threads", type=int, default=1)
    p.add_argument("-o", "--output", default="reference.png")
    p.add_argument("--linework", help="the command to run and compare with")
    p.add_argument("--latents", help="final latents of linework, .npy")
    p.add_argument("--image", help="picture of linework")
    p.add_argument("--fixture", help="write edges, ids, latents and bytes here")
    return p.parse_args()


def compute(args, m):
    """Tensors of the job: ids_cond, ids_uncond, edges, x_T, latents, bytes."""
    added = m.meta.get("added_prompt", "") if args.added_prompt is None else args.added_prompt
    negative = m.meta.get("negative_prompt", "") if args.negative_prompt is None else args.negative_prompt
    merges = args.merges or os.path.join(os.path.dirname(args.model), "merges.txt")
    tokenizer = bpe.Tokenizer(merges)
    rows = m.clip.get_input_embeddings().weight.shape[0]
    if tokenizer.size != rows:
        raise SystemExit(f"{merges}: {tokenizer.size} tokens, the model has {rows}")
    cond, uncond = (torch.tensor([tokenizer.encode(t)]) for t in (args.prompt + ", " + added, negative))
    edges = np.asarray(Image.open(args.edges).convert("RGB"))
    height, width = edges.shape[:2]
    noise = job.Noise(args.seed, args.rng)
    x_t = noise.draw((args.samples, 4, height // 8, width // 8))
    control = job.Control(m, edges.transpose(2, 0, 1).copy(), args.control_strength,
                          (args.control_start, args.control_end))
    latents = job.run(m, cond, uncond, [control], x_t, steps=args.steps, guidance=args.cfg_scale, eta=args.eta,
                      mode=args.control_mode, clip_skip=args.clip_skip, noise=noise if args.eta else None)
    return {"ids_cond": cond.int(), "ids_uncond": uncond.int(), "edges": torch.from_numpy(edges[:, :, 0].copy()),
            "x_T": x_t, "latents": latents.float(), "bytes": job.to_bytes(m.decode(latents))}


def run_linework(args, folder):
    """The same request to the command, as files in folder: (latents, pictures)."""
    latents, picture = os.path.join(folder, "latents.npy"), os.path.join(folder, "out.png")
    command = [args.linework, "generate", "-q", "-m", args.model, "--control-image", args.edges, "-p", args.prompt,
               "-s", str(args.seed), "-b", str(args.samples), "--steps", str(args.steps), "--cfg-scale",
               str(args.cfg_scale), "--control-strength", str(args.control_strength), "--control-mode",
               args.control_mode, "--control-start", str(args.control_start), "--control-end", str(args.control_end),
               "--eta", str(args.eta), "--clip-skip", str(args.clip_skip), "--rng", args.rng, "--device", "cpu", "--precision", "fp32", "--save-latents",
               latents, "-o", picture]
    for flag, value in (("-a", args.added_prompt), ("-n", args.negative_prompt), ("--vocab", args.merges)):
        if value is not None:
            command += [flag, value]
    subprocess.run(command, check=True)
    names = [picture] if args.samples == 1 else [picture[:-4] + f"-{i + 1}.png" for i in range(args.samples)]
    return np.load(latents), np.stack([np.asarray(Image.open(n).convert("RGB")) for n in names])


def compare(out, latents, pictures):
    """Prints how far apart they are; True where that is within the limits."""
    good = True
    if latents is not None:
        d = np.abs(latents.astype(np.float64) - out["latents"].double().numpy()).max()
        print(f"latents: largest difference {d:.3g} (limit 1e-3), largest value {np.abs(latents).max():.3g}")
        good &= bool(d <= 1e-3)
    if pictures is not None:
        d = np.abs(pictures.astype(int) - out["bytes"].numpy().astype(int))
        within = (d <= 1).mean()
        print(f"bytes: {100 * (d == 0).mean():.4f} % equal, {100 * within:.4f} % within 1 (limit 99.9), "
              f"largest difference {d.max()}")
        good &= bool(within >= 0.999)
    return good


def main():
    args = parse()
    torch.set_grad_enabled(False)
    torch.set_num_threads(args.threads)
    diffusers.logging.set_verbosity_error()
    m = reference.load(args.model, torch.float64 if args.double else torch.float32)
    out = compute(args, m)
    stem = os.path.splitext(args.output)[0]
    for i, picture in enumerate(out["bytes"].numpy()):
        Image.fromarray(picture).save(args.output if args.samples == 1 else f"{stem}-{i + 1}.png")
    np.save(stem + ".npy", out["latents"].numpy())
    if args.fixture:
        save_file({k: v.contiguous() for k, v in out.items()}, args.fixture, {"prompt": args.prompt})
        os.chmod(args.fixture, 0o644)
    latents = np.load(args.latents) if args.latents else None
    pictures = np.asarray(Image.open(args.image).convert("RGB"))[None] if args.image else None
    if args.linework:
        with tempfile.TemporaryDirectory() as folder:
            latents, pictures = run_linework(args, folder)
    sys.exit(0 if compare(out, latents, pictures) else 1)


if __name__ == "__main__":
    main()
