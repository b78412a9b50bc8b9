/* Exact products of panels: weights become floats in registers, activations are floats.
 *
 * A panel's word is 4 bytes of each of 16 rows: two registers of 8 rows. Where a format can be widened
 * word by word (E4M3, BF16, Q8) lanes are rows, and columns alternate between two sums. Codes of 2 to 4
 * bits go through bf16, whose two bytes come from two table look-ups; there lanes are (row, half of an
 * octet). */
#include "avx2.h"
#include "simd/codes.h"
#include "units.h"

#include <string.h>

enum { MAX_ROWS = 3 }; /* more go through tiles (exact_many.c) */

/* The bytes of bf16(value), by code: of e2m1, or of a table of int8, which bf16 holds exactly. */
struct bf16_tables {
    struct tables low, high;
};

/* What the panel kernels get: rows of x, panel p, where its 16 outputs go. */
struct job {
    const float *x[MAX_ROWS];
    float *y[MAX_ROWS];
    const struct wmat *w;
    const struct bf16_tables *table;
    size_t panel, rows; /* rows: valid ones of the panel, or of two */
};

/* ------------------------------------------------------------------ E4M3 */

/* One row comes scaled (scaled_row), more are scaled where they are used. */
INLINE_AVX2 __m256 e4m3_x(const struct job *j, int m, int i, size_t c)
{
    __m256 x = _mm256_broadcast_ss(j->x[i] + c);
    return m == 1 ? x : _mm256_mul_ps(x, _mm256_set1_ps(E4M3_UP));
}

INLINE_AVX2 void e4m3_word(__m256 acc[][2][2], int m, const struct job *j, size_t c, int half,
                           const uint8_t *p)
{
    __m256 w[4];
    e4m3_columns(w, _mm256_load_si256((const __m256i *)p));
    for (size_t k = 0; k < 4; k++)
        for (int i = 0; i < m; i++) {
            acc[i][k & 1][half] =
                _mm256_fmadd_ps(e4m3_x(j, m, i, c + k), w[k], acc[i][k & 1][half]);
            HERE_AVX2(acc[i][k & 1][half]);
        }
}

/* What a block's sums add to the outputs. */
INLINE_AVX2 void e4m3_total(__m256 total[2], __m256 acc[2][2], uint8_t scale)
{
    __m256 back = _mm256_set1_ps(E4M3_BACK), s = _mm256_set1_ps(e8m0_value(scale));
    for (int h = 0; h < 2; h++) {
        __m256 sum = _mm256_mul_ps(_mm256_add_ps(acc[0][h], acc[1][h]), back);
        total[h] = _mm256_fmadd_ps(sum, s, total[h]);
    }
}

INLINE_AVX2 void e4m3_block(__m256 acc[][2][2], int m, const struct job *j, const uint8_t *p,
                            size_t c, size_t end)
{
    for (; c < end; c += 4, p += 64) {
        e4m3_word(acc, m, j, c, 0, p);
        e4m3_word(acc, m, j, c, 1, p + 32);
        prefetch_avx2(p);
    }
}

INLINE_AVX2 void panel_e4m3(const struct job *j, int m)
{
    const struct wmat *w = j->w;
    const uint8_t *p = w->codes + j->panel * w->code_ld;
    const uint8_t *scale = w->scales + j->panel * w->scale_ld;
    __m256 total[MAX_ROWS][2];
    for (int i = 0; i < m; i++)
        total[i][0] = total[i][1] = _mm256_setzero_ps();
    for (size_t c = 0; c < w->cols; c += w->block_cols, scale++) {
        __m256 acc[MAX_ROWS][2][2];
        for (int i = 0; i < m; i++)
            acc[i][0][0] = acc[i][0][1] = acc[i][1][0] = acc[i][1][1] = _mm256_setzero_ps();
        size_t end = w->block_cols < w->cols - c ? c + w->block_cols : w->cols;
        e4m3_block(acc, m, j, p + c * PANEL, c, end);
        for (int i = 0; i < m; i++)
            e4m3_total(total[i], acc[i], *scale);
    }
    for (int i = 0; i < m; i++)
        store_rows_avx2(j->y[i], total[i][0], total[i][1], j->rows);
}

