/* SPDX-License-Identifier: MIT
 * The simulator finds what it says it finds, in small kernels with one mistake each, and does what the device does, in
 * the same ones without. tools/simulator_mutants does so with our own kernels. */
#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "cuda/common.cuh"
#include "cuda/hopper.cuh"
#include "simulator.h"

extern "C" {
#include <cmocka.h>
}

namespace {

enum { TRIES = 20 };
cudaStream_t stream;

template <typename T> T *device(size_t n) {
    void *p = nullptr;
    assert_int_equal(cudaMalloc(&p, n * sizeof(T)), cudaSuccess);
    return static_cast<T *>(p);
}

/* Of a launch and all before it. */
template <typename... P, typename... A>
cudaError_t run(void (*kernel)(P...), dim3 grid, dim3 cluster, int threads, size_t shared, A... args) {
    const cudaError_t e = start_clusters(cu_order{stream, 0}, kernel, grid, cluster, threads, shared, args...),
                      late = cudaStreamSynchronize(stream);
    return e != cudaSuccess ? e : late;
}

void found(cudaError_t e, const char *what) {
    assert_int_equal(e, cudaErrorLaunchFailure);
    if (!strstr(sim::last_mistake(), what)) fail_msg("\"%s\" does not say \"%s\"", sim::last_mistake(), what);
}

/* ---- threads of a block */

void reverse(int *to, bool meets) {
    CU_SHARED(int, all, [128]);
    all[threadIdx.x] = static_cast<int>(threadIdx.x);
    if (meets) __syncthreads();
    to[threadIdx.x] = all[127 - threadIdx.x];
}

void threads_meet(void **) {
    int *p = device<int>(128);
    for (int i = 0; i < TRIES; i++) {
        assert_int_equal(run(reverse, 1, 1, 128, 0, p, true), cudaSuccess);
        for (int k = 0; k < 128; k++) assert_int_equal(p[k], 127 - k);
    }
    found(run(reverse, 1, 1, 128, 0, p, false), "race");
    cudaFree(p);
}

void meet_by_number(int threads) { warps_meet(1, threads); }

void deadlocks(void **) {
    assert_int_equal(run(meet_by_number, 1, 1, 64, 0, 64), cudaSuccess);
    found(run(meet_by_number, 1, 1, 64, 0, 96), "nobody can go on");
}

void part(float *to, bool parts) {
    const float mine = static_cast<float>(threadIdx.x);
    if (parts && threadIdx.x < 16) __syncwarp();
    else to[threadIdx.x] = warp_sum(mine);
}

void lanes_that_part(void **) {
    float *p = device<float>(32);
    assert_int_equal(run(part, 1, 1, 32, 0, p, false), cudaSuccess);
    for (int k = 0; k < 32; k++) assert_true(p[k] == 496);
    found(run(part, 1, 1, 32, 0, p, true), "of the warp are at");
    cudaFree(p);
}

void swap_lanes(int *to, bool syncs) {
    CU_SHARED(int, all, [32]);
    all[threadIdx.x] = static_cast<int>(threadIdx.x);
    uniform(0); /* a shuffle orders nothing */
    if (syncs) __syncwarp();
    to[threadIdx.x] = all[threadIdx.x ^ 1];
}

void warps_are_no_barriers(void **) {
    int *p = device<int>(32);
    assert_int_equal(run(swap_lanes, 1, 1, 32, 0, p, true), cudaSuccess);
    found(run(swap_lanes, 1, 1, 32, 0, p, false), "race");
    cudaFree(p);
}

/* ---- shared memory's end */

void write_at(int at) {
    CU_SHARED_REST(16, float, all);
    all[at] = 1;
}

void the_end_of_memory(void **) {
    assert_int_equal(run(write_at, 1, 1, 1, 1024, 255), cudaSuccess);
    assert_int_equal(run(write_at, 1, 1, 1, 64 * 1024, 0), cudaErrorInvalidConfiguration); /* not asked for */
    fflush(stdout);
    const pid_t child = fork();
    if (!child) {
        run(write_at, 1, 1, 1, 1024, 256);
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 3);
}

/* ---- copies by threads */

void copy_all(const float *from, float *to, bool waits, bool meets) {
    CU_SHARED(float, all, [128]);
    copy_some<4>(all + threadIdx.x, from + threadIdx.x, true);
    copy_commit();
    if (waits) copy_wait<0>();
    if (meets) __syncthreads();
    to[threadIdx.x] = all[threadIdx.x ^ 64];
    if (!waits) copy_wait<0>();
}

void copies_are_waited_for(void **) {
    float *from = device<float>(128), *to = device<float>(128);
    for (int i = 0; i < 128; i++) from[i] = static_cast<float>(i);
    for (int i = 0; i < TRIES; i++) {
        assert_int_equal(run(copy_all, 1, 1, 128, 0, from, to, true, true), cudaSuccess);
        for (int k = 0; k < 128; k++) assert_true(to[k] == static_cast<float>(k ^ 64));
    }
    found(run(copy_all, 1, 1, 128, 0, from, to, true, false), "race");
    int wrong = 0; /* by chance: not known to the races, for a thread's own copies are its own */
    for (int i = 0; i < TRIES; i++) {
        const cudaError_t e = run(copy_all, 1, 1, 128, 0, from, to, false, true);
        wrong += e != cudaSuccess || to[0] != 64;
    }
    assert_true(wrong > 0);
    cudaFree(from), cudaFree(to);
}

/* ---- launches */

void count_up(int *p, bool waits) {
    if (waits) previous_launch_wait();
    if (threadIdx.x == 0) p[blockIdx.x] += 1;
}

void launches_are_waited_for(void **) {
    int *p = device<int>(4), wrong[2] = {0, 0};
    for (int waits = 0; waits < 2; waits++)
        for (int i = 0; i < TRIES; i++) {
            memset(p, 0, 4 * sizeof *p);
            /* what is not waited for may be last: the first launch sets what the second counts */
            for (int k = 0; k < 3; k++)
                assert_int_equal(start(cu_order{stream, 1}, count_up, 4, 32, 0, p, waits != 0), cudaSuccess);
            assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
            for (int k = 0; k < 4; k++) wrong[waits] += p[k] != 3;
        }
    assert_int_equal(wrong[1], 0);
    cudaFree(p);
}

void set_to(int *p, int v) {
    previous_launch_wait();
    p[threadIdx.x] = v;
}
void take_from(int *to, const int *p, bool waits) {
    if (waits) previous_launch_wait();
    to[threadIdx.x] = p[threadIdx.x];
}

void launches_overlap(void **) {
    int *p = device<int>(32), *q = device<int>(32), wrong[2] = {0, 0};
    for (int waits = 0; waits < 2; waits++)
        for (int i = 0; i < TRIES; i++) {
            assert_int_equal(start(cu_order{stream, 1}, set_to, 1, 32, 0, p, i), cudaSuccess);
            assert_int_equal(start(cu_order{stream, 1}, take_from, 1, 32, 0, q, p, waits != 0), cudaSuccess);
            assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
            wrong[waits] += q[7] != i;
        }
    assert_true(wrong[0] > 0);
    assert_int_equal(wrong[1], 0);
    cudaFree(p), cudaFree(q);
}

/* ---- registers */

template <int GIVEN> void give_and_take() {
    if (threadIdx.x < 128) give_registers<GIVEN>();
    else take_registers<240>();
}

void registers_are_given(void **) { /* 384 threads have 168 each */
    assert_int_equal(run(give_and_take<24>, 1, 1, 384, 0), cudaSuccess);
    found(run(give_and_take<32>, 1, 1, 384, 0), "nobody can go on");
}

/* ---- the copy engine and the matrix unit: 64 rows of A and BN of B, one step of 64 values; or P [64][16] in registers
 * times V [16][64 each] */

enum mistake { NONE, NO_INIT_FENCE, NO_BARRIER, TOO_FEW_BYTES, NOT_EXPECTED, NO_WAIT, OVERWRITES };

struct maps {
    CUtensorMap a, b;
};

template <int BN> void step(const maps m, float *out, mistake which) {
    CU_SHARED_REST(16, unsigned char, bytes);
    CU_SHARED(uint64_t, bar, [1]);
    const uint32_t at = (shared_address(bytes) + 1023u) & ~1023u, full = shared_address(bar);
    if (threadIdx.x < 32 && elect_one()) {
        barrier_init(full, 1);
        if (which != NO_INIT_FENCE) barriers_made();
        if (which != NOT_EXPECTED) barrier_expect(full, (64 + BN) * 128 - (which == TOO_FEW_BYTES ? 16 : 0));
        copy_weights(at, &m.a, full, 0, 0, 0);
        copy_weights(at + 64 * 128, &m.b, full, 0, 0, 0);
    }
    if (which != NO_BARRIER) __syncthreads();
    float d[1][BN / 2] = {};
    barrier_wait(full, 0);
    ask_step<1, BN>(d, cu_operand(at), cu_operand(at + 64 * 128));
    if (which == OVERWRITES) *reinterpret_cast<float *>(bytes + (at - shared_address(bytes))) = 0;
    if (which != NO_WAIT) sums_wait<0>();
    for (int v = 0; v < BN / 2; v++) out[cu_sum_row(threadIdx.x, v) * BN + cu_sum_column(threadIdx.x, v)] = d[0][v];
    if (which == NO_WAIT) sums_wait<0>();
}

float value(size_t i) { return static_cast<float>(static_cast<int>(i * 2654435761u >> 20 & 31) - 15) / 8; }

bool map_of(CUtensorMap *map, const __half *p, int rows) {
    return encode_weights(sim::encode_map, map, p, 64, 1, rows, rows);
}

template <int BN> void step_is_right() {
    __half *a = device<__half>(64 * 64), *b = device<__half>(BN * 64);
    float *out = device<float>(64 * BN);
    maps m;
    for (size_t i = 0; i < 64 * 64; i++) a[i] = __float2half(value(i));
    for (size_t i = 0; i < BN * 64; i++) b[i] = __float2half(value(i + 7777));
    assert_true(map_of(&m.a, a, 64) && map_of(&m.b, b, BN));
    const size_t shared = 1024 + (64 + BN) * 128;
    assert_int_equal(cudaFuncSetAttribute(step<BN>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), cudaSuccess);
    auto go = [&](mistake which) { return run(step<BN>, 1, 1, 128, shared, m, out, which); };
    for (int i = 0; i < 4; i++) {
        assert_int_equal(go(NONE), cudaSuccess);
        for (int y = 0; y < 64; y++)
            for (int x = 0; x < BN; x++) {
                double want = 0;
                for (int k = 0; k < 64; k++)
                    want += static_cast<double>(__half2float(a[y * 64 + k])) *
                            static_cast<double>(__half2float(b[x * 64 + k]));
                if (!(std::fabs(out[y * BN + x] - want) < 1e-3)) fail_msg("%d columns: row %d, column %d", BN, y, x);
            }
    }
    found(go(NO_INIT_FENCE), "no fence tells others");
    found(go(TOO_FEW_BYTES), "nobody can go on");
    found(go(NOT_EXPECTED), "nobody can go on");
    found(go(OVERWRITES), "race");
    int wrong = 0; /* whoever is early may find no barrier, or one that he cannot know */
    for (int i = 0; i < TRIES; i++) wrong += go(NO_BARRIER) != cudaSuccess;
    assert_int_equal(wrong, TRIES);
    wrong = 0;
    for (int i = 0; i < TRIES; i++) {
        memset(out, 0, sizeof(float) * 64 * BN);
        assert_int_equal(go(NO_WAIT), cudaSuccess);
        wrong += out[5] == 0 && out[6] == 0;
    }
    assert_true(wrong > 0);
    cudaFree(a), cudaFree(b), cudaFree(out);
}

void steps_are_right(void **) {
    step_is_right<64>();
    step_is_right<96>();
    step_is_right<128>();
    step_is_right<160>();
    step_is_right<256>();
}

/* P is 1 in column `row % 16` of each row, so that a row of the result is a row of V. */
template <int N> void values(const CUtensorMap v, float *out) {
    CU_SHARED_REST(16, unsigned char, bytes);
    CU_SHARED(uint64_t, bar, [1]);
    enum { CHUNKS = (N + 63) / 64, CHUNK = 16 * 128 };
    const uint32_t at = (shared_address(bytes) + 1023u) & ~1023u, full = shared_address(bar);
    if (threadIdx.x < 32 && elect_one()) {
        barrier_init(full, 1);
        barriers_made();
        barrier_expect(full, CHUNKS * CHUNK);
        for (int c = 0; c < CHUNKS; c++) copy_weights(at + c * CHUNK, &v, full, c * 64, 0, 0);
    }
    __syncthreads();
    barrier_wait(full, 0);
    uint32_t p[4];
    for (int i = 0; i < 4; i++) {
        const int row = static_cast<int>(threadIdx.x) % 32 / 4 + i % 2 * 8,
                  k = static_cast<int>(threadIdx.x) % 4 * 2 + i / 2 * 8;
        p[i] = pack(row == k, row == k + 1);
    }
    float d[N / 2] = {};
    sums_begin();
    value_multiplier<N>::add(d, p, cu_values_operand(at, CHUNK));
    ::sums_commit();
    ::sums_wait<0>();
    for (int i = 0; i < N / 2; i++) out[cu_sum_row(threadIdx.x, i) * N + cu_sum_column(threadIdx.x, i)] = d[i];
}

template <int N> void values_are_right() {
    __half *v = device<__half>(16 * N);
    float *out = device<float>(64 * N);
    CUtensorMap map;
    for (size_t i = 0; i < 16 * N; i++) v[i] = __float2half(value(i));
    assert_true(encode_weights(sim::encode_map, &map, v, N, 1, 16, 16));
    assert_int_equal(run(values<N>, 1, 1, 128, 1024 + 3 * 16 * 128, map, out), cudaSuccess);
    for (int y = 0; y < 64; y++)
        for (int x = 0; x < N; x++) assert_true(out[y * N + x] == __half2float(v[y % 16 * N + x]));
    cudaFree(v), cudaFree(out);
}

void values_of_rows(void **) {
    values_are_right<40>();
    values_are_right<80>();
    values_are_right<160>();
}

/* ---- clusters */

enum cluster_mistake { FINE, NO_FENCE, NO_SYNC, LEAVES };

/* Each block sends its rank to the next one. */
void pass_round(int *out, cluster_mistake which) {
    CU_SHARED(int, mine, [32]);
    CU_SHARED(int, came, [32]);
    CU_SHARED(uint64_t, bar, [1]);
    const uint32_t full = shared_address(bar), next = (blockIdx.x + 1) % gridDim.x;
    if (threadIdx.x == 0) {
        barrier_init(full, 1);
        barriers_made();
        barrier_expect(full, 128);
    }
    mine[threadIdx.x] = static_cast<int>(blockIdx.x * 100 + threadIdx.x);
    if (which != NO_FENCE) shared_written();
    if (which != NO_SYNC) __syncwarp();
    cluster_arrive();
    cluster_wait();
    if (threadIdx.x == 0)
        send_bytes(there_of(shared_address(came), static_cast<int>(next)), shared_address(mine), 128,
                   there_of(full, static_cast<int>(next)));
    if (which == LEAVES && blockIdx.x == 1) return;
    barrier_wait(full, 0);
    out[blockIdx.x * 32 + threadIdx.x] = came[threadIdx.x];
    cluster_arrive();
    cluster_wait();
}

void clusters(void **) {
    int *p = device<int>(4 * 32);
    for (int i = 0; i < TRIES; i++) {
        assert_int_equal(run(pass_round, 4, 4, 32, 0, p, FINE), cudaSuccess);
        for (int k = 0; k < 128; k++) assert_int_equal(p[k], (k / 32 + 3) % 4 * 100 + k % 32);
    }
    found(run(pass_round, 4, 4, 32, 0, p, NO_FENCE), "without a fence");
    assert_int_equal(run(pass_round, 4, 4, 32, 0, p, NO_SYNC), cudaSuccess); /* the cluster's barrier does it, too */
    int wrong = 0;
    for (int i = 0; i < TRIES; i++) wrong += run(pass_round, 4, 4, 32, 0, p, LEAVES) != cudaSuccess;
    assert_true(wrong > 0);
    assert_int_equal(run(pass_round, 3, 4, 32, 0, p, FINE), cudaErrorInvalidConfiguration);
    cudaFree(p);
}

int begin(void **) { return cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess; }
int end(void **) { return cudaStreamDestroy(stream) != cudaSuccess; }

} // namespace

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(threads_meet),
        cmocka_unit_test(deadlocks),
        cmocka_unit_test(lanes_that_part),
        cmocka_unit_test(warps_are_no_barriers),
        cmocka_unit_test(the_end_of_memory),
        cmocka_unit_test(copies_are_waited_for),
        cmocka_unit_test(launches_are_waited_for),
        cmocka_unit_test(launches_overlap),
        cmocka_unit_test(registers_are_given),
        cmocka_unit_test(steps_are_right),
        cmocka_unit_test(values_of_rows),
        cmocka_unit_test(clusters),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
