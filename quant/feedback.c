/* Error feedback: rounding a column, the error is carried into the columns that follow so that the product with
 * inputs of the given covariance changes least (GPTQ, arXiv:2210.17323; written as LDLQ of QuIP,
 * arXiv:2307.13304, which is the same and needs no inverse).
 *
 * With H = (U + I) D (U + I)^T, U strictly upper, the error of a row is sum_j D_j (q_j - v_j)^2 where
 * v_j = x_j + sum_{k<j} (x_k - q_k) U_kj: so q_j is the level nearest to v_j, and D_j its weight. */
#include "encode.h"

#include "simd/codes.h"

#include <math.h>
#include <string.h>

enum { LANES = 8 };

static float dot(const float *a, const float *b, size_t n)
{
    float lane[LANES] = {0}, sum = 0;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t j = 0; j < LANES; j++)
            lane[j] += a[i + j] * b[i + j];
    for (size_t j = 0; j < LANES; j++)
        sum += lane[j];
    for (; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

void feedback_factor(float *h, size_t n, float damping)
{
    double trace = 0;
    for (size_t i = 0; i < n; i++)
        trace += h[i * n + i];
    float mean = trace > 0 ? (float)(trace / (double)n) : 1;
    for (size_t i = 0; i < n; i++)
        h[i * n + i] += damping * mean;
    /* H = R R^T, R upper, from the last column on: row i of R needs the tails of rows i and j alone. */
    for (size_t j = n; j-- > 0;) {
        const float *tail = h + j * n + j + 1;
        float pivot = h[j * n + j] - dot(tail, tail, n - 1 - j);
        pivot = sqrtf(fmaxf(pivot, 0.01f * damping * mean));
        h[j * n + j] = pivot;
        for (size_t i = 0; i < j; i++)
            h[i * n + j] = (h[i * n + j] - dot(h + i * n + j + 1, tail, n - 1 - j)) / pivot;
    }
    /* U_kj = R_kj / R_jj into row j, D_j = R_jj^2 */
    for (size_t j = 0; j < n; j++) {
        float pivot = h[j * n + j];
        for (size_t k = 0; k < j; k++)
            h[j * n + k] = h[k * n + j] / pivot;
        h[j * n + j] = pivot * pivot;
    }
}

/* Rows lie side by side: [column][PANEL].
 *
 * v += sum over k0 <= k < k1 of error_k U_kj */
static void carry(struct side *restrict v, const struct side *restrict error,
                  const float *restrict u, size_t k0, size_t k1)
{
    struct side sum = *v;
    for (size_t k = k0; k < k1; k++)
        for (size_t r = 0; r < PANEL; r++)
            sum.at[r] += error[k].at[r] * u[k];
    *v = sum;
}

void encode_feedback(const struct kernels *k, uint8_t *codes, size_t code_ld, uint8_t *scales,
                     size_t scale_ld, const struct wtype *t, const float *x, size_t ldx,
                     size_t rows, size_t cols, const float *factor, float *tmp)
{
    struct grid l;
    struct side *error = (struct side *)tmp, v[GROUP], weight[GROUP];
    uint16_t half[PANEL];
    float scale[PANEL] = {0};
    uint8_t code[PANEL][GROUP];
    levels_of(&l, t);
    for (size_t c = 0; c < cols; c += GROUP) {
        for (size_t i = 0; i < GROUP; i++) {
            const float *u = factor + (c + i) * cols;
            for (size_t r = 0; r < PANEL; r++) {
                weight[i].at[r] = u[c + i];
                v[i].at[r] = r < rows ? x[r * ldx + c + i] : 0;
            }
            carry(&v[i], error, u, 0, c);
        }
        group_scales(k, half, &l, v, weight, EFFORT_SEARCH);
        for (size_t r = 0; r < rows; r++) {
            memcpy(scales + r * scale_ld + c / GROUP * 2, &half[r], sizeof half[r]);
            scale[r] = f16_value(half[r]);
        }
        for (size_t i = 0; i < GROUP; i++) {
            carry(&v[i], error, factor + (c + i) * cols, c, c + i);
            for (size_t r = 0; r < PANEL; r++) {
                float inverse = scale[r] == 0 ? 0 : 1 / scale[r];
                code[r][i] = levels_code(&l, v[i].at[r] * inverse);
                float q = levels_value(&l, code[r][i]) * scale[r];
                error[c + i].at[r] = r < rows ? x[r * ldx + c + i] - q : 0;
            }
        }
        for (size_t r = 0; r < rows; r++)
            group_store(codes + r * code_ld, t, c, code[r]);
    }
}
