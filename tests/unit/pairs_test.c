/* SPDX-License-Identifier: MIT
 * Does the embedded model do what it is asked? Eight of the 64 pairs of tools/train_demo/evaluate.py, measured by that
 * program's law: a named thing's median colour is nearest to the colour asked for, the picture's own edges are the
 * hint's, and at strength 0 they are not.
 *   pairs_test cuda    the same on a GPU, in fp16 */
#include "fixture.h"

#include <stdbool.h>
#include <unistd.h>

#include "linework.h"

enum { RIM = 2, LEAST = 30, RADIUS = 2, N_COLOURS = 11 };

static const char model[] = LW_SOURCE_DIR "/models/demo/model.safetensors";
static const char folder[] = LW_TEST_DATA "/demo";
static bool on_gpu;

/* tools/train_demo/scenes.py: PALETTE and LIGHT. */
static const struct {
    const char *name;
    double rgb[3];
} palette[N_COLOURS] = {
    {"red", {212, 38, 36}},     {"orange", {242, 138, 26}}, {"yellow", {248, 214, 52}}, {"green", {54, 152, 60}},
    {"blue", {40, 92, 208}},    {"purple", {130, 58, 176}}, {"pink", {246, 146, 186}},  {"brown", {124, 76, 42}},
    {"white", {246, 246, 242}}, {"black", {36, 36, 42}},    {"gray", {142, 144, 148}},
};
static const struct {
    const char *name;
    double light[3];
} times[] = {{"day", {1, 1, 1}}, {"sunset", {1, 0.84, 0.72}}, {"night", {0.60, 0.64, 0.84}}};

static void ok(lw_status status, const lw_error *err) {
    if (status != LW_OK) fail_msg("%s: %s", lw_status_name(status), err->message);
}

/* ---- colours */

static void to_lab(const double rgb[3], double lab[3]) {
    static const double xyz[3][3] = {{0.4124564, 0.3575761, 0.1804375},
                                     {0.2126729, 0.7151522, 0.0721750},
                                     {0.0193339, 0.1191920, 0.9503041}},
                        white[3] = {0.95047, 1, 1.08883};
    double f[3];
    for (int i = 0; i < 3; i++) {
        double t = 0;
        for (int k = 0; k < 3; k++) {
            double c = rgb[k] / 255;
            t += xyz[i][k] * (c <= 0.04045 ? c / 12.92 : pow((c + 0.055) / 1.055, 2.4));
        }
        t /= white[i];
        f[i] = t > 0.008856 ? cbrt(t) : 7.787 * t + 16.0 / 116;
    }
    lab[0] = 116 * f[1] - 16;
    lab[1] = 500 * (f[0] - f[1]);
    lab[2] = 200 * (f[1] - f[2]);
}

/* Lightness counts half: shading changes it. */
static const char *nearest_colour(const double rgb[3], const double light[3]) {
    double lab[3], least = INFINITY;
    const char *name = NULL;
    to_lab(rgb, lab);
    for (int i = 0; i < N_COLOURS; i++) {
        double seen[3], at[3], d = 0;
        for (int k = 0; k < 3; k++) seen[k] = palette[i].rgb[k] * light[k];
        to_lab(seen, at);
        for (int k = 0; k < 3; k++) d += (lab[k] - at[k]) * (lab[k] - at[k]) * (k ? 1 : 0.25);
        if (d < least) {
            least = d;
            name = palette[i].name;
        }
    }
    return name;
}

static int is(const lw_image *ids, int x, int y, int id) {
    return x >= 0 && y >= 0 && x < ids->width && y < ids->height &&
           ids->data[(size_t)y * ids->stride + (size_t)x] == id;
}

/* Erosion by a cross, rim times: all within a Manhattan distance of rim are the object's. */
static int is_inner(const lw_image *ids, int x, int y, int id, int rim) {
    for (int dy = -rim; dy <= rim; dy++)
        for (int dx = -(rim - abs(dy)); dx <= rim - abs(dy); dx++)
            if (!is(ids, x + dx, y + dy, id)) return 0;
    return 1;
}

