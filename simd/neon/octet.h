/* octet.h - panels of weights as floats in registers, eight columns of four rows at a time. */
#ifndef DSV4_NEON_OCTET_H
#define DSV4_NEON_OCTET_H

#include "simd/neon/neon.h"

#ifdef __aarch64__

/* Eight columns of four rows, [column / 4][row % 4]. */
struct octet {
    float32x4_t c[2][4];
};

/* The fields of e4m3 stand in bf16 for 2^-120 of their value, subnormal codes too: multiplied
 * back here, or not at all if `tiny`. (By way of f16 it takes fewer instructions, but slow
 * ones.) NaN codes become 480. */
INLINE struct octet octet_e4m3(const uint8_t *p, const bool tiny)
{
    struct octet o;
    FOR_LANE (i, 2) {
        int8x16_t b = vreinterpretq_s8_u8(vld1q_u8(p + i * 4 * PANEL));
        int16x8_t fields = vdupq_n_s16((int16_t)0x87f0);
        uint16x8_t rows01 = vreinterpretq_u16_s16(vandq_s16(vshll_n_s8(vget_low_s8(b), 4), fields));
        uint16x8_t rows23 = vreinterpretq_u16_s16(vandq_s16(vshll_high_n_s8(b, 4), fields));
        o.c[i][0] = low_bf16(rows01);
        o.c[i][1] = high_bf16(rows01);
        o.c[i][2] = low_bf16(rows23);
        o.c[i][3] = high_bf16(rows23);
        FOR_LANE (r, 4)
            o.c[i][r] = tiny ? o.c[i][r] : vmulq_n_f32(o.c[i][r], 0x1p120f);
    }
    return o;
}

INLINE struct octet octet_half(const uint8_t *p, enum wformat f)
{
    struct octet o;
    FOR_LANE (i, 2) { /* two words: columns 0, 1 and 2, 3 of four rows */
        uint32x4_t a = vreinterpretq_u32_u8(vld1q_u8(p + i * 8 * PANEL));
        uint32x4_t b = vreinterpretq_u32_u8(vld1q_u8(p + i * 8 * PANEL + 4 * PANEL));
        uint16x8_t rows01 = vreinterpretq_u16_u32(vzip1q_u32(a, b));
        uint16x8_t rows23 = vreinterpretq_u16_u32(vzip2q_u32(a, b));
        if (f == W_BF16) {
            o.c[i][0] = low_bf16(rows01);
            o.c[i][1] = high_bf16(rows01);
            o.c[i][2] = low_bf16(rows23);
            o.c[i][3] = high_bf16(rows23);
        } else {
            o.c[i][0] = low_floats(vreinterpretq_f16_u16(rows01));
            o.c[i][1] = high_floats(vreinterpretq_f16_u16(rows01));
            o.c[i][2] = low_floats(vreinterpretq_f16_u16(rows23));
            o.c[i][3] = high_floats(vreinterpretq_f16_u16(rows23));
        }
    }
    return o;
}

INLINE struct octet octet_of(float32x4x4_t rows01, float32x4x4_t rows23)
{
    return (struct octet){{{rows01.val[0], rows01.val[2], rows23.val[0], rows23.val[2]},
                           {rows01.val[1], rows01.val[3], rows23.val[1], rows23.val[3]}}};
}

INLINE struct octet octet_q8(const uint8_t *p)
{
    int8x16_t even = vreinterpretq_s8_u8(vld1q_u8(p));
    int8x16_t odd = vreinterpretq_s8_u8(vld1q_u8(p + 4 * PANEL));
    return octet_of(int8_floats(vzip1q_s8(even, odd)), int8_floats(vzip2q_s8(even, odd)));
}

INLINE struct octet octet_lut(const uint8_t *p, struct lut16 t)
{
    uint8x16_t b = vld1q_u8(p), even = vandq_u8(b, vdupq_n_u8(15)), odd = vshrq_n_u8(b, 4);
    return octet_of(lut16_floats(t, vzip1q_u8(even, odd)), lut16_floats(t, vzip2q_u8(even, odd)));
}

/* p: a row of words, at the first of four rows. */
INLINE struct octet octet(const uint8_t *p, enum wformat f, struct lut16 t, const bool tiny)
{
    return f == W_E4M3  ? octet_e4m3(p, tiny)
           : f == W_Q8  ? octet_q8(p)
           : f < W_E4M3 ? octet_half(p, f)
                        : octet_lut(p, t);
}

/* Lines of 64 bytes that eight columns of a panel take. */
INLINE int octet_lines(enum wformat f)
{
    return f < W_E4M3 ? 4 : f == W_E4M3 || f == W_Q8 ? 2 : 1;
}

#endif
#endif
