/* Panels of 2- to 8-bit codes times int8 rows.
 *
 * Narrow tables, whose values span at most 32 (E2M1 doubled spans 24): less the lowest they are unsigned
 * bytes, so that vpmaddubsw's sums of four units stay below 2^15 and only two additions a group go to 32
 * bits; the lowest times the row's sum is added at the end.
 * Others and Q8: |w| times (x with w's sign), widened at once.
 * Few rows: codes are taken apart in registers. Many rows: once into a tile in L1, used by all. */
#include "avx2.h"
#include "simd/codes.h"
#include "units.h"

#include <string.h>

enum {
    FEW = 4,          /* up to so many rows without a tile */
    ROWS = 3,         /* rows of the tile's kernel */
    TILE_GROUPS = 32, /* groups of columns in a tile: 16 KB of codes */
    UNITS = 2 * OCTETS,
    TILE_GROUP = GROUP * PANEL,
    NARROW = 32, /* 8 products of at most 32 and 127 fit into 16 bits */
};

/* The rows of x that one call of a panel kernel works on. */
struct rows8 {
    const int8_t *code[FEW];
    const float *scale[FEW];
    const int32_t *sum[FEW];
    float *y[FEW];
};

/* A matrix and its tables; narrow: less the lowest value. */
struct job {
    const struct wmat *w;
    struct tables table;
    int32_t low;
    bool narrow;
};

static struct job job_of(const struct wmat *w)
{
    static const int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    struct job j = {.w = w};
    const int8_t *value = w->format == W_E2M1 ? doubled : w->table;
    size_t n = w->format == W_E2M1 ? 16 : wformat_table(w->format);
    if (n == 0)
        return j;
    int low = value[0], high = low;
    for (size_t i = 1; i < n; i++) {
        low = value[i] < low ? value[i] : low;
        high = value[i] > high ? value[i] : high;
    }
    j.narrow = high - low <= NARROW;
    j.low = j.narrow ? low : 0;
    j.table = tables_of(value, w->format, j.low);
    return j;
}

INLINE_AVX2 __m256i word_of(const int8_t *x)
{
    int32_t v;
    memcpy(&v, x, sizeof v);
    return _mm256_set1_epi32(v);
}

/* u of simd.h: the scales of 16 rows times the row's. */
INLINE_AVX2 __m256 unit_of(enum wformat f, const uint8_t *scale, int half, float x)
{
    if (f == W_E2M1) {
        __m256 s = e8m0_avx2(_mm_loadl_epi64((const __m128i *)(scale + 8 * half)));
        return _mm256_mul_ps(s, _mm256_set1_ps(0.5f * x));
    }
    __m256 s = _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(scale + 16 * half)));
    return _mm256_mul_ps(s, _mm256_set1_ps(x));
}

/* Adds the group's exact sums s, times u, to y. */
INLINE_AVX2 __m256 add_group(__m256 y, __m256i s, __m256 u)
{
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(s), u, y);
}

/* The weights of octet o of 8 rows as bytes, less the lowest of a narrow table; c: the group opened. */
INLINE_AVX2 void expand_octet(__m256i v[2], const struct job *j, const __m256i c[4],
                              const uint8_t *p, int o, enum wformat f)
{
    if (f == W_Q8) {
        v[0] = _mm256_load_si256((const __m256i *)(p + 128 * o));
        v[1] = _mm256_load_si256((const __m256i *)(p + 128 * o + 64));
        return;
    }
    const __m256i even = table_avx2(j->table.of[0]), odd = table_avx2(j->table.of[1]);
    __m256i i[2];
    octet_indices(i, c, o, f);
    v[0] = _mm256_shuffle_epi8(even, i[0]);
    v[1] = _mm256_shuffle_epi8(f == W_Q2 ? odd : even, i[1]);
}

/* ------------------------------------------------------------------ few rows */

/* s[i][h] = the group's sums of half h of the panel with row i: first the weights, all in registers. */
INLINE_AVX2 void narrow_sums(__m256i s[FEW][2], const struct job *j, const uint8_t *p,
                             const struct rows8 *r, int m, size_t g, enum wformat f)
{
    const __m256i one = _mm256_set1_epi16(1);
    for (int h = 0; h < 2; h++) {
        __m256i c[4], v[OCTETS][2];
        open_group(c, p + 32 * h, f);
        UNROLL_AVX2(4)
        for (int o = 0; o < OCTETS; o++)
            expand_octet(v[o], j, c, p, o, f);
        for (int i = 0; i < m; i++) {
            const int8_t *x = r->code[i] + g * GROUP;
            __m256i even = _mm256_maddubs_epi16(v[0][0], word_of(x));
            __m256i odd = _mm256_maddubs_epi16(v[0][1], word_of(x + 4));
            UNROLL_AVX2(4)
            for (int o = 1; o < OCTETS; o++) {
                even = _mm256_add_epi16(even, _mm256_maddubs_epi16(v[o][0], word_of(x + 8 * o)));
                odd = _mm256_add_epi16(odd, _mm256_maddubs_epi16(v[o][1], word_of(x + 8 * o + 4)));
            }
            __m256i sum =
                _mm256_add_epi32(_mm256_madd_epi16(even, one), _mm256_madd_epi16(odd, one));
            s[i][h] = _mm256_add_epi32(sum, _mm256_set1_epi32(j->low * r->sum[i][g]));
        }
    }
}

