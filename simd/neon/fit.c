/* How well scales fit groups of weights: four groups a register. Products are rounded before they are added, as on
 * every level. */
#include "neon.h"

/* Levels are whole numbers: climbing to one step by step is exact. */
INLINE float32x4_t climb(float32x4_t y, const struct grid *l)
{
    float32x4_t q = vdupq_n_f32(l->value[0]);
    for (int k = 0; k + 1 < l->n; k++) {
        const uint32x4_t step = vreinterpretq_u32_f32(vdupq_n_f32(l->value[k + 1] - l->value[k]));
        const uint32x4_t above = vcgtq_f32(y, vdupq_n_f32(l->middle[k]));
        q = vaddq_f32(q, vreinterpretq_f32_u32(vandq_u32(above, step)));
    }
    return q;
}

INLINE float32x4_t round_between(float32x4_t y, const struct grid *l)
{
    return vrndnq_f32(vminq_f32(vmaxq_f32(y, vdupq_n_f32(l->low)), vdupq_n_f32(l->high)));
}

static void fit_neon(float *xq, float *qq, const float *x, const float *w, const float *inverse,
                     const struct grid *l)
{
    for (int j = 0; j < PANEL; j += 4) {
        const float32x4_t by = vld1q_f32(inverse + j);
        float32x4_t a = vdupq_n_f32(0), b = a;
        for (int i = 0; i < GROUP; i++) {
            const float32x4_t v = vld1q_f32(x + i * PANEL + j), u = vld1q_f32(w + i * PANEL + j);
            const float32x4_t y = vmulq_f32(v, by);
            const float32x4_t q = l->n == 0 ? round_between(y, l) : climb(y, l);
            a = vaddq_f32(a, vmulq_f32(vmulq_f32(u, v), q));
            b = vaddq_f32(b, vmulq_f32(vmulq_f32(u, q), q));
        }
        vst1q_f32(xq + j, a);
        vst1q_f32(qq + j, b);
    }
}

void init_neon_fit(struct kernels *k)
{
    k->fit = fit_neon;
}
