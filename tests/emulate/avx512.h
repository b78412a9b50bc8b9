/* avx512.h - the AVX-512 instructions that simd/ uses, on any CPU: SIMDe's, and here those it lacks
 * (or rounds twice), written from Intel's definitions. Slow; for tests only (make emulated). */
#ifndef DSV4_EMULATE_AVX512_H
#define DSV4_EMULATE_AVX512_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wshadow"
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>
#include <simde/x86/sse4.2.h>
#pragma GCC diagnostic pop

#include <math.h>
#include <stdint.h>
#include <string.h>

#define EMU static inline __attribute__((unused))

/* A register seen as elements of any kind. */
union emu512 {
    __m512i i;
    __m512 ps;
    float f32[16];
    int32_t i32[16];
    uint32_t u32[16];
    int16_t i16[32];
    uint16_t u16[32];
    int8_t i8[64];
    uint8_t u8[64];
};

/* ------------------------------------------------------------------ float arithmetic */

EMU __m512 emu_fmadd(__m512 a, __m512 b, __m512 c)
{
    union emu512 x = {.ps = a}, y = {.ps = b}, z = {.ps = c};
    for (int j = 0; j < 16; j++)
        z.f32[j] = fmaf(x.f32[j], y.f32[j], z.f32[j]);
    return z.ps;
}

EMU __m512 emu_fnmadd(__m512 a, __m512 b, __m512 c)
{
    union emu512 x = {.ps = a}, y = {.ps = b}, z = {.ps = c};
    for (int j = 0; j < 16; j++)
        z.f32[j] = fmaf(-x.f32[j], y.f32[j], z.f32[j]);
    return z.ps;
}

/* MINPS, MAXPS: the second operand where one is a NaN or both are zeros. */
EMU __m512 emu_min(__m512 a, __m512 b)
{
    union emu512 x = {.ps = a}, y = {.ps = b};
    for (int j = 0; j < 16; j++)
        y.f32[j] = x.f32[j] < y.f32[j] ? x.f32[j] : y.f32[j];
    return y.ps;
}

EMU __m512 emu_max(__m512 a, __m512 b)
{
    union emu512 x = {.ps = a}, y = {.ps = b};
    for (int j = 0; j < 16; j++)
        y.f32[j] = x.f32[j] > y.f32[j] ? x.f32[j] : y.f32[j];
    return y.ps;
}

EMU __m512 emu_roundscale(__m512 a, int how)
{
    union emu512 x = {.ps = a};
    (void)how; /* to nearest: nothing else is used */
    for (int j = 0; j < 16; j++)
        x.f32[j] = nearbyintf(x.f32[j]);
    return x.ps;
}

/* a * 2^floor(b) */
EMU __m512 emu_scalef(__m512 a, __m512 b)
{
    union emu512 x = {.ps = a}, y = {.ps = b};
    for (int j = 0; j < 16; j++) {
        float n = floorf(y.f32[j]);
        x.f32[j] = isnan(n)    ? n
                   : n > 1000  ? x.f32[j] * INFINITY
                   : n < -1000 ? x.f32[j] * 0
                               : ldexpf(x.f32[j], (int)n);
    }
    return x.ps;
}

EMU float emu_reduce_max(__m512 a)
{
    union emu512 x = {.ps = a};
    float m = x.f32[0];
    for (int j = 1; j < 16; j++)
        m = m > x.f32[j] ? m : x.f32[j];
    return m;
}

EMU int32_t emu_reduce_add(__m512i a)
{
    union emu512 x = {.i = a};
    uint32_t s = 0;
    for (int j = 0; j < 16; j++)
        s += x.u32[j];
    return (int32_t)s;
}

/* ------------------------------------------------------------------ conversions */

EMU __m512i emu_cvtps_epi32(__m512 a)
{
    union emu512 x = {.ps = a};
    for (int j = 0; j < 16; j++)
        x.i32[j] = fabsf(x.f32[j]) < 0x1p31f ? (int32_t)lrintf(x.f32[j]) : INT32_MIN;
    return x.i;
}

