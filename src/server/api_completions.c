/* OpenAI: completions of plain text. */
#include "api.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

struct params {
    const char *model, *suffix, *user, *grammar;
    json_t *prompt, *stop, *bias, *stream_options;
    bool stream, echo, ignore_eos, return_progress, cache_prompt;
    int64_t n, best_of, max_tokens, logprobs, seed, top_k;
    double temperature, top_p, min_p, frequency, presence, repetition, timeout;
};

#define AT(field) offsetof(struct params, field)
static const struct param table[] = {
    {"model", P_TEXT, 0, 256, AT(model)},
    {"prompt", P_ANY, 0, 0, AT(prompt)},
    {"suffix", P_TEXT, 0, 0, AT(suffix)},
    {"echo", P_BOOL, 0, 0, AT(echo)},
    {"grammar", P_TEXT, 1, 1 << 20, AT(grammar)},
    {"temperature", P_NUMBER, 0, 2, AT(temperature)},
    {"top_p", P_NUMBER, 1e-6, 1, AT(top_p)},
    {"top_k", P_INT, 0, INT32_MAX, AT(top_k)},
    {"min_p", P_NUMBER, 0, 1, AT(min_p)},
    {"frequency_penalty", P_NUMBER, -2, 2, AT(frequency)},
    {"presence_penalty", P_NUMBER, -2, 2, AT(presence)},
    {"repetition_penalty", P_NUMBER, 0.01, 100, AT(repetition)},
    {"seed", P_INT, -9.2e18, 9.2e18, AT(seed)},
    {"stop", P_ANY, 0, 0, AT(stop)},
    {"max_tokens", P_INT, 0, 1e9, AT(max_tokens)},
    {"n", P_INT, 1, 1e6, AT(n)},
    {"best_of", P_INT, 1, 1e6, AT(best_of)},
    {"logprobs", P_INT, 0, 20, AT(logprobs)},
    {"logit_bias", P_OBJECT, 0, 0, AT(bias)},
    {"stream", P_BOOL, 0, 0, AT(stream)},
    {"stream_options", P_OBJECT, 0, 0, AT(stream_options)},
    {"ignore_eos", P_BOOL, 0, 0, AT(ignore_eos)},
    {"return_progress", P_BOOL, 0, 0, AT(return_progress)},
    {"cache_prompt", P_BOOL, 0, 0, AT(cache_prompt)},
    {"timeout", P_NUMBER, 0, 1e6, AT(timeout)},
    {"user", P_TEXT, 0, 1024, AT(user)},
};

/* What a turn of this protocol remembers. */
struct own {
    bool echo;
    size_t n;
    struct {
        size_t logged, offset;
        bool begun;
    } sent[];
};

/* ------------------------------------------------------------------ writing */

static void write_token_text(struct turn *t, int32_t id, bool key)
{
    char clean[1024];
    size_t len, n = 0;
    const char *text = dsv4_token_bytes(t->x->server->tok, id, &len);
    dsv4_utf8 u = {0};
    (void)key;
    if (text)
        n = dsv4_utf8_push(&u, text, len < 300 ? len : 300, clean);
    n += dsv4_utf8_flush(&u, clean + n);
    out_string(&t->out, clean, n);
}

