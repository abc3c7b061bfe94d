/* SPDX-License-Identifier: MIT
 * A pickle read as data. The stack machine is the real one, so that any pickle is followed to its end, but nothing is
 * ever called or imported: a REDUCE whose callable is one of four known names makes the value that torch means, every
 * other one an inert object. Values live in an arena, are counted, and never point at the file's own lengths unchecked.
 */
#include "weights/format.h"

#include <stdio.h>
#include <string.h>

enum {
    MAX_VALUES = 400000, /* an SD checkpoint's pickle has 50,000 */
    MAX_STACK = 400000,  /* values on the stack at once */
    MAX_MEMO = 400000,   /* a memo index */
    MAX_TEXT = 4096      /* bytes of a string that is kept; longer ones are objects */
};

typedef enum kind { NONE, BOOLEAN, INTEGER, TEXT, LIST, DICT, GLOBAL, STORAGE, TENSOR, OBJECT } kind;

typedef struct value value;

typedef struct storage {
    uint64_t offset; /* in the file */
    uint64_t n;      /* elements that are there */
    lw_dtype dtype;
} storage;

struct value {
    kind kind;
    uint32_t n, room; /* of items; a DICT has keys and values in turn */
    union {
        int64_t integer;
        const char *text; /* TEXT; GLOBAL: "module name" */
        value **items;    /* LIST (tuples and sets too), DICT */
        storage *storage;
        lw_tensor *tensor;
        const char *what; /* OBJECT: its class, or "" */
    };
};

typedef struct machine {
    const char *file;
    const uint8_t *bytes;
    size_t n, at;
    lw_arena *arena;
    value **stack;
    size_t depth, stack_room;
    size_t *marks;
    size_t n_marks, marks_room;
    value **memo;
    size_t n_memo, n_values;
    lw_storage_fn storage;
    void *user;
    lw_error *err;
} machine;

/* ---- values and the stack */

/* These return what they say, and do not pass on lw_fail's value, so that the compiler sees that nothing is used unset.
 */
static lw_status damaged(const machine *m, const char *what) {
    lw_fail(m->err, LW_EMODEL, "%s: damaged pickle at byte %zu of %zu: %s", m->file, m->at, m->n, what);
    return LW_EMODEL;
}

static lw_status too_large(const machine *m, const char *what, size_t cap) {
    lw_fail(m->err, LW_EMODEL, "%s: its pickle has more than %zu %s", m->file, cap, what);
    return LW_EMODEL;
}

static lw_status no_memory(const machine *m) {
    lw_fail(m->err, LW_ENOMEM, "%s: no memory for its pickle", m->file);
    return LW_ENOMEM;
}

static lw_status new_value(machine *m, kind k, value **out) {
    if (m->n_values++ >= MAX_VALUES) return too_large(m, "values", MAX_VALUES);
    *out = lw_arena_alloc(m->arena, 1, sizeof **out);
    if (!*out) return no_memory(m);
    (*out)->kind = k;
    if (k == OBJECT) (*out)->what = "";
    return LW_OK;
}

static lw_status push(machine *m, value *v) {
    if (m->depth == m->stack_room) {
        if (m->depth >= MAX_STACK) return too_large(m, "values on its stack", MAX_STACK);
        size_t room = m->stack_room ? m->stack_room * 2 : 256;
        value **grown = lw_realloc(m->stack, room, sizeof *grown);
        if (!grown) return no_memory(m);
        m->stack = grown;
        m->stack_room = room;
    }
    m->stack[m->depth++] = v;
    return LW_OK;
}

static lw_status push_new(machine *m, kind k, value **out) {
    LW_TRY(new_value(m, k, out));
    return push(m, *out);
}

/* The stack's floor is the last mark: below it belongs to what was begun before. */
static size_t floor_of(const machine *m) { return m->n_marks ? m->marks[m->n_marks - 1] : 0; }

static lw_status pop(machine *m, value **out) {
    if (m->depth <= floor_of(m)) return damaged(m, "its stack is empty");
    *out = m->stack[--m->depth];
    return LW_OK;
}

