/* Anthropic: messages. Bodies become chats in OpenAI's words, answers become content blocks. */
#include "api.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

struct params {
    const char *model, *tier, *inference;
    json_t *messages, *system, *tools, *tool_choice, *thinking, *stop, *metadata, *container, *mcp,
        *context, *output;
    bool stream;
    int64_t max_tokens, top_k;
    double temperature, top_p;
};

#define AT(field) offsetof(struct params, field)
static const struct param table[] = {
    {"model", P_TEXT, 0, 256, AT(model)},
    {"messages", P_LIST, 1, 100000, AT(messages)},
    {"system", P_ANY, 0, 0, AT(system)},
    {"tools", P_LIST, 0, 0, AT(tools)},
    {"tool_choice", P_OBJECT, 0, 0, AT(tool_choice)},
    {"thinking", P_OBJECT, 0, 0, AT(thinking)},
    {"stop_sequences", P_LIST, 0, 64, AT(stop)},
    {"metadata", P_OBJECT, 0, 0, AT(metadata)},
    {"stream", P_BOOL, 0, 0, AT(stream)},
    {"max_tokens", P_INT, 1, 1e9, AT(max_tokens)},
    {"top_k", P_INT, 0, INT32_MAX, AT(top_k)},
    {"temperature", P_NUMBER, 0, 2, AT(temperature)},
    {"top_p", P_NUMBER, 1e-6, 1, AT(top_p)},
    {"service_tier", P_TEXT, 0, 64, AT(tier)},
    /* known, to say why not */
    {"container", P_ANY, 0, 0, AT(container)},
    {"mcp_servers", P_LIST, 0, 0, AT(mcp)},
    {"context_management", P_ANY, 0, 0, AT(context)},
    {"output_config", P_ANY, 0, 0, AT(output)},
    {"inference_geo", P_TEXT, 0, 64, AT(inference)},
};

/* ------------------------------------------------------------------ to a chat */

static int no_memory(struct failure *f)
{
    return fail_set(f, 503, NULL, "out of memory");
}

/* The texts of a content list, joined. Other blocks are refused. */
static int join_text(const json_t *content, const char *where, struct out *o, struct failure *f)
{
    size_t i;
    json_t *b;
    if (json_is_string(content)) {
        out_add(o, json_string_value(content), json_string_length(content));
        return 0;
    }
    if (!json_is_array(content))
        return fail_set(f, 400, where, "%s must be a text or a list of blocks", where);
    json_array_foreach(content, i, b)
    {
        const json_t *text = json_object_get(b, "text");
        const char *type = json_string_value(json_object_get(b, "type"));
        if (!type || strcmp(type, "text") != 0 || !json_is_string(text))
            return fail_set(f, 400, where, "%s: a block of type %.40s is not understood here",
                            where, type ? type : "(none)");
        if (i > 0)
            out_text(o, "\n\n");
        out_add(o, json_string_value(text), json_string_length(text));
    }
    return 0;
}

static json_t *take_string(struct out *o)
{
    json_t *v = o->failed ? NULL : json_stringn(o->b.data ? o->b.data : "", o->b.len);
    out_free(o);
    return v;
}

static int append(json_t *list, json_t *v, struct failure *f)
{
    return v && json_array_append_new(list, v) == 0 ? 0 : no_memory(f);
}

static int add_message(json_t *out, const char *role, struct out *text, struct failure *f)
{
    json_t *content = take_string(text);
    if (!content)
        return no_memory(f);
    return append(out, json_pack("{s:s, s:o}", "role", role, "content", content), f);
}

