/* SPDX-License-Identifier: MIT
 * CLIP's byte-level BPE, as transformers 5's CLIPTokenizer does it: NFC, white space to one space, lower case per
 * character, words by class, then merges by rank inside each word.
 *
 * Ids: 256 bytes, 256 bytes at a word's end, the merges in file order, start, end. A byte is spelled in the file by a
 * printable character; a token at a word's end has "</w>" after it. */
#include "text/bpe.h"
#include "text/unicode.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef LW_HAVE_ZLIB
#include <zlib.h>
#endif

enum {
    N_BYTES = 512,            /* ids before the first merge */
    MAX_MERGES = 48894,       /* CLIP's */
    FILE_CAP = 16 << 20,      /* of the text; CLIP's is 3.2 MB */
    TEXT_CAP = 1 << 20,       /* of what is tokenized */
    LINE_CAP = 4096,          /* bytes of a merge */
    N_INNER = LW_N_TOKENS - 2 /* tokens between start and end */
};

typedef struct spelling { /* a token as the file writes it */
    const char *text;
    uint32_t n;
} spelling;

typedef struct merge {
    int32_t left, right; /* ids; -1: an empty slot */
    int32_t rank, id;
} merge;

struct lw_tokenizer {
    int32_t n_merges;
    uint32_t mask;          /* slots of merges - 1, a power of two */
    merge *merges;          /* open addressing by (left, right) */
    uint16_t byte_ids[256]; /* the id of a byte that does not end its word; + 256 where it does */
};

/* ---- the alphabet: printable bytes stand for themselves, the others for U+0100 and on, in byte order */

static bool printable(int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; }

static void make_alphabet(uint32_t characters[256], uint16_t ids[256]) {
    int next = 0, id = 0;
    for (int b = 0; b < 256; b++) characters[b] = printable(b) ? (uint32_t)b : 256u + (uint32_t)next++;
    for (int b = 0; b < 256; b++)
        if (printable(b)) ids[b] = (uint16_t)id++;
    for (int b = 0; b < 256; b++)
        if (!printable(b)) ids[b] = (uint16_t)id++;
}

/* ---- opening */

/* What is needed only while a vocabulary is opened. */
typedef struct builder {
    const char *file;
    spelling *tokens; /* by id */
    int32_t n_tokens;
    int32_t *slots; /* spelling -> id, open addressing; -1 empty */
    uint32_t mask;
    lw_arena *arena;
} builder;

static uint32_t hash_text(const char *s, uint32_t n) {
    uint32_t h = 2166136261u;
    for (uint32_t i = 0; i < n; i++) h = (h ^ (uint8_t)s[i]) * 16777619u;
    return h ^ h >> 15;
}

/* The slot of a spelling: its id is there, or it is empty. */
static int32_t *token_slot(builder *b, spelling s) {
    for (uint32_t i = hash_text(s.text, s.n);; i++) {
        int32_t *slot = &b->slots[i & b->mask];
        if (*slot < 0) return slot;
        const spelling *t = &b->tokens[*slot];
        if (t->n == s.n && memcmp(t->text, s.text, s.n) == 0) return slot;
    }
}

/* A spelling that two merges make belongs to the later one, as in the reference's dictionary. */
static void add_token(builder *b, int32_t id, spelling s) {
    b->tokens[id] = s;
    *token_slot(b, s) = id;
    b->n_tokens = id + 1;
}

static lw_status add_alphabet(builder *b, const lw_tokenizer *t, const uint32_t characters[256], lw_error *err) {
    for (int i = 0; i < 256; i++) {
        for (int end = 0; end < 2; end++) {
            char *text = lw_arena_alloc(b->arena, 8, 1);
            if (!text) return lw_fail(err, LW_ENOMEM, "%s: no memory for its tokens", b->file);
            size_t n = lw_utf8_put(characters[i], (uint8_t *)text);
            if (end) memcpy(text + n, "</w>", 4), n += 4;
            add_token(b, t->byte_ids[i] + end * 256, (spelling){text, (uint32_t)n});
        }
    }
    return LW_OK;
}

/* Splits "left right" at its only space. */
static bool split_line(const char *line, size_t n, spelling *left, spelling *right) {
    const char *space = memchr(line, ' ', n);
    if (!space || space == line || n > LINE_CAP) return false;
    size_t first = (size_t)(space - line);
    if (first + 1 >= n || memchr(space + 1, ' ', n - first - 1)) return false;
    *left = (spelling){line, (uint32_t)first};
    *right = (spelling){space + 1, (uint32_t)(n - first - 1)};
    return true;
}

