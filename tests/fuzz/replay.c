/* SPDX-License-Identifier: MIT
 * Runs a fuzz target once over each file of the folders and files named: the corpus as a test, without libFuzzer. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int run_file(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) return fprintf(stderr, "%s: can't be opened\n", path), -1;
    fseek(f, 0, SEEK_END);
    long size = ftell(f);
    rewind(f);
    uint8_t *bytes = malloc(size > 0 ? (size_t)size : 1); /* exact size: a read past the end is seen by ASan */
    size_t got = bytes ? fread(bytes, 1, (size_t)size, f) : 0;
    fclose(f);
    if (bytes && got == (size_t)size) LLVMFuzzerTestOneInput(bytes, got);
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
    for (int i = 1; i < argc; i++) {
        int r = run_path(argv[i]);
        if (r < 0) return 1;
        n += r;
    }
    printf("%d inputs\n", n);
    return n > 0 ? 0 : 1; /* an empty corpus tests nothing */
}
