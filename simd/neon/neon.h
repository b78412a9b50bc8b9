/* neon.h - what the arm kernels share (ARMv8.0 with Advanced SIMD; nothing newer in this
 * folder). */
#ifndef DSV4_NEON_H
#define DSV4_NEON_H

#ifdef __aarch64__

#include "simd/codes.h"
#include "simd/simd.h"

#include <arm_neon.h>

#define INLINE static inline __attribute__((always_inline))

/* A loop over registers: unrolled early, or gcc puts the array into memory. */
#define FOR_LANE(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)

void init_neon(struct kernels *k);
void init_neon_matmul(struct kernels *k);
void init_neon_fast(struct kernels *k);
void init_neon_quantize(struct kernels *k);
void init_neon_decode(struct kernels *k);
void init_neon_attend(struct kernels *k);
void init_neon_index(struct kernels *k);
void init_neon_mix(struct kernels *k);
void init_neon_fit(struct kernels *k);

/* dots[i * ld + j] = a_i . b_j for na rows of a and nb <= 4 rows of b, n floats each; every dot
 * in the same order of additions. */
void dots_neon(float *dots, size_t ld, const float *a, size_t lda, size_t na, const float *b,
               size_t ldb, size_t nb, size_t n);

/* decode of the table. */
void decode_neon(float *out, const struct wmat *w, size_t r);

/* One row of a cache as floats. */
void cache_row_neon(float *out, const uint8_t *row, struct rshape s);

/* Weights are read once, in one stream: how far before their use they are asked for. */
enum { AHEAD = 1024 };

INLINE void stream_ahead(const void *p)
{
    __builtin_prefetch((const char *)p + AHEAD, 0, 0);
}

/* The sums of four registers, each (l0 + l1) + (l2 + l3). */
INLINE float32x4_t sum_each(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d)
{
    return vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d));
}

/* e4m3 has the fields of f16 with three bits more: read as f16 every code, the subnormal ones
 * too, is worth 2^-8 of its value. NaN codes become +-480 * 2^-8. */
INLINE float16x8_t e4m3_halves(int8x8_t code)
{
    int16x8_t wide = vshll_n_s8(code, 7); /* the sign lands in bits 15 and 14 */
    return vreinterpretq_f16_s16(vbicq_s16(wide, vdupq_n_s16(0x4000)));
}

INLINE float32x4_t low_floats(float16x8_t h)
{
    return vcvt_f32_f16(vget_low_f16(h));
}

INLINE float32x4_t high_floats(float16x8_t h)
{
    return vcvt_high_f32_f16(h);
}

/* Four floats from bf16. */
INLINE float32x4_t low_bf16(uint16x8_t h)
{
    return vreinterpretq_f32_u16(vzip1q_u16(vdupq_n_u16(0), h));
}

INLINE float32x4_t high_bf16(uint16x8_t h)
{
    return vreinterpretq_f32_u16(vzip2q_u16(vdupq_n_u16(0), h));
}

/* 16 values that bf16 holds exactly (those of e2m1, any int8), as tables of its two bytes. */
struct lut16 {
    uint8x16_t low, high;
};

INLINE struct lut16 lut16_e2m1(void)
{
    static const uint8_t low[16] = {0, 0x00, 0x80, 0xc0, 0, 0x40, 0x80, 0xc0,
                                    0, 0x00, 0x80, 0xc0, 0, 0x40, 0x80, 0xc0};
    static const uint8_t high[16] = {0x00, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40,
                                     0x80, 0xbf, 0xbf, 0xbf, 0xc0, 0xc0, 0xc0, 0xc0};
    return (struct lut16){vld1q_u8(low), vld1q_u8(high)};
}

INLINE struct lut16 lut16_of(const int8_t table[16])
{
    uint8_t low[16], high[16];
    for (size_t i = 0; i < 16; i++) {
        uint32_t u = bits_of_float((float)table[i]);
        low[i] = (uint8_t)(u >> 16);
        high[i] = (uint8_t)(u >> 24);
    }
    return (struct lut16){vld1q_u8(low), vld1q_u8(high)};
}

