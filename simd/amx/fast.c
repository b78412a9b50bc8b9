/* Integer products of many rows with tiles: 16 rows of activations times 16 rows of a panel, 32
 * columns an instruction. The words of a panel are the rows of a B tile as they are.
 *
 * Every group has a scale of its own, so that the 32-bit sums leave the tile after each 32 columns:
 * 16 cycles of the tile unit stand against about 24 of the vector units (16 conversions, products,
 * fmas), and those set the pace: some 290 products a cycle, three times what VNNI does. Few rows
 * and e4m3 go to VNNI. */
#include "amx.h"
#include "simd/avx512/bytes.h"
#include "simd/avx512vnni/avx512vnni.h"

#include <string.h>

enum { ROWS = 16, PANELS = 4, GROUPS = 8 };

/* Four panels of up to GROUPS groups: signed bytes and scales. */
struct weights {
    _Alignas(64) uint8_t code[PANELS][GROUPS][512];
    _Alignas(64) float scale[PANELS][GROUPS][PANEL];
    size_t groups;
};

/* Up to 16 rows of the same columns; their codes where they are, or gathered. */
struct rows {
    const uint8_t *code;
    size_t ld, n;
    _Alignas(64) float scale[GROUPS][ROWS];
    _Alignas(64) uint8_t gathered[ROWS][GROUPS * GROUP];
};

INLINE void fill_panel(struct weights *t, size_t p, const struct wmat *w, size_t r, size_t g0,
                       enum wformat fmt)
{
    const uint8_t *code = w->codes + r / PANEL * w->code_ld + g0 * wformat_group_bytes(fmt);
    const uint8_t *scale = w->scales + r / PANEL * w->scale_ld;
    const struct byte_tables table = byte_tables_of(w, fmt, 0);
    for (size_t g = 0; g < t->groups; g++, code += wformat_group_bytes(fmt)) {
        __m512i v[8];
        expand_group(v, code, fmt, &table, 0);
        ask_ahead(code, wformat_group_bytes(fmt));
        FOR_LANE (u, 8)
            _mm512_store_si512(t->code[p][g] + u * 64, v[u]);
        _mm512_store_ps(t->scale[p][g], group_scale(scale, g0 + g, fmt));
    }
}

static void fill_weights(struct weights *t, const struct wmat *w, size_t r, size_t np, size_t g0)
{
    size_t left = w->cols / GROUP - g0;
    t->groups = left < GROUPS ? left : GROUPS;
    for (size_t p = 0; p < np; p++, r += PANEL)
        switch (w->format) {
        case W_E2M1: fill_panel(t, p, w, r, g0, W_E2M1); break;
        case W_Q4: fill_panel(t, p, w, r, g0, W_Q4); break;
        case W_Q3: fill_panel(t, p, w, r, g0, W_Q3); break;
        case W_Q2: fill_panel(t, p, w, r, g0, W_Q2); break;
        default: fill_panel(t, p, w, r, g0, W_Q8); break;
        }
}

static void take_rows(struct rows *t, const struct qrows *x, const uint32_t *pick, size_t i,
                      size_t n, size_t g0, size_t groups)
{
    t->n = n;
    for (size_t k = 0; k < n; k++) {
        size_t row = pick ? pick[i + k] : i + k;
        for (size_t g = 0; g < groups; g++)
            t->scale[g][k] = x->scale[row * x->cols / GROUP + g0 + g];
    }
    if (!pick && n == ROWS) {
        t->code = (const uint8_t *)x->code + i * x->cols + g0 * GROUP;
        t->ld = x->cols;
        return;
    }
    for (size_t k = 0; k < ROWS; k++) {
        size_t row = k >= n ? 0 : pick ? pick[i + k] : i + k;
        if (k < n)
            memcpy(t->gathered[k], (const uint8_t *)x->code + row * x->cols + g0 * GROUP,
                   groups * GROUP);
        else
            memset(t->gathered[k], 0, groups * GROUP);
    }
    t->code = t->gathered[0];
    t->ld = sizeof t->gathered[0];
}

/* s[i][r] = the sums of group g of 16 rows with a panel. The compiler does not know that tile
 * instructions read memory. */
