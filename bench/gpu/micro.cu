/* SPDX-License-Identifier: MIT
 * What the plans for Hopper hang on (docs/PERF.md): numbers of the device, not of linework. Without a name all of them.
 *
 *   gaps           time of a kernel that does nothing in a chain: plain, programmatic, in clusters, in graphs launched
 *                  back to back, and in the body of a WHILE node
 *   instructions   of a kernel whose instructions others have driven out of the caches since it last ran
 *   memory         rates into the multiprocessors from device memory and from the level-2 cache, by loads and copies
 *   shift          whether the matrix unit reads an operand that begins at any row of a swizzled tile, and what its
 *                  descriptor must say then: an input patch stays in shared memory for all nine taps of a window; and
 *                  what it must say of an operand that lies the other way, as attention's values do
 *   exchange       what a cluster's blocks give each other when each has sums of all rows and wants a share of the rows
 *                  of all of them: by loads, by bulk copies to the one that wants them, by way of the level-2 cache */
#include "gpu/gpu.cuh"

#include "cuda/common.cuh"
#include "cuda/hopper.cuh"

namespace {

int n_sm;

/* ---- gaps */

__global__ void nothing(int *p) {
    if (p) *p = 1;
}
__global__ void nothing_overlapped(int *p) {
    launches_meet();
    if (p) *p = 1;
}

struct launch_kind {
    const char *name;
    bool overlap;
    int cluster, blocks, shared;
};

void launch(cudaStream_t stream, const launch_kind &k) {
    void (*kernel)(int *) = k.overlap ? nothing_overlapped : nothing;
    MUST(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 200 * 1024));
    MUST(start_clusters(cu_order{stream, k.overlap}, kernel, k.blocks, k.cluster, 288, k.shared,
                        static_cast<int *>(nullptr)));
}

/* The step of a loop whose condition is the graph's: counts down, and sets the condition. */
__global__ void count_down(int *left, cudaGraphConditionalHandle handle) {
    const int n = --*left;
    cudaGraphSetConditional(handle, n > 0);
}
__global__ void set_count(int *left, int n) { *left = n; }

