/* Fuzz target: model output in pieces. Byte 0 holds flags, byte 1 seeds the cutting, the rest is the
 * text. Cut anyhow, it gives the same events (neighbours of one kind joined), each well formed, and
 * not much more text than came in. The strict parser refuses it or gives JSON. */
#include "src/text/chat_inner.h"
#include "src/text/text.h"

#include <stdlib.h>
#include <string.h>

static void must(bool good)
{
    if (!good)
        abort();
}

struct seen {
    struct bytes text; /* of all events, with a header where the kind or index changes */
    size_t kind, index, calls, delivered;
    bool finished, whole;
};

static void take(void *arg, const dsv4_event *e)
{
    struct seen *s = arg;
    dsv4_err err;
    must(!s->finished && e->kind <= DSV4_FINISH && (e->text || e->len == 0));
    must(e->len > 0 || e->kind == DSV4_CALL);
    if (e->kind == DSV4_CALL)
        must(e->index == s->calls++);
    else if (e->kind == DSV4_ARGUMENTS)
        must(e->index + 1 == s->calls);
    else
        must(e->index == 0);
    if (e->kind == DSV4_CALL || s->kind != (size_t)e->kind || s->index != e->index)
        must(bytes_printf(&s->text, &err, "\n[%d %zu]", (int)e->kind, e->index) == 0);
    s->kind = (size_t)e->kind;
    s->index = e->index;
    must(bytes_add(&s->text, e->text, e->len, &err) == 0);
    s->whole = s->whole && utf8_valid(e->text, e->len);
    s->delivered += e->len;
    s->finished = e->kind == DSV4_FINISH;
}

/* Pieces of 0 to `most` bytes; 0: all at once. */
static struct seen run(const char *text, size_t len, unsigned flags, unsigned seed, unsigned most)
{
    struct seen s = {.kind = 99, .whole = true};
    dsv4_err err;
    dsv4_parser *p;
    must(dsv4_parser_open(&p, flags & 1, flags & 2, take, &s, &err) == 0);
    for (size_t at = 0; at < len;) {
        seed = seed * 1103515245u + 12345u;
        size_t n = most == 0 ? len : most == 1 ? 1 : (seed >> 16) % (most + 1);
        n = n < len - at ? n : len - at;
        must(dsv4_parser_feed(p, text + at, n, &err) == 0);
        at += n;
    }
    must(dsv4_parser_end(p, flags & 4, &err) == 0);
    must(s.finished);
    dsv4_parser_close(p);
    return s;
}

static void check_strict(const char *text, size_t len, unsigned flags)
{
    dsv4_err err;
    char *json;
    struct jv_doc doc;
    int rc = dsv4_parse_strict(flags & 8 ? DSV4_V41 : DSV4_V4_PREVIEW, text, len, flags & 1, &json,
                               &err);
    must(rc == 0 || (rc == DSV4_REFUSED && !json));
    if (rc != 0)
        return;
    must(jv_parse(&doc, json, strlen(json), "strict", &err) == 0);
    must(jv_is(jv_get(doc.root, "tool_calls"), JV_LIST));
    jv_free(&doc);
    dsv4_free(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    const char *text = (const char *)data + 2;
    size_t len = size - 2;
    struct seen whole = run(text, len, data[0], 0, 0);
    must(whole.delivered <= 6 * len + 32);
    must(whole.whole || !utf8_valid(text, len));
    static const unsigned most[] = {1, 3, 17, 64};
    for (size_t i = 0; i < sizeof most / sizeof *most; i++) {
        struct seen cut = run(text, len, data[0], data[1], most[i]);
        must(cut.text.len == whole.text.len);
        must(memcmp(cut.text.data, whole.text.data, whole.text.len) == 0);
        must(cut.whole || !utf8_valid(text, len));
        free(cut.text.data);
    }
    free(whole.text.data);
    check_strict(text, len, data[0]);
    return 0;
}
