"""Times one job in PyTorch and in linework, in turns, on the same weights and edges: the table in the README.

usage: time_job.py EDGES.png --linework build/bin/linework [-m MODEL] [-p PROMPT] [-t THREADS] [--rounds N] [--steps N]

PyTorch is what the reference is: eager mode, fp32, a pass for each side of the guidance, the hint in every step. Its model is
loaded and warm. linework is a process of its own each time, and its whole time counts: start, loading, packing, the picture's file.
Prints medians of wall time and of processor time, which another process on the machine disturbs less, and peak memory.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time

import diffusers
import torch

import demo_job
import job
import model as reference


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("edges")
    p.add_argument("--linework", required=True)
    p.add_argument("-m", "--model", default=demo_job.MODEL)
    p.add_argument("-p", "--prompt", default="a red house")
    p.add_argument("-t", "--threads", type=int, default=1)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--steps", type=int, default=20)
    return p.parse_args()


def timed(run):
    """(wall, processor) seconds of run(), of this process and of the children it waits for."""
    def cpu():
        return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
    wall, before = time.perf_counter(), cpu()
    result = run()
    return time.perf_counter() - wall, cpu() - before, result


def main():
    args = parse()
    torch.set_grad_enabled(False)
    torch.set_num_threads(args.threads)
    diffusers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        command = [args.linework, "generate", "-q", "--json", "-m", args.model, "--control-image", args.edges, "-p", args.prompt, "-s", "7",
                   "--steps", str(args.steps), "-t", str(args.threads), "--device", "cpu", "-o", os.path.join(folder, "out.png")]
        def ours():
            return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        m = reference.load(args.model, torch.float32)
        request = argparse.Namespace(
            prompt=args.prompt, added_prompt=None, negative_prompt=None, merges=None, model=args.model, edges=args.edges, seed=7, samples=1,
            steps=args.steps, cfg_scale=9.0, control_strength=1.0, control_mode="balanced", control_start=0.0, control_end=1.0, eta=0.0,
            clip_skip=1, rng="cuda")
        demo_job.compute(request, m), ours()
        rounds = [(timed(lambda: demo_job.compute(request, m)), timed(ours)) for _ in range(args.rounds)]
    peak = rounds[-1][1][2]["peak_bytes"]["host"]
    print(f"{args.threads} thread(s), {args.steps} steps, medians of {args.rounds} rounds")
    for i, name in enumerate(("PyTorch " + torch.__version__, "linework")):
        wall, cpu = (statistics.median(r[i][k] for r in rounds) for k in (0, 1))
        print(f"{name:24} wall {wall:7.2f} s   processor {cpu:7.2f} s")
    for k, name in enumerate(("wall", "processor")):
        ratios = sorted(r[0][k] / r[1][k] for r in rounds)
        print(f"PyTorch / linework, {name}: median {statistics.median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}")
    print(f"linework stages, ms: { {k: round(sum(v) if isinstance(v, list) else v) for k, v in rounds[-1][1][2]['timings_ms'].items()} }")
    print(f"peak memory: PyTorch {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB, linework {peak / 2 ** 20:.0f} MiB")


if __name__ == "__main__":
    main()
