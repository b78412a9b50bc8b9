/* Writes prepared messages as the prompt text (chat-encoding, sections 4 to 7).
 *
 * Text reaches the prompt through two doors. ours() takes literals of this file: markers in them
 * become control spans. theirs() takes everything that came from a message: whatever it contains, it
 * never makes a span, so that the tokenizer sees ordinary characters. */
#include "chat_inner.h"

#include <stdio.h>
#include <string.h>

/* Stand for the dialect's tag names in literals. */
#define BLOCK "\1"
#define CALL  "\2"
#define PARAM "\3"

static const char *const markers[] = {
    M_BOS,
    M_EOS,
    M_USER,
    M_ASSISTANT,
    M_SYSTEM,
    M_REMINDER,
    M_THINK,
    M_END_THINK,
    M_DSML,
    M_IMAGE,
    "<｜action｜>",
    "<｜query｜>",
    "<｜authority｜>",
    "<｜domain｜>",
    "<｜title｜>",
    "<｜read_url｜>",
};

static size_t marker_at(const char *p)
{
    if (*p != '<' && *p != M_DSML[0])
        return 0;
    for (size_t i = 0; i < sizeof markers / sizeof *markers; i++) {
        size_t n = strlen(markers[i]);
        if (strncmp(p, markers[i], n) == 0)
            return n;
    }
    return 0;
}

static int add_span(struct chat *c, const char *marker, size_t len, dsv4_err *err)
{
    TRY(mem_grow(&c->spans, &c->cap_spans, c->n_spans + 1, sizeof *c->spans, "control spans", err));
    TRY(bytes_add(&c->text, marker, len, err));
    c->spans[c->n_spans++] = (dsv4_span){c->text.len - len, c->text.len};
    return 0;
}

static int ours(struct chat *c, const char *literal, dsv4_err *err)
{
    for (const char *p = literal, *run = p;; p++) {
        size_t n = marker_at(p);
        bool tag = *p >= 1 && *p <= 3;
        if (*p && !tag && n == 0)
            continue;
        TRY(bytes_add(&c->text, run, (size_t)(p - run), err));
        if (!*p)
            return 0;
        if (tag)
            TRY(bytes_text(&c->text, c->dialect->tag[*p - 1], err));
        else
            TRY(add_span(c, p, n, err));
        p += tag ? 0 : n - 1;
        run = p + 1;
    }
}

static int theirs(struct chat *c, const struct jv *string, dsv4_err *err)
{
    return string ? bytes_add(&c->text, string->text, string->len, err) : 0;
}

/* ------------------------------------------------------------------ contents */

/* [Unsupported TYPE] */
static int unsupported(struct chat *c, const struct message *m, const struct jv *type,
                       dsv4_err *err)
{
    if (!jv_is(type, JV_STRING))
        return chat_refuse(m, err, "a content block without a type");
    TRY(bytes_text(&c->text, "[Unsupported ", err));
    TRY(theirs(c, type, err));
    return bytes_text(&c->text, "]", err);
}

static int text_part(struct chat *c, const struct message *m, const struct jv *text, dsv4_err *err)
{
    if (text && text->type != JV_STRING)
        return chat_refuse(m, err, "the text of a content block must be a string");
    return theirs(c, text, err);
}

/* The parts of a content list joined by blank lines; other parts than texts and images (V4.1) vanish
 * or are named. */
static int parts(struct chat *c, const struct message *m, const struct jv *list, bool texts_only,
                 dsv4_err *err)
{
    bool later = false;
    for (const struct jv *p = list->first; p; p = p->next) {
        enum block_kind kind = chat_kind(p);
        bool known = kind == BLOCK_TEXT || (kind == BLOCK_IMAGE && c->dialect->v41);
        if (!known && texts_only)
            continue;
        if (later)
            TRY(bytes_text(&c->text, "\n\n", err));
        later = true;
        if (!known)
            TRY(unsupported(c, m, jv_get(p, "type"), err));
        else if (kind == BLOCK_IMAGE)
            TRY(ours(c, M_IMAGE, err));
        else
            TRY(text_part(c, m, jv_get(p, "text"), err));
    }
    return 0;
}