INLINE_AVX2 __m256i signed_product(__m256i w, __m256i x)
{
    const __m256i one = _mm256_set1_epi16(1);
    __m256i p = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_madd_epi16(p, one);
}

/* The same octet by octet: magnitudes take as many registers as the weights. */
INLINE_AVX2 void wide_sums(__m256i s[FEW][2], const struct job *j, const uint8_t *p,
                           const struct rows8 *r, int m, size_t g, enum wformat f)
{
    __m256i c[2][4];
    for (int h = 0; h < 2; h++) {
        if (f != W_Q8)
            open_group(c[h], p + 32 * h, f);
        for (int i = 0; i < m; i++)
            s[i][h] = _mm256_setzero_si256();
    }
    UNROLL_AVX2(4)
    for (int o = 0; o < OCTETS; o++)
        for (int h = 0; h < 2; h++) {
            __m256i v[2];
            expand_octet(v, j, c[h], p + 32 * h, o, f);
            for (int i = 0; i < m; i++) {
                const int8_t *x = r->code[i] + g * GROUP + (size_t)o * 8;
                s[i][h] = _mm256_add_epi32(s[i][h], signed_product(v[0], word_of(x)));
                s[i][h] = _mm256_add_epi32(s[i][h], signed_product(v[1], word_of(x + 4)));
            }
        }
}

INLINE_AVX2 void panel_few(const struct job *j, size_t panel, const struct rows8 *r, int m,
                           size_t valid, enum wformat f, bool narrow)
{
    const struct wmat *w = j->w;
    const uint8_t *p = w->codes + panel * w->code_ld, *scale = w->scales + panel * w->scale_ld;
    const size_t scales = f == W_E2M1 ? PANEL : 2 * PANEL;
    __m256 y[FEW][2];
    for (int i = 0; i < m; i++)
        y[i][0] = y[i][1] = _mm256_setzero_ps();
    for (size_t g = 0; g < w->cols / GROUP; g++, scale += scales, p += group_avx2(f)) {
        __m256i s[FEW][2];
        (narrow ? narrow_sums : wide_sums)(s, j, p, r, m, g, f);
        for (int i = 0; i < m; i++)
            for (int h = 0; h < 2; h++)
                y[i][h] = add_group(y[i][h], s[i][h], unit_of(f, scale, h, r->scale[i][g]));
        for (size_t b = 0; b < group_avx2(f); b += 64)
            prefetch_avx2(p + b);
    }
    for (int i = 0; i < m; i++)
        store_rows_avx2(r->y[i], y[i][0], y[i][1], valid);
}

typedef void few_kernel(const struct job *, size_t panel, const struct rows8 *, size_t valid);

#define FEW_KERNEL(name, m, f, narrow)                                                     \
    static void few_##name##_##m(const struct job *j, size_t panel, const struct rows8 *r, \
                                 size_t valid)                                             \
    {                                                                                      \
        panel_few(j, panel, r, m, valid, f, narrow);                                       \
    }
#define FEW_KERNELS(name, f, narrow)                                                            \
    FEW_KERNEL(name, 1, f, narrow)                                                              \
    FEW_KERNEL(name, 2, f, narrow)                                                              \
    FEW_KERNEL(name, 3, f, narrow)                                                              \
    FEW_KERNEL(name, 4, f, narrow)                                                              \
    static few_kernel *const few_##name[FEW] = {few_##name##_1, few_##name##_2, few_##name##_3, \
                                                few_##name##_4};

FEW_KERNELS(e2m1, W_E2M1, true)
FEW_KERNELS(q8, W_Q8, false)
FEW_KERNELS(q4, W_Q4, true)
FEW_KERNELS(q4_wide, W_Q4, false)
FEW_KERNELS(q3, W_Q3, true)
FEW_KERNELS(q3_wide, W_Q3, false)
FEW_KERNELS(q2, W_Q2, true)
FEW_KERNELS(q2_wide, W_Q2, false)

