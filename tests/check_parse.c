/* The parser of model output against the recorded output of the official serving library, cut in every
 * way; the strict parser against the one released with the weights. */
#include "suite.h"

#include "src/text/chat_inner.h"
#include "src/text/text.h"

#include <jansson.h>

/* ------------------------------------------------------------------ events folded to a message */

enum { MAX_CALLS = 16 };

struct folded {
    struct bytes reasoning, content, name[MAX_CALLS], arguments[MAX_CALLS];
    size_t calls;
    char reason[16];
    size_t events;
    bool whole; /* every event held whole characters */
};

static void fold(void *arg, const dsv4_event *e)
{
    struct folded *f = arg;
    dsv4_err err;
    f->events++;
    f->whole = f->whole && utf8_valid(e->text, e->len);
    ck_assert_str_eq(f->reason, "");
    switch (e->kind) {
    case DSV4_REASONING: OK(bytes_add(&f->reasoning, e->text, e->len, &err)); break;
    case DSV4_CONTENT: OK(bytes_add(&f->content, e->text, e->len, &err)); break;
    case DSV4_CALL:
        ck_assert(e->index == f->calls && f->calls < MAX_CALLS);
        OK(bytes_add(&f->name[f->calls++], e->text, e->len, &err));
        break;
    case DSV4_ARGUMENTS:
        ck_assert_uint_eq(e->index + 1, f->calls);
        OK(bytes_add(&f->arguments[e->index], e->text, e->len, &err));
        break;
    case DSV4_FINISH:
        ck_assert_uint_lt(e->len, sizeof f->reason);
        memcpy(f->reason, e->text, e->len);
        break;
    }
}

static void release(struct folded *f)
{
    free(f->reasoning.data);
    free(f->content.data);
    for (size_t i = 0; i < MAX_CALLS; i++) {
        free(f->name[i].data);
        free(f->arguments[i].data);
    }
}

static dsv4_parser *begin(struct folded *f, bool thinking, bool tools)
{
    dsv4_err err;
    dsv4_parser *p;
    memset(f, 0, sizeof *f);
    f->whole = true;
    OK(dsv4_parser_open(&p, thinking, tools, fold, f, &err));
    return p;
}

/* Feeds text cut at a and b; step 1: byte by byte. */
static void parse(struct folded *f, const char *text, size_t len, size_t a, size_t b, size_t step,
                  bool thinking, bool tools, bool cut)
{
    dsv4_err err;
    dsv4_parser *p = begin(f, thinking, tools);
    if (step)
        for (size_t i = 0; i < len; i += step)
            OK(dsv4_parser_feed(p, text + i, len - i < step ? len - i : step, &err));
    else {
        OK(dsv4_parser_feed(p, text, a, &err));
        OK(dsv4_parser_feed(p, text + a, b - a, &err));
        OK(dsv4_parser_feed(p, text + b, len - b, &err));
    }
    OK(dsv4_parser_end(p, cut, &err));
    OK(dsv4_parser_end(p, cut, &err));
    OK(dsv4_parser_feed(p, "x", 1, &err));
    dsv4_parser_close(p);
}

static bool same(const struct bytes *b, const json_t *want)
{
    return b->len == json_string_length(want) &&
           (b->len == 0 || memcmp(b->data, json_string_value(want), b->len) == 0);
}

static void expect(const struct folded *f, const json_t *want, const char *name)
{
    const json_t *calls = json_object_get(want, "tool_calls");
    ck_assert_msg(same(&f->reasoning, json_object_get(want, "reasoning_content")),
                  "%s: reasoning %s", name, f->reasoning.data);
    ck_assert_msg(same(&f->content, json_object_get(want, "content")), "%s: content %s", name,
                  f->content.data);
    ck_assert_msg(f->calls == json_array_size(calls), "%s: %zu calls", name, f->calls);
    for (size_t i = 0; i < f->calls; i++) {
        const json_t *call = json_array_get(calls, i);
        ck_assert_msg(same(&f->name[i], json_object_get(call, "name")), "%s: name %s", name,
                      f->name[i].data);
        ck_assert_msg(same(&f->arguments[i], json_object_get(call, "arguments")),
                      "%s: arguments %s", name, f->arguments[i].data);
    }
    ck_assert_msg(strcmp(f->reason, json_string_value(json_object_get(want, "finish_reason"))) == 0,
                  "%s: finish %s", name, f->reason);
}

