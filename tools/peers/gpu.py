#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How fast PyTorch makes a canny2image picture on one GPU, and linework beside it, in one run.

usage: gpu.py [--size 256x384] [--images N] [--bench build/bin/linework-bench] [SYSTEM…]

Needs PyTorch with CUDA, diffusers and transformers. SYSTEMs, all without any named:
  eager     fp16, channels last, both guidance passes in one batch
  graph     the same, the whole picture captured as one CUDA graph
  compile   torch.compile with cuDNN's benchmark, q, k and v in one product, the whole picture as one CUDA graph
  fp32      fp32 without TF32, the passes one after the other, as the task's first row (not without being named: slow)
  linework  linework-bench latency, with the tactics its heuristic takes, then tuned

A picture is: 2x77 tokens and an edge map to bytes; 20 DDIM steps, guidance 9. The networks have Stable Diffusion 1.5's and
ControlNet 1.0's shapes and random weights, which decide no time. Each system has a process of its own, so that its peak of
memory is its own; linework runs before and after the others, so that a drift of the machine is seen. Medians of --repeat.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import time

WIDTHS = (320, 640, 1280, 1280)
GUIDANCE, LATENT_SCALE = 9.0, 0.18215


def networks(dtype, device, widths=WIDTHS):
    """UNet, ControlNet, VAE, CLIP of random weights; the ControlNet's zero convolutions are not zero."""
    import torch
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel
    torch.manual_seed(1)
    text = 768 if widths is WIDTHS else 64
    common = dict(block_out_channels=widths, cross_attention_dim=text, attention_head_dim=8,
                  down_block_types=('CrossAttnDownBlock2D',) * 3 + ('DownBlock2D',))
    vae_widths = (128, 256, 512, 512) if widths is WIDTHS else (32, 32, 64, 64)
    with torch.device(device):
        unet = UNet2DConditionModel(up_block_types=('UpBlock2D',) + ('CrossAttnUpBlock2D',) * 3, **common)
        control = ControlNetModel(**common)
        vae = AutoencoderKL(block_out_channels=vae_widths, layers_per_block=2, latent_channels=4,
                            down_block_types=('DownEncoderBlock2D',) * 4, up_block_types=('UpDecoderBlock2D',) * 4)
        clip = CLIPTextModel(CLIPTextConfig(hidden_size=text, intermediate_size=4 * text, num_attention_heads=text // 64,
                                            num_hidden_layers=12 if widths is WIDTHS else 2, vocab_size=49408))
    with torch.no_grad():
        for p in control.parameters():
            if not p.is_meta and not p.any():
                p.normal_(std=0.02)
    return [m.to(dtype=dtype).eval().requires_grad_(False) for m in (unet, control, vae, clip)]


