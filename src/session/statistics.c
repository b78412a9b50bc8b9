/* What the weight matrices of a model multiply with: sums of squares and of products of their inputs, and what
 * the experts of each layer gave. Every lane adds up columns of its own, so sums do not depend on how many
 * lanes there are. */
#include "statistics.h"

#include <math.h>
#include <stdlib.h>

const struct layer *expert_layer(const struct model *m, const struct matrix *w, int *which)
{
    for (uint32_t i = 0; i < m->cfg->n_layers; i++) {
        const struct layer *L = &m->layer[i];
        uintptr_t at = (uintptr_t)w - (uintptr_t)L->moe.expert;
        if (at >= m->cfg->n_experts * sizeof *L->moe.expert)
            continue;
        const struct expert *e = &L->moe.expert[at / sizeof *e];
        *which = w == &e->w1 ? 1 : w == &e->w2 ? 2 : 3;
        return L;
    }
    return NULL;
}

static int by_matrix(const void *a, const void *b)
{
    uintptr_t x = (uintptr_t)((const struct inputs *)a)->w,
              y = (uintptr_t)((const struct inputs *)b)->w;
    return (x > y) - (x < y);
}

const struct inputs *statistics_find(const struct statistics *s, const struct matrix *w)
{
    struct inputs key = {.w = w};
    return bsearch(&key, s->in, s->n, sizeof key, by_matrix);
}

const struct inputs *statistics_inputs(const struct statistics *s, const struct matrix *w)
{
    int which;
    const struct layer *L = expert_layer(s->m, w, &which);
    for (uint32_t i = 0; L && which == 3 && i < s->m->cfg->n_experts; i++)
        if (w == &L->moe.expert[i].w3)
            return statistics_find(s, &L->moe.expert[i].w1);
    return statistics_find(s, w);
}

static void observe_input(void *arg, const struct batch *b, const struct matrix *w, enum act a,
                          const float *x, size_t ld, const uint32_t *pick, size_t n, size_t c0,
                          size_t c1)
{
    const struct statistics *s = arg;
    struct inputs *in = (struct inputs *)(uintptr_t)statistics_find(s, w);
    if (!in)
        return;
    if (c0 == 0)
        in->rows += n;
    for (size_t i = 0; i < n; i++) {
        size_t row = pick ? pick[i] : i;
        const float *v = x + row * ld;
        float scale =
            a == ACT_QR ? query_scale(b, row) : 1; /* what the product is multiplied by later */
        scale *= scale;
        for (size_t c = c0; c < c1; c++)
            in->square[c] += (double)(scale * v[c] * v[c]);
        if (!in->covariance)
            continue;
        for (size_t c = c0; c < c1; c++) {
            float *sum = in->covariance + c * w->cols, by = scale * v[c];
            for (size_t k = 0; k < w->cols; k++)
                sum[k] += by * v[k];
        }
    }
}

static void observe_experts(void *arg, const struct batch *b, const struct layer *L)
{
    const struct statistics *s = arg;
    struct expert_use *u = &s->use[L - s->m->layer];
    size_t d = s->m->cfg->d;
    for (size_t e = 0; e < s->m->cfg->n_experts; e++) {
        u->rows[e] += b->expert_at[e + 1] - b->expert_at[e];
        for (size_t i = b->expert_at[e]; i < b->expert_at[e + 1]; i++)
            u->norm[e] += sqrt((double)s->m->k.sum_squares(b->down + i * d, d));
    }
}

/* Covariances of w2 are many: every expert has its own. They are left out where they would take more than a
 * quarter of the memory that is free. */
static bool room_for_w2(const struct model *m)
{
    uint64_t bytes = 0, limit = mem_available() / 4;
    for (size_t i = 0; i < m->n_matrix && bytes < limit; i++) {
        int which = 0;
        expert_layer(m, m->matrix[i], &which);
        if (which == 0 || which == 2)
            bytes += (uint64_t)m->matrix[i]->cols * m->matrix[i]->cols * sizeof(float);
    }
    return bytes < limit;
}

