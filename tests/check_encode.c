/* Encoders of weights: every type against its own decoder, errors of the search against those of the largest
 * magnitude, and what lies at the edges: zeros, tiny and huge numbers, importance. */
#include "quant/quant.h"
#include "simd/codes.h"
#include "suite.h"

#include <math.h>

enum { COLS = 256 };

static struct kernels k;

static float uniform(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)(*state >> 40) * 0x1p-24f - 0.5f;
}

/* Nearly normal numbers of size 1. */
static void fill(float *x, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = 0;
        for (int j = 0; j < 12; j++)
            x[i] += uniform(&seed);
    }
}

/* What comes back of a row. */
static void round_trip(float *y, const struct wtype *t, const float *x, const float *importance,
                       enum effort effort)
{
    uint8_t codes[4 * COLS], scales[2 * COLS / GROUP];
    struct wmat w = {.format = t->format,
                     .rows = 1,
                     .cols = COLS,
                     .block_rows = 1,
                     .block_cols = GROUP,
                     .codes = codes,
                     .scales = scales,
                     .table = t->table};
    encode_row(&k, codes, scales, t, x, COLS, importance, effort);
    k.decode(y, &w, 0);
}

static double error_of(const float *x, const float *y, const float *w, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (w ? w[i] : 1) * ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
    return sum;
}

/* The nearest half of every float that lies on, between and beside two halves. */
START_TEST(halves)
{
    for (uint32_t h = 0; h < 0x7bff; h++) {
        float a = f16_value((uint16_t)h), b = f16_value((uint16_t)(h + 1)), middle = (a + b) / 2;
        ck_assert_uint_eq(f16_code(a), h);
        ck_assert_uint_eq(f16_code(-a), h | 0x8000);
        ck_assert_uint_eq(f16_code(nextafterf(middle, 0)), h);
        ck_assert_uint_eq(f16_code(middle), h + (h & 1));
        ck_assert_uint_eq(f16_code(nextafterf(middle, 1e9f)), h + 1);
    }
    ck_assert_uint_eq(f16_code(1e30f), 0x7bff);
    ck_assert_uint_eq(f16_code(-INFINITY), 0xfbff);
    ck_assert(isnan(f16_value(f16_code(NAN))));
}
END_TEST

START_TEST(names)
{
    const struct wtype *t;
    for (size_t i = 0; (t = wtype_at(i)); i++) {
        struct wmat w = {.format = t->format, .table = t->table};
        ck_assert_ptr_eq(wtype_named(t->name), t);
        ck_assert_ptr_eq(wtype_of(&w), t);
        size_t n = wformat_table(t->format);
        ck_assert_int_eq(t->table != NULL, n > 0);
        for (size_t j = 1; j < n; j++)
            ck_assert_int_lt(t->table[j - 1], t->table[j]);
    }
    ck_assert_ptr_eq(wtype_named("mxfp4"), wtype_named("e2m1"));
    ck_assert_ptr_null(wtype_named("q5"));
    ck_assert_ptr_null(wtype_named(""));
    int8_t other[16] = {1, 2, 3};
    ck_assert_ptr_null(wtype_of(&(struct wmat){.format = W_Q4, .table = other}));
}
END_TEST

/* Largest squared error of a search over that of normal numbers: measured, and a little more. */
static const struct {
    const char *type;
    double most;
} expected[] = {{"f32", 0},   {"f16", 1e-7}, {"bf16", 4e-6},   {"e4m3", 8e-4}, {"e2m1", 1.4e-2},
                {"q8", 3e-5}, {"q4", 7e-3},  {"q4nl", 5.8e-3}, {"q3", 2.5e-2}, {"q2", 1.05e-1}};

START_TEST(errors)
{
    float x[COLS], y[COLS], zero[COLS] = {0};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        const struct wtype *t = wtype_named(expected[i].type);
        double plain = 0, best = 0, power = 0;
        for (uint64_t row = 0; row < 100; row++) {
            fill(x, COLS, row);
            round_trip(y, t, x, NULL, EFFORT_ABSMAX);
            double e = error_of(x, y, NULL, COLS);
            round_trip(y, t, x, NULL, EFFORT_SEARCH);
            double s = error_of(x, y, NULL, COLS);
            ck_assert_msg(s <= e * (1 + 1e-6), "%s, row %d: search %g, largest magnitude %g",
                          t->name, (int)row, s, e);
            plain += e;
            best += s;
            power += error_of(x, zero, NULL, COLS);
        }
        ck_assert_msg(best / power <= expected[i].most, "%s: %g", t->name, best / power);
        if (wformat_table(t->format) > 0)
            ck_assert_msg(best < 0.92 * plain, "%s: search %g, largest magnitude %g", t->name, best,
                          plain);
    }
}
END_TEST

