/* quantize: codes, scales and sums with the same bits on every level. */
#include "check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct job {
    const struct kernels *k;
    struct qrows q;
    size_t r;
    const float *x;
    size_t c0, c1;
};

static void call(void *arg)
{
    struct job *j = arg;
    j->k->quantize(&j->q, j->r, j->x, j->c0, j->c1);
}

/* Groups that are hard to round: ties, one dominating value, the limits of what counts as zero. */
static void hard_groups(struct check *t, float *x, size_t cols, enum qkind kind)
{
    float limit = kind == Q_8 ? 127 : 2047;
    for (size_t c = 0; c < cols; c += GROUP) {
        float *g = x + c;
        switch (random_below(t, 8)) {
        case 0: /* exact halves: max / limit is 1 */
            for (size_t i = 0; i < GROUP; i++)
                g[i] = (float)random_below(t, (size_t)limit) + 0.5f - (i % 2 ? limit : 0);
            g[random_below(t, GROUP)] = limit;
            break;
        case 1: g[random_below(t, GROUP)] = -3e38f; break;
        case 2:
            for (size_t i = 0; i < GROUP; i++)
                g[i] = i % 3 ? 0x1.fffffep-101f : -0x1p-127f;
            break;
        case 3:
            memset(g, 0, GROUP * sizeof *g);
            g[random_below(t, GROUP)] = random_below(t, 2) ? 0x1p-100f : -0x1p-100f;
            break;
        case 4:
            for (size_t i = 0; i < GROUP; i++)
                g[i] = i % 2 ? -limit : limit;
            break;
        case 5: g[random_below(t, GROUP)] = random_below(t, 2) ? NAN : -INFINITY; break;
        default: break;
        }
    }
}

/* Everything but what rows r, c0 .. c1 hold must still be as it was. */
static bool compare(struct check *t, const struct qrows *got, const struct qrows *want, size_t n)
{
    size_t size = want->kind == Q_8 ? 1 : 2, groups = want->cols / GROUP;
    const uint8_t *a = got->code, *b = want->code;
    for (size_t i = 0; i < n * want->cols * size; i++)
        if (a[i] != b[i]) {
            check_fail(t, "byte %zu of row %zu's codes is %02x instead of %02x",
                       i % (want->cols * size), i / (want->cols * size), a[i], b[i]);
            return false;
        }
    for (size_t i = 0; i < n * groups; i++)
        if (!same_bits(got->scale[i], want->scale[i]) || got->sum[i] != want->sum[i]) {
            check_fail(t, "row %zu, group %zu: scale %.9g and sum %d instead of %.9g and %d",
                       i / groups, i % groups, (double)got->scale[i], got->sum[i],
                       (double)want->scale[i], want->sum[i]);
            return false;
        }
    return true;
}

static void one_case(struct check *t, enum qkind q, size_t cols, enum kind kind)
{
    enum { ROWS = 3 };
    check_case(t, "%s, cols %zu, %s", q == Q_8 ? "int8" : "int16", cols, kind_name(kind));
    size_t groups = cols / GROUP, size = q == Q_8 ? 1 : 2;
    size_t r = random_below(t, ROWS), g0 = random_below(t, groups + 1);
    size_t g1 = g0 + random_below(t, groups - g0 + 1);
    float *x = keep(t, cols * sizeof *x);
    random_rows(t, x, cols, 1, cols, kind);
    if (kind == K_RANDOM || kind == K_WIDE)
        hard_groups(t, x, cols, q);
    struct qrows before = random_qrows(t, q, ROWS, cols, K_RANDOM), want = before;
    want.code = memcpy(keep(t, ROWS * cols * size), before.code, ROWS * cols * size);
    want.scale = memcpy(keep(t, ROWS * groups * 4), before.scale, ROWS * groups * 4);
    want.sum = memcpy(keep(t, ROWS * groups * 4), before.sum, ROWS * groups * 4);
    for (int whole = 0; whole < 2; whole++) {
        if (whole)
            g0 = 0, g1 = groups;
        t->twin->quantize(&want, r, x, g0 * GROUP, g1 * GROUP);
        for (enum edge e = 0; e < N_EDGES; e++) {
            struct job j = {t->k, before, r, NULL, g0 * GROUP, g1 * GROUP};
            j.x = guard_in(t, "x", x, cols * sizeof *x, 4, e);
            j.q.code = guard_out(t, "the codes", before.code, ROWS * cols * size,
                                 cols % 64 == 0 ? 64 : size, e);
            j.q.scale = guard_out(t, "the scales", before.scale, ROWS * groups * 4, 4, e);
            j.q.sum = guard_out(t, "the sums", before.sum, ROWS * groups * 4, 4, e);
            if (!guard_call(t, call, &j) || !compare(t, &j.q, &want, ROWS))
                return;
        }
    }
}

void check_quantize(struct check *t)
{
    static const size_t cols[] = {32, 64, 96, 128, 160, 512, 4096, 7200};
    for (size_t i = 0; i < 8; i++)
        for (enum kind k = 0; k < N_KINDS; k++)
            for (size_t n = 0; n < (t->quick ? 1 : 4) && !check_done(t); n++) {
                one_case(t, (n + k) % 2 ? Q_16 : Q_8, cols[i], k);
                one_case(t, (n + k) % 2 ? Q_8 : Q_16, cols[i], k);
                case_end(t);
            }
}
