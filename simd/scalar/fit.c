/* How well scales fit groups of weights, in plain C. */
#include "scalar.h"

#include <string.h>

/* Nearest whole number, ties to even, of |x| < 2^22. */
static inline float whole(float x)
{
    return (x + 12582912.0f) - 12582912.0f;
}

static void round_between(float *restrict q, const float *restrict y, const struct grid *l)
{
    const float low = l->low, high = l->high;
    for (int j = 0; j < PANEL; j++) {
        float v = y[j] < low ? low : y[j];
        q[j] = whole(v > high ? high : v);
    }
}

/* Levels are whole numbers: climbing to one step by step is exact. */
static void climb(float *restrict q, const float *restrict y, const struct grid *l)
{
    for (int j = 0; j < PANEL; j++)
        q[j] = l->value[0];
    for (int k = 0; k + 1 < l->n; k++) {
        const float middle = l->middle[k], step = l->value[k + 1] - l->value[k];
        for (int j = 0; j < PANEL; j++)
            q[j] += y[j] > middle ? step : 0;
    }
}

static void fit_scalar(float *xq, float *qq, const float *x, const float *w, const float *inverse,
                       const struct grid *l)
{
    float a[PANEL] = {0}, b[PANEL] = {0}, y[PANEL], q[PANEL];
    for (int i = 0; i < GROUP; i++, x += PANEL, w += PANEL) {
        for (int j = 0; j < PANEL; j++)
            y[j] = x[j] * inverse[j];
        if (l->n == 0)
            round_between(q, y, l);
        else
            climb(q, y, l);
        for (int j = 0; j < PANEL; j++) {
            a[j] += w[j] * x[j] * q[j];
            b[j] += w[j] * q[j] * q[j];
        }
    }
    memcpy(xq, a, sizeof a);
    memcpy(qq, b, sizeof b);
}

void fit_init_scalar(struct kernels *k)
{
    k->fit = fit_scalar;
}
