/* E4M3 panels times int16 rows, for large batches: 64 times a code's value is an integer of at most 28672
 * (rounded below 2^-3 of the block's scale), activations have 11 bits, so that a group's sum fits into 32.
 * vpmaddwd does 16 products. Codes are expanded once into a tile in L1 that all rows use. */
#include "avx2.h"
#include "simd/codes.h"

#include <string.h>

enum {
    ROWS = 3,
    TILE_GROUPS = 16, /* 16 KB */
    PAIRS = GROUP / 2,
};

/* [groups][16 pairs of columns][16 rows][2] */
struct tile {
    _Alignas(64) int16_t code[TILE_GROUPS * GROUP * PANEL];
    float scale[TILE_GROUPS];
};

struct rows16 {
    const int16_t *code[ROWS];
    const float *scale[ROWS];
    float *y[ROWS];
};

/* 8 codes, each in the high byte of a 16-bit lane -> 64 times their values as 8 integers. */
INLINE_AVX2 __m256i integers(__m128i high)
{
    __m128i f16 = _mm_and_si128(_mm_srai_epi16(high, 1), _mm_set1_epi16((short)0xbf80));
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtph_ps(f16), _mm256_set1_ps(256.0f * 64.0f)));
}

/* 4 rows x 4 columns of codes -> pairs (0,1) (2,3) of each row as words of two int16. */
INLINE_AVX2 __m256i pairs(__m128i v)
{
    __m256i even = integers(_mm_slli_epi16(v, 8)), odd = integers(v);
    return _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
}

static void fill_word(int16_t *out, const uint8_t *p)
{
    for (int h = 0; h < 2; h++) { /* 8 rows */
        __m256 a = _mm256_castsi256_ps(pairs(_mm_load_si128((const __m128i *)(p + 32 * h))));
        __m256 b = _mm256_castsi256_ps(pairs(_mm_load_si128((const __m128i *)(p + 32 * h + 16))));
        /* a: rows 0..3 as (first, second) pairs, b: rows 4..7 */
        __m256i first = _mm256_castps_si256(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0)));
        __m256i second = _mm256_castps_si256(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1)));
        first = _mm256_permute4x64_epi64(first, _MM_SHUFFLE(3, 1, 2, 0));
        second = _mm256_permute4x64_epi64(second, _MM_SHUFFLE(3, 1, 2, 0));
        _mm256_store_si256((__m256i *)(out + 16 * h), first);
        _mm256_store_si256((__m256i *)(out + 32 + 16 * h), second);
    }
}

static void fill_tile(struct tile *t, const struct wmat *w, size_t panel, size_t g0, size_t groups)
{
    const uint8_t *p = w->codes + panel * w->code_ld + g0 * GROUP * PANEL;
    const uint8_t *scale = w->scales + panel * w->scale_ld;
    for (size_t u = 0; u < groups * GROUP / 4; u++, p += 64)
        fill_word(t->code + u * 64, p);
    for (size_t g = 0; g < groups; g++)
        t->scale[g] = e8m0_value(scale[(g0 + g) * GROUP / w->block_cols]);
}

INLINE_AVX2 void tile_rows(const struct tile *t, const struct rows16 *r, int m, size_t groups,
                           bool first, size_t valid)
{
    __m256 y[ROWS][2];
    for (int i = 0; i < m; i++) {
        y[i][0] = y[i][1] = _mm256_setzero_ps();
        if (!first)
            load_rows_avx2(&y[i][0], &y[i][1], r->y[i], valid);
    }
    const int16_t *p = t->code;
    for (size_t g = 0; g < groups; g++) {
        __m256i s[ROWS][2];
        for (int i = 0; i < m; i++)
            s[i][0] = s[i][1] = _mm256_setzero_si256();
        UNROLL_AVX2(8)
        for (int k = 0; k < PAIRS; k++, p += 32) {
            __m256i w0 = _mm256_load_si256((const __m256i *)p);
            __m256i w1 = _mm256_load_si256((const __m256i *)(p + 16));
            for (int i = 0; i < m; i++) {
                int32_t pair;
                memcpy(&pair, r->code[i] + g * GROUP + (size_t)k * 2, sizeof pair);
                __m256i x = _mm256_set1_epi32(pair);
                s[i][0] = _mm256_add_epi32(s[i][0], _mm256_madd_epi16(w0, x));
                s[i][1] = _mm256_add_epi32(s[i][1], _mm256_madd_epi16(w1, x));
            }
        }
        for (int i = 0; i < m; i++) {
            __m256 u = _mm256_set1_ps(t->scale[g] * (0x1p-6f * r->scale[i][g]));
            y[i][0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s[i][0]), u, y[i][0]);
            y[i][1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s[i][1]), u, y[i][1]);
        }
    }
    for (int i = 0; i < m; i++)
        store_rows_avx2(r->y[i], y[i][0], y[i][1], valid);
}

#define TILE_OF(m)                                                                                \
    static void tile_##m(const struct tile *t, const struct rows16 *r, size_t groups, bool first, \
                         size_t valid)                                                            \
    {                                                                                             \
        tile_rows(t, r, m, groups, first, valid);                                                 \
    }
TILE_OF(1)
TILE_OF(2)
TILE_OF(3)

void matmul_q16_avx2(float *y, size_t ldy, const struct qrows *x, const uint32_t *pick, size_t m,
                     const struct wmat *w, size_t r0, size_t r1)
{
    static void (*const by_rows[ROWS])(const struct tile *, const struct rows16 *, size_t, bool,
                                       size_t) = {tile_1, tile_2, tile_3};
    size_t groups = w->cols / GROUP;
    struct tile t;
    for (size_t r = r0; r < r1; r += PANEL)
        for (size_t g = 0; g < groups; g += TILE_GROUPS) {
            size_t n = groups - g < TILE_GROUPS ? groups - g : TILE_GROUPS;
            fill_tile(&t, w, r / PANEL, g, n);
            for (size_t i = 0; i < m; i += ROWS) {
                struct rows16 rows;
                size_t count = m - i < ROWS ? m - i : ROWS;
                for (size_t k = 0; k < count; k++) {
                    size_t row = pick ? pick[i + k] : i + k;
                    rows.code[k] = (const int16_t *)x->code + row * x->cols + g * GROUP;
                    rows.scale[k] = x->scale + row * groups + g;
                    rows.y[k] = y + (i + k) * ldy + r;
                }
                by_rows[count - 1](&t, &rows, n, g == 0, r1 - r < PANEL ? r1 - r : PANEL);
            }
        }
}
