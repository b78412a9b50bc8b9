/* Engram, conditional memory (V4.1; spec: architecture, section 8): hashed n-grams of the last tokens
 * address rows of a large table; their projection is mixed into the streams by a gate each.
 *
 *   dot_i = sum(h_i qk_i key_i) rms^-1(h_i) rms^-1(key_i) d^-1/2
 *   h_i  += sigmoid(copysign(sqrt(max(|dot_i|, 1e-6)), dot_i)) value */
#include "model.h"

#include <math.h>

void engram_gate(const struct kernels *k, float *h, const float *kv, const float *qk, size_t hc,
                 size_t d, float eps, float *dot, float *gate)
{
    const float *value = kv + hc * d;
    for (size_t s = 0; s < hc; s++) {
        float *hs = h + s * d, sum = 0;
        const float *key = kv + s * d, *w = qk + s * d;
        for (size_t i = 0; i < d; i++)
            sum += hs[i] * w[i] * key[i];
        float rstd = 1.0f / sqrtf(k->sum_squares(hs, d) / (float)d + eps) /
                     sqrtf(k->sum_squares(key, d) / (float)d + eps);
        dot[s] = sum * rstd / sqrtf((float)d);
        float size = fabsf(dot[s]) > 1e-6f ? fabsf(dot[s]) : 1e-6f;
        gate[s] = 1.0f / (1.0f + expf(-copysignf(sqrtf(size), dot[s])));
        for (size_t i = 0; i < d; i++)
            hs[i] += gate[s] * value[i];
    }
}

/* The rows of one token, decoded one after the other. */
static void read_memory(const struct batch *b, const struct engram *e, size_t row, float *out)
{
    const struct config *c = b->m->cfg;
    const struct cache *cache = b->seg[b->row_seg[row]].cache;
    size_t columns = (size_t)(c->engram_ngram - 1) * c->engram_heads, t = b->pos[row];
    uint64_t id[MAX_ENGRAM_COLUMNS];
    uint32_t have = t + 1 < c->engram_ngram ? (uint32_t)t + 1 : c->engram_ngram;
    engram_rows(id, e, c->engram_ngram, c->engram_heads, cache->folded + t, have,
                b->m->engram_map[c->engram_pad]);
    for (size_t i = 0; i < columns; i++)
        b->m->k.decode(out + i * c->engram_dim, &e->embed, (size_t)id[i]);
}

void engram(const struct lane *l, struct batch *b, const struct layer *L)
{
    const struct config *c = b->m->cfg;
    const struct engram *e = L->engram;
    size_t width = e->wkv.cols, hc = c->hc_mult, d = c->d, ld = (hc + 1) * d, r0, r1;
    lane_split(l, b->n, 1, &r0, &r1);
    for (size_t r = r0; r < r1; r++)
        read_memory(b, e, r, b->memory + r * width);
    lane_barrier(l);
    linear(l, b, b->mkv, ld, b->memory, width, b->n, &e->wkv);
    lane_barrier(l);
    for (size_t r = r0; r < r1; r++)
        engram_gate(&b->m->k, b->h + r * hc * d, b->mkv + r * ld, e->qk, hc, d, c->eps,
                    b->pre + r * hc, b->post + r * hc); /* both free until the next site */
    lane_barrier(l);
    lap(l, b, (int)L->id, OP_ENGRAM);
    TAP(l, b, (int)L->id, "engram_dot", b->pre, b->n, hc);
    TAP(l, b, (int)L->id, "engram_gate", b->post, b->n, hc);
    TAP(l, b, (int)L->id, "engram_resid", b->h, b->n, hc * d);
}
