/* A request for text: its prompts become jobs, the jobs' tokens answers, and the answers what the
 * protocol makes of them. */
#include "turn.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* What the scheduler knows of a job. */
struct part {
    struct turn *turn;
    size_t first; /* its first answer */
};

int turn_open(struct turn **out, struct exchange *x, const struct shape *shape, json_t *body,
              struct failure *f)
{
    struct turn *t;
    struct server *s = x->server;
    dsv4_err err;
    *out = NULL;
    if (mem_alloc(&t, 1, sizeof *t, "a request", &err) != 0)
        return fail_err(f, &err);
    pthread_mutex_init(&t->lock, NULL);
    t->x = exchange_ref(x);
    x->generates = true;
    t->shape = shape;
    t->body = json_incref(body);
    t->n_choices = 1;
    t->created = (int64_t)time(NULL);
    t->hide_reasoning = s->opt->reasoning == REASONING_HIDDEN;
    t->options = (struct answer_options){.tok = s->tok,
                                         .vocab = s->backend.vocab,
                                         .dialect = s->dialect,
                                         .eos = s->eos,
                                         .metrics = &s->metrics,
                                         .parallel = true,
                                         .block_limit = s->opt->block_limit,
                                         .loop_limit = s->opt->loop_limit};
    *out = t;
    return 0;
}

void turn_close(struct turn *t)
{
    if (!t)
        return;
    if (t->shape->release)
        t->shape->release(t);
    size_t n = t->n_prompts * t->n_choices;
    for (size_t i = 0; t->answer && i < n; i++)
        answer_close(t->answer[i]);
    for (size_t i = 0; i < t->n_prompts; i++)
        job_free(t->jobs[i]);
    for (size_t i = 0; i < t->options.n_stops; i++)
        free(t->stops[i]);
    free(t->stops);
    free(t->answer);
    free(t->part);
    free(t->jobs);
    json_decref(t->names);
    json_decref(t->body);
    grammar_unref(t->grammar);
    out_free(&t->out);
    pthread_mutex_destroy(&t->lock);
    exchange_unref(t->x);
    free(t);
}

void turn_refuse(struct turn *t, struct exchange *x, const struct failure *f)
{
    exchange_fail(x, f);
    turn_close(t);
}

/* ------------------------------------------------------------------ what was asked for */

static int add_stop(struct turn *t, const json_t *v, const char *param, struct failure *f)
{
    enum { LONGEST = 1024 };
    const char *text = json_string_value(v);
    if (!text)
        return fail_set(f, 400, param, "%s must be a text or a list of texts", param);
    size_t n = json_string_length(v);
    if (n == 0 || n > LONGEST || strlen(text) != n)
        return fail_set(f, 400, param, "a text of %s must have 1 to %d bytes and no NUL", param,
                        LONGEST);
    char *copy = strdup(text);
    if (!copy)
        return fail_set(f, 503, NULL, "out of memory");
    t->stops[t->options.n_stops++] = copy;
    return 0;
}

int turn_stops(struct turn *t, const json_t *stop, const char *param, size_t max, struct failure *f)
{
    dsv4_err err;
    if (!stop || json_is_null(stop))
        return 0;
    size_t n = json_is_array(stop) ? json_array_size(stop) : 1;
    if (n > max)
        return fail_set(f, 400, param, "%s has %zu texts; at most %zu are taken", param, n, max);
    if (mem_alloc(&t->stops, n, sizeof(char *), "stop strings", &err) != 0)
        return fail_err(f, &err);
    for (size_t i = 0; i < n; i++)
        if (add_stop(t, json_is_array(stop) ? json_array_get(stop, i) : stop, param, f) != 0)
            return -1;
    t->options.stops = (const char *const *)t->stops;
    return 0;
}

