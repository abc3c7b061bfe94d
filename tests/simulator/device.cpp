/* SPDX-License-Identifier: MIT
 * Threads, blocks, clusters and launches: who runs, who waits for whom. */
#include "simulator.h"

#include <algorithm>
#include <csetjmp>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

namespace sim {

thread *now = nullptr;

/* ---- chance */

static uint64_t first_random() {
    const char *seed = getenv("SIMULATOR_SEED");
    return (seed ? strtoull(seed, nullptr, 10) : 1) * 0x9e3779b97f4a7c15u + 1;
}

uint32_t chance(uint32_t n) {
    static uint64_t state = first_random();
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return static_cast<uint32_t>(((state >> 32) * n) >> 32);
}

bool is_patient() { return now->in->of->of->patience > static_cast<int>(chance(16)); }

/* ---- memory beside which there is a page that nobody may touch */

enum { PAGE = 4096 };

static unsigned char *mapped(size_t bytes, size_t page_at) {
    void *p = mmap(nullptr, bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || mprotect(static_cast<char *>(p) + page_at, PAGE, PROT_NONE) != 0) {
        perror("simulator: mmap");
        abort();
    }
    return static_cast<unsigned char *>(p);
}

static std::vector<unsigned char *> free_memories;

static unsigned char *new_memory() {
    static_assert(END_SHARED % PAGE == 0, "shared memory ends where a page does");
    unsigned char *p;
    if (free_memories.empty()) p = mapped(END_SHARED, END_SHARED);
    else p = free_memories.back(), free_memories.pop_back();
    memset(p, 0xff, END_SHARED);
    return p;
}

/* ---- fibers. The first switch to one is setcontext's; the others are longjmp's, which calls no kernel. */

enum { STACK = 128 * 1024 };

struct fiber {
    ucontext_t first;
    jmp_buf at;
    bool begun;
};

struct scheduler { /* of a cluster that runs; those of launches that run meanwhile are below each other */
    jmp_buf at, failed;
    scheduler *outer;
};

static std::vector<fiber *> free_fibers;
static scheduler *schedules = nullptr;

static void leave_fiber() {
    if (!_setjmp(now->runs->at)) _longjmp(schedules->at, 1);
}

static void end_of_thread();

static void fiber_main() {
    for (;;) {
        now->in->of->of->what->body();
        end_of_thread();
        leave_fiber();
    }
}

static fiber *make_fiber() {
    fiber *const f = new fiber();
    getcontext(&f->first);
    f->first.uc_stack.ss_sp = mapped(STACK, 0) + PAGE; /* it grows down to the page */
    f->first.uc_stack.ss_size = STACK;
    makecontext(&f->first, fiber_main, 0);
    return f;
}

static fiber *new_fiber() {
    if (free_fibers.empty()) return make_fiber();
    fiber *const f = free_fibers.back();
    free_fibers.pop_back();
    return f;
}

static __attribute__((noinline)) void enter_fiber(thread *t) {
    fiber *f = t->runs;
    now = t;
    if (!_setjmp(schedules->at)) {
        if (f->begun) _longjmp(f->at, 1);
        f->begun = true;
        setcontext(&f->first);
    }
    now = nullptr;
}

/* ---- mistakes */

static const char *const wait_names[] = {
    "nothing",           "its warp", "a barrier of threads", "a barrier in memory", "the cluster",
    "the launch before", "registers"};

static void say_where(FILE *to, const thread *t) {
    const block *b = t->in;
    fprintf(to, "block (%u, %u, %u) warp %d lane %d", b->index.x, b->index.y, b->index.z,
            static_cast<int>(t->of - b->warps.data()), t->lane);
}

static char last[256];
const char *last_mistake() { return last; }

void mistake(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(last, sizeof last, format, args);
    va_end(args);
    fprintf(stderr, "simulator: ");
    if (now) say_where(stderr, now), fprintf(stderr, ": ");
    fprintf(stderr, "%s\n", last);
    if (!schedules) abort();
    _longjmp(schedules->failed, 1);
}

/* Reads and writes where nothing is. */
static void on_fault(int, siginfo_t *info, void *) {
    fprintf(stderr, "simulator: ");
    if (now) {
        const unsigned char *at = static_cast<unsigned char *>(info->si_addr), *memory = now->in->memory;
        say_where(stderr, now);
        fprintf(stderr, ": %p is not to be touched%s\n", info->si_addr,
                at >= memory && at < memory + END_SHARED + PAGE ? ": past the end of shared memory" : "");
    } else fprintf(stderr, "%p is not to be touched\n", info->si_addr);
    _exit(3);
}

/* For each launch: a test's framework may have put its own there. */
static void catch_faults() {
    static stack_t stack = {};
    if (!stack.ss_sp) {
        stack.ss_size = 64 * 1024;
        stack.ss_sp = malloc(stack.ss_size);
    }
    sigaltstack(&stack, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);
}

/* ---- waiting and waking */

static void wake(thread *t) {
    t->waits = NOTHING;
    t->of->ready |= 1u << t->lane;
    if (t->of->listed) return;
    t->of->listed = true;
    t->in->of->ready.push_back(t->of);
}

static void wake_all(std::vector<thread *> &list) {
    for (thread *t : list) wake(t);
    list.clear();
}

/* Until woken. */
static void block_on(wait_kind what, uint32_t address, uint32_t parity) {
    now->waits = what, now->waits_for = address, now->waits_parity = parity;
    leave_fiber();
}

/* ---- warps */

static const char *const meeting_names[] = {
    "__syncwarp", "a shuffle",      "elect",        "ldmatrix",       "mma",
    "wgmma",      "wgmma's commit", "wgmma's wait", "setmaxnreg.dec", "setmaxnreg.inc"};

bool come_together(meeting what, int at, bool whole) {
    warp &w = *now->of;
    if (whole && (w.there & ~w.over) != 0xffffffffu)
        mistake("%s in a warp that has lanes %08x", meeting_names[what], w.there & ~w.over);
    if (w.arrived && (w.meets != what || w.meets_at != at))
        mistake("lanes %08x of the warp are at %s (%d), this one at %s (%d)", w.arrived, meeting_names[w.meets],
                w.meets_at, meeting_names[what], at);
    w.meets = what, w.meets_at = at;
    w.arrived |= 1u << now->lane;
    if (w.arrived == (w.there & ~w.over)) return true;
    block_on(WARP, what, 0);
    return false;
}

/* All that have arrived go on; the one that runs does so anyway. */
static void let_go(warp &w) {
    const uint32_t waiting = w.arrived & ~(1u << now->lane);
    w.arrived = 0;
    for (uint32_t left = waiting; left; left &= left - 1) wake(w.lanes[__builtin_ctz(left)]);
}

void leave_together() { let_go(*now->of); }

/* Orders memory; what else lanes meet for does not. */
void warp_sync() {
    arrive(now->of->together, *now);
    if (come_together(SYNC, 0, false)) {
        open(now->of->together);
        leave_together();
    }
    learn(now->of->together, now->me);
}

uint64_t shuffle(uint64_t value, int from) {
    thread *me = now;
    me->says.value = value;
    me->reads_lane = from;
    if (come_together(SHUFFLE, 0, true)) {
        for (thread *t : me->of->lanes) t->hears = me->of->lanes[t->reads_lane]->says.value;
        leave_together();
    }
    return me->hears;
}

bool elect() {
    if (come_together(ELECT, 0, true)) leave_together();
    return now->lane == now->of->elected;
}

/* ---- blocks: barriers by number */

static void open_place(meeting_place &p) {
    p.arrived = 0;
    open(p.sync);
    wake_all(p.waiting);
}

void meet(int number, int threads, bool waits) {
    block &b = *now->in;
    meeting_place &p = b.places[number];
    if (p.arrived && p.threads != threads)
        mistake("barrier %d is of %d threads here, and was of %d", number, threads, p.threads);
    p.threads = threads;
    arrive(p.sync, *now);
    const int all = threads ? threads : b.alive;
    if (++p.arrived > all) mistake("barrier %d is of %d threads, and more have come", number, all);
    if (p.arrived == all) open_place(p);
    else if (waits) {
        p.waiting.push_back(now);
        block_on(BLOCK, static_cast<uint32_t>(number), 0);
    }
    if (waits) learn(p.sync, now->me);
}

/* Registers of a warp are given and taken by all its lanes together. */
void registers(int n, bool take) {
    if (!come_together(take ? TAKE_REGISTERS : GIVE_REGISTERS, n, true)) return;
    warp &w = *now->of;
    block &b = *now->in;
    const int more = (n - w.registers) * 32;
    if (n % 8 || n < 24 || n > 256 || (take ? more < 0 : more > 0))
        mistake("setmaxnreg to %d of a warp that has %d", n, w.registers);
    while (take && b.free_registers < more) {
        b.wants_registers.push_back(now);
        block_on(REGISTERS, static_cast<uint32_t>(n), 0);
    }
    b.free_registers -= more;
    w.registers = n;
    if (!take) wake_all(b.wants_registers);
    leave_together();
}

/* ---- clusters */

static void open_cluster(cluster &c) {
    c.arrived = 0;
    c.round++;
    open(c.sync);
    wake_all(c.waiting);
}

void cluster_arrive() {
    cluster &c = *now->in->of;
    if (now->at_cluster) mistake("arrives at the cluster's barrier twice");
    now->at_cluster = true;
    now->cluster_round = c.round;
    arrive(c.sync, *now);
    if (++c.arrived == c.alive) open_cluster(c);
}

void cluster_wait() {
    cluster &c = *now->in->of;
    if (!now->at_cluster) mistake("waits at the cluster's barrier, where it has not arrived");
    if (now->cluster_round == c.round) {
        c.waiting.push_back(now);
        block_on(CLUSTER, 0, 0);
    }
    learn(c.sync, now->me);
    now->at_cluster = false;
}

void launch_wait() {
    cluster &c = *now->in->of;
    if (!c.of->before) return;
    c.wait_for_launch.push_back(now);
    block_on(LAUNCH, 0, 0);
}

/* ---- shared memory */

const dim3 &block_index() { return now->in->index; }
const dim3 &block_size() { return now->in->of->of->what->block; }
const dim3 &grid_size() { return now->in->of->of->what->grid; }

void *shared_object(int line, size_t bytes) {
    block &b = *now->in;
    for (const auto &known : b.by_line)
        if (known.first == line) return known.second;
    void *p = b.memory + b.objects;
    b.objects += (bytes + 15) / 16 * 16;
    if (b.objects + b.of->of->what->shared > END_SHARED)
        mistake("%u bytes of shared objects and %zu more are too many", b.objects - FIRST_SHARED,
                b.of->of->what->shared);
    b.by_line.emplace_back(line, p);
    return p;
}

/* Ends where shared memory does, so that what is past the end is found; begins as badly as it may. */
void *shared_rest(size_t align) {
    const block &b = *now->in;
    return b.memory + (END_SHARED - b.of->of->what->shared) / align * align;
}

uint32_t shared_address(const void *p) {
    const ptrdiff_t at = static_cast<const unsigned char *>(p) - now->in->memory;
    if (at < FIRST_SHARED || at > END_SHARED) mistake("%p is not in the block's shared memory", p);
    return static_cast<uint32_t>(at);
}

/* A cluster's address: which block, above those of a block. */
enum { BLOCK_BITS = 24 };
static uint32_t in_block(uint32_t address) { return address & ((1u << BLOCK_BITS) - 1); }

uint32_t there_of(uint32_t address, uint32_t rank) {
    if (rank >= now->in->of->blocks.size()) mistake("there is no block %u in the cluster", rank);
    return in_block(address) | (rank + 1) << BLOCK_BITS;
}

static block &block_of(uint32_t address) {
    const uint32_t rank = address >> BLOCK_BITS;
    return rank ? now->in->of->blocks[rank - 1] : *now->in;
}

static unsigned char *pointer_in(block &b, uint32_t address, size_t bytes) {
    const uint32_t at = in_block(address);
    if (at < FIRST_SHARED || at + bytes > END_SHARED)
        mistake("%u bytes at %#x are not all in shared memory", static_cast<unsigned>(bytes), at);
    return b.memory + at;
}

void *shared_pointer(uint32_t address, size_t bytes) {
    block &b = block_of(address);
    if (!b.alive) mistake("block %u of the cluster has ended, and its memory is read or written", b.rank);
    return pointer_in(b, address, bytes);
}

/* ---- barriers in shared memory */

static barrier &barrier_at(block &b, uint32_t address) {
    const uint32_t at = in_block(address);
    for (barrier &known : b.barriers)
        if (known.address == at) return known;
    mistake("there is no barrier at %#x of block %u of the cluster", at, b.rank);
}

static size_t n_agents(const block &b) { return b.of->thread_of.size(); }

/* Whoever waits for a phase learns of the copies that it counts; their epoch is the phase. */
static void settle(barrier &b, size_t agents) {
    if (b.pending || b.bytes) return;
    b.pending = b.count;
    b.phase++;
    if (finds_races()) {
        b.sync.gathered.resize(agents);
        b.sync.gathered[b.agent_number] = b.phase;
        open(b.sync);
    }
    wake_all(b.waiting);
}

static void bytes_came(block &b, uint32_t address, int64_t bytes) {
    barrier &bar = barrier_at(b, address);
    bar.bytes -= bytes;
    settle(bar, n_agents(b));
}

void barrier_init(uint32_t bar, uint32_t count) {
    block &b = *now->in;
    if (bar % 8) mistake("a barrier at %#x", bar);
    for (const barrier &known : b.barriers)
        if (known.address == bar) mistake("the barrier at %#x is made twice", bar);
    shared_pointer(bar, 8);
    if (b.barriers.size() == MAX_BARRIERS) mistake("more than %d barriers", MAX_BARRIERS);
    barrier made = {};
    made.address = bar;
    made.count = made.pending = static_cast<int>(count);
    made.made_by = now->me.number, made.made_at = now->me.epoch;
    made.agent_number = b.first_agent + static_cast<uint32_t>(b.threads.size() + b.warps.size() + b.barriers.size());
    b.barriers.push_back(std::move(made));
}

void barriers_made() {
    for (barrier &b : now->in->barriers) b.announced = b.announced || b.made_by == now->me.number;
}

/* A barrier that this thread can know to be made; far: by the copy engine or from another block. */
static barrier &known_barrier(block &b, uint32_t address, bool far) {
    barrier &bar = barrier_at(b, address);
    if (finds_races() && !knows_of(now->me, bar.made_by, bar.made_at))
        mistake("the barrier at %#x is used by one that cannot know that it is made", bar.address);
    if (far && !bar.announced) mistake("the barrier at %#x is made, and no fence tells others", bar.address);
    return bar;
}

void barrier_arrive(uint32_t bar, uint32_t expected_bytes) {
    block &b = block_of(bar);
    if (!b.alive) mistake("arrives at a barrier of block %u of the cluster, which has ended", b.rank);
    barrier &there = known_barrier(b, bar, &b != now->in);
    there.bytes += expected_bytes;
    if (--there.pending < 0) mistake("more threads than %d arrive at the barrier at %#x", there.count, bar);
    arrive(there.sync, *now);
    settle(there, n_agents(b));
}

void barrier_wait(uint32_t bar, uint32_t parity) {
    known_barrier(*now->in, bar, false);
    for (;;) { /* found again each time: others may be made meanwhile */
        barrier &there = barrier_at(*now->in, bar);
        if ((there.phase & 1) != parity) {
            learn(there.sync, now->me);
            return;
        }
        there.waiting.push_back(now);
        block_on(BARRIER, bar, parity);
    }
}

/* ---- the copy engine */

/* What cuTensorMapEncodeTiled is given, as the runtime's writes it. */
struct tensor_map {
    uint64_t magic;
    const unsigned char *address;
    uint64_t strides[4];
    uint32_t dims[5];
    uint16_t box[5];
    uint8_t every[5], axes;
};
static_assert(sizeof(tensor_map) <= sizeof(CUtensorMap), "a map's 128 bytes");
static const uint64_t map_magic = 0x6c7774656e736f72;

CUresult encode_map(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t axes, void *address, const cuuint64_t *dims,
                    const cuuint64_t *strides, const cuuint32_t *box, const cuuint32_t *every,
                    CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                    CUtensorMapFloatOOBfill fill) {
    tensor_map m = {};
    if (reinterpret_cast<uintptr_t>(map) % 64 || type != CU_TENSOR_MAP_DATA_TYPE_FLOAT16 || axes < 3 || axes > 5 ||
        !address || reinterpret_cast<uintptr_t>(address) % 16 || interleave != CU_TENSOR_MAP_INTERLEAVE_NONE ||
        swizzle != CU_TENSOR_MAP_SWIZZLE_128B || fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE || box[0] * 2 > 128)
        return CUDA_ERROR_INVALID_VALUE;
    m.magic = map_magic;
    m.address = static_cast<unsigned char *>(address);
    m.axes = static_cast<uint8_t>(axes);
    for (cuuint32_t i = 0; i < axes; i++) {
        if (!dims[i] || dims[i] > UINT32_MAX || !box[i] || box[i] > 256 || !every[i] || every[i] > 8)
            return CUDA_ERROR_INVALID_VALUE;
        if (i && (!strides[i - 1] || strides[i - 1] % 16 || strides[i - 1] >= 1ull << 40))
            return CUDA_ERROR_INVALID_VALUE;
        m.dims[i] = static_cast<uint32_t>(dims[i]);
        m.box[i] = static_cast<uint16_t>(box[i]);
        m.every[i] = static_cast<uint8_t>(every[i]);
        if (i) m.strides[i - 1] = strides[i - 1];
    }
    memcpy(map, &m, sizeof m);
    return CUDA_SUCCESS;
}

static void later(std::function<void()> what) {
    if (is_patient()) now->in->of->under_way.push_back(std::move(what));
    else what();
}

/* What a copy that this thread starts knows; it counts for the barrier of its destination. */
static agent copy_agent() { return {0, 0, known_to(&now, 1)}; }

static agent counted(agent a, const barrier &bar) {
    a.number = bar.agent_number;
    a.epoch = bar.phase + 1;
    return a;
}

/* What this thread has written before, the copy engine sees from here on. */
void shared_written() {
    now->me.epoch++;
    now->fences.push_back(now->me.epoch);
}

/* Row by row of 128 bytes, 16 bytes of each at a place that depends on the row's: 128-byte swizzle. */
static void fill_box(const tensor_map &m, const int *at, block &b, uint32_t to, const agent &by) {
    uint32_t n[5];
    for (int i = 0; i < m.axes; i++) n[i] = (m.box[i] + m.every[i] - 1u) / m.every[i];
    uint32_t rows = 1;
    for (int i = 1; i < m.axes; i++) rows *= n[i];
    pointer_in(b, to, rows * 128);
    writes(b, to, rows * 128, by, true);
    for (uint32_t row = 0; row < rows; row++) {
        const unsigned char *from = m.address;
        bool real = true;
        for (uint32_t i = 1, left = row; i < m.axes; left /= n[i], i++) {
            const int64_t x = at[i] + static_cast<int64_t>(left % n[i]) * m.every[i];
            real = real && x >= 0 && x < m.dims[i];
            from += x * static_cast<int64_t>(m.strides[i - 1]);
        }
        for (uint32_t c = 0; c < n[0]; c++) {
            const int64_t x = at[0] + static_cast<int64_t>(c) * m.every[0];
            const uint32_t there = swizzled(to + row * 128 + c * 2);
            uint16_t v = 0;
            if (real && x >= 0 && x < m.dims[0]) memcpy(&v, from + 2 * x, 2);
            memcpy(b.memory + there, &v, 2);
        }
    }
}

void copy_box(uint32_t to, const CUtensorMap *map, uint32_t bar, const int *at, int axes, uint32_t mask) {
    tensor_map m;
    memcpy(&m, map, sizeof m);
    if (m.magic != map_magic || m.axes != axes) mistake("a copy of %d axes by what is no map of so many", axes);
    if (to % 128) mistake("a copy to %#x, which is no multiple of 128", to);
    std::vector<int> from(at, at + axes);
    int64_t bytes = 2;
    for (int i = 0; i < axes; i++) bytes *= (m.box[i] + m.every[i] - 1) / m.every[i];
    cluster &c = *now->in->of;
    const agent by = copy_agent();
    for (uint32_t rank = 0; rank < c.blocks.size(); rank++) {
        block &b = mask ? c.blocks[rank] : *now->in;
        if (mask ? mask >> rank & 1 : rank == 0) {
            known_barrier(b, bar, true);
            later([m, from, &b, to, bar, bytes, by] {
                if (!b.alive) mistake("a copy comes to block %u of the cluster, which has ended", b.rank);
                fill_box(m, from.data(), b, to, counted(by, barrier_at(b, bar)));
                bytes_came(b, bar, bytes);
            });
        }
    }
    if (mask >> c.blocks.size()) mistake("a copy to blocks %#x of a cluster of %zu", mask, c.blocks.size());
}

void send_bytes(uint32_t to, uint32_t from, uint32_t bytes, uint32_t bar) {
    if (to % 16 || from % 16 || bytes % 16) mistake("%u bytes from %#x to %#x: no multiples of 16", bytes, from, to);
    block &b = block_of(to), &mine = *now->in;
    if (&b != &block_of(bar)) mistake("bytes go to one block, and word of them to another");
    known_barrier(b, bar, true);
    const agent by = copy_agent();
    later([&b, &mine, to, from, bytes, bar, by] {
        if (!b.alive || !mine.alive) mistake("bytes are on their way between blocks of which one has ended");
        const agent who = counted(by, barrier_at(b, bar));
        reads(mine, in_block(from), bytes, who, true);
        writes(b, in_block(to), bytes, who, true);
        memcpy(pointer_in(b, to, bytes), pointer_in(mine, from, bytes), bytes);
        bytes_came(b, bar, bytes);
    });
}

/* ---- copies by threads: in groups, done when they are waited for or before */

void copy_in(void *to, const void *from, int bytes, bool real) {
    if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes)
        mistake("a copy of %d bytes from %p to %p, which are no multiples", bytes, from, to);
    shared_address(to);
    now->copies.push_back({to, real ? from : nullptr, bytes, now->copy_group});
}

