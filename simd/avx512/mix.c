/* Elementwise kernels over the residual streams and the experts' width. */
#include "avx512.h"

#include <math.h>

static void swiglu(float *up, const float *gate, size_t n, float limit, float weight)
{
    const __m512 one = _mm512_set1_ps(1), wt = _mm512_set1_ps(weight);
    const __m512 most = _mm512_set1_ps(limit > 0 ? limit : INFINITY);
    const __m512 least = _mm512_set1_ps(limit > 0 ? -limit : -INFINITY);
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 k = first_lanes(n - i);
        __m512 g = _mm512_maskz_loadu_ps(k, gate + i), u = _mm512_maskz_loadu_ps(k, up + i);
        g = _mm512_min_ps(most, g); /* limits first: a NaN passes */
        u = _mm512_max_ps(least, _mm512_min_ps(most, u));
        __m512 e = exp_lanes(_mm512_sub_ps(_mm512_setzero_ps(), g));
        __m512 y = _mm512_mul_ps(_mm512_div_ps(g, _mm512_add_ps(one, e)), u);
        _mm512_mask_storeu_ps(up + i, k, _mm512_mul_ps(y, wt));
    }
}

/* All streams of 16 columns in registers: h is read and written once. */
INLINE void mix(float *h, size_t ld, const float *y, const float *post, const float *comb,
                size_t hc, size_t n)
{
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 k = first_lanes(n - i);
        __m512 old[16], v = _mm512_maskz_loadu_ps(k, y + i);
        for (size_t j = 0; j < hc; j++)
            old[j] = _mm512_maskz_loadu_ps(k, h + j * ld + i);
        for (size_t j = 0; j < hc; j++) {
            __m512 s = _mm512_mul_ps(_mm512_set1_ps(post[j]), v);
            for (size_t p = 0; p < hc; p++)
                s = _mm512_fmadd_ps(_mm512_set1_ps(comb[p * hc + j]), old[p], s);
            _mm512_mask_storeu_ps(h + j * ld + i, k, s);
        }
    }
}

static void hc_mix(float *h, size_t ld, const float *y, const float *post, const float *comb,
                   size_t hc, size_t n)
{
    if (hc == 4) /* every released model */
        mix(h, ld, y, post, comb, 4, n);
    else
        mix(h, ld, y, post, comb, hc, n);
}

static void hc_sum(float *out, const float *h, size_t ld, const float *pre, size_t hc, size_t n)
{
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 k = first_lanes(n - i);
        __m512 s = _mm512_setzero_ps();
        for (size_t j = 0; j < hc; j++)
            s = _mm512_fmadd_ps(_mm512_set1_ps(pre[j]), _mm512_maskz_loadu_ps(k, h + j * ld + i),
                                s);
        _mm512_mask_storeu_ps(out + i, k, s);
    }
}

void mix_init_avx512(struct kernels *k)
{
    k->swiglu = swiglu;
    k->hc_mix = hc_mix;
    k->hc_sum = hc_sum;
}
