/* quant.h - encoding: from floats to the formats of caches (rows of simd.h). Decoding is a kernel. */
#ifndef DSV4_QUANT_H
#define DSV4_QUANT_H

#include "simd/simd.h"

/* x [width] -> row_bytes(s) bytes. Scale per block: ue8m0 = 2^ceil(log2(amax / max)), or e4m3 for
 * R_E2M1_16; values are divided by it, clamped, rounded (spec: architecture, section 6).
 * False when x holds a NaN or an infinity; the row is then written from zeros in their places. */
bool row_encode(uint8_t *row, const float *x, struct rshape s);

/* x -> what row_encode and a decoder would give back, in place; width <= INDEX_MAX_WIDTH. */
void row_round(const struct kernels *k, float *x, struct rshape s);

/* Walsh-Hadamard transform in natural order, times n^-1/2; n is a power of two. */
void hadamard(float *x, size_t n);

#endif
