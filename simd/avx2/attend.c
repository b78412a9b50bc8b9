/* Attention over one tile: two small products with a softmax between them.
 *
 *   S [heads][n] = Q KV^T, O [heads][c] = shrink O + P KV
 *
 * Both keep 12 accumulators in registers (4 heads x 3 vectors): enough to hide the latency of
 * the fused multiply-adds, and each loaded vector is used three or four times. Every element is
 * summed in the same order whatever block it falls into. */
#include "avx2.h"
#include "vec.h"

#include <math.h>

/* Heads whose P is kept; those of them whose queries are near; columns of KV packed for O. */
enum { CHUNK = 64, NEAR = 8, COLS = 24 };

/* out[i][j] = q_i . kv_j: H heads, R rows. */
INLINE void scores(const int H, const int R, float (*out)[ATTEND_TILE], const float *q,
                   const float *kv, size_t c)
{
    __m256 s[4][3], a[3];
    for (int i = 0; i < H; i++)
        for (int j = 0; j < R; j++)
            s[i][j] = _mm256_setzero_ps();
    size_t k = 0;
    for (; k + 8 <= c; k += 8) {
        for (int j = 0; j < R; j++)
            a[j] = _mm256_loadu_ps(kv + (size_t)j * c + k);
        for (int i = 0; i < H; i++) {
            __m256 b = _mm256_loadu_ps(q + (size_t)i * c + k);
            for (int j = 0; j < R; j++)
                s[i][j] = _mm256_fmadd_ps(b, a[j], s[i][j]);
        }
    }
    if (k < c) {
        __m256i mask = first_lanes(c - k);
        for (int j = 0; j < R; j++)
            a[j] = _mm256_maskload_ps(kv + (size_t)j * c + k, mask);
        for (int i = 0; i < H; i++) {
            __m256 b = _mm256_maskload_ps(q + (size_t)i * c + k, mask);
            for (int j = 0; j < R; j++)
                s[i][j] = _mm256_fmadd_ps(b, a[j], s[i][j]);
        }
    }
    for (int i = 0; i < H; i++)
        for (int j = 0; j < R; j++)
            out[i][j] = sum8(s[i][j]);
}

INLINE void scores_rows(const int R, float (*out)[ATTEND_TILE], const float *q, size_t heads,
                        const float *kv, size_t c)
{
    size_t h = 0;
    for (; h + 4 <= heads; h += 4)
        scores(4, R, out + h, q + h * c, kv, c);
    for (; h < heads; h++)
        scores(1, R, out + h, q + h * c, kv, c);
}

/* The queries stay in the first-level cache, rows come from the second. */
static void scores_tile(float (*p)[ATTEND_TILE], const float *q, size_t heads, const float *kv,
                        size_t n, size_t c)
{
    for (size_t j = 0; j < n;) {
        float(*out)[ATTEND_TILE] = (float(*)[ATTEND_TILE])(p[0] + j);
        size_t left = n - j, rows = left == 3 || left > 4 ? 3 : left == 1 ? 1 : 2;
        if (rows == 3)
            scores_rows(3, out, q, heads, kv + j * c, c);
        else if (rows == 2)
            scores_rows(2, out, q, heads, kv + j * c, c);
        else
            scores_rows(1, out, q, heads, kv + j * c, c);
        j += rows;
    }
}

/* Scores of one head -> weights; returns what the old maximum's weights shrink to. */
static float softmax_row(float *p, float *max, float *sum, size_t n, float scale)
{
    __m256 factor = _mm256_set1_ps(scale), low = _mm256_set1_ps(-INFINITY), top = low;
    for (size_t j = 0; j < n; j += 8) {
        __m256 live = _mm256_castsi256_ps(first_lanes(n - j < 8 ? n - j : 8));
        __m256 s = _mm256_mul_ps(factor, _mm256_load_ps(p + j));
        s = _mm256_blendv_ps(low, s, live);
        _mm256_store_ps(p + j, s);
        top = _mm256_max_ps(s, top); /* a NaN leaves the maximum as it is */
    }
    __m128 t = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
    t = _mm_max_ps(t, _mm_movehl_ps(t, t));
    t = _mm_max_ss(t, _mm_movehdup_ps(t));
    float best = _mm_cvtss_f32(t), shrink = 1;
    if (best > *max) {
        shrink = _mm256_cvtss_f32(exp8(_mm256_set1_ps(*max - best)));
        *max = best;
    }
    __m256 m = _mm256_set1_ps(*max), total = _mm256_setzero_ps();
    for (size_t j = 0; j < n; j += 8) {
        __m256 live = _mm256_castsi256_ps(first_lanes(n - j < 8 ? n - j : 8));
        __m256 e = _mm256_and_ps(exp8(_mm256_sub_ps(_mm256_load_ps(p + j), m)), live);
        _mm256_store_ps(p + j, e);
        total = _mm256_add_ps(total, e);
    }
    *sum = *sum * shrink + sum8(total);
    return shrink;
}

