/* Exact products: weights expanded to floats, activations as they are.
 *
 * Panels. The order of additions of an output, for any number of rows: over the columns of a step
 * (those of one scale, at most 128) even and odd columns in a sum each; then their sum times the
 * scale to the total, one fma. Up to FEW rows take the weights straight from registers: memory is
 * what they wait for. More rows use a tile of two panels and 128 columns, expanded once into the
 * first cache.
 *
 * Plain rows are expanded into tmp one by one. */
#include "expand.h"

#include <string.h>

enum { FEW = 6, BLOCK = 5, TILE_COLS = 128 };

/* Products of up to FEW rows with 8 expanded columns, added to the sums of even and odd columns. */
INLINE void add8(__m512 even[FEW], __m512 odd[FEW], int m, const __m512 f[8], const float *const *x,
                 size_t c)
{
    FOR_LANE (i, m)
        FOR_LANE (k, 4) {
            size_t j = 2 * (size_t)k;
            even[i] = _mm512_fmadd_ps(f[j], _mm512_set1_ps(x[i][c + j]), even[i]);
            odd[i] = _mm512_fmadd_ps(f[j + 1], _mm512_set1_ps(x[i][c + j + 1]), odd[i]);
        }
}

INLINE void panel_few(float *y, size_t ldy, const float *const *x, int m, const struct wmat *w,
                      size_t r, enum wformat fmt, __mmask16 lanes)
{
    const uint8_t *code = w->codes + r / PANEL * w->code_ld;
    const uint8_t *scale = w->scales + r / PANEL * w->scale_ld;
    const struct float_tables table = float_tables_of(w, fmt);
    size_t step = step_of(w, fmt), ld = wformat_group_bytes(fmt);
    __m512 total[FEW];
    FOR_LANE (i, m)
        total[i] = _mm512_setzero_ps();
    for (size_t c = 0; c < w->cols; c += step) {
        __m512 even[FEW], odd[FEW];
        FOR_LANE (i, m)
            even[i] = odd[i] = _mm512_setzero_ps();
        size_t end = step < w->cols - c ? c + step : w->cols;
        for (size_t k = c; k < end; k += GROUP, code += ld) {
            __m512i opened[4];
            open_group(opened, code, fmt);
            FOR_LANE (o, OCTETS) {
                __m512 f[8];
                expand8(f, fmt, code, opened, o, &table);
                add8(even, odd, m, f, x, k + 8 * (size_t)o);
            }
            ask_ahead(code, ld);
        }
        __m512 s = step_scale(w, fmt, scale, c);
        FOR_LANE (i, m) {
            __m512 sum = _mm512_add_ps(even[i], odd[i]);
            if (fmt == W_E4M3)
                sum = _mm512_mul_ps(sum, _mm512_set1_ps(256));
            total[i] = _mm512_fmadd_ps(sum, s, total[i]);
        }
    }
    FOR_LANE (i, m)
        _mm512_mask_storeu_ps(y + (size_t)i * ldy + r, lanes, total[i]);
}

INLINE void panels_few(float *y, size_t ldy, const float *const *x, int m, const struct wmat *w,
                       size_t r0, size_t r1, enum wformat fmt)
{
    for (size_t r = r0; r < r1; r += PANEL)
        panel_few(y, ldy, x, m, w, r, fmt, first_lanes(r1 - r));
}

/* One function a format, or compilers give up on the registers. */
#define FEW_KERNEL(name, fmt)                                                     \
    static void few_##name(float *y, size_t ldy, const float *const *x, size_t m, \
                           const struct wmat *w, size_t r0, size_t r1)            \
    {                                                                             \
        switch (m) {                                                              \
        case 1: panels_few(y, ldy, x, 1, w, r0, r1, fmt); break;                  \
        case 2: panels_few(y, ldy, x, 2, w, r0, r1, fmt); break;                  \
        case 3: panels_few(y, ldy, x, 3, w, r0, r1, fmt); break;                  \
        case 4: panels_few(y, ldy, x, 4, w, r0, r1, fmt); break;                  \
        case 5: panels_few(y, ldy, x, 5, w, r0, r1, fmt); break;                  \
        default: panels_few(y, ldy, x, 6, w, r0, r1, fmt); break;                 \
        }                                                                         \
    }

