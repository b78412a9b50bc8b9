/* The body of an OpenAI chat-completion request as a request to dsv4_render (chat-encoding, section 10):
 * what the protocol knows by other names is renamed, what it forbids is refused, the rest is copied.
 * Models, sampling, stop strings and streaming are the server's. */
#include "chat_inner.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CALLS 256 /* of one message */

struct request {
    const struct dialect *dialect;
    const struct jv *messages, *tools, *schema;
    const struct jv *named; /* the one tool that may be called */
    bool thinking, forced;  /* a tool has to be called */
    const char *effort;
    struct bytes out, joined;
    const struct jv *unanswered[MAX_CALLS]; /* ids of calls */
    size_t n_unanswered;
    dsv4_err *err;
};

static int refuse(const struct request *r, const char *what)
{
    return err_set(r->err, DSV4_REFUSED, "%s", what);
}

static int text(struct request *r, const char *literal)
{
    return bytes_text(&r->out, literal, r->err);
}

static int copy(struct request *r, const char *name, const struct jv *v)
{
    TRY(bytes_printf(&r->out, r->err, ",\"%s\":", name));
    return jv_write(&r->out, v, true, r->err);
}

/* ------------------------------------------------------------------ options */

static int read_thinking(struct request *r, const struct jv *body)
{
    static const char *const efforts[][2] = {
        {"none", "high"}, {"minimal", "low"}, {"low", "low"}, {"medium", "high"},
        {"high", "high"}, {"xhigh", "high"},  {"max", "max"}};
    const struct jv *thinking = jv_get(body, "thinking"),
                    *effort = jv_get(body, "reasoning_effort");
    const struct jv *type = jv_get(thinking, "type");
    if (!jv_none(thinking) && !jv_equals(type, "enabled") && !jv_equals(type, "disabled"))
        return refuse(r, "thinking.type must be enabled or disabled");
    r->thinking = !jv_equals(type, "disabled") && !jv_equals(effort, "none");
    r->effort = "high";
    if (jv_none(effort))
        return 0;
    for (size_t i = 0; i < sizeof efforts / sizeof *efforts; i++)
        if (jv_equals(effort, efforts[i][0])) {
            /* The preview knows no low; its high writes nothing either. */
            bool low = strcmp(efforts[i][1], "low") == 0 && r->dialect == chat_dialects;
            r->effort = low ? "high" : efforts[i][1];
            return 0;
        }
    return refuse(r, "reasoning_effort must be none, minimal, low, medium, high, xhigh or max");
}

static int compare_names(const void *a, const void *b)
{
    const struct jv *x = *(const struct jv *const *)a, *y = *(const struct jv *const *)b;
    return x->len != y->len ? (x->len < y->len ? -1 : 1) : memcmp(x->text, y->text, x->len);
}

static int check_unique(const struct request *r, const struct jv *tools)
{
    const struct jv **names;
    size_t n = 0;
    bool twice = false;
    TRY(mem_alloc(&names, tools->len, sizeof *names, "tool names", r->err));
    for (const struct jv *t = tools->first; t; t = t->next)
        names[n++] = jv_get(jv_get(t, "function"), "name");
    qsort(names, n, sizeof *names, compare_names);
    for (size_t i = 1; i < n; i++)
        twice = twice || compare_names(&names[i - 1], &names[i]) == 0;
    free(names);
    return twice ? refuse(r, "tool names must be unique") : 0;
}

static int check_tool(const struct request *r, const struct jv *tool)
{
    const struct jv *function = jv_get(tool, "function"), *name = jv_get(function, "name");
    const struct jv *parameters = jv_get(function, "parameters"),
                    *description = jv_get(function, "description");
    if (!jv_equals(jv_get(tool, "type"), "function") || !jv_is(function, JV_OBJECT))
        return refuse(r, "a tool must be {\"type\": \"function\", \"function\": {...}}");
    bool good = jv_is(name, JV_STRING) && name->len > 0;
    for (size_t i = 0; good && i < name->len; i++) {
        unsigned char c = (unsigned char)name->text[i];
        good = c < 0x80 && (isalnum(c) || c == '_' || c == '-');
    }
    if (!good)
        return refuse(r, "the name of a tool must match ^[a-zA-Z0-9_-]+$");
    if (!jv_none(description) && description->type != JV_STRING)
        return refuse(r, "the description of a tool must be text");
    if (!jv_none(parameters) && parameters->type > JV_TRUE && parameters->type != JV_OBJECT)
        return refuse(r, "the parameters of a tool must be a JSON schema");
    return 0;
}

