/* Random and extreme operands. */
#include "check.h"

#include "simd/codes.h"

#include <math.h>
#include <string.h>

/* splitmix64 */
uint64_t random_bits(struct check *t)
{
    uint64_t z = t->random += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

size_t random_below(struct check *t, size_t n)
{
    return (size_t)(random_bits(t) >> 33) % n;
}

float random_float(struct check *t)
{
    int32_t sum = 0; /* of four uniform numbers: near enough to normal */
    uint64_t z = random_bits(t);
    for (int i = 0; i < 4; i++)
        sum += (int32_t)(z >> 16 * i & 0xffff) - 0x8000;
    return (float)sum * (1.0f / 37837);
}

void random_bytes(struct check *t, void *p, size_t n)
{
    uint8_t *b = p;
    for (size_t i = 0; i < n; i += 8) {
        uint64_t z = random_bits(t);
        memcpy(b + i, &z, n - i < 8 ? n - i : 8);
    }
}

/* ORDER KINDS */
const char *kind_name(enum kind k)
{
    static const char *const name[N_KINDS] = {"random",     "one-hot",     "largest codes",
                                              "wide",       "tiny scales", "huge scales",
                                              "not finite", "zero"};
    return name[k];
}

enum kind random_kind(struct check *t)
{
    return (enum kind)random_below(t, N_KINDS);
}

static float random_value(struct check *t, enum kind kind)
{
    float v = random_float(t);
    switch (kind) {
    case K_MAX: return 3.0f;
    case K_WIDE: return ldexpf(v, (int)random_below(t, 81) - 40);
    case K_TINY: return v * 0x1p60f;
    case K_HUGE: return v * 0x1p-40f;
    case K_ZERO: return v < 0 ? -0.0f : 0.0f;
    case K_ONE_HOT: return 0;
    default: return v;
    }
}

void random_rows(struct check *t, float *x, size_t ld, size_t rows, size_t cols, enum kind kind)
{
    for (size_t r = 0; r < rows; r++, x += ld) {
        for (size_t c = 0; c < cols; c++)
            x[c] = random_value(t, kind);
        if (kind == K_ONE_HOT && cols > 0)
            x[random_below(t, cols)] = 1;
        if (kind == K_NAN && cols > 0 && r % 3 < 2)
            x[random_below(t, cols)] = r % 3 == 0 ? NAN : r % 2 == 0 ? INFINITY : -INFINITY;
    }
}

/* ------------------------------------------------------------------ weights */

static void put_half(uint8_t *at, uint16_t h)
{
    memcpy(at, &h, sizeof h);
}

/* The codes of one row. */
static void random_codes(struct check *t, uint8_t *code, enum wformat f, size_t cols,
                         enum kind kind, bool nan)
{
    size_t bytes = wformat_row_bytes(f, cols);
    random_bytes(t, code, bytes);
    uint8_t top = random_bits(t) & 1 ? 0xff : 0x7f; /* one sign for the whole row */
    switch (f) {
    case W_F32:
        for (size_t c = 0; c < cols; c++) {
            float v = random_value(t, kind == K_TINY || kind == K_HUGE ? K_RANDOM : kind);
            v *= kind == K_TINY ? 0x1p-127f : kind == K_HUGE ? 0x1p124f : 1;
            v = kind == K_ONE_HOT || kind == K_ZERO ? random_float(t) : v;
            memcpy(code + 4 * c, &v, sizeof v);
        }
        break;
    case W_BF16:
    case W_F16:
        for (size_t c = 0; c < cols; c++) {
            uint16_t h = (uint16_t)random_bits(t), e = f == W_F16 ? 0x7c00 : 0x7f80;
            if (kind == K_TINY) /* denormal */
                h &= (uint16_t)~e;
            else if (kind == K_HUGE)
                h = f == W_F16 ? (h & 0x83ff) | 0x7800 : (h & 0x807f) | 0x7e00;
            else if (kind == K_MAX)
                h = f == W_F16 ? 0x7bff : 0x42ff;
            else if (!nan && f == W_BF16) /* 2^-8 .. 2^7 */
                h = (uint16_t)((h & 0x807f) | ((h & 0x780) + (119 << 7)));
            else if (!nan && (h & e) == e)
                h = (uint16_t)(h & 0xbfff);
            put_half(code + 2 * c, h);
        }
        break;
    case W_E4M3:
        for (size_t c = 0; c < bytes; c++) {
            if (kind == K_MAX)
                code[c] = (uint8_t)(top - 1);
            else if (kind == K_HUGE) /* below 2, or the value would overflow */
                code[c] &= 0xbf;
            if (!nan && (code[c] & 0x7f) == 0x7f)
                code[c] ^= 1;
            else if (nan && random_below(t, 8) == 0)
                code[c] |= 0x7f;
        }
        break;
    case W_E2M1:
        if (kind == K_MAX)
            memset(code, top == 0x7f ? 0x77 : 0xff, bytes);
        else if (kind == K_HUGE) /* at most 1.5 */
            for (size_t c = 0; c < bytes; c++)
                code[c] &= 0xbb;
        break;
    case W_Q8:
        if (kind == K_MAX) /* -128 too */
            memset(code, top == 0x7f ? 0x7f : 0x80, bytes);
        break;
    case W_Q4:
    case W_Q3:
    case W_Q2:
    case N_WFORMATS: break;
    }
}

/* Values between a lowest and a highest that both occur: kernels may have a way of their own for tables
 * whose values lie close together, or near to 0. K_MAX: nearly all are the same end, where sums are largest. */
static const int8_t *random_table(struct check *t, size_t n, enum kind kind)
{
    static const uint8_t spans[] = {0, 3, 15, 16, 17, 32, 33, 64, 65, 129, 255};
    int8_t *table = keep(t, n);
    int span = spans[random_below(t, sizeof spans)];
    int low = random_bits(t) & 1 ? -(span / 2) : -128 + (int)random_below(t, (size_t)(256 - span));
    size_t first = random_below(t, n), last = (first + 1 + random_below(t, n - 1)) % n;
    bool top = random_bits(t) & 1;
    for (size_t i = 0; i < n; i++)
        table[i] =
            (int8_t)(low + (kind == K_MAX ? span * top : (int)random_below(t, (size_t)span + 1)));
    table[first] = (int8_t)low;
    table[last] = (int8_t)(low + span);
    return table;
}

static uint8_t random_e8m0(struct check *t, enum kind kind)
{
    return kind == K_TINY   ? (uint8_t)random_below(t, 2)
           : kind == K_HUGE ? 254
                            : (uint8_t)(112 + random_below(t, 24));
}

static uint16_t random_f16_scale(struct check *t, enum kind kind, bool nan)
{
    uint16_t h = (uint16_t)random_bits(t);
    if (kind == K_TINY)
        return h & 0x83ff;
    if (kind == K_HUGE)
        return 0x7bff;
    if (nan)
        return h;
    return (uint16_t)((h & 0x83ff) | (8 + random_below(t, 12)) << 10);
}

/* Scales of rows x cols, plain; sets the blocks of *w. */
static void random_scales(struct check *t, struct weights *a, enum kind kind, bool nan)
{
    static const uint16_t tile[][2] = {{128, 128}, {32, 32}, {16, 96}, {1, 32}, {3, 5}, {1, 16}};
    struct wmat *w = &a->w;
    size_t rows = w->rows, n;
    if (w->format < W_E4M3)
        return;
    if (w->format == W_E4M3 || w->format == W_E2M1) {
        size_t which = random_below(t, t->line->panels ? 3 : 6);
        if (w->format == W_E2M1 && (t->line->panels || which != 5))
            which = 3;
        w->block_rows = tile[which][0];
        w->block_cols = tile[which][1];
        n = (w->cols + w->block_cols - 1) / w->block_cols;
        rows = (rows + w->block_rows - 1) / w->block_rows;
    } else {
        n = (w->cols + GROUP - 1) / GROUP * 2;
    }
    w->scale_ld = n + (t->line->panels ? 0 : random_below(t, 3));
    a->scale_bytes = (rows - 1) * w->scale_ld + n;
    uint8_t *s = keep(t, a->scale_bytes);
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < n; i += w->format < W_Q8 ? 1 : 2)
            if (w->format < W_Q8)
                s[r * w->scale_ld + i] = random_e8m0(t, kind);
            else
                put_half(s + r * w->scale_ld + i, random_f16_scale(t, kind, nan));
    w->scales = s;
}