/* The median over the object's mask less its rim, which outlines run in; over all of it where that leaves too little.
 */
static void median_colour(const lw_image *picture, const lw_image *ids, int id, double rgb[3]) {
    for (int rim = RIM;; rim = 0) {
        int count[3][256] = {{0}}, n = 0;
        for (int y = 0; y < ids->height; y++)
            for (int x = 0; x < ids->width; x++) {
                if (!is_inner(ids, x, y, id, rim)) continue;
                const uint8_t *p = picture->data + (size_t)y * picture->stride + (size_t)x * 3;
                for (int k = 0; k < 3; k++) count[k][p[k]]++;
                n++;
            }
        if (rim && n < LEAST) continue;
        assert_true(n > 0);
        for (int k = 0; k < 3; k++) {
            int at = -1, sum = 0, low, high;
            while (sum <= (n - 1) / 2) sum += count[k][++at];
            low = high = at;
            while (sum <= n / 2) sum += count[k][++high];
            rgb[k] = (low + high) / 2.0;
        }
        return;
    }
}

/* How many of the pair's objects have the colour that key names. */
static int count_colours(const json_t *pair, const lw_image *picture, const lw_image *ids, const char *key,
                         const char *time) {
    static const double unlit[3] = {1, 1, 1};
    int hits = 0;
    size_t i;
    json_t *object;
    json_array_foreach(json_object_get(pair, "objects"), i, object) {
        const char *kind = json_string_value(json_object_get(object, "kind")),
                   *want = json_string_value(json_object_get(object, key));
        const double *light = NULL;
        double rgb[3];
        for (size_t t = 0; t < sizeof times / sizeof *times; t++)
            if (!strcmp(times[t].name, time)) light = times[t].light;
        assert_non_null(light);
        /* They shine by themselves. */
        if (!strcmp(kind, "sun") || !strcmp(kind, "moon")) light = unlit;
        median_colour(picture, ids, (int)json_integer_value(json_object_get(object, "id")), rgb);
        const char *got = nearest_colour(rgb, light);
        if (!strcmp(got, want)) hits++;
        else
            print_message("%s, %s: the %s is %s, not %s\n", json_string_value(json_object_get(pair, "name")), time,
                          kind, got, want);
    }
    return hits;
}

/* ---- edges */

/* The share of a's edge pixels with one of b's within RADIUS (Euclidean). */
static double share_near(const lw_image *a, const lw_image *b) {
    int n = 0, near = 0;
    for (int y = 0; y < a->height; y++)
        for (int x = 0; x < a->width; x++) {
            if (!is(a, x, y, 255)) continue;
            int found = 0;
            for (int dy = -RADIUS; dy <= RADIUS; dy++)
                for (int dx = -RADIUS; dx <= RADIUS; dx++)
                    found |= dx * dx + dy * dy <= RADIUS * RADIUS && is(b, x + dx, y + dy, 255);
            near += found;
            n++;
        }
    return n ? (double)near / n : 0;
}

static double f1_of(const lw_image *got, const lw_image *hint) {
    double precision = share_near(got, hint), recall = share_near(hint, got);
    return precision + recall > 0 ? 2 * precision * recall / (precision + recall) : 0;
}

/* ---- the table */

static lw_image read_picture(const json_t *pair, const char *key) {
    char path[1024];
    lw_image image = {.size = sizeof image};
    lw_error err = {0};
    snprintf(path, sizeof path, "%s/%s", folder, json_string_value(json_object_get(pair, key)));
    ok(lw_image_read(path, &image, NULL, &err), &err);
    return image;
}

