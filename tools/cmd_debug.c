/* debug: the text layer on JSON lines, so that anyone can check it with data of their own. One line
 * in, one line out, {"error": ...} for what is refused; only a lack of memory or of a reader ends
 * it early. */
#include "tools.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct debug {
    struct program *p;
    dsv4_dialect dialect;
    dsv4_tokenizer *tokenizer;
    struct bytes out; /* the answer being built */
    dsv4_err *err;
};

/* ------------------------------------------------------------------ building JSON */

/* ASCII with escapes: some readers of lines take U+2028 or U+0085 for the end of one. */
static int put_string(struct bytes *b, const char *text, size_t len, dsv4_err *err)
{
    json_t *v = json_stringn(text, len);
    char *quoted = v ? json_text(v, JSON_ENCODE_ANY | JSON_ENSURE_ASCII) : NULL;
    json_decref(v);
    int rc = quoted ? bytes_text(b, quoted, err) : json_made(NULL, err);
    free(quoted);
    return rc;
}

static int put_ids(struct bytes *b, const char *name, const int32_t *ids, size_t n, dsv4_err *err)
{
    TRY(bytes_printf(b, err, "\"%s\": [", name));
    for (size_t i = 0; i < n; i++)
        TRY(bytes_printf(b, err, "%s%d", i ? ", " : "", (int)ids[i]));
    return bytes_text(b, "]", err);
}

static int put_sizes(struct bytes *b, const char *name, const size_t *v, size_t n, dsv4_err *err)
{
    TRY(bytes_printf(b, err, "\"%s\": [", name));
    for (size_t i = 0; i < n; i++)
        TRY(bytes_printf(b, err, "%s%zu", i ? ", " : "", v[i]));
    return bytes_text(b, "]", err);
}

/* ------------------------------------------------------------------ render */

/* ids: the whole prompt, control tokens recognised anywhere (as the released encoders do); ids_safe,
 * where it differs: only in our own scaffolding, which is what the engine uses. */
static int put_prompt_ids(struct debug *d, const dsv4_prompt *prompt)
{
    int32_t *all = NULL, *safe = NULL;
    size_t n_all, n_safe;
    int rc = dsv4_encode(d->tokenizer, prompt->text, prompt->len, true, &all, &n_all, d->err);
    if (rc == 0)
        rc = dsv4_encode_prompt(d->tokenizer, prompt, &safe, &n_safe, d->err);
    if (rc == 0)
        rc = bytes_text(&d->out, ", ", d->err);
    if (rc == 0)
        rc = put_ids(&d->out, "ids", all, n_all, d->err);
    if (rc == 0 && (n_all != n_safe || (n_all && memcmp(all, safe, n_all * sizeof *all) != 0))) {
        rc = bytes_text(&d->out, ", ", d->err);
        if (rc == 0)
            rc = put_ids(&d->out, "ids_safe", safe, n_safe, d->err);
    }
    dsv4_free(all);
    dsv4_free(safe);
    return rc;
}

static int put_prompt(struct debug *d, const dsv4_prompt *prompt)
{
    TRY(bytes_text(&d->out, "{\"prompt\": ", d->err));
    TRY(put_string(&d->out, prompt->text, prompt->len, d->err));
    TRY(put_prompt_ids(d, prompt));
    TRY(bytes_text(&d->out, ", \"images\": [", d->err));
    for (size_t i = 0; i < prompt->n_images; i++)
        TRY(bytes_printf(&d->out, d->err, "%s%s", i ? ", " : "", prompt->images[i]));
    return bytes_text(&d->out, "]}", d->err);
}

/* The line goes to the renderer as it is: it keeps numbers that other JSON readers would change. */
static int debug_render(struct debug *d, const char *line, size_t len)
{
    dsv4_prompt *prompt;
    TRY(dsv4_render(d->dialect, line, len, &prompt, d->err));
    int rc = put_prompt(d, prompt);
    dsv4_prompt_close(prompt);
    return rc;
}

/* ------------------------------------------------------------------ reading a line */

