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

/* Calls of the lanes go round-robin over all entries that the batch closes; `slot` counts them. */
#define FOR_CLOSING(l, b, ratio, seg, entry, slot)                                           \
    for (size_t seg = 0, slot = 0; seg < (b)->n_seg; seg++)                                  \
        for (struct closing cl_ = closes(&(b)->seg[seg], ratio); cl_.n > 0; cl_.n--, slot++) \
            for (size_t entry = cl_.first++, once_ = 1;                                      \
                 once_ && slot % (size_t)(l)->n == (size_t)(l)->id; once_ = 0)

static size_t count_closing(const struct batch *b, uint32_t ratio)
{
    size_t n = 0;
    for (size_t s = 0; s < b->n_seg; s++)
        n += closes(&b->seg[s], ratio).n;
    return n;
}

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

static void rotate_entry(const struct batch *b, const struct layer *L, float *x, size_t width,
                         size_t e, float *cs)
{
    uint32_t r = b->m->cfg->rope_dim;
    rope_pairs(cs, b->m->freq[1], r, e * L->ratio);
    rope(x, width, r, cs, false);
}

/* The Hadamard rotation belongs to the fp4 rounding: both or none (spec: architecture, section 4). */
static void store_key(const struct batch *b, uint8_t *row, float *key)
{
    struct rshape s = b->m->key_row;
    if (b->m->cfg->family == FAMILY_V4 && s.format != R_F32)
        hadamard(key, s.width);
    row_encode(row, key, s);
}

void compress_project(const struct lane *l, struct batch *b, const struct layer *L)
{
    size_t d = b->m->cfg->d;
    const struct compressor *p[2] = {&L->comp, &L->index.own};
    float *k[2] = {b->ck, b->ik}, *g[2] = {b->cg, b->ig};
    for (int i = 0; i < 2; i++) {
        size_t ld = (size_t)p[i]->coff * p[i]->width;
        if (p[i]->ratio == 0)
            continue;
        linear(l, b, k[i], ld, b->x, d, b->n, &p[i]->wkv);
        if (p[i]->ratio > 1)
            linear(l, b, g[i], ld, b->x, d, b->n, &p[i]->wgate);
    }
}

void compress_pool(const struct lane *l, struct batch *b, const struct layer *L)
{
    const struct config *c = b->m->cfg;
    float *tmp = lane_scratch(l, b), *cs = tmp + 2 * c->head_dim, *x = cs + c->rope_dim;
    float *ktmp = x + c->head_dim, *key = ktmp + 2 * c->index_dim;
    FOR_CLOSING(l, b, L->ratio, seg, e, slot)
    {
        const struct segment *s = &b->seg[seg];
        struct layer_cache *lc = &s->cache->layer[L->id];
        if (c->family == FAMILY_V41) { /* keys come from the entry before its rotation */
            make_entry(b->latent + slot * c->head_dim, b, &L->comp, s, b->ck, b->cg, &lc->open, e,
                       tmp);
            continue;
        }
        make_entry(x, b, &L->comp, s, b->ck, b->cg, &lc->open, e, tmp);
        rotate_entry(b, L, x, c->head_dim, e, cs);
        row_encode(rowlist_at(&lc->entry, e), x, b->m->entry_row);
        if (L->index.own.ratio == 0)
            continue;
        make_entry(key, b, &L->index.own, s, b->ik, b->ig, &lc->key_open, e, ktmp);
        rotate_entry(b, L, key, c->index_dim, e, cs);
        store_key(b, rowlist_at(&lc->key, e), key);
    }
}

void compress_keys(const struct lane *l, struct batch *b, const struct layer *L)
{
    const struct config *c = b->m->cfg;
    if (c->family == FAMILY_V41)
        linear(l, b, b->lkey, c->index_dim, b->latent, c->head_dim, count_closing(b, L->ratio),
               &L->index.wk);
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

void compress_store(const struct lane *l, struct batch *b, const struct layer *L)
{
    const struct config *c = b->m->cfg;
    float *cs = lane_scratch(l, b);
    if (c->family == FAMILY_V41) {
        FOR_CLOSING(l, b, L->ratio, seg, e, slot)
        {
            struct layer_cache *lc = &b->seg[seg].cache->layer[L->id];
            float *key = b->lkey + slot * c->index_dim, *x = b->latent + slot * c->head_dim;
            rope_pairs(cs, b->m->freq[1], c->rope_dim, e * L->ratio);
            if (L->index.wk.rows > 0) { /* none where nobody selects */
                rms(&b->m->k, key, key, L->index.k_norm, c->index_dim, c->eps);
                rope(key, c->index_dim, c->rope_dim, cs, false);
                store_key(b, rowlist_at(&lc->key, e), key);
            }
            rope(x, c->head_dim, c->rope_dim, cs, false);
            row_encode(rowlist_at(&lc->entry, e), x, b->m->entry_row);
        }
    }
    for (size_t i = (size_t)l->id; i < b->n_seg; i += (size_t)l->n) {
        struct layer_cache *lc = &b->seg[i].cache->layer[L->id];
        if (lc->open.cap)
            remember(&lc->open, &b->seg[i], b->ck, b->cg);
        if (lc->key_open.cap)
            remember(&lc->key_open, &b->seg[i], b->ik, b->ig);
    }
}