static void do_copies(thread &t, int before) {
    size_t n = 0;
    for (; n < t.copies.size() && t.copies[n].group < before; n++) {
        const copy &c = t.copies[n];
        writes(*t.in, shared_address(c.to), static_cast<uint32_t>(c.bytes), t.me, false);
        if (c.from) memcpy(c.to, c.from, static_cast<size_t>(c.bytes));
        else memset(c.to, 0, static_cast<size_t>(c.bytes));
    }
    t.copies.erase(t.copies.begin(), t.copies.begin() + static_cast<ptrdiff_t>(n));
}

void copy_commit() {
    now->copy_group++;
    if (!is_patient()) do_copies(*now, now->copy_group);
}

void copy_wait(int left) { do_copies(*now, now->copy_group - left); }

/* ---- running */

static void check_end(block &b) {
    for (const warp &w : b.warps)
        if (!w.groups.empty() || !w.open.empty()) mistake("a block ends with products that nobody waited for");
}

static void end_of_thread() {
    thread &t = *now;
    warp &w = *t.of;
    block &b = *t.in;
    cluster &c = *b.of;
    if (!t.copies.empty()) mistake("a thread ends with copies that it did not wait for");
    t.over = true;
    w.over |= 1u << t.lane;
    b.alive--, c.alive--;
    if (w.arrived) {
        if (w.meets != SYNC) mistake("ends while the others of its warp are at %s", meeting_names[w.meets]);
        if (w.arrived == (w.there & ~w.over)) {
            open(w.together);
            let_go(w);
        }
    }
    meeting_place &p = b.places[0];
    if (p.arrived && !p.threads && p.arrived == b.alive) open_place(p);
    if (c.arrived && c.arrived == c.alive) open_cluster(c);
    if (!b.alive) check_end(b);
}