static int load(struct debug *d, const char *line, size_t len, json_t **v)
{
    json_error_t je;
    *v = json_loadb(line, len, JSON_ALLOW_NUL, &je);
    if (!*v && json_error_code(&je) == json_error_out_of_memory)
        return json_made(NULL, d->err);
    if (!*v)
        return err_set(d->err, DSV4_REFUSED, "not JSON: %s", je.text);
    if (json_is_object(*v))
        return 0;
    json_decref(*v);
    return err_set(d->err, DSV4_REFUSED, "not an object");
}

static int wants(struct debug *d, const char *member, const char *kind)
{
    return err_set(d->err, DSV4_REFUSED, "\"%s\" is missing or not %s", member, kind);
}

/* ------------------------------------------------------------------ parse */

struct parsed {
    struct debug *d;
    struct bytes reasoning, content, arguments, calls, events;
    size_t n_calls, n_events;
    char finish[16];
    int rc;
};

/* ["reasoning", text], ["content", text], ["call", index, name], ["arguments", index, text],
 * ["finish", reason] */
static int put_event(struct parsed *p, const dsv4_event *e)
{
    static const char *const kinds[] = {"reasoning", "content", "call", "arguments", "finish"};
    dsv4_err *err = p->d->err;
    TRY(bytes_printf(&p->events, err, "%s[\"%s\", ", p->n_events++ ? ", " : "", kinds[e->kind]));
    if (e->kind == DSV4_CALL || e->kind == DSV4_ARGUMENTS)
        TRY(bytes_printf(&p->events, err, "%zu, ", e->index));
    TRY(put_string(&p->events, e->text, e->len, err));
    return bytes_text(&p->events, "]", err);
}

static int close_call(struct parsed *p)
{
    dsv4_err *err = p->d->err;
    if (p->n_calls == 0)
        return 0;
    TRY(put_string(&p->calls, p->arguments.data ? p->arguments.data : "", p->arguments.len, err));
    p->arguments.len = 0;
    return bytes_text(&p->calls, "}", err);
}

static int fold(struct parsed *p, const dsv4_event *e)
{
    dsv4_err *err = p->d->err;
    if (p->d->p->a.events)
        TRY(put_event(p, e));
    switch (e->kind) {
    case DSV4_REASONING: return bytes_add(&p->reasoning, e->text, e->len, err);
    case DSV4_CONTENT: return bytes_add(&p->content, e->text, e->len, err);
    case DSV4_ARGUMENTS: return bytes_add(&p->arguments, e->text, e->len, err);
    case DSV4_CALL:
        TRY(close_call(p));
        TRY(bytes_printf(&p->calls, err, "%s{\"name\": ", p->n_calls++ ? ", " : ""));
        TRY(put_string(&p->calls, e->text, e->len, err));
        return bytes_text(&p->calls, ", \"arguments\": ", err);
    case DSV4_FINISH:
        snprintf(p->finish, sizeof p->finish, "%.*s", (int)(e->len < 15 ? e->len : 15), e->text);
        return close_call(p);
    }
    return 0;
}

static void on_event(void *arg, const dsv4_event *e)
{
    struct parsed *p = arg;
    if (p->rc == 0)
        p->rc = fold(p, e);
}

static const char eos[] = "<｜end▁of▁sentence｜>";

/* Feeds one piece; what came out of it becomes one list of events. */
static int feed_piece(struct parsed *p, dsv4_parser *parser, const char *text, size_t len)
{
    dsv4_err *err = p->d->err;
    TRY(bytes_text(&p->events, p->events.len ? ", [" : "[", err));
    p->n_events = 0;
    TRY(dsv4_parser_feed(parser, text, len, err));
    TRY(p->rc);
    return bytes_text(&p->events, "]", err);
}

/* The pieces up to `end` bytes of their whole. */
static int feed_pieces(struct parsed *p, dsv4_parser *parser, const json_t *pieces,
                       const char *text, size_t end)
{
    if (!pieces)
        return feed_piece(p, parser, text, end);
    size_t at = 0;
    for (size_t i = 0; i < json_array_size(pieces); i++) {
        size_t n = json_string_length(json_array_get(pieces, i));
        size_t take = at >= end ? 0 : n < end - at ? n : end - at;
        TRY(feed_piece(p, parser, text + at, take));
        at += n;
    }
    return 0;
}