FEW_KERNEL(bf16, W_BF16)
FEW_KERNEL(e4m3, W_E4M3)
FEW_KERNEL(e2m1, W_E2M1)
FEW_KERNEL(q8, W_Q8)
FEW_KERNEL(q4, W_Q4)
FEW_KERNEL(q3, W_Q3)
FEW_KERNEL(q2, W_Q2)

/* ------------------------------------------------------------------ many rows */

/* Two panels x TILE_COLS columns as floats. */
struct tile {
    _Alignas(64) float value[2][TILE_COLS][PANEL];
    _Alignas(64) float scale[2][TILE_COLS / GROUP][PANEL];
    size_t cols, step;
    float times; /* what expanded values were divided by */
};

INLINE void fill_panel(float (*value)[PANEL], float (*scale)[PANEL], const struct tile *t,
                       const struct wmat *w, size_t r, size_t c0, enum wformat fmt)
{
    size_t ld = wformat_group_bytes(fmt);
    const uint8_t *code = w->codes + r / PANEL * w->code_ld + c0 / GROUP * ld;
    const struct float_tables table = float_tables_of(w, fmt);
    for (size_t c = 0; c < t->cols; c += GROUP, code += ld) {
        __m512i opened[4];
        open_group(opened, code, fmt);
        FOR_LANE (o, OCTETS) {
            __m512 f[8];
            expand8(f, fmt, code, opened, o, &table);
            FOR_LANE (j, 8)
                _mm512_store_ps(value[c + 8 * (size_t)o + (size_t)j], f[j]);
        }
        ask_ahead(code, ld);
    }
    for (size_t c = 0; c < t->cols; c += t->step)
        _mm512_store_ps(scale[c / GROUP],
                        step_scale(w, fmt, w->scales + r / PANEL * w->scale_ld, c0 + c));
}

static void fill_tile(struct tile *t, const struct wmat *w, size_t r, size_t np, size_t c0)
{
    t->cols = w->cols - c0 < TILE_COLS ? w->cols - c0 : TILE_COLS;
    t->step = step_of(w, w->format);
    t->times = w->format == W_E4M3 ? 256 : 1;
    for (size_t p = 0; p < np; p++, r += PANEL)
        switch (w->format) {
        case W_F32: fill_panel(t->value[p], t->scale[p], t, w, r, c0, W_F32); break;
        case W_F16: fill_panel(t->value[p], t->scale[p], t, w, r, c0, W_F16); break;
        case W_BF16: fill_panel(t->value[p], t->scale[p], t, w, r, c0, W_BF16); break;
        case W_E4M3: fill_panel(t->value[p], t->scale[p], t, w, r, c0, W_E4M3); break;
        case W_E2M1: fill_panel(t->value[p], t->scale[p], t, w, r, c0, W_E2M1); break;
        case W_Q8: fill_panel(t->value[p], t->scale[p], t, w, r, c0, W_Q8); break;
        case W_Q4: fill_panel(t->value[p], t->scale[p], t, w, r, c0, W_Q4); break;
        case W_Q3: fill_panel(t->value[p], t->scale[p], t, w, r, c0, W_Q3); break;
        default: fill_panel(t->value[p], t->scale[p], t, w, r, c0, W_Q2); break;
        }
}

/* m rows (their columns of the tile) times np panels, added to y: 20 sums, two weights, activations
 * (with 24 sums compilers spill). first: y holds nothing yet. */
