/* Products of weight matrices with rows of activations: which lane computes which rows of the matrix, from
 * which part of it, with floats or with quantized activations. */
#include "model.h"

/* The batch row that a row of an activation belongs to. */
static size_t batch_row(const struct batch *b, enum act a, size_t row)
{
    return a == ACT_O ? row / b->m->cfg->o_groups : a == ACT_UP ? b->expert_row[row] : row;
}

/* E4M3 weights take integers for rows whose logits nobody asks for. What a row is worth depends on
 * that alone, never on the rows beside it: any grouping into steps gives the same bits. */
static bool takes(const struct batch *b, enum act a, enum qkind kind, size_t row)
{
    return b->quant[a][kind].code && (kind != Q_16 || b->bulk[batch_row(b, a, row)]);
}

/* ORDER ACTS */
size_t act_width(const struct config *c, enum act a)
{
    const size_t width[N_ACTS] = {c->d,
                                  c->q_lora,
                                  (size_t)c->n_heads * c->head_dim / c->o_groups,
                                  (size_t)c->o_groups * c->o_lora,
                                  c->d_ff,
                                  (size_t)c->n_shared * c->d_ff};
    return width[a];
}

size_t act_rows(const struct config *c, enum act a)
{
    return a == ACT_O ? c->o_groups : a == ACT_UP ? c->top_k : 1;
}

static const float *act_floats(const struct batch *b, enum act a)
{
    const float *const x[N_ACTS] = {b->x, b->qr, b->q, b->z, b->up, b->shared};
    return x[a];
}

void act_ready(const struct batch *b, enum act a, size_t row, size_t c0, size_t c1)
{
    for (int kind = Q_8; kind < Q_KINDS; kind++)
        if (takes(b, a, (enum qkind)kind, row)) {
            struct qrows q = b->quant[a][kind];
            b->m->k.quantize(&q, row, act_floats(b, a) + row * q.cols, c0, c1);
        }
}

/* What product() multiplies with: floats, or integers of an activation. */
struct input {
    const float *x;
    size_t ld;
    enum act act; /* N_ACTS: floats only */
};

/* Rows of the input, one behind the other, that are computed in the same way. */
struct run {
    const uint32_t *pick; /* NULL: first, first + 1, ... */
    size_t first, n;
};

static void one_run(const struct lane *l, const struct batch *b, float *y, size_t ldy,
                    const struct input *in, const struct run *run, enum qkind kind,
                    const struct wmat *w, size_t r0, size_t r1)
{
    const struct kernels *k = &b->m->k;
    if (kind == Q_NONE) {
        const float *x = in->x + run->first * in->ld;
        k->matmul(y, ldy, x, in->ld, run->pick, run->n, w, r0, r1, lane_scratch(l, b));
        return;
    }
    struct qrows x = b->quant[in->act][kind];
    x.code = (uint8_t *)x.code + run->first * x.cols * (kind == Q_8 ? 1 : 2);
    x.scale += run->first * (x.cols / GROUP);
    x.sum += run->first * (x.cols / GROUP);
    k->matmul_fast(y, ldy, &x, run->pick, run->n, w, r0, r1, lane_scratch(l, b));
}

static void one_part(const struct lane *l, const struct batch *b, float *y, size_t ldy,
                     const struct input *in, const uint32_t *pick, size_t n, const struct wmat *w,
                     size_t r0, size_t r1)
{
    enum qkind kind = w->panels && in->act < N_ACTS ? b->m->k.fast[w->format] : Q_NONE;
    for (size_t i = 0; i < n;) {
        bool fast = kind != Q_NONE && takes(b, in->act, kind, pick ? pick[i] : i);
        size_t end = i + 1;
        while (end < n && (kind != Q_16 || takes(b, in->act, kind, pick ? pick[end] : end) == fast))
            end++;
        struct run run = {pick ? pick + i : NULL, pick ? 0 : i, end - i};
        one_run(l, b, y + i * ldy, ldy, in, &run, fast ? kind : Q_NONE, w, r0, r1);
        i = end;
    }
}

/* This lane's rows r0 .. r1 of a matrix stand for a share of its columns, so that the lanes together hear of all.
 * Where groups share one matrix, whoever computes rows of one group tells of the inputs of all. */
static void observe(const struct batch *b, const struct input *in, const uint32_t *pick, size_t n,
                    const struct matrix *w, size_t r0, size_t r1)
{
    size_t c0 = r0 * w->cols / w->rows, c1 = r1 * w->cols / w->rows;
    if (in->act == ACT_O) {
        pick = NULL;
        n *= b->m->cfg->o_groups;
    }
    if (c0 < c1)
        b->observer->input(b->observer->arg, b, w, in->act, in->x, in->ld, pick, n, c0, c1);
}

