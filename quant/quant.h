/* quant.h - encoding: rows of the caches from floats, weights from floats, panels from plain weights.
 * Decoding is a kernel. */
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

/* ------------------------------------------------------------------ types of weights (types.c) */

/* What a matrix can be converted to: a format, and the table of values of those that have one. */
struct wtype {
    enum wformat format;
    const int8_t *table; /* wformat_table() values, ascending, or NULL */
    const char *name;
};

/* f32 f16 bf16 e4m3 e2m1 (also: mxfp4) q8 q4 q4nl q3 q2; NULL for any other name. Pointers are to constants. */
const struct wtype *wtype_named(const char *name);
/* All of them; NULL past the last. */
const struct wtype *wtype_at(size_t i);
/* That of a matrix; NULL when its table is not one of ours. */
const struct wtype *wtype_of(const struct wmat *w);

/* ------------------------------------------------------------------ weights from floats (encode.c) */

enum effort {
    EFFORT_ABSMAX, /* the value of largest magnitude becomes the largest code */
    EFFORT_SEARCH, /* the scale with the least squared error */
};

/* One row of `cols` floats below 2^127 -> its plain codes, wformat_row_bytes(), and scales, one per GROUP columns
 * (cols is a multiple of GROUP for formats that have scales):
 *   q8 q4 q4nl q3 q2  f16     e2m1 e4m3  e8m0, as of a matrix with block_rows 1, block_cols GROUP
 *   f32 f16 bf16  none; scales is not looked at
 * importance [cols]: weights >= 0 of the squared errors, or NULL: all alike. Same input, same bytes. What is
 * outside of a format's range becomes its nearest value. k: kernels of any level; NULL is enough for EFFORT_ABSMAX. */
void encode_row(const struct kernels *k, uint8_t *codes, uint8_t *scales, const struct wtype *t,
                const float *x, size_t cols, const float *importance, enum effort effort);

/* ------------------------------------------------------------------ what that loses (error.c) */

struct encode_error {
    double error, signal; /* sums of squares: of the differences, of what was encoded */
};

/* encode_row() with EFFORT_SEARCH, decoded again; adds to *sum, weighted by importance (NULL: all alike).
 * codes, scales: room for a row, which has the encoding afterwards; back [cols]. */
void encode_error(struct encode_error *sum, const struct kernels *k, const struct wtype *t,
                  const float *x, size_t cols, const float *importance, uint8_t *codes,
                  uint8_t *scales, float *back);

/* ------------------------------------------------------------------ error feedback (feedback.c) */

/* h [n][n], the covariance sum x x^T of a matrix's inputs, with `damping` times the mean of its diagonal
 * added to that (0.01 is usual) -> its factor, in place. About n^3 / 6 multiply-adds. */
void feedback_factor(float *h, size_t n, float damping);

/* Up to PANEL rows of floats x, `ldx` apart -> plain codes and scales of q8 and of formats with a table,
 * code_ld and scale_ld bytes apart. Rows do not depend on each other. tmp: cols * PANEL floats. */
void encode_feedback(const struct kernels *k, uint8_t *codes, size_t code_ld, uint8_t *scales,
                     size_t scale_ld, const struct wtype *t, const float *x, size_t ldx,
                     size_t rows, size_t cols, const float *factor, float *tmp);

/* ------------------------------------------------------------------ blocks of GGUF files (blocks.c) */

struct block_type;
/* By its number in GGUF files; NULL: not known. */
const struct block_type *block_type_of(uint32_t id);
/* The one that has the same numbers as a type of ours (MXFP4, Q8_0, Q4_0); NULL: there is none. */
const struct block_type *block_type_as(const struct wtype *type);
uint32_t block_id(const struct block_type *t);
const char *block_name(const struct block_type *t);
uint32_t block_cols(const struct block_type *t);
/* cols is a multiple of block_cols(), here and below. */
uint64_t block_row_bytes(const struct block_type *t, uint32_t cols);
/* Whether the format of block_matrix() has the same numbers. */
bool block_exact(const struct block_type *t);
/* Rows of blocks as a matrix of the format that its panels will have. */
struct wmat block_matrix(const struct block_type *t, const uint8_t *data, uint32_t rows,
                         uint32_t cols);
void block_decode(const struct block_type *t, float *out, const uint8_t *row, size_t cols);
/* Row r of any matrix as floats [w->cols]: k->decode(), and for rows of blocks block_decode(). */
void row_floats(const struct kernels *k, float *out, const struct wmat *w, size_t r);
/* Columns at .. at + cols of a row of w (multiples of block_cols(), cols at most 256) -> plain codes and scales
 * of w's format: the same numbers where the format has them, the nearest otherwise. The scale of a group that holds a
 * NaN or an infinity is one, too. */
void block_encode_span(uint8_t *codes, uint8_t *scales, const struct wmat *w, size_t row, size_t at,
                       size_t cols);

/* One row of plain codes and scales of a type, one scale per GROUP columns, as blocks: block_type_as() of it. */
void block_row(const struct block_type *t, uint8_t *out, const uint8_t *codes,
               const uint8_t *scales, size_t cols);

/* ------------------------------------------------------------------ panels (panel.c; drawn in simd.h) */

/* Whether a plain matrix can become panels: format, cols, blocks. */
bool panel_fits(const struct wmat *plain);

/* A plain matrix of a type, without addresses: a scale for every 32 columns of a row. */
struct wmat plain_shape(const struct wtype *t, uint32_t rows, uint32_t cols);

/* The first `rows` rows of `plain` as panels: everything but codes and scales (NULL), of which
 * panel_count() times code_ld and scale_ld bytes are needed. */
struct wmat panel_shape(const struct wmat *plain, size_t rows);
size_t panel_count(const struct wmat *w);

/* Rows row .. row + 16 (as many as there are) of a plain matrix -> one panel: code_ld bytes of codes,
 * scale_ld of scales. row is a multiple of 16. */
void panel_pack(uint8_t *codes, uint8_t *scales, const struct wmat *plain, size_t row);

/* Whether n bytes (a multiple of 8) hold an e4m3 NaN. */
bool e4m3_has_nan(const uint8_t *code, size_t n);

/* A panel -> its plain rows at distance code_ld and scale_ld. E4M3: one row of scales. */
void panel_unpack(uint8_t *codes, size_t code_ld, uint8_t *scales, size_t scale_ld,
                  const struct wmat *w, size_t panel);

#endif
