/* JSON Schema (draft 2020-12, the part of it that docs/grammar.md lists) to rules: which schemas
 * hold for a value, which types that leaves, and one tree for each. Schemas are worked off a list,
 * so that their nesting costs no stack. */
#include "grammar_schema.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ELEMENTS = 200, MAX_REFERENCES = 100, MAX_SCHEMA = 4 << 20 };

/* ------------------------------------------------------------------ messages */

bool schema_is(const struct jv *member, const char *key)
{
    size_t n = strlen(key);
    return member->key && member->key_len == n && memcmp(member->key, key, n) == 0;
}

void schema_place(const struct schema *s, const struct jv *v, char *out, size_t size)
{
    const struct jv *path[64];
    size_t n = 0;
    int len = snprintf(out, size, "%s: #", s->what);
    for (; v && v->parent && n < 64; v = v->parent)
        path[n++] = v;
    while (n-- > 0 && len >= 0 && (size_t)len < size) {
        char *to = out + len;
        size_t room = size - (size_t)len;
        if (path[n]->key) {
            int shown = path[n]->key_len < 40 ? (int)path[n]->key_len : 40;
            while (shown > 0 && shown < (int)path[n]->key_len &&
                   ((unsigned char)path[n]->key[shown] & 0xC0) == 0x80)
                shown--;
            len += snprintf(to, room, "/%.*s", shown, path[n]->key);
        } else {
            size_t i = 0;
            for (const struct jv *c = path[n]->parent->first; c != path[n]; c = c->next)
                i++;
            len += snprintf(to, room, "/%zu", i);
        }
    }
}

int schema_refuse(const struct schema *s, const struct jv *keyword, const char *why)
{
    char place[300];
    schema_place(s, keyword, place, sizeof place);
    return err_set(s->b->err, DSV4_REFUSED, "%s %s", place, why);
}

/* ------------------------------------------------------------------ references */

/* One step of a JSON pointer, ~0 and ~1 understood; %XX is left as it is. */
static const struct jv *member(const struct jv *v, const char *key, size_t len)
{
    if (v->type == JV_LIST) {
        size_t i = 0;
        for (size_t k = 0; k < len; k++) {
            if (key[k] < '0' || key[k] > '9' || i > 1000000)
                return NULL;
            i = 10 * i + (size_t)(key[k] - '0');
        }
        v = len ? v->first : NULL;
        for (; v && i > 0; i--)
            v = v->next;
        return v;
    }
    for (v = v->type == JV_OBJECT ? v->first : NULL; v; v = v->next) {
        size_t at = 0, i = 0;
        for (; i < len && at < v->key_len; i++, at++) {
            char c = key[i];
            if (c == '~' && i + 1 < len && (key[i + 1] == '0' || key[i + 1] == '1'))
                c = key[++i] == '0' ? '~' : '/';
            if (c != v->key[at])
                break;
        }
        if (i == len && at == v->key_len)
            return v;
    }
    return NULL;
}

const struct jv *schema_target(struct schema *s, const struct jv *ref)
{
    const struct jv *v = s->root;
    if (ref->type != JV_STRING || ref->len == 0 || ref->text[0] != '#') {
        s->b->rc = schema_refuse(s, ref, "must point into the same schema (#/...)");
        return NULL;
    }
    const char *p = ref->text + 1, *end = ref->text + ref->len;
    for (; v && p < end && *p == '/';) {
        const char *key = ++p;
        while (p < end && *p != '/')
            p++;
        v = g_work(s->b, 1) ? member(v, key, (size_t)(p - key)) : NULL;
    }
    if ((!v || p != end) && s->b->rc == 0)
        s->b->rc = schema_refuse(s, ref, "points to nothing in the schema");
    return s->b->rc == 0 ? v : NULL;
}

/* ------------------------------------------------------------------ lists of schemas */

