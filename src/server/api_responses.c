/* OpenAI: responses. Nothing is stored: every request carries its whole conversation. */
#include "api.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

struct params {
    const char *model, *instructions, *previous, *user, *tier, *truncation, *cache_key, *safety,
        *retention;
    json_t *input, *tools, *tool_choice, *text, *reasoning, *metadata, *include, *stream_options,
        *conversation, *prompt;
    bool stream, parallel, store, background;
    int64_t max_tokens, max_calls, top_logprobs;
    double temperature, top_p;
};

#define AT(field) offsetof(struct params, field)
static const struct param table[] = {
    {"model", P_TEXT, 0, 256, AT(model)},
    {"input", P_ANY, 0, 0, AT(input)},
    {"instructions", P_TEXT, 0, 0, AT(instructions)},
    {"tools", P_LIST, 0, 0, AT(tools)},
    {"tool_choice", P_ANY, 0, 0, AT(tool_choice)},
    {"parallel_tool_calls", P_BOOL, 0, 0, AT(parallel)},
    {"text", P_OBJECT, 0, 0, AT(text)},
    {"reasoning", P_OBJECT, 0, 0, AT(reasoning)},
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
    if (!p->input)
        return fail_set(f, 400, "input", "input is needed");
    return api_model(x->server, p->model, f);
}

/* ------------------------------------------------------------------ to a chat */

static int no_memory(struct failure *f)
{
    return fail_set(f, 503, NULL, "out of memory");
}

static int append(json_t *list, json_t *v, struct failure *f)
{
    return v && json_array_append_new(list, v) == 0 ? 0 : no_memory(f);
}

/* The texts of a content list, joined; NULL with a failure. */
static json_t *join_text(const json_t *content, struct failure *f)
{
    struct out o = {0};
    size_t i;
    json_t *part;
    if (json_is_string(content))
        return json_incref((json_t *)(uintptr_t)content);
    if (!json_is_array(content)) {
        fail_set(f, 400, "input", "input: content must be a text or a list of parts");
        return NULL;
    }
    json_array_foreach(content, i, part)
    {
        const char *type = json_string_value(json_object_get(part, "type"));
        const json_t *text = json_object_get(part, "text");
        bool refusal = type && strcmp(type, "refusal") == 0;
        if (refusal)
            text = json_object_get(part, "refusal");
        if (!type || !json_is_string(text) ||
            (!refusal && strcmp(type, "input_text") != 0 && strcmp(type, "output_text") != 0 &&
             strcmp(type, "text") != 0 && strcmp(type, "reasoning_text") != 0 &&
             strcmp(type, "summary_text") != 0)) {
            fail_set(f, 400, "input", "input: a part of type %.40s is not understood here",
                     type ? type : "(none)");
            out_free(&o);
            return NULL;
        }
        if (i > 0)
            out_text(&o, "\n\n");
        out_add(&o, json_string_value(text), json_string_length(text));
    }
    json_t *v = o.failed ? NULL : json_stringn(o.b.data ? o.b.data : "", o.b.len);
    out_free(&o);
    if (!v)
        no_memory(f);
    return v;
}

/* An assistant's message is written in several items: reasoning, text, calls. They come together in
 * *open, which is in the list already. */
static int open_assistant(json_t *list, json_t **open, struct failure *f)
{
    if (*open)
        return 0;
    *open = json_pack("{s:s, s:n}", "role", "assistant", "content");
    return append(list, *open, f);
}

static int add_call(json_t *list, json_t **open, const json_t *item, struct failure *f)
{
    json_t *id = json_object_get(item, "call_id"), *name = json_object_get(item, "name"),
           *args = json_object_get(item, "arguments");
    if (!json_is_string(id) || !json_is_string(name) || !json_is_string(args))
        return fail_set(f, 400, "input",
                        "input: a function_call needs call_id, name and arguments");
    if (open_assistant(list, open, f) != 0)
        return -1;
    json_t *calls = json_object_get(*open, "tool_calls");
    if (!calls) {
        calls = json_array();
        if (!calls || api_set(*open, "tool_calls", calls) != 0)
            return no_memory(f);
    }
    return append(calls,
                  json_pack("{s:O, s:s, s:{s:O, s:O}}", "id", id, "type", "function", "function",
                            "name", name, "arguments", args),
                  f);
}

