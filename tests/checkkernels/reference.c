/* The kernels once more, from the definitions in simd.h and nothing else: element by element,
 * formats by arithmetic instead of tables and bits, sums in double. What the scalar kernels are
 * held against. */
#include "check.h"

#include <math.h>
#include <string.h>

/* ------------------------------------------------------------------ formats */

/* A number of `exponent` and `mantissa` bits with the usual bias and denormals; no infinities. */
static double small_float(unsigned code, int exponent, int mantissa)
{
    int bias = (1 << (exponent - 1)) - 1;
    unsigned m = code & ((1u << mantissa) - 1), e = code >> mantissa & ((1u << exponent) - 1);
    double v = e == 0 ? ldexp(m, 1 - bias - mantissa)
                      : ldexp(m + (1u << mantissa), (int)e - bias - mantissa);
    return code >> (exponent + mantissa) & 1 ? -v : v;
}

static double e2m1(unsigned code)
{
    return small_float(code & 15, 2, 1);
}

static double e4m3(uint8_t code)
{
    return (code & 0x7f) == 0x7f ? NAN : small_float(code, 4, 3);
}

static double e8m0(uint8_t code)
{
    return code == 255 ? NAN : ldexp(1, code - 127);
}

static double f16(const uint8_t *at)
{
    uint16_t h;
    memcpy(&h, at, sizeof h);
    if ((h & 0x7c00) == 0x7c00)
        return h & 0x3ff ? NAN : h & 0x8000 ? -INFINITY : INFINITY;
    return small_float(h, 5, 10);
}

static double f32(const uint8_t *at)
{
    float f;
    memcpy(&f, at, sizeof f);
    return f;
}

static double bf16(const uint8_t *at)
{
    uint8_t wide[4] = {0};
    uint32_t u = (uint32_t)at[1] << 24 | (uint32_t)at[0] << 16;
    memcpy(wide, &u, sizeof u);
    return f32(wide);
}

