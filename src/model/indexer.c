/* The lightning indexer: which compressed entries a row attends (spec: architecture, sections 4,
 * 5).
 *
 *   score_i = sum_h w_h max(0, q_h . k_i);   the index_topk best visible entries are chosen
 *
 * V4.1, two levels: the candidate source also keeps the best blocks of consecutive entries (block
 * score = its best visible entry; the newest visible block always), and later index sources may
 * only choose inside those blocks.
 *
 * The places of all rows, one row after the other, are cut into units, and every lane takes a
 * run of units. What it has of one row is a piece: its best entries and blocks. Row r, lane l
 * has piece r + l: along the run one of both grows from piece to piece. Whoever attends a row
 * merges its pieces (merge_entries); so scores need no memory and choosing no barrier of its
 * own. */
#include "model.h"

#include "simd/codes.h"

#include <math.h>
#include <string.h>

enum { SCORE_UNIT = 256 };

/* Whole blocks, as their maxima are taken. */
static size_t unit_size(const struct config *c)
{
    size_t block = c->candidate_blocks ? c->candidate_block : 1;
    return (SCORE_UNIT + block - 1) / block * block;
}

/* Words of a piece: its best entries, then its best blocks. */
static size_t keep(const struct config *c)
{
    return (size_t)c->index_topk + c->candidate_blocks;
}

size_t piece_words(const struct config *c)
{
    return 2 + 2 * keep(c);
}

static size_t padded_heads(const struct config *c)
{
    return ((size_t)c->index_heads + PANEL - 1) / PANEL * PANEL;
}

/* ------------------------------------------------------------------ the query of a row */

/* Codes where the kernel takes codes, floats otherwise; in a lane's scratch. */
struct query {
    bool coded;
    struct index_query codes;
    float *q, *w; /* [heads][dim], [heads] */
};

/* Head h of row `row`: scaled by the norm of the row's latent (query_scale), rotated, rounded as it was
 * in training. With taps all this has happened. */
static void finish_head(const struct batch *b, const struct layer *L, size_t row, size_t h,
                        float scale, float *q, uint8_t *codes)
{
    const struct config *c = b->m->cfg;
    const float *raw = b->iq + (row * c->index_heads + h) * c->index_dim;
    struct rshape s = b->m->key_row;
    for (size_t i = 0; i < c->index_dim; i++)
        q[i] = raw[i] * scale;
    if (!b->tap) {
        rope(q, c->index_dim, c->rope_dim, b->cs[L->rope] + row * c->rope_dim, false);
        if (c->family == FAMILY_V4 && s.format != R_F32)
            hadamard(q, c->index_dim);
    }
    if (s.format == R_E2M1_32)
        row_encode(codes, q, s);
    else if (s.format != R_F32)
        row_round(&b->m->k, q, s);
}

static float head_weight(const struct batch *b, size_t row, size_t h)
{
    const struct config *c = b->m->cfg;
    float scale = 1.0f / (sqrtf((float)c->index_dim) * sqrtf((float)c->index_heads));
    return b->iw[row * c->index_heads + h] * (b->tap ? 1 : scale);
}

/* The codes of one head take their places in its panel (drawn in simd.h). */
static void place_codes(int8_t *code, float *scale, const uint8_t *row, size_t width, size_t h)
{
    size_t groups = width / GROUP;
    code += h / PANEL * width * PANEL + h % PANEL * 4;
    scale += h / PANEL * groups * PANEL + h % PANEL;
    for (size_t i = 0; i < width / 2; i++) {
        int8_t *at = code + i / 4 * 8 * PANEL + i % 4;
        at[0] = e2m1_doubled[row[i] & 15];
        at[4 * PANEL] = e2m1_doubled[row[i] >> 4];
    }
    for (size_t g = 0; g < groups; g++)
        scale[g * PANEL] = 0.25f * e8m0_value(row[width / 2 + g]);
}

static void make_query(struct query *out, const struct batch *b, const struct layer *L, size_t row,
                       float *words)
{
    const struct config *c = b->m->cfg;
    size_t heads = c->index_heads, dim = c->index_dim, padded = padded_heads(c);
    float *scale = words, *w = scale + padded * dim / GROUP;
    float one[INDEX_MAX_WIDTH];
    uint8_t bytes[INDEX_MAX_WIDTH];
    *out = (struct query){.coded = b->m->key_row.format == R_E2M1_32, .q = words, .w = w};
    if (!out->coded)
        out->w = words + heads * dim;
    else
        memset(words, 0, (padded * dim / GROUP + padded + padded * dim / 4) * sizeof *words);
    int8_t *code = (int8_t *)(w + padded);
    float norm = b->tap ? 1 : query_scale(b, row);
    for (size_t h = 0; h < heads; h++) {
        out->w[h] = head_weight(b, row, h);
        finish_head(b, L, row, h, norm, out->coded ? one : out->q + h * dim, bytes);
        if (out->coded)
            place_codes(code, scale, bytes, dim, h);
    }
    out->codes = (struct index_query){padded / PANEL, dim, code, scale, w};
}

