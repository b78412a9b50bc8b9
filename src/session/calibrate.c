/* Calibration: a text goes through the model, and what its matrices multiplied with is written to a file
 * (docs/quantization.md) that conversions weigh their errors by. */
#include "statistics.h"

#include "session.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PRIOR = 32, /* rows that an expert is given in advance, such as its layer has on the average */
    FEW = 128,  /* experts with fewer rows are reported */
    WINDOW = 2048,   /* tokens of a piece of text that knows nothing of the one before */
    HEAD_EVERY = 16, /* one row in so many computes logits, so that the head takes part */
};

/* ------------------------------------------------------------------ what few rows say */

/* The mean square of a column of each expert's inputs in its layer: for w1 by column; for w2, whose columns are
 * its own, of all of them. */
struct layer_mean {
    double *w1; /* [d] */
    double w2;
};

static int layer_mean(struct layer_mean *m, const struct statistics *s, const struct layer *L,
                      dsv4_err *err)
{
    const struct config *c = s->m->cfg;
    double rows1 = 0, rows2 = 0;
    TRY(mem_alloc(&m->w1, c->d, sizeof *m->w1, "means", err));
    m->w2 = 0;
    for (uint32_t e = 0; e < c->n_experts; e++) {
        const struct inputs *a = statistics_find(s, &L->moe.expert[e].w1);
        const struct inputs *b = statistics_find(s, &L->moe.expert[e].w2);
        for (size_t i = 0; a && i < c->d; i++)
            m->w1[i] += a->square[i];
        for (size_t i = 0; b && i < b->w->cols; i++)
            m->w2 += b->square[i] / (double)b->w->cols;
        rows1 += a ? (double)a->rows : 0;
        rows2 += b ? (double)b->rows : 0;
    }
    for (size_t i = 0; i < c->d; i++)
        m->w1[i] = rows1 > 0 ? m->w1[i] / rows1 : 1;
    m->w2 = rows2 > 0 ? m->w2 / rows2 : 1;
    return 0;
}

/* ------------------------------------------------------------------ the file */

struct writing {
    const struct statistics *s;
    struct bytes header;
    const struct file_aside *file;
    uint64_t at;
    float *floats; /* [widest] importance of one matrix */
    const struct layer *mean_of;
    struct layer_mean mean; /* of that layer */
    bool data;              /* second pass: data; first: header */
    dsv4_err *err;
};

/* Mean squares of the columns of a matrix's inputs; none is nothing at all. */
static int importance(struct writing *w, const struct inputs *in)
{
    int which = 0;
    const struct layer *L = expert_layer(w->s->m, in->w, &which);
    float *out = w->floats;
    double prior = L ? PRIOR : 0, sum = 0;
    size_t cols = in->w->cols;
    if (L && L != w->mean_of) {
        free(w->mean.w1);
        w->mean.w1 = NULL;
        TRY(layer_mean(&w->mean, w->s, L, w->err));
        w->mean_of = L;
    }
    for (size_t c = 0; c < cols; c++) {
        double rows = (double)in->rows + prior;
        double before = which == 1 ? w->mean.w1[c] : w->mean.w2;
        out[c] = rows > 0 ? (float)((in->square[c] + prior * before) / rows) : 1;
        sum += out[c];
    }
    for (size_t c = 0; c < cols; c++)
        out[c] += (float)(1e-3 * sum / (double)cols);
    return 0;
}

/* One tensor: its line of the header, or its data. */
static int put(struct writing *w, const char *name, const char *dtype, const uint64_t *dim,
               int rank, const void *data, size_t size)
{
    uint64_t bytes = size;
    for (int i = 0; i < rank; i++)
        bytes *= dim[i];
    if (w->data)
        return file_write_all(w->file->fd, w->file->path, data, (size_t)bytes, w->err);
    TRY(bytes_printf(&w->header, w->err, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%llu", name, dtype,
                     (unsigned long long)dim[0]));
    if (rank == 2)
        TRY(bytes_printf(&w->header, w->err, ",%llu", (unsigned long long)dim[1]));
    TRY(bytes_printf(&w->header, w->err, "],\"data_offsets\":[%llu,%llu]}",
                     (unsigned long long)w->at, (unsigned long long)(w->at + bytes)));
    w->at += bytes;
    return 0;
}

