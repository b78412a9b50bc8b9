/* Objects and lists of a JSON Schema as graphs. Properties come in the order in which the schema
 * names them, optional ones may be left out, then come additional ones; how many there are is
 * counted as far as it matters. */
#include "grammar_schema.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_COUNTED = 4096, MAX_PROPERTIES = 20000 };

struct property {
    const char *key;
    size_t len;
    bool required, never;
    uint32_t member; /* name and value */
};

struct object {
    struct schema *s;
    const struct element *e;
    size_t n;
    enum written written;
    struct property *property;
    size_t n_properties, cap_properties;
    struct slots slots; /* of the properties */
    uint32_t min, max;
    bool closed;        /* no other properties than those named, unless the schema says so */
    struct glist extra; /* members: one for each kind of additional property */
    struct garcs arcs;
};

/* ------------------------------------------------------------------ the properties */

static int add_property(struct object *o, const struct jv *at, const char *key, size_t len,
                        bool required)
{
    dsv4_err *err = o->s->b->err;
    uint64_t h = bytes_hash(key, len);
    size_t place = SLOTS_BEGIN;
    TRY(slots_room(&o->slots, "a schema", err));
    for (uint32_t i; (i = slots_next(&o->slots, h, &place)) != SLOTS_NONE;) {
        struct property *p = &o->property[i];
        if (p->len == len && (len == 0 || memcmp(p->key, key, len) == 0)) {
            p->required = p->required || required;
            return 0;
        }
    }
    if (o->n_properties >= MAX_PROPERTIES)
        return schema_refuse(o->s, at, "has too many properties");
    TRY(mem_grow(&o->property, &o->cap_properties, o->n_properties + 1, sizeof *o->property,
                 "a schema", err));
    o->property[o->n_properties++] =
        (struct property){.key = key, .len = len, .required = required};
    slots_put(&o->slots, place, h, (uint32_t)o->n_properties - 1);
    return 0;
}

static int read_keyword(struct object *o, const struct jv *v, bool required)
{
    uint32_t n;
    if (schema_is(v, "properties")) {
        if (v->type != JV_OBJECT)
            return schema_refuse(o->s, v, "must be an object");
        o->closed = true;
        for (const struct jv *p = v->first; p && !required; p = p->next)
            TRY(add_property(o, p, p->key, p->key_len, false));
    } else if (schema_is(v, "required") && required) {
        if (v->type != JV_LIST)
            return schema_refuse(o->s, v, "must be a list of names");
        for (const struct jv *p = v->first; p; p = p->next) {
            if (p->type != JV_STRING)
                return schema_refuse(o->s, p, "must be a name");
            TRY(add_property(o, p, p->text, p->len, true));
        }
    } else if (schema_is(v, "minProperties")) {
        TRY(schema_count(o->s, v, &n));
        o->min = n > o->min ? n : o->min;
    } else if (schema_is(v, "maxProperties")) {
        TRY(schema_count(o->s, v, &n));
        o->max = n < o->max ? n : o->max;
    }
    return 0;
}

/* Names in the order of `properties`; those that are only required come behind. */
static int read_keywords(struct object *o)
{
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < o->n; i++)
            for (const struct jv *v = element_schema(o->e[i])->first; v; v = v->next)
                TRY(read_keyword(o, v, pass == 1));
    return 0;
}

/* A pattern as an automaton of names. */
static int pattern_fa(struct schema *s, const struct jv *member, struct fa *out)
{
    char place[300];
    schema_place(s, member, place, sizeof place);
    uint32_t node = g_pattern(s->b, member->key, member->key_len, place);
    return s->b->rc != 0 ? s->b->rc : fa_build(s->b, node, true, out);
}

static int pattern_fits(struct schema *s, const struct jv *member, const char *key, size_t len,
                        bool *fits)
{
    struct fa f;
    TRY(pattern_fa(s, member, &f));
    *fits = dfa_match(&f, key, len);
    fa_free(&f);
    return 0;
}

