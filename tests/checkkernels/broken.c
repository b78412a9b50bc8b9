/* The harness itself: kernels that are broken on purpose, in the ways kernels break. Each must
 * be found. */
#include "check.h"

#include "simd/codes.h"
#include "simd/scalar/scalar.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct kernels good; /* scalar */

#define MATMUL                                                                        \
    float *y, size_t ldy, const float *x, size_t ldx, const uint32_t *pick, size_t m, \
        const struct wmat *w, size_t r0, size_t r1, float *tmp
#define FAST                                                                     \
    float *y, size_t ldy, const struct qrows *x, const uint32_t *pick, size_t m, \
        const struct wmat *w, size_t r0, size_t r1, void *tmp

static void touch(const void *p)
{
    (void)*(const volatile uint8_t *)p;
}

/* ------------------------------------------------------------------ matmul */

/* The first byte behind the codes of the matrix. */
static const uint8_t *behind(const struct wmat *w)
{
    size_t row = wformat_row_bytes(w->format, w->cols);
    if (w->panels)
        return w->codes + (w->rows - 1) / PANEL * w->code_ld + row * PANEL;
    return w->codes + (w->rows - 1) * w->code_ld + row;
}

static void reads_behind_codes(MATMUL)
{
    good.matmul(y, ldy, x, ldx, pick, m, w, r0, r1, tmp);
    touch(behind(w));
}

static void reads_before_codes(MATMUL)
{
    good.matmul(y, ldy, x, ldx, pick, m, w, r0, r1, tmp);
    touch(w->codes - 1);
}

/* As a last vector of 8 scales of which 4 exist. */
static void reads_behind_scales(FAST)
{
    good.matmul_fast(y, ldy, x, pick, m, w, r0, r1, tmp);
    touch(w->scales + (w->rows - 1) / PANEL * w->scale_ld + w->cols / GROUP * PANEL);
}

static void reads_behind_x(MATMUL)
{
    good.matmul(y, ldy, x, ldx, pick, m, w, r0, r1, tmp);
    for (size_t i = 0; i < m; i++)
        touch(x + (pick ? pick[i] : i) * ldx + w->cols);
}

static void reads_behind_pick(MATMUL)
{
    good.matmul(y, ldy, x, ldx, pick, m, w, r0, r1, tmp);
    if (pick)
        touch(pick + m);
}

static void writes_behind_y(MATMUL)
{
    good.matmul(y, ldy, x, ldx, pick, m, w, r0, r1, tmp);
    if (m > 0)
        y[(m - 1) * ldy + r1] = 0;
}

/* All 16 rows of the last panel, of which fewer exist. */
static void writes_whole_panels(MATMUL)
{
    good.matmul(y, ldy, x, ldx, pick, m, w, r0, r1, tmp);
    for (size_t i = 0; i < m; i++)
        for (size_t r = r1; r % PANEL != 0; r++)
            y[i * ldy + r] = 0;
}

static void ignores_r0(MATMUL)
{
    (void)r0;
    good.matmul(y, ldy, x, ldx, pick, m, w, 0, r1, tmp);
}

static void ignores_pick(MATMUL)
{
    (void)pick;
    good.matmul(y, ldy, x, ldx, NULL, m, w, r0, r1, tmp);
}

static void fast_ignores_pick(FAST)
{
    (void)pick;
    good.matmul_fast(y, ldy, x, NULL, m, w, r0, r1, tmp);
}

static void drops_last_group(MATMUL)
{
    struct wmat less = *w;
    if (less.cols > GROUP)
        less.cols -= GROUP;
    good.matmul(y, ldy, x, ldx, pick, m, &less, r0, r1, tmp);
}

/* An odd column that the vectors do not cover. */
static void drops_odd_columns(MATMUL)
{
    struct wmat less = *w;
    if (less.cols > 8)
        less.cols -= less.cols % 8;
    good.matmul(y, ldy, x, ldx, pick, m, &less, r0, r1, tmp);
}

/* A blocked path for more than four rows that adds in another order: within the bound, other
 * bits. */
static void depends_on_m(MATMUL)
{
    good.matmul(y, ldy, x, ldx, pick, m, w, r0, r1, tmp);
    for (size_t i = 0; m > 4 && i < m; i++)
        for (size_t r = r0; r < r1; r++)
            y[i * ldy + r] = nextafterf(y[i * ldy + r], 0);
}

