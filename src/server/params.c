/* Members of a body against a table of what may be there; and failures as clients are told of
 * them. */
#include "server.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *type_of(int status)
{
    switch (status) {
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 404: return "not_found_error";
    case 413: return "request_too_large";
    case 429: return "rate_limit_error";
    default: return status >= 500 ? "server_error" : "invalid_request_error";
    }
}

enum { QUOTED = sizeof((struct failure *)0)->message };

/* What is quoted may be no UTF-8, or be cut in the middle of a character; replies are neither. text: shorter than QUOTED. */
static void set_text(char *out, size_t size, const char *text)
{
    char clean[3 * QUOTED + 18]; /* a wrong byte becomes three */
    dsv4_utf8 u = {0};
    size_t n = dsv4_utf8_push(&u, text, strlen(text), clean);
    n += dsv4_utf8_flush(&u, clean + n);
    if (n >= size) {
        n = size - 1;
        while (n > 0 && ((unsigned char)clean[n] & 0xC0) == 0x80)
            n--;
    }
    memcpy(out, clean, n);
    out[n] = 0;
}

int fail_set(struct failure *f, int status, const char *param, const char *format, ...)
{
    char text[QUOTED];
    va_list a;
    *f = (struct failure){.status = status, .type = type_of(status)};
    snprintf(text, sizeof text, "%s", param ? param : "");
    set_text(f->param, sizeof f->param, text);
    va_start(a, format);
    vsnprintf(text, sizeof text, format, a);
    va_end(a);
    set_text(f->message, sizeof f->message, text);
    return -1;
}

int fail_err(struct failure *f, const dsv4_err *err)
{
    int status = err->status == DSV4_REFUSED || err->status == DSV4_USAGE ? 400
                 : err->status == DSV4_NO_MEMORY                          ? 503
                                                                          : 500;
    return fail_set(f, status, NULL, "%s", err->text);
}

static const char *kind_name(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "a list";
    case JSON_STRING: return "a text";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a number with a fraction";
    case JSON_TRUE:
    case JSON_FALSE: return "a boolean";
    default: return "null";
    }
}

static int wrong_type(const struct param *p, const json_t *v, struct failure *f)
{
    static const char *const names[] = {"a boolean", "an integer", "a number", "a text",
                                        "a list",    "an object",  ""}; /* ORDER param_kind */
    return fail_set(f, 400, p->name, "%s must be %s, not %s", p->name, names[p->kind],
                    kind_name(v));
}

static int out_of_range(const struct param *p, double value, struct failure *f)
{
    return fail_set(f, 400, p->name, "%s is %.15g; it must be between %.15g and %.15g", p->name,
                    value, p->min, p->max);
}

static int too_long(const struct param *p, size_t n, struct failure *f)
{
    return fail_set(f, 400, p->name, "%s has a length of %zu; it must be between %.0f and %.0f",
                    p->name, n, p->min, p->max);
}

static bool length_fits(const struct param *p, size_t n)
{
    return p->max == 0 || ((double)n >= p->min && (double)n <= p->max);
}

static int read_one(const struct param *p, json_t *v, void *to, struct failure *f)
{
    bool ok = true;
    switch (p->kind) {
    case P_BOOL:
        if (!json_is_boolean(v))
            return wrong_type(p, v, f);
        *(bool *)to = json_is_true(v);
        return 0;
    case P_INT: {
        double d = json_number_value(v);
        /* 3.0 is an integer in JSON */
        if (!json_is_integer(v) && !(json_is_real(v) && d == floor(d) && fabs(d) < 9e15))
            return wrong_type(p, v, f);
        int64_t i = json_is_integer(v) ? json_integer_value(v) : (int64_t)d;
        if ((double)i < p->min || (double)i > p->max)
            return out_of_range(p, (double)i, f);
        *(int64_t *)to = i;
        return 0;
    }
    case P_NUMBER:
        if (!json_is_number(v))
            return wrong_type(p, v, f);
        if (!(json_number_value(v) >= p->min && json_number_value(v) <= p->max))
            return out_of_range(p, json_number_value(v), f);
        *(double *)to = json_number_value(v);
        return 0;
    case P_TEXT:
        if (!json_is_string(v))
            return wrong_type(p, v, f);
        if (!length_fits(p, json_string_length(v)))
            return too_long(p, json_string_length(v), f);
        if (strlen(json_string_value(v)) != json_string_length(v))
            return fail_set(f, 400, p->name, "%s must not contain NUL", p->name);
        *(const char **)to = json_string_value(v);
        return 0;
    case P_LIST:
        ok = json_is_array(v);
        if (ok && !length_fits(p, json_array_size(v)))
            return too_long(p, json_array_size(v), f);
        break;
    case P_OBJECT: ok = json_is_object(v); break;
    case P_ANY: break;
    }
    if (!ok)
        return wrong_type(p, v, f);
    *(json_t **)to = v;
    return 0;
}

int params_read(const json_t *body, const struct param *table, size_t n, void *values,
                struct failure *f)
{
    const char *key;
    json_t *v;
    if (!json_is_object(body))
        return fail_set(f, 400, NULL, "the body must be a JSON object");
    json_object_foreach((json_t *)(uintptr_t)body, key, v)
    {
        size_t i = 0;
        while (i < n && strcmp(table[i].name, key) != 0)
            i++;
        if (i == n) {
            fail_set(f, 400, key, "unknown parameter: %.80s", key);
            f->code = "unknown_parameter";
            return -1;
        }
        if (!json_is_null(v) && read_one(&table[i], v, (char *)values + table[i].offset, f) != 0)
            return -1;
    }
    return 0;
}