static merge *merge_slot(const lw_tokenizer *t, int32_t left, int32_t right) {
    uint32_t h = (uint32_t)left * 0x9E3779B1u ^ (uint32_t)right * 0x85EBCA77u;
    for (uint32_t i = h ^ h >> 15;; i++) {
        merge *m = &t->merges[i & t->mask];
        if (m->left < 0 || (m->left == left && m->right == right)) return m;
    }
}

/* Line `number` (from 1 after the header) of the text from *at; false at its end. */
static bool next_line(const char *text, size_t n, size_t *at, const char **line, size_t *length) {
    if (*at >= n) return false;
    const char *begin = text + *at, *newline = memchr(begin, '\n', n - *at);
    *length = newline ? (size_t)(newline - begin) : n - *at;
    *at += *length + (newline ? 1 : 0);
    if (*length > 0 && begin[*length - 1] == '\r') --*length;
    *line = begin;
    return true;
}

static lw_status read_merges(lw_tokenizer *t, builder *b, const char *text, size_t n, size_t first, lw_error *err) {
    const char *line;
    size_t length, at = first;
    spelling left, right;
    for (int32_t i = 0; i < t->n_merges; i++) {
        if (!next_line(text, n, &at, &line, &length) || !split_line(line, length, &left, &right))
            return lw_fail(err, LW_EMODEL, "%s: line %d is not two tokens with a space between", b->file, i + 2);
        char *joined = lw_arena_alloc(b->arena, (size_t)left.n + right.n, 1);
        if (!joined) return lw_fail(err, LW_ENOMEM, "%s: no memory for its tokens", b->file);
        memcpy(joined, left.text, left.n);
        memcpy(joined + left.n, right.text, right.n);
        add_token(b, N_BYTES + i, (spelling){joined, left.n + right.n});
    }
    at = first;
    for (int32_t i = 0; i < t->n_merges; i++) {
        next_line(text, n, &at, &line, &length);
        split_line(line, length, &left, &right);
        int32_t a = *token_slot(b, left), c = *token_slot(b, right);
        if (a < 0 || c < 0)
            return lw_fail(err, LW_EMODEL, "%s: line %d merges %.*s, which is no token", b->file, i + 2,
                           (int)(a < 0 ? left.n : right.n), a < 0 ? left.text : right.text);
        char joined[2 * LINE_CAP];
        memcpy(joined, left.text, left.n);
        memcpy(joined + left.n, right.text, right.n);
        *merge_slot(t, a, c) = (merge){a, c, i, *token_slot(b, (spelling){joined, left.n + right.n})};
    }
    return LW_OK;
}

static lw_status count_merges(lw_tokenizer *t, const char *file, const char *text, size_t n, size_t first,
                              int32_t n_vocab, lw_error *err) {
    const char *line;
    size_t length, at = first, lines = 0;
    while (next_line(text, n, &at, &line, &length) && length > 0) lines++;
    if (n_vocab == 0) {
        if (lines == 0) return lw_fail(err, LW_EMODEL, "%s: is no vocabulary: no merge follows its first line", file);
        t->n_merges = lines < MAX_MERGES ? (int32_t)lines : MAX_MERGES;
        return LW_OK;
    }
    t->n_merges = n_vocab - N_BYTES - 2;
    if (n_vocab < N_BYTES + 2)
        return lw_fail(err, LW_EMODEL, "%s: a vocabulary of %d is wanted, the least is %d", file, n_vocab, N_BYTES + 2);
    if (lines < (size_t)t->n_merges)
        return lw_fail(err, LW_EMODEL, "%s: %zu merges, but a token embedding of %d rows needs %d", file, lines,
                       n_vocab, t->n_merges);
    return LW_OK;
}

static uint32_t power_of_two(uint32_t at_least) {
    uint32_t p = 16;
    while (p < at_least) p *= 2;
    return p;
}