int turn_tools(struct turn *t, const json_t *tools, struct failure *f)
{
    size_t i;
    json_t *tool;
    size_t max = t->x->server->opt->max_tools;
    if (json_array_size(tools) > max)
        return fail_set(f, 400, "tools", "%zu tools; at most %zu are taken", json_array_size(tools),
                        max);
    t->names = json_object();
    if (!t->names)
        return fail_set(f, 503, NULL, "out of memory");
    json_array_foreach(tools, i, tool)
    {
        const json_t *name = json_object_get(json_object_get(tool, "function"), "name");
        if (json_is_string(name) &&
            json_object_setn_new(t->names, json_string_value(name), json_string_length(name),
                                 json_true()) != 0)
            return fail_set(f, 503, NULL, "out of memory");
    }
    t->options.names = t->names;
    return 0;
}

int turn_constrain(struct turn *t, const struct grammar_want *w, const char *param,
                   struct failure *f)
{
    dsv4_err err;
    if (t->grammar)
        return fail_set(f, 400, param, "%s goes with no other constraint of the answer", param);
    int rc = grammar_get(t->x->server->grammars, w, &t->grammar, &err);
    if (rc != 0) {
        fail_err(f, &err);
        snprintf(f->param, sizeof f->param, "%s", param);
        return -1;
    }
    t->options.grammar = t->grammar->g;
    return 0;
}

static int read_bias(const json_t *object, size_t vocab, dsv4_bias **out, size_t *n,
                     struct failure *f)
{
    const char *key;
    json_t *v;
    dsv4_err err;
    *n = 0;
    if (mem_alloc(out, json_object_size(object), sizeof **out, "logit biases", &err) != 0)
        return fail_err(f, &err);
    json_object_foreach((json_t *)(uintptr_t)object, key, v)
    {
        char *end;
        long id = strtol(key, &end, 10);
        if (*key < '0' || *key > '9' || *end || id < 0 || (size_t)id >= vocab)
            return fail_set(f, 400, "logit_bias", "logit_bias: %.40s is no token; ids are 0 to %zu",
                            key, vocab - 1);
        if (!json_is_number(v) || !(fabs(json_number_value(v)) <= 100))
            return fail_set(f, 400, "logit_bias",
                            "logit_bias: values must be between -100 and 100");
        double b = json_number_value(v);
        /* as OpenAI has it: -100 forbids, 100 leaves nothing else */
        (*out)[(*n)++] = (dsv4_bias){(int32_t)id, b <= -100  ? -INFINITY
                                                  : b >= 100 ? 1e4f
                                                             : (float)b};
    }
    return 0;
}

static uint64_t hash(const char *text, uint64_t h)
{
    for (; text && *text; text++)
        h = (h ^ (unsigned char)*text) * 0x100000001b3u;
    return h;
}

/* Takes ids over. */
static int add_job(struct turn *t, int32_t *ids, size_t n, const struct turn_sampling *sp,
                   struct job **out, struct failure *f)
{
    struct server *s = t->x->server;
    struct job *j;
    dsv4_err err;
    if (n == 0) {
        free(ids);
        return fail_set(f, 400, "prompt", "the prompt is empty");
    }
    struct job **jobs = realloc(t->jobs, (t->n_prompts + 1) * sizeof *jobs);
    t->jobs = jobs ? jobs : t->jobs;
    if (!jobs || mem_alloc(&j, 1, sizeof *j, "a request", &err) != 0) {
        free(ids);
        return fail_set(f, 503, NULL, "out of memory");
    }
    *j = (struct job){.prompt = ids, .n_prompt = n, .n_choices = t->n_choices};
    t->jobs[t->n_prompts++] = j;
    j->sampling = sp->sampling;
    j->max_tokens = sp->max_tokens ? sp->max_tokens : s->opt->max_tokens;
    j->n_top = t->options.n_top;
    j->client = hash(sp->user, t->x->client);
    j->scope = t->x->scope;
    double limit = s->opt->request_timeout;
    if (sp->timeout > 0 && (limit <= 0 || sp->timeout < limit))
        limit = sp->timeout;
    j->deadline = limit > 0 ? t->x->begun + limit : 0;
    j->gone = &t->x->gone;
    if (sp->logit_bias &&
        read_bias(sp->logit_bias, s->backend.vocab, &j->bias, &j->sampling.n_bias, f) != 0)
        return -1;
    if (n >= s->backend.ctx) {
        fail_set(f, 400, "messages", "the prompt has %zu tokens; the context holds %zu", n,
                 s->backend.ctx);
        f->code = "context_length_exceeded";
        return -1;
    }
    *out = j;
    return 0;
}