static lw_status push_mark(machine *m) {
    if (m->n_marks == m->marks_room) {
        if (m->n_marks >= MAX_STACK) return too_large(m, "marks on its stack", MAX_STACK);
        size_t room = m->marks_room ? m->marks_room * 2 : 64;
        size_t *grown = lw_realloc(m->marks, room, sizeof *grown);
        if (!grown) return no_memory(m);
        m->marks = grown;
        m->marks_room = room;
    }
    m->marks[m->n_marks++] = m->depth;
    return LW_OK;
}

/* The values above the last mark, which goes: stack[*first .. *first + *n). They are still there until the next push.
 */
static lw_status pop_mark(machine *m, size_t *first, size_t *n) {
    if (m->n_marks == 0) return damaged(m, "no mark on its stack");
    *first = m->marks[--m->n_marks];
    *n = m->depth - *first;
    m->depth = *first;
    return LW_OK;
}

static lw_status append(machine *m, value *list, value *item) {
    if (list->n == list->room) {
        uint32_t room = list->room ? list->room * 2 : 4;
        if ((m->n_values += room - list->room) > 2 * MAX_VALUES) return too_large(m, "values", 2 * MAX_VALUES);
        value **grown = lw_arena_alloc(m->arena, room, sizeof *grown);
        if (!grown) return no_memory(m);
        if (list->n) memcpy(grown, list->items, list->n * sizeof *grown);
        list->items = grown;
        list->room = room;
    }
    list->items[list->n++] = item;
    return LW_OK;
}

static lw_status push_tuple(machine *m, size_t first, size_t n) {
    value *tuple;
    LW_TRY(new_value(m, LIST, &tuple));
    for (size_t i = 0; i < n; i++) LW_TRY(append(m, tuple, m->stack[first + i]));
    return push(m, tuple);
}

/* ---- the bytes */

static lw_status take(machine *m, size_t n, const uint8_t **bytes) {
    if (n > m->n - m->at) return damaged(m, "it is cut");
    *bytes = m->bytes + m->at;
    m->at += n;
    return LW_OK;
}

static lw_status take_number(machine *m, size_t n, uint64_t *out) {
    const uint8_t *b;
    LW_TRY(take(m, n, &b));
    *out = 0;
    for (size_t i = n; i-- > 0;) *out = *out << 8 | b[i];
    return LW_OK;
}

static lw_status take_line(machine *m, const uint8_t **bytes, size_t *n) {
    const uint8_t *end = memchr(m->bytes + m->at, '\n', m->n - m->at);
    if (!end) return damaged(m, "a line without an end");
    *bytes = m->bytes + m->at;
    *n = (size_t)(end - *bytes);
    m->at += *n + 1;
    return LW_OK;
}

static lw_status push_text(machine *m, const uint8_t *bytes, size_t n) {
    value *v;
    bool keep = n <= MAX_TEXT && !memchr(bytes, 0, n);
    LW_TRY(push_new(m, keep ? TEXT : OBJECT, &v));
    if (!keep) return LW_OK;
    char *copy = lw_arena_alloc(m->arena, n + 1, 1);
    if (!copy) return no_memory(m);
    memcpy(copy, bytes, n);
    v->text = copy;
    return LW_OK;
}

static lw_status push_integer(machine *m, int64_t i) {
    value *v;
    LW_TRY(push_new(m, INTEGER, &v));
    v->integer = i;
    return LW_OK;
}

/* Little endian, two's complement; what does not fit in 64 bits is no size of anything. */
static lw_status push_long(machine *m, size_t n) {
    const uint8_t *b;
    value *v;
    LW_TRY(take(m, n, &b));
    if (n > 8) return push_new(m, OBJECT, &v);
    uint64_t u = n > 0 && b[n - 1] & 0x80 ? UINT64_MAX : 0;
    for (size_t i = n; i-- > 0;) u = u << 8 | b[i];
    return push_integer(m, (int64_t)u);
}