static int read_choice(struct request *r, const struct jv *choice)
{
    if (jv_none(choice) || jv_equals(choice, "auto"))
        return 0;
    if (jv_equals(choice, "none")) {
        r->tools = NULL;
        return 0;
    }
    r->forced = r->tools;
    if (jv_is(choice, JV_OBJECT)) {
        const struct jv *name = jv_get(jv_get(choice, "function"), "name");
        for (const struct jv *t = r->tools ? r->tools->first : NULL; t && !r->named; t = t->next)
            if (jv_is(name, JV_STRING) &&
                compare_names(&name, &(const struct jv *){jv_get(jv_get(t, "function"), "name")}) ==
                    0)
                r->named = t;
        if (!r->named)
            return refuse(r, "tool_choice names no function of tools");
    } else if (!jv_equals(choice, "required")) {
        return refuse(r, "tool_choice must be none, auto, required or name a function");
    }
    if (r->forced && r->thinking)
        return refuse(r, "a tool cannot be forced (tool_choice) while the model thinks");
    return 0;
}

static int read_tools(struct request *r, const struct jv *body)
{
    const struct jv *tools = jv_get(body, "tools");
    if (!jv_none(tools) && tools->type != JV_LIST)
        return refuse(r, "tools must be a list");
    if (jv_truth(tools)) {
        for (const struct jv *t = tools->first; t; t = t->next)
            TRY(check_tool(r, t));
        TRY(check_unique(r, tools));
        r->tools = tools;
    }
    return read_choice(r, jv_get(body, "tool_choice"));
}

static bool mentions_json(const struct jv *v)
{
    for (size_t i = 0; jv_is(v, JV_STRING) && i + 4 <= v->len; i++)
        if (strncasecmp(v->text + i, "json", 4) == 0)
            return true;
    return false;
}

static int read_format(struct request *r, const struct jv *format)
{
    const struct jv *type = jv_get(format, "type");
    if (jv_none(format) || jv_equals(type, "text"))
        return 0;
    if (jv_equals(type, "json_schema")) {
        r->schema = jv_get(jv_get(format, "json_schema"), "schema");
        return jv_is(r->schema, JV_OBJECT) ? 0 : refuse(r, "response_format without a schema");
    }
    if (!jv_equals(type, "json_object"))
        return refuse(r, "response_format.type must be text, json_object or json_schema");
    r->schema = format;
    for (const struct jv *m = r->messages->first; m; m = m->next) {
        const struct jv *content = jv_get(m, "content");
        if (mentions_json(content))
            return 0;
        for (const struct jv *p = jv_is(content, JV_LIST) ? content->first : NULL; p; p = p->next)
            if (mentions_json(jv_get(p, "text")))
                return 0;
    }
    return refuse(r, "the prompt must contain the word json for response_format json_object");
}

/* ------------------------------------------------------------------ messages */

static int write_tools(struct request *r)
{
    bool later = false;
    for (const struct jv *t = r->tools ? r->tools->first : NULL; t; t = t->next) {
        const struct jv *function = jv_get(t, "function"), *v;
        if (r->named && t != r->named)
            continue;
        TRY(text(r, later ? ",{\"function\":{\"name\":" : ",\"tools\":[{\"function\":{\"name\":"));
        later = true;
        TRY(jv_write(&r->out, jv_get(function, "name"), true, r->err));
        v = jv_get(function, "description");
        TRY(jv_none(v) ? text(r, ",\"description\":\"\"") : copy(r, "description", v));
        v = jv_get(function, "parameters");
        TRY(jv_none(v) ? text(r, ",\"parameters\":{}") : copy(r, "parameters", v));
        TRY(text(r, "}}"));
    }
    TRY(text(r, later ? "]" : ""));
    return r->schema ? copy(r, "response_format", r->schema) : 0;
}

/* A content list: V4.1 takes it as it is, V4 gets the texts joined, with a note for each image. */
static int write_parts(struct request *r, const struct jv *list)
{
    r->joined.len = 0;
    for (const struct jv *p = list->first; p; p = p->next) {
        const struct jv *type = jv_get(p, "type"), *t = jv_get(p, "text");
        bool image = jv_equals(type, "image_url");
        if (!image && (!jv_equals(type, "text") || !jv_is(t, JV_STRING)))
            return refuse(r, "parts of a content list must be text or image_url");
        if (p != list->first)
            TRY(bytes_text(&r->joined, "\n\n", r->err));
        TRY(image ? bytes_text(&r->joined, "[Unsupported Image]", r->err)
                  : bytes_add(&r->joined, t->text, t->len, r->err));
    }
    if (r->dialect->v41)
        return copy(r, "content", list);
    TRY(text(r, ",\"content\":"));
    return jv_write_string(&r->out, r->joined.data, r->joined.len, r->err);
}

static int write_content(struct request *r, const struct jv *content, bool optional)
{
    if (jv_is(content, JV_LIST))
        return write_parts(r, content);
    if (jv_is(content, JV_STRING))
        return copy(r, "content", content);
    return optional && jv_none(content) ? text(r, ",\"content\":\"\"")
                                        : refuse(r, "content must be a string or a list");
}

