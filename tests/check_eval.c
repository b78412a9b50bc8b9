/* Units of dsv4-eval: what is kept of a row of logits and what that says about another row, the file of kept
 * rows, the state of a run. The program as a whole: tests/test_eval.sh. */
#include "suite.h"

#include "tools/eval.h"

#include <fcntl.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

enum { VOCAB = 300 };

/* ------------------------------------------------------------------ rows */

static float next_float(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (float)(*state >> 40) / (float)(1 << 24);
}

/* A row like a model's: a few likely tokens and a long tail. */
static void make_row(float *row, uint64_t seed)
{
    for (size_t i = 0; i < VOCAB; i++) {
        float u = next_float(&seed);
        row[i] = 3 * u + (i % 37 == seed % 37 ? 6 * u : 0);
    }
}

/* A row not far from it. */
static void make_near(float *to, const float *row, uint64_t seed)
{
    for (size_t i = 0; i < VOCAB; i++)
        to[i] = row[i] + 0.4f * (next_float(&seed) - 0.5f);
}

START_TEST(divergence_is_that_of_the_definition)
{
    float p[VOCAB], q[VOCAB];
    make_row(p, 1);
    make_row(q, 2);
    double ps = 0, qs = 0, kl = 0;
    for (size_t i = 0; i < VOCAB; i++) {
        ps += exp((double)p[i]);
        qs += exp((double)q[i]);
    }
    for (size_t i = 0; i < VOCAB; i++)
        kl += exp((double)p[i]) / ps * (log(exp((double)p[i]) / ps) - log(exp((double)q[i]) / qs));
    ck_assert_double_eq_tol(row_kl(p, q, VOCAB), kl, 1e-12);
    ck_assert_double_eq_tol(row_kl(p, p, VOCAB), 0, 1e-15);
    ck_assert_double_eq_tol(row_scale(p, VOCAB), log(ps), 1e-12);
    for (size_t i = 0; i < VOCAB; i++)
        p[i] += 1000; /* beyond exp() */
    ck_assert_double_eq_tol(row_scale(p, VOCAB), log(ps) + 1000, 1e-3);
    p[7] = p[5] = 2000;
    ck_assert_int_eq(row_best(p, VOCAB), 5);
}
END_TEST

START_TEST(most_likely_tokens_are_kept)
{
    float p[VOCAB];
    struct kept_token top[VOCAB];
    struct kept_row r = {.top = top};
    for (uint64_t seed = 0; seed < 20; seed++) {
        make_row(p, seed);
        p[200] = p[100]; /* equal ones: the lower id comes first */
        row_keep(&r, p, VOCAB, 3, 40, seed);
        ck_assert_uint_eq(r.n_top, 40);
        double scale = row_scale(p, VOCAB), mass = 0;
        for (size_t i = 0; i < r.n_top; i++) {
            size_t better = 0;
            for (size_t k = 0; k < VOCAB; k++)
                better += p[k] > p[top[i].id] || (p[k] == p[top[i].id] && (int)k < top[i].id);
            ck_assert_uint_eq(better, i);
            ck_assert_float_eq_tol(top[i].logp, (float)((double)p[top[i].id] - scale), 1e-6f);
            mass += exp((double)top[i].logp);
        }
        ck_assert_double_eq_tol(exp((double)r.log_tail), 1 - mass, 1e-6);
        ck_assert_float_eq_tol(r.nll, (float)(scale - (double)p[3]), 1e-5f);
        ck_assert_uint_eq(r.n_samples, KEPT_SAMPLES);
        for (size_t i = 0; i < KEPT_SAMPLES; i++)
            for (size_t k = 0; k < r.n_top; k++)
                ck_assert_int_ne(r.sample[i].id, top[k].id);
    }
    /* no more than is needed */
    memset(p, 0, sizeof p);
    p[11] = 40;
    row_keep(&r, p, VOCAB, 11, 40, 0);
    ck_assert_uint_eq(r.n_top, 1);
    ck_assert_int_eq(top[0].id, 11);
    /* all there is: no tail */
    make_row(p, 3);
    row_keep(&r, p, VOCAB, 11, 2 * VOCAB, 0);
    ck_assert_uint_eq(r.n_top, VOCAB);
    ck_assert(isinf(r.log_tail) && r.n_samples == 0);
}
END_TEST

