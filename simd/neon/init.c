/* The baseline of arm: every kernel with Advanced SIMD of ARMv8.0. */
#include "neon.h"

void init_neon(struct kernels *k)
{
    init_neon_matmul(k);
    init_neon_fast(k);
    init_neon_quantize(k);
    init_neon_decode(k);
    init_neon_attend(k);
    init_neon_index(k);
    init_neon_mix(k);
    init_neon_fit(k);
}
