/* OpenAI: chat completions. */
#include "api.h"

#include <stddef.h>
#include <string.h>

/* ------------------------------------------------------------------ parameters */

struct chat_params {
    struct openai_params o;
    const char *effort, *tier, *cache_key, *retention, *safety, *verbosity, *reasoning;
    json_t *messages, *tools, *tool_choice, *format, *thinking, *template_words, *metadata,
        *functions, *function_call, *modalities, *audio, *prediction, *web;
    bool logprobs, parallel, store;
    int64_t max_tokens, max_completion_tokens, top_logprobs;
};

#define AT(field)   offsetof(struct chat_params, field)
#define AT_O(field) AT(o.field)
static const struct param table[] = {
    {"messages", P_LIST, 1, 100000, AT(messages)},
    {"tools", P_LIST, 0, 0, AT(tools)},
    {"tool_choice", P_ANY, 0, 0, AT(tool_choice)},
    {"parallel_tool_calls", P_BOOL, 0, 0, AT(parallel)},
    {"response_format", P_OBJECT, 0, 0, AT(format)},
    {"max_tokens", P_INT, 1, 1e9, AT(max_tokens)},
    {"max_completion_tokens", P_INT, 1, 1e9, AT(max_completion_tokens)},
    {"logprobs", P_BOOL, 0, 0, AT(logprobs)},
    {"top_logprobs", P_INT, 0, 20, AT(top_logprobs)},
    {"reasoning_effort", P_TEXT, 0, 32, AT(effort)},
    {"thinking", P_OBJECT, 0, 0, AT(thinking)},
    {"chat_template_kwargs", P_OBJECT, 0, 0, AT(template_words)},
    {"reasoning", P_TEXT, 0, 32, AT(reasoning)},
    /* who asks, and what he keeps with it: for him, not for the model */
    {"metadata", P_OBJECT, 0, 0, AT(metadata)},
    {"safety_identifier", P_TEXT, 0, 1024, AT(safety)},
    {"prompt_cache_key", P_TEXT, 0, 1024, AT(cache_key)},
    {"prompt_cache_retention", P_TEXT, 0, 64, AT(retention)},
    {"store", P_BOOL, 0, 0, AT(store)},
    {"service_tier", P_TEXT, 0, 64, AT(tier)},
    /* known, to say why not */
    {"functions", P_ANY, 0, 0, AT(functions)},
    {"function_call", P_ANY, 0, 0, AT(function_call)},
    {"modalities", P_LIST, 0, 0, AT(modalities)},
    {"audio", P_ANY, 0, 0, AT(audio)},
    {"prediction", P_ANY, 0, 0, AT(prediction)},
    {"web_search_options", P_ANY, 0, 0, AT(web)},
    {"verbosity", P_TEXT, 0, 64, AT(verbosity)},
    OPENAI_PARAMS(AT_O)};

static int refuse_unsupported(const struct chat_params *p, struct failure *f)
{
    const struct {
        const char *name;
        bool given;
    } no[] = {
        {"functions", p->functions},   {"function_call", p->function_call}, {"audio", p->audio},
        {"prediction", p->prediction}, {"web_search_options", p->web},      {"store", p->store}};
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        if (no[i].given) {
            fail_set(f, 400, no[i].name, "%s is not supported here", no[i].name);
            f->code = "unsupported_parameter";
            return -1;
        }
    for (size_t i = 0; i < json_array_size(p->modalities); i++) {
        const char *m = json_string_value(json_array_get(p->modalities, i));
        if (!m || strcmp(m, "text") != 0)
            return fail_set(f, 400, "modalities", "modalities: there is only text here");
    }
    if (p->tier && strcmp(p->tier, "auto") != 0 && strcmp(p->tier, "default") != 0)
        return fail_set(f, 400, "service_tier", "service_tier must be auto or default");
    if (p->verbosity && strcmp(p->verbosity, "medium") != 0)
        return fail_set(f, 400, "verbosity", "verbosity: only medium, the model knows no other");
    if (p->reasoning && strcmp(p->reasoning, "hidden") != 0 && strcmp(p->reasoning, "shown") != 0)
        return fail_set(f, 400, "reasoning", "reasoning must be hidden or shown");
    return 0;
}

/* ------------------------------------------------------------------ writing */

