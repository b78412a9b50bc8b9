/* JSON that cannot be trusted: typed members with ranges and messages that name them, and a walk
 * over the members of objects too large to be built in memory. What the members mean is said by
 * the callers. */
#include "parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The bytes of the longest token, or some more. */
static size_t longest_token(const char *text, size_t len)
{
    bool quoted = false;
    size_t run = 0, most = 0;
    for (size_t i = 0; i < len; i++) {
        if (quoted && text[i] == '\\') {
            run += 2;
            i++;
            continue;
        }
        if (text[i] == '"')
            quoted = !quoted;
        run = !quoted && strchr(" \t\r\n,:[]{}", text[i]) ? 0 : run + 1;
        most = run > most ? run : most;
    }
    return (run > most ? run : most) + 1;
}

/* When jansson (2.14) cannot make its buffer for a token larger it loses characters, and of a string that lost its
 * closing quote it reads on behind the end. Therefore the text is parsed as the second item of a list, behind a
 * string that makes the buffer large enough for all that follows. The buffer doubles at powers of two; that string ends
 * between two of them, so what it may lose is not its quote, and nobody looks at it. */
struct feed {
    const char *text;
    size_t len, pad;
    size_t at; /* in ["xxx",text] */
};

static size_t feed(void *to, size_t n, void *arg)
{
    struct feed *f = arg;
    char *out = to;
    size_t done = 0, head = 2 + f->pad + 2;
    for (; done < n && f->at < head; f->at++)
        out[done++] = f->at < 2            ? "[\""[f->at]
                      : f->at < 2 + f->pad ? 'x'
                                           : "\","[f->at - 2 - f->pad];
    size_t from = f->at - head, k = f->at < head || from > f->len ? 0 : f->len - from;
    k = k < n - done ? k : n - done;
    if (k > 0)
        memcpy(out + done, f->text + from, k);
    done += k;
    f->at += k;
    if (done < n && f->at == head + f->len) {
        out[done++] = ']';
        f->at++;
    }
    return done;
}

static json_t *parse(const char *text, size_t len, json_error_t *e)
{
    struct feed f = {.text = text, .len = len, .pad = 24};
    json_t *list, *value = NULL;
    for (size_t most = longest_token(text, len); f.pad < most;)
        f.pad *= 2;
    list = json_load_callback(feed, &f, JSON_REJECT_DUPLICATES, e);
    if (list && json_array_size(list) == 2)
        value = json_incref(json_array_get(list, 1));
    else if (list)
        snprintf(e->text, sizeof e->text, "more than one value");
    json_decref(list);
    if (e->line == 1 && e->column > (int)f.pad + 4)
        e->column -= (int)f.pad + 4;
    return value;
}

/* Some failed allocations look like syntax errors: these are believed when they come twice, with memory at hand. */
int json_open(json_t **out, const char *text, size_t len, const char *where, dsv4_err *err)
{
    json_error_t e = {0}, later = {0};
    *out = parse(text, len, &e);
    if (*out)
        return 0;
    json_t *again = parse(text, len, &later), *probe = json_integer(0);
    bool sure = !again && probe && json_error_code(&e) != json_error_out_of_memory;
    json_decref(again);
    json_decref(probe);
    if (!sure)
        return err_memory(err, len, "JSON");
    return err_set(err, DSV4_REFUSED, "%s: not valid JSON at line %d, column %d: %s", where, e.line,
                   e.column, e.text);
}

int json_write(char **out, const json_t *value, size_t flags, dsv4_err *err)
{
    size_t len = value ? json_dumpb(value, NULL, 0, flags) : 0;
    char *text = len ? malloc(len + 1) : NULL;
    if (!text || json_dumpb(value, text, len, flags) != len) {
        free(text);
        return err_memory(err, len, "JSON");
    }
    text[len] = 0;
    *out = text;
    return 0;
}

const json_t *field_get(const struct fields *f, const char *name)
{
    const json_t *v = json_object_get(f->object, name);
    return json_is_null(v) ? NULL : v;
}

