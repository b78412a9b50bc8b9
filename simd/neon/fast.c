/* Integer products, the common part: over the matrix in tiles, and the indexer's keys as
 * activations. */
#include "fast.h"

#include <string.h>

struct job {
    const struct fast_ops *ops;
    float *y;
    size_t ldy;
    const struct qrows *x;
    const uint32_t *pick;
    size_t m;
    const struct wmat *w;
    size_t r1;
    struct fast_codes codes;
    float unit;
    bool narrow;
};

static bool is_narrow(int8x16_t table)
{
    return vmaxvq_s8(table) <= 16 && vminvq_s8(table) >= -16;
}

static struct fast_codes codes_of(const struct wmat *w)
{
    struct fast_codes c = {w->format == W_E2M1 ? W_Q4 : w->format,
                           {vld1q_s8(e2m1_doubled), vld1q_s8(e2m1_doubled)}};
    if (wformat_table(w->format) > 0)
        for (int odd = 0; odd < 2; odd++) {
            int8_t value[16];
            for (size_t i = 0; i < 16; i++)
                value[i] = w->table[code_of_index(w->format, i, odd)];
            c.table[odd] = vld1q_s8(value);
        }
    return c;
}

INLINE void plain_tile(struct fast_tile *t, const uint8_t *code, const struct fast_codes *c,
                       enum wformat f)
{
    const size_t bytes = wformat_group_bytes(f);
    int8_t *out = t->buffer;
    for (size_t g = 0; g < t->groups; g++, out += GROUP * PANEL, code += bytes)
        for (int q = 0; q < 64; q += 16) {
            int8x16_t v[UNITS];
            expand_group(v, code + q, c, f);
            FOR_LANE (u, UNITS)
                vst1q_s8(out + 64 * u + q, v[u]);
        }
    t->code = t->buffer;
}

