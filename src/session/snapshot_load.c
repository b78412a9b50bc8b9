/* Reading a snapshot. Nothing in the file is believed: the head is checked against the file's
 * size, the model and the engine before memory is taken, ids and positions before they are used,
 * and the sequence is handed out only when the checksum over its caches is right. */
#include "snapshot.h"

#ifdef HAVE_XXHASH

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { BUFFER = 1 << 16 };

struct reader {
    int fd;
    const char *path;
    uint64_t bytes; /* of the file */
    struct snapshot_head head;
    XXH3_state_t *hash;
    uint8_t *buffer;
    size_t at, have; /* of the buffer */
    dsv4_err *err;
};

/* ------------------------------------------------------------------ bytes */

static int read_some(struct reader *r, void *to, size_t want, size_t *got)
{
    for (;;) {
        ssize_t n = read(r->fd, to, want);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(r->err, DSV4_REFUSED, r->path, "read");
        if (n == 0)
            return err_set(r->err, DSV4_REFUSED, "%s: the file became shorter while it was read",
                           r->path);
        *got = (size_t)n;
        return 0;
    }
}

/* Through the buffer unless it is empty and the piece is larger. */
static int get(struct reader *r, void *to, size_t n)
{
    uint8_t *p = to;
    while (n > 0) {
        size_t k = r->have - r->at;
        if (k == 0 && n >= BUFFER) {
            TRY(read_some(r, p, n, &k));
        } else if (k == 0) {
            r->at = 0;
            r->have = 0;
            TRY(read_some(r, r->buffer, BUFFER, &r->have));
            continue;
        } else {
            k = k < n ? k : n;
            memcpy(p, r->buffer + r->at, k);
            r->at += k;
        }
        p += k;
        n -= k;
    }
    return 0;
}

static int get_piece(void *arg, void *piece, size_t bytes)
{
    struct reader *r = arg;
    TRY(get(r, piece, bytes));
    XXH3_64bits_update(r->hash, piece, bytes);
    return 0;
}

static int damaged(const struct reader *r, const char *what)
{
    return err_set(r->err, DSV4_REFUSED, "%s: damaged: the checksum of its %s is wrong", r->path,
                   what);
}

/* ------------------------------------------------------------------ head and index */