static int add_output(json_t *list, const json_t *item, struct failure *f)
{
    json_t *id = json_object_get(item, "call_id");
    if (!json_is_string(id))
        return fail_set(f, 400, "input", "input: a function_call_output needs call_id");
    json_t *text = join_text(json_object_get(item, "output"), f);
    return text ? append(list,
                         json_pack("{s:s, s:O, s:o}", "role", "tool", "tool_call_id", id, "content",
                                   text),
                         f)
                : -1;
}

static int add_reasoning(json_t *list, json_t **open, const json_t *item, struct failure *f)
{
    const json_t *content = json_object_get(item, "content");
    if (!content || json_array_size(content) == 0)
        return 0;
    json_t *text = join_text(content, f);
    if (!text)
        return -1;
    if (open_assistant(list, open, f) != 0 ||
        json_object_set(*open, "reasoning_content", text) != 0) {
        json_decref(text);
        return f->status ? -1 : no_memory(f);
    }
    json_decref(text);
    return 0;
}

static int add_message(json_t *list, json_t **open, const json_t *item, struct failure *f)
{
    const char *role = json_string_value(json_object_get(item, "role"));
    bool assistant = role && strcmp(role, "assistant") == 0;
    if (!role || (!assistant && strcmp(role, "user") != 0 && strcmp(role, "system") != 0 &&
                  strcmp(role, "developer") != 0))
        return fail_set(f, 400, "input",
                        "input: role must be user, assistant, system or developer");
    json_t *text = join_text(json_object_get(item, "content"), f);
    if (!text)
        return -1;
    if (!assistant) {
        *open = NULL;
        const char *as = strcmp(role, "developer") == 0 ? "system" : role;
        return append(list, json_pack("{s:s, s:o}", "role", as, "content", text), f);
    }
    if (*open && json_is_string(json_object_get(*open, "content")))
        *open = NULL;
    int rc = open_assistant(list, open, f);
    if (rc == 0 && json_object_set(*open, "content", text) != 0)
        rc = no_memory(f);
    json_decref(text);
    return rc;
}

static int add_item(json_t *list, json_t **open, const json_t *item, struct failure *f)
{
    const char *type = json_string_value(json_object_get(item, "type"));
    if (!type || strcmp(type, "message") == 0)
        return add_message(list, open, item, f);
    if (strcmp(type, "function_call") == 0)
        return add_call(list, open, item, f);
    if (strcmp(type, "reasoning") == 0) {
        *open = NULL;
        return add_reasoning(list, open, item, f);
    }
    if (strcmp(type, "function_call_output") == 0) {
        *open = NULL;
        return add_output(list, item, f);
    }
    return fail_set(f, 400, "input", "input: an item of type %.40s is not understood here", type);
}

static int convert_input(const struct params *p, json_t *list, struct failure *f)
{
    size_t i;
    json_t *item, *open = NULL;
    if (p->instructions &&
        append(list, json_pack("{s:s, s:s}", "role", "system", "content", p->instructions), f) != 0)
        return -1;
    if (json_is_string(p->input))
        return append(list, json_pack("{s:s, s:O}", "role", "user", "content", p->input), f);
    if (!json_is_array(p->input) || json_array_size(p->input) == 0)
        return fail_set(f, 400, "input", "input must be a text or a list that is not empty");
    json_array_foreach(p->input, i, item) if (add_item(list, &open, item, f) != 0) return -1;
    return 0;
}

