/* The scheduler: one thread owns the engine and computes in steps. A step has one row of every
 * choice that is generating and, beside them, a piece of the prompts that are being read, so that a
 * new request joins at the next step and a long prompt holds up nobody for more than one piece.
 *
 * Knows tokens and who asked; what they mean is the business of the jobs' functions. */
#include "sched.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

void job_free(struct job *j)
{
    if (!j)
        return;
    free(j->prompt);
    free(j->text);
    free(j->spans);
    free(j->bias);
    free(j);
}

/* ------------------------------------------------------------------ ends */

static void end_track(struct sched *s, struct track *t, enum ended why)
{
    struct run *r = t->run;
    if (!t->live)
        return;
    t->live = false;
    s->n_tracks--;
    r->n_live--;
    dsv4_sampler_close(t->sampler);
    t->sampler = NULL;
    if (r->job->no_cache || why == ENDED_FAILED)
        s->b.close(s->b.self, t->seq);
    else
        prefix_give(s->store, t->seq, r->job->scope);
    t->seq = NULL;
    r->job->ops->ended(r->job->arg, t->choice, why);
}

static void free_run(struct sched *s, struct run *r)
{
    double now = clock_seconds();
    size_t i = 0;
    while (s->run[i] != r)
        i++;
    s->run[i] = s->run[--s->n_runs];
    r->stats.generating = r->first > 0 ? now - r->first : 0;
    metric_observe(s->metrics, HIST_REQUEST, now - r->job->submitted);
    sched_client_leave(s, r->job->client);
    r->job->ops->finished(r->job->arg, &r->stats);
    atomic_fetch_sub(&s->n_open, 1);
    job_free(r->job);
    free(r->rest);
    free(r->track);
    free(r);
}

/* Ends what is left of a run. What was computed of its prompt is kept: the next attempt needs it.
 * */
static void end_run(struct sched *s, struct run *r, enum ended why)
{
    if (r->seq) {
        if (r->job->no_cache || why == ENDED_FAILED)
            s->b.close(s->b.self, r->seq);
        else
            prefix_give(s->store, r->seq, r->job->scope);
        r->seq = NULL;
        s->n_tracks -= r->job->n_choices;
        for (unsigned i = 0; i < r->job->n_choices; i++)
            r->job->ops->ended(r->job->arg, i, why);
    }
    for (unsigned i = 0; i < r->job->n_choices; i++)
        end_track(s, &r->track[i], why);
    free_run(s, r);
}

static void fail_run(struct sched *s, struct run *r, const dsv4_err *err)
{
    r->job->ops->failed(r->job->arg, err);
    end_run(s, r, ENDED_FAILED);
}

/* A job that was never begun. */
static void end_queued(struct sched *s, struct job *j, enum ended why, const dsv4_err *err)
{
    struct job_stats stats = {.n_prompt = j->n_prompt, .queued = clock_seconds() - j->submitted};
    if (err)
        j->ops->failed(j->arg, err);
    for (unsigned i = 0; i < j->n_choices; i++)
        j->ops->ended(j->arg, i, why);
    j->ops->finished(j->arg, &stats);
    atomic_fetch_sub(&s->n_open, 1);
    sched_client_leave(s, j->client);
    job_free(j);
}

/* ------------------------------------------------------------------ choosing tokens */

static dsv4_logprob pick(struct sched *s, struct track *t, const float *logits)
{
    const struct job *j = t->run->job;
    const uint32_t *allow;
    int32_t forced;
    if (j->ops->forced && j->ops->forced(j->arg, t->choice, &forced))
        return (dsv4_logprob){forced, 0};
    allow = j->ops->allow ? j->ops->allow(j->arg, t->choice) : NULL;
    return dsv4_sample_masked(t->sampler, logits, allow, s->top, j->n_top);
}

/* The token that follows; ends the choice if there is none. */
static void choose(struct sched *s, struct track *t, const float *logits, double now)
{
    struct run *r = t->run;
    const struct job *j = r->job;
    for (size_t i = 0; i < j->n_top; i++)
        s->top[i] = (dsv4_logprob){-1, 0};
    dsv4_logprob p = pick(s, t, logits);
    dsv4_sampler_accept(t->sampler, p.token);
    metric_observe(s->metrics, t->made ? HIST_BETWEEN : HIST_TTFT,
                   now - (t->made ? t->last : j->submitted));
    metric_add(s->metrics, COUNT_OUTPUT_TOKENS, 1);
    t->made++;
    t->last = now;
    t->next = p.token;
    r->stats.n_tokens++;
    size_t len;
    s->b.tokens(s->b.self, t->seq, &len);
    if (j->ops->token(j->arg, t->choice, p, s->top))
        end_track(s, t, ENDED_BY_JOB);
    else if (j->max_tokens > 0 && t->made >= j->max_tokens)
        end_track(s, t, ENDED_LIMIT);
    else if (len + 1 > s->b.ctx)
        end_track(s, t, ENDED_CTX);
}

