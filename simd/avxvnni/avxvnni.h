/* avxvnni.h - the level of AVX2 with VNNI in its 256-bit form (Alder Lake, Zen 5 and later). */
#ifndef DSV4_AVXVNNI_H
#define DSV4_AVXVNNI_H

#include "simd/avx2/avx2.h"

#ifdef DSV4_EMULATE
#include <emulate/avxvnni.h>
#endif

void init_avxvnni(struct kernels *k);
void init_avxvnni_peak(struct kernels *k);

#endif
