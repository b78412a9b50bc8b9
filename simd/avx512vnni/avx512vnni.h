/* avx512vnni.h - the level of AVX-512 with VNNI: what the level above falls back to. */
#ifndef DSV4_AVX512VNNI_H
#define DSV4_AVX512VNNI_H

#include "simd/simd.h"

void init_avx512vnni(struct kernels *k);
void peak_init_avx512vnni(struct kernels *k);
void matmul_fast_avx512vnni(float *y, size_t ldy, const struct qrows *x, const uint32_t *pick,
                            size_t m, const struct wmat *w, size_t r0, size_t r1, void *tmp);

#endif
