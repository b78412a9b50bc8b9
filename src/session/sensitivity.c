/* How much a model suffers from errors in which matrices. One group of matrices after the other (a matrix, or the same
 * matrix of all experts of a layer) is put into a coarse type, the model reads a text, and the divergence of its
 * logits from the original's is divided by the relative error of what the group's products became:
 *
 *   KL of the group in type T = s E(T),   E = sum_c h_c (w_c - w'_c)^2 / sum_c h_c w_c^2
 *
 * with h_c the mean square of column c's input. For small errors the divergence is quadratic in them, and errors
 * of rounding do not know of each other: so one type is measured, and what others cost is computed, and summed
 * (docs/quantization.md has how far that holds). */
#include "session.h"

#include "statistics.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW = 512 };

static const uint64_t logits_limit = (uint64_t)256
                                     << 20; /* bytes of the original's that are kept */

struct group {
    char name[MATRIX_NAME]; /* with "*" for the number of an expert */
    struct encode_error e;
    double kl;
};

/* What stands in the place of a matrix's panels during a trial. */
struct change {
    struct matrix *w;
    struct part mine, *part; /* the model's own */
    uint32_t n_parts;
};

struct trials {
    dsv4_engine *e;
    const struct wtype *type;
    struct statistics *stats;
    struct windows text;
    struct group *group;
    size_t n, cap;
    uint32_t *of; /* [n_matrix] its group; NONE */
    float *reference;
    double *scale;    /* log sum exp of every row of it */
    size_t row, rows; /* the next; room for */
    double kl;
    struct change *change; /* [n_matrix] */
    size_t n_changes;
};

enum { NONE = UINT32_MAX };

/* ------------------------------------------------------------------ distances */

static double log_sum_exp(const float *x, size_t n)
{
    double top = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++)
        top = fmax(top, (double)x[i]);
    for (size_t i = 0; i < n; i++)
        sum += exp((double)x[i] - top);
    return top + log(sum);
}

static void keep_row(void *arg, size_t token, const float *x)
{
    struct trials *t = arg;
    size_t vocab = t->e->cp.cfg->vocab;
    (void)token;
    memcpy(t->reference + t->row * vocab, x, vocab * sizeof *x);
    t->scale[t->row++] = log_sum_exp(x, vocab);
}

static void compare_row(void *arg, size_t token, const float *q)
{
    struct trials *t = arg;
    size_t vocab = t->e->cp.cfg->vocab;
    const float *p = t->reference + t->row * vocab;
    double zp = t->scale[t->row++], zq = log_sum_exp(q, vocab);
    (void)token;
    for (size_t i = 0; i < vocab; i++) {
        double log_p = (double)p[i] - zp;
        t->kl += exp(log_p) * (log_p - ((double)q[i] - zq));
    }
}

/* ------------------------------------------------------------------ a group in the type */

/* One matrix, made by all lanes. */
struct making {
    const struct trials *t;
    const struct matrix *from;
    struct wmat plain, panels; /* of one panel, without addresses; of all */
    uint8_t *codes, *scales;
    float *importance; /* [cols] or NULL */
    struct desk {
        float *rows; /* [PANEL + 1][cols], the last to decode into */
        uint8_t *codes, *scales;
    } * desk;               /* [lanes] */
    struct encode_error *e; /* [panels], so that sums do not depend on lanes */
};

static void make_panels(const struct lane *l, void *arg)
{
    struct making *m = arg;
    const struct kernels *k = &m->t->e->cp.m->k;
    struct desk *d = &m->desk[l->id];
    size_t cols = m->plain.cols, r0, r1;
    lane_split(l, m->from->rows, PANEL, &r0, &r1);
    for (size_t r = r0; r < r1; r += PANEL) {
        struct wmat w = m->plain;
        w.rows = (uint32_t)(r1 - r < PANEL ? r1 - r : PANEL);
        w.codes = d->codes;
        w.scales = d->scales;
        for (size_t i = 0; i < w.rows; i++) {
            k->decode(d->rows, &m->from->stored, r + i);
            encode_error(&m->e[r / PANEL], k, m->t->type, d->rows, cols, m->importance,
                         d->codes + i * w.code_ld, d->scales + i * w.scale_ld, d->rows + cols);
        }
        panel_pack(m->codes + r / PANEL * m->panels.code_ld,
                   m->scales + r / PANEL * m->panels.scale_ld, &w, 0);
    }
}

