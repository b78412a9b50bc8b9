/* mHC, manifold-constrained hyper-connections (spec: architecture, section 2).
 *
 * Per row and site, from the streams h [hc][d]:
 *   m = (fn f) (mean(f^2) + eps)^-1/2, f = flatten(h)
 *   pre = sigmoid(m s0 + base) + e;  post = 2 sigmoid(m s1 + base)
 *   C = Sinkhorn(softmax_rows(M s2 + B) + e), doubly stochastic
 *   x = norm(sum_i pre_i h_i);  after the sublayer h'_j = post_j y + sum_i C_ij h_i
 * V4 uses the pre of the same site, V4.1 the one of the site before (single-pass form). */
#include "model.h"

#include <math.h>
#include <string.h>

static float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

static void normalize_columns(float *c, size_t n, float eps)
{
    for (size_t j = 0; j < n; j++) {
        float sum = 0;
        for (size_t i = 0; i < n; i++)
            sum += c[i * n + j];
        sum += eps;
        for (size_t i = 0; i < n; i++)
            c[i * n + j] /= sum;
    }
}

static void normalize_rows(float *c, size_t n, float eps)
{
    for (size_t i = 0; i < n; i++) {
        float sum = 0;
        for (size_t j = 0; j < n; j++)
            sum += c[i * n + j];
        sum += eps;
        for (size_t j = 0; j < n; j++)
            c[i * n + j] /= sum;
    }
}

void sinkhorn(float *pre, float *post, float *comb, const float *m, const float *scale,
              const float *base, size_t n, size_t iterations, float eps)
{
    for (size_t i = 0; i < n; i++) {
        pre[i] = sigmoid(m[i] * scale[0] + base[i]) + eps;
        post[i] = 2 * sigmoid(m[n + i] * scale[1] + base[n + i]);
    }
    for (size_t i = 0; i < n; i++) {
        float *row = comb + i * n, top = -INFINITY, sum = 0;
        for (size_t j = 0; j < n; j++) {
            size_t at = 2 * n + i * n + j;
            row[j] = m[at] * scale[2] + base[at];
            top = row[j] > top ? row[j] : top;
        }
        for (size_t j = 0; j < n; j++)
            sum += row[j] = expf(row[j] - top);
        for (size_t j = 0; j < n; j++)
            row[j] = row[j] / sum + eps;
    }
    normalize_columns(comb, n, eps);
    for (size_t i = 1; i < iterations; i++) {
        normalize_rows(comb, n, eps);
        normalize_columns(comb, n, eps);
    }
}

/* Coefficients of a site and, behind them, the squares; columns of the streams are summed by
 * blocks, so that the sums do not depend on which lane has which columns. */
static size_t part_width(const struct config *c)
{
    return (2 + (size_t)c->hc_mult) * c->hc_mult + 1;
}

static size_t blocks(const struct config *c)
{
    return ((size_t)c->d + DOT_BLOCK - 1) / DOT_BLOCK;
}

size_t hc_part_floats(const struct config *c)
{
    return part_width(c) * blocks(c);
}

enum { NEAR_ROWS = 8 }; /* rows whose streams stay in the cache while all of fn passes */

/* Row o of fn against columns c0 .. c1 of n rows. */
static void project_row(const struct lane *l, const struct batch *b, const struct matrix *fn,
                        size_t o, float *part, const float *h, size_t n, size_t c0, size_t c1)
{
    const struct config *c = b->m->cfg;
    const struct kernels *k = &b->m->k;
    size_t d = c->d, hd = (size_t)c->hc_mult * d;
    const uint8_t *w = fn->stored.codes + o * fn->stored.code_ld;
    if (fn->n_parts > 0 || fn->stored.format != W_F32) {
        float *row = lane_scratch(l, b);
        const struct wmat *at = &fn->stored;
        size_t r = o;
        for (uint32_t i = 0; i < fn->n_parts; i++)
            if (o >= fn->part[i].first && o - fn->part[i].first < fn->part[i].w.rows) {
                at = &fn->part[i].w;
                r = o - fn->part[i].first;
            }
        k->decode(row, at, r);
        w = (const uint8_t *)row;
    }
    for (size_t j = 0; j < c->hc_mult; j++)
        k->block_dots(part + o, hc_part_floats(c), part_width(c), h + j * d + c0, hd, n,
                      w + (j * d + c0) * sizeof(float), c1 - c0);
}

void hc_project(const struct lane *l, struct batch *b, const struct hc_site *s)
{
    const struct config *c = b->m->cfg;
    size_t d = c->d, hd = (size_t)c->hc_mult * d, width = part_width(c), all = hc_part_floats(c);
    size_t c0, c1;
    lane_split(l, d, DOT_BLOCK, &c0, &c1);
    if (c0 == c1)
        return;
    for (size_t r = 0; r < b->n; r += NEAR_ROWS) {
        size_t n = b->n - r < NEAR_ROWS ? b->n - r : NEAR_ROWS;
        float *part = b->hc_part + r * all + c0 / DOT_BLOCK * width;
        const float *h = b->h + r * hd;
        for (size_t i = 0; i < n; i++)
            memset(part + i * all, 0, (c1 - c0 + DOT_BLOCK - 1) / DOT_BLOCK * width * sizeof *part);
        for (size_t o = 0; o < s->fn.rows; o++)
            project_row(l, b, &s->fn, o, part, h, n, c0, c1);
        for (size_t j = 0; j < c->hc_mult; j++)
            b->m->k.block_dots(part + width - 1, all, width, h + j * d + c0, hd, n, NULL, c1 - c0);
    }
}