/* The mean over many draws is the divergence, its spread is what the estimate says, and the bound holds. */
START_TEST(kept_rows_estimate_the_divergence)
{
    enum { DRAWS = 20000 };
    float p[VOCAB], q[VOCAB];
    struct kept_token top[VOCAB];
    struct kept_row r = {.top = top};
    make_row(p, 5);
    make_near(q, p, 6);
    double truth = row_kl(p, q, VOCAB), sum = 0, square = 0, variance = 0;
    struct kl_estimate k = {0};
    for (uint64_t i = 0; i < DRAWS; i++) {
        row_keep(&r, p, VOCAB, 0, 20, i);
        k = row_kl_kept(&r, q, VOCAB);
        sum += k.kl;
        square += (k.kl - truth) * (k.kl - truth);
        variance += k.variance;
    }
    double error = sqrt(square) / DRAWS;
    ck_assert_double_gt(error, 0);
    ck_assert_double_eq_tol(sum / DRAWS, truth, 5 * error);
    ck_assert_double_eq_tol(variance / square, 1, 0.05);
    ck_assert_double_lt(k.low, truth);
    ck_assert_double_gt(k.low, 0);
    row_keep(&r, p, VOCAB, 0, VOCAB, 1);
    k = row_kl_kept(&r, q, VOCAB);
    ck_assert_double_eq_tol(k.kl, truth, 1e-6);
    ck_assert(k.variance == 0 && k.low == k.kl);
}
END_TEST

START_TEST(quantiles)
{
    double x[] = {5, 1, 4, 2, 3};
    ck_assert_double_eq(quantile(x, 5, 0.5), 3);
    ck_assert_double_eq(quantile(x, 5, 0.99), 5);
    ck_assert_double_eq(quantile(x, 5, 0.2), 1);
    ck_assert_double_eq(quantile(x, 1, 0.5), 1);
}
END_TEST

/* ------------------------------------------------------------------ files */

static char dir[] = "/tmp/check_eval.XXXXXX";
static char file[64], part[64];

static void make_dir(void)
{
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(file, sizeof file, "%s/file", dir);
    snprintf(part, sizeof part, "%s/file.part", dir);
}

static void remove_dir(void)
{
    unlink(file);
    unlink(part);
    rmdir(dir);
}

static void put_file(const char *path, const void *data, size_t len)
{
    dsv4_err err;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ck_assert_int_ge(fd, 0);
    OK(file_write_all(fd, path, data, len, &err));
    close(fd);
}

enum { WINDOWS = 3, ROWS = 2, TOP = 4 };
static const struct logits_head head = {VOCAB, 8, 1, TOP, WINDOWS, WINDOWS *ROWS, 77, 88};

static void keep(struct kept_row *r, struct kept_token top[TOP], size_t i)
{
    float p[VOCAB];
    make_row(p, i);
    r->top = top;
    row_keep(r, p, VOCAB, 1, TOP, i);
}

static void add_windows(struct logits_file *f, size_t from, size_t to)
{
    dsv4_err err;
    struct kept_row r;
    struct kept_token top[TOP];
    for (size_t w = from; w < to; w++) {
        for (size_t i = 0; i < ROWS; i++) {
            keep(&r, top, w * ROWS + i);
            OK(logits_add(f, &r, &err));
        }
        OK(logits_end_window(f, &err));
    }
}

static void write_logits(char **data, size_t *len)
{
    dsv4_err err;
    struct logits_file f;
    OK(logits_create(&f, file, &head, 0, &err));
    add_windows(&f, 0, WINDOWS);
    ck_assert_int_ne(access(file, F_OK), 0);
    OK(logits_finish(&f, true, true, &err));
    OK(file_read(file, 1 << 20, data, len, &err));
}

