/* Rows of floats and rows of the caches. */
#include "avx2.h"
#include "simd/codes.h"
#include "vec.h"

#include <string.h>

/* Two vectors against each other: 4 x 8 running sums. */
INLINE float dot_inline(const float *a, const float *b, size_t n)
{
    __m256 s[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                   _mm256_setzero_ps()};
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (size_t j = 0; j < 4; j++)
            s[j] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8 * j), _mm256_loadu_ps(b + i + 8 * j),
                                   s[j]);
    for (; i + 8 <= n; i += 8)
        s[0] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s[0]);
    if (i < n) {
        __m256i m = first_lanes(n - i);
        s[1] = _mm256_fmadd_ps(_mm256_maskload_ps(a + i, m), _mm256_maskload_ps(b + i, m), s[1]);
    }
    return sum8(_mm256_add_ps(_mm256_add_ps(s[0], s[2]), _mm256_add_ps(s[1], s[3])));
}

static float dot(const float *a, const float *b, size_t n)
{
    return dot_inline(a, b, n);
}

static float sum_squares(const float *x, size_t n)
{
    return dot_inline(x, x, n);
}

/* ------------------------------------------------------------------ e4m3 */

/* Sixteen e4m3 bytes as f16 are the value times 2^-8: sign and seven bits only move apart.
 * Multiplying by 2^8 first keeps the product with any scale exact. */
INLINE void e4m3_16(float *out, const uint8_t *code, __m256 scale)
{
    __m256i x = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)code));
    x = _mm256_and_si256(_mm256_slli_epi16(x, 7), _mm256_set1_epi16((int16_t)0xbf80));
    const __m256 up = _mm256_set1_ps(256.0f);
    __m256 a = _mm256_cvtph_ps(_mm256_castsi256_si128(x));
    __m256 b = _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1));
    _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_mul_ps(a, up), scale));
    _mm256_storeu_ps(out + 8, _mm256_mul_ps(_mm256_mul_ps(b, up), scale));
}

/* The two NaN codes would be +-480 in f16. */
static void e4m3_nan(float *out, const uint8_t *code, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((code[i] & 0x7f) == 0x7f)
            out[i] = NAN;
}

static void row_e4m3(float *out, const uint8_t *code, const uint8_t *scale, size_t n, size_t block)
{
    for (size_t c = 0; c < n; c += block, scale++) {
        __m256 s = _mm256_set1_ps(e8m0_value(*scale));
        for (size_t i = c; i < c + block; i += 32) {
            __m256i x = _mm256_loadu_si256((const __m256i *)(code + i));
            __m256i full = _mm256_set1_epi8(0x7f);
            e4m3_16(out + i, code + i, s);
            e4m3_16(out + i + 16, code + i + 16, s);
            x = _mm256_cmpeq_epi8(_mm256_and_si256(x, full), full);
            if (!_mm256_testz_si256(x, x))
                e4m3_nan(out + i, code + i, 32);
        }
    }
}

static void row_bf16(float *out, const uint8_t *row, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m128i h = _mm_loadu_si128((const __m128i *)(row + 2 * i));
        __m256i w = _mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16);
        _mm256_storeu_ps(out + i, _mm256_castsi256_ps(w));
    }
    for (; i < n; i++) {
        uint16_t h;
        memcpy(&h, row + 2 * i, sizeof h);
        out[i] = bf16_value(h);
    }
}

/* ------------------------------------------------------------------ e2m1 */

/* Both bytes of each value as bf16 come from a table; signs of zeros stay. Sixteen codes in 8
 * bytes. */
INLINE void e2m1_16(float *out, const uint8_t *code, __m256 scale)
{
    const __m128i low =
        _mm_setr_epi8(0, 0, -128, -64, 0, 64, -128, -64, 0, 0, -128, -64, 0, 64, -128, -64);
    const __m128i high = _mm_setr_epi8(0, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40, -128, -65, -65,
                                       -65, -64, -64, -64, -64);
    __m128i x = _mm_loadl_epi64((const __m128i *)code), nibble = _mm_set1_epi8(15);
    x = _mm_unpacklo_epi8(_mm_and_si128(x, nibble), _mm_and_si128(_mm_srli_epi16(x, 4), nibble));
    __m128i lo = _mm_shuffle_epi8(low, x), hi = _mm_shuffle_epi8(high, x);
    __m128i a = _mm_unpacklo_epi8(lo, hi), b = _mm_unpackhi_epi8(lo, hi);
    __m256i wa = _mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16);
    __m256i wb = _mm256_slli_epi32(_mm256_cvtepu16_epi32(b), 16);
    _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_castsi256_ps(wa), scale));
    _mm256_storeu_ps(out + 8, _mm256_mul_ps(_mm256_castsi256_ps(wb), scale));
}

static void row_e2m1(float *out, const uint8_t *code, size_t n, size_t block, const uint8_t *scale,
                     bool e4m3_scale)
{
    for (size_t c = 0; c < n; c += block, scale++) {
        __m256 s = _mm256_set1_ps(e4m3_scale ? e4m3_value[*scale] : e8m0_value(*scale));
        for (size_t i = c; i < c + block; i += 16)
            e2m1_16(out + i, code + i / 2, s);
    }
}

/* ------------------------------------------------------------------ rows of any format */

static void decode_row(float *out, const uint8_t *row, struct rshape s)
{
    size_t w = s.width, flat = w - s.rope;
    switch (s.format) {
    case R_F32: memcpy(out, row, w * sizeof *out); break;
    case R_E4M3_64B:
        row_e4m3(out, row, row + flat, flat, 64);
        row_bf16(out + flat, row + flat + flat / 64, s.rope);
        break;
    case R_E4M3_32: row_e4m3(out, row, row + w, w, 32); break;
    case R_E2M1_16: row_e2m1(out, row, w, 16, row + w / 2, true); break;
    case R_E2M1_32: row_e2m1(out, row, w, 32, row + w / 2, false); break;
    case N_RFORMATS: break;
    }
}

static void rows(float *out, const uint8_t *row, size_t n, struct rshape s)
{
    size_t bytes = row_bytes(s);
    for (size_t i = 0; i < n; i++)
        decode_row(out + i * s.width, row + i * bytes, s);
}

static void index_scores(float *score, const float *q, const float *w, size_t heads,
                         const uint8_t *key, size_t n, struct rshape s)
{
    _Alignas(32) float k[INDEX_MAX_WIDTH];
    size_t bytes = row_bytes(s);
    for (size_t i = 0; i < n; i++) {
        decode_row(k, key + i * bytes, s);
        float sum = 0;
        for (size_t h = 0; h < heads; h++) {
            float a = dot_inline(q + h * s.width, k, s.width);
            sum += w[h] * (a > 0 ? a : 0);
        }
        score[i] = sum;
    }
}

void init_avx2_rows(struct kernels *k)
{
    k->sum_squares = sum_squares;
    k->dot = dot;
    k->rows = rows;
    k->index = index_scores;
}
