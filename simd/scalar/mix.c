/* Elementwise kernels over the residual streams and the experts' width, in plain C. */
#include "scalar.h"
#include "simd/simd.h"

#include <math.h>
#include <string.h>

static float clamp(float x, float low, float high)
{
    return x < low ? low : x > high ? high : x;
}

static void swiglu(float *up, const float *gate, size_t n, float limit, float weight)
{
    for (size_t i = 0; i < n; i++) {
        float g = gate[i], u = up[i];
        if (limit > 0) {
            g = g > limit ? limit : g;
            u = clamp(u, -limit, limit);
        }
        up[i] = g / (1.0f + expf(-g)) * u * weight;
    }
}

static void hc_mix(float *h, size_t ld, const float *y, const float *post, const float *comb,
                   size_t hc, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float old[16];
        for (size_t j = 0; j < hc; j++)
            old[j] = h[j * ld + i];
        for (size_t j = 0; j < hc; j++) {
            float s = post[j] * y[i];
            for (size_t k = 0; k < hc; k++)
                s += comb[k * hc + j] * old[k];
            h[j * ld + i] = s;
        }
    }
}

static void hc_sum(float *out, const float *h, size_t ld, const float *pre, size_t hc, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float s = 0;
        for (size_t j = 0; j < hc; j++)
            s += pre[j] * h[j * ld + i];
        out[i] = s;
    }
}

static void block_dots(float *part, size_t ldm, size_t ldb, const float *x, size_t ldx, size_t m,
                       const uint8_t *w, size_t n)
{
    float copy[DOT_BLOCK];
    for (size_t c = 0; c < n; c += DOT_BLOCK, part += ldb) {
        size_t size = n - c < DOT_BLOCK ? n - c : DOT_BLOCK;
        if (w)
            memcpy(copy, w + c * sizeof *copy, size * sizeof *copy);
        for (size_t i = 0; i < m; i++) {
            const float *row = x + i * ldx + c;
            part[i * ldm] += dot_lanes(row, w ? copy : row, size);
        }
    }
}

void mix_init_scalar(struct kernels *k)
{
    k->swiglu = swiglu;
    k->hc_mix = hc_mix;
    k->hc_sum = hc_sum;
    k->block_dots = block_dots;
}

void kernels_init_scalar(struct kernels *k)
{
    *k = (struct kernels){.level = "scalar"};
    matmul_init_scalar(k);
    rows_init_scalar(k);
    mix_init_scalar(k);
    fit_init_scalar(k);
}