static int result(struct chat *c, const struct message *m, const struct block *b, dsv4_err *err)
{
    TRY(bytes_text(&c->text, "<tool_result>", err));
    if (jv_is(b->value, JV_LIST))
        TRY(parts(c, m, b->value, b->texts_only, err));
    else if (!b->value || b->value->type == JV_STRING)
        TRY(theirs(c, b->value, err));
    else
        return chat_refuse(m, err, "the content of a tool result must be text or a list of blocks");
    return bytes_text(&c->text, "</tool_result>", err);
}

static int user(struct chat *c, const struct message *m, dsv4_err *err)
{
    TRY(ours(c, M_USER, err));
    for (size_t i = 0; i < m->n_blocks; i++) {
        const struct block *b = &c->blocks[m->block + i];
        if (i > 0)
            TRY(bytes_text(&c->text, "\n\n", err));
        switch (b->kind) {
        case BLOCK_TEXT: TRY(text_part(c, m, b->value, err)); break;
        case BLOCK_IMAGE: TRY(ours(c, M_IMAGE, err)); break;
        case BLOCK_RESULT: TRY(result(c, m, b, err)); break;
        case BLOCK_OTHER: TRY(unsupported(c, m, b->value, err)); break;
        }
    }
    return 0;
}

/* Content of the other roles: text, in V4.1 also blocks; nothing counts as empty where `optional`. */
static int content(struct chat *c, const struct message *m, bool optional, dsv4_err *err)
{
    const struct jv *v = jv_get(m->given, "content");
    if (jv_is(v, JV_STRING))
        return theirs(c, v, err);
    const struct jv *list = c->dialect->v41 ? chat_content_list(m->given) : NULL;
    if (list)
        return parts(c, m, list, true, err);
    if (jv_none(v) && optional)
        return 0;
    return chat_refuse(m, err, "content must be text%s",
                       c->dialect->v41 ? " or a list of blocks" : "");
}

/* ------------------------------------------------------------------ tools */

static const char tools_before[] =
    "## Tools\n\n"
    "You have access to a set of tools to help answer the user's question. You can invoke tools by "
    "writing a \"<" M_DSML BLOCK ">\" block like the following:\n\n"
    "<" M_DSML BLOCK ">\n"
    "<" M_DSML CALL " name=\"$TOOL_NAME\">\n"
    "<" M_DSML PARAM
    " name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE</" M_DSML PARAM ">\n"
    "...\n"
    "</" M_DSML CALL ">\n"
    "<" M_DSML CALL " name=\"$TOOL_NAME2\">\n"
    "...\n"
    "</" M_DSML CALL ">\n"
    "</" M_DSML BLOCK ">\n\n"
    "String parameters should be specified as is and set `string=\"true\"`. For all other types "
    "(numbers, booleans, arrays, objects), pass the value in JSON format and set "
    "`string=\"false\"`.\n\n"
    "If thinking_mode is enabled (triggered by " M_THINK
    "), you MUST output your complete reasoning "
    "inside " M_THINK "..." M_END_THINK " BEFORE any tool calls or final response.\n\n"
    "Otherwise, output directly after " M_END_THINK " with tool calls or final response.\n\n"
    "### Available Tool Schemas\n\n";

static const char tools_after[] =
    "\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool "
    "calls.\n";

static int tools(struct chat *c, const struct message *m, dsv4_err *err)
{
    const struct jv *list = jv_get(m->given, "tools");
    if (!jv_truth(list))
        return 0;
    if (list->type != JV_LIST)
        return chat_refuse(m, err, "tools must be a list");
    TRY(bytes_text(&c->text, "\n\n", err));
    TRY(ours(c, tools_before, err));
    for (const struct jv *t = list->first; t; t = t->next) {
        const struct jv *function = jv_get(t, "function");
        if (!jv_is(function, JV_OBJECT))
            return chat_refuse(m, err, "a tool without a function");
        if (t != list->first)
            TRY(bytes_text(&c->text, "\n", err));
        TRY(jv_write(&c->text, function, false, err));
    }
    return ours(c, tools_after, err);
}

static int response_format(struct chat *c, const struct message *m, dsv4_err *err)
{
    const struct jv *format = jv_get(m->given, "response_format");
    if (!jv_truth(format))
        return 0;
    TRY(bytes_text(&c->text,
                   "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to "
                   "reply:\n",
                   err));
    return jv_write(&c->text, format, false, err);
}

