/* Rows of logits to numbers: likelihood, divergence, and a divergence estimated from the part of a row that
 * was kept (docs/evaluation.md has the formulas). */
#include "eval.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

double row_scale(const float *logits, size_t n)
{
    double top = (double)logits[0], sum = 0;
    for (size_t i = 1; i < n; i++)
        top = (double)logits[i] > top ? (double)logits[i] : top;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - top);
    return top + log(sum);
}

int32_t row_best(const float *logits, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = i;
    return (int32_t)best;
}

double row_kl(const float *p, const float *q, size_t n)
{
    double ps = row_scale(p, n), qs = row_scale(q, n), sum = 0;
    for (size_t i = 0; i < n; i++) {
        double lp = (double)p[i] - ps;
        sum += exp(lp) * (lp - ((double)q[i] - qs));
    }
    return sum;
}

/* ------------------------------------------------------------------ keeping */

/* The order of tokens: likely ones first, of equal ones the lower id. */
static bool before(const float *p, int32_t a, int32_t b)
{
    return p[a] > p[b] || (p[a] == p[b] && a < b);
}

/* A heap with the last of them in front. */
static void sink_down(const float *p, struct kept_token *heap, size_t n, size_t i)
{
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(p, heap[child].id, heap[child + 1].id))
            child++;
        if (!before(p, heap[i].id, heap[child].id))
            return;
        struct kept_token t = heap[i];
        heap[i] = heap[child];
        heap[child] = t;
    }
}

/* The first `k` tokens in order. */
static void pick_top(const float *p, size_t n, struct kept_token *top, size_t k)
{
    for (size_t i = 0; i < k; i++)
        top[i].id = (int32_t)i;
    for (size_t i = k / 2; i-- > 0;)
        sink_down(p, top, k, i);
    for (size_t i = k; i < n; i++) {
        if (!before(p, (int32_t)i, top[0].id))
            continue;
        top[0].id = (int32_t)i;
        sink_down(p, top, k, 0);
    }
    for (size_t left = k; left > 1; left--) { /* heap sort */
        struct kept_token t = top[0];
        top[0] = top[left - 1];
        top[left - 1] = t;
        sink_down(p, top, left - 1, 0);
    }
}

/* splitmix64: number i of a sequence, in [0, 1). */
static double draw(uint64_t key, uint64_t i)
{
    uint64_t z = key + (i + 1) * UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

/* Draws from the tokens behind the last kept one, in one pass over their cumulated mass. */
static void draw_tail(struct kept_row *r, const float *p, size_t n, double scale, double tail,
                      uint64_t key)
{
    double at[KEPT_SAMPLES], sum = 0;
    int32_t last = r->top[r->n_top - 1].id;
    size_t k = 0;
    for (size_t i = 0; i < KEPT_SAMPLES; i++) {
        double u = draw(key, i) * tail;
        size_t j = i;
        for (; j > 0 && at[j - 1] > u; j--)
            at[j] = at[j - 1];
        at[j] = u;
    }
    for (size_t i = 0; i < n && k < KEPT_SAMPLES; i++) {
        if (!before(p, last, (int32_t)i))
            continue;
        double logp = (double)p[i] - scale;
        sum += exp(logp);
        for (; k < KEPT_SAMPLES && at[k] < sum; k++)
            r->sample[k] = (struct kept_token){(int32_t)i, (float)logp};
    }
    r->n_samples = (uint16_t)k;
}

void row_keep(struct kept_row *r, const float *p, size_t n, int32_t next, size_t most, uint64_t key)
{
    const double enough = 1e-6;
    double scale = row_scale(p, n), tail = 0, first = 0;
    size_t k = most < n ? most : n, used = 0;
    r->nll = (float)(scale - (double)p[next]);
    pick_top(p, n, r->top, k);
    for (; used < k && (used == 0 || 1 - first > enough); used++) {
        r->top[used].logp = (float)((double)p[r->top[used].id] - scale);
        first += exp((double)r->top[used].logp);
    }
    r->n_top = (uint16_t)used;
    r->n_samples = 0;
    int32_t last = r->top[used - 1].id;
    for (size_t i = 0; i < n; i++)
        if (before(p, last, (int32_t)i))
            tail += exp((double)p[i] - scale);
    r->log_tail = tail > 0 ? (float)log(tail) : -INFINITY;
    if (tail > 0)
        draw_tail(r, p, n, scale, tail, key);
}

/* ------------------------------------------------------------------ estimating */

struct kl_estimate row_kl_kept(const struct kept_row *r, const float *q, size_t n)
{
    double scale = row_scale(q, n), sum = 0, kept = 0, mean = 0, square = 0;
    for (size_t i = 0; i < r->n_top; i++) {
        double lp = (double)r->top[i].logp, lq = (double)q[r->top[i].id] - scale;
        sum += exp(lp) * (lp - lq);
        kept += exp(lq);
    }
    struct kl_estimate e = {.kl = sum, .low = sum};
    if (!isfinite(r->log_tail))
        return e;
    /* below what the sum can resolve the tail's mass is not known any more */
    double tail = exp((double)r->log_tail), other = fmax(1 - kept, DBL_EPSILON);
    e.low += tail * ((double)r->log_tail - log(other));
    for (size_t i = 0; i < r->n_samples; i++) {
        double d = (double)r->sample[i].logp - ((double)q[r->sample[i].id] - scale);
        mean += d;
        square += d * d;
    }
    double m = (double)r->n_samples;
    if (m == 0) {
        e.kl = e.low;
        return e;
    }
    mean /= m;
    e.kl += tail * mean;
    if (m > 1)
        e.variance = tail * tail * fmax(square / m - mean * mean, 0) / (m - 1);
    return e;
}

/* ------------------------------------------------------------------ quantiles */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double quantile(double *x, size_t n, double part)
{
    qsort(x, n, sizeof *x, by_value);
    double at = ceil(part * (double)n) - 1;
    return x[at < 0 ? 0 : (size_t)at];
}