/* Panels from the drawing of simd.h: words of 4 bytes of 16 rows change places, and so do
 * scales. */
struct weights weights_as_panels(struct check *t, const struct weights *plain)
{
    const struct wmat *p = &plain->w;
    struct weights a = *plain;
    struct wmat *w = &a.w;
    size_t words = wformat_row_bytes(p->format, p->cols) / 4, panels = (p->rows + 15) / 16;
    size_t groups = p->cols / 32, pad = random_below(t, 2);
    w->panels = true;
    w->code_ld = words * 64 + pad * 64;
    a.code_bytes = panels * w->code_ld - pad * 64;
    uint8_t *code = keep(t, panels * w->code_ld);
    for (size_t r = 0; r < p->rows; r++)
        for (size_t u = 0; u < words; u++)
            memcpy(code + r / 16 * w->code_ld + u * 64 + r % 16 * 4,
                   p->codes + r * p->code_ld + 4 * u, 4);
    w->codes = code;
    if (p->format < W_E4M3)
        return a;
    size_t unit = p->format == W_E2M1 ? 1 : 2;
    size_t n =
        p->format == W_E4M3 ? (p->cols + p->block_cols - 1) / p->block_cols : groups * 16 * unit;
    w->scale_ld = n + pad * 16;
    a.scale_bytes = panels * w->scale_ld - pad * 16;
    uint8_t *scale = keep(t, panels * w->scale_ld);
    for (size_t q = 0; q < panels; q++)
        if (p->format == W_E4M3)
            memcpy(scale + q * w->scale_ld, p->scales + 16 * q / p->block_rows * p->scale_ld, n);
        else
            for (size_t g = 0; g < groups; g++)
                for (size_t r = 0; r < 16 && 16 * q + r < p->rows; r++)
                    memcpy(scale + q * w->scale_ld + (g * 16 + r) * unit,
                           p->scales + (16 * q + r) * p->scale_ld + g * unit, unit);
    w->scales = scale;
    return a;
}

