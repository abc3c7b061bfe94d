/* SPDX-License-Identifier: MIT */
#include "text/unicode.h"

/* Hangul syllables are composed by arithmetic, not by table. */
enum {
    S_BASE = 0xAC00,
    L_BASE = 0x1100,
    V_BASE = 0x1161,
    T_BASE = 0x11A7,
    L_COUNT = 19,
    V_COUNT = 21,
    T_COUNT = 28,
    N_COUNT = V_COUNT * T_COUNT,
    S_COUNT = L_COUNT * N_COUNT
};

bool lw_utf8_next(const char *text, size_t n, size_t *at, uint32_t *code) {
    const uint8_t *p = (const uint8_t *)text + *at;
    size_t left = n - *at, more = 0;
    uint32_t c = p[0], least = 0;
    if (c < 0x80) more = 0;
    else if (c >= 0xC2 && c < 0xE0) more = 1, c &= 0x1F, least = 0x80;
    else if (c >= 0xE0 && c < 0xF0) more = 2, c &= 0x0F, least = 0x800;
    else if (c >= 0xF0 && c < 0xF5) more = 3, c &= 0x07, least = 0x10000;
    else return false;
    if (more >= left) return false;
    for (size_t i = 1; i <= more; i++) {
        if ((p[i] & 0xC0) != 0x80) return false;
        c = c << 6 | (p[i] & 0x3F);
    }
    if (c < least || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) return false;
    *at += more + 1;
    *code = c;
    return true;
}

size_t lw_utf8_put(uint32_t code, uint8_t out[4]) {
    if (code < 0x80) {
        out[0] = (uint8_t)code;
        return 1;
    }
    size_t n = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = n; i-- > 1; code >>= 6) out[i] = (uint8_t)(0x80 | (code & 0x3F));
    out[0] = (uint8_t)((0xF00 >> n) | code); /* 110xxxxx, 1110xxxx, 11110xxx */
    return n;
}

static uint8_t find_range(const lw_unicode_range *table, size_t n, uint32_t code) {
    size_t low = 0, high = n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (table[mid].last < code) low = mid + 1;
        else high = mid;
    }
    return low < n && table[low].first <= code ? table[low].value : 0;
}

bool lw_unicode_space(uint32_t c) {
    if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13);
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
           c == 0x202F || c == 0x205F || c == 0x3000;
}

lw_char_class lw_unicode_class(uint32_t code) {
    if (lw_unicode_space(code)) return LW_CHAR_SPACE;
    return (lw_char_class)find_range(lw_unicode_classes, lw_unicode_classes_n, code);
}

size_t lw_unicode_lower(uint32_t code, uint32_t out[2]) {
    size_t low = 0, high = lw_unicode_lower_runs_n;
    out[0] = code;
    if (code == 0x130) { /* the only lower case of two characters: i and a combining dot */
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (lw_unicode_lower_runs[mid].last < code) low = mid + 1;
        else high = mid;
    }
    if (low < lw_unicode_lower_runs_n) {
        const lw_unicode_lower_run *r = &lw_unicode_lower_runs[low];
        if (code >= r->first && (code - r->first) % (uint32_t)r->step == 0) out[0] = code + (uint32_t)r->delta;
    }
    return 1;
}

/* ---- NFC: decompose, order the marks, compose */

typedef struct piece {
    lw_char c;
    uint32_t mark;  /* combining class */
    uint32_t order; /* makes the sort stable */
} piece;

typedef struct pieces {
    piece *items;
    size_t n, room;
} pieces;

static bool push(pieces *p, uint32_t code, uint32_t at) {
    if (p->n == p->room) {
        size_t room = p->room + p->room / 2 + 64;
        piece *grown = lw_realloc(p->items, room, sizeof *grown);
        if (!grown) return false;
        p->items = grown;
        p->room = room;
    }
    uint32_t mark = code < 0x300 ? 0 : find_range(lw_unicode_combining, lw_unicode_combining_n, code);
    p->items[p->n] = (piece){{code, at}, mark, (uint32_t)p->n};
    p->n++;
    return true;
}

