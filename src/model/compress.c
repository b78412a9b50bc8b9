/* Compressors: `ratio` tokens become one entry (spec: architecture, sections 4 and 5).
 *
 *   e = sum_j softmax_j(g_j) * k_j, channel by channel, over the tokens of a group
 *
 * V4, ratio 4: tokens carry 2 x width channels; an entry pools the first half of the group before
 * and the second half of its own. Entry i closes with token (i+1) ratio - 1, is rotated at the
 * position of the group's first token, and is visible to t when i < (t+1) / ratio.
 * A group that is still open lives in a ring of the last tokens' rows. */
#include "model.h"

#include <math.h>
#include <string.h>

/* Entries that a segment closes: numbers first .. first + n. */
struct closing {
    size_t first, n;
};

static struct closing closes(const struct segment *s, uint32_t ratio)
{
    size_t first = s->pos / ratio;
    return (struct closing){first, (s->pos + s->n) / ratio - first};
}

/* All entries that the batch closes, `slot` counting them, go round-robin over the lanes; the
 * first one to the last lane, as the first lane has the row of a step of one row. */
#define FOR_CLOSING(l, b, ratio, seg, entry, slot)                                           \
    for (size_t seg = 0, slot = 0; seg < (b)->n_seg; seg++)                                  \
        for (struct closing cl_ = closes(&(b)->seg[seg], ratio); cl_.n > 0; cl_.n--, slot++) \
            for (size_t entry = cl_.first++, once_ = 1;                                      \
                 once_ && (slot + (size_t)(l)->id + 1) % (size_t)(l)->n == 0; once_ = 0)

/* k or gate row of the token at `pos`: from this step, or from the ring. */
static const float *token_row(const struct segment *s, const float *fresh, const float *ring,
                              const struct open_group *g, size_t pos)
{
    if (pos >= s->pos)
        return fresh + (s->row + pos - s->pos) * g->width;
    return ring + pos % g->cap * g->width;
}

/* Pools entry `e` into out [width], unnormalized. tmp: 2 * width floats. */
static void pool_entry(float *out, const struct compressor *p, const struct segment *s,
                       const float *k, const float *gate, const struct open_group *g, size_t e,
                       float *tmp)
{
    size_t w = p->width, groups = p->coff == 2 && e > 0 ? 2 : 1;
    float *top = tmp, *sum = tmp + w;
    for (size_t i = 0; i < w; i++) {
        top[i] = -INFINITY;
        sum[i] = 0;
        out[i] = 0;
    }
    for (int pass = 0; pass < 2; pass++)
        for (size_t back = groups; back-- > 0;) {
            size_t half = p->coff == 2 && back == 0 ? w : 0;
            for (size_t j = 0; j < p->ratio; j++) {
                size_t pos = (e - back) * p->ratio + j;
                const float *kr = token_row(s, k, g->k, g, pos) + half;
                const float *gr = token_row(s, gate, g->gate, g, pos) + half;
                const float *ape = p->ape ? p->ape + j * g->width + half : NULL;
                for (size_t i = 0; i < w; i++) {
                    float v = gr[i] + (ape ? ape[i] : 0);
                    if (pass == 0) {
                        top[i] = v > top[i] ? v : top[i];
                    } else {
                        float f = expf(v - top[i]);
                        sum[i] += f;
                        out[i] += f * kr[i];
                    }
                }
            }
        }
    for (size_t i = 0; i < w; i++)
        out[i] /= sum[i];
}

/* The normalized entry: pooled, or at ratio 1 the token's own row. */
static void make_entry(float *out, const struct batch *b, const struct compressor *p,
                       const struct segment *s, const float *k, const float *gate,
                       const struct open_group *g, size_t e, float *tmp)
{
    if (p->ratio == 1)
        memcpy(out, k + (s->row + e - s->pos) * p->width, p->width * sizeof *out);
    else
        pool_entry(out, p, s, k, gate, g, e, tmp);
    rms(&b->m->k, out, out, p->norm, p->width, b->m->cfg->eps);
}

