/* What a sequence carries from step to step: window rings, compressed entries and index keys, open
 * groups, token ids. Any position of the last `rewind` ones can be returned to, because every ring
 * is that much longer than the model needs. */
#include "model.h"

#include <stdlib.h>

static int open_group(struct open_group *g, const struct compressor *p, uint32_t rewind,
                      dsv4_err *err)
{
    if (p->ratio <= 1)
        return 0;
    g->cap = p->coff * p->ratio + rewind;
    g->width = p->coff * p->width;
    TRY(mem_alloc(&g->k, (size_t)g->cap * g->width, sizeof *g->k, "a compressor's open group",
                  err));
    return mem_alloc(&g->gate, (size_t)g->cap * g->width, sizeof *g->gate,
                     "a compressor's open group", err);
}

static int open_layer(struct cache *c, uint32_t l, dsv4_err *err)
{
    const struct model *m = c->m;
    const struct layer *L = &m->layer[l];
    struct layer_cache *lc = &c->layer[l];
    lc->entry.shape = m->entry_row;
    lc->key.shape = m->key_row;
    TRY(mem_alloc(&lc->window, c->window_cap, row_bytes(m->window_row), "a window", err));
    if (L->kv_source)
        TRY(open_group(&lc->open, &L->comp, c->rewind, err));
    return open_group(&lc->key_open, &L->index.own, c->rewind, err);
}

static uint32_t window_cap(const struct model *m, uint32_t batch, uint32_t rewind)
{
    return m->cfg->window + batch + rewind;
}

int cache_open(struct cache **out, const struct model *m, uint32_t batch, uint32_t rewind,
               dsv4_err *err)
{
    struct cache *c;
    TRY(mem_alloc(&c, 1, sizeof *c, "a sequence", err));
    c->m = m;
    c->window_cap = window_cap(m, batch, rewind);
    c->rewind = rewind;
    int rc = mem_alloc(&c->layer, m->cfg->n_layers, sizeof *c->layer, "a sequence", err);
    for (uint32_t l = 0; l < m->cfg->n_layers && rc == 0; l++)
        rc = open_layer(c, l, err);
    if (rc != 0) {
        cache_close(c);
        return rc;
    }
    *out = c;
    return 0;
}

static void rowlist_free(struct rowlist *l)
{
    for (size_t i = 0; i < l->n_chunks; i++)
        free(l->chunk[i]);
    free(l->chunk);
}

void cache_close(struct cache *c)
{
    if (!c)
        return;
    for (uint32_t l = 0; c->layer && l < c->m->cfg->n_layers; l++) {
        struct layer_cache *lc = &c->layer[l];
        free(lc->window);
        rowlist_free(&lc->entry);
        rowlist_free(&lc->key);
        free(lc->open.k);
        free(lc->open.gate);
        free(lc->key_open.k);
        free(lc->key_open.gate);
    }
    free(c->layer);
    free(c->token);
    free(c->folded);
    free(c);
}

static int rowlist_reserve(struct rowlist *l, size_t rows, dsv4_err *err)
{
    size_t chunks = (rows + CHUNK_ROWS - 1) / CHUNK_ROWS;
    TRY(mem_grow(&l->chunk, &l->cap_chunks, chunks, sizeof *l->chunk, "a cache", err));
    for (; l->n_chunks < chunks; l->n_chunks++)
        TRY(mem_alloc(&l->chunk[l->n_chunks], CHUNK_ROWS, row_bytes(l->shape), "a cache", err));
    return 0;
}

static bool has_keys(const struct layer *L)
{
    return L->kv_source && (L->index.own.ratio > 0 || L->index.wk.rows > 0);
}

int cache_reserve(struct cache *c, size_t len, dsv4_err *err)
{
    size_t cap = c->cap_tokens, cap_folded = c->folded ? c->cap_tokens : 0;
    TRY(mem_grow(&c->token, &cap, len, sizeof *c->token, "token ids", err));
    if (c->m->engram_map)
        TRY(mem_grow(&c->folded, &cap_folded, cap, sizeof *c->folded, "token ids", err));
    c->cap_tokens = cap;
    for (uint32_t l = 0; l < c->m->cfg->n_layers; l++) {
        const struct layer *L = &c->m->layer[l];
        if (L->kv_source)
            TRY(rowlist_reserve(&c->layer[l].entry, len / L->ratio, err));
        if (has_keys(L))
            TRY(rowlist_reserve(&c->layer[l].key, len / L->ratio, err));
    }
    return 0;
}

size_t cache_floor(const struct cache *c)
{
    return c->high > c->rewind ? c->high - c->rewind : 0;
}

void cache_rewind(struct cache *c, size_t len)
{
    c->len = len;
    if (len == 0)
        c->high = 0;
}

static uint64_t open_bytes(const struct compressor *p, uint32_t rewind)
{
    return p->ratio <= 1
               ? 0
               : 2ull * sizeof(float) * (p->coff * p->ratio + rewind) * p->coff * p->width;
}

uint64_t cache_bytes(const struct model *m, uint32_t batch, uint32_t rewind, uint64_t len)
{
    uint64_t sum = sizeof(struct cache) + len * sizeof(int32_t) * (m->engram_map ? 2 : 1);
    for (uint32_t l = 0; l < m->cfg->n_layers; l++) {
        const struct layer *L = &m->layer[l];
        sum += sizeof(struct layer_cache) +
               (uint64_t)window_cap(m, batch, rewind) * row_bytes(m->window_row);
        if (!L->kv_source)
            continue;
        uint64_t rows = (len / L->ratio + CHUNK_ROWS - 1) / CHUNK_ROWS * CHUNK_ROWS;
        sum += rows * row_bytes(m->entry_row) + (has_keys(L) ? rows * row_bytes(m->key_row) : 0);
        sum += open_bytes(&L->comp, rewind) + open_bytes(&L->index.own, rewind);
    }
    return sum;
}
