/* Exact products of panels with many rows: a slice of a panel becomes floats in L1 once, and all rows use it.
 * BF16 goes without: one instruction makes floats of it where they are used, which six rows hide.
 *
 * The order of additions is that of exact.c, so that a row's bits do not depend on its company. There every
 * output is two chains of additions; a chain takes every second column, in an order by format. Here the
 * chains run one after the other, which leaves enough registers for six rows of x. */
#include "avx2.h"
#include "simd/codes.h"
#include "units.h"

enum {
    ROWS = 6,        /* of x at once: 12 registers of sums */
    CHUNK = 48,      /* rows of x that use a tile before the next one replaces it */
    TILE_GROUPS = 8, /* 16 KB */
    CHAIN = GROUP / 2,
    HALF = PANEL / 2,       /* rows of a register */
    BF16_PAIRS = 4 * PANEL, /* bytes: two columns of a panel */
};

/* What is multiplied with scales: each chain of a group; both together; both of a block of E4M3; nothing. */
enum close { EACH, BOTH, BLOCK, NEVER };

struct tile {
    _Alignas(64) float w[TILE_GROUPS][2][CHAIN][PANEL];
    _Alignas(64) float scale[TILE_GROUPS][PANEL];
};

/* Running sums of one row of x with the 16 rows of a panel. */
struct sums {
    _Alignas(32) float chain[2][PANEL], total[2][PANEL];
};

/* Groups g .. g + n of a panel, what a tile holds. */
struct piece {
    size_t panel, g, n;
    const uint8_t *codes;
};

/* Groups g .. g + n of a tile, under one scale or, BF16, none. */
struct stretch {
    const struct tile *t;
    const uint8_t *codes; /* BF16: of the tile's first group, instead of a tile */
    size_t g, n;
    bool shut; /* the scale's last groups */
};

/* ------------------------------------------------------------------ products */

/* Columns of an octet, by chain. */
struct order {
    uint8_t col[2][4];
};
#define ORDER_EVEN_ODD ((struct order){{{0, 2, 4, 6}, {1, 3, 5, 7}}}) /* E4M3, BF16 */
#define ORDER_Q8       ((struct order){{{0, 4, 1, 5}, {2, 6, 3, 7}}})
#define ORDER_SMALL    ((struct order){{{0, 2, 1, 3}, {4, 6, 5, 7}}})

/* The scaled sums of a chain that lasted one group; of BOTH the second chain takes the first along. */
INLINE_AVX2 void add_chain(struct sums *s, __m256 acc, const float *scale, int c, int h,
                           enum close close)
{
    const int at = HALF * h;
    if (close == BOTH && c == 0) {
        _mm256_store_ps(s->chain[0] + at, acc);
        return;
    }
    if (close == BOTH)
        acc = _mm256_add_ps(_mm256_load_ps(s->chain[0] + at), acc);
    float *total = s->total[close == EACH ? c : 0] + at;
    _mm256_store_ps(total, _mm256_fmadd_ps(acc, _mm256_load_ps(scale + at), _mm256_load_ps(total)));
}

/* The next weights of chain c: of a tile, or BF16's codes. */
INLINE_AVX2 void weights(__m256 w[2], const float *tile, const uint8_t *codes, int c,
                         enum close close)
{
    for (int h = 0; h < 2; h++) {
        __m256 both[2];
        if (close != NEVER) {
            w[h] = _mm256_load_ps(tile + HALF * h);
            continue;
        }
        bf16_columns(both, _mm256_load_si256((const __m256i *)(codes + BF16_PAIRS / 2 * h)));
        w[h] = both[c];
    }
}

