/* OpenAI: responses. Nothing is stored: every request carries its whole conversation. */
#include "api.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

struct params {
    struct responses_body b;
    const char *model, *previous, *user, *tier, *truncation, *cache_key, *safety, *retention;
    json_t *metadata, *include, *stream_options, *conversation, *prompt;
    bool stream, parallel, store, background;
    int64_t max_tokens, max_calls, top_logprobs;
    double temperature, top_p;
};

#define AT(field)   offsetof(struct params, field)
#define AT_B(field) AT(b.field)
static const struct param table[] = {
    {"model", P_TEXT, 0, 256, AT(model)},
    {"input", P_ANY, 0, 0, AT_B(input)},
    {"instructions", P_TEXT, 0, 0, AT_B(instructions)},
    {"tools", P_LIST, 0, 0, AT_B(tools)},
    {"tool_choice", P_ANY, 0, 0, AT_B(tool_choice)},
    {"parallel_tool_calls", P_BOOL, 0, 0, AT(parallel)},
    {"text", P_OBJECT, 0, 0, AT_B(text)},
    {"reasoning", P_OBJECT, 0, 0, AT_B(reasoning)},
    {"temperature", P_NUMBER, 0, 2, AT(temperature)},
    {"top_p", P_NUMBER, 1e-6, 1, AT(top_p)},
    {"max_output_tokens", P_INT, 1, 1e9, AT(max_tokens)},
    {"stream", P_BOOL, 0, 0, AT(stream)},
    {"stream_options", P_OBJECT, 0, 0, AT(stream_options)},
    {"metadata", P_OBJECT, 0, 0, AT(metadata)},
    {"include", P_LIST, 0, 64, AT(include)},
    {"user", P_TEXT, 0, 1024, AT(user)},
    {"safety_identifier", P_TEXT, 0, 1024, AT(safety)},
    {"prompt_cache_key", P_TEXT, 0, 1024, AT(cache_key)},
    {"prompt_cache_retention", P_TEXT, 0, 64, AT(retention)},
    {"store", P_BOOL, 0, 0, AT(store)},
    {"service_tier", P_TEXT, 0, 64, AT(tier)},
    {"truncation", P_TEXT, 0, 64, AT(truncation)},
    /* known, to say why not */
    {"previous_response_id", P_TEXT, 0, 256, AT(previous)},
    {"conversation", P_ANY, 0, 0, AT(conversation)},
    {"prompt", P_OBJECT, 0, 0, AT(prompt)},
    {"background", P_BOOL, 0, 0, AT(background)},
    {"max_tool_calls", P_INT, 1, 1e6, AT(max_calls)},
    {"top_logprobs", P_INT, 0, 20, AT(top_logprobs)},
};

static int judge(struct exchange *x, const struct params *p, struct failure *f)
{
    const struct {
        const char *name, *why;
        bool given;
    } no[] = {
        {"previous_response_id", "nothing is stored here: send the whole conversation as input",
         p->previous},
        {"conversation", "nothing is stored here: send the whole conversation as input",
         p->conversation},
        {"prompt", "there are no stored prompts here", p->prompt},
        {"background", "requests are answered while their connection is open", p->background},
        {"max_tool_calls", "no tools are run here", p->max_calls},
        {"top_logprobs", "log-probabilities come with chat completions only", p->top_logprobs}};
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        if (no[i].given) {
            fail_set(f, 400, no[i].name, "%s: %s", no[i].name, no[i].why);
            f->code = "unsupported_parameter";
            return -1;
        }
    for (size_t i = 0; i < json_array_size(p->include); i++) {
        const char *v = json_string_value(json_array_get(p->include, i));
        if (!v || strcmp(v, "reasoning.encrypted_content") != 0)
            return fail_set(f, 400, "include", "include: %.60s is not available here", v ? v : "?");
    }
    if (p->tier && strcmp(p->tier, "auto") != 0 && strcmp(p->tier, "default") != 0)
        return fail_set(f, 400, "service_tier", "service_tier must be auto or default");
    if (p->truncation && strcmp(p->truncation, "disabled") != 0)
        return fail_set(f, 400, "truncation", "truncation must be disabled");
    if (!p->b.input)
        return fail_set(f, 400, "input", "input is needed");
    return api_model(x->server, p->model, f);
}

/* ------------------------------------------------------------------ writing */

enum item { NO_ITEM, ITEM_REASONING, ITEM_MESSAGE, ITEM_CALL };