static int open_desks(struct making *m, int lanes, dsv4_err *err)
{
    static const char what[] = "a matrix in another type";
    size_t cols = m->plain.cols, panels = panel_count(&m->panels);
    const struct inputs *in = statistics_inputs(m->t->stats, m->from);
    TRY(mem_alloc(&m->codes, panels, m->panels.code_ld, what, err));
    TRY(mem_alloc(&m->scales, panels, m->panels.scale_ld, what, err));
    TRY(mem_alloc(&m->e, panels, sizeof *m->e, what, err));
    TRY(mem_alloc(&m->desk, (size_t)lanes, sizeof *m->desk, what, err));
    for (int i = 0; i < lanes; i++) {
        TRY(mem_alloc(&m->desk[i].rows, 2 * sizeof(float), cols, what, err));
        TRY(mem_alloc(&m->desk[i].codes, PANEL, m->plain.code_ld, what, err));
        TRY(mem_alloc(&m->desk[i].scales, PANEL, m->plain.scale_ld, what, err));
    }
    TRY(mem_alloc(&m->importance, cols, sizeof *m->importance, what, err));
    for (size_t c = 0; c < cols; c++) /* no row has come by: a weight without weight */
        m->importance[c] = in ? (float)in->square[c] : 0;
    return 0;
}

static void close_desks(struct making *m, int lanes)
{
    for (int i = 0; m->desk && i < lanes; i++) {
        free(m->desk[i].rows);
        free(m->desk[i].codes);
        free(m->desk[i].scales);
    }
    free(m->desk);
    free(m->e);
    free(m->importance);
}

static int change_matrix(struct trials *t, struct matrix *w, struct group *g, dsv4_err *err)
{
    struct making m = {.t = t, .from = w, .plain = plain_shape(t->type, w->rows, w->cols)};
    int lanes = pool_threads(t->e->pool);
    m.panels = panel_shape(&m.plain, w->rows);
    int rc = open_desks(&m, lanes, err);
    if (rc == 0) {
        struct change *c = &t->change[t->n_changes++];
        pool_run(t->e->pool, make_panels, &m);
        for (size_t i = 0; i < panel_count(&m.panels); i++) {
            g->e.error += m.e[i].error;
            g->e.signal += m.e[i].signal;
        }
        m.panels.codes = m.codes;
        m.panels.scales = m.scales;
        *c = (struct change){.w = w, .part = w->part, .n_parts = w->n_parts};
        c->mine.w = m.panels;
        w->part = &c->mine;
        w->n_parts = 1;
    } else {
        free(m.codes);
        free(m.scales);
    }
    close_desks(&m, lanes);
    return rc;
}

static void change_back(struct trials *t)
{
    while (t->n_changes > 0) {
        struct change *c = &t->change[--t->n_changes];
        free((void *)(uintptr_t)c->mine.w.codes);
        free((void *)(uintptr_t)c->mine.w.scales);
        c->w->part = c->part;
        c->w->n_parts = c->n_parts;
    }
}

static int run_trial(struct trials *t, size_t index, dsv4_err *err)
{
    const struct model *m = t->e->cp.m;
    struct group *g = &t->group[index];
    int rc = 0;
    t->row = 0;
    t->kl = 0;
    t->text.done = (index + 1) * t->text.n;
    for (size_t i = 0; i < m->n_matrix && rc == 0; i++)
        if (t->of[i] == index)
            rc = change_matrix(t, m->matrix[i], g, err);
    if (rc == 0)
        rc = windows_run(t->e, &t->text, err);
    g->kl = t->kl / (double)t->rows;
    change_back(t);
    return rc;
}

/* ------------------------------------------------------------------ what is tried */

static bool is_tried(const struct matrix *w, const struct wtype *type)
{
    struct wmat plain = plain_shape(type, w->rows, w->cols);
    return class_is_typed(tensor_class_of(w->name)) && panel_fits(&plain);
}

static int find_groups(struct trials *t, dsv4_err *err)
{
    const struct model *m = t->e->cp.m;
    for (size_t i = 0; i < m->n_matrix; i++) {
        char name[MATRIX_NAME], key[MATRIX_NAME];
        t->of[i] = NONE;
        if (!is_tried(m->matrix[i], t->type) || !matrix_name(m->matrix[i]->name, name, sizeof name))
            continue;
        star_expert(key, name);
        size_t g = t->n;
        while (g > 0 && strcmp(t->group[g - 1].name, key) != 0) /* a group is never far */
            g--;
        if (g == 0) {
            TRY(mem_grow(&t->group, &t->cap, t->n + 1, sizeof *t->group, "trials", err));
            memset(&t->group[t->n], 0, sizeof *t->group);
            memcpy(t->group[t->n++].name, key, sizeof key);
            g = t->n;
        }
        t->of[i] = (uint32_t)(g - 1);
    }
    return 0;
}

