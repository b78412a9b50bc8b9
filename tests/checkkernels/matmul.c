/* matmul and matmul_fast: against the twin, on slices of the output, and each row alone against the
 * same row in company. */
#include "check.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* One call of either kernel. */
struct job {
    const struct kernels *k;
    bool fast;
    float *y;
    size_t ldy;
    const float *x;
    size_t ldx;
    struct qrows q;
    const uint32_t *pick;
    size_t m;
    struct wmat w;
    size_t r0, r1;
    void *tmp;
};

static void call(void *arg)
{
    struct job *j = arg;
    if (j->fast)
        j->k->matmul_fast(j->y, j->ldy, &j->q, j->pick, j->m, &j->w, j->r0, j->r1, j->tmp);
    else
        j->k->matmul(j->y, j->ldy, j->x, j->ldx, j->pick, j->m, &j->w, j->r0, j->r1, j->tmp);
}

/* What a case is made of, in ordinary memory, and what it should give. */
struct sample {
    size_t rows, cols, m,
        n_x; /* n_x rows of activations, of which m are used, by pick if there is one */
    enum kind kind;
    struct weights w;
    const float *x;
    size_t ldx;
    struct qrows q;
    const uint32_t *pick;
    float *want;        /* [m][rows] */
    double *bound;      /* likewise */
    const float *alone; /* what the kernel gave for all of it: [m][rows] at distance ldy */
    size_t ldy;
};

static bool is_fast(const struct check *t)
{
    return strcmp(t->line->kernel, "matmul_fast") == 0;
}

static const float *row_of(const struct sample *s, size_t i)
{
    return s->x + (s->pick ? s->pick[i] : i) * s->ldx;
}

/* bound[i][r] from the exact weights; infinite where a partial sum may overflow. */
static void find_bounds(struct check *t, struct sample *s)
{
    float *w = keep(t, s->cols * sizeof *w);
    s->bound = keep(t, s->m * s->rows * sizeof *s->bound);
    if (is_fast(t))
        return;
    for (size_t r = 0; r < s->rows; r++) {
        t->twin->decode(w, &s->w.w, r);
        for (size_t i = 0; i < s->m; i++) {
            const float *x = row_of(s, i);
            double sum = 0;
            for (size_t c = 0; c < s->cols; c++)
                sum += fabs((double)x[c] * w[c]);
            s->bound[i * s->rows + r] = sum < FLT_MAX / 2 || isnan(sum) || s->kind == K_NAN
                                            ? rounding(s->cols, isfinite(sum) ? sum : 0)
                                            : INFINITY;
        }
    }
}

static struct sample make_sample(struct check *t, size_t rows, size_t cols, size_t m,
                                 enum kind kind)
{
    struct sample s = {.rows = rows, .cols = cols, .m = m, .kind = kind};
    s.w = random_weights(t, rows, cols, kind, false);
    s.n_x = m;
    if (random_below(t, 2)) {
        uint32_t *pick = keep(t, m * sizeof *pick);
        s.n_x = m + 1 + random_below(t, 4);
        for (size_t i = 0; i < m; i++)
            pick[i] = (uint32_t)random_below(t, s.n_x);
        s.pick = pick;
    }
    if (is_fast(t)) {
        s.q = random_qrows(t, t->twin->fast[t->line->format], s.n_x, cols, kind);
    } else {
        s.ldx = cols + random_below(t, 3) * 5;
        float *x = keep(t, s.n_x * s.ldx * sizeof *x);
        fill_floats(x, s.n_x * s.ldx);
        random_rows(t, x, s.ldx, s.n_x, cols, kind);
        s.x = x;
    }
    s.want = keep(t, m * rows * sizeof *s.want);
    struct job twin = {t->twin,
                       is_fast(t),
                       s.want,
                       rows,
                       s.x,
                       s.ldx,
                       s.q,
                       s.pick,
                       m,
                       s.w.w,
                       0,
                       rows,
                       keep(t, cols * sizeof(float))};
    call(&twin);
    find_bounds(t, &s);
    return s;
}

