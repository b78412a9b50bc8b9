/* Whose turn it is. Between clients: who was served least. Within a client: requests in the order
 * they came, prompts the one that was read least (so that a short one is not behind a long one). */
#include "sched.h"

#include <string.h>

/* ------------------------------------------------------------------ clients */

static struct client *find(struct sched *s, uint64_t id)
{
    for (size_t i = 0; i < s->n_clients; i++)
        if (s->client[i].id == id)
            return &s->client[i];
    return NULL;
}

/* One who comes starts where the least served of the others stands: neither a debt nor a credit. */
void sched_client_join(struct sched *s, uint64_t id)
{
    struct client *c = find(s, id);
    dsv4_err err;
    if (c) {
        c->jobs++;
        return;
    }
    /* without memory for the table this client is served as one that got nothing yet */
    if (mem_grow(&s->client, &s->cap_clients, s->n_clients + 1, sizeof *c, "clients", &err) != 0)
        return;
    double least = 0;
    for (size_t i = 0; i < s->n_clients; i++)
        if (i == 0 || s->client[i].served < least)
            least = s->client[i].served;
    s->client[s->n_clients++] = (struct client){id, 1, least};
}

void sched_client_leave(struct sched *s, uint64_t id)
{
    struct client *c = find(s, id);
    if (c && --c->jobs == 0)
        *c = s->client[--s->n_clients];
}

void sched_client_charge(struct sched *s, uint64_t id, size_t tokens)
{
    struct client *c = find(s, id);
    if (c)
        c->served += (double)tokens;
}

static double served(struct sched *s, uint64_t id)
{
    const struct client *c = find(s, id);
    return c ? c->served : 0;
}

/* ------------------------------------------------------------------ choosing */

struct job *sched_next_job(struct sched *s, size_t room)
{
    struct job **best = NULL;
    double least = 0;
    for (struct job **p = &s->queue; *p; p = &(*p)->next) {
        double v = served(s, (*p)->client);
        if (!best || v < least) {
            best = p;
            least = v;
        }
    }
    /* one that needs more choices than are free waits for them: others behind it would starve it */
    if (!best || (*best)->n_choices > room)
        return NULL;
    struct job *j = *best;
    *best = j->next;
    j->next = NULL;
    atomic_fetch_sub(&s->n_queued, 1);
    return j;
}

struct run *sched_next_prompt(struct sched *s)
{
    struct run *best = NULL;
    double least = 0;
    for (size_t i = 0; i < s->n_runs; i++) {
        struct run *r = s->run[i];
        if (!r->seq || r->taken)
            continue;
        double v = served(s, r->job->client);
        if (!best || v < least || (v <= least && r->done < best->done)) {
            best = r;
            least = v;
        }
    }
    return best;
}

/* While others generate, reading a prompt may about double the time of a step. */
size_t sched_prompt_budget(const struct sched *s)
{
    enum { LEAST = LEAST_PROMPT, FIRST = 32 };
    if (s->n_decode == 0)
        return s->b.batch;
    size_t n = FIRST;
    if (s->decode_seconds > 0 && s->prompt_seconds > 0)
        n = (size_t)(s->decode_seconds / s->prompt_seconds);
    size_t most = s->b.batch > s->n_decode + LEAST ? s->b.batch - s->n_decode : LEAST;
    return n < LEAST ? LEAST : n < most ? n : most;
}

static void average(double *a, double value)
{
    *a = *a > 0 ? 0.8 * *a + 0.2 * value : value;
}

void sched_learn(struct sched *s, double seconds)
{
    size_t prompts = s->n_rows - s->n_decode;
    if (prompts == 0)
        average(&s->decode_seconds, seconds);
    else if (seconds > (s->n_decode ? s->decode_seconds : 0))
        average(&s->prompt_seconds,
                (seconds - (s->n_decode ? s->decode_seconds : 0)) / (double)prompts);
}

/* ------------------------------------------------------------------ telling */

size_t sched_live(struct sched *s)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n_runs; i++) {
        struct run *r = s->run[i];
        dsv4_seq *q = r->seq;
        for (unsigned k = 0; !q && k < r->job->n_choices; k++)
            q = r->track[k].seq;
        if (!q || r->job->no_cache)
            continue;
        s->live[n] = q;
        s->live_scope[n++] = r->job->scope;
    }
    return n;
}

void sched_publish(struct sched *s)
{
    double now = clock_seconds();
    size_t n = 0;
    pthread_mutex_lock(&s->lock);
    s->shown.live = s->n_runs;
    s->shown.parallel = s->opt.parallel;
    prefix_info(s->store, &s->shown);
    for (size_t i = 0; i < s->n_runs; i++) {
        const struct run *r = s->run[i];
        double seconds = (r->first > 0 ? r->first : now) - r->begun;
        s->slots[n++] = (struct slot_info){
            .job = r->job->id,
            .state = r->seq ? SLOT_PROMPT : SLOT_GENERATING,
            .n_prompt = r->stats.n_prompt,
            .n_done = r->cached + r->done,
            .n_cached = r->cached,
            .n_tokens = r->stats.n_tokens,
            .n_choices = r->job->n_choices,
            .seconds = now - r->job->submitted,
            .rate = seconds > 0 ? (double)r->done / seconds : 0,
        };
        if (r->first > 0)
            average(&s->seconds_per_job, now - r->begun);
    }
    for (const struct job *j = s->queue; j && n < s->opt.parallel + MAX_SLOTS; j = j->next)
        s->slots[n++] = (struct slot_info){.job = j->id,
                                           .state = SLOT_QUEUED,
                                           .n_prompt = j->n_prompt,
                                           .n_choices = j->n_choices,
                                           .seconds = now - j->submitted};
    s->shown.n_slots = n;
    pthread_mutex_unlock(&s->lock);
}