/* Results of tools go out as messages of their own; what stands between them becomes text. */
static int user_message(json_t *out, const json_t *content, struct failure *f)
{
    struct out text = {0}, result = {0};
    size_t i;
    json_t *b;
    bool any = false;
    if (!json_is_array(content)) {
        if (join_text(content, "messages", &text, f) != 0)
            return -1;
        return add_message(out, "user", &text, f);
    }
    json_array_foreach(content, i, b)
    {
        if (api_is(b, "type", "tool_result")) {
            const char *id = json_string_value(json_object_get(b, "tool_use_id"));
            const json_t *c = json_object_get(b, "content");
            if (!id) {
                out_free(&text);
                return fail_set(f, 400, "messages", "messages: a tool_result without tool_use_id");
            }
            if (json_is_true(json_object_get(b, "is_error")))
                out_text(&result, "Error: ");
            if (c && !json_is_null(c) && join_text(c, "messages", &result, f) != 0) {
                out_free(&text);
                out_free(&result);
                return -1;
            }
            json_t *v = take_string(&result);
            if (!v || append(out,
                             json_pack("{s:s, s:s, s:o}", "role", "tool", "tool_call_id", id,
                                       "content", v),
                             f) != 0) {
                out_free(&text);
                return no_memory(f);
            }
            continue;
        }
        json_t *one = json_pack("[O]", b);
        if (any)
            out_text(&text, "\n\n");
        any = true;
        int rc = one ? join_text(one, "messages", &text, f) : no_memory(f);
        json_decref(one);
        if (rc != 0) {
            out_free(&text);
            return rc;
        }
    }
    if (any || json_array_size(content) == 0)
        return add_message(out, "user", &text, f);
    out_free(&text);
    return 0;
}

static int one_block(const json_t *b, json_t *calls, struct out *text, struct out *reasoning,
                     struct failure *f)
{
    const json_t *v;
    if (api_is(b, "type", "thinking")) {
        if ((v = json_object_get(b, "thinking")) != NULL && json_is_string(v))
            out_add(reasoning, json_string_value(v), json_string_length(v));
        return 0;
    }
    if (api_is(b, "type", "redacted_thinking"))
        return 0; /* nobody can read it */
    if (api_is(b, "type", "tool_use")) {
        const char *id = json_string_value(json_object_get(b, "id")),
                   *name = json_string_value(json_object_get(b, "name"));
        struct out args = {0};
        v = json_object_get(b, "input");
        if (!id || !name || !json_is_object(v))
            return fail_set(f, 400, "messages", "messages: a tool_use needs id, name and input");
        out_json(&args, v);
        json_t *a = take_string(&args);
        return a ? append(calls,
                          json_pack("{s:s, s:s, s:{s:s, s:o}}", "id", id, "type", "function",
                                    "function", "name", name, "arguments", a),
                          f)
                 : no_memory(f);
    }
    json_t *one = json_pack("[O]", b);
    if (text->b.len)
        out_text(text, "\n\n");
    int rc = one ? join_text(one, "messages", text, f) : no_memory(f);
    json_decref(one);
    return rc;
}

static int assistant_message(json_t *out, const json_t *content, bool last, struct failure *f)
{
    struct out text = {0}, reasoning = {0};
    json_t *calls = json_array(), *b, *m = json_pack("{s:s}", "role", "assistant");
    size_t i;
    int rc = calls && m ? 0 : no_memory(f);
    if (rc == 0 && !json_is_array(content))
        rc = join_text(content, "messages", &text, f);
    else
        json_array_foreach(content, i, b)
        {
            if (rc == 0)
                rc = one_block(b, calls, &text, &reasoning, f);
        }
    bool empty = text.b.len == 0 && json_array_size(calls) > 0;
    bool thought = reasoning.b.len > 0;
    json_t *t = take_string(&text), *r = take_string(&reasoning);
    if (rc == 0 && (!t || !r))
        rc = no_memory(f);
    if (rc == 0 && (json_object_set(m, "content", empty ? json_null() : t) != 0 ||
                    (thought && json_object_set(m, "reasoning_content", r) != 0) ||
                    (json_array_size(calls) && json_object_set(m, "tool_calls", calls) != 0) ||
                    /* a last message of the assistant is the beginning of its answer */
                    (last && json_object_set(m, "prefix", json_true()) != 0)))
        rc = no_memory(f);
    json_decref(t);
    json_decref(r);
    json_decref(calls);
    if (rc != 0) {
        json_decref(m);
        return rc;
    }
    return append(out, m, f);
}

