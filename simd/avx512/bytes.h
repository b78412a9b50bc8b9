/* bytes.h - groups of panels as bytes: what the integer kernels multiply. */
#ifndef DSV4_AVX512_BYTES_H
#define DSV4_AVX512_BYTES_H

#include "simd/avx512/avx512.h"

INLINE __m512i nibble_table(const struct wmat *w, enum wformat fmt, int offset)
{
    static const int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    const int8_t *t = fmt == W_Q4 ? w->table : doubled;
    return _mm512_add_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)t)),
                           _mm512_set1_epi8((char)offset));
}

INLINE size_t group_bytes(enum wformat fmt)
{
    return fmt == W_Q8 ? 512 : 256;
}

/* A group of a panel as 8 words a row, plus the offset (128: any, turned unsigned); in the column
 * order of Q_8. */
INLINE void expand_group(__m512i v[8], const uint8_t *p, enum wformat fmt, __m512i table,
                         int offset)
{
    const __m512i low = _mm512_set1_epi8(15);
    if (fmt == W_Q8)
        FOR_LANE (u, 8)
            v[u] = _mm512_xor_si512(_mm512_load_si512(p + u * 64), _mm512_set1_epi8((char)offset));
    else
        FOR_LANE (u, 4) {
            __m512i q = _mm512_load_si512(p + u * 64);
            v[2 * u] = _mm512_shuffle_epi8(table, _mm512_and_si512(q, low));
            v[2 * u + 1] =
                _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(q, 4), low));
        }
}

/* Scales of 16 rows, with the factors of powers of two of the formula (exact, so the product with
 * the scale of the activations is still rounded once). */
INLINE __m512 group_scale(const uint8_t *s, size_t g, enum wformat fmt)
{
    if (fmt != W_E2M1)
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(s + g * PANEL * 2)));
    __m128i e = _mm_load_si128((const __m128i *)(s + g * PANEL));
    return _mm512_mul_ps(e8m0_floats(_mm512_cvtepu8_epi32(e)), _mm512_set1_ps(0.5f));
}

#endif
