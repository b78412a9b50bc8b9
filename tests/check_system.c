/* Unit tests of src/system. */
#include "suite.h"

#include "src/system/system.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

START_TEST(messages_are_safe)
{
    dsv4_err err;
    ck_assert_int_eq(err_set(&err, DSV4_REFUSED, "a\x1b[2J%s", "\n"), DSV4_REFUSED);
    ck_assert_str_eq(err.text, "a\\x1b[2J\\x0a");
    ck_assert_int_eq(err_set(NULL, DSV4_USAGE, "x"), DSV4_USAGE);
}
END_TEST

START_TEST(long_messages_end_at_a_character)
{
    char raw[3000];
    dsv4_err err;
    for (size_t shift = 0; shift < 3; shift++) {
        size_t n = 0;
        for (size_t i = 0; i < shift; i++)
            raw[n++] = 'x';
        for (; n + 3 < sizeof raw; n += 3)
            memcpy(raw + n, "\xe2\x82\xac", 3);
        raw[n] = 0;
        err_set(&err, DSV4_FAILED, "%s", raw);
        ck_assert_uint_eq((strlen(err.text) - shift) % 3, 0);
    }
}
END_TEST

START_TEST(memory_checks_sizes)
{
    dsv4_err err;
    char *p = NULL;
    ck_assert_int_eq(mem_alloc(&p, SIZE_MAX / 2, 3, "a test", &err), DSV4_NO_MEMORY);
    ck_assert_ptr_null(p);
    ck_assert_int_eq(mem_alloc(&p, SIZE_MAX, 1, "a test", &err), DSV4_NO_MEMORY);
    OK(mem_alloc(&p, 0, 8, "a test", &err));
    ck_assert_ptr_nonnull(p);
    free(p);
    size_t cap = 0;
    p = NULL;
    ck_assert_int_eq(mem_grow(&p, &cap, SIZE_MAX / 2, 4, "a test", &err), DSV4_NO_MEMORY);
    OK(mem_grow(&p, &cap, 9, 1, "a test", &err));
    ck_assert_uint_ge(cap, 9);
    free(p);
}
END_TEST

START_TEST(files_that_are_none_are_refused)
{
    dsv4_err err;
    struct file_map m;
    char dir[] = "/tmp/dsv4-check.XXXXXX";
    ck_assert_ptr_nonnull(mkdtemp(dir));
    int d = open(dir, O_RDONLY | O_DIRECTORY);
    ck_assert_int_ge(d, 0);
    ck_assert_int_eq(mkfifoat(d, "fifo", 0600), 0);
    ck_assert_int_eq(mkdirat(d, "sub", 0700), 0);
    ck_assert_int_eq(symlinkat("/etc/passwd", d, "out"), 0);
    ck_assert_int_eq(symlinkat("../../blobs/../../etc/passwd", d, "out2"), 0);
    ck_assert_int_eq(close(openat(d, "empty", O_CREAT | O_WRONLY, 0600)), 0);
    char big[5000];
    memset(big, 'a', sizeof big - 1);
    big[sizeof big - 1] = 0;
    const char *bad[] = {"fifo", "sub",       "out", "out2", "empty", "absent",
                         "../x", "/dev/zero", "..",  ".",    "",      big};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ck_assert_int_eq(file_map_open(&m, d, bad[i], true, bad[i], &err), DSV4_REFUSED);
    char path[64];
    snprintf(path, sizeof path, "%s/new", dir);
    OK(file_write_atomic(path, "hello", 5, &err));
    OK(file_map_open(&m, d, "new", true, path, &err));
    ck_assert_uint_eq(m.len, 5);
    file_map_close(&m);
    char *text;
    size_t len;
    ck_assert_int_eq(file_read(path, 4, &text, &len, &err), DSV4_REFUSED);
    OK(file_read(path, 5, &text, &len, &err));
    ck_assert_str_eq(text, "hello");
    free(text);
    ck_assert_int_eq(file_write_atomic("/nowhere/at/all", "x", 1, &err), DSV4_FAILED);
    close(d);
    char cmd[80];
    snprintf(cmd, sizeof cmd, "rm -rf %s", dir);
    ck_assert_int_eq(system(cmd), 0);
}
END_TEST

struct sum {
    size_t n;
    unsigned char seen[1000];
    int phase[64];
    bool torn;
};

static void cover(const struct lane *l, void *arg)
{
    struct sum *s = arg;
    size_t a, b;
    lane_split(l, s->n, 16, &a, &b);
    for (size_t i = a; i < b; i++)
        s->seen[i]++;
    for (int phase = 1; phase < 200; phase++) {
        s->phase[l->id] = phase;
        lane_barrier(l);
        for (int i = 0; i < l->n; i++)
            if (s->phase[i] != phase)
                s->torn = true;
        lane_barrier(l);
    }
}

START_TEST(every_item_once_and_barriers_hold)
{
    dsv4_err err;
    for (int threads = 1; threads <= 7; threads += 2) {
        struct pool *p;
        OK(pool_open_threads(&p, threads, &err));
        ck_assert_int_eq(pool_threads(p), threads);
        for (size_t n = 0; n <= 1000; n += 37) {
            struct sum s = {.n = n};
            pool_run(p, cover, &s);
            ck_assert(!s.torn);
            for (size_t i = 0; i < 1000; i++)
                ck_assert_int_eq(s.seen[i], i < n);
        }
        pool_close(p);
    }
    struct pool *p;
    ck_assert_int_eq(pool_open_threads(&p, -1, &err), DSV4_USAGE);
    ck_assert_int_eq(pool_open_threads(&p, INT_MAX, &err), DSV4_USAGE);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("system");
    TCase *t = tcase_create("all");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, messages_are_safe);
    tcase_add_test(t, long_messages_end_at_a_character);
    tcase_add_test(t, memory_checks_sizes);
    tcase_add_test(t, files_that_are_none_are_refused);
    tcase_add_test(t, every_item_once_and_barriers_hold);
    suite_add_tcase(s, t);
    return run_suite(s);
}
