/* SPDX-License-Identifier: MIT
 * Races in shared memory, by what each agent can know of the others' accesses (vector clocks, as FastTrack has them:
 * Flanagan and Freund, 2009): two accesses of which one writes must be ordered by barriers, whatever order they came in
 * here. Knowledge is shared by all who know the same, so that a barrier of 512 threads costs one vector.
 *
 * Kernels are compiled with -fsanitize=thread, whose calls before each access end here and not in its own runtime. */
#include "simulator.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace sim {

bool finds_races() {
    static const char *const value = getenv("SIMULATOR_RACES");
    static const bool finds = !value || strcmp(value, "0") != 0;
    return finds;
}

/* ---- knowledge */

static void add(std::vector<uint32_t> &to, const std::vector<uint32_t> &more) {
    for (size_t i = 0; i < to.size(); i++) to[i] = std::max(to[i], more[i]);
}

bool knows_of(const agent &who, uint32_t of, uint32_t epoch) {
    return of == who.number || (who.knows && (*who.knows)[of] >= epoch);
}

void arrive(sync_point &s, thread &t) {
    agent &who = t.me;
    if (!finds_races()) return;
    if (s.gathered.empty()) s.gathered.resize(t.in->of->thread_of.size());
    if (who.knows && who.knows != s.last) {
        add(s.gathered, *who.knows);
        s.last = who.knows;
    }
    s.gathered[who.number] = who.epoch++;
}

void open(sync_point &s) {
    if (!finds_races()) return;
    s.known = std::make_shared<const std::vector<uint32_t>>(std::move(s.gathered));
    s.gathered.clear();
    s.last.reset(), s.learner.reset(), s.learned.reset();
}

void learn(sync_point &s, agent &who) {
    if (!s.known || who.knows == s.known) return;
    if (!who.knows) {
        who.knows = s.known;
    } else if (who.knows == s.learner) {
        who.knows = s.learned;
    } else {
        std::vector<uint32_t> all = *who.knows;
        add(all, *s.known);
        s.learner = who.knows;
        s.learned = all == *s.known ? s.known : std::make_shared<const std::vector<uint32_t>>(std::move(all));
        who.knows = s.learned;
    }
}

knowledge known_to(thread *const *who, int n) {
    sync_point s;
    if (!finds_races()) return nullptr;
    for (int i = 0; i < n; i++) arrive(s, *who[i]);
    open(s);
    return s.known;
}

void learn_of(thread &t, uint32_t of, uint32_t epoch, knowledge memo[2]) {
    agent &who = t.me;
    if (!finds_races()) return;
    if (!memo[1] || who.knows != memo[0]) {
        std::vector<uint32_t> all = who.knows ? *who.knows : std::vector<uint32_t>(t.in->of->thread_of.size());
        all[of] = std::max(all[of], epoch);
        memo[0] = who.knows;
        memo[1] = std::make_shared<const std::vector<uint32_t>>(std::move(all));
    }
    who.knows = memo[1];
}

/* ---- 4 bytes of shared memory: who wrote last, and who has read since */

struct access {
    uint32_t number, epoch; /* 0: none */
    bool rows;              /* rows_are_there */
};
struct cell {
    access write, read;
    std::vector<access> *others; /* more reads, none of which knows of another */
    bool engine;                 /* wrote */
};

static std::vector<cell *> free_lists;
enum : uint32_t { CELLS = END_SHARED / 4 };

cell *new_cells() {
    if (!finds_races()) return nullptr;
    if (free_lists.empty()) return static_cast<cell *>(calloc(CELLS, sizeof(cell)));
    cell *cells = free_lists.back();
    free_lists.pop_back();
    return cells;
}

void free_cells(cell *cells) {
    if (!cells) return;
    for (uint32_t i = 0; i < CELLS; i++) delete cells[i].others;
    memset(cells, 0, CELLS * sizeof *cells);
    free_lists.push_back(cells);
}

static void name(char *text, size_t n, const cluster &c, uint32_t number) {
    for (const block &b : c.blocks) {
        uint32_t i = number - b.first_agent;
        const uint32_t threads = static_cast<uint32_t>(b.threads.size()), warps = static_cast<uint32_t>(b.warps.size());
        if (number < b.first_agent || i >= threads + warps + MAX_BARRIERS) continue;
        if (i < threads) snprintf(text, n, "block %u warp %u lane %u", b.rank, i / 32, i % 32);
        else if ((i -= threads) < warps) snprintf(text, n, "a product of block %u warp %u", b.rank, i);
        else snprintf(text, n, "a copy for the barrier at %#x of block %u", b.barriers[i - warps].address, b.rank);
        return;
    }
    snprintf(text, n, "nobody");
}

