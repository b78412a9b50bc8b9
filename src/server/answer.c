/* One choice: tokens come in, reasoning, content and calls go out, each exactly once and whole.
 *
 * The engine's parser takes the model's text apart. What it says is looked at again here: a call of
 * a tool that nobody offered, or with arguments that are not JSON, is held back and named in a
 * sentence. Where a grammar has seen to both, arguments go out as they come; otherwise a call goes
 * out when it is complete. */
#include "turn.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TAIL = 32, MAX_CALLS_OUT = 256, LONGEST_PERIOD = 128 };

struct answer {
    const struct answer_options *opt;
    unsigned choice;
    piece_fn fn;
    void *arg;
    struct result r;
    dsv4_parser *parser;
    dsv4_matcher *matcher;
    uint32_t *bits;   /* the matcher's mask */
    uint32_t *no_end; /* all but the tokens that end an answer */
    bool thinking, in_block, stopped, ended;
    bool failed;      /* memory was short: what there is of it is not the model's answer */
    bool constrained; /* the matcher has seen all of the calls */
    int32_t end_think, dsml;
    int32_t role[8]; /* markers that a model writes when it goes on talking for others */
    size_t n_role;
    int32_t force; /* -1: none */
    size_t block_tokens;
    double begun;
    int32_t *token; /* all so far */
    size_t cap_token;
    char tail[TAIL]; /* the last bytes of text, to see a block's end */
    size_t n_tail;

    dsv4_utf8 utf8;
    struct bytes held;  /* content that may become a stop string */
    struct bytes clean; /* scratch */
    bool call_open, call_bad;
    struct out name, arguments; /* of the call that is being read */
};

/* ------------------------------------------------------------------ out */

static void emit(struct answer *a, enum piece_kind kind, const char *text, size_t len)
{
    struct piece p = {kind, text, len, a->r.n_calls ? a->r.n_calls - 1 : 0};
    a->fn(a->arg, a->choice, &p);
}

static void emit_content(struct answer *a, const char *text, size_t len)
{
    if (len == 0)
        return;
    out_add(&a->r.content, text, len);
    emit(a, PIECE_CONTENT, text, len);
}

/* A status on its way: whether it is a failure, and the answer with it. */
static bool failure(struct answer *a, int rc)
{
    a->failed = a->failed || rc == DSV4_NO_MEMORY;
    return rc != 0;
}

static void emit_reasoning(struct answer *a, const char *text, size_t len)
{
    if (len == 0)
        return;
    out_add(&a->r.reasoning, text, len);
    emit(a, PIECE_REASONING, text, len);
}

/* The end of text that may be the beginning of a stop string. */
static size_t may_stop(const struct answer *a)
{
    size_t most = 0;
    for (size_t i = 0; i < a->opt->n_stops; i++) {
        const char *stop = a->opt->stops[i];
        size_t n = strlen(stop), k = a->held.len < n - 1 ? a->held.len : n - 1;
        while (k > most && memcmp(a->held.data + a->held.len - k, stop, k) != 0)
            k--;
        most = k > most ? k : most;
    }
    return most;
}

/* The first stop string in the text; its place. */
static bool find_stop(struct answer *a, size_t *at)
{
    bool found = false;
    *at = a->held.len;
    for (size_t i = 0; i < a->opt->n_stops; i++) {
        const char *stop = a->opt->stops[i];
        const char *p = memmem(a->held.data, a->held.len, stop, strlen(stop));
        if (p && (!found || (size_t)(p - a->held.data) < *at)) {
            found = true;
            *at = (size_t)(p - a->held.data);
            a->r.stop = stop;
        }
    }
    return found;
}

static void flush_content(struct answer *a)
{
    if (!a->stopped)
        emit_content(a, a->held.data, a->held.len);
    a->held.len = 0;
}

