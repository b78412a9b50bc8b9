/* avxvnni.h - VPDPBUSD on 256 bits, from Intel's definition, for machines without it. */
#ifndef DSV4_EMULATE_AVXVNNI_H
#define DSV4_EMULATE_AVXVNNI_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

static inline __m256i emu_dpbusd256(__m256i s, __m256i a, __m256i b)
{
    uint8_t u[32];
    int8_t v[32];
    int32_t sum[8];
    memcpy(u, &a, sizeof u);
    memcpy(v, &b, sizeof v);
    memcpy(sum, &s, sizeof sum);
    for (int i = 0; i < 32; i++)
        sum[i / 4] = (int32_t)((uint32_t)sum[i / 4] + (uint32_t)(u[i] * v[i]));
    memcpy(&s, sum, sizeof s);
    return s;
}

#undef _mm256_dpbusd_avx_epi32
#define _mm256_dpbusd_avx_epi32 emu_dpbusd256

#endif
