/* Matrix times float rows, weights expanded exactly.
 *
 * Panels: an output is the sum over groups of columns, y = fma(s, scale, y), where the dot
 * product s of a group runs in four lanes (column modulo 4) without its scale: that costs one
 * fma for four outputs and group instead of one multiplication for four weights. One row takes
 * the weights from their bytes through registers; several rows share a tile of 16 rows of floats
 * that stays in the first cache. Both do the same additions.
 *
 * Plain matrices and f32: row after row through tmp. */
#include "dots.h"
#include "octet.h"

#include <string.h>

/* COLS columns of a panel make a tile of 8 KB. */
enum { COLS = 128, QUADS = PANEL / 4 };

struct tile {
    float w[QUADS][COLS / 4][4][4]; /* [row / 4][column / 4][row % 4][column % 4] */
    float scale[COLS / GROUP][PANEL];
    size_t groups, steps; /* groups of columns, and a group's columns / 4 */
};

/* ------------------------------------------------------------------ groups and scales */

/* Columns of one sum. */
static size_t group_cols(const struct wmat *w)
{
    if (w->format == W_E4M3)
        return w->block_cols % COLS == 0 ? COLS : GROUP;
    return w->format < W_E4M3 ? COLS : GROUP;
}

INLINE float32x4x4_t group_scales(const struct wmat *w, size_t p, size_t c, enum wformat f)
{
    if (f == W_E2M1 || wformat_has_halves(f))
        return panel_scales(w, p, c / GROUP);
    float32x4_t s = vdupq_n_f32(1);
    if (f == W_E4M3)
        s = vdupq_n_f32(e8m0_value(w->scales[p * w->scale_ld + c / w->block_cols]));
    return (float32x4x4_t){{s, s, s, s}};
}

/* ------------------------------------------------------------------ one row */

INLINE void quad_step(float32x4_t acc[4], struct octet o, float32x4_t x0, float32x4_t x1)
{
    FOR_LANE (r, 4)
        acc[r] = vfmaq_f32(vfmaq_f32(acc[r], o.c[0][r], x0), o.c[1][r], x1);
}

/* A group of four rows of the panel. */
INLINE void quad_group(float32x4_t acc[4], const uint8_t *code, const float *x, enum wformat f,
                       const struct octet_luts *t, const bool tiny)
{
    uint8x16_t c[4];
    open_group(c, code, f);
    FOR_LANE (o, OCTETS)
        quad_step(acc, octet(code, c, o, f, t, tiny), vld1q_f32(x + 8 * o),
                  vld1q_f32(x + 8 * o + 4));
}

/* tiny: E4M3 codes as 2^-120 of their values, x as 2^100 of its. */
INLINE void one_row(float out[PANEL], const struct wmat *w, size_t p, const float *x,
                    enum wformat f, const bool tiny)
{
    const struct octet_luts t = octet_luts_of(w, f);
    const uint8_t *code = w->codes + p * w->code_ld;
    const size_t bytes = 64 * (size_t)group_lines(f), step = group_cols(w);
    float32x4_t y[QUADS] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    for (size_t c = 0; c < w->cols; c += step) {
        const size_t end = step < w->cols - c ? c + step : w->cols;
        float32x4_t a[4], b[4], d[4], e[4];
        FOR_LANE (r, 4)
            a[r] = b[r] = d[r] = e[r] = vdupq_n_f32(0);
        for (size_t i = c; i < end; i += GROUP, code += bytes) {
            FOR_LANE (line, group_lines(f))
                stream_ahead(code + 64 * line);
            quad_group(a, code, x + i, f, &t, tiny);
            quad_group(b, code + 16, x + i, f, &t, tiny);
            quad_group(d, code + 32, x + i, f, &t, tiny);
            quad_group(e, code + 48, x + i, f, &t, tiny);
        }
        const float32x4x4_t s = group_scales(w, p, c, f);
        const float unit = tiny ? 0x1p20f : 1;
        y[0] = vfmaq_f32(y[0], vmulq_n_f32(sum_each(a[0], a[1], a[2], a[3]), unit), s.val[0]);
        y[1] = vfmaq_f32(y[1], vmulq_n_f32(sum_each(b[0], b[1], b[2], b[3]), unit), s.val[1]);
        y[2] = vfmaq_f32(y[2], vmulq_n_f32(sum_each(d[0], d[1], d[2], d[3]), unit), s.val[2]);
        y[3] = vfmaq_f32(y[3], vmulq_n_f32(sum_each(e[0], e[1], e[2], e[3]), unit), s.val[3]);
    }
    FOR_LANE (q, QUADS)
        vst1q_f32(out + 4 * q, y[q]);
}

