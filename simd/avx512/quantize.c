/* Activations as integers, a group of 32 columns at a time. */
#include "avx512.h"

#include <math.h>

/* Two vectors of 16 columns -> 32 bytes, within every 8 columns in the order 0,2,4,6,1,3,5,7. */
INLINE void store_bytes(int8_t *to, __m512i a, __m512i b)
{
    const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    _mm_storeu_si128((__m128i *)to, _mm_shuffle_epi8(_mm512_cvtepi32_epi8(a), order));
    _mm_storeu_si128((__m128i *)(to + 16), _mm_shuffle_epi8(_mm512_cvtepi32_epi8(b), order));
}

INLINE void store_pairs(int16_t *to, __m512i a, __m512i b)
{
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(a));
    _mm256_storeu_si256((__m256i *)(to + 16), _mm512_cvtepi32_epi16(b));
}

INLINE void quantize_group(struct qrows *q, size_t r, const float *x, size_t c, enum qkind kind)
{
    const float limit = kind == Q_8 ? 127 : 2047;
    const __m512 infinity = _mm512_set1_ps(INFINITY);
    size_t at = (r * q->cols + c) / GROUP;
    __m512 a = _mm512_loadu_ps(x + c), b = _mm512_loadu_ps(x + c + 16);
    __m512 abs_a = _mm512_abs_ps(a), abs_b = _mm512_abs_ps(b);
    bool finite = (_mm512_cmp_ps_mask(abs_a, infinity, _CMP_LT_OQ) &
                   _mm512_cmp_ps_mask(abs_b, infinity, _CMP_LT_OQ)) == 0xffff;
    float max = _mm512_reduce_max_ps(_mm512_max_ps(abs_a, abs_b));
    bool zero = !finite || max < 0x1p-100f;
    q->scale[at] = !finite ? NAN : zero ? 0 : max / limit;
    __m512i va = _mm512_setzero_si512(), vb = va;
    if (!zero) {
        __m512 inverse = _mm512_set1_ps(limit / max);
        va = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse));
        vb = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
    }
    q->sum[at] = _mm512_reduce_add_epi32(_mm512_add_epi32(va, vb));
    if (kind == Q_8)
        store_bytes((int8_t *)q->code + r * q->cols + c, va, vb);
    else
        store_pairs((int16_t *)q->code + r * q->cols + c, va, vb);
}

static void quantize(struct qrows *q, size_t r, const float *x, size_t c0, size_t c1)
{
    if (q->kind == Q_8)
        for (size_t c = c0; c < c1; c += GROUP)
            quantize_group(q, r, x, c, Q_8);
    else
        for (size_t c = c0; c < c1; c += GROUP)
            quantize_group(q, r, x, c, Q_16);
}

void quantize_init_avx512(struct kernels *k)
{
    k->quantize = quantize;
}