double while_us(const launch_kind &kind, int kernels, int turns) {
    int *left = nullptr;
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    cudaGraphConditionalHandle handle;
    cudaGraphNode_t first, loop;
    cudaStream_t stream;
    MUST(cudaMalloc(&left, sizeof *left));
    MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    MUST(cudaGraphCreate(&graph, 0));
    MUST(cudaGraphConditionalHandleCreate(&handle, graph, 1, cudaGraphCondAssignDefault));
    cudaKernelNodeParams set = {};
    void *args[2] = {&left, &turns};
    set.func = reinterpret_cast<void *>(set_count);
    set.gridDim = set.blockDim = dim3(1);
    set.kernelParams = args;
    MUST(cudaGraphAddKernelNode(&first, graph, nullptr, 0, &set));
    cudaGraphNodeParams params = {};
    params.type = cudaGraphNodeTypeConditional;
    params.conditional.handle = handle;
    params.conditional.type = cudaGraphCondTypeWhile;
    params.conditional.size = 1;
#if CUDART_VERSION >= 13000
    MUST(cudaGraphAddNode(&loop, graph, &first, nullptr, 1, &params));
#else
    MUST(cudaGraphAddNode(&loop, graph, &first, 1, &params));
#endif
    MUST(cudaStreamBeginCaptureToGraph(stream, params.conditional.phGraph_out[0], nullptr, nullptr, 0,
                                       cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < kernels; i++) launch(stream, kind);
    count_down<<<1, 1, 0, stream>>>(left, handle);
    MUST(cudaGetLastError());
    MUST(cudaStreamEndCapture(stream, nullptr));
    MUST(cudaGraphInstantiate(&ready, graph, 0));
    const double us = replay_us(ready, 5);
    MUST(cudaGraphExecDestroy(ready));
    MUST(cudaGraphDestroy(graph));
    MUST(cudaStreamDestroy(stream));
    MUST(cudaFree(left));
    return us;
}

/* Graphs of `kernels` launched back to back, microseconds of one. */
double back_to_back_us(const launch_kind &kind, int kernels, int graphs) {
    const cudaGraphExec_t graph = record([&](cudaStream_t s) {
        for (int i = 0; i < kernels; i++) launch(s, kind);
    });
    cudaStream_t stream;
    cudaEvent_t from, to;
    float ms = 0, best = 1e30f;
    MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    MUST(cudaEventCreate(&from));
    MUST(cudaEventCreate(&to));
    for (int turn = 0; turn < 6; turn++) {
        MUST(cudaEventRecord(from, stream));
        for (int i = 0; i < graphs; i++) MUST(cudaGraphLaunch(graph, stream));
        MUST(cudaEventRecord(to, stream));
        MUST(cudaEventSynchronize(to));
        MUST(cudaEventElapsedTime(&ms, from, to));
        best = std::min(best, ms);
    }
    MUST(cudaEventDestroy(from));
    MUST(cudaEventDestroy(to));
    MUST(cudaStreamDestroy(stream));
    MUST(cudaGraphExecDestroy(graph));
    return 1e3 * best / graphs;
}

/* The same with that many bytes of parameters, of which the first and the last are read. */
template <int BYTES> struct parameters { int values[BYTES / 4]; };
template <int BYTES> __global__ void nothing_of(const __grid_constant__ parameters<BYTES> p, int *out) {
    launches_meet();
    if (p.values[0] != p.values[BYTES / 4 - 1]) *out = 1;
}

template <int BYTES> void gap_of(int overlap) {
    const parameters<BYTES> p = {};
    const double us = graph_us([&](cudaStream_t s) {
        cudaLaunchAttribute programmatic = {};
        programmatic.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        programmatic.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t config = {};
        config.gridDim = dim3(n_sm);
        config.blockDim = dim3(288);
        config.stream = s;
        config.attrs = &programmatic;
        config.numAttrs = overlap;
        for (int i = 0; i < 400; i++)
            MUST(cudaLaunchKernelEx(&config, nothing_of<BYTES>, p, static_cast<int *>(nullptr)));
    });
    std::printf("parameters         %4d bytes, %-18s %7.3f\n", BYTES, overlap ? "programmatic" : "plain", us / 400);
    std::fflush(stdout);
}

void gaps() {
    const launch_kind kinds[] = {{"1 block", false, 1, 1, 0},
                                 {"a block each", false, 1, n_sm, 0},
                                 {"a block each, 200 KB", false, 1, n_sm, 200 * 1024},
                                 {"a block each, clusters of 4", false, 4, n_sm / 4 * 4, 0},
                                 {"clusters of 8, 200 KB", false, 8, n_sm / 8 * 8 - 16, 200 * 1024},
                                 {"1 block, programmatic", true, 1, 1, 0},
                                 {"a block each, programmatic", true, 1, n_sm, 0},
                                 {"200 KB, programmatic", true, 1, n_sm, 200 * 1024},
                                 {"clusters of 4, programmatic", true, 4, n_sm / 4 * 4, 0}};
    std::printf("# us a kernel that does nothing, in a chain of 400 in one graph\n");
    for (const launch_kind &k : kinds) {
        const double us = graph_us([&](cudaStream_t s) {
            for (int i = 0; i < 400; i++) launch(s, k);
        });
        std::printf("chain              %-30s %7.3f\n", k.name, us / 400);
        std::fflush(stdout);
    }
    for (int overlap = 0; overlap < 2; overlap++) {
        gap_of<16>(overlap);
        gap_of<1024>(overlap);
        gap_of<4000>(overlap);
    }
    std::printf("# graphs of n such kernels back to back, us a graph; the gap is what exceeds n kernels\n");
    for (const launch_kind &k : {kinds[1], kinds[6]})
        for (int n : {1, 10, 100})
            std::printf("back to back       %-30s n %4d: %8.2f\n", k.name, n, back_to_back_us(k, n, 50));
    std::fflush(stdout);
    std::printf("# a WHILE node of 100 turns, n such kernels and the one that counts: us a turn\n");
    for (const launch_kind &k : {kinds[1], kinds[6]})
        for (int n : {1, 10, 100}) {
            std::printf("while              %-30s n %4d: %8.2f\n", k.name, n, while_us(k, n, 100) / 100);
            std::fflush(stdout);
        }
}

/* ---- instructions: kernels of their own for each N, of so many instructions one after the other */
template <int N, int INSTRUCTIONS> __global__ void straight(float x, int *p) {
    launches_meet();
    float y[8];
#pragma unroll
    for (int i = 0; i < 8; i++) y[i] = x + static_cast<float>(i);
#pragma unroll
    for (int i = 0; i < INSTRUCTIONS / 8; i++)
#pragma unroll
        for (int k = 0; k < 8; k++) asm volatile("fma.rn.f32 %0, %0, %1, %0;\n" : "+f"(y[k]) : "f"(x));
    float all = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) all += y[i];
    if (all == static_cast<float>(N)) *p = 1;
}

