/* Anthropic: messages. Bodies become chats in OpenAI's words, answers become content blocks. */
#include "api.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

struct params {
    const char *model, *tier, *inference;
    struct anthropic_body b;
    json_t *stop, *metadata, *container, *mcp, *context;
    bool stream;
    int64_t max_tokens, top_k;
    double temperature, top_p;
};

#define AT(field)   offsetof(struct params, field)
#define AT_B(field) AT(b.field)
static const struct param table[] = {
    {"model", P_TEXT, 0, 256, AT(model)},
    {"messages", P_LIST, 1, 100000, AT_B(messages)},
    {"system", P_ANY, 0, 0, AT_B(system)},
    {"tools", P_LIST, 0, 0, AT_B(tools)},
    {"tool_choice", P_OBJECT, 0, 0, AT_B(tool_choice)},
    {"thinking", P_OBJECT, 0, 0, AT_B(thinking)},
    {"stop_sequences", P_LIST, 0, 64, AT(stop)},
    {"metadata", P_OBJECT, 0, 0, AT(metadata)},
    {"stream", P_BOOL, 0, 0, AT(stream)},
    {"max_tokens", P_INT, 1, 1e9, AT(max_tokens)},
    {"top_k", P_INT, 0, INT32_MAX, AT(top_k)},
    {"temperature", P_NUMBER, 0, 2, AT(temperature)},
    {"top_p", P_NUMBER, 1e-6, 1, AT(top_p)},
    {"service_tier", P_TEXT, 0, 64, AT(tier)},
    {"output_config", P_OBJECT, 0, 0, AT_B(output)},
    {"context_management", P_OBJECT, 0, 0, AT(context)},
    /* known, to say why not */
    {"container", P_ANY, 0, 0, AT(container)},
    {"mcp_servers", P_LIST, 0, 0, AT(mcp)},
    {"inference_geo", P_TEXT, 0, 64, AT(inference)},
};

/* Whether a conversation is to be changed before it is read: that is not done here. Keeping all reasoning is
 * what happens anyway. */
static bool edits(const json_t *context)
{
    const json_t *list = json_object_get(context, "edits");
    size_t i;
    json_t *e;
    json_array_foreach(list, i, e)
    {
        if (!api_is(e, "type", "clear_thinking_20251015") || !api_is(e, "keep", "all"))
            return true;
    }
    return context && (!json_is_array(list) || json_object_size(context) != 1);
}

static int judge(struct exchange *x, const struct params *p, struct failure *f)
{
    const struct {
        const char *name;
        bool given;
    } no[] = {{"container", p->container},
              {"mcp_servers", json_array_size(p->mcp) > 0},
              {"context_management", edits(p->context)}};
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        if (no[i].given)
            return fail_set(f, 400, no[i].name, "%s is not supported here", no[i].name);
    if (p->tier && strcmp(p->tier, "auto") != 0 && strcmp(p->tier, "standard_only") != 0)
        return fail_set(f, 400, "service_tier", "service_tier must be auto or standard_only");
    if (json_array_size(p->b.messages) > x->server->opt->max_messages)
        return fail_set(f, 400, "messages", "%zu messages; at most %zu are taken",
                        json_array_size(p->b.messages), x->server->opt->max_messages);
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
    struct anthropic_chat c;
    dsv4_err err;
    if (params_read(t->body, table, sizeof table / sizeof *table, &p, f) != 0 ||
        judge(t->x, &p, f) != 0)
        return -1;
    if (p.max_tokens == 0)
        return fail_set(f, 400, "max_tokens", "max_tokens is needed");
    if (anthropic_chat(&p.b, &c, f) != 0)
        return -1;
    t->hide_reasoning = t->hide_reasoning || c.hidden;
    t->stream = p.stream;
    sp.sampling.temperature = (float)p.temperature;
    sp.sampling.top_p = (float)p.top_p;
    sp.sampling.top_k = (int)p.top_k;
    sp.max_tokens = (size_t)p.max_tokens;
    sp.user = json_string_value(json_object_get(p.metadata, "user_id"));
    int rc = turn_stops(t, p.stop, "stop_sequences", 64, f);
    struct chat_words w = {.tools = json_object_get(c.chat, "tools"),
                           .tool_choice = json_object_get(c.chat, "tool_choice"),
                           .format = json_object_get(c.chat, "response_format"),
                           .parallel = c.parallel,
                           .budget = c.budget};
    if (rc == 0)
        rc = api_chat(t, c.chat, &w, f);
    if (rc == 0)
        rc = turn_chat(t, c.chat, &sp, f);
    json_decref(c.chat);
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
    json_t *body = api_body(x);
    struct anthropic_chat c = {.chat = NULL};
    struct params p = {0};
    struct failure f = {0};
    struct rendered r = {0};
    struct out o = {0};
    if (!body)
        return;
    int rc = params_read(body, table, sizeof table / sizeof *table, &p, &f);
    if (rc == 0)
        rc = judge(x, &p, &f);
    if (rc == 0)
        rc = anthropic_chat(&p.b, &c, &f);
    if (rc == 0)
        rc = turn_render(x->server, c.chat, &r, &f);
    if (api_settled(rc, &f) != 0) {
        exchange_fail(x, &f);
    } else {
        out_printf(&o, "{\"input_tokens\":%zu}", r.n);
        exchange_reply(x, 200, "application/json", &o);
    }
    dsv4_free(r.ids);
    dsv4_prompt_close(r.prompt);
    json_decref(c.chat);
    json_decref(body);
}