def schedule(steps):
    """(timestep, a, b) of each step: x' = a x + b eps; DDIM with eta 0 on ControlNet's uniform spacing, which begins at 1."""
    import torch
    betas = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2
    alpha = torch.cumprod(1 - betas, 0)
    at = list(range(1, 1001, 1000 // steps))
    rows = []
    for i in reversed(range(len(at))):
        now, before = alpha[at[i]], alpha[at[i - 1]] if i else alpha[0]
        rows.append((at[i], float((before / now).sqrt()),
                     float((1 - before).sqrt() - (before / now * (1 - now)).sqrt())))
    return rows


class Picture:
    """The job in PyTorch: call it for the bytes."""

    def __init__(self, args, dtype, device='cuda'):
        import torch
        self.torch, self.n = torch, args.images
        width, height = args.width, args.height
        self.unet, self.control, self.vae, self.clip = networks(dtype, device, WIDTHS if not args.small else (32, 32, 64, 64))
        if dtype == torch.float16:
            for m in (self.unet, self.control, self.vae):
                m.to(memory_format=torch.channels_last)
        self.rows = [(torch.tensor([t], device=device), a, b) for t, a, b in schedule(args.steps)]
        g = torch.Generator(device).manual_seed(2)
        self.ids = torch.randint(0, 49000, (2, 77), device=device, generator=g)
        self.edges = (torch.rand(self.n, 3, height, width, device=device, generator=g) > 0.9).to(dtype)
        self.noise = torch.randn(self.n, 4, height // 8, width // 8, device=device, generator=g).to(dtype)

    def text(self, ids):
        return self.clip(ids)[0]

    def eps(self, x, t, context, edges):
        down, mid = self.control(x, t, context, edges, return_dict=False)
        return self.unet(x, t, context, down_block_additional_residuals=down, mid_block_additional_residual=mid,
                         return_dict=False)[0]

    def guided(self, x, t, context):
        """Both passes in one batch."""
        both = self.eps(self.torch.cat([x, x]), t, context.repeat_interleave(self.n, 0),
                        self.torch.cat([self.edges, self.edges]))
        with_text, without = both.chunk(2)
        return without + GUIDANCE * (with_text - without)

    def guided_apart(self, x, t, context):
        context = context.repeat_interleave(self.n, 0)
        with_text, without = (self.eps(x, t, c, self.edges) for c in context.chunk(2))
        return without + GUIDANCE * (with_text - without)

    def decode(self, x):
        y = self.vae.decode(x / LATENT_SCALE, return_dict=False)[0]
        return (y.float() * 127.5 + 127.5).clamp(0, 255).to(self.torch.uint8).permute(0, 2, 3, 1).contiguous()

    def loop(self, context):
        x = self.noise
        for t, a, b in self.rows:
            x = a * x + b * self.guided(x, t, context)
        return x

    def __call__(self):
        return self.decode(self.loop(self.text(self.ids)))


def median_ms(torch, call, repeat, cuda=True):
    times = []
    for i in range(repeat + 2):  # two to warm up
        if cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) * 1e3)
    return sorted(times[2:])[repeat // 2]


def captured(torch, call):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def run_torch(args, system):
    import torch
    cuda = not args.small
    torch.backends.cudnn.benchmark = system == 'compile'
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    dtype = torch.float32 if system == 'fp32' or not cuda else torch.float16
    with torch.no_grad():
        p = Picture(args, dtype, 'cuda' if cuda else 'cpu')
        if system == 'fp32':
            p.guided = p.guided_apart
        if system == 'compile':
            for m in (p.unet, p.control):
                if hasattr(m, 'fuse_qkv_projections'):
                    m.fuse_qkv_projections()
            for name in ('guided', 'decode'):
                setattr(p, name, torch.compile(getattr(p, name), fullgraph=True, dynamic=False))
            p.text = torch.compile(p.text, dynamic=False)
        begin = time.perf_counter()
        p()
        first = time.perf_counter() - begin
        whole, parts = p, {}
        context = p.text(p.ids)
        x = p.noise
        if cuda and system in ('graph', 'compile'):
            parts = {'steps': captured(torch, lambda: p.loop(context)), 'decode': captured(torch, lambda: p.decode(x))}
            whole = captured(torch, p)
        else:
            parts = {'steps': lambda: p.loop(context), 'decode': lambda: p.decode(x)}
        result = {'ms': median_ms(torch, whole, args.repeat, cuda), 'first_s': first}
        for name, call in parts.items():
            result[name] = median_ms(torch, call, args.repeat, cuda)
        if cuda:
            result['gib'] = torch.cuda.max_memory_allocated() / 2 ** 30
    print('RESULT ' + json.dumps(result), flush=True)


def run_linework(args, tune):
    command = [args.bench, 'latency', '--size', f'{args.width}x{args.height}', '--samples', str(args.images), '--steps',
               str(args.steps), '--repeat', str(args.repeat), '--device', 'cpu' if args.small else 'cuda']
    if args.small:
        command += ['--model', args.small]
    begin = time.perf_counter()
    done = subprocess.run(command + (['--tune'] if tune else []), capture_output=True, text=True)
    took = time.perf_counter() - begin
    if done.returncode:
        return {'error': (done.stderr.strip().splitlines() or ['no message'])[-1]}
    values = dict(re.findall(r'^(\w+)\t([\d.]+) ms', done.stdout, re.M))
    mib = re.search(r'; (\d+) MiB', done.stdout)
    return {'ms': float(values['image']), 'steps': float(values['steps']), 'decode': float(values['decode']),
            'gib': int(mib.group(1)) / 1024 if mib else None, 'first_s': took}


def run_peer(args, system):
    command = [sys.executable, os.path.abspath(__file__), '--child', system, '--size', f'{args.width}x{args.height}', '--images',
               str(args.images), '--steps', str(args.steps), '--repeat', str(args.repeat)]
    if args.small:
        command += ['--small', args.small]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=args.limit)
    except subprocess.TimeoutExpired:
        return {'error': f'over {args.limit} s'}
    found = re.search(r'^RESULT (.*)$', done.stdout, re.M)
    return json.loads(found.group(1)) if found else {'error': (done.stderr.strip().splitlines() or ['no message'])[-1][:160]}


def machine(small):
    if small:
        return 'a CPU, small networks: only that the script runs'
    lines = subprocess.run(['nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader'], capture_output=True,
                           text=True).stdout.strip().splitlines()
    import diffusers
    import torch
    return f'{lines[0] if lines else "no GPU"}; torch {torch.__version__}, diffusers {diffusers.__version__}, ' \
           f'cuDNN {torch.backends.cudnn.version()}'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('systems', nargs='*', default=[], metavar='SYSTEM')
    parser.add_argument('--size', default='256x384')
    parser.add_argument('--images', type=int, default=1, help='in one batch')
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--repeat', type=int, default=7)
    parser.add_argument('--limit', type=int, default=400, help='seconds for one peer')
    parser.add_argument('--bench', default='build/bin/linework-bench')
    parser.add_argument('--small', metavar='MODEL', help='small networks on the CPU, linework with this model: tries the script')
    parser.add_argument('--child', help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.width, args.height = (int(v) for v in args.size.split('x'))
    if args.child:
        return run_torch(args, args.child)
    names = args.systems or ['linework', 'eager', 'graph', 'compile']
    unknown = [n for n in names if n not in ('linework', 'eager', 'graph', 'compile', 'fp32')]
    if unknown:
        parser.error(f'there is no system {unknown[0]}')
    print(f'# {machine(args.small)}; {args.size}, {args.images} image{"s" * (args.images > 1)}, {args.steps} steps')
    results = []

    def add(name, result):  # told at once: a run that is cut short has told something
        print(f'{name}: {result}', file=sys.stderr, flush=True)
        results.append((name, result))

    if 'linework' in names:
        add('linework, heuristic', run_linework(args, False))
        add('linework, tuned', run_linework(args, True))
    for name in names:
        if name != 'linework':
            add(f'PyTorch {name}', run_peer(args, name))
    if 'linework' in names and len(names) > 1:
        add('linework, heuristic, again', run_linework(args, False))
    ours = min((r['ms'] for n, r in results if n.startswith('linework') and 'ms' in r), default=None)
    print(f'{"":28} {"ms/image":>9} {"x ours":>7} {"steps":>8} {"decode":>8} {"GiB":>6} {"first s":>8}')
    for name, r in results:
        if 'error' in r:
            print(f'{name:28} failed: {r["error"]}')
            continue
        ratio = f'{r["ms"] / ours:7.2f}' if ours else ' ' * 7
        gib = f'{r["gib"]:6.1f}' if r.get('gib') else ' ' * 6
        print(f'{name:28} {r["ms"] / args.images:9.2f} {ratio} {r["steps"]:8.2f} {r["decode"]:8.2f} {gib} {r["first_s"]:8.1f}')
    return int(any('error' in r for _, r in results))


if __name__ == '__main__':
    sys.exit(main())
