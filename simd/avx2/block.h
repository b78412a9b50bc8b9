/* block.h - integer products of many rows: what is kept in which cache.
 *
 * A slice is CHUNK rows of x, the same 512 bytes of each, put together: as they lie, thousands of bytes apart, they
 * fall into the same few sets of the caches. A tile is a panel's weights for the columns of a slice, taken apart.
 * BLOCK tiles stay in L2 while slice after slice meets them, one after the other; slice and tile are in L1 then. */
#ifndef DSV4_AVX2_BLOCK_H
#define DSV4_AVX2_BLOCK_H

#include "simd/avx2/avx2.h"

enum {
    CHUNK = 18,                         /* a multiple of 3, the rows that kernels take at once */
    BLOCK = 16,                         /* panels */
    SLICE_BYTES = 512,                  /* of a row */
    SLICE_GROUPS = SLICE_BYTES / GROUP, /* int16: half of that */
    TILE_ROWS = 3,
};

struct tile {
    _Alignas(64) union {
        int8_t bytes[SLICE_BYTES * PANEL];      /* [groups][8 units][16 rows][4] */
        int16_t words[SLICE_BYTES / 2 * PANEL]; /* [groups][16 pairs of columns][16 rows][2] */
    } code;
    _Alignas(64) float scale[SLICE_GROUPS][PANEL];
};

struct slice {
    _Alignas(64) int8_t code[CHUNK][SLICE_BYTES]; /* or int16_t */
    float scale[CHUNK][SLICE_GROUPS];             /* times blocks.scale */
    int32_t sum[CHUNK][SLICE_GROUPS];             /* by blocks.sums */
};

/* Rows of a slice, and where their outputs go. */
struct part {
    const int8_t *code; /* rows SLICE_BYTES apart */
    const float *scale; /* rows SLICE_GROUPS apart */
    const int32_t *sum; /* likewise */
    float *y;           /* 16 a row, rows ldy apart */
    size_t ldy, groups;
    bool first; /* y holds nothing yet */
};

/* The sums of row i of a part so far. */
INLINE_AVX2 void load_sums(__m256 y[2], const struct part *p, size_t i)
{
    const float *at = p->y + i * p->ldy;
    y[0] = p->first ? _mm256_setzero_ps() : _mm256_loadu_ps(at);
    y[1] = p->first ? _mm256_setzero_ps() : _mm256_loadu_ps(at + 8);
}

INLINE_AVX2 void store_sums(const __m256 y[2], const struct part *p, size_t i)
{
    float *at = p->y + i * p->ldy;
    _mm256_storeu_ps(at, y[0]);
    _mm256_storeu_ps(at + 8, y[1]);
}

/* What a slice says of each group's codes, for weights that are stored less `low`. */
enum sums {
    NO_SUMS,
    WHOLE, /* low * their sum */
    PAIRS, /* low * sum of the first and second of every four, low * that of the others: two int16, which may wrap */
};

/* What differs by format and level. */
struct blocks {
    const void *job;
    const struct wmat *w;
    /* Groups g .. g + n of a panel. */
    void (*fill)(struct tile *t, const void *job, size_t panel, size_t g, size_t n);
    /* The product with 1 .. TILE_ROWS rows. */
    void (*const *run)(const struct tile *t, const struct part *p);
    enum sums sums;
    int32_t low;
    float scale;
};

/* matmul_fast of simd.h. */
void matmul_blocks_avx2(const struct blocks *b, float *y, size_t ldy, const struct qrows *x,
                        const uint32_t *pick, size_t m, size_t r0, size_t r1, void *tmp);

#endif
