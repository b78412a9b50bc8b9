/* Calls of tools as the dialects write them (chat-encoding, section 4), the only ones a model may
 * write: names that exist, parameters that fit. In free text (mode auto) the tag that opens a block
 * cannot be spelled in any other way than the one that the grammar follows. */
#include "grammar_schema.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_CALLS = 128, MAX_TOOLS = 1024 };

struct tools {
    struct gbuild *b;
    const struct dialect *dialect;
    struct schema *schema; /* [n]: references stay inside one tool's parameters */
    size_t n;
};

/* "<" marker TEXT */
static uint32_t tag(struct tools *k, struct schema *s, const char *open, const char *name,
                    const char *rest)
{
    struct gbuild *b = k->b;
    return g_seq(b, g_text(b, open), schema_marker(s), g_text(b, name), g_text(b, rest));
}

static uint32_t call(struct tools *k, struct schema *s, const struct jv *name,
                     const struct jv *parameters)
{
    struct gbuild *b = k->b;
    struct elements e = {0};
    uint32_t all = g_opt(b, g_text(b, "\n"));
    if (!jv_none(parameters)) {
        b->rc = schema_add(s, &e, parameters);
        all = schema_rule(s, &e, T_OBJECT, AS_PARAMETERS);
        free(e.v);
    }
    const char *call = k->dialect->tag[1];
    return g_seq(b, tag(k, s, "<", call, " name=\""), g_bytes(b, name->text, name->len),
                 g_text(b, "\">\n"), all, tag(k, s, "</", call, ">"));
}

static bool good_name(const struct jv *name)
{
    if (!jv_is(name, JV_STRING) || name->len == 0 || name->len > 256)
        return false;
    for (size_t i = 0; i < name->len; i++)
        if ((unsigned char)name->text[i] < 0x20 || strchr("\"<>", name->text[i]))
            return false;
    return true;
}

/* All tools, or the one of that name, as alternatives. */
static uint32_t all_calls(struct tools *k, const struct jv *list, const char *only)
{
    struct gbuild *b = k->b;
    struct glist calls = {0};
    size_t i = 0;
    for (const struct jv *t = list->first; t && b->rc == 0; t = t->next, i++) {
        const struct jv *function = jv_get(t, "function"), *name;
        function = jv_is(function, JV_OBJECT) ? function : t;
        name = jv_get(function, "name");
        if (!good_name(name)) {
            g_fail(b, DSV4_REFUSED, "tools: tool %zu has no proper name", i);
            break;
        }
        if (only && !jv_equals(name, only))
            continue;
        struct schema *s = &k->schema[k->n++];
        *s = (struct schema){.b = b, .what = "tools", .dialect = k->dialect};
        s->root = jv_get(function, "parameters");
        glist_add(b, &calls, call(k, s, name, s->root));
        if (b->rc == 0)
            schema_finish(s);
    }
    if (calls.n == 0)
        g_fail(b, DSV4_REFUSED,
               only ? "tools: there is no tool %.100s" : "tools: an empty list%.0s",
               only ? only : "");
    uint32_t node = b->rc == 0 ? g_list(b, G_ALT, calls.v, calls.n) : 0;
    free(calls.v);
    return node;
}

/* Any text in which no block begins. */
static uint32_t free_text(struct tools *k)
{
    struct fa f;
    if (k->b->rc != 0 || dfa_without(k->b, "<" M_DSML, &f) != 0)
        return 0;
    uint32_t node = dfa_node(k->b, &f, false);
    fa_free(&f);
    return node;
}

static uint32_t root(struct tools *k, const struct jv *list, dsv4_tool_mode mode, const char *name,
                     bool parallel)
{
    struct gbuild *b = k->b;
    struct schema *s = &k->schema[0]; /* the marker is the same in all */
    uint32_t rule = g_rule(b, "call", 4), again = 0;
    uint32_t one = all_calls(k, list, mode == DSV4_TOOLS_NAMED ? name : NULL);
    g_set_rule(b, rule, one);
    if (b->rc != 0)
        return 0;
    one = g_call(b, rule);
    again = g_repeat(b, G_COUNT, g_seq(b, g_text(b, "\n"), one), 0, parallel ? MAX_CALLS - 1 : 0);
    uint32_t open = tag(k, s, "<", k->dialect->tag[0], ">\n"),
             calls =
                 g_seq(b, one, again, g_text(b, "\n"), tag(k, s, "</", k->dialect->tag[0], ">"));
    if (mode != DSV4_TOOLS_AUTO)
        return g_seq(b, g_opt(b, g_seq(b, g_opt(b, g_text(b, "\n\n")), open)), calls);
    uint32_t text = free_text(k);
    int32_t think = dsv4_token_find(b->t, M_END_THINK);
    uint32_t answer = think < 0 ? 0 : g_seq(b, g_token(b, think), text);
    return g_seq(b, text, answer ? g_opt(b, answer) : g_empty(b), g_opt(b, g_seq(b, open, calls)));
}

int dsv4_grammar_tools(dsv4_grammar **out, const dsv4_tokenizer *t, dsv4_dialect dialect,
                       const char *tools_json, size_t len, dsv4_tool_mode mode, const char *name,
                       bool parallel, dsv4_err *err)
{
    struct gbuild b = {.t = t, .err = err};
    struct tools k = {.b = &b};
    struct jv_doc doc;
    *out = NULL;
    if ((unsigned)dialect >= sizeof chat_dialects / sizeof *chat_dialects)
        return err_set(err, DSV4_USAGE, "there is no chat dialect %d", (int)dialect);
    if ((unsigned)mode > DSV4_TOOLS_NAMED || (mode == DSV4_TOOLS_NAMED && !name))
        return err_set(err, DSV4_USAGE, "tools: a mode that does not exist, or no name");
    if (len > (size_t)4 << 20)
        return err_set(err, DSV4_REFUSED, "tools: %zu bytes; at most 4 MiB", len);
    k.dialect = &chat_dialects[dialect];
    TRY(jv_parse(&doc, tools_json, len, "tools", err));
    int rc = 0;
    if (doc.root->type != JV_LIST || doc.root->len > MAX_TOOLS)
        rc = err_set(err, DSV4_REFUSED, "tools: a list of at most %d tools is expected", MAX_TOOLS);
    if (rc == 0)
        rc = mem_alloc(&k.schema, doc.root->len + 1, sizeof *k.schema, "tools", err);
    if (rc == 0) {
        k.schema[0] = (struct schema){.b = &b, .what = "tools", .dialect = k.dialect};
        uint32_t rule = g_rule(&b, "root", 4), node = root(&k, doc.root, mode, name, parallel);
        g_set_rule(&b, rule, node);
        rc = b.rc != 0 ? b.rc : grammar_link(&b, rule, out);
    }
    for (size_t i = 0; i < k.n; i++)
        schema_free(&k.schema[i]);
    free(k.schema);
    jv_free(&doc);
    g_free(&b);
    return rc;
}
