/* Dots over blocks of columns (block_dots): sums of the streams' projections, added to what is there. */
#include "check.h"

#include <math.h>
#include <string.h>

struct job {
    const struct kernels *k;
    float *part;
    const float *x;
    const uint8_t *w;
    size_t ldm, ldb, ldx, m, n;
};

static void call(void *arg)
{
    struct job *j = arg;
    j->k->block_dots(j->part, j->ldm, j->ldb, j->x, j->ldx, j->m, j->w, j->n);
}

/* What the output of a row and a block may be off by. */
static double bound(const struct job *j, const float *before, size_t row, size_t block,
                    const float *w)
{
    size_t c = block * DOT_BLOCK, end = j->n - c < DOT_BLOCK ? j->n : c + DOT_BLOCK;
    double s = fabs((double)before[row * j->ldm + block * j->ldb]);
    for (; c < end; c++) {
        double a = j->x[row * j->ldx + c];
        s += fabs(a * (w ? w[c] : a));
    }
    return rounding(DOT_BLOCK + 1, isfinite(s) ? s : 0);
}

static bool compare(struct check *t, const struct job *j, const float *before, const float *want,
                    const float *w)
{
    size_t blocks = (j->n + DOT_BLOCK - 1) / DOT_BLOCK;
    for (size_t i = 0; i < j->m; i++)
        for (size_t b = 0; b < blocks; b++) {
            float got = j->part[i * j->ldm + b * j->ldb], ref = want[i * j->ldm + b * j->ldb];
            if (!check_close(t, got, ref, bound(j, before, i, b, w))) {
                check_fail(t, "row %zu, block %zu is %.9g instead of %.9g", i, b, (double)got,
                           (double)ref);
                return false;
            }
        }
    return true;
}

/* A row by itself: the same bits. */
static bool row_alone(struct check *t, const struct job *all, const float *before)
{
    struct job j = *all;
    size_t i = random_below(t, all->m), blocks = (all->n + DOT_BLOCK - 1) / DOT_BLOCK;
    float *part = keep(t, blocks * all->ldb * sizeof *part);
    for (size_t b = 0; b < blocks; b++)
        part[b * all->ldb] = before[i * all->ldm + b * all->ldb];
    j.part = part;
    j.x = all->x + i * all->ldx;
    j.m = 1;
    if (!guard_call(t, call, &j))
        return false;
    for (size_t b = 0; b < blocks; b++)
        if (!same_bits(part[b * all->ldb], all->part[i * all->ldm + b * all->ldb])) {
            check_fail(t, "row %zu, block %zu differs alone and in company", i, b);
            return false;
        }
    return true;
}

static void one_case(struct check *t, size_t m, size_t n, bool squares)
{
    check_case(t, "%zu rows of %zu%s", m, n, squares ? ", squares" : "");
    size_t blocks = (n + DOT_BLOCK - 1) / DOT_BLOCK, ldb = 1 + random_below(t, 4);
    size_t ldm = blocks * ldb, ldx = n + random_below(t, 3);
    size_t outs = m * ldm, ins = (m - 1) * ldx + n;
    float *x = keep(t, ins * sizeof *x), *w = keep(t, n * sizeof *w);
    float *before = keep(t, outs * sizeof *before), *want = keep(t, outs * sizeof *want);
    fill_floats(x, ins);
    random_rows(t, x, ldx, m, n, K_RANDOM);
    random_rows(t, w, n, 1, n, K_RANDOM);
    random_rows(t, before, outs, 1, outs, K_RANDOM);
    memcpy(want, before, outs * sizeof *want);
    const uint8_t *bytes = squares ? NULL : (const uint8_t *)w;
    struct job twin = {t->twin, want, x, bytes, ldm, ldb, ldx, m, n};
    call(&twin);
    for (enum edge e = 0; e < N_EDGES; e++) {
        enum edge other = e == EDGE_NONE ? EDGE_END : e;
        struct job j = {.k = t->k, .ldm = ldm, .ldb = ldb, .ldx = ldx, .m = m, .n = n};
        j.part = guard_out(t, "part", before, outs * sizeof *before, 4, e);
        j.x = guard_in(t, "x", x, ins * sizeof *x, 4, other);
        if (!squares)
            j.w = guard_in(t, "w", w, n * sizeof *w, 1, e);
        if (!guard_call(t, call, &j) || !compare(t, &j, before, want, squares ? NULL : w) ||
            !row_alone(t, &j, before))
            return;
    }
}

void check_block_dots(struct check *t)
{
    static const size_t rows[] = {1, 2, 3, 8, 17}, columns[] = {1, 15, 63, 64, 65, 200, 1024, 4096};
    for (size_t i = 0; i < 5; i++)
        for (size_t k = 0; k < 8; k++)
            for (int squares = 0; squares < 2 && !check_done(t); squares++) {
                one_case(t, rows[i], columns[k], squares);
                case_end(t);
            }
}
