/* Integer products of the baseline: smlal into 16 bits, as many as fit, then pairwise into 32.
 *
 * E4M3 weights have no integer kernel here: smlal multiplies four 16-bit pairs into 32 bits,
 * no more than fmla does with floats, and the scales come on top. */
#include "fast.h"

#include <string.h>

/* Sums of four rows: acc[0] has rows 0 (low half) and 1, acc[1] rows 2 and 3, four or two partial sums
 * each. w: a word of these rows; x: the word of activations, four times. */
INLINE void narrow_step(int16x8_t acc[2], int8x16_t w, int8x16_t x)
{
    acc[0] = vmlal_s8(acc[0], vget_low_s8(w), vget_low_s8(x));
    acc[1] = vmlal_high_s8(acc[1], w, x);
}

/* Two words: 2 * 128 * 127 is below 2^15. */
INLINE void wide_step(int32x4_t acc[2], int8x16_t w0, int8x16_t w1, int8x16_t x0, int8x16_t x1)
{
    int16x8_t low = vmull_s8(vget_low_s8(w0), vget_low_s8(x0));
    int16x8_t high = vmull_high_s8(w0, x0);
    low = vmlal_s8(low, vget_low_s8(w1), vget_low_s8(x1));
    high = vmlal_high_s8(high, w1, x1);
    acc[0] = vpadalq_s16(acc[0], low);
    acc[1] = vpadalq_s16(acc[1], high);
}

INLINE int8x16_t word_of(const int8_t *x, int u)
{
    int32_t word;
    memcpy(&word, x + 4 * u, sizeof word);
    return vreinterpretq_s8_s32(vdupq_n_s32(word));
}

/* The sums of four rows over a group. Narrow: 16 products, at most 16 * 16 * 127 < 2^15. */
INLINE int32x4_t quad_sums(const int8x16_t w[UNITS], const int8x16_t x[UNITS], bool narrow)
{
    if (narrow) {
        int16x8_t acc[2] = {vdupq_n_s16(0), vdupq_n_s16(0)};
        FOR_LANE (u, UNITS)
            narrow_step(acc, w[u], x[u]);
        return vpaddlq_s16(vpaddq_s16(acc[0], acc[1]));
    }
    int32x4_t acc[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
    FOR_LANE (o, OCTETS)
        wide_step(acc, w[2 * o], w[2 * o + 1], x[2 * o], x[2 * o + 1]);
    return vpaddq_s32(acc[0], acc[1]);
}

/* Row i of x. codes: NULL for a tile or a panel of int8. */
INLINE void one_row(float *y, const struct fast_rows *rows, size_t i, const struct fast_tile *t,
                    const void *code, const struct fast_codes *codes, enum wformat f, bool first,
                    bool narrow)
{
    const uint8_t *at = code;
    const int8_t *row = rows->code[i];
    const size_t bytes = wformat_group_bytes(f);
    const bool ahead = codes || rows->n == 1; /* several rows share a tile or a piece of panel */
    float32x4x4_t sum = {{vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)}};
    if (!first)
        sum = vld1q_f32_x4(y);
    for (size_t g = 0; g < t->groups; g++, at += bytes, row += GROUP) {
        int8x16_t x[UNITS];
        for (size_t line = 0; ahead && line < bytes; line += 64)
            stream_ahead(at + line);
        FOR_LANE (u, UNITS)
            x[u] = word_of(row, u);
        FOR_LANE (q, 4) {
            int8x16_t w[UNITS];
            if (codes)
                expand_group(w, at + 16 * q, codes, f);
            else
                FOR_LANE (u, UNITS)
                    w[u] = vld1q_s8((const int8_t *)at + 64 * u + 16 * q);
            const float32x4_t scale = vld1q_f32(t->scale[g] + 4 * q);
            sum.val[q] = fast_add(sum.val[q], quad_sums(w, x, narrow),
                                  vmulq_n_f32(scale, rows->scale[g][i]));
        }
    }
    vst1q_f32_x4(y, sum);
}

/* ------------------------------------------------------------------ the level */

static void words(struct fast_tile *t, const int8_t *code)
{
    t->code = code;
}

static void rows(float *y, size_t ldy, const struct fast_rows *x, const struct fast_tile *t,
                 bool first)
{
    for (size_t i = 0; i < x->n; i++, y += ldy) {
        if (t->narrow)
            one_row(y, x, i, t, t->code, NULL, W_Q8, first, true);
        else
            one_row(y, x, i, t, t->code, NULL, W_Q8, first, false);
    }
}

static void row(float *y, const struct fast_rows *x, const struct fast_tile *t, const uint8_t *code,
                const struct fast_codes *c, bool first)
{
    if (t->narrow)
        FAST_FORMAT(c->format, one_row(y, x, 0, t, code, c, f, first, true));
    else
        FAST_FORMAT(c->format, one_row(y, x, 0, t, code, c, f, first, false));
}

static const struct fast_ops ops = {words, fast_plain_tile, rows, row};

static void matmul_fast_neon(float *y, size_t ldy, const struct qrows *x, const uint32_t *pick,
                             size_t m, const struct wmat *w, size_t r0, size_t r1, void *tmp)
{
    (void)tmp;
    fast_matmul(&ops, y, ldy, x, pick, m, w, r0, r1);
}

static void index_codes_neon(float *score, const struct index_query *q, const uint8_t *key,
                             size_t n)
{
    fast_index(&ops, score, q, key, n);
}

void init_neon_fast(struct kernels *k)
{
    k->matmul_fast = matmul_fast_neon;
    k->index_codes = index_codes_neon;
    k->fast[W_E2M1] = k->fast[W_Q8] = k->fast[W_Q4] = k->fast[W_Q3] = k->fast[W_Q2] = Q_8;
    k->fast[W_E4M3] = Q_NONE;
}