static void eight_pairs(void **state) {
    (void)state;
    enum { FIRST, SECOND, FREE, WAYS };
    static const struct {
        const char *prompt, *colour, *time;
        double strength;
    } ways[WAYS] = {{"prompt", "colour", "time", 1}, {"second", "second", "second_time", 1}, {"prompt", NULL, NULL, 0}};
#ifndef LW_HAVE_PNG
    if (on_gpu) fail_msg("this build reads no PNG");
    skip();
#endif
    if (!on_gpu && access(model, R_OK) != 0) skip();
    lw_engine_params params;
    lw_engine *engine = NULL;
    lw_session *session = NULL;
    lw_error err = {0};
    lw_engine_params_init(&params);
    params.model = model;
    params.device = on_gpu ? LW_DEVICE_CUDA : LW_DEVICE_CPU;
    params.threads = 2;
    params.precision = on_gpu ? LW_PRECISION_FP16 : LW_PRECISION_FP32;
    ok(lw_engine_open(&engine, &params, &err), &err);
    ok(lw_session_open(&session, engine, &err), &err);

    char path[1024];
    snprintf(path, sizeof path, "%s/pairs.json", folder);
    json_t *pairs = json_load_file(path, 0, NULL), *pair;
    assert_int_equal(json_array_size(pairs), 8);
    int hits[WAYS] = {0}, objects = 0;
    double f1[WAYS] = {0};
    size_t i;
    json_array_foreach(pairs, i, pair) {
        lw_image image = read_picture(pair, "image"), ids = read_picture(pair, "ids");
        assert_int_equal(ids.channels, 1);
        objects += (int)json_array_size(json_object_get(pair, "objects"));
        for (int way = 0; way < WAYS; way++) {
            lw_control control;
            lw_request r;
            lw_result result = {.size = sizeof result};
            lw_image edges = {.size = sizeof edges};
            lw_control_init(&control);
            control.strength = ways[way].strength;
            lw_request_init(&r);
            r.image = &image;
            r.prompt = json_string_value(json_object_get(pair, ways[way].prompt));
            /* A pair's noise is that of its number among the 64. */
            r.seed = strtol(json_string_value(json_object_get(pair, "name")), NULL, 10);
            r.controls = &control;
            r.n_controls = 1;
            ok(lw_session_generate(session, &r, &result, &err), &err);
            assert_int_equal(result.width, ids.width);
            assert_int_equal(result.height, ids.height);
            ok(lw_canny(result.images, 100, 200, &edges, &err), &err);
            f1[way] += f1_of(&edges, &result.control) / 8;
            if (ways[way].colour)
                hits[way] += count_colours(pair, result.images, &ids, ways[way].colour,
                                           json_string_value(json_object_get(pair, ways[way].time)));
            lw_image_free(&edges);
            lw_result_free(&result);
        }
        lw_image_free(&image);
        lw_image_free(&ids);
    }
    json_decref(pairs);
    lw_session_close(&session);
    lw_engine_close(&engine);

    print_message("colours %d and %d of %d, F1 %.3f and %.3f, strength 0 F1 %.3f\n", hits[FIRST], hits[SECOND], objects,
                  f1[FIRST], f1[SECOND], f1[FREE]);
    /* 27 and 28 of 28, F1 0.821, 0.755 and 0.190. Another CPU's rounding may turn one object whose colour lies between
     * two; in bf16, which is coarser by far, none does, and F1 moves by 0.002 at most. Over all 64 the second prompt's
     * is 0.80; these eight are harder. */
    assert_true(hits[FIRST] >= 26 && hits[SECOND] >= 27 && objects == 28);
    assert_true(f1[FIRST] >= 0.8 && f1[SECOND] >= 0.73);
    assert_true(f1[FREE] <= 0.25);
}

int main(int argc, char **argv) {
    on_gpu = argc > 1 && !strcmp(argv[1], "cuda");
    const struct CMUnitTest tests[] = {cmocka_unit_test(eight_pairs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
