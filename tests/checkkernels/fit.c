/* fit: sums over PANEL groups side by side, the same bits on every level. */
#include "check.h"

#include <math.h>
#include <string.h>

enum { N = GROUP * PANEL };

struct job {
    const struct kernels *k;
    float *xq, *qq;
    const float *x, *w, *inverse;
    const struct grid *grid;
};

static void call(void *arg)
{
    struct job *j = arg;
    j->k->fit(j->xq, j->qq, j->x, j->w, j->inverse, j->grid);
}

/* Whole numbers, or 16, 8 or 4 values with random gaps. */
static struct grid random_grid(struct check *t)
{
    static const float ends[][2] = {{-127, 127}, {-8, 7}, {-1, 1}};
    struct grid g = {0};
    size_t n = random_below(t, 6);
    if (n < 3) {
        g.low = ends[n][0];
        g.high = ends[n][1];
        return g;
    }
    g.n = 16 >> (n - 3);
    g.value[0] = -(float)(1 + random_below(t, 127));
    for (int k = 1; k < g.n; k++) {
        g.value[k] = g.value[k - 1] + (float)(1 + random_below(t, 20));
        g.middle[k - 1] = (g.value[k - 1] + g.value[k]) / 2;
    }
    g.low = g.value[0];
    g.high = g.value[g.n - 1];
    return g;
}

/* Values that lie on the middles between levels, and beside them. */
static void hard_values(struct check *t, float *x, float *inverse, const struct grid *g)
{
    for (size_t j = 0; j < PANEL; j++) {
        if (random_below(t, 2))
            continue;
        inverse[j] = 1;
        for (size_t i = 0; i < GROUP; i++) {
            float v = g->n ? g->middle[random_below(t, (size_t)g->n - 1)]
                           : (float)random_below(t, 300) - 150.5f;
            size_t where = random_below(t, 3);
            x[i * PANEL + j] = where == 0 ? v : nextafterf(v, where == 1 ? 1000 : -1000);
        }
    }
}

static bool compare(struct check *t, const char *name, const float *got, const float *want)
{
    for (size_t j = 0; j < PANEL; j++)
        if (!same_bits(got[j], want[j])) {
            check_fail(t, "%s of group %zu is %.9g instead of %.9g", name, j, (double)got[j],
                       (double)want[j]);
            return false;
        }
    return true;
}

static void one_case(struct check *t, enum kind kind)
{
    struct grid grid = random_grid(t);
    check_case(t, "%d values from %g to %g, %s", grid.n, (double)grid.low, (double)grid.high,
               kind_name(kind));
    float *x = keep(t, N * sizeof *x), *w = keep(t, N * sizeof *w);
    float *inverse = keep(t, PANEL * sizeof *inverse), xq[PANEL], qq[PANEL];
    random_rows(t, x, PANEL, GROUP, PANEL, kind);
    for (size_t i = 0; i < N; i++)
        w[i] = fabsf(random_float(t));
    for (size_t j = 0; j < PANEL; j++)
        inverse[j] = random_float(t) * grid.high * (random_below(t, 8) ? 0.5f : 0);
    if (kind == K_RANDOM)
        hard_values(t, x, inverse, &grid);
    t->twin->fit(xq, qq, x, w, inverse, &grid);
    for (enum edge e = 0; e < N_EDGES; e++) {
        struct job j = {.k = t->k, .grid = &grid};
        j.x = guard_in(t, "x", x, N * sizeof *x, 4, e);
        j.w = guard_in(t, "w", w, N * sizeof *w, 4, e);
        j.inverse = guard_in(t, "inverse", inverse, PANEL * sizeof *inverse, 4, e);
        j.xq = guard_out(t, "xq", NULL, PANEL * sizeof *xq, 4, e);
        j.qq = guard_out(t, "qq", NULL, PANEL * sizeof *qq, 4, e);
        if (!guard_call(t, call, &j) || !compare(t, "xq", j.xq, xq) || !compare(t, "qq", j.qq, qq))
            return;
    }
}

void check_fit(struct check *t)
{
    for (enum kind k = 0; k < N_KINDS; k++)
        for (size_t n = 0; n < (t->quick ? 8 : 64) && k != K_NAN && !check_done(t); n++) {
            one_case(t, k);
            case_end(t);
        }
}