/* Where column c lies within a row of q8 weights or of Q_8 activations: 0,2,4,6,1,3,5,7. */
static size_t place_of(size_t c)
{
    static const uint8_t place[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    return c / 8 * 8 + place[c % 8];
}

/* ------------------------------------------------------------------ weights */

/* Byte i of row r. */
static const uint8_t *byte_of(const struct wmat *w, size_t r, size_t i)
{
    if (w->panels)
        return w->codes + r / 16 * w->code_ld + i / 4 * 64 + r % 16 * 4 + i % 4;
    return w->codes + r * w->code_ld + i;
}

/* Bits at .. at + n of a row, n <= 2, counted from the lowest of its first byte. */
static unsigned bits_of(const struct wmat *w, size_t r, size_t at, unsigned n)
{
    return *byte_of(w, r, at / 8) >> at % 8 & ((1u << n) - 1);
}

/* 2- and 3-bit codes: where a byte of the row would hold column c in Q8, unit and element follow. */
static unsigned table_code(const struct wmat *w, size_t r, size_t c)
{
    size_t unit = place_of(c % 32) / 4, element = place_of(c % 32) % 4;
    size_t group = c / 32 * (w->format == W_Q3 ? 96 : 64);
    unsigned low = bits_of(w, r, group + unit / 4 * 32 + element * 8 + unit % 4 * 2, 2);
    if (w->format == W_Q2)
        return low;
    return low + 4 * bits_of(w, r, group + 64 + element * 8 + unit, 1);
}

/* The code as a number, without the scale; through the table if there is one. */
static double code_of(const struct wmat *w, size_t r, size_t c)
{
    const uint8_t *nibbles;
    switch (w->format) {
    case W_F32: return f32(byte_of(w, r, 4 * c));
    case W_F16: return f16(byte_of(w, r, 2 * c));
    case W_BF16: return bf16(byte_of(w, r, 2 * c));
    case W_E4M3: return e4m3(*byte_of(w, r, c));
    case W_Q8: return (int8_t)*byte_of(w, r, place_of(c));
    case W_Q3:
    case W_Q2: return w->table[table_code(w, r, c)];
    default:
        nibbles = byte_of(w, r, c / 2);
        unsigned code = c % 2 ? *nibbles >> 4 : *nibbles & 15;
        return w->format == W_E2M1 ? e2m1(code) : w->table[code];
    }
}

static double scale_of(const struct wmat *w, size_t r, size_t c)
{
    const uint8_t *s = w->scales;
    switch (w->format) {
    case W_E4M3:
        return e8m0(s[r / (w->panels ? 16 : w->block_rows) * w->scale_ld + c / w->block_cols]);
    case W_E2M1:
        return e8m0(w->panels ? s[r / 16 * w->scale_ld + c / 32 * 16 + r % 16]
                              : s[r / w->block_rows * w->scale_ld + c / w->block_cols]);
    case W_Q8:
    case W_Q4:
    case W_Q3:
    case W_Q2:
        return f16(w->panels ? s + r / 16 * w->scale_ld + (c / 32 * 16 + r % 16) * 2
                             : s + r * w->scale_ld + c / 32 * 2);
    default: return 1;
    }
}

static void decode(float *out, const struct wmat *w, size_t r)
{
    for (size_t c = 0; c < w->cols; c++)
        out[c] = (float)(code_of(w, r, c) * scale_of(w, r, c));
}

static void matmul(float *y, size_t ldy, const float *x, size_t ldx, const uint32_t *pick, size_t m,
                   const struct wmat *w, size_t r0, size_t r1, float *tmp)
{
    for (size_t r = r0; r < r1; r++) {
        decode(tmp, w, r);
        for (size_t i = 0; i < m; i++) {
            double s = 0;
            for (size_t c = 0; c < w->cols; c++)
                s += (double)x[(pick ? pick[i] : i) * ldx + c] * tmp[c];
            y[i * ldy + r] = (float)s;
        }
    }
}

static int activation(const struct qrows *x, size_t row, size_t c)
{
    return x->kind == Q_8 ? ((const int8_t *)x->code)[row * x->cols + place_of(c)]
                          : ((const int16_t *)x->code)[row * x->cols + c];
}

static void matmul_fast(float *y, size_t ldy, const struct qrows *x, const uint32_t *pick, size_t m,
                        const struct wmat *w, size_t r0, size_t r1, void *tmp)
{
    (void)tmp;
    /* of the weight's code in v, and its inverse in u */
    double factor = w->format == W_E2M1 ? 2 : w->format == W_E4M3 ? 64 : 1;
    int64_t v[GROUP];
    for (size_t r = r0; r < r1; r++)
        for (size_t c = 0; c < w->cols; c += GROUP) {
            for (size_t k = 0; k < GROUP; k++)
                v[k] = (int64_t)nearbyint(factor * code_of(w, r, c + k));
            for (size_t i = 0; i < m; i++) {
                size_t row = pick ? pick[i] : i;
                int64_t s = 0;
                for (size_t k = 0; k < GROUP; k++)
                    s += v[k] * activation(x, row, c + k);
                /* A product of two floats is exact in double: one rounding, to u. */
                double a = x->scale[(row * x->cols + c) / GROUP] / factor;
                float u = (float)(scale_of(w, r, c) * a);
                y[i * ldy + r] = fmaf((float)s, u, c == 0 ? 0 : y[i * ldy + r]);
            }
        }
}

static void quantize(struct qrows *q, size_t r, const float *x, size_t c0, size_t c1)
{
    float limit = q->kind == Q_8 ? 127 : 2047;
    for (size_t c = c0; c < c1; c++) {
        size_t first = c / GROUP * GROUP, g = (r * q->cols + c) / GROUP;
        float max = 0;
        bool finite = true;
        for (size_t i = first; i < first + GROUP; i++) {
            finite = finite && isfinite(x[i]);
            max = fmaxf(max, fabsf(x[i]));
        }
        long code = 0;
        if (finite && max >= 0x1p-100f) {
            float inverse = limit / max, v = x[c] * inverse;
            code = lrint((double)v);
        }
        q->scale[g] = !finite ? NAN : max < 0x1p-100f ? 0 : max / limit;
        q->sum[g] = (c == first ? 0 : q->sum[g]) + (int32_t)code;
        if (q->kind == Q_8)
            ((int8_t *)q->code)[r * q->cols + place_of(c)] = (int8_t)code;
        else
            ((int16_t *)q->code)[r * q->cols + c] = (int16_t)code;
    }
}

/* ------------------------------------------------------------------ floats */

static float dot(const float *a, const float *b, size_t n)
{
    double s = 0;
    for (size_t i = 0; i < n; i++)
        s += (double)a[i] * b[i];
    return (float)s;
}

static float sum_squares(const float *x, size_t n)
{
    return dot(x, x, n);
}

static void swiglu(float *up, const float *gate, size_t n, float limit, float weight)
{
    for (size_t i = 0; i < n; i++) {
        double g = gate[i], u = up[i];
        if (limit > 0 && g > (double)limit)
            g = limit;
        if (limit > 0 && fabs(u) > (double)limit)
            u = copysign((double)limit, u);
        up[i] = (float)(weight * (g / (1 + exp(-g))) * u);
    }
}

static void hc_mix(float *h, size_t ld, const float *y, const float *post, const float *comb,
                   size_t hc, size_t n)
{
    for (size_t c = 0; c < n; c++) {
        double mixed[16];
        for (size_t j = 0; j < hc; j++) {
            mixed[j] = (double)post[j] * y[c];
            for (size_t i = 0; i < hc; i++)
                mixed[j] += (double)comb[i * hc + j] * h[i * ld + c];
        }
        for (size_t j = 0; j < hc; j++)
            h[j * ld + c] = (float)mixed[j];
    }
}

static void hc_sum(float *out, const float *h, size_t ld, const float *pre, size_t hc, size_t n)
{
    for (size_t c = 0; c < n; c++) {
        double s = 0;
        for (size_t j = 0; j < hc; j++)
            s += (double)pre[j] * h[j * ld + c];
        out[c] = (float)s;
    }
}

static void block_dots(float *part, size_t ldm, size_t ldb, const float *x, size_t ldx, size_t m,
                       const uint8_t *w, size_t n)
{
    for (size_t i = 0; i < m; i++)
        for (size_t b = 0; b * DOT_BLOCK < n; b++) {
            double s = part[i * ldm + b * ldb];
            for (size_t c = b * DOT_BLOCK; c < n && c < (b + 1) * DOT_BLOCK; c++) {
                double a = x[i * ldx + c];
                s += a * (w ? f32(w + 4 * c) : a);
            }
            part[i * ldm + b * ldb] = (float)s;
        }
}

/* ------------------------------------------------------------------ caches */

/* Channel c of a row. ORDER ROWS */
static double channel(const uint8_t *row, struct rshape s, size_t c)
{
    size_t w = s.width, flat = w - s.rope;
    unsigned nibble = s.format == R_F32 ? 0 : c % 2 ? row[c / 2] >> 4 : row[c / 2] & 15;
    switch (s.format) {
    case R_F32: return f32(row + 4 * c);
    case R_E4M3_64B:
        if (c < flat)
            return e4m3(row[c]) * e8m0(row[flat + c / 64]);
        return bf16(row + flat + flat / 64 + 2 * (c - flat));
    case R_E4M3_32: return e4m3(row[c]) * e8m0(row[w + c / 32]);
    case R_E2M1_16: return e2m1(nibble) * e4m3(row[w / 2 + c / 16]);
    default: return e2m1(nibble) * e8m0(row[w / 2 + c / 32]);
    }
}

static void rows(float *out, const uint8_t *row, size_t n, struct rshape s)
{
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < s.width; c++)
            out[i * s.width + c] = (float)channel(row + i * row_bytes(s), s, c);
}