/* ------------------------------------------------------------------ several rows */

/* Columns c .. end of panel p. */
INLINE void expand(struct tile *t, const struct wmat *w, size_t p, size_t c, size_t end,
                   enum wformat f)
{
    const struct octet_luts lut = octet_luts_of(w, f);
    const size_t bytes = 64 * (size_t)group_lines(f), group = group_cols(w);
    const uint8_t *code = w->codes + p * w->code_ld + c / GROUP * bytes;
    for (size_t i = 0; i < (end - c) / 4; i += GROUP / 4, code += bytes)
        FOR_LANE (q, QUADS) {
            uint8x16_t opened[4];
            open_group(opened, code + 16 * q, f);
            FOR_LANE (k, OCTETS) {
                struct octet o = octet(code + 16 * q, opened, k, f, &lut, false);
                FOR_LANE (r, 4) {
                    vst1q_f32(t->w[q][i + 2 * (size_t)k][r], o.c[0][r]);
                    vst1q_f32(t->w[q][i + 2 * (size_t)k + 1][r], o.c[1][r]);
                }
            }
        }
    t->groups = (end - c + group - 1) / group;
    t->steps = (end - c < group ? end - c : group) / 4;
    for (size_t g = 0; g < t->groups; g++)
        vst1q_f32_x4(t->scale[g], group_scales(w, p, c + g * group, f));
}

/* m <= 4 rows of x from the tile's first column on, y[m][16]. */
INLINE void tile_rows(float *y, size_t ldy, const float *const *x, const struct tile *t, bool first,
                      const int m)
{
    FOR_LANE (q, QUADS) {
        const float *w = t->w[q][0][0];
        float32x4_t total[4];
        FOR_LANE (i, m)
            total[i] = first ? vdupq_n_f32(0) : vld1q_f32(y + (size_t)i * ldy + 4 * q);
        size_t c = 0;
        for (size_t g = 0; g < t->groups; g++) {
            float32x4_t acc[4][4];
            FOR_LANE (i, m)
                FOR_LANE (r, 4)
                    acc[i][r] = vdupq_n_f32(0);
            for (size_t s = 0; s < t->steps; s++, c += 4, w += 16) {
                const float32x4_t w0 = vld1q_f32(w), w1 = vld1q_f32(w + 4);
                const float32x4_t w2 = vld1q_f32(w + 8), w3 = vld1q_f32(w + 12);
                FOR_LANE (i, m) {
                    const float32x4_t v = vld1q_f32(x[i] + c);
                    acc[i][0] = vfmaq_f32(acc[i][0], w0, v);
                    acc[i][1] = vfmaq_f32(acc[i][1], w1, v);
                    acc[i][2] = vfmaq_f32(acc[i][2], w2, v);
                    acc[i][3] = vfmaq_f32(acc[i][3], w3, v);
                }
            }
            const float32x4_t scale = vld1q_f32(t->scale[g] + 4 * q);
            FOR_LANE (i, m)
                total[i] = vfmaq_f32(total[i], sum_each(acc[i][0], acc[i][1], acc[i][2], acc[i][3]),
                                     scale);
        }
        FOR_LANE (i, m)
            vst1q_f32(y + (size_t)i * ldy + 4 * q, total[i]);
    }
}

