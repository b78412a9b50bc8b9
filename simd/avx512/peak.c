/* Multiply-adds from registers: what this level can do at most (simd/avx2/peak.c). Of integers AVX-512 alone
 * has the three instructions of AVX2, twice as wide. */
#include "avx512.h"

#ifndef DSV4_EMULATE

enum { CHAINS = 12 };

#define INT8(acc, t)                              \
    "vpmaddubsw %[x], %[x], %%zmm" #t "\n\t"      \
    "vpmaddwd %[x], %%zmm" #t ", %%zmm" #t "\n\t" \
    "vpaddd %%zmm" #t ", %%zmm" #acc ", %%zmm" #acc "\n\t"
#define F32(acc, t) \
    "vfmadd231ps %[x], %[x], %%zmm" #acc "\n\tvfmadd231ps %[x], %[x], %%zmm" #t "\n\t"
#define ZERO(acc, t)                                         \
    "vpxord %%zmm" #acc ", %%zmm" #acc ", %%zmm" #acc "\n\t" \
    "vpxord %%zmm" #t ", %%zmm" #t ", %%zmm" #t "\n\t"
#define ALL(X) \
    X(0, 12)   \
    X(1, 13)   \
    X(2, 14) X(3, 15) X(4, 16) X(5, 17) X(6, 18) X(7, 19) X(8, 20) X(9, 21) X(10, 22) X(11, 23)

#define LOOP(X)                                                                              \
    __asm__ volatile(ALL(ZERO) "1:\n\t" ALL(X) "dec %[n]\n\tjnz 1b"                          \
                     : [n] "+r"(n)                                                           \
                     : [x] "v"(_mm512_setzero_si512())                                       \
                     : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", \
                       "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", \
                       "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23")

static uint64_t peak_int8(uint64_t rounds)
{
    uint64_t n = rounds;
    LOOP(INT8);
    return rounds * CHAINS * 64;
}

static uint64_t peak_f32(uint64_t rounds)
{
    uint64_t n = rounds;
    LOOP(F32);
    return rounds * 2 * CHAINS * 16;
}

void peak_init_avx512(struct kernels *k)
{
    k->peak_int8 = peak_int8;
    k->peak_f32 = peak_f32;
}

#else

void peak_init_avx512(struct kernels *k)
{
    (void)k;
}

#endif
