/* What protocols have in common: bodies, models, and the way from a chat in OpenAI's words to a
 * turn. */
#include "api.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

json_t *api_body(struct exchange *x)
{
    json_t *v;
    dsv4_err err;
    struct failure f;
    if (json_read(&v, x->body.data ? x->body.data : "", x->body.len, &err) == 0) {
        if (json_is_object(v))
            return v;
        json_decref(v);
        err_set(&err, DSV4_REFUSED, "the body must be a JSON object");
    }
    fail_err(&f, &err);
    exchange_fail(x, &f);
    return NULL;
}

int api_settled(int rc, struct failure *f)
{
    return json_failed() ? fail_set(f, 503, NULL, "out of memory") : rc;
}

void api_turn(struct exchange *x, const struct shape *shape, const char *prefix,
              int (*read)(struct turn *t, struct failure *f))
{
    json_t *body = api_body(x);
    struct turn *t;
    struct failure f = {0};
    if (!body)
        return;
    int rc = turn_open(&t, x, shape, body, &f);
    json_decref(body);
    if (rc == 0) {
        snprintf(t->id, sizeof t->id, "%s%s", prefix, x->id + 4); /* behind "req_" */
        rc = api_settled(read(t, &f), &f);
    }
    if (rc != 0)
        turn_refuse(t, x, &f);
    else
        turn_go(t);
}

int api_set(json_t *object, const char *key, json_t *value)
{
    return json_object_set_new(object, key, value);
}

int api_no_memory(struct failure *f)
{
    return fail_set(f, 503, NULL, "out of memory");
}

int api_append(json_t *list, json_t *value, struct failure *f)
{
    return value && json_array_append_new(list, value) == 0 ? 0 : api_no_memory(f);
}

json_t *api_string(struct out *o)
{
    json_t *v = o->failed ? NULL : json_stringn(o->b.data ? o->b.data : "", o->b.len);
    out_free(o);
    return v;
}

int api_add_function(json_t *list, json_t *name, json_t *parameters, json_t *description,
                     struct failure *f)
{
    json_t *fn = json_pack("{s:O, s:O*, s:O*}", "name", name, "parameters", parameters,
                           "description", description);
    return fn ? api_append(list, json_pack("{s:s, s:o}", "type", "function", "function", fn), f)
              : api_no_memory(f);
}

bool api_is(const json_t *object, const char *key, const char *value)
{
    const char *v = json_string_value(json_object_get(object, key));
    return v && strcmp(v, value) == 0;
}

int api_model(struct server *s, const char *name, struct failure *f)
{
    if (!name || strcmp(name, s->opt->model_name) == 0 || strcmp(name, "default") == 0)
        return 0;
    for (size_t i = 0; i < s->opt->n_aliases; i++)
        if (strcmp(s->opt->aliases[i], "*") == 0 || strcmp(s->opt->aliases[i], name) == 0)
            return 0;
    fail_set(f, 404, "model", "there is no model %.100s here; it is %.100s (or: default)", name,
             s->opt->model_name);
    f->code = "model_not_found";
    return -1;
}

uint64_t api_seed(void)
{
    uint64_t seed = 0;
    if (getentropy(&seed, sizeof seed) != 0)
        seed = (uint64_t)(clock_seconds() * 1e9);
    return seed >> 11;
}

struct turn_sampling api_sampling(const struct server *s)
{
    struct turn_sampling t = {.sampling = s->sampling};
    t.sampling.seed = api_seed();
    return t;
}

/* ------------------------------------------------------------------ chats */

static int constrain_json(struct turn *t, const json_t *schema, struct failure *f)
{
    struct out o = {0};
    if (schema)
        out_json(&o, schema);
    if (o.failed) {
        out_free(&o);
        return fail_set(f, 503, NULL, "out of memory");
    }
    struct grammar_want w = {
        .kind = GRAMMAR_JSON, .text = o.b.data ? o.b.data : "", .len = o.b.len};
    int rc = turn_constrain(t, &w, "response_format", f);
    out_free(&o);
    return rc;
}

