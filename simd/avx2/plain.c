/* Plain matrices: a row is expanded to floats (or read in place) and multiplied with four rows at once.
 * These are the small ones (mHC, embedding) and what does not fit into panels. */
#include "avx2.h"
#include "simd/codes.h"

#include <string.h>

void decode_scalar(float *out, const struct wmat *w, size_t r); /* formats and tails not met here */

static void decode_bf16(float *out, const uint8_t *p, size_t n)
{
    size_t c = 0;
    for (; c + 8 <= n; c += 8) {
        __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + 2 * c)));
        _mm256_storeu_ps(out + c, _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)));
    }
    for (; c < n; c++) {
        uint16_t h;
        memcpy(&h, p + 2 * c, sizeof h);
        out[c] = bf16_value(h);
    }
}

static void decode_f16(float *out, const uint8_t *p, size_t n)
{
    size_t c = 0;
    for (; c + 8 <= n; c += 8)
        _mm256_storeu_ps(out + c, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 2 * c))));
    for (; c < n; c++) {
        uint16_t h;
        memcpy(&h, p + 2 * c, sizeof h);
        out[c] = f16_value(h);
    }
}

/* Codes to the bits of f16 values that are 2^-8 of theirs; the two NaN codes to NaN. */
static void decode_e4m3(float *out, const uint8_t *p, size_t n, float s)
{
    const __m256 scale = _mm256_set1_ps(s), back = _mm256_set1_ps(256);
    const __m128i magnitude = _mm_set1_epi16(0x3f80);
    size_t c = 0;
    for (; c + 8 <= n; c += 8) {
        __m128i v = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)(p + c)));
        __m128i h = _mm_srai_epi16(_mm_slli_epi16(v, 8), 1);
        h = _mm_and_si128(h, _mm_set1_epi16((short)0xbf80));
        __m128i nan = _mm_cmpeq_epi16(_mm_and_si128(h, magnitude), magnitude);
        h = _mm_or_si128(h, _mm_and_si128(nan, _mm_set1_epi16(0x7e00)));
        __m256 f = _mm256_mul_ps(_mm256_cvtph_ps(h), back);
        _mm256_storeu_ps(out + c, _mm256_mul_ps(f, scale));
    }
    for (; c < n; c++)
        out[c] = e4m3_value[p[c]] * s;
}

/* Through bf16, whose bytes are looked up. */
static void decode_e2m1(float *out, const uint8_t *p, size_t n, float s)
{
    const __m128i high =
        _mm_setr_epi8(0, 63, 63, 63, 64, 64, 64, 64, -128, -65, -65, -65, -64, -64, -64, -64);
    const __m128i low =
        _mm_setr_epi8(0, 0, -128, -64, 0, 64, -128, -64, 0, 0, -128, -64, 0, 64, -128, -64);
    const __m128i nibble = _mm_set1_epi8(15);
    const __m256 scale = _mm256_set1_ps(s);
    size_t c = 0;
    for (; c + 16 <= n; c += 16) {
        __m128i v = _mm_loadl_epi64((const __m128i *)(p + c / 2));
        __m128i odd = _mm_and_si128(_mm_srli_epi16(v, 4), nibble);
        __m128i code = _mm_unpacklo_epi8(_mm_and_si128(v, nibble), odd);
        __m128i h = _mm_shuffle_epi8(high, code), l = _mm_shuffle_epi8(low, code);
        __m256i a = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_unpacklo_epi8(l, h)), 16);
        __m256i b = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_unpackhi_epi8(l, h)), 16);
        _mm256_storeu_ps(out + c, _mm256_mul_ps(_mm256_castsi256_ps(a), scale));
        _mm256_storeu_ps(out + c + 8, _mm256_mul_ps(_mm256_castsi256_ps(b), scale));
    }
    for (; c < n; c++)
        out[c] = e2m1_value[p[c / 2] >> c % 2 * 4 & 15] * s;
}

void decode_avx2(float *out, const struct wmat *w, size_t r)
{
    const uint8_t *p = w->codes + r * w->code_ld;
    bool scaled = w->format == W_E4M3 || w->format == W_E2M1;
    if (w->panels || w->format == W_F32 || w->format > W_E2M1 ||
        (w->format == W_E2M1 && w->block_cols % 16 != 0)) {
        decode_scalar(out, w, r);
    } else if (!scaled) {
        (w->format == W_BF16 ? decode_bf16 : decode_f16)(out, p, w->cols);
    } else {
        const uint8_t *scale = w->scales + r / w->block_rows * w->scale_ld;
        for (size_t c = 0; c < w->cols; c += w->block_cols, scale++) {
            size_t n = w->block_cols < w->cols - c ? w->block_cols : w->cols - c;
            if (w->format == W_E4M3)
                decode_e4m3(out + c, p + c, n, e8m0_value(*scale));
            else
                decode_e2m1(out + c, p + c / 2, n, e8m0_value(*scale));
        }
    }
}

/* ------------------------------------------------------------------ products */

INLINE_AVX2 float fold8(__m256 v)
{
    __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}

/* m rows against one weight row: 16 running sums each; the tail goes into a padded register. */
INLINE_AVX2 void dots(float *const y[], const float *const x[], int m, const float *b, size_t n)
{
    __m256 s[4][2];
    for (int k = 0; k < m; k++)
        s[k][0] = s[k][1] = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256 b0 = _mm256_loadu_ps(b + i), b1 = _mm256_loadu_ps(b + i + 8);
        for (int k = 0; k < m; k++) {
            s[k][0] = _mm256_fmadd_ps(_mm256_loadu_ps(x[k] + i), b0, s[k][0]);
            s[k][1] = _mm256_fmadd_ps(_mm256_loadu_ps(x[k] + i + 8), b1, s[k][1]);
        }
    }
    for (int k = 0; k < m; k++) {
        float sum = fold8(_mm256_add_ps(s[k][0], s[k][1]));
        for (size_t t = i; t < n; t++)
            sum += x[k][t] * b[t];
        *y[k] = sum;
    }
}

void matmul_plain_avx2(float *y, size_t ldy, const float *x, size_t ldx, const uint32_t *pick,
                       size_t m, const struct wmat *w, size_t r0, size_t r1, float *tmp)
{
    for (size_t r = r0; r < r1; r++) {
        const uint8_t *codes = w->codes + r * w->code_ld;
        const float *b = tmp;
        if (w->format == W_F32 && (uintptr_t)codes % sizeof *b == 0)
            b = (const float *)(const void *)codes;
        else
            decode_avx2(tmp, w, r);
        for (size_t i = 0; i < m;) {
            size_t n = m - i < 4 ? 1 : 4;
            const float *row[4];
            float *out[4];
            for (size_t k = 0; k < n; k++, i++) {
                row[k] = x + (pick ? pick[i] : i) * ldx;
                out[k] = y + i * ldy + r;
            }
            if (n == 4)
                dots(out, row, 4, b, w->cols);
            else
                dots(out, row, 1, b, w->cols);
        }
    }
}