static void write_bytes(struct out *o, const char *text, size_t len)
{
    out_text(o, "[");
    for (size_t i = 0; i < len; i++)
        out_printf(o, i ? ",%u" : "%u", (unsigned char)text[i]);
    out_text(o, "]");
}

static void write_token(struct turn *t, int32_t id)
{
    size_t len;
    const char *text = dsv4_token_bytes(t->x->server->tok, id, &len);
    out_text(&t->out, "\"token\":");
    out_token(&t->out, t->x->server->tok, id);
    out_text(&t->out, ",\"bytes\":");
    write_bytes(&t->out, text ? text : "", text ? len : 0);
}

static void write_logged(struct turn *t, const struct logged *l)
{
    out_text(&t->out, "{");
    write_token(t, l->chosen.token);
    out_text(&t->out, ",\"logprob\":");
    openai_logprob(t, &l->chosen);
    out_text(&t->out, ",\"top_logprobs\":[");
    for (size_t i = 0; i < t->options.n_top && l->top[i].token >= 0; i++) {
        out_text(&t->out, i ? ",{" : "{");
        write_token(t, l->top[i].token);
        out_text(&t->out, ",\"logprob\":");
        openai_logprob(t, &l->top[i]);
        out_text(&t->out, "}");
    }
    out_text(&t->out, "]}");
}

/* Log-probabilities of tokens from..n-1 of the result, or null. */
static void write_logprobs(struct turn *t, const struct result *r, size_t from)
{
    if (!t->options.logprobs) {
        out_text(&t->out, "null");
        return;
    }
    out_text(&t->out, "{\"content\":[");
    for (size_t i = from; i < r->n_logged; i++) {
        out_text(&t->out, i > from ? "," : "");
        write_logged(t, &r->logged[i]);
    }
    out_text(&t->out, "],\"refusal\":null}");
}

static const char *finish_name(enum finish f)
{
    return f == FINISH_LENGTH ? "length" : f == FINISH_CALLS ? "tool_calls" : "stop";
}

static void write_usage(struct turn *t)
{
    size_t reasoning, n = turn_tokens(t, &reasoning);
    out_printf(&t->out,
               "{\"prompt_tokens\":%zu,\"completion_tokens\":%zu,\"total_tokens\":%zu,"
               "\"prompt_tokens_details\":{\"cached_tokens\":%zu},"
               "\"completion_tokens_details\":{\"reasoning_tokens\":%zu}}",
               t->prompt_tokens, n, t->prompt_tokens + n, t->cached_tokens, reasoning);
}

static void write_timings(struct turn *t)
{
    out_printf(&t->out,
               "{\"queued_seconds\":%.6f,\"prompt_seconds\":%.6f,"
               "\"generated_seconds\":%.6f,\"prompt_tokens_computed\":%zu}",
               t->stats.queued, t->stats.prompt, t->stats.generating,
               t->prompt_tokens - t->cached_tokens);
}

/* ---- streams */

static void chunk_begin(struct turn *t)
{
    sse_begin(t, NULL);
    openai_head(t, "chat.completion.chunk");
}

static void delta_begin(struct turn *t, size_t choice)
{
    chunk_begin(t);
    out_printf(&t->out, "{\"index\":%zu,\"delta\":{", choice);
}

static void delta_end(struct turn *t, const char *finish, const struct result *r, size_t from)
{
    out_text(&t->out, "},\"logprobs\":");
    if (r)
        write_logprobs(t, r, from);
    else
        out_text(&t->out, "null");
    out_text(&t->out, ",\"finish_reason\":");
    if (finish)
        out_cstring(&t->out, finish);
    else
        out_text(&t->out, "null");
    out_text(&t->out, "}]");
    openai_piece_end(t, write_usage);
}

static void chat_begin(struct turn *t)
{
    for (size_t i = 0; i < t->n_choices; i++) {
        delta_begin(t, i);
        out_text(&t->out, "\"role\":\"assistant\",\"content\":\"\"");
        delta_end(t, NULL, NULL, 0);
    }
}

