/* bytes.h - groups of panels as bytes: what the integer kernels multiply. */
#ifndef DSV4_AVX512_BYTES_H
#define DSV4_AVX512_BYTES_H

#include "simd/avx512/units.h"
#include "simd/codes.h"

/* Values of even and odd units, plus the offset. Nothing for Q8. */
struct byte_tables {
    __m512i of[2];
};

INLINE struct byte_tables byte_tables_of(const struct wmat *w, enum wformat fmt, int offset)
{
    const int8_t *t = fmt == W_E2M1 ? e2m1_doubled : w->table;
    struct byte_tables tables;
    FOR_LANE (odd, 2) {
        int8_t value[16] = {0};
        for (size_t i = 0; i < 16 && fmt != W_Q8; i++)
            value[i] = t[table_entry(fmt, i, odd)];
        tables.of[odd] =
            _mm512_add_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)value)),
                            _mm512_set1_epi8((char)offset));
    }
    return tables;
}

/* A group of a panel as 8 words a row, plus the offset (128: any, turned unsigned); in the column
 * order of Q_8. vpshufb looks at the low four bits and at bit 7 of a byte; shifts by 16-bit lanes put zeros
 * there in Q3. */
INLINE void expand_group(__m512i v[8], const uint8_t *p, enum wformat fmt,
                         const struct byte_tables *t, int offset)
{
    __m512i c[4], i[2];
    if (fmt == W_Q8) {
        FOR_LANE (u, 8)
            v[u] = _mm512_xor_si512(_mm512_load_si512(p + u * 64), _mm512_set1_epi8((char)offset));
        return;
    }
    open_group(c, p, fmt);
    FOR_LANE (o, OCTETS) {
        if (fmt == W_Q3) {
            i[0] = o % 2 ? _mm512_srli_epi16(c[o / 2 * 2], 4) : c[o / 2 * 2];
            i[1] = o % 2 ? _mm512_srli_epi16(c[o / 2 * 2 + 1], 4) : c[o / 2 * 2 + 1];
        } else if (fmt == W_Q2) {
            i[0] = i[1] = o % 2 ? high_nibbles(c[o / 2]) : low_nibbles(c[o / 2]);
        } else {
            i[0] = low_nibbles(c[o]);
            i[1] = high_nibbles(c[o]);
        }
        v[2 * o] = _mm512_shuffle_epi8(t->of[0], i[0]);
        v[2 * o + 1] = _mm512_shuffle_epi8(t->of[fmt == W_Q2], i[1]);
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
