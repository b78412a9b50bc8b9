/* Matrix times rows, in plain C: each weight row is expanded exactly to floats once and used by
 * every row of the batch. */
#include "scalar.h"
#include "simd/codes.h"
#include "simd/simd.h"

#include <string.h>

static void decode_f32(float *out, const struct wmat *w, size_t r)
{
    memcpy(out, w->codes + r * w->code_ld, w->cols * sizeof *out);
}

static void decode_f16(float *out, const struct wmat *w, size_t r)
{
    const uint8_t *p = w->codes + r * w->code_ld;
    for (size_t c = 0; c < w->cols; c++)
        out[c] = f16_value((uint16_t)(p[2 * c] | p[2 * c + 1] << 8));
}

static void decode_bf16(float *out, const struct wmat *w, size_t r)
{
    const uint8_t *p = w->codes + r * w->code_ld;
    for (size_t c = 0; c < w->cols; c++) {
        uint16_t h;
        memcpy(&h, p + 2 * c, sizeof h);
        out[c] = bf16_value(h);
    }
}

static void decode_e4m3(float *restrict out, const struct wmat *w, size_t r)
{
    const uint8_t *restrict p = w->codes + r * w->code_ld;
    const uint8_t *scale = w->scales + r / w->block_rows * w->scale_ld;
    for (size_t c = 0; c < w->cols; scale++) {
        float s = e8m0_value(*scale);
        size_t end = c + w->block_cols < w->cols ? c + w->block_cols : w->cols;
        for (; c < end; c++)
            out[c] = e4m3_value[p[c]] * s;
    }
}

static void decode_e2m1(float *restrict out, const struct wmat *w, size_t r)
{
    const uint8_t *restrict p = w->codes + r * w->code_ld;
    const uint8_t *scale = w->scales + r / w->block_rows * w->scale_ld;
    for (size_t c = 0; c < w->cols; scale++) {
        float s = e8m0_value(*scale), v[16];
        for (int i = 0; i < 16; i++)
            v[i] = e2m1_value[i] * s;
        size_t end = c + w->block_cols < w->cols ? c + w->block_cols : w->cols;
        for (; c < end; c += 2) {
            out[c] = v[p[c / 2] & 15];
            out[c + 1] = v[p[c / 2] >> 4];
        }
    }
}

static void decode(float *out, const struct wmat *w, size_t r)
{
    /* ORDER FORMATS */
    static void (*const by_format[N_WFORMATS])(float *, const struct wmat *, size_t) = {
        decode_f32, decode_f16, decode_bf16, decode_e4m3, decode_e2m1};
    by_format[w->format](out, w, r);
}

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

static void matmul(float *y, size_t ldy, const float *x, size_t ldx, const uint32_t *pick, size_t m,
                   const struct wmat *w, size_t r0, size_t r1, float *tmp)
{
    for (size_t r = r0; r < r1; r++) {
        decode(tmp, w, r);
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

void matmul_init_scalar(struct kernels *k)
{
    k->matmul = matmul;
    k->decode = decode;
}

void kernels_init_scalar(struct kernels *k)
{
    *k = (struct kernels){.level = "scalar"};
    matmul_init_scalar(k);
    rows_init_scalar(k);
}