static lw_status push_counted_text(machine *m, size_t length_bytes) {
    uint64_t n;
    const uint8_t *b;
    LW_TRY(take_number(m, length_bytes, &n));
    LW_TRY(take(m, n > m->n ? SIZE_MAX : (size_t)n, &b));
    return push_text(m, b, (size_t)n);
}

/* ---- what torch means */

static const struct {
    const char *name;
    int dtype;
} storages[] = {{"torch FloatStorage", LW_F32},  {"torch HalfStorage", LW_F16}, {"torch BFloat16Storage", LW_BF16},
                {"torch DoubleStorage", LW_F64}, {"torch LongStorage", LW_I64}, {"torch IntStorage", LW_I32},
                {"torch ShortStorage", LW_I16},  {"torch CharStorage", LW_I8},  {"torch ByteStorage", LW_U8},
                {"torch BoolStorage", LW_BOOL}};

/* ("storage", class, key, location, numel) */
static lw_status persistent(machine *m) {
    value *id, *v;
    LW_TRY(pop(m, &id));
    if (id->kind != LIST || id->n != 5 || id->items[0]->kind != TEXT || strcmp(id->items[0]->text, "storage") != 0 ||
        id->items[2]->kind != TEXT || id->items[4]->kind != INTEGER || id->items[4]->integer < 0)
        return damaged(m, "a persistent id that is no storage of torch");
    int dtype = -1;
    for (size_t i = 0; i < sizeof storages / sizeof *storages; i++)
        if (id->items[1]->kind == GLOBAL && strcmp(id->items[1]->text, storages[i].name) == 0)
            dtype = storages[i].dtype;
    if (dtype < 0) return push_new(m, OBJECT, &v); /* complex, quantized or 8-bit: an error only if it is needed */

    uint64_t bytes, wanted = (uint64_t)id->items[4]->integer;
    LW_TRY(push_new(m, STORAGE, &v));
    v->storage = lw_arena_alloc(m->arena, 1, sizeof *v->storage);
    if (!v->storage) return no_memory(m);
    v->storage->dtype = (lw_dtype)dtype;
    LW_TRY(m->storage(m->user, id->items[2]->text, &v->storage->offset, &bytes, m->err));
    v->storage->n = bytes / lw_dtype_bytes(v->storage->dtype);
    if (wanted > v->storage->n)
        return lw_fail(m->err, LW_EMODEL, "%s: storage %s should have %llu elements, its %llu bytes have %llu", m->file,
                       id->items[2]->text, (unsigned long long)wanted, (unsigned long long)bytes,
                       (unsigned long long)v->storage->n);
    v->storage->n = wanted;
    return LW_OK;
}

/* dims and strides from two tuples of whole numbers. */
static lw_status read_shape(machine *m, const value *size, const value *stride, lw_tensor *t) {
    int64_t plain[LW_MAX_RANK];
    if (size->kind != LIST || stride->kind != LIST || size->n != stride->n)
        return damaged(m, "a tensor without a proper shape");
    if (size->n > LW_MAX_RANK)
        return lw_fail(m->err, LW_EMODEL, "%s: a tensor with %u dimensions, at most %d are read", m->file,
                       (unsigned)size->n, LW_MAX_RANK);
    t->rank = (int32_t)size->n;
    for (uint32_t i = 0; i < size->n; i++) {
        const value *d = size->items[i], *s = stride->items[i];
        if (d->kind != INTEGER || s->kind != INTEGER || d->integer < 0 || s->integer < 0)
            return damaged(m, "a tensor without a proper shape");
        t->dims[i] = d->integer;
        t->strides[i] = s->integer;
    }
    if (!lw_shape_count(t->dims, t->rank, plain, &t->n))
        return damaged(m, "the product of a tensor's dimensions overflows");
    return LW_OK;
}