EMU __m512 emu_cvtepi32_ps(__m512i a)
{
    union emu512 x = {.i = a};
    for (int j = 0; j < 16; j++)
        x.f32[j] = (float)x.i32[j];
    return x.ps;
}

EMU float emu_half(uint16_t h)
{
    int e = h >> 10 & 31, m = h & 1023;
    float f = e == 31  ? (m ? NAN : INFINITY)
              : e == 0 ? ldexpf((float)m, -24)
                       : ldexpf((float)(1024 + m), e - 25);
    return h & 0x8000 ? -f : f;
}

EMU __m512 emu_cvtph_ps(__m256i a)
{
    uint16_t h[16];
    union emu512 x;
    memcpy(h, &a, sizeof h);
    for (int j = 0; j < 16; j++)
        x.f32[j] = emu_half(h[j]);
    return x.ps;
}

#define EMU_WIDEN(name, from, type, to, n) \
    EMU __m512i name(from a)               \
    {                                      \
        type v[n];                         \
        union emu512 x;                    \
        memcpy(v, &a, sizeof v);           \
        for (int j = 0; j < n; j++)        \
            x.to[j] = v[j];                \
        return x.i;                        \
    }
EMU_WIDEN(emu_cvtepu8_epi32, __m128i, uint8_t, i32, 16)
EMU_WIDEN(emu_cvtepi8_epi32, __m128i, int8_t, i32, 16)
EMU_WIDEN(emu_cvtepu16_epi32, __m256i, uint16_t, i32, 16)
EMU_WIDEN(emu_cvtepu8_epi16, __m256i, uint8_t, i16, 32)

EMU __m128i emu_cvtepi32_epi8(__m512i a)
{
    union emu512 x = {.i = a};
    uint8_t v[16];
    __m128i r;
    for (int j = 0; j < 16; j++)
        v[j] = (uint8_t)x.u32[j];
    memcpy(&r, v, sizeof r);
    return r;
}

EMU __m256i emu_cvtepi32_epi16(__m512i a)
{
    union emu512 x = {.i = a};
    uint16_t v[16];
    __m256i r;
    for (int j = 0; j < 16; j++)
        v[j] = (uint16_t)x.u32[j];
    memcpy(&r, v, sizeof r);
    return r;
}

/* ------------------------------------------------------------------ masked memory */

/* Only elements of the mask are touched: guard pages count. */
EMU __m512 emu_maskz_loadu_ps(__mmask16 k, const void *p)
{
    union emu512 x;
    for (int j = 0; j < 16; j++) {
        x.u32[j] = 0;
        if (k >> j & 1)
            memcpy(&x.u32[j], (const char *)p + 4 * j, 4);
    }
    return x.ps;
}

EMU void emu_mask_storeu_ps(void *p, __mmask16 k, __m512 a)
{
    union emu512 x = {.ps = a};
    for (int j = 0; j < 16; j++)
        if (k >> j & 1)
            memcpy((char *)p + 4 * j, &x.u32[j], 4);
}

EMU __m512i emu_maskz_loadu_epi8(__mmask64 k, const void *p)
{
    union emu512 x;
    for (int j = 0; j < 64; j++)
        x.u8[j] = k >> j & 1 ? ((const uint8_t *)p)[j] : 0;
    return x.i;
}

EMU __m256i emu_maskz_loadu_epi8_256(__mmask32 k, const void *p)
{
    return simde_mm512_castsi512_si256(emu_maskz_loadu_epi8(k, p));
}

EMU __m128i emu_maskz_loadu_epi8_128(__mmask16 k, const void *p)
{
    return simde_mm512_castsi512_si128(emu_maskz_loadu_epi8(k, p));
}

EMU __m256i emu_maskz_loadu_epi16_256(__mmask16 k, const void *p)
{
    __mmask64 bytes = 0;
    for (int j = 0; j < 16; j++)
        if (k >> j & 1)
            bytes |= (__mmask64)3 << 2 * j;
    return emu_maskz_loadu_epi8_256((__mmask32)bytes, p);
}

