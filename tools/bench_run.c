/* Measuring: cases on a slice, repetitions interleaved, and what they say about other slices. */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

enum { WARM = 2 };
#define ROOF_SECONDS 1.2

/* ------------------------------------------------------------------ cases */

static int number_list(const char *option, const char *text, uint64_t least, uint32_t **out,
                       size_t *n, dsv4_err *err)
{
    size_t cap = 0;
    *out = NULL;
    *n = 0;
    for (const char *at = text; *at;) {
        size_t len = strcspn(at, ",");
        char word[16];
        uint64_t x = 0;
        bool ok = len > 0 && len < sizeof word;
        if (ok) {
            memcpy(word, at, len);
            word[len] = 0;
            ok = opt_number_u64(word, &x) && x >= least && x <= 1u << 24;
        }
        int rc = ok ? mem_grow(out, &cap, *n + 1, sizeof **out, "a list", err)
                    : err_set(err, DSV4_USAGE, "--%s \"%s\" is no list of numbers like 512,2048",
                              option, text);
        if (rc != 0) {
            free(*out);
            *out = NULL;
            return rc;
        }
        (*out)[(*n)++] = (uint32_t)x;
        at += len + (at[len] == ',');
    }
    return 0;
}

static int add_case(struct bench_run *r, size_t *cap, const struct bench_case *c, dsv4_err *err)
{
    TRY(mem_grow(&r->cases, cap, r->n_cases + 1, sizeof *r->cases, "cases", err));
    struct bench_case *at = &r->cases[r->n_cases];
    *at = *c;
    r->n_cases++;
    TRY(mem_alloc(&at->seconds, r->reps, sizeof *at->seconds, "times", err));
    return mem_alloc(&at->spent, r->reps, sizeof *at->spent, "times", err);
}

int bench_cases(struct bench_run *r, const struct bench_values *v, dsv4_err *err)
{
    uint32_t *depth, *rows;
    size_t n_depth, n_rows, cap = 0;
    r->reps = v->reps;
    r->decode = v->decode;
    TRY(mem_alloc(&r->roof, r->reps, sizeof *r->roof, "times", err));
    TRY(number_list("depth", v->depth, 0, &depth, &n_depth, err));
    int rc = number_list("prefill", v->prefill, 1, &rows, &n_rows, err);
    if (rc != 0) {
        free(depth);
        return rc;
    }
    for (size_t i = 0; i < n_depth && v->decode > 0 && rc == 0; i++)
        rc = add_case(r, &cap, &(struct bench_case){.rows = 1, .depth = depth[i]}, err);
    for (size_t k = 0; k < n_rows; k++)
        for (size_t i = 0; i < n_depth && rc == 0; i++)
            rc = add_case(r, &cap,
                          &(struct bench_case){.prefill = true, .rows = rows[k], .depth = depth[i]},
                          err);
    free(depth);
    free(rows);
    if (rc == 0 && r->n_cases == 0)
        rc = err_set(err, DSV4_USAGE,
                     "nothing to measure: no --depth, or neither --decode nor "
                     "--prefill");
    return rc;
}

void bench_run_release(struct bench_run *r)
{
    for (size_t i = 0; i < r->n_cases; i++) {
        struct bench_case *c = &r->cases[i];
        for (size_t k = 0; c->spent && k < r->reps; k++)
            free(c->spent[k]);
        free(c->spent);
        free(c->seconds);
    }
    for (size_t i = 0; i < r->n_ops; i++)
        free(r->op[i]);
    free(r->op);
    free(r->roof);
    free(r->cases);
    *r = (struct bench_run){0};
}

/* ------------------------------------------------------------------ one measurement */

struct bench {
    struct bench_run *r;
    struct program *p;
    dsv4_engine *e;
    dsv4_seq *seq;
    const dsv4_options *opt;
    dsv4_row *row;
    float *logits;
    uint64_t state;
};

static int32_t any_token(struct bench *b)
{
    b->state = b->state * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((b->state >> 33) % dsv4_engine_vocab(b->e));
}

static int step(struct bench *b, uint32_t rows, dsv4_err *err)
{
    for (uint32_t i = 0; i < rows; i++)
        b->row[i] = (dsv4_row){.seq = b->seq, .token = any_token(b), .logits = i + 1 == rows};
    if (interrupted())
        return err_set(err, DSV4_INTERRUPTED, "interrupted");
    return dsv4_eval(b->e, b->row, rows, b->logits, err);
}

