/* avx2.h - what the kernels of this level share (AVX2, FMA, F16C; x86-64-v3). */
#ifndef DSV4_AVX2_H
#define DSV4_AVX2_H

#include "simd/simd.h"

#include <immintrin.h>

void init_avx2(struct kernels *k);
void init_avx2_fast(struct kernels *k);
void init_avx2_attend(struct kernels *k);
void init_avx2_rows(struct kernels *k);
void init_avx2_index(struct kernels *k);
void init_avx2_mix(struct kernels *k);
void init_avx2_peak(struct kernels *k);
void init_avx2_fit(struct kernels *k);

/* matmul by layout and number of rows (exact.c, exact_many.c, plain.c), decode (plain.c), matmul_fast of int16 rows (wide.c),
 * quantize (quantize.c): contracts in simd.h. */
void matmul_avx2(float *y, size_t ldy, const float *x, size_t ldx, const uint32_t *pick, size_t m,
                 const struct wmat *w, size_t r0, size_t r1, float *tmp);
void matmul_many_avx2(float *y, size_t ldy, const float *x, size_t ldx, const uint32_t *pick,
                      size_t m, const struct wmat *w, size_t r0, size_t r1);
void matmul_plain_avx2(float *y, size_t ldy, const float *x, size_t ldx, const uint32_t *pick,
                       size_t m, const struct wmat *w, size_t r0, size_t r1, float *tmp);
void decode_avx2(float *out, const struct wmat *w, size_t r);
void matmul_q16_avx2(float *y, size_t ldy, const struct qrows *x, const uint32_t *pick, size_t m,
                     const struct wmat *w, size_t r0, size_t r1, void *tmp);
void quantize_avx2(struct qrows *q, size_t r, const float *x, size_t c0, size_t c1);

/* Lanes of 8 e8m0 bytes: 0 is 2^-127. */
static inline __m256 e8m0_avx2(__m128i bytes)
{
    __m256i e = _mm256_slli_epi32(_mm256_cvtepu8_epi32(bytes), 23);
    return _mm256_castsi256_ps(_mm256_max_epu32(e, _mm256_set1_epi32(0x00400000)));
}

#define INLINE_AVX2 static inline __attribute__((always_inline))

/* Bytes ahead of the loads that are asked for: a few units of 64, so that the hardware's own prefetcher,
 * which stops at every 4 KB, is carried over. Always inline, or gcc takes a function that only prefetches for
 * one without effect and drops the call. */
enum { AHEAD = 2048 };

INLINE_AVX2 void prefetch_avx2(const uint8_t *p)
{
    _mm_prefetch((const char *)p + AHEAD, _MM_HINT_T0);
}

/* The first n of 16 floats in two registers. */
static inline void store_rows_avx2(float *y, __m256 a, __m256 b, size_t n)
{
    if (n >= 16) {
        _mm256_storeu_ps(y, a);
        _mm256_storeu_ps(y + 8, b);
        return;
    }
    float t[16];
    _mm256_storeu_ps(t, a);
    _mm256_storeu_ps(t + 8, b);
    for (size_t i = 0; i < n; i++)
        y[i] = t[i];
}

/* Before a loop of constant length whose indices are register names. */
#define PRAGMA_AVX2(x) _Pragma(#x)
#ifdef __clang__
#define UNROLL_AVX2(n) PRAGMA_AVX2(unroll n)
#else
#define UNROLL_AVX2(n) PRAGMA_AVX2(GCC unroll n)
#endif

/* Computed here, in a register: compilers otherwise make products first and sums behind, or keep a sum in
 * memory while they hold what comes next. */
#define HERE_AVX2(v) __asm__ volatile("" : "+x"(v))

/* Exact products of E4M3 are 2^-60 of what they stand for until the block's scale undoes it: weights come as floats
 * that are 2^-120 of their values, and either they or x take 2^60 of that. So subnormal codes are no trouble, and
 * what is too small for a float is so for any number of rows. */
#define E4M3_UP   0x1p60f
#define E4M3_BACK 0x1p60f

/* Four columns of 8 rows, from a word each. Shifting 16-bit lanes moves sign, exponent and mantissa of two columns at
 * once to where floats have them; subnormal codes become subnormal floats. */
INLINE_AVX2 void e4m3_columns(__m256 w[4], __m256i v)
{
    const __m256i bits = _mm256_set1_epi32((int)0x87f00000u);
    __m256i odd = _mm256_srai_epi16(v, 4), even = _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 4);
    w[0] = _mm256_castsi256_ps(_mm256_and_si256(_mm256_slli_epi32(even, 16), bits));
    w[1] = _mm256_castsi256_ps(_mm256_and_si256(_mm256_slli_epi32(odd, 16), bits));
    w[2] = _mm256_castsi256_ps(_mm256_and_si256(even, bits));
    w[3] = _mm256_castsi256_ps(_mm256_and_si256(odd, bits));
}

/* Two columns of 8 rows, from a word of two bf16 each. */
INLINE_AVX2 void bf16_columns(__m256 w[2], __m256i v)
{
    w[0] = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
    w[1] = _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32((int)0xffff0000u)));
}

/* Byte b of each word as a float. */
INLINE_AVX2 __m256 int8_float(__m256i v, int b)
{
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * b), 24));
}

#endif
