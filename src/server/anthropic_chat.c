/* Anthropic's messages as chats in OpenAI's words. */
#include "api.h"

#include <stddef.h>
#include <string.h>

static int join_block(const json_t *b, const char *where, struct out *o, struct failure *f)
{
    const json_t *text = json_object_get(b, "text");
    const char *type = json_string_value(json_object_get(b, "type"));
    if (!type || strcmp(type, "text") != 0 || !json_is_string(text))
        return fail_set(f, 400, where, "%s: a block of type %.40s is not understood here", where,
                        type ? type : "(none)");
    out_add(o, json_string_value(text), json_string_length(text));
    return 0;
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
        if (i > 0)
            out_text(o, "\n\n");
        if (join_block(b, where, o, f) != 0)
            return -1;
    }
    return 0;
}

static int add_message(json_t *out, const char *role, struct out *text, struct failure *f)
{
    json_t *content = api_string(text);
    if (!content)
        return api_no_memory(f);
    return api_append(out, json_pack("{s:s, s:o}", "role", role, "content", content), f);
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
            json_t *v = api_string(&result);
            if (!v || api_append(out,
                                 json_pack("{s:s, s:s, s:o}", "role", "tool", "tool_call_id", id,
                                           "content", v),
                                 f) != 0) {
                out_free(&text);
                return api_no_memory(f);
            }
            continue;
        }
        if (any)
            out_text(&text, "\n\n");
        any = true;
        if (join_block(b, "messages", &text, f) != 0) {
            out_free(&text);
            return -1;
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
        json_t *a = api_string(&args);
        return a ? api_append(calls,
                              json_pack("{s:s, s:s, s:{s:s, s:o}}", "id", id, "type", "function",
                                        "function", "name", name, "arguments", a),
                              f)
                 : api_no_memory(f);
    }
    if (text->b.len)
        out_text(text, "\n\n");
    return join_block(b, "messages", text, f);
}

static int assistant_message(json_t *out, const json_t *content, bool last, struct failure *f)
{
    struct out text = {0}, reasoning = {0};
    json_t *calls = json_array(), *b, *m = json_pack("{s:s}", "role", "assistant");
    size_t i;
    int rc = calls && m ? 0 : api_no_memory(f);
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
    json_t *t = api_string(&text), *r = api_string(&reasoning);
    if (rc == 0 && (!t || !r))
        rc = api_no_memory(f);
    if (rc == 0 && (json_object_set(m, "content", empty ? json_null() : t) != 0 ||
                    (thought && json_object_set(m, "reasoning_content", r) != 0) ||
                    (json_array_size(calls) && json_object_set(m, "tool_calls", calls) != 0) ||
                    /* a last message of the assistant is the beginning of its answer */
                    (last && json_object_set(m, "prefix", json_true()) != 0)))
        rc = api_no_memory(f);
    json_decref(t);
    json_decref(r);
    json_decref(calls);
    if (rc != 0) {
        json_decref(m);
        return rc;
    }
    return api_append(out, m, f);
}

