/* A converted directory looked at again: its checksums, and every tensor against the source; a GGUF file, which has
 * no checksums: every tensor. */
#include "convert.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INDEX_LIMIT = 256 << 20, PIECE = 1 << 20 };

/* Tensors with the same name but for the number of an expert, taken together. */
struct line {
    char key[MATRIX_NAME];
    const char *type;
    uint64_t tensors, weights;
    double error, signal; /* sums of squares: of the differences, of the source */
    double worst;         /* relative error of the tensor that has the largest */
    double largest;       /* difference of a single weight */
};

struct verify {
    const struct source *src, *dst;
    bool file;               /* the destination is a GGUF file */
    struct pruning *pruning; /* what the destination says of itself; or NULL */
    struct pool *pool;
    const dsv4_convert_options *opt;
    struct line *line;
    size_t n, cap;
    json_t *out;        /* what is told */
    char damage[256];   /* the first; empty: none */
    uint64_t done, all; /* bytes */
};

static void damaged(struct verify *v, const char *name, const char *what)
{
    if (v->damage[0] == 0)
        snprintf(v->damage, sizeof v->damage, "%s %s", name, what);
}

static int step(struct verify *v, uint64_t bytes, dsv4_err *err)
{
    v->done += bytes;
    if (v->opt->progress && v->opt->progress(v->opt->progress_arg, v->done, v->all))
        return err_set(err, DSV4_INTERRUPTED, "interrupted while comparing");
    return 0;
}

/* ------------------------------------------------------------------ one tensor */

/* What was found in rows. */
struct found {
    double error, signal, largest;
};

/* What a lane compares with. */
struct desk {
    float *row[2];
    struct window window[2];
    struct found found;
};

struct rows {
    const struct verify *v;
    struct wmat w[2];     /* source, destination */
    const uint32_t *pick; /* rows of the source that the destination has; NULL: all */
    struct desk *desk;    /* [lanes] */
    struct lane_failure failure;
};

static int compare_row(const struct rows *r, struct desk *d, size_t i, dsv4_err *err)
{
    struct found *f = &d->found;
    TRY(window_floats(&d->window[0], r->v->src, &r->w[0], r->pick ? r->pick[i] : i, d->row[0],
                      err));
    TRY(window_floats(&d->window[1], r->v->dst, &r->w[1], i, d->row[1], err));
    for (size_t c = 0; c < r->w[0].cols; c++) {
        double x = fabs((double)d->row[1][c] - (double)d->row[0][c]);
        f->error += x * x;
        f->signal += (double)d->row[0][c] * (double)d->row[0][c];
        f->largest = x > f->largest || isnan(x) ? x : f->largest;
    }
    return 0;
}

static void compare_rows(const struct lane *l, void *arg)
{
    struct rows *r = arg;
    dsv4_err err;
    size_t r0, r1;
    int rc = 0;
    lane_split(l, r->w[1].rows, PANEL, &r0, &r1);
    for (size_t i = r0; i < r1 && rc == 0; i++)
        if ((rc = compare_row(r, &r->desk[l->id], i, &err)) != 0)
            lane_fail(&r->failure, rc, &err);
}

static int open_desk(const struct rows *r, struct desk *d, dsv4_err *err)
{
    for (int i = 0; i < 2; i++) {
        size_t bytes[2] = {0, 0};
        window_needs(bytes, &r->w[i]);
        TRY(mem_alloc(&d->row[i], r->w[i].cols, sizeof(float), "rows to compare", err));
        TRY(window_open(&d->window[i], bytes, err));
    }
    return 0;
}

static int compare_on_lanes(struct rows *r, struct found *sum, dsv4_err *err)
{
    int lanes = pool_threads(r->v->pool), rc = 0;
    TRY(mem_alloc(&r->desk, (size_t)lanes, sizeof *r->desk, "rows to compare", err));
    for (int i = 0; i < lanes && rc == 0; i++)
        rc = open_desk(r, &r->desk[i], err);
    if (rc == 0) {
        pool_run(r->v->pool, compare_rows, r);
        rc = lane_failed(&r->failure, err);
    }
    *sum = (struct found){0};
    for (int i = 0; i < lanes; i++) { /* always in this order */
        struct desk *d = &r->desk[i];
        const struct found *f = &d->found;
        sum->error += f->error;
        sum->signal += f->signal;
        sum->largest = f->largest > sum->largest || isnan(f->largest) ? f->largest : sum->largest;
        for (int j = 0; j < 2; j++) {
            free(d->row[j]);
            window_close(&d->window[j]);
        }
    }
    free(r->desk);
    return rc;
}