/* Everything in the file, or the first refusal. */
static int read_logits(dsv4_err *err)
{
    struct logits_file f;
    struct kept_token top[TOP];
    struct kept_row r = {.top = top};
    TRY(logits_open(&f, file, err));
    int rc = logits_fits(&f, &head, err);
    for (uint32_t w = 0; rc == 0 && w < WINDOWS; w++) {
        rc = logits_window(&f, w, err);
        for (size_t i = 0; rc == 0 && i < ROWS; i++)
            rc = logits_next(&f, &r, err);
    }
    logits_close(&f);
    return rc;
}

START_TEST(kept_rows_come_back)
{
    dsv4_err err;
    struct logits_file f;
    struct kept_token top[TOP], wanted_top[TOP];
    struct kept_row r = {.top = top}, wanted;
    char *data;
    size_t len;
    write_logits(&data, &len);
    OK(logits_open(&f, file, &err));
    OK(logits_window(&f, 1, &err)); /* the first one is passed over */
    for (size_t i = 0; i < ROWS; i++) {
        OK(logits_next(&f, &r, &err));
        keep(&wanted, wanted_top, ROWS + i);
        ck_assert(r.nll == wanted.nll && r.log_tail == wanted.log_tail);
        ck_assert(r.n_top == wanted.n_top && r.n_samples == wanted.n_samples);
        ck_assert_mem_eq(top, wanted_top, r.n_top * sizeof *top);
        ck_assert_mem_eq(r.sample, wanted.sample, r.n_samples * sizeof *r.sample);
    }
    ck_assert_int_eq(logits_next(&f, &r, &err), DSV4_REFUSED);
    logits_close(&f);
    free(data);
}
END_TEST

START_TEST(damaged_files_are_refused)
{
    dsv4_err err;
    char *data;
    size_t len;
    write_logits(&data, &len);
    OK(read_logits(&err));
    for (size_t n = 0; n < len; n++) {
        put_file(file, data, n);
        ck_assert_int_eq(read_logits(&err), DSV4_REFUSED);
    }
    for (size_t i = 0; i < len; i++) {
        data[i] ^= 0x10;
        put_file(file, data, len);
        ck_assert_msg(read_logits(&err) == DSV4_REFUSED, "byte %zu", i);
        data[i] ^= 0x10;
    }
    data = realloc(data, len + 1);
    data[len] = 0;
    put_file(file, data, len + 1);
    ck_assert_int_eq(read_logits(&err), DSV4_REFUSED);
    ck_assert_ptr_nonnull(strstr(err.text, file));
    free(data);
}
END_TEST

START_TEST(rows_of_something_else_are_refused)
{
    dsv4_err err;
    char *data;
    size_t len;
    write_logits(&data, &len);
    free(data);
    struct logits_file f;
    OK(logits_open(&f, file, &err));
    struct logits_head h = head;
    h.tokenizer++;
    ck_assert_int_eq(logits_fits(&f, &h, &err), DSV4_REFUSED);
    ck_assert_ptr_nonnull(strstr(err.text, "another tokenizer"));
    h = head;
    h.ids++;
    ck_assert_int_eq(logits_fits(&f, &h, &err), DSV4_REFUSED);
    ck_assert_ptr_nonnull(strstr(err.text, "another text"));
    h = head;
    h.context++;
    ck_assert_int_eq(logits_fits(&f, &h, &err), DSV4_REFUSED);
    ck_assert_ptr_nonnull(strstr(err.text, "--context 8"));
    logits_close(&f);
}
END_TEST

