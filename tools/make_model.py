#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The bytes of `linework make-model --like sd15 --layout ldm`, made by numpy from the description in docs/model-files.md.

    tools/make_model.py OUT.safetensors  [--dtype fp32|fp16|bf16] [--seed N] [--small]
    tools/make_model.py --check MODEL... [--dtype fp32|fp16|bf16] [--seed N] [--small]

The second holds files or folders of any layout against the same description: every tensor of the networks in it is there,
under its name, in its shape and type, with these very bytes. Nothing is shared with the C code but that description, and
diffusers' names are what diffusers made of LDM's (tests/data/weights/names.tsv). tests/cli/models.sh runs both."""
import argparse
import json
import math
import os
import pickle
import sys
import zipfile

import numpy as np

ALL, GOLDEN, CHUNK = (1 << 64) - 1, 0x9E3779B97F4A7C15, 1 << 22
WIDTHS = {
    False: dict(unet=320, unet_mult=(1, 2, 4, 4), vae=128, vae_mult=(1, 2, 4, 4), clip=768, layers=12, tokens=49408,
                hint=(16, 16, 32, 32, 96, 96, 256)),
    True: dict(unet=32, unet_mult=(1, 2, 2, 2), vae=32, vae_mult=(1, 1, 2, 2), clip=64, layers=2, tokens=514,
               hint=(8, 8, 16, 16, 24, 24, 32)),
}
STD = {"bias": 0.02, "scale": 0.1, "shift": 0.05, "embedding": 0.02}


class Shapes:
    """key -> (role, shape)"""

    def __init__(self, w):
        self.w, self.of = w, {}
        self.unet("model.diffusion_model.")
        self.control("control_model.")
        self.vae("first_stage_model.")
        self.clip("cond_stage_model.transformer.text_model.")

    def add(self, key, role, *shape):
        self.of[key] = role, shape

    def norm(self, key, c):
        self.add(key + ".weight", "scale", c)
        self.add(key + ".bias", "shift", c)

    def conv(self, key, out, c, k, role="weight"):
        self.add(key + ".weight", role, out, c, k, k)
        self.add(key + ".bias", "bias", out)

    def product(self, key, out, c, role="weight", bias=True):
        self.add(key + ".weight", role, out, c)
        if bias:
            self.add(key + ".bias", "bias", out)

    def res_block(self, key, c, out):
        self.norm(key + ".in_layers.0", c)
        self.conv(key + ".in_layers.2", out, c, 3)
        self.product(key + ".emb_layers.1", out, 4 * self.w["unet"])
        self.norm(key + ".out_layers.0", out)
        self.conv(key + ".out_layers.3", out, out, 3, "residual")
        if c != out:
            self.conv(key + ".skip_connection", out, c, 1)

    def transformer(self, key, c):
        inner = key + ".transformer_blocks.0."
        self.norm(key + ".norm", c)
        self.conv(key + ".proj_in", c, c, 1)
        for name, context in ("attn1", c), ("attn2", self.w["clip"]):
            self.product(inner + name + ".to_q", c, c, bias=False)
            self.product(inner + name + ".to_k", c, context, bias=False)
            self.product(inner + name + ".to_v", c, context, bias=False)
            self.product(inner + name + ".to_out.0", c, c, "residual")
        self.product(inner + "ff.net.0.proj", 8 * c, c)
        self.product(inner + "ff.net.2", c, 4 * c, "residual")
        for i in 1, 2, 3:
            self.norm(inner + f"norm{i}", c)
        self.conv(key + ".proj_out", c, c, 1, "residual")

    def encoder(self, prefix):
        c = self.w["unet"]
        self.product(prefix + "time_embed.0", 4 * c, c)
        self.product(prefix + "time_embed.2", 4 * c, 4 * c)
        self.conv(prefix + "input_blocks.0.0", c, 4, 3)
        widths = [c]
        for level, mult in enumerate(self.w["unet_mult"]):
            for _ in range(2):
                key, out = f"{prefix}input_blocks.{len(widths)}", self.w["unet"] * mult
                self.res_block(key + ".0", c, out)
                c = out
                if level < 3:
                    self.transformer(key + ".1", c)
                widths.append(c)
            if level < 3:
                self.conv(f"{prefix}input_blocks.{len(widths)}.0.op", c, c, 3)
                widths.append(c)
        self.res_block(prefix + "middle_block.0", c, c)
        self.transformer(prefix + "middle_block.1", c)
        self.res_block(prefix + "middle_block.2", c, c)
        return widths

    def unet(self, prefix):
        widths = self.encoder(prefix)
        c, i = widths[-1], 0
        for level in 3, 2, 1, 0:
            for j in range(3):
                key, out = f"{prefix}output_blocks.{i}", self.w["unet"] * self.w["unet_mult"][level]
                self.res_block(key + ".0", c + widths.pop(), out)
                c, i = out, i + 1
                if level < 3:
                    self.transformer(key + ".1", c)
                if level > 0 and j == 2:
                    self.conv(f"{key}.{1 + (level < 3)}.conv", c, c, 3)
        self.norm(prefix + "out.0", c)
        self.conv(prefix + "out.2", 4, c, 3)

    def control(self, prefix):
        widths = self.encoder(prefix)
        for i, c in enumerate(widths):
            self.conv(f"{prefix}zero_convs.{i}.0", c, c, 1, "residual")
        hint = (3, *self.w["hint"], self.w["unet"])
        for i in range(8):
            self.conv(f"{prefix}input_hint_block.{2 * i}", hint[i + 1], hint[i], 3)
        self.conv(prefix + "middle_block_out.0", widths[-1], widths[-1], 1, "residual")

    def vae_block(self, key, c, out):
        self.norm(key + ".norm1", c)
        self.conv(key + ".conv1", out, c, 3)
        self.norm(key + ".norm2", out)
        self.conv(key + ".conv2", out, out, 3, "residual")
        if c != out:
            self.conv(key + ".nin_shortcut", out, c, 1)

    def vae_ends(self, key, c, first, last):
        self.conv(key + ".conv_in", *first, 3)
        self.vae_block(key + ".mid.block_1", c, c)
        self.norm(key + ".mid.attn_1.norm", c)
        for name in "q", "k", "v", "proj_out":
            self.conv(f"{key}.mid.attn_1.{name}", c, c, 1, "residual" if name == "proj_out" else "weight")
        self.vae_block(key + ".mid.block_2", c, c)
        self.norm(key + ".norm_out", last[1])
        self.conv(key + ".conv_out", *last, 3)

    def vae(self, prefix):
        widths = [self.w["vae"] * m for m in self.w["vae_mult"]]
        c = widths[0]
        for level, out in enumerate(widths):
            for j in range(2):
                self.vae_block(f"{prefix}encoder.down.{level}.block.{j}", c, out)
                c = out
            if level < 3:
                self.conv(f"{prefix}encoder.down.{level}.downsample.conv", c, c, 3)
        self.vae_ends(prefix + "encoder", c, (widths[0], 3), (8, c))
        self.vae_ends(prefix + "decoder", c, (c, 4), (3, widths[0]))
        for level in 3, 2, 1, 0:
            for j in range(3):
                self.vae_block(f"{prefix}decoder.up.{level}.block.{j}", c, widths[level])
                c = widths[level]
            if level > 0:
                self.conv(f"{prefix}decoder.up.{level}.upsample.conv", c, c, 3)
        self.conv(prefix + "quant_conv", 8, 8, 1)
        self.conv(prefix + "post_quant_conv", 4, 4, 1)

    def clip(self, prefix):
        c = self.w["clip"]
        self.add(prefix + "embeddings.position_ids", "ids", 1, 77)
        self.add(prefix + "embeddings.token_embedding.weight", "embedding", self.w["tokens"], c)
        self.add(prefix + "embeddings.position_embedding.weight", "embedding", 77, c)
        for i in range(self.w["layers"]):
            key = f"{prefix}encoder.layers.{i}."
            for name in "k_proj", "v_proj", "q_proj", "out_proj":
                self.product(f"{key}self_attn.{name}", c, c, "residual" if name == "out_proj" else "weight")
            self.norm(key + "layer_norm1", c)
            self.product(key + "mlp.fc1", 4 * c, c)
            self.product(key + "mlp.fc2", c, 4 * c, "residual")
            self.norm(key + "layer_norm2", c)
        self.norm(prefix + "final_layer_norm", c)


def schedule():
    low, high, product, columns = math.sqrt(0.00085), math.sqrt(0.012), 1.0, []
    for i in range(1000):
        beta = (low + (high - low) * i / 999) ** 2
        before, product = product, product * (1 - beta)
        posterior = beta * (1 - before) / (1 - product)
        columns.append((beta, product, before, math.sqrt(product), math.sqrt(1 - product), math.log(1 - product),
                        math.sqrt(1 / product), math.sqrt(1 / product - 1), posterior, math.log(max(posterior, 1e-20)),
                        beta * math.sqrt(before) / (1 - product), (1 - before) * math.sqrt(1 - beta) / (1 - product),
                        0.0))
    names = ("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
             "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
             "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
             "logvar")
    return dict(zip(names, np.array(columns, np.float64).T.astype(np.float32)))


def mix(z):
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def values(key, role, shape, seed, first, n):
    h = 0xCBF29CE484222325
    for byte in key.encode():
        h = ((h ^ byte) * 0x100000001B3) & ALL
    stream = mix(np.array([(h + seed * GOLDEN) & ALL], np.uint64))
    z = mix(stream + np.arange(first + 1, first + n + 1, dtype=np.uint64) * np.uint64(GOLDEN))
    m = sum(((z >> np.uint64(s)) & np.uint64(0xFFFF)).astype(np.int64) for s in (0, 16, 32, 48)) - 131070
    std = STD.get(role) or (0.3 if role == "residual" else 1) / math.sqrt(math.prod(shape[1:]))
    return (m * (std / math.sqrt((2**32 - 1) / 3)) + (1.0 if role == "scale" else 0.0)).astype(np.float32)


def as_bytes(v, dtype):
    if dtype == "F16":
        return v.astype(np.float16).tobytes()
    if dtype == "BF16":
        u = v.view(np.uint32)
        return ((u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
            np.uint16).tobytes()
    return v.tobytes()


# ---- what is in a file: key -> (type, shape, a function that returns the bytes)


def read_safetensors(path):
    with open(path, "rb") as f:
        n = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(n))
    data = np.memmap(path, np.uint8, "r", 8 + n)
    return {k: (v["dtype"], tuple(v["shape"]), lambda v=v: data[slice(*v["data_offsets"])])
            for k, v in header.items() if k != "__metadata__"}


class Pickle(pickle.Unpickler):
    """A state dict without torch: nothing but tensors and dictionaries."""

    TYPES = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "LongStorage": "I64"}

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, stride, *_: (storage, offset, shape, stride)
        return self.TYPES[name]

    def persistent_load(self, pid):
        return pid[1:3]


def read_torch(path):
    archive = zipfile.ZipFile(path)
    root = next(n for n in archive.namelist() if n.endswith("/data.pkl"))[:-8]
    state, tensors = Pickle(archive.open(root + "data.pkl")).load(), {}
    for key, ((dtype, name), offset, shape, stride) in state.get("state_dict", state).items():
        want = tuple(math.prod(shape[i + 1:]) for i in range(len(shape)))
        assert offset == 0 and tuple(stride) == want, f"{key} is no plain tensor"
        tensors[key] = dtype, tuple(shape), lambda name=name: np.frombuffer(archive.read(f"{root}data/{name}"), np.uint8)
    return tensors


def read_model(path):
    """Under LDM's keys."""
    if not os.path.isdir(path):
        tensors = read_torch(path) if zipfile.is_zipfile(path) else read_safetensors(path)
        bare = "input_hint_block.0.weight" in tensors
        return {("control_model." if bare else "") + k: v for k, v in tensors.items()}
    here, names, tensors = os.path.dirname(os.path.abspath(__file__)), {}, {}
    prefixes = {"unet": "model.diffusion_model.", "control": "control_model.", "vae": "first_stage_model."}
    for line in open(os.path.join(here, "../tests/data/weights/names.tsv")):
        network, ldm, diffusers = line.split()
        for leaf in ".weight", ".bias":
            names[network, diffusers + leaf] = prefixes[network] + ldm + leaf
    for folder, network in ("unet", "unet"), ("controlnet", "control"), ("vae", "vae"):
        for k, v in read_safetensors(f"{path}/{folder}/diffusion_pytorch_model.safetensors").items():
            tensors[names[network, k]] = v
    for k, v in read_safetensors(f"{path}/text_encoder/model.safetensors").items():
        tensors["cond_stage_model.transformer." + k] = v
    return tensors