static int open_sampler(struct sched *s, struct track *t, dsv4_err *err)
{
    struct job *j = t->run->job;
    dsv4_sampling p = j->sampling;
    p.seed += t->choice * 0x9e3779b97f4a7c15u;
    p.bias = j->bias;
    TRY(dsv4_sampler_open(&t->sampler, &p, s->b.vocab, err));
    /* presence and frequency count what was generated; repetition the prompt too */
    for (size_t i = 0; p.repetition < 1 || p.repetition > 1 ? i < j->n_prompt : false; i++)
        dsv4_sampler_accept(t->sampler, j->prompt[i]);
    return 0;
}

/* The prompt is computed: every choice goes on from here. */
static int begin_tracks(struct sched *s, struct run *r, const float *logits, double now,
                        dsv4_err *err)
{
    struct job *j = r->job;
    size_t len;
    s->b.tokens(s->b.self, r->seq, &len);
    for (unsigned i = 1; i < j->n_choices; i++)
        TRY(s->b.fork(s->b.self, &r->track[i].seq, r->seq, len, err));
    for (unsigned i = 0; i < j->n_choices; i++)
        TRY(open_sampler(s, &r->track[i], err));
    r->track[0].seq = r->seq;
    r->seq = NULL;
    r->first = now;
    r->stats.prompt = now - r->begun;
    for (unsigned i = 0; i < j->n_choices; i++) {
        r->track[i].live = true;
        r->n_live++;
    }
    for (unsigned i = 0; i < j->n_choices; i++)
        choose(s, &r->track[i], logits, now);
    return 0;
}

static void discard_tracks(struct sched *s, struct run *r)
{
    for (unsigned i = 0; i < r->job->n_choices; i++) {
        s->b.close(s->b.self, r->track[i].seq);
        dsv4_sampler_close(r->track[i].sampler);
        r->track[i].seq = NULL;
        r->track[i].sampler = NULL;
    }
}

/* ------------------------------------------------------------------ beginning */

/* A place in rest that other prompts will leave it at; 0: none. */
static void add_mark(struct run *r, size_t at)
{
    size_t last = r->n_marks ? r->mark[r->n_marks - 1] : 0;
    if (at >= last + MARK_GAIN && at < r->n_rest)
        r->mark[r->n_marks++] = at;
}

/* Marks: where this prompt left another one (a third will too), behind what many prompts share, and
 * before its tail, which the next turn does not have. */
static void plan_marks(struct sched *s, struct run *r, const struct taken *t)
{
    const struct job *j = r->job;
    ptrdiff_t head = (ptrdiff_t)j->head + t->shift;
    if (!s->b.mark || j->no_cache)
        return;
    add_mark(r, t->fork);
    if (head > (ptrdiff_t)t->fork)
        add_mark(r, (size_t)head);
    if (j->tail > 0)
        add_mark(r, r->n_rest - j->tail);
}

/* From a sequence that begins likewise, or from nothing. */
static int begin_prompt(struct sched *s, struct run *r, dsv4_err *err)
{
    const struct job *j = r->job;
    struct taken t = {.seq = NULL};
    if (!j->no_cache)
        prefix_take(s->store, j, s->live, s->live_scope, sched_live(s), &t);
    r->seq = t.seq;
    r->cached = t.cached;
    r->rest = t.rest;
    r->n_rest = t.n_rest;
    if (!r->seq) {
        r->n_rest = j->n_prompt;
        TRY(mem_alloc(&r->rest, j->n_prompt, sizeof *r->rest, "a prompt", err));
        TRY(s->b.open(s->b.self, &r->seq, err));
        memcpy(r->rest, j->prompt, j->n_prompt * sizeof *r->rest);
    }
    plan_marks(s, r, &t);
    return 0;
}

