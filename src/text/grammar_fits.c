/* Whether a constant in a schema (enum, const) fits another schema that holds for the same value,
 * so that constants that could never be valid are not offered. Recursion is bounded by the value's
 * depth and by the number of references in a row. */
#include "grammar_schema.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 64 };

static double number(const struct jv *v)
{
    char text[64];
    size_t n = v->len < sizeof text - 1 ? v->len : sizeof text - 1;
    memcpy(text, v->text, n);
    text[n] = 0;
    return strtod(text, NULL);
}

bool schema_equal(struct schema *s, const struct jv *x, const struct jv *y)
{
    if (!g_work(s->b, 1) || x->type != y->type)
        return false;
    switch (x->type) {
    case JV_NULL:
    case JV_FALSE:
    case JV_TRUE: return true;
    case JV_NUMBER: return !(number(x) < number(y)) && !(number(x) > number(y));
    case JV_STRING: return x->len == y->len && (x->len == 0 || !memcmp(x->text, y->text, x->len));
    case JV_LIST: break;
    case JV_OBJECT: break;
    }
    if (x->len != y->len)
        return false;
    const struct jv *b = y->first;
    for (const struct jv *a = x->first; a; a = a->next, b = b ? b->next : NULL) {
        if (x->type == JV_OBJECT)
            for (b = y->first;
                 b && (b->key_len != a->key_len || memcmp(b->key, a->key, a->key_len));)
                b = b->next;
        if (!b || !schema_equal(s, a, b))
            return false;
    }
    return true;
}

static bool type_fits(const struct jv *v, const struct jv *type)
{
    static const char *const name[] = {"null",   "boolean", "boolean", "number",
                                       "string", "array",   "object"}; /* ORDER jv_type */
    if (type->type == JV_LIST) {
        for (const struct jv *t = type->first; t; t = t->next)
            if (type_fits(v, t))
                return true;
        return false;
    }
    if (v->type == JV_NUMBER && jv_equals(type, "integer"))
        return v->integer || !(floor(number(v)) < number(v));
    return jv_equals(type, name[v->type]);
}

static size_t characters(const struct jv *v)
{
    size_t n = 0;
    for (size_t i = 0; i < v->len; i++)
        n += ((unsigned char)v->text[i] & 0xC0) != 0x80;
    return n;
}

static bool pattern_fits(struct schema *s, const struct jv *at, const char *pattern, size_t len,
                         const struct jv *v)
{
    char place[300];
    struct fa f;
    schema_place(s, at, place, sizeof place);
    uint32_t node = g_pattern(s->b, pattern, len, place);
    if (s->b->rc != 0 || fa_build(s->b, node, true, &f) != 0)
        return false;
    bool fits = dfa_match(&f, v->text, v->len);
    fa_free(&f);
    return fits;
}

static bool string_fits(struct schema *s, const struct jv *v, const struct jv *k)
{
    uint32_t n;
    if (schema_is(k, "minLength") || schema_is(k, "maxLength")) {
        s->b->rc = schema_count(s, k, &n);
        return s->b->rc == 0 &&
               (schema_is(k, "minLength") ? characters(v) >= n : characters(v) <= n);
    }
    if (schema_is(k, "pattern") && k->type == JV_STRING)
        return pattern_fits(s, k, k->text, k->len, v);
    const char *format =
        schema_is(k, "format") && k->type == JV_STRING ? format_pattern(k->text, k->len) : NULL;
    return !format || pattern_fits(s, k, format, strlen(format), v);
}

static bool number_fits(const struct jv *v, const struct jv *k)
{
    double x = number(v), y = k->type == JV_NUMBER ? number(k) : 0;
    if (schema_is(k, "minimum"))
        return x >= y;
    if (schema_is(k, "maximum"))
        return x <= y;
    if (schema_is(k, "exclusiveMinimum"))
        return x > y;
    if (schema_is(k, "exclusiveMaximum"))
        return x < y;
    return !schema_is(k, "multipleOf") || fabs(x / y - round(x / y)) < 1e-9;
}

