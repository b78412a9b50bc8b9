/* The parser that was released with the weights (chat-encoding, section 9, "strict"): it takes a whole
 * completion and refuses whatever the format does not allow. Accepts and refuses what the release
 * does, oddities included, with messages of its own. */
#include "chat_inner.h"
#include "text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct slice {
    const char *p;
    size_t n;
};

struct strict {
    const char *at, *end;
    char open_block[48], close_block[48], open_call[48], close_call[48], open_key[48],
        close_key[48];
    struct bytes out, arguments;
    struct slice *keys; /* of the call being read */
    size_t n_keys, cap_keys;
    dsv4_err *err;
};

static int refuse(const struct strict *s, const char *what)
{
    return err_set(s->err, DSV4_REFUSED, "completion: %s", what);
}

static bool starts(const char *p, const char *end, const char *word)
{
    size_t n = strlen(word);
    return (size_t)(end - p) >= n && memcmp(p, word, n) == 0;
}

/* Reads up to the first of the two words (b may be NULL) and over it. Returns the word, or NULL when
 * the text ends first. */
static const char *read_until(struct strict *s, struct slice *before, const char *a, const char *b)
{
    const char *p = s->at;
    while (p < s->end) {
        const char *found = starts(p, s->end, a) ? a : b && starts(p, s->end, b) ? b : NULL;
        if (found) {
            *before = (struct slice){s->at, (size_t)(p - s->at)};
            s->at = p + strlen(found);
            return found;
        }
        p++;
    }
    *before = (struct slice){s->at, (size_t)(p - s->at)};
    s->at = p;
    return NULL;
}

static bool is(struct slice s, const char *text)
{
    return s.n == strlen(text) && memcmp(s.p, text, s.n) == 0;
}

/* Drops a suffix that `$` of the release's patterns allows in front of it or at the end: with or
 * without one more line feed. */
static bool drop_end(struct slice *s, const char *suffix)
{
    size_t n = strlen(suffix);
    for (size_t extra = 0; extra < 2; extra++) {
        if (s->n < n + extra || (extra && s->p[s->n - 1] != '\n'))
            return false;
        if (memcmp(s->p + s->n - n - extra, suffix, n) == 0) {
            s->n -= n + extra;
            return true;
        }
    }
    return false;
}

/* Bytes of the white space (Unicode's) at the beginning. */
static size_t blank(struct slice s)
{
    static const char *const wide[] = {"\xc2\x85", "\u00a0", "\u1680", "\u2000", "\u2001",
                                       "\u2002",   "\u2003", "\u2004", "\u2005", "\u2006",
                                       "\u2007",   "\u2008", "\u2009", "\u200a", "\u2028",
                                       "\u2029",   "\u202f", "\u205f", "\u3000"};
    if (s.n == 0)
        return 0;
    unsigned char c = (unsigned char)*s.p;
    if (c == ' ' || (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x1f))
        return 1;
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++)
        if (starts(s.p, s.p + s.n, wide[i]))
            return strlen(wide[i]);
    return 0;
}

/* ^\s*name="(.*)">\n$ */
static int read_name(struct strict *s, struct slice text)
{
    static const char attribute[] = "name=\"";
    for (size_t n; (n = blank(text)) > 0; text = (struct slice){text.p + n, text.n - n})
        ;
    size_t n = strlen(attribute);
    if (!starts(text.p, text.p + text.n, attribute))
        return refuse(s, "a call without a name");
    text = (struct slice){text.p + n, text.n - n};
    if (!drop_end(&text, "\">\n"))
        return refuse(s, "the name of a call does not end with \">");
    TRY(bytes_text(&s->out, "{\"name\": ", s->err));
    TRY(jv_write_string(&s->out, text.p, text.n, s->err));
    return bytes_text(&s->out, ", \"arguments\": ", s->err);
}

/* ^ name="(.*?)" string="(true|false)">(.*?)<$ */
static int read_parameter(struct strict *s, struct slice text)
{
    static const char attribute[] = " name=\"", yes[] = "\" string=\"true\">",
                      no[] = "\" string=\"false\">";
    const char *end = text.p + text.n, *p = text.p;
    if (!drop_end(&text, "<") || !starts(p, end, attribute))
        return refuse(s, "a parameter without a name or an end");
    p += strlen(attribute);
    struct slice key = {p, 0};
    end = text.p + text.n;
    while (p < end && !starts(p, end, yes) && !starts(p, end, no))
        p++;
    if (p >= end)
        return refuse(s, "a parameter without string=\"true\" or string=\"false\"");
    key.n = (size_t)(p - key.p);
    bool string = starts(p, end, yes);
    p += strlen(string ? yes : no);
    TRY(mem_grow(&s->keys, &s->cap_keys, s->n_keys + 1, sizeof key, "parameters", s->err));
    TRY(bytes_text(&s->arguments, s->n_keys ? ", " : "{", s->err));
    s->keys[s->n_keys++] = key;
    TRY(jv_write_string(&s->arguments, key.p, key.n, s->err));
    TRY(bytes_text(&s->arguments, ": ", s->err));
    return string ? jv_write_string(&s->arguments, p, (size_t)(end - p), s->err)
                  : bytes_add(&s->arguments, p, (size_t)(end - p), s->err);
}

