/* Multiply-adds of bytes from registers: what this level can do at most (simd/avx2/peak.c). */
#include "avx512vnni.h"
#include "simd/avx512/avx512.h"

#ifndef DSV4_EMULATE

#define DOT(acc)  "vpdpbusd %[x], %[x], %%zmm" #acc "\n\t"
#define ZERO(acc) "vpxord %%zmm" #acc ", %%zmm" #acc ", %%zmm" #acc "\n\t"
#define X         "v"
#define X_ZERO    _mm512_setzero_si512()
#define X_BYTES   64
#include "simd/vnni_peak.inc"

void peak_init_avx512vnni(struct kernels *k)
{
    k->peak_int8 = peak_int8;
}

#else

void peak_init_avx512vnni(struct kernels *k)
{
    (void)k;
}

#endif
