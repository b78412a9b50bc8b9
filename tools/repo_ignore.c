/* .gitignore as git 2.39 reads it: which paths it hides. Works on bytes. Matching takes at most
 * pattern times path steps, whatever the pattern. */
#include "repo.h"

#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ patterns */

struct text {
    const unsigned char *at, *end;
};

static bool in_named_class(const char *name, size_t n, unsigned char c, bool *known)
{
    bool lower = c >= 'a' && c <= 'z', upper = c >= 'A' && c <= 'Z', digit = c >= '0' && c <= '9';
    bool graph = c > ' ' && c < 0x7f, alnum = lower || upper || digit;
    const struct {
        const char *name;
        bool holds;
    } class[] = {
        {"alnum", alnum},
        {"alpha", lower || upper},
        {"blank", c == ' ' || c == '\t'},
        {"cntrl", c < ' ' || c == 0x7f},
        {"digit", digit},
        {"graph", graph},
        {"lower", lower},
        {"print", graph || c == ' '},
        {"punct", graph && !alnum},
        {"space", c == ' ' || (c >= '\t' && c <= '\r')},
        {"upper", upper},
        {"xdigit", digit || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F')},
    };
    for (size_t i = 0; i < sizeof class / sizeof *class; i++)
        if (strlen(class[i].name) == n && memcmp(class[i].name, name, n) == 0)
            return class[i].holds;
    *known = false;
    return false;
}

/* "[:alpha:]" at p: its length, 0 when no ":]" ends it. */
static size_t named_class(const struct text *p)
{
    const unsigned char *end = memchr(p->at + 2, ']', (size_t)(p->end - p->at - 2));
    return end && end > p->at + 2 && end[-1] == ':' ? (size_t)(end - p->at) + 1 : 0;
}

/* "[...]": moves p behind it and tells whether c is in; false for one that does not end. */
static bool set_holds(struct text *p, unsigned char c)
{
    const unsigned char *q = p->at + 1;
    bool negated = q < p->end && (*q == '!' || *q == '^'), in = false, known = true;
    int before = -1; /* what a range may begin with */
    q += negated;
    for (bool first = true; first || q == p->end || *q != ']'; first = false) {
        if (q == p->end)
            return false;
        size_t n =
            q + 1 < p->end && *q == '[' && q[1] == ':' ? named_class(&(struct text){q, p->end}) : 0;
        if (n > 0) {
            in |= in_named_class((const char *)q + 2, n - 4, c, &known);
            q += n;
            before = -1;
            continue;
        }
        bool range = *q == '-' && before >= 0 && q + 1 < p->end && q[1] != ']';
        q += range;
        if (*q == '\\' && ++q == p->end)
            return false;
        in |= range ? before <= c && c <= *q : c == *q;
        before = range ? -1 : *q;
        q++;
    }
    p->at = q + 1;
    return known && in != negated && c != '/';
}

/* One element of a pattern, no star, against one byte; moves p behind it on a match. */
static bool one_matches(struct text *p, unsigned char c)
{
    switch (*p->at) {
    case '[': return set_holds(p, c);
    case '?': p->at++; return c != '/';
    case '\\':
        if (p->at + 1 == p->end)
            return false;
        p->at++; /* fall through */
    default: return *p->at++ == c;
    }
}

/* A star stands for anything inside a name; two between slashes for any number of directories (git cuts
 * the pattern in front of its first wildcard, so two stars there count as if behind a slash). Of
 * several stars in a name only the last has to be tried again, and of several pairs, too: what stands
 * before it was matched as early as possible. */
static bool matches(struct text p, struct text t)
{
    const unsigned char *first = p.at; /* wildcard */
    while (first < p.end && !memchr("*?[\\", *first, 4))
        first++;
    const unsigned char *star = NULL, *star_at = NULL, *pair = NULL, *pair_at = NULL;
    for (;;) {
        if (p.at < p.end && *p.at == '*') {
            const unsigned char *q = p.at;
            bool slash_before = q == first || q[-1] == '/';
            while (q < p.end && *q == '*')
                q++;
            if (slash_before && q - p.at >= 2 && q == p.end)
                return true;
            if (slash_before && q - p.at >= 2 && *q == '/') {
                p.at = pair = q + 1;
                pair_at = t.at;
                star = NULL;
            } else {
                p.at = star = q;
                star_at = t.at;
            }
            continue;
        }
        if (p.at == p.end && t.at == t.end)
            return true;
        if (p.at < p.end && t.at < t.end && one_matches(&p, *t.at)) {
            if (*t.at++ == '/')
                star = NULL;
            continue;
        }
        if (star && star_at < t.end && *star_at != '/') {
            p.at = star;
            t.at = ++star_at;
            continue;
        }
        if (pair)
            pair_at = memchr(pair_at, '/', (size_t)(t.end - pair_at));
        if (!pair || !pair_at)
            return false;
        p.at = pair;
        t.at = ++pair_at;
        star = NULL;
    }
}

/* ------------------------------------------------------------------ rules */

/* The length without blanks at the end; one behind a backslash stays. */
static size_t without_blanks(const char *line, size_t len)
{
    size_t end = 0;
    for (size_t i = 0; i < len; i++) {
        if (line[i] == '\\') {
            if (++i == len)
                return len;
            end = i + 1;
        } else if (line[i] != ' ') {
            end = i + 1;
        }
    }
    return end;
}

static int add_line(struct ignore *g, const char *line, size_t len, size_t base, dsv4_err *err)
{
    if (len == 0 || *line == '#')
        return 0;
    len = without_blanks(line, len);
    struct ignore_rule rule = {.base = base, .negated = len > 0 && *line == '!'};
    line += rule.negated;
    len -= rule.negated;
    rule.dir_only = len > 0 && line[len - 1] == '/';
    len -= rule.dir_only;
    if (len == 0)
        return 0;
    rule.whole = memchr(line, '/', len) != NULL;
    size_t slash = *line == '/';
    rule.len = len - slash;
    TRY(mem_grow(&g->rule, &g->cap, g->n + 1, sizeof *g->rule, "rules of .gitignore", err));
    TRY(mem_alloc(&rule.pattern, rule.len + 1, 1, "a rule of .gitignore", err));
    memcpy(rule.pattern, line + slash, rule.len);
    g->rule[g->n++] = rule;
    return 0;
}

int ignore_add(struct ignore *g, const char *text, size_t len, size_t base, dsv4_err *err)
{
    static const char mark[] = "\xef\xbb\xbf"; /* byte order */
    size_t at = len >= 3 && memcmp(text, mark, 3) == 0 ? 3 : 0;
    while (at < len) {
        const char *newline = memchr(text + at, '\n', len - at);
        size_t end = newline ? (size_t)(newline - text) : len;
        size_t cut = end > at && text[end - 1] == '\r' ? end - 1 : end;
        TRY(add_line(g, text + at, cut - at, base, err));
        at = end + 1;
    }
    return 0;
}

void ignore_cut(struct ignore *g, size_t n)
{
    while (g->n > n)
        free(g->rule[--g->n].pattern);
}

bool ignored(const struct ignore *g, const char *path, bool dir)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    const unsigned char *end = (const unsigned char *)path + strlen(path);
    for (size_t i = g->n; i-- > 0;) {
        const struct ignore_rule *r = &g->rule[i];
        const unsigned char *pattern = (const unsigned char *)r->pattern;
        const char *from = r->whole ? path + r->base : name;
        if ((dir || !r->dir_only) && matches((struct text){pattern, pattern + r->len},
                                             (struct text){(const unsigned char *)from, end}))
            return !r->negated;
    }
    return false;
}