static size_t query_words(const struct config *c)
{
    return padded_heads(c) * ((size_t)c->index_dim + 1 + c->index_dim / GROUP);
}

/* ------------------------------------------------------------------ scores */

/* Scores of consecutive entries, chunk by chunk. */
static void score_run(const struct batch *b, float *out, const struct query *q,
                      const struct rowlist *keys, size_t first, size_t n)
{
    const struct kernels *k = &b->m->k;
    while (n > 0) {
        size_t run = CHUNK_ROWS - first % CHUNK_ROWS;
        run = run < n ? run : n;
        if (q->coded)
            k->index_codes(out, &q->codes, rowlist_at(keys, first), run);
        else
            k->index(out, q->q, q->w, b->m->cfg->index_heads, rowlist_at(keys, first), run,
                     keys->shape);
        out += run;
        first += run;
        n -= run;
    }
}

static size_t visible(const struct batch *b, const struct layer *L, size_t row)
{
    return (b->pos[row] + 1) / L->ratio;
}

/* Places of a row: every visible entry, or the candidate blocks one after the other. */
static size_t places(const struct batch *b, const struct layer *L, size_t row)
{
    return L->candidates ? (size_t)b->n_cand[row] * b->m->cfg->candidate_block : visible(b, L, row);
}

static bool keeps_blocks(const struct batch *b, const struct layer *L)
{
    return (int32_t)L->id == b->m->cfg->candidate_source;
}

/* The blocks that begin at `first`, of which n entries are visible. */
static void add_blocks(struct best *t, const struct config *c, const float *score, size_t first,
                       size_t n, size_t all)
{
    for (size_t i = 0; i < n; i += c->candidate_block) {
        size_t end = i + c->candidate_block < n ? i + c->candidate_block : n;
        float top = -INFINITY;
        for (size_t j = i; j < end; j++)
            top = score[j] > top ? score[j] : top;
        if (first + end == all)
            top = INFINITY;
        best_add(t, &top, 1, (uint32_t)((first + i) / c->candidate_block));
    }
}

/* Places from .. to of a row, at most a unit. */
static void score_unit(const struct batch *b, const struct layer *L, size_t row,
                       const struct query *q, size_t from, size_t to, float *score,
                       struct best *entries, struct best *blocks)
{
    const struct config *c = b->m->cfg;
    const struct rowlist *keys = &b->seg[b->row_seg[row]].cache->layer[L->kv_layer].key;
    size_t all = visible(b, L, row), size = c->candidate_block;
    if (!L->candidates) {
        score_run(b, score, q, keys, from, to - from);
        best_add(entries, score, to - from, (uint32_t)from);
        if (keeps_blocks(b, L))
            add_blocks(blocks, c, score, from, to - from, all);
        return;
    }
    const uint32_t *block = b->cand + row * c->candidate_blocks;
    for (size_t at = from; at < to; at += size - at % size) {
        size_t entry = block[at / size] * size + at % size;
        size_t n = size - at % size < to - at ? size - at % size : to - at;
        size_t seen = entry < all ? all - entry : 0;
        n = n < seen ? n : seen;
        score_run(b, score, q, keys, entry, n);
        best_add(entries, score, n, (uint32_t)entry);
    }
}

/* n, n of blocks, keys and numbers of the entries, keys and numbers of the blocks. */
static void store_piece(const struct batch *b, size_t piece, struct best *entries,
                        struct best *blocks)
{
    size_t k = keep(b->m->cfg);
    uint32_t *p = b->piece + piece * piece_words(b->m->cfg);
    best_close(entries);
    best_close(blocks);
    p[0] = (uint32_t)entries->n;
    p[1] = (uint32_t)blocks->n;
    p += 2;
    memcpy(p, entries->key, entries->n * sizeof *p);
    memcpy(p + k, entries->id, entries->n * sizeof *p);
    memcpy(p + entries->n, blocks->key, blocks->n * sizeof *p);
    memcpy(p + k + entries->n, blocks->id, blocks->n * sizeof *p);
}

size_t choose_words(const struct config *c)
{
    return query_words(c) + unit_size(c) + best_words(c->index_topk) +
           best_words(c->candidate_blocks);
}