/* The error that counts is the weighted one. */
START_TEST(importance)
{
    float x[COLS], y[COLS], w[COLS];
    for (size_t i = 0; wtype_at(i); i++) {
        const struct wtype *t = wtype_at(i);
        double with = 0, without = 0;
        for (uint64_t row = 0; row < 50; row++) {
            fill(x, COLS, row);
            fill(w, COLS, 1000 + row);
            for (size_t c = 0; c < COLS; c++)
                w[c] = c % 7 == 0 ? 0 : expf(w[c]);
            round_trip(y, t, x, w, EFFORT_SEARCH);
            with += error_of(x, y, w, COLS);
            round_trip(y, t, x, NULL, EFFORT_SEARCH);
            without += error_of(x, y, w, COLS);
        }
        ck_assert_msg(with <= without, "%s: %g with importance, %g without", t->name, with,
                      without);
        if (wformat_table(t->format) > 0)
            ck_assert_msg(with < 0.95 * without, "%s: %g, %g", t->name, with, without);
    }
}
END_TEST

/* What a type can hold comes back bit by bit, with either effort. */
START_TEST(exact)
{
    float x[COLS], y[COLS];
    for (size_t i = 0; wtype_at(i); i++) {
        const struct wtype *t = wtype_at(i);
        for (uint64_t row = 0; row < 20; row++) {
            fill(x, COLS, row);
            for (size_t g = 0; g < COLS; g += GROUP)
                x[g] = 9; /* the largest */
            round_trip(y, t, x, NULL, EFFORT_ABSMAX);
            memcpy(x, y, sizeof x);
            for (int effort = EFFORT_ABSMAX; effort <= EFFORT_SEARCH; effort++) {
                round_trip(y, t, x, NULL, (enum effort)effort);
                for (size_t c = 0; c < COLS; c++)
                    ck_assert_msg(y[c] == x[c], "%s, effort %d, column %zu: %a of %a", t->name,
                                  effort, c, (double)y[c], (double)x[c]);
            }
        }
    }
}
END_TEST

/* Nothing but finite numbers comes of finite numbers, and no more than there was. */
START_TEST(extremes)
{
    const float size[] = {0, 1e-45f, 1e-38f, 3e-8f, 1e-6f, 1, 7e4f, 1e7f, 1.7e38f};
    float x[COLS], y[COLS], w[COLS] = {0};
    for (size_t i = 0; wtype_at(i); i++) {
        const struct wtype *t = wtype_at(i);
        for (size_t s = 0; s < sizeof size / sizeof *size; s++)
            for (int effort = EFFORT_ABSMAX; effort <= EFFORT_SEARCH; effort++)
                for (int weighted = 0; weighted < 2; weighted++) {
                    fill(x, COLS, s);
                    for (size_t c = 0; c < COLS; c++)
                        x[c] = x[c] > 0 ? size[s] : x[c] * 0.1f * size[s];
                    round_trip(y, t, x, weighted ? w : NULL, (enum effort)effort);
                    for (size_t c = 0; c < COLS; c++)
                        ck_assert_msg(
                            isfinite(y[c]) && fabsf(y[c]) <= 1.4f * fabsf(size[s]) + 1e-6f,
                            "%s, effort %d: %g of %g", t->name, effort, (double)y[c], (double)x[c]);
                }
    }
}
END_TEST

/* sum over rows of e H e^T */
static double error_under(const float *h, const float *x, const float *y, size_t rows)
{
    double sum = 0;
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < COLS; i++) {
            double product = 0;
            for (size_t j = 0; j < COLS; j++)
                product += h[i * COLS + j] * ((double)x[r * COLS + j] - y[r * COLS + j]);
            sum += product * ((double)x[r * COLS + i] - y[r * COLS + i]);
        }
    return sum;
}