static void attend(float *o, float *max, float *sum, const float *q, size_t heads, const float *kv,
                   size_t n, size_t c, float scale)
{
    for (size_t h = 0; h < heads; h++) {
        double s[ATTEND_TILE], top = max[h], l;
        for (size_t j = 0; j < n; j++) {
            s[j] = 0;
            for (size_t i = 0; i < c; i++)
                s[j] += (double)q[h * c + i] * kv[j * c + i];
            s[j] *= (double)scale;
            top = s[j] > top ? s[j] : top;
        }
        top = (float)top; /* what the state can hold */
        double shrink = exp(max[h] - top);
        l = sum[h] * shrink;
        for (size_t j = 0; j < n; j++)
            l += exp(s[j] - top);
        for (size_t i = 0; i < c; i++) {
            double v = o[h * c + i] * shrink;
            for (size_t j = 0; j < n; j++)
                v += exp(s[j] - top) * kv[j * c + i];
            o[h * c + i] = (float)v;
        }
        sum[h] = (float)l;
        max[h] = (float)top;
    }
}

static void index_scores(float *score, const float *q, const float *w, size_t heads,
                         const uint8_t *key, size_t n, struct rshape s)
{
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        for (size_t h = 0; h < heads; h++) {
            double a = 0;
            for (size_t c = 0; c < s.width; c++)
                a += q[h * s.width + c] * channel(key + i * row_bytes(s), s, c);
            sum += a > 0 ? w[h] * a : 0;
        }
        score[i] = (float)sum;
    }
}

