/* Sums over one row, SwiGLU, and the mix of the residual streams. */
#include "check.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const size_t sizes[] = {0,  1,  2,  3,  7,  8,   9,   15,   16,   17,  31,
                               32, 33, 63, 64, 65, 127, 129, 1000, 4096, 7201};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

/* ------------------------------------------------------------------ sum_squares, dot */

struct sum_job {
    const struct kernels *k;
    const float *a, *b; /* b NULL: sum of squares */
    size_t n;
    float out;
};

static void call_sum(void *arg)
{
    struct sum_job *j = arg;
    j->out = j->b ? j->k->dot(j->a, j->b, j->n) : j->k->sum_squares(j->a, j->n);
}

static void sum_case(struct check *t, size_t n, enum kind kind, bool squares)
{
    check_case(t, "n %zu, %s", n, kind_name(kind));
    float *a = keep(t, (n + 1) * sizeof *a), *b = keep(t, (n + 1) * sizeof *b);
    random_rows(t, a, n, 1, n, kind);
    random_rows(t, b, n, 1, n, kind == K_NAN || kind == K_ONE_HOT ? K_RANDOM : kind);
    struct sum_job want = {t->twin, a, squares ? NULL : b, n, 0};
    call_sum(&want);
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += fabs((double)a[i] * (squares ? a[i] : b[i]));
    if (kind != K_NAN && sum >= FLT_MAX / 2)
        return;
    float first = 0;
    for (enum edge e = 0; e < N_EDGES; e++) {
        struct sum_job j = {t->k, NULL, NULL, n, 0};
        j.a = guard_in(t, "a", a, n * sizeof *a, 4, e);
        j.b = squares ? NULL : guard_in(t, "b", b, n * sizeof *b, 4, e == EDGE_NONE ? EDGE_END : e);
        if (!guard_call(t, call_sum, &j))
            return;
        if (!check_close(t, j.out, want.out, rounding(n, isfinite(sum) ? sum : 0))) {
            check_fail(t, "%.9g instead of %.9g", (double)j.out, (double)want.out);
            return;
        }
        if (e > 0 && !same_bits(j.out, first)) {
            check_fail(t, "%.9g, but %.9g at another address", (double)j.out, (double)first);
            return;
        }
        first = j.out;
    }
}

void check_sums(struct check *t)
{
    for (size_t i = 0; i < N_SIZES; i++)
        for (enum kind k = 0; k < N_KINDS && !check_done(t); k++) {
            if (k == K_TINY && t->line->kernel[0] == 's')
                continue; /* 2^60 squared: nothing new */
            sum_case(t, sizes[i], k, t->line->kernel[0] == 's');
            case_end(t);
        }
}

/* ------------------------------------------------------------------ swiglu */

struct swiglu_job {
    const struct kernels *k;
    float *up;
    const float *gate;
    size_t n;
    float limit, weight;
};

static void call_swiglu(void *arg)
{
    struct swiglu_job *j = arg;
    j->k->swiglu(j->up, j->gate, j->n, j->limit, j->weight);
}

static float clamped(float x, float low, float high)
{
    return x < low ? low : x > high ? high : x;
}

/* Some of the values by themselves: the same bits, wherever a slice begins and ends. */
static bool values_alone(struct check *t, const struct swiglu_job *all, const float *up)
{
    for (int i = 0; i < 4; i++) {
        struct swiglu_job j = *all;
        size_t at = random_below(t, all->n);
        j.n = i < 2 ? 1 : 1 + random_below(t, all->n - at);
        j.gate = all->gate + at;
        j.up = keep(t, j.n * sizeof *up);
        memcpy(j.up, up + at, j.n * sizeof *up);
        if (!guard_call(t, call_swiglu, &j))
            return false;
        for (size_t k = 0; k < j.n; k++)
            if (!same_bits(j.up[k], all->up[at + k])) {
                check_fail(t, "value %zu is %.9g among %zu, %.9g among %zu", at + k,
                           (double)j.up[k], j.n, (double)all->up[at + k], all->n);
                return false;
            }
    }
    return true;
}