static few_kernel *const *few_kernels(const struct job *j)
{
    switch (j->w->format) {
    case W_E2M1: return few_e2m1;
    case W_Q4: return j->narrow ? few_q4 : few_q4_wide;
    case W_Q3: return j->narrow ? few_q3 : few_q3_wide;
    case W_Q2: return j->narrow ? few_q2 : few_q2_wide;
    default: return few_q8;
    }
}

static void take_rows(struct rows8 *r, const struct qrows *x, const uint32_t *pick, size_t i,
                      size_t n, float *y, size_t ldy, size_t group)
{
    for (size_t k = 0; k < n; k++) {
        size_t row = pick ? pick[i + k] : i + k;
        r->code[k] = (const int8_t *)x->code + row * x->cols + group * GROUP;
        r->scale[k] = x->scale + row * (x->cols / GROUP) + group;
        r->sum[k] = x->sum + row * (x->cols / GROUP) + group;
        r->y[k] = y + (i + k) * ldy;
    }
}

static void few_rows(float *y, size_t ldy, const struct qrows *x, const uint32_t *pick, size_t m,
                     const struct wmat *w, size_t r0, size_t r1)
{
    const struct job j = job_of(w);
    few_kernel *kernel = few_kernels(&j)[m - 1];
    for (size_t r = r0; r < r1; r += PANEL) {
        struct rows8 rows;
        take_rows(&rows, x, pick, 0, m, y + r, ldy, 0);
        kernel(&j, r / PANEL, &rows, r1 - r < PANEL ? r1 - r : PANEL);
    }
}

/* ------------------------------------------------------------------ many rows */

/* A slice of a panel, its codes taken apart: [groups][8 units][16 rows][4], and its scales as floats. */
struct tile {
    _Alignas(64) int8_t code[TILE_GROUPS * TILE_GROUP];
    _Alignas(64) float scale[TILE_GROUPS][PANEL];
};

INLINE_AVX2 void fill_codes(struct tile *t, const struct job *j, const uint8_t *p, size_t groups,
                            enum wformat f)
{
    for (size_t g = 0; g < groups; g++, p += group_avx2(f))
        for (size_t h = 0; h < 2; h++) {
            int8_t *to = t->code + g * TILE_GROUP + 32 * h;
            __m256i c[4];
            open_group(c, p + 32 * h, f);
            UNROLL_AVX2(4)
            for (int o = 0; o < OCTETS; o++, to += 128) {
                __m256i v[2];
                expand_octet(v, j, c, p, o, f);
                _mm256_store_si256((__m256i *)to, v[0]);
                _mm256_store_si256((__m256i *)(to + 64), v[1]);
            }
        }
}

static void fill_tile(struct tile *t, const struct job *j, size_t panel, size_t g0, size_t groups)
{
    const struct wmat *w = j->w;
    const uint8_t *p = w->codes + panel * w->code_ld + g0 * group_avx2(w->format);
    const uint8_t *scale = w->scales + panel * w->scale_ld;
    switch (w->format) {
    case W_E2M1:
    case W_Q4: fill_codes(t, j, p, groups, W_Q4); break;
    case W_Q3: fill_codes(t, j, p, groups, W_Q3); break;
    case W_Q2: fill_codes(t, j, p, groups, W_Q2); break;
    default: memcpy(t->code, p, groups * TILE_GROUP); break;
    }
    size_t step = w->format == W_E2M1 ? PANEL : 2 * PANEL;
    for (size_t g = 0; g < groups; g++)
        for (int h = 0; h < 2; h++)
            _mm256_store_ps(t->scale[g] + 8 * h, unit_of(w->format, scale + (g0 + g) * step, h,
                                                         w->format == W_E2M1 ? 2 : 1));
}

/* One group of the tile times m rows: exact sums in s. */
INLINE_AVX2 void tile_group_narrow(__m256i s[][2], const int8_t *t, const struct rows8 *r, int m,
                                   size_t g, int32_t low)
{
    const __m256i one = _mm256_set1_epi16(1);
    for (int half = 0; half < 2; half++) { /* four units: sums fit into 16 bits */
        __m256i a[ROWS][2];
        for (int u = 0; u < 4; u++, t += 64) {
            __m256i w0 = _mm256_load_si256((const __m256i *)t);
            __m256i w1 = _mm256_load_si256((const __m256i *)(t + 32));
            for (int i = 0; i < m; i++) {
                __m256i x = word_of(r->code[i] + g * GROUP + (size_t)(half * 16 + u * 4));
                __m256i p0 = _mm256_maddubs_epi16(w0, x), p1 = _mm256_maddubs_epi16(w1, x);
                a[i][0] = u == 0 ? p0 : _mm256_add_epi16(a[i][0], p0);
                a[i][1] = u == 0 ? p1 : _mm256_add_epi16(a[i][1], p1);
            }
        }
        for (int i = 0; i < m; i++)
            for (int h = 0; h < 2; h++) {
                __m256i wide = _mm256_madd_epi16(a[i][h], one);
                s[i][h] = _mm256_add_epi32(
                    half == 0 ? _mm256_set1_epi32(low * r->sum[i][g]) : s[i][h], wide);
            }
    }
}