static int convert_messages(const struct params *p, json_t *out, struct failure *f)
{
    struct out text = {0};
    size_t i, n = json_array_size(p->messages);
    json_t *m;
    if (p->system) {
        if (join_text(p->system, "system", &text, f) != 0) {
            out_free(&text);
            return -1;
        }
        if (add_message(out, "system", &text, f) != 0)
            return -1;
    }
    json_array_foreach(p->messages, i, m)
    {
        const json_t *content = json_object_get(m, "content");
        int rc = api_is(m, "role", "user") ? user_message(out, content, f)
                 : api_is(m, "role", "assistant")
                     ? assistant_message(out, content, i + 1 == n, f)
                     : fail_set(f, 400, "messages", "messages: role must be user or assistant");
        if (rc != 0)
            return -1;
    }
    return 0;
}

static int convert_tools(const struct params *p, json_t *out, struct failure *f)
{
    size_t i;
    json_t *t;
    json_array_foreach(p->tools, i, t)
    {
        const char *type = json_string_value(json_object_get(t, "type"));
        json_t *name = json_object_get(t, "name"), *schema = json_object_get(t, "input_schema"),
               *text = json_object_get(t, "description");
        if (type && strcmp(type, "custom") != 0)
            return fail_set(f, 400, "tools", "tools: there is no tool of type %.40s here", type);
        if (!json_is_string(name) || !json_is_object(schema))
            return fail_set(f, 400, "tools", "tools: a tool needs name and input_schema");
        json_t *fn = json_pack("{s:O, s:O}", "name", name, "parameters", schema);
        if (fn && text && json_object_set(fn, "description", text) != 0) {
            json_decref(fn);
            fn = NULL;
        }
        if (!fn || append(out, json_pack("{s:s, s:o}", "type", "function", "function", fn), f) != 0)
            return no_memory(f);
    }
    return 0;
}

static int convert_choice(const struct params *p, json_t *chat, bool *parallel, struct failure *f)
{
    const json_t *c = p->tool_choice;
    json_t *v = NULL;
    *parallel = true;
    if (!c)
        return 0;
    *parallel = !json_is_true(json_object_get(c, "disable_parallel_tool_use"));
    if (api_is(c, "type", "auto"))
        v = json_string("auto");
    else if (api_is(c, "type", "none"))
        v = json_string("none");
    else if (api_is(c, "type", "any"))
        v = json_string("required");
    else if (api_is(c, "type", "tool") && json_is_string(json_object_get(c, "name")))
        v = json_pack("{s:s, s:{s:O}}", "type", "function", "function", "name",
                      json_object_get(c, "name"));
    else
        return fail_set(f, 400, "tool_choice", "tool_choice.type must be auto, any, tool or none");
    return v && api_set(chat, "tool_choice", v) == 0 ? 0 : no_memory(f);
}

/* Thinking is off unless asked for. */
static int convert_thinking(const struct params *p, json_t *chat, int64_t *budget,
                            struct failure *f)
{
    const json_t *b = json_object_get(p->thinking, "budget_tokens");
    bool on = api_is(p->thinking, "type", "enabled") || api_is(p->thinking, "type", "adaptive");
    *budget = 0;
    if (p->thinking && !on && !api_is(p->thinking, "type", "disabled"))
        return fail_set(f, 400, "thinking", "thinking.type must be enabled, adaptive or disabled");
    if (b) {
        if (!json_is_integer(b) || json_integer_value(b) < 1)
            return fail_set(f, 400, "thinking",
                            "thinking.budget_tokens must be an integer above 0");
        *budget = json_integer_value(b);
    }
    json_t *v = json_pack("{s:s}", "type", on ? "enabled" : "disabled");
    return v && api_set(chat, "thinking", v) == 0 ? 0 : no_memory(f);
}

/* The body as a chat; *out NULL on failure. */
static int convert(const struct params *p, json_t **out, bool *parallel, int64_t *budget,
                   struct failure *f)
{
    json_t *messages = json_array(), *tools = json_array();
    json_t *chat = json_pack("{s:o, s:o}", "messages", messages, "tools", tools);
    *out = NULL;
    if (!chat)
        return no_memory(f);
    int rc = p->messages
                 ? convert_messages(p, messages, f)
                 : fail_set(f, 400, "messages", "messages must be a list that is not empty");
    if (rc == 0)
        rc = convert_tools(p, tools, f);
    if (rc == 0)
        rc = convert_choice(p, chat, parallel, f);
    if (rc == 0)
        rc = convert_thinking(p, chat, budget, f);
    if (rc == 0)
        *out = chat;
    else
        json_decref(chat);
    return rc;
}

