/* avx512.h - what the kernels of the levels avx512, avx512vnni and amx share (F, BW, DQ, VL).
 *
 * Tests compile the same sources against an emulation of the instructions (DSV4_EMULATE), so that
 * they are proven on machines without them. */
#ifndef DSV4_AVX512_H
#define DSV4_AVX512_H

#include "simd/simd.h"

#ifdef DSV4_EMULATE
#include <emulate/avx512.h>
#else
#include <immintrin.h>
#endif

void init_avx512(struct kernels *k);
void matmul_init_avx512(struct kernels *k);
void quantize_init_avx512(struct kernels *k);
void fast_init_avx512(struct kernels *k);
void decode_init_avx512(struct kernels *k);
void attend_init_avx512(struct kernels *k);
void mix_init_avx512(struct kernels *k);
void peak_init_avx512(struct kernels *k);

/* One row of a matrix, any format and layout (decode.c). */
void decode_avx512(float *out, const struct wmat *w, size_t r);

/* INLINE: functions whose format or row count is a constant at the call, each call a kernel of its
 * own. FOR_LANE: loops over local arrays of vectors, which become registers only when the loops
 * vanish early. */
#ifdef DSV4_EMULATE
#define INLINE static inline
#define UNROLL
#else
#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#endif
#define FOR_LANE(i, n) UNROLL for (int i = 0; i < (n); i++)

/* Decode reads weights as one stream; this far ahead (measured in bytes of codes) a line is asked
 * for. */
enum { AHEAD = 8192 };

INLINE void ask_ahead(const uint8_t *p, size_t bytes)
{
    UNROLL for (size_t b = 0; b < bytes; b += 64)
    {
        _mm_prefetch((const char *)p + AHEAD + b, _MM_HINT_T0);
    }
}

INLINE __mmask16 first_lanes(size_t n)
{
    return (__mmask16)(n >= 16 ? 0xffff : (1u << n) - 1);
}

/* 16 e8m0 bytes, each in a 32-bit lane, as floats; 0 is the denormal 2^-127. */
INLINE __m512 e8m0_floats(__m512i e)
{
    return _mm512_castsi512_ps(
        _mm512_max_epu32(_mm512_slli_epi32(e, 23), _mm512_set1_epi32(0x400000)));
}

/* e4m3 in the high byte of 16-bit lanes, the low one zero -> f16 bits of value / 256. */
INLINE __m512i e4m3_halves(__m512i t)
{
    return _mm512_and_si512(_mm512_srai_epi16(t, 1), _mm512_set1_epi16((short)0xbf80));
}

INLINE __m512 low_halves(__m512i h)
{
    return _mm512_cvtph_ps(_mm512_castsi512_si256(h));
}

INLINE __m512 high_halves(__m512i h)
{
    return _mm512_cvtph_ps(_mm512_extracti64x4_epi64(h, 1));
}

/* The order in which a vector is summed everywhere: by halves, 8, 4, 2, 1 apart (fold of scalar.h).
 * */
INLINE float fold_lanes(__m512 v)
{
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

/* e^x to 2 ulp; 0 below -104, infinite above 88.7, NaN stays NaN. */
INLINE __m512 exp_lanes(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x); /* in this order a NaN passes */
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p0f)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), x); /* exact: 15 bits of ln 2 */
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
    __m512 p =
        _mm512_set1_ps(0x1.a01a02p-13f); /* 1/7!, 1/6! ...: |r| <= 0.347, the rest is 2^-27 */
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.6c16c2p-10f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.111112p-7f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.555556p-5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.555556p-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

#endif