/* Stopped after any window, with or without a part of the next one, it ends as if it had not been. */
START_TEST(interrupted_files_go_on)
{
    dsv4_err err;
    char *whole, *again;
    size_t len, n;
    write_logits(&whole, &len);
    for (uint32_t done = 0; done <= WINDOWS; done++)
        for (size_t more = 0; more < 40; more += 13) {
            struct logits_file f;
            unlink(file);
            OK(logits_create(&f, file, &head, 0, &err));
            add_windows(&f, 0, done);
            OK(logits_finish(&f, false, true, &err));
            int fd = open(part, O_WRONLY | O_APPEND);
            OK(file_write_all(fd, part, whole, more, &err));
            close(fd);
            OK(logits_create(&f, file, &head, done, &err));
            add_windows(&f, done, WINDOWS);
            OK(logits_finish(&f, true, true, &err));
            OK(file_read(file, 1 << 20, &again, &n, &err));
            ck_assert_uint_eq(n, len);
            ck_assert_mem_eq(again, whole, len);
            free(again);
        }
    struct logits_file f;
    OK(logits_create(&f, file, &head, WINDOWS, &err)); /* it was complete */
    OK(logits_finish(&f, true, true, &err));
    ck_assert_int_eq(access(file, F_OK), 0);
    unlink(file);
    ck_assert_int_eq(logits_create(&f, file, &head, 1, &err), DSV4_FAILED);
    OK(logits_create(&f, file, &head, 0, &err));
    OK(logits_finish(&f, false, false, &err));
    ck_assert_int_ne(access(part, F_OK), 0);
    free(whole);
}
END_TEST

/* ------------------------------------------------------------------ the state */

static int units(const json_t *task, size_t *n, dsv4_err *err)
{
    struct eval_state s;
    TRY(eval_state_open(&s, file, task, err));
    *n = json_array_size(s.units);
    eval_state_close(&s);
    return 0;
}

START_TEST(states_go_on)
{
    dsv4_err err;
    struct eval_state s;
    char *data;
    size_t len, n, lines = 0, first;
    json_t *task = json_pack("{s:i, s:i}", "dsv4-eval", 1, "context", 8);
    OK(eval_state_open(&s, file, task, &err));
    struct eval_state second;
    ck_assert_int_eq(eval_state_open(&second, file, task, &err), DSV4_FAILED); /* in use */
    for (int i = 0; i < 3; i++)
        OK(eval_state_add(&s, json_pack("{s:i}", "unit", i), &err));
    eval_state_close(&s);
    OK(file_read(file, 1 << 20, &data, &len, &err));
    first = strcspn(data, "\n") + 1;
    for (size_t cut = first; cut <= len; cut++) {
        lines += cut > first && data[cut - 1] == '\n';
        put_file(file, data, cut);
        OK(units(task, &n, &err));
        ck_assert_uint_eq(n, lines);
        struct stat st;
        ck_assert_int_eq(stat(file, &st), 0);
        ck_assert_int_eq(data[st.st_size - 1], '\n'); /* what was torn is gone */
    }
    ck_assert_uint_eq(lines, 3);
    json_t *other = json_pack("{s:i, s:i}", "dsv4-eval", 1, "context", 9);
    put_file(file, data, len);
    ck_assert_int_eq(units(other, &n, &err), DSV4_REFUSED);
    ck_assert_msg(strstr(err.text, "\"context\" was 8 and is 9"), "%s", err.text);
    data[first] = 'x'; /* a line before the last one */
    put_file(file, data, len);
    ck_assert_int_eq(units(task, &n, &err), DSV4_REFUSED);
    ck_assert_ptr_nonnull(strstr(err.text, "line 2"));
    put_file(file, "{}\n", 3);
    ck_assert_int_eq(units(task, &n, &err), DSV4_REFUSED);
    put_file(file, data, first - 1); /* not even the task is whole */
    ck_assert_int_eq(units(task, &n, &err), DSV4_REFUSED);
    json_decref(task);
    json_decref(other);
    free(data);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("eval");
    TCase *t = tcase_create("rows");
    tcase_add_test(t, divergence_is_that_of_the_definition);
    tcase_add_test(t, most_likely_tokens_are_kept);
    tcase_add_test(t, kept_rows_estimate_the_divergence);
    tcase_add_test(t, quantiles);
    suite_add_tcase(s, t);
    t = tcase_create("files");
    tcase_add_checked_fixture(t, make_dir, remove_dir);
    tcase_add_test(t, kept_rows_come_back);
    tcase_add_test(t, damaged_files_are_refused);
    tcase_add_test(t, rows_of_something_else_are_refused);
    tcase_add_test(t, interrupted_files_go_on);
    tcase_add_test(t, states_go_on);
    suite_add_tcase(s, t);
    return run_suite(s);
}
