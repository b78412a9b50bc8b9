/* The model on shapes that no release has but config.json may ask for (tests/golden-edge: what each
 * case is about stands in its expect.json): logits of the reference, and the same bits in any
 * chunks, on any number of threads and after wrong tokens were taken back. */
#include "golden_case.h"

#include <math.h>
#include <unistd.h>

#define EDGE "../golden-edge/"

static const char *const cases[] = {"v4-window",  "v4-odd",   "v4-wide",   "v41-keyless",
                                    "v41-blocks", "v41-hc16", "v41-engram"};
enum { N_CASES = sizeof cases / sizeof *cases };

static void open_case(struct golden *g, int i, int threads)
{
    char name[64];
    snprintf(name, sizeof name, EDGE "%s", cases[i]);
    golden_open(g, name, threads);
}

static double tolerance(const struct golden *g, const char *key)
{
    json_t *j = json_object_get(json_object_get(g->expect, "tolerance"), key);
    ck_assert_msg(json_is_number(j), "%s: no tolerance %s", g->dir, key);
    return json_number_value(j);
}

static int compare_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* With quantizers a value on a rounding boundary may fall either way and moves all later rows: the
 * median of the rows and the mean are judged there. */
static void logits_of(struct golden *g, int which)
{
    size_t n, vocab = g->cfg->vocab;
    int32_t *ids = golden_prompt(g, &n);
    struct cache *c = golden_cache(g, n);
    float *logits = golden_run(g, c, ids, n, NULL, NULL);
    const struct tensor *want = golden_tensor(g, "logits");
    ck_assert(want->rank == 2 && want->dim[0] == n && want->dim[1] == vocab);
    double *top = calloc(n, sizeof *top), sum = 0;
    for (size_t i = 0; i < n * vocab; i++) {
        double e = fabs((double)logits[i] - (double)golden_f32(want, i));
        ck_assert_msg(isfinite(e), "%s: logit %zu is %g", g->dir, i, (double)logits[i]);
        top[i / vocab] = fmax(top[i / vocab], e);
        sum += e;
    }
    qsort(top, n, sizeof *top, compare_double);
    double most = top[n - 1], median = top[n / 2], mean = sum / (double)(n * vocab);
    printf("   %-12s max %.2e  median row %.2e  mean %.2e\n", cases[which], most, median, mean);
    fflush(stdout);
    if (g->quant) {
        ck_assert_double_le(median, tolerance(g, "logits_row_max_median"));
        ck_assert_double_le(mean, tolerance(g, "logits_mean"));
    } else {
        ck_assert_double_le(most, tolerance(g, "logits_abs"));
    }
    free(top);
    free(logits);
    free(ids);
    cache_close(c);
    golden_close(g);
}

START_TEST(logits_of_the_reference)
{
    struct golden g;
    open_case(&g, _i, 2);
    logits_of(&g, _i);
}
END_TEST

/* Without panels, as weights that are larger than memory are used. */
START_TEST(logits_from_plain_rows)
{
    struct golden g;
    char name[64];
    snprintf(name, sizeof name, EDGE "%s", cases[_i]);
    golden_open_plain(&g, name, 2);
    logits_of(&g, _i);
}
END_TEST

/* One thread; an odd number, more than most machines that test this have cores; more than matrices have rows. */
START_TEST(same_bits_in_any_chunks_and_threads)
{
    enum { N_THREADS = 3 };
    static const int threads[N_THREADS] = {1, 7, 12};
    struct golden g[N_THREADS];
    for (int i = 0; i < N_THREADS; i++)
        open_case(&g[i], _i, threads[i]);
    size_t n, sizes[2][256] = {{0}};
    int32_t *ids = golden_prompt(&g[0], &n);
    ck_assert_uint_lt(n, 256);
    for (size_t i = 0; i < n; i++)
        sizes[0][i] = 1;
    for (size_t i = 0, left = n; left > 0; left -= sizes[1][i++])
        sizes[1][i] = i % 5 + 1 < left ? i % 5 + 1 : left;
    float *first = NULL;
    for (int run = 0; run < 3 * N_THREADS; run++) {
        struct golden *w = &g[run % N_THREADS];
        struct cache *c = golden_cache(w, n);
        float *logits =
            golden_run(w, c, ids, n, run < N_THREADS ? NULL : sizes[run / N_THREADS - 1], NULL);
        if (first) {
            ck_assert_msg(memcmp(first, logits, n * w->cfg->vocab * sizeof *logits) == 0,
                          "%s: run %d differs", cases[_i], run);
            free(logits);
        } else {
            first = logits;
        }
        cache_close(c);
    }
    free(first);
    free(ids);
    for (int i = 0; i < N_THREADS; i++)
        golden_close(&g[i]);
}
END_TEST