int turn_render(struct server *s, json_t *chat, struct rendered *r, struct failure *f)
{
    struct out o = {0};
    dsv4_err err;
    char *json = NULL;
    *r = (struct rendered){0};
    out_json(&o, chat);
    if (o.failed) {
        out_free(&o);
        return fail_set(f, 503, NULL, "out of memory");
    }
    int rc = json_spare_begin(2 * o.b.len, &err); /* dsv4_request() adds little to it */
    if (rc == 0) {
        rc = dsv4_request(s->dialect, o.b.data, o.b.len, &json, &err);
        if (rc == 0)
            rc = dsv4_render(s->dialect, json, strlen(json), &r->prompt, &err);
        json_spare_end();
    }
    if (rc == 0 && r->prompt->n_images > 0)
        rc = err_set(&err, DSV4_REFUSED, "images are not understood here");
    if (rc == 0)
        rc = dsv4_encode_prompt(s->tok, r->prompt, &r->ids, &r->n, &err);
    dsv4_free(json);
    out_free(&o);
    if (rc == 0)
        return 0;
    dsv4_prompt_close(r->prompt);
    r->prompt = NULL;
    fail_err(f, &err);
    snprintf(f->param, sizeof f->param, "messages");
    return -1;
}

/* Reasoning that the client did not send back, by the id of the message's first call. */
static void remember(struct turn *t, json_t *messages)
{
    size_t i;
    json_t *m;
    json_array_foreach(messages, i, m)
    {
        const char *id = json_string_value(
            json_object_get(json_array_get(json_object_get(m, "tool_calls"), 0), "id"));
        if (!id || json_is_string(json_object_get(m, "reasoning_content")))
            continue;
        char *text = memory_get(t->x->server->memory, t->x->client, id);
        if (text)
            json_object_set_new(m, "reasoning_content", json_string(text));
        free(text);
    }
}

int turn_chat(struct turn *t, json_t *chat, const struct turn_sampling *s, struct failure *f)
{
    struct rendered r;
    struct job *j;
    dsv4_err err;
    remember(t, json_object_get(chat, "messages"));
    if (turn_render(t->x->server, chat, &r, f) != 0)
        return -1;
    int rc = add_job(t, r.ids, r.n, s, &j, f);
    if (rc == 0) {
        j->text = r.prompt->text;
        j->text_len = r.prompt->len;
        r.prompt->text = NULL;
        if (mem_alloc(&j->spans, r.prompt->n_control, sizeof *j->spans, "a prompt", &err) == 0) {
            memcpy(j->spans, r.prompt->control, r.prompt->n_control * sizeof *j->spans);
            j->n_spans = r.prompt->n_control;
        } else {
            rc = fail_err(f, &err);
        }
        /* the first message of a person; text cannot give this token */
        int32_t user = dsv4_token_find(t->x->server->tok, "<｜User｜>");
        while (j->head < j->n_prompt && j->prompt[j->head] != user)
            j->head++;
        /* what follows the last message is written otherwise in the next turn's prompt */
        j->tail = 2;
    }
    dsv4_prompt_close(r.prompt);
    return rc;
}

int turn_text(struct turn *t, const char *text, size_t len, const struct turn_sampling *s,
              struct failure *f)
{
    struct server *v = t->x->server;
    int32_t *ids, *all;
    size_t n;
    struct job *j;
    dsv4_err err;
    if (dsv4_encode(v->tok, text, len, false, &ids, &n, &err) != 0)
        return fail_err(f, &err);
    if (mem_alloc(&all, n + 1, sizeof *all, "a prompt", &err) != 0) {
        dsv4_free(ids);
        return fail_err(f, &err);
    }
    size_t bos = v->bos >= 0;
    if (bos)
        all[0] = v->bos;
    if (n)
        memcpy(all + bos, ids, n * sizeof *all);
    dsv4_free(ids);
    return add_job(t, all, n + bos, s, &j, f);
}