static int judge(struct exchange *x, const struct params *p, struct failure *f)
{
    const struct {
        const char *name;
        bool given;
    } no[] = {{"container", p->container},
              {"mcp_servers", json_array_size(p->mcp) > 0},
              {"context_management", p->context},
              {"output_config", p->output}};
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        if (no[i].given)
            return fail_set(f, 400, no[i].name, "%s is not supported here", no[i].name);
    if (p->tier && strcmp(p->tier, "auto") != 0 && strcmp(p->tier, "standard_only") != 0)
        return fail_set(f, 400, "service_tier", "service_tier must be auto or standard_only");
    if (json_array_size(p->messages) > x->server->opt->max_messages)
        return fail_set(f, 400, "messages", "%zu messages; at most %zu are taken",
                        json_array_size(p->messages), x->server->opt->max_messages);
    return api_model(x->server, p->model, f);
}

/* ------------------------------------------------------------------ writing */

/* Which block of a stream is open. */
struct own {
    enum { NO_BLOCK, THINKING, TEXT, TOOL } open;
    size_t index;
};

static const char *stop_reason(const struct result *r)
{
    switch (r->finish) {
    case FINISH_LENGTH: return "max_tokens";
    case FINISH_CALLS: return "tool_use";
    case FINISH_STOP_STRING: return "stop_sequence";
    default: return "end_turn";
    }
}

static void write_stop(struct turn *t, const struct result *r)
{
    out_printf(&t->out, "\"stop_reason\":\"%s\",\"stop_sequence\":", stop_reason(r));
    if (r->finish == FINISH_STOP_STRING && r->stop)
        out_cstring(&t->out, r->stop);
    else
        out_text(&t->out, "null");
}

static void write_usage(struct turn *t, size_t output)
{
    out_printf(&t->out,
               "\"usage\":{\"input_tokens\":%zu,\"cache_creation_input_tokens\":0,"
               "\"cache_read_input_tokens\":%zu,\"output_tokens\":%zu}",
               t->prompt_tokens - t->cached_tokens, t->cached_tokens, output);
}

static void write_head(struct turn *t)
{
    out_text(&t->out, "\"id\":");
    out_cstring(&t->out, t->id);
    out_text(&t->out, ",\"type\":\"message\",\"role\":\"assistant\",\"model\":");
    out_cstring(&t->out, t->x->server->opt->model_name);
}

static void on_begin(struct turn *t)
{
    sse_begin(t, "message_start");
    out_text(&t->out, "{\"type\":\"message_start\",\"message\":{");
    write_head(t);
    out_text(&t->out, ",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,\"usage\":{"
                      "\"input_tokens\":");
    out_printf(&t->out,
               "%zu,\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":0,"
               "\"output_tokens\":0}}}",
               t->prompt_given);
    sse_end(t);
    sse_begin(t, "ping");
    out_text(&t->out, "{\"type\":\"ping\"}");
    sse_end(t);
}

/* Blocks of thinking are signed so that clients send them back; the signature says nothing. */
static void close_block(struct turn *t)
{
    struct own *o = t->own;
    if (o->open == NO_BLOCK)
        return;
    if (o->open == THINKING) {
        sse_begin(t, "content_block_delta");
        out_printf(&t->out,
                   "{\"type\":\"content_block_delta\",\"index\":%zu,\"delta\":{"
                   "\"type\":\"signature_delta\",\"signature\":\"dsv4\"}}",
                   o->index);
        sse_end(t);
    }
    sse_begin(t, "content_block_stop");
    out_printf(&t->out, "{\"type\":\"content_block_stop\",\"index\":%zu}", o->index);
    sse_end(t);
    o->open = NO_BLOCK;
    o->index++;
}

