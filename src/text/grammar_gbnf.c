/* GBNF, the notation of llama.cpp, to rules:
 *
 *   root   ::= "yes" | "no" reason?      alternatives, sequences, rules by name; root is the text
 *   reason ::= " because " [^\n]{1,80}   * + ? {m} {m,} {m,n}; ( ) groups; # comment
 *   think  ::= <think> <[128825]>        a control token by its text or its id
 *
 * Literals and classes know \n \t \r \\ \" \[ \] \xHH \uHHHH \UHHHHHHHH; . is any character. A rule
 * goes on in the next line inside a group, behind ::= and |, and when that line begins with |. */
#include "grammar.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_GROUPS = 120 };

struct parser {
    struct gbuild *b;
    const char *text, *at, *end;
    struct slots names; /* of the rules */
};

static uint32_t bad(struct parser *p, const char *what)
{
    size_t line = 1;
    for (const char *c = p->text; c < p->at; c++)
        line += *c == '\n';
    return g_fail(p->b, DSV4_REFUSED, "grammar, line %zu: %s", line, what);
}

static bool ok(const struct parser *p)
{
    return p->b->rc == 0;
}

static bool next_is(const struct parser *p, const char *text)
{
    size_t n = strlen(text);
    return (size_t)(p->end - p->at) >= n && memcmp(p->at, text, n) == 0;
}

static bool take(struct parser *p, const char *text)
{
    bool there = next_is(p, text);
    p->at += there ? strlen(text) : 0;
    return there;
}

static void space(struct parser *p, bool newlines)
{
    while (p->at < p->end) {
        char c = *p->at;
        if (c == '#')
            while (p->at < p->end && *p->at != '\n')
                p->at++;
        else if (c == ' ' || c == '\t' || c == '\r' || (newlines && c == '\n'))
            p->at++;
        else
            break;
    }
}

static bool name_byte(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_';
}

/* The rule of that name, made when it is met for the first time. */
static uint32_t rule_named(struct parser *p, const char *name, size_t len)
{
    struct gbuild *b = p->b;
    uint64_t h = bytes_hash(name, len);
    size_t at = SLOTS_BEGIN;
    if (b->rc == 0)
        b->rc = slots_room(&p->names, "a grammar", b->err);
    if (b->rc != 0)
        return 0;
    for (uint32_t i; (i = slots_next(&p->names, h, &at)) != SLOTS_NONE;) {
        const struct grule *r = &b->rule[i];
        if (r->name_len == len && memcmp(b->text.data + r->name, name, len) == 0)
            return i;
    }
    uint32_t rule = g_rule(b, name, len);
    if (b->rc == 0)
        slots_put(&p->names, at, h, rule);
    return rule;
}

static uint32_t take_rule(struct parser *p)
{
    const char *name = p->at;
    while (p->at < p->end && name_byte(*p->at))
        p->at++;
    if (p->at == name)
        return bad(p, "a rule's name is expected");
    if (p->at - name > 200)
        return bad(p, "a name of more than 200 characters");
    return rule_named(p, name, (size_t)(p->at - name));
}

/* ------------------------------------------------------------------ characters */

static uint32_t hex(struct parser *p, int digits)
{
    uint32_t v = 0;
    for (int i = 0; i < digits; i++, p->at++) {
        char c = p->at < p->end ? *p->at : 0;
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
        if (d < 0)
            return bad(p, "a hexadecimal digit is expected");
        v = v << 4 | (uint32_t)d;
    }
    if (v > 0x10FFFF || (v >= 0xD800 && v < 0xE000))
        return bad(p, "an escape that is no character");
    return v;
}

/* One character, perhaps escaped. */
static uint32_t character(struct parser *p)
{
    static const char from[] = "nrt\\\"[]-^", to[] = "\n\r\t\\\"[]-^";
    size_t size;
    if (p->at >= p->end || *p->at == '\n')
        return bad(p, "a literal or class without an end");
    if (*p->at != '\\') {
        uint32_t c = utf8_decode((const unsigned char *)p->at, &size);
        p->at += size;
        return c;
    }
    p->at++;
    char c = p->at < p->end ? *p->at++ : 0;
    if (c == 'x' || c == 'u' || c == 'U')
        return hex(p, c == 'x' ? 2 : c == 'u' ? 4 : 8);
    const char *known = c ? strchr(from, c) : NULL;
    return known ? (unsigned char)to[known - from] : bad(p, "an unknown escape");
}

