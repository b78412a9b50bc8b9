/* The scale of a group of 32 weights, and their codes.
 *
 * For given codes q the best scale of sum w (x - s q)^2 is s = sum w x q / sum w q^2, and what it takes from
 * sum w x^2 is (sum w x q)^2 / sum w q^2. So a search needs only scales to try that lead to different codes:
 * the largest magnitude is put on either end of the levels, or somewhat inside or outside of it.
 * Loops are written over eight lanes, so that compilers make vectors of them without reordering sums. */
#include "encode.h"

#include "simd/codes.h"

#include <math.h>

enum { LANES = 8 };

void levels_of(struct levels *l, const struct wtype *t)
{
    *l = (struct levels){.even = true, .low = -127, .high = 127};
    l->n = (int)wformat_table(t->format);
    if (l->n == 0)
        return;
    l->low = t->table[0];
    l->high = t->table[l->n - 1];
    l->even = t->table[l->n - 1] - t->table[0] == l->n - 1;
    for (int i = 0; i < l->n; i++)
        l->value[i] = t->table[i];
    for (int i = 0; i + 1 < l->n; i++)
        l->middle[i] = (l->value[i] + l->value[i + 1]) / 2;
}

/* Nearest whole number, ties to even, of |x| < 2^22. */
static inline float whole(float x)
{
    return (x + 12582912.0f) - 12582912.0f;
}

static inline float clamp(float x, float low, float high)
{
    x = x < low ? low : x;
    return x > high ? high : x;
}

void levels_round(float *restrict value, const struct levels *l, const float *restrict x,
                  float inverse)
{
    if (l->even) {
        float low = l->low, high = l->high;
        for (int i = 0; i < GROUP; i++)
            value[i] = whole(clamp(x[i] * inverse, low, high));
        return;
    }
    float y[GROUP];
    for (int i = 0; i < GROUP; i++) {
        y[i] = x[i] * inverse;
        value[i] = l->value[0];
    }
    for (int k = 0; k + 1 < l->n; k++) {
        float middle = l->middle[k], next = l->value[k + 1];
        for (int i = 0; i < GROUP; i++)
            value[i] = y[i] > middle ? next : value[i];
    }
}

uint8_t levels_code(const struct levels *l, float x)
{
    if (l->even)
        return (uint8_t)(whole(clamp(x, l->low, l->high)) - l->low);
    int code = 0;
    for (int k = 0; k + 1 < l->n; k++)
        code += x > l->middle[k];
    return (uint8_t)code;
}

void group_codes(uint8_t *restrict code, const struct levels *l, const float *restrict x,
                 float scale)
{
    float inverse = scale == 0 ? 0 : 1 / scale;
    if (l->even) {
        float v[GROUP], low = l->low;
        levels_round(v, l, x, inverse);
        for (int i = 0; i < GROUP; i++)
            code[i] = (uint8_t)(int)(v[i] - low);
        return;
    }
    for (int i = 0; i < GROUP; i++)
        code[i] = 0;
    for (int k = 0; k + 1 < l->n; k++) {
        float middle = l->middle[k];
        for (int i = 0; i < GROUP; i++)
            code[i] = (uint8_t)(code[i] + (x[i] * inverse > middle));
    }
}

static inline float fold(const float *a)
{
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}

/* sum w x q and sum w q^2 for the nearest levels at a scale. */
struct fit {
    float xq, qq;
};

static struct fit fit_at(const struct levels *l, const float *x, const float *w, const float *wx,
                         float inverse)
{
    float q[GROUP], a[LANES] = {0}, b[LANES] = {0};
    levels_round(q, l, x, inverse);
    for (int i = 0; i < GROUP; i += LANES)
        for (int j = 0; j < LANES; j++) {
            a[j] += wx[i + j] * q[i + j];
            b[j] += w[i + j] * q[i + j] * q[i + j];
        }
    return (struct fit){fold(a), fold(b)};
}

static float gain(struct fit f)
{
    return f.qq > 0 ? f.xq * (f.xq / f.qq) : 0;
}

/* As it is stored. */
static float stored(float scale)
{
    return f16_value(f16_code(scale));
}

/* sum w (x - s q)^2 - sum w x^2 at a scale as it is stored. */
static float error_at(const struct levels *l, const float *x, const float *w, const float *wx,
                      float scale)
{
    if (scale == 0)
        return 0;
    struct fit f = fit_at(l, x, w, wx, 1 / scale);
    return scale * (scale * f.qq - 2 * f.xq);
}

/* A power of two that clips nothing: for 8 bits, what was fp4 comes through it unharmed. */
static float power_of_two(float most, const struct levels *l)
{
    return e8m0_value(e8m0_ceil(fabsf(most) / l->high));
}

/* Where the largest magnitude is put, as a part of the end of the levels. */
static const float try_few[] = {0.9f, 1, 1.1f};
static const float try_many[] = {0.88f, 0.97f, 1.06f, 1.16f};

uint16_t group_scale(const struct levels *l, const float *x, const float *w, enum effort effort)
{
    float most = 0;
    for (int i = 0; i < GROUP; i++)
        most = fabsf(x[i]) > fabsf(most) ? x[i] : most;
    if (most == 0)
        return 0;
    float end = -l->low >= l->high ? l->low : l->high;
    uint16_t plain = f16_code(most / end);
    if (effort == EFFORT_ABSMAX)
        return plain;
    float wx[GROUP], best = -1, scale = 0;
    for (int i = 0; i < GROUP; i++)
        wx[i] = w[i] * x[i];
    bool fine =
        l->high - l->low > 2 * MAX_LEVELS && l->even; /* 8 bits: there is little to be won */
    const float *part = fine ? try_few : try_many;
    size_t n = fine ? sizeof try_few / sizeof *try_few : sizeof try_many / sizeof *try_many;
    if (fine) {
        struct fit f = fit_at(l, x, w, wx, 1 / power_of_two(most, l));
        best = gain(f);
        scale = f.qq > 0 ? f.xq / f.qq : 0;
    }
    for (int side = 0; side < (l->low == -l->high ? 1 : 2); side++)
        for (size_t i = 0; i < n; i++) {
            struct fit f = fit_at(l, x, w, wx, (side ? l->high : l->low) * part[i] / most);
            if (gain(f) > best) {
                best = gain(f);
                scale = f.qq > 0 ? f.xq / f.qq : 0;
            }
        }
    if (scale != 0) { /* the codes of the better scale have a better one still */
        struct fit f = fit_at(l, x, w, wx, 1 / scale);
        if (gain(f) >= best)
            scale = f.xq / f.qq;
    }
    float was = error_at(l, x, w, wx, f16_value(plain));
    return error_at(l, x, w, wx, stored(scale)) < was ? f16_code(scale) : plain;
}