/* The first row of a slice through another path. */
static void depends_on_slice(MATMUL)
{
    good.matmul(y, ldy, x, ldx, pick, m, w, r0, r1, tmp);
    for (size_t i = 0; r0 > 0 && i < m; i++)
        y[i * ldy + r0] = nextafterf(y[i * ldy + r0], 0);
}

static void counts_on_aligned_x(MATMUL)
{
    good.matmul(y, ldy, x, ldx, pick, m, w, r0, r1, tmp);
    if ((uintptr_t)x % 16 != 0 && m > 0 && r1 > r0)
        y[r0] += 1 + fabsf(y[r0]);
}

static void writes_to_x(MATMUL)
{
    good.matmul(y, ldy, x, ldx, pick, m, w, r0, r1, tmp);
    if (m > 0)
        *(volatile float *)(uintptr_t)(x + (pick ? pick[0] : 0) * ldx) = 0;
}

static void wants_rows(MATMUL)
{
    good.matmul(y, ldy, x, ldx, pick, m, w, r0, r1, tmp);
    touch(&y[r0]);
    if (m == 0)
        *(volatile float *)&y[r0] = 0;
}

/* ------------------------------------------------------------------ matmul_fast on q8 panels */

enum flaw { SATURATES, MINUS_128, TWO_ROUNDINGS };

static int clamp16(int v)
{
    return v < -32768 ? -32768 : v > 32767 ? 32767 : v;
}

static void q8_with(enum flaw flaw, FAST)
{
    (void)tmp;
    for (size_t i = 0; i < m; i++)
        for (size_t r = r0; r < r1; r++) {
            size_t row = pick ? pick[i] : i, groups = w->cols / GROUP;
            const int8_t *code = (const int8_t *)x->code + row * x->cols;
            float out = 0, total = 0;
            for (size_t g = 0; g < groups; g++) {
                int s = 0, pair = 0;
                for (size_t k = g * GROUP; k < g * GROUP + GROUP; k++) {
                    const uint8_t *at = w->codes + r / PANEL * w->code_ld + k / 4 * 64;
                    int b = (int8_t)at[r % PANEL * 4 + k % 4], a = code[k];
                    if (flaw == MINUS_128 && b == -128) /* |b| as int8 */
                        b = 127;
                    if (flaw == SATURATES) /* bytes without sign, as vpmaddubsw wants them */
                        b += 128;
                    pair = k % 2 ? pair + a * b : a * b;
                    if (k % 2)
                        s += flaw == SATURATES ? clamp16(pair) : pair;
                }
                if (flaw == SATURATES)
                    s -= 128 * x->sum[row * groups + g];
                uint16_t h;
                memcpy(&h, w->scales + r / PANEL * w->scale_ld + (g * PANEL + r % PANEL) * 2, 2);
                float u = f16_value(h) * x->scale[row * groups + g];
                out = fmaf((float)s, u, out);
                total += (float)s * u; /* rounded twice */
            }
            y[i * ldy + r] = flaw == TWO_ROUNDINGS ? total : out;
        }
}

static void saturates(FAST)
{
    q8_with(SATURATES, y, ldy, x, pick, m, w, r0, r1, tmp);
}

static void loses_minus_128(FAST)
{
    q8_with(MINUS_128, y, ldy, x, pick, m, w, r0, r1, tmp);
}

static void multiplies_then_adds(FAST)
{
    q8_with(TWO_ROUNDINGS, y, ldy, x, pick, m, w, r0, r1, tmp);
}

/* ------------------------------------------------------------------ tables */

/* Words of third bits taken for zeros. */
static void drops_third_bits(MATMUL)
{
    struct wmat two = *w;
    int8_t table[8];
    for (int i = 0; i < 8; i++)
        table[i] = w->table[i & 3];
    two.table = table;
    good.matmul(y, ldy, x, ldx, pick, m, &two, r0, r1, tmp);
}

