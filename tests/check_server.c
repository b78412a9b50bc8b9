/* Parts of the server that need no engine: matching prompts as text, the gate, the table of parameters,
 * JSON in and out. */
#include "suite.h"

#include "src/server/server.h"

#include <math.h>

/* ------------------------------------------------------------------ prompts as text */

/* Tokens whose texts are "a" + id, markers above 60. */
static const char *letters(void *self, int32_t token, size_t *len, bool *marker)
{
    static const char *const text[] = {"a", "b", "ab", "<M>"};
    (void)self;
    *marker = token == 3;
    *len = token < 4 ? strlen(text[token]) : 0;
    return token < 4 ? text[token] : NULL;
}

START_TEST(test_match_as_text)
{
    struct backend b = {.text = letters};
    size_t from;
    /* 16 times "ab" as one token; then the marker; then "ab" again */
    int32_t prompt[19], other[40];
    char text[64];
    size_t len = 0, n = 0;
    for (size_t i = 0; i < 16; i++) {
        prompt[i] = other[n++] = 2;
        len += (size_t)sprintf(text + len, "ab");
    }
    prompt[16] = 2;
    len += (size_t)sprintf(text + len, "ab");
    dsv4_span span = {len, len + 3};
    prompt[17] = 3;
    len += (size_t)sprintf(text + len, "<M>");
    prompt[18] = 2;
    len += (size_t)sprintf(text + len, "ab");
    struct job j = {.prompt = prompt,
                    .n_prompt = 19,
                    .text = text,
                    .text_len = len,
                    .spans = &span,
                    .n_spans = 1};
    other[n++] = 0; /* generated as two tokens */
    other[n++] = 1;
    ck_assert_uint_eq(prefix_match(&b, &j, other, n, &from), 18); /* up to the marker */
    ck_assert_uint_eq(from, 17);
    other[n++] = 3;
    ck_assert_uint_eq(prefix_match(&b, &j, other, n, &from), 19);
    ck_assert_uint_eq(from, 18);
    other[n++] = 0; /* the text goes on, but there is no edge where both agree */
    ck_assert_uint_eq(prefix_match(&b, &j, other, n, &from), 19);
    other[n++] = 1;
    ck_assert_uint_eq(prefix_match(&b, &j, other, n, &from), 21);
    ck_assert_uint_eq(from, 19);
    /* the marker's text as ordinary text is not the marker */
    j.n_spans = 0;
    ck_assert_uint_eq(prefix_match(&b, &j, other, n, &from), 16);
    ck_assert_uint_eq(from, 16);
}
END_TEST
/* ------------------------------------------------------------------ gate and parameters */

static struct gate_header head(const char *name, const char *value)
{
    return (struct gate_header){name, value, strlen(name), strlen(value)};
}

START_TEST(test_gate)
{
    struct gate_header h[3] = {head("Host", "localhost")};
    ck_assert_ptr_null(gate_headers(h, 1, true));
    ck_assert_ptr_nonnull(gate_headers(h, 0, true));
    ck_assert_ptr_null(gate_headers(h, 0, false));
    h[1] = head("host", "localhost");
    ck_assert_ptr_nonnull(gate_headers(h, 2, true));
    h[1] = head("Content-Length", "12");
    ck_assert_ptr_null(gate_headers(h, 2, true));
    h[2] = head("content-length", "12");
    ck_assert_ptr_nonnull(gate_headers(h, 3, true));
    h[2] = head("Transfer-Encoding", "chunked");
    ck_assert_ptr_nonnull(gate_headers(h, 3, true));
    h[1] = head("X-A", "a\x01z");
    ck_assert_ptr_nonnull(gate_headers(h, 2, true));
    h[1] = head("X A", "a");
    ck_assert_ptr_nonnull(gate_headers(h, 2, true));
    static const char *const lengths[] = {
        "", "-1", "+1", "1 ", "0x1", "1,1", "9999999999999999999"};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        h[1] = head("Content-Length", lengths[i]);
        ck_assert_ptr_nonnull(gate_headers(h, 2, true));
    }
    static const char *const uris[] = {"",     "x",     "http://a/", "/a b",  "/%00",
                                       "/a%0", "/\x7f", "/a%zz",     "/\xc3", "*"};
    for (size_t i = 0; i < sizeof uris / sizeof *uris; i++)
        ck_assert_ptr_nonnull(gate_uri(uris[i]));
    ck_assert_ptr_null(gate_uri("/v1/models?x=%41"));
    ck_assert_ptr_null(gate_method("POST"));
    ck_assert_ptr_nonnull(gate_method("post"));
    ck_assert_ptr_nonnull(gate_method("BREW"));
}
END_TEST

