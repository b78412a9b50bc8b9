/* Elementwise kernels and reductions over rows of floats. The columns left over at the end are
 * computed as the others are, so a column has the same bits wherever a call begins. */
#include "dots.h"
#include "neon.h"

#include <string.h>

static float dot_neon(const float *a, const float *b, size_t n)
{
    float y;
    dots_of(&y, 1, &a, (const uint8_t *)b, n, 1);
    return y;
}

static float sum_squares_neon(const float *x, size_t n)
{
    return dot_neon(x, x, n);
}

static void block_dots_neon(float *part, size_t ldm, size_t ldb, const float *x, size_t ldx,
                            size_t m, const uint8_t *w, size_t n)
{
    for (size_t c = 0; c < n; c += DOT_BLOCK, part += ldb) {
        const size_t size = n - c < DOT_BLOCK ? n - c : DOT_BLOCK;
        for (size_t i = 0; i < m && !w; i++)
            part[i * ldm] += sum_squares_neon(x + i * ldx + c, size);
        for (size_t i = 0; i < m && w; i += 4) {
            const size_t some = m - i < 4 ? m - i : 4;
            const float *row[4];
            float y[4];
            for (size_t k = 0; k < some; k++)
                row[k] = x + (i + k) * ldx + c;
            dot_rows(y, 1, row, w + c * sizeof *x, size, some);
            for (size_t k = 0; k < some; k++)
                part[(i + k) * ldm] += y[k];
        }
    }
}

/* ------------------------------------------------------------------ SwiGLU */

INLINE float32x4_t swiglu_4(float32x4_t u, float32x4_t g, float limit, float weight)
{
    if (limit > 0) {
        const float32x4_t top = vdupq_n_f32(limit);
        g = vminq_f32(g, top);
        u = vmaxq_f32(vminq_f32(u, top), vnegq_f32(top));
    }
    const float32x4_t e = exp_floats(vnegq_f32(g));
    const float32x4_t silu = vdivq_f32(g, vaddq_f32(vdupq_n_f32(1), e));
    return vmulq_n_f32(vmulq_f32(silu, u), weight);
}

static void swiglu_neon(float *up, const float *gate, size_t n, float limit, float weight)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        vst1q_f32(up + i, swiglu_4(vld1q_f32(up + i), vld1q_f32(gate + i), limit, weight));
    if (i < n) {
        float u[4] = {0}, g[4] = {0};
        memcpy(u, up + i, (n - i) * sizeof *u);
        memcpy(g, gate + i, (n - i) * sizeof *g);
        vst1q_f32(u, swiglu_4(vld1q_f32(u), vld1q_f32(g), limit, weight));
        memcpy(up + i, u, (n - i) * sizeof *u);
    }
}

/* ------------------------------------------------------------------ residual streams */

enum { MAX_STREAMS = 16 };

/* Four columns of four streams, all in registers. */
INLINE void mix_4x4(float *h, size_t ld, float32x4_t y, const float *post, const float *comb)
{
    float32x4_t old[4];
    FOR_LANE (k, 4)
        old[k] = vld1q_f32(h + (size_t)k * ld);
    FOR_LANE (j, 4) {
        float32x4_t s = vmulq_n_f32(y, post[j]);
        FOR_LANE (k, 4)
            s = vfmaq_n_f32(s, old[k], comb[k * 4 + j]);
        vst1q_f32(h + (size_t)j * ld, s);
    }
}

/* Four columns of any number of streams. */
static void mix_4(float *h, size_t ld, float32x4_t y, const float *post, const float *comb,
                  size_t hc)
{
    float32x4_t old[MAX_STREAMS];
    for (size_t k = 0; k < hc; k++)
        old[k] = vld1q_f32(h + k * ld);
    for (size_t j = 0; j < hc; j++) {
        float32x4_t s = vmulq_n_f32(y, post[j]);
        for (size_t k = 0; k < hc; k++)
            s = vfmaq_n_f32(s, old[k], comb[k * hc + j]);
        vst1q_f32(h + j * ld, s);
    }
}

static void mix_1(float *h, size_t ld, float y, const float *post, const float *comb, size_t hc)
{
    float old[MAX_STREAMS];
    for (size_t k = 0; k < hc; k++)
        old[k] = h[k * ld];
    for (size_t j = 0; j < hc; j++) {
        float s = y * post[j];
        for (size_t k = 0; k < hc; k++)
            s = fmaf(old[k], comb[k * hc + j], s);
        h[j * ld] = s;
    }
}

static void hc_mix_neon(float *h, size_t ld, const float *y, const float *post, const float *comb,
                        size_t hc, size_t n)
{
    size_t i = 0;
    if (hc == 4)
        for (; i + 4 <= n; i += 4)
            mix_4x4(h + i, ld, vld1q_f32(y + i), post, comb);
    else
        for (; i + 4 <= n; i += 4)
            mix_4(h + i, ld, vld1q_f32(y + i), post, comb, hc);
    for (; i < n; i++)
        mix_1(h + i, ld, y[i], post, comb, hc);
}

static void hc_sum_neon(float *out, const float *h, size_t ld, const float *pre, size_t hc,
                        size_t n)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t s = vdupq_n_f32(0);
        for (size_t j = 0; j < hc; j++)
            s = vfmaq_n_f32(s, vld1q_f32(h + j * ld + i), pre[j]);
        vst1q_f32(out + i, s);
    }
    for (; i < n; i++) {
        float s = 0;
        for (size_t j = 0; j < hc; j++)
            s = fmaf(h[j * ld + i], pre[j], s);
        out[i] = s;
    }
}

void init_neon_mix(struct kernels *k)
{
    k->sum_squares = sum_squares_neon;
    k->dot = dot_neon;
    k->block_dots = block_dots_neon;
    k->swiglu = swiglu_neon;
    k->hc_mix = hc_mix_neon;
    k->hc_sum = hc_sum_neon;
}
