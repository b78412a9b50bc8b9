/* Strings of a JSON Schema. Length alone is counted by the matcher; patterns and formats become one
 * automaton of the string itself, which then is written as JSON or as the text of a parameter. */
#include "grammar_schema.h"

#include <stdlib.h>
#include <string.h>

/* In calls no JSON string may spell the tag that ends a parameter; it has this character in it,
 * which can be written \uff5c. */
#define BAR 0xFF5C

uint32_t schema_space(struct schema *s)
{
    struct gbuild *b = s->b;
    static const struct grange blank[] = {{'\t', '\t'}, {' ', ' '}};
    /* Bounded: models lose themselves in white space. */
    if (s->space == 0)
        s->space = g_alt(
            b, g_empty(b), g_text(b, " "),
            g_seq(b, g_text(b, "\n"), g_repeat(b, G_REPEAT, g_class(b, blank, 2, false), 0, 20)));
    return s->space;
}

uint32_t schema_marker(struct schema *s)
{
    if (s->dsml == 0) {
        int32_t id = dsv4_token_find(s->b->t, M_DSML);
        s->dsml = id >= 0 ? g_token(s->b, id) : g_text(s->b, M_DSML);
    }
    return s->dsml;
}

uint32_t schema_quoted(struct schema *s, const char *text, size_t len)
{
    struct bytes out = {0};
    struct gbuild *b = s->b;
    if (b->rc == 0)
        b->rc = jv_write_string(&out, text, len, b->err);
    uint32_t node = b->rc == 0 ? g_bytes(b, out.data, out.len) : 0;
    free(out.data);
    return node;
}

/* One character between the quotes of a JSON string. */
static uint32_t json_character(struct schema *s)
{
    static const struct grange plain[] = {{0, 0x1F}, {'"', '"'}, {'\\', '\\'}, {BAR, BAR}},
                               letter[] = {{'"', '"'}, {'/', '/'}, {'\\', '\\'}, {'b', 'b'},
                                           {'f', 'f'}, {'n', 'n'}, {'r', 'r'},   {'t', 't'}},
                               hex[] = {{'0', '9'}, {'A', 'F'}, {'a', 'f'}},
                               not_d[] = {{'0', '9'},
                                          {'A', 'C'},
                                          {'E', 'F'},
                                          {'a', 'c'},
                                          {'e', 'f'}},
                               d[] = {{'D', 'D'}, {'d', 'd'}},
                               high[] = {{'8', '9'}, {'A', 'B'}, {'a', 'b'}},
                               low[] = {{'C', 'F'}, {'c', 'f'}};
    struct gbuild *b = s->b;
    if (s->character)
        return s->character;
    uint32_t h = g_class(b, hex, 3, false), dd = g_class(b, d, 2, false),
             h2 = g_repeat(b, G_REPEAT, h, 2, 2);
    uint32_t unit = g_alt(b, g_seq(b, g_class(b, not_d, 5, false), g_repeat(b, G_REPEAT, h, 3, 3)),
                          g_seq(b, dd, g_range(b, '0', '7'), h2),
                          g_seq(b, dd, g_class(b, high, 3, false), h2, g_text(b, "\\u"), dd,
                                g_class(b, low, 2, false), h2));
    s->character =
        g_alt(b, g_class(b, plain, s->dialect ? 4 : 3, true),
              g_seq(b, g_text(b, "\\"),
                    g_alt(b, g_class(b, letter, 8, false), g_seq(b, g_text(b, "u"), unit))));
    return s->character;
}

uint32_t schema_any_string(struct schema *s)
{
    struct gbuild *b = s->b;
    if (s->string == 0) {
        uint32_t rule = g_rule(b, "string", 6), quote = g_text(b, "\"");
        g_set_rule(b, rule,
                   g_seq(b, quote, g_repeat(b, G_REPEAT, json_character(s), 0, G_INF), quote));
        s->string = g_call(b, rule);
    }
    return s->string;
}

/* A parameter's text: anything that does not end it. */
static uint32_t any_text(struct schema *s)
{
    struct gbuild *b = s->b;
    if (s->text == 0 && b->rc == 0) {
        struct fa f;
        if (dfa_without(b, "</" M_DSML, &f) != 0)
            return 0;
        uint32_t rule = g_rule(b, "text", 4);
        g_set_rule(b, rule, dfa_node(b, &f, false));
        s->text = g_call(b, rule);
        fa_free(&f);
    }
    return s->text;
}

/* ------------------------------------------------------------------ lengths and patterns */

int schema_count(struct schema *s, const struct jv *v, uint32_t *out)
{
    uint64_t n = 0;
    size_t i = 0;
    for (; i < v->len && v->type == JV_NUMBER && v->text[i] >= '0' && v->text[i] <= '9'; i++)
        n = n < G_INF ? 10 * n + (uint64_t)(v->text[i] - '0') : n;
    if (v->type == JV_NUMBER && i > 0 && v->len - i > 1 && v->text[i] == '.') /* 3.0 is 3 */
        for (i++; i < v->len && v->text[i] == '0'; i++)
            ;
    if (v->type != JV_NUMBER || i != v->len || i == 0)
        return schema_refuse(s, v, "must be a whole number, 0 or more");
    *out = n < G_INF ? (uint32_t)n : G_INF - 1;
    return 0;
}