/* Weights less the lowest value of the table, eight products in 16 bits: too many for wide tables. */
static void sums_eight(FAST)
{
    (void)tmp;
    size_t groups = w->cols / GROUP;
    int low = 127;
    for (size_t i = 0; i < wformat_table(w->format); i++)
        low = w->table[i] < low ? w->table[i] : low;
    for (size_t i = 0; i < m; i++)
        for (size_t r = r0; r < r1; r++) {
            size_t row = pick ? pick[i] : i;
            const int8_t *code = (const int8_t *)x->code + row * x->cols;
            float out = 0;
            for (size_t g = 0; g < groups; g++) {
                int32_t v[GROUP], part = 0, s = low * x->sum[row * groups + g];
                decode_codes(v, w, r, g * GROUP);
                for (size_t k = 0; k < GROUP; k++) {
                    part = clamp16(part + (v[k] - low) * code[octet_place(g * GROUP + k)]);
                    if (k % 8 == 7) {
                        s += part;
                        part = 0;
                    }
                }
                float u = weight_scale(w, r, g * GROUP) * x->scale[row * groups + g];
                out = fmaf((float)s, u, out);
            }
            y[i * ldy + r] = out;
        }
}

/* ------------------------------------------------------------------ decode, quantize, rows */

static void swaps_nibbles(float *out, const struct wmat *w, size_t r)
{
    good.decode(out, w, r);
    for (size_t c = 0; c + 1 < w->cols; c += 2) {
        float a = out[c];
        out[c] = out[c + 1];
        out[c + 1] = a;
    }
}

static void flushes_denormals(float *out, const struct wmat *w, size_t r)
{
    good.decode(out, w, r);
    for (size_t c = 0; c < w->cols; c++)
        if (fabsf(out[c]) < 0x1p-126f)
            out[c] = copysignf(0, out[c]);
}

static void rounds_halves_away(struct qrows *q, size_t r, const float *x, size_t c0, size_t c1)
{
    good.quantize(q, r, x, c0, c1);
    for (size_t c = c0; c < c1; c++) {
        size_t g = (r * q->cols + c) / GROUP;
        if (q->scale[g] == 1 && q->kind == Q_8) {
            int8_t *code = (int8_t *)q->code + r * q->cols + octet_place(c);
            int v = (int)roundf(x[c]);
            q->sum[g] += v - *code;
            *code = (int8_t)v;
        }
    }
}

/* Halfway between two levels it is the lower one, or the even one. */
static void takes_upper(float *xq, float *qq, const float *x, const float *w, const float *inverse,
                        const struct grid *l)
{
    float more[PANEL];
    for (size_t j = 0; j < PANEL; j++)
        more[j] = nextafterf(inverse[j], INFINITY);
    good.fit(xq, qq, x, w, more, l);
}

static void fuses(float *xq, float *qq, const float *x, const float *w, const float *inverse,
                  const struct grid *l)
{
    good.fit(xq, qq, x, w, inverse, l);
    for (size_t j = 0; j < PANEL && l->n == 0; j++) {
        xq[j] = 0;
        for (size_t i = j; i < GROUP * PANEL; i += PANEL) {
            float q = nearbyintf(fminf(fmaxf(x[i] * inverse[j], l->low), l->high));
            xq[j] = fmaf(w[i] * x[i], q, xq[j]);
        }
    }
}

static void hides_nan(struct qrows *q, size_t r, const float *x, size_t c0, size_t c1)
{
    good.quantize(q, r, x, c0, c1);
    for (size_t g = (r * q->cols + c0) / GROUP; g < (r * q->cols + c1) / GROUP; g++)
        if (isnan(q->scale[g]))
            q->scale[g] = 0;
}

static void rows_write_behind(float *out, const uint8_t *row, size_t n, struct rshape s)
{
    good.rows(out, row, n, s);
    out[n * s.width] = 0;
}

static void rows_read_behind(float *out, const uint8_t *row, size_t n, struct rshape s)
{
    good.rows(out, row, n, s);
    touch(row + n * row_bytes(s));
}

/* ------------------------------------------------------------------ the others */

static float skips_tail(const float *x, size_t n)
{
    return good.sum_squares(x, n / 8 * 8);
}

static float reads_whole_vectors(const float *a, const float *b, size_t n)
{
    if (n > 0)
        touch(b + (n - 1) / 8 * 8 + 7);
    return good.dot(a, b, n);
}

static void clamps_one_side(float *up, const float *gate, size_t n, float limit, float weight)
{
    for (size_t i = 0; i < n; i++) {
        float u = up[i];
        good.swiglu(&up[i], &gate[i], 1, limit, weight);
        if (limit > 0 && u < -limit)
            up[i] *= u / -limit;
    }
}

/* Another exponential for what the vectors leave over: right, but not the same bits everywhere. */
static void other_tail(float *up, const float *gate, size_t n, float limit, float weight)
{
    good.swiglu(up, gate, n, limit, weight);
    for (size_t i = n / 8 * 8; i < n; i++)
        up[i] *= 1 + 0x1p-23f;
}