/* _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks) */
static lw_status rebuild_tensor(machine *m, const value *args) {
    value *v;
    if (args->n < 4) return damaged(m, "a tensor with too few arguments");
    const value *from = args->items[0], *offset = args->items[1];
    if (from->kind != STORAGE) {
        LW_TRY(push_new(m, OBJECT, &v));
        v->what = "a tensor of another type";
        return LW_OK;
    }
    if (offset->kind != INTEGER || offset->integer < 0) return damaged(m, "a tensor without a proper offset");
    LW_TRY(push_new(m, TENSOR, &v));
    lw_tensor *t = v->tensor = lw_arena_alloc(m->arena, 1, sizeof *t);
    if (!t) return no_memory(m);
    LW_TRY(read_shape(m, args->items[2], args->items[3], t));
    t->dtype = from->storage->dtype;
    uint64_t first = (uint64_t)offset->integer, last = first;
    for (int32_t i = 0; t->n > 0 && i < t->rank; i++) {
        uint64_t reach;
        if (__builtin_mul_overflow((uint64_t)(t->dims[i] - 1), (uint64_t)t->strides[i], &reach) ||
            __builtin_add_overflow(last, reach, &last))
            return damaged(m, "the extent of a tensor overflows");
    }
    if (t->n > 0 ? last >= from->storage->n : first > from->storage->n)
        return lw_fail(m->err, LW_EMODEL, "%s: a tensor reaches to element %llu of a storage of %llu", m->file,
                       (unsigned long long)last, (unsigned long long)from->storage->n);
    if (t->n > from->storage->n) { /* expanded: one value stands for many, and n is no longer bounded by the file */
        v->kind = OBJECT;
        v->what = "a view that repeats its values";
        return LW_OK;
    }
    t->offset = from->storage->offset + first * lw_dtype_bytes(t->dtype);
    return LW_OK;
}

static lw_status make_dict(machine *m, const value *args) {
    value *dict;
    LW_TRY(push_new(m, DICT, &dict));
    if (args->n == 0) return LW_OK;
    const value *pairs = args->items[0]; /* OrderedDict([[key, value], …]), as Python 2 wrote it */
    for (uint32_t i = 0; pairs->kind == LIST && i < pairs->n; i++) {
        const value *pair = pairs->items[i];
        if (pair->kind != LIST || pair->n != 2) return damaged(m, "a dictionary of what are no pairs");
        LW_TRY(append(m, dict, pair->items[0]));
        LW_TRY(append(m, dict, pair->items[1]));
    }
    return LW_OK;
}

static lw_status reduce(machine *m) {
    value *args, *callable, *v;
    LW_TRY(pop(m, &args));
    LW_TRY(pop(m, &callable));
    const char *name = callable->kind == GLOBAL ? callable->text : "";
    if (args->kind == LIST) {
        if (strcmp(name, "torch._utils _rebuild_tensor_v2") == 0 || strcmp(name, "torch._utils _rebuild_tensor") == 0)
            return rebuild_tensor(m, args);
        if (strcmp(name, "torch._utils _rebuild_parameter") == 0 && args->n > 0) return push(m, args->items[0]);
        if (strcmp(name, "collections OrderedDict") == 0) return make_dict(m, args);
    }
    LW_TRY(push_new(m, OBJECT, &v));
    v->what = name;
    return LW_OK;
}

static lw_status push_global(machine *m, const uint8_t *module, size_t n_module, const uint8_t *name, size_t n_name) {
    value *v;
    if (n_module + n_name > MAX_TEXT || memchr(module, 0, n_module) || memchr(name, 0, n_name))
        return push_new(m, OBJECT, &v);
    LW_TRY(push_new(m, GLOBAL, &v));
    char *text = lw_arena_alloc(m->arena, n_module + n_name + 2, 1);
    if (!text) return no_memory(m);
    memcpy(text, module, n_module);
    text[n_module] = ' ';
    memcpy(text + n_module + 1, name, n_name);
    v->text = text;
    return LW_OK;
}

static lw_status global_line(machine *m) {
    const uint8_t *module, *name;
    size_t n_module, n_name;
    LW_TRY(take_line(m, &module, &n_module));
    LW_TRY(take_line(m, &name, &n_name));
    return push_global(m, module, n_module, name, n_name);
}