static int put_parsed(struct parsed *p, size_t end_events)
{
    struct bytes *b = &p->d->out;
    dsv4_err *err = p->d->err;
    TRY(bytes_text(b, "{\"reasoning_content\": ", err));
    TRY(put_string(b, p->reasoning.data ? p->reasoning.data : "", p->reasoning.len, err));
    TRY(bytes_text(b, ", \"content\": ", err));
    TRY(put_string(b, p->content.data ? p->content.data : "", p->content.len, err));
    TRY(bytes_printf(b, err, ", \"tool_calls\": [%s], \"finish_reason\": \"%s\"",
                     p->calls.data ? p->calls.data : "", p->finish));
    if (p->d->p->a.events) {
        TRY(bytes_text(b, ", \"events\": [", err));
        TRY(bytes_add(b, p->events.data, end_events, err));
        TRY(bytes_printf(b, err, "], \"end_events\": [%s]", p->events.data + end_events));
    }
    return bytes_text(b, "}", err);
}

static int parse_text(struct parsed *p, dsv4_parser *parser, const json_t *pieces,
                      const struct bytes *text, const char *end)
{
    dsv4_err *err = p->d->err;
    const char *stop = text->len ? memmem(text->data, text->len, eos, sizeof eos - 1) : NULL;
    size_t until = stop ? (size_t)(stop - text->data) : text->len;
    bool cut = end ? strcmp(end, "length") == 0 : stop == NULL;
    TRY(feed_pieces(p, parser, pieces, text->data ? text->data : "", until));
    size_t before = p->events.len;
    p->n_events = 0;
    TRY(dsv4_parser_end(parser, cut, err));
    TRY(p->rc);
    TRY(bytes_text(&p->events, "", err));
    return put_parsed(p, before);
}

static int join_pieces(struct debug *d, const json_t *v, struct bytes *text)
{
    const json_t *pieces = json_object_get(v, "pieces"), *whole = json_object_get(v, "text");
    if (!pieces)
        return json_is_string(whole)
                   ? bytes_add(text, json_string_value(whole), json_string_length(whole), d->err)
                   : wants(d, "text", "a string");
    if (!json_is_array(pieces))
        return wants(d, "pieces", "a list of strings");
    for (size_t i = 0; i < json_array_size(pieces); i++) {
        const json_t *s = json_array_get(pieces, i);
        if (!json_is_string(s))
            return wants(d, "pieces", "a list of strings");
        TRY(bytes_add(text, json_string_value(s), json_string_length(s), d->err));
    }
    return 0;
}

static int parse_value(struct debug *d, const json_t *v)
{
    const char *mode = json_string_value(json_object_get(v, "thinking_mode"));
    const char *end = json_string_value(json_object_get(v, "end"));
    struct parsed p = {.d = d};
    struct bytes text = {0};
    dsv4_parser *parser = NULL;
    if (!mode || (strcmp(mode, "thinking") != 0 && strcmp(mode, "chat") != 0))
        return wants(d, "thinking_mode", "\"thinking\" or \"chat\"");
    int rc = join_pieces(d, v, &text);
    if (rc == 0)
        rc = dsv4_parser_open(&parser, strcmp(mode, "thinking") == 0, true, on_event, &p, d->err);
    if (rc == 0)
        rc = parse_text(&p, parser, json_object_get(v, "pieces"), &text, end);
    dsv4_parser_close(parser);
    free(text.data);
    free(p.reasoning.data);
    free(p.content.data);
    free(p.arguments.data);
    free(p.calls.data);
    free(p.events.data);
    return rc;
}

/* The release's own parser, on a whole completion. */
static int parse_strictly(struct debug *d, const json_t *v)
{
    const char *mode = json_string_value(json_object_get(v, "thinking_mode"));
    const json_t *text = json_object_get(v, "text");
    char *json = NULL;
    if (!json_is_string(text) || !mode)
        return wants(d, mode ? "text" : "thinking_mode", "a string");
    TRY(dsv4_parse_strict(d->dialect, json_string_value(text), json_string_length(text),
                          strcmp(mode, "thinking") == 0, &json, d->err));
    int rc = bytes_text(&d->out, json, d->err);
    dsv4_free(json);
    return rc;
}