static int find_line(struct verify *v, const char *key, const char *type, struct line **out,
                     dsv4_err *err)
{
    for (size_t i = v->n; i > 0; i--) /* experts of a layer come one after the other */
        if (strcmp(v->line[i - 1].type, type) == 0 && strcmp(v->line[i - 1].key, key) == 0) {
            *out = &v->line[i - 1];
            return 0;
        }
    TRY(mem_grow(&v->line, &v->cap, v->n + 1, sizeof *v->line, "a report", err));
    *out = &v->line[v->n++];
    **out = (struct line){.type = type};
    snprintf((*out)->key, sizeof(*out)->key, "%s", key);
    return 0;
}

static int add(struct verify *v, const char *name, const char *type, uint64_t weights,
               const struct found *f, dsv4_err *err)
{
    char key[MATRIX_NAME];
    struct line *line;
    star_expert(key, name);
    TRY(find_line(v, key, type, &line, err));
    double relative = f->signal > 0 ? sqrt(f->error / f->signal) : f->error > 0 ? INFINITY : 0;
    line->tensors++;
    line->weights += weights;
    line->error += f->error;
    line->signal += f->signal;
    line->worst = relative > line->worst || isnan(relative) ? relative : line->worst;
    line->largest = f->largest > line->largest || isnan(f->largest) ? f->largest : line->largest;
    return 0;
}

/* A tensor of the source and what the destination made of it. */
struct pair {
    const struct tensor *t;
    const char *as;           /* its name in the destination */
    const struct wtype *type; /* there; NULL: not packed */
    enum fate fate;
    uint32_t layer; /* of routers */
};

static int compare_matrix(struct verify *v, const struct pair *x, dsv4_err *err)
{
    struct rows r = {.v = v};
    struct found sum;
    char name[MATRIX_NAME];
    TRY(matrix_find(&r.w[0], v->src->store, v->src->cfg, x->t->name, 0, 0, err));
    TRY(matrix_find(&r.w[1], v->dst->store, v->dst->cfg, x->as, 0, 0, err));
    uint32_t rows = r.w[0].rows;
    if (x->fate == FATE_ROUTER && rows == v->pruning->before) {
        r.pick = pruning_kept(v->pruning, x->layer);
        rows = v->pruning->kept;
    }
    if (rows != r.w[1].rows || r.w[0].cols != r.w[1].cols) {
        damaged(v, x->as, "has another shape than in the source");
        return 0;
    }
    TRY(compare_on_lanes(&r, &sum, err));
    bool exact = !r.w[0].blocks || block_exact(r.w[0].blocks);
    if (isnan(sum.error) || (exact && r.w[0].format == r.w[1].format && sum.error != 0 &&
                             wtype_of(&r.w[0]) == wtype_of(&r.w[1])))
        damaged(v, x->as, "is not what the source has");
    matrix_name(x->as, name, sizeof name);
    return add(v, name, x->type->name, (uint64_t)rows * r.w[0].cols, &sum, err);
}

/* What was copied has to be the same, but for values that were made zero: n bytes from `at` on. */
static int compare_piece(struct verify *v, const struct pair *x, const struct tensor *d,
                         enum dtype dtype, const uint8_t *want, uint64_t at, size_t n, uint8_t *buf,
                         dsv4_err *err)
{
    TRY(store_read(v->dst->store, d->data + at, n, buf, err));
    if (memcmp(buf, want, n) != 0 && bad_values(dtype, want, n, NULL) == 0)
        damaged(v, x->as, "is not what the source has");
    return 0;
}

/* `made`: what the destination should have; NULL: the source's bytes. */
static int compare_bytes(struct verify *v, const struct pair *x, enum dtype dtype,
                         const uint8_t *made, uint64_t n, dsv4_err *err)
{
    const struct tensor *d = store_find(v->dst->store, x->as);
    const size_t piece = n < PIECE ? (size_t)n : PIECE;
    uint8_t *buf;
    int rc = 0;
    if (!d) {
        damaged(v, x->as, "is missing");
        return 0;
    }
    if (d->dtype != dtype || d->bytes != n) {
        damaged(v, x->as, "is not what the source has");
        return 0;
    }
    TRY(mem_alloc(&buf, 2, piece, "bytes to compare", err));
    for (uint64_t at = 0; at < n && rc == 0; at += piece) {
        size_t part = n - at < piece ? (size_t)(n - at) : piece;
        if (!made)
            rc = store_read(v->src->store, x->t->data + at, part, buf, err);
        if (rc == 0)
            rc = compare_piece(v, x, d, dtype, made ? made + at : buf, at, part, buf + piece, err);
    }
    free(buf);
    return rc;
}

