/* Activations as integers, bit for bit as simd.h says. */
#include "neon.h"

/* Places of 16 columns: within every 8 the order 0,2,4,6,1,3,5,7. */
INLINE uint8x16_t octet_order(void)
{
    static const uint8_t from[16] = {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15};
    return vld1q_u8(from);
}

INLINE void store_group(struct qrows *q, size_t at, const int32x4_t v[8])
{
    int16x8_t h[4];
    FOR_LANE (i, 4)
        h[i] = vcombine_s16(vmovn_s32(v[2 * i]), vmovn_s32(v[2 * i + 1]));
    if (q->kind == Q_16) {
        FOR_LANE (i, 4)
            vst1q_s16((int16_t *)q->code + at + 8 * (size_t)i, h[i]);
        return;
    }
    FOR_LANE (i, 2) {
        const int8x16_t b = vcombine_s8(vmovn_s16(h[2 * i]), vmovn_s16(h[2 * i + 1]));
        vst1q_s8((int8_t *)q->code + at + 16 * (size_t)i, vqtbl1q_s8(b, octet_order()));
    }
}

/* x: the group's 32 floats, at: their place among the codes. */
INLINE void quantize_group(struct qrows *q, size_t at, const float *x)
{
    const float limit = q->kind == Q_8 ? 127 : 2047;
    float32x4_t v[8], max = vdupq_n_f32(0);
    FOR_LANE (i, 8) {
        v[i] = vld1q_f32(x + 4 * i);
        max = vmaxq_f32(max, vabsq_f32(v[i])); /* NaN wins */
    }
    const float top = vmaxvq_f32(max);
    const bool finite = top < INFINITY, zero = !finite || top < 0x1p-100f;
    const float inverse = zero ? 0 : limit / top;
    int32x4_t code[8], sum = vdupq_n_s32(0);
    FOR_LANE (i, 8) { /* 0 for NaN, which is what 0 * infinity gives */
        code[i] = vcvtnq_s32_f32(vmulq_n_f32(v[i], inverse));
        sum = vaddq_s32(sum, code[i]);
    }
    store_group(q, at, code);
    q->scale[at / GROUP] = !finite ? NAN : zero ? 0 : top / limit;
    q->sum[at / GROUP] = vaddvq_s32(sum);
}

static void quantize_neon(struct qrows *q, size_t r, const float *x, size_t c0, size_t c1)
{
    for (size_t c = c0; c < c1; c += GROUP)
        quantize_group(q, r * q->cols + c, x + c);
}

void init_neon_quantize(struct kernels *k)
{
    k->quantize = quantize_neon;
}