static int debug_parse(struct debug *d, const char *line, size_t len)
{
    json_t *v;
    TRY(load(d, line, len, &v));
    int rc = d->p->a.strict ? parse_strictly(d, v) : parse_value(d, v);
    json_decref(v);
    return rc;
}

/* ------------------------------------------------------------------ tokenize */

static int put_tokens(struct debug *d, const char *text, size_t len)
{
    int32_t *ids = NULL, *plain = NULL;
    size_t n = 0, n_plain = 0, *cuts = NULL, n_cuts = 0;
    struct bytes *b = &d->out;
    int rc = dsv4_encode(d->tokenizer, text, len, true, &ids, &n, d->err);
    if (rc == 0)
        rc = dsv4_encode(d->tokenizer, text, len, false, &plain, &n_plain, d->err);
    if (rc == 0)
        rc = dsv4_pretokenize(d->tokenizer, text, len, &cuts, &n_cuts, d->err);
    if (rc == 0)
        rc = bytes_text(b, "{", d->err);
    if (rc == 0)
        rc = put_ids(b, "ids", ids, n, d->err);
    if (rc == 0)
        rc = bytes_text(b, ", ", d->err);
    if (rc == 0)
        rc = put_ids(b, "ids_plain", plain, n_plain, d->err);
    if (rc == 0)
        rc = bytes_text(b, ", ", d->err);
    if (rc == 0)
        rc = put_sizes(b, "cuts", cuts, n_cuts, d->err);
    if (rc == 0)
        rc = bytes_text(b, "}", d->err);
    dsv4_free(ids);
    dsv4_free(plain);
    dsv4_free(cuts);
    return rc;
}

static int debug_tokenize(struct debug *d, const char *line, size_t len)
{
    json_t *v;
    TRY(load(d, line, len, &v));
    const json_t *text = json_object_get(v, "text");
    int rc = json_is_string(text) ? put_tokens(d, json_string_value(text), json_string_length(text))
                                  : wants(d, "text", "a string");
    json_decref(v);
    return rc;
}

/* ------------------------------------------------------------------ detokenize */

/* The bytes in hexadecimal, and the text to show after each token. */
static int put_token(struct debug *d, struct bytes *hex, struct bytes *pieces, dsv4_utf8 *u,
                     const json_t *id)
{
    size_t len, size = dsv4_tokenizer_size(d->tokenizer);
    json_int_t i = json_integer_value(id);
    if (!json_is_integer(id))
        return wants(d, "ids", "a list of whole numbers");
    if (i < 0 || (uint64_t)i >= size)
        return err_set(d->err, DSV4_REFUSED, "id %lld is out of range, ids are 0 to %zu",
                       (long long)i, size - 1);
    const char *bytes = dsv4_token_bytes(d->tokenizer, (int32_t)i, &len);
    for (size_t k = 0; k < len; k++)
        TRY(bytes_printf(hex, d->err, "%02x", (unsigned char)bytes[k]));
    char *text = malloc(len * 3 + 9);
    if (!text)
        return err_memory(d->err, len * 3 + 9, "a token's text");
    int rc = pieces->len ? bytes_text(pieces, ", ", d->err) : 0;
    if (rc == 0)
        rc = put_string(pieces, text, dsv4_utf8_push(u, bytes, len, text), d->err);
    free(text);
    return rc;
}

static int put_text(struct debug *d, const json_t *ids, struct bytes *hex, struct bytes *pieces)
{
    dsv4_utf8 u = {0};
    char rest[9];
    TRY(bytes_text(hex, "", d->err));
    TRY(bytes_text(pieces, "", d->err));
    for (size_t i = 0; i < json_array_size(ids); i++)
        TRY(put_token(d, hex, pieces, &u, json_array_get(ids, i)));
    TRY(bytes_printf(&d->out, d->err,
                     "{\"bytes\": \"%s\", \"pieces\": [%s], \"flush\": ", hex->data, pieces->data));
    TRY(put_string(&d->out, rest, dsv4_utf8_flush(&u, rest), d->err));
    return bytes_text(&d->out, "}", d->err);
}

