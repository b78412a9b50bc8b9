/* octet.h - panels of weights as floats in registers, eight columns of four rows at a time. */
#ifndef DSV4_NEON_OCTET_H
#define DSV4_NEON_OCTET_H

#include "simd/neon/units.h"

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

/* The bytes of bf16 of even and odd units' codes. */
struct octet_luts {
    struct lut16 of[2];
};

INLINE struct octet_luts octet_luts_of(const struct wmat *w, enum wformat f)
{
    struct octet_luts t = {{lut16_e2m1(), lut16_e2m1()}};
    if (wformat_table(f) > 0)
        for (int odd = 0; odd < 2; odd++) {
            int8_t value[16];
            for (size_t i = 0; i < 16; i++)
                value[i] = w->table[code_of_index(f, i, odd)];
            t.of[odd] = lut16_of(value);
        }
    return t;
}

/* Two units from their indices. */
INLINE struct octet octet_lut(const uint8x16_t i[2], const struct octet_luts *t, const bool same)
{
    const struct lut16 even = t->of[0], odd = t->of[same ? 0 : 1];
    const uint8x16_t el = vqtbl1q_u8(even.low, i[0]), eh = vqtbl1q_u8(even.high, i[0]);
    const uint8x16_t ol = vqtbl1q_u8(odd.low, i[1]), oh = vqtbl1q_u8(odd.high, i[1]);
    const uint16x8_t e01 = vreinterpretq_u16_u8(vzip1q_u8(el, eh));
    const uint16x8_t e23 = vreinterpretq_u16_u8(vzip2q_u8(el, eh));
    const uint16x8_t o01 = vreinterpretq_u16_u8(vzip1q_u8(ol, oh));
    const uint16x8_t o23 = vreinterpretq_u16_u8(vzip2q_u8(ol, oh));
    const uint16x8_t row[4] = {vzip1q_u16(e01, o01), vzip2q_u16(e01, o01), vzip1q_u16(e23, o23),
                               vzip2q_u16(e23, o23)};
    struct octet o;
    FOR_LANE (r, 4) {
        o.c[0][r] = low_bf16(row[r]);
        o.c[1][r] = high_bf16(row[r]);
    }
    return o;
}

/* Lines of 64 bytes that a group of a panel takes. */
INLINE int group_lines(enum wformat f)
{
    return f < W_E4M3 ? 16 : f == W_E4M3 || f == W_Q8 ? 8 : f == W_Q3 ? 3 : f == W_Q2 ? 2 : 4;
}

/* Octet o of a group. p: the group, at the first of four rows; c: it opened. */
INLINE struct octet octet(const uint8_t *p, const uint8x16_t c[4], int o, enum wformat f,
                          const struct octet_luts *t, const bool tiny)
{
    uint8x16_t i[2];
    p += o * (group_lines(f) / OCTETS) * 64; /* of formats that are not opened */
    if (f == W_E4M3)
        return octet_e4m3(p, tiny);
    if (f == W_Q8)
        return octet_q8(p);
    if (f < W_E4M3)
        return octet_half(p, f);
    unit_indices(i, c, o, f);
    return octet_lut(i, t, f != W_Q3 && f != W_Q2);
}

#endif
#endif