/* The Hadamard rotation belongs to the fp4 rounding: both or none (spec: architecture, section
 * 4). */
static void store_key(const struct batch *b, uint8_t *row, float *key)
{
    struct rshape s = b->m->key_row;
    if (b->m->cfg->family == FAMILY_V4 && s.format != R_F32)
        hadamard(key, s.width);
    row_encode(row, key, s);
}

void compress_project(const struct lane *l, struct batch *b, const struct layer *L)
{
    const struct compressor *p[2] = {&L->comp, &L->index.own};
    float *k[2] = {b->ck, b->ik}, *g[2] = {b->cg, b->ig};
    for (int i = 0; i < 2; i++) {
        size_t ld = (size_t)p[i]->coff * p[i]->width;
        if (p[i]->ratio == 0)
            continue;
        linear_act(l, b, k[i], ld, ACT_X, b->n, &p[i]->wkv);
        if (p[i]->ratio > 1)
            linear_act(l, b, g[i], ld, ACT_X, b->n, &p[i]->wgate);
    }
}

size_t compress_words(const struct config *c)
{
    return 3 * (size_t)c->head_dim + c->rope_dim + 3 * (size_t)c->index_dim;
}

void compress_entries(const struct lane *l, struct batch *b, const struct layer *L)
{
    const struct config *c = b->m->cfg;
    float *tmp = lane_scratch(l, b), *cs = tmp + 2 * c->head_dim, *x = cs + c->rope_dim;
    float *ktmp = x + c->head_dim, *key = ktmp + 2 * c->index_dim;
    FOR_CLOSING(l, b, L->ratio, seg, e, slot)
    {
        const struct segment *s = &b->seg[seg];
        struct layer_cache *lc = &s->cache->layer[L->id];
        rope_pairs(cs, b->m->freq[1], c->rope_dim, e * L->ratio);
        make_entry(x, b, &L->comp, s, b->ck, b->cg, &lc->open, e, tmp);
        bool keys = true;
        if (L->index.own.ratio > 0) {
            make_entry(key, b, &L->index.own, s, b->ik, b->ig, &lc->key_open, e, ktmp);
        } else if (L->index.wk.rows > 0) { /* V4.1: from the entry before its rotation */
            linear_alone(l, b, key, x, &L->index.wk);
            rms(&b->m->k, key, key, L->index.k_norm, c->index_dim, c->eps);
        } else {
            keys = false; /* nobody selects */
        }
        if (keys) {
            rope(key, c->index_dim, c->rope_dim, cs, false);
            store_key(b, rowlist_at(&lc->key, e), key);
        }
        rope(x, c->head_dim, c->rope_dim, cs, false);
        row_encode(rowlist_at(&lc->entry, e), x, b->m->entry_row);
    }
}

/* The last rows of a segment enter the ring of open groups. */
static void remember(struct open_group *g, const struct segment *s, const float *k,
                     const float *gate)
{
    size_t n = s->n < g->cap ? s->n : g->cap;
    for (size_t i = s->n - n; i < s->n; i++) {
        size_t to = (s->pos + i) % g->cap * g->width, from = (s->row + i) * g->width;
        memcpy(g->k + to, k + from, g->width * sizeof *k);
        memcpy(g->gate + to, gate + from, g->width * sizeof *gate);
    }
}

void compress_remember(const struct lane *l, struct batch *b, const struct layer *L)
{
    for (size_t i = (size_t)l->id; i < b->n_seg; i += (size_t)l->n) {
        struct layer_cache *lc = &b->seg[i].cache->layer[L->id];
        if (lc->open.cap)
            remember(&lc->open, &b->seg[i], b->ck, b->cg);
        if (lc->key_open.cap)
            remember(&lc->key_open, &b->seg[i], b->ik, b->ig);
    }
}
