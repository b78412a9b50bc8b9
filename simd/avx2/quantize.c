/* Rows of floats -> groups of 32 integers with a scale, bit for bit as simd.h says. */
#include "avx2.h"

#include <math.h>

/* Largest |x| of the group; *finite says whether all are. */
INLINE_AVX2 float group_max(const __m256 x[4], bool *finite)
{
    const __m256 abs = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    const __m256i inf = _mm256_set1_epi32(0x7f800000);
    __m256i top = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) /* the order of positive floats is that of their bits */
        top = _mm256_max_epu32(top, _mm256_castps_si256(_mm256_and_ps(x[i], abs)));
    *finite = _mm256_movemask_epi8(_mm256_cmpgt_epi32(inf, top)) == -1;
    __m128i t = _mm_max_epu32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    t = _mm_max_epu32(t, _mm_shuffle_epi32(t, _MM_SHUFFLE(1, 0, 3, 2)));
    t = _mm_max_epu32(t, _mm_shuffle_epi32(t, _MM_SHUFFLE(2, 3, 0, 1)));
    return _mm_cvtss_f32(_mm_castsi128_ps(t));
}

INLINE_AVX2 int32_t lane_sum(__m256i v)
{
    __m128i t = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, _MM_SHUFFLE(1, 0, 3, 2)));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, _MM_SHUFFLE(2, 3, 0, 1)));
    return _mm_cvtsi128_si32(t);
}

/* 4 x 8 integers -> 32 int8, in each octet 0,2,4,6,1,3,5,7. */
INLINE_AVX2 __m256i octets(const __m256i v[4])
{
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
    __m256i a = _mm256_packs_epi32(v[0], v[1]), b = _mm256_packs_epi32(v[2], v[3]);
    __m256i p = _mm256_packs_epi16(a, b);
    /* Word k of half h holds columns 4h .. 4h+3 of octet k: put the halves side by side. */
    __m256i t = _mm256_permutevar8x32_epi32(p, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    return _mm256_shuffle_epi8(t, order);
}

INLINE_AVX2 void store8(int8_t *out, const __m256i v[4])
{
    _mm256_storeu_si256((__m256i *)out, octets(v));
}

INLINE_AVX2 void store16(int16_t *out, const __m256i v[4])
{
    for (int i = 0; i < 2; i++) {
        __m256i p = _mm256_packs_epi32(v[2 * i], v[2 * i + 1]);
        _mm256_storeu_si256((__m256i *)(out + 16 * i),
                            _mm256_permute4x64_epi64(p, _MM_SHUFFLE(3, 1, 2, 0)));
    }
}

void quantize_avx2(struct qrows *q, size_t r, const float *x, size_t c0, size_t c1)
{
    const float limit = q->kind == Q_8 ? 127 : 2047;
    for (size_t c = c0; c < c1; c += GROUP) {
        size_t at = (r * q->cols + c) / GROUP;
        bool finite;
        __m256 v[4];
        __m256i n[4], sum = _mm256_setzero_si256();
        for (int i = 0; i < 4; i++)
            v[i] = _mm256_loadu_ps(x + c + 8 * i);
        float max = group_max(v, &finite);
        bool zero = !finite || max < 0x1p-100f;
        __m256 inverse = _mm256_set1_ps(zero ? 0 : limit / max);
        q->scale[at] = !finite ? NAN : zero ? 0 : max / limit;
        for (int i = 0; i < 4; i++) {
            n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
            if (zero)
                n[i] = _mm256_setzero_si256();
            sum = _mm256_add_epi32(sum, n[i]);
        }
        q->sum[at] = lane_sum(sum);
        if (q->kind == Q_8)
            store8((int8_t *)q->code + r * q->cols + c, n);
        else
            store16((int16_t *)q->code + r * q->cols + c, n);
    }
}
