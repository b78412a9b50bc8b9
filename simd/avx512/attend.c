/* Attention of a tile of up to 32 keys: scores of 4 heads x 4 keys in 16 sums, a softmax in two
 * vectors a head, then values of 4 heads x 64 channels in 16 sums. */
#include "avx512.h"

#include <math.h>

enum { HEADS = 4, KEYS = 4, SPAN = 4 };

/* Sums of 16 vectors, each in the order of fold_lanes; lane 4 h + j is that of v[j][h]. */
INLINE __m512 fold_all(__m512 v[KEYS][HEADS])
{
    __m512 x[4];
    FOR_LANE (j, KEYS) {
        __m512 a = v[j][0], b = v[j][1], c = v[j][2], d = v[j][3];
        __m512 ab =
            _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
        __m512 cd =
            _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
        x[j] =
            _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    }
    __m512 z =
        _mm512_add_ps(_mm512_shuffle_ps(x[0], x[1], 0x44), _mm512_shuffle_ps(x[0], x[1], 0xee));
    __m512 w =
        _mm512_add_ps(_mm512_shuffle_ps(x[2], x[3], 0x44), _mm512_shuffle_ps(x[2], x[3], 0xee));
    return _mm512_add_ps(_mm512_shuffle_ps(z, w, 0x88), _mm512_shuffle_ps(z, w, 0xdd));
}

INLINE void score_step(__m512 s[KEYS][HEADS], const float *q, int m, const float *kv, int k,
                       size_t c, __mmask16 in)
{
    __m512 v[HEADS];
    FOR_LANE (h, m)
        v[h] = _mm512_maskz_loadu_ps(in, q + (size_t)h * c);
    FOR_LANE (j, k) {
        __m512 key = _mm512_maskz_loadu_ps(in, kv + (size_t)j * c);
        FOR_LANE (h, m)
            s[j][h] = _mm512_fmadd_ps(v[h], key, s[j][h]);
    }
}

/* score[h][j] = q_h . kv_j of m heads and k keys; each has one sum over vectors of 16 channels. */
INLINE void scores(float (*score)[ATTEND_TILE], const float *q, int m, const float *kv, int k,
                   size_t c)
{
    __m512 s[KEYS][HEADS];
    size_t i = 0;
    FOR_LANE (j, KEYS)
        FOR_LANE (h, HEADS)
            s[j][h] = _mm512_setzero_ps();
    for (; i + 16 <= c; i += 16)
        score_step(s, q + i, m, kv + i, k, c, 0xffff);
    if (i < c)
        score_step(s, q + i, m, kv + i, k, c, first_lanes(c - i));
    _Alignas(64) float all[HEADS][KEYS];
    _mm512_store_ps(all[0], fold_all(s));
    for (int h = 0; h < m; h++)
        for (int j = 0; j < k; j++)
            score[h][j] = all[h][j];
}

/* Scores -> exp(scale * score - maximum); the running maximum and sum of a head. Returns what the
 * old values shrink by. */
INLINE float softmax(float *score, float *max, float *sum, size_t n, float scale)
{
    const __mmask16 in[2] = {first_lanes(n), n > 16 ? first_lanes(n - 16) : 0};
    const __m512 none = _mm512_set1_ps(-INFINITY);
    __m512 s[2];
    FOR_LANE (k, 2)
        s[k] =
            _mm512_mask_mul_ps(none, in[k], _mm512_load_ps(score + k * 16), _mm512_set1_ps(scale));
    float top = _mm512_reduce_max_ps(_mm512_max_ps(s[0], s[1])), shrink = 1;
    if (top > *max) {
        shrink = _mm512_cvtss_f32(exp_lanes(_mm512_set1_ps(*max - top)));
        *max = top;
    } else {
        top = *max;
    }
    __m512 total = _mm512_setzero_ps();
    FOR_LANE (k, 2) {
        __m512 e = exp_lanes(_mm512_sub_ps(s[k], _mm512_set1_ps(top)));
        _mm512_store_ps(score + k * 16, e);
        total = _mm512_mask_add_ps(total, in[k], total, e);
    }
    *sum = *sum * shrink + fold_lanes(total);
    return shrink;
}

/* o_h <- shrink_h o_h + sum_j p[h][j] kv_j for m heads and `span` vectors of channels from i on. */
INLINE void values(float *o, float (*p)[ATTEND_TILE], const float *shrink, int m, const float *kv,
                   size_t n, size_t c, size_t i, int span)
{
    __mmask16 in[SPAN];
    __m512 s[HEADS][SPAN];
    FOR_LANE (k, span)
        in[k] = first_lanes(c - i - (size_t)k * 16);
    FOR_LANE (h, m)
        FOR_LANE (k, span)
            s[h][k] = _mm512_mul_ps(_mm512_set1_ps(shrink[h]),
                                    _mm512_maskz_loadu_ps(in[k], o + (size_t)h * c + i + k * 16));
    for (size_t j = 0; j < n; j++) {
        __m512 v[SPAN];
        FOR_LANE (k, span)
            v[k] = _mm512_maskz_loadu_ps(in[k], kv + j * c + i + k * 16);
        FOR_LANE (h, m) {
            __m512 weight = _mm512_set1_ps(p[h][j]);
            FOR_LANE (k, span)
                s[h][k] = _mm512_fmadd_ps(weight, v[k], s[h][k]);
        }
    }
    FOR_LANE (h, m)
        FOR_LANE (k, span)
            _mm512_mask_storeu_ps(o + (size_t)h * c + i + k * 16, in[k], s[h][k]);
}

INLINE void attend_heads(float *o, float *max, float *sum, const float *q, int m, const float *kv,
                         size_t n, size_t c, float scale)
{
    _Alignas(64) float p[HEADS][ATTEND_TILE];
    float shrink[HEADS];
    size_t j = 0, i = 0;
    for (; j + KEYS <= n; j += KEYS)
        scores((float(*)[ATTEND_TILE]) & p[0][j], q, m, kv + j * c, KEYS, c);
    for (; j < n; j++)
        scores((float(*)[ATTEND_TILE]) & p[0][j], q, m, kv + j * c, 1, c);
    for (int h = 0; h < m; h++) {
        for (j = n; j < ATTEND_TILE; j++)
            p[h][j] = 0;
        shrink[h] = softmax(p[h], &max[h], &sum[h], n, scale);
    }
    for (; i + SPAN * 16 <= c; i += SPAN * 16)
        values(o, p, shrink, m, kv, n, c, i, SPAN);
    for (; i < c; i += 16)
        values(o, p, shrink, m, kv, n, c, i, 1);
}

static void attend(float *o, float *max, float *sum, const float *q, size_t heads, const float *kv,
                   size_t n, size_t c, float scale)
{
    size_t h = 0;
    for (; h + HEADS <= heads; h += HEADS)
        attend_heads(o + h * c, max + h, sum + h, q + h * c, HEADS, kv, n, c, scale);
    for (; h < heads; h++)
        attend_heads(o + h * c, max + h, sum + h, q + h * c, 1, kv, n, c, scale);
}

void attend_init_avx512(struct kernels *k)
{
    k->attend = attend;
}