/* Keywords that constrain, but not here. uniqueItems is looked at where lists are. */
static bool cannot(const struct jv *v)
{
    static const char *const words[] = {"not",
                                        "if",
                                        "then",
                                        "else",
                                        "dependentSchemas",
                                        "contains",
                                        "minContains",
                                        "maxContains",
                                        "dependentRequired",
                                        "dependencies",
                                        "$dynamicRef",
                                        "$recursiveRef",
                                        "unevaluatedItems"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (schema_is(v, words[i]))
            return true;
    return false;
}

static int push(struct schema *s, struct elements *e, struct element x)
{
    if (e->n >= MAX_ELEMENTS)
        return schema_refuse(s, element_schema(x), "more than 200 schemas hold for one value");
    TRY(mem_grow(&e->v, &e->cap, e->n + 1, sizeof *e->v, "a schema", s->b->err));
    e->v[e->n++] = x;
    return 0;
}

int schema_add(struct schema *s, struct elements *e, const struct jv *v)
{
    if (v->type == JV_FALSE)
        e->never = true;
    if (v->type == JV_FALSE || v->type == JV_TRUE)
        return 0;
    if (v->type != JV_OBJECT)
        return schema_refuse(s, v, "must be a schema: an object or a boolean");
    for (size_t i = 0; i < e->n; i++)
        if (element_schema(e->v[i]) == v)
            return 0;
    if (v->len == 0)
        return 0;
    TRY(push(s, e, (struct element){(uintptr_t)v}));
    if (++s->depth > MAX_REFERENCES)
        return schema_refuse(s, v, "is reached through too many references");
    for (const struct jv *k = v->first; k; k = k->next) {
        if (cannot(k))
            return schema_refuse(s, k, "cannot be enforced");
        if (schema_is(k, "$ref")) {
            const struct jv *target = schema_target(s, k);
            TRY(target ? schema_add(s, e, target) : s->b->rc);
        } else if (schema_is(k, "allOf")) {
            if (k->type != JV_LIST)
                return schema_refuse(s, k, "must be a list of schemas");
            for (const struct jv *a = k->first; a; a = a->next)
                TRY(schema_add(s, e, a));
        }
    }
    s->depth--;
    return 0;
}

/* ------------------------------------------------------------------ rules */

static uint64_t shape_hash(const struct element *e, size_t n, uint32_t types, enum written w)
{
    uint64_t h = types * 8u + (unsigned)w;
    for (size_t i = 0; i < n; i++)
        h = (h ^ e[i].v ^ h >> 29) * 0x9e3779b97f4a7c15u;
    return h;
}

/* The shape's number, or SLOTS_NONE and the place for it. */
static uint32_t find(const struct schema *s, const struct elements *e, uint32_t types,
                     enum written w, uint64_t hash, size_t *at)
{
    uint32_t i;
    *at = SLOTS_BEGIN;
    while ((i = slots_next(&s->slots, hash, at)) != SLOTS_NONE) {
        const struct shape *p = &s->shape[i];
        if (p->n == e->n && p->types == types && p->written == w &&
            (e->n == 0 || memcmp(s->pool + p->at, e->v, e->n * sizeof *e->v) == 0))
            break;
    }
    return i;
}

static int new_shape(struct schema *s, const struct elements *e, uint32_t types, enum written w)
{
    dsv4_err *err = s->b->err;
    char name[300] = "value";
    if (e->n)
        schema_place(s, element_schema(e->v[0]), name, sizeof name);
    uint32_t rule = g_rule(s->b, name, strlen(name));
    TRY(s->b->rc);
    TRY(mem_grow(&s->shape, &s->cap_shapes, s->n_shapes + 1, sizeof *s->shape, "a schema", err));
    TRY(mem_grow(&s->pool, &s->cap_pool, s->n_pool + e->n + 1, sizeof *s->pool, "a schema", err));
    if (e->n)
        memcpy(s->pool + s->n_pool, e->v, e->n * sizeof *e->v);
    s->shape[s->n_shapes++] = (struct shape){types, rule, w, s->n_pool, e->n};
    s->n_pool += e->n;
    return 0;
}

uint32_t schema_rule(struct schema *s, const struct elements *e, uint32_t types, enum written w)
{
    struct gbuild *b = s->b;
    if (b->rc != 0 || e->never || types == 0)
        return 0;
    b->rc = slots_room(&s->slots, "a schema", b->err);
    if (b->rc != 0)
        return 0;
    uint64_t hash = shape_hash(e->v, e->n, types, w);
    size_t at;
    uint32_t i = find(s, e, types, w, hash, &at);
    if (i == SLOTS_NONE) {
        i = (uint32_t)s->n_shapes;
        b->rc = new_shape(s, e, types, w);
        if (b->rc == 0)
            slots_put(&s->slots, at, hash, i);
    }
    return b->rc == 0 ? g_call(b, s->shape[i].rule) : 0;
}

/* ------------------------------------------------------------------ types */

static uint32_t type_named(const struct jv *v)
{
    static const struct {
        const char *name;
        uint32_t types;
    } type[] = {{"null", T_NULL},
                {"boolean", T_BOOL},
                {"integer", T_INTEGER},
                {"string", T_STRING},
                {"array", T_LIST},
                {"object", T_OBJECT},
                {"number", T_INTEGER | T_FRACTION}};
    for (size_t i = 0; i < sizeof type / sizeof *type; i++)
        if (jv_equals(v, type[i].name))
            return type[i].types;
    return 0;
}

/* Keywords of one type; where no type is given they stand for it. */
static uint32_t type_meant(const struct jv *v)
{
    static const struct {
        const char *name;
        uint32_t types;
    } word[] = {{"properties", T_OBJECT},
                {"required", T_OBJECT},
                {"additionalProperties", T_OBJECT},
                {"patternProperties", T_OBJECT},
                {"propertyNames", T_OBJECT},
                {"minProperties", T_OBJECT},
                {"maxProperties", T_OBJECT},
                {"items", T_LIST},
                {"prefixItems", T_LIST},
                {"minItems", T_LIST},
                {"maxItems", T_LIST},
                {"pattern", T_STRING},
                {"minLength", T_STRING},
                {"maxLength", T_STRING},
                {"minimum", T_INTEGER | T_FRACTION},
                {"maximum", T_INTEGER | T_FRACTION},
                {"exclusiveMinimum", T_INTEGER | T_FRACTION},
                {"exclusiveMaximum", T_INTEGER | T_FRACTION},
                {"multipleOf", T_INTEGER | T_FRACTION}};
    for (size_t i = 0; i < sizeof word / sizeof *word; i++)
        if (schema_is(v, word[i].name))
            return word[i].types;
    if (schema_is(v, "format") && v->type == JV_STRING && format_pattern(v->text, v->len))
        return T_STRING;
    return 0;
}

static int types_of(struct schema *s, const struct jv *v, uint32_t *out)
{
    const struct jv *type = jv_get(v, "type");
    uint32_t types = 0;
    if (!type) {
        for (const struct jv *k = v->first; k; k = k->next)
            types |= type_meant(k);
        *out = types ? types : T_ALL;
    } else {
        const struct jv *one = type->type == JV_LIST ? type->first : type;
        for (; one; one = type->type == JV_LIST ? one->next : NULL) {
            uint32_t t = type_named(one);
            if (t == 0)
                return schema_refuse(s, one, "is no type");
            types |= t;
        }
        *out = types;
    }
    if (jv_truth(jv_get(v, "nullable"))) /* OpenAPI 3.0 */
        *out |= T_NULL;
    return 0;
}

static uint32_t type_of_value(const struct jv *v)
{
    switch (v->type) {
    case JV_NULL: return T_NULL;
    case JV_FALSE:
    case JV_TRUE: return T_BOOL;
    case JV_NUMBER: return v->integer ? T_INTEGER : T_FRACTION;
    case JV_STRING: return T_STRING;
    case JV_LIST: return T_LIST;
    case JV_OBJECT: return T_OBJECT;
    }
    return 0;
}

/* ------------------------------------------------------------------ bodies */

static uint32_t constant(struct schema *s, const struct jv *v, enum written w)
{
    struct gbuild *b = s->b;
    struct bytes text = {0};
    uint32_t node = 0;
    if (w == AS_TEXT)
        b->rc = bytes_add(&text, v->text, v->len, b->err);
    else
        b->rc = jv_write(&text, v, false, b->err);
    if (b->rc == 0 && s->dialect && text.data && strstr(text.data, "</" M_DSML))
        b->rc = schema_refuse(s, v, "holds the tag that ends a parameter");
    if (b->rc == 0)
        node = g_bytes(b, text.data, text.len);
    free(text.data);
    return node;
}

/* The constants of the first enum or const that fit everything else. */
static uint32_t constants(struct schema *s, const struct jv *list, const struct shape *p)
{
    struct gbuild *b = s->b;
    struct glist all = {0};
    bool one = schema_is(list, "const");
    s->own = list;
    if (!one && list->type != JV_LIST)
        b->rc = schema_refuse(s, list, "must be a list");
    for (const struct jv *v = one ? list : list->first; v && b->rc == 0; v = one ? NULL : v->next) {
        bool fits = (type_of_value(v) & p->types) != 0;
        for (size_t i = 0; i < p->n && fits; i++)
            fits = schema_fits(s, v, element_schema(s->pool[p->at + i]), 0);
        if (fits && b->rc == 0)
            glist_add(b, &all, constant(s, v, p->written));
    }
    s->own = NULL;
    uint32_t node = b->rc == 0 ? g_list(b, G_ALT, all.v, all.n) : 0;
    free(all.v);
    return node;
}

/* The alternatives of element `at` that is not chosen yet: each with all others is a rule. */
static uint32_t choose(struct schema *s, const struct shape *p, size_t at, const struct jv *list,
                       unsigned chosen)
{
    struct gbuild *b = s->b;
    struct glist all = {0};
    if (list->type != JV_LIST || list->len == 0)
        b->rc = schema_refuse(s, list, "must be a list of schemas");
    for (const struct jv *v = list->first; v && b->rc == 0; v = v->next) {
        struct elements e = {0};
        for (size_t i = 0; i < p->n && b->rc == 0; i++) {
            struct element x = s->pool[p->at + i];
            x.v |= i == at ? chosen : 0;
            b->rc = push(s, &e, x);
        }
        s->depth = 0;
        if (b->rc == 0)
            b->rc = schema_add(s, &e, v);
        glist_add(b, &all, schema_rule(s, &e, p->types, p->written));
        free(e.v);
    }
    uint32_t node = b->rc == 0 ? g_list(b, G_ALT, all.v, all.n) : 0;
    free(all.v);
    return node;
}

static uint32_t by_type(struct schema *s, const struct shape *p, uint32_t types)
{
    struct gbuild *b = s->b;
    struct glist all = {0};
    /* A copy: the pool moves when rules are asked for. */
    struct element *e;
    b->rc = mem_alloc(&e, p->n, sizeof *e, "a schema", b->err);
    if (b->rc != 0)
        return 0;
    if (p->n)
        memcpy(e, s->pool + p->at, p->n * sizeof *e);
    if (types & T_OBJECT)
        glist_add(b, &all, schema_object(s, e, p->n, p->written));
    if (types & T_LIST)
        glist_add(b, &all, schema_list(s, e, p->n));
    if (types & T_STRING)
        glist_add(b, &all, schema_string(s, e, p->n, p->written));
    if (types & (T_INTEGER | T_FRACTION))
        glist_add(b, &all, schema_number(s, e, p->n, !(types & T_FRACTION)));
    if (types & T_BOOL)
        glist_add(b, &all, g_alt(b, g_text(b, "true"), g_text(b, "false")));
    if (types & T_NULL)
        glist_add(b, &all, g_text(b, "null"));
    free(e);
    uint32_t node = b->rc == 0 ? g_list(b, G_ALT, all.v, all.n) : 0;
    free(all.v);
    return node;
}

static uint32_t body(struct schema *s, const struct shape *p)
{
    struct gbuild *b = s->b;
    uint32_t types = p->types, t;
    for (size_t i = 0; i < p->n && b->rc == 0; i++) {
        struct element e = s->pool[p->at + i];
        const struct jv *v = element_schema(e), *any = jv_get(v, "anyOf"),
                        *one = jv_get(v, "oneOf");
        if (any && !(e.v & CHOSEN_ANY))
            return choose(s, p, i, any, CHOSEN_ANY);
        if (one && !(e.v & CHOSEN_ONE))
            return choose(s, p, i, one, CHOSEN_ONE);
    }
    for (size_t i = 0; i < p->n && b->rc == 0; i++) {
        const struct jv *v = element_schema(s->pool[p->at + i]), *list = jv_get(v, "const");
        list = list ? list : jv_get(v, "enum");
        if (list && p->written != AS_PARAMETERS)
            return constants(s, list, p);
        if (list)
            b->rc = schema_refuse(s, list, "cannot be enforced for the parameters of a call");
    }
    /* A type that one schema names wins over those that the keywords of another only stand for. */
    bool named = false;
    for (size_t i = 0; i < p->n && b->rc == 0; i++) {
        const struct jv *v = element_schema(s->pool[p->at + i]);
        if (!jv_get(v, "type"))
            continue;
        b->rc = types_of(s, v, &t);
        types &= t;
        named = true;
    }
    for (size_t i = 0; i < p->n && b->rc == 0 && !named; i++) {
        b->rc = types_of(s, element_schema(s->pool[p->at + i]), &t);
        types &= types & t ? t : types;
    }
    return b->rc == 0 ? by_type(s, p, types) : 0;
}

int schema_finish(struct schema *s)
{
    struct gbuild *b = s->b;
    while (s->done < s->n_shapes && b->rc == 0) {
        struct shape p = s->shape[s->done++];
        s->depth = 0;
        uint32_t node = body(s, &p);
        g_set_rule(b, p.rule, node);
    }
    return b->rc;
}

void schema_free(struct schema *s)
{
    free(s->shape);
    free(s->pool);
    free(s->slots.slot);
}

/* ------------------------------------------------------------------ the interface */

int dsv4_grammar_json_schema(dsv4_grammar **out, const dsv4_tokenizer *t, const char *schema,
                             size_t len, dsv4_err *err)
{
    struct gbuild b = {.t = t, .err = err};
    struct schema s = {.b = &b, .what = "schema"};
    struct jv_doc doc = {0};
    struct elements e = {0};
    bool any = !schema || len == 0;
    *out = NULL;
    if (len > MAX_SCHEMA)
        return err_set(err, DSV4_REFUSED, "schema: %zu bytes; at most 4 MiB", len);
    if (!any)
        TRY(jv_parse(&doc, schema, len, "schema", err));
    s.root = doc.root;
    int rc = any ? 0 : schema_add(&s, &e, doc.root);
    if (rc == 0 && e.never)
        rc = err_set(err, DSV4_REFUSED, "schema: false; no value fits");
    if (rc == 0) {
        uint32_t root = g_rule(&b, "root", 4);
        uint32_t value = schema_rule(&s, &e, any ? T_OBJECT : T_ALL, AS_JSON);
        g_set_rule(&b, root, value);
        rc = schema_finish(&s);
        if (rc == 0)
            rc = grammar_link(&b, root, out);
    }
    free(e.v);
    schema_free(&s);
    jv_free(&doc);
    g_free(&b);
    return rc;
}
