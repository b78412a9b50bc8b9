/* index and index_codes: scores of keys, each alone and in company. */
#include "check.h"

#include "simd/codes.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

struct job {
    const struct kernels *k;
    float *score;
    const float *q, *w; /* index */
    size_t heads;
    struct index_query codes; /* index_codes, when .panels > 0 */
    const uint8_t *key;
    size_t n;
    struct rshape s;
};

static void call(void *arg)
{
    struct job *j = arg;
    if (j->codes.panels > 0)
        j->k->index_codes(j->score, &j->codes, j->key, j->n);
    else
        j->k->index(j->score, j->q, j->w, j->heads, j->key, j->n, j->s);
}

/* Rounding of the dot products, and of the sum over heads. */
static double bound_of(const struct job *j, const float *key)
{
    double sum = 0, scores = 0;
    for (size_t h = 0; h < j->heads; h++) {
        double dot = 0, magnitude = 0;
        for (size_t c = 0; c < j->s.width; c++) {
            double p = (double)j->q[h * j->s.width + c] * key[c];
            dot += p;
            magnitude += fabs(p);
        }
        sum += fabs((double)j->w[h]) * rounding(j->s.width, magnitude);
        scores += fabs(j->w[h] * dot);
    }
    return sum + rounding(j->heads, scores);
}

/* Keys in smaller calls: the same bits. */
static bool keys_alone(struct check *t, const struct job *all)
{
    size_t bytes = row_bytes(all->s);
    for (int i = 0; i < 6; i++) {
        struct job j = *all;
        size_t first = random_below(t, all->n);
        j.n = i < 3 ? 1 : 1 + random_below(t, all->n - first);
        j.key = all->key + first * bytes;
        j.score = guard_out(t, "score", NULL, j.n * 4, 4, EDGE_END);
        if (!guard_call(t, call, &j))
            return false;
        for (size_t r = 0; r < j.n; r++)
            if (!same_bits(j.score[r], all->score[first + r])) {
                check_fail(t, "key %zu: %.9g among %zu, %.9g among %zu", first + r,
                           (double)j.score[r], j.n, (double)all->score[first + r], all->n);
                return false;
            }
    }
    return true;
}

static void run(struct check *t, const struct job *plain, const float *want, const double *bound)
{
    size_t bytes = plain->n * row_bytes(plain->s), width = plain->s.width;
    for (enum edge e = 0; e < N_EDGES; e++) {
        struct job j = *plain;
        const struct index_query *p = &plain->codes;
        j.k = t->k;
        j.key = guard_in(t, "the keys", plain->key, bytes, plain->s.format == R_F32 ? 4 : 1, e);
        j.score = guard_out(t, "score", NULL, j.n * 4, 4, e);
        if (p->panels > 0) {
            j.codes.code = guard_in(t, "the query's codes", p->code, p->panels * width * 16, 64, e);
            j.codes.scale =
                guard_in(t, "the query's scales", p->scale, p->panels * width / 2 * 4, 64, e);
            j.codes.weight = guard_in(t, "the query's weights", p->weight, p->panels * 64, 64, e);
        } else {
            j.q = guard_in(t, "q", plain->q, j.heads * width * 4, 4, e);
            j.w = guard_in(t, "w", plain->w, j.heads * 4, 4, e);
        }
        if (!guard_call(t, call, &j))
            return;
        for (size_t i = 0; i < j.n; i++)
            if (bound ? !check_close(t, j.score[i], want[i], bound[i])
                      : !same_bits(j.score[i], want[i])) {
                check_fail(t, "score %zu is %.9g instead of %.9g", i, (double)j.score[i],
                           (double)want[i]);
                return;
            }
        if (j.n > 0 && !keys_alone(t, &j))
            return;
    }
}

/* ------------------------------------------------------------------ index */

static void index_case(struct check *t, struct rshape s, size_t heads, size_t n, enum kind kind)
{
    check_case(t, "%zu heads of %u, %zu keys, %s", heads, s.width, n, kind_name(kind));
    float *q = keep(t, heads * s.width * 4), *w = keep(t, heads * 4), *score = keep(t, n * 4 + 4);
    double *bound = keep(t, (n + 1) * sizeof *bound);
    float *key = keep(t, s.width * 4);
    random_rows(t, q, s.width, heads, s.width, kind);
    random_rows(t, w, heads, 1, heads, K_RANDOM);
    struct job j = {t->twin, score, q, w, heads, {0}, random_cache(t, s, n, kind), n, s};
    call(&j);
    for (size_t i = 0; i < n; i++) {
        t->twin->rows(key, j.key + i * row_bytes(s), 1, s);
        bound[i] = bound_of(&j, key);
    }
    run(t, &j, score, bound);
}