/* Remembers the ids that the following messages have to answer. */
static int write_calls(struct request *r, const struct jv *calls)
{
    if (calls->type != JV_LIST || calls->len > MAX_CALLS)
        return refuse(r, "tool_calls must be a list of at most 256 calls");
    for (const struct jv *c = calls->first; c; c = c->next) {
        const struct jv *function = jv_get(c, "function"), *id = jv_get(c, "id");
        if (!jv_is(id, JV_STRING) || !jv_is(jv_get(function, "name"), JV_STRING) ||
            !jv_is(jv_get(function, "arguments"), JV_STRING))
            return refuse(r, "a tool call must have an id, a name and arguments, all text");
        r->unanswered[r->n_unanswered++] = id;
    }
    return copy(r, "tool_calls", calls);
}

static int assistant(struct request *r, const struct jv *m)
{
    const struct jv *content = jv_get(m, "content"), *calls = jv_get(m, "tool_calls"),
                    *reasoning = jv_get(m, "reasoning_content");
    if (jv_none(content) && !jv_truth(calls))
        return refuse(r, "an assistant message must have content or tool_calls");
    TRY(write_content(r, content, true));
    if (!jv_none(reasoning))
        TRY(copy(r, "reasoning_content", reasoning));
    if (jv_truth(calls))
        TRY(write_calls(r, calls));
    bool open = !m->next && jv_truth(jv_get(m, "prefix"));
    return open ? text(r, ",\"wo_eos\":true") : 0;
}

static int tool(struct request *r, const struct jv *m)
{
    const struct jv *id = jv_get(m, "tool_call_id");
    for (size_t i = 0; jv_is(id, JV_STRING) && i < r->n_unanswered; i++)
        if (compare_names(&r->unanswered[i], &id) == 0) {
            r->unanswered[i] = r->unanswered[--r->n_unanswered];
            TRY(copy(r, "tool_call_id", id));
            return write_content(r, jv_get(m, "content"), false);
        }
    return refuse(r, "a tool message must answer a call of the assistant message before it");
}

static int write_message(struct request *r, const struct jv *m)
{
    const struct jv *role = jv_get(m, "role");
    bool answer = jv_equals(role, "tool");
    if (!answer && r->n_unanswered)
        return refuse(r, "tool_calls must be followed by a tool message for each of them");
    if (!answer && !jv_equals(role, "system") && !jv_equals(role, "user") &&
        !jv_equals(role, "assistant") && !jv_equals(role, "latest_reminder"))
        return refuse(r, "role must be system, user, assistant, tool or latest_reminder");
    TRY(text(r, "{\"role\":"));
    TRY(jv_write(&r->out, role, true, r->err));
    TRY(answer                         ? tool(r, m)
        : jv_equals(role, "assistant") ? assistant(r, m)
                                       : write_content(r, jv_get(m, "content"), false));
    if (m == r->messages->first && jv_equals(role, "system"))
        TRY(write_tools(r));
    return text(r, "}");
}

static int write_request(struct request *r)
{
    const struct jv *first = r->messages->first, *last = r->messages->last;
    bool again = jv_equals(jv_get(last, "role"), "assistant") && !jv_truth(jv_get(last, "prefix"));
    TRY(bytes_printf(&r->out, r->err,
                     "{\"options\":{\"thinking_mode\":\"%s\",\"reasoning_effort\":\"%s\"%s%s},"
                     "\"messages\":[",
                     r->thinking ? "thinking" : "chat", r->effort,
                     again ? ",\"new_turn\":true" : "", r->forced ? ",\"open_block\":true" : ""));
    if (!jv_equals(jv_get(first, "role"), "system") && (r->tools || r->schema)) {
        TRY(text(r, "{\"role\":\"system\",\"content\":\"\""));
        TRY(write_tools(r));
        TRY(text(r, "},"));
    }
    for (const struct jv *m = first; m; m = m->next) {
        TRY(write_message(r, m));
        TRY(text(r, m->next ? "," : "]}"));
    }
    return r->n_unanswered ? refuse(r, "the last tool_calls have no tool messages") : 0;
}

static int convert(struct request *r, const struct jv *body)
{
    r->messages = jv_get(body, "messages");
    if (!jv_is(r->messages, JV_LIST) || r->messages->len == 0)
        return refuse(r, "messages must be a list that is not empty");
    TRY(read_thinking(r, body));
    TRY(read_tools(r, body));
    TRY(read_format(r, jv_get(body, "response_format")));
    return write_request(r);
}

int dsv4_request(dsv4_dialect dialect, const char *body, size_t len, char **json, dsv4_err *err)
{
    *json = NULL;
    if ((unsigned)dialect >= sizeof chat_dialects / sizeof *chat_dialects)
        return err_set(err, DSV4_USAGE, "there is no chat dialect %d", (int)dialect);
    struct jv_doc doc;
    TRY(jv_parse(&doc, body, len, "request", err));
    struct request r = {.dialect = &chat_dialects[dialect], .err = err};
    int rc = convert(&r, doc.root);
    if (rc == 0)
        *json = r.out.data;
    else
        free(r.out.data);
    free(r.joined.data);
    jv_free(&doc);
    return rc;
}
