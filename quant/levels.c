/* The scales of groups of 32 weights, and their codes.
 *
 * For given codes q the best scale of sum w (x - s q)^2 is s = sum w x q / sum w q^2, and what it takes from
 * sum w x^2 is (sum w x q)^2 / sum w q^2. So a search needs only scales to try that lead to different codes:
 * the largest magnitude is put on either end of the levels, or somewhat inside or outside of it.
 * PANEL groups are searched side by side, with no branch that depends on them; the kernel that they share (fit) has the
 * same bits on every machine, and so have scales. */
#include "encode.h"

#include "simd/codes.h"

#include <math.h>

void levels_of(struct grid *l, const struct wtype *t)
{
    *l = (struct grid){.low = -127, .high = 127};
    int n = (int)wformat_table(t->format);
    if (n == 0)
        return;
    l->low = t->table[0];
    l->high = t->table[n - 1];
    if (t->table[n - 1] - t->table[0] == n - 1)
        return;
    l->n = n;
    for (int i = 0; i < l->n; i++)
        l->value[i] = t->table[i];
    for (int i = 0; i + 1 < l->n; i++)
        l->middle[i] = (l->value[i] + l->value[i + 1]) / 2;
}

/* Nearest whole number, ties to even, of |x| < 2^22. */
static inline float whole(float x)
{
    return (x + 12582912.0f) - 12582912.0f;
}

static inline float clamp(float x, float low, float high)
{
    x = x < low ? low : x;
    return x > high ? high : x;
}

uint8_t levels_code(const struct grid *l, float x)
{
    if (l->n == 0)
        return (uint8_t)(whole(clamp(x, l->low, l->high)) - l->low);
    int code = 0;
    for (int k = 0; k + 1 < l->n; k++)
        code += x > l->middle[k];
    return (uint8_t)code;
}

void group_codes(uint8_t *restrict code, const struct grid *l, const float *restrict x, float scale)
{
    const float inverse = scale == 0 ? 0 : 1 / scale, low = l->low, high = l->high;
    float y[GROUP], at[GROUP] = {0};
    for (int i = 0; i < GROUP; i++)
        y[i] = x[i] * inverse;
    if (l->n == 0)
        for (int i = 0; i < GROUP; i++)
            at[i] = whole(clamp(y[i], low, high)) - low;
    for (int k = 0; k + 1 < l->n; k++) {
        const float middle = l->middle[k];
        for (int i = 0; i < GROUP; i++)
            at[i] += y[i] > middle ? 1.0f : 0.0f;
    }
    for (int i = 0; i < GROUP; i++)
        code[i] = (uint8_t)(int)at[i];
}

/* ------------------------------------------------------------------ how well scales fit */

/* What all trials of PANEL groups share. */
struct trial {
    const struct kernels *k;
    const struct grid *l;
    const struct side *x, *w; /* [GROUP] */
};

/* sum w x q and sum w q^2 for the nearest levels at the scales 1 / inverse. */
struct fit {
    struct side xq, qq;
};

static void fit_at(struct fit *f, const struct trial *t, const struct side *inverse)
{
    t->k->fit(f->xq.at, f->qq.at, t->x->at, t->w->at, inverse->at, t->l);
}

#define TINY 0x1p-100f /* no f16 is a scale for so little */

/* Values of four groups, worked on at once without branches; every machine has registers of this width. */
enum { FOUR = 4 };
typedef float values __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t bits __attribute__((vector_size(16), aligned(4), may_alias));

static inline values four(const struct side *s, size_t j)
{
    return *(const values *)(s->at + j);
}

static inline void put_four(struct side *s, size_t j, values v)
{
    *(values *)(s->at + j) = v;
}

static inline values pick(bits where, values a, values b)
{
    return (values)((where & (bits)a) | (~where & (bits)b));
}

/* The best scales up to now, and what they take from the errors. */
struct best {
    struct side gain, scale;
};

/* Takes the scale that the codes at 1 / inverse would like best, where it is better. */
static void try_at(struct best *b, const struct trial *t, const struct side *inverse)
{
    struct fit f;
    fit_at(&f, t, inverse);
    for (size_t j = 0; j < PANEL; j += FOUR) {
        values xq = four(&f.xq, j), qq = four(&f.qq, j), most = four(&b->gain, j);
        values scale = pick(qq > 0, xq / qq, (values){0}), gain = xq * scale;
        bits better = gain > most;
        put_four(&b->gain, j, pick(better, gain, most));
        put_four(&b->scale, j, pick(better, scale, four(&b->scale, j)));
    }
}

