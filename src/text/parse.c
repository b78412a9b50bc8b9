/* The parser of model output (chat-encoding, section 9, "stream"): bytes in, events out, as they come.
 *
 * A total function. Every byte advances a small state machine of constant size, so any bytes in any
 * pieces give the same result, in time proportional to their number, and feeding cannot fail.
 * Malformed blocks are skipped, never waited for: what cannot be read as a call leads to no event.
 *
 * Held back is only what may still become a marker - a part of its bytes, and line feeds in front of
 * it - and the rest of a character whose first bytes have come, so that events hold whole characters. */
#include "chat_inner.h"

#include <stdlib.h>
#include <string.h>

#define NAME_MAX_BYTES 4096 /* of a tool; the rest is cut off: nobody has such a tool */

enum state {
    IN_REASONING,
    IN_CONTENT,
    IN_BLOCK, /* between calls */
    IN_NAME,
    IN_CALL, /* between parameters */
    IN_KEY,
    IN_FLAG, /* between a key and its value */
    IN_STRING,
    IN_JSON,
    AT_END, /* whatever follows is dropped */
};

/* What a state looks for. No pattern has its first byte at another place too, so that after a
 * mismatch a match can only begin anew with the byte at hand. */
enum {
    CLOSE_THINK,
    OPEN_BLOCK,
    OPEN_CALL,
    CLOSE_V4,
    CLOSE_V41,
    OPEN_KEY,
    CLOSE,
    TRUE,
    FALSE,
    N_PATTERNS
};

static const char *const pattern[N_PATTERNS] = {
    [CLOSE_THINK] = M_END_THINK,
    [OPEN_BLOCK] = "<" M_DSML,
    [OPEN_CALL] = "invoke name=\"",
    [CLOSE_V4] = "</" M_DSML "tool_calls>",
    [CLOSE_V41] = "</" M_DSML " calls>",
    [OPEN_KEY] = "parameter name=\"",
    [CLOSE] = "</" M_DSML,
    [TRUE] = "true\">",
    [FALSE] = "false\">",
};

struct dsv4_parser {
    dsv4_event_fn fn;
    void *arg;
    bool tools, ended;
    enum state state;
    unsigned char matched[N_PATTERNS]; /* bytes of each pattern that were the last to come */
    bool leading;                      /* nothing of this text has come but line feeds */
    size_t newlines;                   /* held back */
    size_t calls;
    bool keys;  /* the call has a parameter */
    bool colon; /* was written behind the key */
    size_t name_len;
    char name[NAME_MAX_BYTES];
    dsv4_event_kind kind; /* of out */
    size_t out_len;
    char out[1024];
};

/* ------------------------------------------------------------------ events */

static void event(struct dsv4_parser *p, dsv4_event_kind kind, const char *text, size_t len)
{
    bool of_call = kind == DSV4_CALL || kind == DSV4_ARGUMENTS;
    dsv4_event e = {kind, of_call ? p->calls - 1 : 0, text, len};
    p->fn(p->arg, &e);
}

/* Bytes at the end that are the beginning of a character. */
static size_t unfinished(const char *text, size_t len)
{
    for (size_t n = 1; n <= 3 && n <= len; n++) {
        unsigned char c = (unsigned char)text[len - n];
        if (c >= 0xC2 && c <= 0xF4)
            return n < (c >= 0xF0 ? 4u : c >= 0xE0 ? 3u : 2u) ? n : 0;
        if ((c & 0xC0) != 0x80)
            break;
    }
    return 0;
}

static void flush(struct dsv4_parser *p, bool all)
{
    size_t rest = all ? 0 : unfinished(p->out, p->out_len), len = p->out_len - rest;
    if (len)
        event(p, p->kind, p->out, len);
    memmove(p->out, p->out + len, rest);
    p->out_len = rest;
}

static void put(struct dsv4_parser *p, dsv4_event_kind kind, const char *text, size_t len)
{
    if (p->kind != kind)
        flush(p, true);
    p->kind = kind;
    while (len) {
        if (p->out_len == sizeof p->out)
            flush(p, false);
        size_t n = sizeof p->out - p->out_len;
        n = n < len ? n : len;
        memcpy(p->out + p->out_len, text, n);
        p->out_len += n;
        text += n;
        len -= n;
    }
}