void check_index(struct check *t)
{
    static const uint16_t width[N_RFORMATS][4] = {/* ORDER ROWS */
                                                  {1, 33, 64, 128},
                                                  {64, 128, 192, 512},
                                                  {32, 96, 128, 160},
                                                  {16, 48, 128, 160},
                                                  {32, 96, 128, 1024}};
    static const size_t heads[] = {1, 2, 3, 4, 8, 15, 16, 17, 64},
                        n[] = {0, 1, 2, 3, 5, 16, 33, 64};
    static const enum kind kinds[] = {K_RANDOM, K_ONE_HOT, K_MAX, K_ZERO, K_TINY};
    size_t cases = t->quick ? 24 : 120;
    for (size_t i = 0; i < cases && !check_done(t); i++) {
        struct rshape s = {t->line->rows, width[t->line->rows][i % 4], 0};
        s.rope = s.format == R_E4M3_64B && s.width % 128 == 0 ? 64 : 0;
        index_case(t, s, heads[random_below(t, 9)], n[random_below(t, 8)], kinds[i / 4 % 5]);
        case_end(t);
    }
}

/* ------------------------------------------------------------------ index_codes */

static float query_scale(struct check *t, enum kind kind)
{
    float v = 0.25f * (0.5f + fabsf(random_float(t)));
    return kind == K_HUGE ? v * 0x1p-30f : kind == K_TINY ? v * 0x1p100f : v;
}

static void codes_case(struct check *t, size_t heads, size_t width, size_t n, enum kind kind)
{
    static const int8_t doubled[8] = {0, 1, 2, 3, 4, 6, 8, 12};
    check_case(t, "%zu heads of %zu, %zu keys, %s", heads, width, n, kind_name(kind));
    struct rshape s = {R_E2M1_32, (uint32_t)width, 0};
    size_t panels = (heads + 15) / 16;
    int8_t *code = keep(t, panels * width * 16);
    float *scale = keep(t, panels * width / 32 * 64), *weight = keep(t, panels * 64);
    for (size_t h = 0; h < heads; h++) {
        size_t hot = random_below(t, width);
        for (size_t i = 0; i < width; i++) {
            int v = doubled[random_below(t, 8)] * (random_below(t, 2) ? 1 : -1);
            v = kind == K_MAX       ? (h % 2 ? -12 : 12)
                : kind == K_ONE_HOT ? (i == hot ? 1 : 0)
                : kind == K_ZERO    ? 0
                                    : v;
            code[h / 16 * width * 16 + i / 4 * 64 + h % 16 * 4 + i % 4] = (int8_t)v;
        }
        for (size_t g = 0; g < width / 32; g++)
            scale[(h / 16 * (width / 32) + g) * 16 + h % 16] = query_scale(t, kind);
        weight[h] = random_float(t);
    }
    float *score = keep(t, n * 4 + 4);
    struct job j = {.k = t->twin, .score = score, .heads = heads, .n = n, .s = s};
    j.codes = (struct index_query){panels, width, code, scale, weight};
    j.key = random_cache(t, s, n, kind);
    call(&j);
    run(t, &j, score, NULL);
}

void check_index_codes(struct check *t)
{
    static const size_t heads[] = {1, 7, 15, 16, 17, 32, 48, 64, 80},
                        width[] = {32, 64, 96, 128, 160, 1024};
    static const size_t n[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 129};
    static const enum kind kinds[] = {K_RANDOM, K_ONE_HOT, K_MAX, K_ZERO, K_TINY, K_HUGE};
    size_t cases = t->quick ? 40 : 400;
    for (size_t i = 0; i < cases && !check_done(t); i++) {
        size_t w = width[random_below(t, i % 4 ? 4 : 6)];
        codes_case(t, heads[random_below(t, w > 160 ? 3 : 9)], w, n[i % 16],
                   kinds[random_below(t, 6)]);
        case_end(t);
    }
}