/* ------------------------------------------------------------------ integers and permutations */

EMU __m512i emu_mask_sub_epi16(__m512i src, __mmask32 k, __m512i a, __m512i b)
{
    union emu512 s = {.i = src}, x = {.i = a}, y = {.i = b};
    for (int j = 0; j < 32; j++)
        if (k >> j & 1)
            s.u16[j] = (uint16_t)(x.u16[j] - y.u16[j]);
    return s.i;
}

EMU __m512i emu_mask_sub_epi8(__m512i src, __mmask64 k, __m512i a, __m512i b)
{
    union emu512 s = {.i = src}, x = {.i = a}, y = {.i = b};
    for (int j = 0; j < 64; j++)
        if (k >> j & 1)
            s.u8[j] = (uint8_t)(x.u8[j] - y.u8[j]);
    return s.i;
}

EMU __m512i emu_shift(__m512i a, int n, int right)
{
    union emu512 x = {.i = a};
    for (int j = 0; j < 16; j++)
        x.u32[j] = n > 31 ? 0 : right ? x.u32[j] >> n : x.u32[j] << n;
    return x.i;
}

EMU __m512i emu_sll_epi32(__m512i a, __m128i n)
{
    return emu_shift(a, simde_mm_cvtsi128_si32(n), 0);
}

EMU __m512i emu_srl_epi32(__m512i a, __m128i n)
{
    return emu_shift(a, simde_mm_cvtsi128_si32(n), 1);
}

EMU __m512i emu_srai_epi32(__m512i a, int n)
{
    union emu512 x = {.i = a};
    for (int j = 0; j < 16; j++)
        x.i32[j] >>= n > 31 ? 31 : n;
    return x.i;
}

EMU __m512i emu_madd_epi16(__m512i a, __m512i b)
{
    union emu512 x = {.i = a}, y = {.i = b};
    for (int j = 0; j < 16; j++)
        x.u32[j] = (uint32_t)(x.i16[2 * j] * y.i16[2 * j]) +
                   (uint32_t)(x.i16[2 * j + 1] * y.i16[2 * j + 1]);
    return x.i;
}

EMU __mmask32 emu_cmpgt_epi16_mask(__m512i a, __m512i b)
{
    union emu512 x = {.i = a}, y = {.i = b};
    __mmask32 k = 0;
    for (int j = 0; j < 32; j++)
        k |= (__mmask32)(x.i16[j] > y.i16[j]) << j;
    return k;
}

EMU __mmask32 emu_cmpeq_epi16_mask(__m512i a, __m512i b)
{
    union emu512 x = {.i = a}, y = {.i = b};
    __mmask32 k = 0;
    for (int j = 0; j < 32; j++)
        k |= (__mmask32)(x.u16[j] == y.u16[j]) << j;
    return k;
}

/* Selects 128-bit lanes: two of a, then two of b. */
EMU __m512 emu_shuffle_f32x4(__m512 a, __m512 b, int how)
{
    union emu512 x = {.ps = a}, y = {.ps = b}, r;
    for (int l = 0; l < 4; l++)
        memcpy(r.f32 + 4 * l, (l < 2 ? x.f32 : y.f32) + 4 * (how >> 2 * l & 3), 16);
    return r.ps;
}

/* Within each 128-bit lane: two elements of a, then two of b. */
EMU __m512 emu_shuffle_ps(__m512 a, __m512 b, int how)
{
    union emu512 x = {.ps = a}, y = {.ps = b}, r;
    for (int j = 0; j < 16; j++)
        r.f32[j] = (j % 4 < 2 ? x.f32 : y.f32)[j / 4 * 4 + (how >> j % 4 * 2 & 3)];
    return r.ps;
}