INLINE void block(float *y, size_t ldy, const float *const *x, int m, int np, const struct tile *t,
                  const __mmask16 lanes[2], bool first)
{
    const __m512 times = _mm512_set1_ps(t->times);
    for (size_t c = 0; c < t->cols; c += t->step) {
        __m512 even[BLOCK][2], odd[BLOCK][2];
        size_t end = t->step < t->cols - c ? c + t->step : t->cols;
        FOR_LANE (i, m)
            FOR_LANE (p, np)
                even[i][p] = odd[i][p] = _mm512_setzero_ps();
        for (size_t k = c; k < end; k += 2) {
            __m512 w[2];
            FOR_LANE (p, np)
                w[p] = _mm512_load_ps(t->value[p][k]);
            FOR_LANE (i, m) {
                __m512 v = _mm512_set1_ps(x[i][k]);
                FOR_LANE (p, np)
                    even[i][p] = _mm512_fmadd_ps(w[p], v, even[i][p]);
            }
            FOR_LANE (p, np)
                w[p] = _mm512_load_ps(t->value[p][k + 1]);
            FOR_LANE (i, m) {
                __m512 v = _mm512_set1_ps(x[i][k + 1]);
                FOR_LANE (p, np)
                    odd[i][p] = _mm512_fmadd_ps(w[p], v, odd[i][p]);
            }
        }
        FOR_LANE (i, m)
            FOR_LANE (p, np) {
                float *at = y + (size_t)i * ldy + p * PANEL;
                __m512 total =
                    first && c == 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(lanes[p], at);
                __m512 sum = _mm512_mul_ps(_mm512_add_ps(even[i][p], odd[i][p]), times);
                total = _mm512_fmadd_ps(sum, _mm512_load_ps(t->scale[p][c / GROUP]), total);
                _mm512_mask_storeu_ps(at, lanes[p], total);
            }
    }
}

#define BLOCK_KERNEL(m)                                                                      \
    static void block_##m(float *y, size_t ldy, const float *const *x, const struct tile *t, \
                          size_t np, const __mmask16 lanes[2], bool first)                   \
    {                                                                                        \
        if (np == 2)                                                                         \
            block(y, ldy, x, m, 2, t, lanes, first);                                         \
        else                                                                                 \
            block(y, ldy, x, m, 1, t, lanes, first);                                         \
    }

BLOCK_KERNEL(1)
BLOCK_KERNEL(2)
BLOCK_KERNEL(3)
BLOCK_KERNEL(4)
BLOCK_KERNEL(5)

static void panels_many(float *y, size_t ldy, const float *x, size_t ldx, const uint32_t *pick,
                        size_t m, const struct wmat *w, size_t r0, size_t r1)
{
    static void (*const kernel[])(float *, size_t, const float *const *, const struct tile *,
                                  size_t, const __mmask16 *,
                                  bool) = {block_1, block_2, block_3, block_4, block_5};
    struct tile t;
    for (size_t r = r0; r < r1; r += 2 * PANEL) {
        size_t np = r1 - r > PANEL ? 2 : 1;
        const __mmask16 lanes[2] = {first_lanes(r1 - r), np == 2 ? first_lanes(r1 - r - PANEL) : 0};
        for (size_t c = 0; c < w->cols; c += TILE_COLS) {
            fill_tile(&t, w, r, np, c);
            for (size_t i = 0; i < m; i += BLOCK) {
                const float *row[BLOCK];
                size_t n = m - i < BLOCK ? m - i : BLOCK;
                for (size_t k = 0; k < n; k++)
                    row[k] = x + (pick ? pick[i + k] : i + k) * ldx + c;
                kernel[n - 1](y + i * ldy + r, ldy, row, &t, np, lanes, c == 0);
            }
        }
    }
}