START_TEST(rollback_leaves_no_trace)
{
    struct golden g;
    open_case(&g, _i, 2);
    size_t n, vocab = g.cfg->vocab;
    int32_t *ids = golden_prompt(&g, &n), wrong[64];
    for (size_t i = 0; i < 64; i++)
        wrong[i] = (int32_t)((i * 37 + 11) % vocab);
    struct cache *c = golden_cache(&g, n + 64);
    float *straight = golden_run(&g, c, ids, n, NULL, NULL);
    cache_rewind(c, 0);
    for (size_t step = 1, at = 0; at < n; step++) {
        size_t k = step * 5 % 19 + 1, bad = step * 11 % 64 + 1;
        k = k < n - at ? k : n - at;
        free(golden_run(&g, c, wrong, bad, NULL, NULL));
        ck_assert_uint_le(cache_floor(c), at);
        cache_rewind(c, at);
        float *logits = golden_run(&g, c, ids + at, k, NULL, NULL);
        ck_assert_msg(memcmp(logits, straight + at * vocab, k * vocab * sizeof *logits) == 0,
                      "%s: rows from %zu differ after a roll-back of %zu", cases[_i], at, bad);
        free(logits);
        at += k;
    }
    free(straight);
    free(ids);
    cache_close(c);
    golden_close(&g);
}
END_TEST

static int load(const struct golden *like, const char *dir, dsv4_err *err)
{
    struct store *s;
    struct model *m = NULL;
    ck_assert_int_eq(store_open(&s, dir, err), 0);
    int rc = model_bind(&m, like->cfg, s, like->quant, err);
    if (rc == 0)
        rc = weights_load(m, like->pool, NULL, NULL, err);
    model_close(m);
    store_close(s);
    return rc;
}

/* In a copy of the file one scale after the other is NaN: of matrices that become panels and of those that
 * stay as they are (v4-odd, whose blocks are 7 x 7). */
START_TEST(nan_scales_are_refused)
{
    struct golden g;
    dsv4_err err;
    char dir[] = "/tmp/dsv4-edge.XXXXXX", path[600], *file;
    size_t len;
    golden_open(&g, _i ? EDGE "v41-hc16" : EDGE "v4-odd", 2);
    snprintf(path, sizeof path, "%s/model.safetensors", g.dir);
    OK(file_read(path, 1 << 24, &file, &len, &err));
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    FILE *f = fopen(path, "w+b");
    ck_assert(f && fwrite(file, 1, len, f) == len && fflush(f) == 0);
    OK(load(&g, dir, &err));
    uint64_t header;
    memcpy(&header, file, sizeof header);
    const uint8_t *data = store_at(g.store, 0)->data;
    for (size_t i = 0; i < store_count(g.store); i++)
        data = store_at(g.store, i)->data < data ? store_at(g.store, i)->data : data;
    size_t tried = 0;
    for (size_t i = 0; i < store_count(g.store); i++) {
        const struct tensor *t = store_at(g.store, i);
        if (t->dtype != DTYPE_E8M0 || strncmp(t->name, "layers.", 7) != 0)
            continue;
        long at = (long)(sizeof header + header + (size_t)(t->data - data) + t->bytes - 1);
        ck_assert(fseek(f, at, SEEK_SET) == 0 && fputc(255, f) == 255 && fflush(f) == 0);
        ck_assert_msg(load(&g, dir, &err) == DSV4_REFUSED, "%s: NaN was taken", t->name);
        ck_assert_msg(strstr(err.text, "NaN") &&
                          strncmp(strstr(err.text, "layers."), t->name, strlen(t->name) - 5) == 0,
                      "%s: %s", t->name, err.text);
        ck_assert(fseek(f, at, SEEK_SET) == 0 && fputc(file[at], f) != EOF && fflush(f) == 0);
        tried++;
    }
    ck_assert_uint_ge(tried, 12);
    fclose(f);
    unlink(path);
    rmdir(dir);
    free(file);
    golden_close(&g);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("edge");
    TCase *t = tcase_create("model");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, logits_of_the_reference, 0, N_CASES);
    tcase_add_loop_test(t, logits_from_plain_rows, 0, N_CASES);
    tcase_add_loop_test(t, nan_scales_are_refused, 0, 2);
    tcase_add_loop_test(t, same_bits_in_any_chunks_and_threads, 0, N_CASES);
    tcase_add_loop_test(t, rollback_leaves_no_trace, 0, N_CASES);
    suite_add_tcase(s, t);
    return run_suite(s);
}
