/* attend: one tile from any state of the running softmax, each head alone and in company. */
#include "check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct job {
    const struct kernels *k;
    float *o, *max, *sum;
    const float *q, *kv;
    size_t heads, n, c;
    float scale;
};

static void call(void *arg)
{
    struct job *j = arg;
    j->k->attend(j->o, j->max, j->sum, j->q, j->heads, j->kv, j->n, j->c, j->scale);
}

/* States that a tile may meet. */
enum state {
    FRESH, /* nothing seen */
    SINK,  /* a logit without a value */
    RUNNING,
    ABOVE, /* far above all scores: they vanish */
    BELOW, /* far below: what was summed vanishes */
    N_STATES
};

static float first_max(struct check *t, enum state s)
{
    static const float level[N_STATES] = {-INFINITY, 0, 1, 200, -200};
    return level[s] + random_float(t);
}

/* How far two kernels may differ in head h: each score by the rounding of its dot product, each
 * exponential by that, by its argument's rounding and by 2^-21. Both have errors, hence twice. */
struct bounds {
    double max, sum;
    double *o; /* [c] */
};

static void find_bounds(struct bounds *b, const struct job *j, size_t h)
{
    double s[ATTEND_TILE], error[ATTEND_TILE], top = j->max[h], worst = 0;
    for (size_t i = 0; i < j->n; i++) {
        double dot = 0, magnitude = 0;
        for (size_t c = 0; c < j->c; c++) {
            double p = (double)j->q[h * j->c + c] * j->kv[i * j->c + c];
            dot += p;
            magnitude += fabs(p);
        }
        s[i] = dot * (double)j->scale;
        error[i] = (rounding(j->c, magnitude) + 0x1p-24 * fabs(dot)) * fabs((double)j->scale);
        top = s[i] > top ? s[i] : top;
        worst = error[i] > worst ? error[i] : worst;
    }
    double shrink = exp(j->max[h] - top);
    double slack = 0x1p-20 + (double)(j->n + 4) * 0x1p-23;
    double old = shrink > 0 ? shrink * (2 * worst + (top - j->max[h]) * 0x1p-23 + slack) : 0;
    b->max = 2 * worst + fabs(top) * 0x1p-23;
    b->sum = fabs((double)j->sum[h]) * (old + 0x1p-125) + 0x1p-125;
    for (size_t c = 0; c < j->c; c++)
        b->o[c] = fabs((double)j->o[h * j->c + c]) * (old + 0x1p-125) + 0x1p-140;
    for (size_t i = 0; i < j->n; i++) {
        double p = exp(s[i] - top);
        double e = p * (2 * (error[i] + worst) + (top - s[i]) * 0x1p-23 + slack) + 0x1p-125;
        b->sum += e;
        for (size_t c = 0; c < j->c; c++)
            b->o[c] += e * fabs((double)j->kv[i * j->c + c]);
    }
}

static bool compare(struct check *t, const struct job *before, const struct job *got,
                    const struct job *want)
{
    struct bounds b = {.o = keep(t, before->c * sizeof(double))};
    for (size_t h = 0; h < before->heads; h++) {
        find_bounds(&b, before, h);
        if (!check_close(t, got->max[h], want->max[h], b.max) ||
            !check_close(t, got->sum[h], want->sum[h], b.sum)) {
            check_fail(t, "head %zu: maximum %.9g and sum %.9g instead of %.9g and %.9g", h,
                       (double)got->max[h], (double)got->sum[h], (double)want->max[h],
                       (double)want->sum[h]);
            return false;
        }
        for (size_t c = 0; c < before->c; c++)
            if (!check_close(t, got->o[h * before->c + c], want->o[h * before->c + c], b.o[c])) {
                check_fail(t, "o[%zu][%zu] is %.9g instead of %.9g", h, c,
                           (double)got->o[h * before->c + c], (double)want->o[h * before->c + c]);
                return false;
            }
    }
    return true;
}