template <int INSTRUCTIONS> void turns_of() {
    typedef void (*kernel)(float, int *);
    const kernel all[16] = {
        straight<0, INSTRUCTIONS>,  straight<1, INSTRUCTIONS>,  straight<2, INSTRUCTIONS>,  straight<3, INSTRUCTIONS>,
        straight<4, INSTRUCTIONS>,  straight<5, INSTRUCTIONS>,  straight<6, INSTRUCTIONS>,  straight<7, INSTRUCTIONS>,
        straight<8, INSTRUCTIONS>,  straight<9, INSTRUCTIONS>,  straight<10, INSTRUCTIONS>, straight<11, INSTRUCTIONS>,
        straight<12, INSTRUCTIONS>, straight<13, INSTRUCTIONS>, straight<14, INSTRUCTIONS>, straight<15, INSTRUCTIONS>};
    std::printf("%5d (%2d KB) ", INSTRUCTIONS, INSTRUCTIONS * 16 / 1024);
    for (int kinds = 1; kinds <= 16; kinds *= 2) {
        const double us = graph_us([&](cudaStream_t s) {
            for (int i = 0; i < 320; i++)
                MUST(start(cu_order{s, 1}, all[i % kinds], n_sm, 192, 0, 1.5f, static_cast<int *>(nullptr)));
        });
        std::printf(" %6.2f", us / 320);
    }
    std::printf("\n");
    std::fflush(stdout);
}

/* What a kernel costs whose instructions others have driven out of a multiprocessor's caches meanwhile. */
void instructions() {
    std::printf("# us of a kernel of that many instructions, each executed once, in a chain of 1, 2, 4, 8 and 16 such "
                "kernels in turns\n");
    turns_of<8>();
    turns_of<256>();
    turns_of<512>();
    turns_of<1024>();
    turns_of<2048>();
    turns_of<4096>();
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
/* Bytes of memory to this block's shared memory, and word of them to its barrier. */
CU_DEVICE void copy_bytes(const void *to, const void *from, uint32_t bytes, uint32_t bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n"
                 :
                 : "r"(shared_address(to)), "l"(from), "r"(bytes), "r"(bar)
                 : "memory");
}
#endif

/* ---- memory: every block reads its slices of a buffer of `bytes`, `turns` times */

enum { PIECE = 16384 };

__global__ void __launch_bounds__(512) read_by_loads(const uint4 *p, size_t vectors, int turns, int *sink) {
    uint32_t x = 0;
    for (int t = 0; t < turns; t++)
        for (size_t i = blockIdx.x * 2048 + threadIdx.x; i + 1536 < vectors;
             i += static_cast<size_t>(gridDim.x) * 2048) {
            uint4 v[4];
#pragma unroll
            for (int k = 0; k < 4; k++)
                asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                             : "=r"(v[k].x), "=r"(v[k].y), "=r"(v[k].z), "=r"(v[k].w)
                             : "l"(p + i + k * 512));
#pragma unroll
            for (int k = 0; k < 4; k++) x ^= v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
        }
    if (x == 0x12345678) *sink = 1;
}

/* One thread keeps `depth` bulk copies of 16 KB in flight. */
__global__ void __launch_bounds__(32) read_by_copies(const char *p, size_t bytes, int turns, int depth) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(128) unsigned char shared_bytes[];
    __shared__ __align__(8) uint64_t bars[16];
    if (threadIdx.x) return;
    for (int i = 0; i < depth; i++) barrier_init(shared_address(&bars[i]), 1);
    barriers_made();
    const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x),
              mine = (static_cast<int>(bytes / PIECE) - block + blocks - 1) / blocks;
    int at = 0, k = 0, parity = 1; /* no division in the loop: it would be what is measured */
    for (int left = mine * turns; left > -depth; left--) {
        const uint32_t bar = shared_address(&bars[k]);
        barrier_wait(bar, parity); /* of a new barrier the phase before the first one is over */
        if (left > 0) {
            barrier_expect(bar, PIECE);
            copy_bytes(shared_bytes + k * PIECE, p + (static_cast<size_t>(at) * blocks + block) * PIECE, PIECE, bar);
        }
        if (++at == mine) at = 0;
        if (++k == depth) k = 0, parity ^= 1;
    }