static void chat_piece(struct turn *t, unsigned choice, const struct piece *p)
{
    const struct result *r = turn_result(t, choice);
    size_t *sent = t->own;
    if (p->kind == PIECE_CALL_END)
        return;
    delta_begin(t, choice);
    switch (p->kind) {
    case PIECE_REASONING:
        out_text(&t->out, "\"reasoning_content\":");
        out_string(&t->out, p->text, p->len);
        break;
    case PIECE_CONTENT:
        out_text(&t->out, "\"content\":");
        out_string(&t->out, p->text, p->len);
        break;
    case PIECE_CALL:
        out_printf(&t->out, "\"tool_calls\":[{\"index\":%zu,\"id\":", p->call);
        out_cstring(&t->out, r->call[p->call].id);
        out_text(&t->out, ",\"type\":\"function\",\"function\":{\"name\":");
        out_string(&t->out, p->text, p->len);
        out_text(&t->out, ",\"arguments\":\"\"}}]");
        break;
    case PIECE_ARGUMENTS:
        out_printf(&t->out, "\"tool_calls\":[{\"index\":%zu,\"function\":{\"arguments\":", p->call);
        out_string(&t->out, p->text, p->len);
        out_text(&t->out, "}}]");
        break;
    case PIECE_CALL_END: break;
    }
    delta_end(t, NULL, p->kind == PIECE_CONTENT ? r : NULL, sent[choice]);
    if (p->kind == PIECE_CONTENT)
        sent[choice] = r->n_logged;
}

static void chat_finish(struct turn *t, unsigned choice)
{
    const struct result *r = turn_result(t, choice);
    size_t *sent = t->own;
    delta_begin(t, choice);
    delta_end(t, finish_name(r->finish),
              t->options.logprobs && sent[choice] < r->n_logged ? r : NULL, sent[choice]);
}

static void chat_end(struct turn *t)
{
    if (t->include_usage) {
        chunk_begin(t);
        out_text(&t->out, "],\"usage\":");
        write_usage(t);
        out_text(&t->out, ",\"timings\":");
        write_timings(t);
        out_text(&t->out, "}");
        sse_end(t);
    }
    openai_done(t);
}

static void chat_progress(struct turn *t, size_t cached, size_t done, size_t total, double seconds)
{
    double rate = seconds > 0 && done > cached ? (double)(done - cached) / seconds : 0;
    chunk_begin(t);
    out_printf(&t->out,
               "],\"prompt_progress\":{\"total\":%zu,\"cached\":%zu,\"processed\":%zu,"
               "\"seconds\":%.3f,\"tokens_per_second\":%.1f,\"eta_seconds\":",
               total, cached, done, seconds, rate);
    if (rate > 0)
        out_printf(&t->out, "%.1f}", (double)(total - done) / rate);
    else
        out_text(&t->out, "null}");
    openai_piece_end(t, write_usage);
}

/* ---- the whole */

static void write_message(struct turn *t, const struct result *r)
{
    out_text(&t->out, "{\"role\":\"assistant\",\"content\":");
    if (r->content.b.len || r->n_calls == 0)
        out_string(&t->out, r->content.b.data, r->content.b.len);
    else
        out_text(&t->out, "null");
    out_text(&t->out, ",\"refusal\":null");
    if (t->options.thinking && !t->hide_reasoning) {
        out_text(&t->out, ",\"reasoning_content\":");
        out_string(&t->out, r->reasoning.b.data, r->reasoning.b.len);
    }
    for (size_t i = 0; i < r->n_calls; i++) {
        out_text(&t->out, i ? ",{\"id\":" : ",\"tool_calls\":[{\"id\":");
        out_cstring(&t->out, r->call[i].id);
        out_text(&t->out, ",\"type\":\"function\",\"function\":{\"name\":");
        out_string(&t->out, r->call[i].name.b.data, r->call[i].name.b.len);
        out_text(&t->out, ",\"arguments\":");
        out_string(&t->out, r->call[i].arguments.b.data, r->call[i].arguments.b.len);
        out_text(&t->out, "}}");
    }
    out_text(&t->out, r->n_calls ? "]}" : "}");
}

static void chat_whole(struct turn *t)
{
    openai_head(t, "chat.completion");
    for (size_t i = 0; i < t->n_choices; i++) {
        const struct result *r = turn_result(t, i);
        out_printf(&t->out, "%s{\"index\":%zu,\"message\":", i ? "," : "", i);
        write_message(t, r);
        out_text(&t->out, ",\"logprobs\":");
        write_logprobs(t, r, 0);
        out_printf(&t->out, ",\"finish_reason\":\"%s\"}", finish_name(r->finish));
    }
    out_text(&t->out, "],\"usage\":");
    write_usage(t);
    out_text(&t->out, ",\"timings\":");
    write_timings(t);
    out_text(&t->out, "}");
}

