#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What one step, one decode and a picture cost on a CPU: linework and its peers, in one run.

usage: cpu.py [--size 256x384] [--threads N] [--processor-time] [--precision fp32|bf16] [--rounds 2] [--repeat 3] [--work DIR] [--build build]
              [SYSTEM…]

Needs PyTorch and diffusers, openvino and stable-diffusion-cpp-python (all from PyPI), a C compiler and oneDNN 2.6.
SYSTEMs, all without any named:
  linework  linework-bench latency, with the tactics its backend's order takes
  tuned     the same after tuning
  onednn    the sum of oneDNN's own best times for the step's and the decoder's convolutions and products, every one by
            itself (cpu_onednn.c): a floor for whoever does nothing but call it
  openvino  OpenVINO with INFERENCE_PRECISION_HINT f32 (or bf16), converted from the PyTorch modules by itself
  eager     PyTorch, channels last
  sdcpp     stable-diffusion.cpp: half of what two steps more take; its decoder is not timed by itself

A step is ControlNet and UNet on both guidance passes. The networks have Stable Diffusion 1.5's and ControlNet 1.0's
shapes; the weights are random and decide no time. Each system has a process of its own, so that its peak of memory is
its own; --rounds lets all of them take turns, so that a drift of the machine is seen; the best of all turns counts.
--precision bf16 is of linework, tuned and openvino alone, which are then all that run without any named.
On a machine that others use, --processor-time counts what the process got of it, on one thread.
DIR takes 7 GB for OpenVINO's files and 6 GB for stable-diffusion.cpp's, and is used again; a process takes up to 13 GiB.
"""
import argparse
import collections
import json
import os
import re
import subprocess
import sys
import time

from gpu import networks

SYSTEMS = ('linework', 'onednn', 'openvino', 'tuned', 'eager', 'sdcpp')
IN_BF16 = ('linework', 'openvino', 'tuned')
HERE = os.path.dirname(os.path.abspath(__file__))


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', default='256x384', help='height x width of the picture')
    p.add_argument('--threads', type=int, default=os.cpu_count())
    p.add_argument('--processor-time', action='store_true')
    p.add_argument('--precision', default='fp32', choices=('fp32', 'bf16'))
    p.add_argument('--rounds', type=int, default=2)
    p.add_argument('--repeat', type=int, default=3)
    p.add_argument('--work', default='/tmp/linework-peers')
    p.add_argument('--build', default=os.path.join(HERE, '../../build'))
    p.add_argument('--one', help=argparse.SUPPRESS)
    p.add_argument('systems', nargs='*', metavar='SYSTEM')
    args = p.parse_args()
    for s in args.systems:
        if s not in SYSTEMS:
            p.error(f'{s} is none of {", ".join(SYSTEMS)}')
        if args.precision == 'bf16' and s not in IN_BF16:
            p.error(f'{s} is in fp32 only; in bf16 there are {", ".join(IN_BF16)}')
    args.systems = args.systems or (IN_BF16 if args.precision == 'bf16' else SYSTEMS)
    if args.processor_time:
        args.threads = 1
    args.height, args.width = (int(v) for v in args.size.split('x'))
    return args


def clock(args):
    return 1e3 * (time.process_time() if args.processor_time else time.perf_counter())


def best(args, call):
    """Milliseconds of the fastest of so many calls after one."""
    call()
    times = []
    for _ in range(args.repeat):
        begin = clock(args)
        call()
        times.append(clock(args) - begin)
    return min(times)


# ---- PyTorch's modules, for eager, OpenVINO and the list of shapes

def modules(device='cpu'):
    import torch
    torch.set_grad_enabled(False)
    unet, control, vae, clip = networks(torch.float32, device)

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet, self.control = unet, control

        def forward(self, x, t, text, edges):
            down, mid = self.control(x, t, text, edges, return_dict=False)
            return self.unet(x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=mid,
                             return_dict=False)[0]

    class Decode(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = vae

        def forward(self, z):
            return self.vae.decode(z, return_dict=False)[0]

    return Step().eval(), Decode().eval()


def inputs(args, device='cpu'):
    import torch
    h, w = args.height // 8, args.width // 8
    with torch.device(device):
        return (torch.randn(2, 4, h, w), torch.tensor([501]), torch.randn(2, 77, 768),
                (torch.rand(2, 3, args.height, args.width) > 0.9).float()), (torch.randn(1, 4, h, w),)


def run_eager(args):
    import torch
    torch.set_num_threads(args.threads)
    step, decode = modules()
    step.to(memory_format=torch.channels_last)
    decode.to(memory_format=torch.channels_last)
    a, b = inputs(args)
    a = (a[0].contiguous(memory_format=torch.channels_last),) + a[1:]
    return dict(step=best(args, lambda: step(*a)), decode=best(args, lambda: decode(*b)),
                version=torch.__version__)


def convert(args):
    """OpenVINO's files of both networks, each written by a process of its own."""
    for i, name in enumerate(('step', 'decode')):
        path = os.path.join(args.work, f'{name}_{args.size}.xml')
        if os.path.exists(path):
            continue
        if os.fork():
            if os.wait()[1]:
                raise SystemExit(f'cpu.py: {name} could not be converted')
            continue
        import openvino
        example = inputs(args)[i]
        model = openvino.convert_model(modules()[i], example_input=example, input=[tuple(e.shape) for e in example])
        openvino.save_model(model, path, compress_to_fp16=False)
        os._exit(0)