/* Two panels with one row: four sums of one alone would wait for each other, and x is loaded half as often. */
static void pair_e4m3(const struct job *j)
{
    const struct wmat *w = j->w;
    const uint8_t *p = w->codes + j->panel * w->code_ld;
    const uint8_t *scale = w->scales + j->panel * w->scale_ld;
    __m256 total[2][2];
    total[0][0] = total[0][1] = total[1][0] = total[1][1] = _mm256_setzero_ps();
    for (size_t c = 0; c < w->cols; scale++) {
        __m256 acc[2][2][2];
        for (int k = 0; k < 8; k++)
            acc[k & 1][k >> 1 & 1][k >> 2] = _mm256_setzero_ps();
        size_t end = w->block_cols < w->cols - c ? c + w->block_cols : w->cols;
        for (; c < end; c += 4, p += 64)
            for (int k = 0; k < 2; k++) {
                const uint8_t *q = p + (size_t)k * w->code_ld;
                e4m3_word(&acc[k], 1, j, c, 0, q);
                e4m3_word(&acc[k], 1, j, c, 1, q + 32);
                prefetch_avx2(q);
            }
        for (int k = 0; k < 2; k++)
            e4m3_total(total[k], acc[k], scale[(size_t)k * w->scale_ld]);
    }
    store_rows_avx2(j->y[0], total[0][0], total[0][1], PANEL);
    store_rows_avx2(j->y[0] + PANEL, total[1][0], total[1][1], j->rows - PANEL);
}

/* ------------------------------------------------------------------ BF16 */

INLINE_AVX2 void panel_bf16(const struct job *j, int m)
{
    const struct wmat *w = j->w;
    const uint8_t *p = w->codes + j->panel * w->code_ld;
    __m256 acc[MAX_ROWS][2][2];
    for (int i = 0; i < m; i++)
        acc[i][0][0] = acc[i][0][1] = acc[i][1][0] = acc[i][1][1] = _mm256_setzero_ps();
    for (size_t c = 0; c < w->cols; c += 2, p += 64) {
        __m256 lo[2], hi[2];
        bf16_columns(lo, _mm256_load_si256((const __m256i *)p));
        bf16_columns(hi, _mm256_load_si256((const __m256i *)(p + 32)));
        for (int i = 0; i < m; i++) {
            __m256 even = _mm256_broadcast_ss(j->x[i] + c);
            __m256 odd = _mm256_broadcast_ss(j->x[i] + c + 1);
            acc[i][0][0] = _mm256_fmadd_ps(even, lo[0], acc[i][0][0]);
            acc[i][0][1] = _mm256_fmadd_ps(even, hi[0], acc[i][0][1]);
            acc[i][1][0] = _mm256_fmadd_ps(odd, lo[1], acc[i][1][0]);
            acc[i][1][1] = _mm256_fmadd_ps(odd, hi[1], acc[i][1][1]);
        }
        prefetch_avx2(p);
    }
    for (int i = 0; i < m; i++)
        store_rows_avx2(j->y[i], _mm256_add_ps(acc[i][0][0], acc[i][1][0]),
                        _mm256_add_ps(acc[i][0][1], acc[i][1][1]), j->rows);
}

/* ------------------------------------------------------------------ Q8 */

/* int8 codes of 4 columns k0 .. k3 of 8 rows: byte b of each word is a column. */
INLINE_AVX2 void int8_word(__m256 acc[][2][2], int m, const struct job *j, int half, __m256i v,
                           const size_t col[4])
{
    for (int k = 0; k < 4; k++) {
        __m256 f = int8_float(v, k);
        for (int i = 0; i < m; i++)
            acc[i][k & 1][half] =
                _mm256_fmadd_ps(_mm256_broadcast_ss(j->x[i] + col[k]), f, acc[i][k & 1][half]);
    }
}

/* One octet of columns of 8 rows: the codes of columns 0,2,4,6 and 1,3,5,7. */
INLINE_AVX2 void int8_octet(__m256 acc[][2][2], int m, const struct job *j, int half, size_t c,
                            __m256i even, __m256i odd)
{
    const size_t e[4] = {c, c + 2, c + 4, c + 6}, o[4] = {c + 1, c + 3, c + 5, c + 7};
    int8_word(acc, m, j, half, even, e);
    int8_word(acc, m, j, half, odd, o);
}

INLINE_AVX2 void scaled_group(__m256 total[][2], __m256 acc[][2][2], int m, const uint8_t *scale)
{
    for (int h = 0; h < 2; h++) {
        __m256 s = _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(scale + 16 * h)));
        for (int i = 0; i < m; i++)
            total[i][h] =
                _mm256_fmadd_ps(_mm256_add_ps(acc[i][0][h], acc[i][1][h]), s, total[i][h]);
    }
}

INLINE_AVX2 void panel_q8(const struct job *j, int m)
{
    const struct wmat *w = j->w;
    const uint8_t *p = w->codes + j->panel * w->code_ld;
    const uint8_t *scale = w->scales + j->panel * w->scale_ld;
    __m256 total[MAX_ROWS][2];
    for (int i = 0; i < m; i++)
        total[i][0] = total[i][1] = _mm256_setzero_ps();
    for (size_t c = 0; c < w->cols; c += GROUP, scale += 32) {
        __m256 acc[MAX_ROWS][2][2];
        for (int i = 0; i < m; i++)
            acc[i][0][0] = acc[i][0][1] = acc[i][1][0] = acc[i][1][1] = _mm256_setzero_ps();
        for (size_t o = c; o < c + GROUP; o += 8, p += 128) {
            for (int h = 0; h < 2; h++)
                int8_octet(acc, m, j, h, o, _mm256_load_si256((const __m256i *)(p + 32 * h)),
                           _mm256_load_si256((const __m256i *)(p + 64 + 32 * h)));
            prefetch_avx2(p);
        }
        scaled_group(total, acc, m, scale);
    }
    for (int i = 0; i < m; i++)
        store_rows_avx2(j->y[i], total[i][0], total[i][1], j->rows);
}