/* ------------------------------------------------------------------ golden files */

static json_t *cases(const char *name, json_t **file)
{
    char path[128];
    json_error_t e;
    snprintf(path, sizeof path, "%schat/%s.json", GOLDEN, name);
    *file = json_load_file(path, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &e);
    ck_assert_msg(*file != NULL, "%s: %s", path, e.text);
    return json_object_get(*file, "cases");
}

static bool flag(const json_t *c, const char *key, const char *value)
{
    return strcmp(json_string_value(json_object_get(c, key)), value) == 0;
}

static size_t every_cutting(const char *file)
{
    json_t *root, *list = cases(file, &root), *c;
    size_t i, cuttings = 0;
    json_array_foreach(list, i, c)
    {
        const char *name = json_string_value(json_object_get(c, "name"));
        const json_t *want = json_object_get(c, "stream_expected");
        want = want ? want : json_object_get(c, "stream");
        const char *text = json_string_value(json_object_get(c, "text"));
        size_t len = json_string_length(json_object_get(c, "text"));
        const char *eos = memmem(text, len, M_EOS, strlen(M_EOS));
        bool thinking = flag(c, "thinking_mode", "thinking");
        len = eos ? (size_t)(eos - text) : len;
        struct folded f;
        for (size_t step = 1; step <= 7; step++, cuttings++) {
            parse(&f, text, len, 0, 0, step, thinking, true, !eos);
            expect(&f, want, name);
            ck_assert_msg(f.whole, "%s: split characters", name);
            release(&f);
        }
        for (size_t a = 0; a <= len; a++, cuttings++) {
            size_t b = a + (a * 7) % (len - a + 1);
            parse(&f, text, len, a, b, 0, thinking, true, !eos);
            expect(&f, want, name);
            release(&f);
        }
    }
    json_decref(root);
    return cuttings;
}

START_TEST(stream_in_every_cutting)
{
    ck_assert_uint_gt(every_cutting("parse_v4"), 10000);
    ck_assert_uint_gt(every_cutting("parse_v41"), 10000);
}
END_TEST

static bool begins(const struct bytes *b, const json_t *want)
{
    return b->len <= json_string_length(want) &&
           (b->len == 0 || memcmp(b->data, json_string_value(want), b->len) == 0);
}

/* After every piece: nothing false delivered, and at least as much as the library had. */
static void piece_by_piece(const char *file)
{
    json_t *root, *list = cases(file, &root), *c, *e;
    size_t i, k, n, ours = 0;
    json_array_foreach(list, i, c)
    {
        const char *name = json_string_value(json_object_get(c, "name"));
        const json_t *pieces = json_object_get(c, "pieces"), *want = json_object_get(c, "folded");
        size_t reasoning = 0, content = 0;
        struct folded f;
        dsv4_err err;
        dsv4_parser *p = begin(&f, flag(c, "thinking_mode", "thinking"), true);
        for (k = 0; k < json_array_size(pieces); k++) {
            const json_t *piece = json_array_get(pieces, k);
            OK(dsv4_parser_feed(p, json_string_value(piece), json_string_length(piece), &err));
            json_array_foreach(json_array_get(json_object_get(c, "events"), k), n, e)
            {
                const char *kind = json_string_value(json_array_get(e, 0));
                size_t len = json_string_length(json_array_get(e, 1));
                reasoning += strcmp(kind, "reasoning") == 0 ? len : 0;
                content += strcmp(kind, "content") == 0 ? len : 0;
            }
            ck_assert_msg(f.reasoning.len >= reasoning && f.content.len >= content,
                          "%s: slower at piece %zu", name, k);
            ck_assert_msg(begins(&f.reasoning, json_object_get(want, "reasoning_content")) &&
                              begins(&f.content, json_object_get(want, "content")),
                          "%s: wrong at piece %zu", name, k);
        }
        OK(dsv4_parser_end(p, flag(c, "end", "length"), &err));
        expect(&f, want, name);
        ck_assert(f.whole);
        dsv4_parser_close(p);
        release(&f);
        ours++;
    }
    ck_assert_uint_eq(ours, 40);
    json_decref(root);
}