static int by_text(const void *a, const void *b)
{
    const struct slice *x = a, *y = b;
    return x->n != y->n ? (x->n < y->n ? -1 : 1) : memcmp(x->p, y->p, x->n);
}

static int check_keys(struct strict *s)
{
    if (s->n_keys)
        qsort(s->keys, s->n_keys, sizeof *s->keys, by_text);
    for (size_t i = 1; i < s->n_keys; i++)
        if (by_text(&s->keys[i - 1], &s->keys[i]) == 0)
            return refuse(s, "a call has a parameter twice");
    return 0;
}

static int read_call(struct strict *s)
{
    struct slice before;
    const char *stop = read_until(s, &before, s->open_key, s->close_call);
    TRY(read_name(s, before));
    s->n_keys = s->arguments.len = 0;
    while (stop == s->open_key) {
        read_until(s, &before, s->close_key, NULL);
        TRY(read_parameter(s, before));
        stop = read_until(s, &before, s->open_key, s->close_call);
        if (!is(before, ">\n"))
            return refuse(s, "a parameter is not followed by a line feed");
    }
    TRY(check_keys(s));
    TRY(bytes_text(&s->arguments, s->n_keys ? "}" : "{}", s->err));
    TRY(jv_write_string(&s->out, s->arguments.data, s->arguments.len, s->err));
    return bytes_text(&s->out, "}", s->err);
}

/* Behind the name of the block's opening tag. A block that ends there, or behind a call's tag, passes:
 * so it does in the release. */
static int read_calls(struct strict *s)
{
    struct slice before;
    for (bool later = false; s->at < s->end; later = true) {
        const char *stop = read_until(s, &before, s->open_call, s->close_block);
        if (!is(before, ">\n"))
            return refuse(s, "a tag is not followed by a line feed");
        if (stop == s->close_block)
            return 0;
        if (!stop)
            return refuse(s, "the block of calls does not end");
        if (later)
            TRY(bytes_text(&s->out, ", ", s->err));
        TRY(read_call(s));
    }
    return 0;
}

static int write_text(struct strict *s, const char *name, struct slice text)
{
    static const char *const forbidden[] = {M_BOS, M_EOS, M_THINK, M_END_THINK, M_DSML};
    for (size_t i = 0; i < sizeof forbidden / sizeof *forbidden; i++)
        if (memmem(text.p, text.n, forbidden[i], strlen(forbidden[i])))
            return err_set(s->err, DSV4_REFUSED, "completion: %s inside the text", forbidden[i]);
    TRY(bytes_printf(&s->out, s->err, "\"%s\": ", name));
    TRY(jv_write_string(&s->out, text.p, text.n, s->err));
    return bytes_text(&s->out, ", ", s->err);
}

static int read_completion(struct strict *s, bool thinking)
{
    struct slice reasoning = {s->at, 0}, content, rest;
    const char *stop =
        thinking ? read_until(s, &reasoning, M_END_THINK, s->open_block) : M_END_THINK;
    if (!stop || stop == s->open_block)
        return refuse(s, M_END_THINK " is missing");
    stop = read_until(s, &content, M_EOS, s->open_block);
    if (!stop)
        return refuse(s, M_EOS " is missing");
    TRY(bytes_text(&s->out, "{", s->err));
    TRY(write_text(s, "reasoning_content", reasoning));
    TRY(write_text(s, "content", content));
    TRY(bytes_text(&s->out, "\"tool_calls\": [", s->err));
    if (stop == s->open_block) {
        TRY(read_calls(s));
        read_until(s, &rest, M_EOS, NULL);
        if (rest.n)
            return refuse(s, "text behind the calls");
    }
    if (s->at != s->end)
        return refuse(s, "text behind " M_EOS);
    return bytes_text(&s->out, "]}", s->err);
}

int dsv4_parse_strict(dsv4_dialect dialect, const char *text, size_t len, bool thinking,
                      char **json, dsv4_err *err)
{
    *json = NULL;
    if ((unsigned)dialect >= sizeof chat_dialects / sizeof *chat_dialects)
        return err_set(err, DSV4_USAGE, "there is no chat dialect %d", (int)dialect);
    if (!utf8_valid(text, len))
        return err_set(err, DSV4_REFUSED, "completion: not UTF-8");
    const char *const *tag = chat_dialects[dialect].tag;
    struct strict s = {.at = text, .end = text + len, .err = err};
    snprintf(s.open_block, sizeof s.open_block, "\n\n<" M_DSML "%s", tag[0]);
    snprintf(s.close_block, sizeof s.close_block, "</" M_DSML "%s>", tag[0]);
    snprintf(s.open_call, sizeof s.open_call, "<" M_DSML "%s", tag[1]);
    snprintf(s.close_call, sizeof s.close_call, "</" M_DSML "%s", tag[1]);
    snprintf(s.open_key, sizeof s.open_key, "<" M_DSML "%s", tag[2]);
    snprintf(s.close_key, sizeof s.close_key, "/" M_DSML "%s", tag[2]);
    int rc = read_completion(&s, thinking);
    if (rc == 0)
        *json = s.out.data;
    else
        free(s.out.data);
    free(s.arguments.data);
    free(s.keys);
    return rc;
}