static void block_start(struct turn *t)
{
    struct own *o = t->own;
    sse_begin(t, "content_block_start");
    out_printf(&t->out,
               "{\"type\":\"content_block_start\",\"index\":%zu,\"content_block\":", o->index);
}

static void open_text(struct turn *t, int kind)
{
    struct own *o = t->own;
    if ((int)o->open == kind)
        return;
    close_block(t);
    o->open = kind == THINKING ? THINKING : TEXT;
    block_start(t);
    out_text(&t->out, kind == THINKING
                          ? "{\"type\":\"thinking\",\"thinking\":\"\",\"signature\":\"\"}}"
                          : "{\"type\":\"text\",\"text\":\"\"}}");
    sse_end(t);
}

static void open_tool(struct turn *t, const struct call *c)
{
    struct own *o = t->own;
    close_block(t);
    o->open = TOOL;
    block_start(t);
    out_text(&t->out, "{\"type\":\"tool_use\",\"id\":");
    out_cstring(&t->out, c->id);
    out_text(&t->out, ",\"name\":");
    out_string(&t->out, c->name.b.data, c->name.b.len);
    out_text(&t->out, ",\"input\":{}}}");
    sse_end(t);
}

static void delta(struct turn *t, const char *type, const char *member, const struct piece *p)
{
    struct own *o = t->own;
    sse_begin(t, "content_block_delta");
    out_printf(&t->out,
               "{\"type\":\"content_block_delta\",\"index\":%zu,\"delta\":{\"type\":\"%s\","
               "\"%s\":",
               o->index, type, member);
    out_string(&t->out, p->text, p->len);
    out_text(&t->out, "}}");
    sse_end(t);
}

static void on_piece(struct turn *t, unsigned choice, const struct piece *p)
{
    switch (p->kind) {
    case PIECE_REASONING:
        open_text(t, THINKING);
        delta(t, "thinking_delta", "thinking", p);
        break;
    case PIECE_CONTENT:
        open_text(t, TEXT);
        delta(t, "text_delta", "text", p);
        break;
    case PIECE_CALL: open_tool(t, &turn_result(t, choice)->call[p->call]); break;
    case PIECE_ARGUMENTS: delta(t, "input_json_delta", "partial_json", p); break;
    case PIECE_CALL_END: close_block(t); break;
    }
}

static void on_finish(struct turn *t, unsigned choice)
{
    (void)choice;
    close_block(t);
}

static void on_end(struct turn *t)
{
    size_t reasoning, n = turn_tokens(t, &reasoning);
    sse_begin(t, "message_delta");
    out_text(&t->out, "{\"type\":\"message_delta\",\"delta\":{");
    write_stop(t, turn_result(t, 0));
    out_text(&t->out, "},");
    write_usage(t, n);
    out_text(&t->out, "}");
    sse_end(t);
    sse_begin(t, "message_stop");
    out_text(&t->out, "{\"type\":\"message_stop\"}");
    sse_end(t);
}

static void on_fail(struct turn *t, const struct failure *f)
{
    sse_begin(t, "error");
    failure_body(&t->out, PROTOCOL_ANTHROPIC, f, t->x->id);
    sse_end(t);
}

static void write_arguments(struct out *o, const struct out *arguments)
{
    const char *text = arguments->b.data ? arguments->b.data : "";
    json_t *v;
    dsv4_err err;
    int rc = json_read(&v, text, arguments->b.len, &err);
    if (rc == 0)
        out_add(o, text, arguments->b.len);
    else
        out_text(o, "{}"); /* they were cut short */
    o->failed |= rc == DSV4_NO_MEMORY;
    json_decref(v);
}