static void make_block(block &b, cluster &c, uint32_t rank, dim3 index) {
    const launch &what = *c.of->what;
    const int n = static_cast<int>(what.block.x * what.block.y * what.block.z), n_warps = (n + 31) / 32;
    b.of = &c, b.rank = rank, b.index = index;
    b.memory = new_memory();
    b.cells = new_cells();
    b.first_agent = static_cast<uint32_t>(c.thread_of.size());
    c.thread_of.resize(c.thread_of.size() + static_cast<size_t>(n + n_warps) + MAX_BARRIERS);
    b.objects = FIRST_SHARED;
    b.alive = n;
    b.threads.resize(static_cast<size_t>(n));
    b.warps.resize(static_cast<size_t>(n_warps));
    /* as many as a block of that size can have, when it has the multiprocessor for itself */
    const int most = std::min(255, 65536 / (n_warps * 32) / 8 * 8);
    for (int i = 0; i < n; i++) {
        thread &t = b.threads[static_cast<size_t>(i)];
        warp &w = b.warps[static_cast<size_t>(i / 32)];
        const unsigned u = static_cast<unsigned>(i);
        t.index = {u % what.block.x, u / what.block.x % what.block.y, u / what.block.x / what.block.y};
        t.in = &b, t.of = &w, t.lane = i % 32;
        t.runs = new_fiber();
        t.me.number = b.first_agent + u, t.me.epoch = 1;
        c.thread_of[t.me.number] = &t;
        w.in = &b, w.lanes[t.lane] = &t;
        w.there |= 1u << t.lane;
        w.registers = most;
        wake(&t);
    }
    for (int i = 0; i < n_warps; i++) {
        b.warps[static_cast<size_t>(i)].elected = static_cast<int>(chance(32));
        b.warps[static_cast<size_t>(i)].matrix_agent = b.first_agent + static_cast<uint32_t>(n + i);
    }
}

