/* What matrices lose in types that they may get, told from some of their rows: these are encoded and decoded. */
#include "convert.h"

#include <stdatomic.h>
#include <stdlib.h>

enum { DENSE_ROWS = 64, EXPERT_ROWS = 16 };

/* What a lane works with. */
struct desk {
    float *row, *back;
    uint8_t *codes, *scales;
    struct window window;
};

struct sampling {
    const struct source *source;
    struct sample *sample;
    size_t n;
    const struct wtype *const *type;
    size_t n_types;
    struct desk *desk; /* [lanes] */
    _Atomic size_t next;
    struct lane_failure failure;
};

static int sample_one(const struct sampling *s, const struct sample *m, struct desk *d,
                      dsv4_err *err)
{
    const struct job *j = m->job;
    size_t most = j->class == CLASS_EXPERTS ? EXPERT_ROWS : DENSE_ROWS;
    size_t n = j->in.rows < most ? j->in.rows : most;
    for (size_t i = 0; i < n; i++) {
        TRY(window_sample(&d->window, s->source, &j->in, i * j->in.rows / n, d->row, err));
        for (size_t t = 0; t < s->n_types; t++) {
            struct encode_error e = {0, 0};
            encode_error(&e, &s->source->k, s->type[t], d->row, j->in.cols, j->importance, d->codes,
                         d->scales, d->back);
            m->error[t] += e.error;
            m->energy[t] += e.signal;
        }
    }
    return 0;
}

static void sample_some(const struct lane *l, void *arg)
{
    struct sampling *s = arg;
    dsv4_err err;
    int rc = 0;
    for (size_t i; !s->failure.any && (i = atomic_fetch_add(&s->next, 1)) < s->n;)
        if ((rc = sample_one(s, &s->sample[i], &s->desk[l->id], &err)) != 0)
            lane_fail(&s->failure, rc, &err);
}

static int open_desks(struct sampling *s, int lanes, dsv4_err *err)
{
    static const char what[] = "a row of a matrix";
    size_t cols = 0, window[2] = {0, 0};
    for (size_t i = 0; i < s->n; i++) {
        const struct wmat *in = &s->sample[i].job->in;
        cols = in->cols > cols ? in->cols : cols;
        window_needs(window, in);
    }
    TRY(mem_alloc(&s->desk, (size_t)lanes, sizeof *s->desk, what, err));
    for (int i = 0; i < lanes; i++) {
        struct desk *d = &s->desk[i];
        TRY(mem_alloc(&d->row, cols, sizeof(float), what, err));
        TRY(mem_alloc(&d->back, cols, sizeof(float), what, err));
        TRY(mem_alloc(&d->codes, cols, 1, what, err));
        TRY(mem_alloc(&d->scales, cols / GROUP + 1, 2, what, err));
        TRY(window_open(&d->window, window, err));
    }
    return 0;
}

static int sample_on_lanes(struct sampling *s, struct pool *pool, dsv4_err *err)
{
    TRY(open_desks(s, pool_threads(pool), err));
    pool_run(pool, sample_some, s);
    return lane_failed(&s->failure, err);
}

int sample_errors(struct sample *sample, size_t n, const struct wtype *const *type, size_t n_types,
                  const struct source *source, int threads, dsv4_err *err)
{
    struct sampling s = {
        .source = source, .sample = sample, .n = n, .type = type, .n_types = n_types};
    struct pool *pool;
    TRY(pool_open_threads(&pool, threads, err));
    int rc = sample_on_lanes(&s, pool, err);
    for (int i = 0; s.desk && i < pool_threads(pool); i++) {
        struct desk *d = &s.desk[i];
        free(d->row);
        free(d->back);
        free(d->codes);
        free(d->scales);
        window_close(&d->window);
    }
    free(s.desk);
    pool_close(pool);
    return rc;
}
