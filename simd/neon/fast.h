/* fast.h - integer products: what baseline, dotprod and i8mm share, and where they differ.
 *
 * All formats become tiles of int8 in the panel's order of words. Walking over the matrix,
 * scales and the layout of tiles are common (fast.c); a level brings the four functions of
 * fast_ops. */
#ifndef DSV4_NEON_FAST_H
#define DSV4_NEON_FAST_H

#include "simd/neon/units.h"

#ifdef __aarch64__

/* FAST_COLS columns of a panel; FAST_ROWS rows of activations at a time. */
enum { FAST_COLS = 256, FAST_GROUPS = FAST_COLS / GROUP, FAST_ROWS = 4 };

struct fast_tile {
    const int8_t *code; /* [cols/4][16][4] or what the level makes of it; buffer or the panel */
    float scale[FAST_GROUPS][PANEL];
    size_t groups;
    bool narrow; /* |code| <= 16: sixteen products with activations fit into 16 bits */
    _Alignas(64) int8_t buffer[FAST_COLS * PANEL];
};

/* Rows of activations at one column; from n on they repeat the first. The scales hold the 0.5 of
 * doubled weight codes. */
struct fast_rows {
    const int8_t *code[FAST_ROWS];
    float scale[FAST_GROUPS][FAST_ROWS];
    size_t n; /* 1 .. FAST_ROWS */
};

/* Codes of 2 to 4 bits: E2M1 (as Q4), Q4, Q3, Q2, and what indices of even and odd units stand for. */
struct fast_codes {
    enum wformat format;
    int8x16_t table[2];
};

struct fast_ops {
    /* The tile of t->groups groups from int8 words; from smaller codes. */
    void (*words)(struct fast_tile *t, const int8_t *code);
    void (*codes)(struct fast_tile *t, const uint8_t *code, const struct fast_codes *c);
    /* y[n][16] += row . tile, group after group as simd.h says; from 0 if `first`. */
    void (*rows)(float *y, size_t ldy, const struct fast_rows *x, const struct fast_tile *t,
                 bool first);
    /* The same for one row and small codes without a tile. Uses groups, scale and narrow of t. */
    void (*row)(float *y, const struct fast_rows *x, const struct fast_tile *t, const uint8_t *code,
                const struct fast_codes *c, bool first);
};

/* matmul_fast and index_codes of the table, by the functions of a level. */
void fast_matmul(const struct fast_ops *ops, float *y, size_t ldy, const struct qrows *x,
                 const uint32_t *pick, size_t m, const struct wmat *w, size_t r0, size_t r1);
void fast_index(const struct fast_ops *ops, float *score, const struct index_query *q,
                const uint8_t *key, size_t n);

/* `codes` for tiles in the panel's own order. */
void fast_plain_tile(struct fast_tile *t, const uint8_t *code, const struct fast_codes *c);

/* The two int8 words of 16 bytes of codes. */
INLINE int8x16_t low_nibbles(uint8x16_t b, int8x16_t table)
{
    return vqtbl1q_s8(table, vandq_u8(b, vdupq_n_u8(15)));
}

INLINE int8x16_t high_nibbles(uint8x16_t b, int8x16_t table)
{
    return vqtbl1q_s8(table, vshrq_n_u8(b, 4));
}

/* A group of four rows as int8 units; code: the group, at the first of them. */
INLINE void expand_group(int8x16_t v[UNITS], const uint8_t *code, const struct fast_codes *t,
                         enum wformat f)
{
    uint8x16_t c[4], i[2];
    open_group(c, code, f);
    FOR_LANE (o, OCTETS) {
        unit_indices(i, c, o, f);
        v[2 * o] = vqtbl1q_s8(t->table[0], i[0]);
        v[2 * o + 1] = vqtbl1q_s8(t->table[f == W_Q3 || f == W_Q2], i[1]);
    }
}

/* `call` with the format of codes as a constant. */
#define FAST_FORMAT(format, call)        \
    do {                                 \
        if ((format) == W_Q3) {          \
            const enum wformat f = W_Q3; \
            call;                        \
        } else if ((format) == W_Q2) {   \
            const enum wformat f = W_Q2; \
            call;                        \
        } else {                         \
            const enum wformat f = W_Q4; \
            call;                        \
        }                                \
    } while (0)

/* y = fma((float)s, u, y) */
INLINE float32x4_t fast_add(float32x4_t y, int32x4_t s, float32x4_t u)
{
    return vfmaq_f32(y, vcvtq_f32_s32(s), u);
}

#endif
#endif
