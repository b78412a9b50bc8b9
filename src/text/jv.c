/* The JSON reader of jv.h: a loop over values that climbs through parent pointers, and an arena that
 * owns what it makes. Writing is in jv_write.c. */
#include "jv.h"
#include "text.h"

#include <stdlib.h>
#include <string.h>

struct jv_block {
    struct jv_block *next;
    size_t used, cap;
    char *data; /* behind this header */
};

struct reader {
    const char *begin, *at, *end;
    struct jv_doc *doc;
    size_t values;
    const char *what;
    dsv4_err *err;
};

/* `size` bytes, aligned for any value. */
static int take(struct jv_doc *doc, size_t size, void *out_pointer, dsv4_err *err)
{
    size_t need;
    if (!size_add(size, 15, &need))
        return err_memory(err, size, "JSON");
    need &= ~(size_t)15;
    struct jv_block *b = doc->blocks;
    if (!b || b->cap - b->used < need) {
        size_t cap = b ? b->cap : 2048, bytes, head = (sizeof *b + 15) & ~(size_t)15;
        cap = cap < (1u << 20) ? cap * 2 : cap;
        cap = cap < need ? need : cap;
        if (!size_add(cap, head, &bytes) || !(b = malloc(bytes)))
            return err_memory(err, cap, "JSON");
        *b = (struct jv_block){doc->blocks, 0, cap, (char *)b + head};
        doc->blocks = b;
    }
    void *p = b->data + b->used;
    b->used += need;
    memcpy(out_pointer, &p, sizeof p);
    return 0;
}

void jv_free(struct jv_doc *doc)
{
    for (struct jv_block *b = doc->blocks, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    *doc = (struct jv_doc){0};
}

static int refuse(const struct reader *r, const char *expected)
{
    return err_set(r->err, DSV4_REFUSED, "%s: not valid JSON at byte %zu: expected %s", r->what,
                   (size_t)(r->at - r->begin), expected);
}

static void skip_blanks(struct reader *r)
{
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\n' || *r->at == '\t' || *r->at == '\r'))
        r->at++;
}

/* The four digits of a \u escape; -1 when they are none. */
static int hex4(const char *p, const char *end)
{
    int v = 0;
    if (end - p < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
        if (d < 0)
            return -1;
        v = v * 16 + d;
    }
    return v;
}

/* \uXXXX behind r->at (which is at the u): a pair makes one character, a half alone U+FFFD. */
static int unicode_escape(struct reader *r, char **o)
{
    int hi = hex4(r->at + 1, r->end);
    if (hi < 0)
        return refuse(r, "four hexadecimal digits");
    r->at += 5;
    unsigned c = (unsigned)hi;
    if (hi >= 0xD800 && hi < 0xDC00 && r->end - r->at >= 2 && r->at[0] == '\\' && r->at[1] == 'u') {
        int lo = hex4(r->at + 2, r->end);
        if (lo >= 0xDC00 && lo < 0xE000) {
            c = 0x10000 + ((unsigned)(hi - 0xD800) << 10) + (unsigned)(lo - 0xDC00);
            r->at += 6;
        }
    }
    *o += utf8_encode(c >= 0xD800 && c < 0xE000 ? 0xFFFD : c, *o);
    return 0;
}

/* Finds the closing quote, checking what lies between; *escapes says whether there is anything to
 * decode. r->at is behind the opening quote and stays there. */
static int scan_string(struct reader *r, const char **close, bool *escapes)
{
    const char *start = r->at;
    *escapes = false;
    while (r->at < r->end && *r->at != '"') {
        unsigned char c = (unsigned char)*r->at;
        if (c < 0x20)
            return refuse(r, "no control character inside a string");
        if (c == '\\') {
            *escapes = true;
            r->at += r->end - r->at > 1 ? 2 : 1;
            continue;
        }
        size_t n = 1;
        if (c >= 0x80 && utf8_next(r->at, (size_t)(r->end - r->at), &n) != UTF8_WHOLE)
            return refuse(r, "well-formed UTF-8");
        r->at += n;
    }
    if (r->at >= r->end)
        return refuse(r, "the end of a string");
    *close = r->at;
    r->at = start;
    return 0;
}

/* The string whose opening quote is at r->at. An escape is never shorter than what it stands for. */
static int read_string(struct reader *r, const char **text, size_t *len)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *close = NULL;
    bool escapes;
    r->at++;
    TRY(scan_string(r, &close, &escapes));
    *text = r->at;
    *len = (size_t)(close - r->at);
    if (escapes) {
        char *o;
        TRY(take(r->doc, *len, &o, r->err));
        *text = o;
        while (r->at < close) {
            if (*r->at != '\\') {
                *o++ = *r->at++;
                continue;
            }
            r->at++;
            if (*r->at == 'u') {
                TRY(unicode_escape(r, &o));
                continue;
            }
            const char *e = *r->at ? strchr(from, *r->at) : NULL;
            if (!e)
                return refuse(r, "an escape");
            *o++ = to[e - from];
            r->at++;
        }
        *len = (size_t)(o - *text);
    }
    r->at = close + 1;
    return 0;
}

