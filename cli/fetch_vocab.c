/* SPDX-License-Identifier: MIT
 * linework fetch-vocab: CLIP's vocabulary, which is not ours to ship, into the cache. pip brings the wheel of
 * open-clip-torch, Python takes the file out of it and checks its hash; all in a folder of its own beside the place
 * where the file is renamed to. */
#include "cli.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum { N_VOCAB = 49408 };

static const char sha256[] = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a";

/* Unpacked, so that builds without zlib read it too. Arguments: the folder of the wheel, the file to write, the hash.
 */
static const char extract[] = "import glob, gzip, hashlib, sys, zipfile\n"
                              "folder, out, want = sys.argv[1:]\n"
                              "wheel = zipfile.ZipFile(glob.glob(glob.escape(folder) + '/*.whl')[0])\n"
                              "names = [n for n in wheel.namelist() if n.endswith('/bpe_simple_vocab_16e6.txt.gz')]\n"
                              "if len(names) != 1 or wheel.getinfo(names[0]).file_size > 1 << 24:\n"
                              "    sys.exit(f'{wheel.filename}: no bpe_simple_vocab_16e6.txt.gz in it')\n"
                              "data = wheel.read(names[0])\n"
                              "got = hashlib.sha256(data).hexdigest()\n"
                              "if got != want:\n"
                              "    sys.exit(f'{names[0]} of the wheel has the SHA-256 {got}, not {want}')\n"
                              "with open(out, 'wb') as f:\n"
                              "    f.write(gzip.decompress(data))\n";

/* What counts of what a program said, in place: why pip reached no index, which its last line does not tell, else that
 * line. */
static const char *reason(char *text) {
    static const char broken[] = "connection broken by ";
    char *why = strstr(text, broken);
    if (why) {
        why[strcspn(why, "\n")] = 0;
        return why;
    }
    size_t n = strlen(text);
    while (n > 0 && strchr(" \r\n", text[n - 1])) text[--n] = 0;
    char *line = strrchr(text, '\n');
    if (line) return line + 1;
    return *text ? text : "python3 failed and said nothing";
}

static lw_status wait_for(pid_t pid, int *code, lw_error *err) {
    bool told = false;
    while (waitpid(pid, code, 0) < 0) {
        if (errno != EINTR) return cli_fail(err, LW_EMODEL, "fetch-vocab: python3 is lost: %s", strerror(errno));
        if (cli_interrupted() && !told) kill(pid, SIGTERM), told = true;
    }
    return cli_interrupted() ? cli_fail(err, LW_ECANCEL, "fetch-vocab: cancelled") : LW_OK;
}

/* Runs python3 with what it says in the file `said`; its last line is the failure's. */
static lw_status run_python(const char *const *arguments, const char *said, lw_error *err) {
    posix_spawn_file_actions_t files;
    pid_t pid;
    int code = 0;
    if (posix_spawn_file_actions_init(&files) != 0) return cli_no_memory(err);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, 1, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&files, 2, said, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    int failed = posix_spawnp(&pid, "python3", &files, NULL, (char *const *)(uintptr_t)arguments, environ);
    posix_spawn_file_actions_destroy(&files);
    if (failed)
        return cli_fail(err, LW_EMODEL,
                        "fetch-vocab: python3 with pip is needed and can't be run: %s; or give --vocab "
                        "bpe_simple_vocab_16e6.txt.gz",
                        strerror(failed));
    lw_status status = wait_for(pid, &code, err);
    if (status != LW_OK || (WIFEXITED(code) && WEXITSTATUS(code) == 0)) return status;
    void *bytes = NULL;
    size_t n = 0;
    lw_error ignored;
    char *text = cli_read_file(said, LW_EMODEL, &bytes, &n, &ignored) == LW_OK
                     ? cli_format("%.*s", (int)n, (char *)bytes)
                     : NULL;
    cli_fail(err, LW_EMODEL, "fetch-vocab: open-clip-torch can't be had from pip: %s", text ? reason(text) : "?");
    free(text);
    free(bytes);
    return LW_EMODEL;
}

/* Downloads into folder and leaves the vocabulary in `file`. */
static lw_status fetch(const char *folder, const char *file, lw_error *err) {
    char *said = cli_format("%s/said", folder);
    const char *const download[] = {"python3",
                                    "-m",
                                    "pip",
                                    "download",
                                    "--quiet",
                                    "--no-input",
                                    "--no-deps",
                                    "--retries",
                                    "1",
                                    "--disable-pip-version-check",
                                    "--only-binary",
                                    ":all:",
                                    "--dest",
                                    folder,
                                    "open-clip-torch",
                                    NULL};
    const char *const unpack[] = {"python3", "-c", extract, folder, file, sha256, NULL};
    lw_tokenizer *check = NULL;
    if (!said) return cli_no_memory(err);
    lw_status status = run_python(download, said, err);
    if (status == LW_OK) status = run_python(unpack, said, err);
    if (status == LW_OK) status = lw_tokenizer_open(&check, file, N_VOCAB, err);
    lw_tokenizer_close(&check);
    free(said);
    return status;
}

static void remove_folder(const char *folder) {
    DIR *dir = opendir(folder);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        char *path = cli_format("%s/%s", folder, e->d_name);
        if (path && e->d_name[0] != '.') unlink(path);
        free(path);
    }
    if (dir) closedir(dir);
    rmdir(folder);
}

static lw_status fetch_into(const char *cache, const char *target, lw_error *err) {
    char *folder = cli_format("%s/fetch-XXXXXX", cache), *file = NULL;
    lw_status status = LW_OK;
    cli_make_cache_dir(cache);
    if (!folder) return cli_no_memory(err);
    if (!mkdtemp(folder)) {
        status = cli_fail(err, LW_EOUTPUT, "%s: can't be written: %s", cache, strerror(errno));
    } else {
        file = cli_format("%s/merges.txt", folder);
        status = file ? fetch(folder, file, err) : cli_no_memory(err);
        if (status == LW_OK && rename(file, target) != 0)
            status = cli_fail(err, LW_EOUTPUT, "%s: can't be put in place: %s", target, strerror(errno));
        remove_folder(folder);
    }
    free(file);
    free(folder);
    return status;
}

lw_status cmd_fetch_vocab(const opt_parsed *o, lw_error *err) {
    char *cache = cli_cache_dir(), *target = cache ? cli_format("%s/merges.txt", cache) : NULL;
    lw_tokenizer *there = NULL;
    lw_error ignored;
    lw_status status = LW_OK;
    if (!cache) status = cli_fail(err, LW_EOUTPUT, "fetch-vocab: no cache: neither XDG_CACHE_HOME nor HOME is set");
    else if (!target) status = cli_no_memory(err);
    bool had = status == LW_OK && lw_tokenizer_open(&there, target, N_VOCAB, &ignored) == LW_OK;
    lw_tokenizer_close(&there);
    if (status == LW_OK && !had) status = fetch_into(cache, target, err);
    if (status == LW_OK && opt_get(o, ALL_JSON)->at) {
        json_t *json = json_pack("{s:s, s:b}", "vocabulary", target, "fetched", !had);
        status = json ? cli_print_json(json, err) : cli_no_memory(err);
        json_decref(json);
    } else if (status == LW_OK) {
        char *line =
            cli_format("%s: %s\n", target, had ? "was there already" : "CLIP's vocabulary, of open-clip-torch");
        status = line ? cli_print(line, err) : cli_no_memory(err);
        free(line);
    }
    free(target);
    free(cache);
    return status;
}