/* Chain c of the stretch: a register of x, two of weights, the rest sums. */
INLINE_AVX2 void run_chain(struct sums *s, const float *const x[], int m, const struct stretch *k,
                           int c, struct order o, enum close close)
{
    const bool fresh = close == EACH || close == BOTH;
    __m256 acc[ROWS][2];
    UNROLL_AVX2(6)
    for (int i = 0; i < m; i++)
        for (int h = 0; h < 2; h++)
            acc[i][h] = fresh ? _mm256_setzero_ps() : _mm256_load_ps(s[i].chain[c] + HALF * h);
    for (size_t g = k->g; g < k->g + (fresh ? 1 : k->n); g++) {
        const float *tile = k->t->w[g][c][0];
        const uint8_t *codes = k->codes + g * CHAIN * BF16_PAIRS;
        for (size_t b = g * GROUP; b < (g + 1) * GROUP; b += 8) {
            UNROLL_AVX2(4)
            for (int j = 0; j < 4; j++, tile += PANEL, codes += BF16_PAIRS) {
                __m256 w[2];
                weights(w, tile, codes, c, close);
                UNROLL_AVX2(6)
                for (int i = 0; i < m; i++) {
                    __m256 v = _mm256_broadcast_ss(x[i] + b + o.col[c][j]);
                    acc[i][0] = _mm256_fmadd_ps(v, w[0], acc[i][0]);
                    acc[i][1] = _mm256_fmadd_ps(v, w[1], acc[i][1]);
                    HERE_AVX2(acc[i][0]);
                    HERE_AVX2(acc[i][1]);
                }
            }
        }
    }
    UNROLL_AVX2(6)
    for (int i = 0; i < m; i++)
        for (int h = 0; h < 2; h++)
            if (fresh)
                add_chain(&s[i], acc[i][h], k->t->scale[k->g], c, h, close);
            else
                _mm256_store_ps(s[i].chain[c] + HALF * h, acc[i][h]);
}

/* The chains of a block of E4M3 become part of the total and begin again. */
INLINE_AVX2 void shut_block(struct sums *s, const float *scale)
{
    for (int at = 0; at < PANEL; at += HALF) {
        __m256 sum =
            _mm256_add_ps(_mm256_load_ps(s->chain[0] + at), _mm256_load_ps(s->chain[1] + at));
        sum = _mm256_mul_ps(sum, _mm256_set1_ps(E4M3_BACK));
        _mm256_store_ps(s->total[0] + at, _mm256_fmadd_ps(sum, _mm256_load_ps(scale + at),
                                                          _mm256_load_ps(s->total[0] + at)));
        _mm256_store_ps(s->chain[0] + at, _mm256_setzero_ps());
        _mm256_store_ps(s->chain[1] + at, _mm256_setzero_ps());
    }
}

INLINE_AVX2 void run_stretch(struct sums *s, const float *const x[], int m, const struct stretch *k,
                             struct order o, enum close close)
{
    run_chain(s, x, m, k, 0, o, close);
    run_chain(s, x, m, k, 1, o, close);
    if (close == BLOCK && k->shut)
        for (int i = 0; i < m; i++)
            shut_block(&s[i], k->t->scale[k->g]);
}

typedef void rows_kernel(struct sums *s, const float *const x[], const struct stretch *k);

#define ROWS_KERNEL(name, m, order, close)                                                  \
    static void name##_##m(struct sums *s, const float *const x[], const struct stretch *k) \
    {                                                                                       \
        run_stretch(s, x, m, k, order, close);                                              \
    }