static void take_content(struct answer *a, const char *text, size_t len)
{
    dsv4_err err;
    size_t at;
    if (a->stopped || len == 0)
        return;
    if (a->opt->n_stops == 0) {
        emit_content(a, text, len);
        return;
    }
    if (failure(a, bytes_add(&a->held, text, len, &err)))
        return;
    a->stopped = find_stop(a, &at);
    size_t ready = a->stopped ? at : a->held.len - may_stop(a);
    emit_content(a, a->held.data, ready);
    memmove(a->held.data, a->held.data + ready, a->held.len - ready);
    a->held.len -= ready;
    if (a->stopped)
        a->held.len = 0;
}

/* ------------------------------------------------------------------ calls */

static void new_id(struct answer *a, char id[32])
{
    static const char digits[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    unsigned char random[20];
    (void)a;
    if (getentropy(random, sizeof random) != 0)
        memset(random, 0, sizeof random);
    memcpy(id, "call_", 5);
    for (size_t i = 0; i < sizeof random; i++)
        id[5 + i] = digits[random[i] % 62];
    id[5 + sizeof random] = 0;
}

static bool known(const struct answer *a)
{
    return !a->opt->names || json_object_getn(a->opt->names, a->name.b.data, a->name.b.len);
}

/* The call goes into the result, and out. */
static void begin_call(struct answer *a)
{
    dsv4_err err;
    if (a->r.n_calls >= MAX_CALLS_OUT || (!a->opt->parallel && a->r.n_calls > 0) ||
        failure(a, mem_grow(&a->r.call, &a->r.cap_calls, a->r.n_calls + 1, sizeof *a->r.call,
                            "calls", &err))) {
        a->call_bad = true;
        return;
    }
    struct call *c = &a->r.call[a->r.n_calls++];
    *c = (struct call){.id = ""};
    new_id(a, c->id);
    out_add(&c->name, a->name.b.data, a->name.b.len);
    metric_add(a->opt->metrics, COUNT_TOOL_CALLS, 1);
    emit(a, PIECE_CALL, c->name.b.data, c->name.b.len);
}

static void more_arguments(struct answer *a, const char *text, size_t len)
{
    if (len == 0)
        return;
    out_add(&a->r.call[a->r.n_calls - 1].arguments, text, len);
    emit(a, PIECE_ARGUMENTS, text, len);
}

static void quarantine(struct answer *a, const char *why)
{
    struct out o = {0};
    metric_add(a->opt->metrics, COUNT_TOOL_QUARANTINED, 1);
    out_text(&o, a->r.content.b.len ? "\n\n" : "");
    out_printf(&o, "[A call of a tool was left out: %s.]", why);
    if (o.failed)
        a->failed = true;
    else
        emit_content(a, o.b.data, o.b.len);
    out_free(&o);
}

/* The call is complete, or the answer was cut inside it. */
static void close_call(struct answer *a, bool cut)
{
    json_t *v;
    dsv4_err err;
    if (!a->call_open)
        return;
    a->call_open = false;
    if (a->constrained) {
        if (!a->call_bad)
            emit(a, PIECE_CALL_END, NULL, 0);
        return;
    }
    if (a->call_bad)
        return;
    if (failure(a, json_read(&v, a->arguments.b.data ? a->arguments.b.data : "", a->arguments.b.len,
                             &err))) {
        quarantine(a, cut ? "it was not complete" : "its arguments were not valid JSON");
        return;
    }
    json_decref(v);
    begin_call(a);
    if (a->call_bad)
        return;
    more_arguments(a, a->arguments.b.data, a->arguments.b.len);
    emit(a, PIECE_CALL_END, NULL, 0);
}

static void open_call(struct answer *a, const char *name, size_t len)
{
    close_call(a, false);
    flush_content(a);
    a->name.b.len = a->arguments.b.len = 0;
    out_add(&a->name, name, len);
    a->call_open = true;
    a->call_bad = !known(a);
    if (a->call_bad)
        quarantine(a, "there is no tool of that name");
    else if (a->constrained)
        begin_call(a);
}

static void take_arguments(struct answer *a, const char *text, size_t len)
{
    if (a->call_bad)
        return;
    if (a->constrained)
        more_arguments(a, text, len);
    else
        out_add(&a->arguments, text, len);
}

/* ------------------------------------------------------------------ the parser's events */

static void on_event(void *arg, const dsv4_event *e)
{
    struct answer *a = arg;
    dsv4_err err;
    size_t n;
    if (failure(a, mem_grow(&a->clean.data, &a->clean.cap, 3 * e->len + 16, 1, "text", &err)))
        return;
    n = dsv4_utf8_push(&a->utf8, e->text, e->len, a->clean.data);
    n += dsv4_utf8_flush(&a->utf8, a->clean.data + n);
    if (e->kind != DSV4_REASONING && e->kind != DSV4_FINISH && a->thinking) {
        a->thinking = false;
        a->r.reasoning_seconds = clock_seconds() - a->begun;
    }
    switch (e->kind) {
    case DSV4_REASONING: emit_reasoning(a, a->clean.data, n); break;
    case DSV4_CONTENT: take_content(a, a->clean.data, n); break;
    case DSV4_CALL: open_call(a, a->clean.data, n); break;
    case DSV4_ARGUMENTS: take_arguments(a, a->clean.data, n); break;
    case DSV4_FINISH: break;
    }
}

/* ------------------------------------------------------------------ tokens */

static void allow_bit(uint32_t *bits, int32_t token, bool on)
{
    if (token < 0)
        return;
    if (on)
        bits[token / 32] |= 1u << (token % 32);
    else
        bits[token / 32] &= ~(1u << (token % 32));
}

static bool ends(const struct answer *a, int32_t token)
{
    for (size_t i = 0; i < a->n_role; i++)
        if (token == a->role[i])
            return true;
    return token == a->opt->eos;
}

const uint32_t *answer_allow(struct answer *a)
{
    dsv4_err err;
    if (!a->matcher)
        return NULL;
    if (a->thinking && !a->opt->grammar_thinks)
        return a->no_end; /* what was asked for comes after the reasoning */
    if (dsv4_matcher_mask(a->matcher, a->bits, a->opt->vocab, &err) != 0) {
        a->failed = true;
        memset(a->bits, 0, (a->opt->vocab + 31) / 32 * sizeof *a->bits);
        allow_bit(a->bits, a->opt->eos, true);
    }
    return a->bits;
}

bool answer_forced(struct answer *a, int32_t *token)
{
    if (a->force < 0)
        return false;
    *token = a->force;
    a->force = -1;
    return true;
}

static void log_token(struct answer *a, dsv4_logprob chosen, const dsv4_logprob *top)
{
    dsv4_err err;
    if (!a->opt->logprobs || failure(a, mem_grow(&a->r.logged, &a->r.cap_logged, a->r.n_logged + 1,
                                                 sizeof *a->r.logged, "log-probabilities", &err)))
        return;
    struct logged *l = &a->r.logged[a->r.n_logged];
    *l = (struct logged){.chosen = chosen};
    if (failure(a, mem_alloc(&l->top, a->opt->n_top, sizeof *l->top, "log-probabilities", &err)))
        return;
    if (a->opt->n_top)
        memcpy(l->top, top, a->opt->n_top * sizeof *top);
    a->r.n_logged++;
}

/* The last loop_limit tokens only repeat a few. */
static bool loops(const struct answer *a)
{
    size_t n = a->r.n_tokens, limit = a->opt->loop_limit;
    if (limit == 0 || n < limit || n % 64 != 0)
        return false;
    for (size_t p = 1; p <= LONGEST_PERIOD && p < limit / 4; p++) {
        size_t i = n - 1;
        while (i >= n - limit + p && a->token[i] == a->token[i - p])
            i--;
        if (i < n - limit + p)
            return true;
    }
    return false;
}

/* What follows a block's end is dropped by the parser: there is no use in going on. */
static bool block_ended(struct answer *a, const char *text, size_t len)
{
    static const char *const closing[] = {"</｜DSML｜tool_calls>", "</｜DSML｜ calls>",
                                          "</｜DSML｜function_calls>"};
    size_t n = len < TAIL ? len : TAIL, keep = a->n_tail < TAIL - n ? a->n_tail : TAIL - n;
    memmove(a->tail, a->tail + a->n_tail - keep, keep);
    memcpy(a->tail + keep, text + len - n, n);
    a->n_tail = keep + n;
    for (size_t i = 0; i < sizeof closing / sizeof *closing; i++) {
        size_t m = strlen(closing[i]);
        if (a->n_tail >= m && memcmp(a->tail + a->n_tail - m, closing[i], m) == 0)
            return true;
    }
    return false;
}

static bool finish(struct answer *a, enum finish f)
{
    a->r.finish = f;
    return true;
}

static bool raw_token(struct answer *a, int32_t id, const char *text, size_t len)
{
    dsv4_err err;
    if (id == a->opt->eos && !a->opt->ignore_eos)
        return finish(a, FINISH_STOP);
    if (dsv4_token_special(a->opt->tok, id))
        len = 0;
    if (failure(a, mem_grow(&a->clean.data, &a->clean.cap, 3 * len + 16, 1, "text", &err)))
        return finish(a, FINISH_LENGTH);
    size_t n = dsv4_utf8_push(&a->utf8, text, len, a->clean.data);
    take_content(a, a->clean.data, n);
    return a->stopped && finish(a, FINISH_STOP_STRING);
}

static bool chat_token(struct answer *a, int32_t id, const char *text, size_t len)
{
    dsv4_err err;
    if (id == a->end_think && a->thinking) {
        a->thinking = false;
        a->r.reasoning_seconds = clock_seconds() - a->begun;
    }
    if (a->opt->tools && id == a->dsml && !a->in_block) {
        a->in_block = true;
        a->constrained = a->matcher && (!a->thinking || a->opt->grammar_thinks);
    }
    if (ends(a, id))
        return finish(a, FINISH_STOP);
    if (dsv4_token_special(a->opt->tok, id))
        return false;
    failure(a, dsv4_parser_feed(a->parser, text, len, &err));
    if (a->stopped)
        return finish(a, FINISH_STOP_STRING);
    if (a->in_block && block_ended(a, text, len))
        return finish(a, FINISH_STOP);
    if (a->in_block && ++a->block_tokens > a->opt->block_limit && a->opt->block_limit)
        return finish(a, FINISH_LENGTH);
    if (a->thinking && a->opt->budget && a->r.n_reasoning >= a->opt->budget)
        a->force = a->end_think;
    return false;
}

bool answer_token(struct answer *a, dsv4_logprob chosen, const dsv4_logprob *top)
{
    dsv4_err err;
    size_t len;
    const char *text = dsv4_token_bytes(a->opt->tok, chosen.token, &len);
    bool was_thinking = a->thinking, was_block = a->in_block;
    if (!text || failure(a, mem_grow(&a->token, &a->cap_token, a->r.n_tokens + 1, sizeof *a->token,
                                     "tokens", &err)))
        return finish(a, FINISH_LENGTH);
    a->token[a->r.n_tokens++] = chosen.token;
    if (a->thinking) {
        a->r.n_reasoning++;
        metric_add(a->opt->metrics, COUNT_REASONING_TOKENS, 1);
    }
    if (a->matcher && (!a->thinking || a->opt->grammar_thinks) && !ends(a, chosen.token) &&
        failure(a, dsv4_matcher_accept(a->matcher, chosen.token, &err)))
        return finish(a, FINISH_STOP); /* the mask leaves nothing: the text ends here */
    if (!was_thinking && !was_block && chosen.token != a->opt->eos)
        log_token(a, chosen, top);
    bool end = a->opt->raw ? raw_token(a, chosen.token, text, len)
                           : chat_token(a, chosen.token, text, len);
    if (end || a->failed)
        return true;
    if (loops(a)) {
        metric_add(a->opt->metrics, COUNT_LOOPS, 1);
        return finish(a, FINISH_LENGTH);
    }
    return false;
}

void answer_end(struct answer *a, enum ended why)
{
    dsv4_err err;
    if (a->ended)
        return;
    a->ended = true;
    if (why != ENDED_BY_JOB || a->r.finish == FINISH_NONE)
        a->r.finish = FINISH_LENGTH;
    bool cut = a->r.finish == FINISH_LENGTH;
    if (a->opt->raw) {
        char rest[16];
        size_t n = dsv4_utf8_flush(&a->utf8, rest);
        take_content(a, rest, n);
    } else {
        failure(a, dsv4_parser_end(a->parser, cut, &err));
        close_call(a, cut);
    }
    flush_content(a);
    if (a->thinking)
        a->r.reasoning_seconds = clock_seconds() - a->begun;
    if (a->r.finish == FINISH_STOP && a->r.n_calls > 0)
        a->r.finish = FINISH_CALLS;
}

/* ------------------------------------------------------------------ opening */

static int open_matcher(struct answer *a, dsv4_err *err)
{
    size_t words = (a->opt->vocab + 31) / 32;
    if (!a->opt->grammar)
        return 0;
    TRY(mem_alloc(&a->bits, words, sizeof *a->bits, "a token mask", err));
    TRY(mem_alloc(&a->no_end, words, sizeof *a->no_end, "a token mask", err));
    memset(a->no_end, 0xff, words * sizeof *a->no_end);
    allow_bit(a->no_end, a->opt->eos, false);
    for (size_t i = 0; i < a->n_role; i++)
        allow_bit(a->no_end, a->role[i], false);
    return dsv4_matcher_open(&a->matcher, a->opt->grammar, err);
}

int answer_open(struct answer **out, const struct answer_options *opt, unsigned choice, piece_fn fn,
                void *arg, dsv4_err *err)
{
    static const char *const roles[] = {"<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>",
                                        "<｜System｜>", "<｜latest_reminder｜>"};
    struct answer *a;
    *out = NULL;
    TRY(mem_alloc(&a, 1, sizeof *a, "an answer", err));
    a->opt = opt;
    a->choice = choice;
    a->fn = fn;
    a->arg = arg;
    a->force = -1;
    a->begun = clock_seconds();
    a->thinking = opt->thinking && !opt->raw;
    a->end_think = dsv4_token_find(opt->tok, "</think>");
    a->dsml = dsv4_token_find(opt->tok, "｜DSML｜");
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        a->role[a->n_role++] = dsv4_token_find(opt->tok, roles[i]);
    int rc =
        opt->raw ? 0 : dsv4_parser_open(&a->parser, opt->thinking, opt->tools, on_event, a, err);
    if (rc == 0)
        rc = open_matcher(a, err);
    if (rc != 0) {
        answer_close(a);
        return rc;
    }
    if (opt->in_block) {
        static const char opening[] = "\n\n<｜DSML｜tool_calls>\n";
        dsv4_parser_feed(a->parser, opening, sizeof opening - 1, err);
        a->in_block = true;
        a->constrained = a->matcher != NULL;
    }
    *out = a;
    return 0;
}

bool answer_failed(const struct answer *a)
{
    bool failed = a->failed || a->r.reasoning.failed || a->r.content.failed || a->name.failed ||
                  a->arguments.failed;
    for (size_t i = 0; i < a->r.n_calls; i++)
        failed = failed || a->r.call[i].name.failed || a->r.call[i].arguments.failed;
    return failed;
}

struct result *answer_result(struct answer *a)
{
    return &a->r;
}

void answer_close(struct answer *a)
{
    if (!a)
        return;
    dsv4_parser_close(a->parser);
    dsv4_matcher_close(a->matcher);
    for (size_t i = 0; i < a->r.n_calls; i++) {
        out_free(&a->r.call[i].name);
        out_free(&a->r.call[i].arguments);
    }
    for (size_t i = 0; i < a->r.n_logged; i++)
        free(a->r.logged[i].top);
    free(a->r.call);
    free(a->r.logged);
    out_free(&a->r.reasoning);
    out_free(&a->r.content);
    out_free(&a->name);
    out_free(&a->arguments);
    free(a->held.data);
    free(a->clean.data);
    free(a->bits);
    free(a->no_end);
    free(a->token);
    free(a);
}