static int convert_tools(const struct params *p, json_t *list, struct failure *f)
{
    size_t i;
    json_t *t;
    json_array_foreach(p->tools, i, t)
    {
        const char *type = json_string_value(json_object_get(t, "type"));
        json_t *name = json_object_get(t, "name"), *schema = json_object_get(t, "parameters"),
               *text = json_object_get(t, "description");
        if (!type || strcmp(type, "function") != 0)
            return fail_set(f, 400, "tools", "tools: there is no tool of type %.40s here",
                            type ? type : "(none)");
        if (!json_is_string(name))
            return fail_set(f, 400, "tools", "tools: a function needs a name");
        json_t *fn = json_pack("{s:O}", "name", name);
        if (!fn || (json_is_object(schema) && json_object_set(fn, "parameters", schema) != 0) ||
            (json_is_string(text) && json_object_set(fn, "description", text) != 0)) {
            json_decref(fn);
            return no_memory(f);
        }
        if (append(list, json_pack("{s:s, s:o}", "type", "function", "function", fn), f) != 0)
            return -1;
    }
    return 0;
}

static json_t *convert_choice(const json_t *c)
{
    if (api_is(c, "type", "function") && json_is_string(json_object_get(c, "name")))
        return json_pack("{s:s, s:{s:O}}", "type", "function", "function", "name",
                         json_object_get(c, "name"));
    return json_incref((json_t *)(uintptr_t)c);
}

/* text.format -> response_format */
static json_t *convert_format(const json_t *text)
{
    json_t *format = json_object_get(text, "format");
    if (!format)
        return NULL;
    if (api_is(format, "type", "json_schema"))
        return json_pack("{s:s, s:{s:O?}}", "type", "json_schema", "json_schema", "schema",
                         json_object_get(format, "schema"));
    return json_incref(format);
}

static int convert(const struct params *p, json_t **out, struct failure *f)
{
    json_t *messages = json_array(), *tools = json_array();
    json_t *chat = json_pack("{s:o, s:o}", "messages", messages, "tools", tools), *v;
    *out = chat;
    if (!chat)
        return no_memory(f);
    if (convert_input(p, messages, f) != 0 || convert_tools(p, tools, f) != 0)
        return -1;
    if (p->tool_choice && api_set(chat, "tool_choice", convert_choice(p->tool_choice)) != 0)
        return no_memory(f);
    v = convert_format(p->text);
    if (v && api_set(chat, "response_format", v) != 0)
        return no_memory(f);
    v = json_object_get(p->reasoning, "effort");
    if (json_is_string(v) && json_object_set(chat, "reasoning_effort", v) != 0)
        return no_memory(f);
    return 0;
}

/* ------------------------------------------------------------------ writing */

enum item { NO_ITEM, ITEM_REASONING, ITEM_MESSAGE, ITEM_CALL };

/* Items go out in the order in which they were opened; `at` is where the open one's text begins. */
struct own {
    enum item open;
    size_t index, sequence, at, call;
    struct out items; /* those that are complete, with commas between */
    bool parallel;
    json_t *tools, *metadata; /* borrowed from the body */
    const char *instructions;
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
    if (w->instructions)
        out_cstring(o, w->instructions);
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
    out_text(o, ",\"text\":{\"format\":{\"type\":\"text\"}},\"tool_choice\":\"auto\",\"tools\":");
    if (w->tools)
        out_json(o, w->tools);
    else
        out_text(o, "[]");
    out_text(o, ",\"truncation\":\"disabled\",\"metadata\":");
    if (w->metadata)
        out_json(o, w->metadata);
    else
        out_text(o, "{}");
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
                      .tools = p.tools,
                      .metadata = p.metadata,
                      .instructions = p.instructions,
                      .temperature = p.temperature,
                      .top_p = p.top_p,
                      .max_tokens = p.max_tokens};
    t->own = w;
    t->stream = p.stream;
    sp.sampling.temperature = (float)p.temperature;
    sp.sampling.top_p = (float)p.top_p;
    sp.max_tokens = (size_t)p.max_tokens;
    sp.user = p.user;
    int rc = convert(&p, &chat, f);
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