void fast_plain_tile(struct fast_tile *t, const uint8_t *code, const struct fast_codes *c)
{
    FAST_FORMAT(c->format, plain_tile(t, code, c, f));
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* The scales of `groups` groups side by side. */
static void join_scales(struct fast_rows *x, const float *const *scale, size_t groups, float unit)
{
    size_t g = 0;
    for (; g + 4 <= groups && x->n > 1; g += 4) {
        float32x4x4_t s;
        FOR_LANE (k, FAST_ROWS)
            s.val[k] = vmulq_n_f32(vld1q_f32(scale[k] + g), unit);
        vst4q_f32(x->scale[g], s);
    }
    for (; g < groups; g++)
        for (size_t k = 0; k < (x->n > 1 ? FAST_ROWS : 1); k++)
            x->scale[g][k] = unit * scale[k][g];
}

/* n rows of x from row i of the job on, at column c. */
static void rows_at(struct fast_rows *x, const struct job *j, size_t i, size_t n, size_t c)
{
    const float *scale[FAST_ROWS];
    const size_t cols = j->x->cols;
    x->n = n;
    for (size_t k = 0; k < FAST_ROWS; k++) {
        const size_t at = k < n ? i + k : i, row = j->pick ? j->pick[at] : at;
        x->code[k] = (const int8_t *)j->x->code + row * cols + c;
        scale[k] = j->x->scale + (row * cols + c) / GROUP;
    }
    join_scales(x, scale, least(FAST_COLS, cols - c) / GROUP, j->unit);
}

/* Codes of panel p at column c. */
static const uint8_t *codes_at(const struct job *j, size_t p, size_t c)
{
    return j->w->codes + p * j->w->code_ld + wformat_row_bytes(j->w->format, c) * PANEL;
}

static void tile_scales(struct fast_tile *t, const struct job *j, size_t p, size_t c)
{
    t->groups = least(FAST_COLS, j->w->cols - c) / GROUP;
    t->narrow = j->narrow;
    for (size_t g = 0; g < t->groups; g++)
        vst1q_f32_x4(t->scale[g], panel_scales(j->w, p, c / GROUP + g));
}

static void tile_codes(struct fast_tile *t, const struct job *j, size_t p, size_t c)
{
    if (j->w->format == W_Q8)
        j->ops->words(t, (const int8_t *)codes_at(j, p, c));
    else
        j->ops->codes(t, codes_at(j, p, c), &j->codes);
}

static void matmul_one(const struct job *j, size_t r0)
{
    struct fast_tile t;
    struct fast_rows x;
    const size_t cols = j->w->cols;
    for (size_t p = r0 / PANEL; p * PANEL < j->r1; p++) {
        float out[PANEL];
        for (size_t c = 0; c < cols; c += FAST_COLS) {
            rows_at(&x, j, 0, 1, c);
            tile_scales(&t, j, p, c);
            if (j->w->format == W_Q8) {
                tile_codes(&t, j, p, c);
                j->ops->rows(out, PANEL, &x, &t, c == 0);
            } else {
                j->ops->row(out, &x, &t, codes_at(j, p, c), &j->codes, c == 0);
            }
        }
        memcpy(j->y + p * PANEL, out, least(PANEL, j->r1 - p * PANEL) * sizeof *out);
    }
}

/* Rows i0 .. i1 against one tile. */
static void tile_rows(const struct job *j, const struct fast_tile *t, size_t p, size_t c, size_t i0,
                      size_t i1)
{
    const size_t rows = least(PANEL, j->r1 - p * PANEL);
    for (size_t i = i0; i < i1; i += FAST_ROWS) {
        struct fast_rows x;
        rows_at(&x, j, i, least(FAST_ROWS, i1 - i), c);
        float *y = j->y + i * j->ldy + p * PANEL, edge[FAST_ROWS * PANEL] = {0};
        if (rows == PANEL) {
            j->ops->rows(y, j->ldy, &x, t, c == 0);
            continue;
        }
        for (size_t k = 0; k < x.n && c > 0; k++)
            memcpy(edge + k * PANEL, y + k * j->ldy, rows * sizeof *y);
        j->ops->rows(edge, PANEL, &x, t, c == 0);
        for (size_t k = 0; k < x.n; k++)
            memcpy(y + k * j->ldy, edge + k * PANEL, rows * sizeof *y);
    }
}

/* Blocks of rows and columns of x that the second cache holds (256 KB) while all panels pass. */
enum { BLOCK_ROWS = 256, BLOCK = 256 * 1024 };

static void matmul_many(const struct job *j, size_t r0)
{
    struct fast_tile t;
    const size_t cols = j->w->cols;
    for (size_t i = 0; i < j->m; i += BLOCK_ROWS) {
        const size_t i1 = least(i + BLOCK_ROWS, j->m);
        const size_t wide = BLOCK / (i1 - i) / FAST_COLS * FAST_COLS;
        for (size_t b = 0; b < cols; b += wide)
            for (size_t p = r0 / PANEL; p * PANEL < j->r1; p++)
                for (size_t c = b; c < cols && c < b + wide; c += FAST_COLS) {
                    tile_scales(&t, j, p, c);
                    tile_codes(&t, j, p, c);
                    tile_rows(j, &t, p, c, i, i1);
                }
    }
}

void fast_matmul(const struct fast_ops *ops, float *y, size_t ldy, const struct qrows *x,
                 const uint32_t *pick, size_t m, const struct wmat *w, size_t r0, size_t r1)
{
    struct job j = {ops, y, ldy, x, pick, m, w, r1, codes_of(w), 1, false};
    if (w->format == W_E2M1)
        j.unit = 0.5f;
    j.narrow = w->format != W_Q8 && is_narrow(j.codes.table[0]) && is_narrow(j.codes.table[1]);
    if (m == 1)
        matmul_one(&j, r0);
    else
        matmul_many(&j, r0);
}

/* ------------------------------------------------------------------ the indexer */

/* Keys as rows of activations, KEYS at a time so that a panel of queries is prepared once for
 * all. */
enum { KEYS = 16 };

struct keys {
    int8_t code[KEYS][INDEX_MAX_WIDTH];
    float scale[KEYS][INDEX_MAX_WIDTH / GROUP];
};

/* Doubled codes in the order of Q_8. */
static void key_codes(int8_t *code, float *scale, const uint8_t *key, size_t width)
{
    const int8x16_t table = vld1q_s8(e2m1_doubled);
    for (size_t g = 0; g < width / GROUP; g++) {
        const uint8x16_t b = vld1q_u8(key + 16 * g);
        const int32x4_t even = vreinterpretq_s32_s8(low_nibbles(b, table));
        const int32x4_t odd = vreinterpretq_s32_s8(high_nibbles(b, table));
        vst1q_s8(code + GROUP * g, vreinterpretq_s8_s32(vzip1q_s32(even, odd)));
        vst1q_s8(code + GROUP * g + 16, vreinterpretq_s8_s32(vzip2q_s32(even, odd)));
        scale[g] = e8m0_value(key[width / 2 + g]);
    }
}

/* dots[key][16] of panel p. */
static void panel_dots(const struct fast_ops *ops, float dots[KEYS][PANEL],
                       const struct index_query *q, size_t p, const struct keys *k, size_t n)
{
    struct fast_tile t;
    t.narrow = true;
    for (size_t c = 0; c < q->width; c += FAST_COLS) {
        t.groups = least(FAST_COLS, q->width - c) / GROUP;
        memcpy(t.scale, q->scale + (p * q->width / GROUP + c / GROUP) * PANEL,
               t.groups * sizeof *t.scale);
        ops->words(&t, q->code + (p * q->width + c) * PANEL);
        for (size_t i = 0; i < n; i += FAST_ROWS) {
            struct fast_rows x;
            x.n = least(FAST_ROWS, n - i);
            const float *scale[FAST_ROWS];
            for (size_t r = 0; r < FAST_ROWS; r++) {
                const size_t key = r < x.n ? i + r : i;
                x.code[r] = k->code[key] + c;
                scale[r] = k->scale[key] + c / GROUP;
            }
            join_scales(&x, scale, t.groups, 1);
            ops->rows(dots[i], PANEL, &x, &t, c == 0);
        }
    }
}

static float fold_16(const float *s)
{
    const float32x4_t a = vaddq_f32(vld1q_f32(s), vld1q_f32(s + 8));
    const float32x4_t b = vaddq_f32(a, vaddq_f32(vld1q_f32(s + 4), vld1q_f32(s + 12)));
    const float32x2_t c = vadd_f32(vget_low_f32(b), vget_high_f32(b));
    return vget_lane_f32(vpadd_f32(c, c), 0);
}

void fast_index(const struct fast_ops *ops, float *score, const struct index_query *q,
                const uint8_t *key, size_t n)
{
    struct keys k;
    const size_t bytes = row_bytes((struct rshape){R_E2M1_32, (uint32_t)q->width, 0});
    for (size_t i = 0; i < n; i += KEYS) {
        const size_t some = least(KEYS, n - i);
        float dots[KEYS][PANEL], total[KEYS][PANEL] = {{0}};
        for (size_t r = 0; r < some; r++, key += bytes)
            key_codes(k.code[r], k.scale[r], key, q->width);
        for (size_t p = 0; p < q->panels; p++) {
            panel_dots(ops, dots, q, p, &k, some);
            for (size_t r = 0; r < some; r++)
                for (size_t h = 0; h < PANEL; h += 4) {
                    const float32x4_t a = vmaxnmq_f32(vld1q_f32(&dots[r][h]), vdupq_n_f32(0));
                    const float32x4_t w = vld1q_f32(q->weight + p * PANEL + h);
                    vst1q_f32(&total[r][h], vfmaq_f32(vld1q_f32(&total[r][h]), w, a));
                }
        }
        for (size_t r = 0; r < some; r++)
            score[i + r] = fold_16(total[r]);
    }
}
