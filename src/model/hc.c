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

/* out = sum_i w_i h_i */
static void collapse(float *out, const float *h, const float *w, size_t hc, size_t d)
{
    for (size_t i = 0; i < d; i++)
        out[i] = w[0] * h[i];
    for (size_t s = 1; s < hc; s++)
        for (size_t i = 0; i < d; i++)
            out[i] += w[s] * h[s * d + i];
}

/* The raw coefficients of a row, scaled by the rms of all its streams. */
static void scale_mix(const struct batch *b, float *mix, size_t width, size_t row)
{
    const struct config *c = b->m->cfg;
    size_t hd = (size_t)c->hc_mult * c->d;
    float s = 1.0f / sqrtf(b->m->k.sum_squares(b->h + row * hd, hd) / (float)hd + c->eps);
    for (size_t i = 0; i < width; i++)
        mix[i] *= s;
}

void hc_pre(const struct lane *l, struct batch *b, const struct hc_site *s, const float *norm,
            int layer, bool ffn)
{
    const struct config *c = b->m->cfg;
    size_t hc = c->hc_mult, d = c->d, width = (2 + hc) * hc, r0, r1;
    bool single_pass = c->family == FAMILY_V41;
    linear(l, b, b->mix, width, b->h, hc * d, b->n, &s->fn);
    lane_barrier(l);
    lane_split(l, b->n, 1, &r0, &r1);
    for (size_t r = r0; r < r1; r++) {
        float *mix = b->mix + r * width, *pre = b->pre + r * hc, *x = b->x + r * d;
        float *carried = b->carried + r * hc;
        scale_mix(b, mix, width, r);
        sinkhorn(pre, b->post + r * hc, b->comb + r * hc * hc, mix, s->scale, s->base, hc,
                 c->hc_iters, c->hc_eps);
        collapse(x, b->h + r * hc * d, single_pass ? carried : pre, hc, d);
        memcpy(carried, pre, hc * sizeof *pre);
        rms(&b->m->k, x, x, norm, d, c->eps);
    }
    lane_barrier(l);
    TAP(l, b, layer, ffn ? "ffn.pre" : "attn.pre", b->pre, b->n, hc);
    TAP(l, b, layer, ffn ? "ffn.post" : "attn.post", b->post, b->n, hc);
    TAP(l, b, layer, ffn ? "ffn.comb" : "attn.comb", b->comb, b->n, hc * hc);
    TAP(l, b, layer, ffn ? "ffn_in" : "attn_in", b->x, b->n, d);
}

/* h'_j = post_j y + sum_i C_ij h_i, column by column in place. */
void hc_post(const struct lane *l, struct batch *b, int layer, bool ffn)
{
    const struct config *c = b->m->cfg;
    size_t hc = c->hc_mult, d = c->d, at, end;
    TAP(l, b, layer, ffn ? "ffn_out" : "attn_out", b->y, b->n, d);
    lane_split(l, b->n * d, 16, &at, &end);
    while (at < end) {
        size_t r = at / d, i0 = at % d, i1 = d < i0 + (end - at) ? d : i0 + (end - at);
        float *h = b->h + r * hc * d;
        const float *post = b->post + r * hc, *comb = b->comb + r * hc * hc, *y = b->y + r * d;
        for (size_t i = i0; i < i1; i++) {
            float in[MAX_HC];
            for (size_t s = 0; s < hc; s++)
                in[s] = h[s * d + i];
            for (size_t j = 0; j < hc; j++) {
                float sum = post[j] * y[i];
                for (size_t s = 0; s < hc; s++)
                    sum += comb[s * hc + j] * in[s];
                h[j * d + i] = sum;
            }
        }
        at += i1 - i0;
    }
    lane_barrier(l);
    TAP(l, b, layer, ffn ? "resid" : "mid", b->h, b->n, hc * d);
}

/* The streams of the rows whose logits are wanted become one, in b->x (row i: want[i]). */
void hc_head(const struct lane *l, struct batch *b)
{
    const struct config *c = b->m->cfg;
    const struct hc_site *s = &b->m->hc_head;
    size_t hc = c->hc_mult, d = c->d, r0, r1;
    bool single_pass = c->family == FAMILY_V41;
    if (!single_pass)
        linear(l, b, b->mix, hc, b->h, hc * d, b->n, &s->fn);
    lane_barrier(l);
    lane_split(l, b->n_want, 1, &r0, &r1);
    for (size_t i = r0; i < r1; i++) {
        size_t r = b->want[i];
        float *pre = b->carried + r * hc;
        if (!single_pass) {
            scale_mix(b, b->mix + r * hc, hc, r);
            for (size_t j = 0; j < hc; j++)
                pre[j] = sigmoid(b->mix[r * hc + j] * s->scale[0] + s->base[j]) + c->hc_eps;
        }
        collapse(b->x + i * d, b->h + r * hc * d, pre, hc, d);
    }
    lane_barrier(l);
    TAP(l, b, -1, "final_x", b->x, b->n_want, d);
}