struct asked {
    uint32_t min, max;
    struct fa fa; /* of all patterns */
    bool patterns;
};

static int add_pattern(struct schema *s, struct asked *a, const struct jv *v, const char *pattern,
                       size_t len)
{
    char place[300];
    struct gbuild *b = s->b;
    struct fa one, all;
    schema_place(s, v, place, sizeof place);
    uint32_t node = g_pattern(b, pattern, len, place);
    TRY(b->rc);
    TRY(fa_build(b, node, true, &one));
    if (!a->patterns) {
        a->fa = one;
    } else {
        int rc = dfa_combine(b, &a->fa, &one, DFA_AND, &all);
        fa_free(&a->fa);
        fa_free(&one);
        TRY(rc);
        a->fa = all;
    }
    a->patterns = true;
    return 0;
}

static int ask(struct schema *s, struct asked *a, const struct jv *v)
{
    uint32_t n;
    if (schema_is(v, "minLength")) {
        TRY(schema_count(s, v, &n));
        a->min = n > a->min ? n : a->min;
    } else if (schema_is(v, "maxLength")) {
        TRY(schema_count(s, v, &n));
        a->max = n < a->max ? n : a->max;
    } else if (schema_is(v, "pattern")) {
        if (v->type != JV_STRING)
            return schema_refuse(s, v, "must be a string");
        TRY(add_pattern(s, a, v, v->text, v->len));
    } else if (schema_is(v, "format") && v->type == JV_STRING) {
        const char *pattern = format_pattern(v->text, v->len);
        if (pattern)
            TRY(add_pattern(s, a, v, pattern, strlen(pattern)));
    }
    return 0;
}

static int ask_all(struct schema *s, struct asked *a, const struct element *e, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (const struct jv *v = element_schema(e[i])->first; v; v = v->next)
            TRY(ask(s, a, v));
    return 0;
}

/* Replaces *f by another automaton; frees both on failure. */
static int replace(struct fa *f, int rc, const struct fa *other)
{
    fa_free(f);
    if (rc == 0)
        *f = *other;
    return rc;
}

static int flatten(struct schema *s, struct asked *a)
{
    struct gbuild *b = s->b;
    struct fa next = {0};
    if (!a->patterns) {
        uint32_t any = g_repeat(b, G_REPEAT, g_class(b, NULL, 0, true), 0, G_INF);
        TRY(b->rc != 0 ? b->rc : fa_build(b, any, true, &a->fa));
        a->patterns = true;
    }
    if (a->min > 0 || a->max != G_INF)
        TRY(replace(&a->fa, dfa_limit(b, &a->fa, a->min, a->max, &next), &next));
    return 0;
}

int schema_string_fa(struct schema *s, const struct element *e, size_t n, bool *plain,
                     struct fa *out)
{
    struct asked a = {.max = G_INF};
    *out = (struct fa){0};
    int rc = ask_all(s, &a, e, n);
    *plain = rc == 0 && !a.patterns && a.min == 0 && a.max == G_INF;
    if (rc == 0 && !*plain)
        rc = flatten(s, &a);
    if (rc != 0)
        fa_free(&a.fa);
    *out = a.fa;
    return rc;
}

static uint32_t with_pattern(struct schema *s, struct asked *a, enum written w)
{
    struct gbuild *b = s->b;
    struct fa without, next = {0};
    b->rc = flatten(s, a);
    if (s->dialect && b->rc == 0 && dfa_without(b, "</" M_DSML, &without) == 0) {
        b->rc = replace(&a->fa, dfa_combine(b, &a->fa, &without, DFA_AND, &next), &next);
        fa_free(&without);
    }
    if (b->rc != 0)
        return 0;
    uint32_t node = dfa_node(b, &a->fa, w == AS_JSON), quote = g_text(b, "\"");
    return w == AS_JSON ? g_seq(b, quote, node, quote) : node;
}

uint32_t schema_string(struct schema *s, const struct element *e, size_t n, enum written w)
{
    static const struct grange bar[] = {{BAR, BAR}};
    struct gbuild *b = s->b;
    struct asked a = {.max = G_INF};
    uint32_t node = 0;
    if (b->rc == 0)
        b->rc = ask_all(s, &a, e, n);
    if (b->rc != 0 || a.min > a.max) {
        node = 0;
    } else if (a.patterns) {
        node = with_pattern(s, &a, w);
    } else if (a.min == 0 && a.max == G_INF) {
        node = w == AS_JSON ? schema_any_string(s) : any_text(s);
    } else if (w == AS_JSON) {
        uint32_t quote = g_text(b, "\"");
        node = g_seq(b, quote, g_repeat(b, G_COUNT, json_character(s), a.min, a.max), quote);
    } else {
        node = g_repeat(b, G_COUNT, g_class(b, bar, 1, true), a.min, a.max);
    }
    fa_free(&a.fa);
    return node;
}
