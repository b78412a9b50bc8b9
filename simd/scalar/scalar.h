/* scalar.h - what the scalar kernels share. */
#ifndef DSV4_SCALAR_H
#define DSV4_SCALAR_H

#include "simd/simd.h"

void matmul_init_scalar(struct kernels *k);
void rows_init_scalar(struct kernels *k);
void mix_init_scalar(struct kernels *k);
void fit_init_scalar(struct kernels *k);

void decode_scalar(float *out, const struct wmat *w, size_t r);
/* The scale of (r, c); 1 for formats without. */
float weight_scale(const struct wmat *w, size_t r, size_t c);
/* The integers that matmul_fast takes for columns c .. c + GROUP of row r. */
void decode_codes(int32_t *v, const struct wmat *w, size_t r, size_t c);

/* The order of additions of every float sum here: 16 running sums (compilers make vectors of
 * them), folded by halves. */
enum { LANES = 16 };

static inline float fold(const float *s)
{
    float a[8], b[4];
    for (int i = 0; i < 8; i++)
        a[i] = s[i] + s[i + 8];
    for (int i = 0; i < 4; i++)
        b[i] = a[i] + a[i + 4];
    return (b[0] + b[2]) + (b[1] + b[3]);
}

static inline float dot_lanes(const float *restrict a, const float *restrict b, size_t n)
{
    float s[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            s[j] += a[i + (size_t)j] * b[i + (size_t)j];
    for (int j = 0; i < n; i++, j++)
        s[j] += a[i] * b[i];
    return fold(s);
}

#endif
