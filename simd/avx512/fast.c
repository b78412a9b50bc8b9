/* Integer kernels without VNNI: pairs of products in 16 bits, then pairs of pairs.
 *
 * 16 bits hold u1 x1 + u2 x2 when weights are doubled e2m1 codes plus 12 (2 * 24 * 127). Other
 * weights go as |w| against x with the sign of w (2 * 128 * 127 = 32512). */
#include "avx512.h"

#define OFFSET(fmt)    ((fmt) == W_E2M1 ? 12 : 0)
#define FOR_WORD(u, n) _Pragma("GCC unroll 1") for (int u = 0; u < (n); u++)

typedef struct {
    __m512i size;
    __mmask64 minus;
} operand;

INLINE operand weigh(__m512i v, int offset)
{
    if (offset)
        return (operand){v, 0};
    return (operand){_mm512_abs_epi8(v), _mm512_movepi8_mask(v)};
}

INLINE __m512i dot_bytes(__m512i s, operand w, __m512i x, int offset)
{
    if (!offset)
        x = _mm512_mask_sub_epi8(x, w.minus, _mm512_setzero_si512(), x);
    __m512i pairs = _mm512_maddubs_epi16(w.size, x);
    return _mm512_add_epi32(s, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}

INLINE __m512i dot_pairs(__m512i s, __m512i a, __m512i b)
{
    return _mm512_add_epi32(s, _mm512_madd_epi16(a, b));
}

#include "dots.inc"
#include "index.inc"

void fast_init_avx512(struct kernels *k)
{
    k->matmul_fast = matmul_fast;
    k->index_codes = index_codes;
    k->fast[W_E2M1] = k->fast[W_Q8] = k->fast[W_Q4] = k->fast[W_Q3] = k->fast[W_Q2] = Q_8;
    k->fast[W_E4M3] = Q_16;
}