/* Integer sums and the order of roundings are part of the contract here. */
static void index_codes(float *score, const struct index_query *q, const uint8_t *key, size_t n)
{
    struct rshape s = {R_E2M1_32, (uint32_t)q->width, 0};
    size_t groups = q->width / 32;
    for (size_t i = 0; i < n; i++, key += row_bytes(s)) {
        float t[16] = {0};
        for (size_t h = 0; h < q->panels * 16; h++) {
            float a = 0;
            for (size_t g = 0; g < groups; g++) {
                int sum = 0;
                for (size_t c = g * 32; c < g * 32 + 32; c++) {
                    size_t at = place_of(c);
                    int code = q->code[(h / 16 * q->width / 4 + at / 4) * 64 + h % 16 * 4 + at % 4];
                    sum += code * (int)(2 * e2m1(c % 2 ? key[c / 2] >> 4 : key[c / 2] & 15));
                }
                double k = e8m0(key[q->width / 2 + g]);
                float u = (float)(q->scale[(h / 16 * groups + g) * 16 + h % 16] * k);
                a = fmaf((float)sum, u, a);
            }
            t[h % 16] = fmaf(q->weight[h], a > 0 ? a : 0, t[h % 16]);
        }
        for (size_t far = 8; far > 0; far /= 2)
            for (size_t j = 0; j < far; j++)
                t[j] += t[j + far];
        score[i] = t[0];
    }
}

/* Sums are rounded as everywhere, one group after the other. */
static void fit(float *xq, float *qq, const float *x, const float *w, const float *inverse,
                const struct grid *l)
{
    for (size_t j = 0; j < PANEL; j++) {
        xq[j] = qq[j] = 0;
        for (size_t i = 0; i < GROUP; i++) {
            float v = x[i * PANEL + j], u = w[i * PANEL + j], y = v * inverse[j];
            int k = l->n - 1;
            while (k > 0 && !(y > l->middle[k - 1]))
                k--;
            float q = l->n ? l->value[k] : nearbyintf(fminf(fmaxf(y, l->low), l->high));
            xq[j] += u * v * q;
            qq[j] += u * q * q;
        }
    }
}

void kernels_init_reference(struct kernels *k)
{
    *k = (struct kernels){
        .level = "reference",
        .matmul = matmul,
        .matmul_fast = matmul_fast,
        .fast = {[W_E4M3] = Q_16,
                 [W_E2M1] = Q_8,
                 [W_Q8] = Q_8,
                 [W_Q4] = Q_8,
                 [W_Q3] = Q_8,
                 [W_Q2] = Q_8},
        .quantize = quantize,
        .decode = decode,
        .fit = fit,
        .sum_squares = sum_squares,
        .dot = dot,
        .swiglu = swiglu,
        .hc_mix = hc_mix,
        .hc_sum = hc_sum,
        .block_dots = block_dots,
        .rows = rows,
        .attend = attend,
        .index = index_scores,
        .index_codes = index_codes,
    };
}
