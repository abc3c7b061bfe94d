/* SPDX-License-Identifier: MIT
 * The matrix units: mma and ldmatrix of a warp, wgmma of a warp's 16 of the 64 rows. Sums in float, in the order of the
 * sum's index: the device's own order is not known. */
#include "simulator.h"

#include <cmath>
#include <cstring>

#include <cuda_fp16.h>

namespace sim {

static float to_float(uint16_t half) {
    static float table[65536];
    static bool made = false;
    if (!made) {
        for (uint32_t i = 0; i < 65536; i++) {
            __half_raw raw;
            raw.x = static_cast<unsigned short>(i);
            table[i] = __half2float(__half(raw));
        }
        made = true;
    }
    return table[half];
}

static void spread(uint32_t pair, float *first, float *second) {
    *first = to_float(static_cast<uint16_t>(pair)), *second = to_float(static_cast<uint16_t>(pair >> 16));
}

/* Where a lane's four registers of A [16][16] lie, as m16n8k16 has it. */
static void spread_a(const uint32_t a[4], int lane, float (*to)[16]) {
    for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + i % 2 * 8, k = lane % 4 * 2 + i / 2 * 8;
        spread(a[i], &to[row][k], &to[row][k + 1]);
    }
}

void load_matrices(uint32_t r[4], const void *row, bool transposed) {
    if (reinterpret_cast<uintptr_t>(row) % 16) mistake("ldmatrix from %p", row);
    shared_address(row);
    now->says.matrices.address = row;
    now->says.matrices.to = r;
    if (!come_together(LOAD_MATRICES, transposed, true)) return;
    thread *const *lanes = now->of->lanes;
    for (int lane = 0; lane < 32; lane++)
        reads(*now->in, shared_address(lanes[lane]->says.matrices.address), 16, lanes[lane]->me, false);
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) {
            uint16_t v[2];
            for (int k = 0; k < 2; k++) {
                const int y = transposed ? lane % 4 * 2 + k : lane / 4, x = transposed ? lane / 4 : lane % 4 * 2 + k;
                memcpy(&v[k], static_cast<const char *>(lanes[i * 8 + y]->says.matrices.address) + 2 * x, 2);
            }
            lanes[lane]->says.matrices.to[i] = v[0] | static_cast<uint32_t>(v[1]) << 16;
        }
    leave_together();
}

void multiply(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    now->says.product.sums = d;
    now->says.product.a = a;
    now->says.product.b[0] = b0, now->says.product.b[1] = b1;
    if (!come_together(MULTIPLY, 0, true)) return;
    thread *const *lanes = now->of->lanes;
    float fa[16][16], fb[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const auto &p = lanes[lane]->says.product;
        spread_a(p.a, lane, fa);
        for (int i = 0; i < 2; i++)
            spread(p.b[i], &fb[lane % 4 * 2 + i * 8][lane / 4], &fb[lane % 4 * 2 + i * 8 + 1][lane / 4]);
    }
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) {
            float *sum = &lanes[lane]->says.product.sums[i];
            for (int k = 0; k < 16; k++) *sum += fa[lane / 4 + i / 2 * 8][k] * fb[k][lane % 4 * 2 + i % 2];
        }
    leave_together();
}

/* ---- wgmma */

/* Of an operand's descriptor: address, and the two distances; all else is as the kernels have it, or a mistake. */
struct operand {
    uint32_t address, leading, stride;
};

static operand operand_of(uint64_t descriptor) {
    if (descriptor >> 62 != 1 || descriptor >> 46 & 0xffff || descriptor >> 14 & 3 || descriptor >> 30 & 3)
        mistake("wgmma: operand %#llx is not one of 128-byte swizzle", static_cast<unsigned long long>(descriptor));
    return {static_cast<uint32_t>(descriptor & 0x3fff) << 4, static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4,
            static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4};
}

/* 16 bytes that lie together; rows: of A. */
static void read_halfs(block &b, uint32_t address, const agent &by, bool rows, float to[8]) {
    uint16_t v[8];
    const uint32_t at = swizzled(address);
    if (address % 16 || at < FIRST_SHARED || at + 16 > END_SHARED) mistake("wgmma: an operand at %#x", address);
    const bool there = !rows || rows_are_there(b, at, 16, by);
    if (!rows) reads(b, at, 16, by, true);
    memcpy(v, b.memory + at, 16);
    for (int i = 0; i < 8; i++) to[i] = there ? to_float(v[i]) : NAN;
}