INLINE_AVX2 void tile_group_wide(__m256i s[][2], const int8_t *t, const struct rows8 *r, int m,
                                 size_t g)
{
    for (int i = 0; i < m; i++)
        s[i][0] = s[i][1] = _mm256_setzero_si256();
    for (int u = 0; u < UNITS; u++, t += 64) {
        __m256i w0 = _mm256_load_si256((const __m256i *)t);
        __m256i w1 = _mm256_load_si256((const __m256i *)(t + 32));
        for (int i = 0; i < m; i++) {
            __m256i x = word_of(r->code[i] + g * GROUP + (size_t)u * 4);
            s[i][0] = _mm256_add_epi32(s[i][0], signed_product(w0, x));
            s[i][1] = _mm256_add_epi32(s[i][1], signed_product(w1, x));
        }
    }
}

/* What a tile's kernel has to know beside the codes. */
struct span {
    size_t groups, valid;
    float half; /* 0.5 for doubled codes */
    int32_t low;
    bool first; /* y holds nothing yet */
};

INLINE_AVX2 void tile_rows(const struct tile *t, const struct rows8 *r, int m, const struct span *k,
                           bool narrow)
{
    __m256 y[ROWS][2];
    for (int i = 0; i < m; i++) {
        y[i][0] = y[i][1] = _mm256_setzero_ps();
        if (!k->first)
            load_rows_avx2(&y[i][0], &y[i][1], r->y[i], k->valid);
    }
    for (size_t g = 0; g < k->groups; g++) {
        __m256i s[ROWS][2];
        if (narrow)
            tile_group_narrow(s, t->code + g * TILE_GROUP, r, m, g, k->low);
        else
            tile_group_wide(s, t->code + g * TILE_GROUP, r, m, g);
        for (int i = 0; i < m; i++) {
            __m256 x = _mm256_set1_ps(k->half * r->scale[i][g]);
            for (int h = 0; h < 2; h++)
                y[i][h] = add_group(y[i][h], s[i][h],
                                    _mm256_mul_ps(_mm256_load_ps(t->scale[g] + 8 * h), x));
        }
    }
    for (int i = 0; i < m; i++)
        store_rows_avx2(r->y[i], y[i][0], y[i][1], k->valid);
}

#define TILE_OF(m)                                                                          \
    static void tile_##m(const struct tile *t, const struct rows8 *r, const struct span *k, \
                         bool narrow)                                                       \
    {                                                                                       \
        if (narrow)                                                                         \
            tile_rows(t, r, m, k, true);                                                    \
        else                                                                                \
            tile_rows(t, r, m, k, false);                                                   \
    }
TILE_OF(1)
TILE_OF(2)
TILE_OF(3)

static void many_rows(float *y, size_t ldy, const struct qrows *x, const uint32_t *pick, size_t m,
                      const struct wmat *w, size_t r0, size_t r1)
{
    static void (*const by_rows[ROWS])(const struct tile *, const struct rows8 *,
                                       const struct span *, bool) = {tile_1, tile_2, tile_3};
    const struct job j = job_of(w);
    size_t groups = w->cols / GROUP;
    struct tile t;
    struct span k = {.half = w->format == W_E2M1 ? 0.5f : 1, .low = j.low};
    for (size_t r = r0; r < r1; r += PANEL)
        for (size_t g = 0; g < groups; g += TILE_GROUPS) {
            k.groups = groups - g < TILE_GROUPS ? groups - g : TILE_GROUPS;
            k.valid = r1 - r < PANEL ? r1 - r : PANEL;
            k.first = g == 0;
            fill_tile(&t, &j, r / PANEL, g, k.groups);
            for (size_t i = 0; i < m; i += ROWS) {
                struct rows8 rows;
                size_t n = m - i < ROWS ? m - i : ROWS;
                take_rows(&rows, x, pick, i, n, y + r, ldy, g);
                by_rows[n - 1](&t, &rows, &k, j.narrow);
            }
        }
}

void matmul_fast_avx2(float *y, size_t ldy, const struct qrows *x, const uint32_t *pick, size_t m,
                      const struct wmat *w, size_t r0, size_t r1)
{
    if (m == 0)
        return;
    if (x->kind == Q_16)
        matmul_q16_avx2(y, ldy, x, pick, m, w, r0, r1);
    else
        (m <= FEW ? few_rows : many_rows)(y, ldy, x, pick, m, w, r0, r1);
}