/* Rows of blocks that became floats. */
static int compare_floats(struct verify *v, const struct pair *x, dsv4_err *err)
{
    struct wmat w;
    struct window window;
    size_t bytes[2] = {0, 0};
    float *row; /* as it should be, as it is */
    const struct tensor *d = store_find(v->dst->store, x->as);
    TRY(matrix_find(&w, v->src->store, v->src->cfg, x->t->name, 0, 0, err));
    size_t n = (size_t)w.cols * sizeof *row;
    if (!d || d->dtype != DTYPE_F32 || d->bytes != (uint64_t)w.rows * n) {
        damaged(v, x->as, "is missing or has another shape than in the source");
        return 0;
    }
    window_needs(bytes, &w);
    TRY(mem_alloc(&row, 2, n, "a row to compare", err));
    int rc = window_open(&window, bytes, err);
    for (size_t i = 0; i < w.rows && rc == 0; i++) {
        rc = window_floats(&window, v->src, &w, i, row, err);
        if (rc == 0)
            rc = compare_piece(v, x, d, DTYPE_F32, (const uint8_t *)row, i * n, n,
                               (uint8_t *)(row + w.cols), err);
    }
    window_close(&window);
    free(row);
    return rc;
}

static int compare_router(struct verify *v, const struct pair *x, dsv4_err *err)
{
    const struct tensor *made;
    uint8_t *data;
    TRY(pruning_made(v->pruning, v->src, x->t, &made, err));
    TRY(mem_alloc(&data, 1, made->bytes, "a router", err));
    int rc = pruning_fill(data, v->pruning, v->src, x->t, made, err);
    if (rc == 0)
        rc = compare_bytes(v, x, made->dtype, data, made->bytes, err);
    free(data);
    return rc;
}

/* A matrix, or a vector as one of a single row. False: integers. */
static int any_rows(bool *found, struct wmat *w, const struct source *s, const struct tensor *t,
                    dsv4_err *err)
{
    *found = true;
    if (t->rank == 2 && t->dtype != DTYPE_I64 && t->dtype != DTYPE_I32)
        return matrix_find(w, s->store, s->cfg, t->name, 0, 0, err);
    enum wformat f = t->dtype == DTYPE_F32    ? W_F32
                     : t->dtype == DTYPE_F16  ? W_F16
                     : t->dtype == DTYPE_BF16 ? W_BF16
                                              : N_WFORMATS;
    *found = t->rank == 1 && f != N_WFORMATS;
    *w = (struct wmat){.format = f,
                       .rows = 1,
                       .cols = (uint32_t)t->dim[0],
                       .codes = t->data,
                       .code_ld = (size_t)t->bytes};
    return 0;
}

/* *same: a tensor of integers, and the same numbers as I32. */
static int compare_integers(bool *same, struct verify *v, const struct tensor *t,
                            const struct tensor *d, dsv4_err *err)
{
    static const char what[] = "integers to compare";
    struct tensor a, b;
    uint8_t *a_data, *b_data;
    *same = d->dtype == DTYPE_I32 && (t->dtype == DTYPE_I64 || t->dtype == DTYPE_I32) &&
            t->bytes / dtype_size(t->dtype) == d->bytes / sizeof(int32_t);
    if (!*same)
        return 0;
    TRY(tensor_read(&a, &a_data, v->src, t, what, err));
    int rc = tensor_read(&b, &b_data, v->dst, d, what, err);
    for (size_t i = 0; rc == 0 && *same && i < d->bytes / sizeof(int32_t); i++)
        *same = integer_at(&a, i) == integer_at(&b, i);
    if (rc == 0)
        free(b_data);
    free(a_data);
    return rc;
}

/* Whether a GGUF file has to have the very numbers of the source. */
static bool keeps_numbers(const struct wmat *src, const struct wmat *dst)
{
    if (src->blocks && !block_exact(src->blocks))
        return false;
    return dst->format == W_F32 || (src->format == W_E4M3 && dst->format == W_BF16) ||
           (src->format == dst->format && wtype_of(src) == wtype_of(dst));
}

