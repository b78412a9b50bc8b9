/* Attention of one layer (spec: architecture, section 3): multi-query over one shared latent.
 *
 *   qr = norm(wq_a x), q = rope(wq_b qr), kv = rope(norm(wkv x)) is key and value at once;
 *   softmax over the window and the compressed entries, a sink logit per head in the denominator;
 *   out = wo_b concat_g(wo_a[g] o_g), o rotated back first.
 *
 * The compressed branch (compress.c, indexer.c) is woven into the same phases. */
#include "model.h"

#include <math.h>
#include <string.h>

/* x -> qr, kv, rows for the compressors, weights of the indexer's heads. */
static void project(const struct lane *l, struct batch *b, const struct layer *L)
{
    const struct config *c = b->m->cfg;
    linear(l, b, b->qr, c->q_lora, b->x, c->d, b->n, &L->wq_a);
    linear(l, b, b->kv, c->head_dim, b->x, c->d, b->n, &L->wkv);
    if (L->kv_source)
        compress_project(l, b, L);
    if (L->index_source)
        linear(l, b, b->iw, c->index_heads, b->x, c->d, b->n, &L->index.weights_proj);
    lane_barrier(l);
}

/* Norms, rope of kv, this step's rows into the window rings; closes compressor groups. */
static void keep_latents(const struct lane *l, struct batch *b, const struct layer *L)
{
    const struct config *c = b->m->cfg;
    const struct kernels *k = &b->m->k;
    size_t r0, r1, bytes = row_bytes(b->m->window_row);
    float index_scale = 1; /* index_dim is 0 where no layer selects */
    if (L->index_source)
        index_scale = 1.0f / (sqrtf((float)c->index_dim) * sqrtf((float)c->index_heads));
    lane_split(l, b->n, 1, &r0, &r1);
    for (size_t r = r0; r < r1; r++) {
        float *qr = b->qr + r * c->q_lora, *kv = b->kv + r * c->head_dim;
        rms(k, qr, qr, L->q_norm, c->q_lora, c->eps);
        rms(k, kv, kv, L->kv_norm, c->head_dim, c->eps);
        rope(kv, c->head_dim, c->rope_dim, b->cs[L->rope] + r * c->rope_dim, false);
        struct cache *cache = b->seg[b->row_seg[r]].cache;
        uint8_t *row = cache->layer[L->id].window + b->pos[r] % cache->window_cap * bytes;
        row_encode(row, kv, b->m->window_row);
        if (b->tap)
            k->rows(kv, row, 1, b->m->window_row);
        if (L->index_source)
            for (size_t h = 0; h < c->index_heads; h++)
                b->iw[r * c->index_heads + h] *= index_scale;
    }
    if (L->kv_source)
        compress_pool(l, b, L);
    lane_barrier(l);
    TAP(l, b, (int)L->id, "qr", b->qr, b->n, c->q_lora);
    TAP(l, b, (int)L->id, "kv", b->kv, b->n, c->head_dim);
}

/* qr -> q (and the indexer's q); finishes entries and keys of closed groups. */
static void make_queries(const struct lane *l, struct batch *b, const struct layer *L)
{
    const struct config *c = b->m->cfg;
    const struct kernels *k = &b->m->k;
    size_t heads = (size_t)c->n_heads * c->head_dim, ih = (size_t)c->index_heads * c->index_dim;
    bool v4 = c->family == FAMILY_V4;
    linear(l, b, b->q, heads, b->qr, c->q_lora, b->n, &L->wq_b);
    if (L->index_source)
        linear(l, b, b->iq, ih, b->qr, c->q_lora, b->n, &L->index.wq_b);
    if (L->kv_source)
        compress_keys(l, b, L);
    lane_barrier(l);

    size_t i0, i1;
    lane_split(l, b->n * c->n_heads, 1, &i0, &i1);
    for (size_t i = i0; i < i1; i++) {
        float *q = b->q + i * c->head_dim;
        if (v4)
            rms(k, q, q, NULL, c->head_dim, c->eps);
        rope(q, c->head_dim, c->rope_dim, b->cs[L->rope] + i / c->n_heads * c->rope_dim, false);
    }
    lane_split(l, L->index_source ? b->n * c->index_heads : 0, 1, &i0, &i1);
    for (size_t i = i0; i < i1; i++) {
        float *q = b->iq + i * c->index_dim;
        rope(q, c->index_dim, c->rope_dim, b->cs[L->rope] + i / c->index_heads * c->rope_dim,
             false);
        if (b->m->key_row.format == R_F32)
            continue;
        if (v4)
            hadamard(q, c->index_dim);
        row_round(k, q, b->m->key_row);
    }
    if (L->kv_source)
        compress_store(l, b, L);
    lane_barrier(l);
    TAP(l, b, (int)L->id, "q", b->q, b->n, heads);
    if (L->index_source) {
        TAP(l, b, (int)L->id, "idx_q", b->iq, b->n, ih);
        TAP(l, b, (int)L->id, "idx_w", b->iw, b->n, c->index_heads);
    }
}