/* Items go out in the order in which they were opened; `at` is where the open one's text begins. */
struct own {
    enum item open;
    size_t index, sequence, at, call;
    struct out items; /* those that are complete, with commas between */
    bool parallel;
    struct responses_body body; /* what it says is repeated in the response */
    json_t *metadata;
    double temperature, top_p;
    int64_t max_tokens;
};

static void write_usage(struct turn *t, struct out *o)
{
    size_t reasoning, n = turn_tokens(t, &reasoning);
    out_printf(o,
               "{\"input_tokens\":%zu,\"input_tokens_details\":{\"cached_tokens\":%zu},"
               "\"output_tokens\":%zu,\"output_tokens_details\":{\"reasoning_tokens\":%zu},"
               "\"total_tokens\":%zu}",
               t->prompt_tokens, t->cached_tokens, n, reasoning, t->prompt_tokens + n);
}

/* A member of the request, or what holds without it. */
static void given(struct out *o, const char *name, const json_t *value, const char *otherwise)
{
    out_printf(o, ",\"%s\":", name);
    if (value)
        out_json(o, value);
    else
        out_text(o, otherwise);
}

/* The response object. status: in_progress, completed, incomplete, failed. */
static void write_response(struct turn *t, const char *status, bool usage, const struct failure *f)
{
    struct own *w = t->own;
    struct out *o = &t->out;
    out_text(o, "{\"id\":");
    out_cstring(o, t->id);
    out_printf(o, ",\"object\":\"response\",\"created_at\":%lld,\"status\":\"%s\",\"error\":",
               (long long)t->created, status);
    if (f) {
        out_text(o, "{\"code\":\"server_error\",\"message\":");
        out_cstring(o, f->message);
        out_text(o, "}");
    } else {
        out_text(o, "null");
    }
    out_text(o, strcmp(status, "incomplete") == 0
                    ? ",\"incomplete_details\":{\"reason\":\"max_output_tokens\"}"
                    : ",\"incomplete_details\":null");
    out_text(o, ",\"instructions\":");
    if (w->body.instructions)
        out_cstring(o, w->body.instructions);
    else
        out_text(o, "null");
    out_text(o, ",\"max_output_tokens\":");
    out_printf(o, w->max_tokens ? "%lld" : "null", (long long)w->max_tokens);
    out_text(o, ",\"model\":");
    out_cstring(o, t->x->server->opt->model_name);
    out_text(o, ",\"output\":[");
    out_add(o, w->items.b.data, w->items.b.len);
    o->failed |= w->items.failed;
    out_printf(o,
               "],\"parallel_tool_calls\":%s,\"previous_response_id\":null,\"store\":false,"
               "\"temperature\":",
               w->parallel ? "true" : "false");
    out_number(o, w->temperature);
    out_text(o, ",\"top_p\":");
    out_number(o, w->top_p);
    given(o, "text", w->body.text, "{\"format\":{\"type\":\"text\"}}");
    given(o, "tool_choice", w->body.tool_choice, "\"auto\"");
    given(o, "tools", w->body.tools, "[]");
    given(o, "reasoning", w->body.reasoning, "null");
    given(o, "metadata", w->metadata, "{}");
    out_text(o, ",\"truncation\":\"disabled\"");
    out_text(o, ",\"usage\":");
    if (usage)
        write_usage(t, o);
    else
        out_text(o, "null");
    out_text(o, "}");
}

static void event(struct turn *t, const char *type)
{
    struct own *w = t->own;
    sse_begin(t, type);
    out_printf(&t->out, "{\"type\":\"%s\",\"sequence_number\":%zu", type, w->sequence++);
}

static void event_end(struct turn *t)
{
    out_text(&t->out, "}");
    sse_end(t);
}

static void response_event(struct turn *t, const char *type, const char *status, bool usage,
                           const struct failure *f)
{
    event(t, type);
    out_text(&t->out, ",\"response\":");
    write_response(t, status, usage, f);
    event_end(t);
}

static void item_id(struct turn *t, struct out *o, enum item kind)
{
    const struct own *w = t->own;
    out_printf(o, "\"%s_%s_%zu\"",
               kind == ITEM_REASONING ? "rs"
               : kind == ITEM_MESSAGE ? "msg"
                                      : "fc",
               t->id + 5, w->index);
}

