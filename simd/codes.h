/* codes.h - the number formats: e4m3, e8m0, e2m1, bf16, f16 <-> float, one value at a time.
 * Definitions: OCP MX 1.0 and FP8; rounding is to nearest, ties to even. */
#ifndef DSV4_CODES_H
#define DSV4_CODES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* All 256 values of e4m3 (0x7f and 0xff are NaN), the 16 of e2m1. */
extern const float e4m3_value[256];
extern const float e2m1_value[16];
/* Those of e2m1 doubled, which makes them integers. */
extern const int8_t e2m1_doubled[16];

static inline float float_of_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint32_t bits_of_float(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* 2^(e - 127); 0 is 2^-127 (a denormal float), 255 NaN. */
static inline float e8m0_value(uint8_t e)
{
    return float_of_bits(e == 0 ? 0x00400000u : e == 255 ? 0x7fc00000u : (uint32_t)e << 23);
}

static inline float bf16_value(uint16_t h)
{
    return float_of_bits((uint32_t)h << 16);
}

static inline uint16_t bf16_code(float f)
{
    uint32_t u = bits_of_float(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

static inline float f16_value(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 1023;
    if (e == 31)
        return float_of_bits(sign | 0x7f800000u | m << 13);
    if (e == 0) {
        float f = (float)m * 0x1p-24f;
        return sign ? -f : f;
    }
    return float_of_bits(sign | (e + 112) << 23 | m << 13);
}

/* Saturates at +-65504; NaN stays NaN. */
static inline uint16_t f16_code(float f)
{
    uint32_t u = bits_of_float(f);
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    u &= 0x7fffffffu;
    if (u > 0x7f800000u)
        return sign | 0x7e00;
    if (u >= 0x477ff000u) /* nearer to 65536 than to 65504 */
        return sign | 0x7bff;
    if (u < 0x38800000u) { /* below 2^-14: multiples of 2^-24, rounded by the float addition */
        float r = float_of_bits(u) + 0.5f;
        return sign | (uint16_t)(bits_of_float(r) - 0x3f000000u);
    }
    u += 0xfffu + ((u >> 13) & 1);
    return sign | (uint16_t)((u >> 13) - (112u << 10));
}

/* Saturates at +-448; NaN stays NaN. */
static inline uint8_t e4m3_code(float f)
{
    uint32_t u = bits_of_float(f);
    uint8_t sign = (uint8_t)((u >> 24) & 0x80);
    u &= 0x7fffffffu;
    if (u > 0x7f800000u)
        return sign | 0x7f;
    if (u >= 0x43e00000u) /* 448 */
        return sign | 0x7e;
    if (u < 0x3c800000u) { /* below 2^-6: multiples of 2^-9, rounded by the float addition */
        float r = float_of_bits(u) + 16384.0f;
        return sign | (uint8_t)(bits_of_float(r) - 0x46800000u);
    }
    u += 0x7ffffu + ((u >> 20) & 1);
    return sign | (uint8_t)((u >> 20) - (120u << 3));
}

/* Saturates at +-6; NaN becomes +-6. */
static inline uint8_t e2m1_code(float f)
{
    float a = fabsf(f);
    uint8_t sign = (uint8_t)((bits_of_float(f) >> 28) & 8);
    uint8_t code = (uint8_t)((a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) +
                             (a >= 3.5f) + !(a <= 5.0f));
    return sign | (code > 7 ? 7 : code);
}

/* The byte of 2^ceil(log2 x) for normal x > 0: from the bits, an exact power of two stays. */
static inline uint8_t e8m0_ceil(float x)
{
    uint32_t u = bits_of_float(x) & 0x7fffffffu;
    uint32_t e = (u >> 23) + ((u & 0x7fffffu) != 0);
    return (uint8_t)(e > 254 ? 254 : e);
}

/* Where column c lies when every 8 columns are in the order 0,2,4,6,1,3,5,7. */
static inline size_t octet_place(size_t c)
{
    return (c & ~(size_t)7) | (c & 1) << 2 | (c >> 1 & 3);
}

#endif
