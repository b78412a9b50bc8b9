/* Patterns of JSON Schema (ECMA-262, the part that is regular) to trees of characters. A pattern is
 * looked for anywhere in the text; where it is not anchored, any characters may stand around it.
 * Anchors are understood at the ends of alternatives that span the whole pattern. */
#include "grammar.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_GROUPS = 60, MAX_TIMES = 100000 };

struct pattern {
    struct gbuild *b;
    const char *at, *end, *all, *place;
    size_t len;
};

static uint32_t bad(struct pattern *p, const char *what)
{
    int shown = p->len < 60 ? (int)p->len : 60;
    while (shown > 0 && (p->all[shown - 1] & 0x80))
        shown--; /* no part of a character */
    return g_fail(p->b, DSV4_REFUSED, "%s: pattern %.*s%s: %s", p->place, shown, p->all,
                  (size_t)shown < p->len ? "..." : "", what);
}

static bool ok(const struct pattern *p)
{
    return p->b->rc == 0;
}

static bool take(struct pattern *p, const char *text)
{
    size_t n = strlen(text);
    bool there = (size_t)(p->end - p->at) >= n && memcmp(p->at, text, n) == 0;
    p->at += there ? n : 0;
    return there;
}

static char peek(const struct pattern *p)
{
    return p->at < p->end ? *p->at : 0;
}

/* ------------------------------------------------------------------ characters and classes */

struct ranges {
    struct grange *v;
    size_t n, cap;
};

static void add(struct pattern *p, struct ranges *r, uint32_t lo, uint32_t hi)
{
    if (ok(p))
        p->b->rc = mem_grow(&r->v, &r->cap, r->n + 1, sizeof *r->v, "a pattern", p->b->err);
    if (ok(p))
        r->v[r->n++] = (struct grange){lo, hi};
}

/* Appends what `from` does not hold; `from` is sorted and disjoint. */
static void add_others(struct pattern *p, struct ranges *r, const struct grange *from, size_t n)
{
    uint32_t next = 0;
    for (size_t i = 0; i < n; i++) {
        if (from[i].lo > next)
            add(p, r, next, from[i].lo - 1);
        next = from[i].hi + 1;
    }
    if (next <= 0x10FFFF)
        add(p, r, next, 0x10FFFF);
}

