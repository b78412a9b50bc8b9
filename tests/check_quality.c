/* What quantizing costs: the embedded model with all matrices of a type in place of its own, its logits against
 * those of the original on a text that the calibration has not seen. With QUALITY_TABLE=1 all types are
 * measured and printed (docs/quantization.md); with QUALITY_FLOAT_CACHE=1 both have caches in f32, so that nothing but
 * the weights makes a difference. */
#include "src/session/session.h"
#include "src/session/statistics.h"
#include "suite.h"

#include <math.h>

#define NANO "models/nano"

enum { WINDOW = 512, TEST_TOKENS = 2048, LEARN_TOKENS = 4096 };

/* What is converted: matrices that decide nothing by comparing, or the routed experts alone. */
enum share { ALL, SMOOTH, EXPERTS };
static const char *const share_name[] = {"all", "smooth", "experts"};

enum way { ABSMAX, SEARCH, CALIBRATED, FEEDBACK };
static const char *const way_name[] = {"largest magnitude", "search", "calibrated",
                                       "error feedback"};

static dsv4_engine *engine; /* the original, exact */
static int32_t *ids;
static float *reference; /* [TEST_TOKENS][vocab] */
static struct statistics *stats;

/* Logits of n tokens in windows that know nothing of each other. */
static void run(dsv4_engine *e, const int32_t *id, size_t n, float *logits)
{
    dsv4_err err;
    size_t vocab = dsv4_engine_vocab(e);
    for (size_t at = 0; at < n; at += WINDOW) {
        dsv4_seq *s;
        dsv4_row row[WINDOW];
        OK(dsv4_seq_open(&s, e, &err));
        for (size_t i = 0; i < WINDOW; i++)
            row[i] = (dsv4_row){.seq = s, .token = id[at + i], .logits = true};
        OK(dsv4_eval(e, row, WINDOW, logits + at * vocab, &err));
        dsv4_seq_close(s);
    }
}

static dsv4_engine *open_nano(void)
{
    dsv4_err err;
    dsv4_engine *e;
    dsv4_options o = {.ctx = 1024,
                      .threads = 2,
                      .exact = true,
                      .no_cache_quant = getenv("QUALITY_FLOAT_CACHE") != NULL};
    OK(dsv4_open(&e, NANO, &o, &err));
    return e;
}

static void read_text(void)
{
    dsv4_err err;
    char *text;
    size_t len, n;
    OK(file_read(NANO "/eval/text.txt", 1 << 20, &text, &len, &err));
    OK(dsv4_encode(dsv4_engine_tokenizer(engine), text, len, false, &ids, &n, &err));
    free(text);
    ck_assert_uint_ge(n, TEST_TOKENS + LEARN_TOKENS);
}

static void prepare(void)
{
    dsv4_err err;
    engine = open_nano();
    read_text();
    reference = malloc(TEST_TOKENS * dsv4_engine_vocab(engine) * sizeof *reference);
    run(engine, ids, TEST_TOKENS, reference);
    OK(statistics_open(&stats, engine->cp.m, true, &err));
    engine->batch->observer = &stats->observer;
    float *logits = malloc(LEARN_TOKENS * dsv4_engine_vocab(engine) * sizeof *logits);
    run(engine, ids + TEST_TOKENS, LEARN_TOKENS, logits); /* wanted, so that the head takes part */
    free(logits);
    engine->batch->observer = NULL;
}

static void finish(void)
{
    statistics_close(stats);
    free(reference);
    dsv4_free(ids);
    dsv4_close(engine);
}

/* ------------------------------------------------------------------ a matrix in another type */

static float *factor_of(const struct inputs *in, size_t cols)
{
    float *f = malloc(cols * cols * sizeof *f);
    memcpy(f, in->covariance, cols * cols * sizeof *f);
    feedback_factor(f, cols, 0.01f);
    return f;
}

