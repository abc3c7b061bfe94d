/* SPDX-License-Identifier: MIT
 * SHA-256 of bytes and files, and what the cache remembers of them. */
#include "fixture.h"

#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"

static const char abc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; /* FIPS 180-2 */
static char folder[] = "/tmp/lw_hash_XXXXXX", path[64], cache[64];

static void write_text(const char *name, const char *text) {
    FILE *f = fopen(name, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    fclose(f);
}

static int setup(void **state) {
    (void)state;
    if (!mkdtemp(folder)) return 1;
    snprintf(path, sizeof path, "%s/model", folder);
    snprintf(cache, sizeof cache, "%s/hashes.json", folder);
    write_text(path, "abc");
    return 0;
}

static int teardown(void **state) {
    (void)state;
    unlink(path);
    unlink(cache);
    return rmdir(folder);
}

static void expect(const char *want, uint64_t max_bytes) {
    char out[65];
    lw_error err;
    lw_status status = lw_file_sha256(path, folder, max_bytes, NULL, NULL, out, &err);
    if (status != LW_OK) fail_msg("%s", err.message);
    assert_string_equal(out, want);
}

static void bytes_and_files(void **state) {
    (void)state;
    char out[65];
    lw_error err;
    assert_int_equal(lw_sha256("abc", 3, out, &err), LW_OK);
    if (!out[0]) skip(); /* a build without libmd */
    assert_string_equal(out, abc);
    assert_int_equal(lw_sha256(NULL, 1, out, &err), LW_EINVAL);
    assert_int_equal(lw_file_sha256(path, NULL, 0, NULL, NULL, out, &err), LW_OK);
    assert_string_equal(out, abc);
    assert_int_not_equal(access(cache, F_OK), 0);
    assert_int_equal(lw_file_sha256(folder, NULL, 0, NULL, NULL, out, &err), LW_OK);
    assert_string_equal(out, "");
    assert_int_equal(lw_file_sha256("/nowhere", NULL, 0, NULL, NULL, out, &err), LW_EMODEL);
    assert_non_null(strstr(err.message, "/nowhere"));
}

/* A known hash is put into the cache in place of the true one, so that it shows where an answer came from. */
static void remembered(void **state) {
    (void)state;
    static char fake[65];
    char out[65];
    memset(fake, 'e', 64);
    lw_sha256("", 0, out, NULL);
    if (!out[0]) skip();
    expect("", 2); /* larger than that, and not known yet */
    expect(abc, 3);
    json_t *root = json_load_file(cache, 0, NULL);
    json_t *entry = json_array_get(json_object_get(root, "files"), 0);
    assert_int_equal(json_object_set_new(entry, "sha256", json_string(fake)), 0);
    assert_int_equal(json_dump_file(root, cache, 0), 0);
    expect(fake, 0);
    expect(fake, 2);
    json_object_set_new(entry, "sha256", json_string("no hash"));
    assert_int_equal(json_dump_file(root, cache, 0), 0);
    expect(abc, 0);
    json_decref(root);
    write_text(path, "abcd"); /* another size: what is remembered is of another file */
    expect("88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589", 0);
    write_text(cache, "{\"version\": 1, \"files\": [[], {\"path\": 3}");
    expect("88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589", 0);
    write_text(path, "abc");
}

static int stop(void *user, uint64_t done, uint64_t total) {
    uint64_t *seen = user;
    seen[0] = done, seen[1] = total;
    return 1;
}

static void cancelled_and_faults(void **state) {
    (void)state;
    char out[65];
    lw_error err;
    uint64_t seen[2] = {0};
    lw_sha256("", 0, out, NULL);
    if (!out[0]) skip();
    assert_int_equal(lw_file_sha256(path, NULL, 0, stop, seen, out, &err), LW_ECANCEL);
    assert_string_equal(out, "");
    assert_true(seen[0] == 3 && seen[1] == 3);
    for (long at = 1; at < 20; at++) {
        unlink(cache);
        lw_fault_arm(at, true);
        lw_status status = lw_file_sha256(path, folder, 0, NULL, NULL, out, &err);
        bool hit = lw_fault_count() >= at;
        lw_fault_arm(0, false);
        assert_string_equal(out, status == LW_OK ? abc : ""); /* a cache that fails costs nothing else */
        if (!hit) return;
    }
    fail_msg("more fallible calls than there can be");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(bytes_and_files), cmocka_unit_test(remembered),
                                       cmocka_unit_test(cancelled_and_faults)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