#endif
}

void memory() {
    const size_t largest = static_cast<size_t>(2) << 30;
    char *p = nullptr;
    int *sink = nullptr;
    MUST(cudaMalloc(&p, largest));
    MUST(cudaMalloc(&sink, 4));
    MUST(cudaMemset(p, 1, largest));
    MUST(cudaFuncSetAttribute(read_by_copies, cudaFuncAttributeMaxDynamicSharedMemorySize, 14 * PIECE));
    std::printf("# TB/s into the multiprocessors; buffers of some MB stay in the level-2 cache\n");
    for (int mb : {2, 8, 16, 24, 32, 2048}) {
        const size_t bytes = static_cast<size_t>(mb) << 20;
        const int turns = mb >= 2048 ? 1 : 2048 / mb;
        for (int blocks : {n_sm, 2 * n_sm}) {
            const double us = graph_us([&](cudaStream_t s) {
                read_by_loads<<<blocks, 512, 0, s>>>(reinterpret_cast<const uint4 *>(p), bytes / 16, turns, sink);
                MUST(cudaGetLastError());
            });
            std::printf("loads   %5d MB, %3d blocks           %6.2f\n", mb, blocks,
                        static_cast<double>(bytes) * turns / us * 1e-6);
        }
        for (int blocks : {40, 80, 120, n_sm})
            for (int depth : {2, 4, 8, 12}) {
                const double us = graph_us([&](cudaStream_t s) {
                    read_by_copies<<<blocks, 32, depth * PIECE, s>>>(p, bytes, turns, depth);
                    MUST(cudaGetLastError());
                });
                std::printf("copies  %5d MB, %3d blocks, %2d deep  %6.2f\n", mb, blocks, depth,
                            static_cast<double>(bytes) * turns / us * 1e-6);
            }
        std::fflush(stdout);
    }
    const double us = graph_us(
        [&](cudaStream_t s) { MUST(cudaMemcpyAsync(p, p + largest / 2, largest / 2, cudaMemcpyDeviceToDevice, s)); });
    std::printf("copy of 1 GB on the device, read and written  %6.2f\n", static_cast<double>(largest) / us * 1e-6);
    MUST(cudaFree(p));
    MUST(cudaFree(sink));
}

/* ---- transposed: V [64 keys][COLUMNS] in chunks of 64 columns, as attention has it, is B read along the keys: the
 * first 16 rows of the sums are keys 16 step to 16 step + 15. What distance goes into which field? */

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
template <int COLUMNS> struct transposed_multiplier;
template <> struct transposed_multiplier<40> {
    CU_DEVICE void add(float (&d)[20], uint64_t a, uint64_t b) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\nwgmma.mma_async.sync.aligned.m64n40k16.f32.f16.f16 {%0, %1, "
            "%2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19}, %20, %21, p, 1, 1, "
            "0, 1;\n}\n"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
              "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
              "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
            : "l"(a), "l"(b));
    }
};
template <> struct transposed_multiplier<80> {
    CU_DEVICE void add(float (&d)[40], uint64_t a, uint64_t b) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\nwgmma.mma_async.sync.aligned.m64n80k16.f32.f16.f16 {%0, %1, "
            "%2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "
            "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39}, %40, %41, p, "
            "1, 1, 0, 1;\n}\n"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
              "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
              "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
              "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
              "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
            : "l"(a), "l"(b));
    }
};

#endif

enum { KEYS = 64, V_CHUNK = KEYS * 128 };