struct weights random_weights(struct check *t, size_t rows, size_t cols, enum kind kind, bool nan)
{
    enum wformat f = t->line->format;
    size_t bytes = wformat_row_bytes(f, cols);
    struct weights a = {.w = {.format = f, .rows = (uint32_t)rows, .cols = (uint32_t)cols}};
    a.w.code_ld = bytes + (t->line->panels ? 0 : random_below(t, 4));
    a.code_bytes = (rows - 1) * a.w.code_ld + bytes;
    uint8_t *code = keep(t, a.code_bytes);
    for (size_t r = 0; r < rows; r++)
        random_codes(t, code + r * a.w.code_ld, f, cols, kind, nan);
    a.w.codes = code;
    if (wformat_table(f) > 0)
        a.w.table = random_table(t, wformat_table(f), kind);
    random_scales(t, &a, kind, nan);
    return t->line->panels ? weights_as_panels(t, &a) : a;
}

struct wmat guard_weights(struct check *t, const struct weights *a, enum edge e)
{
    struct wmat w = a->w;
    size_t align = w.panels ? 64 : 1, scale_align = w.panels && w.format != W_E4M3 ? 16 : 1;
    w.codes = guard_in(t, "the codes", w.codes, a->code_bytes, align, e);
    if (w.scales)
        w.scales = guard_in(t, "the scales", w.scales, a->scale_bytes, scale_align, e);
    if (w.table)
        w.table = guard_in(t, "the table", w.table, wformat_table(w.format), 1, e);
    return w;
}

/* ------------------------------------------------------------------ quantized rows */

static float random_scale(struct check *t, enum kind kind)
{
    float v = 0.5f + fabsf(random_float(t));
    switch (kind) {
    case K_WIDE: return ldexpf(v, (int)random_below(t, 81) - 40);
    case K_TINY: return v * 0x1p-106f; /* quantize gives no smaller one */
    case K_HUGE: return v * 0x1p-60f;
    case K_NAN: return random_below(t, 4) == 0 ? NAN : v;
    default: return v;
    }
}