int turn_ids(struct turn *t, const json_t *ids, const struct turn_sampling *s, struct failure *f)
{
    size_t n = json_array_size(ids), vocab = t->x->server->backend.vocab;
    int32_t *all;
    struct job *j;
    dsv4_err err;
    if (mem_alloc(&all, n, sizeof *all, "a prompt", &err) != 0)
        return fail_err(f, &err);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(ids, i);
        json_int_t id = json_integer_value(v);
        if (!json_is_integer(v) || id < 0 || (size_t)id >= vocab) {
            free(all);
            return fail_set(f, 400, "prompt", "prompt: token ids must be integers from 0 to %zu",
                            vocab - 1);
        }
        all[i] = (int32_t)id;
    }
    return add_job(t, all, n, s, &j, f);
}

/* ------------------------------------------------------------------ for shapes */

struct result *turn_result(struct turn *t, size_t i)
{
    return answer_result(t->answer[i]);
}

size_t turn_tokens(const struct turn *t, size_t *reasoning)
{
    size_t n = 0;
    *reasoning = 0;
    for (size_t i = 0; i < t->n_prompts * t->n_choices; i++) {
        const struct result *r = answer_result(t->answer[i]);
        n += r->n_tokens;
        *reasoning += r->n_reasoning;
    }
    return n;
}

static void send(struct turn *t)
{
    if (t->out.b.len || t->out.failed)
        exchange_push(t->x, &t->out);
}

/* ------------------------------------------------------------------ the scheduler's calls */

static void on_piece(void *arg, unsigned choice, const struct piece *p)
{
    struct turn *t = arg;
    if (!t->stream || (t->hide_reasoning && p->kind == PIECE_REASONING))
        return;
    t->shape->piece(t, choice, p);
}

static void on_progress(void *arg, size_t cached, size_t done, size_t total, double seconds)
{
    struct part *p = arg;
    struct turn *t = p->turn;
    pthread_mutex_lock(&t->lock);
    if (t->stream && t->return_progress && t->shape->progress) {
        t->shape->progress(t, cached, done, total, seconds);
        send(t);
    }
    pthread_mutex_unlock(&t->lock);
}

static const uint32_t *on_allow(void *arg, unsigned choice)
{
    struct part *p = arg;
    return answer_allow(p->turn->answer[p->first + choice]);
}

static bool on_forced(void *arg, unsigned choice, int32_t *token)
{
    struct part *p = arg;
    return answer_forced(p->turn->answer[p->first + choice], token);
}

static bool on_token(void *arg, unsigned choice, dsv4_logprob chosen, const dsv4_logprob *top)
{
    struct part *p = arg;
    struct turn *t = p->turn;
    pthread_mutex_lock(&t->lock);
    bool end = answer_token(t->answer[p->first + choice], chosen, top);
    send(t);
    pthread_mutex_unlock(&t->lock);
    return end;
}

static void on_ended(void *arg, unsigned choice, enum ended why)
{
    struct part *p = arg;
    struct turn *t = p->turn;
    size_t i = p->first + choice;
    struct result *r = answer_result(t->answer[i]);
    pthread_mutex_lock(&t->lock);
    answer_end(t->answer[i], why);
    if (why == ENDED_DEADLINE && r->n_tokens == 0 && !t->failure.status) {
        fail_set(&t->failure, 503, NULL, "there was no time left to begin with this request");
        t->failure.retry = 5;
    }
    if (answer_failed(t->answer[i]) && !t->failure.status)
        fail_set(&t->failure, 503, NULL, "out of memory");
    if (r->n_calls > 0)
        memory_put(t->x->server->memory, t->x->client, r->call[0].id, r->reasoning.b.data,
                   r->reasoning.b.len);
    if (t->stream && !t->failure.status && t->shape->finish)
        t->shape->finish(t, (unsigned)i);
    send(t);
    pthread_mutex_unlock(&t->lock);
}