static void chat_release(struct turn *t)
{
    dsv4_free(t->own);
}

static const struct shape chat_shape = {chat_begin,  chat_piece,    chat_finish, chat_end,
                                        openai_fail, chat_progress, chat_whole,  chat_release};

/* ------------------------------------------------------------------ the request */

static int64_t budget_of(const json_t *thinking, struct failure *f)
{
    const json_t *v = json_object_get(thinking, "budget_tokens");
    if (!v || json_is_null(v))
        return 0;
    if (!json_is_integer(v) || json_integer_value(v) < 1 || json_integer_value(v) > 1000000000)
        return fail_set(f, 400, "thinking", "thinking.budget_tokens must be an integer above 0");
    return json_integer_value(v);
}

/* Other servers' words for `thinking`, in clients that know no better. */
static int take_template_words(json_t *chat, const struct chat_params *p, struct failure *f)
{
    const char *name;
    json_t *v;
    json_object_foreach(p->template_words, name, v)
    {
        if (!json_is_boolean(v) ||
            (strcmp(name, "thinking") != 0 && strcmp(name, "enable_thinking") != 0))
            return fail_set(f, 400, "chat_template_kwargs",
                            "chat_template_kwargs.%.40s: expected thinking or enable_thinking, "
                            "true or false",
                            name);
        if (p->thinking || p->effort)
            return fail_set(f, 400, "chat_template_kwargs",
                            "chat_template_kwargs beside thinking or reasoning_effort");
        json_t *type = json_pack("{s:s}", "type", json_is_true(v) ? "enabled" : "disabled");
        if (api_set(chat, "thinking", type) != 0)
            return fail_set(f, 503, NULL, "out of memory");
    }
    json_object_del(chat, "chat_template_kwargs");
    return 0;
}

static int read_request(struct turn *t, struct failure *f)
{
    struct server *s = t->x->server;
    struct turn_sampling sp = api_sampling(s);
    struct chat_params params = {.parallel = true}, *p = &params;
    dsv4_err err;
    openai_defaults(&p->o, &sp);
    if (params_read(t->body, table, sizeof table / sizeof *table, p, f) != 0 ||
        refuse_unsupported(p, f) != 0 || api_model(s, p->o.model, f) != 0 ||
        openai_stream(t, &p->o, f) != 0)
        return -1;
    if (!p->messages)
        return fail_set(f, 400, "messages", "messages must be a list that is not empty");
    if (p->o.n > (int64_t)s->opt->max_choices)
        return fail_set(f, 400, "n", "n is %lld; at most %zu choices are made here",
                        (long long)p->o.n, s->opt->max_choices);
    if (p->top_logprobs > 0 && !p->logprobs)
        return fail_set(f, 400, "top_logprobs", "top_logprobs goes with logprobs: true");
    if (openai_messages(s, p->messages, f) != 0 || take_template_words(t->body, p, f) != 0)
        return -1;
    t->n_choices = (unsigned)p->o.n;
    t->options.logprobs = p->logprobs;
    t->options.n_top = p->logprobs ? (size_t)p->top_logprobs : 0;
    if (p->o.ignore_eos)
        return fail_set(f, 400, "ignore_eos",
                        "ignore_eos: only /v1/completions goes on after an end");
    if (p->reasoning)
        t->hide_reasoning = strcmp(p->reasoning, "hidden") == 0;
    openai_sampling(&p->o, &sp);
    sp.max_tokens = (size_t)(p->max_completion_tokens ? p->max_completion_tokens : p->max_tokens);
    struct chat_words w = {.tools = p->tools,
                           .tool_choice = p->tool_choice,
                           .format = p->format,
                           .grammar = p->o.grammar,
                           .parallel = p->parallel,
                           .budget = budget_of(p->thinking, f)};
    if (w.budget < 0 || turn_stops(t, p->o.stop, "stop", 64, f) != 0 ||
        api_chat(t, t->body, &w, f) != 0 ||
        mem_alloc(&t->own, t->n_choices, sizeof(size_t), "a request", &err) != 0)
        return f->status ? -1 : fail_err(f, &err);
    if (turn_chat(t, t->body, &sp, f) != 0)
        return -1;
    t->jobs[0]->no_cache = !p->o.cache_prompt;
    return 0;
}

void api_chat_completions(struct exchange *x)
{
    api_turn(x, &chat_shape, "chatcmpl-", read_request);
}
