/* expand.h - panels of every format as floats, 8 columns of 16 rows at a time: f[c] lane r is
 * column c of row r, without the scale. What a table, a shift or a conversion has to do with a
 * format stands here. */
#ifndef DSV4_AVX512_EXPAND_H
#define DSV4_AVX512_EXPAND_H

#include "simd/avx512/units.h"
#include "simd/codes.h"

/* The values that even and odd units look up; nothing for formats without. */
struct float_tables {
    __m512 of[2];
};

INLINE struct float_tables float_tables_of(const struct wmat *w, enum wformat fmt)
{
    struct float_tables t;
    FOR_LANE (odd, 2) {
        int8_t value[16] = {0};
        for (size_t i = 0; i < 16 && wformat_table(fmt) > 0; i++)
            value[i] = w->table[table_entry(fmt, i, odd)];
        __m128i v = _mm_loadu_si128((const __m128i *)value);
        t.of[odd] = fmt == W_E2M1 ? _mm512_loadu_ps(e2m1_value)
                                  : _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v));
    }
    return t;
}

/* Four columns of e4m3, divided by 256. A 16-bit permutation brings a column's 16 rows together. */
INLINE void expand_e4m3(__m512 f[4], __m512i q)
{
    const __m512i by_column =
        _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 30, 28, 26, 24,
                         22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    q = _mm512_permutexvar_epi16(by_column, q); /* low half: columns 0, 1; high half: 2, 3 */
    __m512i even = e4m3_halves(_mm512_slli_epi16(q, 8));
    __m512i odd = e4m3_halves(_mm512_and_si512(q, _mm512_set1_epi16((short)0xff00)));
    f[0] = low_halves(even);
    f[1] = low_halves(odd);
    f[2] = high_halves(even);
    f[3] = high_halves(odd);
}

INLINE __m512i word(const uint8_t *p, int u)
{
    return _mm512_loadu_si512(p + (size_t)u * 64);
}

/* Octet o of a group; p: the group, g: it opened. E4M3 comes out divided by 256, the others as they are. */
INLINE void expand8(__m512 f[8], enum wformat fmt, const uint8_t *p, const __m512i g[4], int o,
                    const struct float_tables *t)
{
    p += (size_t)o * (wformat_group_bytes(fmt) / OCTETS); /* of formats that are not opened */
    switch (fmt) {
    case W_F32:
        FOR_LANE (c, 8)
            f[c] = _mm512_loadu_ps(p + (size_t)c * 64);
        break;
    case W_F16:
        FOR_LANE (u, 4) {
            __m512i q = word(p, u);
            f[2 * u] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(q));
            f[2 * u + 1] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(q, 16)));
        }
        break;
    case W_BF16:
        FOR_LANE (u, 4) {
            __m512i q = word(p, u), high = _mm512_set1_epi32((int)0xffff0000);
            f[2 * u] = _mm512_castsi512_ps(_mm512_slli_epi32(q, 16));
            f[2 * u + 1] = _mm512_castsi512_ps(_mm512_and_si512(q, high));
        }
        break;
    case W_E4M3:
        expand_e4m3(f, word(p, 0));
        expand_e4m3(f + 4, word(p, 1));
        break;
    case W_Q8:
        FOR_LANE (c, 8) /* byte c / 2 of word c % 2 */
            f[c] = _mm512_cvtepi32_ps(_mm512_srai_epi32(
                _mm512_sll_epi32(word(p, c % 2), _mm_cvtsi32_si128(24 - c / 2 * 8)), 24));
        break;
    case W_Q3: /* the permutation looks at the low 4 bits only */
        FOR_LANE (k, 8) {
            __m128i bits = _mm_cvtsi32_si128(k / 2 * 8 + o % 2 * 4);
            f[k] = _mm512_permutexvar_ps(_mm512_srl_epi32(g[o / 2 * 2 + k % 2], bits), t->of[0]);
        }
        break;
    case W_Q2:
        FOR_LANE (k, 8) {
            __m128i bits = _mm_cvtsi32_si128(k / 2 * 8 + o % 2 * 4);
            f[k] = _mm512_permutexvar_ps(_mm512_srl_epi32(g[o / 2], bits), t->of[k % 2]);
        }
        break;
    default:
        FOR_LANE (k, 8)
            f[k] =
                _mm512_permutexvar_ps(_mm512_srl_epi32(g[o], _mm_cvtsi32_si128(4 * k)), t->of[0]);
        break;
    }
}

/* Columns that are summed before the scale is applied: a divisor of what shares one. */
INLINE size_t step_of(const struct wmat *w, enum wformat fmt)
{
    if (fmt == W_E4M3)
        return w->block_cols % 128 == 0 ? 128 : GROUP;
    return fmt < W_E4M3 ? 128 : GROUP;
}

/* The scales of 16 rows at column c; s: of the panel. */
INLINE __m512 step_scale(const struct wmat *w, enum wformat fmt, const uint8_t *s, size_t c)
{
    switch (fmt) {
    case W_E4M3: return _mm512_set1_ps(e8m0_value(s[c / w->block_cols]));
    case W_E2M1:
        return e8m0_floats(
            _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)(s + c / GROUP * PANEL))));
    default:
        if (!wformat_has_halves(fmt))
            return _mm512_set1_ps(1);
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(s + c / GROUP * PANEL * 2)));
    }
}

#endif
