/* simd.h - the kernels: what they compute, for every instruction set alike.
 *
 * A kernel allocates nothing, holds no state, knows no model and no file. The table is filled
 * upward: the scalar kernels first, then each level this CPU has overwrites what it does better
 * (dispatch.c). simd/ includes libc and itself only.
 *
 * Bits: every kernel treats its rows independently, in an order of additions that does not depend
 * on how many rows there are or which part of the output was asked for. So results are the same
 * for any number of threads and any mix of rows. */
#ifndef DSV4_SIMD_H
#define DSV4_SIMD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ------------------------------------------------------------------ weights */

/* ORDER FORMATS: format_name (dispatch.c), matmul row decoders (scalar/matmul.c) */
enum wformat {
    W_F32,
    W_F16,
    W_BF16,
    W_E4M3, /* fp8 codes, one e8m0 scale a tile of block_rows x block_cols */
    W_E2M1, /* fp4 codes, two a byte (low nibble = even column), one e8m0 scale a tile */
    N_WFORMATS
};

/* A [rows][cols] matrix of a checkpoint, as it lies in the file (any alignment).
 *
 *   codes   rows * code_ld bytes
 *   scales  scale of (r, c) = 2^(scales[(r / block_rows) * scale_ld + c / block_cols] - 127)
 */
struct wmat {
    enum wformat format;
    uint32_t rows, cols;
    uint32_t block_rows, block_cols;
    const uint8_t *codes, *scales;
    size_t code_ld, scale_ld;
};

const char *wformat_name(enum wformat f);

/* ------------------------------------------------------------------ rows of the caches */

/* ORDER ROWS: row_bytes (dispatch.c), encoders (quant/rows.c), decoders (scalar/rows.c) */
enum rformat {
    R_F32,      /* width floats: the quantizers switched off */
    R_E4M3_64B, /* V4: width - rope codes, one e8m0 byte per 64 of them, rope bf16 */
    R_E4M3_32,  /* V4.1 window: width codes, one e8m0 byte per 32 */
    R_E2M1_16,  /* V4.1 entries: width / 2 bytes of fp4, one e4m3 byte per 16 channels */
    R_E2M1_32,  /* index keys: width / 2 bytes of fp4, one e8m0 byte per 32 channels */
    N_RFORMATS
};

struct rshape {
    enum rformat format;
    uint32_t width, rope; /* rope: the last so many channels (used by R_E4M3_64B) */
};

size_t row_bytes(struct rshape s);

/* ------------------------------------------------------------------ the table */

struct kernels {
    const char *level;

    /* y[i * ldy + r] = x_i . W[r] for r0 <= r < r1 and i < m, where x_i = x + (pick ? pick[i] : i) * ldx.
     * tmp: cols floats of the calling thread. */
    void (*matmul)(float *y, size_t ldy, const float *x, size_t ldx, const uint32_t *pick, size_t m,
                   const struct wmat *w, size_t r0, size_t r1, float *tmp);

    /* out[0 .. cols) = W[r]: one row of a matrix as floats. */
    void (*decode)(float *out, const struct wmat *w, size_t r);

    /* sum x_i^2 */
    float (*sum_squares)(const float *x, size_t n);

    /* a . b */
    float (*dot)(const float *a, const float *b, size_t n);

    /* Rows first .. first + n of a cache, stored one after the other, as floats [n][width]. */
    void (*rows)(float *out, const uint8_t *row, size_t n, struct rshape s);

    /* One tile of attention for `heads` heads with a running softmax:
     *   s_j = scale q_h . kv_j; m_h, l_h, o_h are rescaled when the maximum grows
     * q, o [heads][c]; kv [n][c], n <= ATTEND_TILE; max, sum [heads]. */
    void (*attend)(float *o, float *max, float *sum, const float *q, size_t heads, const float *kv,
                   size_t n, size_t c, float scale);

    /* score[i] = sum_h w_h max(0, q_h . key_i), keys as rows of a cache; q [heads][width]. */
    void (*index)(float *score, const float *q, const float *w, size_t heads, const uint8_t *key,
                  size_t n, struct rshape s);
};

enum { ATTEND_TILE = 32, INDEX_MAX_WIDTH = 1024 };

/* The best kernels for this CPU. */
void kernels_init(struct kernels *k);
void kernels_init_scalar(struct kernels *k);

#endif
