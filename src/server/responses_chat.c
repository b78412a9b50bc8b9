/* Input of OpenAI's responses as chats in the words of its chat completions. */
#include "api.h"

#include <stddef.h>
#include <string.h>

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
    json_t *v = api_string(&o);
    if (!v)
        api_no_memory(f);
    return v;
}

/* An assistant's message is written in several items: reasoning, text, calls. They come together in
 * *open, which is in the list already. */
static int open_assistant(json_t *list, json_t **open, struct failure *f)
{
    if (*open)
        return 0;
    *open = json_pack("{s:s, s:n}", "role", "assistant", "content");
    return api_append(list, *open, f);
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
            return api_no_memory(f);
    }
    return api_append(calls,
                      json_pack("{s:O, s:s, s:{s:O, s:O}}", "id", id, "type", "function",
                                "function", "name", name, "arguments", args),
                      f);
}

static int add_output(json_t *list, const json_t *item, struct failure *f)
{
    json_t *id = json_object_get(item, "call_id");
    if (!json_is_string(id))
        return fail_set(f, 400, "input", "input: a function_call_output needs call_id");
    json_t *text = join_text(json_object_get(item, "output"), f);
    return text ? api_append(list,
                             json_pack("{s:s, s:O, s:o}", "role", "tool", "tool_call_id", id,
                                       "content", text),
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
        return f->status ? -1 : api_no_memory(f);
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
        return api_append(list, json_pack("{s:s, s:o}", "role", as, "content", text), f);
    }
    if (*open && json_is_string(json_object_get(*open, "content")))
        *open = NULL;
    int rc = open_assistant(list, open, f);
    if (rc == 0 && json_object_set(*open, "content", text) != 0)
        rc = api_no_memory(f);
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

static int convert_input(const struct responses_body *b, json_t *list, struct failure *f)
{
    size_t i;
    json_t *item, *open = NULL;
    if (b->instructions &&
        api_append(list, json_pack("{s:s, s:s}", "role", "system", "content", b->instructions),
                   f) != 0)
        return -1;
    if (json_is_string(b->input))
        return api_append(list, json_pack("{s:s, s:O}", "role", "user", "content", b->input), f);
    if (!json_is_array(b->input) || json_array_size(b->input) == 0)
        return fail_set(f, 400, "input", "input must be a text or a list that is not empty");
    json_array_foreach(b->input, i, item) if (add_item(list, &open, item, f) != 0) return -1;
    return 0;
}

static int convert_tools(const struct responses_body *b, json_t *list, struct failure *f)
{
    size_t i;
    json_t *t;
    json_array_foreach(b->tools, i, t)
    {
        const char *type = json_string_value(json_object_get(t, "type"));
        json_t *name = json_object_get(t, "name"), *schema = json_object_get(t, "parameters"),
               *text = json_object_get(t, "description");
        if (!type || strcmp(type, "function") != 0)
            return fail_set(f, 400, "tools", "tools: there is no tool of type %.40s here",
                            type ? type : "(none)");
        if (!json_is_string(name))
            return fail_set(f, 400, "tools", "tools: a function needs a name");
        if (api_add_function(list, name, json_is_object(schema) ? schema : NULL,
                             json_is_string(text) ? text : NULL, f) != 0)
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
static int convert_text(const json_t *text, json_t *chat, struct failure *f)
{
    struct text {
        json_t *format;
        const char *verbosity;
    } v = {NULL, NULL};
    static const struct param members[] = {
        {"format", P_OBJECT, 0, 0, offsetof(struct text, format)},
        {"verbosity", P_TEXT, 0, 32, offsetof(struct text, verbosity)}};
    if (!text)
        return 0;
    if (params_read(text, members, 2, &v, f) != 0)
        return -1;
    if (v.verbosity && strcmp(v.verbosity, "medium") != 0)
        return fail_set(f, 400, "text", "text.verbosity: only medium, the model knows no other");
    if (!v.format)
        return 0;
    json_t *to = json_incref(v.format);
    if (api_is(v.format, "type", "json_schema")) {
        json_decref(to);
        to = json_pack("{s:s, s:{s:O?}}", "type", "json_schema", "json_schema", "schema",
                       json_object_get(v.format, "schema"));
    }
    return api_set(chat, "response_format", to) == 0 ? 0 : api_no_memory(f);
}

/* A summary that is asked for is the reasoning itself: nobody else is here to write one. */
static int convert_reasoning(const json_t *reasoning, json_t *chat, struct failure *f)
{
    struct reasoning {
        const char *effort, *summary, *generate;
    } v = {NULL, NULL, NULL};
    static const struct param members[] = {
        {"effort", P_TEXT, 0, 32, offsetof(struct reasoning, effort)},
        {"summary", P_TEXT, 0, 32, offsetof(struct reasoning, summary)},
        {"generate_summary", P_TEXT, 0, 32, offsetof(struct reasoning, generate)}};
    if (!reasoning)
        return 0;
    if (params_read(reasoning, members, 3, &v, f) != 0)
        return -1;
    return !v.effort || api_set(chat, "reasoning_effort", json_string(v.effort)) == 0
               ? 0
               : api_no_memory(f);
}

static int convert(const struct responses_body *b, json_t *chat, json_t *messages, json_t *tools,
                   struct failure *f)
{
    if (convert_input(b, messages, f) != 0 || convert_tools(b, tools, f) != 0)
        return -1;
    if (b->tool_choice && api_set(chat, "tool_choice", convert_choice(b->tool_choice)) != 0)
        return api_no_memory(f);
    return convert_text(b->text, chat, f) == 0 ? convert_reasoning(b->reasoning, chat, f) : -1;
}

int responses_chat(const struct responses_body *b, json_t **chat, struct failure *f)
{
    json_t *messages = json_array(), *tools = json_array();
    *chat = json_pack("{s:o, s:o}", "messages", messages, "tools", tools);
    if (!*chat)
        return api_no_memory(f);
    if (convert(b, *chat, messages, tools, f) == 0)
        return 0;
    json_decref(*chat);
    *chat = NULL;
    return -1;
}