static void transposes(float *h, size_t ld, const float *y, const float *post, const float *comb,
                       size_t hc, size_t n)
{
    float other[256];
    for (size_t i = 0; i < hc; i++)
        for (size_t j = 0; j < hc; j++)
            other[i * hc + j] = comb[j * hc + i];
    good.hc_mix(h, ld, y, post, other, hc, n);
}

static void drops_a_stream(float *out, const float *h, size_t ld, const float *pre, size_t hc,
                           size_t n)
{
    good.hc_sum(out, h, ld, pre, hc > 1 ? hc - 1 : 1, n);
}

static void drops_a_block(float *part, size_t ldm, size_t ldb, const float *x, size_t ldx, size_t m,
                          const uint8_t *w, size_t n)
{
    good.block_dots(part, ldm, ldb, x, ldx, m, w, n > DOT_BLOCK ? n - n % DOT_BLOCK : n);
}

static void forgets_to_rescale(float *o, float *max, float *sum, const float *q, size_t heads,
                               const float *kv, size_t n, size_t c, float scale)
{
    for (size_t h = 0; h < heads; h++) {
        float old = max[h], before = sum[h];
        good.attend(o + h * c, max + h, sum + h, q + h * c, 1, kv, n, c, scale);
        if (max[h] > old)
            sum[h] += before - before * expf(old - max[h]);
    }
}

static void other_heads(float *o, float *max, float *sum, const float *q, size_t heads,
                        const float *kv, size_t n, size_t c, float scale)
{
    good.attend(o, max, sum, q, heads, kv, n, c, scale);
    for (size_t h = 0; h < heads / 4 * 4; h++)
        o[h * c] *= 1 + 0x1p-23f;
}

static void keeps_negative(float *score, const float *q, const float *w, size_t heads,
                           const uint8_t *key, size_t n, struct rshape s)
{
    float k[INDEX_MAX_WIDTH];
    for (size_t i = 0; i < n; i++) {
        score[i] = 0;
        good.rows(k, key + i * row_bytes(s), 1, s);
        for (size_t h = 0; h < heads; h++)
            score[i] += w[h] * good.dot(q + h * s.width, k, s.width);
    }
}

static void drops_last_heads(float *score, const struct index_query *q, const uint8_t *key,
                             size_t n)
{
    struct index_query less = *q;
    if (less.panels > 1)
        less.panels--;
    good.index_codes(score, &less, key, n);
}

static void key_pairs(float *score, const struct index_query *q, const uint8_t *key, size_t n)
{
    good.index_codes(score, q, key, n);
    for (size_t i = 0; i + 1 < n; i += 2)
        score[i] = nextafterf(score[i], INFINITY);
}

/* ------------------------------------------------------------------ all of them */

#define PANELS(f) .format = W_##f, .panels = true
#define PLAIN(f)  .format = W_##f