/* leading and stride: bytes, for the descriptor's two distances. */
template <int COLUMNS>
__global__ void __launch_bounds__(128) transposed(int step, int leading, int stride, float *out) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    __shared__ __align__(1024) unsigned char values[2 * V_CHUNK];
    __shared__ __align__(1024) unsigned char unit[64 * 128];
    for (int i = threadIdx.x; i < KEYS * 128; i += 128) { /* under 2048: exact in half */
        const int key = i / 128, column = i % 128;
        *reinterpret_cast<__half *>(values + column / 64 * V_CHUNK + cu_swizzle(key * 128 + column % 64 * 2)) =
            __float2half(key * 32 + column % 31);
    }
    for (int i = threadIdx.x; i < 64 * 64; i += 128)
        *reinterpret_cast<__half *>(unit + cu_swizzle(i * 2)) =
            __float2half(i / 64 == i % 64 && i / 64 < 16 ? 1.0f : 0.0f);
    shared_written();
    __syncthreads();
    float d[COLUMNS / 2] = {};
    const uint32_t at = shared_address(values) + step * 16 * 128;
    const uint64_t b = static_cast<uint64_t>(at >> 4 & 0x3fff) | static_cast<uint64_t>(leading >> 4) << 16 |
                       static_cast<uint64_t>(stride >> 4) << 32 | static_cast<uint64_t>(1) << 62;
    sums_begin();
    transposed_multiplier<COLUMNS>::add(d, cu_operand(shared_address(unit)), b);
    sums_commit();
    sums_wait<0>();
    sums_pin(d);
#pragma unroll
    for (int v = 0; v < COLUMNS / 2; v++) {
        out[cu_sum_row(threadIdx.x, v) * COLUMNS + cu_sum_column(threadIdx.x, v)] = d[v];
    }
#endif
}

template <int COLUMNS> void try_transposed(float *out) {
    const int distances[4][2] = {{V_CHUNK, 1024}, {1024, V_CHUNK}, {16, 1024}, {1024, 1024}};
    for (const auto &d : distances)
        for (int step = 0; step < KEYS / 16; step++) {
            std::vector<float> got(64 * COLUMNS);
            int wrong = 0;
            transposed<COLUMNS><<<1, 128>>>(step, d[0], d[1], out);
            MUST(cudaGetLastError());
            MUST(cudaMemcpy(got.data(), out, got.size() * 4, cudaMemcpyDeviceToHost));
            for (int i = 0; i < 16 * COLUMNS; i++)
                wrong += got[i] != static_cast<float>((i / COLUMNS + 16 * step) * 32 + i % COLUMNS % 31);
            std::printf("columns %d, leading %5d, stride %5d, keys from %2d: %s (%d wrong)\n", COLUMNS, d[0], d[1],
                        16 * step, wrong ? "wrong" : "RIGHT", wrong);
        }
}

/* ---- shift: as A, 8 groups of 8 rows, `apart` rows from each other, of which the first begins at row `shift`; as B
 * the unit matrix: the sums are those rows */

enum { PATCH_ROWS = 200 };

__global__ void __launch_bounds__(128) shifted(int shift, int apart, int base, float *out) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    __shared__ __align__(1024) unsigned char tile[PATCH_ROWS * 128];
    __shared__ __align__(1024) unsigned char unit[8 * 128];
    for (int i = threadIdx.x; i < PATCH_ROWS * 64; i += 128) /* exact in half */
        *reinterpret_cast<__half *>(tile + cu_swizzle(i * 2)) = __float2half(i / 64 * 8 + i % 8);
    for (int i = threadIdx.x; i < 8 * 64; i += 128)
        *reinterpret_cast<__half *>(unit + cu_swizzle(i * 2)) = __float2half(i / 64 == i % 64 ? 1.0f : 0.0f);
    shared_written();
    __syncthreads();
    float d[4] = {0, 0, 0, 0};
    const uint64_t a = cu_operand_of(shared_address(tile) + shift * 128, apart * 128) | static_cast<uint64_t>(base)
                                                                                            << 49,
                   b = cu_operand(shared_address(unit));
    sums_begin();
    asm volatile(
        "{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\nwgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0, %1, %2, "
        "%3}, %4, %5, p, 1, 1, 0, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "l"(a), "l"(b));
    sums_commit();
    sums_wait<0>();
    sums_pin(d);
#pragma unroll
    for (int v = 0; v < 4; v++) { out[cu_sum_row(threadIdx.x, v) * 8 + cu_sum_column(threadIdx.x, v)] = d[v]; }
#endif
}