/* The table's depth is at most 4 (checked by the tests), so is the recursion's. */
static bool push_decomposed(pieces *p, uint32_t code, uint32_t at) {
    if (code < 0xC0) return push(p, code, at);
    if (code >= S_BASE && code < S_BASE + S_COUNT) {
        uint32_t s = code - S_BASE, t = s % T_COUNT;
        return push(p, L_BASE + s / N_COUNT, at) && push(p, V_BASE + s % N_COUNT / T_COUNT, at) &&
               (t == 0 || push(p, T_BASE + t, at));
    }
    size_t low = 0, high = lw_unicode_decompositions_n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (lw_unicode_decompositions[mid].code < code) low = mid + 1;
        else high = mid;
    }
    const lw_unicode_decomposition *d = &lw_unicode_decompositions[low];
    if (low == lw_unicode_decompositions_n || d->code != code) return push(p, code, at);
    return push_decomposed(p, d->first, at) && (d->second == 0 || push_decomposed(p, d->second, at));
}

static int by_mark(const void *a, const void *b) {
    const piece *x = a, *y = b;
    if (x->mark != y->mark) return x->mark < y->mark ? -1 : 1;
    return x->order < y->order ? -1 : 1;
}

static void order_marks(piece *p, size_t n) {
    for (size_t i = 0; i < n;) {
        size_t end = i + 1;
        if (p[i].mark != 0) {
            while (end < n && p[end].mark != 0) end++;
            if (end - i > 1) qsort(p + i, end - i, sizeof *p, by_mark); /* not n^2: a text may be all marks */
        }
        i = end;
    }
}

/* The character that a pair composes to, or 0. */
static uint32_t compose(uint32_t a, uint32_t b) {
    if (a >= L_BASE && a < L_BASE + L_COUNT && b >= V_BASE && b < V_BASE + V_COUNT)
        return S_BASE + ((a - L_BASE) * V_COUNT + (b - V_BASE)) * T_COUNT;
    if (a >= S_BASE && a < S_BASE + S_COUNT && (a - S_BASE) % T_COUNT == 0 && b > T_BASE && b < T_BASE + T_COUNT)
        return a + (b - T_BASE);
    size_t low = 0, high = lw_unicode_compositions_n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        const lw_unicode_decomposition *d = &lw_unicode_decompositions[lw_unicode_compositions[mid]];
        if (d->first == a && d->second == b) return d->code;
        if (d->first < a || (d->first == a && d->second < b)) low = mid + 1;
        else high = mid;
    }
    return 0;
}

/* In place; the number of characters that are left. */
static size_t compose_all(piece *p, size_t n) {
    size_t out = 0, starter = 0;
    bool has_starter = false;
    for (size_t i = 0; i < n; i++) {
        /* Blocked: something stands between the starter and this one that is not a mark of a lower class. */
        bool next_to = has_starter && out == starter + 1;
        bool free_mark = has_starter && out > starter + 1 && p[out - 1].mark != 0 && p[out - 1].mark < p[i].mark;
        uint32_t c = next_to || free_mark ? compose(p[starter].c.code, p[i].c.code) : 0;
        if (c) {
            p[starter].c.code = c;
            continue;
        }
        p[out] = p[i];
        if (p[out].mark == 0) starter = out, has_starter = true;
        out++;
    }
    return out;
}

lw_status lw_unicode_nfc(const char *text, size_t n, lw_char **out, size_t *n_out, lw_error *err) {
    pieces p = {0};
    *out = NULL;
    *n_out = 0;
    for (size_t at = 0; at < n;) {
        uint32_t code, begin = (uint32_t)at;
        if (!lw_utf8_next(text, n, &at, &code)) {
            lw_free(p.items);
            return lw_fail(err, LW_EINPUT, "the text is not UTF-8 at byte %zu of %zu (0x%02X)", at, n,
                           (unsigned)(uint8_t)text[at]);
        }
        if (!push_decomposed(&p, code, begin)) {
            lw_free(p.items);
            return lw_fail(err, LW_ENOMEM, "no memory for a text of %zu bytes", n);
        }
    }
    order_marks(p.items, p.n);
    p.n = compose_all(p.items, p.n);
    lw_char *chars = lw_alloc(p.n, sizeof *chars);
    for (size_t i = 0; chars && i < p.n; i++) chars[i] = p.items[i].c;
    lw_free(p.items);
    if (!chars) return lw_fail(err, LW_ENOMEM, "no memory for a text of %zu bytes", n);
    *out = chars;
    *n_out = p.n;
    return LW_OK;
}