/* ------------------------------------------------------------------ E2M1, Q4, Q3, Q2 */

static struct bf16_tables bf16_tables_of(const struct wmat *w)
{
    int8_t low[16] = {0}, high[16] = {0};
    bool e2m1 = w->format == W_E2M1;
    for (size_t i = 0; i < (e2m1 ? 16 : wformat_table(w->format)); i++) {
        uint32_t bits = bits_of_float(e2m1 ? e2m1_value[i] : (float)w->table[i]);
        low[i] = (int8_t)(bits >> 16);
        high[i] = (int8_t)(bits >> 24);
    }
    return (struct bf16_tables){tables_of(low, w->format, 0), tables_of(high, w->format, 0)};
}

/* An octet of x in the order in which the weights come: pairs (0,4) (2,6) (1,5) (3,7), each in all lanes. */
INLINE_AVX2 void octet_pairs(__m256 pair[4], const float *x)
{
    __m256 a = _mm256_broadcast_ps((const __m128 *)x);
    __m256 b = _mm256_broadcast_ps((const __m128 *)(x + 4));
    __m256d lo = _mm256_castps_pd(_mm256_unpacklo_ps(a, b)); /* 0 4 1 5 */
    __m256d hi = _mm256_castps_pd(_mm256_unpackhi_ps(a, b)); /* 2 6 3 7 */
    pair[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(lo, lo));
    pair[1] = _mm256_castpd_ps(_mm256_unpacklo_pd(hi, hi));
    pair[2] = _mm256_castpd_ps(_mm256_unpackhi_pd(lo, lo));
    pair[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(hi, hi));
}

/* 8 rows, 4 columns (an index a byte) times the pairs of them: sums of rows 0,1,4,5 and of 2,3,6,7.
 * odd: which of the octet's two units. */
INLINE_AVX2 void small_unit(__m256 acc[][4], int m, int half, const struct job *j, __m256i index,
                            int odd, __m256 pair[][4], enum wformat f)
{
    const int at = 2 * odd, table = f == W_Q2 ? odd : 0;
    __m256i h = _mm256_shuffle_epi8(table_avx2(j->table->high.of[table]), index);
    __m256i l = _mm256_shuffle_epi8(table_avx2(j->table->low.of[table]), index);
    __m256 a[2], b[2];
    bf16_columns(a, _mm256_unpacklo_epi8(l, h));
    bf16_columns(b, _mm256_unpackhi_epi8(l, h));
    for (int i = 0; i < m; i++) {
        acc[i][half] = _mm256_fmadd_ps(pair[i][at], a[0], acc[i][half]);
        acc[i][half + 1] = _mm256_fmadd_ps(pair[i][at], b[0], acc[i][half + 1]);
        acc[i][half] = _mm256_fmadd_ps(pair[i][at + 1], a[1], acc[i][half]);
        acc[i][half + 1] = _mm256_fmadd_ps(pair[i][at + 1], b[1], acc[i][half + 1]);
    }
}

/* The scales of rows 0,0,1,1,4,4,5,5 (k even) or 2,2,3,3,6,6,7,7 of half k / 2. */
INLINE_AVX2 __m256 small_scale(const uint8_t *scale, int k, enum wformat f)
{
    if (f == W_E2M1) {
        const __m128i first = _mm_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0);
        __m128i place = _mm_add_epi8(first, _mm_set1_epi8((char)(k % 2 * 2 + k / 2 * 8)));
        return e8m0_avx2(_mm_shuffle_epi8(_mm_load_si128((const __m128i *)scale), place));
    }
    const __m128i first = _mm_setr_epi8(0, 1, 0, 1, 2, 3, 2, 3, 8, 9, 8, 9, 10, 11, 10, 11);
    __m128i place = _mm_add_epi8(first, _mm_set1_epi8((char)(k % 2 * 4)));
    __m128i halves = _mm_load_si128((const __m128i *)(scale + k / 2 * 16));
    return _mm256_cvtph_ps(_mm_shuffle_epi8(halves, place));
}

/* Sums of the pairs of lanes of a (rows 0,1,4,5) and b (rows 2,3,6,7), rows in order. */
INLINE_AVX2 __m256 small_rows(__m256 a, __m256 b)
{
    return _mm256_hadd_ps(a, b); /* in each half: rows 0 1 2 3, 4 5 6 7 */
}