static int open_file(struct reader *r)
{
    struct stat st;
    r->fd = open(r->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (r->fd < 0)
        return err_errno(r->err, DSV4_REFUSED, r->path, "open");
    if (fstat(r->fd, &st) != 0)
        return err_errno(r->err, DSV4_REFUSED, r->path, "stat");
    if (!S_ISREG(st.st_mode) || st.st_size < 0)
        return err_set(r->err, DSV4_REFUSED, "%s: not a regular file", r->path);
    r->bytes = (uint64_t)st.st_size;
    return 0;
}

static int read_head(struct reader *r)
{
    struct snapshot_head *h = &r->head;
    if (r->bytes < sizeof *h)
        return err_set(r->err, DSV4_REFUSED, "%s: not a snapshot of a sequence (%ju bytes)",
                       r->path, (uintmax_t)r->bytes);
    TRY(get(r, h, sizeof *h));
    if (memcmp(h->magic, SNAPSHOT_MAGIC, sizeof h->magic) != 0)
        return err_set(r->err, DSV4_REFUSED, "%s: not a snapshot of a sequence", r->path);
    if (h->order != SNAPSHOT_ORDER)
        return err_set(r->err, DSV4_REFUSED, "%s: written by a machine with another byte order",
                       r->path);
    if (h->version != SNAPSHOT_VERSION)
        return err_set(r->err, DSV4_REFUSED, "%s: layout %u; this dsv4 reads layout %d", r->path,
                       h->version, SNAPSHOT_VERSION);
    if (h->hash != snapshot_head_hash(h))
        return damaged(r, "head");
    if (h->bytes != r->bytes)
        return err_set(r->err, DSV4_REFUSED, "%s: %ju bytes long; its head says %ju", r->path,
                       (uintmax_t)r->bytes, (uintmax_t)h->bytes);
    uint64_t room = r->bytes - sizeof *h;
    if (h->len > room / sizeof(int32_t) || h->low > h->len || h->n_saved > h->len ||
        h->n_saved > (room - h->len * sizeof(int32_t)) / sizeof(uint64_t))
        return err_set(r->err, DSV4_REFUSED, "%s: the numbers in its head contradict each other",
                       r->path);
    return 0;
}

/* Both malloc'ed, whatever happens. */
static int read_index(struct reader *r, int32_t **ids, uint64_t **saved)
{
    const struct snapshot_head *h = &r->head;
    TRY(mem_alloc(ids, (size_t)h->len, sizeof **ids, "token ids", r->err));
    TRY(mem_alloc(saved, (size_t)h->n_saved, sizeof **saved, "savepoints", r->err));
    XXH3_64bits_reset(r->hash);
    TRY(get_piece(r, *ids, (size_t)h->len * sizeof **ids));
    TRY(get_piece(r, *saved, (size_t)h->n_saved * sizeof **saved));
    return XXH3_64bits_digest(r->hash) == h->index ? 0 : damaged(r, "token ids");
}

static int reader_open(struct reader *r, const char *path, dsv4_err *err)
{
    *r = (struct reader){.fd = -1, .path = path, .err = err};
    TRY(mem_alloc(&r->buffer, BUFFER, 1, "a buffer", err));
    if (!(r->hash = XXH3_createState()))
        return err_memory(err, BUFFER, "a checksum");
    TRY(open_file(r));
    return read_head(r);
}

static void reader_close(struct reader *r)
{
    if (r->fd >= 0)
        close(r->fd);
    XXH3_freeState(r->hash);
    free(r->buffer);
}

int dsv4_snapshot_tokens(const char *file, int32_t **ids, size_t *n, dsv4_err *err)
{
    struct reader r;
    uint64_t *saved = NULL;
    *ids = NULL;
    *n = 0;
    int rc = reader_open(&r, file, err);
    if (rc == 0)
        rc = read_index(&r, ids, &saved);
    if (rc == 0) {
        *n = (size_t)r.head.len;
    } else {
        free(*ids);
        *ids = NULL;
    }
    free(saved);
    reader_close(&r);
    return rc;
}

/* ------------------------------------------------------------------ sequences */

/* Is it ours, and does it fit? */
static int check_head(const struct reader *r, dsv4_engine *e)
{
    const struct snapshot_head *h = &r->head;
    uint64_t id[2];
    TRY(snapshot_fingerprint(id, e, r->err));
    if (memcmp(id, h->model, sizeof id) != 0)
        return err_set(r->err, DSV4_REFUSED,
                       "%s: a snapshot of another model, or with caches in other formats", r->path);
    if (h->len > e->plan.ctx)
        return err_set(r->err, DSV4_FAILED, "%s: %ju tokens; the context holds %u (option ctx)",
                       r->path, (uintmax_t)h->len, e->plan.ctx);
    uint64_t least = sizeof *h + h->len * sizeof(int32_t) + h->n_saved * sizeof(uint64_t) +
                     snapshot_body_bytes(e->cp.m, h->len, h->low);
    if (least > r->bytes)
        return err_set(r->err, DSV4_REFUSED, "%s: %ju bytes long; %ju tokens need at least %ju",
                       r->path, (uintmax_t)r->bytes, (uintmax_t)h->len, (uintmax_t)least);
    return 0;
}

static int check_index(const struct reader *r, const struct model *m, const int32_t *ids,
                       const uint64_t *saved)
{
    const struct snapshot_head *h = &r->head;
    for (uint64_t i = 0; i < h->len; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= m->cfg->vocab)
            return err_set(r->err, DSV4_REFUSED, "%s: token %ju is %d; ids are 0 to %u", r->path,
                           (uintmax_t)i, ids[i], m->cfg->vocab - 1);
    uint64_t sum = sizeof *h + h->len * sizeof(int32_t) + snapshot_body_bytes(m, h->len, h->low);
    for (uint64_t i = 0; i < h->n_saved; i++) {
        if (saved[i] == 0 || saved[i] > h->len || (i > 0 && saved[i] <= saved[i - 1]))
            return err_set(r->err, DSV4_REFUSED, "%s: savepoint %ju at %ju, out of order", r->path,
                           (uintmax_t)i, (uintmax_t)saved[i]);
        sum += sizeof(uint64_t) + tail_bytes(m, saved[i], saved[i]);
        if (sum > r->bytes)
            break;
    }
    if (sum != r->bytes)
        return err_set(r->err, DSV4_REFUSED, "%s: %ju bytes long; what it holds needs %s %ju",
                       r->path, (uintmax_t)r->bytes, sum > r->bytes ? "at least" : "only",
                       (uintmax_t)sum);
    return 0;
}

/* Room for everything; afterwards only bytes are missing. */
static int prepare(struct cache *c, const struct snapshot_head *h, const int32_t *ids,
                   const uint64_t *saved, dsv4_err *err)
{
    size_t len = (size_t)h->len, n = (size_t)h->n_saved;
    TRY(cache_reserve_rows(c, len, err));
    if (len)
        memcpy(c->token, ids, len * sizeof *ids);
    for (size_t i = 0; c->folded && i < len; i++)
        c->folded[i] = c->m->engram_map[ids[i]];
    c->len = c->high = len;
    c->base = (size_t)h->low;
    TRY(mem_grow(&c->save, &c->cap_save, n, sizeof(struct savepoint *), "savepoints", err));
    for (size_t i = 0; i < n; i++) {
        TRY(savepoint_open(&c->save[i], c->m, (size_t)saved[i], err));
        c->n_save = c->n_saved = i + 1;
    }
    return 0;
}

static int read_body(struct reader *r, const struct cache *c)
{
    uint64_t hash;
    XXH3_64bits_reset(r->hash);
    TRY(snapshot_body(c, (size_t)r->head.low, get_piece, r));
    TRY(get(r, &hash, sizeof hash));
    return hash == XXH3_64bits_digest(r->hash) ? 0 : damaged(r, "caches");
}

static int read_sequence(struct reader *r, dsv4_seq *s)
{
    int32_t *ids = NULL;
    uint64_t *saved = NULL;
    TRY(check_head(r, s->e));
    int rc = read_index(r, &ids, &saved);
    if (rc == 0)
        rc = check_index(r, s->e->cp.m, ids, saved);
    if (rc == 0)
        rc = prepare(s->cache, &r->head, ids, saved, r->err);
    free(ids);
    free(saved);
    return rc == 0 ? read_body(r, s->cache) : rc;
}

int dsv4_seq_load(dsv4_seq **out, dsv4_engine *e, const char *file, dsv4_err *err)
{
    struct reader r;
    dsv4_seq *s = NULL;
    *out = NULL;
    int rc = reader_open(&r, file, err);
    if (rc == 0)
        rc = dsv4_seq_open(&s, e, err);
    if (rc == 0)
        rc = read_sequence(&r, s);
    if (rc == 0)
        *out = s;
    else
        dsv4_seq_close(s);
    reader_close(&r);
    return rc;
}

#endif