/* "layers.3.ffn.experts.7.w1.weight" -> "layers.3.ffn.experts.7.w1" and `tail`; with `all` "layers.3.ffn.experts.w1". */
static void name_of(char *out, size_t cap, const struct matrix *w, const char *tail, bool all)
{
    const char *end = strrchr(w->name, '.'), *experts = strstr(w->name, ".experts.");
    int n = (int)(end ? (size_t)(end - w->name) : strlen(w->name));
    if (all && experts)
        snprintf(out, cap, "%.*s.w1.%s", (int)(experts - w->name) + 8, w->name, tail);
    else
        snprintf(out, cap, "%.*s.%s", n, w->name, tail);
}

static int put_inputs(struct writing *w, const struct inputs *in, bool *shared_done)
{
    char name[256];
    uint64_t dim[2] = {in->w->cols, in->w->cols};
    int which = 0;
    const struct layer *L = expert_layer(w->s->m, in->w, &which);
    if (w->data)
        TRY(importance(w, in));
    name_of(name, sizeof name, in->w, "importance", false);
    TRY(put(w, name, "F32", dim, 1, w->floats, sizeof(float)));
    bool shared = L && which == 1;
    if (!in->covariance || (shared && shared_done[L - w->s->m->layer]))
        return 0;
    if (shared)
        shared_done[L - w->s->m->layer] = true;
    name_of(name, sizeof name, in->w, "covariance", shared);
    return put(w, name, "F32", dim, 2, in->covariance, sizeof(float));
}

static int put_use(struct writing *w, const struct expert_use *u)
{
    char name[64];
    uint64_t n = w->s->m->cfg->n_experts;
    float *norm;
    TRY(mem_alloc(&norm, n, sizeof *norm, "norms", w->err));
    for (size_t e = 0; e < n; e++)
        norm[e] = (float)u->norm[e];
    snprintf(name, sizeof name, "layers.%u.ffn.experts.rows", u->L->id);
    int rc = put(w, name, "I64", &n, 1, u->rows, sizeof *u->rows);
    snprintf(name, sizeof name, "layers.%u.ffn.experts.norm", u->L->id);
    if (rc == 0)
        rc = put(w, name, "F32", &n, 1, norm, sizeof *norm);
    free(norm);
    return rc;
}

static int put_all(struct writing *w)
{
    const struct statistics *s = w->s;
    bool *shared_done;
    int rc = 0;
    for (uint32_t i = 0; i < s->m->cfg->n_layers && rc == 0; i++) /* first: 8 bytes an element */
        rc = put_use(w, &s->use[i]);
    TRY(rc);
    TRY(mem_alloc(&shared_done, s->m->cfg->n_layers, sizeof *shared_done, "a file", w->err));
    for (size_t i = 0; i < s->m->n_matrix && rc == 0;
         i++) { /* in an order that addresses do not decide */
        const struct inputs *in = statistics_find(s, s->m->matrix[i]);
        rc = in ? put_inputs(w, in, shared_done) : 0;
    }
    free(shared_done);
    return rc;
}

static int put_header(struct writing *w, size_t tokens)
{
    TRY(bytes_add(&w->header, "\0\0\0\0\0\0\0\0", 8, w->err));
    TRY(bytes_printf(
        &w->header, w->err,
        "{\"__metadata__\":{\"format\":\"dsv4-importance\",\"version\":\"1\",\"tokens\":\"%zu\"}",
        tokens));
    TRY(put_all(w));
    TRY(bytes_text(&w->header, "}", w->err));
    while (w->header.len % 64 != 0)
        TRY(bytes_text(&w->header, " ", w->err));
    uint64_t len = w->header.len - 8;
    for (int i = 0; i < 8; i++)
        w->header.data[i] = (char)(len >> 8 * i);
    return file_write_all(w->file->fd, w->file->path, w->header.data, w->header.len, w->err);
}