static void write_logprobs(struct turn *t, const struct result *r, size_t from, size_t *offset)
{
    size_t at = *offset, len;
    if (!t->options.logprobs) {
        out_text(&t->out, "null");
        return;
    }
    out_text(&t->out, "{\"tokens\":[");
    for (size_t i = from; i < r->n_logged; i++) {
        out_text(&t->out, i > from ? "," : "");
        write_token_text(t, r->logged[i].chosen.token, false);
    }
    out_text(&t->out, "],\"token_logprobs\":[");
    for (size_t i = from; i < r->n_logged; i++) {
        out_text(&t->out, i > from ? "," : "");
        out_number(&t->out, fmax(-9999, (double)r->logged[i].chosen.logprob));
    }
    out_text(&t->out, "],\"text_offset\":[");
    for (size_t i = from; i < r->n_logged; i++) {
        out_printf(&t->out, i > from ? ",%zu" : "%zu", at);
        dsv4_token_bytes(t->x->server->tok, r->logged[i].chosen.token, &len);
        at += len;
    }
    *offset = at;
    out_text(&t->out, "],\"top_logprobs\":[");
    for (size_t i = from; i < r->n_logged; i++) {
        const struct logged *l = &r->logged[i];
        out_text(&t->out, i > from ? ",{" : "{");
        for (size_t k = 0; k < t->options.n_top && l->top[k].token >= 0; k++) {
            /* tokens that are parts of characters look alike: the likeliest stands for them */
            out_text(&t->out, k ? "," : "");
            write_token_text(t, l->top[k].token, true);
            out_text(&t->out, ":");
            out_number(&t->out, fmax(-9999, (double)l->top[k].logprob));
        }
        out_text(&t->out, "}");
    }
    out_text(&t->out, "]}");
}

static void write_head(struct turn *t)
{
    out_text(&t->out, "{\"id\":");
    out_cstring(&t->out, t->id);
    out_printf(&t->out, ",\"object\":\"text_completion\",\"created\":%lld,\"model\":",
               (long long)t->created);
    out_cstring(&t->out, t->x->server->opt->model_name);
    out_text(&t->out, ",\"system_fingerprint\":\"dsv4-" DSV4_VERSION "\",\"choices\":[");
}

static void write_usage(struct turn *t)
{
    size_t reasoning, n = turn_tokens(t, &reasoning);
    out_printf(&t->out,
               "\"usage\":{\"prompt_tokens\":%zu,\"completion_tokens\":%zu,\"total_tokens\":%zu,"
               "\"prompt_tokens_details\":{\"cached_tokens\":%zu}}",
               t->prompt_tokens, n, t->prompt_tokens + n, t->cached_tokens);
}

/* The text of prompt number i. */
static void write_prompt(struct turn *t, struct out *o, size_t i)
{
    const json_t *p = json_object_get(t->body, "prompt"), *v = p;
    if (json_is_array(p) && !json_is_integer(json_array_get(p, 0)))
        v = json_array_get(p, i);
    if (json_is_string(v)) {
        out_add(o, json_string_value(v), json_string_length(v));
        return;
    }
    dsv4_utf8 u = {0};
    char clean[4096];
    for (size_t k = 0; k < json_array_size(v); k++) {
        size_t len;
        const char *text = dsv4_token_bytes(
            t->x->server->tok, (int32_t)json_integer_value(json_array_get(v, k)), &len);
        if (text && len < 1000)
            out_add(o, clean, dsv4_utf8_push(&u, text, len, clean));
    }
    out_add(o, clean, dsv4_utf8_flush(&u, clean));
}

static const char *finish_name(enum finish f)
{
    return f == FINISH_LENGTH ? "length" : "stop";
}

static void write_choice(struct turn *t, size_t choice, const char *text, size_t len,
                         const char *finish)
{
    struct own *own = t->own;
    const struct result *r = turn_result(t, choice);
    out_printf(&t->out, "{\"index\":%zu,\"text\":", choice);
    if (own->echo && !own->sent[choice].begun) {
        struct out o = {0};
        write_prompt(t, &o, choice / t->n_choices);
        out_add(&o, text, len);
        t->out.failed |= o.failed;
        out_string(&t->out, o.b.data, o.b.len);
        out_free(&o);
    } else {
        out_string(&t->out, text, len);
    }
    own->sent[choice].begun = true;
    out_text(&t->out, ",\"logprobs\":");
    write_logprobs(t, r, own->sent[choice].logged, &own->sent[choice].offset);
    own->sent[choice].logged = r->n_logged;
    if (finish)
        out_printf(&t->out, ",\"finish_reason\":\"%s\"}", finish);
    else
        out_text(&t->out, ",\"finish_reason\":null}");
}