/* A plain matrix in the type; codes and scales are malloc'ed. */
static struct wmat encoded(const struct matrix *from, const struct wtype *t, enum way way)
{
    static struct kernels k;
    kernels_init_scalar(&k);
    size_t rows = from->rows, cols = from->cols;
    float *x = malloc(rows * cols * sizeof *x), *weight = malloc(cols * sizeof *weight);
    for (size_t r = 0; r < rows; r++)
        k.decode(x + r * cols, &from->stored, r);
    struct wmat w = {.format = t->format,
                     .rows = (uint32_t)rows,
                     .cols = (uint32_t)cols,
                     .block_rows = 1,
                     .block_cols = GROUP,
                     .table = t->table,
                     .code_ld = wformat_row_bytes(t->format, cols),
                     .scale_ld = cols / GROUP * 2};
    uint8_t *codes = malloc(rows * w.code_ld), *scales = malloc(rows * w.scale_ld);
    const struct inputs *in = way >= CALIBRATED ? statistics_inputs(stats, from) : NULL;
    if (way == FEEDBACK) {
        float *factor = factor_of(in, cols), *tmp = malloc(cols * PANEL * sizeof *tmp);
        for (size_t r = 0; r < rows; r += PANEL)
            encode_feedback(&k, codes + r * w.code_ld, w.code_ld, scales + r * w.scale_ld,
                            w.scale_ld, t, x + r * cols, cols, rows - r < PANEL ? rows - r : PANEL,
                            cols, factor, tmp);
        free(factor);
        free(tmp);
    } else {
        for (size_t c = 0; in && c < cols; c++)
            weight[c] = in->rows ? (float)(in->square[c] / (double)in->rows) : 1;
        for (size_t r = 0; r < rows; r++)
            encode_row(&k, codes + r * w.code_ld, scales + r * w.scale_ld, t, x + r * cols, cols,
                       in ? weight : NULL, way == ABSMAX ? EFFORT_ABSMAX : EFFORT_SEARCH);
    }
    free(x);
    free(weight);
    w.codes = codes;
    w.scales = scales;
    return w;
}

static bool is_in(const struct matrix *w, enum share share)
{
    enum tensor_class c = tensor_class_of(w->name);
    return share == ALL || c == CLASS_EXPERTS ||
           (share == SMOOTH && c != CLASS_ROUTER && c != CLASS_INDEXER && c != CLASS_SMALL);
}

/* An engine of its own with every matrix in place of the original's. */
static dsv4_engine *quantized(const struct wtype *t, enum way way, enum share share,
                              struct wmat *made)
{
    dsv4_engine *e = open_nano();
    const struct model *from = engine->cp.m;
    struct model *m = e->cp.m;
    ck_assert_uint_eq(m->n_matrix, from->n_matrix);
    for (size_t i = 0; i < m->n_matrix; i++) {
        made[i] = (struct wmat){0};
        if (!is_in(from->matrix[i], share))
            continue;
        made[i] = encoded(from->matrix[i], t, way);
        m->matrix[i]->stored = made[i];
        m->matrix[i]->n_parts = 0; /* computed from the plain rows */
    }
    return e;
}

/* ------------------------------------------------------------------ distances */

struct distance {
    double mean, most, perplexity, reference;
    double agree; /* of the most probable tokens */
};

static double log_sum(const float *x, size_t n)
{
    double top = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++)
        top = fmax(top, x[i]);
    for (size_t i = 0; i < n; i++)
        sum += exp(x[i] - top);
    return top + log(sum);
}

static size_t largest(const float *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}

static struct distance distance(const float *logits)
{
    struct distance d = {0};
    size_t vocab = dsv4_engine_vocab(engine), scored = 0;
    for (size_t r = 0; r < TEST_TOKENS; r++) {
        const float *p = reference + r * vocab, *q = logits + r * vocab;
        double zp = log_sum(p, vocab), zq = log_sum(q, vocab), kl = 0;
        for (size_t i = 0; i < vocab; i++)
            kl += exp(p[i] - zp) * ((p[i] - zp) - (q[i] - zq));
        d.mean += kl / TEST_TOKENS;
        d.most = fmax(d.most, kl);
        d.agree += (largest(p, vocab) == largest(q, vocab)) / (double)TEST_TOKENS;
        if (r % WINDOW == WINDOW - 1)
            continue;
        d.perplexity += zq - q[ids[r + 1]];
        d.reference += zp - p[ids[r + 1]];
        scored++;
    }
    d.perplexity = exp(d.perplexity / (double)scored);
    d.reference = exp(d.reference / (double)scored);
    return d;
}