static lw_status open_text(lw_tokenizer **out, const char *text, size_t n, const char *name, int32_t n_vocab,
                           lw_error *err) {
    lw_status status = LW_OK;
    uint32_t characters[256];
    builder b = {.file = name, .arena = lw_arena_new()};
    lw_tokenizer *t = lw_alloc(1, sizeof *t);
    const char *header = memchr(text, '\n', n);
    size_t first = header ? (size_t)(header - text) + 1 : n;
    if (!b.arena || !t) {
        status = lw_fail(err, LW_ENOMEM, "%s: no memory to open it", name);
        goto out;
    }
    LW_GO(count_merges(t, name, text, n, first, n_vocab, err));
    uint32_t n_tokens = N_BYTES + (uint32_t)t->n_merges, slots = power_of_two(n_tokens * 2);
    t->mask = power_of_two((uint32_t)t->n_merges * 2) - 1;
    b.mask = slots - 1;
    t->merges = lw_alloc(t->mask + 1, sizeof *t->merges);
    b.tokens = lw_alloc(n_tokens, sizeof *b.tokens);
    b.slots = lw_alloc(slots, sizeof *b.slots);
    if (!t->merges || !b.tokens || !b.slots) {
        status = lw_fail(err, LW_ENOMEM, "%s: no memory for %d merges", name, t->n_merges);
        goto out;
    }
    for (uint32_t i = 0; i <= t->mask; i++) t->merges[i].left = -1;
    for (uint32_t i = 0; i < slots; i++) b.slots[i] = -1;
    make_alphabet(characters, t->byte_ids);
    LW_GO(add_alphabet(&b, t, characters, err));
    LW_GO(read_merges(t, &b, text, n, first, err));
    *out = t;
    t = NULL;
out:
    lw_tokenizer_close(&t);
    lw_free(b.tokens);
    lw_free(b.slots);
    lw_arena_free(b.arena);
    return status;
}

#ifdef LW_HAVE_ZLIB
static lw_status unpack(const uint8_t *bytes, size_t n, const char *name, char **text, size_t *n_text, lw_error *err) {
    lw_status status = LW_OK;
    size_t room = 0;
    z_stream z = {.next_in = (z_const Bytef *)(uintptr_t)bytes, .avail_in = (uInt)n};
    if (inflateInit2(&z, 15 + 16) != Z_OK) return lw_fail(err, LW_ENOMEM, "%s: no memory to unpack it", name);
    for (int r = Z_OK; r != Z_STREAM_END;) {
        if (z.total_out == FILE_CAP) {
            status = lw_fail(err, LW_EMODEL, "%s: unpacks to more than %d bytes", name, FILE_CAP);
            break;
        }
        if (z.total_out == room) {
            room = room ? room * 2 : 256 * 1024;
            char *grown = lw_realloc(*text, room, 1);
            if (!grown) {
                status = lw_fail(err, LW_ENOMEM, "%s: no memory to unpack it", name);
                break;
            }
            *text = grown;
        }
        z.next_out = (Bytef *)*text + z.total_out;
        z.avail_out = (uInt)(room - z.total_out);
        r = inflate(&z, Z_NO_FLUSH);
        if (r != Z_OK && r != Z_STREAM_END) {
            status = lw_fail(err, LW_EMODEL, "%s: damaged at byte %lu of its %zu: %s", name, z.total_in, n,
                             z.msg ? z.msg : "it ends too early");
            break;
        }
    }
    *n_text = z.total_out;
    inflateEnd(&z);
    return status;
}
#endif

lw_status lw_tokenizer_open_memory(lw_tokenizer **out, const void *bytes, size_t n_bytes, const char *name,
                                   int32_t n_vocab, lw_error *err) {
    const uint8_t *b = bytes;
    *out = NULL;
    if (n_bytes > FILE_CAP)
        return lw_fail(err, LW_EMODEL, "%s: %zu bytes, at most %d are read", name, n_bytes, FILE_CAP);
    if (n_bytes < 2 || b[0] != 0x1f || b[1] != 0x8b) return open_text(out, bytes, n_bytes, name, n_vocab, err);
#ifdef LW_HAVE_ZLIB
    char *text = NULL;
    size_t n_text = 0;
    lw_status status = unpack(b, n_bytes, name, &text, &n_text, err);
    if (status == LW_OK) status = open_text(out, text, n_text, name, n_vocab, err);
    lw_free(text);
    return status;
#else
    return lw_fail(err, LW_EMODEL, "%s: is compressed, and this build has no zlib: unpack it with gunzip first", name);
#endif
}

lw_status lw_tokenizer_open(lw_tokenizer **out, const char *path, int32_t n_vocab, lw_error *err) {
    *out = NULL;
    lw_status status = LW_OK;
    uint8_t *bytes = NULL;
    struct stat st;
    int fd = lw_fault_hit() ? -1 : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        if (fd >= 0) close(fd);
        return lw_fail(err, LW_EMODEL, "%s: vocabulary can't be opened%s", path, fd >= 0 ? ": not a regular file" : "");
    }
    size_t n = (size_t)st.st_size, got = 0;
    if (n > FILE_CAP) {
        status = lw_fail(err, LW_EMODEL, "%s: %zu bytes, at most %d are read", path, n, FILE_CAP);
        goto out;
    }
    bytes = lw_alloc(n, 1);
    if (!bytes) {
        status = lw_fail(err, LW_ENOMEM, "%s: no memory for its %zu bytes", path, n);
        goto out;
    }
    while (got < n) {
        ssize_t r = lw_fault_hit() ? -1 : pread(fd, bytes + got, n - got, (off_t)got);
        if (r <= 0) {
            status = lw_fail(err, LW_EMODEL, "%s: can't be read after %zu of %zu bytes", path, got, n);
            goto out;
        }
        got += (size_t)r;
    }
    status = lw_tokenizer_open_memory(out, bytes, n, path, n_vocab, err);
