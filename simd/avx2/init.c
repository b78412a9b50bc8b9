/* The AVX2 level. */
#include "avx2.h"

void init_avx2(struct kernels *k)
{
    k->matmul = matmul_avx2;
    k->quantize = quantize_avx2;
    k->decode = decode_avx2;
    init_avx2_fast(k);
    init_avx2_attend(k);
    init_avx2_rows(k);
    init_avx2_index(k);
    init_avx2_mix(k);
    init_avx2_peak(k);
    init_avx2_fit(k);
}