/* In a GGUF file everything has a type of its own. */
static int compare_in_file(struct verify *v, const struct tensor *t, dsv4_err *err)
{
    struct rows r = {.v = v};
    struct found sum;
    bool floats[2], same = false;
    char name[MATRIX_NAME];
    const struct tensor *d = store_find(v->dst->store, t->name);
    if (!d) {
        if (!scaled_name(t->name, name, sizeof name) && !gguf_leaves_out(v->src->cfg, t->name))
            damaged(v, t->name, "is missing");
        return 0;
    }
    TRY(any_rows(&floats[0], &r.w[0], v->src, t, err));
    TRY(any_rows(&floats[1], &r.w[1], v->dst, d, err));
    if (!floats[0])
        TRY(compare_integers(&same, v, t, d, err));
    if (same)
        return 0;
    if (!floats[0] || !floats[1] || r.w[0].rows != r.w[1].rows || r.w[0].cols != r.w[1].cols) {
        damaged(v, t->name, "is not what the source has");
        return 0;
    }
    TRY(compare_on_lanes(&r, &sum, err));
    if (isnan(sum.error) || (sum.error != 0 && keeps_numbers(&r.w[0], &r.w[1])))
        damaged(v, t->name, "is not what the source has");
    bool matrix = matrix_name(t->name, name, sizeof name);
    return add(v, matrix ? name : t->name, d->blocks ? block_name(d->blocks) : dtype_name(d->dtype),
               (uint64_t)r.w[0].rows * r.w[0].cols, &sum, err);
}

/* How the destination packs the matrix `weight`. */
static const struct wtype *type_there(const struct verify *v, const char *weight)
{
    char name[MATRIX_NAME];
    return matrix_name(weight, name, sizeof name) ? packing_type(v->dst->cfg->packing, name) : NULL;
}

/* What the rows of an Engram table became; NULL: they are as they were. */
static const struct wtype *table_there(const struct verify *v, const char *weight)
{
    if (tensor_class_of(weight) != CLASS_ENGRAM_TABLE)
        return NULL;
    const struct tensor *a = store_find(v->src->store, weight);
    const struct tensor *b = store_find(v->dst->store, weight);
    if (!a || !b || a->dtype == b->dtype)
        return NULL;
    return wtype_named(b->dtype == DTYPE_I8 ? "e2m1" : "e4m3");
}

static int compare(struct verify *v, const struct tensor *t, dsv4_err *err)
{
    char renamed[MATRIX_NAME], weight[MATRIX_NAME];
    struct pair x = {.t = t, .as = t->name};
    if (v->file) {
        TRY(compare_in_file(v, t, err));
        return step(v, t->bytes, err);
    }
    if (v->pruning)
        x.fate = pruning_fate(v->pruning, t->name, &x.layer, renamed);
    if (x.fate == FATE_RENUMBERED)
        x.as = renamed;
    bool scale = scaled_name(x.as, weight, sizeof weight);
    x.type = type_there(v, scale ? weight : x.as);
    if (!x.type)
        x.type = table_there(v, scale ? weight : x.as);
    if (x.fate == FATE_GOES || (scale && x.type)) /* packed scales: with their matrix */
        return step(v, t->bytes, err);
    if (x.type)
        TRY(compare_matrix(v, &x, err));
    else if (x.fate == FATE_ROUTER)
        TRY(compare_router(v, &x, err));
    else if (t->blocks)
        TRY(compare_floats(v, &x, err));
    else
        TRY(compare_bytes(v, &x, t->dtype, NULL, t->bytes, err));
    return step(v, t->bytes, err);
}

/* ------------------------------------------------------------------ checksums */

static int check_sum(struct verify *v, const char *file, const char *want, dsv4_err *err)
{
    struct bytes path = {0};
    char *sum = NULL;
    int rc = bytes_printf(&path, err, "%s/%s", v->dst->dir, file);
    if (rc == 0)
        rc = file_sum(&sum, path.data, NULL, NULL, err);
    free(path.data);
    TRY(rc);
    const char *state = !want[0] || !sum[0]      ? "unknown"
                        : strcmp(want, sum) == 0 ? "right"
                                                 : "wrong";
    if (strcmp(state, "wrong") == 0)
        damaged(v, file, "has not the checksum that the index says");
    free(sum);
    if (json_array_append_new(json_object_get(v->out, "shards"),
                              json_pack("{s:s, s:s}", "file", file, "checksum", state)) != 0)
        return err_memory(err, 0, "a report");
    return 0;
}