/* A value as a message shows it, shortened. */
static void describe(const json_t *v, char *out, size_t cap)
{
    if (!v)
        snprintf(out, cap, "missing");
    else if (json_is_integer(v))
        snprintf(out, cap, "%lld", (long long)json_integer_value(v));
    else if (json_is_real(v))
        snprintf(out, cap, "%.9g", json_real_value(v));
    else if (json_is_string(v))
        snprintf(out, cap, "\"%.40s%s\"", json_string_value(v),
                 json_string_length(v) > 40 ? "..." : "");
    else if (json_is_boolean(v))
        snprintf(out, cap, "%s", json_is_true(v) ? "true" : "false");
    else if (json_is_array(v))
        snprintf(out, cap, "a list of %zu", json_array_size(v));
    else if (json_is_object(v))
        snprintf(out, cap, "an object");
    else
        snprintf(out, cap, "null");
}

int field_refuse(const struct fields *f, const char *name, const json_t *v, dsv4_err *err,
                 const char *expected, ...)
{
    char shown[64], want[256];
    describe(v, shown, sizeof shown);
    va_list ap;
    va_start(ap, expected);
    vsnprintf(want, sizeof want, expected, ap);
    va_end(ap);
    return err_set(err, DSV4_REFUSED, "%s: %s%s is %s; expected %s", f->where, f->prefix, name,
                   shown, want);
}

int item_refuse(const struct fields *f, const char *name, size_t i, const json_t *v, dsv4_err *err,
                const char *expected, ...)
{
    char item[96], want[256];
    snprintf(item, sizeof item, "%s[%zu]", name, i);
    va_list ap;
    va_start(ap, expected);
    vsnprintf(want, sizeof want, expected, ap);
    va_end(ap);
    return field_refuse(f, item, v, err, "%s", want);
}

bool json_whole(const json_t *v, int64_t *out)
{
    if (json_is_integer(v)) {
        *out = json_integer_value(v);
        return true;
    }
    /* Some tools write 128 as 128.0. Up to 2^53 a real says exactly which integer it is. */
    if (!json_is_real(v))
        return false;
    double x = json_real_value(v);
    if (!(fabs(x) <= 9007199254740992.0) || x != floor(x))
        return false;
    *out = (int64_t)x;
    return true;
}

int field_whole(const struct fields *f, const char *name, int64_t lo, int64_t hi, int64_t *out,
                bool *found, dsv4_err *err)
{
    const json_t *v = field_get(f, name);
    if (found)
        *found = v != NULL;
    if (!v)
        return 0;
    int64_t x;
    if (!json_whole(v, &x) || x < lo || x > hi)
        return field_refuse(f, name, v, err, "a whole number from %lld to %lld", (long long)lo,
                            (long long)hi);
    *out = x;
    return 0;
}

int field_real(const struct fields *f, const char *name, double lo, double hi, double *out,
               bool *found, dsv4_err *err)
{
    const json_t *v = field_get(f, name);
    if (found)
        *found = v != NULL;
    if (!v)
        return 0;
    double x = json_number_value(v);
    if (!json_is_number(v) || !(x >= lo && x <= hi))
        return field_refuse(f, name, v, err, "a number from %g to %g", lo, hi);
    *out = x;
    return 0;
}

int field_bool(const struct fields *f, const char *name, bool *out, bool *found, dsv4_err *err)
{
    const json_t *v = field_get(f, name);
    if (found)
        *found = v != NULL;
    if (!v)
        return 0;
    if (!json_is_boolean(v))
        return field_refuse(f, name, v, err, "true or false");
    *out = json_is_true(v);
    return 0;
}

int field_object(const struct fields *f, const char *name, const json_t **out, dsv4_err *err)
{
    *out = field_get(f, name);
    if (*out && !json_is_object(*out))
        return field_refuse(f, name, *out, err, "an object");
    return 0;
}

int field_list(const struct fields *f, const char *name, const json_t **out, dsv4_err *err)
{
    *out = field_get(f, name);
    if (*out && !json_is_array(*out))
        return field_refuse(f, name, *out, err, "a list");
    return 0;
}

