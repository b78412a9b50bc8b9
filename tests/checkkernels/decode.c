/* decode (weights) and rows (caches): exact, so the same bits as the twin. */
#include "check.h"

#include <stdio.h>

struct decode_job {
    const struct kernels *k;
    float *out;
    struct wmat w;
    size_t r;
};

static void call_decode(void *arg)
{
    struct decode_job *j = arg;
    j->k->decode(j->out, &j->w, j->r);
}

static bool equal(struct check *t, const float *got, const float *want, size_t n, size_t width)
{
    for (size_t i = 0; i < n; i++)
        if (!same_bits(got[i], want[i])) {
            check_fail(t, "row %zu, column %zu is %.9g instead of %.9g", i / width, i % width,
                       (double)got[i], (double)want[i]);
            return false;
        }
    return true;
}

static void decode_case(struct check *t, size_t rows, size_t cols, enum kind kind)
{
    check_case(t, "rows %zu, cols %zu, %s", rows, cols, kind_name(kind));
    struct weights a = random_weights(t, rows, cols, kind, kind == K_NAN);
    float *want = keep(t, cols * sizeof *want);
    for (enum edge e = 0; e < N_EDGES; e++) {
        struct decode_job j = {t->k, NULL, guard_weights(t, &a, e), 0};
        for (size_t r = 0; r < rows; r += 1 + rows / 20) {
            j.r = rows - 1 - r;
            j.out = guard_out(t, "out", NULL, cols * sizeof *j.out, 4, e);
            t->twin->decode(want, &a.w, j.r);
            if (!guard_call(t, call_decode, &j) || !equal(t, j.out, want, cols, cols))
                return;
        }
    }
}

void check_decode(struct check *t)
{
    static const size_t whole[] = {32, 64, 96, 128, 160, 288, 4096, 7200};
    static const size_t even[] = {2, 6, 30, 32, 34, 62, 94, 4098};
    static const size_t odd[] = {1, 3, 31, 33, 63, 100, 129, 4097};
    static const size_t rows[] = {1, 15, 16, 17, 33, 129};
    enum wformat f = t->line->format;
    const size_t *cols = t->line->panels || f == W_Q8 || f > W_Q4 ? whole
                         : f == W_E2M1 || f == W_Q4               ? even
                                                                  : odd;
    for (size_t i = 0; i < 8; i++)
        for (enum kind k = 0; k < N_KINDS && !check_done(t); k++) {
            if (t->quick && (i + k) % 3 != 0)
                continue;
            decode_case(t, rows[random_below(t, i < 6 ? 6 : 4)], cols[i], k);
            case_end(t);
        }
}

/* ------------------------------------------------------------------ caches */

struct rows_job {
    const struct kernels *k;
    float *out;
    const uint8_t *row;
    size_t n;
    struct rshape s;
};

static void call_rows(void *arg)
{
    struct rows_job *j = arg;
    j->k->rows(j->out, j->row, j->n, j->s);
}

static void rows_case(struct check *t, struct rshape s, size_t n, enum kind kind)
{
    check_case(t, "width %u, rope %u, %zu rows, %s", s.width, s.rope, n, kind_name(kind));
    uint8_t *cache = random_cache(t, s, n, kind);
    size_t bytes = row_bytes(s);
    if (kind == K_NAN && s.format != R_F32) /* any bytes are rows of a cache */
        random_bytes(t, cache, n * bytes);
    float *want = keep(t, n * s.width * sizeof *want);
    t->twin->rows(want, cache, n, s);
    for (enum edge e = 0; e < N_EDGES; e++) {
        struct rows_job j = {t->k, NULL, NULL, n, s};
        j.out = guard_out(t, "out", NULL, n * s.width * sizeof *j.out, 4, e);
        j.row = guard_in(t, "the rows", cache, n * bytes, s.format == R_F32 ? 4 : 1, e);
        if (!guard_call(t, call_rows, &j) || !equal(t, j.out, want, n * s.width, s.width))
            return;
    }
}

void check_rows(struct check *t)
{
    static const struct {
        size_t count;
        uint16_t shape[6][2]; /* width, rope */
    } shapes[N_RFORMATS] = {
        /* ORDER ROWS */
        {6, {{1, 0}, {3, 0}, {16, 0}, {33, 0}, {128, 0}, {512, 64}}},
        {6, {{64, 0}, {80, 16}, {128, 64}, {192, 0}, {512, 64}, {67, 3}}},
        {4, {{32, 0}, {96, 0}, {160, 0}, {512, 64}}},
        {5, {{16, 0}, {48, 0}, {80, 0}, {128, 0}, {512, 64}}},
        {5, {{32, 0}, {64, 0}, {96, 0}, {128, 0}, {INDEX_MAX_WIDTH, 0}}},
    };
    static const size_t n[] = {1, 2, 3, 5, 32, 129};
    enum rformat f = t->line->rows;
    for (size_t i = 0; i < shapes[f].count; i++) {
        struct rshape s = {f, shapes[f].shape[i][0], shapes[f].shape[i][1]};
        for (enum kind k = 0; k < N_KINDS && !check_done(t); k++)
            for (size_t c = t->quick ? 2 : 0; c < 6; c += t->quick ? 3 : 1) {
                rows_case(t, s, n[c], k);
                case_end(t);
            }
    }
}
