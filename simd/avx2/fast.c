/* Panels of 4- and 8-bit codes times int8 rows.
 *
 * 4-bit codes of a small table (E2M1 doubled, linear Q4): values less the least one are unsigned bytes of at most
 * 32, so that vpmaddubsw's sums of four octets stay below 2^15 and only two additions a group go to 32 bits;
 * the least value times the row's sum is added.
 * Other tables, Q8: |w| times (x with w's sign), widened at once.
 * Few rows: codes are taken apart in registers. Many rows: once into a tile in L1, used by all. */
#include "avx2.h"
#include "simd/codes.h"

#include <string.h>

enum {
    SMALL = 32,         /* 4 octets * 2 products * 127 * SMALL < 2^15 */
    FEW = 4,            /* up to so many rows without a tile */
    ROWS = 3,           /* rows of the tile's kernel */
    TILE_GROUPS = 32,   /* groups of columns in a tile: 16 KB of codes */
    OCTETS = GROUP / 8, /* of a group */
    TILE_GROUP = GROUP * PANEL,
};

static const int8_t e2m1_doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* How the codes of a matrix become bytes. */
struct codes {
    int8_t table[16]; /* values, those of a small table less the least */
    bool small;
    int32_t least;
    float x; /* what scales of x are taken times */
};

static struct codes codes_of(const struct wmat *w)
{
    const int8_t *t = w->format == W_E2M1 ? e2m1_doubled : w->table;
    struct codes c = {.x = w->format == W_E2M1 ? 0.5f : 1};
    if (!t)
        return c;
    int least = t[0], most = t[0];
    for (int i = 1; i < 16; i++) {
        least = t[i] < least ? t[i] : least;
        most = t[i] > most ? t[i] : most;
    }
    c.small = most - least <= SMALL;
    c.least = c.small ? least : 0;
    for (int i = 0; i < 16; i++)
        c.table[i] = (int8_t)(t[i] - c.least);
    return c;
}

/* The rows of x that one call of a panel kernel works on. */
struct rows8 {
    const struct codes *codes;
    const int8_t *code[FEW];
    const float *scale[FEW];
    const int32_t *sum[FEW];
    float *y[FEW];
};

INLINE_AVX2 __m256i table_of(const struct codes *c)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)c->table));
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

/* ------------------------------------------------------------------ small tables */

/* 16-bit sums of a group to 32 bits, with the least value in all places. */
INLINE_AVX2 __m256i small_sum(__m256i even, __m256i odd, int32_t least)
{
    const __m256i one = _mm256_set1_epi16(1);
    __m256i s = _mm256_add_epi32(_mm256_madd_epi16(even, one), _mm256_madd_epi16(odd, one));
    return _mm256_add_epi32(s, _mm256_set1_epi32(least));
}

/* A group of `n` halves of a panel from `half` on: more halves share the words of x, if there are registers. */
INLINE_AVX2 void small_group(__m256 y[][2], const struct wmat *w, const struct rows8 *r, int m,
                             size_t g, const uint8_t *p, const uint8_t *scale, int half, int n)
{
    const __m256i low = _mm256_set1_epi8(15), lut = table_of(r->codes);
    __m256i even[FEW][2], odd[FEW][2];
    for (int o = 0; o < OCTETS; o++) {
        __m256i a[2], b[2];
        for (int h = 0; h < n; h++) {
            __m256i v = _mm256_load_si256((const __m256i *)(p + 64 * o + 32 * (half + h)));
            a[h] = _mm256_shuffle_epi8(lut, _mm256_and_si256(v, low));
            b[h] = _mm256_shuffle_epi8(lut, _mm256_and_si256(_mm256_srli_epi16(v, 4), low));
        }
        for (int i = 0; i < m; i++) {
            const int8_t *x = r->code[i] + g * GROUP + (size_t)o * 8;
            __m256i xe = word_of(x), xo = word_of(x + 4);
            for (int h = 0; h < n; h++) {
                __m256i e = _mm256_maddubs_epi16(a[h], xe), f = _mm256_maddubs_epi16(b[h], xo);
                even[i][h] = o == 0 ? e : _mm256_add_epi16(even[i][h], e);
                odd[i][h] = o == 0 ? f : _mm256_add_epi16(odd[i][h], f);
            }
        }
    }
    for (int i = 0; i < m; i++)
        for (int h = 0; h < n; h++)
            y[i][half + h] = add_group(
                y[i][half + h], small_sum(even[i][h], odd[i][h], r->codes->least * r->sum[i][g]),
                unit_of(w->format, scale, half + h, r->scale[i][g]));
}