static lw_status global_stack(machine *m) {
    value *module, *name, *v;
    LW_TRY(pop(m, &name));
    LW_TRY(pop(m, &module));
    if (module->kind != TEXT || name->kind != TEXT) return push_new(m, OBJECT, &v);
    return push_global(m, (const uint8_t *)module->text, strlen(module->text), (const uint8_t *)name->text,
                       strlen(name->text));
}

/* ---- the opcodes */

static lw_status memo_put(machine *m, uint64_t index) {
    if (m->depth <= floor_of(m)) return damaged(m, "nothing to remember");
    if (index >= MAX_MEMO) return too_large(m, "entries in its memo", MAX_MEMO);
    if (index >= m->n_memo) {
        size_t n = (size_t)index * 2 + 64 < MAX_MEMO ? (size_t)index * 2 + 64 : MAX_MEMO;
        value **grown = lw_realloc(m->memo, n, sizeof *grown);
        if (!grown) return no_memory(m);
        memset(grown + m->n_memo, 0, (n - m->n_memo) * sizeof *grown);
        m->memo = grown;
        m->n_memo = n;
    }
    m->memo[index] = m->stack[m->depth - 1];
    return LW_OK;
}

static lw_status memo_get(machine *m, uint64_t index) {
    if (index >= m->n_memo || !m->memo[index]) return damaged(m, "it recalls what it never remembered");
    return push(m, m->memo[index]);
}

/* MEMOIZE numbers by how many there are already. */
static lw_status memoize(machine *m) {
    size_t i = 0, high = m->n_memo;
    while (i < high) { /* entries are filled in order by the writers that use it: the first empty one */
        size_t mid = (i + high) / 2;
        if (m->memo[mid]) i = mid + 1;
        else high = mid;
    }
    return memo_put(m, i);
}

/* Items above the mark, or the n on top, go into the container under them; into an object they go nowhere. */
static lw_status add_items(machine *m, kind to, size_t first, size_t n) {
    if (m->depth <= floor_of(m)) return damaged(m, "its stack is empty");
    value *container = m->stack[m->depth - 1];
    if (to == DICT && n % 2 != 0) return damaged(m, "a key without a value");
    if (container->kind != to) return container->kind == OBJECT ? LW_OK : damaged(m, "items for what holds none");
    for (size_t i = 0; i < n; i++) LW_TRY(append(m, container, m->stack[first + i]));
    return LW_OK;
}

static lw_status marked_items(machine *m, kind to) {
    size_t first, n;
    LW_TRY(pop_mark(m, &first, &n));
    return add_items(m, to, first, n);
}

static lw_status top_items(machine *m, kind to, size_t n) {
    if (m->depth < floor_of(m) + n) return damaged(m, "its stack is empty");
    m->depth -= n;
    return add_items(m, to, m->depth, n);
}

static lw_status marked_container(machine *m, kind k) {
    size_t first, n;
    value *v;
    LW_TRY(pop_mark(m, &first, &n));
    if (k == LIST) return push_tuple(m, first, n);
    if (k == DICT && n % 2 != 0) return damaged(m, "a key without a value");
    LW_TRY(new_value(m, k, &v));
    for (size_t i = 0; k == DICT && i < n; i++) LW_TRY(append(m, v, m->stack[first + i]));
    return push(m, v);
}

static lw_status top_tuple(machine *m, size_t n) {
    if (m->depth < floor_of(m) + n) return damaged(m, "its stack is empty");
    m->depth -= n;
    return push_tuple(m, m->depth, n);
}

/* n values go, an object comes. */
static lw_status replace_by_object(machine *m, size_t n) {
    value *v;
    for (size_t i = 0; i < n; i++) LW_TRY(pop(m, &v));
    return push_new(m, OBJECT, &v);
}

static lw_status skip(machine *m, size_t n) {
    const uint8_t *b;
    return take(m, n, &b);
}