static int parameter(struct chat *c, const char *key, size_t key_len, const struct jv *value,
                     dsv4_err *err)
{
    bool string = value->type == JV_STRING;
    TRY(ours(c, "<" M_DSML PARAM " name=\"", err));
    TRY(bytes_add(&c->text, key, key_len, err));
    TRY(ours(c, string ? "\" string=\"true\">" : "\" string=\"false\">", err));
    TRY(string ? theirs(c, value, err) : jv_write(&c->text, value, false, err));
    return ours(c, "</" M_DSML PARAM ">", err);
}

static int parameters(struct chat *c, const struct jv *object, dsv4_err *err)
{
    for (const struct jv *v = object->first; v; v = v->next) {
        TRY(parameter(c, v->key, v->key_len, v, err));
        if (v->next)
            TRY(bytes_text(&c->text, "\n", err));
    }
    return 0;
}

/* The arguments are JSON text. V4.1 decodes text in text once more, and anything but an object goes
 * out as one parameter with the text as it was; so does text that is no JSON, in both families. */
static int arguments(struct chat *c, const struct message *m, const struct jv *given, dsv4_err *err)
{
    bool v41 = c->dialect->v41;
    if (v41 && jv_is(given, JV_OBJECT))
        return parameters(c, given, err);
    if (!jv_is(given, JV_STRING))
        return chat_refuse(m, err, "the arguments of a tool call must be JSON text");
    dsv4_err why;
    struct jv_doc outer, inner = {0};
    int rc = jv_parse(&outer, given->text, given->len, "arguments", &why);
    if (rc == 0 && v41 && outer.root->type == JV_STRING)
        rc = jv_parse(&inner, outer.root->text, outer.root->len, "arguments", &why);
    const struct jv *value = inner.root ? inner.root : outer.root;
    if (rc == 0 && value->type == JV_OBJECT)
        rc = parameters(c, value, err);
    else if (rc == 0 && !v41)
        rc = chat_refuse(m, err, "the arguments of a tool call must be a JSON object");
    else if (rc == 0 || rc == DSV4_REFUSED)
        rc = parameter(c, "arguments", strlen("arguments"), given, err);
    else
        rc = err_set(err, rc, "%s", why.text);
    jv_free(&inner);
    jv_free(&outer);
    return rc;
}

static int calls(struct chat *c, const struct message *m, dsv4_err *err)
{
    const struct jv *list = jv_get(m->given, "tool_calls");
    if (!jv_truth(list))
        return 0;
    if (list->type != JV_LIST)
        return chat_refuse(m, err, "tool_calls must be a list");
    TRY(ours(c, "\n\n<" M_DSML BLOCK ">\n", err));
    for (const struct jv *call = list->first; call; call = call->next) {
        const struct jv *function = jv_get(call, "function"), *name = jv_get(function, "name");
        if (!jv_is(name, JV_STRING))
            return chat_refuse(m, err, "a tool call without a name");
        if (!jv_get(function, "arguments"))
            return chat_refuse(m, err, "a tool call without arguments");
        TRY(ours(c, "<" M_DSML CALL " name=\"", err));
        TRY(theirs(c, name, err));
        TRY(bytes_text(&c->text, "\">\n", err));
        TRY(arguments(c, m, jv_get(function, "arguments"), err));
        TRY(ours(c, "\n</" M_DSML CALL ">\n", err));
    }
    return ours(c, "</" M_DSML BLOCK ">", err);
}

/* ------------------------------------------------------------------ messages */

static int system_message(struct chat *c, const struct message *m, dsv4_err *err)
{
    TRY(content(c, m, true, err));
    TRY(tools(c, m, err));
    return response_format(c, m, err);
}

static int developer(struct chat *c, const struct message *m, dsv4_err *err)
{
    if (!jv_truth(jv_get(m->given, "content")))
        return chat_refuse(m, err, "a developer message without content");
    TRY(ours(c, M_USER, err));
    return system_message(c, m, err);
}

static int assistant(struct chat *c, const struct message *m, dsv4_err *err)
{
    size_t i = (size_t)(m - c->messages);
    bool after_task = i > 0 && c->messages[i - 1].task;
    bool recent = !c->drop_thinking || c->last_user == c->n || i > c->last_user;
    const struct jv *reasoning = jv_get(m->given, "reasoning_content");
    if (!jv_none(reasoning) && reasoning->type != JV_STRING)
        return chat_refuse(m, err, "reasoning_content must be text");
    if (c->thinking && !after_task && recent) {
        if (!jv_none(reasoning))
            TRY(theirs(c, reasoning, err));
        TRY(ours(c, M_END_THINK, err));
    }
    TRY(content(c, m, true, err));
    TRY(calls(c, m, err));
    return jv_truth(jv_get(m->given, "wo_eos")) ? 0 : ours(c, M_EOS, err);
}