static void say_wait(FILE *to, const thread *t) {
    fprintf(to, "%s", wait_names[t->waits]);
    if (t->waits == BLOCK) fprintf(to, " %u", t->waits_for);
    if (t->waits == BARRIER) fprintf(to, " at %#x, parity %u", t->waits_for, t->waits_parity);
    if (t->waits == WARP) fprintf(to, " at %s", meeting_names[t->waits_for]);
}

static bool waits_alike(const thread *a, const thread *b) {
    return !b->over && a->waits == b->waits && a->waits_for == b->waits_for && a->waits_parity == b->waits_parity;
}

static void report_deadlock(const cluster &c) {
    snprintf(last, sizeof last, "nobody can go on:");
    fprintf(stderr, "simulator: %s\n", last);
    for (const block &b : c.blocks)
        for (size_t i = 0; i < b.threads.size();) {
            const thread *t = &b.threads[i];
            size_t n = 1;
            while (i + n < b.threads.size() && (i + n) % 32 && waits_alike(t, &b.threads[i + n])) n++;
            i += n;
            if (t->over) continue;
            fprintf(stderr, "  ");
            say_where(stderr, t);
            if (n > 1) fprintf(stderr, " to %d", t->lane + static_cast<int>(n) - 1);
            fprintf(stderr, ": waits for ");
            say_wait(stderr, t);
            fprintf(stderr, "\n");
        }
}