static int check_sums(struct verify *v, dsv4_err *err)
{
    struct bytes path = {0};
    char *text = NULL;
    size_t len;
    json_t *index = NULL, *want;
    const char *file;
    int rc = bytes_printf(&path, err, "%s/model.safetensors.index.json", v->dst->dir);
    if (rc == 0)
        rc = file_read(path.data, INDEX_LIMIT, &text, &len, err);
    if (rc == 0)
        rc = json_open(&index, text, len, path.data, err);
    free(text);
    free(path.data);
    TRY(rc);
    json_t *sums = json_object_get(json_object_get(index, "metadata"), "sums");
    json_object_foreach(sums, file, want)
    {
        const char *text_of = json_string_value(want);
        if (rc == 0 && !strchr(file, '/'))
            rc = check_sum(v, file, text_of ? text_of : "", err);
    }
    json_decref(index);
    return rc;
}

/* ------------------------------------------------------------------ all */

static int tell(struct verify *v, char **json, dsv4_err *err)
{
    json_t *list = json_array();
    bool whole = list != NULL;
    for (size_t i = 0; i < v->n && whole; i++) {
        const struct line *l = &v->line[i];
        double error = l->signal > 0 ? sqrt(l->error / l->signal) : 0;
        whole = json_array_append_new(
                    list, json_pack("{s:s, s:s, s:I, s:I, s:f, s:f, s:f}", "tensor", l->key, "type",
                                    l->type, "tensors", (json_int_t)l->tensors, "weights",
                                    (json_int_t)l->weights, "relative_error",
                                    isfinite(error) ? error : -1.0, "worst_tensor",
                                    isfinite(l->worst) ? l->worst : -1.0, "largest_difference",
                                    isfinite(l->largest) ? l->largest : -1.0)) == 0;
    }
    whole = whole && json_object_set(v->out, "tensors", list) == 0 &&
            json_object_set_new(v->out, "damage",
                                v->damage[0] ? json_string(v->damage) : json_null()) == 0;
    json_decref(list);
    return json_write(json, whole ? v->out : NULL, JSON_INDENT(1), err);
}

static int verify_all(struct verify *v, char **json, dsv4_err *err)
{
    v->out = json_pack("{s:s, s:[]}", "destination", v->dst->dir, "shards");
    v->file = checkpoint_is_file(v->dst->dir);
    if (!v->file)
        TRY(check_sums(v, err));
    if (v->src->store && v->file && v->src->cfg->n_experts != v->dst->cfg->n_experts)
        return err_set(err, DSV4_REFUSED,
                       "%s has %u experts in a layer, %s %u: which of them stayed is not said in a "
                       "GGUF file",
                       v->dst->dir, v->dst->cfg->n_experts, v->src->dir, v->src->cfg->n_experts);
    if (v->src->store && !v->file)
        TRY(pruning_read(&v->pruning, v->dst, v->src, err));
    v->all = v->src->store ? store_bytes(v->src->store) : 0;
    for (size_t i = 0; v->src->store && i < store_count(v->src->store); i++)
        TRY(compare(v, store_at(v->src->store, i), err));
    return tell(v, json, err);
}

int dsv4_convert_verify(const char *src, const char *dst, const dsv4_convert_options *opt,
                        char **json, dsv4_err *err)
{
    static const dsv4_convert_options defaults;
    struct source s[2] = {{0}, {0}};
    struct verify v = {.src = &s[0], .dst = &s[1], .opt = opt ? opt : &defaults};
    *json = NULL;
    int rc = src ? source_open(&s[0], src, err) : 0;
    if (rc == 0)
        rc = source_open(&s[1], dst, err);
    if (rc == 0)
        rc = pool_open_threads(&v.pool,
                               (int)(v.opt->threads < MAX_LANES ? v.opt->threads : MAX_LANES), err);
    if (rc == 0)
        rc = verify_all(&v, json, err);
    if (rc == 0 && v.damage[0])
        rc = err_set(err, DSV4_REFUSED, "%s: %s", dst, v.damage);
    json_decref(v.out);
    free(v.line);
    pruning_close(v.pruning);
    pool_close(v.pool);
    source_close(&s[1]);
    source_close(&s[0]);
    return rc;
}