START_TEST(test_gate_names)
{
    const char *hosts[] = {"box.example"}, *origins[] = {"https://app.example"};
    struct server_options o = {
        .host = "127.0.0.1", .hosts = hosts, .n_hosts = 1, .origins = origins, .n_origins = 1};
    static const char *const good[] = {"localhost", "LOCALHOST:80",    "127.0.0.1:8090", "[::1]:1",
                                       "[::1]",     "box.example:443", "10.0.0.7"};
    static const char *const bad[] = {"",    "evil.example", "localhost.evil", "box.example.evil",
                                      "a:b", "[::1",         "localhost:80x",  "127.0.0.1.nip.io"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        ck_assert_msg(gate_host(&o, good[i]), "%s", good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ck_assert_msg(!gate_host(&o, bad[i]), "%s", bad[i]);
    ck_assert(gate_origin(&o, "http://localhost:80", "localhost:80"));
    ck_assert(gate_origin(&o, "https://app.example", "localhost"));
    ck_assert(!gate_origin(&o, "https://localhost", "localhost"));
    ck_assert(!gate_origin(&o, "http://evil", "localhost"));
    ck_assert(!gate_origin(&o, "null", "localhost"));
    struct key keys[2] = {{5, "alpha"}, {4, "beta"}};
    o.keys = keys;
    o.n_keys = 2;
    ck_assert_uint_eq(gate_key(&o, "alpha"), 1);
    ck_assert_uint_eq(gate_key(&o, "beta"), 2);
    ck_assert_uint_eq(gate_key(&o, "alph"), 0);
    ck_assert_uint_eq(gate_key(&o, "alphaa"), 0);
    ck_assert_uint_eq(gate_key(&o, ""), 0);
}
END_TEST

START_TEST(test_params)
{
    struct v {
        bool b;
        int64_t i;
        double d;
        const char *t;
        json_t *l;
    } v = {.i = 5};
    static const struct param table[] = {{"b", P_BOOL, 0, 0, offsetof(struct v, b)},
                                         {"i", P_INT, -3, 9, offsetof(struct v, i)},
                                         {"d", P_NUMBER, 0, 2, offsetof(struct v, d)},
                                         {"t", P_TEXT, 1, 4, offsetof(struct v, t)},
                                         {"l", P_LIST, 0, 2, offsetof(struct v, l)}};
    static const struct {
        const char *body, *param; /* param NULL: good */
    } cases[] = {{"{}", NULL},          {"{\"i\":null}", NULL},       {"{\"i\":9}", NULL},
                 {"{\"i\":3.0}", NULL}, {"{\"i\":10}", "i"},          {"{\"i\":-4}", "i"},
                 {"{\"i\":1.5}", "i"},  {"{\"i\":\"1\"}", "i"},       {"{\"i\":true}", "i"},
                 {"{\"i\":1e40}", "i"}, {"{\"b\":1}", "b"},           {"{\"d\":2.1}", "d"},
                 {"{\"d\":-0.1}", "d"}, {"{\"t\":\"\"}", "t"},        {"{\"t\":\"abcde\"}", "t"},
                 {"{\"t\":5}", "t"},    {"{\"l\":[1,2,3]}", "l"},     {"{\"l\":{}}", "l"},
                 {"{\"x\":1}", "x"},    {"{\"t\":\"a\\u0000\"}", "t"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct failure f = {0};
        json_t *body;
        dsv4_err err;
        OK(json_read(&body, cases[i].body, strlen(cases[i].body), &err));
        int rc = params_read(body, table, 5, &v, &f);
        ck_assert_msg((rc != 0) == (cases[i].param != NULL), "%s", cases[i].body);
        if (rc != 0) {
            ck_assert_str_eq(f.param, cases[i].param);
            ck_assert_int_eq(f.status, 400);
        }
        json_decref(body);
    }
}
END_TEST

START_TEST(test_out)
{
    struct out o = {0};
    out_string(&o, "a\"\\\n\x01\x7f\xc3\xa4", 8);
    ck_assert_str_eq(o.b.data, "\"a\\\"\\\\\\n\\u0001\\u007f\xc3\xa4\"");
    o.b.len = 0;
    out_number(&o, (double)INFINITY);
    out_text(&o, " ");
    out_number(&o, (double)NAN);
    ck_assert_str_eq(o.b.data, "1e+30 0");
    out_free(&o);
    json_t *v;
    dsv4_err err;
    static const char *const bad[] = {"", "{", "{\"a\":1,\"a\":2}", "{} {}", "\xff", "nul"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ck_assert_int_eq(json_read(&v, bad[i], strlen(bad[i]), &err), DSV4_REFUSED);
    char deep[400];
    memset(deep, '[', 200);
    memset(deep + 200, ']', 200);
    ck_assert_int_eq(json_read(&v, deep, 400, &err), DSV4_REFUSED);
    OK(json_read(&v, deep + 100, 200, &err));
    json_decref(v);
}
END_TEST
int main(void)
{
    Suite *s = suite_create("server");
    TCase *text = tcase_create("text"), *gate = tcase_create("gate");
    tcase_add_test(text, test_match_as_text);
    tcase_add_test(text, test_out);
    tcase_add_test(gate, test_gate);
    tcase_add_test(gate, test_gate_names);
    tcase_add_test(gate, test_params);
    suite_add_tcase(s, text);
    suite_add_tcase(s, gate);
    return run_suite(s);
}