static void on_begin(struct turn *t)
{
    (void)t;
}

static void on_piece(struct turn *t, unsigned choice, const struct piece *p)
{
    if (p->kind != PIECE_CONTENT)
        return;
    sse_begin(t, NULL);
    write_head(t);
    write_choice(t, choice, p->text, p->len, NULL);
    out_text(&t->out, t->include_usage ? "],\"usage\":null}" : "]}");
    sse_end(t);
}

static void on_finish(struct turn *t, unsigned choice)
{
    sse_begin(t, NULL);
    write_head(t);
    write_choice(t, choice, "", 0, finish_name(turn_result(t, choice)->finish));
    out_text(&t->out, t->include_usage ? "],\"usage\":null}" : "]}");
    sse_end(t);
}

static void on_end(struct turn *t)
{
    if (t->include_usage) {
        sse_begin(t, NULL);
        write_head(t);
        out_text(&t->out, "],");
        write_usage(t);
        out_text(&t->out, "}");
        sse_end(t);
    }
    out_text(&t->out, "data: [DONE]\n\n");
}

static void on_fail(struct turn *t, const struct failure *f)
{
    sse_begin(t, NULL);
    failure_body(&t->out, PROTOCOL_OPENAI, f, t->x->id);
    sse_end(t);
    out_text(&t->out, "data: [DONE]\n\n");
}

static void on_whole(struct turn *t)
{
    write_head(t);
    for (size_t i = 0; i < t->n_prompts * t->n_choices; i++) {
        const struct result *r = turn_result(t, i);
        out_text(&t->out, i ? "," : "");
        write_choice(t, i, r->content.b.data ? r->content.b.data : "", r->content.b.len,
                     finish_name(r->finish));
        t->out.failed |= r->content.failed;
    }
    out_text(&t->out, "],");
    write_usage(t);
    out_text(&t->out, "}");
}

static void on_release(struct turn *t)
{
    dsv4_free(t->own);
}

static const struct shape shape = {on_begin, on_piece, on_finish, on_end,
                                   on_fail,  NULL,     on_whole,  on_release};

/* ------------------------------------------------------------------ the request */

static int add_prompts(struct turn *t, const json_t *p, const struct turn_sampling *sp,
                       struct failure *f)
{
    size_t n = json_array_size(p), max = t->x->server->opt->max_choices;
    if (json_is_string(p))
        return turn_text(t, json_string_value(p), json_string_length(p), sp, f);
    if (!json_is_array(p) || n == 0)
        return fail_set(f, 400, "prompt", "prompt must be a text, token ids, or a list of these");
    if (json_is_integer(json_array_get(p, 0)))
        return turn_ids(t, p, sp, f);
    if (n * t->n_choices > max)
        return fail_set(f, 400, "prompt", "%zu choices in all; at most %zu are made here",
                        n * t->n_choices, max);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(p, i);
        int rc =
            json_is_string(v)  ? turn_text(t, json_string_value(v), json_string_length(v), sp, f)
            : json_is_array(v) ? turn_ids(t, v, sp, f)
                               : fail_set(f, 400, "prompt",
                                          "prompt must be a text, token ids, or a list of these");
        if (rc != 0)
            return -1;
    }
    return 0;
}

static int judge(struct turn *t, const struct params *p, struct failure *f)
{
    size_t max = t->x->server->opt->max_choices;
    if (p->suffix && *p->suffix)
        return fail_set(f, 400, "suffix", "suffix is not supported here");
    if (p->best_of > 0 && p->best_of != p->n)
        return fail_set(f, 400, "best_of", "best_of other than n is not supported here");
    if (p->echo && p->logprobs >= 0)
        return fail_set(f, 400, "echo", "echo together with logprobs is not supported here");
    if (p->n > (int64_t)max)
        return fail_set(f, 400, "n", "n is %lld; at most %zu choices are made here",
                        (long long)p->n, max);
    if (p->stream_options && !p->stream)
        return fail_set(f, 400, "stream_options", "stream_options goes with stream: true");
    if (!p->prompt)
        return fail_set(f, 400, "prompt", "prompt is needed");
    return api_model(t->x->server, p->model, f);
}