static const char *digits(const char *p, const char *end)
{
    while (p < end && *p >= '0' && *p <= '9')
        p++;
    return p;
}

/* -?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?; a dot or an e without digits is not part of it. */
static int read_number(struct reader *r, struct jv *v)
{
    const char *p = r->at, *q;
    p += *p == '-';
    q = p < r->end && *p == '0' ? p + 1 : digits(p, r->end);
    if (q == p)
        return refuse(r, "a value");
    p = q;
    v->integer = true;
    if (p < r->end && *p == '.' && (q = digits(p + 1, r->end)) > p + 1) {
        p = q;
        v->integer = false;
    }
    if (p < r->end && (*p == 'e' || *p == 'E')) {
        const char *d = p + 1;
        d += d < r->end && (*d == '+' || *d == '-');
        if ((q = digits(d, r->end)) > d) {
            p = q;
            v->integer = false;
        }
    }
    v->type = JV_NUMBER;
    v->text = r->at;
    v->len = (size_t)(p - r->at);
    if (v->len > JV_MAX_DIGITS)
        return err_set(r->err, DSV4_FAILED, "%s: a number of %zu characters; at most %d are read",
                       r->what, v->len, JV_MAX_DIGITS);
    r->at = p;
    return 0;
}

static bool word(struct reader *r, const char *w)
{
    size_t n = strlen(w);
    if ((size_t)(r->end - r->at) < n || memcmp(r->at, w, n) != 0)
        return false;
    r->at += n;
    return true;
}

/* A value that holds no others, or the opening of one that does. */
static int begin_value(struct reader *r, struct jv *v)
{
    static const struct {
        const char *word;
        enum jv_type type;
    } words[] = {{"null", JV_NULL},  {"true", JV_TRUE},       {"false", JV_FALSE},
                 {"NaN", JV_NUMBER}, {"Infinity", JV_NUMBER}, {"-Infinity", JV_NUMBER}};
    if (r->at >= r->end)
        return refuse(r, "a value");
    if (*r->at == '"') {
        v->type = JV_STRING;
        return read_string(r, &v->text, &v->len);
    }
    if (*r->at == '{' || *r->at == '[') {
        v->type = *r->at++ == '{' ? JV_OBJECT : JV_LIST;
        return 0;
    }
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (word(r, words[i].word)) {
            v->type = words[i].type;
            v->text = words[i].word;
            v->len = strlen(words[i].word);
            return 0;
        }
    return read_number(r, v);
}

/* ------------------------------------------------------------------ repeated keys */

struct member {
    struct jv *v;
    size_t at;
    uint64_t head; /* the first bytes of the key settle most comparisons */
};

static int by_key(const void *a, const void *b)
{
    const struct member *x = a, *y = b;
    if (x->head != y->head)
        return x->head < y->head ? -1 : 1;
    if (x->v->key_len != y->v->key_len)
        return x->v->key_len < y->v->key_len ? -1 : 1;
    int c = memcmp(x->v->key, y->v->key, x->v->key_len);
    return c ? c : x->at < y->at ? -1 : 1;
}

static bool same_key(const struct jv *a, const struct jv *b)
{
    return a->key_len == b->key_len && memcmp(a->key, b->key, a->key_len) == 0;
}

/* Most objects are small and have no key twice. */
static bool small_and_unique(const struct jv *object)
{
    if (object->len > 16)
        return false;
    for (const struct jv *a = object->first; a; a = a->next)
        for (const struct jv *b = a->next; b; b = b->next)
            if (same_key(a, b))
                return false;
    return true;
}

/* The last value of each key moves to the place of its first. */
static int merge_keys(struct jv *object, dsv4_err *err)
{
    if (object->len < 2 || small_and_unique(object))
        return 0;
    size_t n = object->len, i = 0;
    struct member *sorted;
    struct jv **place;
    TRY(mem_alloc(&sorted, n, sizeof *sorted, "JSON keys", err));
    int rc = mem_alloc(&place, n, sizeof *place, "JSON keys", err);
    if (rc != 0) {
        free(sorted);
        return rc;
    }
    for (struct jv *v = object->first; v; v = v->next, i++) {
        sorted[i] = (struct member){v, i, 0};
        memcpy(&sorted[i].head, v->key, v->key_len < 8 ? v->key_len : 8);
    }
    qsort(sorted, n, sizeof *sorted, by_key);
    for (size_t a = 0, b; a < n; a = b) {
        for (b = a + 1; b < n && same_key(sorted[a].v, sorted[b].v); b++)
            ;
        place[sorted[a].at] = sorted[b - 1].v;
    }
    object->first = object->last = NULL;
    object->len = 0;
    for (i = 0; i < n; i++) {
        if (!place[i])
            continue;
        place[i]->next = NULL;
        *(object->last ? &object->last->next : &object->first) = place[i];
        object->last = place[i];
        object->len++;
    }
    free(sorted);
    free(place);
    return 0;
}