/* Inputs of the matrix and room for their sums. `shared`: covariance of the w1 of the layer before it. */
static int add_matrix(struct statistics *s, const struct matrix *w, bool covariance, bool w2,
                      float **shared, dsv4_err *err)
{
    int which = 0;
    const struct layer *L = expert_layer(s->m, w, &which);
    size_t square;
    if (which == 3)
        return 0;
    struct inputs *in = &s->in[s->n++];
    in->w = w;
    TRY(mem_alloc(&in->square, w->cols, sizeof *in->square, "sums of inputs", err));
    if (!covariance || (which == 2 && !w2))
        return 0;
    float **of_layer = L && which == 1 ? &shared[L - s->m->layer] : NULL;
    if (of_layer && *of_layer) {
        in->covariance = *of_layer;
        return 0;
    }
    if (!size_mul(w->cols, w->cols, &square))
        return err_memory(err, UINT64_MAX, "sums of inputs");
    TRY(mem_alloc(&in->covariance, square, sizeof *in->covariance, "sums of inputs", err));
    if (of_layer)
        *of_layer = in->covariance;
    return 0;
}

static int open_inputs(struct statistics *s, bool covariance, dsv4_err *err)
{
    const struct model *m = s->m;
    float **shared;
    TRY(mem_alloc(&s->in, m->n_matrix, sizeof *s->in, "sums of inputs", err));
    TRY(mem_alloc(&shared, m->cfg->n_layers, sizeof *shared, "sums of inputs", err));
    bool w2 = covariance && room_for_w2(m);
    int rc = 0;
    for (size_t i = 0; i < m->n_matrix && rc == 0; i++)
        rc = add_matrix(s, m->matrix[i], covariance, w2, shared, err);
    free(shared);
    qsort(s->in, s->n, sizeof *s->in, by_matrix);
    return rc;
}

static int open_use(struct statistics *s, dsv4_err *err)
{
    const struct config *c = s->m->cfg;
    TRY(mem_alloc(&s->use, c->n_layers, sizeof *s->use, "sums of experts", err));
    for (uint32_t i = 0; i < c->n_layers; i++) {
        s->use[i].L = &s->m->layer[i];
        TRY(mem_alloc(&s->use[i].rows, c->n_experts, sizeof *s->use->rows, "sums of experts", err));
        TRY(mem_alloc(&s->use[i].norm, c->n_experts, sizeof *s->use->norm, "sums of experts", err));
    }
    return 0;
}

int statistics_open(struct statistics **out, const struct model *m, bool covariance, dsv4_err *err)
{
    struct statistics *s;
    *out = NULL;
    TRY(mem_alloc(&s, 1, sizeof *s, "statistics", err));
    s->m = m;
    s->observer = (struct observer){observe_input, observe_experts, s};
    int rc = open_inputs(s, covariance, err);
    if (rc == 0)
        rc = open_use(s, err);
    if (rc != 0)
        statistics_close(s);
    else
        *out = s;
    return rc;
}

static int by_address(const void *a, const void *b)
{
    uintptr_t x = (uintptr_t)((const struct inputs *)a)->covariance;
    uintptr_t y = (uintptr_t)((const struct inputs *)b)->covariance;
    return (x > y) - (x < y);
}

void statistics_close(struct statistics *s)
{
    if (!s)
        return;
    if (s->n > 0)
        qsort(s->in, s->n, sizeof *s->in, by_address); /* those that are shared stand together */
    for (size_t i = 0; i < s->n; i++) {
        free(s->in[i].square);
        if (i + 1 == s->n || s->in[i + 1].covariance != s->in[i].covariance)
            free(s->in[i].covariance);
    }
    for (uint32_t i = 0; s->use && i < s->m->cfg->n_layers; i++) {
        free(s->use[i].rows);
        free(s->use[i].norm);
    }
    free(s->in);
    free(s->use);
    free(s);
}
