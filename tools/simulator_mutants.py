#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Do the simulator's tests find mistakes? Plants one at a time in our kernels, and says which went unseen.

    tools/simulator_mutants.py BUILD [FILE...]    BUILD: a folder that ninja has built; FILE: "turns.cu", all without

A mutant is found if lw_check_simulated or products_test fails with it, or if linework_bench_simulated's outputs of the
embedded model are not those of the kernels as they are. Takes some 15 minutes on two processors.
"""
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEMO = os.path.join(ROOT, 'models', 'demo', 'model.safetensors')

# file, what is wrong, tactic that is checked or "outputs" or "products", text, and what takes its place
MUTANTS = [
    ('wgmma.cu', 'sums over operands still read', 'linear_wgmma',
     "__syncthreads(); /* no operand is read any more: sums take their place; all know the rows' places */",
     ''),
    ('wgmma.cu', 'weights given back a step early', 'linear_wgmma',
     'give_back(i - 2, free);',
     'give_back(i - 1, before);'),
    ('wgmma.cu', 'no fence before sums are sent', 'linear_wgmma',
     'shared_written();\n    __syncwarp();',
     '__syncwarp();'),
    ('wgmma.cu', 'sums are sent before the warp has them', 'linear_wgmma',
     'shared_written();\n    __syncwarp();',
     'shared_written();'),
    ('wgmma.cu', 'parts are not waited for', 'linear_wgmma',
     'barrier_wait(w.came, 0);',
     ''),
    ('wgmma.cu', 'input before the launch before', 'linear_wgmma',
     '    next_launch_may_start();\n    previous_launch_wait();\n    CU_PHASE(PREVIOUS, acts);',
     '    next_launch_may_start();'),
    ('wgmma.cu', 'box given back early', 'conv2d_wgmma',
     '        sums_wait<1>(); /* all but',
     '        sums_wait<2>(); /* all but'),
    ('wgmma.cu', 'barriers not met', 'linear_wgmma',
     'warps_meet(BEGIN, begin_threads(a));\n        next_launch',
     'next_launch'),
    ('wgmma.cu', 'barriers are made, and no fence', 'linear_wgmma',
     '        barriers_made();\n    }\n    __syncwarp();\n    warps_meet(BARRIERS, COPYING_THREADS);\n    warps_pass(BEGIN, begin_threads(a));\n    if (in_cluster(a)) cluster_arrive();\n    CU_PHASE',
     '    }\n    __syncwarp();\n    warps_meet(BARRIERS, COPYING_THREADS);\n    warps_pass(BEGIN, begin_threads(a));\n    if (in_cluster(a)) cluster_arrive();\n    CU_PHASE'),
    ('wgmma.cu', 'bytes expected are too few', 'linear_wgmma',
     'barrier_expect(bar, bytes);\n        copy_weights(there',
     'barrier_expect(bar, bytes - 128);\n        copy_weights(there'),
    ('wgmma.cu', 'columns are not waited for', 'linear_wgmma',
     'copy_wait<0>(); /* of columns */',
     ''),
    ('wgmma.cu', 'block ends while parts are on their way', 'linear_wgmma',
     '    if (SPLIT) cluster_wait(); /* no block ends',
     '    if (false) cluster_wait(); /* no block ends'),
    ('wgmma.cu', 'the other block of a pair is not told', 'products',
     'if (lane < 2) barrier_arrive_at(',
     'if (lane < 1) barrier_arrive_at('),
    ('wgmma.cu', "a pair's weights for one block alone", 'products',
     's.column, s.in.tap, my_row,\n                        both);',
     's.column, s.in.tap, my_row,\n                        static_cast<uint16_t>(1 << w.rank));'),
    ('turns.cu', 'stage given back a step early', 'linear_wgmma_t',
     'barrier_arrive(empty + before * 8);\n        before = k.at;',
     'barrier_arrive(empty + k.at * 8);\n        before = k.at;'),
    ('turns.cu', 'staged rows read before they are written', 'linear_wgmma_t',
     '        __syncwarp();\n#pragma unroll\n        for (int j = 0; j < wide / 16; j++) {',
     '#pragma unroll\n        for (int j = 0; j < wide / 16; j++) {'),
    ('turns.cu', 'staged rows written before they are read', 'linear_wgmma_t',
     '    for (int i = 0; i < HEIGHT; i++) {\n        __syncwarp();\n#pragma unroll\n        for (int v = 0; v < wide / 2; v += 2) {\n            const float by',
     '    for (int i = 0; i < HEIGHT; i++) {\n#pragma unroll\n        for (int v = 0; v < wide / 2; v += 2) {\n            const float by'),
    ('turns.cu', 'more registers than there are', 'linear_wgmma_t',
     'REGISTERS = 240, COPIER_REGISTERS = 24',
     'REGISTERS = 240, COPIER_REGISTERS = 32'),
    ('turns.cu', 'turn not given', 'linear_wgmma_t',
     '    if (more) give_turn(group ^ 1);',
     ''),
    ('wgmma_attention.cu', 'values are not waited for', 'attention_wgmma',
     'barrier_wait(v_full + at * 8, parity);',
     ''),
    ('wgmma_attention.cu', 'keys given back before values are read', 'attention_wgmma',
     '        sums_wait<0>();\n        sums_pin(out);\n        if (!first',
     '        sums_pin(out);\n        if (!first'),
    ('wgmma_attention.cu', 'rows over queries still read', 'attention_wgmma',
     'warps_meet(group + 1, 128);',
     ''),
    ('wgmma_attention.cu', 'rows stored before the warp has them', 'attention_wgmma',
     '    __syncwarp();\n    __half *to',
     '    __half *to'),
    ('group_norm.cu', 'the cluster does not meet', 'group_norm',
     'cluster_meet();',
     ''),
    ('group_norm.cu', 'block ends while others read its moments', 'group_norm',
     '    if (log_splits) cluster_wait();\n#endif',
     '#endif'),
    ('group_norm.cu', 'merged moments read early', 'group_norm',
     '    __syncthreads();\n    if (log_splits) cluster_arrive();',
     '    if (log_splits) cluster_arrive();'),
    ('group_norm.cu', 'sums read early', 'group_norm',
     '    __syncthreads();\n    sum_groups',
     '    sum_groups'),
    ('group_norm.cu', 'pieces not waited for', 'group_norm',
     'if (p == PIECES - 2) copy_wait<2>();',
     'if (p == PIECES - 2) copy_wait<3>();'),
    ('group_norm.cu', 'input before the launch before', 'outputs',
     '        previous_launch_wait();',
     ''),
    ('norm.cu', 'rows read early', 'apply_cuda',
     '    copy_wait<0>();\n    __syncthreads(); /* others bring',
     '    copy_wait<0>(); /* others bring'),
    ('norm.cu', 'sums read early', 'norm_stats',
     '    sums[0][tid] = sum, sums[1][tid] = sum2;\n    __syncthreads();',
     '    sums[0][tid] = sum, sums[1][tid] = sum2;'),
    ('norm.cu', 'a slot is filled before it is read', 'norm_stats',
     '            load8(slots + k * apart, v);\n            fetch(k, row + AHEAD * by);',
     '            fetch(k, row + AHEAD * by);\n            load8(slots + k * apart, v);'),
    ('attention.cu', 'tile loaded over one that is read', 'attention_mma',
     '        __syncthreads(); /* the next tile',
     '        /* the next tile'),
    ('attention.cu', 'tile not waited for', 'attention_mma',
     '        copy_wait<1>();\n        __syncthreads();',
     '        __syncthreads();'),
    ('attention.cu', 'rows stored early', 'attention_mma',
     '    __syncwarp();\n    for (int i = lane; i < 16 * S::TILES',
     '    for (int i = lane; i < 16 * S::TILES'),
    ('product.cu', 'stage loaded over one that is read', 'linear_mma',
     '        copy_wait<STAGES - 2>();\n        __syncthreads();',
     '        copy_wait<STAGES - 2>();'),
    ('product.cu', 'sums over operands still read', 'linear_mma',
     '    copy_wait<0>();\n    __syncthreads();\n    float *staged',
     '    copy_wait<0>();\n    float *staged'),
    ('pointwise.cu', 'the counter moves before all have read it', 'advance',
     '    __syncthreads();\n    if (threadIdx.x) return;\n    __threadfence();',
     '    if (threadIdx.x) return;\n    __threadfence();'),
]


def command(build, target):
    """How ninja links a program."""
    lines = subprocess.run(['ninja', '-C', build, '-t', 'commands', target], capture_output=True, text=True,
                           check=True).stdout.strip().splitlines()
    return re.sub(r'^: && | && :$', '', lines[-1])


def compiled(build, name):
    """The entry of a kernel for the host in compile_commands.json."""
    with open(os.path.join(build, 'compile_commands.json')) as f:
        for entry in json.load(f):
            if entry['file'].endswith('/src/cuda/' + name) and 'lw_simulated.dir' in entry['command']:
                return entry
    sys.exit(f'{build} does not build {name} for the simulator')


def verdict(build, work, mutant):
    name, what, run, old, new = mutant
    with open(os.path.join(ROOT, 'src', 'cuda', name)) as f:
        text = f.read()
    if old not in text:
        return False, 'the text is not there any more'
    source = os.path.join(work, name)
    with open(source, 'w') as f:
        f.write(text.replace(old, new, 1))
    entry = compiled(build, name)
    obj = re.search(r' -o (\S+)', entry['command']).group(1)
    mine = os.path.join(work, 'kernel.o')
    compile_it = entry['command'].replace(entry['file'], source).replace(obj, mine) + ' -w'
    target = {'outputs': 'linework_bench_simulated', 'products': 'products_test'}.get(run, 'lw_check_simulated')
    program = os.path.join(work, target)
    link = command(build, target).replace(obj, mine).replace(f'bin/{target}', program)
    for step in (compile_it, link):
        done = subprocess.run(step, shell=True, cwd=build, capture_output=True, text=True)
        if done.returncode:
            return False, 'it does not compile: ' + done.stderr[:300]
    if run == 'outputs':
        test = [program, 'outputs', '--device', 'cuda', '--model', DEMO, '--size', '64x64', '--compare',
                os.path.join(build, 'outputs.bin')]
    elif run == 'products':
        test = [program]
    else:
        test = [program, '--backend', 'cuda', '--tactic', run, '--chance', '10', '--cap', '0.005']
    try:
        done = subprocess.run(test, capture_output=True, text=True, errors='replace', timeout=900,
                              env={**os.environ, 'SIMULATOR_SM': '2'})
    except subprocess.TimeoutExpired:
        return True, 'it does not end'
    said = [line for line in done.stderr.splitlines() if line.startswith('simulator: ')]
    last = (done.stdout.strip().splitlines() or [''])[-1]
    return done.returncode != 0, f'{last[:80]}; {said[0][11:] if said else "wrong results alone"}'


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    build = os.path.abspath(sys.argv[1])
    chosen = [m for m in MUTANTS if len(sys.argv) == 2 or m[0] in sys.argv[2:] or m[1] in sys.argv[2:]]
    bench = os.path.join(build, 'bin', 'linework_bench_simulated')
    if any(m[2] == 'outputs' for m in chosen):
        subprocess.run([bench, 'outputs', '--device', 'cuda', '--model', DEMO, '--size', '64x64', '--write',
                        os.path.join(build, 'outputs.bin')], check=True, stdout=subprocess.DEVNULL)
    unseen = 0

    def judge(mutant):
        with tempfile.TemporaryDirectory() as work:
            return verdict(build, work, mutant)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, (found, how) in zip(chosen, pool.map(judge, chosen)):
            unseen += not found
            print(f'{"found " if found else "UNSEEN"} {mutant[0]}: {mutant[1]}: {how}', flush=True)
    print(f'{len(chosen)} mutants, {unseen} unseen')
    sys.exit(1 if unseen else 0)


if __name__ == '__main__':
    main()
