/* The types of weights by name, and the tables of those that have one. A converted directory repeats the
 * values of its tables, so that a later version may choose others. */
#include "quant.h"

#include <string.h>

static const int8_t linear4[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};

/* Least squared error over groups of 32 normal numbers, each with the best scale for it (Lloyd's method): 0.0053,
 * 0.0232 and 0.0956 of the sum of squares. Those of 3 and 2 bits lie within -16 .. 16, for which kernels have a
 * faster way (simd.h); finer values would be 1.2 and 0.1 % better. */
static const int8_t normal4[16] = {-127, -101, -81, -63, -48, -34, -21, -9,
                                   2,    14,   25,  37,  50,  65,  84,  108};

static const int8_t normal3[8] = {-15, -9, -5, -2, 1, 4, 7, 12};
static const int8_t normal2[4] = {-14, -5, 2, 10};

static const struct wtype types[] = {
    {W_F32, NULL, "f32"},   {W_F16, NULL, "f16"},  {W_BF16, NULL, "bf16"}, {W_E4M3, NULL, "e4m3"},
    {W_E2M1, NULL, "e2m1"}, {W_Q8, NULL, "q8"},    {W_Q4, linear4, "q4"},  {W_Q4, normal4, "q4nl"},
    {W_Q3, normal3, "q3"},  {W_Q2, normal2, "q2"},
};

const struct wtype *wtype_named(const char *name)
{
    if (strcmp(name, "mxfp4") == 0)
        name = "e2m1";
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(types[i].name, name) == 0)
            return &types[i];
    return NULL;
}

const struct wtype *wtype_at(size_t i)
{
    return i < sizeof types / sizeof *types ? &types[i] : NULL;
}

const struct wtype *wtype_of(const struct wmat *w)
{
    size_t n = wformat_table(w->format);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].format == w->format && (n == 0 || memcmp(types[i].table, w->table, n) == 0))
            return &types[i];
    return NULL;
}
