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

/* x -> qr, kv, rows for the compressors, weights of the indexer's heads. Of norm(qr) only the
 * weights are applied here, column by column; its one factor a row follows where queries are
 * finished (query_scale), so that nobody has to see a whole row in between. */
static void project(const struct lane *l, struct batch *b, const struct layer *L)
{
    const struct config *c = b->m->cfg;
    size_t n = c->q_lora, units = (n + ROW_UNIT - 1) / ROW_UNIT, r0, r1;
    lane_split(l, n, ROW_UNIT, &r0, &r1);
    if (r0 < r1)
        product(l, b, b->qr, n, ACT_X, NULL, b->n, &L->wq_a, r0, r1);
    for (size_t r = 0; r < b->n && r0 < r1; r++) {
        float *qr = b->qr + r * n;
        for (size_t u = r0; u < r1; u += ROW_UNIT)
            b->qr_squares[r * units + u / ROW_UNIT] =
                b->m->k.sum_squares(qr + u, r1 - u < ROW_UNIT ? r1 - u : ROW_UNIT);
        for (size_t i = r0; i < r1; i++)
            qr[i] *= L->q_norm[i];
        act_ready(b, ACT_QR, r, r0, r1);
    }
    linear_act(l, b, b->kv, c->head_dim, ACT_X, b->n, &L->wkv);
    if (L->kv_source)
        compress_project(l, b, L);
    if (L->index_source)
        linear_act(l, b, b->iw, c->index_heads, ACT_X, b->n, &L->index.weights_proj);
    lane_barrier(l);
}

float query_scale(const struct batch *b, size_t row)
{
    const struct config *c = b->m->cfg;
    size_t units = ((size_t)c->q_lora + ROW_UNIT - 1) / ROW_UNIT;
    float sum = 0;
    for (size_t u = 0; u < units; u++)
        sum += b->qr_squares[row * units + u];
    return 1.0f / sqrtf(sum / (float)c->q_lora + c->eps);
}

/* Norm and rope of kv; this step's rows enter the window rings. */
static void keep_latents(const struct lane *l, struct batch *b, const struct layer *L)
{
    const struct config *c = b->m->cfg;
    const struct kernels *k = &b->m->k;
    size_t r0, r1, bytes = row_bytes(b->m->window_row);
    lane_split(l, b->n, 1, &r0, &r1);
    for (size_t r = r0; r < r1; r++) {
        float *kv = b->kv + r * c->head_dim;
        rms(k, kv, kv, L->kv_norm, c->head_dim, c->eps);
        rope(kv, c->head_dim, c->rope_dim, b->cs[L->rope] + r * c->rope_dim, false);
        struct cache *cache = b->seg[b->row_seg[r]].cache;
        uint8_t *row = cache->layer[L->id].window + b->pos[r] % cache->window_cap * bytes;
        row_encode(row, kv, b->m->window_row);
        if (b->tap)
            k->rows(kv, row, 1, b->m->window_row);
    }
}

/* The normalized qr, which exists nowhere else. */
static void tap_latents(const struct lane *l, struct batch *b, const struct layer *L)
{
    size_t n = b->m->cfg->q_lora;
    if (n <= act_width(b->m->cfg, ACT_Z)) { /* b->z is free and wide enough */
        for (size_t i = 0; l->id == 0 && i < b->n * n; i++)
            b->z[i] = b->qr[i] * query_scale(b, i / n);
        TAP(l, b, (int)L->id, "qr", b->z, b->n, n);
    }
    TAP(l, b, (int)L->id, "kv", b->kv, b->n, b->m->cfg->head_dim);
}

/* qr -> q and the indexer's q, both still raw; entries and keys of closed groups; the window. */
static void make_queries(const struct lane *l, struct batch *b, const struct layer *L)
{
    const struct config *c = b->m->cfg;
    size_t heads = (size_t)c->n_heads * c->head_dim, ih = (size_t)c->index_heads * c->index_dim;
    linear_act(l, b, b->q, heads, ACT_QR, b->n, &L->wq_b);
    if (L->index_source)
        linear_act(l, b, b->iq, ih, ACT_QR, b->n, &L->index.wq_b);
    if (L->kv_source)
        compress_entries(l, b, L);
    keep_latents(l, b, L);
    lane_barrier(l);
    if (b->tap)
        tap_latents(l, b, L);
}

/* V4 normalizes every head: with what is left of norm(qr) that is one factor. */
static void finish_query(const struct batch *b, const struct layer *L, float *q, size_t row)
{
    const struct config *c = b->m->cfg;
    float scale = query_scale(b, row);
    if (c->family == FAMILY_V4) {
        float squares = b->m->k.sum_squares(q, c->head_dim) / (float)c->head_dim;
        scale /= sqrtf(squares * scale * scale + c->eps);
    }
    for (size_t i = 0; i < c->head_dim; i++)
        q[i] *= scale;
    rope(q, c->head_dim, c->rope_dim, b->cs[L->rope] + row * c->rope_dim, false);
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

/* Chosen rows lie anywhere in a cache that may be gigabytes long. */
static void prefetch_row(const uint8_t *row, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(row + i);
}

static void add_chosen(struct attend *a, const struct rowlist *entry, const uint32_t *sel, size_t n)
{
    enum { AHEAD = 8 };
    size_t bytes = row_bytes(entry->shape);
    for (size_t i = 0; i < n; i++) {
        if (i + AHEAD < n)
            prefetch_row(rowlist_at(entry, sel[i + AHEAD]), bytes);
        add_row(a, rowlist_at(entry, sel[i]), entry->shape);
    }
}

/* sel: chosen entries, or NULL for all. */
static void attend_row(struct attend *a, const struct layer *L, size_t row, const uint32_t *sel,
                       size_t n)
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
        if (sel)
            add_chosen(a, entry, sel, n);
        for (size_t i = 0; !sel && i < (t + 1) / L->ratio; i++)
            add_row(a, rowlist_at(entry, i), b->m->entry_row);
    }
    if (a->t.n > 0)
        flush_tile(a);
}

