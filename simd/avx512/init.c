/* The level of AVX-512 F, BW, DQ, VL. */
#include "avx512.h"

void init_avx512(struct kernels *k)
{
    matmul_init_avx512(k);
    fast_init_avx512(k);
    quantize_init_avx512(k);
    decode_init_avx512(k);
    attend_init_avx512(k);
    mix_init_avx512(k);
    peak_init_avx512(k);
}
