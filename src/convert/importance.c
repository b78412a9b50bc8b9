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

int importance_open(struct store **out, const char *file, struct plan *p, bool covariance,
                    dsv4_err *err)
{
    struct store *s;
    const char *first = "";
    size_t matched = 0, wanted = 0, products = 0;
    *out = NULL;
    TRY(store_open_file(&s, file, err));
    int rc = 0;
    for (size_t i = 0; i < p->n && rc == 0; i++) {
        struct job *j = &p->job[i];
        if (j->kind != JOB_ENCODE)
            continue;
        if (wanted++ == 0)
            first = j->name;
        const struct tensor *t = find(s, j->name, "importance", false);
        const struct tensor *h = covariance ? find(s, j->name, "covariance", true) : NULL;
        if (t && (rc = check(t, j->in.cols, 1, err)) == 0) {
            matched++;
            j->importance = values(t);
            plan_mix(p, t->data, (size_t)t->bytes);
        }
        if (h && rc == 0 && (rc = check(h, j->in.cols, 2, err)) == 0) {
            products++;
            j->covariance = has_feedback(j) ? values(h) : NULL;
            plan_mix(p, h->data, j->in.cols * sizeof(float)); /* a row tells texts apart */
        }
    }
    if (rc == 0 && wanted > 0 && matched == 0)
        rc = err_set(err, DSV4_REFUSED,
                     "%s: knows none of the %zu matrices that are to be encoded, such as %s", file,
                     wanted, first);
    if (rc == 0 && covariance && wanted > 0 && products == 0)
        rc = err_set(err, DSV4_REFUSED,
                     "%s: has no covariances, which high effort needs; calibrate with them", file);
    if (rc != 0)
        store_close(s);
    else
        *out = s;
    return rc;
}