static void score_piece(const struct lane *l, struct batch *b, const struct layer *L, size_t row,
                        size_t from, size_t to)
{
    const struct config *c = b->m->cfg;
    float *words = lane_scratch(l, b), *score = words + query_words(c);
    uint32_t *room = (uint32_t *)(void *)(score + unit_size(c));
    struct query q;
    struct best entries, blocks;
    make_query(&q, b, L, row, words);
    best_open(&entries, c->index_topk, room);
    best_open(&blocks, c->candidate_blocks, room + best_words(c->index_topk));
    for (size_t at = from; at < to; at += unit_size(c))
        score_unit(b, L, row, &q, at, at + unit_size(c) < to ? at + unit_size(c) : to, score,
                   &entries, &blocks);
    store_piece(b, row + (size_t)l->id, &entries, &blocks);
}

static size_t units(const struct batch *b, const struct layer *L, size_t row)
{
    size_t size = unit_size(b->m->cfg);
    return (places(b, L, row) + size - 1) / size;
}

/* With taps the queries are finished first, by rows. */
static void tap_queries(const struct lane *l, struct batch *b, const struct layer *L)
{
    const struct config *c = b->m->cfg;
    size_t heads = c->index_heads, dim = c->index_dim, r0, r1;
    const struct tap *tap = b->tap;
    uint8_t unused[INDEX_MAX_WIDTH];
    lane_split(l, b->n, 1, &r0, &r1);
    struct batch plain = *b;
    plain.tap = NULL;
    for (size_t i = r0 * heads; tap && i < r1 * heads; i++) {
        float *q = b->iq + i * dim;
        finish_head(&plain, L, i / heads, i % heads, query_scale(b, i / heads), q, unused);
        if (b->m->key_row.format == R_E2M1_32)
            b->m->k.rows(q, unused, 1, b->m->key_row);
        b->iw[i] = head_weight(&plain, i / heads, i % heads);
    }
    if (tap)
        lane_barrier(l);
    TAP(l, b, (int)L->id, "idx_q", b->iq, b->n, heads * dim);
    TAP(l, b, (int)L->id, "idx_w", b->iw, b->n, heads);
}

void choose_entries(const struct lane *l, struct batch *b, const struct layer *L)
{
    size_t total = 0, u0, u1, size = unit_size(b->m->cfg), first = 0;
    tap_queries(l, b, L);
    for (size_t r = 0; r < b->n; r++) {
        total += units(b, L, r);
        if (l->id == 0)
            b->unit_end[r] = total;
    }
    lane_split(l, total, 1, &u0, &u1);
    b->piece_end[l->id] = u1;
    for (size_t r = 0, n; r < b->n && first < u1; first += n, r++) {
        n = units(b, L, r);
        size_t from = u0 > first ? u0 - first : 0;
        size_t to = u1 - first < n ? u1 - first : n, all = places(b, L, r);
        if (from < to)
            score_piece(l, b, L, r, from * size, to * size < all ? to * size : all);
    }
    lane_barrier(l);
}

/* ------------------------------------------------------------------ merging */

size_t merge_words(const struct config *c)
{
    return best_words(c->index_topk > c->candidate_blocks ? c->index_topk : c->candidate_blocks);
}

/* blocks 1: of the blocks, 0: of the entries. */
static size_t merge(const struct batch *b, size_t first, size_t end, bool blocks, size_t k,
                    uint32_t *out, uint32_t *words)
{
    const struct config *c = b->m->cfg;
    struct best t;
    best_open(&t, k, words);
    for (size_t i = first; i < end; i++) {
        const uint32_t *p = b->piece + i * piece_words(c), *key = p + 2 + (blocks ? p[0] : 0);
        best_merge(&t, key, key + keep(c), p[blocks]);
    }
    best_close(&t);
    memcpy(out, t.id, t.n * sizeof *out);
    return t.n;
}

size_t merge_entries(struct batch *b, const struct layer *L, size_t row, bool publish,
                     uint32_t *sel, uint32_t *words)
{
    const struct config *c = b->m->cfg;
    size_t from = row > 0 ? b->unit_end[row - 1] : 0, to = b->unit_end[row], first = 0, end;
    while (from < to && b->piece_end[first] <= from)
        first++;
    for (end = first; from < to && (end == first || b->piece_end[end - 1] < to);)
        end++;
    first += row;
    end += row;
    size_t found = merge(b, first, end, false, c->index_topk, sel, words);
    if (publish) {
        memcpy(b->sel + row * c->index_topk, sel, found * sizeof *sel);
        b->n_sel[row] = (uint32_t)found;
        if (keeps_blocks(b, L))
            b->n_cand[row] = (uint32_t)merge(b, first, end, true, c->candidate_blocks,
                                             b->cand + row * c->candidate_blocks, words);
    }
    return found;
}