void hc_start(const struct lane *l, struct batch *b, const struct hc_site *s)
{
    hc_project(l, b, s);
    lane_barrier(l);
}

/* The raw coefficients of a row: the sums over the blocks, scaled by the rms of all its streams. */
static void sum_parts(const struct batch *b, float *mix, size_t n, size_t row)
{
    const struct config *c = b->m->cfg;
    size_t width = part_width(c), hd = (size_t)c->hc_mult * c->d;
    const float *part = b->hc_part + row * hc_part_floats(c);
    float squares = 0;
    for (size_t i = 0; i < n; i++)
        mix[i] = 0;
    for (size_t k = 0; k < blocks(c); k++, part += width) {
        for (size_t i = 0; i < n; i++)
            mix[i] += part[i];
        squares += part[width - 1];
    }
    float s = 1.0f / sqrtf(squares / (float)hd + c->eps);
    for (size_t i = 0; i < n; i++)
        mix[i] *= s;
}

void hc_pre(const struct lane *l, struct batch *b, const struct hc_site *s, const float *norm,
            int layer, bool ffn)
{
    const struct config *c = b->m->cfg;
    size_t hc = c->hc_mult, d = c->d, width = (2 + hc) * hc, r0, r1;
    bool single_pass = c->family == FAMILY_V41;
    lane_split(l, b->n, 1, &r0, &r1);
    for (size_t r = r0; r < r1; r++) {
        float *mix = b->mix + r * width, *pre = b->pre + r * hc, *x = b->x + r * d;
        float *carried = b->carried + r * hc;
        sum_parts(b, mix, width, r);
        sinkhorn(pre, b->post + r * hc, b->comb + r * hc * hc, mix, s->scale, s->base, hc,
                 c->hc_iters, c->hc_eps);
        b->m->k.hc_sum(x, b->h + r * hc * d, d, single_pass ? carried : pre, hc, d);
        memcpy(carried, pre, hc * sizeof *pre);
        rms(&b->m->k, x, x, norm, d, c->eps);
        act_ready(b, ACT_X, r, 0, d);
    }
    lane_barrier(l);
    lap(l, b, layer, ffn ? OP_MHC_EXPERTS : OP_MHC_ATTENTION);
    TAP(l, b, layer, ffn ? "ffn.pre" : "attn.pre", b->pre, b->n, hc);
    TAP(l, b, layer, ffn ? "ffn.post" : "attn.post", b->post, b->n, hc);
    TAP(l, b, layer, ffn ? "ffn.comb" : "attn.comb", b->comb, b->n, hc * hc);
    TAP(l, b, layer, ffn ? "ffn_in" : "attn_in", b->x, b->n, d);
}

/* h'_j = post_j y + sum_i C_ij h_i, column by column in place; the columns of y come from this
 * lane. */
void hc_post(const struct lane *l, struct batch *b, const struct hc_site *next, int layer, bool ffn)
{
    const struct config *c = b->m->cfg;
    size_t hc = c->hc_mult, d = c->d, c0, c1;
    if (b->tap) {
        lane_barrier(l);
        TAP(l, b, layer, ffn ? "ffn_out" : "attn_out", b->y, b->n, d);
    }
    lane_split(l, d, DOT_BLOCK, &c0, &c1);
    for (size_t r = 0; r < b->n && c0 < c1; r++)
        b->m->k.hc_mix(b->h + r * hc * d + c0, d, b->y + r * d + c0, b->post + r * hc,
                       b->comb + r * hc * hc, hc, c1 - c0);
    if (next)
        hc_project(l, b, next);
    lane_barrier(l);
    lap(l, b, layer, ffn ? OP_MHC_EXPERTS : OP_MHC_ATTENTION);
    TAP(l, b, layer, ffn ? "resid" : "mid", b->h, b->n, hc * d);
}

/* The streams of the rows whose logits are wanted become one, in b->x (row i: want[i]). */
void hc_head(const struct lane *l, struct batch *b)
{
    const struct config *c = b->m->cfg;
    const struct hc_site *s = &b->m->hc_head;
    size_t hc = c->hc_mult, d = c->d, r0, r1;
    bool single_pass = c->family == FAMILY_V41;
    lane_split(l, b->n_want, 1, &r0, &r1);
    for (size_t i = r0; i < r1; i++) {
        size_t r = b->want[i];
        float *pre = b->carried + r * hc;
        if (!single_pass) {
            sum_parts(b, b->mix + r * hc, hc, r);
            for (size_t j = 0; j < hc; j++)
                pre[j] = sigmoid(b->mix[r * hc + j] * s->scale[0] + s->base[j]) + c->hc_eps;
        }
        b->m->k.hc_sum(b->x + i * d, b->h + r * hc * d, d, pre, hc, d);
    }
    lane_barrier(l);
    TAP(l, b, -1, "final_x", b->x, b->n_want, d);
}