static int begin_run(struct sched *s, struct job *j, dsv4_err *err)
{
    struct run *r;
    double now = clock_seconds();
    TRY(mem_alloc(&r, 1, sizeof *r, "a request", err));
    r->job = j;
    int rc = mem_alloc(&r->track, j->n_choices, sizeof *r->track, "a request", err);
    if (rc == 0)
        rc = begin_prompt(s, r, err);
    if (rc != 0) {
        free(r->rest);
        free(r->track);
        free(r);
        return rc;
    }
    for (unsigned i = 0; i < j->n_choices; i++)
        r->track[i] = (struct track){.run = r, .choice = i};
    r->begun = now;
    r->stats = (struct job_stats){
        .n_prompt = r->cached + r->n_rest, .n_cached = r->cached, .queued = now - j->submitted};
    metric_observe(s->metrics, HIST_QUEUE, r->stats.queued);
    metric_add(s->metrics, COUNT_CACHED_TOKENS, r->cached);
    s->run[s->n_runs++] = r;
    s->n_tracks += j->n_choices;
    if (j->ops->progress)
        j->ops->progress(j->arg, r->cached, r->cached, r->stats.n_prompt, 0);
    return 0;
}

static void admit(struct sched *s)
{
    struct job *j;
    dsv4_err err;
    while ((j = sched_next_job(s, s->opt.parallel - s->n_tracks)) != NULL) {
        int rc = begin_run(s, j, &err);
        while (rc == DSV4_NO_MEMORY && prefix_drop(s->store))
            rc = begin_run(s, j, &err);
        if (rc != 0)
            end_queued(s, j, ENDED_FAILED, &err);
    }
}

/* ------------------------------------------------------------------ who is no longer waited for */

static enum ended verdict(const struct job *j, bool kill, double now)
{
    if (kill || (j->gone && atomic_load_explicit(j->gone, memory_order_relaxed)))
        return ENDED_GONE;
    return j->deadline > 0 && now > j->deadline ? ENDED_DEADLINE : ENDED_BY_JOB;
}

static void sweep(struct sched *s, bool kill)
{
    double now = clock_seconds();
    for (struct job **p = &s->queue; *p;) {
        struct job *j = *p;
        enum ended why = verdict(j, kill, now);
        if (why == ENDED_BY_JOB) {
            p = &j->next;
            continue;
        }
        *p = j->next;
        atomic_fetch_sub(&s->n_queued, 1);
        if (why == ENDED_DEADLINE)
            metric_add(s->metrics, COUNT_DEADLINES, 1);
        end_queued(s, j, why, NULL);
    }
    for (size_t i = s->n_runs; i-- > 0;) {
        enum ended why = verdict(s->run[i]->job, kill, now);
        if (why == ENDED_DEADLINE)
            metric_add(s->metrics, COUNT_DEADLINES, 1);
        if (why != ENDED_BY_JOB)
            end_run(s, s->run[i], why);
    }
}

/* ------------------------------------------------------------------ a step */

/* Rows of the choices, then of prompts: for each of these r->taken. */
static void gather(struct sched *s)
{
    s->n_rows = s->n_decode = 0;
    for (size_t i = 0; i < s->n_runs; i++) {
        struct run *r = s->run[i];
        r->taken = 0;
        for (unsigned k = 0; k < r->job->n_choices; k++)
            if (r->track[k].live)
                s->rows[s->n_rows++] = (dsv4_row){r->track[k].seq, r->track[k].next, true};
    }
    s->n_decode = s->n_rows;
    size_t budget = sched_prompt_budget(s);
    struct run *r;
    while (budget > 0 && (r = sched_next_prompt(s)) != NULL) {
        size_t left = r->n_rest - r->done, m = left < budget ? left : budget;
        if (r->next_mark < r->n_marks && m > r->mark[r->next_mark] - r->done)
            m = r->mark[r->next_mark] - r->done;
        for (size_t i = 0; i < m; i++)
            s->rows[s->n_rows++] = (dsv4_row){r->seq, r->rest[r->done + i], i + 1 == left};
        r->taken = m;
        r->order = s->n_order++;
        sched_client_charge(s, r->job->client, m);
        budget -= m;
    }
}

static struct run *most_left(struct sched *s)
{
    struct run *worst = NULL;
    for (size_t i = 0; i < s->n_runs; i++)
        if (!worst || s->run[i]->n_rest - s->run[i]->done > worst->n_rest - worst->done ||
            (s->run[i]->n_rest - s->run[i]->done == worst->n_rest - worst->done &&
             s->run[i]->begun > worst->begun))
            worst = s->run[i];
    return worst;
}

/* The step could not be computed and changed nothing: something has to go. */
static void step_failed(struct sched *s, int rc, const dsv4_err *err)
{
    if (s->opt.log)
        s->opt.log(s->opt.arg, err->text);
    if (rc == DSV4_NO_MEMORY && prefix_drop(s->store))
        return;
    struct run *r = most_left(s);
    if (r)
        fail_run(s, r, err);
}

/* Logits stand in the order of rows: first the choices', then those of prompts that are complete.
 * */
