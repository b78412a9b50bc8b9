/* Text being put together: JSON and events are written straight into it, without a tree in
 * between. */
#include "server.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void out_add(struct out *o, const char *data, size_t len)
{
    dsv4_err err;
    if (!o->failed && bytes_add(&o->b, data, len, &err) != 0)
        o->failed = true;
}

void out_text(struct out *o, const char *text)
{
    out_add(o, text, strlen(text));
}

void out_printf(struct out *o, const char *format, ...)
{
    char small[512];
    va_list a;
    va_start(a, format);
    int n = vsnprintf(small, sizeof small, format, a);
    va_end(a);
    if (n < 0)
        o->failed = true;
    else if ((size_t)n < sizeof small) {
        out_add(o, small, (size_t)n);
    } else {
        char *big = malloc((size_t)n + 1);
        if (!big) {
            o->failed = true;
            return;
        }
        va_start(a, format);
        vsnprintf(big, (size_t)n + 1, format, a);
        va_end(a);
        out_add(o, big, (size_t)n);
        free(big);
    }
}

void out_string(struct out *o, const char *text, size_t len)
{
    static const char hex[] = "0123456789abcdef";
    size_t run = 0;
    out_add(o, "\"", 1);
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7f)
            continue;
        out_add(o, text + run, i - run);
        run = i + 1;
        if (c == '"' || c == '\\')
            out_add(o, (char[]){'\\', (char)c}, 2);
        else if (c == '\n')
            out_add(o, "\\n", 2);
        else
            out_add(o, (char[]){'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]}, 6);
    }
    if (run < len) /* text may be NULL when there is none */
        out_add(o, text + run, len - run);
    out_add(o, "\"", 1);
}

void out_token(struct out *o, const dsv4_tokenizer *tok, int32_t id)
{
    enum { LONGEST = 300 };
    char clean[3 * LONGEST + 18];
    size_t len, n = 0;
    const char *bytes = dsv4_token_bytes(tok, id, &len);
    dsv4_utf8 u = {0};
    if (bytes)
        n = dsv4_utf8_push(&u, bytes, len < LONGEST ? len : LONGEST, clean);
    n += dsv4_utf8_flush(&u, clean + n);
    out_string(o, clean, n);
}

void out_cstring(struct out *o, const char *text)
{
    out_string(o, text, strlen(text));
}

void out_string_of(struct out *o, const struct out *text, size_t at)
{
    out_string(o, at < text->b.len ? text->b.data + at : "", text->b.len - at);
}

/* json_dumps() of jansson 2.14 may leave out a key when its buffer cannot grow. */
static int dump(const char *text, size_t len, void *arg)
{
    struct out *o = arg;
    out_add(o, text, len);
    return o->failed ? -1 : 0;
}

void out_json(struct out *o, const json_t *v)
{
    if (!v || json_dump_callback(v, dump, o, JSON_COMPACT | JSON_ENCODE_ANY) != 0)
        o->failed = true;
}

void out_number(struct out *o, double x)
{
    if (isnan(x))
        x = 0;
    x = fmax(-1e30, fmin(1e30, x));
    out_printf(o, "%.9g", x);
}

void out_free(struct out *o)
{
    free(o->b.data);
    *o = (struct out){0};
}