static void panels(float *y, size_t ldy, const float *x, size_t ldx, const uint32_t *pick, size_t m,
                   const struct wmat *w, size_t r0, size_t r1)
{
    const float *row[FEW];
    if (m > FEW || w->format == W_F32 || w->format == W_F16) {
        panels_many(y, ldy, x, ldx, pick, m, w, r0, r1);
        return;
    }
    for (size_t i = 0; i < m; i++)
        row[i] = x + (pick ? pick[i] : i) * ldx;
    switch (w->format) {
    case W_BF16: few_bf16(y, ldy, row, m, w, r0, r1); break;
    case W_E4M3: few_e4m3(y, ldy, row, m, w, r0, r1); break;
    case W_E2M1: few_e2m1(y, ldy, row, m, w, r0, r1); break;
    case W_Q8: few_q8(y, ldy, row, m, w, r0, r1); break;
    case W_Q4: few_q4(y, ldy, row, m, w, r0, r1); break;
    case W_Q3: few_q3(y, ldy, row, m, w, r0, r1); break;
    default: few_q2(y, ldy, row, m, w, r0, r1); break;
    }
}

/* ------------------------------------------------------------------ plain rows */

/* One weight row against m activations; lanes of column modulo 64, folded. */
INLINE void dots(float *y, size_t ldy, const float *const *x, int m, const float *b, size_t n)
{
    __m512 s[4][4];
    size_t c = 0;
    FOR_LANE (i, m)
        FOR_LANE (j, 4)
            s[i][j] = _mm512_setzero_ps();
    for (; c + 64 <= n; c += 64)
        FOR_LANE (j, 4) {
            __m512 v = _mm512_loadu_ps(b + c + j * 16);
            FOR_LANE (i, m)
                s[i][j] = _mm512_fmadd_ps(v, _mm512_loadu_ps(x[i] + c + j * 16), s[i][j]);
        }
    for (; c < n; c += 16) {
        __mmask16 k = first_lanes(n - c);
        __m512 v = _mm512_maskz_loadu_ps(k, b + c);
        FOR_LANE (i, m)
            s[i][0] = _mm512_fmadd_ps(v, _mm512_maskz_loadu_ps(k, x[i] + c), s[i][0]);
    }
    FOR_LANE (i, m)
        y[(size_t)i * ldy] = fold_lanes(
            _mm512_add_ps(_mm512_add_ps(s[i][0], s[i][1]), _mm512_add_ps(s[i][2], s[i][3])));
}

static void plain(float *y, size_t ldy, const float *x, size_t ldx, const uint32_t *pick, size_t m,
                  const struct wmat *w, size_t r0, size_t r1, float *tmp)
{
    for (size_t r = r0; r < r1; r++) {
        const float *b = (const float *)(const void *)(w->codes + r * w->code_ld);
        if (w->format != W_F32) {
            decode_avx512(tmp, w, r);
            b = tmp;
        }
        for (size_t i = 0; i < m;) {
            const float *row[4];
            size_t n = m - i < 4 ? 1 : 4;
            for (size_t k = 0; k < n; k++)
                row[k] = x + (pick ? pick[i + k] : i + k) * ldx;
            if (n == 4)
                dots(y + i * ldy + r, ldy, row, 4, b, w->cols);
            else
                dots(y + i * ldy + r, ldy, row, 1, b, w->cols);
            i += n;
        }
    }
}

static void matmul(float *y, size_t ldy, const float *x, size_t ldx, const uint32_t *pick, size_t m,
                   const struct wmat *w, size_t r0, size_t r1, float *tmp)
{
    if (m == 0)
        return;
    if (w->panels)
        panels(y, ldy, x, ldx, pick, m, w, r0, r1);
    else
        plain(y, ldy, x, ldx, pick, m, w, r0, r1, tmp);
}

static float sum_squares(const float *x, size_t n)
{
    float y;
    dots(&y, 0, &x, 1, x, n);
    return y;
}

static float dot(const float *a, const float *b, size_t n)
{
    float y;
    dots(&y, 0, &a, 1, b, n);
    return y;
}

void matmul_init_avx512(struct kernels *k)
{
    k->matmul = matmul;
    k->sum_squares = sum_squares;
    k->dot = dot;
}