static void put_arguments(struct dsv4_parser *p, const char *text)
{
    put(p, DSV4_ARGUMENTS, text, strlen(text));
}

static void put_escaped(struct dsv4_parser *p, unsigned char c)
{
    char escape[6];
    put(p, DSV4_ARGUMENTS, escape, jv_escape(c, escape));
}

/* ------------------------------------------------------------------ matching */

/* Advances one pattern by a byte; true when it is complete. */
static bool match(struct dsv4_parser *p, int which, unsigned char c)
{
    const char *w = pattern[which];
    unsigned char *n = &p->matched[which];
    *n = c == (unsigned char)w[*n] ? (unsigned char)(*n + 1) : c == (unsigned char)w[0];
    return w[*n] == 0;
}

static void enter(struct dsv4_parser *p, enum state state)
{
    memset(p->matched, 0, sizeof p->matched);
    p->state = state;
}

/* ------------------------------------------------------------------ reasoning and content */

static dsv4_event_kind text_kind(const struct dsv4_parser *p)
{
    return p->state == IN_REASONING ? DSV4_REASONING : DSV4_CONTENT;
}

static void put_newlines(struct dsv4_parser *p)
{
    for (; p->newlines; p->newlines--)
        put(p, text_kind(p), "\n", 1);
}

/* Text that did not become a marker, and the line feeds before it. */
static void put_text(struct dsv4_parser *p, const char *text, size_t len)
{
    if (len == 0)
        return;
    put_newlines(p);
    put(p, text_kind(p), text, len);
    p->leading = false;
}

/* The longer of the two beginnings that the last bytes may be. */
static size_t held(const struct dsv4_parser *p, const char **text)
{
    int which = p->matched[OPEN_BLOCK] > p->matched[CLOSE_THINK] ? OPEN_BLOCK : CLOSE_THINK;
    *text = pattern[which];
    return p->matched[which];
}

static void end_think(struct dsv4_parser *p)
{
    if (p->state == IN_REASONING) {
        p->newlines = 0;
        p->leading = true;
    } else {
        put_newlines(p);
        p->leading = false;
    }
    enter(p, IN_CONTENT);
}

static void text_byte(struct dsv4_parser *p, unsigned char c)
{
    const char *was, *is;
    size_t before = held(p, &was);
    if (match(p, CLOSE_THINK, c)) {
        end_think(p);
        return;
    }
    if (p->tools && match(p, OPEN_BLOCK, c)) {
        p->newlines = 0;
        enter(p, IN_BLOCK);
        return;
    }
    size_t now = held(p, &is);
    if (now > before)
        return;
    put_text(p, was, before);
    if (now > 0)
        return;
    if (c != '\n')
        put_text(p, &(char){(char)c}, 1);
    else if (!p->leading)
        p->newlines++;
}

/* ------------------------------------------------------------------ calls */

static void block_byte(struct dsv4_parser *p, unsigned char c)
{
    bool v4 = match(p, CLOSE_V4, c), v41 = match(p, CLOSE_V41, c);
    if (v4 || v41) {
        enter(p, AT_END);
    } else if (match(p, OPEN_CALL, c)) {
        p->name_len = 0;
        enter(p, IN_NAME);
    }
}

static void name_byte(struct dsv4_parser *p, unsigned char c)
{
    if (c != '"') {
        if (p->name_len < sizeof p->name)
            p->name[p->name_len] = (char)c;
        p->name_len += p->name_len <= sizeof p->name;
        return;
    }
    if (p->name_len > sizeof p->name)
        p->name_len = sizeof p->name - unfinished(p->name, sizeof p->name);
    flush(p, true);
    p->calls++;
    p->keys = false;
    event(p, DSV4_CALL, p->name, p->name_len);
    enter(p, IN_CALL);
}

static void call_byte(struct dsv4_parser *p, unsigned char c)
{
    if (match(p, CLOSE, c)) {
        put_arguments(p, p->keys ? "}" : "{}");
        enter(p, IN_BLOCK);
    } else if (match(p, OPEN_KEY, c)) {
        put_arguments(p, p->keys ? ", \"" : "{\"");
        p->keys = true;
        enter(p, IN_KEY);
    }
}

static void key_byte(struct dsv4_parser *p, unsigned char c)
{
    if (c != '"') {
        put_escaped(p, c);
        return;
    }
    put_arguments(p, "\"");
    p->colon = false;
    enter(p, IN_FLAG);
}