static int read_request(struct turn *t, struct failure *f)
{
    struct turn_sampling sp = api_sampling(t->x->server);
    struct params p = {.n = 1,
                       .max_tokens = -1,
                       .logprobs = -1,
                       .cache_prompt = true,
                       .temperature = (double)sp.sampling.temperature,
                       .top_p = (double)sp.sampling.top_p,
                       .min_p = (double)sp.sampling.min_p,
                       .top_k = sp.sampling.top_k,
                       .repetition = 1,
                       .seed = INT64_MIN};
    struct {
        bool usage, obfuscation;
    } o = {false, false};
    static const struct param options[] = {{"include_usage", P_BOOL, 0, 0, 0},
                                           {"include_obfuscation", P_BOOL, 0, 0, 1}};
    dsv4_err err;
    if (params_read(t->body, table, sizeof table / sizeof *table, &p, f) != 0 ||
        judge(t, &p, f) != 0 ||
        (p.stream_options && params_read(p.stream_options, options, 2, &o, f) != 0))
        return -1;
    if (p.max_tokens == 0)
        return fail_set(f, 400, "max_tokens", "max_tokens must be at least 1");
    t->stream = p.stream;
    t->include_usage = o.usage;
    t->return_progress = p.return_progress;
    t->n_choices = (unsigned)p.n;
    t->options.raw = true;
    t->options.ignore_eos = p.ignore_eos;
    t->options.logprobs = p.logprobs >= 0;
    t->options.n_top = p.logprobs > 0 ? (size_t)p.logprobs : 0;
    sp.sampling.temperature = (float)p.temperature;
    sp.sampling.top_p = (float)p.top_p;
    sp.sampling.min_p = (float)p.min_p;
    sp.sampling.top_k = (int)p.top_k;
    sp.sampling.frequency = (float)p.frequency;
    sp.sampling.presence = (float)p.presence;
    sp.sampling.repetition = (float)p.repetition;
    if (p.seed != INT64_MIN)
        sp.sampling.seed = (uint64_t)p.seed;
    sp.logit_bias = p.bias;
    sp.user = p.user;
    sp.timeout = p.timeout;
    sp.max_tokens = p.max_tokens > 0 ? (size_t)p.max_tokens : 16; /* OpenAI's default */
    struct grammar_want g = {.kind = GRAMMAR_GBNF, .text = p.grammar};
    g.len = p.grammar ? strlen(p.grammar) : 0;
    if (turn_stops(t, p.stop, "stop", 64, f) != 0 ||
        (p.grammar && turn_constrain(t, &g, "grammar", f) != 0) ||
        add_prompts(t, p.prompt, &sp, f) != 0)
        return -1;
    for (size_t i = 0; i < t->n_prompts; i++)
        t->jobs[i]->no_cache = !p.cache_prompt;
    struct own *own;
    size_t n = t->n_prompts * t->n_choices;
    if (mem_alloc(&own, 1, sizeof *own + n * sizeof *own->sent, "a request", &err) != 0)
        return fail_err(f, &err);
    own->echo = p.echo;
    own->n = n;
    t->own = own;
    return 0;
}

void api_completions(struct exchange *x)
{
    json_t *body = api_body(x);
    struct turn *t;
    struct failure f = {0};
    if (!body)
        return;
    int rc = turn_open(&t, x, &shape, body, &f);
    json_decref(body);
    if (rc == 0) {
        snprintf(t->id, sizeof t->id, "cmpl-%s", x->id + 4);
        rc = read_request(t, &f);
    }
    if (rc != 0)
        turn_refuse(t, x, &f);
    else
        turn_go(t);
}
