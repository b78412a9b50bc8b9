/* Sequences and the evaluation of rows: any mix of rows becomes steps of whole segments. A sequence
 * keeps its savepoints by itself; what is shared and how is cache.c's business. */
#include "session.h"

#include <stdlib.h>

int dsv4_seq_open(dsv4_seq **out, dsv4_engine *e, dsv4_err *err)
{
    dsv4_seq *s;
    *out = NULL;
    TRY(mem_alloc(&s, 1, sizeof *s, "a sequence", err));
    s->e = e;
    int rc = cache_open(&s->cache, e->cp.m, e->plan.batch, e->plan.rewind, err);
    if (rc != 0) {
        free(s);
        return rc;
    }
    *out = s;
    return 0;
}

void dsv4_seq_close(dsv4_seq *s)
{
    if (!s)
        return;
    cache_close(s->cache);
    free(s);
}

size_t dsv4_seq_len(const dsv4_seq *s)
{
    return s->cache->len;
}

const int32_t *dsv4_seq_tokens(const dsv4_seq *s)
{
    return s->cache->token;
}

size_t dsv4_seq_rewind_floor(const dsv4_seq *s)
{
    return cache_floor(s->cache);
}

size_t dsv4_seq_reusable(const dsv4_seq *s, size_t len)
{
    return cache_reusable(s->cache, len);
}

uint64_t dsv4_seq_bytes(const dsv4_seq *s)
{
    return sizeof *s + cache_held(s->cache);
}

/* Whether the first `len` tokens can be had without computing any. */
static int check_reusable(const struct cache *c, size_t len, const char *what, dsv4_err *err)
{
    if (len > c->len)
        return err_set(err, DSV4_USAGE, "a sequence of %zu tokens cannot be %s %zu", c->len, what,
                       len);
    size_t near = cache_reusable(c, len);
    if (near != len)
        return err_set(err, DSV4_FAILED,
                       "a sequence of %zu tokens cannot be %s %zu; possible are %zu and above, and "
                       "below %zu, from where %zu tokens have to be computed again",
                       c->len, what, len, cache_floor(c), near, len - near);
    return 0;
}

int dsv4_seq_rewind(dsv4_seq *s, size_t len, dsv4_err *err)
{
    TRY(check_reusable(s->cache, len, "rewound to", err));
    cache_rewind(s->cache, len);
    return 0;
}

int dsv4_seq_mark(dsv4_seq *s, dsv4_err *err)
{
    return savepoints_add(s->cache, err);
}

void dsv4_seq_unmark(dsv4_seq *s, size_t len)
{
    savepoints_remove(s->cache, len);
}

int dsv4_seq_fork(dsv4_seq **out, const dsv4_seq *from, size_t len, dsv4_err *err)
{
    dsv4_seq *s;
    *out = NULL;
    TRY(check_reusable(from->cache, len, "forked at", err));
    TRY(mem_alloc(&s, 1, sizeof *s, "a sequence", err));
    s->e = from->e;
    int rc = cache_fork(&s->cache, from->cache, len, err);
    if (rc != 0) {
        free(s);
        return rc;
    }
    *out = s;
    return 0;
}

/* Everything that can go wrong with these rows, before anything changes. */
static int check_rows(dsv4_engine *e, const dsv4_row *rows, size_t n, const float *logits,
                      dsv4_err *err)
{
    for (size_t i = 0; i < n; i++)
        rows[i].seq->pending = 0;
    for (size_t i = 0; i < n; i++) {
        dsv4_seq *s = rows[i].seq;
        if (s->e != e)
            return err_set(err, DSV4_USAGE, "row %zu: its sequence belongs to another engine", i);
        if (rows[i].token < 0 || (uint32_t)rows[i].token >= e->cp.cfg->vocab)
            return err_set(err, DSV4_USAGE, "row %zu: token %d is out of range; ids are 0 to %u", i,
                           rows[i].token, e->cp.cfg->vocab - 1);
        if (rows[i].logits && !logits)
            return err_set(err, DSV4_USAGE, "row %zu: logits wanted, but no place for them", i);
        s->pending++;
        if (s->cache->len + s->pending > e->plan.ctx)
            return err_set(err, DSV4_FAILED,
                           "the context is full: %zu tokens and more; it holds %u (option ctx)",
                           s->cache->len + s->pending, e->plan.ctx);
    }
    return 0;
}

static int reserve_rows(const dsv4_row *rows, size_t n, dsv4_err *err)
{
    for (size_t i = 0; i < n; i++) {
        dsv4_seq *s = rows[i].seq;
        if (s->pending > 0)
            TRY(cache_reserve(s->cache, s->cache->len + s->pending, err));
        s->pending = 0;
    }
    return 0;
}

/* How many of these rows fit one step: at most cap rows of at most cap_seq sequences, and none
 * behind a row at which a savepoint is due. */
static size_t step_rows(const struct batch *b, const dsv4_row *rows, size_t n)
{
    size_t seqs = 0, m = 0;
    bool due = false;
    for (; m < n && m < b->cap && !due; m++) {
        dsv4_seq *s = rows[m].seq;
        if (!s->counted) {
            if (seqs == b->cap_seq)
                break;
            s->counted = true;
            s->pending = 0;
            seqs++;
        }
        due = s->cache->len + ++s->pending == savepoints_next(s->cache);
    }
    for (size_t i = 0; i < m; i++)
        rows[i].seq->counted = false;
    return m;
}

/* Rows of a sequence have to stand together; logits come out in the caller's order. */
static size_t run_step(dsv4_engine *e, const dsv4_row *rows, size_t n, float *logits)
{
    struct batch *b = e->batch;
    batch_begin(b);
    for (size_t first = 0; first < n; first++) {
        if (rows[first].seq->counted)
            continue;
        rows[first].seq->counted = true;
        rows[first].seq->pending = b->n;
        for (size_t i = first; i < n; i++)
            if (rows[i].seq == rows[first].seq)
                batch_add(b, rows[i].seq->cache, rows[i].token, false);
    }
    for (size_t i = 0; i < n; i++) {
        size_t row = rows[i].seq->pending++;
        if (rows[i].logits)
            batch_want(b, row);
        rows[i].seq->counted = false;
    }
    b->logits = logits;
    forward(e->pool, b);
    return b->n_want;
}

int dsv4_eval(dsv4_engine *e, const dsv4_row *rows, size_t n, float *logits, dsv4_err *err)
{
    TRY(check_rows(e, rows, n, logits, err));
    TRY(reserve_rows(rows, n, err));
    while (n > 0) {
        size_t m = step_rows(e->batch, rows, n);
        size_t wanted = run_step(e, rows, m, logits);
        savepoints_keep(rows[m - 1].seq->cache);
        if (logits)
            logits += wanted * e->cp.cfg->vocab;
        rows += m;
        n -= m;
    }
    return 0;
}
