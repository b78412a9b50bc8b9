/* How well scales fit groups of weights: eight groups a register, their sums never leave it. */
#include "avx2.h"

/* Levels are whole numbers: climbing to one step by step is exact. */
INLINE_AVX2 __m256 climb(__m256 y, const struct grid *l)
{
    __m256 q = _mm256_set1_ps(l->value[0]);
    for (int k = 0; k + 1 < l->n; k++) {
        __m256 step = _mm256_set1_ps(l->value[k + 1] - l->value[k]);
        __m256 above = _mm256_cmp_ps(y, _mm256_set1_ps(l->middle[k]), _CMP_GT_OQ);
        q = _mm256_add_ps(q, _mm256_and_ps(above, step));
    }
    return q;
}

/* Sixteen levels: halves four times. Bits of the number are set where y is above the middle looked at. */
INLINE_AVX2 __m256 halve(__m256 y, const struct grid *l)
{
    __m256 above = _mm256_cmp_ps(y, _mm256_set1_ps(l->middle[7]), _CMP_GT_OQ);
    __m256i at = _mm256_srli_epi32(_mm256_castps_si256(above), 31);
    for (size_t half = 4; half > 0; half /= 2) { /* middles half - 1, 3 half - 1, 5 half - 1, ... */
        size_t n = 8 / half;
        float v[8];
        for (size_t i = 0; i < 8; i++)
            v[i] = l->middle[(2 * (i % n) + 1) * half - 1];
        __m256 middle = _mm256_permutevar8x32_ps(_mm256_loadu_ps(v), at);
        above = _mm256_cmp_ps(y, middle, _CMP_GT_OQ);
        at = _mm256_sub_epi32(_mm256_add_epi32(at, at), _mm256_castps_si256(above));
    }
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(l->value), at);
    __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(l->value + 8), at);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(at, 28)));
}

/* Both operands of max and min in this order: what is NaN stays so. */
INLINE_AVX2 __m256 round_between(__m256 y, const struct grid *l)
{
    y = _mm256_max_ps(_mm256_set1_ps(l->low), y);
    y = _mm256_min_ps(_mm256_set1_ps(l->high), y);
    return _mm256_round_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

INLINE_AVX2 void fit8(float *xq, float *qq, const float *x, const float *w, const float *inverse,
                      const struct grid *l, int n)
{
    const __m256 by = _mm256_loadu_ps(inverse);
    __m256 a = _mm256_setzero_ps(), b = a;
    for (int i = 0; i < GROUP; i++) {
        __m256 v = _mm256_loadu_ps(x + i * PANEL), u = _mm256_loadu_ps(w + i * PANEL);
        __m256 y = _mm256_mul_ps(v, by), q = n == 0    ? round_between(y, l)
                                             : n == 16 ? halve(y, l)
                                                       : climb(y, l);
        a = _mm256_add_ps(a, _mm256_mul_ps(_mm256_mul_ps(u, v), q));
        b = _mm256_add_ps(b, _mm256_mul_ps(_mm256_mul_ps(u, q), q));
    }
    _mm256_storeu_ps(xq, a);
    _mm256_storeu_ps(qq, b);
}

static void fit_avx2(float *xq, float *qq, const float *x, const float *w, const float *inverse,
                     const struct grid *l)
{
    for (int j = 0; j < PANEL; j += 8)
        if (l->n == 0)
            fit8(xq + j, qq + j, x + j, w + j, inverse + j, l, 0);
        else if (l->n == 16)
            fit8(xq + j, qq + j, x + j, w + j, inverse + j, l, 16);
        else
            fit8(xq + j, qq + j, x + j, w + j, inverse + j, l, l->n);
}

void init_avx2_fit(struct kernels *k)
{
    k->fit = fit_avx2;
}
