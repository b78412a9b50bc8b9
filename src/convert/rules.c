/* Which type a matrix gets: presets, classes, patterns, all of them as one list of rules of which the last
 * that fits decides. */
#include "convert.h"

#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RULES_FILE = 1 << 20 };

#define BIT(c) (1u << (c))
#define DENSE  (BIT(CLASS_ATTENTION) | BIT(CLASS_SHARED) | BIT(CLASS_ENGRAM))

/* Named by what they are for; docs/quantization.md has their sizes and figures. NULL: as in the source. A
 * type is used only where it takes fewer bytes than what is there. */
static const struct preset {
    const char *name, *experts, *dense, *head;
} presets[] = {
    {"lossless", NULL, NULL, NULL},     {"quality", NULL, NULL, "q8"},
    {"balanced", "q4nl", "q4nl", "q8"}, {"small", "q3", "q4nl", "q8"},
    {"tiny", "q2", "q4nl", "q4nl"},
};

/* ------------------------------------------------------------------ making the list */

static int add(struct rules *r, struct rule rule, dsv4_err *err)
{
    TRY(mem_grow(&r->rule, &r->cap, r->n + 1, sizeof *r->rule, "rules", err));
    r->rule[r->n++] = rule;
    return 0;
}

/* Panels of it can be made of rows of floats: one scale a row and group, or none. */
static bool encodes(const struct wtype *t)
{
    return t && t->format != W_F32 && t->format != W_F16 && t->format != W_E4M3;
}

/* "native" or a type to encode. */
static int find_type(const struct wtype **out, const char *name, const char *where, dsv4_err *err)
{
    *out = NULL;
    if (strcmp(name, "native") == 0)
        return 0;
    const struct wtype *t = wtype_named(name);
    if (!encodes(t))
        return err_set(err, DSV4_USAGE,
                       "%s: unknown type \"%.40s\"; there are native, q8, q4, q4nl, q3, q2", where,
                       name);
    *out = t;
    return 0;
}

static int add_class(struct rules *r, unsigned classes, const char *type, bool if_smaller,
                     const char *where, dsv4_err *err)
{
    struct rule rule = {.classes = classes, .if_smaller = if_smaller, .text = where};
    if (!type)
        return 0;
    TRY(find_type(&rule.type, type, where, err));
    return add(r, rule, err);
}

static int add_preset(struct rules *r, const char *name, dsv4_err *err)
{
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++) {
        const struct preset *p = &presets[i];
        if (strcmp(p->name, name) != 0)
            continue;
        TRY(add_class(r, BIT(CLASS_EXPERTS), p->experts, true, name, err));
        TRY(add_class(r, DENSE, p->dense, true, name, err));
        return add_class(r, BIT(CLASS_HEAD), p->head, true, name, err);
    }
    return err_set(err, DSV4_USAGE,
                   "unknown preset \"%.40s\"; there are lossless, quality, balanced, small, tiny",
                   name);
}

/* --type: 8 and 4 bits are for all large matrices, fewer for routed experts only. */
static int add_type(struct rules *r, const char *name, dsv4_err *err)
{
    const struct wtype *t;
    TRY(find_type(&t, name, "--type", err));
    bool few = t && wformat_row_bytes(t->format, GROUP) * 8 / GROUP < 4;
    unsigned classes = BIT(CLASS_EXPERTS) | (few ? 0 : DENSE | BIT(CLASS_HEAD));
    return add_class(r, classes, name, true, "--type", err);
}

