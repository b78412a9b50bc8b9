/* E4M3 panels times int16 rows, for large batches: 64 times a code's value is an integer of at most 28672
 * (rounded below 2^-3 of the block's scale), activations have 11 bits, so that a group's sum fits into 32.
 * vpmaddwd does 16 products. */
#include "avx2.h"
#include "block.h"
#include "simd/codes.h"
#include "units.h"

/* 64 times the value of e4m3 codes without their signs, which are 16 h + l: table[l] for h = 0 and 1, where it is
 * rounded, and from h = 2 on table[l] * 4^(h - 2). */
#define ZERO_H 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2
#define ONE_H  2, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 6, 6, 6, 7, 8
#define MORE_H 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22, 24, 26, 28, 30

/* Two columns of 8 rows, each code twice (dup), as 16-bit integers. high: h; value: the table's. */
INLINE_AVX2 __m256i integers(__m256i code, __m256i high, __m256i value, __m256i dup)
{
    /* 4^(h - 2), low byte by h, high byte by h + 8 */
    const __m256i power =
        table_avx2((const int8_t[16]){1, 1, 1, 4, 16, 64, 0, 0, 0, 0, 0, 0, 0, 0, 1, 4});
    const __m256i upper = _mm256_set1_epi16(0x0800), low = _mm256_set1_epi16(0x00ff);
    __m256i h = _mm256_or_si256(_mm256_shuffle_epi8(high, dup), upper);
    __m256i v = _mm256_and_si256(_mm256_shuffle_epi8(value, dup), low);
    v = _mm256_mullo_epi16(v, _mm256_shuffle_epi8(power, h));
    return _mm256_sign_epi16(v, _mm256_shuffle_epi8(code, dup));
}

/* 8 rows x 4 columns of codes -> pairs of columns (0,1) and (2,3) of each row. */
INLINE_AVX2 void fill_half(int16_t *out, const uint8_t *p)
{
    const __m256i first = _mm256_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13, 0, 0,
                                           1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13);
    const __m256i second = _mm256_add_epi8(first, _mm256_set1_epi8(2));
    __m256i v = _mm256_load_si256((const __m256i *)p), l = low_nibbles(v);
    __m256i h = _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(7));
    __m256i zero = _mm256_shuffle_epi8(table_avx2((const int8_t[16]){ZERO_H}), l);
    __m256i one = _mm256_shuffle_epi8(table_avx2((const int8_t[16]){ONE_H}), l);
    __m256i value = _mm256_shuffle_epi8(table_avx2((const int8_t[16]){MORE_H}), l);
    value = _mm256_blendv_epi8(value, one, _mm256_cmpeq_epi8(h, _mm256_set1_epi8(1)));
    value = _mm256_blendv_epi8(value, zero, _mm256_cmpeq_epi8(h, _mm256_setzero_si256()));
    _mm256_store_si256((__m256i *)out, integers(v, h, value, first));
    _mm256_store_si256((__m256i *)(out + 32), integers(v, h, value, second));
}

static void fill_tile(struct tile *t, const void *job, size_t panel, size_t g0, size_t groups)
{
    const struct wmat *w = job;
    const uint8_t *p = w->codes + panel * w->code_ld + g0 * GROUP * PANEL;
    const uint8_t *scale = w->scales + panel * w->scale_ld;
    for (size_t u = 0; u < groups * GROUP / 4; u++, p += 64)
        for (size_t h = 0; h < 2; h++)
            fill_half(t->code.words + u * 64 + 16 * h, p + 32 * h);
    for (size_t g = 0; g < groups; g++)
        _mm256_store_ps(t->scale[g],
                        _mm256_set1_ps(e8m0_value(scale[(g0 + g) * GROUP / w->block_cols])));
}

INLINE_AVX2 void tile_rows(const struct tile *t, const struct part *r, int m)
{
    __m256 y[TILE_ROWS][2];
    UNROLL_AVX2(3)
    for (int i = 0; i < m; i++)
        load_sums(y[i], r, (size_t)i);
    const int16_t *p = t->code.words;
    const int8_t *x = r->code;
    for (size_t g = 0; g < r->groups; g++) {
        __m256i s[TILE_ROWS][2];
        for (int i = 0; i < m; i++)
            s[i][0] = s[i][1] = _mm256_setzero_si256();
        UNROLL_AVX2(16)
        for (int k = 0; k < GROUP / 2; k++, p += 32, x += 4) {
            __m256i w0 = _mm256_load_si256((const __m256i *)p);
            __m256i w1 = _mm256_load_si256((const __m256i *)(p + 16));
            for (int i = 0; i < m; i++) {
                __m256i v = word_of(x + i * SLICE_BYTES);
                s[i][0] = _mm256_add_epi32(s[i][0], _mm256_madd_epi16(w0, v));
                s[i][1] = _mm256_add_epi32(s[i][1], _mm256_madd_epi16(w1, v));
                HERE_AVX2(s[i][0]);
                HERE_AVX2(s[i][1]);
            }
        }
        for (int i = 0; i < m; i++) {
            __m256 u = _mm256_mul_ps(_mm256_broadcast_ss(r->scale + i * SLICE_GROUPS + g),
                                     _mm256_load_ps(t->scale[g]));
            y[i][0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s[i][0]), u, y[i][0]);
            y[i][1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s[i][1]), u, y[i][1]);
        }
    }
    UNROLL_AVX2(3)
    for (int i = 0; i < m; i++)
        store_sums(y[i], r, (size_t)i);
}

#define TILE_OF(m)                                                   \
    static void tile_##m(const struct tile *t, const struct part *r) \
    {                                                                \
        tile_rows(t, r, m);                                          \
    }
TILE_OF(1)
TILE_OF(2)
TILE_OF(3)

void matmul_q16_avx2(float *y, size_t ldy, const struct qrows *x, const uint32_t *pick, size_t m,
                     const struct wmat *w, size_t r0, size_t r1, void *tmp)
{
    static void (*const by_rows[TILE_ROWS])(const struct tile *,
                                            const struct part *) = {tile_1, tile_2, tile_3};
    const struct blocks b = {.job = w, .w = w, .fill = fill_tile, .run = by_rows, .scale = 0x1p-6f};
    matmul_blocks_avx2(&b, y, ldy, x, pick, m, r0, r1, tmp);
}
