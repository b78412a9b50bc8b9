/* i8mm.h - integer matrix products of ARMv8.6 (Neoverse V1, N2, Cortex-A510 and later). */
#ifndef DSV4_I8MM_H
#define DSV4_I8MM_H

#include "simd/dotprod/dotprod.h"

#ifdef __aarch64__

void init_i8mm(struct kernels *k);
void init_i8mm_fast(struct kernels *k);

#endif
#endif