/* Inputs that hang together: sums of x x^T. */
static void covariance(float *h)
{
    float base[COLS], x[COLS];
    memset(h, 0, COLS * COLS * sizeof *h);
    for (uint64_t n = 0; n < 2 * COLS; n++) {
        fill(x, COLS, 5000 + n);
        fill(base, COLS, 9000 + n % 20);
        for (size_t i = 0; i < COLS; i++)
            x[i] += 2 * base[i];
        for (size_t i = 0; i < COLS; i++)
            for (size_t j = 0; j < COLS; j++)
                h[i * COLS + j] += x[i] * x[j];
    }
}

/* With error feedback the products change less, whatever the number of rows; a row's bytes do not depend on the
 * rows beside it. */
START_TEST(feedback)
{
    enum { ROWS = 20 };
    static float h[COLS * COLS], factor[COLS * COLS], tmp[COLS * PANEL];
    float x[ROWS * COLS], y[ROWS * COLS], z[ROWS * COLS];
    covariance(h);
    memcpy(factor, h, sizeof h);
    feedback_factor(factor, COLS, 0.01f);
    fill(x, ROWS * COLS, 7);
    for (size_t i = 0; wtype_at(i); i++) {
        const struct wtype *t = wtype_at(i);
        if (t->format != W_Q8 && wformat_table(t->format) == 0)
            continue;
        uint8_t codes[ROWS][COLS] = {0}, scales[ROWS][2 * COLS / GROUP], alone[COLS],
                its[2 * COLS / GROUP];
        size_t bytes = wformat_row_bytes(t->format, COLS);
        for (size_t r = 0; r < ROWS; r += PANEL)
            encode_feedback(&k, codes[r], COLS, scales[r], sizeof *scales, t, x + r * COLS, COLS,
                            ROWS - r < PANEL ? ROWS - r : PANEL, COLS, factor, tmp);
        struct wmat w = {.format = t->format,
                         .rows = ROWS,
                         .cols = COLS,
                         .codes = codes[0],
                         .scales = scales[0],
                         .code_ld = COLS,
                         .scale_ld = sizeof *scales,
                         .table = t->table};
        for (size_t r = 0; r < ROWS; r++) {
            k.decode(y + r * COLS, &w, r);
            round_trip(z + r * COLS, t, x + r * COLS, NULL, EFFORT_SEARCH);
            encode_feedback(&k, alone, COLS, its, 0, t, x + r * COLS, COLS, 1, COLS, factor, tmp);
            ck_assert_mem_eq(alone, codes[r], bytes);
            ck_assert_mem_eq(its, scales[r], sizeof its);
        }
        double with = error_under(h, x, y, ROWS), without = error_under(h, x, z, ROWS);
        ck_assert_msg(with < 0.5 * without, "%s: %g with feedback, %g without", t->name, with,
                      without);
    }
}
END_TEST

/* Inputs that never came, or always the same one: nothing but finite numbers. */
START_TEST(singular)
{
    static float factor[COLS * COLS], tmp[COLS * PANEL];
    float x[COLS], y[COLS];
    const struct wtype *t = wtype_named("q4");
    fill(x, COLS, 3);
    for (int same = 0; same < 2; same++) {
        uint8_t codes[COLS], scales[2 * COLS / GROUP];
        for (size_t i = 0; i < COLS * COLS; i++)
            factor[i] = (float)same * 1e6f;
        feedback_factor(factor, COLS, 0.01f);
        encode_feedback(&k, codes, COLS, scales, 0, t, x, COLS, 1, COLS, factor, tmp);
        struct wmat w = {.format = t->format,
                         .rows = 1,
                         .cols = COLS,
                         .codes = codes,
                         .scales = scales,
                         .table = t->table};
        k.decode(y, &w, 0);
        double e = error_of(x, y, NULL, COLS);
        ck_assert_msg(e < 0.2 * COLS, "%g", e);
    }
}
END_TEST

int main(void)
{
    kernels_init_scalar(&k);
    Suite *s = suite_create("encode");
    TCase *c = tcase_create("encode");
    tcase_add_test(c, halves);
    tcase_add_test(c, names);
    tcase_add_test(c, errors);
    tcase_add_test(c, importance);
    tcase_add_test(c, exact);
    tcase_add_test(c, extremes);
    tcase_add_test(c, feedback);
    tcase_add_test(c, singular);
    suite_add_tcase(s, c);
    return run_suite(s);
}
