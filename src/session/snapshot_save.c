/* Writing a snapshot: one pass over the cache through a small buffer, aside, then renamed. */
#include "snapshot.h"

#ifdef HAVE_XXHASH

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { BUFFER = 1 << 16 };

struct writer {
    struct file_aside file;
    XXH3_state_t *hash;
    uint8_t *buffer;
    size_t n;
    dsv4_err *err;
};

static int flush(struct writer *w)
{
    size_t n = w->n;
    w->n = 0;
    return n ? file_write_all(w->file.fd, w->file.path, w->buffer, n, w->err) : 0;
}

/* Window rows are small and many, chunks large: only the small ones are gathered. */
static int put(struct writer *w, const void *data, size_t n)
{
    if (n > BUFFER - w->n)
        TRY(flush(w));
    if (n > BUFFER)
        return file_write_all(w->file.fd, w->file.path, data, n, w->err);
    memcpy(w->buffer + w->n, data, n);
    w->n += n;
    return 0;
}

static int put_piece(void *arg, void *piece, size_t bytes)
{
    struct writer *w = arg;
    XXH3_64bits_update(w->hash, piece, bytes);
    return put(w, piece, bytes);
}

/* Savepoints go out by their positions, the index holds them as numbers of 8 bytes. */
static int put_positions(struct writer *w, const struct cache *c, bool only_hash)
{
    for (size_t i = 0; i < c->n_saved; i++) {
        uint64_t pos = c->save[i]->pos;
        if (only_hash)
            XXH3_64bits_update(w->hash, &pos, sizeof pos);
        else
            TRY(put(w, &pos, sizeof pos));
    }
    return 0;
}

static uint64_t all_bytes(const struct cache *c, uint64_t low)
{
    uint64_t sum = sizeof(struct snapshot_head) + c->len * sizeof(int32_t);
    sum += snapshot_body_bytes(c->m, c->len, low);
    for (size_t i = 0; i < c->n_saved; i++)
        sum += sizeof(uint64_t) + tail_bytes(c->m, c->save[i]->pos, c->save[i]->pos);
    return sum;
}

static int write_all(struct writer *w, const dsv4_seq *s)
{
    const struct cache *c = s->cache;
    size_t low = cache_floor(c), ids = c->len * sizeof *c->token;
    struct snapshot_head h = {.order = SNAPSHOT_ORDER,
                              .version = SNAPSHOT_VERSION,
                              .bytes = all_bytes(c, low),
                              .len = c->len,
                              .low = low,
                              .n_saved = c->n_saved};
    memcpy(h.magic, SNAPSHOT_MAGIC, sizeof h.magic); /* without its NUL */
    TRY(snapshot_fingerprint(h.model, s->e, w->err));
    XXH3_64bits_reset(w->hash);
    if (ids)
        XXH3_64bits_update(w->hash, c->token, ids);
    TRY(put_positions(w, c, true));
    h.index = XXH3_64bits_digest(w->hash);
    h.hash = snapshot_head_hash(&h);
    TRY(put(w, &h, sizeof h));
    if (ids)
        TRY(put(w, c->token, ids));
    TRY(put_positions(w, c, false));

    XXH3_64bits_reset(w->hash);
    TRY(snapshot_body(c, low, put_piece, w));
    uint64_t hash = XXH3_64bits_digest(w->hash);
    TRY(put(w, &hash, sizeof hash));
    return flush(w);
}

int dsv4_seq_save(const dsv4_seq *s, const char *file, dsv4_err *err)
{
    struct writer w = {.err = err};
    TRY(mem_alloc(&w.buffer, BUFFER, 1, "a buffer", err));
    int rc = 0;
    if (!(w.hash = XXH3_createState()))
        rc = err_memory(err, BUFFER, "a checksum");
    if (rc == 0 && (rc = file_aside_open(&w.file, file, err)) == 0)
        rc = file_aside_close(&w.file, write_all(&w, s), err);
    XXH3_freeState(w.hash);
    free(w.buffer);
    return rc;
}

#endif