def check(path, wanted, tables, seed):
    got, folder, prefix_of = read_model(path), os.path.isdir(path), lambda k: k.split(".")[0] if "." in k else ""
    if folder:  # no position_ids there, and a VAE's attention has matrices
        wanted = {k: (t, role, shape[:2] if ".attn_1." in k else shape)
                  for k, (t, role, shape) in wanted.items() if role != "ids"}
    networks = {prefix_of(k) for k in got}
    missing = {k for k in wanted if prefix_of(k) in networks} - got.keys()
    if missing or got.keys() - wanted.keys():
        return f"{path}: missing {sorted(missing)[:3]}, extra {sorted(got.keys() - wanted.keys())[:3]}"
    for k, (dtype, shape, data) in got.items():
        want_dtype, role, want = wanted[k]
        if (dtype, shape) != (want_dtype, want):
            return f"{path}: {k} is {dtype} {shape}, not {want_dtype} {want}"
        data, at = data(), 0
        for part in tensor_bytes(k, dtype, role, want, tables, seed):
            if data[at:at + len(part)].tobytes() != part:
                return f"{path}: {k} has other values from byte {at} on"
            at += len(part)
        if at != len(data):
            return f"{path}: {k} has {len(data)} bytes, not {at}"
    print(f"{path}: {len(got)} tensors of {len(networks - {''})} networks, as described")
    return None