struct qrows random_qrows(struct check *t, enum qkind q, size_t n, size_t cols, enum kind kind)
{
    size_t groups = cols / GROUP, size = q == Q_8 ? 1 : 2;
    int limit = q == Q_8 ? 127 : 2047;
    int8_t *c8 = keep(t, n * cols * size);
    int16_t *c16 = (int16_t *)(void *)c8;
    struct qrows x = {.kind = q, .cols = cols, .code = c8};
    x.scale = keep(t, n * groups * sizeof *x.scale);
    x.sum = keep(t, n * groups * sizeof *x.sum);
    for (size_t r = 0; r < n; r++) {
        size_t hot = random_below(t, cols);
        int sign = random_bits(t) & 1 ? -1 : 1;
        for (size_t c = 0; c < cols; c++) {
            size_t g = r * groups + c / GROUP;
            if (c % GROUP == 0)
                x.scale[g] = random_scale(t, kind);
            int v = (int)random_below(t, 2 * (size_t)limit + 1) - limit;
            v = kind == K_MAX       ? sign * limit
                : kind == K_ONE_HOT ? (c == hot ? limit : 0)
                : kind == K_ZERO    ? 0
                : isnan(x.scale[g]) ? 0
                                    : v;
            x.sum[g] += v;
            if (q == Q_8)
                c8[r * cols + octet_place(c)] = (int8_t)v;
            else
                c16[r * cols + c] = (int16_t)v;
        }
    }
    return x;
}

struct qrows guard_qrows(struct check *t, const struct qrows *q, size_t n, enum edge e)
{
    struct qrows x = *q;
    size_t size = q->kind == Q_8 ? 1 : 2, groups = n * q->cols / GROUP;
    size_t align = q->cols % 64 == 0 ? 64 : size;
    /* struct qrows serves writers too: the copies are read-only all the same. */
    x.code =
        (void *)(uintptr_t)guard_in(t, "the rows' codes", q->code, n * q->cols * size, align, e);
    x.scale = (void *)(uintptr_t)guard_in(t, "the rows' scales", q->scale, groups * 4, 4, e);
    x.sum = (void *)(uintptr_t)guard_in(t, "the rows' sums", q->sum, groups * 4, 4, e);
    return x;
}

/* ------------------------------------------------------------------ rows of the caches */

static uint8_t random_e4m3(struct check *t)
{
    uint8_t c = (uint8_t)random_bits(t);
    return (c & 0x7f) == 0x7f ? c ^ 1 : c;
}

uint8_t *random_cache(struct check *t, struct rshape s, size_t n, enum kind kind)
{
    size_t bytes = row_bytes(s), flat = s.width - s.rope;
    uint8_t *cache = keep(t, n * bytes), *row = cache;
    for (size_t i = 0; i < n; i++, row += bytes) {
        size_t codes = s.format == R_E4M3_64B  ? flat
                       : s.format == R_E4M3_32 ? s.width
                                               : s.width / 2;
        size_t scales = s.format == R_E4M3_64B  ? flat / 64
                        : s.format == R_E2M1_16 ? s.width / 16
                                                : s.width / 32;
        if (s.format == R_F32) {
            for (size_t c = 0; c < s.width; c++) {
                float v = random_value(t, kind == K_ONE_HOT ? K_RANDOM : kind);
                memcpy(row + 4 * c, &v, sizeof v);
            }
            continue;
        }
        for (size_t c = 0; c < codes; c++)
            row[c] = s.format <= R_E4M3_32 ? random_e4m3(t) : (uint8_t)random_bits(t);
        if (kind == K_MAX)
            memset(row, s.format <= R_E4M3_32 ? 0x7e : i % 2 ? 0x77 : 0xff, codes);
        for (size_t c = 0; c < scales; c++)
            row[codes + c] = s.format == R_E2M1_16 ? random_e4m3(t) & 0x7f : random_e8m0(t, kind);
        for (size_t c = 0; s.format == R_E4M3_64B && c < s.rope; c++)
            put_half(row + codes + scales + 2 * c, bf16_code(random_value(t, kind)));
    }
    return cache;
}