/* ------------------------------------------------------------------ the loop */

static int new_value(struct reader *r, struct jv *parent, struct jv **out)
{
    struct jv *v;
    if (++r->values > JV_MAX_VALUES)
        return err_set(r->err, DSV4_FAILED, "%s: more than %u JSON values", r->what, JV_MAX_VALUES);
    TRY(take(r->doc, sizeof *v, &v, r->err));
    *v = (struct jv){.parent = parent};
    if (parent) {
        *(parent->last ? &parent->last->next : &parent->first) = v;
        parent->last = v;
        parent->len++;
    }
    *out = v;
    return 0;
}

/* "key": of the next member. */
static int read_key(struct reader *r, struct jv *v)
{
    skip_blanks(r);
    if (r->at >= r->end || *r->at != '"')
        return refuse(r, "a key in double quotes");
    TRY(read_string(r, &v->key, &v->key_len));
    skip_blanks(r);
    if (r->at >= r->end || *r->at != ':')
        return refuse(r, "':'");
    r->at++;
    return 0;
}

/* True when the container ends here. */
static bool closes(struct reader *r, const struct jv *container)
{
    skip_blanks(r);
    if (r->at >= r->end || *r->at != (container->type == JV_OBJECT ? '}' : ']'))
        return false;
    r->at++;
    return true;
}

/* A value has ended: closes what ends with it. *in becomes the container the next value goes into,
 * NULL after the root. */
static int climb(struct reader *r, struct jv **in, size_t *depth)
{
    while (*in) {
        if (!closes(r, *in)) {
            if (r->at >= r->end || *r->at != ',')
                return refuse(r, (*in)->type == JV_OBJECT ? "',' or '}'" : "',' or ']'");
            r->at++;
            return 0;
        }
        if ((*in)->type == JV_OBJECT)
            TRY(merge_keys(*in, r->err));
        *in = (*in)->parent;
        --*depth;
    }
    return 0;
}

static int read_document(struct reader *r)
{
    struct jv *in = NULL, *v = NULL;
    size_t depth = 0;
    do {
        TRY(new_value(r, in, &v));
        if (!in)
            r->doc->root = v;
        else if (in->type == JV_OBJECT)
            TRY(read_key(r, v));
        skip_blanks(r);
        TRY(begin_value(r, v));
        if (v->type == JV_LIST || v->type == JV_OBJECT) {
            if (++depth > JV_MAX_DEPTH)
                return err_set(r->err, DSV4_FAILED, "%s: JSON nested deeper than %d levels",
                               r->what, JV_MAX_DEPTH);
            if (!closes(r, v)) {
                in = v;
                continue;
            }
            depth--;
        }
        TRY(climb(r, &in, &depth));
    } while (in);
    skip_blanks(r);
    return r->at == r->end ? 0 : refuse(r, "nothing more");
}

int jv_parse(struct jv_doc *doc, const char *text, size_t len, const char *what, dsv4_err *err)
{
    *doc = (struct jv_doc){0};
    if (len > JV_MAX_TEXT)
        return err_set(err, DSV4_FAILED, "%s: %zu bytes of JSON; at most %zu are read", what, len,
                       JV_MAX_TEXT);
    struct reader r = {text, text, text + len, doc, 0, what, err};
    int rc = read_document(&r);
    if (rc != 0)
        jv_free(doc);
    return rc;
}

/* ------------------------------------------------------------------ looking at values */

const struct jv *jv_get(const struct jv *v, const char *key)
{
    if (!jv_is(v, JV_OBJECT))
        return NULL;
    size_t n = strlen(key);
    for (const struct jv *m = v->first; m; m = m->next)
        if (m->key_len == n && memcmp(m->key, key, n) == 0)
            return m;
    return NULL;
}

bool jv_equals(const struct jv *v, const char *text)
{
    return jv_is(v, JV_STRING) && v->len == strlen(text) && memcmp(v->text, text, v->len) == 0;
}

bool jv_truth(const struct jv *v)
{
    if (!v)
        return false;
    switch (v->type) {
    case JV_NULL:
    case JV_FALSE: return false;
    case JV_TRUE: return true;
    case JV_STRING:
    case JV_LIST:
    case JV_OBJECT: return v->len > 0;
    case JV_NUMBER: break;
    }
    /* Zero has no other digit before its exponent. */
    for (size_t i = 0; i < v->len && v->text[i] != 'e' && v->text[i] != 'E'; i++)
        if ((v->text[i] >= '1' && v->text[i] <= '9') || v->text[i] == 'N' || v->text[i] == 'I')
            return true;
    return false;
}