static void swiglu_case(struct check *t, size_t n, float spread, float limit, bool nan)
{
    check_case(t, "n %zu, gates to %g, limit %g%s", n, (double)spread, (double)limit,
               nan ? ", NaN" : "");
    float *gate = keep(t, (n + 1) * sizeof *gate), *up = keep(t, (n + 1) * sizeof *up), *want;
    for (size_t i = 0; i < n; i++) {
        gate[i] = random_float(t) * spread;
        up[i] = random_float(t) * (i % 2 ? 1 : spread);
        if (i % 13 == 5)
            gate[i] = i % 2 ? -0.0f : 0.0f;
        if (nan && i % 7 == 3)
            *(i % 2 ? &gate[i] : &up[i]) = NAN;
    }
    float weight = random_float(t);
    want = memcpy(keep(t, (n + 1) * sizeof *want), up, n * sizeof *want);
    t->twin->swiglu(want, gate, n, limit, weight);
    for (enum edge e = 0; e < N_EDGES; e++) {
        struct swiglu_job j = {t->k, NULL, NULL, n, limit, weight};
        j.up = guard_out(t, "up", up, n * sizeof *up, 4, e);
        j.gate = guard_in(t, "gate", gate, n * sizeof *gate, 4, e == EDGE_NONE ? EDGE_END : e);
        if (!guard_call(t, call_swiglu, &j))
            return;
        for (size_t i = 0; i < n; i++) {
            double g = limit > 0 && gate[i] > limit ? limit : gate[i];
            double u = limit > 0 ? clamped(up[i], -limit, limit) : up[i];
            /* Twice the sigmoid's error, for the twin has one too, and four products; a sigmoid
             * below 2^-125 may be anything smaller. */
            double sigmoid = 1 / (1 + exp(-g)), outside = fabs(g * u * weight);
            double bound = outside * (sigmoid * (0x1p-20 + 4 * 0x1p-23) + 0x1p-125) + 0x1p-148;
            if (!check_close(t, j.up[i], want[i], bound)) {
                check_fail(t, "gate %.9g, up %.9g, weight %.9g: %.9g instead of %.9g",
                           (double)gate[i], (double)up[i], (double)weight, (double)j.up[i],
                           (double)want[i]);
                return;
            }
        }
        if (n > 0 && !values_alone(t, &j, up))
            return;
    }
}

void check_swiglu(struct check *t)
{
    static const float spread[] = {1e-20f, 0.1f, 3, 30, 120}, limit[] = {0, 0.5f, 7, 10};
    for (size_t i = 0; i < N_SIZES; i++)
        for (size_t s = 0; s < 5; s++)
            for (size_t l = 0; l < 4 && !check_done(t); l++) {
                swiglu_case(t, sizes[i], spread[s], limit[l], (i + s + l) % 5 == 0);
                case_end(t);
            }
}

/* ------------------------------------------------------------------ residual streams */

struct hc_job {
    const struct kernels *k;
    float *h, *out; /* out NULL: hc_mix, in place */
    const float *in, *y, *post, *comb;
    size_t ld, hc, n;
};

static void call_hc(void *arg)
{
    struct hc_job *j = arg;
    if (j->out)
        j->k->hc_sum(j->out, j->in, j->ld, j->post, j->hc, j->n);
    else
        j->k->hc_mix(j->h, j->ld, j->y, j->post, j->comb, j->hc, j->n);
}

/* sum of the magnitudes of the terms of output (j, c) */
static double magnitude(const struct hc_job *j, const float *h, size_t stream, size_t c)
{
    double s = j->out ? 0 : fabs((double)j->post[stream] * j->y[c]);
    for (size_t i = 0; i < j->hc; i++)
        s += fabs((double)(j->out ? j->post[i] : j->comb[i * j->hc + stream]) * h[i * j->ld + c]);
    return s;
}

static bool compare_streams(struct check *t, const struct hc_job *j, const float *h,
                            const float *want, size_t streams)
{
    const float *got = j->out ? j->out : j->h;
    size_t ld = j->out ? j->n : j->ld;
    for (size_t s = 0; s < streams; s++)
        for (size_t c = 0; c < j->n; c++) {
            double sum = magnitude(j, h, s, c), a = got[s * ld + c], b = want[s * ld + c];
            if (!check_close(t, a, b, rounding(j->hc + 1, isfinite(sum) ? sum : 0))) {
                check_fail(t, "stream %zu, channel %zu is %.9g instead of %.9g", s, c, a, b);
                return false;
            }
        }
    return j->out || check_padding(t, "h", got, (j->hc - 1) * ld + j->n, ld, j->hc, 0, j->n);
}