/* what / x, and 0 where x is next to nothing. */
static void over(struct side *out, float what, const struct side *x)
{
    for (size_t j = 0; j < PANEL; j += FOUR) {
        values v = four(x, j), size = (values)((bits)v & INT32_MAX);
        put_four(out, j, pick(size < TINY, (values){0}, what / v));
    }
}

/* sum w (x - s q)^2 - sum w x^2 at scales as they are stored. */
static void error_at(struct side *error, const struct trial *t, const uint16_t *scale)
{
    struct side s, inverse;
    struct fit f;
    for (int j = 0; j < PANEL; j++)
        s.at[j] = f16_value(scale[j]);
    over(&inverse, 1, &s);
    fit_at(&f, t, &inverse);
    for (int j = 0; j < PANEL; j++)
        error->at[j] = s.at[j] * (s.at[j] * f.qq.at[j] - 2 * f.xq.at[j]);
}

/* ------------------------------------------------------------------ the search */

/* Where the largest magnitude is put, as a part of the end of the levels. */
static const float try_few[] = {0.9f, 1, 1.1f};
static const float try_many[] = {0.88f, 0.97f, 1.06f, 1.16f};

/* Powers of two that clip nothing: for 8 bits, what was fp4 comes through them unharmed. */
static void try_powers(struct best *b, const struct trial *t, const struct side *most)
{
    struct side inverse;
    for (int j = 0; j < PANEL; j++)
        inverse.at[j] = fabsf(most->at[j]) < TINY
                            ? 0
                            : 1 / e8m0_value(e8m0_ceil(fabsf(most->at[j]) / t->l->high));
    try_at(b, t, &inverse);
}

static void search(struct best *b, const struct trial *t, const struct side *most)
{
    const struct grid *l = t->l;
    bool fine =
        l->n == 0 && l->high - l->low > 2 * MOST_VALUES; /* 8 bits: there is little to be won */
    const float *part = fine ? try_few : try_many;
    size_t n = fine ? sizeof try_few / sizeof *try_few : sizeof try_many / sizeof *try_many;
    struct side inverse;
    if (fine)
        try_powers(b, t, most);
    for (int side = 0; side < (l->low == -l->high ? 1 : 2); side++)
        for (size_t i = 0; i < n; i++) {
            float end = (side ? l->high : l->low) * part[i];
            over(&inverse, end, most);
            try_at(b, t, &inverse);
        }
    over(&inverse, 1, &b->scale);
    try_at(b, t, &inverse); /* the codes of the best scale have a better one still */
}

/* The value of largest magnitude of every group: its least or its greatest. */
static void largest(struct side *most, const struct side *x)
{
    for (size_t j = 0; j < PANEL; j += FOUR) {
        values least = four(&x[0], j), greatest = least;
        for (size_t i = 1; i < GROUP; i++) {
            values v = four(&x[i], j);
            least = pick(v < least, v, least);
            greatest = pick(v > greatest, v, greatest);
        }
        put_four(most, j, pick(greatest > -least, greatest, least));
    }
}

void group_scales(const struct kernels *k, uint16_t *scale, const struct grid *l,
                  const struct side *x, const struct side *w, enum effort effort)
{
    struct side most;
    largest(&most, x);
    float end = -l->low >= l->high ? l->low : l->high;
    for (int j = 0; j < PANEL; j++)
        scale[j] = most.at[j] == 0 ? 0 : f16_code(most.at[j] / end);
    if (effort == EFFORT_ABSMAX)
        return;
    struct trial t = {k, l, x, w};
    struct best b;
    struct side was, is;
    uint16_t found[PANEL];
    for (int j = 0; j < PANEL; j++) {
        b.gain.at[j] = -1;
        b.scale.at[j] = 0;
    }
    search(&b, &t, &most);
    for (int j = 0; j < PANEL; j++)
        found[j] = f16_code(b.scale.at[j]);
    error_at(&was, &t, scale);
    error_at(&is, &t, found);
    for (int j = 0; j < PANEL; j++)
        scale[j] = is.at[j] < was.at[j] ? found[j] : scale[j];
}
