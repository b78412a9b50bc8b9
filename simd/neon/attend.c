/* Dot products of many rows with many rows, and the tile of attention built on them. */
#include "neon.h"

/* ------------------------------------------------------------------ dots */

/* na x nb <= 4 x 4 pairs, each summed in four lanes. */
INLINE void dots_block(float *out, size_t ld, const float *a, size_t lda, const float *b,
                       size_t ldb, size_t n, const int na, const int nb)
{
    float32x4_t acc[4][4];
    FOR_LANE (i, na)
        FOR_LANE (j, 4)
            acc[i][j] = vdupq_n_f32(0);
    size_t c = 0;
    for (; c + 4 <= n; c += 4) {
        float32x4_t v[4];
        FOR_LANE (j, nb)
            v[j] = vld1q_f32(b + (size_t)j * ldb + c);
        FOR_LANE (i, na) {
            const float32x4_t u = vld1q_f32(a + (size_t)i * lda + c);
            FOR_LANE (j, nb)
                acc[i][j] = vfmaq_f32(acc[i][j], u, v[j]);
        }
    }
    FOR_LANE (i, na) {
        float s[4];
        vst1q_f32(s, sum_each(acc[i][0], acc[i][1], acc[i][2], acc[i][3]));
        FOR_LANE (j, nb) {
            for (size_t k = c; k < n; k++)
                s[j] = fmaf(a[(size_t)i * lda + k], b[(size_t)j * ldb + k], s[j]);
            out[(size_t)i * ld + (size_t)j] = s[j];
        }
    }
}

INLINE void dots_rows(float *out, size_t ld, const float *a, size_t lda, size_t na, const float *b,
                      size_t ldb, size_t n, const int nb)
{
    size_t i = 0;
    for (; i + 4 <= na; i += 4)
        dots_block(out + i * ld, ld, a + i * lda, lda, b, ldb, n, 4, nb);
    for (; i < na; i++)
        dots_block(out + i * ld, ld, a + i * lda, lda, b, ldb, n, 1, nb);
}

void dots_neon(float *dots, size_t ld, const float *a, size_t lda, size_t na, const float *b,
               size_t ldb, size_t nb, size_t n)
{
    switch (nb) {
    case 4: dots_rows(dots, ld, a, lda, na, b, ldb, n, 4); break;
    case 3: dots_rows(dots, ld, a, lda, na, b, ldb, n, 3); break;
    case 2: dots_rows(dots, ld, a, lda, na, b, ldb, n, 2); break;
    default: dots_rows(dots, ld, a, lda, na, b, ldb, n, 1); break;
    }
}

/* ------------------------------------------------------------------ attention */

enum { HEADS = 4 };

/* Scores of one head become weights, e^(s - max), zero up to ATTEND_TILE. Returns by how much
 * what was summed before shrinks. */
static float soften(float s[ATTEND_TILE], size_t n, float scale, float *max, float *sum)
{
    float top = *max, shrink = 1;
    for (size_t j = 0; j < n; j++) {
        s[j] *= scale;
        top = s[j] > top ? s[j] : top;
    }
    if (top > *max) {
        shrink = vgetq_lane_f32(exp_floats(vdupq_n_f32(*max - top)), 0);
        *max = top;
    }
    for (size_t j = n; j < ATTEND_TILE; j++)
        s[j] = -INFINITY;
    float32x4_t total = vdupq_n_f32(0);
    for (size_t j = 0; j < ATTEND_TILE; j += 4) {
        const float32x4_t e = exp_floats(vsubq_f32(vld1q_f32(s + j), vdupq_n_f32(top)));
        vst1q_f32(s + j, e);
        total = vaddq_f32(total, e);
    }
    *sum = *sum * shrink + vaddvq_f32(total);
    return shrink;
}

/* o <- shrink o + sum_j p_j kv_j for `heads` heads and 4 * wide channels; p [key][HEADS]. */
INLINE void gather_columns(float *o, size_t c, const float *p, const float *shrink, const float *kv,
                           size_t n, const int heads, const int wide)
{
    float32x4_t acc[HEADS][4];
    FOR_LANE (h, heads)
        FOR_LANE (k, wide)
            acc[h][k] = vmulq_n_f32(vld1q_f32(o + (size_t)h * c + 4 * k), shrink[h]);
    for (size_t j = 0; j < n; j++, p += HEADS, kv += c) {
        const float32x4_t w = vld1q_f32(p);
        FOR_LANE (k, wide) {
            const float32x4_t v = vld1q_f32(kv + 4 * k);
            acc[0][k] = vfmaq_laneq_f32(acc[0][k], v, w, 0);
            if (heads == HEADS) {
                acc[1][k] = vfmaq_laneq_f32(acc[1][k], v, w, 1);
                acc[2][k] = vfmaq_laneq_f32(acc[2][k], v, w, 2);
                acc[3][k] = vfmaq_laneq_f32(acc[3][k], v, w, 3);
            }
        }
    }
    FOR_LANE (h, heads)
        FOR_LANE (k, wide)
            vst1q_f32(o + (size_t)h * c + 4 * k, acc[h][k]);
}

/* heads is 1 or HEADS. */
INLINE void attend_heads(float *o, float *max, float *sum, const float *q, const float *kv,
                         size_t n, size_t c, float scale, const int heads)
{
    float s[HEADS][ATTEND_TILE], p[ATTEND_TILE][HEADS] = {{0}}, shrink[HEADS];
    for (size_t j = 0; j < n; j += 4)
        dots_neon(&s[0][j], ATTEND_TILE, q, c, (size_t)heads, kv + j * c, c, n - j < 4 ? n - j : 4,
                  c);
    FOR_LANE (h, heads) {
        shrink[h] = soften(s[h], n, scale, &max[h], &sum[h]);
        for (size_t j = 0; j < n; j++)
            p[j][h] = s[h][j];
    }
    size_t i = 0;
    for (; i + 16 <= c; i += 16)
        gather_columns(o + i, c, p[0], shrink, kv + i, n, heads, 4);
    for (; i + 4 <= c; i += 4)
        gather_columns(o + i, c, p[0], shrink, kv + i, n, heads, 1);
    for (; i < c; i++)
        FOR_LANE (h, heads) {
            float a = o[(size_t)h * c + i] * shrink[h];
            for (size_t j = 0; j < n; j++)
                a = fmaf(kv[j * c + i], p[j][h], a);
            o[(size_t)h * c + i] = a;
        }
}

static void attend_neon(float *o, float *max, float *sum, const float *q, size_t heads,
                        const float *kv, size_t n, size_t c, float scale)
{
    size_t h = 0;
    for (; h + HEADS <= heads; h += HEADS)
        attend_heads(o + h * c, max + h, sum + h, q + h * c, kv, n, c, scale, HEADS);
    for (; h < heads; h++)
        attend_heads(o + h * c, max + h, sum + h, q + h * c, kv, n, c, scale, 1);
}

void init_neon_attend(struct kernels *k)
{
    k->attend = attend_neon;
}
