/* units.h - groups of panels of 2-, 3- and 4-bit codes taken apart as far as both kinds of kernels, on bytes
 * (bytes.h) and on floats (expand.h), have it in common. */
#ifndef DSV4_AVX512_UNITS_H
#define DSV4_AVX512_UNITS_H

#include "simd/avx512/avx512.h"

enum { OCTETS = GROUP / 8 }; /* of a group: units 2o and 2o + 1 of simd.h are octet o */

INLINE __m512i low_nibbles(__m512i v)
{
    return _mm512_and_si512(v, _mm512_set1_epi8(15));
}

INLINE __m512i high_nibbles(__m512i v)
{
    return low_nibbles(_mm512_srli_epi16(v, 4));
}

/* One of the words 0, 1 of Q3 and the nibble with its third bits: two units' codes a byte, a nibble each.
 * c[0]: units 4j and 4j + 2; c[1]: 4j + 1 and 4j + 3. */
INLINE void join_third_bits(__m512i c[2], __m512i word, __m512i third)
{
    const __m512i two = _mm512_set1_epi8(0x33);
    const __m512i even = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 4, 0, 4, 64, 68, 64, 68, 0, 4, 0, 4, 64, 68, 64, 68));
    const __m512i odd = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 0, 4, 4, 0, 0, 4, 4, 64, 64, 68, 68, 64, 64, 68, 68));
    c[0] = _mm512_or_si512(_mm512_and_si512(word, two), _mm512_shuffle_epi8(even, third));
    word = _mm512_srli_epi16(word, 2);
    c[1] = _mm512_or_si512(_mm512_and_si512(word, two), _mm512_shuffle_epi8(odd, third));
}

/* p: a group of 32 columns. The codes of octet o are then
 *   E2M1, Q4   the nibbles of c[o]: low ones unit 2o, high ones 2o + 1
 *   Q3         nibble o % 2 of c[o / 2 * 2] (unit 2o) and of c[o / 2 * 2 + 1]; their bits 3 are zero
 *   Q2         nibble o % 2 of c[o / 2], unit 2o in its low two bits */
INLINE void open_group(__m512i c[4], const uint8_t *p, enum wformat fmt)
{
    if (fmt == W_Q3) {
        __m512i third = _mm512_load_si512(p + 128);
        join_third_bits(c, _mm512_load_si512(p), low_nibbles(third));
        join_third_bits(c + 2, _mm512_load_si512(p + 64), high_nibbles(third));
    } else if (fmt == W_Q2 || fmt == W_Q4 || fmt == W_E2M1) {
        const int words = fmt == W_Q2 ? 2 : 4;
        for (int j = 0; j < words; j++)
            c[j] = _mm512_load_si512(p + j * 64);
    }
}

/* Which value of the format's table an entry of a 16-entry look-up has, for even and odd units: Q2 looks
 * both up by one nibble. */
INLINE size_t table_entry(enum wformat fmt, size_t i, int odd)
{
    return fmt == W_Q2 ? (odd ? i >> 2 : i & 3) : fmt == W_Q3 ? i & 7 : i;
}

#endif
