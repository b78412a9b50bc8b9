/* A job in work: its prompt on a sequence that may begin with what another one has computed, then a sequence and a
 * sampler for each choice, until the last of them has ended. */
#include "sched.h"

#include <stdlib.h>
#include <string.h>

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

void sched_free_run(struct sched *s, struct run *r)
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

void sched_end_run(struct sched *s, struct run *r, enum ended why)
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
    sched_free_run(s, r);
}

void sched_fail_run(struct sched *s, struct run *r, const dsv4_err *err)
{
    r->job->ops->failed(r->job->arg, err);
    sched_end_run(s, r, ENDED_FAILED);
}

void sched_end_queued(struct sched *s, struct job *j, enum ended why, const dsv4_err *err)
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

void sched_choose(struct sched *s, struct track *t, const float *logits, double now)
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

int sched_begin_tracks(struct sched *s, struct run *r, const float *logits, double now,
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
        sched_choose(s, &r->track[i], logits, now);
    return 0;
}

void sched_discard_tracks(struct sched *s, struct run *r)
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

int sched_begin_run(struct sched *s, struct job *j, dsv4_err *err)
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