void ask(float *d, int columns, uint64_t a_operand, const uint32_t *a, uint64_t b_operand) {
    auto &mine = now->says.product;
    mine.sums = d, mine.a = a, mine.a_operand = a_operand, mine.b_operand = b_operand;
    if (!come_together(ASK, columns, true)) return;
    warp &w = *now->of;
    product p;
    p.columns = columns, p.values = a != nullptr;
    p.a = a_operand, p.b = b_operand;
    for (int lane = 0; lane < 32; lane++) {
        const auto &his = w.lanes[lane]->says.product;
        if (his.a_operand != a_operand || his.b_operand != b_operand || (his.a != nullptr) != p.values)
            mistake("wgmma: lane %d has other operands", lane);
        p.sums[lane] = his.sums;
        if (p.values) memcpy(p.in_registers[lane], his.a, sizeof p.in_registers[lane]);
    }
    p.by = {w.matrix_agent, ++w.matrix_epoch, known_to(w.lanes, 32)};
    w.open.push_back(p);
    leave_together();
}

/* 16 rows of 64 of the sums: those of the warp's place in its group of four. Which of A it reads for them is not said:
 * it may be all of it. */
static void make(const product &p, const warp &of) {
    block &b = *of.in;
    float fa[64][16], fb[256][16];
    if (p.values) {
        for (int lane = 0; lane < 32; lane++) spread_a(p.in_registers[lane], lane, fa);
    } else {
        const operand a = operand_of(p.a);
        for (uint32_t row = 0; row < 64; row++)
            for (uint32_t k = 0; k < 16; k += 8)
                read_halfs(b, a.address + row / 8 * a.stride + row % 8 * 128 + k * 2, p.by, true, &fa[row][k]);
    }
    const int first_row = p.values ? 0 : static_cast<int>(&of - b.warps.data()) % 4 * 16;
    const operand o = operand_of(p.b);
    const uint32_t columns = static_cast<uint32_t>(p.columns);
    for (uint32_t n = 0; n < columns && !p.values; n++)
        for (uint32_t k = 0; k < 16; k += 8)
            read_halfs(b, o.address + n / 8 * o.stride + n % 8 * 128 + k * 2, p.by, false, &fb[n][k]);
    for (uint32_t k = 0; k < 16 && p.values; k++)
        for (uint32_t n = 0; n < columns; n += 8) {
            float v[8];
            read_halfs(b, o.address + n / 64 * o.leading + k / 8 * o.stride + k % 8 * 128 + n % 64 * 2, p.by, false, v);
            for (uint32_t i = 0; i < 8; i++) fb[n + i][k] = v[i];
        }
    for (int lane = 0; lane < 32; lane++)
        for (int v = 0; v < p.columns / 2; v++) {
            const float *x = fa[first_row + lane / 4 + v / 2 % 2 * 8], *y = fb[v / 4 * 8 + lane % 4 * 2 + v % 2];
            float sum = 0;
            for (int k = 0; k < 16; k++) sum += x[k] * y[k];
            p.sums[lane][v] += sum;
        }
}

static void make_all(products &of, const warp &w) {
    for (const product &p : of.to_make) make(p, w);
    of.to_make.clear();
}

void sums_commit() {
    if (!come_together(COMMIT, 0, true)) return;
    warp &w = *now->of;
    w.groups.push_back({std::move(w.open), w.matrix_epoch});
    w.open.clear();
    if (!is_patient())
        for (products &p : w.groups) make_all(p, w);
    leave_together();
}

void sums_wait(int left) {
    if (!come_together(WAIT_SUMS, left, true)) return;
    warp &w = *now->of;
    uint32_t epoch = 0;
    while (w.groups.size() > static_cast<size_t>(left)) {
        make_all(w.groups.front(), w);
        epoch = w.groups.front().epoch;
        w.groups.erase(w.groups.begin());
    }
    knowledge memo[2];
    if (epoch)
        for (thread *t : w.lanes) learn_of(*t, w.matrix_agent, epoch, memo);
    leave_together();
}

} // namespace sim
