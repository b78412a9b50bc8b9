/* The work of a conversion: lanes take pieces of a shard in order. No piece depends on another one: the same bytes
 * come of any number of threads, and of a run that was interrupted and continued. */
#include "convert.h"

#include <stdlib.h>

enum { MARK_SECONDS = 10 };

/* A lane's place. */
struct seat {
    _Atomic uint64_t at; /* no piece before this one is still in work here */
    struct maker maker;
};

struct run {
    struct making m;
    struct pool *pool;
    struct seat *seat; /* [lanes] */
    uint64_t *first;   /* [jobs of the largest shard + 1] number of a job's first piece */
    uint64_t pieces;   /* of the shard */
    _Atomic uint64_t next;
    uint64_t marked; /* bytes done at the last mark */
    double marked_time;
    atomic_bool stop;
    struct lane_failure failure;
};

static int make_piece(struct run *r, struct maker *by, uint64_t piece, dsv4_err *err)
{
    const struct shard *s = &r->m.plan->shard[r->m.out->shard];
    size_t lo = 0, hi = s->n_jobs;
    while (hi - lo > 1) {
        size_t mid = lo + (hi - lo) / 2;
        if (r->first[mid] <= piece)
            lo = mid;
        else
            hi = mid;
    }
    const struct job *j = &r->m.plan->job[s->first + lo];
    piece -= r->first[lo];
    return job_make(&r->m, by, j, piece, err);
}

/* Every piece before this one is written. */
static uint64_t all_written(struct run *r)
{
    uint64_t least = atomic_load(&r->next);
    for (int i = 1; i < pool_threads(r->pool); i++) {
        uint64_t at = atomic_load(&r->seat[i].at);
        least = at < least ? at : least;
    }
    return least < r->pieces ? least : r->pieces;
}

/* Between its pieces the first lane reports, and sees to it that not too much work would be lost. */
static int look_up(struct run *r, dsv4_err *err)
{
    double now = clock_seconds();
    uint64_t done = atomic_load(&r->m.done), every = r->m.opt->mark_bytes;
    if (r->m.opt->progress && r->m.opt->progress(r->m.opt->progress_arg, done, r->m.plan->bytes))
        return err_set(err, DSV4_INTERRUPTED, "interrupted; the same command goes on from here");
    if (now - r->marked_time < MARK_SECONDS && !(every > 0 && done - r->marked >= every))
        return 0;
    r->marked_time = now;
    r->marked = done;
    return output_mark(r->m.out, all_written(r), err);
}

static void work(const struct lane *l, void *arg)
{
    struct run *r = arg;
    struct seat *seat = &r->seat[l->id];
    dsv4_err err;
    while (!atomic_load(&r->stop)) {
        /* whatever is taken now is not before this */
        atomic_store(&seat->at, atomic_load(&r->next));
        uint64_t piece = atomic_fetch_add(&r->next, 1);
        if (piece >= r->pieces)
            break;
        int rc = make_piece(r, &seat->maker, piece, &err);
        if (rc == 0 && l->id == 0)
            rc = look_up(r, &err);
        if (rc != 0) {
            lane_fail(&r->failure, rc, &err);
            atomic_store(&r->stop, true);
            return;
        }
    }
    atomic_store(&seat->at, UINT64_MAX);
}

static int run_shard(struct run *r, dsv4_err *err)
{
    const struct shard *s = &r->m.plan->shard[r->m.out->shard];
    r->pieces = 0;
    for (size_t i = 0; i < s->n_jobs; i++) {
        r->first[i] = r->pieces;
        r->pieces += job_pieces(&r->m.plan->job[s->first + i]);
    }
    uint64_t begin = r->m.out->pieces < r->pieces ? r->m.out->pieces : r->pieces;
    atomic_store(&r->next, begin);
    for (int i = 0; i < pool_threads(r->pool); i++)
        atomic_store(&r->seat[i].at, begin);
    TRY(output_begin(r->m.out, err));
    pool_run(r->pool, work, r);
    TRY(lane_failed(&r->failure, err));
    return output_end(r->m.out, err);
}

int convert_lanes(const struct plan *p, const dsv4_convert_options *opt, int *lanes, dsv4_err *err)
{
    struct maker_needs n = maker_needs(p);
    uint64_t each = maker_bytes(&n);
    uint64_t room = opt->max_ram ? opt->max_ram : mem_available() / 4;
    *lanes =
        opt->threads ? (int)(opt->threads < MAX_LANES ? opt->threads : MAX_LANES) : pool_cores();
    if (room < each)
        return err_set(err, DSV4_NO_MEMORY,
                       "a thread needs %llu bytes for its part of a matrix; %llu may be used",
                       (unsigned long long)each, (unsigned long long)room);
    if (room / each < (uint64_t)*lanes)
        *lanes = (int)(room / each);
    return 0;
}

static int open_seats(struct run *r, int lanes, dsv4_err *err)
{
    const struct plan *p = r->m.plan;
    struct maker_needs n = maker_needs(p);
    size_t most = 0;
    for (size_t i = 0; i < p->n_shards; i++)
        most = p->shard[i].n_jobs > most ? p->shard[i].n_jobs : most;
    TRY(mem_alloc(&r->first, most, sizeof *r->first, "pieces", err));
    TRY(mem_alloc(&r->seat, (size_t)lanes, sizeof *r->seat, "threads", err));
    for (int i = 0; i < lanes; i++)
        TRY(maker_open(&r->seat[i].maker, &n, &p->source->k, r->m.opt->effort, err));
    return 0;
}

static void close_seats(struct run *r, int lanes)
{
    for (int i = 0; r->seat && i < lanes; i++)
        maker_close(&r->seat[i].maker);
    free(r->seat);
    free(r->first);
}

int convert_run(struct output *o, const dsv4_convert_options *opt, int lanes, dsv4_err *err)
{
    struct run r = {.m = {.out = o, .plan = o->plan, .opt = opt}, .marked_time = clock_seconds()};
    for (size_t i = 0; i < o->shard; i++)
        r.m.done += o->plan->shard[i].bytes;
    int rc = pool_open_threads(&r.pool, lanes, err);
    if (rc == 0)
        rc = open_seats(&r, lanes, err);
    while (rc == 0 && o->shard < o->plan->n_shards)
        rc = run_shard(&r, err);
    if (rc == 0 && opt->progress)
        opt->progress(opt->progress_arg, o->plan->bytes, o->plan->bytes);
    if (opt->zeroed)
        *opt->zeroed = r.m.zeroed;
    close_seats(&r, lanes);
    pool_close(r.pool);
    return rc;
}
