/* Integer kernels with VNNI: four products of unsigned weights and signed activations an
 * instruction. Weights become unsigned by an offset, so that nothing has to be done a row. */
#include "avx512vnni.h"
#include "simd/avx512/avx512.h"

#define OFFSET(fmt) ((fmt) == W_E2M1 ? 12 : 128)
#define FOR_WORD    FOR_LANE

typedef __m512i operand;

INLINE operand weigh(__m512i v, int offset)
{
    (void)offset;
    return v;
}

INLINE __m512i dot_bytes(__m512i s, operand w, __m512i x, int offset)
{
    (void)offset;
    return _mm512_dpbusd_epi32(s, w, x);
}

INLINE __m512i dot_pairs(__m512i s, __m512i a, __m512i b)
{
    return _mm512_dpwssd_epi32(s, a, b);
}

#include "simd/avx512/dots.inc"
#include "simd/avx512/index.inc"

void matmul_fast_avx512vnni(float *y, size_t ldy, const struct qrows *x, const uint32_t *pick,
                            size_t m, const struct wmat *w, size_t r0, size_t r1, void *tmp)
{
    matmul_fast(y, ldy, x, pick, m, w, r0, r1, tmp);
}

void init_avx512vnni(struct kernels *k)
{
    k->matmul_fast = matmul_fast;
    k->index_codes = index_codes;
    k->fast[W_E2M1] = k->fast[W_Q8] = k->fast[W_Q4] = k->fast[W_Q3] = k->fast[W_Q2] = Q_8;
    k->fast[W_E4M3] = Q_16;
    peak_init_avx512vnni(k);
}