static int write_file(const struct statistics *s, const struct file_aside *file, size_t tokens,
                      dsv4_err *err)
{
    struct writing w = {.s = s, .file = file, .err = err};
    size_t widest = 0;
    for (size_t i = 0; i < s->n; i++)
        widest = s->in[i].w->cols > widest ? s->in[i].w->cols : widest;
    TRY(mem_alloc(&w.floats, widest, sizeof *w.floats, "a file", err));
    int rc = put_header(&w, tokens);
    w.data = true;
    if (rc == 0)
        rc = put_all(&w);
    free(w.header.data);
    free(w.floats);
    free(w.mean.w1);
    return rc;
}

/* ------------------------------------------------------------------ the report */

static int report(char **json, const struct statistics *s, size_t tokens, dsv4_err *err)
{
    uint32_t n = s->m->cfg->n_experts;
    json_t *layers = json_array();
    bool ok = layers != NULL;
    for (uint32_t i = 0; ok && i < s->m->cfg->n_layers; i++) {
        const uint64_t *rows = s->use[i].rows;
        uint64_t least = UINT64_MAX, most = 0;
        json_int_t none = 0, few = 0;
        for (uint32_t e = 0; e < n; e++) {
            least = rows[e] < least ? rows[e] : least;
            most = rows[e] > most ? rows[e] : most;
            none += rows[e] == 0;
            few += rows[e] < FEW;
        }
        json_t *line = json_pack("{s:i, s:I, s:I, s:I, s:I}", "layer", (int)s->use[i].L->id,
                                 "least_rows", (json_int_t)least, "most_rows", (json_int_t)most,
                                 "experts_without", none, "experts_with_few", few);
        ok = json_array_append_new(layers, line) == 0;
    }
    json_t *j = ok ? json_pack("{s:I, s:i, s:i, s:i, s:O}", "tokens", (json_int_t)tokens, "experts",
                               (int)n, "few", FEW, "prior_rows", PRIOR, "layers", layers)
                   : NULL;
    json_decref(layers);
    int rc = json_write(json, j, JSON_INDENT(1), err);
    json_decref(j);
    return rc;
}

static int gather(dsv4_engine *e, const int32_t *ids, size_t n, const struct file_aside *file,
                  const dsv4_calibrate_options *opt, char **json, dsv4_err *err)
{
    struct statistics *s;
    TRY(statistics_open(&s, e->cp.m, opt->covariance, err));
    e->batch->observer = &s->observer;
    struct windows text = {.ids = ids,
                           .n = n,
                           .window = WINDOW,
                           .every = HEAD_EVERY,
                           .progress = opt->progress,
                           .progress_arg = opt->progress_arg,
                           .total = n};
    int rc = windows_run(e, &text, err);
    e->batch->observer = NULL;
    if (rc == 0)
        rc = write_file(s, file, n, err);
    if (rc == 0)
        rc = report(json, s, n, err);
    statistics_close(s);
    return rc;
}

int dsv4_calibrate(dsv4_engine *e, const int32_t *ids, size_t n, const char *file,
                   const dsv4_calibrate_options *opt, char **json, dsv4_err *err)
{
    static const dsv4_calibrate_options defaults;
    opt = opt ? opt : &defaults;
    *json = NULL;
    if (n == 0)
        return err_set(err, DSV4_USAGE, "the text for the calibration is empty");
    if (!e->cp.store)
        return err_set(err, DSV4_USAGE, "a synthetic engine has nothing to calibrate");
    struct file_aside f; /* opened first: a path that is none is known before the work */
    TRY(file_aside_open(&f, file, err));
    int rc = file_aside_close(&f, gather(e, ids, n, &f, opt, json, err), err);
    if (rc != 0) {
        dsv4_free(*json);
        *json = NULL;
    }
    return rc;
}
