/* Rows of plain matrices and of the caches as floats. Rows of panels lie scattered, a word a line:
 * few are ever asked for, and the scalar kernel takes them. */
#include "avx512.h"
#include "simd/codes.h"
#include "simd/scalar/scalar.h"

#include <string.h>

INLINE __mmask32 first_lanes32(size_t n)
{
    return n >= 32 ? 0xffffffffu : ((__mmask32)1 << n) - 1;
}

/* ------------------------------------------------------------------ runs of n values of one scale
 * */

static void run_bf16(float *out, const uint8_t *p, size_t n)
{
    for (size_t c = 0; c < n; c += 16) {
        __mmask16 k = first_lanes(n - c);
        __m512i h = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(k, p + 2 * c));
        _mm512_mask_storeu_ps(out + c, k, _mm512_castsi512_ps(_mm512_slli_epi32(h, 16)));
    }
}

static void run_f16(float *out, const uint8_t *p, size_t n)
{
    for (size_t c = 0; c < n; c += 16) {
        __mmask16 k = first_lanes(n - c);
        _mm512_mask_storeu_ps(out + c, k, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(k, p + 2 * c)));
    }
}

/* 256 and the scale are two factors: one product of them could be infinite. */
static void run_e4m3(float *out, const uint8_t *p, size_t n, float scale)
{
    const __m512 s = _mm512_set1_ps(scale), times = _mm512_set1_ps(256);
    for (size_t c = 0; c < n; c += 32) {
        __mmask32 k = first_lanes32(n - c);
        __m512i b = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(k, p + c));
        __m512i h = e4m3_halves(_mm512_slli_epi16(b, 8));
        __m512 low = _mm512_mul_ps(_mm512_mul_ps(low_halves(h), times), s);
        __m512 high = _mm512_mul_ps(_mm512_mul_ps(high_halves(h), times), s);
        __m512i nan = _mm512_set1_epi32(0x7fc00000); /* f16 has no code for 256th of e4m3's NaN */
        __mmask32 is = _mm512_cmpeq_epi16_mask(_mm512_and_si512(b, _mm512_set1_epi16(0x7f)),
                                               _mm512_set1_epi16(0x7f));
        low = _mm512_mask_mov_ps(low, (__mmask16)is, _mm512_castsi512_ps(nan));
        high = _mm512_mask_mov_ps(high, (__mmask16)(is >> 16), _mm512_castsi512_ps(nan));
        _mm512_mask_storeu_ps(out + c, (__mmask16)k, low);
        if (k >> 16)
            _mm512_mask_storeu_ps(out + c + 16, (__mmask16)(k >> 16), high);
    }
}

/* 4-bit codes, low nibble first; n is even. A permutation looks at the low 4 bits of a lane. */
INLINE void run_nibbles(float *out, const uint8_t *p, size_t n, __m512 table, float scale)
{
    const __m512i shift = _mm512_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4);
    const __m512i pairs = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const __m512 values = _mm512_mul_ps(table, _mm512_set1_ps(scale));
    for (size_t c = 0; c < n; c += 32) {
        __mmask16 k = first_lanes((n - c) / 2);
        __m512i b = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(k, p + c / 2));
        __m512i last = _mm512_add_epi32(pairs, _mm512_set1_epi32(8));
        __m512i v[2] = {_mm512_srlv_epi32(_mm512_permutexvar_epi32(pairs, b), shift),
                        _mm512_srlv_epi32(_mm512_permutexvar_epi32(last, b), shift)};
        _mm512_mask_storeu_ps(out + c, first_lanes(n - c), _mm512_permutexvar_ps(v[0], values));
        if (n - c > 16)
            _mm512_mask_storeu_ps(out + c + 16, first_lanes(n - c - 16),
                                  _mm512_permutexvar_ps(v[1], values));
    }
}

/* A group of 32 int8 in the order 0,2,4,6,1,3,5,7 within every 8. */
INLINE void run_q8(float *out, const uint8_t *p, float scale)
{
    const __m128i order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    for (size_t c = 0; c < GROUP; c += 16) {
        __m128i b = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(p + c)), order);
        __m512 v = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(b));
        _mm512_storeu_ps(out + c, _mm512_mul_ps(v, _mm512_set1_ps(scale)));
    }
}