/* A value of no interest: n bytes, a line (0), or as many as a number of -n bytes says. */
static lw_status skipped_value(machine *m, long n) {
    const uint8_t *b;
    size_t length;
    uint64_t count;
    value *v;
    if (n == 0) {
        LW_TRY(take_line(m, &b, &length));
    } else if (n > 0) {
        LW_TRY(skip(m, (size_t)n));
    } else {
        LW_TRY(take_number(m, (size_t)-n, &count));
        LW_TRY(skip(m, count > m->n ? SIZE_MAX : (size_t)count));
    }
    return push_new(m, OBJECT, &v);
}

static lw_status push_boolean(machine *m, bool b) {
    value *v;
    LW_TRY(push_new(m, BOOLEAN, &v));
    v->integer = b;
    return LW_OK;
}

static lw_status duplicate(machine *m) {
    value *v;
    LW_TRY(pop(m, &v));
    LW_TRY(push(m, v));
    return push(m, v);
}

/* POP takes a mark too where one is on top. */
static lw_status pop_any(machine *m) {
    value *v;
    if (m->n_marks && m->marks[m->n_marks - 1] == m->depth) {
        m->n_marks--;
        return LW_OK;
    }
    return pop(m, &v);
}

static lw_status step_number(machine *m, uint8_t op) {
    uint64_t n;
    value *v;
    switch (op) {
    case 'K': LW_TRY(take_number(m, 1, &n)); return push_integer(m, (int64_t)n);
    case 'M': LW_TRY(take_number(m, 2, &n)); return push_integer(m, (int64_t)n);
    case 'J': LW_TRY(take_number(m, 4, &n)); return push_integer(m, (int32_t)(uint32_t)n);
    case 0x8a: LW_TRY(take_number(m, 1, &n)); return push_long(m, (size_t)n);
    case 0x8b: LW_TRY(take_number(m, 4, &n)); return push_long(m, (size_t)n);
    case 'G': return skipped_value(m, 8);
    case 'F':
    case 'I':
    case 'L': return skipped_value(m, 0); /* numbers as text: protocol 0, which torch never writes */
    case 'N': return push_new(m, NONE, &v);
    case 0x88: return push_boolean(m, true);
    case 0x89: return push_boolean(m, false);
    default:
        return lw_fail(m->err, LW_EMODEL, "%s: damaged pickle at byte %zu of %zu: no opcode 0x%02x", m->file, m->at - 1,
                       m->n, op);
    }
}

static lw_status step_text(machine *m, uint8_t op) {
    switch (op) {
    case 'X': return push_counted_text(m, 4);
    case 0x8c: return push_counted_text(m, 1);
    case 0x8d: return push_counted_text(m, 8);
    case 'U': return push_counted_text(m, 1); /* Python 2's strings: keys in old files */
    case 'T': return push_counted_text(m, 4);
    case 'B': return skipped_value(m, -4);
    case 'C': return skipped_value(m, -1);
    case 0x8e:
    case 0x96: return skipped_value(m, -8);
    case 'S':
    case 'V': return skipped_value(m, 0);
    default: return step_number(m, op);
    }
}

static lw_status step_object(machine *m, uint8_t op) {
    size_t first, n;
    value *v;
    switch (op) {
    case 'c': return global_line(m);
    case 0x93: return global_stack(m);
    case 'R': return reduce(m);
    case 'Q': return persistent(m);
    case 0x81: return replace_by_object(m, 2);
    case 0x92: return replace_by_object(m, 3);
    case 'b': return pop(m, &v); /* BUILD: a state dict's _metadata, or an object's state: neither is wanted */
    case 'o': LW_TRY(pop_mark(m, &first, &n)); return push_new(m, OBJECT, &v);
    case 'i':
        LW_TRY(pop_mark(m, &first, &n));
        LW_TRY(global_line(m));
        return replace_by_object(m, 1);
    case 0x82: return skipped_value(m, 1);
    case 0x83: return skipped_value(m, 2);
    case 0x84: return skipped_value(m, 4);
    default: return step_text(m, op);
    }
}