static bool agrees(struct check *t, const struct sample *s, size_t i, size_t r, float got)
{
    float want = s->want[i * s->rows + r];
    double bound = s->bound[i * s->rows + r];
    if (is_fast(t) ? same_bits(got, want) : isinf(bound) || check_close(t, got, want, bound))
        return true;
    check_fail(t, "y[%zu][%zu] is %.9g instead of %.9g (bound %.3g)", i, r, (double)got,
               (double)want, bound);
    return false;
}

/* Operands at the given edge; outputs r0 .. r1 of every row. */
static struct job place(struct check *t, const struct sample *s, size_t m, size_t r0, size_t r1,
                        enum edge e)
{
    struct job j = {.k = t->k, .fast = is_fast(t), .m = m, .r0 = r0, .r1 = r1, .ldx = s->ldx};
    j.w = guard_weights(t, &s->w, e);
    if (j.fast) {
        j.q = guard_qrows(t, &s->q, s->n_x, e);
        j.tmp = guard_out(t, "tmp", NULL, FAST_TMP, 64, e);
    } else {
        j.x = guard_in(t, "x", s->x, ((s->n_x - 1) * s->ldx + s->cols) * sizeof *s->x, 4, e);
        j.tmp = guard_out(t, "tmp", NULL, s->cols * sizeof(float), 4, e);
    }
    if (s->pick)
        j.pick = guard_in(t, "pick", s->pick, m * sizeof *s->pick, 4, e);
    return j;
}

/* An output that ends with the last value asked for. */
static size_t place_output(struct check *t, struct job *j, size_t rows, enum edge e)
{
    j->ldy = rows + random_below(t, 3) * 7;
    size_t n = j->m == 0 ? 0 : (j->m - 1) * j->ldy + j->r1;
    j->y = guard_out(t, "y", NULL, n * sizeof *j->y, 4, e);
    fill_floats(j->y, n);
    return n;
}

static bool run(struct check *t, const struct sample *s, struct job *j, enum edge e)
{
    size_t n = place_output(t, j, s->rows, e);
    if (!guard_call(t, call, j))
        return false;
    for (size_t i = 0; i < j->m; i++)
        for (size_t r = j->r0; r < j->r1; r++)
            if (!agrees(t, s, i, r, j->y[i * j->ldy + r]))
                return false;
    return check_padding(t, "y", j->y, n, j->ldy, j->m, j->r0, j->r1);
}

/* A part of the outputs: panels begin and end at panels. */
static void slice(struct check *t, size_t rows, size_t *r0, size_t *r1)
{
    size_t unit = t->line->panels ? PANEL : 1, parts = (rows + unit - 1) / unit;
    size_t a = random_below(t, parts), b = a + 1 + random_below(t, parts - a);
    *r0 = a * unit;
    *r1 = b * unit < rows ? b * unit : rows;
}

/* Rows i0 .. i0 + m of the sample in a call of their own: the same bits as before. */
static bool check_company(struct check *t, const struct sample *s, const struct job *all, size_t i0,
                          size_t m)
{
    struct job j = *all;
    uint32_t *pick = keep(t, m * sizeof *pick);
    for (size_t i = 0; i < m; i++)
        pick[i] = (uint32_t)(s->pick ? s->pick[i0 + i] : i0 + i);
    j.pick = pick;
    j.m = m;
    slice(t, s->rows, &j.r0, &j.r1);
    if (!s->pick && !j.fast && random_below(t, 2)) {
        j.pick = NULL;
        j.x += i0 * j.ldx;
    }
    place_output(t, &j, s->rows, EDGE_END);
    if (!guard_call(t, call, &j))
        return false;
    for (size_t i = 0; i < m; i++)
        for (size_t r = j.r0; r < j.r1; r++) {
            float one = j.y[i * j.ldy + r], other = s->alone[(i0 + i) * s->ldy + r];
            if (!same_bits(one, other)) {
                check_fail(t,
                           "row %zu, output %zu: %.9g among %zu rows (%zu .. %zu), %.9g among %zu",
                           i0 + i, r, (double)one, m, j.r0, j.r1, (double)other, s->m);
                return false;
            }
        }
    return true;
}