static const struct jv *named(const struct jv *list, const char *key, size_t len)
{
    for (const struct jv *v = jv_is(list, JV_OBJECT) ? list->first : NULL; v; v = v->next)
        if (v->key_len == len && (len == 0 || memcmp(v->key, key, len) == 0))
            return v;
    return NULL;
}

/* What one schema says about the property: under its name, its patterns, or as an additional one.
 * *known: by one of the first two. */
static int schemas_of_one(struct object *o, const struct jv *schema, const struct property *p,
                          struct elements *out, bool *known)
{
    const struct jv *v = named(jv_get(schema, "properties"), p->key, p->len),
                    *patterns = jv_get(schema, "patternProperties"),
                    *rest = jv_get(schema, "additionalProperties");
    bool here = v != NULL, fits;
    if (v)
        TRY(schema_add(o->s, out, v));
    for (v = jv_is(patterns, JV_OBJECT) ? patterns->first : NULL; v; v = v->next) {
        TRY(pattern_fits(o->s, v, p->key, p->len, &fits));
        if (fits)
            TRY(schema_add(o->s, out, v));
        here = here || fits;
    }
    if (!here && rest)
        TRY(schema_add(o->s, out, rest));
    *known = *known || here || rest;
    return 0;
}

/* Whether propertyNames lets a name through. */
static int name_fits(struct object *o, const char *key, size_t len, bool *fits)
{
    *fits = true;
    for (size_t i = 0; i < o->n && *fits; i++) {
        const struct jv *v = jv_get(element_schema(o->e[i]), "propertyNames");
        const struct jv name = {.type = JV_STRING, .text = key, .len = len};
        if (v)
            *fits = schema_fits(o->s, &name, v, 0);
        TRY(o->s->b->rc);
    }
    return 0;
}

static int schemas_of(struct object *o, const struct property *p, struct elements *out)
{
    bool known = false, fits;
    o->s->depth = 0;
    for (size_t i = 0; i < o->n; i++)
        TRY(schemas_of_one(o, element_schema(o->e[i]), p, out, &known));
    for (size_t i = 0; i < o->n && !known; i++) {
        const struct jv *v = jv_get(element_schema(o->e[i]), "unevaluatedProperties");
        if (v)
            TRY(schema_add(o->s, out, v));
    }
    TRY(name_fits(o, p->key, p->len, &fits));
    out->never = out->never || !fits;
    return 0;
}

/* ------------------------------------------------------------------ members */

static uint32_t json_member(struct object *o, uint32_t name, uint32_t value)
{
    struct gbuild *b = o->s->b;
    return g_seq(b, name, g_text(b, ":"), g_opt(b, g_text(b, " ")), value);
}

/* <DSML parameter name="NAME" string="true">TEXT</DSML parameter>, or string="false" and JSON */
static uint32_t parameter(struct object *o, uint32_t name, const struct elements *e)
{
    struct schema *s = o->s;
    struct gbuild *b = s->b;
    const char *tag = s->dialect->tag[2];
    uint32_t text = schema_rule(s, e, T_STRING, AS_TEXT),
             json = schema_rule(s, e, T_ALL & ~(uint32_t)T_STRING, AS_JSON);
    uint32_t value =
        g_alt(b, g_seq(b, g_text(b, "true\">"), text), g_seq(b, g_text(b, "false\">"), json));
    return g_seq(b, g_text(b, "<"), schema_marker(s), g_text(b, tag), g_text(b, " name=\""), name,
                 g_text(b, "\" string=\""), value, g_text(b, "</"), schema_marker(s),
                 g_text(b, tag), g_text(b, ">"));
}

static uint32_t member(struct object *o, uint32_t name, const struct elements *e)
{
    if (o->written == AS_PARAMETERS)
        return parameter(o, name, e);
    return json_member(o, name, schema_rule(o->s, e, T_ALL, AS_JSON));
}