static lw_status step_memo(machine *m, uint8_t op) {
    uint64_t n;
    switch (op) {
    case 'q': LW_TRY(take_number(m, 1, &n)); return memo_put(m, n);
    case 'r': LW_TRY(take_number(m, 4, &n)); return memo_put(m, n);
    case 'h': LW_TRY(take_number(m, 1, &n)); return memo_get(m, n);
    case 'j': LW_TRY(take_number(m, 4, &n)); return memo_get(m, n);
    case 0x94: return memoize(m);
    case 0x80: return skip(m, 1); /* PROTO */
    case 0x95: return skip(m, 8); /* FRAME: only a hint for reading */
    default: return step_object(m, op);
    }
}

static lw_status step(machine *m, uint8_t op) {
    value *v;
    size_t first, n;
    switch (op) {
    case '(': return push_mark(m);
    case '0': return pop_any(m);
    case '1': return pop_mark(m, &first, &n);
    case '2': return duplicate(m);
    case '}': return push_new(m, DICT, &v);
    case ']':
    case ')':
    case 0x8f: return push_new(m, LIST, &v);
    case 'a': return top_items(m, LIST, 1);
    case 'e': return marked_items(m, LIST);
    case 's': return top_items(m, DICT, 2);
    case 'u': return marked_items(m, DICT);
    case 0x90: return marked_items(m, LIST);
    case 't':
    case 'l':
    case 0x91: return marked_container(m, LIST);
    case 'd': return marked_container(m, DICT);
    case 0x85: return top_tuple(m, 1);
    case 0x86: return top_tuple(m, 2);
    case 0x87: return top_tuple(m, 3);
    default: return step_memo(m, op);
    }
}

/* ---- the state dict */

static const value *state_dict(const value *root) {
    for (uint32_t i = 0; root->kind == DICT && i + 1 < root->n; i += 2)
        if (root->items[i]->kind == TEXT && strcmp(root->items[i]->text, "state_dict") == 0 &&
            root->items[i + 1]->kind == DICT)
            return root->items[i + 1];
    return root;
}

static lw_status list_tensors(machine *m, const value *root, lw_listing *listing) {
    const value *dict = state_dict(root);
    if (dict->kind != DICT)
        return lw_fail(m->err, LW_EMODEL, "%s: its pickle holds no state dict but %s", m->file,
                       dict->kind == OBJECT && *dict->what ? dict->what : "something else");
    for (uint32_t i = 0; i + 1 < dict->n; i += 2) {
        const value *key = dict->items[i], *v = dict->items[i + 1];
        if (key->kind != TEXT || (v->kind != TENSOR && v->kind != OBJECT)) continue; /* "global_step" and the like */
        lw_entry *e = lw_listing_add(listing);
        if (!e) return no_memory(m);
        uint32_t source = e->tensor.source;
        if (v->kind == TENSOR) e->tensor = *v->tensor;
        else e->type = *v->what ? v->what : "no tensor";
        e->tensor.name = e->tensor.key = key->text;
        e->tensor.source = source;
    }
    return LW_OK;
}

lw_status lw_pickle_list(const char *file, const uint8_t *bytes, size_t n, lw_storage_fn find, void *user,
                         lw_listing *listing, lw_error *err) {
    machine m = {
        .file = file, .bytes = bytes, .n = n, .arena = listing->arena, .storage = find, .user = user, .err = err};
    lw_status status = LW_OK;
    value *root;
    for (;;) {
        if (m.at == n) {
            status = damaged(&m, "it does not end with a STOP");
            goto out;
        }
        uint8_t op = bytes[m.at++];
        if (op == '.') break;
        LW_GO(step(&m, op));
    }
    if (m.n_marks != 0 || m.depth != 1) {
        status = damaged(&m, "it ends with more or less than one value");
        goto out;
    }
    LW_GO(pop(&m, &root));
    status = list_tensors(&m, root, listing);
out:
    lw_free(m.stack);
    lw_free(m.marks);
    lw_free(m.memo);
    return status;
}
