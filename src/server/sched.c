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

/* ------------------------------------------------------------------ beginning */

static void admit(struct sched *s)
{
    struct job *j;
    dsv4_err err;
    while ((j = sched_next_job(s, s->opt.parallel - s->n_tracks)) != NULL) {
        int rc = sched_begin_run(s, j, &err);
        while (rc == DSV4_NO_MEMORY && prefix_drop(s->store))
            rc = sched_begin_run(s, j, &err);
        if (rc != 0)
            sched_end_queued(s, j, ENDED_FAILED, &err);
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
        sched_end_queued(s, j, why, NULL);
    }
    for (size_t i = s->n_runs; i-- > 0;) {
        enum ended why = verdict(s->run[i]->job, kill, now);
        if (why == ENDED_DEADLINE)
            metric_add(s->metrics, COUNT_DEADLINES, 1);
        if (why != ENDED_BY_JOB)
            sched_end_run(s, s->run[i], why);
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
        sched_fail_run(s, r, err);
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
                sched_choose(s, &r->track[k], l, now);
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
            if (sched_begin_tracks(s, r, l, now, &err) != 0) {
                r->broken = true;
                r->why = err;
            }
            l += s->b.vocab;
        }
    for (size_t i = n; i-- > 0;) {
        struct run *r = s->run[i];
        if (r->broken) {
            if (r->seq)
                sched_discard_tracks(s, r);
            sched_fail_run(s, r, &r->why);
        } else if (!r->seq && r->n_live == 0) {
            sched_free_run(s, r);
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
