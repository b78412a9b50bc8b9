/* What snapshot files and models are recognised by, and the walk over a cache that writing and
 * reading have in common. */
#include "snapshot.h"

#include <string.h>

#ifdef HAVE_XXHASH

#include <xxhash.h>

uint64_t snapshot_head_hash(const struct snapshot_head *h)
{
    return XXH3_64bits(h, offsetof(struct snapshot_head, hash));
}

/* ------------------------------------------------------------------ the fingerprint */

static void add(XXH3_state_t *s, const void *data, size_t n)
{
    XXH3_128bits_update(s, data, n);
}

static void add_number(XXH3_state_t *s, uint64_t v)
{
    add(s, &v, sizeof v);
}

/* All numbers of a config. It was made of zeroed memory, so padding does not differ. */
static void add_config(XXH3_state_t *s, const struct config *c)
{
    struct config plain;
    memcpy(&plain, c, sizeof plain);
    plain.packing = NULL; /* add_weights sees what it describes */
    plain.ratio = NULL;
    plain.kv_source = plain.index_source = NULL;
    plain.engram_layer = NULL;
    plain.engram_rows = NULL;
    add(s, &plain, sizeof plain);
    add(s, c->ratio, c->n_layers * sizeof *c->ratio);
    if (c->kv_source)
        add(s, c->kv_source, c->n_layers * sizeof *c->kv_source);
    if (c->index_source)
        add(s, c->index_source, c->n_layers * sizeof *c->index_source);
    if (c->n_engram) {
        add(s, c->engram_layer, c->n_engram * sizeof *c->engram_layer);
        add(s, c->engram_rows, c->n_engram * sizeof *c->engram_rows);
    }
}

/* Names and shapes of all tensors; of about a thousand places in the weights that tokens need,
 * spread evenly over the tensors, some bytes each: other weights differ nearly everywhere. */
static void add_weights(XXH3_state_t *s, const struct store *store)
{
    enum { PLACES = 1024, BYTES = 64 };
    size_t n = store_count(store), every = n / PLACES + 1, each = PLACES / n + 1;
    for (size_t i = 0; i < n; i++) {
        const struct tensor *t = store_at(store, i);
        add(s, t->name, strlen(t->name) + 1);
        add_number(s, (uint64_t)t->dtype << 32 | t->rank);
        add(s, t->dim, t->rank * sizeof *t->dim);
        if (i % every != 0 || !tensor_is_read(t))
            continue;
        for (size_t k = 0; k < each; k++) {
            uint64_t at = t->bytes / each * k, left = t->bytes - at;
            add(s, t->data + at, left < BYTES ? (size_t)left : BYTES);
        }
    }
}

static void add_row(XXH3_state_t *s, struct rshape row)
{
    add_number(s, row.format);
    add_number(s, (uint64_t)row.width << 32 | row.rope);
}

int snapshot_fingerprint(uint64_t out[2], dsv4_engine *e, dsv4_err *err)
{
    const struct model *m = e->cp.m;
    if (!m->store)
        return err_set(err, DSV4_USAGE, "a synthetic engine has no snapshots");
    if ((e->fingerprint[0] | e->fingerprint[1]) == 0) {
        XXH3_state_t *s = XXH3_createState();
        if (!s)
            return err_memory(err, sizeof(XXH64_hash_t), "a checksum");
        XXH3_128bits_reset(s);
        add_config(s, m->cfg);
        add_weights(s, m->store);
        add_row(s, m->window_row);
        add_row(s, m->entry_row);
        add_row(s, m->key_row);
        if (m->engram_map) /* depends on the tokenizer */
            add(s, m->engram_map, m->cfg->vocab * sizeof *m->engram_map);
        XXH128_hash_t h = XXH3_128bits_digest(s);
        XXH3_freeState(s);
        e->fingerprint[0] = h.low64;
        e->fingerprint[1] = h.high64 | 1; /* never both zero */
    }
    memcpy(out, e->fingerprint, sizeof e->fingerprint);
    return 0;
}

/* ------------------------------------------------------------------ the body */

uint64_t snapshot_body_bytes(const struct model *m, uint64_t len, uint64_t low)
{
    uint64_t sum = sizeof(uint64_t) + tail_bytes(m, low, len);
    for (uint32_t l = 0; l < m->cfg->n_layers; l++) {
        const struct layer *L = &m->layer[l];
        if (L->kv_source)
            sum += len / L->ratio * row_bytes(m->entry_row);
        if (layer_has_keys(L))
            sum += len / L->ratio * row_bytes(m->key_row);
    }
    return sum;
}

static int rows(const struct rowlist *l, size_t n, tail_fn fn, void *arg)
{
    for (size_t i = 0, k; i < n; i += k) {
        k = n - i < CHUNK_ROWS ? n - i : CHUNK_ROWS;
        TRY(fn(arg, rowlist_at(l, i), k * row_bytes(l->shape)));
    }
    return 0;
}

int snapshot_body(const struct cache *c, size_t low, tail_fn fn, void *arg)
{
    for (uint32_t l = 0; l < c->m->cfg->n_layers; l++) {
        const struct layer *L = &c->m->layer[l];
        if (L->kv_source)
            TRY(rows(&c->layer[l].entry, c->len / L->ratio, fn, arg));
        if (layer_has_keys(L))
            TRY(rows(&c->layer[l].key, c->len / L->ratio, fn, arg));
    }
    TRY(cache_tail(c, low, c->len, fn, arg));
    for (size_t i = 0; i < c->n_saved; i++) {
        struct savepoint *s = c->save[i];
        TRY(fn(arg, s->data, (size_t)tail_bytes(c->m, s->pos, s->pos)));
    }
    return 0;
}

#else

static int without(dsv4_err *err)
{
    return err_set(err, DSV4_FAILED, "this build has no xxHash, which saving sequences needs");
}

int dsv4_seq_save(const dsv4_seq *s, const char *file, dsv4_err *err)
{
    (void)s, (void)file;
    return without(err);
}

int dsv4_seq_load(dsv4_seq **out, dsv4_engine *e, const char *file, dsv4_err *err)
{
    (void)e, (void)file;
    *out = NULL;
    return without(err);
}

int dsv4_snapshot_tokens(const char *file, int32_t **ids, size_t *n, dsv4_err *err)
{
    (void)file;
    *ids = NULL;
    *n = 0;
    return without(err);
}

#endif