/* 16 codes as floats, four registers. */
INLINE float32x4x4_t lut16_floats(struct lut16 t, uint8x16_t code)
{
    uint8x16_t low = vqtbl1q_u8(t.low, code), high = vqtbl1q_u8(t.high, code);
    uint16x8_t a = vreinterpretq_u16_u8(vzip1q_u8(low, high));
    uint16x8_t b = vreinterpretq_u16_u8(vzip2q_u8(low, high));
    return (float32x4x4_t){{low_bf16(a), high_bf16(a), low_bf16(b), high_bf16(b)}};
}

/* 16 int8 as floats, four registers. */
INLINE float32x4x4_t int8_floats(int8x16_t v)
{
    int16x8_t a = vmovl_s8(vget_low_s8(v)), b = vmovl_high_s8(v);
    return (float32x4x4_t){
        {vcvtq_f32_s32(vmovl_s16(vget_low_s16(a))), vcvtq_f32_s32(vmovl_high_s16(a)),
         vcvtq_f32_s32(vmovl_s16(vget_low_s16(b))), vcvtq_f32_s32(vmovl_high_s16(b))}};
}

/* Four e8m0 scales, none 255. */
INLINE float32x4_t e8m0_floats(uint16x4_t code)
{
    uint32x4_t u = vshlq_n_u32(vmovl_u16(code), 23);
    return vreinterpretq_f32_u32(vmaxq_u32(u, vdupq_n_u32(0x00400000))); /* 0 is 2^-127 */
}

/* The 16 scales of group g of a panel of E2M1, Q8 or a table format. */
INLINE float32x4x4_t panel_scales(const struct wmat *w, size_t p, size_t g)
{
    const uint8_t *at = w->scales + p * w->scale_ld;
    if (w->format == W_E2M1) {
        uint8x16_t b = vld1q_u8(at + g * PANEL);
        uint16x8_t lo = vmovl_u8(vget_low_u8(b)), hi = vmovl_high_u8(b);
        return (float32x4x4_t){{e8m0_floats(vget_low_u16(lo)), e8m0_floats(vget_high_u16(lo)),
                                e8m0_floats(vget_low_u16(hi)), e8m0_floats(vget_high_u16(hi))}};
    }
    at += g * PANEL * 2;
    float16x8_t lo = vreinterpretq_f16_u8(vld1q_u8(at));
    float16x8_t hi = vreinterpretq_f16_u8(vld1q_u8(at + 16));
    return (float32x4x4_t){{low_floats(lo), high_floats(lo), low_floats(hi), high_floats(hi)}};
}

/* e^x, within 2 units of the last place; 0 below -104, infinity above 88.8. */
INLINE float32x4_t exp_floats(float32x4_t x)
{
    x = vminq_f32(vmaxq_f32(x, vdupq_n_f32(-105.0f)), vdupq_n_f32(89.0f));
    float32x4_t n = vrndnq_f32(vmulq_n_f32(x, 0x1.715476p+0f));
    float32x4_t r = vfmsq_f32(x, n, vdupq_n_f32(0x1.62e4p-1f)); /* ln 2 in two parts */
    r = vfmsq_f32(r, n, vdupq_n_f32(0x1.7f7d1cp-20f));
    float32x4_t p = vdupq_n_f32(1.9875691500e-4f); /* Cephes expf */
    p = vfmaq_f32(vdupq_n_f32(1.3981999507e-3f), p, r);
    p = vfmaq_f32(vdupq_n_f32(8.3334519073e-3f), p, r);
    p = vfmaq_f32(vdupq_n_f32(4.1665795894e-2f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.6666665459e-1f), p, r);
    p = vfmaq_f32(vdupq_n_f32(5.0000001201e-1f), p, r);
    p = vfmaq_f32(vaddq_f32(r, vdupq_n_f32(1.0f)), p, vmulq_f32(r, r));
    /* 2^n in two factors: n reaches from -151 to 128. */
    int32x4_t i = vcvtq_s32_f32(n), half = vshrq_n_s32(i, 1), rest = vsubq_s32(i, half);
    int32x4_t one = vdupq_n_s32(127);
    p = vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, one), 23)));
    return vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, one), 23)));
}

#endif
#endif
