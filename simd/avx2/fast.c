/* Panels of 2- to 8-bit codes times int8 rows.
 *
 * Narrow tables, of values up to 16 (E2M1 doubled: 12): less the lowest they are unsigned bytes, so that vpmaddubsw's
 * sums of four units stay below 2^15 (8 products of at most 32 and 127). Sums of all eight may wrap in 16 bits: once
 * the lowest times the sum of the codes is added again they are at most 16 products of 16 and 127, and right.
 * Others and Q8: |w| times (x with w's sign), widened at once. */
#define LIMIT 16
#define SUMS  PAIRS
#include "operands.inc"

/* ------------------------------------------------------------------ few rows */

/* s[i][h] = the group's sums of half h of the panel with row i: first the weights, all in registers. */
INLINE_AVX2 void narrow_sums(__m256i s[FEW][2], const struct job *j, const uint8_t *p,
                             const struct rows8 *r, int m, size_t g, enum wformat f)
{
    const __m256i one = _mm256_set1_epi16(1);
    for (int h = 0; h < 2; h++) {
        __m256i c[4], v[OCTETS][2];
        open_group(c, p + 32 * h, f);
        UNROLL_AVX2(4)
        for (int o = 0; o < OCTETS; o++)
            expand_octet(v[o], j, c, p + 32 * h, o, f);
        for (int i = 0; i < m; i++) {
            const int8_t *x = r->code[i] + g * GROUP;
            __m256i even = _mm256_maddubs_epi16(v[0][0], word_of(x));
            __m256i odd = _mm256_maddubs_epi16(v[0][1], word_of(x + 4));
            UNROLL_AVX2(4)
            for (int o = 1; o < OCTETS; o++) {
                even = _mm256_add_epi16(even, _mm256_maddubs_epi16(v[o][0], word_of(x + 8 * o)));
                odd = _mm256_add_epi16(odd, _mm256_maddubs_epi16(v[o][1], word_of(x + 8 * o + 4)));
            }
            __m256i sum =
                _mm256_add_epi32(_mm256_madd_epi16(even, one), _mm256_madd_epi16(odd, one));
            s[i][h] = _mm256_add_epi32(sum, _mm256_set1_epi32(j->low * r->sum[i][g]));
        }
    }
}

INLINE_AVX2 __m256i signed_product(__m256i w, __m256i x)
{
    const __m256i one = _mm256_set1_epi16(1);
    __m256i p = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_madd_epi16(p, one);
}

/* The same octet by octet: magnitudes take as many registers as the weights. */
INLINE_AVX2 void wide_sums(__m256i s[FEW][2], const struct job *j, const uint8_t *p,
                           const struct rows8 *r, int m, size_t g, enum wformat f)
{
    __m256i c[2][4];
    for (int h = 0; h < 2; h++) {
        if (f != W_Q8)
            open_group(c[h], p + 32 * h, f);
        for (int i = 0; i < m; i++)
            s[i][h] = _mm256_setzero_si256();
    }
    UNROLL_AVX2(4)
    for (int o = 0; o < OCTETS; o++)
        for (int h = 0; h < 2; h++) {
            __m256i v[2];
            expand_octet(v, j, c[h], p + 32 * h, o, f);
            for (int i = 0; i < m; i++) {
                const int8_t *x = r->code[i] + g * GROUP + (size_t)o * 8;
                s[i][h] = _mm256_add_epi32(s[i][h], signed_product(v[0], word_of(x)));
                s[i][h] = _mm256_add_epi32(s[i][h], signed_product(v[1], word_of(x + 4)));
            }
        }
}

INLINE_AVX2 void few_sums(__m256i s[FEW][2], const struct job *j, const uint8_t *p,
                          const struct rows8 *r, int m, size_t g, enum wformat f, bool narrow)
{
    if (narrow)
        narrow_sums(s, j, p, r, m, g, f);
    else
        wide_sums(s, j, p, r, m, g, f);
}

/* ------------------------------------------------------------------ tiles */

INLINE_AVX2 void tile_group_narrow(__m256i s[][2], const int8_t *t, const int8_t *x,
                                   const int32_t *pairs, int m)
{
    const __m256i one = _mm256_set1_epi16(1);
    __m256i a[TILE_ROWS][2];
    for (int i = 0; i < m; i++)
        a[i][0] = a[i][1] = _mm256_set1_epi32(pairs[i * SLICE_GROUPS]);
    UNROLL_AVX2(8)
    for (int u = 0; u < UNITS; u++, t += 64, x += 4) {
        __m256i w0 = _mm256_load_si256((const __m256i *)t);
        __m256i w1 = _mm256_load_si256((const __m256i *)(t + 32));
        for (int i = 0; i < m; i++) {
            __m256i v = word_of(x + i * SLICE_BYTES);
            a[i][0] = _mm256_add_epi16(a[i][0], _mm256_maddubs_epi16(w0, v));
            a[i][1] = _mm256_add_epi16(a[i][1], _mm256_maddubs_epi16(w1, v));
            HERE_AVX2(a[i][0]);
            HERE_AVX2(a[i][1]);
        }
    }
    for (int i = 0; i < m; i++)
        for (int h = 0; h < 2; h++)
            s[i][h] = _mm256_madd_epi16(a[i][h], one);
}

INLINE_AVX2 void tile_group_wide(__m256i s[][2], const int8_t *t, const int8_t *x, int m)
{
    for (int i = 0; i < m; i++)
        s[i][0] = s[i][1] = _mm256_setzero_si256();
    for (int u = 0; u < UNITS; u++, t += 64, x += 4) {
        __m256i w0 = _mm256_load_si256((const __m256i *)t);
        __m256i w1 = _mm256_load_si256((const __m256i *)(t + 32));
        for (int i = 0; i < m; i++) {
            __m256i v = word_of(x + i * SLICE_BYTES);
            s[i][0] = _mm256_add_epi32(s[i][0], signed_product(w0, v));
            s[i][1] = _mm256_add_epi32(s[i][1], signed_product(w1, v));
        }
    }
}

INLINE_AVX2 void tile_sums(__m256i s[][2], const int8_t *t, const int8_t *x, const int32_t *low,
                           int m, bool narrow)
{
    if (narrow)
        tile_group_narrow(s, t, x, low, m);
    else
        tile_group_wide(s, t, x, m);
}

#include "dots.inc"

void init_avx2_fast(struct kernels *k)
{
    k->matmul_fast = matmul_fast;
}
