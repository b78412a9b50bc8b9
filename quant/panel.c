/* Plain rows <-> panels (drawn in simd.h): 4-byte words of 16 rows change places, nothing else. */
#include "quant.h"

#include <string.h>

bool panel_fits(const struct wmat *w)
{
    if (w->panels || w->cols == 0 || w->cols % GROUP != 0)
        return false;
    switch (w->format) {
    case W_BF16:
    case W_Q8:
    case W_Q4:
    case W_Q3:
    case W_Q2: return true;
    case W_E4M3: return w->block_rows % PANEL == 0 && w->block_cols % GROUP == 0;
    case W_E2M1: return w->block_rows == 1 && w->block_cols == GROUP;
    default: return false; /* F32 and F16 matrices are small and rare: they stay plain */
    }
}

/* Bytes of one row's scales, plain. */
static size_t scale_bytes(const struct wmat *w)
{
    switch (w->format) {
    case W_E4M3: return (w->cols + w->block_cols - 1) / w->block_cols;
    case W_E2M1: return w->cols / GROUP;
    default: return wformat_has_halves(w->format) ? w->cols / GROUP * 2 : 0;
    }
}

/* Bytes of a scale that change places together; 0: one scale serves a whole panel. */
static size_t scale_unit(enum wformat f)
{
    return f == W_E2M1 ? 1 : wformat_has_halves(f) ? 2 : 0;
}

struct wmat plain_shape(const struct wtype *t, uint32_t rows, uint32_t cols)
{
    struct wmat w = {.format = t->format,
                     .rows = rows,
                     .cols = cols,
                     .block_rows = 1,
                     .block_cols = GROUP,
                     .table = t->table,
                     .code_ld = wformat_row_bytes(t->format, cols)};
    w.scale_ld = scale_bytes(&w);
    return w;
}

struct wmat panel_shape(const struct wmat *plain, size_t rows)
{
    struct wmat w = *plain;
    w.panels = true;
    w.blocks = NULL;
    w.rows = (uint32_t)rows;
    w.codes = w.scales = NULL;
    w.code_ld = wformat_row_bytes(w.format, w.cols) * PANEL;
    w.scale_ld = scale_bytes(plain) * (scale_unit(w.format) > 0 ? PANEL : 1);
    return w;
}

size_t panel_count(const struct wmat *w)
{
    return ((size_t)w->rows + PANEL - 1) / PANEL;
}

/* Four words of each of four rows: word i of row r -> place r of line i (compilers make shuffles of it). */
static inline void transpose4(uint8_t *restrict out, const uint8_t *restrict in, size_t ld)
{
    uint32_t a[4], b[4], c[4], d[4];
    memcpy(a, in, 16);
    memcpy(b, in + ld, 16);
    memcpy(c, in + 2 * ld, 16);
    memcpy(d, in + 3 * ld, 16);
    for (int i = 0; i < 4; i++) {
        uint32_t line[4] = {a[i], b[i], c[i], d[i]};
        memcpy(out + i * PANEL * 4, line, 16);
    }
}

/* Words of 16 rows: row after row -> interleaved. */
static void interleave4(uint8_t *restrict out, const uint8_t *restrict in, size_t ld, size_t words)
{
    size_t u = 0;
    for (; u + 4 <= words; u += 4)
        for (size_t r = 0; r < PANEL; r += 4)
            transpose4(out + (u * PANEL + r) * 4, in + r * ld + u * 4, ld);
    for (; u < words; u++)
        for (size_t r = 0; r < PANEL; r++)
            memcpy(out + (u * PANEL + r) * 4, in + r * ld + u * 4, 4);
}

/* `units` of `size` bytes of each of so many rows; missing rows are zero. */
static void interleave(uint8_t *restrict out, const uint8_t *restrict in, size_t ld, size_t rows,
                       size_t units, size_t size)
{
    memset(out, 0, units * PANEL * size);
    for (size_t r = 0; r < rows; r++)
        for (size_t u = 0; u < units; u++)
            for (size_t i = 0; i < size; i++)
                out[(u * PANEL + r) * size + i] = in[r * ld + u * size + i];
}

