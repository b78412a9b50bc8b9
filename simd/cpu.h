/* cpu.h - what this CPU (and its operating system) lets a program use. */
#ifndef DSV4_CPU_H
#define DSV4_CPU_H

#include <stdint.h>

enum {
    /* x86: each implies those before it, but AVXVNNI and AMX */
    CPU_AVX2 = 1 << 0,       /* AVX2, FMA, F16C */
    CPU_AVX512 = 1 << 1,     /* F, BW, DQ, VL */
    CPU_AVX512VNNI = 1 << 2, /* and VNNI */
    CPU_AVX512BF16 = 1 << 3,
    CPU_AVXVNNI = 1 << 4, /* VNNI on 256 bits without AVX-512 */
    CPU_AMX = 1 << 5,     /* tiles, int8 and bf16, and the kernel grants the state */
    /* arm */
    CPU_NEON = 1 << 8,
    CPU_DOTPROD = 1 << 9,
    CPU_I8MM = 1 << 10,
};

uint32_t cpu_features(void);

#endif