static int open_trials(struct trials *t, dsv4_err *err)
{
    static const char what[] = "logits of the original";
    const struct model *m = t->e->cp.m;
    size_t vocab = m->cfg->vocab, row = vocab * sizeof *t->reference;
    TRY(mem_alloc(&t->of, m->n_matrix, sizeof *t->of, "trials", err));
    TRY(mem_alloc(&t->change, m->n_matrix, sizeof *t->change, "trials", err));
    TRY(find_groups(t, err));
    t->text.every = (size_t)(t->text.n / (logits_limit / row + 1)) + 1;
    /* a step of a window begins with a row that counts */
    t->rows = t->text.n / t->text.every + t->text.n / t->e->plan.batch + t->text.n / WINDOW + 2;
    TRY(mem_alloc(&t->reference, t->rows, row, what, err));
    TRY(mem_alloc(&t->scale, t->rows, sizeof *t->scale, what, err));
    return statistics_open(&t->stats, m, false, err);
}

/* The original: its logits, and what its matrices multiply with. */
static int run_reference(struct trials *t, dsv4_err *err)
{
    t->text.total = (t->n + 1) * t->text.n;
    t->text.logits = keep_row;
    t->e->batch->observer = &t->stats->observer;
    int rc = windows_run(t->e, &t->text, err);
    t->e->batch->observer = NULL;
    t->text.logits = compare_row;
    t->rows = t->row;
    return rc;
}

static void close_trials(struct trials *t)
{
    statistics_close(t->stats);
    free(t->reference);
    free(t->scale);
    free(t->group);
    free(t->of);
    free(t->change);
}

/* ------------------------------------------------------------------ what is told */

static int tell(const struct trials *t, char **json, dsv4_err *err)
{
    json_t *list = json_array();
    bool whole = list != NULL;
    for (size_t i = 0; i < t->n && whole; i++) {
        const struct group *g = &t->group[i];
        double error = g->e.signal > 0 ? g->e.error / g->e.signal : 0;
        whole = json_array_append_new(list, json_pack("{s:s, s:f, s:f, s:f}", "matrix", g->name,
                                                      "error", error, "kl", g->kl, "sensitivity",
                                                      error > 0 ? g->kl / error : 0.0)) == 0;
    }
    json_t *j = whole ? json_pack("{s:s, s:i, s:s, s:I, s:s, s:O}", "format", "dsv4-sensitivity",
                                  "version", 1, "model", t->e->cp.dir, "tokens",
                                  (json_int_t)t->text.n, "type", t->type->name, "matrices", list)
                      : NULL;
    json_decref(list);
    int rc = json_write(json, j, JSON_INDENT(1), err);
    json_decref(j);
    return rc;
}

static int measure(struct trials *t, const struct file_aside *file, char **json, dsv4_err *err)
{
    int rc = open_trials(t, err);
    if (rc == 0)
        rc = run_reference(t, err);
    for (size_t i = 0; i < t->n && rc == 0; i++)
        rc = run_trial(t, i, err);
    if (rc == 0)
        rc = tell(t, json, err);
    if (rc == 0)
        rc = file_write_all(file->fd, file->path, *json, strlen(*json), err);
    close_trials(t);
    return rc;
}

int dsv4_sensitivity(dsv4_engine *e, const int32_t *ids, size_t n, const char *file,
                     const dsv4_sensitivity_options *opt, char **json, dsv4_err *err)
{
    static const dsv4_sensitivity_options defaults;
    opt = opt ? opt : &defaults;
    *json = NULL;
    struct trials t = {.e = e, .type = wtype_named(opt->type ? opt->type : "q3")};
    t.text = (struct windows){.ids = ids,
                              .n = n,
                              .window = WINDOW,
                              .arg = &t,
                              .progress = opt->progress,
                              .progress_arg = opt->progress_arg};
    if (n == 0)
        return err_set(err, DSV4_USAGE, "the text is empty");
    if (!e->cp.store)
        return err_set(err, DSV4_USAGE, "a synthetic engine has nothing to measure");
    if (!t.type || !wformat_has_halves(t.type->format))
        return err_set(err, DSV4_USAGE, "type \"%.40s\"; there are q8, q4, q4nl, q3, q2",
                       opt->type);
    struct file_aside f; /* opened first: a path that is none is known before the work */
    TRY(file_aside_open(&f, file, err));
    int rc = file_aside_close(&f, measure(&t, &f, json, err), err);
    if (rc != 0) {
        dsv4_free(*json);
        *json = NULL;
    }
    return rc;
}
