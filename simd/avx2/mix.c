/* Elementwise kernels over the residual streams and the experts' width. */
#include "avx2.h"
#include "simd/codes.h"
#include "vec.h"

#include <math.h>

enum { MAX_STREAMS = 16 };

/* Eight floats or, at the end of a row, the first `lanes` of them. */
INLINE __m256 load(const float *x, size_t lanes)
{
    return lanes == 8 ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, first_lanes(lanes));
}

INLINE void store(float *x, __m256 a, size_t lanes)
{
    if (lanes == 8)
        _mm256_storeu_ps(x, a);
    else
        _mm256_maskstore_ps(x, first_lanes(lanes), a);
}

/* Operands of min and max are in the order that lets a NaN of x through. */
INLINE void swiglu8(float *up, const float *gate, float limit, __m256 weight, size_t lanes)
{
    __m256 g = load(gate, lanes), u = load(up, lanes);
    if (limit > 0) {
        __m256 high = _mm256_set1_ps(limit), low = _mm256_set1_ps(-limit);
        g = _mm256_min_ps(high, g);
        u = _mm256_min_ps(high, _mm256_max_ps(low, u));
    }
    __m256 e = exp8(_mm256_xor_ps(g, _mm256_set1_ps(-0.0f)));
    g = _mm256_div_ps(g, _mm256_add_ps(e, _mm256_set1_ps(1.0f)));
    store(up, _mm256_mul_ps(_mm256_mul_ps(g, u), weight), lanes);
}

static void swiglu(float *up, const float *gate, size_t n, float limit, float weight)
{
    __m256 w = _mm256_set1_ps(weight);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        swiglu8(up + i, gate + i, limit, w, 8);
    if (i < n)
        swiglu8(up + i, gate + i, limit, w, n - i);
}

INLINE void hc_mix8(float *h, size_t ld, const float *y, const float *post, const float *comb,
                    const size_t hc, size_t lanes)
{
    __m256 old[MAX_STREAMS], x = load(y, lanes);
    for (size_t j = 0; j < hc; j++)
        old[j] = load(h + j * ld, lanes);
    for (size_t j = 0; j < hc; j++) {
        __m256 s = _mm256_mul_ps(_mm256_broadcast_ss(post + j), x);
        for (size_t k = 0; k < hc; k++)
            s = _mm256_fmadd_ps(_mm256_broadcast_ss(comb + k * hc + j), old[k], s);
        store(h + j * ld, s, lanes);
    }
}

INLINE void hc_mix_n(float *h, size_t ld, const float *y, const float *post, const float *comb,
                     const size_t hc, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        hc_mix8(h + i, ld, y + i, post, comb, hc, 8);
    if (i < n)
        hc_mix8(h + i, ld, y + i, post, comb, hc, n - i);
}

/* Four streams are what every released model has. */
static void hc_mix(float *h, size_t ld, const float *y, const float *post, const float *comb,
                   size_t hc, size_t n)
{
    if (hc == 4)
        hc_mix_n(h, ld, y, post, comb, 4, n);
    else
        hc_mix_n(h, ld, y, post, comb, hc, n);
}

INLINE void hc_sum8(float *out, const float *h, size_t ld, const float *pre, const size_t hc,
                    size_t lanes)
{
    __m256 s = _mm256_setzero_ps();
    for (size_t j = 0; j < hc; j++)
        s = _mm256_fmadd_ps(_mm256_broadcast_ss(pre + j), load(h + j * ld, lanes), s);
    store(out, s, lanes);
}

static void hc_sum(float *out, const float *h, size_t ld, const float *pre, size_t hc, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        hc_sum8(out + i, h + i, ld, pre, hc, 8);
    if (i < n)
        hc_sum8(out + i, h + i, ld, pre, hc, n - i);
}

/* The dots of up to four rows with one block of w (NULL: with themselves). */
INLINE void dots(const int M, float *part, size_t ldm, const float *x, size_t ldx, const uint8_t *w,
                 size_t n)
{
    __m256 s[4], a = _mm256_setzero_ps();
    for (int i = 0; i < M; i++)
        s[i] = _mm256_setzero_ps();
    for (size_t c = 0; c < n; c += 8) {
        size_t lanes = n - c < 8 ? n - c : 8;
        if (w)
            a = load((const float *)(const void *)(w + c * sizeof(float)), lanes);
        for (int i = 0; i < M; i++) {
            __m256 v = load(x + (size_t)i * ldx + c, lanes);
            s[i] = _mm256_fmadd_ps(v, w ? a : v, s[i]);
        }
    }
    for (int i = 0; i < M; i++)
        part[(size_t)i * ldm] += sum8(s[i]);
}

static void block_dots(float *part, size_t ldm, size_t ldb, const float *x, size_t ldx, size_t m,
                       const uint8_t *w, size_t n)
{
    for (size_t i = 0; i < m;) {
        size_t rows = m - i >= 4 ? 4 : 1;
        for (size_t c = 0; c < n; c += DOT_BLOCK) {
            float *at = part + i * ldm + c / DOT_BLOCK * ldb;
            const float *row = x + i * ldx + c;
            const uint8_t *wc = w ? w + c * sizeof(float) : NULL;
            size_t size = n - c < DOT_BLOCK ? n - c : DOT_BLOCK;
            if (rows == 4 && size == DOT_BLOCK && w)
                dots(4, at, ldm, row, ldx, wc, DOT_BLOCK);
            else if (rows == 4)
                dots(4, at, ldm, row, ldx, wc, size);
            else if (size == DOT_BLOCK && w)
                dots(1, at, ldm, row, ldx, wc, DOT_BLOCK);
            else
                dots(1, at, ldm, row, ldx, wc, size);
        }
        i += rows;
    }
}

void init_avx2_mix(struct kernels *k)
{
    k->swiglu = swiglu;
    k->hc_mix = hc_mix;
    k->hc_sum = hc_sum;
    k->block_dots = block_dots;
}