int field_wholes(const struct fields *f, const char *name, size_t least, size_t most, int64_t lo,
                 int64_t hi, int64_t **out, size_t *n, dsv4_err *err)
{
    *out = NULL;
    *n = 0;
    const json_t *list;
    TRY(field_list(f, name, &list, err));
    if (!list)
        return 0;
    size_t len = json_array_size(list);
    if (len < least || len > most)
        return field_refuse(f, name, list, err, "a list of %zu to %zu", least, most);
    int64_t *x;
    TRY(mem_alloc(&x, len, sizeof *x, "a list of the config", err));
    for (size_t i = 0; i < len; i++) {
        const json_t *v = json_array_get(list, i);
        if (!json_whole(v, &x[i]) || x[i] < lo || x[i] > hi) {
            free(x);
            return item_refuse(f, name, i, v, err, "a whole number from %lld to %lld",
                               (long long)lo, (long long)hi);
        }
    }
    *out = x;
    *n = len;
    return 0;
}

/* ------------------------------------------------------------------ members */

static void skip_space(struct members *m)
{
    while (m->at < m->end && (*m->at == ' ' || *m->at == '\t' || *m->at == '\n' || *m->at == '\r'))
        m->at++;
}

static int fault(struct members *m, const char *what)
{
    m->fault = what;
    return -1;
}

/* Takes one character, after white space. */
static bool take(struct members *m, char c)
{
    skip_space(m);
    if (m->at == m->end || *m->at != c)
        return false;
    m->at++;
    return true;
}

/* Behind the closing quote of the string that begins at m->at. */
static bool skip_string(struct members *m)
{
    for (m->at++; m->at < m->end; m->at++) {
        if (*m->at == '"') {
            m->at++;
            return true;
        }
        if (*m->at == '\\' && ++m->at == m->end)
            return false;
    }
    return false;
}

/* Behind the value that begins at m->at: strings are passed over, brackets counted. */
static bool skip_value(struct members *m)
{
    size_t depth = 0;
    while (m->at < m->end) {
        switch (*m->at) {
        case '"':
            if (!skip_string(m))
                return false;
            break;
        case '{':
        case '[':
            depth++;
            m->at++;
            break;
        case '}':
        case ']':
            if (depth == 0)
                return true; /* the object around a bare value ends */
            depth--;
            m->at++;
            break;
        case ',':
            if (depth == 0)
                return true;
            m->at++;
            break;
        default: m->at++;
        }
        if (depth == 0 && (m->at[-1] == '"' || m->at[-1] == '}' || m->at[-1] == ']'))
            return true;
    }
    return false;
}

bool slice_plain_string(struct slice value, struct slice *out)
{
    if (value.n < 3 || value.n > 257 || value.p[0] != '"' || value.p[value.n - 1] != '"')
        return false;
    for (size_t i = 1; i < value.n - 1; i++)
        if (value.p[i] <= ' ' || value.p[i] > '~' || value.p[i] == '"' || value.p[i] == '\\')
            return false;
    *out = (struct slice){value.p + 1, value.n - 2};
    return true;
}

int members_next(struct members *m, struct slice *key, struct slice *value)
{
    if (!m->begun) {
        if (!take(m, '{'))
            return fault(m, "no JSON object begins");
        m->begun = true;
        if (take(m, '}'))
            return 0;
    } else if (take(m, '}')) {
        return 0;
    } else if (!take(m, ',')) {
        return fault(m, "no comma or closing brace follows a member");
    }
    skip_space(m);
    struct slice quoted = {m->at, 0};
    if (m->at == m->end || *m->at != '"' || !skip_string(m))
        return fault(m, "a member has no quoted name");
    quoted.n = (size_t)(m->at - quoted.p);
    if (!slice_plain_string(quoted, key))
        return fault(m, "a name is empty, longer than 255 bytes or has unusual characters");
    if (!take(m, ':'))
        return fault(m, "no colon follows a name");
    skip_space(m);
    value->p = m->at;
    if (!skip_value(m) || m->at == value->p)
        return fault(m, "a value does not end");
    value->n = (size_t)(m->at - value->p);
    return 1;
}