static void one_case(struct check *t, size_t rows, size_t cols, size_t m, enum kind kind)
{
    check_case(t, "rows %zu, cols %zu, m %zu, %s", rows, cols, m, kind_name(kind));
    struct sample s = make_sample(t, rows, cols, m, kind);
    struct job all = place(t, &s, m, 0, rows, EDGE_END);
    if (!run(t, &s, &all, EDGE_END))
        return;
    s.alone = all.y;
    s.ldy = all.ldy;
    for (enum edge e = EDGE_BEGIN; e < N_EDGES; e++) {
        size_t r0, r1;
        slice(t, rows, &r0, &r1);
        struct job j = place(t, &s, m, r0, r1, e);
        if (!run(t, &s, &j, e))
            return;
    }
    /* Every row by itself, then a few in some company. */
    for (size_t i = 0; i < m; i += 1 + m / 18)
        if (!check_company(t, &s, &all, i, 1))
            return;
    for (int n = 0; n < 3 && m > 1; n++) {
        size_t i0 = random_below(t, m);
        if (!check_company(t, &s, &all, i0, 1 + random_below(t, m - i0)))
            return;
    }
}

/* Nothing asked for: nothing touched. */
static void empty_cases(struct check *t)
{
    check_case(t, "no rows");
    struct sample s = make_sample(t, 32, 64, 2, K_RANDOM);
    struct job j = place(t, &s, 0, 0, 32, EDGE_END);
    place_output(t, &j, 32, EDGE_END);
    guard_call(t, call, &j);
    case_end(t);
    check_case(t, "no outputs");
    s = make_sample(t, 32, 64, 2, K_RANDOM);
    j = place(t, &s, 2, 16, 16, EDGE_END);
    size_t n = place_output(t, &j, 32, EDGE_END);
    if (guard_call(t, call, &j))
        check_padding(t, "y", j.y, n, j.ldy, 0, 0, 0);
    case_end(t);
}

/* Columns the line's format and layout can have. */
static size_t some_cols(struct check *t, size_t i)
{
    static const size_t whole[] = {32, 64, 96, 128, 160, 288};
    static const size_t odd[] = {1, 3, 31, 33, 47, 96, 100, 128, 129};
    static const size_t even[] = {2, 34, 64, 94, 130};
    enum wformat f = t->line->format;
    if (t->line->panels || f == W_Q8 || f > W_Q4)
        return whole[i % 6];
    return f == W_E2M1 || f == W_Q4 ? even[i % 5] : odd[i % 9];
}

static void small_cases(struct check *t)
{
    static const size_t rows[] = {1, 15, 16, 17, 33, 129};
    static const size_t m[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 64, 100};
    for (size_t r = 0; r < 6; r++)
        for (size_t i = 0; i < 19; i++) {
            if (check_done(t))
                return;
            if (t->quick && (r * 19 + i) % 5 != 0)
                continue;
            one_case(t, rows[r], some_cols(t, r + i + random_below(t, 2)), m[i], random_kind(t));
            case_end(t);
        }
}

/* Each kind of numbers on a size where every path is taken. */
static void kind_cases(struct check *t)
{
    for (enum kind k = 0; k < N_KINDS && !check_done(t); k++)
        for (size_t m = 1; m <= 17 && !check_done(t); m += t->quick ? 8 : 4) {
            one_case(t, 49, some_cols(t, m + k), m, k);
            case_end(t);
        }
}

static void large_cases(struct check *t)
{
    static const size_t cols[] = {4096, 7168 + 32, 7168 + 32}, rows[] = {16, 33, 17};
    static const size_t m[] = {1, 4, 17};
    for (size_t i = 0; i < 9 && !check_done(t); i++) {
        if (t->quick && i % 4 != 0)
            continue;
        size_t odd = t->line->panels || t->line->format >= W_E2M1 ? 0 : 1;
        one_case(t, rows[i % 3], cols[i / 3] + odd, m[(i + i / 3) % 3],
                 i % 2 ? K_MAX : random_kind(t));
        case_end(t);
    }
}

void check_matmul(struct check *t)
{
    if (is_fast(t)) {
        enum qkind q = t->k->fast[t->line->format];
        if (q == Q_NONE) /* nothing is promised */
            return;
        if (q != t->twin->fast[t->line->format]) {
            check_case(t, "kind of activations");
            check_fail(t, "fast[%s] is %d, the twin's is %d", wformat_name(t->line->format), q,
                       t->twin->fast[t->line->format]);
            return;
        }
    }
    empty_cases(t);
    small_cases(t);
    kind_cases(t);
    large_cases(t);
}
