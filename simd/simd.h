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

/* ORDER FORMATS: wformat_name (dispatch.c), wformat_row_bytes, decoders (scalar/decode.c). From W_Q8 on a
 * format has f16 scales, from W_Q4 on a table: new ones of another kind go before these. */
struct block_type; /* quant/quant.h */

enum wformat {
    W_F32,
    W_F16,
    W_BF16,
    W_E4M3, /* fp8 codes, one e8m0 scale a tile of block_rows x block_cols */
    W_E2M1, /* fp4 codes, two a byte (low nibble = even column), one e8m0 scale a tile */
    W_Q8, /* int8 codes, one f16 scale per 32 columns of a row; within every 8 columns in the order
               0,2,4,6,1,3,5,7 (that of the 4-bit formats, so that activations need one order only) */
    W_Q4, /* 4-bit codes into a table of 16 int8 values, stored as W_E2M1, f16 scales as W_Q8 */
    W_Q3, /* 3-bit codes into a table of 8, drawn below; scales likewise */
    W_Q2, /* 2-bit codes into a table of 4 */
    N_WFORMATS
};

/* PANEL rows lie interleaved in units of 4 bytes, GROUP columns share a scale. */
enum { PANEL = 16, GROUP = 32 };

/* A [rows][cols] matrix in one of two layouts.
 *
 * plain: as in a checkpoint, row after row, any alignment
 *   codes   rows * code_ld bytes
 *   scales  E4M3, E2M1: of (r, c) = 2^(scales[(r / block_rows) * scale_ld + c / block_cols] - 127)
 *           Q8, Q4, Q3, Q2: f16, (r, c) at scales + r * scale_ld + c / GROUP * 2
 *
 * Q2 and Q3 have whole groups of 32 columns, as units u = 0 .. 7 of 4 columns in the order of Q8: unit u's
 * element b is column 8 (u / 2) + 2b (u even) or 8 (u / 2) + 2b + 1 (u odd). A group is 2 words (Q2) or 3:
 *
 *   byte b of word j < 2    bits 2s, 2s+1 (s = 0 .. 3): unit 4j + s, element b: its low two bits
 *   byte b of word 2 (Q3)   bit u: unit u, element b: its third bit
 *
 * panels: what kernels stream. 16 rows make a panel; a panel is the sequence of its columns in units
 * of 4 bytes a row, 16 rows side by side (64 bytes: one AVX-512 register, a row of an AMX tile, two
 * AVX2 registers, four NEON ones). A row's bytes keep their order, so any plain matrix becomes panels,
 * and back, by moving 4-byte words; rows beyond the last are zero.
 *
 *   word (p, u, r) = bytes 4u .. 4u+3 of row 16p + r, at codes + p * code_ld + u * 64 + r * 4
 *                    E4M3: columns 4u .. 4u+3    BF16: columns 2u, 2u+1
 *                    Q8: even u: 4u + {0,2,4,6}, odd u: 4u - 4 + {1,3,5,7}
 *                    E2M1, Q4: columns 8u .. 8u+7; low nibbles 8u+{0,2,4,6}, high nibbles 8u+{1,3,5,7}
 *                    Q3: word u % 3 of group u / 3    Q2: word u % 2 of group u / 2
 *   scales  E2M1: e8m0 [rows/16][cols/32][16], a panel's at scales + p * scale_ld
 *           Q8, Q4, Q3, Q2: f16 [rows/16][cols/32][16], likewise
 *           E4M3: e8m0 [rows/16][cols/block_cols], likewise: one for all rows of a panel
 *
 * Panels need cols to be a multiple of 32; E2M1: block_rows 1, block_cols 32; E4M3: block_rows a
 * multiple of 16 (block_rows is not looked at any more), block_cols of 32. Codes and panels are 64-byte
 * aligned, scales of one row 16-byte. An e8m0 scale is never 255 and an e4m3 code in panels never
 * NaN (loading refuses them). */
struct wmat {
    enum wformat format;
    bool panels;
    uint32_t rows, cols;
    uint32_t block_rows, block_cols;
    const uint8_t *codes, *scales;
    size_t code_ld, scale_ld; /* bytes from row to row (plain) or from panel to panel */
    const int8_t *table;      /* wformat_table() values; -16 .. 16 are faster on some levels */
    /* Rows are not in the format yet but blocks of a GGUF file, code_ld bytes each: for panel_pack() alone. */
    const struct block_type *blocks;
};