INLINE_AVX2 void panel_small(const struct job *j, int m, enum wformat f)
{
    const struct wmat *w = j->w;
    const uint8_t *p = w->codes + j->panel * w->code_ld;
    const uint8_t *scale = w->scales + j->panel * w->scale_ld;
    __m256 total[MAX_ROWS][4];
    for (int i = 0; i < m; i++)
        for (int k = 0; k < 4; k++)
            total[i][k] = _mm256_setzero_ps();
    for (size_t c = 0; c < w->cols; c += GROUP, p += wformat_group_bytes(f)) {
        __m256 acc[MAX_ROWS][4], pair[MAX_ROWS][4];
        __m256i code[2][4];
        for (int i = 0; i < m; i++)
            for (int k = 0; k < 4; k++)
                acc[i][k] = _mm256_setzero_ps();
        for (int h = 0; h < 2; h++)
            open_group(code[h], p + 32 * h, f);
        UNROLL_AVX2(4)
        for (int o = 0; o < OCTETS; o++) {
            for (int i = 0; i < m; i++)
                octet_pairs(pair[i], j->x[i] + c + 8 * o);
            for (int h = 0; h < 2; h++) {
                __m256i index[2];
                octet_indices(index, code[h], o, f);
                small_unit(acc, m, 2 * h, j, index[0], 0, pair, f);
                small_unit(acc, m, 2 * h, j, index[1], 1, pair, f);
            }
        }
        for (size_t b = 0; b < wformat_group_bytes(f); b += 64)
            prefetch_avx2(p + b);
        for (int k = 0; k < 4; k++)
            for (int i = 0; i < m; i++)
                total[i][k] = _mm256_fmadd_ps(acc[i][k], small_scale(scale, k, f), total[i][k]);
        scale += f == W_E2M1 ? PANEL : 2 * PANEL;
    }
    for (int i = 0; i < m; i++)
        store_rows_avx2(j->y[i], small_rows(total[i][0], total[i][1]),
                        small_rows(total[i][2], total[i][3]), j->rows);
}

/* ------------------------------------------------------------------ up to three rows */

/* The row in the form that panel_1 wants: x itself, or scaled in tmp. */
static const float *scaled_row(const float *x, const struct wmat *w, float *tmp)
{
    if (w->format != W_E4M3)
        return x;
    for (size_t c = 0; c < w->cols; c++)
        tmp[c] = x[c] * E4M3_UP;
    return tmp;
}

/* ORDER FORMATS */
#define PANEL_OF(m)                                    \
    static void panel_##m(const struct job *j)         \
    {                                                  \
        switch (j->w->format) {                        \
        case W_BF16: panel_bf16(j, m); break;          \
        case W_E4M3: panel_e4m3(j, m); break;          \
        case W_E2M1: panel_small(j, m, W_E2M1); break; \
        case W_Q8: panel_q8(j, m); break;              \
        case W_Q4: panel_small(j, m, W_Q4); break;     \
        case W_Q3: panel_small(j, m, W_Q3); break;     \
        case W_Q2: panel_small(j, m, W_Q2); break;     \
        default: break;                                \
        }                                              \
    }
PANEL_OF(1)
PANEL_OF(2)
PANEL_OF(3)

void matmul_avx2(float *y, size_t ldy, const float *x, size_t ldx, const uint32_t *pick, size_t m,
                 const struct wmat *w, size_t r0, size_t r1, float *tmp)
{
    static void (*const by_rows[MAX_ROWS])(const struct job *) = {panel_1, panel_2, panel_3};
    if (!w->panels) {
        matmul_plain_avx2(y, ldy, x, ldx, pick, m, w, r0, r1, tmp);
        return;
    }
    if (m > MAX_ROWS) {
        matmul_many_avx2(y, ldy, x, ldx, pick, m, w, r0, r1);
        return;
    }
    if (m == 0)
        return;
    const struct bf16_tables table = bf16_tables_of(w);
    struct job j = {.w = w, .table = &table};
    for (size_t i = 0; i < m; i++)
        j.x[i] = x + (pick ? pick[i] : i) * ldx;
    if (m == 1)
        j.x[0] = scaled_row(j.x[0], w, tmp);
    for (size_t r = r0, step; r < r1; r += step) {
        bool pair = m == 1 && w->format == W_E4M3 && r1 - r > PANEL;
        step = pair ? 2 * PANEL : PANEL;
        j.panel = r / PANEL;
        j.rows = r1 - r < step ? r1 - r : step;
        for (size_t i = 0; i < m; i++)
            j.y[i] = y + i * ldy + r;
        (pair ? pair_e4m3 : by_rows[m - 1])(&j);
    }
}