static void flag_byte(struct dsv4_parser *p, unsigned char c)
{
    if (!p->colon)
        put_arguments(p, ": ");
    p->colon = true;
    bool string = match(p, TRUE, c), json = match(p, FALSE, c);
    if (string)
        put_arguments(p, "\"");
    if (string || json)
        enter(p, string ? IN_STRING : IN_JSON);
}

static void value_byte(struct dsv4_parser *p, unsigned char c)
{
    size_t before = p->matched[CLOSE];
    if (match(p, CLOSE, c)) {
        if (p->state == IN_STRING)
            put_arguments(p, "\"");
        enter(p, IN_CALL);
        return;
    }
    size_t now = p->matched[CLOSE];
    if (now > before)
        return;
    put(p, DSV4_ARGUMENTS, pattern[CLOSE], before); /* has nothing to escape */
    if (now > 0)
        return;
    if (p->state == IN_STRING)
        put_escaped(p, c);
    else
        put(p, DSV4_ARGUMENTS, &(char){(char)c}, 1);
}

/* ------------------------------------------------------------------ the interface */

int dsv4_parser_open(dsv4_parser **out, bool thinking, bool tools, dsv4_event_fn fn, void *arg,
                     dsv4_err *err)
{
    *out = NULL;
    if (!fn)
        return err_set(err, DSV4_USAGE, "a parser needs a function that takes its events");
    struct dsv4_parser *p;
    TRY(mem_alloc(&p, 1, sizeof *p, "a parser", err));
    p->fn = fn;
    p->arg = arg;
    p->tools = tools;
    p->leading = true;
    p->state = thinking ? IN_REASONING : IN_CONTENT;
    *out = p;
    return 0;
}

/* Takes a run of bytes that neither need escapes nor can begin a marker; returns their number. */
static size_t take_run(struct dsv4_parser *p, const char *text, size_t len)
{
    bool value = p->state == IN_STRING || p->state == IN_JSON;
    if ((!value && p->state > IN_CONTENT) || p->matched[CLOSE_THINK] || p->matched[OPEN_BLOCK] ||
        p->matched[CLOSE])
        return 0;
    size_t n = 0;
    while (n < len && text[n] != '<' && text[n] != '\n' &&
           (p->state != IN_STRING ||
            ((unsigned char)text[n] >= 0x20 && text[n] != '"' && text[n] != '\\')))
        n++;
    if (value)
        put(p, DSV4_ARGUMENTS, text, n);
    else
        put_text(p, text, n);
    return n;
}

int dsv4_parser_feed(dsv4_parser *p, const char *text, size_t len, dsv4_err *err)
{
    (void)err;
    for (size_t i = 0; i < len && p->state != AT_END; i++) {
        i += take_run(p, text + i, len - i);
        if (i == len)
            break;
        unsigned char c = (unsigned char)text[i];
        switch (p->state) {
        case IN_REASONING:
        case IN_CONTENT: text_byte(p, c); break;
        case IN_BLOCK: block_byte(p, c); break;
        case IN_NAME: name_byte(p, c); break;
        case IN_CALL: call_byte(p, c); break;
        case IN_KEY: key_byte(p, c); break;
        case IN_FLAG: flag_byte(p, c); break;
        case IN_STRING:
        case IN_JSON: value_byte(p, c); break;
        case AT_END: break;
        }
    }
    flush(p, false);
    return 0;
}

int dsv4_parser_end(dsv4_parser *p, bool cut, dsv4_err *err)
{
    (void)err;
    if (p->ended)
        return 0;
    const char *text;
    size_t n = held(p, &text);
    if (p->state <= IN_CONTENT) {
        put_newlines(p);
        put_text(p, text, n);
    } else if (p->state == IN_STRING || p->state == IN_JSON) {
        put(p, DSV4_ARGUMENTS, pattern[CLOSE], p->matched[CLOSE]);
    }
    flush(p, true);
    const char *reason = cut ? "length" : p->calls ? "tool_calls" : "stop";
    event(p, DSV4_FINISH, reason, strlen(reason));
    p->ended = true;
    p->state = AT_END;
    return 0;
}

void dsv4_parser_close(dsv4_parser *p)
{
    free(p);
}