size_t attend_words(const struct config *c)
{
    return ((size_t)ATTEND_TILE + c->n_heads) * c->head_dim + 2 * (size_t)c->n_heads +
           c->index_topk + merge_words(c);
}

/* Queries become the outputs of their heads: what the next product reads lies where they were. */
static void attend_heads(const struct lane *l, struct batch *b, const struct layer *L, size_t row,
                         size_t h0, size_t h1)
{
    const struct config *c = b->m->cfg;
    float *tile = lane_scratch(l, b), *o = tile + ATTEND_TILE * c->head_dim;
    float *max = o + (size_t)c->n_heads * c->head_dim;
    uint32_t *words = (uint32_t *)(void *)(max + 2 * c->n_heads), *sel = NULL;
    size_t at = row * c->n_heads + h0, n = 0;
    float *q = b->q + at * c->head_dim;
    struct attend a = {.b = b,
                       .o = o,
                       .max = max,
                       .sum = max + c->n_heads,
                       .q = q,
                       .heads = h1 - h0,
                       .t = {.kv = tile},
                       .scale = 1.0f / sqrtf((float)c->head_dim)};
    if (L->index_source) {
        n = merge_entries(b, L, row, h0 == 0, words, words + c->index_topk);
        sel = words;
    } else if (L->selects) {
        sel = b->sel + row * c->index_topk;
        n = b->n_sel[row];
    }
    memset(o, 0, a.heads * c->head_dim * sizeof *o);
    for (size_t h = 0; h < a.heads; h++) { /* the sink: a logit without a value */
        if (!b->tap)
            finish_query(b, L, q + h * c->head_dim, row);
        a.max[h] = L->sink[h0 + h];
        a.sum[h] = 1;
    }
    attend_row(&a, L, row, sel, n);
    for (size_t h = 0; h < a.heads; h++) {
        float *out = q + h * c->head_dim, inverse = 1.0f / a.sum[h];
        for (size_t i = 0; i < c->head_dim; i++)
            out[i] = o[h * c->head_dim + i] * inverse;
        rope(out, c->head_dim, c->rope_dim, b->cs[L->rope] + row * c->rope_dim, true);
        size_t width = act_width(c, ACT_O), from = (at + h) * c->head_dim;
        act_ready(b, ACT_O, from / width, from % width, from % width + c->head_dim);
    }
}

/* The finished queries, which exist only until their heads' outputs take their place. */
static void tap_queries(const struct lane *l, struct batch *b, const struct layer *L)
{
    size_t heads = b->m->cfg->n_heads, c = b->m->cfg->head_dim;
    for (size_t i = 0; l->id == 0 && i < b->n * heads; i++)
        finish_query(b, L, b->q + i * c, i / heads);
    lane_barrier(l);
    TAP(l, b, (int)L->id, "q", b->q, b->n, heads * c);
    lane_barrier(l);
}

static void attend(const struct lane *l, struct batch *b, const struct layer *L)
{
    size_t heads = b->m->cfg->n_heads, at, end;
    if (b->tap)
        tap_queries(l, b, L);
    if (L->kv_source)
        compress_remember(l, b, L);
    lane_split(l, b->n * heads, 1, &at, &end);
    while (at < end) {
        size_t h0 = at % heads, h1 = h0 + (end - at) < heads ? h0 + (end - at) : heads;
        attend_heads(l, b, L, at / heads, h0, h1);
        at += h1 - h0;
    }
    lane_barrier(l);
    if (L->index_source)
        TAP(l, b, (int)L->id, "chosen", NULL, b->n, 0);
}

/* z_g = wo_a[g] o_g, out = wo_b concat(z); groups share one matrix, o_lora rows each. */
static void output(const struct lane *l, struct batch *b, const struct layer *L)
{
    const struct config *c = b->m->cfg;
    size_t groups = (size_t)c->o_groups * c->o_lora, r0, r1, r;
    lane_split(l, groups, ROW_UNIT, &r0, &r1);
    for (r = r0; r < r1;) {
        size_t g = r / c->o_lora, end = (g + 1) * c->o_lora < r1 ? (g + 1) * c->o_lora : r1;
        product(l, b, b->z, groups, ACT_O, b->group_row + g * b->cap, b->n, &L->wo_a, r, end);
        r = end;
    }
    for (size_t i = 0; i < b->n; i++)
        act_ready(b, ACT_Z, i, r0, r1);
    lane_barrier(l);
    lane_split(l, c->d, DOT_BLOCK, &r0, &r1);
    if (r0 < r1)
        product(l, b, b->y, c->d, ACT_Z, NULL, b->n, &L->wo_b, r0, r1);
}

void attention(const struct lane *l, struct batch *b, const struct layer *L)
{
    project(l, b, L);
    lap(l, b, (int)L->id, OP_PROJECT);
    make_queries(l, b, L);
    lap(l, b, (int)L->id, OP_QUERIES);
    if (L->index_source)
        choose_entries(l, b, L);
    lap(l, b, (int)L->id, OP_INDEX);
    attend(l, b, L);
    lap(l, b, (int)L->id, OP_ATTEND);
    output(l, b, L);
    lap(l, b, (int)L->id, OP_OUTPUT);
}