static void on_failed(void *arg, const dsv4_err *err)
{
    struct part *p = arg;
    struct turn *t = p->turn;
    pthread_mutex_lock(&t->lock);
    if (!t->failure.status)
        fail_err(&t->failure, err);
    pthread_mutex_unlock(&t->lock);
}

/* Everything is known: the reply ends. */
static void conclude(struct turn *t)
{
    struct exchange *x = t->x;
    if (t->stream) {
        if (t->failure.status)
            t->shape->fail(t, &t->failure);
        else
            t->shape->end(t);
        send(t);
        exchange_end(x);
    } else if (t->failure.status) {
        exchange_fail(x, &t->failure);
    } else {
        t->shape->whole(t);
        exchange_reply(x, 200, "application/json", &t->out);
    }
}

/* One that held the turn does not any more; unlocks. The last one concludes and frees it. */
static void let_go(struct turn *t)
{
    bool last = --t->open == 0;
    if (last)
        conclude(t);
    pthread_mutex_unlock(&t->lock);
    if (last)
        turn_close(t);
}

static void on_finished(void *arg, const struct job_stats *stats)
{
    struct part *p = arg;
    struct turn *t = p->turn;
    pthread_mutex_lock(&t->lock);
    t->prompt_tokens += stats->n_prompt;
    t->cached_tokens += stats->n_cached;
    t->stats = *stats;
    let_go(t);
}

static const struct job_ops ops = {on_progress, on_allow,  on_forced,  on_token,
                                   on_ended,    on_failed, on_finished};

/* ------------------------------------------------------------------ going */

static int open_answers(struct turn *t, dsv4_err *err)
{
    size_t n = t->n_prompts * t->n_choices;
    TRY(mem_alloc(&t->answer, n, sizeof(void *), "answers", err));
    TRY(mem_alloc(&t->part, t->n_prompts, sizeof *t->part, "answers", err));
    for (size_t i = 0; i < t->n_prompts; i++)
        t->part[i] = (struct part){.turn = t, .first = i * t->n_choices};
    for (size_t i = 0; i < n; i++)
        TRY(answer_open(&t->answer[i], &t->options, (unsigned)i, on_piece, t, err));
    return 0;
}

static void busy(struct failure *f, const dsv4_err *err, int rc, unsigned retry)
{
    if (rc == DSV4_FAILED) {
        fail_set(f, 429, NULL, "%s", err->text);
        f->code = "queue_full";
        f->retry = retry;
    } else if (rc == DSV4_INTERRUPTED) {
        fail_set(f, 503, NULL, "%s", err->text);
    } else {
        fail_err(f, err);
    }
}

void turn_go(struct turn *t)
{
    struct server *s = t->x->server;
    struct failure f;
    dsv4_err err;
    unsigned retry;
    if (open_answers(t, &err) != 0) {
        fail_err(&f, &err);
        turn_refuse(t, t->x, &f);
        return;
    }
    pthread_mutex_lock(&t->lock);
    size_t n = t->n_prompts, sent = 0;
    t->open = n + 1;
    for (; sent < n; sent++) {
        struct job *j = t->jobs[sent];
        t->jobs[sent] = NULL;
        j->ops = &ops;
        j->arg = &t->part[sent];
        int rc = sched_submit(s->sched, j, &retry, &err);
        if (rc == 0)
            continue;
        if (rc == DSV4_FAILED)
            metric_add(&s->metrics, COUNT_REFUSED_BUSY, 1);
        busy(&t->failure, &err, rc, retry);
        break;
    }
    t->open -= n - sent;
    if (t->failure.status && sent == 0) {
        f = t->failure;
        pthread_mutex_unlock(&t->lock);
        turn_refuse(t, t->x, &f);
        return;
    }
    if (t->stream && !t->failure.status) {
        exchange_stream(t->x);
        t->shape->begin(t);
        send(t);
        http_wake(s->http);
    } else {
        t->stream = t->stream && !t->failure.status;
    }
    let_go(t);
}