/* A copy of the state and of the queries of heads h0 .. h0 + heads, at the edge. */
static struct job place(struct check *t, const struct job *from, size_t h0, size_t heads,
                        const struct kernels *k, enum edge e)
{
    struct job j = *from;
    enum edge other = e == EDGE_NONE ? EDGE_END : e; /* different alignments in one call */
    j.k = k;
    j.heads = heads;
    j.o = guard_out(t, "o", from->o + h0 * j.c, heads * j.c * 4, 4, e);
    j.max = guard_out(t, "max", from->max + h0, heads * 4, 4, e);
    j.sum = guard_out(t, "sum", from->sum + h0, heads * 4, 4, e);
    j.q = guard_in(t, "q", from->q + h0 * j.c, heads * j.c * 4, 4, other);
    j.kv = guard_in(t, "kv", from->kv, j.n * j.c * 4, 4, e);
    return j;
}

static bool heads_alone(struct check *t, const struct job *before, const struct job *all)
{
    for (size_t h = 0; h < before->heads; h += 1 + before->heads / 18) {
        size_t heads = h % 3 == 2 ? 1 + random_below(t, before->heads - h) : 1;
        struct job j = place(t, before, h, heads, t->k, EDGE_NONE);
        if (!guard_call(t, call, &j))
            return false;
        bool same = true;
        for (size_t i = 0; i < heads; i++)
            same = same && same_bits(j.max[i], all->max[h + i]) &&
                   same_bits(j.sum[i], all->sum[h + i]);
        for (size_t i = 0; i < heads * j.c; i++)
            same = same && same_bits(j.o[i], all->o[h * j.c + i]);
        if (!same) {
            check_fail(t, "heads %zu .. %zu by themselves give other bits than among %zu", h,
                       h + heads, before->heads);
            return false;
        }
    }
    return true;
}

static void one_case(struct check *t, size_t heads, size_t n, size_t c, enum state state,
                     float wide)
{
    check_case(t, "%zu heads, %zu rows of %zu, state %d, scores to %g", heads, n, c, state,
               (double)wide);
    struct job b = {t->twin, NULL, NULL, NULL, NULL, NULL, heads, n, c, wide / sqrtf((float)c)};
    float *q = keep(t, heads * c * 4), *kv = keep(t, n * c * 4);
    random_rows(t, q, c, heads, c, n % 5 == 4 ? K_ZERO : K_RANDOM);
    random_rows(t, kv, c, n, c, K_RANDOM);
    b.q = q;
    b.kv = kv;
    b.o = keep(t, heads * c * 4);
    b.max = keep(t, heads * 4);
    b.sum = keep(t, heads * 4);
    for (size_t h = 0; h < heads; h++) {
        b.max[h] = first_max(t, state);
        b.sum[h] = state == FRESH ? 0 : state == SINK ? 1 : 1 + fabsf(random_float(t)) * 50;
    }
    if (state > SINK)
        random_rows(t, b.o, c, heads, c, K_RANDOM);
    struct job want = b, first = b;
    want.o = memcpy(keep(t, heads * c * 4), b.o, heads * c * 4);
    want.max = memcpy(keep(t, heads * 4), b.max, heads * 4);
    want.sum = memcpy(keep(t, heads * 4), b.sum, heads * 4);
    call(&want);
    for (enum edge e = 0; e < N_EDGES; e++) {
        struct job j = place(t, &b, 0, heads, t->k, e);
        if (!guard_call(t, call, &j) || !compare(t, &b, &j, &want))
            return;
        first = e == 0 ? j : first;
    }
    heads_alone(t, &b, &first);
}

void check_attend(struct check *t)
{
    static const size_t heads[] = {1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 64};
    static const size_t rows[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32};
    static const size_t width[] = {1, 7, 8, 16, 33, 64, 100, 128, 512, 576};
    static const float wide[] = {0.1f, 1, 8};
    size_t cases = t->quick ? 60 : 500;
    for (size_t i = 0; i < cases && !check_done(t); i++) {
        size_t c = width[random_below(t, 10)];
        one_case(t, heads[random_below(t, c > 100 ? 8 : 12)], rows[i % 14], c,
                 (enum state)(i % N_STATES), wide[random_below(t, 3)]);
        case_end(t);
    }
    for (size_t n = 1; n <= ATTEND_TILE && !check_done(t); n += t->quick ? 31 : 5) {
        one_case(t, 64, n, 512, RUNNING, 1);
        case_end(t);
    }
}