const char *wformat_name(enum wformat f);

/* Bytes of one row's codes. cols is even for the 4-bit formats, a multiple of 32 for Q3 and Q2. */
static inline size_t wformat_row_bytes(enum wformat f, size_t cols)
{
    static const uint8_t bits[N_WFORMATS] = {32, 16, 16, 8, 4, 8, 4, 3, 2};
    return cols / 8 * bits[f] + cols % 8 * bits[f] / 8;
}

/* Bytes of GROUP columns of a panel. */
static inline size_t wformat_group_bytes(enum wformat f)
{
    return PANEL * wformat_row_bytes(f, GROUP);
}

/* Whether every 32 columns of a row have an f16 scale. */
static inline bool wformat_has_halves(enum wformat f)
{
    return f >= W_Q8;
}

/* Values that the format's codes point to; 0: it has no table. */
static inline size_t wformat_table(enum wformat f)
{
    return f < W_Q4 ? 0 : (size_t)16 >> (f - W_Q4);
}

/* What numbers are rounded to. */
struct grid {
    int n;            /* 0: the whole numbers low .. high; otherwise values, at most 16 */
    float low, high;  /* the first and the last */
    float value[16];  /* whole numbers, ascending */
    float middle[16]; /* between value[i] and value[i + 1] */
};

/* ------------------------------------------------------------------ activations */

/* Activations of the fast mode: groups of 32 columns of a row as integers times one float. */
enum qkind {
    Q_NONE, /* this level has only the exact kernel for the format */
    Q_8,    /* int8, |q| <= 127: for E2M1, Q8 and table weights */
    Q_16,   /* int16, |q| <= 2047: for E4M3 weights */
    Q_KINDS
};

/* Rows of one kind, [rows][cols]; cols is a multiple of 32.
 *   x(r, c) ~ code(r, c) * scale[r * cols/32 + c/32];  scale = max |x| / limit of the group, the code is
 *   x * (limit / max) rounded to nearest even; both 0 where max < 2^-100; NaN with codes 0 where a value of
 *   the group is not finite
 * Q_8 codes lie in the order of the weights: within every 8 columns 0,2,4,6,1,3,5,7. Q_16 codes lie in
 * plain order. */
struct qrows {
    enum qkind kind;
    size_t cols;
    void *code;   /* int8_t or int16_t; rows 64-byte aligned when cols is a multiple of 64 */
    float *scale; /* [rows][cols/32] */
    int32_t *sum; /* [rows][cols/32] sum of the group's codes */
};

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

/* The indexer's queries of one row, heads as panels of 16: doubled e2m1 codes as int8 (-12 .. 12) in the
 * column order of Q_8, zero for heads beyond the last. width is a multiple of 32.
 *   code   [heads/16][width/4][16][4]
 *   scale  [heads/16][width/32][16] of a query's group, times 1/4 for the doublings
 *   weight [heads/16][16] */
struct index_query {
    size_t panels, width;
    const int8_t *code;
    const float *scale, *weight;
};

/* Bits
 *   Float kernels sum in an order of their own choice that is the same for every row, whatever m, r0 and
 *   r1 are; each is within n * 2^-24 * sum |a_i b_i| of the exact sum of n terms. What is below 2^-60 of
 *   an activation of E4M3 panels may count as 0; no activation is above 2^60.
 *   Integer kernels (quantize, matmul_fast, index_codes) and fit give the same bits on every level: sums of a
 *   group are exact integers, what is done with them stands below. fma(a, b, c) is rounded once. */
struct kernels {
    const char *level;

    /* y[i * ldy + r] = x_i . W[r] for r0 <= r < r1 and i < m, where x_i = x + (pick ? pick[i] : i) * ldx.
     * Weights are expanded exactly, x is f32. Any format and layout. Panels: r0 is a multiple of 16, r1
     * too or w->rows. tmp: cols floats of the calling thread. */
    void (*matmul)(float *y, size_t ldy, const float *x, size_t ldx, const uint32_t *pick, size_t m,
                   const struct wmat *w, size_t r0, size_t r1, float *tmp);

