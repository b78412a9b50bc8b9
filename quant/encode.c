/* Rows of floats -> plain codes and scales of every type of weights. */
#include "encode.h"

#include "simd/codes.h"

#include <math.h>
#include <string.h>

static const float alike[GROUP] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                   1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

static void put_half(uint8_t *at, uint16_t h)
{
    memcpy(at, &h, sizeof h);
}

/* 2 and 3 bits: unit u of 4 elements is columns 0, 2, 4, 6 of 8 (u even) or 1, 3, 5, 7. The low two bits of four units
 * share a word; the third bits of all eight are the last word. */
static void store_small(uint8_t *codes, const uint8_t *code, size_t bytes)
{
    memset(codes, 0, bytes);
    for (size_t u = 0; u < GROUP / 4; u++)
        for (size_t b = 0; b < 4; b++) {
            uint8_t c = code[u / 2 * 8 + u % 2 + 2 * b];
            codes[u / 4 * 4 + b] |= (uint8_t)((c & 3) << u % 4 * 2);
            if (bytes > 8)
                codes[8 + b] |= (uint8_t)((c >> 2) << u);
        }
}

/* Columns 0, 2, 4, 6, 1, 3, 5, 7 of every eight. */
static void store_octets(uint8_t *restrict codes, const uint8_t *restrict code)
{
    for (size_t i = 0; i < GROUP; i += 8)
        for (size_t k = 0; k < 4; k++) {
            codes[i + k] = (uint8_t)(code[i + 2 * k] - 127);
            codes[i + 4 + k] = (uint8_t)(code[i + 2 * k + 1] - 127);
        }
}

static void store_nibbles(uint8_t *restrict codes, const uint8_t *restrict code)
{
    for (size_t i = 0; i < GROUP / 2; i++)
        codes[i] = (uint8_t)(code[2 * i] | code[2 * i + 1] << 4);
}

void group_store(uint8_t *codes, const struct wtype *t, size_t column, const uint8_t *code)
{
    codes += wformat_row_bytes(t->format, column);
    if (t->format == W_Q8)
        store_octets(codes, code);
    else if (t->format == W_Q4)
        store_nibbles(codes, code);
    else
        store_small(codes, code, wformat_row_bytes(t->format, GROUP));
}

/* ------------------------------------------------------------------ formats with e8m0 scales */

/* A code for x and what it stands for. */
static inline uint8_t float_code(enum wformat f, float x)
{
    return f == W_E4M3 ? e4m3_code(x) : e2m1_code(x);
}

static inline float float_value(enum wformat f, uint8_t code)
{
    return f == W_E4M3 ? e4m3_value[code] : e2m1_value[code];
}

static double error_of(enum wformat f, const float *x, const float *w, float scale)
{
    double sum = 0;
    for (size_t i = 0; i < GROUP; i++) {
        float e = x[i] - scale * float_value(f, float_code(f, x[i] / scale));
        sum += (double)w[i] * e * e;
    }
    return sum;
}

/* Powers of two are few: the one that clips nothing, those that clip some. */
static uint8_t float_scale(enum wformat f, const float *x, const float *w, enum effort effort)
{
    float most = 0;
    for (size_t i = 0; i < GROUP; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    float limit = f == W_E4M3 ? 448 : 6;
    if (most <= limit * 0x1p-126f)
        return most > 0 ? 1 : 127;
    uint8_t best = e8m0_ceil(most / limit);
    if (effort == EFFORT_ABSMAX || f == W_E4M3)
        return best;
    double least = error_of(f, x, w, e8m0_value(best));
    for (uint8_t e = best; e-- > 1 && best - e <= 2;) {
        double error = error_of(f, x, w, e8m0_value(e));
        if (error < least) {
            least = error;
            best = e;
        }
    }
    return best;
}

static void float_group(uint8_t *codes, uint8_t *scale, enum wformat f, const float *x,
                        const float *w, enum effort effort)
{
    *scale = float_scale(f, x, w, effort);
    float s = e8m0_value(*scale);
    if (f == W_E4M3)
        for (size_t i = 0; i < GROUP; i++)
            codes[i] = e4m3_code(x[i] / s);
    else
        for (size_t i = 0; i < GROUP; i += 2)
            codes[i / 2] = (uint8_t)(e2m1_code(x[i] / s) | e2m1_code(x[i + 1] / s) << 4);
}

/* ------------------------------------------------------------------ rows */

/* n groups in a row -> side by side, one behind the other; those that are missing repeat the last. */
static void beside(struct side *restrict out, const float *restrict x, size_t n)
{
    for (size_t j = 0; j < PANEL; j++) {
        const float *from = x + (j < n ? j : n - 1) * GROUP;
        for (size_t i = 0; i < GROUP; i++)
            out[i].at[j] = from[i];
    }
}

static void table_row(const struct kernels *k, uint8_t *codes, uint8_t *scales,
                      const struct wtype *t, const float *x, size_t cols, const float *importance,
                      enum effort effort)
{
    struct grid l;
    struct side xs[GROUP], ws[GROUP];
    uint16_t s[PANEL];
    uint8_t code[GROUP];
    levels_of(&l, t);
    for (size_t i = 0; i < GROUP; i++)
        for (size_t j = 0; j < PANEL; j++)
            ws[i].at[j] = 1;
    for (size_t c = 0; c < cols; c += PANEL * GROUP) {
        size_t n = (cols - c) / GROUP < PANEL ? (cols - c) / GROUP : PANEL;
        beside(xs, x + c, n);
        if (importance)
            beside(ws, importance + c, n);
        group_scales(k, s, &l, xs, ws, effort);
        for (size_t j = 0; j < n; j++) {
            size_t at = c + j * GROUP;
            put_half(scales + at / GROUP * 2, s[j]);
            group_codes(code, &l, x + at, f16_value(s[j]));
            group_store(codes, t, at, code);
        }
    }
}

void encode_row(const struct kernels *k, uint8_t *codes, uint8_t *scales, const struct wtype *t,
                const float *x, size_t cols, const float *importance, enum effort effort)
{
    switch (t->format) {
    case W_F32: memcpy(codes, x, cols * sizeof *x); return;
    case W_F16:
        for (size_t c = 0; c < cols; c++)
            put_half(codes + 2 * c, f16_code(x[c]));
        return;
    case W_BF16:
        for (size_t c = 0; c < cols; c++)
            put_half(codes + 2 * c, bf16_code(x[c]));
        return;
    case W_E4M3:
    case W_E2M1:
        for (size_t c = 0; c < cols; c += GROUP)
            float_group(codes + wformat_row_bytes(t->format, c), scales + c / GROUP, t->format,
                        x + c, importance ? importance + c : alike, effort);
        return;
    default: table_row(k, codes, scales, t, x, cols, importance, effort);
    }
}
