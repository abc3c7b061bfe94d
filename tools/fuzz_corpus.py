#!/usr/bin/env python3
"""Writes the small seeds of tests/fuzz/corpus/{safetensors,zip,pickle,bpe}. Needs torch and safetensors."""
import io
import json
import os
import struct
import zipfile

import torch
from safetensors.torch import save as save_shared

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "fuzz", "corpus")
UNET = "model.diffusion_model."


def save(tensors, metadata=None):
    return save_shared({k: v.clone() for k, v in tensors.items()}, metadata)


def put(target, name, data):
    os.makedirs(os.path.join(ROOT, target), exist_ok=True)
    with open(os.path.join(ROOT, target, name), "wb") as f:
        f.write(data)


def header(entries, data=b""):
    text = json.dumps(entries, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def main():
    x = torch.arange(6.0)
    put("safetensors", "one", save({UNET + "out.2.bias": x}))
    put("safetensors", "types", save({UNET + "out.2.bias": x.half(), UNET + "out.0.bias": x.double(), "control_model.zero_convs.0.0.bias": x.bfloat16(),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(3)}, metadata={"linework": "{}"}))
    put("safetensors", "bare-control", save({"input_hint_block.0.weight": x.reshape(1, 1, 2, 3), "zero_convs.0.0.weight": x.reshape(6, 1, 1, 1)}))
    put("safetensors", "diffusers", save({"controlnet_cond_embedding.conv_in.weight": x, "controlnet_cond_embedding.blocks.0.bias": x, "down_blocks.0.resnets.1.conv1.bias": x,
        "down_blocks.1.attentions.0.proj_in.weight": x.reshape(2, 3)}))
    put("safetensors", "vae", save({"decoder.up_blocks.0.resnets.0.norm1.weight": x, "decoder.mid_block.attentions.0.query.weight": x.reshape(2, 3)}))
    put("safetensors", "hole", header({UNET + "out.2.bias": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)))
    put("safetensors", "empty", header({}))
    saved = {
        "plain": {UNET + "out.2.bias": x},
        "nested": {"epoch": 1, "state_dict": {UNET + "out.2.weight": x.reshape(2, 3).t(), UNET + "out.2.bias": torch.nn.Parameter(x[2:])}, "l": [1, (2.5, None, True)], "n": 2**80},
        "types": {UNET + "out.2.bias": x.half(), UNET + "out.0.bias": x.bfloat16(), UNET + "out.0.weight": x.double(), "steps": torch.tensor(3)},
    }
    for name, value in saved.items():
        file = io.BytesIO()
        torch.save(value, file)
        put("zip", name, file.getvalue())
        archive = zipfile.ZipFile(file)
        put("pickle", name, archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl"))))
    file = io.BytesIO()
    torch.save(saved["plain"], file, pickle_protocol=4)
    archive = zipfile.ZipFile(file)
    put("pickle", "protocol4", archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl"))))
    put("bpe", "english", "a photo of the house and the cat, it's 12 o'clock <|endoftext|>".encode())
    put("bpe", "unicode", "é e\u0301 \u0130 \u1100\u1161\u11a8 \U0001f600 中文 \u00a0\u3000 <|StartOfText|> q\u0307\u0323".encode())
    put("bpe", "vocabulary", "#version\na b\nab c</w>\n\0abc ABC ab c".encode())
    put("bpe", "broken", b"#\na\nb c d\n\0text\xff")
    put("bpe", "cut", ("word " * 90).encode())


main()
