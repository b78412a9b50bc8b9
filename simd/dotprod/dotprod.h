/* dotprod.h - the kernels of this level that i8mm uses for single rows. */
#ifndef DSV4_DOTPROD_H
#define DSV4_DOTPROD_H

#include "simd/neon/fast.h"

#ifdef __aarch64__

void init_dotprod(struct kernels *k);

void matmul_fast_dotprod(float *y, size_t ldy, const struct qrows *x, const uint32_t *pick,
                         size_t m, const struct wmat *w, size_t r0, size_t r1, void *tmp);
void index_codes_dotprod(float *score, const struct index_query *q, const uint8_t *key, size_t n);

#endif
#endif
