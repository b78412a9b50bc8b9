/* Multiply-adds from registers: what this level can do at most. In assembly, because a compiler would see
 * that nothing needs the results. */
#include "avx2.h"

enum { CHAINS = 6 };

/* Three instructions for 32 products of bytes, as in the kernels. */
#define INT8(acc, t)                              \
    "vpmaddubsw %[x], %[x], %%ymm" #t "\n\t"      \
    "vpmaddwd %[x], %%ymm" #t ", %%ymm" #t "\n\t" \
    "vpaddd %%ymm" #t ", %%ymm" #acc ", %%ymm" #acc "\n\t"
#define F32(acc, t) \
    "vfmadd231ps %[x], %[x], %%ymm" #acc "\n\tvfmadd231ps %[x], %[x], %%ymm" #t "\n\t"
#define ZERO(acc, t)                                                                     \
    "vxorps %%ymm" #acc ", %%ymm" #acc ", %%ymm" #acc "\n\tvxorps %%ymm" #t ", %%ymm" #t \
    ", %%ymm" #t "\n\t"
#define ALL(X) X(0, 6) X(1, 7) X(2, 8) X(3, 9) X(4, 10) X(5, 11)

/* x = 0, so that sums stay 0: neither overflow nor denormals slow them down. */
#define LOOP(X)                                                                              \
    __asm__ volatile(ALL(ZERO) "1:\n\t" ALL(X) "dec %[n]\n\tjnz 1b"                          \
                     : [n] "+r"(n)                                                           \
                     : [x] "x"(_mm256_setzero_si256())                                       \
                     : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", \
                       "xmm8", "xmm9", "xmm10", "xmm11")

static uint64_t peak_int8(uint64_t rounds)
{
    uint64_t n = rounds;
    LOOP(INT8);
    return rounds * CHAINS * 32;
}

static uint64_t peak_f32(uint64_t rounds)
{
    uint64_t n = rounds;
    LOOP(F32);
    return rounds * 2 * CHAINS * 8;
}

void init_avx2_peak(struct kernels *k)
{
    k->peak_int8 = peak_int8;
    k->peak_f32 = peak_f32;
}