/* Channels a .. a + 1 by themselves, wherever they lie: the same bits. */
static bool channel_alone(struct check *t, const struct hc_job *all, const float *h)
{
    struct hc_job j = *all;
    size_t at = random_below(t, all->n), ld = all->out ? all->n : all->ld;
    size_t floats = (all->hc - 1) * all->ld + all->n;
    j.n = 1;
    if (all->out) {
        j.in = all->in + at;
        j.out = keep(t, sizeof *j.out);
    } else {
        j.h = (float *)keep(t, floats * sizeof *j.h);
        memcpy(j.h, h, floats * sizeof *j.h);
        j.h += at;
        j.y = all->y + at;
    }
    if (!guard_call(t, call_hc, &j))
        return false;
    for (size_t s = 0; s < (all->out ? 1 : all->hc); s++) {
        float one = all->out ? *j.out : j.h[s * ld],
              other = (all->out ? all->out : all->h)[s * ld + at];
        if (!same_bits(one, other)) {
            check_fail(t, "stream %zu, channel %zu alone is %.9g, %.9g in company", s, at,
                       (double)one, (double)other);
            return false;
        }
    }
    return true;
}

static void hc_case(struct check *t, size_t hc, size_t n, enum kind kind, bool mix)
{
    check_case(t, "%zu streams of %zu, %s", hc, n, kind_name(kind));
    size_t ld = n + random_below(t, 3) * 3, floats = (hc - 1) * ld + n;
    float *h = keep(t, floats * sizeof *h), *y = keep(t, n * sizeof *y), post[16], comb[16 * 16];
    fill_floats(h, floats);
    random_rows(t, h, ld, hc, n, kind);
    random_rows(t, y, n, 1, n, kind);
    random_rows(t, post, hc, 1, hc, K_RANDOM);
    random_rows(t, comb, hc * hc, 1, hc * hc, K_RANDOM);
    float *want = keep(t, floats * sizeof *want);
    memcpy(want, h, floats * sizeof *want);
    struct hc_job twin = {t->twin, want, mix ? NULL : want, h, y, post, comb, ld, hc, n};
    call_hc(&twin);
    for (enum edge e = 0; e < N_EDGES; e++) {
        enum edge other = e == EDGE_NONE ? EDGE_END : e;
        struct hc_job j = {.k = t->k, .ld = ld, .hc = hc, .n = n};
        j.post = guard_in(t, mix ? "post" : "pre", post, hc * 4, 4, e);
        if (mix) {
            j.h = guard_out(t, "h", h, floats * sizeof *h, 4, e);
            j.y = guard_in(t, "y", y, n * sizeof *y, 4, other);
            j.comb = guard_in(t, "comb", comb, hc * hc * 4, 4, e);
        } else {
            j.in = guard_in(t, "h", h, floats * sizeof *h, 4, e);
            j.out = guard_out(t, "out", NULL, n * sizeof *j.out, 4, other);
        }
        if (!guard_call(t, call_hc, &j) || !compare_streams(t, &j, h, want, mix ? hc : 1) ||
            !channel_alone(t, &j, h))
            return;
    }
}

static void hc_cases(struct check *t, bool mix)
{
    static const size_t streams[] = {1, 2, 3, 4, 5, 8, 15, 16};
    for (size_t i = 1; i < N_SIZES; i++)
        for (size_t s = 0; s < 8 && !check_done(t); s++) {
            if (t->quick && (i + s) % 3 != 0)
                continue;
            enum kind kind = random_below(t, 2) ? K_RANDOM : random_kind(t);
            hc_case(t, streams[s], sizes[i], kind, mix);
            case_end(t);
        }
}

void check_hc_mix(struct check *t)
{
    hc_cases(t, true);
}

void check_hc_sum(struct check *t)
{
    hc_cases(t, false);
}