/* A running softmax over tiles of window and entries for heads h0 .. h1 of one row. */
struct tile {
    float *kv; /* [ATTEND_TILE][c] */
    size_t n;
};

struct attend {
    const struct batch *b;
    float *o, *max, *sum;
    const float *q;
    size_t heads;
    struct tile t;
    float scale;
};

static void flush_tile(struct attend *a)
{
    const struct model *m = a->b->m;
    m->k.attend(a->o, a->max, a->sum, a->q, a->heads, a->t.kv, a->t.n, m->cfg->head_dim, a->scale);
    a->t.n = 0;
}

static void add_row(struct attend *a, const uint8_t *row, struct rshape s)
{
    a->b->m->k.rows(a->t.kv + a->t.n * s.width, row, 1, s);
    if (++a->t.n == ATTEND_TILE)
        flush_tile(a);
}

static void attend_row(struct attend *a, const struct layer *L, size_t row)
{
    const struct batch *b = a->b;
    const struct config *c = b->m->cfg;
    const struct cache *cache = b->seg[b->row_seg[row]].cache;
    const uint8_t *window = cache->layer[L->id].window;
    size_t t = b->pos[row], bytes = row_bytes(b->m->window_row);
    for (size_t p = t + 1 > c->window ? t + 1 - c->window : 0; p <= t; p++)
        add_row(a, window + p % cache->window_cap * bytes, b->m->window_row);
    if (L->ratio > 0) {
        const struct rowlist *entry = &cache->layer[L->kv_layer].entry;
        const uint32_t *sel = b->sel + row * c->index_topk;
        size_t n = L->selects ? b->n_sel[row] : (t + 1) / L->ratio;
        for (size_t i = 0; i < n; i++)
            add_row(a, rowlist_at(entry, L->selects ? sel[i] : i), b->m->entry_row);
    }
    if (a->t.n > 0)
        flush_tile(a);
}

static void attend_heads(const struct lane *l, struct batch *b, const struct layer *L, size_t row,
                         size_t h0, size_t h1)
{
    const struct config *c = b->m->cfg;
    float *tile = lane_scratch(l, b), *max = tile + ATTEND_TILE * c->head_dim;
    size_t at = row * c->n_heads + h0;
    struct attend a = {.b = b,
                       .o = b->o + at * c->head_dim,
                       .max = max,
                       .sum = max + c->n_heads,
                       .q = b->q + at * c->head_dim,
                       .heads = h1 - h0,
                       .t = {.kv = tile},
                       .scale = 1.0f / sqrtf((float)c->head_dim)};
    memset(a.o, 0, a.heads * c->head_dim * sizeof *a.o);
    for (size_t h = 0; h < a.heads; h++) { /* the sink: a logit without a value */
        a.max[h] = L->sink[h0 + h];
        a.sum[h] = 1;
    }
    attend_row(&a, L, row);
    for (size_t h = 0; h < a.heads; h++) {
        float *o = a.o + h * c->head_dim, inverse = 1.0f / a.sum[h];
        for (size_t i = 0; i < c->head_dim; i++)
            o[i] *= inverse;
        rope(o, c->head_dim, c->rope_dim, b->cs[L->rope] + row * c->rope_dim, true);
    }
}

static void attend(const struct lane *l, struct batch *b, const struct layer *L)
{
    size_t heads = b->m->cfg->n_heads, at, end;
    lane_split(l, b->n * heads, 1, &at, &end);
    while (at < end) {
        size_t h0 = at % heads, h1 = h0 + (end - at) < heads ? h0 + (end - at) : heads;
        attend_heads(l, b, L, at / heads, h0, h1);
        at += h1 - h0;
    }
    lane_barrier(l);
}

/* z_g = wo_a[g] o_g, out = wo_b concat(z); groups share one matrix, o_lora rows each. */
static void output(const struct lane *l, struct batch *b, const struct layer *L)
{
    const struct config *c = b->m->cfg;
    size_t heads = (size_t)c->n_heads * c->head_dim, in = heads / c->o_groups;
    size_t groups = (size_t)c->o_groups * c->o_lora, r0, r1;
    lane_split(l, groups, 1, &r0, &r1);
    while (r0 < r1) {
        size_t g = r0 / c->o_lora, end = (g + 1) * c->o_lora < r1 ? (g + 1) * c->o_lora : r1;
        b->m->k.matmul(b->z, groups, b->o + g * in, heads, NULL, b->n, &L->wo_a, r0, end,
                       lane_scratch(l, b));
        r0 = end;
    }
    lane_barrier(l);
    linear(l, b, b->y, c->d, b->z, groups, b->n, &L->wo_b);
    lane_barrier(l);
}

void attention(const struct lane *l, struct batch *b, const struct layer *L)
{
    project(l, b, L);
    keep_latents(l, b, L);
    make_queries(l, b, L);
    if (L->index_source)
        choose_entries(l, b, L);
    attend(l, b, L);
    output(l, b, L);
}