START_TEST(stream_piece_by_piece)
{
    piece_by_piece("stream_v4");
    piece_by_piece("stream_v41");
}
END_TEST

/* ------------------------------------------------------------------ more than the goldens have */

static const struct {
    bool thinking, tools;
    const char *text, *reasoning, *content, *name, *arguments;
} more[] = {
    /* recorded from the official library */
    {false, true, "</think>\n\na", "", "\n\na", NULL, NULL},
    {false, true, "\n</think>\na", "", "\na", NULL, NULL},
    {true, true, "r</think>x\n\n</think>\n\ny", "r", "x\n\n\n\ny", NULL, NULL},
    {true, true, "r\n\n", "r\n\n", "", NULL, NULL},
    {true, true, "</think\n>\n</think>ok", "</think\n>", "ok", NULL, NULL},
    {true, true, "</th</think>ok", "</th", "ok", NULL, NULL},
    {false, true, "a\n</think>\n<｜DSML｜tool_calls>x", "", "a\n", NULL, NULL},
    {false, false, "a\n\n<｜DSML｜tool_calls>", "", "a\n\n<｜DSML｜tool_calls>", NULL, NULL},
    {true, false, "\n<｜DSML｜</think>b", "<｜DSML｜", "b", NULL, NULL},
    {true, true, "x\n\n<｜DSML｜</think>abc", "x", "", NULL, NULL},
    {false, true, "<｜DSML｜invoke name=\"f\"parameter name=\"a\"", "", "", "f", "{\"a\""},
    {false, true, "<｜DSML｜invoke name=\"f\" </｜DSML｜ </｜DSML｜ calls>invoke name=\"g\"", "",
     "", "f", "{}"},
    {false, true,
     "<｜DSML｜ invoke invoke name=\"f\" parametparameter name=\"k\" ttrue\">a<b</</｜DSML｜", "",
     "", "f", "{\"k\": \"a<b</\""},
    {false, true, "<｜DSML｜invoke name=\"f\" parameter name=\"k\" string=\"false\"true\">a", "",
     "", "f", "{\"k\": \"a"},
    /* bytes that are no text */
    {true, true, "\xff\xe2\x82</think>\xe2\x82", "\xff\xe2\x82", "\xe2\x82", NULL, NULL},
};

START_TEST(odd_texts)
{
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        size_t len = strlen(more[i].text);
        for (size_t a = 0; a <= len; a++)
            for (size_t b = a; b <= len; b++) {
                struct folded f;
                parse(&f, more[i].text, len, a, b, 0, more[i].thinking, more[i].tools, false);
                const char *got = f.reasoning.data ? f.reasoning.data : "";
                ck_assert_str_eq(got, more[i].reasoning);
                ck_assert_str_eq(f.content.data ? f.content.data : "", more[i].content);
                ck_assert_uint_eq(f.calls, more[i].name != NULL);
                if (more[i].name) {
                    ck_assert_str_eq(f.name[0].data, more[i].name);
                    ck_assert_str_eq(f.arguments[0].data, more[i].arguments);
                }
                ck_assert_str_eq(f.reason, more[i].name ? "tool_calls" : "stop");
                release(&f);
            }
    }
}
END_TEST

