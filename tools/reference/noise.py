"""Writes tests/data/rng.safetensors: torch.randn on a CPU, two draws of each size and one mixed sequence, seed 42."""
import os

import torch
from safetensors.torch import save_file

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tests/data/rng.safetensors")
SIZES = (5, 16, 17, 100, 6144)
MIXED = (5, 20, 4, 16, 3)  # an odd count leaves a normal behind for the next small draw


def main():
    out = {}
    for n in SIZES:
        g = torch.Generator("cpu").manual_seed(42)
        out[f"n{n}.0"], out[f"n{n}.1"] = torch.randn(n, generator=g), torch.randn(n, generator=g)
    g = torch.Generator("cpu").manual_seed(4294967295)
    out["mixed"] = torch.cat([torch.randn(n, generator=g) for n in MIXED])
    save_file(out, OUT)
    os.chmod(OUT, 0o644)


if __name__ == "__main__":
    main()