    /* The same for panels and quantized rows x_i = row (pick ? pick[i] : i) of x; x->kind is
     * fast[w->format], x->cols is w->cols. For each output, over the groups g in ascending order
     *   s = sum of code(x) * v(w) over the group, exact in 32 bits
     *   y = fma((float)s, u_g, y), starting from 0
     * E2M1: v = doubled code, u = e8m0(w) * (0.5 * scale(x)); Q4, Q3, Q2: v = table[code], u = f16(w) *
     * scale(x); Q8: v = code, likewise; E4M3: v = 64 * value rounded to nearest even (at most 28672), u = e8m0(w) *
     * (scale(x) / 64). u is rounded once. tmp: FAST_TMP bytes of the calling thread, 64-byte aligned. */
    void (*matmul_fast)(float *y, size_t ldy, const struct qrows *x, const uint32_t *pick, size_t m,
                        const struct wmat *w, size_t r0, size_t r1, void *tmp);
    enum qkind fast[N_WFORMATS]; /* ORDER FORMATS */

    /* Columns c0 .. c1 (multiples of 32) of row r of q from the row's floats x. */
    void (*quantize)(struct qrows *q, size_t r, const float *x, size_t c0, size_t c1);

    /* out[0 .. cols) = W[r]: one row of a matrix as floats, any format and layout. */
    void (*decode)(float *out, const struct wmat *w, size_t r);

    /* How well scales fit PANEL groups that lie side by side, x and w [GROUP][PANEL]. For each of them, with
     * q the level nearest to x * inverse (of two alike the even one, of uneven levels the lower one), over the columns in
     * ascending order, every operation rounded:
     *   xq = sum (w x) q    qq = sum (w q) q */
    void (*fit)(float *xq, float *qq, const float *x, const float *w, const float *inverse,
                const struct grid *l);

    /* sum x_i^2 */
    float (*sum_squares)(const float *x, size_t n);

    /* a . b */
    float (*dot)(const float *a, const float *b, size_t n);

    /* up_i <- weight * silu(min(gate_i, limit)) * clamp(up_i, -limit, limit); limit 0: none.
     * Relative error of the sigmoid at most 2^-21. */
    void (*swiglu)(float *up, const float *gate, size_t n, float limit, float weight);

    /* h_j <- post_j y + sum_i comb[i][j] h_i for hc <= 16 streams h [hc][n] at distance ld. */
    void (*hc_mix)(float *h, size_t ld, const float *y, const float *post, const float *comb,
                   size_t hc, size_t n);

    /* out = sum_j pre_j h_j */
    void (*hc_sum)(float *out, const float *h, size_t ld, const float *pre, size_t hc, size_t n);

    /* part[i * ldm + k * ldb] += x_i . w over columns DOT_BLOCK * k .. of n (the last block may be
     * shorter), for m rows x_i = x + i * ldx. w: n floats at any alignment; NULL: x_i itself. */
    void (*block_dots)(float *part, size_t ldm, size_t ldb, const float *x, size_t ldx, size_t m,
                       const uint8_t *w, size_t n);

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

    /* The same on the codes of R_E2M1_32 keys (e8m0 scales k_g). For each head: over the groups
     *   a = fma((float)s, scale_g * k_g, a), starting from 0, s the exact sum of code products
     * then 16 sums (head modulo 16) t = fma(weight, max(0, a), t) over the panels in ascending order,
     * folded by halves: 8, 4, 2, 1 apart. */
    void (*index_codes)(float *score, const struct index_query *q, const uint8_t *key, size_t n);

    /* For measuring: so many rounds of multiply-adds (of bytes, of floats) on registers alone; returns how many
     * that were. NULL: this level has none. */
    uint64_t (*peak_int8)(uint64_t rounds);
    uint64_t (*peak_f32)(uint64_t rounds);
};

enum { ATTEND_TILE = 32, INDEX_MAX_WIDTH = 1024, DOT_BLOCK = 64, FAST_TMP = 160 << 10 };

/* The best kernels for this CPU, or those of `level` (NULL or "": the best): a name of isa.def that this CPU has.
 * False for a name that is unknown or not available; *k is untouched then. */
bool kernels_init(struct kernels *k, const char *level);
void kernels_init_scalar(struct kernels *k);

/* All levels of isa.def for this architecture, weakest first: name and whether this CPU has it. NULL past
 * the last. */
const char *kernels_level(size_t i, bool *available);

#endif