/* The open item as it is complete. */
static void write_item(struct turn *t, struct out *o, bool complete)
{
    const struct own *w = t->own;
    const struct result *r = turn_result(t, 0);
    const char *status = complete ? "completed" : "in_progress";
    const struct out *text = w->open == ITEM_REASONING ? &r->reasoning : &r->content;
    out_text(o, "{\"id\":");
    item_id(t, o, w->open);
    if (w->open == ITEM_CALL) {
        const struct call *c = &r->call[w->call];
        out_printf(o, ",\"type\":\"function_call\",\"status\":\"%s\",\"call_id\":", status);
        out_cstring(o, c->id);
        out_text(o, ",\"name\":");
        out_string(o, c->name.b.data, c->name.b.len);
        out_text(o, ",\"arguments\":");
        out_string(o, c->arguments.b.data, complete ? c->arguments.b.len : 0);
        out_text(o, "}");
        return;
    }
    if (w->open == ITEM_REASONING)
        out_printf(o, ",\"type\":\"reasoning\",\"status\":\"%s\",\"summary\":[],\"content\":[",
                   status);
    else
        out_printf(o,
                   ",\"type\":\"message\",\"role\":\"assistant\",\"status\":\"%s\",\"content\":[",
                   status);
    if (complete) {
        out_text(o, w->open == ITEM_REASONING
                        ? "{\"type\":\"reasoning_text\",\"text\":"
                        : "{\"type\":\"output_text\",\"annotations\":[],\"logprobs\":[],\"text\":");
        out_string_of(o, text, w->at);
        out_text(o, "}");
    }
    out_text(o, "]}");
}

static void place(struct turn *t)
{
    const struct own *w = t->own;
    out_text(&t->out, ",\"item_id\":");
    item_id(t, &t->out, w->open);
    out_printf(&t->out, ",\"output_index\":%zu", w->index);
}

static void part_event(struct turn *t, const char *type, bool complete)
{
    const struct own *w = t->own;
    const struct result *r = turn_result(t, 0);
    const struct out *text = w->open == ITEM_REASONING ? &r->reasoning : &r->content;
    event(t, type);
    place(t);
    out_text(&t->out, ",\"content_index\":0,\"part\":");
    out_text(&t->out,
             w->open == ITEM_REASONING
                 ? "{\"type\":\"reasoning_text\",\"text\":"
                 : "{\"type\":\"output_text\",\"annotations\":[],\"logprobs\":[],\"text\":");
    out_string_of(&t->out, text, complete ? w->at : text->b.len);
    out_text(&t->out, "}");
    event_end(t);
}

/* The text of the open item is complete. */
static void text_done(struct turn *t)
{
    const struct own *w = t->own;
    const struct result *r = turn_result(t, 0);
    const struct out *text = w->open == ITEM_REASONING ? &r->reasoning : &r->content;
    event(t,
          w->open == ITEM_REASONING ? "response.reasoning_text.done" : "response.output_text.done");
    place(t);
    out_text(&t->out, w->open == ITEM_REASONING ? ",\"content_index\":0,\"text\":"
                                                : ",\"content_index\":0,\"logprobs\":[],\"text\":");
    out_string_of(&t->out, text, w->at);
    event_end(t);
    part_event(t, "response.content_part.done", true);
}

static void close_item(struct turn *t)
{
    struct own *w = t->own;
    if (w->open == NO_ITEM)
        return;
    if (t->stream && w->open != ITEM_CALL)
        text_done(t);
    if (t->stream && w->open == ITEM_CALL) {
        const struct call *c = &turn_result(t, 0)->call[w->call];
        event(t, "response.function_call_arguments.done");
        place(t);
        out_text(&t->out, ",\"name\":");
        out_string(&t->out, c->name.b.data, c->name.b.len);
        out_text(&t->out, ",\"arguments\":");
        out_string(&t->out, c->arguments.b.data, c->arguments.b.len);
        event_end(t);
    }
    if (w->items.b.len)
        out_text(&w->items, ",");
    write_item(t, &w->items, true);
    if (t->stream) {
        event(t, "response.output_item.done");
        out_printf(&t->out, ",\"output_index\":%zu,\"item\":", w->index);
        write_item(t, &t->out, true);
        event_end(t);
    }
    w->open = NO_ITEM;
    w->index++;
}

static void open_item(struct turn *t, enum item kind, size_t at)
{
    struct own *w = t->own;
    if (w->open == kind && kind != ITEM_CALL)
        return;
    close_item(t);
    w->open = kind;
    w->at = at;
    if (!t->stream)
        return;
    event(t, "response.output_item.added");
    out_printf(&t->out, ",\"output_index\":%zu,\"item\":", w->index);
    write_item(t, &t->out, false);
    event_end(t);
    if (kind != ITEM_CALL)
        part_event(t, "response.content_part.added", false);
}

static void on_begin(struct turn *t)
{
    response_event(t, "response.created", "in_progress", false, NULL);
    response_event(t, "response.in_progress", "in_progress", false, NULL);
}

