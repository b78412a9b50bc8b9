#include "fake_engine.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The scheduler broke a rule: no test can go on. */
static void must(bool x)
{
    if (!x)
        abort();
}

static int fake_open(void *self, dsv4_seq **out, dsv4_err *err)
{
    struct fake_engine *f = self;
    TRY(mem_alloc(out, 1, sizeof **out, "a false sequence", err));
    atomic_fetch_add(&f->open, 1);
    return 0;
}

static void fake_close(void *self, dsv4_seq *s)
{
    struct fake_engine *f = self;
    if (!s)
        return;
    free(s);
    atomic_fetch_sub(&f->open, 1);
}

static const int32_t *fake_tokens(void *self, const dsv4_seq *s, size_t *n)
{
    (void)self;
    *n = s->n;
    return s->token;
}

static void raise_to(atomic_size_t *most, size_t n)
{
    if (n > atomic_load(most))
        atomic_store(most, n);
}

static int fake_eval(void *self, const dsv4_row *rows, size_t n, float *logits, dsv4_err *err)
{
    struct fake_engine *f = self;
    size_t of_one = 0;
    if (atomic_load(&f->fail) > 0) {
        atomic_fetch_sub(&f->fail, 1);
        return err_set(err, atomic_load(&f->fail_with), "made to fail");
    }
    if (f->delay)
        usleep(f->delay);
    for (size_t i = 0; i < n; i++) {
        dsv4_seq *s = rows[i].seq;
        must(s->n < FAKE_CTX);
        s->token[s->n++] = rows[i].token;
        of_one = i > 0 && rows[i - 1].seq == s ? of_one + 1 : 1;
        if (rows[0].seq != s)
            raise_to(&f->longest_prompt, of_one);
        if (!rows[i].logits)
            continue;
        for (size_t k = 0; k < f->vocab; k++)
            logits[k] = 0;
        logits[f->next(f->arg, s) % f->vocab] = 10;
        logits += f->vocab;
    }
    atomic_fetch_add(&f->steps, 1);
    atomic_fetch_add(&f->rows, n);
    raise_to(&f->most_rows, n);
    return 0;
}

static size_t fake_reusable(void *self, const dsv4_seq *s, size_t len, bool fork)
{
    const struct fake_engine *f = self;
    size_t best = 0;
    (void)fork;
    if (len >= s->n)
        return s->n;
    if (f->rewind == 0 || s->n - len <= f->rewind)
        return len;
    for (size_t i = 0; i < s->n_marks; i++)
        if (s->mark[i] <= len && s->mark[i] > best)
            best = s->mark[i];
    return best;
}

static void cut(dsv4_seq *s, size_t len)
{
    s->n = len;
    while (s->n_marks > 0 && s->mark[s->n_marks - 1] > len)
        s->n_marks--;
}

static int fake_rewind(void *self, dsv4_seq *s, size_t len, dsv4_err *err)
{
    (void)err;
    must(fake_reusable(self, s, len, false) == len);
    cut(s, len);
    return 0;
}

static int fake_fork(void *self, dsv4_seq **out, const dsv4_seq *s, size_t len, dsv4_err *err)
{
    struct fake_engine *f = self;
    must(fake_reusable(self, s, len, true) == len);
    TRY(fake_open(self, out, err));
    **out = *s;
    cut(*out, len);
    atomic_fetch_add(&f->forks, 1);
    return 0;
}

static int fake_mark(void *self, dsv4_seq *s, dsv4_err *err)
{
    (void)self;
    if (s->n_marks == FAKE_MARKS)
        return err_set(err, DSV4_NO_MEMORY, "too many marks");
    s->mark[s->n_marks++] = s->n;
    return 0;
}

static uint64_t fake_bytes(void *self, const dsv4_seq *s)
{
    (void)self;
    return s->n;
}

struct backend fake_backend(struct fake_engine *f)
{
    return (struct backend){.self = f,
                            .vocab = f->vocab,
                            .ctx = FAKE_CTX,
                            .batch = f->batch,
                            .open = fake_open,
                            .close = fake_close,
                            .tokens = fake_tokens,
                            .eval = fake_eval,
                            .rewind = fake_rewind,
                            .reusable = fake_reusable,
                            .fork = fake_fork,
                            .bytes = fake_bytes,
                            .mark = fake_mark};
}