EMU __m512i emu_shuffle_epi32(__m512i a, int how)
{
    union emu512 x = {.i = a}, r;
    for (int j = 0; j < 16; j++)
        r.u32[j] = x.u32[j / 4 * 4 + (how >> j % 4 * 2 & 3)];
    return r.i;
}

EMU __m256 emu_extractf32x8(__m512 a, int half)
{
    __m256 r;
    memcpy(&r, (const char *)&a + 32 * half, sizeof r);
    return r;
}

#undef _mm512_fmadd_ps
#undef _mm512_fnmadd_ps
#undef _mm512_min_ps
#undef _mm512_max_ps
#undef _mm512_roundscale_ps
#undef _mm512_scalef_ps
#undef _mm512_mask_sub_epi8
#undef _mm512_shuffle_ps
#undef _mm512_sll_epi32
#undef _mm512_srl_epi32
#undef _mm512_madd_epi16
#undef _mm512_srai_epi32
#undef _mm512_cmpeq_epi16_mask
#undef _mm512_cmpgt_epi16_mask
#undef _mm512_cvtss_f32
#undef _mm512_shuffle_f32x4
#undef _mm512_shuffle_epi32
#undef _mm512_extractf32x8_ps
#define _mm512_fmadd_ps              emu_fmadd
#define _mm512_fnmadd_ps             emu_fnmadd
#define _mm512_min_ps                emu_min
#define _mm512_max_ps                emu_max
#define _mm512_roundscale_ps         emu_roundscale
#define _mm512_scalef_ps             emu_scalef
#define _mm512_mask_sub_epi8         emu_mask_sub_epi8
#define _mm512_reduce_max_ps         emu_reduce_max
#define _mm512_reduce_add_epi32      emu_reduce_add
#define _mm512_cvtps_epi32           emu_cvtps_epi32
#define _mm512_cvtepi32_ps           emu_cvtepi32_ps
#define _mm512_cvtph_ps              emu_cvtph_ps
#define _mm512_cvtepu8_epi32         emu_cvtepu8_epi32
#define _mm512_cvtepi8_epi32         emu_cvtepi8_epi32
#define _mm512_cvtepu16_epi32        emu_cvtepu16_epi32
#define _mm512_cvtepu8_epi16         emu_cvtepu8_epi16
#define _mm512_cvtepi32_epi8         emu_cvtepi32_epi8
#define _mm512_cvtepi32_epi16        emu_cvtepi32_epi16
#define _mm512_maskz_loadu_ps        emu_maskz_loadu_ps
#define _mm512_mask_storeu_ps        emu_mask_storeu_ps
#define _mm512_maskz_loadu_epi8      emu_maskz_loadu_epi8
#define _mm256_maskz_loadu_epi8      emu_maskz_loadu_epi8_256
#define _mm_maskz_loadu_epi8         emu_maskz_loadu_epi8_128
#define _mm256_maskz_loadu_epi16     emu_maskz_loadu_epi16_256
#define _mm512_mask_sub_epi16        emu_mask_sub_epi16
#define _mm512_sll_epi32             emu_sll_epi32
#define _mm512_srl_epi32             emu_srl_epi32
#define _mm512_srai_epi32            emu_srai_epi32
#define _mm512_madd_epi16            emu_madd_epi16
#define _mm512_cmpgt_epi16_mask      emu_cmpgt_epi16_mask
#define _mm512_cmpeq_epi16_mask      emu_cmpeq_epi16_mask
#define _mm512_cvtss_f32(a)          _mm_cvtss_f32(_mm512_castps512_ps128(a))
#define _mm512_shuffle_f32x4         emu_shuffle_f32x4
#define _mm512_shuffle_ps            emu_shuffle_ps
#define _mm512_shuffle_epi32(a, how) emu_shuffle_epi32(a, (int)(how))
#define _mm512_extractf32x8_ps       emu_extractf32x8
#ifndef _MM_PERM_BADC
#define _MM_PERM_BADC 0x4e
#define _MM_PERM_CDAB 0xb1
#endif

#endif
