/* A calibration file (docs/quantization.md): what the inputs of the source's matrices were like. */
#include "convert.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { NAME_CAP = 256 };

/* "NAME.weight" -> "NAME.TAIL". w3 of an expert has the inputs of w1; with `layer` all experts of a layer have
 * theirs together, "layers.3.ffn.experts.w1". */
static const struct tensor *find(const struct store *s, const char *weight, const char *tail,
                                 bool layer)
{
    char name[NAME_CAP];
    int n = (int)strlen(weight) - (int)strlen(".weight");
    const char *experts = strstr(weight, ".experts.");
    if (n < 2 || n >= NAME_CAP - 32)
        return NULL;
    bool w3 = experts && strncmp(weight + n - 2, "w3", 2) == 0;
    bool w1 = w3 || (experts && strncmp(weight + n - 2, "w1", 2) == 0);
    if (layer && w1)
        snprintf(name, sizeof name, "%.*s.w1.%s", (int)(experts - weight) + 8, weight, tail);
    else
        snprintf(name, sizeof name, "%.*s%s.%s", w3 ? n - 2 : n, weight, w3 ? "w1" : "", tail);
    return store_find(s, name);
}

static const float *values(const struct tensor *t)
{
    return (const float *)(const void *)t->data;
}

/* High effort works on what has f16 scales; the other formats are searched. */
static bool has_feedback(const struct job *j)
{
    return wformat_has_halves(j->type->format);
}

static int refuse(const struct tensor *t, const char *want, uint64_t n, dsv4_err *err)
{
    char shape[128];
    tensor_shape_text(t, shape, sizeof shape);
    return err_set(err, DSV4_REFUSED,
                   "%s: %s is %s; expected F32, %llu %s, none of them negative or not finite",
                   t->path, t->stored, shape, (unsigned long long)n, want);
}

static int check(const struct tensor *t, uint64_t dim0, uint64_t rank, dsv4_err *err)
{
    if (t->dtype != DTYPE_F32 || t->rank != rank || t->dim[0] != dim0 || t->dim[rank - 1] != dim0 ||
        (uintptr_t)t->data % sizeof(float) != 0)
        return refuse(t, rank == 2 ? "by as many" : "values", dim0, err);
    const float *v = values(t);
    for (uint64_t i = 0; i < dim0; i++) /* of a covariance the diagonal */
        if (!(v[rank == 2 ? i * dim0 + i : i] >= 0) || !isfinite(v[rank == 2 ? i * dim0 + i : i]))
            return refuse(t, rank == 2 ? "by as many" : "values", dim0, err);
    return 0;
}

int importance_vector(const float **out, const struct store *s, const char *name, uint64_t n,
                      dsv4_err *err)
{
    const struct tensor *t = store_find(s, name);
    if (!t)
        return err_set(err, DSV4_REFUSED, "the calibration file has no %s", name);
    TRY(check(t, n, 1, err));
    *out = values(t);
    return 0;
}

int importance_join(const struct store *s, const char *file, struct plan *p, bool covariance,
                    dsv4_err *err)
{
    const char *first = "";
    size_t matched = 0, wanted = 0, products = 0;
    for (size_t i = 0; i < p->n; i++) {
        struct job *j = &p->job[i];
        if (j->kind != JOB_ENCODE || j->as_loaded)
            continue;
        if (wanted++ == 0)
            first = j->from->name;
        const struct tensor *t = find(s, j->from->name, "importance", false);
        const struct tensor *h = covariance ? find(s, j->from->name, "covariance", true) : NULL;
        if (t) {
            TRY(check(t, j->in.cols, 1, err));
            matched++;
            j->importance = values(t);
            plan_mix(p, t->data, (size_t)t->bytes);
        }
        if (h) {
            TRY(check(h, j->in.cols, 2, err));
            products++;
            j->covariance = has_feedback(j) ? values(h) : NULL;
            plan_mix(p, h->data, j->in.cols * sizeof(float)); /* a row tells texts apart */
        }
    }
    if (wanted > 0 && matched == 0)
        return err_set(err, DSV4_REFUSED,
                       "%s: knows none of the %zu matrices that are to be encoded, such as %s",
                       file, wanted, first);
    if (covariance && wanted > 0 && products == 0)
        return err_set(err, DSV4_REFUSED,
                       "%s: has no covariances, which high effort needs; calibrate with them",
                       file);
    return 0;
}

/* Rows that an expert saw, and one more: none is useless for certain. */
static double rows_seen(const struct store *s, const char *name)
{
    char rows[NAME_CAP];
    unsigned layer, expert;
    int64_t n = 0;
    if (sscanf(name, "layers.%u.ffn.experts.%u.", &layer, &expert) != 2)
        return 1;
    snprintf(rows, sizeof rows, "layers.%u.ffn.experts.rows", layer);
    const struct tensor *t = store_find(s, rows);
    if (t && t->dtype == DTYPE_I64 && t->rank == 1 && expert < t->dim[0])
        memcpy(&n, t->data + expert * sizeof n, sizeof n);
    return n > 0 ? (double)n + 1 : 1;
}

int importance_of(const struct store *s, struct job *j, double *used, dsv4_err *err)
{
    const struct tensor *t = find(s, j->from->name, "importance", false);
    *used = rows_seen(s, j->from->name);
    if (!t)
        return 0;
    TRY(check(t, j->in.cols, 1, err));
    j->importance = values(t);
    return 0;
}