out:
    lw_free(bytes);
    close(fd);
    return status;
}

void lw_tokenizer_close(lw_tokenizer **tokenizer) {
    lw_tokenizer *t = *tokenizer;
    *tokenizer = NULL;
    if (!t) return;
    lw_free(t->merges);
    lw_free(t);
}

int32_t lw_tokenizer_n_vocab(const lw_tokenizer *tokenizer) { return tokenizer->n_merges + N_BYTES + 2; }

/* ---- tokenizing */

typedef struct symbol {
    int32_t id;            /* -1: merged into the one before */
    int32_t before, after; /* neighbours, or -1 */
    uint32_t at;           /* byte of the original text */
} symbol;

typedef struct candidate { /* a pair that may be merged */
    int32_t rank, first, id;
} candidate;

/* One text on its way to ids. */
typedef struct run {
    const lw_tokenizer *t;
    symbol *symbols; /* of one word */
    candidate *heap; /* the least rank first, then the leftmost */
    size_t n_symbols, n_heap, room;
    int32_t ids[N_INNER];
    size_t n_ids;
    bool full;       /* a token did not fit; */
    uint32_t cut_at; /* the text from here on is cut */
} run;

static bool comes_before(candidate a, candidate b) { return a.rank != b.rank ? a.rank < b.rank : a.first < b.first; }

static void heap_push(run *r, candidate c) {
    size_t i = r->n_heap++;
    while (i > 0 && comes_before(c, r->heap[(i - 1) / 2])) r->heap[i] = r->heap[(i - 1) / 2], i = (i - 1) / 2;
    r->heap[i] = c;
}

static candidate heap_pop(run *r) {
    candidate top = r->heap[0], last = r->heap[--r->n_heap];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < r->n_heap) {
        if (child + 1 < r->n_heap && comes_before(r->heap[child + 1], r->heap[child])) child++;
        if (!comes_before(r->heap[child], last)) break;
        r->heap[i] = r->heap[child];
        i = child;
    }
    r->heap[i] = last;
    return top;
}

static void consider(run *r, int32_t first) {
    int32_t second = first < 0 ? -1 : r->symbols[first].after;
    if (second < 0) return;
    const merge *m = merge_slot(r->t, r->symbols[first].id, r->symbols[second].id);
    if (m->left >= 0) heap_push(r, (candidate){m->rank, first, m->id});
}

/* Room for n symbols; a word of n has fewer than 3n candidates: n - 1 pairs, then at most two for each merge. */
static bool reserve(run *r, size_t n) {
    if (n <= r->room) return true;
    size_t room = n < 64 ? 64 : n + n / 2;
    symbol *symbols = lw_realloc(r->symbols, room, sizeof *symbols);
    if (!symbols) return false;
    r->symbols = symbols;
    candidate *heap = lw_realloc(r->heap, room, 3 * sizeof *heap);
    if (!heap) return false;
    r->heap = heap;
    r->room = room;
    return true;
}

static void emit(run *r, int32_t id, uint32_t at) {
    if (r->n_ids < N_INNER) {
        r->ids[r->n_ids++] = id;
    } else if (!r->full) {
        r->full = true;
        r->cut_at = at;
    }
}

/* The word's merges, always the one of least rank and of these the leftmost. n log n: a word may be a whole text. */
static bool encode_word(run *r, const lw_char *word, size_t n_chars) {
    r->n_symbols = r->n_heap = 0;
    for (size_t i = 0; i < n_chars; i++) {
        uint8_t bytes[4];
        size_t n = lw_utf8_put(word[i].code, bytes);
        if (!reserve(r, r->n_symbols + n)) return false;
        for (size_t k = 0; k < n; k++) {
            int32_t me = (int32_t)r->n_symbols++;
            r->symbols[me] = (symbol){r->t->byte_ids[bytes[k]], me - 1, me + 1, word[i].at};
        }
    }
    symbol *s = r->symbols;
    s[r->n_symbols - 1].after = -1;
    s[r->n_symbols - 1].id += 256; /* the byte at the word's end */
    for (int32_t i = 0; (size_t)i + 1 < r->n_symbols; i++) consider(r, i);
    while (r->n_heap > 0) {
        candidate c = heap_pop(r);
        int32_t second = s[c.first].id < 0 ? -1 : s[c.first].after;
        if (second < 0) continue;
        const merge *m = merge_slot(r->t, s[c.first].id, s[second].id);
        if (m->left < 0 || m->id != c.id) continue; /* another merge took one of the two */
        s[c.first].id = c.id;
        s[c.first].after = s[second].after;
        s[second].id = -1;
        if (s[second].after >= 0) s[s[second].after].before = c.first;
        consider(r, s[c.first].before);
        consider(r, c.first);
    }
    for (int32_t i = 0; i >= 0; i = s[i].after) emit(r, s[i].id, s[i].at);
    return true;
}

