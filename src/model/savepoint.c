/* The tail of a cache and copies of it. Rowlists keep every compressed entry, but the window and
 * the groups that are still open are rings that forget; a savepoint is a copy of them at one
 * position, so that a long sequence can be returned to, or shared from, places that the rings
 * have left behind. */
#include "model.h"

#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ the tail */

/* The first position whose window row is needed to stand at `low`: token low attends itself and
 * window - 1 before it. */
static uint64_t first_window(const struct model *m, uint64_t low)
{
    return low + 1 > m->cfg->window ? low + 1 - m->cfg->window : 0;
}

/* Likewise for a compressor: the open group, and with overlap the one before. */
static uint64_t first_open(const struct compressor *p, uint64_t low)
{
    uint64_t group = low / p->ratio, before = p->coff - 1;
    return (group > before ? group - before : 0) * p->ratio;
}

static int ring(uint8_t *rows, size_t cap, size_t bytes, size_t from, size_t to, tail_fn fn,
                void *arg)
{
    for (size_t pos = from; pos < to; pos++) {
        int rc = fn(arg, rows + pos % cap * bytes, bytes);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int open_group(const struct open_group *g, const struct compressor *p, size_t low,
                      size_t len, tail_fn fn, void *arg)
{
    if (g->cap == 0)
        return 0;
    size_t from = (size_t)first_open(p, low), bytes = g->width * sizeof(float);
    int rc = ring((uint8_t *)g->k, g->cap, bytes, from, len, fn, arg);
    return rc != 0 ? rc : ring((uint8_t *)g->gate, g->cap, bytes, from, len, fn, arg);
}

int cache_tail(const struct cache *c, size_t low, size_t len, tail_fn fn, void *arg)
{
    const struct model *m = c->m;
    for (uint32_t l = 0; l < m->cfg->n_layers; l++) {
        const struct layer *L = &m->layer[l];
        const struct layer_cache *lc = &c->layer[l];
        int rc = ring(lc->window, c->window_cap, row_bytes(m->window_row),
                      (size_t)first_window(m, low), len, fn, arg);
        if (rc == 0)
            rc = open_group(&lc->open, &L->comp, low, len, fn, arg);
        if (rc == 0)
            rc = open_group(&lc->key_open, &L->index.own, low, len, fn, arg);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static uint64_t open_bytes(const struct compressor *p, uint64_t low, uint64_t len)
{
    if (p->ratio <= 1)
        return 0;
    return (len - first_open(p, low)) * p->coff * p->width * 2 * sizeof(float);
}

uint64_t tail_bytes(const struct model *m, uint64_t low, uint64_t len)
{
    uint64_t sum = 0;
    for (uint32_t l = 0; l < m->cfg->n_layers; l++) {
        const struct layer *L = &m->layer[l];
        sum += (len - first_window(m, low)) * row_bytes(m->window_row);
        if (L->kv_source)
            sum += open_bytes(&L->comp, low, len);
        sum += open_bytes(&L->index.own, low, len);
    }
    return sum;
}

/* ------------------------------------------------------------------ one savepoint */

int savepoint_open(struct savepoint **out, const struct model *m, size_t pos, dsv4_err *err)
{
    uint64_t bytes = tail_bytes(m, pos, pos);
    size_t all;
    if (bytes > SIZE_MAX || !size_add((size_t)bytes, sizeof **out, &all))
        return err_memory(err, bytes, "a savepoint");
    TRY(mem_alloc(out, all, 1, "a savepoint", err));
    (*out)->pos = pos;
    (*out)->holders = 1;
    return 0;
}

void savepoint_close(struct savepoint *s)
{
    if (s && --s->holders == 0)
        free(s);
}

static int copy_out(void *arg, void *piece, size_t bytes)
{
    uint8_t **to = arg;
    memcpy(*to, piece, bytes);
    *to += bytes;
    return 0;
}

static int copy_in(void *arg, void *piece, size_t bytes)
{
    const uint8_t **from = arg;
    memcpy(piece, *from, bytes);
    *from += bytes;
    return 0;
}

void savepoint_restore(struct cache *c, const struct savepoint *s)
{
    const uint8_t *from = s->data;
    cache_tail(c, s->pos, s->pos, copy_in, &from);
    c->len = c->high = c->base = s->pos;
}

/* ------------------------------------------------------------------ those of a cache */

size_t savepoint_step(const struct model *m)
{
    enum { PARTS = 100, OF_PARTS = 3 }; /* 3 % */
    uint64_t unit = 1, added = 0;
    for (uint32_t l = 0; l < m->cfg->n_layers; l++)
        if (m->layer[l].kv_source && m->layer[l].ratio > unit)
            unit = m->layer[l].ratio; /* a multiple of all others: every group ends there */
    for (uint32_t l = 0; l < m->cfg->n_layers; l++) {
        const struct layer *L = &m->layer[l];
        if (L->kv_source)
            added += unit / L->ratio * row_bytes(m->entry_row);
        if (layer_has_keys(L))
            added += unit / L->ratio * row_bytes(m->key_row);
    }
    if (added == 0)
        return SIZE_MAX; /* nothing grows: computing again is all there is to save */
    uint64_t far = (m->cfg->window / unit + 2) * unit;
    uint64_t cost = sizeof(struct savepoint) + tail_bytes(m, far, far);
    uint64_t units = (cost * PARTS + OF_PARTS * added - 1) / (OF_PARTS * added);
    return (size_t)(units * unit);
}

size_t savepoints_next(const struct cache *c)
{
    size_t next;
    return size_mul(c->len / c->save_step + 1, c->save_step, &next) ? next : SIZE_MAX;
}

int savepoints_reserve(struct cache *c, size_t len, dsv4_err *err)
{
    size_t next = savepoints_next(c);
    if (c->n_save > c->n_saved && c->save[c->n_save - 1]->pos >= next)
        next = c->save[c->n_save - 1]->pos + c->save_step;
    for (; next <= len; next += c->save_step) {
        TRY(mem_grow(&c->save, &c->cap_save, c->n_save + 1, sizeof(struct savepoint *),
                     "savepoints", err));
        TRY(savepoint_open(&c->save[c->n_save], c->m, next, err));
        c->n_save++;
    }
    return 0;
}

void savepoints_keep(struct cache *c)
{
    if (c->n_saved == c->n_save || c->save[c->n_saved]->pos != c->len)
        return;
    uint8_t *to = c->save[c->n_saved++]->data;
    cache_tail(c, c->len, c->len, copy_out, &to);
}

int savepoints_add(struct cache *c, dsv4_err *err)
{
    if (c->len == 0 || savepoints_find(c, c->len))
        return 0;
    TRY(mem_grow(&c->save, &c->cap_save, c->n_save + 1, sizeof(struct savepoint *), "savepoints",
                 err));
    struct savepoint *s, **at = c->save + c->n_saved;
    TRY(savepoint_open(&s, c->m, c->len, err));
    memmove(at + 1, at, (c->n_save - c->n_saved) * sizeof(struct savepoint *));
    *at = s;
    c->n_save++;
    c->n_saved++;
    uint8_t *to = s->data;
    cache_tail(c, c->len, c->len, copy_out, &to);
    return 0;
}

void savepoints_remove(struct cache *c, size_t pos)
{
    for (size_t i = 0; i < c->n_saved && pos % c->save_step != 0; i++)
        if (c->save[i]->pos == pos) {
            savepoint_close(c->save[i]);
            c->n_saved--;
            c->n_save--;
            memmove(c->save + i, c->save + i + 1, (c->n_save - i) * sizeof *c->save);
            return;
        }
}

const struct savepoint *savepoints_find(const struct cache *c, size_t pos)
{
    for (size_t i = c->n_saved; i-- > 0 && c->save[i]->pos >= pos;)
        if (c->save[i]->pos == pos)
            return c->save[i];
    return NULL;
}

void savepoints_drop(struct cache *c, size_t len)
{
    while (c->n_saved > 0 && c->save[c->n_saved - 1]->pos > len)
        c->n_saved--;
    while (c->n_save > c->n_saved)
        savepoint_close(c->save[--c->n_save]);
}