void shift() {
    float *out = nullptr;
    MUST(cudaMalloc(&out, 64 * 8 * 4));
    std::printf("# groups of 8 rows, r apart, from row s of a swizzled tile on: read right with the base offset b?\n");
    for (int apart : {8, 10, 20, 18})
        for (int s = 0; s <= 20 && s + 7 * apart + 8 <= PATCH_ROWS; s++) {
            std::printf("apart %2d, shift %2d:", apart, s);
            for (int b = 0; b < 8; b++) {
                float got[64 * 8];
                int wrong = 0;
                shifted<<<1, 128>>>(s, apart, b, out);
                MUST(cudaGetLastError());
                MUST(cudaMemcpy(got, out, sizeof got, cudaMemcpyDeviceToHost));
                for (int i = 0; i < 64 * 8; i++)
                    wrong += got[i] != static_cast<float>((s + i / 64 * apart + i / 8 % 8) * 8 + i % 8);
                if (wrong) std::printf("  b %d: %d wrong", b, wrong);
                else std::printf("  b %d: RIGHT", b);
            }
            std::printf("\n");
        }
    MUST(cudaFree(out));
    MUST(cudaMalloc(&out, 64 * 80 * 4));
    std::printf("# values [key][column] as the second operand, summed over keys\n");
    try_transposed<40>(out);
    try_transposed<80>(out);
    MUST(cudaFree(out));
}

/* ---- exchange: each of SPLITS blocks of a cluster holds as many shares of sums; block r adds up share r of all */

enum exchange_way { BY_LOADS, BY_COPIES, BY_ROWS, BY_STORES, BY_CACHE };
const char *const exchange_names[] = {"loads", "bulk copies", "bulk copies of 512 bytes", "stores", "level-2 cache"};
enum { EXCHANGE_THREADS = 416 };

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
CU_DEVICE void push(const float *to, const float *from, uint32_t bar, uint32_t bytes, int block) {
    send_bytes(there_of(shared_address(to), block), shared_address(from), bytes, there_of(bar, block));
}

/* 16 bytes into another block's shared memory, and word of them to the barrier there. */
CU_DEVICE void send_value(uint32_t to, uint4 v, uint32_t bar) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];\n" ::"r"(to),
        "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(bar)
        : "memory");
}
#endif

/* A turn is an exchange and a sum; `floats` of a share. Shared memory: own shares, then those that came. */
template <int SPLITS>
__global__ void __launch_bounds__(EXCHANGE_THREADS)
    exchange_kernel(int way, int floats, int turns, float *scratch, float *out) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(128) unsigned char shared_bytes[];
    __shared__ __align__(8) uint64_t came;
    float *own = reinterpret_cast<float *>(shared_bytes), *others = own + SPLITS * floats;
    const int rank = blockIdx.x % SPLITS, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t bytes = floats * 4, bar = shared_address(&came);
    for (int i = threadIdx.x; i < SPLITS * floats; i += EXCHANGE_THREADS) own[i] = rank + 1.0f;
    if (threadIdx.x == 0) {
        barrier_init(bar, 1);
        barriers_made();
    }
    shared_written();
    cluster_meet();
    float *cache = scratch + static_cast<size_t>(blockIdx.x) * SPLITS * floats;
    for (int turn = 0; turn < turns; turn++) {
        if (way == BY_LOADS) {
            cluster_meet();
            for (int i = threadIdx.x * 4; i < floats; i += EXCHANGE_THREADS * 4) {
                float4 part[SPLITS], sum;
#pragma unroll
                for (int k = 0; k < SPLITS; k++)
                    part[k] = *static_cast<const float4 *>(
                        __cluster_map_shared_rank(reinterpret_cast<float4 *>(own + rank * floats + i), k));
                sum = part[0];
#pragma unroll
                for (int k = 1; k < SPLITS; k++)
                    sum.x += part[k].x, sum.y += part[k].y, sum.z += part[k].z, sum.w += part[k].w;
                *reinterpret_cast<float4 *>(others + i) = sum;
            }
            cluster_arrive();
            cluster_wait();
            continue;
        }
        if (threadIdx.x == 0) barrier_expect(bar, (SPLITS - 1) * bytes);
        if (way == BY_CACHE && threadIdx.x == 0) {
            asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n" ::"l"(cache),
                         "r"(shared_address(own)), "r"(SPLITS * bytes)
                         : "memory");
            asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\nfence.proxy.async;\n" ::: "memory");
            __threadfence();
        }
        cluster_meet(); /* all may be written to */
        if (way == BY_CACHE) asm volatile("fence.proxy.async;\n" ::: "memory");
        if (way == BY_ROWS && lane == 0)
            for (int i = warp; i < (SPLITS - 1) * floats / 128; i += EXCHANGE_THREADS / 32) {
                const int to = (rank + 1 + i % (SPLITS - 1)) % SPLITS, at = i / (SPLITS - 1) * 128;
                push(others + (rank < to ? rank : rank - 1) * floats + at, own + to * floats + at, bar, 512, to);
            }
        if (way == BY_STORES)
            for (int i = threadIdx.x * 4; i < (SPLITS - 1) * floats; i += EXCHANGE_THREADS * 4) {
                const int to = (rank + 1 + i / floats) % SPLITS, at = i % floats;
                send_value(there_of(shared_address(others + (rank < to ? rank : rank - 1) * floats + at), to),
                           *reinterpret_cast<const uint4 *>(own + to * floats + at), there_of(bar, to));
            }
        if (way != BY_ROWS && way != BY_STORES && threadIdx.x == 0)
            for (int k = 1; k < SPLITS; k++) {
                const int to = (rank + k) % SPLITS;
                const size_t block = blockIdx.x - rank + to;
                if (way == BY_COPIES)
                    push(others + (rank < to ? rank : rank - 1) * floats, own + to * floats, bar, bytes, to);
                else
                    copy_bytes(others + (to < rank ? to : to - 1) * floats, scratch + (block * SPLITS + rank) * floats,
                               bytes, bar);
            }
        barrier_wait(bar, turn & 1);
        for (int i = threadIdx.x * 4; i < floats; i += EXCHANGE_THREADS * 4) {
            float4 sum = *reinterpret_cast<const float4 *>(own + rank * floats + i);
#pragma unroll
            for (int k = 0; k < SPLITS - 1; k++) {
                const float4 part = *reinterpret_cast<const float4 *>(others + k * floats + i);
                sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
            }
            *reinterpret_cast<float4 *>(others + i) = sum;
        }
        shared_written();
        __syncthreads();
    }
    cluster_meet();
    for (int i = threadIdx.x; i < floats; i += EXCHANGE_THREADS)
        out[static_cast<size_t>(blockIdx.x) * floats + i] = others[i];