static void distribute(struct sched *s, double now)
{
    const float *l = s->logits;
    dsv4_err err;
    size_t n = s->n_runs;
    for (size_t i = 0; i < n; i++) {
        struct run *r = s->run[i];
        for (unsigned k = 0; k < r->job->n_choices; k++)
            if (r->track[k].live) {
                sched_client_charge(s, r->job->client, 1);
                choose(s, &r->track[k], l, now);
                l += s->b.vocab;
            }
    }
    for (size_t at = 0; at < s->n_order; at++)
        for (size_t i = 0; i < n; i++) {
            struct run *r = s->run[i];
            if (!r->taken || r->order != at)
                continue;
            struct job *j = r->job;
            r->done += r->taken;
            r->taken = 0;
            if (j->ops->progress)
                j->ops->progress(j->arg, r->cached, r->cached + r->done, r->stats.n_prompt,
                                 now - r->begun);
            if (r->next_mark < r->n_marks && r->done == r->mark[r->next_mark]) {
                r->next_mark++;
                (void)s->b.mark(s->b.self, r->seq, &err); /* without it only costs time later */
            }
            if (r->done < r->n_rest)
                continue;
            if (begin_tracks(s, r, l, now, &err) != 0) {
                r->broken = true;
                r->why = err;
            }
            l += s->b.vocab;
        }
    for (size_t i = n; i-- > 0;) {
        struct run *r = s->run[i];
        if (r->broken) {
            if (r->seq)
                discard_tracks(s, r);
            fail_run(s, r, &r->why);
        } else if (!r->seq && r->n_live == 0) {
            free_run(s, r);
        }
    }
}

static void step(struct sched *s)
{
    dsv4_err err;
    s->n_order = 0;
    gather(s);
    if (s->n_rows == 0)
        return;
    double begin = clock_seconds();
    int rc = s->b.eval(s->b.self, s->rows, s->n_rows, s->logits, &err);
    double now = clock_seconds();
    if (rc != 0) {
        step_failed(s, rc, &err);
        return;
    }
    sched_learn(s, now - begin);
    metric_add(s->metrics, COUNT_STEPS, 1);
    metric_add(s->metrics, COUNT_STEP_ROWS, s->n_rows);
    metric_add(s->metrics, COUNT_PROMPT_TOKENS, s->n_rows - s->n_decode);
    metric_observe(s->metrics, HIST_BATCH, (double)s->n_rows);
    distribute(s, now);
}

/* ------------------------------------------------------------------ the thread */

/* Takes over what was submitted; waits when there is nothing to do. False: the end. */
static bool receive(struct sched *s, bool wait)
{
    pthread_mutex_lock(&s->lock);
    if (wait && !s->inbox && !s->stop) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        t.tv_sec += 1;
        pthread_cond_timedwait(&s->more, &s->lock, &t);
    }
    struct job **end = &s->queue;
    while (*end)
        end = &(*end)->next;
    *end = s->inbox;
    for (struct job *j = s->inbox; j; j = j->next)
        sched_client_join(s, j->client);
    s->inbox = NULL;
    s->inbox_end = &s->inbox;
    bool stop = s->stop;
    pthread_mutex_unlock(&s->lock);
    return !stop;
}

static void *run_scheduler(void *arg)
{
    struct sched *s = arg;
    bool idle = true;
    while (receive(s, idle)) {
        sweep(s, false);
        admit(s);
        step(s);
        sched_publish(s);
        if (s->opt.stepped)
            s->opt.stepped(s->opt.arg);
        idle = s->n_runs == 0 && !s->queue && !prefix_idle(s->store);
    }
    receive(s, false);
    sweep(s, true);
    sched_publish(s);
    return NULL;
}

/* ------------------------------------------------------------------ the interface */

static int open_all(struct sched *s, dsv4_err *err)
{
    size_t rows = s->b.batch + s->opt.parallel + LEAST_PROMPT;
    TRY(mem_alloc(&s->run, s->opt.parallel, sizeof(void *), "the scheduler", err));
    TRY(mem_alloc(&s->live, s->opt.parallel, sizeof(void *), "the scheduler", err));
    TRY(mem_alloc(&s->live_scope, s->opt.parallel, sizeof(uint64_t), "the scheduler", err));
    TRY(mem_alloc(&s->rows, rows, sizeof *s->rows, "the scheduler", err));
    TRY(mem_alloc(&s->slots, s->opt.parallel + MAX_SLOTS, sizeof *s->slots, "the scheduler", err));
    size_t n;
    if (!size_mul(s->opt.parallel, s->b.vocab, &n))
        return err_memory(err, UINT64_MAX, "logits");
    TRY(mem_alloc(&s->logits, n, sizeof *s->logits, "logits", err));
    TRY(mem_alloc(&s->top, MAX_TOP, sizeof *s->top, "the scheduler", err));
    TRY(prefix_open(&s->store, &s->b, &s->opt, s->metrics, err));
    if (pthread_create(&s->thread, NULL, run_scheduler, s) != 0)
        return err_set(err, DSV4_FAILED, "the scheduler's thread cannot be started");
    s->started = true;
    return 0;
}

