/* SPDX-License-Identifier: MIT
 * Runs a fuzz target once over each file of the folders and files named: the corpus as a test, without libFuzzer.
 * --mutants N before them: and over N mutants of each, the same ones every time. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static long n_mutants;

static uint64_t next_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* One to four changes: a bit, a byte, an edge value of 1 to 8 bytes, a piece copied over another, the end cut off. */
static size_t mutate(uint8_t *bytes, size_t n, uint64_t *state) {
    static const uint64_t edges[] = {0,          1,          0x7f,      0x80,       0xff, 0xffff, 0x7fffffff,
                                     0x80000000, 0xffffffff, INT64_MAX, UINT64_MAX, 22,   64};
    for (uint64_t k = next_random(state) % 4 + 1; k > 0 && n > 0; k--) {
        uint64_t r = next_random(state);
        size_t at = (size_t)(next_random(state) % n), from = (size_t)(next_random(state) % n),
               piece = (size_t)(r >> 8) % 16 + 1;
        switch (r % 8) {
        case 0: n = at; break;
        case 1:
        case 2: bytes[at] ^= (uint8_t)(1 << (r >> 8) % 8); break;
        case 3:
        case 4: bytes[at] = (uint8_t)(r >> 8); break;
        case 5:
            if (at + piece <= n && from + piece <= n) memmove(bytes + at, bytes + from, piece);
            break;
        default:
            for (size_t i = 0; i < (size_t)1 << (r >> 8) % 4 && at + i < n; i++)
                bytes[at + i] = (uint8_t)(edges[(r >> 16) % (sizeof edges / sizeof *edges)] >> (8 * i));
        }
    }
    return n;
}

static void run_mutants(const uint8_t *bytes, size_t n) {
    uint64_t state = n;
    for (long i = 0; i < n_mutants; i++) {
        uint8_t *copy = malloc(n ? n : 1), *exact;
        memcpy(copy, bytes, n);
        size_t left = mutate(copy, n, &state);
        exact = realloc(copy, left ? left : 1);
        LLVMFuzzerTestOneInput(exact, left);
        free(exact);
    }
}

static int run_file(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) return fprintf(stderr, "%s: can't be opened\n", path), -1;
    fseek(f, 0, SEEK_END);
    long size = ftell(f);
    rewind(f);
    uint8_t *bytes = malloc(size > 0 ? (size_t)size : 1); /* exact size: a read past the end is seen by ASan */
    size_t got = bytes ? fread(bytes, 1, (size_t)size, f) : 0;
    fclose(f);
    if (bytes && got == (size_t)size) {
        LLVMFuzzerTestOneInput(bytes, got);
        run_mutants(bytes, got);
    }
    free(bytes);
    return 1;
}

static int run_path(const char *path) {
    struct stat st;
    if (stat(path, &st) != 0) return fprintf(stderr, "%s: no such file\n", path), -1;
    if (!S_ISDIR(st.st_mode)) return run_file(path);
    DIR *dir = opendir(path);
    int n = 0;
    for (struct dirent *e; dir && (e = readdir(dir));) {
        char name[4096];
        if (e->d_name[0] == '.') continue;
        snprintf(name, sizeof name, "%s/%s", path, e->d_name);
        int r = run_path(name);
        if (r < 0) n = -1;
        if (n >= 0) n += r;
    }
    if (dir) closedir(dir);
    return n;
}

int main(int argc, char **argv) {
    int n = 0;
    int first = 1;
    if (argc > 2 && strcmp(argv[1], "--mutants") == 0) {
        n_mutants = strtol(argv[2], NULL, 10);
        first = 3;
    }
    for (int i = first; i < argc; i++) {
        int r = run_path(argv[i]);
        if (r < 0) return 1;
        n += r;
    }
    printf("%d inputs, %ld mutants\n", n, n > 0 ? n * n_mutants : 0);
    return n > 0 ? 0 : 1; /* an empty corpus tests nothing */
}