static const struct grange digit[] = {{'0', '9'}};
static const struct grange word[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
static const struct grange blank[] = {
    {9, 13},          {' ', ' '},       {0xA0, 0xA0},     {0x1680, 0x1680}, {0x2000, 0x200A},
    {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};

/* \d \D \w \W \s \S, \p{L} and its like. False: another escape. */
static bool class_escape(struct pattern *p, struct ranges *r)
{
    static const char names[] = "dwspDWSP";
    static const struct {
        const struct grange *range;
        size_t n;
    } set[] = {{digit, 1}, {word, 4}, {blank, sizeof blank / sizeof *blank}};
    char c = peek(p);
    const char *found = c ? strchr(names, c) : NULL;
    if (!found)
        return false;
    p->at++;
    size_t i = (size_t)(found - names);
    if (i % 4 < 3) {
        if (i >= 4)
            add_others(p, r, set[i - 4].range, set[i - 4].n);
        for (size_t k = 0; i < 4 && k < set[i].n; k++)
            add(p, r, set[i].range[k].lo, set[i].range[k].hi);
        return true;
    }
    static const char letter[] = "LMPSN"; /* ORDER UNICODE CLASSES */
    const char *group = p->end - p->at >= 3 && p->at[0] == '{' && p->at[2] == '}' && p->at[1]
                            ? strchr(letter, p->at[1])
                            : NULL;
    if (!group) {
        bad(p, "of \\p{...} only L, M, N, P and S are known");
        return true;
    }
    p->at += 3;
    unsigned bit = 1u << (group - letter);
    for (uint32_t from = 0, to; from <= 0x10FFFF; from = to) {
        bool in = unicode_class_of(from) & bit;
        for (to = from + 1; to <= 0x10FFFF && !(unicode_class_of(to) & bit) == !in; to++)
            ;
        if (in == (i == 3))
            add(p, r, from, to - 1);
    }
    return true;
}

static uint32_t hex(struct pattern *p, int least, int most)
{
    uint32_t v = 0;
    int n = 0;
    for (; n < most; n++, p->at++) {
        char c = peek(p);
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
        if (d < 0)
            break;
        v = v << 4 | (uint32_t)d;
    }
    return n < least ? bad(p, "a hexadecimal digit is expected") : v;
}

static uint32_t unicode_escape(struct pattern *p)
{
    if (take(p, "{")) {
        uint32_t v = hex(p, 1, 6);
        return take(p, "}") && v <= 0x10FFFF ? v : bad(p, "\\u{...} that is no character");
    }
    uint32_t v = hex(p, 4, 4);
    if (v >= 0xD800 && v < 0xDC00 && take(p, "\\u")) {
        uint32_t low = hex(p, 4, 4);
        if (low >= 0xDC00 && low < 0xE000)
            return 0x10000 + ((v - 0xD800) << 10) + (low - 0xDC00);
    }
    return v >= 0xD800 && v < 0xE000 ? bad(p, "half a surrogate pair") : v;
}

/* The character of an escape, behind the backslash. */
static uint32_t escape(struct pattern *p, bool in_class)
{
    static const char from[] = "nrtfv0", to[] = {'\n', '\r', '\t', '\f', '\v', 0};
    char c = peek(p);
    if (p->at >= p->end)
        return bad(p, "it ends with a backslash");
    const char *known = c ? strchr(from, c) : NULL;
    p->at++;
    if (known && !(c == '0' && peek(p) >= '0' && peek(p) <= '9'))
        return (unsigned char)to[known - from];
    if (c == 'b' && in_class)
        return '\b';
    if (c == 'x')
        return hex(p, 2, 2);
    if (c == 'u')
        return unicode_escape(p);
    if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
        return bad(p, "this escape cannot be enforced (references, word boundaries, ...)");
    p->at--;
    size_t size;
    uint32_t v = utf8_decode((const unsigned char *)p->at, &size);
    p->at += size;
    return v;
}

static uint32_t plain(struct pattern *p, bool in_class)
{
    size_t size;
    if (take(p, "\\"))
        return escape(p, in_class);
    uint32_t v = utf8_decode((const unsigned char *)p->at, &size);
    p->at += size;
    return v;
}

static uint32_t class(struct pattern *p)
{
    struct ranges r = {0};
    bool negate = take(p, "^");
    while (ok(p) && p->at < p->end && *p->at != ']') {
        if (*p->at == '\\' && p->end - p->at > 1) {
            p->at++;
            if (class_escape(p, &r))
                continue;
            p->at--;
        }
        uint32_t lo = plain(p, true), hi = lo;
        if (ok(p) && peek(p) == '-' && p->end - p->at > 1 && p->at[1] != ']') {
            p->at++;
            if (peek(p) == '\\' && p->end - p->at > 1 && strchr("dwspDWSP", p->at[1]))
                bad(p, "a range up to a class");
            else
                hi = plain(p, true);
        }
        if (hi < lo)
            bad(p, "a range that ends before it begins");
        add(p, &r, lo, hi);
    }
    if (!take(p, "]"))
        bad(p, "a class without an end");
    uint32_t node = ok(p) ? g_class(p->b, r.v, r.n, negate) : 0;
    free(r.v);
    return node;
}

static uint32_t one_range(struct pattern *p, struct ranges *r)
{
    uint32_t node = ok(p) ? g_class(p->b, r->v, r->n, false) : 0;
    free(r->v);
    return node;
}

/* ------------------------------------------------------------------ structure */

static uint32_t alternatives(struct pattern *p, int depth, bool whole);

static uint32_t any_text(struct pattern *p)
{
    return g_repeat(p->b, G_REPEAT, g_class(p->b, NULL, 0, true), 0, G_INF);
}

/* {m} {m,} {m,n}; anything else that begins with { is text. */
static bool braces(struct pattern *p, uint32_t *min, uint32_t *max)
{
    const char *c = p->at + 1;
    uint32_t v[2] = {0};
    bool given[2] = {false};
    int which = 0;
    for (; c < p->end && *c != '}'; c++) {
        if (*c == ',' && which == 0 && given[0])
            which = 1;
        else if (*c >= '0' && *c <= '9' && v[which] <= MAX_TIMES) {
            v[which] = 10 * v[which] + (uint32_t)(*c - '0');
            given[which] = true;
        } else
            return false;
    }
    if (c == p->end || !given[0])
        return false;
    p->at = c + 1;
    *min = v[0];
    *max = which == 0 ? v[0] : given[1] ? v[1] : G_INF;
    return true;
}

static uint32_t quantified(struct pattern *p, uint32_t node)
{
    uint32_t min = 0, max = G_INF;
    if (take(p, "+"))
        min = 1;
    else if (take(p, "?"))
        max = 1;
    else if (!take(p, "*") && !(peek(p) == '{' && braces(p, &min, &max)))
        return node;
    if (max < min || min > MAX_TIMES || (max != G_INF && max > MAX_TIMES))
        return bad(p, "a repetition out of range");
    take(p, "?"); /* lazy: the same texts */
    if (peek(p) == '*' || peek(p) == '+' || peek(p) == '?')
        return bad(p, "a repetition of a repetition");
    return g_repeat(p->b, G_REPEAT, node, min, max);
}

/* Behind its (. */
static void group_head(struct pattern *p)
{
    if (!take(p, "?") || take(p, ":"))
        return;
    if (take(p, "<") && peek(p) != '=' && peek(p) != '!') {
        while (p->at < p->end && *p->at != '>')
            p->at++;
        if (take(p, ">"))
            return;
    }
    bad(p, "looking ahead or behind cannot be enforced");
}

static uint32_t group(struct pattern *p, int depth, bool whole)
{
    if (depth >= MAX_GROUPS)
        return bad(p, "groups too deep");
    group_head(p);
    uint32_t node = ok(p) ? alternatives(p, depth + 1, whole) : 0;
    return !ok(p) || take(p, ")") ? node : bad(p, "a group without an end");
}

static uint32_t element(struct pattern *p, int depth)
{
    struct ranges r = {0};
    if (take(p, "("))
        return group(p, depth, false);
    if (take(p, "["))
        return class(p);
    if (take(p, ".")) {
        static const struct grange line[] = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};
        return g_class(p->b, line, 3, true);
    }
    char c = peek(p);
    if (c == '*' || c == '+' || c == '?')
        return bad(p, "nothing to repeat");
    if (c == '\\' && p->end - p->at > 1) {
        p->at++;
        if (class_escape(p, &r))
            return one_range(p, &r);
        p->at--;
    }
    uint32_t v = plain(p, false);
    add(p, &r, v, v);
    return one_range(p, &r);
}

/* Whether the group that begins at p->at is all there is up to | or the end. */
static bool group_is_all(const struct pattern *p)
{
    int depth = 0;
    bool in_class = false;
    for (const char *c = p->at; c < p->end; c++) {
        if (*c == '\\')
            c++;
        else if (in_class)
            in_class = *c != ']';
        else if (*c == '[')
            in_class = true;
        else if (*c == '(')
            depth++;
        else if (*c == ')' && --depth == 0)
            return c + 1 == p->end || c[1] == '|' || c[1] == ')';
    }
    return false;
}

/* `whole`: the sequence is an alternative of the whole pattern. */
static uint32_t sequence(struct pattern *p, int depth, bool whole)
{
    struct glist parts = {0};
    if (whole && peek(p) == '(' && group_is_all(p)) {
        p->at++;
        return group(p, depth, true);
    }
    bool open = true; /* to what may follow */
    if (!take(p, "^")) {
        if (whole)
            glist_add(p->b, &parts, any_text(p));
    } else if (!whole) {
        bad(p, "^ inside a pattern cannot be enforced");
    }
    while (ok(p) && p->at < p->end && *p->at != '|' && *p->at != ')') {
        if (*p->at == '^' || *p->at == '$') {
            open = false;
            if (*p->at++ == '^' || !whole || !(p->at == p->end || *p->at == '|' || *p->at == ')'))
                bad(p, "an anchor inside a pattern cannot be enforced");
            continue;
        }
        uint32_t node = element(p, depth);
        glist_add(p->b, &parts, ok(p) ? quantified(p, node) : 0);
    }
    if (whole && open)
        glist_add(p->b, &parts, any_text(p));
    uint32_t node = ok(p) ? g_list(p->b, G_SEQ, parts.v, parts.n) : 0;
    free(parts.v);
    return node;
}

static uint32_t alternatives(struct pattern *p, int depth, bool whole)
{
    struct glist list = {0};
    do
        glist_add(p->b, &list, sequence(p, depth, whole));
    while (ok(p) && take(p, "|"));
    uint32_t node = ok(p) ? g_list(p->b, G_ALT, list.v, list.n) : 0;
    free(list.v);
    return node;
}

uint32_t g_pattern(struct gbuild *b, const char *pattern, size_t len, const char *place)
{
    struct pattern p = {
        .b = b, .at = pattern, .end = pattern + len, .all = pattern, .place = place, .len = len};
    if (len > 1 << 16)
        return bad(&p, "longer than 65536 bytes");
    uint32_t node = alternatives(&p, 0, true);
    return ok(&p) && p.at < p.end ? bad(&p, "a ) without a group") : node;
}

/* ------------------------------------------------------------------ formats */

#define HOUR "([01][0-9]|2[0-3])"
#define YEAR "[1-9][0-9]{3}"
#define LEAP "([1-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)"
#define DATE                                                                                 \
    "(" YEAR "-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)" \
    "|02-(0[1-9]|1[0-9]|2[0-8]))|" LEAP "-02-29)"
#define TIME  HOUR ":[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]" HOUR ":[0-5][0-9])"
#define HOST  "[A-Za-z0-9]+([-.][A-Za-z0-9]+)*"
#define BYTE  "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
#define H16   "[0-9a-fA-F]{1,4}"
#define ATOM  "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
#define PCHAR "([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"

const char *format_pattern(const char *name, size_t len)
{
    static const struct {
        const char *name, *pattern;
    } format[] = {
        {"date", "^" DATE "$"},
        {"time", "^" TIME "$"},
        {"date-time", "^" DATE "T" TIME "$"},
        {"duration",
         "^P([0-9]{1,6}W|([0-9]{1,6}D|[0-9]{1,6}M([0-9]{1,6}D)?|[0-9]{1,6}Y([0-9]{1,6}M([0-9]{1,6}"
         "D)?"
         ")?)(T([0-9]{1,6}S|[0-9]{1,6}M([0-9]{1,6}S)?|[0-9]{1,6}H([0-9]{1,6}M([0-9]{1,6}S)?)?))?"
         "|T([0-9]{1,6}S|[0-9]{1,6}M([0-9]{1,6}S)?|[0-9]{1,6}H([0-9]{1,6}M([0-9]{1,6}S)?)?))$"},
        {"uuid", "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"},
        {"email", "^" ATOM "(\\." ATOM ")*@" HOST "$"},
        {"hostname", "^[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?(\\.[A-Za-z]{2,30}){0,4}$"},
        {"ipv4", "^" BYTE "(\\." BYTE "){3}$"},
        {"ipv6",
         "^((" H16 ":){7}" H16 "|(" H16 ":){1,3}(:" H16 "){1,3}|::(" H16 "(:" H16 "){0,4})?)$"},
        {"uri", "^[A-Za-z][A-Za-z0-9+.-]*:(//" HOST "(:[1-9][0-9]{0,3})?(/" PCHAR "*)*|" PCHAR
                "+)(\\?(" PCHAR "|[/?])*)?(#(" PCHAR "|[/?])*)?$"},
        {"json-pointer", "^(/([^~/]|~[01])*)*$"},
    };
    for (size_t i = 0; i < sizeof format / sizeof *format; i++)
        if (strlen(format[i].name) == len && memcmp(format[i].name, name, len) == 0)
            return format[i].pattern;
    return NULL;
}
