/* The lightning indexer: which compressed entries a row attends (spec: architecture, sections 4, 5).
 *
 *   score_i = sum_h w_h max(0, q_h . k_i);   the index_topk best visible entries are chosen
 *
 * V4.1, two levels: the candidate source also keeps the best blocks of consecutive entries (block
 * score = its best visible entry; the newest visible block always), and later index sources may
 * only choose inside those blocks. Rows are taken in groups, so that scores need bounded memory. */
#include "model.h"

#include <math.h>

enum { SCORE_TASK = 256 };

static void sift_down(float *heap, size_t n, size_t i)
{
    float v = heap[i];
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n)
            break;
        if (child + 1 < n && heap[child + 1] < heap[child])
            child++;
        if (!(heap[child] < v))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = v;
}

size_t select_top(uint32_t *out, const float *score, size_t n, size_t k, float *heap)
{
    float limit = -INFINITY;
    size_t ties = 0, found = 0;
    if (n > k && k > 0) {
        for (size_t i = 0; i < k; i++)
            heap[i] = score[i];
        for (size_t i = k / 2; i-- > 0;)
            sift_down(heap, k, i);
        for (size_t i = k; i < n; i++)
            if (score[i] > heap[0]) {
                heap[0] = score[i];
                sift_down(heap, k, 0);
            }
        limit = heap[0];
        for (size_t i = 0; i < k; i++)
            ties += heap[i] == limit;
    }
    for (size_t i = 0; i < n && found < k; i++) {
        if (score[i] > limit) {
            out[found++] = (uint32_t)i;
        } else if (score[i] == limit && limit > -INFINITY && ties > 0) {
            out[found++] = (uint32_t)i;
            ties--;
        }
    }
    return found;
}

/* Scores of the entries first .. first + n of one row, chunk by chunk. */
static void score_run(const struct batch *b, float *out, const struct rowlist *keys, size_t row,
                      size_t first, size_t n)
{
    const struct config *c = b->m->cfg;
    const float *q = b->iq + row * c->index_heads * c->index_dim;
    const float *w = b->iw + row * c->index_heads;
    while (n > 0) {
        size_t run = CHUNK_ROWS - first % CHUNK_ROWS;
        run = run < n ? run : n;
        b->m->k.index(out, q, w, c->index_heads, rowlist_at(keys, first), run, keys->shape);
        out += run;
        first += run;
        n -= run;
    }
}

/* Places of a row's score list: every visible entry, or the candidate blocks one after the other. */
static size_t places(const struct batch *b, const struct layer *L, size_t row, size_t visible)
{
    return L->candidates ? (size_t)b->n_cand[row] * b->m->cfg->candidate_block : visible;
}

static void score_places(const struct batch *b, const struct layer *L, float *out, size_t row,
                         size_t visible, size_t from, size_t to)
{
    const struct cache *cache = b->seg[b->row_seg[row]].cache;
    const struct rowlist *keys = &cache->layer[L->kv_layer].key;
    if (!L->candidates) {
        score_run(b, out + from, keys, row, from, to - from);
        return;
    }
    const struct config *c = b->m->cfg;
    size_t size = c->candidate_block;
    const uint32_t *blocks = b->cand + row * c->candidate_blocks;
    for (size_t at = from; at < to;) {
        size_t entry = blocks[at / size] * size + at % size;
        size_t end = at + size - at % size < to ? at + size - at % size : to;
        size_t seen = entry < visible ? visible - entry : 0;
        size_t n = end - at < seen ? end - at : seen;
        score_run(b, out + at, keys, row, entry, n);
        for (at += n; at < end; at++)
            out[at] = -INFINITY;
    }
}

/* The candidate source: keeps the best blocks of this row's scores. */
static void keep_blocks(struct batch *b, size_t row, const float *score, size_t visible,
                        float *best, float *heap)
{
    const struct config *c = b->m->cfg;
    size_t size = c->candidate_block, n = (visible + size - 1) / size;
    for (size_t i = 0; i < n; i++) {
        size_t end = (i + 1) * size < visible ? (i + 1) * size : visible;
        best[i] = -INFINITY;
        for (size_t j = i * size; j < end; j++)
            best[i] = score[j] > best[i] ? score[j] : best[i];
    }
    if (n > 0)
        best[n - 1] = INFINITY;
    b->n_cand[row] = (uint32_t)select_top(b->cand + row * c->candidate_blocks, best, n,
                                          c->candidate_blocks, heap);
}

static void choose_row(const struct lane *l, struct batch *b, const struct layer *L, size_t row,
                       float *score, size_t visible)
{
    const struct config *c = b->m->cfg;
    size_t n = places(b, L, row, visible);
    uint32_t *sel = b->sel + row * c->index_topk;
    float *heap = lane_scratch(l, b);
    if ((int32_t)L->id == c->candidate_source)
        keep_blocks(b, row, score, visible, score + visible, heap);
    size_t found = select_top(sel, score, n, c->index_topk, heap);
    if (L->candidates) {
        const uint32_t *blocks = b->cand + row * c->candidate_blocks;
        uint32_t size = c->candidate_block;
        for (size_t i = 0; i < found; i++)
            sel[i] = blocks[sel[i] / size] * size + sel[i] % size;
    }
    b->n_sel[row] = (uint32_t)found;
}

void choose_entries(const struct lane *l, struct batch *b, const struct layer *L)
{
    for (size_t g = 0; g < b->n; g += b->score_rows) {
        size_t rows = b->n - g < b->score_rows ? b->n - g : b->score_rows, task = 0;
        for (size_t i = 0; i < rows; i++) {
            size_t row = g + i, visible = (b->pos[row] + 1) / L->ratio;
            size_t n = places(b, L, row, visible);
            for (size_t at = 0; at < n; at += SCORE_TASK, task++)
                if (task % (size_t)l->n == (size_t)l->id)
                    score_places(b, L, b->score + i * b->score_ld, row, visible, at,
                                 at + SCORE_TASK < n ? at + SCORE_TASK : n);
        }
        lane_barrier(l);
        for (size_t i = (size_t)l->id; i < rows; i += (size_t)l->n)
            choose_row(l, b, L, g + i, b->score + i * b->score_ld, (b->pos[g + i] + 1) / L->ratio);
        lane_barrier(l);
    }
    TAP(l, b, (int)L->id, "chosen", NULL, b->n, 0);
}
