/* What a sequence carries from step to step: window rings, compressed entries and index keys,
 * open groups, token ids. Any position of the last `rewind` ones can be returned to, because
 * every ring is that much longer than the model needs; earlier ones through savepoints
 * (savepoint.c).
 *
 * Sequences that begin alike share the chunks of entries and keys. A chunk is copied when one of
 * them is about to write into it: at most one a list, the last, since the others are full and
 * stay as they are. Rings and token ids are copied at once. */
#include "model.h"

#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ lists of rows */

static int chunk_open(struct chunk **out, const struct rowlist *l, dsv4_err *err)
{
    size_t bytes;
    if (!size_mul(CHUNK_ROWS, row_bytes(l->shape), &bytes) ||
        !size_add(bytes, sizeof **out, &bytes))
        return err_memory(err, UINT64_MAX, "a cache");
    TRY(mem_alloc(out, bytes, 1, "a cache", err));
    (*out)->holders = 1;
    return 0;
}

static void chunk_close(struct chunk *k)
{
    if (--k->holders == 0)
        free(k);
}

static void rowlist_free(struct rowlist *l)
{
    for (size_t i = 0; i < l->n_chunks; i++)
        chunk_close(l->chunk[i]);
    free(l->chunk);
}

/* Chunk i, of which `used` rows count, becomes this list's own. */
static int rowlist_own(struct rowlist *l, size_t i, size_t used, dsv4_err *err)
{
    struct chunk *own, *shared = l->chunk[i];
    if (shared->holders == 1)
        return 0;
    TRY(chunk_open(&own, l, err));
    memcpy(own->rows, shared->rows, used * row_bytes(l->shape));
    chunk_close(shared);
    l->chunk[i] = own;
    return 0;
}

/* Room for rows [have, rows), of which none is written yet. */
static int rowlist_reserve(struct rowlist *l, size_t have, size_t rows, dsv4_err *err)
{
    size_t chunks = (rows + CHUNK_ROWS - 1) / CHUNK_ROWS;
    if (rows <= have)
        return 0;
    for (size_t i = have / CHUNK_ROWS; i < l->n_chunks && i < chunks; i++)
        TRY(rowlist_own(l, i, i == have / CHUNK_ROWS ? have % CHUNK_ROWS : 0, err));
    TRY(mem_grow(&l->chunk, &l->cap_chunks, chunks, sizeof(struct chunk *), "a cache", err));
    for (; l->n_chunks < chunks; l->n_chunks++)
        TRY(chunk_open(&l->chunk[l->n_chunks], l, err));
    return 0;
}

/* `to` is empty; afterwards it has the first rows of `from`. */
static int rowlist_share(struct rowlist *to, const struct rowlist *from, size_t rows, dsv4_err *err)
{
    size_t chunks = (rows + CHUNK_ROWS - 1) / CHUNK_ROWS;
    TRY(mem_grow(&to->chunk, &to->cap_chunks, chunks, sizeof(struct chunk *), "a cache", err));
    for (; to->n_chunks < chunks; to->n_chunks++) {
        to->chunk[to->n_chunks] = from->chunk[to->n_chunks];
        to->chunk[to->n_chunks]->holders++;
    }
    return 0;
}

static uint64_t rowlist_held(const struct rowlist *l)
{
    uint64_t sum = l->cap_chunks * sizeof(struct chunk *);
    uint64_t bytes = sizeof(struct chunk) + CHUNK_ROWS * row_bytes(l->shape);
    for (size_t i = 0; i < l->n_chunks; i++)
        sum += bytes / l->chunk[i]->holders;
    return sum;
}

/* ------------------------------------------------------------------ opening and closing */

/* Where the rings of a sequence go: one behind the other in one block, so that all sequences of a
 * model need the same, and what a closed one leaves fits the next. */
struct layout {
    uint8_t *base; /* NULL: only add up */
    uint64_t bytes;
};

static void *place(struct layout *at, uint64_t bytes)
{
    uint8_t *p = at->base ? at->base + at->bytes : NULL;
    at->bytes += (bytes + 63) & ~63ull;
    return p;
}