static int convert_messages(const struct anthropic_body *b, json_t *out, struct failure *f)
{
    struct out text = {0};
    size_t i, n = json_array_size(b->messages);
    json_t *m;
    if (b->system) {
        if (join_text(b->system, "system", &text, f) != 0) {
            out_free(&text);
            return -1;
        }
        if (add_message(out, "system", &text, f) != 0)
            return -1;
    }
    json_array_foreach(b->messages, i, m)
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

static int convert_tools(const struct anthropic_body *b, json_t *out, struct failure *f)
{
    size_t i;
    json_t *t;
    json_array_foreach(b->tools, i, t)
    {
        const char *type = json_string_value(json_object_get(t, "type"));
        json_t *name = json_object_get(t, "name"), *schema = json_object_get(t, "input_schema"),
               *text = json_object_get(t, "description");
        if (type && strcmp(type, "custom") != 0)
            return fail_set(f, 400, "tools", "tools: there is no tool of type %.40s here", type);
        if (!json_is_string(name) || !json_is_object(schema))
            return fail_set(f, 400, "tools", "tools: a tool needs name and input_schema");
        if (api_add_function(out, name, schema, text, f) != 0)
            return -1;
    }
    return 0;
}

static int convert_choice(const struct anthropic_body *b, json_t *chat, bool *parallel,
                          struct failure *f)
{
    const json_t *c = b->tool_choice;
    json_t *v = NULL;
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
    return v && api_set(chat, "tool_choice", v) == 0 ? 0 : api_no_memory(f);
}

/* Thinking is off unless asked for, by name or by an effort. */
static int convert_thinking(const struct anthropic_body *b, const char *effort,
                            struct anthropic_chat *out, struct failure *f)
{
    struct thinking {
        const char *type, *display;
        int64_t budget;
    } v = {NULL, NULL, 0};
    static const struct param members[] = {
        {"type", P_TEXT, 0, 32, offsetof(struct thinking, type)},
        {"display", P_TEXT, 0, 32, offsetof(struct thinking, display)},
        {"budget_tokens", P_INT, 1, 1e9, offsetof(struct thinking, budget)}};
    const char *type = effort ? "enabled" : "disabled";
    if (b->thinking) {
        if (params_read(b->thinking, members, 3, &v, f) != 0)
            return -1;
        if (!v.type || (strcmp(v.type, "enabled") != 0 && strcmp(v.type, "adaptive") != 0 &&
                        strcmp(v.type, "disabled") != 0))
            return fail_set(f, 400, "thinking",
                            "thinking.type must be enabled, adaptive or disabled");
        if (v.display && strcmp(v.display, "summarized") != 0 && strcmp(v.display, "omitted") != 0)
            return fail_set(f, 400, "thinking", "thinking.display must be summarized or omitted");
        type = strcmp(v.type, "disabled") == 0 ? "disabled" : "enabled";
    }
    out->budget = v.budget;
    out->hidden = v.display && strcmp(v.display, "omitted") == 0;
    if (api_set(out->chat, "thinking", json_pack("{s:s}", "type", type)) != 0 ||
        (effort && api_set(out->chat, "reasoning_effort", json_string(effort)) != 0))
        return api_no_memory(f);
    return 0;
}

/* output_config: how hard to think, and the form of the answer. */
static int read_output(const struct anthropic_body *b, const char **effort, json_t *chat,
                       struct failure *f)
{
    struct output {
        const char *effort;
        json_t *format;
    } v = {NULL, NULL};
    static const struct param members[] = {
        {"effort", P_TEXT, 1, 32, offsetof(struct output, effort)},
        {"format", P_OBJECT, 0, 0, offsetof(struct output, format)}};
    *effort = NULL;
    if (!b->output)
        return 0;
    if (params_read(b->output, members, 2, &v, f) != 0)
        return -1;
    if (v.effort && (strcmp(v.effort, "none") == 0 || strcmp(v.effort, "minimal") == 0))
        return fail_set(f, 400, "output_config",
                        "output_config.effort must be low, medium, high, xhigh or max");
    *effort = v.effort;
    if (!v.format)
        return 0;
    json_t *schema = json_object_get(v.format, "schema");
    if (!api_is(v.format, "type", "json_schema") || !schema)
        return fail_set(f, 400, "output_config",
                        "output_config.format must be of type json_schema, with a schema");
    return api_set(chat, "response_format",
                   json_pack("{s:s, s:{s:O}}", "type", "json_schema", "json_schema", "schema",
                             schema)) == 0
               ? 0
               : api_no_memory(f);
}

static int convert(const struct anthropic_body *b, struct anthropic_chat *out, json_t *messages,
                   json_t *tools, struct failure *f)
{
    const char *effort;
    if (!b->messages)
        return fail_set(f, 400, "messages", "messages must be a list that is not empty");
    if (convert_messages(b, messages, f) != 0 || convert_tools(b, tools, f) != 0 ||
        convert_choice(b, out->chat, &out->parallel, f) != 0 ||
        read_output(b, &effort, out->chat, f) != 0)
        return -1;
    return convert_thinking(b, effort, out, f);
}

int anthropic_chat(const struct anthropic_body *b, struct anthropic_chat *out, struct failure *f)
{
    json_t *messages = json_array(), *tools = json_array();
    *out = (struct anthropic_chat){
        .chat = json_pack("{s:o, s:o}", "messages", messages, "tools", tools), .parallel = true};
    if (!out->chat)
        return api_no_memory(f);
    if (convert(b, out, messages, tools, f) == 0)
        return 0;
    json_decref(out->chat);
    out->chat = NULL;
    return -1;
}
