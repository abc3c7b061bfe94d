/* SPDX-License-Identifier: MIT
 * Pictures on disk: what can't be read or written says so by name, and leaves nothing behind. */
#include "pictures.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/linework-file-test-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

/* Files in the folder; removes them when told. */
static int count_files(const char *path, bool clear) {
    DIR *d = opendir(path);
    assert_non_null(d);
    int n = 0;
    for (struct dirent *e; (e = readdir(d));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        n++;
        if (clear) assert_int_equal(unlinkat(dirfd(d), e->d_name, 0), 0);
    }
    closedir(d);
    return n;
}

static int remove_folder(void **state) {
    (void)state;
    count_files(folder, true);
    return rmdir(folder);
}

static const char *in_folder(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void refuse_reading(const char *path, const char *what) {
    lw_image out;
    lw_fields fields;
    lw_error err;
    assert_int_equal(lw_image_read(path, &out, &fields, &err), LW_EINPUT);
    assert_sentence(&err, LW_EINPUT, path);
    if (!strstr(err.message, what)) fail_msg("'%s' does not say '%s'", err.message, what);
    assert_empty(&out);
    assert_null(fields.items);
}

static void test_read_errors(void **state) {
    (void)state;
    refuse_reading(in_folder("missing.png"), "No such file");
    refuse_reading(folder, "folder");
    refuse_reading("/dev/null", "empty");
    refuse_reading("/dev/zero", "not a picture");
    assert_int_equal(lw_file_write(in_folder("empty.png"), "", 0, NULL), LW_OK);
    refuse_reading(in_folder("empty.png"), "0 bytes");
    assert_int_equal(mkfifo(in_folder("pipe"), 0600), 0);
    refuse_reading(in_folder("pipe"), "pipe"); /* no writer: at once, not for ever */
    assert_int_equal(lw_file_write(in_folder("locked.ppm"), "P5 1 1 255 a", 12, NULL), LW_OK);
    if (geteuid() != 0) {
        assert_int_equal(chmod(in_folder("locked.ppm"), 0), 0);
        refuse_reading(in_folder("locked.ppm"), "Permission denied");
    }
    int fd = open(in_folder("huge.ppm"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(ftruncate(fd, (off_t)1 << 40), 0); /* sparse */
    close(fd);
    refuse_reading(in_folder("huge.ppm"), "1099511627776");
    lw_image out;
    assert_int_equal(lw_image_read(NULL, &out, NULL, NULL), LW_EINVAL);
    count_files(folder, true);
}

static void *feed(void *user) {
    int fd = *(int *)user;
    for (int i = 0; i < 3; i++) {
        usleep(10000);
        assert_int_equal(write(fd, &"P5 1 1 255 a"[i * 4], 4), 4);
    }
    close(fd);
    return NULL;
}

/* A pipe that has a writer is waited for, piece by piece. */
static void test_read_pipe(void **state) {
    (void)state;
    char path[128];
    strcpy(path, in_folder("pipe"));
    assert_int_equal(mkfifo(path, 0600), 0);
    int fd = open(path, O_RDWR | O_CLOEXEC);                  /* opening for writing alone would wait for the reader */
    int keep = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* what is written early is not lost */
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, feed, &fd), 0);
    lw_image out;
    lw_error err = {0};
    lw_status status = lw_image_read(path, &out, NULL, &err);
    pthread_join(thread, NULL);
    close(keep);
    if (status != LW_OK) fail_msg("%s", err.message);
    assert_int_equal(out.data[0], 'a');
    lw_image_free(&out);
    count_files(folder, true);
}

static void test_read_faults(void **state) {
    (void)state;
    lw_image in = make_picture(NOISE, 1, 300, 200, 3), out; /* more than one piece */
    char path[128];
    strcpy(path, in_folder("in.ppm"));
    assert_int_equal(lw_image_write(&in, path, NULL, NULL), LW_OK);
    for (long n = 1;; n++) {
        lw_error err;
        lw_fault_arm(n, false);
        lw_status status = lw_image_read(path, &out, NULL, &err);
        lw_fault_arm(0, false);
        if (status == LW_OK) {
            assert_true(n > 4);
            break;
        }
        assert_true(status == LW_EINPUT || status == LW_ENOMEM);
        assert_sentence(&err, status, path);
        assert_empty(&out);
    }
    assert_same_picture(&in, &out);
    lw_image_free(&in);
    lw_image_free(&out);
    count_files(folder, true);
}

static void test_write(void **state) {
    (void)state;
    static const char *const names[] = {
        "a.ppm",
#ifdef LW_HAVE_PNG
        "b.png",  "C.PNG",
#endif
#ifdef LW_HAVE_JPEG
        "d.jpg",  "e.JPEG",
#endif
#ifdef LW_HAVE_WEBP
        "f.webp",
#endif
    };
    lw_image in = make_picture(SMOOTH, 1, 30, 20, 3), out, gray = make_picture(SMOOTH, 1, 30, 20, 1);
    lw_error err = {0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        for (int twice = 0; twice < 2; twice++)
            if (lw_image_write(&in, in_folder(names[i]), NULL, &err) != LW_OK) fail_msg("%s", err.message);
        if (lw_image_read(in_folder(names[i]), &out, NULL, &err) != LW_OK) fail_msg("%s", err.message);
        assert_int_equal(out.width, 30);
        lw_image_free(&out);
    }
    assert_int_equal(count_files(folder, true), (int)(sizeof names / sizeof *names));
    static const char *const bad[] = {"noext", "a.gif", "png", "x.png/..", ".", "a.png.tmp"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(lw_image_write(&in, in_folder(bad[i]), NULL, &err), LW_EINVAL);
        assert_sentence(&err, LW_EINVAL, "png, jpg");
    }
    assert_int_equal(lw_image_write(&in, in_folder("a.pgm"), NULL, &err), LW_EINVAL);
    assert_int_equal(lw_image_write(&gray, in_folder("a.pgm"), NULL, &err), LW_OK);
    assert_int_equal(count_files(folder, true), 1);
    lw_image_free(&in);
    lw_image_free(&gray);
}

static void refuse_writing(const char *path, const char *what) {
    lw_error err;
    assert_int_equal(lw_file_write(path, "bytes", 5, &err), LW_EOUTPUT);
    assert_sentence(&err, LW_EOUTPUT, path);
    if (!strstr(err.message, what)) fail_msg("'%s' does not say '%s'", err.message, what);
}

static void test_write_errors(void **state) {
    (void)state;
    refuse_writing(folder, "folder");
    refuse_writing(in_folder("no/such/out.png"), "No such file");
    refuse_writing("/dev/full", "No space left");
    refuse_writing("", "empty");
    assert_int_equal(lw_file_write("/dev/null", "bytes", 5, NULL), LW_OK);
    struct stat st;
    assert_int_equal(stat("/dev/null", &st), 0);
    assert_true(S_ISCHR(st.st_mode)); /* written to, never replaced */
    assert_int_equal(lw_file_write(in_folder("f"), "old", 3, NULL), LW_OK);
    char below[128];
    strcpy(below, in_folder("f/out.png"));
    refuse_writing(below, "Not a directory");
    if (geteuid() != 0) {
        assert_int_equal(chmod(in_folder("f"), 0400), 0);
        refuse_writing(in_folder("f"), "Permission denied");
        assert_int_equal(chmod(folder, 0500), 0);
        refuse_writing(in_folder("g"), "Permission denied");
        assert_int_equal(chmod(folder, 0700), 0);
    }
    char long_name[300];
    memset(long_name, 'x', sizeof long_name);
    memcpy(long_name, "/tmp/", 5);
    long_name[299] = 0;
    refuse_writing(long_name, "too long");
    assert_int_equal(count_files(folder, true), 1);
}

/* Old content stays whole whatever fails; no temporary file stays. */
static void test_write_faults(void **state) {
    (void)state;
    char path[128];
    strcpy(path, in_folder("kept.txt"));
    assert_int_equal(lw_file_write(path, "old", 3, NULL), LW_OK);
    for (long n = 1;; n++) {
        lw_error err;
        lw_fault_arm(n, false);
        lw_status status = lw_file_write(path, "newer", 5, &err);
        lw_fault_arm(0, false);
        size_t size;
        uint8_t *bytes = load_file(path, &size);
        assert_int_equal(size, status == LW_OK ? 5 : 3);
        free(bytes);
        assert_int_equal(count_files(folder, false), 1);
        if (status == LW_OK) {
            assert_true(n >= 4); /* create, write, rename */
            break;
        }
        assert_sentence(&err, LW_EOUTPUT, path);
    }
    count_files(folder, true);
}

static void test_write_keeps_link_and_mode(void **state) {
    (void)state;
    char path[128], link[128];
    strcpy(path, in_folder("real"));
    strcpy(link, in_folder("link"));
    assert_int_equal(lw_file_write(path, "old", 3, NULL), LW_OK);
    mode_t mask = umask(0);
    umask(mask);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0666 & ~mask);
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(symlink("real", link), 0);
    assert_int_equal(lw_file_write(link, "newer", 5, NULL), LW_OK);
    assert_int_equal(lstat(link, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    assert_int_equal(lstat(path, &st), 0);
    assert_int_equal(st.st_size, 5);
    assert_int_equal(st.st_mode & 0777, 0640);
    assert_int_equal(count_files(folder, true), 2);
}

static void *read_little(void *user) {
    char byte;
    int fd = open(user, O_RDONLY | O_CLOEXEC);
    if (read(fd, &byte, 1) != 1) byte = 0;
    close(fd);
    return NULL;
}

/* A reader that goes away is an error, not the end of the process. */
static void test_broken_pipe(void **state) {
    (void)state;
    char path[128];
    strcpy(path, in_folder("pipe"));
    assert_int_equal(mkfifo(path, 0600), 0);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, read_little, path), 0);
    size_t n = 4 << 20;
    void *bytes = calloc(n, 1);
    lw_error err;
    assert_int_equal(lw_file_write(path, bytes, n, &err), LW_EOUTPUT);
    assert_sentence(&err, LW_EOUTPUT, "Broken pipe");
    sigset_t waiting;
    sigpending(&waiting);
    assert_int_equal(sigismember(&waiting, SIGPIPE), 0);
    pthread_join(thread, NULL);
    free(bytes);
    struct stat st;
    assert_int_equal(lstat(path, &st), 0);
    assert_true(S_ISFIFO(st.st_mode));
    count_files(folder, true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_errors),  cmocka_unit_test(test_read_pipe),
        cmocka_unit_test(test_read_faults),  cmocka_unit_test(test_write),
        cmocka_unit_test(test_write_errors), cmocka_unit_test(test_write_faults),
        cmocka_unit_test(test_broken_pipe),  cmocka_unit_test(test_write_keeps_link_and_mode),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
