/* dots.h - several rows of floats against one, the order of additions shared by dot, matmul and
 * block_dots. */
#ifndef DSV4_NEON_DOTS_H
#define DSV4_NEON_DOTS_H

#include "simd/neon/neon.h"

#ifdef __aarch64__

#include <string.h>

/* m <= 4 rows against one row of floats (any alignment), 16 lanes each. */
INLINE void dots_of(float *y, size_t ldy, const float *const *x, const uint8_t *w, size_t n,
                    const int m)
{
    float32x4_t acc[4][4];
    FOR_LANE (i, m)
        FOR_LANE (k, 4)
            acc[i][k] = vdupq_n_f32(0);
    size_t c = 0;
    for (; c + 16 <= n; c += 16)
        FOR_LANE (k, 4) {
            const float32x4_t v = vreinterpretq_f32_u8(vld1q_u8(w + 4 * c + 16 * k));
            FOR_LANE (i, m)
                acc[i][k] = vfmaq_f32(acc[i][k], v, vld1q_f32(x[i] + c + 4 * k));
        }
    FOR_LANE (i, m) {
        const float32x4_t s =
            vaddq_f32(vaddq_f32(acc[i][0], acc[i][2]), vaddq_f32(acc[i][1], acc[i][3]));
        float sum = vaddvq_f32(s);
        for (size_t k = c; k < n; k++) {
            float v;
            memcpy(&v, w + 4 * k, sizeof v);
            sum = fmaf(v, x[i][k], sum);
        }
        y[(size_t)i * ldy] = sum;
    }
}

INLINE void dot_rows(float *y, size_t ldy, const float *const *x, const uint8_t *w, size_t n,
                     size_t m)
{
    switch (m) {
    case 1: dots_of(y, ldy, x, w, n, 1); break;
    case 2: dots_of(y, ldy, x, w, n, 2); break;
    case 3: dots_of(y, ldy, x, w, n, 3); break;
    default: dots_of(y, ldy, x, w, n, 4); break;
    }
}

#endif
#endif
