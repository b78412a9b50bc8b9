/* units.h - panels of 2-, 3- and 4-bit codes taken apart: bytes that vpshufb looks up in a table.
 *
 * A register has 4 elements (a unit of simd.h) of each of 8 rows, half the width of a panel. An index is
 * the low four bits of a byte; bit 7 is zero, and the bits between do not matter to vpshufb. */
#ifndef DSV4_AVX2_UNITS_H
#define DSV4_AVX2_UNITS_H

#include "avx2.h"

#include <string.h>

enum { OCTETS = GROUP / 8 }; /* of a group: units 2o and 2o + 1 are octet o */

/* Tables for even and odd units. Q2 looks up two neighbours by the same nibble: c(even) + 4 c(odd). */
struct tables {
    int8_t of[2][16];
};

/* From the format's 16, 8 or 4 values, less `low`. */
static inline struct tables tables_of(const int8_t *value, enum wformat f, int low)
{
    struct tables t;
    for (int i = 0; i < 16; i++) {
        t.of[0][i] = (int8_t)(value[f == W_Q2 ? i & 3 : f == W_Q3 ? i & 7 : i] - low);
        t.of[1][i] = f == W_Q2 ? (int8_t)(value[i >> 2] - low) : t.of[0][i];
    }
    return t;
}

/* 4 bytes in every lane. */
INLINE_AVX2 __m256i word_of(const int8_t *x)
{
    int32_t v;
    memcpy(&v, x, sizeof v);
    return _mm256_set1_epi32(v);
}

INLINE_AVX2 __m256i table_avx2(const int8_t table[16])
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
}

INLINE_AVX2 __m256i low_nibbles(__m256i v)
{
    return _mm256_and_si256(v, _mm256_set1_epi8(15));
}

INLINE_AVX2 __m256i high_nibbles(__m256i v)
{
    return low_nibbles(_mm256_srli_epi16(v, 4));
}

/* One of the words 0, 1 of Q3 and the nibble with its third bits: two units' codes a byte, in bits 0 .. 2
 * and 4 .. 6. c[0]: units 4j and 4j + 2; c[1]: 4j + 1 and 4j + 3. */
INLINE_AVX2 void join_third_bits(__m256i c[2], __m256i word, __m256i third)
{
    const __m256i two = _mm256_set1_epi8(0x33);
    const __m256i even = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 0, 4, 64, 68, 64, 68, 0, 4, 0, 4, 64, 68, 64, 68));
    const __m256i odd = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 0, 4, 4, 0, 0, 4, 4, 64, 64, 68, 68, 64, 64, 68, 68));
    c[0] = _mm256_or_si256(_mm256_and_si256(word, two), _mm256_shuffle_epi8(even, third));
    word = _mm256_srli_epi16(word, 2);
    c[1] = _mm256_or_si256(_mm256_and_si256(word, two), _mm256_shuffle_epi8(odd, third));
}

/* What octet_indices takes of a group; p: its first word, at the first of the 8 rows. */
INLINE_AVX2 void open_group(__m256i c[4], const uint8_t *p, enum wformat f)
{
    const __m256i *word = (const __m256i *)p; /* of 16 rows: two registers each */
    if (f == W_Q3) {
        __m256i third = _mm256_load_si256(word + 4);
        join_third_bits(c, _mm256_load_si256(word), low_nibbles(third));
        join_third_bits(c + 2, _mm256_load_si256(word + 2), high_nibbles(third));
        return;
    }
    const int words = f == W_Q2 ? 2 : 4;
    for (int j = 0; j < words; j++)
        c[j] = _mm256_load_si256(word + 2 * j);
}

/* Units 2o and 2o + 1. The shift brings bits of other bytes only where they do not matter: bits 3 and 7 of
 * Q3's bytes are zero. */
INLINE_AVX2 void octet_indices(__m256i v[2], const __m256i c[4], int o, enum wformat f)
{
    if (f == W_Q3) {
        v[0] = o & 1 ? _mm256_srli_epi16(c[o / 2 * 2], 4) : c[o / 2 * 2];
        v[1] = o & 1 ? _mm256_srli_epi16(c[o / 2 * 2 + 1], 4) : c[o / 2 * 2 + 1];
    } else if (f == W_Q2) {
        v[0] = v[1] = o & 1 ? high_nibbles(c[o / 2]) : low_nibbles(c[o / 2]);
    } else {
        v[0] = low_nibbles(c[o]);
        v[1] = high_nibbles(c[o]);
    }
}

#endif
