/* Row-wise basics: RMS norm and rope. */
#include "model.h"

#include <math.h>

void rms(const struct kernels *k, float *out, const float *x, const float *weight, size_t n,
         float eps)
{
    float s = 1.0f / sqrtf(k->sum_squares(x, n) / (float)n + eps);
    if (weight)
        for (size_t i = 0; i < n; i++)
            out[i] = x[i] * s * weight[i];
    else
        for (size_t i = 0; i < n; i++)
            out[i] = x[i] * s;
}

void rope_frequencies(float *f, uint32_t r, double theta, double factor, uint32_t original,
                      double beta_fast, double beta_slow)
{
    for (uint32_t i = 0; i < r / 2; i++)
        f[i] = 1.0f / (float)pow(theta, (float)(2 * i) / (float)r);
    if (original == 0)
        return;
    /* dim(n): the pair that turns n times within the original context. */
    const double pi = 3.14159265358979323846;
    double lo = floor(r * log(original / (2 * pi * beta_fast)) / (2 * log(theta)));
    double hi = ceil(r * log(original / (2 * pi * beta_slow)) / (2 * log(theta)));
    lo = lo > 0 ? lo : 0;
    hi = hi < r - 1 ? hi : r - 1;
    if (lo == hi)
        hi += 0.001;
    for (uint32_t i = 0; i < r / 2; i++) {
        float ramp = ((float)i - (float)lo) / (float)(hi - lo);
        float keep = 1 - (ramp < 0 ? 0 : ramp > 1 ? 1 : ramp);
        f[i] = f[i] / (float)factor * (1 - keep) + f[i] * keep;
    }
}

/* The angle itself is rounded to float32: that is what the models were trained with. */
void rope_pairs(float *cs, const float *freq, size_t r, size_t pos)
{
    for (size_t i = 0; i < r / 2; i++) {
        float angle = (float)pos * freq[i];
        cs[2 * i] = (float)cos((double)angle);
        cs[2 * i + 1] = (float)sin((double)angle);
    }
}

void rope(float *x, size_t c, size_t r, const float *cs, bool inverse)
{
    x += c - r;
    float sign = inverse ? -1.0f : 1.0f;
    for (size_t i = 0; i < r; i += 2) {
        float a = x[i], b = x[i + 1], cosine = cs[i], sine = sign * cs[i + 1];
        x[i] = a * cosine - b * sine;
        x[i + 1] = a * sine + b * cosine;
    }
}

float *lane_scratch(const struct lane *l, const struct batch *b)
{
    return b->scratch + (size_t)l->id * b->scratch_ld;
}

/* One lane reports; the others wait, so that nothing is overwritten meanwhile. */
void tap_rows(const struct lane *l, const struct batch *b, int layer, const char *what,
              const float *x, size_t rows, size_t width)
{
    if (l->id == 0)
        b->tap->fn(b->tap->arg, b, layer, what, x, rows, width);
    lane_barrier(l);
}