/* "PATTERN=TYPE", n bytes. */
static int add_pattern(struct rules *r, const char *text, size_t n, const char *where,
                       dsv4_err *err)
{
    char *own;
    TRY(mem_grow(&r->owned, &r->cap_owned, r->n_owned + 2, sizeof *r->owned, "rules", err));
    if (!(own = strndup(text, n)))
        return err_memory(err, n, "a rule");
    r->owned[r->n_owned++] = own;
    char *equals = strrchr(own, '=');
    if (!equals || equals == own || equals[1] == 0)
        return err_set(err, DSV4_USAGE, "%s: \"%.80s\"; expected PATTERN=TYPE", where, own);
    struct rule rule = {.must_match = true};
    if (!(rule.text = strdup(own)))
        return err_memory(err, n, "a rule");
    r->owned[r->n_owned++] = (char *)(uintptr_t)rule.text;
    *equals = 0;
    TRY(find_type(&rule.type, equals + 1, where, err));
    rule.pattern = own;
    return add(r, rule, err);
}

/* A rule a line; blank lines and what follows a # do not count. */
static int add_file(struct rules *r, const char *path, dsv4_err *err)
{
    char *text, where[512];
    size_t len, line = 0;
    TRY(file_read(path, RULES_FILE, &text, &len, err));
    int rc = strlen(text) == len ? 0 : err_set(err, DSV4_REFUSED, "%s: not a text", path);
    for (char *p = text, *next; rc == 0 && *p; p = next) {
        next = p + strcspn(p, "\n");
        next += *next == '\n';
        size_t n = strcspn(p, "#\r\n");
        line++;
        while (n > 0 && strchr(" \t", p[n - 1]))
            n--;
        while (n > 0 && strchr(" \t", *p)) {
            p++;
            n--;
        }
        snprintf(where, sizeof where, "%s: line %zu", path, line);
        if (n > 0)
            rc = add_pattern(r, p, n, where, err);
    }
    free(text);
    return rc;
}

/* Rows of Engram tables are looked up one by one and lie as a release has them: fp8, or fp4 like its experts. */
static int set_engram(struct rules *r, const char *name, dsv4_err *err)
{
    const struct wtype *t = strcmp(name, "fp8") == 0   ? wtype_named("e4m3")
                            : strcmp(name, "fp4") == 0 ? wtype_named("e2m1")
                                                       : NULL;
    if (!t && strcmp(name, "native") != 0)
        return err_set(
            err, DSV4_USAGE,
            "--engram: \"%.40s\"; there are native, fp8 and fp4: rows of Engram tables are "
            "looked up one by one, so they cannot be packed",
            name);
    r->engram = t;
    return 0;
}

static int add_all(struct rules *r, const dsv4_convert_options *o, dsv4_err *err)
{
    if (o->preset)
        TRY(add_preset(r, o->preset, err));
    if (o->type)
        TRY(add_type(r, o->type, err));
    TRY(add_class(r, BIT(CLASS_EXPERTS), o->experts, false, "--experts", err));
    TRY(add_class(r, DENSE, o->dense, false, "--dense", err));
    TRY(add_class(r, BIT(CLASS_HEAD), o->head, false, "--head", err));
    if (o->engram)
        TRY(set_engram(r, o->engram, err));
    if (o->rules_file)
        TRY(add_file(r, o->rules_file, err));
    for (size_t i = 0; i < o->n_rules; i++)
        TRY(add_pattern(r, o->rules[i], strlen(o->rules[i]), "--tensor", err));
    return 0;
}

int rules_make(struct rules *r, const dsv4_convert_options *o, dsv4_err *err)
{
    *r = (struct rules){0};
    int rc = add_all(r, o, err);
    if (rc != 0)
        rules_close(r);
    return rc;
}

void rules_close(struct rules *r)
{
    for (size_t i = 0; i < r->n_owned; i++)
        free(r->owned[i]);
    free(r->owned);
    free(r->rule);
    *r = (struct rules){0};
}

/* ------------------------------------------------------------------ asking it */

struct rule *rules_find(struct rules *r, const char *name, enum tensor_class c)
{
    struct rule *found = NULL;
    for (size_t i = 0; i < r->n; i++) {
        struct rule *x = &r->rule[i];
        if (x->pattern ? fnmatch(x->pattern, name, 0) != 0 : !(x->classes >> c & 1))
            continue;
        x->matched = true;
        found = x;
    }
    return found;
}