/* Things that a careless parser holds back for ever or looks at again and again. */
START_TEST(long_texts_take_linear_time)
{
    static const char *const unit[] = {"<",   "\n",   "</",   "<｜DSML", "</think>",
                                       "\n<", "</th", "text", "\n\n\n",  "\xe2\x82"};
    static const char *const start[] = {"",
                                        "<｜DSML｜",
                                        "<｜DSML｜invoke name=\"",
                                        "<｜DSML｜invoke name=\"f\"",
                                        "<｜DSML｜invoke name=\"f\"parameter name=\"",
                                        "<｜DSML｜invoke name=\"f\"parameter name=\"k\"true\">"};
    dsv4_err err;
    for (size_t s = 0; s < sizeof start / sizeof *start; s++)
        for (size_t u = 0; u < sizeof unit / sizeof *unit; u++) {
            struct folded f;
            dsv4_parser *p = begin(&f, true, true);
            OK(dsv4_parser_feed(p, start[s], strlen(start[s]), &err));
            for (size_t i = 0; i < 20000; i++)
                OK(dsv4_parser_feed(p, unit[u], strlen(unit[u]), &err));
            OK(dsv4_parser_end(p, true, &err));
            ck_assert_str_eq(f.reason, "length");
            dsv4_parser_close(p);
            release(&f);
        }
}
END_TEST

START_TEST(a_name_has_an_end)
{
    enum { N = 1 << 20 };
    char *text = malloc(N + 100);
    ck_assert_ptr_nonnull(text);
    size_t n = (size_t)sprintf(text, "<｜DSML｜invoke name=\"x");
    for (; n + 2 < N; n += 2)
        memcpy(text + n, "é", 2);
    text[n++] = '"';
    struct folded f;
    parse(&f, text, n, 0, 0, 1000, false, true, false);
    ck_assert_uint_eq(f.calls, 1);
    ck_assert_uint_eq(f.name[0].len, 4095); /* 4096 would split a character */
    ck_assert(f.whole);
    release(&f);
    free(text);
}
END_TEST

/* ------------------------------------------------------------------ strict */

static size_t strict(const char *file, dsv4_dialect d)
{
    json_t *root, *list = cases(file, &root), *c;
    size_t i, refused = 0;
    json_array_foreach(list, i, c)
    {
        const char *name = json_string_value(json_object_get(c, "name"));
        const json_t *text = json_object_get(c, "text"), *want = json_object_get(c, "strict");
        bool bad = json_object_get(want, "error") != NULL;
        char *got;
        dsv4_err err = {0};
        int rc = dsv4_parse_strict(d, json_string_value(text), json_string_length(text),
                                   flag(c, "thinking_mode", "thinking"), &got, &err);
        ck_assert_msg(rc == (bad ? DSV4_REFUSED : 0), "%s: %d %s", name, rc, err.text);
        refused += bad;
        if (bad) {
            ck_assert(err.text[0] && !got);
            continue;
        }
        json_t *j = json_loads(got, JSON_ALLOW_NUL, NULL);
        ck_assert_msg(j && json_equal(j, want), "%s: %s", name, got);
        json_decref(j);
        dsv4_free(got);
    }
    json_decref(root);
    return refused;
}

START_TEST(strict_accepts_and_refuses)
{
    ck_assert_uint_gt(strict("parse_v4", DSV4_V4_PREVIEW), 40);
    strict("parse_v4", DSV4_V4_0731);
    ck_assert_uint_gt(strict("parse_v41", DSV4_V41), 40);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("parse");
    TCase *t = tcase_create("parse");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, stream_in_every_cutting);
    tcase_add_test(t, stream_piece_by_piece);
    tcase_add_test(t, odd_texts);
    tcase_add_test(t, long_texts_take_linear_time);
    tcase_add_test(t, a_name_has_an_end);
    tcase_add_test(t, strict_accepts_and_refuses);
    suite_add_tcase(s, t);
    return run_suite(s);
}
