/* units.h - panels of 2-, 3- and 4-bit codes taken apart: indices into tables of 16, for four rows at a time.
 * A register has a unit of simd.h (4 elements) of each row. */
#ifndef DSV4_NEON_UNITS_H
#define DSV4_NEON_UNITS_H

#include "simd/neon/neon.h"

#ifdef __aarch64__

enum { OCTETS = GROUP / 8, UNITS = 2 * OCTETS };

INLINE uint8x16_t low_nibble(uint8x16_t b)
{
    return vandq_u8(b, vdupq_n_u8(15));
}

INLINE uint8x16_t high_nibble(uint8x16_t b)
{
    return vshrq_n_u8(b, 4);
}

/* One of the words 0, 1 of Q3 and the nibble with its third bits: two units' indices a byte, a nibble each.
 * c[0]: units 4j and 4j + 2, the third bit on top; c[1]: 4j + 1 and 4j + 3, the third bit below. */
INLINE void join_third_bits(uint8x16_t c[2], uint8x16_t word, uint8x16_t third)
{
    static const uint8_t place[16] = {/* bits 0, 1, 2, 3 to 2, 0, 6, 4 */
                                      0, 4, 1, 5, 64, 68, 65, 69, 16, 20, 17, 21, 80, 84, 81, 85};
    const uint8x16_t spread = vqtbl1q_u8(vld1q_u8(place), third);
    c[0] = vbslq_u8(vdupq_n_u8(0x33), word, spread);
    c[1] = vbslq_u8(vdupq_n_u8(0xcc), word, spread);
}

/* What unit_indices takes of a group; p: its first word, at the first of the four rows. */
INLINE void open_group(uint8x16_t c[4], const uint8_t *p, enum wformat f)
{
    if (f == W_Q3) {
        const uint8x16_t third = vld1q_u8(p + 128);
        join_third_bits(c, vld1q_u8(p), low_nibble(third));
        join_third_bits(c + 2, vld1q_u8(p + 64), high_nibble(third));
    } else if (f == W_Q2) {
        c[0] = vld1q_u8(p);
        c[1] = vld1q_u8(p + 64);
    } else if (f == W_Q4 || f == W_E2M1) {
        FOR_LANE (j, 4)
            c[j] = vld1q_u8(p + 64 * j);
    }
}

/* Units 2o and 2o + 1. */
INLINE void unit_indices(uint8x16_t i[2], const uint8x16_t c[4], int o, enum wformat f)
{
    if (f == W_Q3) {
        i[0] = o % 2 ? high_nibble(c[o / 2 * 2]) : low_nibble(c[o / 2 * 2]);
        i[1] = o % 2 ? high_nibble(c[o / 2 * 2 + 1]) : low_nibble(c[o / 2 * 2 + 1]);
    } else if (f == W_Q2) {
        i[0] = i[1] = o % 2 ? high_nibble(c[o / 2]) : low_nibble(c[o / 2]);
    } else {
        i[0] = low_nibble(c[o]);
        i[1] = high_nibble(c[o]);
    }
}

/* Which code the index i of an even or odd unit stands for. */
INLINE size_t code_of_index(enum wformat f, size_t i, int odd)
{
    return f == W_Q2   ? (odd ? i >> 2 : i & 3)
           : f == W_Q3 ? (odd ? i >> 2 | (i & 1) << 2 : i & 7)
                       : i;
}

#endif
#endif