static void tile_rows_n(float *y, size_t ldy, const float *const *x, const struct tile *t,
                        bool first, size_t n)
{
    switch (n) {
    case 1: tile_rows(y, ldy, x, t, first, 1); break;
    case 2: tile_rows(y, ldy, x, t, first, 2); break;
    case 3: tile_rows(y, ldy, x, t, first, 3); break;
    default: tile_rows(y, ldy, x, t, first, 4); break;
    }
}

/* ------------------------------------------------------------------ formats */

struct panels {
    void (*row)(float out[PANEL], const struct wmat *w, size_t p, const float *x);
    void (*expand)(struct tile *t, const struct wmat *w, size_t p, size_t c, size_t end);
};

#define FORMAT(name, f)                                                                      \
    static void row_##name(float out[PANEL], const struct wmat *w, size_t p, const float *x) \
    {                                                                                        \
        one_row(out, w, p, x, f, false);                                                     \
    }                                                                                        \
    static void expand_##name(struct tile *t, const struct wmat *w, size_t p, size_t c,      \
                              size_t end)                                                    \
    {                                                                                        \
        expand(t, w, p, c, end, f);                                                          \
    }

FORMAT(f16, W_F16)
FORMAT(bf16, W_BF16)
FORMAT(e4m3, W_E4M3)
FORMAT(e2m1, W_E2M1)
FORMAT(q8, W_Q8)
FORMAT(q4, W_Q4)
FORMAT(q3, W_Q3)
FORMAT(q2, W_Q2)

static void row_e4m3_tiny(float out[PANEL], const struct wmat *w, size_t p, const float *x)
{
    one_row(out, w, p, x, W_E4M3, true);
}

/* ORDER FORMATS */
static const struct panels panel_kernels[N_WFORMATS] = {{NULL, NULL},
                                                        {row_f16, expand_f16},
                                                        {row_bf16, expand_bf16},
                                                        {row_e4m3, expand_e4m3},
                                                        {row_e2m1, expand_e2m1},
                                                        {row_q8, expand_q8},
                                                        {row_q4, expand_q4},
                                                        {row_q3, expand_q3},
                                                        {row_q2, expand_q2}};

/* ------------------------------------------------------------------ the matrix */

struct job {
    float *y;
    size_t ldy;
    const float *x;
    size_t ldx;
    const uint32_t *pick;
    size_t m;
    const struct wmat *w;
    size_t r0, r1;
};

static const float *row_of(const struct job *j, size_t i)
{
    return j->x + (j->pick ? j->pick[i] : i) * j->ldx;
}

/* Rows of W that panel p has in this job. */
static size_t panel_rows(const struct job *j, size_t p)
{
    return j->r1 - p * PANEL < PANEL ? j->r1 - p * PANEL : PANEL;
}

/* tmp = 2^100 x. True if all of x lies between 2^-97 and 2^27 (or is 0): then products with
 * 2^-120 of e4m3 values neither overflow nor have bits below 2^-149, and sums are those of the
 * true values, bit for bit. */
static bool enlarge(float *tmp, const float *x, size_t n)
{
    uint32x4_t good = vdupq_n_u32(~0u);
    for (size_t i = 0; i < n; i += 4) { /* n % GROUP == 0 */
        const float32x4_t v = vld1q_f32(x + i), a = vabsq_f32(v);
        const uint32x4_t in =
            vandq_u32(vcgeq_f32(a, vdupq_n_f32(0x1p-97f)), vcleq_f32(a, vdupq_n_f32(0x1p27f)));
        good = vandq_u32(good, vorrq_u32(in, vceqzq_f32(a)));
        vst1q_f32(tmp + i, vmulq_n_f32(v, 0x1p100f));
    }
    return vminvq_u32(good) != 0;
}

