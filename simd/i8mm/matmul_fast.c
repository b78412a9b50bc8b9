/* Integer products with smmla: two rows of activations times two rows of weights, eight columns.
 *
 * A tile holds pairs of weight rows, [column / 8][row / 2][row % 2][column % 8]: words u and u
 * + 1 zipped. One row alone has nothing to win and takes the kernels of dotprod. */
#include "i8mm.h"

#include <string.h>

/* Words u and u + 1 of four rows. */
INLINE void store_pairs(int8_t *out, int8x16_t even, int8x16_t odd)
{
    const int32x4_t a = vreinterpretq_s32_s8(even), b = vreinterpretq_s32_s8(odd);
    vst1q_s8(out, vreinterpretq_s8_s32(vzip1q_s32(a, b)));
    vst1q_s8(out + 16, vreinterpretq_s8_s32(vzip2q_s32(a, b)));
}

static void words(struct fast_tile *t, const int8_t *code)
{
    int8_t *out = t->buffer;
    for (size_t u = 0; u < t->groups * GROUP / 8; u++, code += 128)
        for (int q = 0; q < 64; q += 16, out += 32)
            store_pairs(out, vld1q_s8(code + q), vld1q_s8(code + 64 + q));
    t->code = t->buffer;
}

INLINE void pairs_of_codes(struct fast_tile *t, const uint8_t *code, const struct fast_codes *c,
                           enum wformat f)
{
    const size_t bytes = wformat_group_bytes(f);
    int8_t *out = t->buffer;
    for (size_t g = 0; g < t->groups; g++, out += GROUP * PANEL, code += bytes)
        for (int q = 0; q < 4; q++) {
            int8x16_t v[UNITS];
            expand_group(v, code + 16 * q, c, f);
            FOR_LANE (o, OCTETS)
                store_pairs(out + 128 * o + 32 * q, v[2 * o], v[2 * o + 1]);
        }
    t->code = t->buffer;
}

static void codes(struct fast_tile *t, const uint8_t *code, const struct fast_codes *c)
{
    FAST_FORMAT(c->format, pairs_of_codes(t, code, c, f));
}

/* ------------------------------------------------------------------ products */

/* Pairs of rows of x as operands of eight columns; rows beyond x->n are copies whose results are
 * dropped. */
struct pairs {
    int8_t code[FAST_COLS / 8][2][16]; /* [column / 8][pair][row % 2 * 8 + column % 8] */
    float *y[FAST_ROWS];
    float dropped[PANEL];
};

INLINE void make_pairs(struct pairs *p, const struct fast_rows *x, size_t groups, const int pairs)
{
    for (size_t c = 0; c < groups * GROUP; c += 16)
        FOR_LANE (i, pairs) {
            const int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(x->code[2 * i] + c));
            const int64x2_t b = vreinterpretq_s64_s8(vld1q_s8(x->code[2 * i + 1] + c));
            vst1q_s8(p->code[c / 8][i], vreinterpretq_s8_s64(vzip1q_s64(a, b)));
            vst1q_s8(p->code[c / 8 + 1][i], vreinterpretq_s8_s64(vzip2q_s64(a, b)));
        }
}

/* Two scales of weights, twice. */
INLINE float32x4_t twice(const float *two)
{
    uint64_t bits;
    memcpy(&bits, two, sizeof bits);
    return vreinterpretq_f32_u64(vdupq_n_u64(bits));
}

/* One group: acc[i][k] is pair i of x with pair k of the weights, four of them. */
INLINE void group_pairs(int32x4_t acc[2][4], const int8_t *w, const int8_t (*x)[2][16],
                        const int pairs)
{
    FOR_LANE (c, GROUP / 8)
        FOR_LANE (k, 4) {
            const int8x16_t b = vld1q_s8(w + c * 8 * PANEL + 16 * k);
            FOR_LANE (i, pairs)
                acc[i][k] = vmmlaq_s32(acc[i][k], vld1q_s8(x[c][i]), b);
        }
}

/* Eight rows of the panel from `row` (0 or 8) on. A register has two outputs of one row of x and
 * of the next. */
INLINE void half_panel(const struct pairs *p, const struct fast_rows *x, const struct fast_tile *t,
                       size_t row, bool first, const int pairs)
{
    const int8_t *w = t->code + row * 8;
    float32x4_t sum[2][4];
    FOR_LANE (i, pairs)
        FOR_LANE (k, 4)
            sum[i][k] = first ? vdupq_n_f32(0)
                              : vcombine_f32(vld1_f32(p->y[2 * i] + row + 2 * k),
                                             vld1_f32(p->y[2 * i + 1] + row + 2 * k));
    for (size_t g = 0; g < t->groups; g++, w += GROUP * PANEL) {
        int32x4_t acc[2][4];
        FOR_LANE (i, pairs)
            FOR_LANE (k, 4)
                acc[i][k] = vdupq_n_s32(0);
        group_pairs(acc, w, p->code + g * (GROUP / 8), pairs);
        const float32x4_t sx = vld1q_f32(x->scale[g]);
        const float32x4_t scale[2] = {vzip1q_f32(sx, sx), vzip2q_f32(sx, sx)};
        FOR_LANE (k, 4) {
            const float32x4_t sw = twice(t->scale[g] + row + 2 * k);
            FOR_LANE (i, pairs)
                sum[i][k] = fast_add(sum[i][k], acc[i][k], vmulq_f32(sw, scale[i]));
        }
    }
    FOR_LANE (i, pairs)
        FOR_LANE (k, 4) {
            vst1_f32(p->y[2 * i] + row + 2 * k, vget_low_f32(sum[i][k]));
            vst1_f32(p->y[2 * i + 1] + row + 2 * k, vget_high_f32(sum[i][k]));
        }
}

INLINE void rows_of_pairs(struct pairs *p, const struct fast_rows *x, const struct fast_tile *t,
                          bool first, const int pairs)
{
    make_pairs(p, x, t->groups, pairs);
    half_panel(p, x, t, 0, first, pairs);
    half_panel(p, x, t, PANEL / 2, first, pairs);
}

static void rows(float *y, size_t ldy, const struct fast_rows *x, const struct fast_tile *t,
                 bool first)
{
    struct pairs p;
    for (size_t i = 0; i < FAST_ROWS; i++)
        p.y[i] = i < x->n ? y + i * ldy : p.dropped;
    for (size_t k = 0; k < PANEL; k++)
        p.dropped[k] = 0;
    if (x->n > 2)
        rows_of_pairs(&p, x, t, first, 2);
    else
        rows_of_pairs(&p, x, t, first, 1);
}

/* ------------------------------------------------------------------ the level */

static const struct fast_ops ops = {words, codes, rows, NULL};

static void matmul_fast_i8mm(float *y, size_t ldy, const struct qrows *x, const uint32_t *pick,
                             size_t m, const struct wmat *w, size_t r0, size_t r1, void *tmp)
{
    if (m == 1)
        matmul_fast_dotprod(y, ldy, x, pick, m, w, r0, r1, tmp);
    else
        fast_matmul(&ops, y, ldy, x, pick, m, w, r0, r1);
}

static void index_codes_i8mm(float *score, const struct index_query *q, const uint8_t *key,
                             size_t n)
{
    if (n == 1)
        index_codes_dotprod(score, q, key, n);
    else
        fast_index(&ops, score, q, key, n);
}

void init_i8mm_fast(struct kernels *k)
{
    k->matmul_fast = matmul_fast_i8mm;
    k->index_codes = index_codes_i8mm;
}