static void all_parts(const struct lane *l, const struct batch *b, float *y, size_t ldy,
                      const struct input *in, const uint32_t *pick, size_t n,
                      const struct matrix *w, size_t r0, size_t r1)
{
    if (w->n_parts == 0)
        one_part(l, b, y, ldy, in, pick, n, &w->stored, r0, r1);
    for (uint32_t i = 0; i < w->n_parts; i++) {
        size_t first = w->part[i].first, end = first + w->part[i].w.rows;
        size_t from = r0 > first ? r0 : first, to = r1 < end ? r1 : end;
        if (from < to)
            one_part(l, b, y + first, ldy, in, pick, n, &w->part[i].w, from - first, to - first);
    }
}

static void observed(const struct lane *l, const struct batch *b, float *y, size_t ldy,
                     const struct input *in, const uint32_t *pick, size_t n, const struct matrix *w,
                     size_t r0, size_t r1)
{
    if (n == 0)
        return; /* y may be NULL */
    if (b->observer && r0 < r1)
        observe(b, in, pick, n, w, r0, r1);
    all_parts(l, b, y, ldy, in, pick, n, w, r0, r1);
}

void product(const struct lane *l, const struct batch *b, float *y, size_t ldy, enum act a,
             const uint32_t *pick, size_t n, const struct matrix *w, size_t r0, size_t r1)
{
    struct input in = {act_floats(b, a), act_width(b->m->cfg, a), a};
    observed(l, b, y, ldy, &in, pick, n, w, r0, r1);
}

void linear_act(const struct lane *l, const struct batch *b, float *y, size_t ldy, enum act a,
                size_t n, const struct matrix *w)
{
    size_t r0, r1;
    lane_split(l, w->rows, w->n_parts > 0 ? ROW_UNIT : 1, &r0, &r1);
    product(l, b, y, ldy, a, NULL, n, w, r0, r1);
}

void linear(const struct lane *l, const struct batch *b, float *y, size_t ldy, const float *x,
            size_t ldx, size_t n, const struct matrix *w)
{
    struct input in = {x, ldx, N_ACTS};
    size_t r0, r1;
    lane_split(l, w->rows, w->n_parts > 0 ? ROW_UNIT : 1, &r0, &r1);
    observed(l, b, y, ldy, &in, NULL, n, w, r0, r1);
}

void linear_alone(const struct lane *l, const struct batch *b, float *y, const float *x,
                  const struct matrix *w)
{
    struct input in = {x, w->cols, N_ACTS};
    all_parts(l, b, y, w->rows, &in, NULL, 1, w, 0, w->rows);
}

/* ------------------------------------------------------------------ which integers a model needs */

static void want(struct model *m, enum act a, const struct matrix *w, bool as_stored)
{
    bool panels = w->stored.panels || (!as_stored && panel_fits(&w->stored));
    enum qkind kind = panels ? m->k.fast[w->stored.format] : Q_NONE;
    if (kind != Q_NONE && act_width(m->cfg, a) % GROUP == 0)
        m->act_kinds[a] |= 1u << kind;
}

void model_use_fast(struct model *m, bool as_stored)
{
    const struct config *c = m->cfg;
    for (uint32_t i = 0; i < c->n_layers; i++) {
        struct layer *L = &m->layer[i];
        struct moe *f = &L->moe;
        const struct matrix *x[] = {&L->wq_a,
                                    &L->wkv,
                                    &L->comp.wkv,
                                    &L->comp.wgate,
                                    &L->index.own.wkv,
                                    &L->index.own.wgate,
                                    &L->index.weights_proj,
                                    &f->shared.w1,
                                    &f->shared.w3};
        for (size_t k = 0; k < sizeof x / sizeof *x; k++)
            want(m, ACT_X, x[k], as_stored);
        for (uint32_t e = 0; e < c->n_experts; e++) {
            want(m, ACT_X, &f->expert[e].w1, as_stored);
            want(m, ACT_X, &f->expert[e].w3, as_stored);
            want(m, ACT_UP, &f->expert[e].w2, as_stored);
        }
        want(m, ACT_QR, &L->wq_b, as_stored);
        want(m, ACT_QR, &L->index.wq_b, as_stored);
        if (c->head_dim % GROUP == 0) /* lanes write whole heads */
            want(m, ACT_O, &L->wo_a, as_stored);
        want(m, ACT_Z, &L->wo_b, as_stored);
        want(m, ACT_SHARED, &f->shared.w2, as_stored);
    }
    want(m, ACT_X, &m->head, as_stored);
}