static void place_group(struct layout *at, struct open_group *g, const struct compressor *p,
                        uint32_t rewind)
{
    if (p->ratio <= 1)
        return;
    g->cap = p->coff * p->ratio + rewind;
    g->width = p->coff * p->width;
    uint64_t bytes = (uint64_t)g->cap * g->width * sizeof(float);
    g->k = place(at, bytes);
    g->gate = place(at, bytes);
}

/* Window and open groups of all layers; without a block the bytes it needs. */
static uint64_t place_rings(struct cache *c, const struct model *m, uint32_t window,
                            uint32_t rewind)
{
    struct layout at = {.base = c ? c->rings : NULL};
    struct layer_cache unused;
    for (uint32_t l = 0; l < m->cfg->n_layers; l++) {
        const struct layer *L = &m->layer[l];
        struct layer_cache *lc = c ? &c->layer[l] : &unused;
        lc->window = place(&at, (uint64_t)window * row_bytes(m->window_row));
        if (L->kv_source)
            place_group(&at, &lc->open, &L->comp, rewind);
        place_group(&at, &lc->key_open, &L->index.own, rewind);
    }
    return at.bytes;
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
    c->save_step = savepoint_step(m);
    int rc = mem_alloc(&c->layer, m->cfg->n_layers, sizeof *c->layer, "a sequence", err);
    if (rc == 0)
        rc = mem_alloc(&c->rings, (size_t)place_rings(NULL, m, c->window_cap, rewind), 1,
                       "a sequence's windows", err);
    if (rc != 0) {
        cache_close(c);
        return rc;
    }
    place_rings(c, m, c->window_cap, rewind);
    for (uint32_t l = 0; l < m->cfg->n_layers; l++) {
        c->layer[l].entry.shape = m->entry_row;
        c->layer[l].key.shape = m->key_row;
    }
    *out = c;
    return 0;
}

void cache_close(struct cache *c)
{
    if (!c)
        return;
    for (uint32_t l = 0; c->layer && l < c->m->cfg->n_layers; l++) {
        struct layer_cache *lc = &c->layer[l];
        rowlist_free(&lc->entry);
        rowlist_free(&lc->key);
    }
    savepoints_drop(c, 0);
    free(c->save);
    free(c->rings);
    free(c->layer);
    free(c->token);
    free(c->folded);
    free(c);
}

/* ------------------------------------------------------------------ growing */

static int reserve_tokens(struct cache *c, size_t len, dsv4_err *err)
{
    size_t cap = c->cap_tokens, cap_folded = c->folded ? c->cap_tokens : 0;
    TRY(mem_grow(&c->token, &cap, len, sizeof *c->token, "token ids", err));
    if (c->m->engram_map)
        TRY(mem_grow(&c->folded, &cap_folded, cap, sizeof *c->folded, "token ids", err));
    c->cap_tokens = cap;
    return 0;
}

int cache_reserve_rows(struct cache *c, size_t len, dsv4_err *err)
{
    TRY(reserve_tokens(c, len, err));
    for (uint32_t l = 0; l < c->m->cfg->n_layers; l++) {
        const struct layer *L = &c->m->layer[l];
        struct layer_cache *lc = &c->layer[l];
        if (L->kv_source)
            TRY(rowlist_reserve(&lc->entry, c->len / L->ratio, len / L->ratio, err));
        if (layer_has_keys(L))
            TRY(rowlist_reserve(&lc->key, c->len / L->ratio, len / L->ratio, err));
    }
    return 0;
}

int cache_reserve(struct cache *c, size_t len, dsv4_err *err)
{
    TRY(cache_reserve_rows(c, len, err));
    return savepoints_reserve(c, len, err);
}

/* ------------------------------------------------------------------ returning */

size_t cache_floor(const struct cache *c)
{
    size_t ring = c->high > c->rewind ? c->high - c->rewind : 0;
    return ring > c->base ? ring : c->base;
}

size_t cache_reusable(const struct cache *c, size_t len)
{
    if (len >= c->len)
        return c->len;
    if (len >= cache_floor(c))
        return len;
    for (size_t i = c->n_saved; i-- > 0;)
        if (c->save[i]->pos <= len)
            return c->save[i]->pos;
    return 0;
}

void cache_rewind(struct cache *c, size_t len)
{
    savepoints_drop(c, len);
    if (len == 0)
        c->high = c->base = 0;
    else if (len < c->len && len < cache_floor(c))
        savepoint_restore(c, savepoints_find(c, len));
    c->len = len;
}