/* Effort and system markers before a message. */
static int opening(struct chat *c, size_t i, dsv4_err *err)
{
    bool effort = i == 0 && c->thinking, v41 = c->dialect->v41;
    if (v41 && (effort || c->messages[i].role == ROLE_SYSTEM))
        TRY(ours(c, M_SYSTEM, err));
    if (effort && v41)
        TRY(bytes_printf(
            &c->text, err,
            "Reasoning Effort: %d (range 1-100, the higher the value, the more thorough "
            "the reasoning)\n\n",
            c->effort.percent));
    return effort && !v41 ? ours(c, c->effort.text, err) : 0;
}

static int body(struct chat *c, const struct message *m, dsv4_err *err)
{
    switch (m->role) {
    case ROLE_SYSTEM: return system_message(c, m, err);
    case ROLE_DEVELOPER: return developer(c, m, err);
    case ROLE_USER: return user(c, m, err);
    case ROLE_ASSISTANT: return assistant(c, m, err);
    case ROLE_REMINDER: TRY(ours(c, M_REMINDER, err)); return content(c, m, false, err);
    case ROLE_TOOL:
    case ROLE_UNKNOWN: break;
    }
    const struct jv *role = jv_get(m->given, "role");
    if (!jv_is(role, JV_STRING))
        return chat_refuse(m, err, "no role");
    return chat_refuse(m, err, "unknown role %.*s", chat_shown(role), role->text);
}

static int task_header(struct chat *c, const struct message *m, dsv4_err *err)
{
    static const struct {
        const char *name, *marker;
    } tasks[] = {{"action", "<｜action｜>"},       {"query", "<｜query｜>"},
                 {"authority", "<｜authority｜>"}, {"domain", "<｜domain｜>"},
                 {"title", "<｜title｜>"},         {"read_url", "<｜read_url｜>"}};
    for (size_t i = 0; i < sizeof tasks / sizeof *tasks; i++) {
        if (!jv_equals(m->task, tasks[i].name))
            continue;
        if (i == 0) {
            TRY(ours(c, M_ASSISTANT, err));
            TRY(ours(c, c->thinking ? M_THINK : M_END_THINK, err));
        }
        return ours(c, tasks[i].marker, err);
    }
    return chat_refuse(
        m, err, "unknown task; expected action, query, authority, domain, title or read_url");
}

/* What lets the model speak, after the last message and before what it said or is reminded of. */
static int header(struct chat *c, size_t i, dsv4_err *err)
{
    const struct message *m = &c->messages[i];
    if (i + 1 < c->n && m[1].role != ROLE_ASSISTANT && m[1].role != ROLE_REMINDER)
        return 0;
    if (m->task)
        return task_header(c, m, err);
    if (m->role != ROLE_USER && m->role != ROLE_DEVELOPER &&
        !(c->dialect->v41 && m->role == ROLE_SYSTEM && i > 0))
        return 0;
    bool think = c->thinking && (!c->drop_thinking || i >= c->last_user);
    TRY(ours(c, M_ASSISTANT, err));
    return ours(c, think ? M_THINK : M_END_THINK, err);
}

/* What a server may ask for at the end (section 10). */
static int ending(struct chat *c, dsv4_err *err)
{
    const struct message *last = c->n > c->n_context ? &c->messages[c->n - 1] : NULL;
    if (c->new_turn && last && last->role == ROLE_ASSISTANT &&
        !jv_truth(jv_get(last->given, "wo_eos"))) {
        TRY(ours(c, M_ASSISTANT, err));
        TRY(ours(c, c->thinking ? M_THINK : M_END_THINK, err));
    }
    return c->open_block ? ours(c, "\n\n<" M_DSML BLOCK ">\n", err) : 0;
}

int chat_render(struct chat *c, dsv4_err *err)
{
    TRY(ours(c, c->bos ? M_BOS : "", err));
    for (size_t i = c->n_context; i < c->n; i++) {
        TRY(opening(c, i, err));
        TRY(body(c, &c->messages[i], err));
        TRY(header(c, i, err));
    }
    return ending(c, err);
}
