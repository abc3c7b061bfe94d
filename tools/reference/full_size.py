"""linework and PyTorch at Stable Diffusion 1.5's full size, on random weights.

usage: full_size.py FOLDER [--build build] [--merges FILE] [--size 256x384] [--keep]

Each network by itself on the same inputs, then the whole job of 20 steps, then the same job from the combined .pth
file. PyTorch is done, and its memory given back, before linework begins: 8 GiB of memory and 12 GB in FOLDER are
enough. Exit status 1 where a network is further away than 1e-3 of its output's scale, more than 0.1 % of the bytes
differ by more than 1, or the .pth file makes another picture. docs/parity.md has what came out.

What is there in FOLDER is used again, so that a run that was cut off goes on; --keep leaves the models there.
"""
import argparse
import os
import subprocess
import sys

import diffusers
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import bpe
import demo_job
import make_tiny
import model as reference

LIMIT = 1e-3
N_MERGES = 49408 - 514
PROMPT = "a red house and a yellow moon"


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder")
    p.add_argument("--build", default=os.path.join(demo_job.HERE, "../../build"))
    p.add_argument("--merges", help="CLIP's vocabulary; default: one made up here, of the same size")
    p.add_argument("--size", default="256x384", help="height x width of the picture")
    p.add_argument("--seed", type=int, default=1, help="of the model's weights")
    p.add_argument("--small", action="store_true", help="the narrow model instead, to try this script")
    p.add_argument("--keep", action="store_true", help="leave the models in FOLDER")
    return p.parse_args()


def make_model(args, layout):
    path = os.path.join(args.folder, {"ldm": "model.safetensors", "combined-pth": "model.pth"}[layout])
    if not os.path.exists(path):
        subprocess.run([os.path.join(args.build, "bin/linework"), "make-model", "-q", "--like", "sd15", "--layout",
                        layout, "--seed", str(args.seed), path] + ["--small"] * args.small, check=True)
    return path


def make_merges(args, n):
    """Merges of two letters that end a word: as many as n, whatever they are worth."""
    letters = list(bpe.letters().values())
    path = os.path.join(args.folder, "merges.txt")
    bpe.write_merges(path, [(letters[i // 256], letters[i % 256] + "</w>") for i in range(n)])
    return path


def job_arguments(args, model, merges):
    edges = os.path.join(args.folder, "edges.png")
    height, width = (int(v) for v in args.size.split("x"))
    Image.fromarray(make_tiny.edge_map(height, width, 1)).save(edges)
    sys.argv = ["", edges, "-p", PROMPT, "-m", model, "--merges", merges, "-a", "best quality", "-n", "lowres, bad",
                "--linework", os.path.join(args.build, "bin/linework")]
    return demo_job.parse()


def compute(args, model, merges):
    """PyTorch's side, written to FOLDER."""
    done = os.path.join(args.folder, "job.safetensors")
    if os.path.exists(done):
        return
    m = reference.load(model)
    job = job_arguments(args, model, merges)
    tokenizer = bpe.Tokenizer(merges)
    ids = torch.tensor([tokenizer.encode(t) for t in (f"{PROMPT}, best quality", "lowres, bad")])
    size = tuple(int(v) // 8 for v in args.size.split("x"))
    topics = make_tiny.net_fixtures(m, ids, torch.Generator().manual_seed(2946901), size, size)
    for topic, tensors in topics.items():
        save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(args.folder, topic + ".safetensors"))
    save_file({k: v.contiguous() for k, v in demo_job.compute(job, m).items()}, done + ".new")
    os.rename(done + ".new", done)


def describe(out):
    """That there is something to compare: neither latents that ran away nor a picture of two values."""
    pixels = out["bytes"]
    inside = ((pixels > 0) & (pixels < 255)).float().mean()
    print(f"PyTorch's job: latents std {out['latents'].std():.3f}, largest {out['latents'].abs().max():.3f}; bytes std "
          f"{pixels.float().std():.1f}, {100 * inside:.2f} % between 0 and 255")
    if not (torch.isfinite(out["latents"]).all() and inside > 0.5):
        raise SystemExit("the model's activations are not sane: nothing was shown")


def main():
    args = parse()
    torch.set_grad_enabled(False)
    diffusers.logging.set_verbosity_error()
    os.makedirs(args.folder, exist_ok=True)
    model = make_model(args, "ldm")
    merges = args.merges or make_merges(args, 0 if args.small else N_MERGES)
    if os.fork() == 0:  # a process of its own gives all of its memory back
        compute(args, model, merges)
        os._exit(0)
    if os.wait()[1] != 0:
        raise SystemExit("PyTorch's side failed")
    out = load_file(os.path.join(args.folder, "job.safetensors"))
    describe(out)
    networks = subprocess.run([os.path.join(args.build, "bin/parity_test"), model, args.folder, str(LIMIT)], check=False)
    job = job_arguments(args, model, merges)
    latents, pictures = demo_job.run_linework(job, args.folder)
    good = demo_job.compare(out, latents, pictures)
    job.model = make_model(args, "combined-pth")
    again = demo_job.run_linework(job, args.folder)
    same = np.array_equal(latents, again[0]) and np.array_equal(pictures, again[1])
    print("the combined .pth file makes " + ("the same latents and picture" if same else "ANOTHER PICTURE"))
    if not args.keep:
        os.remove(model)
        os.remove(job.model)
    sys.exit(0 if good and same and networks.returncode == 0 else 1)


if __name__ == "__main__":
    main()