#define ROWS_KERNELS(name, order, close)                                  \
    ROWS_KERNEL(name, 1, order, close)                                    \
    ROWS_KERNEL(name, 2, order, close)                                    \
    ROWS_KERNEL(name, 3, order, close)                                    \
    ROWS_KERNEL(name, 4, order, close)                                    \
    ROWS_KERNEL(name, 5, order, close)                                    \
    ROWS_KERNEL(name, 6, order, close)                                    \
    static rows_kernel *const name[ROWS] = {name##_1, name##_2, name##_3, \
                                            name##_4, name##_5, name##_6};

ROWS_KERNELS(rows_bf16, ORDER_EVEN_ODD, NEVER)
ROWS_KERNELS(rows_e4m3, ORDER_EVEN_ODD, BLOCK)
ROWS_KERNELS(rows_q8, ORDER_Q8, BOTH)
ROWS_KERNELS(rows_small, ORDER_SMALL, EACH)

/* ------------------------------------------------------------------ tiles */

INLINE_AVX2 void put(float w[CHAIN][PANEL], int i, int h, __m256 v)
{
    _mm256_store_ps(w[i] + HALF * h, v);
}

static void fill_e4m3(struct tile *t, const uint8_t *p, size_t groups)
{
    const __m256 up = _mm256_set1_ps(E4M3_UP);
    for (size_t g = 0; g < groups; g++)
        for (int u = 0; u < CHAIN; u += 2)
            for (int h = 0; h < 2; h++, p += 32) {
                __m256 w[4];
                e4m3_columns(w, _mm256_load_si256((const __m256i *)p));
                for (int c = 0; c < 4; c++)
                    put(t->w[g][c & 1], u + c / 2, h, _mm256_mul_ps(w[c], up));
            }
}

static void fill_q8(struct tile *t, const uint8_t *p, size_t groups)
{
    for (size_t g = 0; g < groups; g++)
        for (int i = 0; i < CHAIN; i += 2) /* a unit: elements of the chains in turns */
            for (int h = 0; h < 2; h++, p += 32) {
                __m256i v = _mm256_load_si256((const __m256i *)p);
                for (int b = 0; b < 4; b++)
                    put(t->w[g][b & 1], i + b / 2, h, int8_float(v, b));
            }
}

INLINE_AVX2 void fill_small(struct tile *t, const uint8_t *p, const struct tables *table,
                            size_t groups, enum wformat f)
{
    const __m256i even = table_avx2(table->of[0]), odd = table_avx2(table->of[1]);
    for (size_t g = 0; g < groups; g++, p += wformat_group_bytes(f))
        for (int h = 0; h < 2; h++) {
            __m256i code[4];
            open_group(code, p + 32 * h, f);
            UNROLL_AVX2(4)
            for (int o = 0; o < OCTETS; o++) {
                __m256i v[2];
                octet_indices(v, code, o, f);
                v[0] = _mm256_shuffle_epi8(even, v[0]);
                v[1] = _mm256_shuffle_epi8(odd, v[1]);
                for (int k = 0; k < 2; k++)
                    for (int b = 0; b < 4; b++) /* of a unit the first two elements are chain 0 */
                        put(t->w[g][b / 2], 4 * o + 2 * k + b % 2, h, int8_float(v[k], b));
            }
        }
}

static void fill_scales(struct tile *t, const struct wmat *w, size_t panel, size_t g0,
                        size_t groups)
{
    const uint8_t *scale = w->scales + panel * w->scale_ld;
    for (size_t g = 0; g < groups; g++)
        for (int h = 0; h < 2; h++) {
            __m256 s;
            if (w->format == W_E4M3)
                s = _mm256_set1_ps(e8m0_value(scale[(g0 + g) * GROUP / w->block_cols]));
            else if (w->format == W_E2M1) /* codes are doubled */
                s = _mm256_mul_ps(e8m0_avx2(_mm_loadl_epi64(
                                      (const __m128i *)(scale + (g0 + g) * PANEL + HALF * h))),
                                  _mm256_set1_ps(0.5f));
            else
                s = _mm256_cvtph_ps(
                    _mm_load_si128((const __m128i *)(scale + (g0 + g) * 2 * PANEL + PANEL * h)));
            _mm256_store_ps(t->scale[g] + HALF * h, s);
        }
}

static void fill_tile(struct tile *t, const struct wmat *w, const struct tables *table,
                      const struct piece *k)
{
    switch (w->format) {
    case W_BF16: return;
    case W_E4M3: fill_e4m3(t, k->codes, k->n); break;
    case W_Q8: fill_q8(t, k->codes, k->n); break;
    case W_Q3: fill_small(t, k->codes, table, k->n, W_Q3); break;
    case W_Q2: fill_small(t, k->codes, table, k->n, W_Q2); break;
    default: fill_small(t, k->codes, table, k->n, W_Q4); break;
    }
    fill_scales(t, w, k->panel, k->g, k->n);
}

/* ------------------------------------------------------------------ a panel */

/* Groups of a stretch, unless the tile ends before: those of one scale. */
static size_t stretch_groups(const struct wmat *w)
{
    switch (w->format) {
    case W_BF16: return 2; /* so that run_tile asks for little at once */
    case W_E4M3: return w->block_cols / GROUP;
    default: return 1;
    }
}

static rows_kernel *const *kernels_of(enum wformat f)
{
    switch (f) {
    case W_BF16: return rows_bf16;
    case W_E4M3: return rows_e4m3;
    case W_Q8: return rows_q8;
    default: return rows_small;
    }
}

/* All rows with one tile, stretch by stretch; six rows with the whole tile before the next six, since columns of
 * many rows fall into the same lines of the cache. x: columns of the tile. ask: brings the codes behind those of
 * this tile nearer. */
static void run_tile(struct sums *sums, const float *const x[], size_t m, const struct wmat *w,
                     const struct tile *t, const struct piece *p, bool ask)
{
    rows_kernel *const *kernel = kernels_of(w->format);
    const size_t per = stretch_groups(w), last = p->g + p->n;
    struct stretch k[TILE_GROUPS];
    size_t n = 0;
    for (size_t g = p->g; g < last; n++) {
        size_t next = g - g % per + per;
        bool shut = next <= last || last == w->cols / GROUP;
        next = next < last ? next : last;
        k[n] = (struct stretch){t, p->codes, g - p->g, next - g, shut};
        g = next;
    }
    const size_t bytes = p->n * wformat_group_bytes(w->format);
    const size_t calls = (m + ROWS - 1) / ROWS * n;
    const size_t share = ask ? (bytes / calls + 63) / 64 * 64 : 0;
    const uint8_t *ahead = p->codes + bytes;
    for (size_t i = 0; i < m; i += ROWS)
        for (size_t j = 0; j < n; j++) {
            for (size_t a = 0; a < share; a += 64, ahead += 64)
                _mm_prefetch((const char *)ahead, _MM_HINT_T1);
            kernel[(m - i < ROWS ? m - i : ROWS) - 1](sums + i, x + i, &k[j]);
        }
}

/* The chains without scales, or their totals: both together, or each for itself. */
static void store_sums(float *y, const struct sums *s, enum wformat f, size_t valid)
{
    const float *a = f == W_BF16 ? s->chain[0] : s->total[0];
    const float *b = f == W_BF16 ? s->chain[1] : s->total[1];
    __m256 lo = _mm256_load_ps(a), hi = _mm256_load_ps(a + HALF);
    if (f != W_E4M3 && f != W_Q8) {
        lo = _mm256_add_ps(lo, _mm256_load_ps(b));
        hi = _mm256_add_ps(hi, _mm256_load_ps(b + HALF));
    }
    store_rows_avx2(y, lo, hi, valid);
}

void matmul_many_avx2(float *y, size_t ldy, const float *x, size_t ldx, const uint32_t *pick,
                      size_t m, const struct wmat *w, size_t r0, size_t r1)
{
    struct tile t;
    struct sums sums[CHUNK];
    const float *row[CHUNK];
    const int8_t *value = w->format == W_E2M1 ? e2m1_doubled : w->table;
    const struct tables table = w->format == W_E2M1 || wformat_table(w->format)
                                    ? tables_of(value, w->format, 0)
                                    : (struct tables){0};
    size_t groups = w->cols / GROUP;
    for (size_t r = r0; r < r1; r += PANEL)
        for (size_t i = 0; i < m; i += CHUNK) {
            size_t n = m - i < CHUNK ? m - i : CHUNK;
            for (size_t k = 0; k < n; k++)
                sums[k] = (struct sums){0};
            for (size_t g = 0; g < groups; g += TILE_GROUPS) {
                struct piece p = {.panel = r / PANEL, .g = g};
                p.n = groups - g < TILE_GROUPS ? groups - g : TILE_GROUPS;
                p.codes = w->codes + p.panel * w->code_ld + g * wformat_group_bytes(w->format);
                fill_tile(&t, w, &table, &p);
                for (size_t k = 0; k < n; k++)
                    row[k] = x + (pick ? pick[i + k] : i + k) * ldx + g * GROUP;
                run_tile(sums, row, n, w, &t, &p, i == 0);
            }
            for (size_t k = 0; k < n; k++)
                store_sums(y + (i + k) * ldy + r, &sums[k], w->format,
                           r1 - r < PANEL ? r1 - r : PANEL);
        }
}