static uint32_t literal(struct parser *p)
{
    struct bytes text = {0};
    struct gbuild *b = p->b;
    while (ok(p) && !next_is(p, "\"")) {
        char utf8[4];
        uint32_t c = character(p);
        if (ok(p))
            b->rc = bytes_add(&text, utf8, utf8_encode(c, utf8), b->err);
    }
    take(p, "\"");
    uint32_t node = ok(p) ? g_bytes(b, text.data, text.len) : 0;
    free(text.data);
    return node;
}

static uint32_t class(struct parser *p)
{
    struct gbuild *b = p->b;
    struct grange *range = NULL;
    size_t n = 0, cap = 0;
    bool negate = take(p, "^");
    while (ok(p) && !next_is(p, "]")) {
        struct grange r;
        r.lo = r.hi = character(p);
        if (next_is(p, "-") && !next_is(p, "-]")) {
            p->at++;
            r.hi = character(p);
        }
        if (ok(p) && r.hi < r.lo)
            bad(p, "a range that ends before it begins");
        if (ok(p))
            b->rc = mem_grow(&range, &cap, n + 1, sizeof *range, "a grammar", b->err);
        if (ok(p))
            range[n++] = r;
    }
    take(p, "]");
    uint32_t node = ok(p) ? g_class(b, range, n, negate) : 0;
    free(range);
    return node;
}

/* <[ID]> or <text>, which must be one token. */
static uint32_t token(struct parser *p)
{
    char name[ADDED_LONGEST + 1];
    const char *begin = p->at;
    while (p->at < p->end && *p->at != '>' && *p->at != '\n' && p->at - begin < ADDED_LONGEST - 1)
        p->at++;
    if (!take(p, ">"))
        return bad(p, "a token <...> without an end");
    size_t len = (size_t)(p->at - begin);
    memcpy(name, begin, len);
    name[len] = 0;
    int32_t id = -1;
    if (name[1] == '[') {
        char *end;
        long v = strtol(name + 2, &end, 10);
        if (name[2] >= '0' && name[2] <= '9' && strcmp(end, "]>") == 0 && v >= 0 &&
            (unsigned long)v < dsv4_tokenizer_size(p->b->t))
            id = (int32_t)v;
    } else {
        id = dsv4_token_find(p->b->t, name);
    }
    return id < 0 ? bad(p, "<...> is no token of this model") : g_token(p->b, id);
}

/* ------------------------------------------------------------------ structure */

static uint32_t alternatives(struct parser *p, int depth);

static uint32_t number(struct parser *p)
{
    uint64_t v = 0;
    const char *begin = p->at;
    for (; p->at < p->end && *p->at >= '0' && *p->at <= '9' && v < 1u << 30; p->at++)
        v = 10 * v + (uint64_t)(*p->at - '0');
    if (p->at == begin || v > 1u << 20)
        return bad(p, "a number up to 1048576 is expected");
    return (uint32_t)v;
}

static uint32_t repeated(struct parser *p, uint32_t node, int depth)
{
    for (int n = 0; ok(p) && p->at < p->end; n++) {
        uint32_t min, max;
        if (take(p, "*")) {
            min = 0;
            max = G_INF;
        } else if (take(p, "+")) {
            min = 1;
            max = G_INF;
        } else if (take(p, "?")) {
            min = 0;
            max = 1;
        } else if (take(p, "{")) {
            space(p, true);
            min = max = next_is(p, ",") ? 0 : number(p);
            space(p, true);
            if (take(p, ",")) {
                space(p, true);
                max = next_is(p, "}") ? G_INF : number(p);
                space(p, true);
            }
            if (!take(p, "}"))
                return bad(p, "a repetition without }");
        } else {
            break;
        }
        if (n > 4)
            return bad(p, "a repetition of a repetition of ...");
        if (ok(p) && max < min)
            return bad(p, "a repetition that ends before it begins");
        node = g_repeat(p->b, G_REPEAT, node, min, max);
        space(p, depth > 0);
    }
    return node;
}