static struct distance measure(const char *type, enum way way, enum share share)
{
    const struct model *m = engine->cp.m;
    struct wmat *made = malloc(m->n_matrix * sizeof *made);
    float *logits = malloc(TEST_TOKENS * dsv4_engine_vocab(engine) * sizeof *logits);
    dsv4_engine *e = quantized(wtype_named(type), way, share, made);
    run(e, ids, TEST_TOKENS, logits);
    struct distance d = distance(logits);
    printf(
        "   %-5s %-18s %s mean KL %.3e, largest %.3e, same token %.2f %%, perplexity %.4f (%.4f)\n",
        type, way_name[way], share_name[share], d.mean, d.most, 100 * d.agree, d.perplexity,
        d.reference);
    fflush(stdout);
    dsv4_close(e);
    for (size_t i = 0; i < m->n_matrix; i++) {
        free((void *)(uintptr_t)made[i].codes);
        free((void *)(uintptr_t)made[i].scales);
    }
    free(made);
    free(logits);
    return d;
}

/* Sums that have to agree with each other, and with the text. */
START_TEST(sums)
{
    const struct model *m = engine->cp.m;
    uint64_t seen = 0;
    for (size_t i = 0; i < stats->n; i++) {
        const struct inputs *in = &stats->in[i];
        int which;
        size_t cols = in->w->cols;
        if (!expert_layer(m, in->w, &which) || which == 2)
            for (size_t c = 0; c < cols; c++)
                ck_assert_msg(fabs(in->covariance[c * cols + c] - in->square[c]) <=
                                  1e-3 * in->square[c],
                              "%s, column %zu: %g and %g", in->w->name, c, in->square[c],
                              (double)in->covariance[c * cols + c]);
        enum tensor_class class = tensor_class_of(in->w->name);
        if (class == CLASS_SHARED || class == CLASS_HEAD)
            ck_assert_uint_eq(in->rows, LEARN_TOKENS);
        if (class != CLASS_EXPERTS && class != CLASS_INDEXER) /* its keys are made on the way */
            ck_assert_msg(in->rows >= LEARN_TOKENS, "%s: %d rows", in->w->name, (int)in->rows);
    }
    for (uint32_t l = 0; l < m->cfg->n_layers; l++, seen = 0) {
        const struct expert_use *u = &stats->use[l];
        for (uint32_t e = 0; e < m->cfg->n_experts; e++) {
            seen += u->rows[e];
            ck_assert_uint_eq(u->rows[e], statistics_find(stats, &u->L->moe.expert[e].w1)->rows);
            ck_assert_uint_eq(u->rows[e], statistics_find(stats, &u->L->moe.expert[e].w2)->rows);
            ck_assert_int_eq(u->rows[e] > 0, u->norm[e] > 0);
        }
        ck_assert_uint_eq(seen, (uint64_t)LEARN_TOKENS * m->cfg->top_k);
    }
}
END_TEST

/* What is fp4 comes through 8 bits unharmed; of 4 bits, error feedback takes more than 0.4 of what they cost. */
START_TEST(experts)
{
    struct distance d = measure("q8", SEARCH, EXPERTS);
    ck_assert_msg(d.mean < 1e-9, "q8: %g", d.mean);
    struct distance plain = measure("q4", ABSMAX, EXPERTS),
                    better = measure("q4", FEEDBACK, EXPERTS);
    ck_assert_msg(better.mean < 0.6 * plain.mean, "q4: %g, %g", plain.mean, better.mean);
}
END_TEST

START_TEST(table)
{
    for (size_t i = 0; wtype_at(i); i++) {
        const struct wtype *t = wtype_at(i);
        if (wformat_table(t->format) == 0 && t->format != W_Q8)
            continue;
        for (int way = ABSMAX; way <= FEEDBACK; way++)
            for (int share = SMOOTH; share <= EXPERTS; share++)
                measure(t->name, (enum way)way, (enum share)share);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("quality");
    TCase *c = tcase_create("quality");
    tcase_add_checked_fixture(c, prepare, finish);
    tcase_set_timeout(c, 600);
    tcase_add_test(c, sums);
    if (getenv("CHECK_QUICK") &&
        *getenv("CHECK_QUICK")) /* sanitizers: the same code, ten times slower */
        printf("SKIP check_quality experts: CHECK_QUICK\n");
    else
        tcase_add_test(c, experts);
    if (getenv("QUALITY_TABLE"))
        tcase_add_test(c, table);
    suite_add_tcase(s, c);
    return run_suite(s);
}
