/* SPDX-License-Identifier: MIT
 * The shapes that random models are made of are the released file's: its 1,484 keys and shapes, as sorted hashes in
 * data/weights/sd15_keys.txt (FNV-1a-64 of "key<tab>AxBxC"). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"
#include "weights/shapes.h"

enum { N_KEYS = 1484 };

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static uint64_t hash_of(const lw_shape *s) {
    char text[600];
    int n =
        snprintf(text, sizeof text, "%s%s\t", s->network == LW_NET_NONE ? "" : lw_network_prefix(s->network), s->name);
    for (int32_t d = 0; d < s->rank; d++)
        n += snprintf(text + n, sizeof text - (size_t)n, "%s%lld", d ? "x" : "", (long long)s->dims[d]);
    uint64_t h = 0xcbf29ce484222325u;
    for (int i = 0; i < n; i++) h = (h ^ (uint8_t)text[i]) * 0x100000001b3u;
    return h;
}

static void shapes_are_the_released_ones(void **state) {
    (void)state;
    static uint64_t made[2048], want[2048];
    lw_arena *arena = lw_arena_new();
    lw_shape *shapes;
    size_t n, n_want = 0;
    assert_int_equal(lw_shapes_make(&lw_widths_sd15, arena, &shapes, &n, NULL), LW_OK);
    assert_int_equal(n, N_KEYS);
    for (size_t i = 0; i < n; i++) made[i] = hash_of(&shapes[i]);
    qsort(made, n, sizeof *made, by_value);
    FILE *f = fopen(LW_TEST_DATA "/weights/sd15_keys.txt", "r");
    assert_non_null(f);
    unsigned long long value;
    while (n_want < 2048 && fscanf(f, "%llx", &value) == 1) want[n_want++] = value;
    fclose(f);
    assert_int_equal(n_want, N_KEYS);
    assert_memory_equal(made, want, N_KEYS * sizeof *made);
    lw_arena_free(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(shapes_are_the_released_ones)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
