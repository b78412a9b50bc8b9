/* The indexer on floats: keys of any cache format against the heads of one query. */
#include "neon.h"

enum { KEYS = 4, HEADS = 16 };

/* Keys i .. i + n: sums over the heads in ascending order. */
static void score_keys(float *score, const float *q, const float *w, size_t heads, const float *key,
                       size_t n, size_t width)
{
    float dots[HEADS][KEYS] = {{0}};
    float32x4_t sum = vdupq_n_f32(0);
    for (size_t h = 0; h < heads; h += HEADS) {
        const size_t some = heads - h < HEADS ? heads - h : HEADS;
        dots_neon(dots[0], KEYS, q + h * width, width, some, key, width, n, width);
        for (size_t i = 0; i < some; i++) {
            const float32x4_t a = vmaxnmq_f32(vld1q_f32(dots[i]), vdupq_n_f32(0));
            sum = vfmaq_n_f32(sum, a, w[h + i]);
        }
    }
    float out[KEYS];
    vst1q_f32(out, sum);
    for (size_t i = 0; i < n; i++)
        score[i] = out[i];
}

static void index_neon(float *score, const float *q, const float *w, size_t heads,
                       const uint8_t *key, size_t n, struct rshape s)
{
    float floats[KEYS * INDEX_MAX_WIDTH];
    const size_t bytes = row_bytes(s);
    for (size_t i = 0; i < n; i += KEYS) {
        const size_t some = n - i < KEYS ? n - i : KEYS;
        for (size_t k = 0; k < some; k++)
            cache_row_neon(floats + k * s.width, key + (i + k) * bytes, s);
        score_keys(score + i, q, w, heads, floats, some, s.width);
    }
}

void init_neon_index(struct kernels *k)
{
    k->index = index_neon;
}