static int constrain_tools(struct turn *t, const struct chat_words *w, bool forced,
                           struct failure *f)
{
    struct out o = {0};
    out_json(&o, w->tools);
    struct grammar_want g = {.kind = GRAMMAR_TOOLS,
                             .text = o.b.data,
                             .len = o.b.len,
                             .choice = DSV4_TOOLS_AUTO,
                             .parallel = w->parallel};
    const json_t *name = json_object_get(json_object_get(w->tool_choice, "function"), "name");
    if (forced)
        g.choice = json_is_object(w->tool_choice) ? DSV4_TOOLS_NAMED : DSV4_TOOLS_REQUIRED;
    g.name = json_string_value(name);
    t->options.grammar_thinks = true;
    int rc = o.failed ? fail_set(f, 503, NULL, "out of memory") : turn_constrain(t, &g, "tools", f);
    out_free(&o);
    return rc;
}

static bool thinks(const json_t *chat)
{
    return !api_is(json_object_get(chat, "thinking"), "type", "disabled") &&
           !api_is(chat, "reasoning_effort", "none");
}

/* A tool cannot be forced while the model thinks: who forces one and did not ask for reasoning gets
 * none. */
static int settle_thinking(json_t *chat, bool forced, struct failure *f)
{
    bool asked = api_is(json_object_get(chat, "thinking"), "type", "enabled") ||
                 (json_object_get(chat, "reasoning_effort") && thinks(chat));
    if (!forced || !thinks(chat))
        return 0;
    if (asked)
        return fail_set(f, 400, "tool_choice",
                        "a tool cannot be forced (tool_choice) while the model thinks");
    return api_set(chat, "thinking", json_pack("{s:s}", "type", "disabled")) == 0
               ? 0
               : fail_set(f, 503, NULL, "out of memory");
}

static int settle_format(struct turn *t, const struct chat_words *w, struct failure *f)
{
    const json_t *schema = json_object_get(json_object_get(w->format, "json_schema"), "schema");
    if (api_is(w->format, "type", "json_schema"))
        return schema ? constrain_json(t, schema, f)
                      : fail_set(f, 400, "response_format", "response_format without a schema");
    if (api_is(w->format, "type", "json_object"))
        return constrain_json(t, NULL, f);
    return 0;
}

int api_chat(struct turn *t, json_t *chat, const struct chat_words *w, struct failure *f)
{
    bool none =
        json_is_string(w->tool_choice) && strcmp(json_string_value(w->tool_choice), "none") == 0;
    bool tools = json_array_size(w->tools) > 0 && !none;
    bool forced =
        tools && w->tool_choice && !json_is_null(w->tool_choice) &&
        !(json_is_string(w->tool_choice) && strcmp(json_string_value(w->tool_choice), "auto") == 0);
    bool format = w->format && !api_is(w->format, "type", "text");
    if (tools && (format || w->grammar))
        return fail_set(
            f, 400, format ? "response_format" : "grammar",
            "tools and a form of the answer exclude each other (tool_choice none would do)");
    if (w->tool_choice && !json_is_null(w->tool_choice) && !tools && !none &&
        !(json_is_string(w->tool_choice) && strcmp(json_string_value(w->tool_choice), "auto") == 0))
        return fail_set(f, 400, "tool_choice", "tool_choice without tools");
    if (settle_thinking(chat, forced, f) != 0)
        return -1;
    t->options.thinking = thinks(chat);
    t->options.tools = true; /* a call that nobody offered is not shown as text with tags either */
    t->options.in_block = forced;
    t->options.parallel = w->parallel;
    if (w->budget > 0)
        t->options.budget = (size_t)w->budget;
    if (turn_tools(t, tools ? w->tools : NULL, f) != 0 ||
        (tools && constrain_tools(t, w, forced, f) != 0))
        return -1;
    if (settle_format(t, w, f) != 0)
        return -1;
    if (!w->grammar)
        return 0;
    struct grammar_want g = {.kind = GRAMMAR_GBNF, .text = w->grammar, .len = strlen(w->grammar)};
    return turn_constrain(t, &g, "grammar", f);
}

/* ------------------------------------------------------------------ events */

void sse_begin(struct turn *t, const char *event)
{
    if (event) {
        out_text(&t->out, "event: ");
        out_text(&t->out, event);
        out_text(&t->out, "\n");
    }
    out_text(&t->out, "data: ");
}

void sse_end(struct turn *t)
{
    out_text(&t->out, "\n\n");
}