int sched_open(struct sched **out, const struct backend *b, const struct sched_options *opt,
               struct metrics *m, dsv4_err *err)
{
    struct sched *s;
    pthread_condattr_t a;
    *out = NULL;
    TRY(mem_alloc(&s, 1, sizeof *s, "the scheduler", err));
    s->b = *b;
    s->opt = *opt;
    s->metrics = m;
    s->inbox_end = &s->inbox;
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(&s->more, &a);
    pthread_condattr_destroy(&a);
    int rc = open_all(s, err);
    if (rc != 0) {
        sched_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

static int judge(struct sched *s, const struct job *j, unsigned *retry, dsv4_err *err)
{
    if (j->n_prompt == 0)
        return err_set(err, DSV4_USAGE, "the prompt has no tokens");
    if (j->n_prompt >= s->b.ctx)
        return err_set(err, DSV4_USAGE, "the prompt has %zu tokens; the context holds %zu",
                       j->n_prompt, s->b.ctx);
    if (j->n_choices == 0 || j->n_choices > s->opt.parallel)
        return err_set(err, DSV4_USAGE, "%u choices; %zu can be computed at once", j->n_choices,
                       s->opt.parallel);
    if (j->n_top > MAX_TOP)
        return err_set(err, DSV4_USAGE, "at most %d log-probabilities a token", MAX_TOP);
    for (size_t i = 0; i < j->n_prompt; i++)
        if (j->prompt[i] < 0 || (size_t)j->prompt[i] >= s->b.vocab)
            return err_set(err, DSV4_USAGE, "token %d of the prompt is out of range", j->prompt[i]);
    if (s->draining || s->stop)
        return err_set(err, DSV4_INTERRUPTED, "the server is about to stop");
    /* one that is about to be begun does not wait */
    size_t n = atomic_load(&s->n_open);
    n = n > s->opt.parallel ? n - s->opt.parallel : 0;
    if (atomic_load(&s->n_open) >= s->opt.parallel + s->opt.queue) {
        double wait = s->seconds_per_job * (double)n / (double)s->opt.parallel;
        *retry = wait < 1 ? 1 : wait > 60 ? 60 : (unsigned)wait;
        return err_set(err, DSV4_FAILED, "%zu requests are waiting already", n);
    }
    return 0;
}

int sched_submit(struct sched *s, struct job *j, unsigned *retry, dsv4_err *err)
{
    *retry = 0;
    pthread_mutex_lock(&s->lock);
    int rc = judge(s, j, retry, err);
    if (rc == 0) {
        j->submitted = clock_seconds();
        j->id = ++s->last_id;
        j->next = NULL;
        atomic_fetch_add(&s->n_queued, 1);
        atomic_fetch_add(&s->n_open, 1);
        *s->inbox_end = j;
        s->inbox_end = &j->next;
        pthread_cond_signal(&s->more);
    }
    pthread_mutex_unlock(&s->lock);
    if (rc != 0)
        job_free(j);
    return rc;
}

bool sched_drain(struct sched *s)
{
    pthread_mutex_lock(&s->lock);
    s->draining = true;
    bool done = atomic_load(&s->n_open) == 0;
    pthread_mutex_unlock(&s->lock);
    return done;
}

void sched_info(struct sched *s, struct sched_info *info, struct slot_info *slots, size_t n)
{
    pthread_mutex_lock(&s->lock);
    *info = s->shown;
    info->queued = atomic_load(&s->n_queued);
    info->draining = s->draining;
    info->n_slots = s->shown.n_slots < n ? s->shown.n_slots : n;
    if (info->n_slots)
        memcpy(slots, s->slots, info->n_slots * sizeof *slots);
    pthread_mutex_unlock(&s->lock);
}

void sched_close(struct sched *s)
{
    if (!s)
        return;
    if (s->started) {
        pthread_mutex_lock(&s->lock);
        s->stop = true;
        pthread_cond_signal(&s->more);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
    }
    prefix_close(s->store);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->more);
    free(s->run);
    free(s->live);
    free(s->live_scope);
    free(s->rows);
    free(s->slots);
    free(s->logits);
    free(s->top);
    free(s->client);
    free(s);
}
