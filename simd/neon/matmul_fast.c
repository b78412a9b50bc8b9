/* Integer products of the baseline: smlal into 16 bits, as many as fit, then pairwise into 32.
 *
 * E4M3 weights have no integer kernel here: smlal multiplies four 16-bit pairs into 32 bits,
 * no more than fmla does with floats, and the scales come on top. */
#include "fast.h"

#include <string.h>

/* Sums of 16 rows: acc[i] has rows 2i (low half) and 2i + 1, four or two partial sums each. w: a
 * word of rows 4q .. 4q + 3; x: the word of activations, four times. */
INLINE void narrow_step(int16x8_t acc[8], int q, int8x16_t w, int8x16_t x)
{
    acc[2 * q] = vmlal_s8(acc[2 * q], vget_low_s8(w), vget_low_s8(x));
    acc[2 * q + 1] = vmlal_high_s8(acc[2 * q + 1], w, x);
}

/* Two words: 2 * 128 * 127 is below 2^15. */
INLINE void wide_step(int32x4_t acc[8], int q, int8x16_t w0, int8x16_t w1, int8x16_t x0,
                      int8x16_t x1)
{
    int16x8_t low = vmull_s8(vget_low_s8(w0), vget_low_s8(x0));
    int16x8_t high = vmull_high_s8(w0, x0);
    low = vmlal_s8(low, vget_low_s8(w1), vget_low_s8(x1));
    high = vmlal_high_s8(high, w1, x1);
    acc[2 * q] = vpadalq_s16(acc[2 * q], low);
    acc[2 * q + 1] = vpadalq_s16(acc[2 * q + 1], high);
}

INLINE int8x16_t word_of(const int8_t *x, size_t u)
{
    int32_t word;
    memcpy(&word, x + 4 * u, sizeof word);
    return vreinterpretq_s8_s32(vdupq_n_s32(word));
}

/* Words u and u + 1 (u even) of quad q, from a tile or from 4-bit codes. */
INLINE void pair_of_words(int8x16_t w[2], const void *code, int u, int q, bool nibbles,
                          int8x16_t table)
{
    if (nibbles) {
        const uint8x16_t b = vld1q_u8((const uint8_t *)code + 32 * u + 16 * q);
        w[0] = low_nibbles(b, table);
        w[1] = high_nibbles(b, table);
    } else {
        w[0] = vld1q_s8((const int8_t *)code + 64 * u + 16 * q);
        w[1] = vld1q_s8((const int8_t *)code + 64 * u + 64 + 16 * q);
    }
}

/* One group: the sums of rows 4q .. 4q + 3 in out[q]. */
INLINE void narrow_group(int32x4_t out[4], const void *code, const int8_t *x, bool nibbles,
                         int8x16_t table)
{
    int16x8_t acc[8];
    FOR_LANE (i, 8)
        acc[i] = vdupq_n_s16(0);
    FOR_LANE (half, 4) {
        const int u = 2 * half;
        const int8x16_t x0 = word_of(x, (size_t)u), x1 = word_of(x, (size_t)u + 1);
        FOR_LANE (q, 4) {
            int8x16_t w[2];
            pair_of_words(w, code, u, q, nibbles, table);
            narrow_step(acc, q, w[0], x0);
            narrow_step(acc, q, w[1], x1);
        }
    }
    FOR_LANE (q, 4) /* 16 products: at most 16 * 16 * 127 < 2^15 */
        out[q] = vpaddlq_s16(vpaddq_s16(acc[2 * q], acc[2 * q + 1]));
}

INLINE void wide_group(int32x4_t out[4], const void *code, const int8_t *x, bool nibbles,
                       int8x16_t table)
{
    int32x4_t acc[8];
    FOR_LANE (i, 8)
        acc[i] = vdupq_n_s32(0);
    FOR_LANE (half, 4) {
        const int u = 2 * half;
        const int8x16_t x0 = word_of(x, (size_t)u), x1 = word_of(x, (size_t)u + 1);
        FOR_LANE (q, 4) {
            int8x16_t w[2];
            pair_of_words(w, code, u, q, nibbles, table);
            wide_step(acc, q, w[0], w[1], x0, x1);
        }
    }
    FOR_LANE (q, 4)
        out[q] = vpaddq_s32(acc[2 * q], acc[2 * q + 1]);
}

/* Row i of x. */
INLINE void one_row(float *y, const struct fast_rows *rows, size_t i, const struct fast_tile *t,
                    const void *code, bool nibbles, int8x16_t table, bool first, bool narrow)
{
    const char *at = code;
    const int8_t *x = rows->code[i];
    const size_t bytes = (nibbles ? GROUP / 2 : GROUP) * PANEL;
    const bool ahead = nibbles || rows->n == 1; /* several rows share a tile or a piece of panel */
    float32x4x4_t sum = {{vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)}};
    if (!first)
        sum = vld1q_f32_x4(y);
    for (size_t g = 0; g < t->groups; g++, at += bytes, x += GROUP) {
        int32x4_t s[4];
        for (size_t line = 0; ahead && line < bytes; line += 64)
            stream_ahead(at + line);
        if (narrow)
            narrow_group(s, at, x, nibbles, table);
        else
            wide_group(s, at, x, nibbles, table);
        FOR_LANE (q, 4) {
            const float32x4_t scale = vld1q_f32(t->scale[g] + 4 * q);
            sum.val[q] = fast_add(sum.val[q], s[q], vmulq_n_f32(scale, rows->scale[g][i]));
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
    const int8x16_t none = vdupq_n_s8(0);
    for (size_t i = 0; i < x->n; i++, y += ldy) {
        if (t->narrow)
            one_row(y, x, i, t, t->code, false, none, first, true);
        else
            one_row(y, x, i, t, t->code, false, none, first, false);
    }
}

static void row(float *y, const struct fast_rows *x, const struct fast_tile *t, const uint8_t *code,
                int8x16_t table, bool first)
{
    if (t->narrow)
        one_row(y, x, 0, t, code, true, table, first, true);
    else
        one_row(y, x, 0, t, code, true, table, first, false);
}

static const struct fast_ops ops = {words, fast_plain_tile, rows, row};

static void matmul_fast_neon(float *y, size_t ldy, const struct qrows *x, const uint32_t *pick,
                             size_t m, const struct wmat *w, size_t r0, size_t r1)
{
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
    k->fast[W_E2M1] = k->fast[W_Q8] = k->fast[W_Q4] = Q_8;
    k->fast[W_E4M3] = k->fast[W_Q3] = k->fast[W_Q2] = Q_NONE;
}
