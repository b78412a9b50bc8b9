/* Panels of 2- to 8-bit codes times int8 rows: vpdpbusd adds four products of unsigned weights and signed
 * activations to 32 bits. All weights are taken less their lowest, Q8 less -128. */
#include "avxvnni.h"

#define LIMIT 128
#define SUMS  WHOLE
#include "simd/avx2/operands.inc"

/* s + products of 4 bytes: weights w, activations x. */
INLINE_AVX2 __m256i dot_bytes(__m256i s, __m256i w, __m256i x)
{
    return _mm256_dpbusd_avx_epi32(s, w, x);
}

/* First the weights of 8 rows, all in registers. */
INLINE_AVX2 void few_sums(__m256i s[FEW][2], const struct job *j, const uint8_t *p,
                          const struct rows8 *r, int m, size_t g, enum wformat f, bool narrow)
{
    (void)narrow; /* all are */
    for (int h = 0; h < 2; h++) {
        __m256i c[4], v[OCTETS][2];
        open_group(c, p + 32 * h, f);
        UNROLL_AVX2(4)
        for (int o = 0; o < OCTETS; o++)
            expand_octet(v[o], j, c, p + 32 * h, o, f);
        for (int i = 0; i < m; i++) {
            const int8_t *x = r->code[i] + g * GROUP;
            __m256i even = _mm256_set1_epi32(j->low * r->sum[i][g]), odd = _mm256_setzero_si256();
            UNROLL_AVX2(4)
            for (int o = 0; o < OCTETS; o++) {
                even = dot_bytes(even, v[o][0], word_of(x + 8 * o));
                odd = dot_bytes(odd, v[o][1], word_of(x + 8 * o + 4));
            }
            s[i][h] = _mm256_add_epi32(even, odd);
        }
    }
}

INLINE_AVX2 void tile_sums(__m256i s[][2], const int8_t *t, const int8_t *x, const int32_t *low,
                           int m, bool narrow)
{
    (void)narrow;
    for (int i = 0; i < m; i++)
        s[i][0] = s[i][1] = _mm256_set1_epi32(low[i * SLICE_GROUPS]);
    for (int u = 0; u < UNITS; u++, t += 64, x += 4) {
        __m256i w0 = _mm256_load_si256((const __m256i *)t);
        __m256i w1 = _mm256_load_si256((const __m256i *)(t + 32));
        for (int i = 0; i < m; i++) {
            __m256i v = word_of(x + i * SLICE_BYTES);
            s[i][0] = dot_bytes(s[i][0], w0, v);
            s[i][1] = dot_bytes(s[i][1], w1, v);
        }
    }
}

#include "simd/avx2/dots.inc"

void init_avxvnni(struct kernels *k)
{
    k->matmul_fast = matmul_fast;
    init_avxvnni_peak(k);
}
