/* sched.h - what the files of the scheduler share: sched.c (the thread and its steps), sched_run.c (a job from
 * its beginning to its end), sched_pick.c (whose turn it is, how much of a prompt a step takes, what is told to
 * others). */
#ifndef DSV4_SERVER_SCHED_H
#define DSV4_SERVER_SCHED_H

#include "server.h"

/* LEAST_PROMPT: tokens of prompts that every step takes if there are any. MARK_GAIN: tokens that a mark saves
 * at least; it costs a step of its own and the memory of a window. */
enum { MAX_SLOTS = 64, MAX_TOP = 100, LEAST_PROMPT = 16, MARK_GAIN = 256 };

/* One choice of a run. */
struct track {
    struct run *run;
    unsigned choice;
    bool live;
    dsv4_seq *seq;
    dsv4_sampler *sampler;
    int32_t next; /* its newest token, not computed yet */
    size_t made;
    double last;
};

/* A job in work. */
struct run {
    struct job *job;
    dsv4_seq *seq; /* while the prompt is read; afterwards the tracks have it */
    int32_t *rest; /* of the prompt, behind the `cached` tokens taken over */
    size_t n_rest, done, cached;
    size_t mark[3], n_marks, next_mark; /* of rest: ascending places that are returned to */
    size_t taken, order;                /* rows in this step, and when they were taken */
    struct track *track;                /* [job->n_choices] */
    unsigned n_live;
    double begun, first;
    bool broken;
    dsv4_err why;
    struct job_stats stats;
};

/* Who has how much: tokens computed for a client since it last had nothing to do, on a common
 * scale. */
struct client {
    uint64_t id;
    size_t jobs;
    double served;
};

struct sched {
    struct backend b;
    struct sched_options opt;
    struct metrics *metrics;
    pthread_t thread;
    bool started;

    /* behind the lock */
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct job *inbox, **inbox_end;
    bool stop, draining;
    uint64_t last_id;
    struct sched_info shown;
    struct slot_info *slots;
    double seconds_per_job;
    atomic_size_t n_queued; /* inbox and queue */
    atomic_size_t n_open;   /* taken and not finished */

    /* the thread's own */
    struct job *queue;
    struct run **run;
    size_t n_runs, n_tracks;
    struct prefix_store *store;
    dsv4_seq **live; /* scratch: sequences in use */
    uint64_t *live_scope;
    dsv4_row *rows;
    size_t n_rows, n_decode, n_order;
    float *logits;
    dsv4_logprob *top;
    struct client *client;
    size_t n_clients, cap_clients;
    double decode_seconds, prompt_seconds; /* of a step without prompts; of one token of a prompt */
};

/* ------------------------------------------------------------------ sched_run.c */

/* A job that leaves the queue becomes a run. The job stays the caller's on failure. */
int sched_begin_run(struct sched *s, struct job *j, dsv4_err *err);
/* The prompt is computed, logits are those of its last token: every choice goes on from here. */
int sched_begin_tracks(struct sched *s, struct run *r, const float *logits, double now,
                       dsv4_err *err);
/* Of a beginning that failed. */
void sched_discard_tracks(struct sched *s, struct run *r);
/* The token that follows; ends the choice if there is none. */
void sched_choose(struct sched *s, struct track *t, const float *logits, double now);
/* Ends what is left of a run. What was computed of its prompt is kept: the next attempt needs it. */
void sched_end_run(struct sched *s, struct run *r, enum ended why);
void sched_fail_run(struct sched *s, struct run *r, const dsv4_err *err);
/* A run whose choices have all ended. */
void sched_free_run(struct sched *s, struct run *r);
/* Ends a job that was never begun. */
void sched_end_queued(struct sched *s, struct job *j, enum ended why, const dsv4_err *err);

/* ------------------------------------------------------------------ sched_pick.c */

void sched_client_join(struct sched *s, uint64_t id);
void sched_client_leave(struct sched *s, uint64_t id);
void sched_client_charge(struct sched *s, uint64_t id, size_t tokens);

/* Takes the job out of the queue whose turn it is and that needs at most `room` choices. */
struct job *sched_next_job(struct sched *s, size_t room);
/* The run whose prompt is read next, of those not in this step yet. */
struct run *sched_next_prompt(struct sched *s);
/* Rows of prompts that this step may take. */
size_t sched_prompt_budget(const struct sched *s);
/* The step took so long. */
void sched_learn(struct sched *s, double seconds);
/* Fills live[] and live_scope[]. */
size_t sched_live(struct sched *s);
/* Shows the state to other threads. */
void sched_publish(struct sched *s);

#endif