static void panels_one(const struct job *j, const struct panels *k, float *tmp)
{
    const bool tiny = j->w->format == W_E4M3 && enlarge(tmp, row_of(j, 0), j->w->cols);
    const float *x = tiny ? tmp : row_of(j, 0);
    for (size_t p = j->r0 / PANEL; p * PANEL < j->r1; p++) {
        float out[PANEL];
        (tiny ? row_e4m3_tiny : k->row)(out, j->w, p, x);
        memcpy(j->y + p * PANEL, out, panel_rows(j, p) * sizeof *out);
    }
}

/* Rows i0 .. i1 against one tile. */
static void panel_tile(const struct job *j, const struct tile *t, size_t p, size_t c, size_t i0,
                       size_t i1)
{
    const size_t rows = panel_rows(j, p);
    for (size_t i = i0; i < i1; i += 4) {
        const size_t n = i1 - i < 4 ? i1 - i : 4;
        const float *x[4];
        float edge[4 * PANEL] = {0}, *y = j->y + i * j->ldy + p * PANEL;
        for (size_t k = 0; k < n; k++) {
            x[k] = row_of(j, i + k) + c;
            if (rows < PANEL && c > 0)
                memcpy(edge + k * PANEL, y + k * j->ldy, rows * sizeof *y);
        }
        float *out = rows < PANEL ? edge : y;
        const size_t ld = rows < PANEL ? PANEL : j->ldy;
        tile_rows_n(out, ld, x, t, c == 0, n);
        for (size_t k = 0; k < n && rows < PANEL; k++)
            memcpy(y + k * j->ldy, edge + k * PANEL, rows * sizeof *y);
    }
}

/* Blocks of rows and columns of x that the second cache holds (256 KB) while all panels pass. */
enum { BLOCK_ROWS = 256, BLOCK = 65536 };

static void panels_many(const struct job *j, const struct panels *k)
{
    struct tile t;
    const size_t cols = j->w->cols;
    for (size_t i = 0; i < j->m; i += BLOCK_ROWS) {
        const size_t i1 = i + BLOCK_ROWS < j->m ? i + BLOCK_ROWS : j->m;
        const size_t wide = BLOCK / (i1 - i) / COLS * COLS;
        for (size_t b = 0; b < cols; b += wide)
            for (size_t p = j->r0 / PANEL; p * PANEL < j->r1; p++)
                for (size_t c = b; c < cols && c < b + wide; c += COLS) {
                    k->expand(&t, j->w, p, c, c + COLS < cols ? c + COLS : cols);
                    panel_tile(j, &t, p, c, i, i1);
                }
    }
}

/* ------------------------------------------------------------------ plain */

static void plain(const struct job *j, float *tmp)
{
    const struct wmat *w = j->w;
    for (size_t r = j->r0; r < j->r1; r++) {
        const uint8_t *row = (const uint8_t *)tmp;
        if (w->format == W_F32 && !w->panels)
            row = w->codes + r * w->code_ld;
        else
            decode_neon(tmp, w, r);
        for (size_t i = 0; i < j->m; i += 4) {
            const size_t n = j->m - i < 4 ? j->m - i : 4;
            const float *x[4];
            for (size_t k = 0; k < n; k++)
                x[k] = row_of(j, i + k);
            dot_rows(j->y + i * j->ldy + r, j->ldy, x, row, w->cols, n);
        }
    }
}

static void matmul_neon(float *y, size_t ldy, const float *x, size_t ldx, const uint32_t *pick,
                        size_t m, const struct wmat *w, size_t r0, size_t r1, float *tmp)
{
    const struct job j = {y, ldy, x, ldx, pick, m, w, r0, r1};
    if (!w->panels || w->format == W_F32)
        plain(&j, tmp);
    else if (m == 1)
        panels_one(&j, &panel_kernels[w->format], tmp);
    else
        panels_many(&j, &panel_kernels[w->format]);
}

void init_neon_matmul(struct kernels *k)
{
    k->matmul = matmul_neon;
}
