/* Matrix times rows, in plain C. */
#include "scalar.h"
#include "simd/codes.h"
#include "simd/simd.h"

#include <math.h>
#include <string.h>

/* Four rows against one weight row; each sum in the order of dot_lanes. */
static void dot4(float y[4], const float *const x[4], const float *restrict b, size_t n)
{
    float s[4][LANES] = {{0}};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < 4; k++)
            for (int j = 0; j < LANES; j++)
                s[k][j] += x[k][i + (size_t)j] * b[i + (size_t)j];
    for (int j = 0; i < n; i++, j++)
        for (int k = 0; k < 4; k++)
            s[k][j] += x[k][i] * b[i];
    for (int k = 0; k < 4; k++)
        y[k] = fold(s[k]);
}

/* Each weight row is expanded exactly to floats once and used by every row of the batch. */
static void matmul(float *y, size_t ldy, const float *x, size_t ldx, const uint32_t *pick, size_t m,
                   const struct wmat *w, size_t r0, size_t r1, float *tmp)
{
    for (size_t r = r0; r < r1; r++) {
        decode_scalar(tmp, w, r);
        size_t i = 0;
        for (; i + 4 <= m; i += 4) {
            const float *row[4];
            float out[4];
            for (size_t k = 0; k < 4; k++)
                row[k] = x + (pick ? pick[i + k] : i + k) * ldx;
            dot4(out, row, tmp, w->cols);
            for (size_t k = 0; k < 4; k++)
                y[(i + k) * ldy + r] = out[k];
        }
        for (; i < m; i++)
            y[i * ldy + r] = dot_lanes(x + (pick ? pick[i] : i) * ldx, tmp, w->cols);
    }
}

/* ------------------------------------------------------------------ quantized activations */

/* Integers of one group of a row, in plain column order. */
static void row_codes(int32_t *v, const struct qrows *x, size_t row, size_t c)
{
    const int8_t *q8 = x->code;
    const int16_t *q16 = x->code;
    for (size_t i = 0; i < GROUP; i++)
        v[i] = x->kind == Q_8 ? q8[row * x->cols + octet_place(c + i)] : q16[row * x->cols + c + i];
}

/* What the integers of a group are worth: the scale of the weights times that of the row. */
static float unit(const struct wmat *w, size_t r, size_t c, float scale)
{
    float doubled = w->format == W_E2M1 ? 0.5f : w->format == W_E4M3 ? 0x1p-6f : 1;
    return weight_scale(w, r, c) * (doubled * scale);
}

static void matmul_fast(float *y, size_t ldy, const struct qrows *x, const uint32_t *pick, size_t m,
                        const struct wmat *w, size_t r0, size_t r1, void *tmp)
{
    (void)tmp;
    for (size_t r = r0; r < r1; r++) {
        for (size_t i = 0; i < m; i++)
            y[i * ldy + r] = 0;
        for (size_t c = 0; c < w->cols; c += GROUP) {
            int32_t a[GROUP], b[GROUP];
            decode_codes(b, w, r, c);
            for (size_t i = 0; i < m; i++) {
                size_t row = pick ? pick[i] : i;
                int32_t s = 0;
                row_codes(a, x, row, c);
                for (size_t k = 0; k < GROUP; k++)
                    s += a[k] * b[k];
                float u = unit(w, r, c, x->scale[(row * x->cols + c) / GROUP]);
                y[i * ldy + r] = fmaf((float)s, u, y[i * ldy + r]);
            }
        }
    }
}

/* Rounds to nearest even without a libm call; |x| < 2^21. */
static int32_t nearest(float x)
{
    return (int32_t)bits_of_float(x + 0x1.8p23f) - 0x4b400000;
}

static void quantize_group(struct qrows *q, size_t r, const float *x, size_t c)
{
    int8_t *q8 = (int8_t *)q->code + r * q->cols;
    int16_t *q16 = (int16_t *)q->code + r * q->cols + c;
    size_t at = (r * q->cols + c) / GROUP;
    const float limit = q->kind == Q_8 ? 127 : 2047;
    float max = 0;
    bool finite = true;
    for (size_t i = 0; i < GROUP; i++) {
        float a = fabsf(x[c + i]);
        finite = finite && a < INFINITY;
        max = a > max ? a : max;
    }
    bool zero = !finite || max < 0x1p-100f;
    float inverse = zero ? 0 : limit / max;
    q->scale[at] = !finite ? NAN : zero ? 0 : max / limit;
    q->sum[at] = 0;
    for (size_t i = 0; i < GROUP; i++) {
        int32_t v = zero ? 0 : nearest(x[c + i] * inverse);
        q->sum[at] += v;
        if (q->kind == Q_8)
            q8[octet_place(c + i)] = (int8_t)v;
        else
            q16[i] = (int16_t)v;
    }
}

static void quantize(struct qrows *q, size_t r, const float *x, size_t c0, size_t c1)
{
    for (size_t c = c0; c < c1; c += GROUP)
        quantize_group(q, r, x, c);
}

void matmul_init_scalar(struct kernels *k)
{
    k->matmul = matmul;
    k->matmul_fast = matmul_fast;
    k->quantize = quantize;
    k->decode = decode_scalar;
    k->fast[W_E2M1] = k->fast[W_Q8] = k->fast[W_Q4] = k->fast[W_Q3] = k->fast[W_Q2] = Q_8;
    k->fast[W_E4M3] = Q_16;
}
