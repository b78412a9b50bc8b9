/* Multiply-adds of bytes from registers: what this level can do at most (simd/avx2/peak.c). */
#include "avxvnni.h"

#ifndef DSV4_EMULATE

enum { CHAINS = 12 };

#define DOT(acc)  "%{vex%} vpdpbusd %[x], %[x], %%ymm" #acc "\n\t"
#define ZERO(acc) "vpxor %%ymm" #acc ", %%ymm" #acc ", %%ymm" #acc "\n\t"
#define ALL(X)    X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

static uint64_t peak_int8(uint64_t rounds)
{
    uint64_t n = rounds;
    __asm__ volatile(ALL(ZERO) "1:\n\t" ALL(DOT) "dec %[n]\n\tjnz 1b"
                     : [n] "+r"(n)
                     : [x] "x"(_mm256_setzero_si256())
                     : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
                       "xmm9", "xmm10", "xmm11");
    return rounds * CHAINS * 32;
}

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
