/* Rows of floats and rows of the caches, in plain C. */
#include "scalar.h"
#include "simd/codes.h"
#include "simd/simd.h"

#include <math.h>
#include <string.h>

static float sum_squares(const float *x, size_t n)
{
    return dot_lanes(x, x, n);
}

static float dot(const float *a, const float *b, size_t n)
{
    return dot_lanes(a, b, n);
}

static void row_e4m3(float *out, const uint8_t *code, const uint8_t *scale, size_t n, size_t block)
{
    for (size_t c = 0; c < n; c += block, scale++) {
        float s = e8m0_value(*scale);
        for (size_t i = c; i < c + block; i++)
            out[i] = e4m3_value[code[i]] * s;
    }
}

static void row_e2m1(float *out, const uint8_t *code, size_t n, size_t block, const uint8_t *scale,
                     bool e4m3_scale)
{
    for (size_t c = 0; c < n; c += block, scale++) {
        float s = e4m3_scale ? e4m3_value[*scale] : e8m0_value(*scale);
        for (size_t i = c; i < c + block; i += 2) {
            out[i] = e2m1_value[code[i / 2] & 15] * s;
            out[i + 1] = e2m1_value[code[i / 2] >> 4] * s;
        }
    }
}

static void decode_row(float *out, const uint8_t *row, struct rshape s)
{
    size_t w = s.width, flat = w - s.rope;
    switch (s.format) {
    case R_F32: memcpy(out, row, w * sizeof *out); break;
    case R_E4M3_64B:
        row_e4m3(out, row, row + flat, flat, 64);
        row += flat + flat / 64;
        for (size_t i = 0; i < s.rope; i++) {
            uint16_t h;
            memcpy(&h, row + 2 * i, sizeof h);
            out[flat + i] = bf16_value(h);
        }
        break;
    case R_E4M3_32: row_e4m3(out, row, row + w, w, 32); break;
    case R_E2M1_16: row_e2m1(out, row, w, 16, row + w / 2, true); break;
    case R_E2M1_32: row_e2m1(out, row, w, 32, row + w / 2, false); break;
    case N_RFORMATS: break;
    }
}

static void rows(float *out, const uint8_t *row, size_t n, struct rshape s)
{
    size_t bytes = row_bytes(s);
    for (size_t i = 0; i < n; i++)
        decode_row(out + i * s.width, row + i * bytes, s);
}

static void attend(float *o, float *max, float *sum, const float *q, size_t heads, const float *kv,
                   size_t n, size_t c, float scale)
{
    for (size_t h = 0; h < heads; h++) {
        float p[ATTEND_TILE], top = max[h], *restrict oh = o + h * c;
        for (size_t j = 0; j < n; j++) {
            p[j] = scale * dot_lanes(q + h * c, kv + j * c, c);
            top = p[j] > top ? p[j] : top;
        }
        if (top > max[h]) {
            float shrink = expf(max[h] - top);
            sum[h] *= shrink;
            for (size_t i = 0; i < c; i++)
                oh[i] *= shrink;
            max[h] = top;
        }
        for (size_t j = 0; j < n; j++) {
            p[j] = expf(p[j] - top);
            sum[h] += p[j];
        }
        for (size_t j = 0; j < n; j++)
            for (size_t i = 0; i < c; i++)
                oh[i] += p[j] * kv[j * c + i];
    }
}

static void index_scores(float *score, const float *q, const float *w, size_t heads,
                         const uint8_t *key, size_t n, struct rshape s)
{
    float k[INDEX_MAX_WIDTH];
    size_t bytes = row_bytes(s);
    for (size_t i = 0; i < n; i++) {
        decode_row(k, key + i * bytes, s);
        float sum = 0;
        for (size_t h = 0; h < heads; h++) {
            float a = dot_lanes(q + h * s.width, k, s.width);
            sum += w[h] * (a > 0 ? a : 0);
        }
        score[i] = sum;
    }
}

/* One group of a key as doubled codes in plain order. */
static void key_codes(int32_t *v, const uint8_t *key, size_t c)
{
    for (size_t i = 0; i < GROUP; i++)
        v[i] = (int32_t)(2 * e2m1_value[key[(c + i) / 2] >> (c + i) % 2 * 4 & 15]);
}

static void index_codes(float *score, const struct index_query *q, const uint8_t *key, size_t n)
{
    size_t groups = q->width / GROUP, bytes = q->width / 2 + groups;
    for (size_t i = 0; i < n; i++, key += bytes) {
        float t[PANEL] = {0};
        for (size_t h = 0; h < q->panels * PANEL; h++) {
            const int8_t *code = q->code + h / PANEL * q->width * PANEL + h % PANEL * 4;
            const float *scale = q->scale + h / PANEL * groups * PANEL + h % PANEL;
            float a = 0;
            for (size_t g = 0; g < groups; g++) {
                int32_t k[GROUP], s = 0;
                key_codes(k, key, g * GROUP);
                for (size_t c = 0; c < GROUP; c++) {
                    size_t at = octet_place(g * GROUP + c);
                    s += k[c] * code[at / 4 * 4 * PANEL + at % 4];
                }
                a = fmaf((float)s, scale[g * PANEL] * e8m0_value(key[q->width / 2 + g]), a);
            }
            t[h % PANEL] = fmaf(q->weight[h], a > 0 ? a : 0, t[h % PANEL]);
        }
        score[i] = fold(t);
    }
}

void rows_init_scalar(struct kernels *k)
{
    k->sum_squares = sum_squares;
    k->dot = dot;
    k->rows = rows;
    k->attend = attend;
    k->index = index_scores;
    k->index_codes = index_codes;
}