static void on_whole(struct turn *t)
{
    const struct result *r = turn_result(t, 0);
    size_t reasoning, n = turn_tokens(t, &reasoning);
    const char *comma = "";
    out_text(&t->out, "{");
    write_head(t);
    out_text(&t->out, ",\"content\":[");
    if (r->reasoning.b.len && !t->hide_reasoning) {
        out_text(&t->out, "{\"type\":\"thinking\",\"thinking\":");
        out_string(&t->out, r->reasoning.b.data, r->reasoning.b.len);
        out_text(&t->out, ",\"signature\":\"dsv4\"}");
        comma = ",";
    }
    if (r->content.b.len) {
        out_printf(&t->out, "%s{\"type\":\"text\",\"text\":", comma);
        out_string(&t->out, r->content.b.data, r->content.b.len);
        out_text(&t->out, "}");
        comma = ",";
    }
    for (size_t i = 0; i < r->n_calls; i++) {
        out_printf(&t->out, "%s{\"type\":\"tool_use\",\"id\":", comma);
        out_cstring(&t->out, r->call[i].id);
        out_text(&t->out, ",\"name\":");
        out_string(&t->out, r->call[i].name.b.data, r->call[i].name.b.len);
        out_text(&t->out, ",\"input\":");
        write_arguments(&t->out, &r->call[i].arguments);
        out_text(&t->out, "}");
        comma = ",";
    }
    out_text(&t->out, "],");
    write_stop(t, r);
    out_text(&t->out, ",");
    write_usage(t, n);
    out_text(&t->out, "}");
}

static void on_release(struct turn *t)
{
    free(t->own);
}

static const struct shape shape = {on_begin, on_piece, on_finish, on_end,
                                   on_fail,  NULL,     on_whole,  on_release};

/* ------------------------------------------------------------------ the request */

static int read_request(struct turn *t, struct failure *f)
{
    struct turn_sampling sp = api_sampling(t->x->server);
    struct params p = {.temperature = (double)sp.sampling.temperature,
                       .top_p = (double)sp.sampling.top_p,
                       .top_k = sp.sampling.top_k};
    json_t *chat;
    bool parallel;
    int64_t budget;
    dsv4_err err;
    if (params_read(t->body, table, sizeof table / sizeof *table, &p, f) != 0 ||
        judge(t->x, &p, f) != 0)
        return -1;
    if (p.max_tokens == 0)
        return fail_set(f, 400, "max_tokens", "max_tokens is needed");
    if (convert(&p, &chat, &parallel, &budget, f) != 0)
        return -1;
    t->stream = p.stream;
    sp.sampling.temperature = (float)p.temperature;
    sp.sampling.top_p = (float)p.top_p;
    sp.sampling.top_k = (int)p.top_k;
    sp.max_tokens = (size_t)p.max_tokens;
    sp.user = json_string_value(json_object_get(p.metadata, "user_id"));
    int rc = turn_stops(t, p.stop, "stop_sequences", 64, f);
    struct chat_words w = {.tools = json_object_get(chat, "tools"),
                           .tool_choice = json_object_get(chat, "tool_choice"),
                           .parallel = parallel,
                           .budget = budget};
    if (rc == 0)
        rc = api_chat(t, chat, &w, f);
    if (rc == 0)
        rc = turn_chat(t, chat, &sp, f);
    json_decref(chat);
    if (rc == 0 && mem_alloc(&t->own, 1, sizeof(struct own), "a request", &err) != 0)
        return fail_err(f, &err);
    if (rc == 0)
        t->prompt_given = t->jobs[0]->n_prompt;
    return rc;
}

void api_messages(struct exchange *x)
{
    api_turn(x, &shape, "msg_", read_request);
}

void api_count_tokens(struct exchange *x)
{
    json_t *body = api_body(x), *chat = NULL;
    struct params p = {0};
    struct failure f = {0};
    struct rendered r = {0};
    struct out o = {0};
    bool parallel;
    int64_t budget;
    if (!body)
        return;
    int rc = params_read(body, table, sizeof table / sizeof *table, &p, &f);
    if (rc == 0)
        rc = judge(x, &p, &f);
    if (rc == 0)
        rc = convert(&p, &chat, &parallel, &budget, &f);
    if (rc == 0)
        rc = turn_render(x->server, chat, &r, &f);
    if (api_settled(rc, &f) != 0) {
        exchange_fail(x, &f);
    } else {
        out_printf(&o, "{\"input_tokens\":%zu}", r.n);
        exchange_reply(x, 200, "application/json", &o);
    }
    dsv4_free(r.ids);
    dsv4_prompt_close(r.prompt);
    json_decref(chat);
    json_decref(body);
}