INLINE_AVX2 void panel_small(const struct wmat *w, size_t panel, const struct rows8 *r, int m,
                             size_t valid)
{
    const uint8_t *p = w->codes + panel * w->code_ld, *scale = w->scales + panel * w->scale_ld;
    const size_t step = w->format == W_E2M1 ? PANEL : 2 * PANEL;
    __m256 y[FEW][2];
    for (int i = 0; i < m; i++)
        y[i][0] = y[i][1] = _mm256_setzero_ps();
    for (size_t g = 0; g < w->cols / GROUP; g++, scale += step, p += 64 * OCTETS) {
        if (m == 1) {
            small_group(y, w, r, m, g, p, scale, 0, 2);
        } else {
            small_group(y, w, r, m, g, p, scale, 0, 1);
            small_group(y, w, r, m, g, p, scale, 1, 1);
        }
        for (int o = 0; o < OCTETS; o++)
            prefetch_avx2(p + 64 * o);
    }
    for (int i = 0; i < m; i++)
        store_rows_avx2(r->y[i], y[i][0], y[i][1], valid);
}

/* ------------------------------------------------------------------ Q8, other tables */

INLINE_AVX2 __m256i signed_product(__m256i w, __m256i x)
{
    const __m256i one = _mm256_set1_epi16(1);
    __m256i p = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_madd_epi16(p, one);
}

INLINE_AVX2 void panel_int8(const struct wmat *w, size_t panel, const struct rows8 *r, int m,
                            size_t valid, bool nibbles)
{
    const uint8_t *p = w->codes + panel * w->code_ld, *scale = w->scales + panel * w->scale_ld;
    const __m256i low = _mm256_set1_epi8(15);
    __m256i lut = low;
    if (nibbles)
        lut = table_of(r->codes);
    size_t bytes = nibbles ? 64 : 128;
    __m256 y[FEW][2];
    for (int i = 0; i < m; i++)
        y[i][0] = y[i][1] = _mm256_setzero_ps();
    for (size_t g = 0; g < w->cols / GROUP; g++, scale += 2 * PANEL) {
        __m256i s[FEW][2];
        for (int i = 0; i < m; i++)
            s[i][0] = s[i][1] = _mm256_setzero_si256();
        for (int o = 0; o < OCTETS; o++, p += bytes) {
            for (int h = 0; h < 2; h++) {
                __m256i a = _mm256_load_si256((const __m256i *)(p + 32 * h)), b;
                if (nibbles) {
                    b = _mm256_shuffle_epi8(lut, _mm256_and_si256(_mm256_srli_epi16(a, 4), low));
                    a = _mm256_shuffle_epi8(lut, _mm256_and_si256(a, low));
                } else {
                    b = _mm256_load_si256((const __m256i *)(p + 64 + 32 * h));
                }
                for (int i = 0; i < m; i++) {
                    const int8_t *x = r->code[i] + g * GROUP + (size_t)o * 8;
                    s[i][h] = _mm256_add_epi32(s[i][h], signed_product(a, word_of(x)));
                    s[i][h] = _mm256_add_epi32(s[i][h], signed_product(b, word_of(x + 4)));
                }
            }
            prefetch_avx2(p);
        }
        for (int i = 0; i < m; i++)
            for (int h = 0; h < 2; h++)
                y[i][h] = add_group(y[i][h], s[i][h], unit_of(w->format, scale, h, r->scale[i][g]));
    }
    for (int i = 0; i < m; i++)
        store_rows_avx2(r->y[i], y[i][0], y[i][1], valid);
}

