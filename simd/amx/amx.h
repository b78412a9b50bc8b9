/* amx.h - the level of AMX: int8 tiles (and AVX-512 with VNNI beside them). */
#ifndef DSV4_AMX_H
#define DSV4_AMX_H

#include "simd/avx512/avx512.h"

#ifdef DSV4_EMULATE
#include <emulate/amx.h>
#endif

void init_amx(struct kernels *k);

#endif