static int make_members(struct object *o)
{
    struct gbuild *b = o->s->b;
    for (size_t i = 0; i < o->n_properties; i++) {
        struct property *p = &o->property[i];
        struct elements e = {0};
        int rc = schemas_of(o, p, &e);
        p->never = e.never;
        bool text = o->written == AS_PARAMETERS;
        if (rc == 0 && text && !e.never && p->len && memchr(p->key, '"', p->len))
            rc = schema_refuse(o->s, element_schema(o->e[0]), "has a name with a quotation mark");
        if (rc == 0 && !e.never)
            p->member = member(
                o, text ? g_bytes(b, p->key, p->len) : schema_quoted(o->s, p->key, p->len), &e);
        free(e.v);
        TRY(rc);
    }
    return b->rc;
}

/* ------------------------------------------------------------------ additional properties */

/* *f without, or together with, another automaton that is freed. */
static int narrow(struct gbuild *b, struct fa *f, enum dfa_op op, struct fa *by)
{
    struct fa out;
    int rc = dfa_combine(b, f, by, op, &out);
    fa_free(by);
    fa_free(f);
    *f = rc == 0 ? out : (struct fa){0};
    return rc;
}

/* Names that may be new: characters that need no escape, so that a name has one spelling, or of
 * parameters word characters; no named property is among them, and propertyNames holds. */