#define PANEL_OF(m)                                                                                \
    static void panel_##m(const struct wmat *w, size_t panel, const struct rows8 *r, size_t valid) \
    {                                                                                              \
        if (r->codes->small)                                                                       \
            panel_small(w, panel, r, m, valid);                                                    \
        else                                                                                       \
            panel_int8(w, panel, r, m, valid, w->format == W_Q4);                                  \
    }
PANEL_OF(1)
PANEL_OF(2)
PANEL_OF(3)
PANEL_OF(4)

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
                     const struct wmat *w, const struct codes *c, size_t r0, size_t r1)
{
    static void (*const by_rows[FEW])(const struct wmat *, size_t, const struct rows8 *,
                                      size_t) = {panel_1, panel_2, panel_3, panel_4};
    for (size_t r = r0; r < r1; r += PANEL) {
        struct rows8 rows = {.codes = c};
        take_rows(&rows, x, pick, 0, m, y + r, ldy, 0);
        by_rows[m - 1](w, r / PANEL, &rows, r1 - r < PANEL ? r1 - r : PANEL);
    }
}

/* ------------------------------------------------------------------ many rows */

/* A slice of a panel, its codes taken apart: [groups][8 words][16 rows][4], and its scales as floats. */
struct tile {
    _Alignas(64) int8_t code[TILE_GROUPS * TILE_GROUP];
    _Alignas(64) float scale[TILE_GROUPS][PANEL];
};

INLINE_AVX2 void split_word(int8_t *out, __m256i v, __m256i lut)
{
    const __m256i low = _mm256_set1_epi8(15);
    _mm256_store_si256((__m256i *)out, _mm256_shuffle_epi8(lut, _mm256_and_si256(v, low)));
    _mm256_store_si256((__m256i *)(out + 64),
                       _mm256_shuffle_epi8(lut, _mm256_and_si256(_mm256_srli_epi16(v, 4), low)));
}

static void fill_tile(struct tile *t, const struct wmat *w, const struct codes *c, size_t panel,
                      size_t g0, size_t groups)
{
    size_t bytes = wformat_row_bytes(w->format, GROUP) * PANEL;
    const uint8_t *p = w->codes + panel * w->code_ld + g0 * bytes;
    const uint8_t *scale = w->scales + panel * w->scale_ld;
    if (w->format == W_Q8) {
        memcpy(t->code, p, groups * bytes);
    } else {
        const __m256i lut = table_of(c);
        for (size_t o = 0; o < groups * OCTETS; o++, p += 64)
            for (int h = 0; h < 2; h++)
                split_word(t->code + o * 128 + 32 * (size_t)h,
                           _mm256_load_si256((const __m256i *)(p + 32 * h)), lut);
    }
    size_t step = w->format == W_E2M1 ? PANEL : 2 * PANEL;
    for (size_t g = 0; g < groups; g++)
        for (int h = 0; h < 2; h++)
            _mm256_store_ps(t->scale[g] + 8 * h, unit_of(w->format, scale + (g0 + g) * step, h,
                                                         w->format == W_E2M1 ? 2 : 1));
}

/* One group of the tile times m rows: exact sums in s. */
INLINE_AVX2 void tile_group_small(__m256i s[][2], const int8_t *t, const struct rows8 *r, int m,
                                  size_t g)
{
    const __m256i one = _mm256_set1_epi16(1);
    for (int half = 0; half < 2; half++) { /* four words: sums fit into 16 bits */
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
                    half == 0 ? _mm256_set1_epi32(r->codes->least * r->sum[i][g]) : s[i][h], wide);
            }
    }
}