def run_openvino(args):
    convert(args)
    import openvino
    core, out = openvino.Core(), dict(version=openvino.__version__)
    for name, example in zip(('step', 'decode'), inputs(args)):
        model = core.compile_model(os.path.join(args.work, f'{name}_{args.size}.xml'), 'CPU', {
            'INFERENCE_PRECISION_HINT': {'fp32': 'f32'}.get(args.precision, args.precision), 'INFERENCE_NUM_THREADS': args.threads, 'PERFORMANCE_HINT': 'LATENCY'})
        request, arrays = model.create_infer_request(), [e.numpy() for e in example]
        out[name] = best(args, lambda: request.infer(arrays))
        del request, model
    return out


# ---- oneDNN by itself

def shapes(args):
    """{line for cpu_onednn: count} of the step and of the decoder."""
    import torch
    seen = collections.Counter()

    def conv(m, given, out):
        n, c, h, w = given[0].shape
        seen['conv %%d %d %d %d %d %d %d %d' % (n, c, h, w, m.out_channels, m.kernel_size[0], m.stride[0])] += 1

    def linear(m, given, out):
        seen['product %%d 1 %d %d %d 0' % (given[0].numel() // m.in_features, m.in_features, m.out_features)] += 1

    attend = torch.nn.functional.scaled_dot_product_attention

    def attention(q, k, v, *more, **named):
        batch, rows, keys, d = q.shape[0] * q.shape[1], q.shape[2], k.shape[2], q.shape[3]
        seen['product %%d %d %d %d %d 1' % (batch, rows, d, keys)] += 1
        seen['product %%d %d %d %d %d 0' % (batch, rows, keys, d)] += 1
        return attend(q, k, v, *more, **named)

    torch.nn.functional.scaled_dot_product_attention = attention
    lists = []
    for network, example in zip(modules('meta'), inputs(args, 'meta')):
        for m in network.modules():
            if isinstance(m, torch.nn.Conv2d):
                m.register_forward_hook(conv)
            if isinstance(m, torch.nn.Linear):
                m.register_forward_hook(linear)
        network(*example)
        lists.append(dict(seen))
        seen.clear()
    torch.nn.functional.scaled_dot_product_attention = attend
    return lists


def run_onednn(args):
    program = os.path.join(args.work, 'cpu_onednn')
    subprocess.run(['cc', '-O2', '-fopenmp', '-w', os.path.join(HERE, 'cpu_onednn.c'), '-o', program, '-ldnnl'], check=True)
    out, slow = {}, []
    for name, lines in zip(('step', 'decode'), shapes(args)):
        text = ''.join(line % n + '\n' for line, n in lines.items())
        env = dict(os.environ, OMP_NUM_THREADS=str(args.threads), OMP_WAIT_POLICY='active')
        rows = subprocess.run([program, '0.25'] + ['processor-time'] * args.processor_time, input=text, env=env, capture_output=True, text=True, check=True).stdout
        rows = [r.split() for r in rows.splitlines()]
        out[name] = sum(int(r[1]) * float(r[-2]) for r in rows)
        slow += [' '.join(r) for r in rows if not re.search('jit|brg', r[-1])]
    return dict(out, version='2.x of the system', note=f'not jit: {slow}' if slow else '')


# ---- linework and stable-diffusion.cpp

def run_linework(args, *more):
    steps = max(2, args.repeat)
    text = subprocess.run([os.path.join(args.build, 'bin/linework-bench'), 'latency', '--device', 'cpu', '--threads',
                           str(args.threads), '--precision', args.precision, '--size', f'{args.width}x{args.height}', '--steps', str(steps),
                           '--repeat', '2'] + ['--processor-time'] * args.processor_time + list(more), capture_output=True, text=True, check=True).stdout
    out = {k: float(v) for k, v in re.findall(r'^(\w+)\t([\d.]+) ms', text, re.M)}
    return dict(step=out['steps'] / steps, decode=out['decode'], version=text.splitlines()[0].strip('# '))


def run_tuned(args):
    return run_linework(args, '--tune')


def run_sdcpp(args):
    import numpy as np
    from PIL import Image
    from stable_diffusion_cpp import StableDiffusion, __version__
    tool = os.path.join(args.build, 'bin/linework')
    paths = [os.path.join(args.work, n + '.safetensors') for n in ('sd', 'control')]
    for path, layout in zip(paths, ('sd', 'control')):
        if not os.path.exists(path):
            subprocess.run([tool, 'make-model', '-q', '--like', 'sd15', '--dtype', 'fp16', '--layout', layout, path], check=True)
    sd = StableDiffusion(model_path=paths[0], control_net_path=paths[1], n_threads=args.threads)
    edges = Image.fromarray((np.random.default_rng(1).random((args.height, args.width, 3)) > 0.9).astype('uint8') * 255)
    times = []
    for steps in (1, 1, 3):  # the first one loads
        begin = clock(args)
        sd.generate_image(prompt='a bird', negative_prompt='bad', width=args.width, height=args.height, cfg_scale=9.0,
                          sample_method='euler', sample_steps=steps, control_image=edges)
        times.append(clock(args) - begin)
    return dict(step=(times[2] - times[1]) / 2, decode=None, version=__version__)


# ---- all of them

def one(args):
    import resource
    out = globals()['run_' + args.one](args)
    who = resource.RUSAGE_CHILDREN if args.one in ('linework', 'tuned') else resource.RUSAGE_SELF
    out['peak'] = resource.getrusage(who).ru_maxrss / 2**20 if args.one != 'onednn' else None
    print('RESULT ' + json.dumps(out))


def ask(args, system):
    command = [sys.executable, os.path.abspath(__file__), '--one', system]
    for name in ('size', 'threads', 'precision', 'repeat', 'work', 'build'):
        command += ['--' + name, str(getattr(args, name))]
    command += ['--processor-time'] * args.processor_time
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search('^RESULT (.*)$', done.stdout, re.M)
    if not found:
        print(f'# {system} failed: {(done.stderr.strip().splitlines() or ["no word"])[-1]}', flush=True)
        return None
    result = json.loads(found[1])
    print(f'# {system}: {result}', flush=True)
    return result


def number(value, form):
    return form % value if value else '-'


def main():
    args = parse()
    os.makedirs(args.work, exist_ok=True)
    if args.one:
        return one(args)
    results = collections.defaultdict(list)
    for _ in range(args.rounds):
        for system in args.systems:
            results[system] += [r for r in [ask(args, system)] if r]
    rows = {}
    for system, all_turns in results.items():
        if all_turns:
            rows[system] = {k: min((r[k] for r in all_turns if r[k]), default=None) for k in ('step', 'decode', 'peak')}
    ours = rows.get('linework') or rows.get('tuned')
    print('system\tms a step\tx linework\tms a decode\tx linework\ts a picture of 20\tpeak GiB')
    for system, r in rows.items():
        ratio = [r[k] / ours[k] if ours and r[k] and ours[k] else None for k in ('step', 'decode')]
        picture = (20 * r['step'] + r['decode']) * 1e-3 if r['decode'] else None
        print('\t'.join([system, number(r['step'], '%.0f'), number(ratio[0], '%.2f'), number(r['decode'], '%.0f'),
                         number(ratio[1], '%.2f'), number(picture, '%.1f'), number(r['peak'], '%.1f')]))


if __name__ == '__main__':
    main()
