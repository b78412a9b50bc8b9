/* Integer products with sdot: a word of four rows is one register, a word of activations one
 * lane. */
#include "dotprod.h"

/* ------------------------------------------------------------------ several rows */

/* Word L of x's half group with two quads of the panel. */
#define WORD(h, L)                                                  \
    do {                                                            \
        const int8x16_t w0 = vld1q_s8(w), w1 = vld1q_s8(w + 16);    \
        w += 64;                                                    \
        FOR_LANE (i, n) {                                           \
            acc[i][0] = vdotq_laneq_s32(acc[i][0], w0, v[i][h], L); \
            acc[i][1] = vdotq_laneq_s32(acc[i][1], w1, v[i][h], L); \
        }                                                           \
    } while (0)

/* Eight rows of the panel from `row` (0 or 8) on, n <= 4 rows of x. The sums of a group and the
 * outputs both stay in registers. */
INLINE void half_panel(float *y, size_t ldy, const struct fast_rows *x, const struct fast_tile *t,
                       size_t row, bool first, const int n)
{
    const int8_t *w = t->code + row * 4;
    float32x4_t sum[FAST_ROWS][2];
    FOR_LANE (i, n) {
        const float *from = y + (size_t)i * ldy + row;
        sum[i][0] = first ? vdupq_n_f32(0) : vld1q_f32(from);
        sum[i][1] = first ? vdupq_n_f32(0) : vld1q_f32(from + 4);
    }
    for (size_t g = 0; g < t->groups; g++) {
        int32x4_t acc[FAST_ROWS][2];
        int8x16_t v[FAST_ROWS][2];
        FOR_LANE (i, n) {
            acc[i][0] = acc[i][1] = vdupq_n_s32(0);
            v[i][0] = vld1q_s8(x->code[i] + g * GROUP);
            v[i][1] = vld1q_s8(x->code[i] + g * GROUP + 16);
        }
        WORD(0, 0);
        WORD(0, 1);
        WORD(0, 2);
        WORD(0, 3);
        WORD(1, 0);
        WORD(1, 1);
        WORD(1, 2);
        WORD(1, 3);
        const float32x4_t s0 = vld1q_f32(t->scale[g] + row);
        const float32x4_t s1 = vld1q_f32(t->scale[g] + row + 4);
        FOR_LANE (i, n) {
            const float scale = x->scale[g][i];
            sum[i][0] = fast_add(sum[i][0], acc[i][0], vmulq_n_f32(s0, scale));
            sum[i][1] = fast_add(sum[i][1], acc[i][1], vmulq_n_f32(s1, scale));
        }
    }
    FOR_LANE (i, n) {
        vst1q_f32(y + (size_t)i * ldy + row, sum[i][0]);
        vst1q_f32(y + (size_t)i * ldy + row + 4, sum[i][1]);
    }
}

/* ------------------------------------------------------------------ one row */

/* All 16 rows at once, so that the panel is read in one stream. */
#define WORD_ONE(q, L) acc[q] = vdotq_laneq_s32(acc[q], vld1q_s8(w + 64 * (L) + 16 * (q)), v, L)
#define WORDS_ONE(L)   WORD_ONE(0, L), WORD_ONE(1, L), WORD_ONE(2, L), WORD_ONE(3, L)

/* Half a group. */
INLINE void words_16(int32x4_t acc[4], const int8_t *w, int8x16_t v)
{
    WORDS_ONE(0), WORDS_ONE(1), WORDS_ONE(2), WORDS_ONE(3);
}

/* A group of four rows; v0, v1: the row of activations. */
INLINE int32x4_t quad_sums(const int8x16_t w[UNITS], int8x16_t v0, int8x16_t v1)
{
    int32x4_t a = vdotq_laneq_s32(vdupq_n_s32(0), w[0], v0, 0);
    int32x4_t b = vdotq_laneq_s32(vdupq_n_s32(0), w[4], v1, 0);
    a = vdotq_laneq_s32(a, w[1], v0, 1);
    b = vdotq_laneq_s32(b, w[5], v1, 1);
    a = vdotq_laneq_s32(a, w[2], v0, 2);
    b = vdotq_laneq_s32(b, w[6], v1, 2);
    a = vdotq_laneq_s32(a, w[3], v0, 3);
    b = vdotq_laneq_s32(b, w[7], v1, 3);
    return vaddq_s32(a, b);
}

/* codes: NULL for a tile or a panel of int8. */
INLINE void one_row(float *y, const struct fast_rows *x, const struct fast_tile *t,
                    const void *code, const struct fast_codes *codes, enum wformat f, bool first)
{
    const uint8_t *w = code;
    const size_t bytes = wformat_group_bytes(f);
    float32x4x4_t sum = {{vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)}};
    if (!first)
        sum = vld1q_f32_x4(y);
    for (size_t g = 0; g < t->groups; g++, w += bytes) {
        const int8x16_t v0 = vld1q_s8(x->code[0] + g * GROUP);
        const int8x16_t v1 = vld1q_s8(x->code[0] + g * GROUP + 16);
        int32x4_t acc[4];
        FOR_LANE (q, 4)
            acc[q] = vdupq_n_s32(0);
        for (size_t line = 0; line < bytes; line += 64)
            stream_ahead(w + line);
        if (codes) {
            FOR_LANE (q, 4) {
                int8x16_t v[UNITS];
                expand_group(v, w + 16 * q, codes, f);
                acc[q] = quad_sums(v, v0, v1);
            }
        } else {
            words_16(acc, (const int8_t *)w, v0);
            words_16(acc, (const int8_t *)w + 256, v1);
        }
        FOR_LANE (q, 4) {
            const float32x4_t scale = vld1q_f32(t->scale[g] + 4 * q);
            sum.val[q] = fast_add(sum.val[q], acc[q], vmulq_n_f32(scale, x->scale[g][0]));
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
    if (x->n == 1) {
        one_row(y, x, t, t->code, NULL, W_Q8, first);
        return;
    }
    for (size_t row = 0; row < PANEL; row += PANEL / 2)
        switch (x->n) {
        case 2: half_panel(y, ldy, x, t, row, first, 2); break;
        case 3: half_panel(y, ldy, x, t, row, first, 3); break;
        default: half_panel(y, ldy, x, t, row, first, 4); break;
        }
}

static void row(float *y, const struct fast_rows *x, const struct fast_tile *t, const uint8_t *code,
                const struct fast_codes *c, bool first)
{
    FAST_FORMAT(c->format, one_row(y, x, t, code, c, f, first));
}

static const struct fast_ops ops = {words, fast_plain_tile, rows, row};

void matmul_fast_dotprod(float *y, size_t ldy, const struct qrows *x, const uint32_t *pick,
                         size_t m, const struct wmat *w, size_t r0, size_t r1, void *tmp)
{
    (void)tmp;
    fast_matmul(&ops, y, ldy, x, pick, m, w, r0, r1);
}

void index_codes_dotprod(float *score, const struct index_query *q, const uint8_t *key, size_t n)
{
    fast_index(&ops, score, q, key, n);
}