INLINE_AVX2 void tile_group_int8(__m256i s[][2], const int8_t *t, const struct rows8 *r, int m,
                                 size_t g)
{
    for (int i = 0; i < m; i++)
        s[i][0] = s[i][1] = _mm256_setzero_si256();
    for (int u = 0; u < 8; u++, t += 64) {
        __m256i w0 = _mm256_load_si256((const __m256i *)t);
        __m256i w1 = _mm256_load_si256((const __m256i *)(t + 32));
        for (int i = 0; i < m; i++) {
            __m256i x = word_of(r->code[i] + g * GROUP + (size_t)u * 4);
            s[i][0] = _mm256_add_epi32(s[i][0], signed_product(w0, x));
            s[i][1] = _mm256_add_epi32(s[i][1], signed_product(w1, x));
        }
    }
}

INLINE_AVX2 void tile_rows(const struct tile *t, const struct rows8 *r, int m, size_t groups,
                           bool first, size_t valid, bool small)
{
    __m256 y[ROWS][2];
    for (int i = 0; i < m; i++) {
        y[i][0] = y[i][1] = _mm256_setzero_ps();
        if (!first)
            load_rows_avx2(&y[i][0], &y[i][1], r->y[i], valid);
    }
    for (size_t g = 0; g < groups; g++) {
        __m256i s[ROWS][2];
        if (small)
            tile_group_small(s, t->code + g * TILE_GROUP, r, m, g);
        else
            tile_group_int8(s, t->code + g * TILE_GROUP, r, m, g);
        for (int i = 0; i < m; i++) {
            __m256 x = _mm256_set1_ps(r->codes->x * r->scale[i][g]);
            for (int h = 0; h < 2; h++)
                y[i][h] = add_group(y[i][h], s[i][h],
                                    _mm256_mul_ps(_mm256_load_ps(t->scale[g] + 8 * h), x));
        }
    }
    for (int i = 0; i < m; i++)
        store_rows_avx2(r->y[i], y[i][0], y[i][1], valid);
}

#define TILE_OF(m)                                                                               \
    static void tile_##m(const struct tile *t, const struct rows8 *r, size_t groups, bool first, \
                         size_t valid)                                                           \
    {                                                                                            \
        if (r->codes->small)                                                                     \
            tile_rows(t, r, m, groups, first, valid, true);                                      \
        else                                                                                     \
            tile_rows(t, r, m, groups, first, valid, false);                                     \
    }
TILE_OF(1)
TILE_OF(2)
TILE_OF(3)

static void many_rows(float *y, size_t ldy, const struct qrows *x, const uint32_t *pick, size_t m,
                      const struct wmat *w, const struct codes *c, size_t r0, size_t r1)
{
    static void (*const by_rows[ROWS])(const struct tile *, const struct rows8 *, size_t, bool,
                                       size_t) = {tile_1, tile_2, tile_3};
    size_t groups = w->cols / GROUP;
    struct tile t;
    for (size_t r = r0; r < r1; r += PANEL)
        for (size_t g = 0; g < groups; g += TILE_GROUPS) {
            size_t n = groups - g < TILE_GROUPS ? groups - g : TILE_GROUPS;
            fill_tile(&t, w, c, r / PANEL, g, n);
            for (size_t i = 0; i < m; i += ROWS) {
                struct rows8 rows = {.codes = c};
                size_t k = m - i < ROWS ? m - i : ROWS;
                take_rows(&rows, x, pick, i, k, y + r, ldy, g);
                by_rows[k - 1](&t, &rows, n, g == 0, r1 - r < PANEL ? r1 - r : PANEL);
            }
        }
}

void matmul_fast_avx2(float *y, size_t ldy, const struct qrows *x, const uint32_t *pick, size_t m,
                      const struct wmat *w, size_t r0, size_t r1)
{
    if (m == 0)
        return;
    if (x->kind == Q_16) {
        matmul_q16_avx2(y, ldy, x, pick, m, w, r0, r1);
        return;
    }
    struct codes c = codes_of(w);
    (m <= FEW ? few_rows : many_rows)(y, ldy, x, pick, m, w, &c, r0, r1);
}