static int take_names(struct bench_run *r, const json_t *names, dsv4_err *err)
{
    if (r->op)
        return 0;
    TRY(mem_alloc(&r->op, json_array_size(names), sizeof *r->op, "operators", err));
    for (; r->n_ops < json_array_size(names); r->n_ops++) {
        const char *name = json_string_value(json_array_get(names, r->n_ops));
        if (!(r->op[r->n_ops] = strdup(name ? name : "")))
            return err_memory(err, 16, "operators");
    }
    return 0;
}

/* What the operators took, for one step; the rest of the step counts to no layer's first operator. */
static int take_timings(struct bench *b, struct bench_case *c, size_t rep, uint32_t steps,
                        dsv4_err *err)
{
    char *text;
    json_error_t je;
    struct bench_run *r = b->r;
    double **out = &c->spent[rep];
    TRY(dsv4_timings(b->e, &text, err));
    json_t *j = json_loads(text, 0, &je);
    dsv4_free(text);
    TRY(json_made(j, err));
    const json_t *layers = json_object_get(j, "layers");
    size_t n = json_array_size(layers);
    int rc = take_names(r, json_object_get(j, "operators"), err);
    if (rc == 0)
        rc = mem_alloc(out, n * r->n_ops, sizeof **out, "times", err);
    double sum = 0;
    for (size_t i = 0; i < n * r->n_ops && rc == 0; i++) {
        const json_t *x = json_array_get(json_array_get(layers, i / r->n_ops), i % r->n_ops);
        (*out)[i] = json_number_value(x) / steps;
        sum += (*out)[i];
    }
    if (rc == 0)
        (*out)[(n - 1) * r->n_ops] += c->seconds[rep] - sum;
    r->n_layers = (uint32_t)(n - 1);
    c->barriers = real_of(j, "barriers") / steps;
    json_decref(j);
    return rc;
}

static int run_case(struct bench *b, struct bench_case *c, size_t rep, dsv4_err *err)
{
    uint32_t steps = c->prefill ? 1 : b->r->decode;
    TRY(dsv4_seq_pretend(b->seq, c->depth, err));
    for (int i = 0; i < WARM && !c->prefill; i++)
        TRY(step(b, 1, err));
    dsv4_timings_reset(b->e);
    double begin = clock_seconds();
    for (uint32_t i = 0; i < steps; i++)
        TRY(step(b, c->rows, err));
    c->seconds[rep] = (clock_seconds() - begin) / steps;
    return take_timings(b, c, rep, steps, err);
}

/* ------------------------------------------------------------------ all of them */

/* Memory that the largest step touches for the first time is not part of its time. */
static int warm_up(struct bench *b, uint32_t rows, dsv4_err *err)
{
    status_show(&b->p->term, "warming up");
    TRY(dsv4_seq_pretend(b->seq, 0, err));
    return step(b, rows, err);
}

static int repeat(struct bench *b, dsv4_err *err)
{
    struct bench_run *r = b->r;
    for (uint32_t rep = 0; rep < r->reps; rep++) {
        status_show(&b->p->term, "repetition %u of %u: the machine", rep + 1, r->reps);
        TRY(dsv4_roofs(b->opt, ROOF_SECONDS, &r->roof[rep], err));
        for (size_t i = 0; i < r->n_cases; i++) {
            struct bench_case *c = &r->cases[i];
            status_show(&b->p->term, "repetition %u of %u: %s of %u behind %u tokens", rep + 1,
                        r->reps, c->prefill ? "prefill" : "decode",
                        c->prefill ? c->rows : r->decode, c->depth);
            TRY(run_case(b, c, rep, err));
        }
    }
    return 0;
}

struct loading {
    struct terminal *term;
};

static bool show_loading(void *arg, uint64_t done, uint64_t total)
{
    struct loading *l = arg;
    if (total > 0)
        status_show(l->term, "making weights %3.0f%%", 100 * (double)done / (double)total);
    return interrupted();
}

