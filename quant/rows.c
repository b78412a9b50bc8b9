/* Rows of the caches: the quantizers that the models were trained with. */
#include "quant/quant.h"

#include "simd/codes.h"

#include <math.h>

static float largest(const float *x, size_t n, bool *finite)
{
    float m = 0;
    for (size_t i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        if (!(a <= 3.4028234664e38f))
            *finite = false;
        else if (a > m)
            m = a;
    }
    return m;
}

static inline float finite_or_zero(float x)
{
    return fabsf(x) <= 3.4028234664e38f ? x : 0.0f;
}

static bool encode_e4m3(uint8_t *code, uint8_t *scale, const float *x, size_t n, size_t block)
{
    bool finite = true;
    for (size_t c = 0; c < n; c += block) {
        float amax = largest(x + c, block, &finite);
        *scale = e8m0_ceil((amax > 1e-4f ? amax : 1e-4f) * (1.0f / 448.0f));
        float s = e8m0_value(*scale++);
        for (size_t i = c; i < c + block; i++)
            code[i] = e4m3_code(finite_or_zero(x[i]) / s);
    }
    return finite;
}

/* The scale is a power of two (e8m0), or the nearest e4m3: then values may exceed 6 scales. */
static bool encode_e2m1(uint8_t *code, uint8_t *scale, const float *x, size_t n, size_t block,
                        bool e4m3_scale)
{
    bool finite = true;
    for (size_t c = 0; c < n; c += block) {
        float amax = largest(x + c, block, &finite), s;
        if (e4m3_scale) {
            amax = amax > 6.0f * 0x1p-9f ? amax : 6.0f * 0x1p-9f;
            *scale = e4m3_code(amax / 6.0f);
            s = e4m3_value[*scale];
        } else {
            amax = amax > 6.0f * 0x1p-126f ? amax : 6.0f * 0x1p-126f;
            *scale = e8m0_ceil(amax * (1.0f / 6.0f));
            s = e8m0_value(*scale);
        }
        scale++;
        for (size_t i = c; i < c + block; i += 2)
            code[i / 2] = (uint8_t)(e2m1_code(finite_or_zero(x[i]) / s) |
                                    e2m1_code(finite_or_zero(x[i + 1]) / s) << 4);
    }
    return finite;
}

bool row_encode(uint8_t *row, const float *x, struct rshape s)
{
    size_t w = s.width, flat = w - s.rope;
    bool finite = true;
    switch (s.format) {
    case R_F32:
        largest(x, w, &finite);
        memcpy(row, x, w * sizeof *x);
        break;
    case R_E4M3_64B:
        finite = encode_e4m3(row, row + flat, x, flat, 64);
        largest(x + flat, s.rope, &finite);
        row += flat + flat / 64;
        for (size_t i = 0; i < s.rope; i++) {
            uint16_t h = bf16_code(finite_or_zero(x[flat + i]));
            memcpy(row + 2 * i, &h, sizeof h);
        }
        break;
    case R_E4M3_32: finite = encode_e4m3(row, row + w, x, w, 32); break;
    case R_E2M1_16: finite = encode_e2m1(row, row + w / 2, x, w, 16, true); break;
    case R_E2M1_32: finite = encode_e2m1(row, row + w / 2, x, w, 32, false); break;
    case N_RFORMATS: break;
    }
    return finite;
}

void row_round(const struct kernels *k, float *x, struct rshape s)
{
    uint8_t row[4 * INDEX_MAX_WIDTH];
    row_encode(row, x, s);
    k->rows(x, row, 1, s);
}

void hadamard(float *x, size_t n)
{
    for (size_t h = 1; h < n; h *= 2)
        for (size_t i = 0; i < n; i += 2 * h)
            for (size_t j = i; j < i + h; j++) {
                float a = x[j], b = x[j + h];
                x[j] = a + b;
                x[j + h] = a - b;
            }
    float s = (float)(1.0 / sqrt((double)n));
    for (size_t i = 0; i < n; i++)
        x[i] *= s;
}