/* ------------------------------------------------------------------ rows of matrices */

static void blocks(float *out, const struct wmat *w, size_t r)
{
    const uint8_t *p = w->codes + r * w->code_ld;
    size_t block = w->format == W_E4M3 || w->format == W_E2M1 ? w->block_cols : GROUP;
    __m512 table = _mm512_loadu_ps(e2m1_value);
    if (w->format == W_Q4)
        table =
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)w->table)));
    for (size_t c = 0; c < w->cols; c += block) {
        size_t n = block < w->cols - c ? block : w->cols - c;
        float s = weight_scale(w, r, c);
        if (w->format == W_E4M3)
            run_e4m3(out + c, p + c, n, s);
        else if (w->format == W_Q8)
            run_q8(out + c, p + c, s);
        else
            run_nibbles(out + c, p + c / 2, n, table, s);
    }
}

void decode_avx512(float *out, const struct wmat *w, size_t r)
{
    const uint8_t *p = w->codes + r * w->code_ld;
    bool whole = w->format == W_E2M1 ? w->block_cols % 2 == 0
                                     : !wformat_has_halves(w->format) || w->cols % GROUP == 0;
    if (w->panels || !whole || w->format > W_Q4) {
        decode_scalar(out, w, r);
        return;
    }
    switch (w->format) {
    case W_F32: memcpy(out, p, w->cols * sizeof *out); break;
    case W_F16: run_f16(out, p, w->cols); break;
    case W_BF16: run_bf16(out, p, w->cols); break;
    default: blocks(out, w, r); break;
    }
}

/* ------------------------------------------------------------------ rows of the caches */

static void row_e4m3(float *out, const uint8_t *code, const uint8_t *scale, size_t n, size_t block)
{
    for (size_t c = 0; c < n; c += block)
        run_e4m3(out + c, code + c, n - c < block ? n - c : block, e8m0_value(scale[c / block]));
}

static void row_e2m1(float *out, const uint8_t *code, size_t n, size_t block, const uint8_t *scale,
                     bool e4m3_scale)
{
    const __m512 table = _mm512_loadu_ps(e2m1_value);
    for (size_t c = 0; c < n; c += block, scale++)
        run_nibbles(out + c, code + c / 2, block, table,
                    e4m3_scale ? e4m3_value[*scale] : e8m0_value(*scale));
}

static void decode_row(float *out, const uint8_t *row, struct rshape s)
{
    size_t w = s.width, flat = w - s.rope;
    switch (s.format) {
    case R_F32: memcpy(out, row, w * sizeof *out); break;
    case R_E4M3_64B:
        row_e4m3(out, row, row + flat, flat, 64);
        run_bf16(out + flat, row + flat + flat / 64, s.rope);
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

/* score[i] = sum_h w_h max(0, q_h . key_i): a key is decoded once. */
static void index_scores(float *score, const float *q, const float *w, size_t heads,
                         const uint8_t *key, size_t n, struct rshape s)
{
    float k[INDEX_MAX_WIDTH];
    size_t bytes = row_bytes(s), d = s.width;
    for (size_t i = 0; i < n; i++) {
        decode_row(k, key + i * bytes, s);
        float sum = 0;
        for (size_t h = 0; h < heads; h++) {
            __m512 a = _mm512_setzero_ps(), b = a;
            const float *p = q + h * d;
            size_t c = 0;
            for (; c + 32 <= d; c += 32) {
                a = _mm512_fmadd_ps(_mm512_loadu_ps(p + c), _mm512_loadu_ps(k + c), a);
                b = _mm512_fmadd_ps(_mm512_loadu_ps(p + c + 16), _mm512_loadu_ps(k + c + 16), b);
            }
            for (; c < d; c += 16) {
                __mmask16 m = first_lanes(d - c);
                a = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(m, p + c),
                                    _mm512_maskz_loadu_ps(m, k + c), a);
            }
            float v = fold_lanes(_mm512_add_ps(a, b));
            sum += w[h] * (v > 0 ? v : 0);
        }
        score[i] = sum;
    }
}

void decode_init_avx512(struct kernels *k)
{
    k->decode = decode_avx512;
    k->rows = rows;
    k->index = index_scores;
}