static bool list_fits(struct schema *s, const struct jv *v, const struct jv *k, int depth)
{
    uint32_t n;
    if (schema_is(k, "minItems") || schema_is(k, "maxItems")) {
        s->b->rc = schema_count(s, k, &n);
        return s->b->rc == 0 && (schema_is(k, "minItems") ? v->len >= n : v->len <= n);
    }
    bool tuple = schema_is(k, "prefixItems");
    if ((!tuple && !schema_is(k, "items")) || (tuple && k->type != JV_LIST))
        return true;
    if (k->type == JV_LIST)
        tuple = true;
    const struct jv *prefix = tuple ? NULL : jv_get(k->parent, "prefixItems"),
                    *schema = tuple ? k->first : k;
    size_t skip = jv_is(prefix, JV_LIST) ? prefix->len : 0;
    for (const struct jv *i = v->first; i && schema; i = i->next) {
        if (skip > 0) {
            skip--;
            continue;
        }
        if (!schema_fits(s, i, schema, depth + 1))
            return false;
        schema = tuple ? schema->next : schema;
    }
    return true;
}

static const struct jv *find(const struct jv *object, const struct jv *key)
{
    const struct jv *v = jv_is(object, JV_OBJECT) ? object->first : NULL;
    while (v && (v->key_len != key->len || (key->len && memcmp(v->key, key->text, key->len))))
        v = v->next;
    return v;
}

static bool object_fits(struct schema *s, const struct jv *v, const struct jv *k, int depth)
{
    uint32_t n;
    if (schema_is(k, "minProperties") || schema_is(k, "maxProperties")) {
        s->b->rc = schema_count(s, k, &n);
        return s->b->rc == 0 && (schema_is(k, "minProperties") ? v->len >= n : v->len <= n);
    }
    if (schema_is(k, "required"))
        for (const struct jv *r = k->type == JV_LIST ? k->first : NULL; r; r = r->next)
            if (r->type != JV_STRING || !find(v, r))
                return false;
    bool names = schema_is(k, "propertyNames"), rest = schema_is(k, "additionalProperties");
    if (schema_is(k, "patternProperties") || schema_is(k, "unevaluatedProperties")) {
        s->b->rc = schema_refuse(s, k, "cannot be enforced beside enum or const");
        return false;
    }
    const struct jv *properties = schema_is(k, "properties") ? k : jv_get(k->parent, "properties");
    if (!names && !rest && properties != k)
        return true;
    for (const struct jv *m = v->first; m; m = m->next) {
        const struct jv key = {.type = JV_STRING, .text = m->key, .len = m->key_len},
                        *own = find(properties, &key);
        if (names && !schema_fits(s, &key, k, depth + 1))
            return false;
        if (!names && rest == !own && !schema_fits(s, m, own ? own : k, depth + 1))
            return false;
    }
    return true;
}

static bool any_fits(struct schema *s, const struct jv *v, const struct jv *list, bool all,
                     int depth)
{
    for (const struct jv *a = list->type == JV_LIST ? list->first : NULL; a; a = a->next)
        if (schema_fits(s, v, a, depth + 1) != all)
            return !all;
    return all;
}

static bool keyword_fits(struct schema *s, const struct jv *v, const struct jv *k, int depth)
{
    if (k == s->own)
        return true;
    if (schema_is(k, "type"))
        return type_fits(v, k) || (v->type == JV_NULL && jv_truth(jv_get(k->parent, "nullable")));
    if (schema_is(k, "const"))
        return schema_equal(s, v, k);
    if (schema_is(k, "enum")) {
        for (const struct jv *c = k->type == JV_LIST ? k->first : NULL; c; c = c->next)
            if (schema_equal(s, v, c))
                return true;
        return false;
    }
    if (schema_is(k, "allOf") || schema_is(k, "anyOf") || schema_is(k, "oneOf"))
        return any_fits(s, v, k, schema_is(k, "allOf"), depth);
    if (schema_is(k, "$ref")) {
        const struct jv *target = schema_target(s, k);
        return target && schema_fits(s, v, target, depth + 1);
    }
    switch (v->type) {
    case JV_STRING: return string_fits(s, v, k);
    case JV_NUMBER: return number_fits(v, k);
    case JV_LIST: return list_fits(s, v, k, depth);
    case JV_OBJECT: return object_fits(s, v, k, depth);
    default: return true;
    }
}

bool schema_fits(struct schema *s, const struct jv *v, const struct jv *schema, int depth)
{
    if (s->b->rc != 0 || !g_work(s->b, 1))
        return false;
    if (depth > MAX_DEPTH) {
        s->b->rc = schema_refuse(s, schema, "is nested too deep to compare constants with");
        return false;
    }
    if (schema->type != JV_OBJECT)
        return schema->type == JV_TRUE;
    for (const struct jv *k = schema->first; k; k = k->next)
        if (!keyword_fits(s, v, k, depth))
            return false;
    return true;
}
