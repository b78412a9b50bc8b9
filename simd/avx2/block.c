/* Integer products of many rows, block by block (block.h). */
#include "block.h"

#include <string.h>

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* What lies in tmp. */
struct room {
    struct tile tile[BLOCK];
    struct slice slice;
};
_Static_assert(sizeof(struct room) <= FAST_TMP, "tmp of simd.h holds a block");

/* What a step of the loops below works on: groups g .. g + n, rows i .. i + m, panels r0 .. r1. */
struct step {
    size_t g, n, i, m, r0, r1;
};

/* PAIRS of a group of int8 codes. */
static int32_t pair_sums(const int8_t *x, int32_t low)
{
    __m256i v = _mm256_loadu_si256((const __m256i *)x);
    v = _mm256_maddubs_epi16(_mm256_set1_epi8(1), v);
    __m128i s = _mm_add_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi16(s, _mm_unpackhi_epi64(s, s));
    s = _mm_add_epi16(s, _mm_shuffle_epi32(s, 1));
    return _mm_cvtsi128_si32(_mm_mullo_epi16(s, _mm_set1_epi16((short)low)));
}

/* All rows of x that there are. */
struct input {
    const struct qrows *x;
    const uint32_t *pick;
    size_t m;
};

static size_t group_bytes(const struct qrows *x)
{
    return GROUP * (x->kind == Q_8 ? sizeof(int8_t) : sizeof(int16_t));
}

/* Where group g of row i is among the groups of all rows. */
static size_t group_at(const struct input *in, size_t i, size_t g)
{
    return (in->pick ? in->pick[i] : i) * (in->x->cols / GROUP) + g;
}

static void take_slice(struct slice *s, const struct blocks *b, const struct input *in,
                       const struct step *k)
{
    const struct qrows *x = in->x;
    const size_t bytes = group_bytes(x), n = k->n;
    for (size_t i = 0; i < k->m; i++) {
        const size_t at = group_at(in, k->i + i, k->g);
        memcpy(s->code[i], (const int8_t *)x->code + at * bytes, n * bytes);
        for (size_t j = 0; j < n; j++)
            s->scale[i][j] = b->scale * x->scale[at + j];
        for (size_t j = 0; j < n && b->sums == WHOLE; j++)
            s->sum[i][j] = b->low * x->sum[at + j];
        for (size_t j = 0; j < n && b->sums == PAIRS; j++)
            s->sum[i][j] = pair_sums(s->code[i] + j * GROUP, b->low);
    }
}

/* Brings the rows of the next slice nearer while this one meets panel p of the block. */
static void ask_rows(const struct input *in, const struct step *k, size_t p)
{
    enum { SHARE = (CHUNK + BLOCK - 1) / BLOCK };
    const size_t bytes = group_bytes(in->x), first = k->i + CHUNK + p * SHARE;
    for (size_t i = first; i < least(in->m, first + SHARE); i++) {
        const int8_t *at = (const int8_t *)in->x->code + group_at(in, i, k->g) * bytes;
        for (size_t c = 0; c < k->n * bytes; c += 64)
            _mm_prefetch((const char *)at + c, _MM_HINT_T1);
    }
}

/* All rows of a slice with a tile. ahead: codes that come from memory next, `bytes` of them, perhaps none. */
static void run_tile(const struct blocks *b, const struct tile *t, const struct slice *s, float *y,
                     size_t ldy, const struct step *k, const uint8_t *ahead, size_t bytes)
{
    struct part p = {.ldy = ldy, .groups = k->n, .first = k->g == 0};
    const size_t share = (bytes * TILE_ROWS / k->m + 63) / 64 * 64;
    for (size_t i = 0; i < k->m; i += TILE_ROWS) {
        for (size_t a = 0; a < share; a += 64)
            _mm_prefetch((const char *)ahead + i / TILE_ROWS * share + a, _MM_HINT_T0);
        p.code = s->code[i];
        p.scale = s->scale[i];
        p.sum = s->sum[i];
        p.y = y + i * ldy;
        b->run[least(k->m - i, TILE_ROWS) - 1](t, &p);
    }
}

/* The same for a panel that has only `valid` rows. */
static void run_short(const struct blocks *b, const struct tile *t, const struct slice *s, float *y,
                      size_t ldy, const struct step *k, size_t valid)
{
    float all[CHUNK][PANEL] = {{0}};
    for (size_t i = 0; i < k->m && k->g > 0; i++)
        memcpy(all[i], y + i * ldy, valid * sizeof *y);
    run_tile(b, t, s, all[0], PANEL, k, NULL, 0);
    for (size_t i = 0; i < k->m; i++)
        memcpy(y + i * ldy, all[i], valid * sizeof *y);
}

/* A slice with the tiles of a block. The first slice finds them to be made, each when its turn comes; the only one
 * needs but the one that it is at. */
static void run_block(const struct blocks *b, struct room *room, float *y, size_t ldy,
                      const struct input *in, const struct step *k)
{
    const struct wmat *w = b->w;
    const size_t bytes = wformat_group_bytes(w->format);
    for (size_t r = k->r0; r < k->r1; r += PANEL) {
        const size_t panel = (r - k->r0) / PANEL;
        struct tile *t = &room->tile[in->m <= CHUNK ? 0 : panel];
        const uint8_t *next = w->codes + (r / PANEL + 1) * w->code_ld + k->g * bytes;
        float *out = y + k->i * ldy + r;
        ask_rows(in, k, panel);
        if (k->i == 0)
            b->fill(t, b->job, r / PANEL, k->g, k->n);
        if (k->r1 - r < PANEL)
            run_short(b, t, &room->slice, out, ldy, k, k->r1 - r);
        else if (k->i == 0 && k->r1 - r > PANEL)
            run_tile(b, t, &room->slice, out, ldy, k, next, k->n * bytes);
        else
            run_tile(b, t, &room->slice, out, ldy, k, NULL, 0);
    }
}

void matmul_blocks_avx2(const struct blocks *b, float *y, size_t ldy, const struct qrows *x,
                        const uint32_t *pick, size_t m, size_t r0, size_t r1, void *tmp)
{
    const size_t groups = x->cols / GROUP, block = (size_t)BLOCK * PANEL;
    const size_t most = SLICE_BYTES / group_bytes(x);
    const struct input in = {x, pick, m};
    struct room *room = tmp;
    for (size_t r = r0; r < r1; r += block)
        for (size_t g = 0; g < groups; g += most)
            for (size_t i = 0; i < m; i += CHUNK) {
                const struct step k = {.g = g,
                                       .n = least(groups - g, most),
                                       .i = i,
                                       .m = least(m - i, CHUNK),
                                       .r0 = r,
                                       .r1 = least(r1, r + block)};
                take_slice(&room->slice, b, &in, &k);
                run_block(b, room, y, ldy, &in, &k);
            }
}