#endif
}

template <int SPLITS> void exchange_of(int share_kb) {
    const int floats = share_kb * 256, shared = (2 * SPLITS - 1) * share_kb * 1024, blocks = 120 / SPLITS * SPLITS,
              turns = 200;
    float *scratch = nullptr, *out = nullptr;
    MUST(cudaMalloc(&scratch, static_cast<size_t>(blocks) * SPLITS * floats * 4));
    MUST(cudaMalloc(&out, static_cast<size_t>(blocks) * floats * 4));
    MUST(cudaFuncSetAttribute(exchange_kernel<SPLITS>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    for (int way = BY_LOADS; way <= BY_CACHE; way++) {
        std::vector<float> got(static_cast<size_t>(blocks) * floats);
        int wrong = 0;
        const double us = graph_us([&](cudaStream_t s) {
            MUST(start_clusters(cu_order{s, 0}, exchange_kernel<SPLITS>, blocks, SPLITS, EXCHANGE_THREADS, shared, way,
                                floats, turns, scratch, out));
        });
        MUST(cudaMemcpy(got.data(), out, got.size() * 4, cudaMemcpyDeviceToHost));
        for (float v : got) wrong += v != SPLITS * (SPLITS + 1) / 2;
        std::printf("exchange %d blocks, %2d KB from each, %-25s %6.2f us, %6.1f bytes a ns into each%s\n", SPLITS,
                    share_kb, exchange_names[way], us / turns, (SPLITS - 1) * share_kb * 1024.0 * turns / us * 1e-3,
                    wrong ? ", WRONG" : "");
        std::fflush(stdout);
    }
    MUST(cudaFree(scratch));
    MUST(cudaFree(out));
}

void exchange() {
    std::printf("# 120 blocks; a turn waits for all blocks, exchanges and adds up\n");
    for (int kb : {1, 8, 16}) exchange_of<4>(kb);
    for (int kb : {1, 4, 12}) exchange_of<8>(kb);
}

} // namespace

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    MUST(cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, 0));
    if (!*what || !std::strcmp(what, "shift")) shift();
    if (!*what || !std::strcmp(what, "gaps")) gaps();
    if (!*what || !std::strcmp(what, "instructions")) instructions();
    if (!*what || !std::strcmp(what, "memory")) memory();
    if (!*what || !std::strcmp(what, "exchange")) exchange();
    return 0;
}