int bench_measure(struct bench_run *r, struct program *p, const char *config, size_t len,
                  const dsv4_slice *slice, const dsv4_options *opt, dsv4_err *err)
{
    struct loading l = {&p->term};
    dsv4_options o = *opt;
    uint32_t rows = 1;
    for (size_t i = 0; i < r->n_cases; i++)
        rows = r->cases[i].rows > rows ? r->cases[i].rows : rows;
    struct bench b = {.r = r, .p = p, .opt = opt, .state = 1};
    o.progress = show_loading;
    o.progress_arg = &l;
    TRY(dsv4_open_synthetic(&b.e, config, len, slice, &o, err));
    r->threads = dsv4_engine_threads(b.e);
    int rc = dsv4_seq_open(&b.seq, b.e, err);
    if (rc == 0)
        rc = mem_alloc(&b.row, rows, sizeof *b.row, "rows", err);
    if (rc == 0)
        rc = mem_alloc(&b.logits, dsv4_engine_vocab(b.e), sizeof *b.logits, "logits", err);
    if (rc == 0)
        rc = warm_up(&b, rows, err);
    if (rc == 0)
        rc = repeat(&b, err);
    status_clear(&p->term);
    dsv4_seq_close(b.seq);
    dsv4_close(b.e);
    free(b.row);
    free(b.logits);
    return rc;
}

/* ------------------------------------------------------------------ statistics */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(const double *x, size_t n)
{
    double sorted[256];
    if (n == 0 || n > sizeof sorted / sizeof *sorted)
        return 0;
    memcpy(sorted, x, n * sizeof *x);
    qsort(sorted, n, sizeof *sorted, by_value);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

size_t bench_middle(const struct bench_case *c, size_t reps)
{
    double sorted[256];
    size_t at = 0;
    memcpy(sorted, c->seconds, reps * sizeof *sorted);
    qsort(sorted, reps, sizeof *sorted, by_value);
    while (at + 1 < reps && c->seconds[at] != sorted[(reps - 1) / 2])
        at++;
    return at;
}

/* ------------------------------------------------------------------ prediction */

/* What of a layer its attention decides, and what its experts. */
enum part { PART_ATTENTION, PART_EXPERTS, PART_ENGRAM };

static enum part part_of(const char *op)
{
    if (strcmp(op, "Engram") == 0)
        return PART_ENGRAM;
    return strcmp(op, "mHC experts") == 0 || strcmp(op, "router") == 0 ||
                   strncmp(op, "experts", 7) == 0
               ? PART_EXPERTS
               : PART_ATTENTION;
}

static bool alike(const struct bench_layer *a, const struct bench_layer *b, enum part part)
{
    switch (part) {
    case PART_ATTENTION: return strcmp(a->attention, b->attention) == 0;
    case PART_EXPERTS: return strcmp(a->experts, b->experts) == 0;
    case PART_ENGRAM: return a->engram == b->engram;
    }
    return false;
}

/* Mean of an operator over the measured layers that are like `l`, or over all when there are none. */
static double mean_of(const double *spent, size_t n_ops, size_t op, const struct bench_model *m,
                      const struct bench_layer *l, enum part part, bool *guessed)
{
    double sum = 0, all = 0;
    size_t n = 0;
    for (uint32_t i = 0; i < m->n_layers; i++) {
        double x = spent[i * n_ops + op];
        bool same = alike(&m->layer[i], l, part);
        sum += same ? x : 0;
        all += x;
        n += same;
    }
    *guessed = *guessed || n == 0;
    return n ? sum / (double)n : all / m->n_layers;
}

double bench_predict(const struct bench_run *r, const struct bench_case *c,
                     const struct bench_model *measured, const struct bench_model *target,
                     bool *guessed)
{
    const double *spent = c->spent[bench_middle(c, r->reps)];
    const double *outside = spent + (size_t)measured->n_layers * r->n_ops;
    double sum = 0;
    *guessed = false;
    for (size_t op = 0; op < r->n_ops; op++) {
        bool head = strcmp(r->op[op], "head") == 0;
        enum part part = part_of(r->op[op]);
        sum += outside[op] * (head ? (double)target->vocab / (double)measured->vocab : 1);
        for (uint32_t i = 0; i < target->n_layers; i++)
            sum += mean_of(spent, r->n_ops, op, measured, &target->layer[i], part, guessed);
    }
    return sum;
}
