#!/usr/bin/env python3
"""Writes tests/data/weights: tiny files made by safetensors' and torch's own writers, for tests/unit/*_test.c.

Needs torch and safetensors. Values are small whole numbers counted up from 0, so that a test can say what it wants.
"""
import os
import torch
from safetensors.torch import save_file

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "data", "weights")


def count(*shape, dtype=torch.float32):
    n = 1
    for d in shape:
        n *= d
    return torch.arange(n).reshape(shape).to(dtype)


def main():
    os.makedirs(OUT, exist_ok=True)
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
    save_file(ldm, os.path.join(OUT, "official.safetensors"), metadata={"linework": '{"name":"t\u00e9st \\"q\\""}'})


main()