static void on_piece(struct turn *t, unsigned choice, const struct piece *p)
{
    struct own *w = t->own;
    const struct result *r = turn_result(t, choice);
    switch (p->kind) {
    case PIECE_REASONING:
        open_item(t, ITEM_REASONING, r->reasoning.b.len - p->len);
        event(t, "response.reasoning_text.delta");
        break;
    case PIECE_CONTENT:
        open_item(t, ITEM_MESSAGE, r->content.b.len - p->len);
        event(t, "response.output_text.delta");
        break;
    case PIECE_CALL:
        close_item(t);
        w->call = p->call;
        open_item(t, ITEM_CALL, 0);
        return;
    case PIECE_ARGUMENTS: event(t, "response.function_call_arguments.delta"); break;
    case PIECE_CALL_END: close_item(t); return;
    }
    place(t);
    if (p->kind != PIECE_ARGUMENTS)
        out_text(&t->out, ",\"content_index\":0");
    if (p->kind == PIECE_CONTENT)
        out_text(&t->out, ",\"logprobs\":[]");
    out_text(&t->out, ",\"delta\":");
    out_string(&t->out, p->text, p->len);
    event_end(t);
}

static void on_finish(struct turn *t, unsigned choice)
{
    (void)choice;
    close_item(t);
}

static bool is_cut(struct turn *t)
{
    return turn_result(t, 0)->finish == FINISH_LENGTH;
}

static void on_end(struct turn *t)
{
    const char *status = is_cut(t) ? "incomplete" : "completed";
    response_event(t, is_cut(t) ? "response.incomplete" : "response.completed", status, true, NULL);
}

static void on_fail(struct turn *t, const struct failure *f)
{
    response_event(t, "response.failed", "failed", false, f);
}

/* Without a stream the items are made from the result. */
static void on_whole(struct turn *t)
{
    struct own *w = t->own;
    const struct result *r = turn_result(t, 0);
    if (r->reasoning.b.len && !t->hide_reasoning)
        open_item(t, ITEM_REASONING, 0);
    if (r->content.b.len || r->n_calls == 0)
        open_item(t, ITEM_MESSAGE, 0);
    for (size_t i = 0; i < r->n_calls; i++) {
        close_item(t);
        w->call = i;
        open_item(t, ITEM_CALL, 0);
    }
    close_item(t);
    write_response(t, is_cut(t) ? "incomplete" : "completed", true, NULL);
}

static void on_release(struct turn *t)
{
    struct own *w = t->own;
    if (w)
        out_free(&w->items);
    free(w);
}

static const struct shape shape = {on_begin, on_piece, on_finish, on_end,
                                   on_fail,  NULL,     on_whole,  on_release};

/* ------------------------------------------------------------------ the request */

static int read_request(struct turn *t, struct failure *f)
{
    struct turn_sampling sp = api_sampling(t->x->server);
    struct params p = {.parallel = true,
                       .temperature = (double)sp.sampling.temperature,
                       .top_p = (double)sp.sampling.top_p};
    struct own *w;
    json_t *chat = NULL;
    dsv4_err err;
    if (params_read(t->body, table, sizeof table / sizeof *table, &p, f) != 0 ||
        judge(t->x, &p, f) != 0)
        return -1;
    if (mem_alloc(&w, 1, sizeof *w, "a request", &err) != 0)
        return fail_err(f, &err);
    *w = (struct own){.parallel = p.parallel,
                      .body = p.b,
                      .metadata = p.metadata,
                      .temperature = p.temperature,
                      .top_p = p.top_p,
                      .max_tokens = p.max_tokens};
    t->own = w;
    t->stream = p.stream;
    sp.sampling.temperature = (float)p.temperature;
    sp.sampling.top_p = (float)p.top_p;
    sp.max_tokens = (size_t)p.max_tokens;
    sp.user = p.user;
    int rc = responses_chat(&p.b, &chat, f);
    struct chat_words words = {.tools = json_object_get(chat, "tools"),
                               .tool_choice = json_object_get(chat, "tool_choice"),
                               .format = json_object_get(chat, "response_format"),
                               .parallel = p.parallel};
    if (rc == 0 &&
        json_array_size(json_object_get(chat, "messages")) > t->x->server->opt->max_messages)
        rc = fail_set(f, 400, "input", "at most %zu messages are taken",
                      t->x->server->opt->max_messages);
    if (rc == 0)
        rc = api_chat(t, chat, &words, f);
    if (rc == 0)
        rc = turn_chat(t, chat, &sp, f);
    json_decref(chat);
    return rc;
}

void api_responses(struct exchange *x)
{
    api_turn(x, &shape, "resp_", read_request);
}
