/* Cases, failures and comparisons. */
#include "check.h"

#include "simd/codes.h"

#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void check_case(struct check *t, const char *format, ...)
{
    va_list a;
    va_start(a, format);
    vsnprintf(t->what, sizeof t->what, format, a);
    va_end(a);
    t->cases++;
}

void check_fail(struct check *t, const char *format, ...)
{
    char why[160];
    va_list a;
    va_start(a, format);
    vsnprintf(why, sizeof why, format, a);
    va_end(a);
    if (t->failures++ == 0)
        snprintf(t->first, sizeof t->first, "%s: %s", t->what, why);
}

bool same_bits(float a, float b)
{
    return bits_of_float(a) == bits_of_float(b) || (isnan(a) && isnan(b));
}

bool check_close(struct check *t, double got, double want, double bound)
{
    if (isnan(want) || isinf(want) || isnan(got))
        return isnan(want) ? isnan(got) : got == want;
    double share = fabs(got - want);
    share = share == 0 ? 0 : share / bound;
    if (share > t->worst)
        t->worst = share;
    return share <= 1;
}

double rounding(size_t n, double magnitude)
{
    return 2 * (double)n * (0x1p-24 * magnitude + 0x1p-149);
}

/* A NaN that no kernel computes. */
enum { PADDING = 0x7fa5a5a5 };

void fill_floats(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        memcpy(&x[i], &(uint32_t){PADDING}, sizeof *x);
}

bool check_padding(struct check *t, const char *name, const float *got, size_t total, size_t ld,
                   size_t rows, size_t c0, size_t c1)
{
    for (size_t i = 0; i < total; i++) {
        size_t r = i / ld, c = i % ld;
        if (r < rows && c >= c0 && c < c1)
            continue;
        if (memcmp(&got[i], &(uint32_t){PADDING}, sizeof *got) != 0) {
            check_fail(t, "wrote %s[%zu][%zu], outside of what was asked", name, r, c);
            return false;
        }
    }
    return true;
}

void line_name(char *text, size_t size, const struct line *l)
{
    static const char *const cache[N_RFORMATS] = {"f32", "e4m3/64+bf16", "e4m3/32", "e2m1/16",
                                                  "e2m1/32"}; /* ORDER ROWS */
    snprintf(text, size, "%s%s%s%s%s%s", l->kernel, l->by_format ? " " : "",
             l->by_format ? wformat_name(l->format) : "",
             l->by_format ? l->panels ? " panels" : " plain" : "", l->by_rows ? " " : "",
             l->by_rows ? cache[l->rows] : "");
}

void run_line(struct check *t, const struct line *l)
{
    t->line = l;
    /* The same inputs for a line whatever other lines run before it. */
    t->random = t->seed;
    for (const char *p = l->kernel; *p; p++)
        t->random = t->random * 31 + (uint8_t)*p;
    l->run(t);
    case_end(t);
}