static const struct {
    const char *flaw;
    const char *kernel;
    void (*run)(struct check *t);
    enum wformat format;
    bool panels;
    enum rformat rows;
    struct kernels k; /* the broken entry; the others are null */
} broken[] = {
#define M .kernel = "matmul", .run = check_matmul, .k.matmul
#define F .kernel = "matmul_fast", .run = check_matmul, .k.matmul_fast
    {"reads a byte behind the codes", PANELS(E2M1), M = reads_behind_codes},
    {"reads a byte behind plain codes", PLAIN(E4M3), M = reads_behind_codes},
    {"reads a byte before the codes", PLAIN(BF16), M = reads_before_codes},
    {"reads a byte behind the scales", PANELS(E2M1), F = reads_behind_scales},
    {"reads a byte behind x", PANELS(E4M3), M = reads_behind_x},
    {"reads a byte behind pick", PANELS(Q4), M = reads_behind_pick},
    {"writes a float behind y", PANELS(E4M3), M = writes_behind_y},
    {"writes 16 rows where fewer are", PANELS(BF16), M = writes_whole_panels},
    {"computes rows before r0", PLAIN(F32), M = ignores_r0},
    {"ignores pick", PLAIN(F32), M = ignores_pick},
    {"ignores pick", PANELS(Q4), F = fast_ignores_pick},
    {"drops the last group", PANELS(E2M1), M = drops_last_group},
    {"drops odd columns", PLAIN(BF16), M = drops_odd_columns},
    {"depends on m", PANELS(E4M3), M = depends_on_m},
    {"depends on the slice", PLAIN(F32), M = depends_on_slice},
    {"counts on aligned rows", PANELS(BF16), M = counts_on_aligned_x},
    {"writes to x", PLAIN(BF16), M = writes_to_x},
    {"writes without rows", PANELS(Q8), M = wants_rows},
    {"saturates at 16 bits", PANELS(Q8), F = saturates},
    {"takes -128 for -127", PANELS(Q8), F = loses_minus_128},
    {"rounds between * and +", PANELS(Q8), F = multiplies_then_adds},
    {"drops third bits", PANELS(Q3), M = drops_third_bits},
    {"sums eight products in 16 bits", PANELS(Q2), F = sums_eight},
#undef M
#undef F
#define ENTRY(name, function) .kernel = #name, .run = function, .k.name
    {"swaps nibbles", PANELS(E2M1), ENTRY(decode, check_decode) = swaps_nibbles},
    {"swaps units", PLAIN(Q2), ENTRY(decode, check_decode) = swaps_nibbles},
    {"flushes denormals", PANELS(E4M3), ENTRY(decode, check_decode) = flushes_denormals},
    {"rounds halves away", ENTRY(quantize, check_quantize) = rounds_halves_away},
    {"hides NaN", ENTRY(quantize, check_quantize) = hides_nan},
    {"takes the upper level", ENTRY(fit, check_fit) = takes_upper},
    {"fuses * and +", ENTRY(fit, check_fit) = fuses},
    {"writes behind out", .rows = R_E4M3_64B, ENTRY(rows, check_rows) = rows_write_behind},
    {"reads behind the rows", .rows = R_E2M1_32, ENTRY(rows, check_rows) = rows_read_behind},
    {"skips the tail", ENTRY(sum_squares, check_sums) = skips_tail},
    {"reads whole vectors", ENTRY(dot, check_sums) = reads_whole_vectors},
    {"clamps one side", ENTRY(swiglu, check_swiglu) = clamps_one_side},
    {"computes the tail otherwise", ENTRY(swiglu, check_swiglu) = other_tail},
    {"transposes comb", ENTRY(hc_mix, check_hc_mix) = transposes},
    {"drops a stream", ENTRY(hc_sum, check_hc_sum) = drops_a_stream},
    {"drops a block", ENTRY(block_dots, check_block_dots) = drops_a_block},
    {"forgets to rescale the sum", ENTRY(attend, check_attend) = forgets_to_rescale},
    {"computes heads by fours otherwise", ENTRY(attend, check_attend) = other_heads},
    {"keeps negative scores", .rows = R_E2M1_32, ENTRY(index, check_index) = keeps_negative},
    {"drops the last heads", ENTRY(index_codes, check_index_codes) = drops_last_heads},
    {"computes pairs of keys otherwise", ENTRY(index_codes, check_index_codes) = key_pairs},
#undef ENTRY
};

/* Entries that are null come from the scalar table. */
static void complete(struct kernels *k, const struct kernels *part)
{
    *k = good;
#define TAKE(entry) k->entry = part->entry ? part->entry : good.entry
    TAKE(matmul);
    TAKE(matmul_fast);
    TAKE(quantize);
    TAKE(decode);
    TAKE(fit);
    TAKE(sum_squares);
    TAKE(dot);
    TAKE(swiglu);
    TAKE(hc_mix);
    TAKE(hc_sum);
    TAKE(block_dots);
    TAKE(rows);
    TAKE(attend);
    TAKE(index);
    TAKE(index_codes);
#undef TAKE
}

int check_broken(uint64_t seed, size_t *found)
{
    int missed = 0;
    kernels_init_scalar(&good);
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        struct line line = {.kernel = broken[i].kernel, .run = broken[i].run};
        struct kernels k;
        line.format = broken[i].format;
        line.panels = broken[i].panels;
        line.rows = broken[i].rows;
        complete(&k, &broken[i].k);
        struct check t = {.k = &k, .twin = &good, .level = "broken", .seed = seed, .limit = 1};
        run_line(&t, &line);
        if (t.failures == 0) {
            printf("broken      %s that %s: NOT FOUND in %zu cases\n", line.kernel, broken[i].flaw,
                   t.cases);
            missed++;
        } else {
            *found += 1;
        }
    }
    printf("broken      %zu kernels broken on purpose, %d not found\n",
           sizeof broken / sizeof *broken, missed);
    return missed;
}
