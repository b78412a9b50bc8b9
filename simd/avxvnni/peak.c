/* Multiply-adds of bytes from registers: what this level can do at most (simd/avx2/peak.c). */
#include "avxvnni.h"

#ifndef DSV4_EMULATE

#define DOT(acc)  "%{vex%} vpdpbusd %[x], %[x], %%ymm" #acc "\n\t"
#define ZERO(acc) "vpxor %%ymm" #acc ", %%ymm" #acc ", %%ymm" #acc "\n\t"
#define X         "x"
#define X_ZERO    _mm256_setzero_si256()
#define X_BYTES   32
#include "simd/vnni_peak.inc"

void init_avxvnni_peak(struct kernels *k)
{
    k->peak_int8 = peak_int8;
}

#else

void init_avxvnni_peak(struct kernels *k)
{
    (void)k;
}

#endif