/* A span of columns at a time becomes plain rows first: panels keep the order of columns. */
static void pack_blocks(uint8_t *codes, uint8_t *scales, const struct wmat *w, size_t row)
{
    enum { SPAN = 256 };
    uint8_t c[PANEL * SPAN], s[PANEL * SPAN / GROUP * 2];
    struct wmat span = *w;
    span.rows = (uint32_t)(w->rows - row < PANEL ? w->rows - row : PANEL);
    span.blocks = NULL;
    span.codes = c;
    span.scales = s;
    for (size_t at = 0; at < w->cols; at += SPAN) {
        span.cols = (uint32_t)(w->cols - at < SPAN ? w->cols - at : SPAN);
        span.code_ld = wformat_row_bytes(w->format, span.cols);
        span.scale_ld = scale_bytes(&span);
        for (size_t r = 0; r < span.rows; r++)
            block_encode_span(c + r * span.code_ld, s + r * span.scale_ld, w, row + r, at,
                              span.cols);
        panel_pack(codes, scales, &span, 0);
        codes += PANEL * span.code_ld;
        scales += PANEL * span.scale_ld;
    }
}

void panel_pack(uint8_t *codes, uint8_t *scales, const struct wmat *plain, size_t row)
{
    if (plain->blocks) {
        pack_blocks(codes, scales, plain, row);
        return;
    }
    size_t rows = plain->rows - row < PANEL ? plain->rows - row : PANEL;
    size_t bytes = wformat_row_bytes(plain->format, plain->cols);
    const uint8_t *in = plain->codes + row * plain->code_ld;
    if (rows == PANEL)
        interleave4(codes, in, plain->code_ld, bytes / 4);
    else
        interleave(codes, in, plain->code_ld, rows, bytes / 4, 4);
    size_t unit = scale_unit(plain->format), n = scale_bytes(plain);
    if (unit > 0)
        interleave(scales, plain->scales + row * plain->scale_ld, plain->scale_ld, rows, n / unit,
                   unit);
    else if (n > 0)
        memcpy(scales, plain->scales + row / plain->block_rows * plain->scale_ld, n);
}

bool e4m3_has_nan(const uint8_t *code, size_t n)
{
    const uint64_t seven = 0x7f7f7f7f7f7f7f7fu, one = 0x0101010101010101u;
    uint64_t found = 0;
    for (size_t i = 0; i < n; i += 8) { /* a byte of t is 0 where the code is NaN */
        uint64_t t;
        memcpy(&t, code + i, sizeof t);
        t = (t & seven) ^ seven;
        found |= (t - one) & ~t;
    }
    return (found & 0x8080808080808080u) != 0;
}

void panel_unpack(uint8_t *codes, size_t code_ld, uint8_t *scales, size_t scale_ld,
                  const struct wmat *w, size_t panel)
{
    size_t first = panel * PANEL, rows = w->rows - first < PANEL ? w->rows - first : PANEL;
    const uint8_t *in = w->codes + panel * w->code_ld;
    const uint8_t *s = w->scales ? w->scales + panel * w->scale_ld : NULL; /* bf16 has none */
    for (size_t u = 0; u < w->code_ld / (4 * PANEL); u++)
        for (size_t r = 0; r < rows; r++)
            memcpy(codes + r * code_ld + u * 4, in + (u * PANEL + r) * 4, 4);
    size_t unit = scale_unit(w->format);
    if (unit == 0) {
        if (w->scale_ld > 0)
            memcpy(scales, s, w->scale_ld);
        return;
    }
    for (size_t u = 0; u < w->scale_ld / (unit * PANEL); u++)
        for (size_t r = 0; r < rows; r++)
            memcpy(scales + r * scale_ld + u * unit, s + (u * PANEL + r) * unit, unit);
}