static void do_one(std::vector<std::function<void()>> &list) {
    const size_t i = chance(static_cast<uint32_t>(list.size()));
    std::function<void()> what = std::move(list[i]);
    list[i] = std::move(list.back());
    list.pop_back();
    what();
}

/* What a thread does next, or a copy, or the launch before. False: nobody can. */
static bool go_on(cluster &c) {
    grid &g = *c.of;
    if (!c.under_way.empty() && (c.ready.empty() || static_cast<int>(chance(256)) >= 16 * g.patience)) {
        do_one(c.under_way);
        return true;
    }
    if (!c.ready.empty()) {
        const size_t i = chance(static_cast<uint32_t>(c.ready.size()));
        warp *w = c.ready[i];
        c.ready[i] = c.ready.back();
        c.ready.pop_back();
        do {
            const uint32_t lanes = w->ready;
            w->ready = 0;
            for (uint32_t left = lanes; left; left &= left - 1) enter_fiber(w->lanes[__builtin_ctz(left)]);
        } while (w->ready && chance(4));
        w->listed = w->ready != 0;
        if (w->listed) c.ready.push_back(w);
        return true;
    }
    if (g.before) {
        const launch *before = g.before;
        g.before = nullptr;
        if (!run(*before, nullptr)) mistake("the launch before failed");
        wake_all(c.wait_for_launch);
        return true;
    }
    return false;
}