/* Vector v of V that end after `last` lanes. Masked stores are slow, so whole vectors go
 * without. */
INLINE __m256 load(const float *x, const int v, const int V, size_t last)
{
    if (v < V - 1 || last == 8)
        return _mm256_loadu_ps(x + 8 * v);
    return _mm256_maskload_ps(x + 8 * v, first_lanes(last));
}

INLINE void store(float *x, __m256 a, const int v, const int V, size_t last)
{
    if (v < V - 1 || last == 8)
        _mm256_storeu_ps(x + 8 * v, a);
    else
        _mm256_maskstore_ps(x + 8 * v, first_lanes(last), a);
}

/* o_i <- shrink_i o_i + sum_j p_ij kv_j for H heads and V vectors of columns, of which `last`
 * lanes in the last vector exist. kv: packed, COLS apart. */
INLINE void mix(const int H, const int V, float *o, size_t c, const float (*p)[ATTEND_TILE],
                const float *shrink, const float *kv, size_t n, size_t last)
{
    __m256 s[4][3], a[3];
    for (int i = 0; i < H; i++) {
        __m256 f = _mm256_broadcast_ss(shrink + i);
        for (int v = 0; v < V; v++)
            s[i][v] = _mm256_mul_ps(f, load(o + (size_t)i * c, v, V, last));
    }
    for (size_t j = 0; j < n; j++) {
        for (int v = 0; v < V; v++)
            a[v] = _mm256_load_ps(kv + j * COLS + (size_t)(8 * v));
        for (int i = 0; i < H; i++) {
            __m256 f = _mm256_broadcast_ss(&p[i][j]);
            for (int v = 0; v < V; v++)
                s[i][v] = _mm256_fmadd_ps(f, a[v], s[i][v]);
        }
    }
    for (int i = 0; i < H; i++)
        for (int v = 0; v < V; v++)
            store(o + (size_t)i * c, s[i][v], v, V, last);
}

INLINE void mix_columns(const int V, float *o, size_t c, size_t heads,
                        const float (*p)[ATTEND_TILE], const float *shrink, const float *kv,
                        size_t n, size_t last)
{
    size_t h = 0;
    for (; h + 4 <= heads; h += 4)
        mix(4, V, o + h * c, c, p + h, shrink + h, kv, n, last);
    for (; h < heads; h++)
        mix(1, V, o + h * c, c, p + h, shrink + h, kv, n, last);
}

/* Columns k .. k + width of the tile side by side: rows of 2 KB would all fall into the same few
 * sets of the first-level cache. */
static void pack(float *out, const float *kv, size_t n, size_t c, size_t k, size_t width)
{
    for (size_t j = 0; j < n; j++)
        for (size_t v = 0; v < width; v += 8) {
            const float *from = kv + j * c + k + v;
            __m256 a = width - v >= 8 ? _mm256_loadu_ps(from)
                                      : _mm256_maskload_ps(from, first_lanes(width - v));
            _mm256_store_ps(out + j * COLS + v, a);
        }
}

static void attend_chunk(float *o, float *max, float *sum, const float *q, size_t heads,
                         const float *kv, size_t n, size_t c, float scale)
{
    _Alignas(32) float p[CHUNK][ATTEND_TILE], packed[ATTEND_TILE * COLS], shrink[CHUNK];
    for (size_t h = 0; h < heads; h += NEAR)
        scores_tile(p + h, q + h * c, heads - h < NEAR ? heads - h : NEAR, kv, n, c);
    for (size_t h = 0; h < heads; h++)
        shrink[h] = softmax_row(p[h], max + h, sum + h, n, scale);
    for (size_t k = 0; k < c; k += COLS) {
        size_t width = c - k < COLS ? c - k : COLS, last = (width - 1) % 8 + 1;
        pack(packed, kv, n, c, k, width);
        if (width == COLS)
            mix_columns(3, o + k, c, heads, p, shrink, packed, n, 8);
        else if (width > 16)
            mix_columns(3, o + k, c, heads, p, shrink, packed, n, last);
        else if (width > 8)
            mix_columns(2, o + k, c, heads, p, shrink, packed, n, last);
        else
            mix_columns(1, o + k, c, heads, p, shrink, packed, n, last);
    }
}

static void attend(float *o, float *max, float *sum, const float *q, size_t heads, const float *kv,
                   size_t n, size_t c, float scale)
{
    for (size_t h = 0; h < heads; h += CHUNK) {
        size_t m = heads - h < CHUNK ? heads - h : CHUNK;
        attend_chunk(o + h * c, max + h, sum + h, q + h * c, m, kv, n, c, scale);
    }
}

void init_avx2_attend(struct kernels *k)
{
    k->attend = attend;
}