def tensor_bytes(k, dtype, role, shape, tables, seed):
    n = math.prod(shape)
    if role == "schedule":
        yield tables[k].tobytes()
    elif role == "ids":
        yield np.arange(n, dtype=np.int64).tobytes()
    else:
        for first in range(0, n, CHUNK):
            yield as_bytes(values(k, role, shape, seed, first, min(CHUNK, n - first)), dtype)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("paths", metavar="FILE|DIR", nargs="+")
    p.add_argument("--check", action="store_true")
    p.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--small", action="store_true")
    a = p.parse_args()
    np.seterr(over="ignore")
    weights, tables = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}[a.dtype], schedule()
    tensors = {k: ("I64" if role == "ids" else weights, role, shape)
               for k, (role, shape) in Shapes(WIDTHS[a.small]).of.items()}
    tensors |= {k: ("F32", "schedule", (1000,)) for k in tables}
    if a.check:
        sys.exit("\n".join(filter(None, (check(path, tensors, tables, a.seed) for path in a.paths))) or 0)
    if len(a.paths) > 1:
        p.error("one model is made at a time")
    rank = {"I64": 0, "F32": 1, "BF16": 2, "F16": 3}  # the format's own writer: larger types first, then by name
    size = {"I64": 8, "F32": 4, "BF16": 2, "F16": 2}
    order = sorted(tensors, key=lambda k: (rank[tensors[k][0]], k))
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for k in order:
        dtype, _, shape = tensors[k]
        end = at + math.prod(shape) * size[dtype]
        header[k] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(a.paths[0], "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for k in order:
            f.writelines(tensor_bytes(k, *tensors[k], tables, a.seed))


if __name__ == "__main__":
    main()