static bool run_cluster(grid &g, dim3 first) {
    const launch &what = *g.what;
    cluster c = {};
    scheduler mine = {};
    c.of = &g;
    c.blocks.resize(what.cluster.x * what.cluster.y * what.cluster.z);
    for (uint32_t i = 0; i < c.blocks.size(); i++)
        make_block(c.blocks[i], c, i,
                   dim3(first.x + i % what.cluster.x, first.y + i / what.cluster.x % what.cluster.y,
                        first.z + i / what.cluster.x / what.cluster.y));
    for (const block &b : c.blocks) c.alive += b.alive;
    mine.outer = schedules;
    schedules = &mine;
    bool fine = !_setjmp(mine.failed);
    now = nullptr;
    if (fine) {
        while (c.alive || !c.under_way.empty())
            if (!go_on(c)) {
                report_deadlock(c);
                fine = false;
                break;
            }
    }
    schedules = mine.outer;
    for (block &b : c.blocks) {
        for (thread &t : b.threads)
            if (t.over) free_fibers.push_back(t.runs); /* others are lost in the middle of something */
        free_memories.push_back(b.memory);
        free_cells(b.cells);
    }
    return fine;
}

bool run(const launch &what, const launch *before) {
    static const int patiences[] = {0, 12, 16, 16};
    catch_faults();
    grid g = {&what, before, patiences[chance(4)]};
    const uint32_t nx = what.grid.x / what.cluster.x, ny = what.grid.y / what.cluster.y,
                   nz = what.grid.z / what.cluster.z;
    std::vector<uint32_t> order(static_cast<size_t>(nx) * ny * nz);
    for (uint32_t i = 0; i < order.size(); i++) order[i] = i;
    for (uint32_t i = static_cast<uint32_t>(order.size()); i > 1; i--) std::swap(order[i - 1], order[chance(i)]);
    for (uint32_t i : order)
        if (!run_cluster(g, dim3(i % nx * what.cluster.x, i / nx % ny * what.cluster.y, i / nx / ny * what.cluster.z)))
            return false;
    return !g.before || run(*g.before, nullptr);
}

} // namespace sim