static uint32_t element(struct parser *p, int depth, bool *there)
{
    uint32_t node;
    *there = true;
    if (take(p, "\"")) {
        node = literal(p);
    } else if (take(p, "[")) {
        node = class(p);
    } else if (take(p, "(")) {
        if (depth >= MAX_GROUPS)
            return bad(p, "groups too deep");
        space(p, true);
        node = alternatives(p, depth + 1);
        if (ok(p) && !take(p, ")"))
            return bad(p, ") is expected");
    } else if (take(p, ".")) {
        node = g_class(p->b, NULL, 0, true);
    } else if (next_is(p, "<")) {
        node = token(p);
    } else if (p->at < p->end && name_byte(*p->at)) {
        uint32_t rule = take_rule(p);
        node = g_call(p->b, rule);
    } else {
        *there = false;
        return 0;
    }
    space(p, depth > 0);
    return repeated(p, node, depth);
}

static uint32_t sequence(struct parser *p, int depth)
{
    struct glist parts = {0};
    bool there = true;
    while (ok(p)) {
        uint32_t node = element(p, depth, &there);
        if (!there)
            break;
        glist_add(p->b, &parts, node);
    }
    uint32_t node = ok(p) ? g_list(p->b, G_SEQ, parts.v, parts.n) : 0;
    free(parts.v);
    return node;
}

/* A line that begins with | belongs to the rule above. */
static void join_lines(struct parser *p)
{
    const char *at = p->at;
    space(p, true);
    if (!next_is(p, "|"))
        p->at = at;
}

static uint32_t alternatives(struct parser *p, int depth)
{
    struct glist list = {0};
    do {
        space(p, true);
        glist_add(p->b, &list, sequence(p, depth));
        join_lines(p);
    } while (ok(p) && take(p, "|"));
    uint32_t node = ok(p) ? g_list(p->b, G_ALT, list.v, list.n) : 0;
    free(list.v);
    return node;
}

static void rule(struct parser *p)
{
    uint32_t r = take_rule(p);
    space(p, false);
    if (!ok(p))
        return;
    if (!take(p, "::=")) {
        bad(p, "::= is expected");
        return;
    }
    if (p->b->rule[r].set) {
        bad(p, "a rule of this name is there already");
        return;
    }
    space(p, true);
    g_set_rule(p->b, r, alternatives(p, 0));
    space(p, false);
    if (ok(p) && p->at < p->end && *p->at != '\n')
        bad(p, "this belongs to no rule");
    space(p, true);
}

static uint32_t read_rules(struct parser *p)
{
    uint32_t root = rule_named(p, "root", 4);
    space(p, true);
    while (ok(p) && p->at < p->end)
        rule(p);
    for (size_t i = 0; ok(p) && i < p->b->n_rule; i++) {
        const struct grule *r = &p->b->rule[i];
        if (!r->set)
            g_fail(p->b, DSV4_REFUSED, "grammar: there is no rule %.*s", (int)r->name_len,
                   p->b->text.data + r->name);
    }
    return root;
}

int dsv4_grammar_open(dsv4_grammar **out, const dsv4_tokenizer *t, const char *text, size_t len,
                      dsv4_err *err)
{
    struct gbuild b = {.t = t, .err = err};
    struct parser p = {.b = &b, .text = text, .at = text, .end = text + len};
    *out = NULL;
    if (len > (size_t)4 << 20)
        return err_set(err, DSV4_REFUSED, "grammar: %zu bytes; at most 4 MiB", len);
    if (!utf8_valid(text, len) || memchr(text, 0, len))
        return err_set(err, DSV4_REFUSED, "grammar: not UTF-8 text");
    uint32_t root = read_rules(&p);
    free(p.names.slot);
    int rc = b.rc != 0 ? b.rc : grammar_link(&b, root, out);
    g_free(&b);
    return rc;
}