static bool spells(const lw_char *c, size_t n, const char *text) {
    size_t i = 0;
    while (i < n && text[i] && c[i].code == (uint8_t)text[i]) i++;
    return text[i] == 0;
}

static const char start_text[] = "<|startoftext|>", end_text[] = "<|endoftext|>";

/* Length of the special token that begins here, or 0. */
static size_t special(const lw_char *c, size_t n) {
    if (c[0].code != '<') return 0;
    return spells(c, n, start_text) ? sizeof start_text - 1 : spells(c, n, end_text) ? sizeof end_text - 1 : 0;
}

/* Length of the word that begins here: a contraction, letters, one number, or a run of anything else but space. */
static size_t word_length(const lw_char *c, size_t n) {
    static const char *const contractions[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    for (size_t i = 0; c[0].code == '\'' && i < sizeof contractions / sizeof *contractions; i++)
        if (spells(c, n, contractions[i])) return strlen(contractions[i]);
    lw_char_class first = lw_unicode_class(c[0].code);
    if (first == LW_CHAR_NUMBER) return 1;
    size_t length = 1;
    while (length < n && lw_unicode_class(c[length].code) == first && special(c + length, n - length) == 0) length++;
    return length;
}

static bool encode(run *r, const lw_char *c, size_t n) {
    int32_t start = lw_tokenizer_n_vocab(r->t) - 2;
    for (size_t i = 0; i < n && !r->full;) {
        size_t length = special(c + i, n - i);
        if (length > 0) {
            emit(r, length == sizeof start_text - 1 ? start : start + 1, c[i].at);
        } else if (lw_unicode_space(c[i].code)) {
            length = 1;
        } else {
            length = word_length(c + i, n - i);
            if (!encode_word(r, c + i, length)) return false;
        }
        i += length;
    }
    return true;
}

/* Lower case of n characters in a new array. */
static lw_char *lower_all(const lw_char *c, size_t n, size_t *n_out) {
    lw_char *out = lw_alloc(n, 2 * sizeof *out);
    *n_out = 0;
    for (size_t i = 0; out && i < n; i++) {
        uint32_t codes[2];
        size_t k = lw_unicode_lower(c[i].code, codes);
        for (size_t j = 0; j < k; j++) out[(*n_out)++] = (lw_char){codes[j], c[i].at};
    }
    return out;
}

lw_status lw_tokenize(const lw_tokenizer *tokenizer, const char *text, int32_t ids[LW_N_TOKENS], char **cut,
                      lw_error *err) {
    lw_status status = LW_OK;
    run r = {.t = tokenizer};
    lw_char *composed = NULL, *lower = NULL;
    char *rest = NULL;
    size_t n_text = strlen(text), n_composed = 0, n = 0;
    if (cut) *cut = NULL;
    if (n_text > TEXT_CAP)
        return lw_fail(err, LW_EINPUT, "the text has %zu bytes, at most %d are taken", n_text, TEXT_CAP);
    LW_GO(lw_unicode_nfc(text, n_text, &composed, &n_composed, err));
    lower = lower_all(composed, n_composed, &n);
    bool done = lower && encode(&r, lower, n);
    if (done && r.full && cut) rest = lw_strdup(text + r.cut_at);
    if (!done || (r.full && cut && !rest)) {
        status = lw_fail(err, LW_ENOMEM, "no memory for a text of %zu bytes", n_text);
        goto out;
    }
    int32_t start = lw_tokenizer_n_vocab(tokenizer) - 2;
    ids[0] = start;
    for (size_t i = 1; i < LW_N_TOKENS; i++) ids[i] = i <= r.n_ids ? r.ids[i - 1] : start + 1;
    if (cut) *cut = rest;
out:
    lw_free(composed);
    lw_free(lower);
    lw_free(r.symbols);
    lw_free(r.heap);
    return status;
}