static int free_names(struct object *o, struct fa *out)
{
    static const struct grange escaped[] = {{0, 0x1F}, {'"', '"'}, {'\\', '\\'}, {0xFF5C, 0xFF5C}},
                               word[] = {
                                   {'-', '.'}, {'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
    struct schema *s = o->s;
    struct gbuild *b = s->b;
    struct glist names = {0};
    struct fa f;
    bool plain;
    uint32_t any =
        o->written == AS_PARAMETERS
            ? g_repeat(b, G_REPEAT, g_class(b, word, 5, false), 1, 64)
            : g_repeat(b, G_REPEAT, g_class(b, escaped, s->dialect ? 4 : 3, true), 0, G_INF);
    for (size_t i = 0; i < o->n_properties; i++)
        glist_add(b, &names, g_bytes(b, o->property[i].key, o->property[i].len));
    uint32_t taken = b->rc == 0 ? g_list(b, G_ALT, names.v, names.n) : 0;
    free(names.v);
    TRY(b->rc != 0 ? b->rc : fa_build(b, any, true, out));
    if (o->n_properties) {
        TRY(fa_build(b, taken, true, &f));
        TRY(narrow(b, out, DFA_MINUS, &f));
    }
    for (size_t i = 0; i < o->n; i++) {
        const struct jv *v = jv_get(element_schema(o->e[i]), "propertyNames");
        struct elements e = {0};
        int rc = v ? schema_add(s, &e, v) : 0;
        for (size_t k = 0; k < e.n && rc == 0; k++)
            if (jv_get(element_schema(e.v[k]), "enum") || jv_get(element_schema(e.v[k]), "const") ||
                jv_get(element_schema(e.v[k]), "anyOf") || jv_get(element_schema(e.v[k]), "oneOf"))
                rc = schema_refuse(s, v, "cannot be enforced for properties that are not named");
        if (rc == 0)
            rc = schema_string_fa(s, e.v, e.n, &plain, &f);
        free(e.v);
        TRY(rc);
        if (!plain)
            TRY(narrow(b, out, DFA_AND, &f));
    }
    return 0;
}

/* A kind of additional properties: their names (freed), and what holds for them. */
static int add_extra(struct object *o, struct fa *names, const struct elements *e)
{
    struct gbuild *b = o->s->b;
    uint32_t name = dfa_node(b, names, false), quote = g_text(b, "\"");
    fa_free(names);
    if (o->written != AS_PARAMETERS)
        name = g_seq(b, quote, name, quote);
    if (!e->never)
        glist_add(b, &o->extra, member(o, name, e));
    return b->rc;
}

static size_t count_patterns(const struct object *o)
{
    size_t n = 0;
    for (size_t i = 0; i < o->n; i++) {
        const struct jv *v = jv_get(element_schema(o->e[i]), "patternProperties");
        n += jv_is(v, JV_OBJECT) ? v->len : 0;
    }
    return n;
}

/* Pattern `which` of all, and the schema it stands in. */
static const struct jv *nth_pattern(const struct object *o, size_t which, size_t *owner)
{
    for (size_t i = 0; i < o->n; i++) {
        const struct jv *v = jv_get(element_schema(o->e[i]), "patternProperties");
        for (v = jv_is(v, JV_OBJECT) ? v->first : NULL; v; v = v->next)
            if (which-- == 0) {
                *owner = i;
                return v;
            }
    }
    return NULL;
}

/* Names that fit this pattern and no other, or (which == n) none of them. */
static int pattern_names(struct object *o, size_t which, size_t n, struct fa *names)
{
    size_t owner;
    TRY(free_names(o, names));
    for (size_t i = 0; i < n; i++) {
        struct fa f;
        TRY(pattern_fa(o->s, nth_pattern(o, i, &owner), &f));
        TRY(narrow(o->s->b, names, i == which ? DFA_AND : DFA_MINUS, &f));
    }
    return 0;
}

/* What holds for names of one kind: each schema's pattern, or what it says about additional
 * ones. */
static int extra_schemas(struct object *o, size_t which, size_t n, struct elements *e, bool *asked)
{
    size_t owner = o->n;
    const struct jv *pattern = which < n ? nth_pattern(o, which, &owner) : NULL;
    *asked = pattern != NULL;
    if (pattern)
        TRY(schema_add(o->s, e, pattern));
    for (size_t i = 0; i < o->n; i++) {
        const struct jv *schema = element_schema(o->e[i]),
                        *v = i == owner ? NULL : jv_get(schema, "additionalProperties");
        v = v || pattern ? v : jv_get(schema, "unevaluatedProperties");
        if (v)
            TRY(schema_add(o->s, e, v));
        *asked = *asked || v;
    }
    return 0;
}

static int make_extras(struct object *o)
{
    size_t n = count_patterns(o);
    for (size_t which = 0; which <= n; which++) {
        struct elements e = {0};
        struct fa names = {0};
        bool asked = false;
        o->s->depth = 0;
        int rc = extra_schemas(o, which, n, &e, &asked);
        bool wanted = rc == 0 && !e.never && (asked || (!o->closed && n == 0));
        if (wanted)
            rc = pattern_names(o, which, n, &names);
        if (rc == 0 && wanted)
            rc = add_extra(o, &names, &e);
        fa_free(&names);
        free(e.v);
        TRY(rc);
    }
    return 0;
}

/* ------------------------------------------------------------------ the graph */

/* Places of an object's graph beside its two ends: EMPTY, behind {; for each k the place OTHERS,
 * behind an additional property; for each property i (and behind the last) and k the places NEXT,
 * where property i or a later one must follow, and AFTER, behind a property before i. */
enum { NEXT, AFTER, OTHERS };

struct grid {
    size_t n, most; /* properties; the largest k */
};

static size_t place(const struct grid *g, int what, size_t i, size_t k)
{
    size_t width = g->most + 1;
    if (what == OTHERS)
        return 3 + k;
    return 3 + width * (1 + 2 * i + (what == AFTER)) + k;
}

/* What stands before the first member, between two, and behind the last. */
static uint32_t before(struct object *o, bool first)
{
    struct gbuild *b = o->s->b;
    if (o->written == AS_PARAMETERS)
        return first ? g_empty(b) : g_text(b, "\n");
    return first ? schema_space(o->s) : g_seq(b, g_text(b, ","), schema_space(o->s));
}

static uint32_t behind(struct object *o, bool none)
{
    struct gbuild *b = o->s->b;
    if (o->written == AS_PARAMETERS) /* a call without parameters has an empty line, or not */
        return none ? g_opt(b, g_text(b, "\n")) : g_text(b, "\n");
    return g_seq(b, schema_space(o->s), g_text(b, "}"));
}

/* Property i and what may stand around it, k properties being there. */
static void draw_property(struct object *o, const struct grid *g, size_t i, size_t k, bool limit,
                          uint32_t comma)
{
    struct gbuild *b = o->s->b;
    const struct property *p = &o->property[i];
    size_t more = k < g->most ? k + 1 : k;
    if (!p->never && (k < g->most || !limit))
        garcs_add(b, &o->arcs, place(g, NEXT, i, k), place(g, AFTER, i + 1, more), p->member);
    if (!p->required)
        garcs_add(b, &o->arcs, place(g, NEXT, i, k), place(g, NEXT, i + 1, k), g_empty(b));
    if (k > 0)
        garcs_add(b, &o->arcs, place(g, AFTER, i, k), place(g, NEXT, i, k), comma);
}

/* Additional properties: one of them may repeat another's name, so only the first counts towards
 * the minimum. */
static void draw_others(struct object *o, const struct grid *g, size_t k, bool limit,
                        uint32_t comma)
{
    struct gbuild *b = o->s->b;
    uint32_t other = g_list(b, G_ALT, o->extra.v, o->extra.n);
    size_t more = k < g->most ? k + 1 : k;
    if (other == 0 || (k == g->most && limit))
        return;
    if (more >= o->min)
        garcs_add(b, &o->arcs, place(g, NEXT, g->n, k), place(g, OTHERS, 0, more), other);
    if (k == 0)
        return;
    garcs_add(b, &o->arcs, place(g, AFTER, g->n, k), place(g, NEXT, g->n, k), comma);
    garcs_add(b, &o->arcs, place(g, OTHERS, 0, k), place(g, OTHERS, 0, more),
              g_seq(b, comma, other));
}

/* Counted up to `most`, from where on the number does not matter (or, with a limit, there are no
 * more). */
static uint32_t draw(struct object *o, size_t most, bool limit)
{
    struct gbuild *b = o->s->b;
    size_t n = o->n_properties, last = 0; /* behind the last required property */
    struct grid g = {n, most};
    uint32_t comma = before(o, false), close = behind(o, false);
    for (size_t i = 0; i < n; i++)
        last = o->property[i].required ? i + 1 : last;
    garcs_add(b, &o->arcs, 0, 2, o->written == AS_PARAMETERS ? g_empty(b) : g_text(b, "{"));
    garcs_add(b, &o->arcs, 2, place(&g, NEXT, 0, 0), before(o, true));
    if (last == 0 && o->min == 0)
        garcs_add(b, &o->arcs, 2, 1, behind(o, true));
    for (size_t k = 0; k <= most && b->rc == 0; k++) {
        for (size_t i = 0; i < n; i++)
            draw_property(o, &g, i, k, limit, comma);
        draw_others(o, &g, k, limit, comma);
        for (size_t i = last; i <= n && k > 0 && k >= o->min; i++)
            garcs_add(b, &o->arcs, place(&g, AFTER, i, k), 1, close);
        if (k > 0)
            garcs_add(b, &o->arcs, place(&g, OTHERS, 0, k), 1, close);
    }
    return b->rc == 0 ? g_graph(b, o->arcs.v, o->arcs.n, place(&g, NEXT, n + 1, 0)) : 0;
}

static uint32_t graph(struct object *o)
{
    struct gbuild *b = o->s->b;
    size_t n = o->n_properties, most = o->min > 1 ? o->min : 1;
    bool limit = o->max != G_INF && (o->extra.n > 0 || o->max < n);
    most = limit ? o->max : most;
    for (size_t i = 0; i < n; i++)
        if (o->property[i].required && o->property[i].never)
            return 0;
    if (o->min > o->max || (o->min > n && o->extra.n == 0))
        return 0;
    if (o->min > n + 1 || most > MAX_COUNTED || (n + 2) * (most + 1) > G_MAX_NODES / 8)
        return g_fail(b, DSV4_REFUSED,
                      "%s: minProperties or maxProperties cannot be enforced for so many "
                      "additional properties",
                      o->s->what);
    return draw(o, most, limit);
}

uint32_t schema_object(struct schema *s, const struct element *e, size_t n, enum written w)
{
    struct gbuild *b = s->b;
    struct object o = {.s = s, .e = e, .n = n, .written = w, .max = G_INF};
    if (b->rc == 0)
        b->rc = read_keywords(&o);
    if (b->rc == 0)
        b->rc = make_members(&o);
    if (b->rc == 0)
        b->rc = make_extras(&o);
    uint32_t node = b->rc == 0 ? graph(&o) : 0;
    free(o.property);
    free(o.slots.slot);
    free(o.extra.v);
    free(o.arcs.v);
    return node;
}

/* ------------------------------------------------------------------ lists */

struct list {
    uint32_t min, max;
    size_t prefix; /* the longest prefixItems */
};

static int read_list(struct schema *s, const struct element *e, size_t n, struct list *l)
{
    for (size_t i = 0; i < n; i++)
        for (const struct jv *v = element_schema(e[i])->first; v; v = v->next) {
            uint32_t k;
            if (schema_is(v, "minItems")) {
                TRY(schema_count(s, v, &k));
                l->min = k > l->min ? k : l->min;
            } else if (schema_is(v, "maxItems")) {
                TRY(schema_count(s, v, &k));
                l->max = k < l->max ? k : l->max;
            } else if (schema_is(v, "prefixItems") ||
                       (schema_is(v, "items") && v->type == JV_LIST)) { /* the latter: draft 7 */
                if (v->type != JV_LIST)
                    return schema_refuse(s, v, "must be a list of schemas");
                l->prefix = v->len > l->prefix ? v->len : l->prefix;
            }
        }
    for (size_t i = 0; i < n; i++) {
        const struct jv *v = jv_get(element_schema(e[i]), "uniqueItems");
        if (jv_truth(v) && l->max > 1)
            return schema_refuse(s, v, "cannot be enforced");
    }
    return 0;
}

/* The rule of item `at`; 0 when there can be none. */
static uint32_t item(struct schema *s, const struct element *e, size_t n, size_t at)
{
    struct elements all = {0};
    int rc = 0;
    s->depth = 0;
    for (size_t i = 0; i < n && rc == 0; i++) {
        const struct jv *schema = element_schema(e[i]), *prefix = jv_get(schema, "prefixItems"),
                        *items = jv_get(schema, "items");
        if (jv_is(items, JV_LIST)) {
            prefix = items;
            items = jv_get(schema, "additionalItems");
        }
        if (prefix && at < prefix->len) {
            items = prefix->first;
            for (size_t k = 0; k < at; k++)
                items = items->next;
        }
        if (items)
            rc = schema_add(s, &all, items);
    }
    if (rc != 0)
        s->b->rc = rc;
    uint32_t rule = schema_rule(s, &all, T_ALL, AS_JSON);
    free(all.v);
    return rule;
}

uint32_t schema_list(struct schema *s, const struct element *e, size_t n)
{
    struct gbuild *b = s->b;
    struct list l = {.max = G_INF};
    struct garcs arcs = {0};
    if (b->rc == 0)
        b->rc = read_list(s, e, n, &l);
    if (b->rc != 0 || l.min > l.max)
        return 0;
    uint32_t space = schema_space(s), comma = g_seq(b, g_text(b, ","), space),
             close = g_seq(b, space, g_text(b, "]")), rest = item(s, e, n, l.prefix);
    size_t named = l.prefix < l.max ? l.prefix : l.max, end = 2 + named + 1;
    garcs_add(b, &arcs, 0, 2, g_text(b, "["));
    for (size_t i = 0; i <= named && b->rc == 0; i++) {
        if (i >= l.min)
            garcs_add(b, &arcs, 2 + i, 1, close);
        if (i < named)
            garcs_add(b, &arcs, 2 + i, 3 + i, g_seq(b, i ? comma : space, item(s, e, n, i)));
    }
    if (l.max > named && rest != 0) { /* one more, then the others */
        uint32_t done = (uint32_t)named + 1, min = l.min > done ? l.min - done : 0,
                 max = l.max == G_INF ? G_INF : l.max - done;
        garcs_add(b, &arcs, 2 + named, end, g_seq(b, named ? comma : space, rest));
        garcs_add(b, &arcs, end, 1,
                  g_seq(b, g_repeat(b, G_REPEAT, g_seq(b, comma, rest), min, max), close));
    }
    uint32_t node = b->rc == 0 ? g_graph(b, arcs.v, arcs.n, end + 1) : 0;
    free(arcs.v);
    return node;
}