#define PRODUCT(s, tmm_c, tmm_a, tmm_b, x, w, g)            \
    do {                                                    \
        _tile_zero(tmm_c);                                  \
        _tile_loadd(tmm_a, (x)->code + (g)*GROUP, (x)->ld); \
        _tile_loadd(tmm_b, (w) + (g)*512, 64);              \
        _tile_dpbssd(tmm_c, tmm_a, tmm_b);                  \
        _tile_stored(tmm_c, s, 64);                         \
    } while (0)

/* Two buffers of sums: the tile unit fills one while the vector units use the other. */
INLINE void block(float *y, size_t ldy, const struct rows *x, int n, const uint8_t *w,
                  const float (*scale)[PANEL], size_t groups, __mmask16 lanes, bool first)
{
    _Alignas(64) int32_t s[2][ROWS][PANEL];
    __m512 total[ROWS];
    FOR_LANE (i, ROWS) {
        bool load = !first && i < n;
        total[i] = load ? _mm512_maskz_loadu_ps(lanes, y + (size_t)i * ldy) : _mm512_setzero_ps();
    }
    PRODUCT(s[0], 0, 2, 3, x, w, 0);
    for (size_t g = 0; g < groups; g++) {
        if (g + 1 < groups) {
            if (g % 2 == 0)
                PRODUCT(s[1], 1, 4, 5, x, w, g + 1);
            else
                PRODUCT(s[0], 0, 2, 3, x, w, g + 1);
        }
        __m512 ws = _mm512_load_ps(scale[g]);
        FOR_LANE (i, n) {
            __m512 unit = _mm512_mul_ps(ws, _mm512_set1_ps(x->scale[g][i]));
            __m512 v = _mm512_cvtepi32_ps(_mm512_load_si512(s[g % 2][i]));
            total[i] = _mm512_fmadd_ps(v, unit, total[i]);
        }
    }
    FOR_LANE (i, n) {
        _mm512_mask_storeu_ps(y + (size_t)i * ldy, lanes, total[i]);
    }
}

static void block_rows(float *y, size_t ldy, const struct rows *x, const struct weights *w,
                       size_t p, __mmask16 lanes, bool first)
{
    if (x->n == ROWS)
        block(y, ldy, x, ROWS, w->code[p][0], w->scale[p], w->groups, lanes, first);
    else
        block(y, ldy, x, (int)x->n, w->code[p][0], w->scale[p], w->groups, lanes, first);
}

/* Sums 16 x 16 words, activations 16 rows of 32 bytes, weights 8 rows of 64; two of each. */
static void configure_tiles(void)
{
    struct {
        uint8_t palette, start, zero[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } c = {.palette = 1,
           .bytes = {64, 64, GROUP, 64, GROUP, 64},
           .rows = {ROWS, ROWS, ROWS, GROUP / 4, ROWS, GROUP / 4}};
    __asm__ volatile("" : : "r"(&c) : "memory");
    _tile_loadconfig(&c);
}

static void matmul_fast(float *y, size_t ldy, const struct qrows *x, const uint32_t *pick, size_t m,
                        const struct wmat *w, size_t r0, size_t r1, void *tmp)
{
    if (m < ROWS || w->format == W_E4M3) {
        matmul_fast_avx512vnni(y, ldy, x, pick, m, w, r0, r1, tmp);
        return;
    }
    struct weights tile;
    struct rows rows;
    configure_tiles();
    for (size_t r = r0; r < r1; r += PANELS * PANEL) {
        size_t np = (r1 - r + PANEL - 1) / PANEL;
        np = np < PANELS ? np : PANELS;
        for (size_t g = 0; g < w->cols / GROUP; g += tile.groups) {
            fill_weights(&tile, w, r, np, g);
            for (size_t i = 0; i < m; i += ROWS) {
                take_rows(&rows, x, pick, i, m - i < ROWS ? m - i : ROWS, g, tile.groups);
                __asm__ volatile("" : : : "memory"); /* stores before the tiles' loads */
                for (size_t p = 0; p < np; p++)
                    block_rows(y + i * ldy + r + p * PANEL, ldy, &rows, &tile, p,
                               first_lanes(r1 - r - p * PANEL), g == 0);
            }
        }
    }
    _tile_release();
}

void init_amx(struct kernels *k)
{
    k->matmul_fast = matmul_fast;
    k->peak_int8 = NULL; /* that of tiles is not measured, and VNNI's is none for them */
}