/* ------------------------------------------------------------------ sharing */

/* Both have rings of the same lengths. */
static void copy_rings(struct cache *to, const struct cache *from)
{
    memcpy(to->rings, from->rings, (size_t)place_rings(NULL, to->m, to->window_cap, to->rewind));
    to->high = from->high;
    to->base = from->base;
}

static int share(struct cache *to, const struct cache *from, size_t len, dsv4_err *err)
{
    TRY(reserve_tokens(to, len, err));
    memcpy(to->token, from->token, len * sizeof *to->token);
    if (to->folded)
        memcpy(to->folded, from->folded, len * sizeof *to->folded);
    for (uint32_t l = 0; l < to->m->cfg->n_layers; l++) {
        const struct layer *L = &to->m->layer[l];
        struct layer_cache *lc = &to->layer[l];
        const struct layer_cache *old = &from->layer[l];
        if (L->kv_source)
            TRY(rowlist_share(&lc->entry, &old->entry, len / L->ratio, err));
        if (layer_has_keys(L))
            TRY(rowlist_share(&lc->key, &old->key, len / L->ratio, err));
    }
    TRY(mem_grow(&to->save, &to->cap_save, from->n_saved, sizeof(struct savepoint *), "savepoints",
                 err));
    for (size_t i = 0; i < from->n_saved && from->save[i]->pos <= len; i++) {
        to->save[i] = from->save[i];
        to->save[i]->holders++;
        to->n_save = to->n_saved = i + 1;
    }
    return 0;
}

int cache_fork(struct cache **out, const struct cache *from, size_t len, dsv4_err *err)
{
    struct cache *c;
    uint32_t batch = from->window_cap - from->rewind - from->m->cfg->window;
    TRY(cache_open(&c, from->m, batch, from->rewind, err));
    c->save_step = from->save_step;
    int rc = len > 0 ? share(c, from, len, err) : 0;
    if (rc != 0) {
        cache_close(c);
        return rc;
    }
    c->len = len;
    if (len > 0 && len >= cache_floor(from))
        copy_rings(c, from);
    else if (len > 0)
        savepoint_restore(c, savepoints_find(c, len));
    *out = c;
    return 0;
}

/* ------------------------------------------------------------------ sizes */

/* Of a sequence of any length. */
static uint64_t fixed_bytes(const struct model *m, uint32_t window, uint32_t rewind)
{
    return sizeof(struct cache) + m->cfg->n_layers * sizeof(struct layer_cache) +
           place_rings(NULL, m, window, rewind);
}

uint64_t cache_bytes(const struct model *m, uint32_t batch, uint32_t rewind, uint64_t len)
{
    uint64_t sum = fixed_bytes(m, window_cap(m, batch, rewind), rewind);
    sum += len * sizeof(int32_t) * (m->engram_map ? 2 : 1);
    for (uint32_t l = 0; l < m->cfg->n_layers; l++) {
        const struct layer *L = &m->layer[l];
        if (!L->kv_source)
            continue;
        uint64_t chunks = (len / L->ratio + CHUNK_ROWS - 1) / CHUNK_ROWS;
        uint64_t row = row_bytes(m->entry_row) + (layer_has_keys(L) ? row_bytes(m->key_row) : 0);
        sum += chunks * (CHUNK_ROWS * row + sizeof(struct chunk) * (layer_has_keys(L) ? 2 : 1));
    }
    uint64_t step = savepoint_step(m);
    if (len >= step)
        sum += len / step * (sizeof(struct savepoint) + tail_bytes(m, step, step));
    return sum;
}

uint64_t cache_held(const struct cache *c)
{
    uint64_t sum = fixed_bytes(c->m, c->window_cap, c->rewind);
    sum += c->cap_tokens * sizeof(int32_t) * (c->folded ? 2 : 1);
    for (uint32_t l = 0; l < c->m->cfg->n_layers; l++)
        sum += rowlist_held(&c->layer[l].entry) + rowlist_held(&c->layer[l].key);
    for (size_t i = 0; i < c->n_save; i++) {
        const struct savepoint *s = c->save[i];
        sum += (sizeof *s + tail_bytes(c->m, s->pos, s->pos)) / s->holders;
    }
    return sum;
}