[[noreturn]] static void race(const block &b, uint32_t address, const char *mine, const agent &who, const char *his,
                              uint32_t other) {
    char me[64], he[64];
    name(me, sizeof me, *b.of, who.number);
    name(he, sizeof he, *b.of, other);
    mistake("race at %#x of shared memory of block %u: %s by %s, %s by %s", address, b.rank, mine, me, his, he);
}

/* A thread's write is there for the engines after a fence that the thread made before others could know of it. */
static bool was_told(const cluster &c, const access &write, const agent &who) {
    const thread *t = c.thread_of[write.number];
    if (!t) return true;
    for (uint32_t fence : t->fences)
        if (fence > write.epoch && knows_of(who, write.number, fence)) return true;
    return false;
}

/* In place of a read that is known, or beside those that are not. */
static void add_read(cell &c, const agent &who, bool rows) {
    const access mine = {who.number, who.epoch, rows};
    if (!c.read.epoch || knows_of(who, c.read.number, c.read.epoch)) {
        c.read = mine;
        return;
    }
    if (!c.others) c.others = new std::vector<access>();
    for (access &other : *c.others) {
        if (!knows_of(who, other.number, other.epoch)) continue;
        other = mine;
        return;
    }
    c.others->push_back(mine);
}

/* How what is there was written, if one that reads it cannot know of it; else NULL. */
static const char *unknown_write(const block &b, const cell &c, const agent &who, bool engine) {
    if (!c.write.epoch) return nullptr;
    if (!knows_of(who, c.write.number, c.write.epoch)) return "written";
    return engine && !c.engine && !was_told(*b.of, c.write, who) ? "written without a fence" : nullptr;
}

void reads(block &b, uint32_t address, uint32_t bytes, const agent &who, bool engine) {
    if (!b.cells) return;
    for (uint32_t i = address / 4; i < (address + bytes + 3) / 4; i++) {
        cell &c = b.cells[i];
        if (const char *how = unknown_write(b, c, who, engine)) race(b, i * 4, "read", who, how, c.write.number);
        add_read(c, who, false);
    }
}

bool rows_are_there(block &b, uint32_t address, uint32_t bytes, const agent &who) {
    if (!b.cells) return true;
    for (uint32_t i = address / 4; i < (address + bytes) / 4; i++) {
        cell &c = b.cells[i];
        if (unknown_write(b, c, who, true)) return false;
        add_read(c, who, true);
    }
    return true;
}

void writes(block &b, uint32_t address, uint32_t bytes, const agent &who, bool engine) {
    if (!b.cells) return;
    for (uint32_t i = address / 4; i < (address + bytes + 3) / 4; i++) {
        cell &c = b.cells[i];
        auto after = [&](const access &read) {
            if (read.epoch && !(engine && read.rows) && !knows_of(who, read.number, read.epoch))
                race(b, i * 4, "written", who, "read", read.number);
        };
        if (const char *how = unknown_write(b, c, who, false)) race(b, i * 4, "written", who, how, c.write.number);
        after(c.read);
        if (c.others) {
            for (const access &other : *c.others) after(other);
            c.others->clear();
        }
        c.read = {0, 0, false};
        c.write = {who.number, who.epoch, false};
        c.engine = engine;
    }
}

/* ---- what the compiler calls */

static inline void touches(const void *p, uint32_t bytes, bool write) {
    if (!now || !now->in->cells) return;
    const unsigned char *at = static_cast<const unsigned char *>(p);
    for (block &b : now->in->of->blocks) {
        if (at < b.memory || at >= b.memory + END_SHARED) continue;
        const uint32_t address = static_cast<uint32_t>(at - b.memory);
        if (write) writes(b, address, bytes, now->me, false);
        else reads(b, address, bytes, now->me, false);
        return;
    }
}

} // namespace sim

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
#define ACCESS(bytes)                                                                                                  \
    void __tsan_read##bytes(void *p) { sim::touches(p, bytes, false); }                                                \
    void __tsan_write##bytes(void *p) { sim::touches(p, bytes, true); }                                                \
    void __tsan_unaligned_read##bytes(void *p) { sim::touches(p, bytes, false); }                                      \
    void __tsan_unaligned_write##bytes(void *p) { sim::touches(p, bytes, true); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void *p, unsigned long n) { sim::touches(p, static_cast<uint32_t>(n), false); }
void __tsan_write_range(void *p, unsigned long n) { sim::touches(p, static_cast<uint32_t>(n), true); }
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
}