static int debug_detokenize(struct debug *d, const char *line, size_t len)
{
    json_t *v;
    struct bytes hex = {0}, pieces = {0};
    TRY(load(d, line, len, &v));
    const json_t *ids = json_object_get(v, "ids");
    int rc = json_is_array(ids) ? put_text(d, ids, &hex, &pieces)
                                : wants(d, "ids", "a list of whole numbers");
    free(hex.data);
    free(pieces.data);
    json_decref(v);
    return rc;
}

/* ------------------------------------------------------------------ the command */

static const struct {
    const char *name;
    int (*line)(struct debug *d, const char *line, size_t len);
    bool tokenizer;
} modes[] = {{"render", debug_render, true},
             {"parse", debug_parse, false},
             {"tokenize", debug_tokenize, true},
             {"detokenize", debug_detokenize, true}};

static int choose_dialect(struct debug *d)
{
    const struct args *a = &d->p->a;
    const char *family = a->family ? a->family : "v41";
    if (strcmp(family, "v4") == 0)
        d->dialect = a->revision == REVISION_0731 ? DSV4_V4_0731 : DSV4_V4_PREVIEW;
    else if (strcmp(family, "v41") == 0)
        d->dialect = DSV4_V41;
    else
        return err_set(d->err, DSV4_USAGE, "--family: \"%s\" is none of v4, v41", family);
    if (d->dialect == DSV4_V41 && a->revision != REVISION_AUTO)
        return err_set(d->err, DSV4_USAGE, "--revision is for --family v4");
    return 0;
}

/* Answers one line; what is refused becomes the answer. */
static int answer(struct debug *d, size_t mode, const char *line, size_t len)
{
    struct stream *out = &d->p->term.out;
    d->out.len = 0;
    int rc = modes[mode].line(d, line, len);
    if (rc == DSV4_NO_MEMORY)
        return rc;
    if (rc != 0) {
        d->out.len = 0;
        TRY(bytes_text(&d->out, "{\"error\": ", d->err));
        char why[sizeof d->err->text];
        size_t n = strlen(d->err->text);
        memcpy(why, d->err->text, n + 1);
        TRY(put_string(&d->out, why, n, d->err));
        TRY(bytes_text(&d->out, "}", d->err));
    }
    stream_foreign(out, d->out.data, d->out.len);
    stream_foreign_end(out);
    stream_text(out, "\n");
    return stream_flush(out, d->err);
}

static int each_line(struct debug *d, size_t mode)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    int rc = 0;
    errno = 0;
    while (rc == 0 && (n = getline(&line, &cap, stdin)) >= 0) {
        size_t len = (size_t)n;
        if (len > 0 && line[len - 1] == '\n')
            len--;
        if (len > 0)
            rc = answer(d, mode, line, len);
        if (rc == 0 && interrupted())
            rc = err_set(d->err, DSV4_INTERRUPTED, "interrupted");
        errno = 0;
    }
    if (rc == 0 && interrupted())
        rc = err_set(d->err, DSV4_INTERRUPTED, "interrupted");
    else if (rc == 0 && errno != 0 && !feof(stdin))
        rc = err_errno(d->err, DSV4_FAILED, "standard input", "read");
    free(line);
    return rc;
}

int cmd_debug(struct program *p, dsv4_err *err)
{
    struct debug d = {.p = p, .err = err};
    size_t mode = 0, n = sizeof modes / sizeof *modes;
    while (mode < n && strcmp(modes[mode].name, p->argv[0]) != 0)
        mode++;
    if (mode == n)
        return err_set(err, DSV4_USAGE,
                       "debug: \"%s\" is none of render, parse, tokenize, detokenize", p->argv[0]);
    TRY(choose_dialect(&d));
    if (modes[mode].tokenizer)
        TRY(tokenizer_open(p, &d.tokenizer, err));
    int rc = each_line(&d, mode);
    dsv4_tokenizer_close(d.tokenizer);
    free(d.out.data);
    return rc;
}
