/* Prompt encoding against the recorded prompts of the released encoders, and what must hold for any
 * input: only our own text makes control spans, failures leave nothing behind. */
#include "suite.h"

#include "markers.h"
#include "src/text/chat_inner.h"

#include <jansson.h>
#include <locale.h>

/* ------------------------------------------------------------------ golden files, a case a line */

static char *golden_text;

static void open_golden(const char *name)
{
    dsv4_err err;
    char path[128];
    size_t len;
    snprintf(path, sizeof path, "%schat/%s.json", GOLDEN, name);
    free(golden_text);
    OK(file_read(path, 1 << 26, &golden_text, &len, &err));
}

/* The next case as JSON text, cut out of the file; NULL at the end. */
static char *next_case(char **at)
{
    char *p = strstr(*at, "\n{\"name\"");
    if (!p)
        return NULL;
    char *end = strchr(++p, '\n');
    ck_assert_ptr_nonnull(end);
    *at = end;
    p = strndup(p, (size_t)(end - p));
    ck_assert_ptr_nonnull(p);
    size_t n = strlen(p);
    if (p[n - 1] == ',')
        p[n - 1] = 0;
    return p;
}

static json_t *load(const char *text)
{
    json_error_t e;
    json_t *j = json_loads(text, JSON_ALLOW_NUL | JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, &e);
    ck_assert_msg(j != NULL, "%s: %s", text, e.text);
    return j;
}

/* ------------------------------------------------------------------ one prompt */

#define N_KNOWN (sizeof known / sizeof *known)

static size_t known_at(const char *p, size_t left)
{
    for (size_t i = 0; i < N_KNOWN; i++)
        if (left >= strlen(known[i]) && memcmp(p, known[i], strlen(known[i])) == 0)
            return strlen(known[i]);
    return 0;
}

static size_t count_known(const char *text, size_t len)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++)
        n += known_at(text + i, len - i) > 0;
    return n;
}

/* Spans ascend, lie inside, and each is exactly one marker. */
static void check_spans(const dsv4_prompt *p)
{
    size_t at = 0;
    ck_assert_int_eq(p->text[p->len], 0);
    for (size_t i = 0; i < p->n_control; i++) {
        dsv4_span s = p->control[i];
        ck_assert(s.begin >= at && s.begin < s.end && s.end <= p->len);
        ck_assert_uint_eq(known_at(p->text + s.begin, p->len - s.begin), s.end - s.begin);
        at = s.end;
    }
}

static size_t run_case(const char *text, dsv4_dialect dialect)
{
    json_t *j = load(text);
    const char *name = json_string_value(json_object_get(j, "name"));
    const json_t *prompt = json_object_get(j, "prompt"), *images = json_object_get(j, "images");
    bool may_refuse = json_is_true(json_object_get(j, "may_refuse"));
    bool may_accept = json_is_true(json_object_get(j, "may_accept"));
    dsv4_prompt *p;
    dsv4_err err = {0};
    int rc = dsv4_render(dialect, text, strlen(text), &p, &err);
    if (rc != 0) {
        ck_assert_msg(rc == DSV4_REFUSED && err.text[0], "%s: %d %s", name, rc, err.text);
        ck_assert_msg(!prompt || may_refuse, "%s: %s", name, err.text);
        ck_assert_ptr_null(p);
        json_decref(j);
        return 1;
    }
    ck_assert_msg(prompt || may_accept, "%s: accepted", name);
    check_spans(p);
    if (prompt) {
        const char *want = json_string_value(prompt);
        ck_assert_msg(json_string_length(prompt) == p->len && memcmp(want, p->text, p->len) == 0,
                      "%s:\nwant %s\ngot  %s", name, want, p->text);
        ck_assert_uint_eq(p->n_images, json_array_size(images));
    }
    for (size_t i = 0; i < p->n_images; i++) {
        json_t *got = load(p->images[i]);
        ck_assert_msg(json_equal(got, json_array_get(images, i)), "%s: %s", name, p->images[i]);
        json_decref(got);
    }
    /* Where nobody typed a marker, every marker in the prompt is ours: the reference's ids follow. */
    char *said = json_dumps(json_object_get(j, "messages"), JSON_ENCODE_ANY);
    char *raw = strstr(text, "\"messages\"");
    const char *raw_end = strstr(text, "\"prompt\"");
    if (raw_end && raw && count_known(raw, (size_t)(raw_end - raw)) == 0 &&
        !strstr(said, "\\uff5c"))
        ck_assert_msg(count_known(p->text, p->len) == p->n_control, "%s: %zu spans", name,
                      p->n_control);
    free(said);
    dsv4_prompt_close(p);
    json_decref(j);
    return 1;
}

START_TEST(v4_prompts)
{
    size_t n = 0;
    open_golden("encode_v4");
    char *at = golden_text, *text;
    for (; (text = next_case(&at)); free(text)) {
        json_t *j = load(text), *revision;
        size_t i;
        json_array_foreach(json_object_get(j, "revisions"), i, revision)
        {
            bool preview = strcmp(json_string_value(revision), "preview") == 0;
            n += run_case(text, preview ? DSV4_V4_PREVIEW : DSV4_V4_0731);
        }
        json_decref(j);
    }
    ck_assert_uint_ge(n, 335);
}
END_TEST

START_TEST(v41_prompts)
{
    size_t n = 0;
    open_golden("encode_v41");
    char *at = golden_text, *text;
    for (; (text = next_case(&at)); free(text))
        n += run_case(text, DSV4_V41);
    ck_assert_uint_eq(n, 361);
}
END_TEST

/* ------------------------------------------------------------------ typed markers */

static dsv4_prompt *render(dsv4_dialect d, const char *json)
{
    dsv4_err err;
    dsv4_prompt *p;
    OK(dsv4_render(d, json, strlen(json), &p, &err));
    check_spans(p);
    return p;
}

/* A request with `x` (JSON string text) in every place that text can come from. */
static dsv4_prompt *everywhere(dsv4_dialect d, const char *x)
{
    static const char *const shape =
        "{'options':{'thinking_mode':'thinking','drop_thinking':false},'messages':["
        "{'role':'system','content':'@','tools':[{'function':{'name':'@','description':'@','@':'@'}"
        "}],"
        "'response_format':{'@':['@']}},"
        "{'role':'latest_reminder','content':'@'},"
        "{'role':'user','content':'@'},"
        "{'role':'assistant','content':'@','reasoning_content':'@','tool_calls':["
        "{'id':'@','function':{'name':'@','arguments':'{\\'@\\':\\'@\\',\\'b@\\':[\\'@\\']}'}},"
        "{'id':'2','function':{'name':'f','arguments':'@'}}]},"
        "{'role':'tool','tool_call_id':'@','content':'@'},"
        "{'role':'tool','tool_call_id':'2','content':[{'type':'text','text':'@'}]},"
        "{'role':'user','content':'@'}]}";
    struct bytes b = {0};
    dsv4_err err;
    for (const char *s = shape; *s; s++)
        if (*s == '@')
            OK(bytes_text(&b, x, &err));
        else
            OK(bytes_add(&b, *s == '\'' ? "\"" : s, 1, &err));
    dsv4_prompt *p = render(d, b.data);
    free(b.data);
    return p;
}

START_TEST(typed_markers_are_no_control)
{
    json_t *meta = json_load_file(GOLDEN "tokenizer/meta.json", 0, NULL);
    ck_assert_ptr_nonnull(meta);
    json_t *added = json_object_get(meta, "added_tokens"), *row;
    size_t i, tried = 0;
    for (dsv4_dialect d = DSV4_V4_PREVIEW; d <= DSV4_V41; d++) {
        dsv4_prompt *base = everywhere(d, "x");
        json_array_foreach(added, i, row)
        {
            const char *x = json_string_value(json_array_get(row, 1));
            dsv4_prompt *p = everywhere(d, x);
            ck_assert_uint_eq(p->n_control, base->n_control);
            for (size_t k = 0; k < p->n_control; k++) {
                dsv4_span a = base->control[k], b = p->control[k];
                ck_assert_uint_eq(a.end - a.begin, b.end - b.begin);
                ck_assert_mem_eq(base->text + a.begin, p->text + b.begin, a.end - a.begin);
            }
            dsv4_prompt_close(p);
            tried++;
        }
        dsv4_prompt_close(base);
    }
    ck_assert_uint_eq(tried, 3 * json_array_size(added));
    json_decref(meta);
}
END_TEST

START_TEST(images_and_their_places_agree)
{
    dsv4_err err;
    dsv4_prompt *p;
    const char *type = "{\"options\":{\"thinking_mode\":\"chat\"},\"messages\":[{\"role\":\"user\","
                       "\"content\":[{\"type\":\"" M_IMAGE "\"}]}]}";
    const char *text =
        "{\"options\":{\"thinking_mode\":\"chat\"},\"messages\":[{\"role\":\"user\","
        "\"content_blocks\":[{\"type\":\"tool_result\",\"content\":\"" M_IMAGE "\"}]}]}";
    const char *beside =
        "{\"options\":{\"thinking_mode\":\"chat\"},\"messages\":[{\"role\":\"system\",\"content\":"
        "\"s\",\"content_blocks\":[{\"type\":\"image\",\"url\":\"u\"}]}]}";
    ck_assert_int_eq(dsv4_render(DSV4_V41, beside, strlen(beside), &p, &err), DSV4_REFUSED);
    p = render(DSV4_V41, type);
    ck_assert_uint_eq(p->n_control, 4);
    dsv4_prompt_close(p);
    ck_assert_int_eq(dsv4_render(DSV4_V41, text, strlen(text), &p, &err), DSV4_REFUSED);
}
END_TEST

/* ------------------------------------------------------------------ refusals and limits */

START_TEST(bad_requests_are_refused)
{
    static const char *const bad[] = {
        "",
        "[]",
        "null",
        "{",
        "{\"messages\":[]}",
        "\xff",
        "{\"messages\":{},\"options\":{\"thinking_mode\":\"chat\"}}",
        "{\"messages\":[1],\"options\":{\"thinking_mode\":\"chat\"}}",
        "{\"messages\":[],\"context\":1,\"options\":{\"thinking_mode\":\"chat\"}}",
        "{\"messages\":[],\"options\":[]}",
        "{\"messages\":[],\"options\":{\"thinking_mode\":\"chat\",\"drop_thinking\":1}}",
        "{\"messages\":[{\"role\":\"user\",\"content\":7}],\"options\":{\"thinking_mode\":\"chat\"}"
        "}",
        "{\"messages\":[{\"role\":\"assistant\",\"content\":7}],"
        "\"options\":{\"thinking_mode\":\"chat\"}}",
        "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":\"x\"}],"
        "\"options\":{\"thinking_mode\":\"chat\"}}",
        "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[7]}],"
        "\"options\":{\"thinking_mode\":\"chat\"}}",
        "{\"messages\":[{\"role\":\"system\",\"tools\":{\"a\":1}}],"
        "\"options\":{\"thinking_mode\":\"chat\"}}",
    };
    dsv4_err err;
    dsv4_prompt *p;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        for (dsv4_dialect d = DSV4_V4_PREVIEW; d <= DSV4_V41; d++) {
            err.text[0] = 0;
            int rc = dsv4_render(d, bad[i], strlen(bad[i]), &p, &err);
            ck_assert_msg(rc == DSV4_REFUSED && err.text[0] && !p, "%s: %d", bad[i], rc);
        }
    ck_assert_int_eq(dsv4_render((dsv4_dialect)3, "{}", 2, &p, &err), DSV4_USAGE);
}
END_TEST

START_TEST(deep_and_wide_json_ends)
{
    enum { N = 1000000 };
    dsv4_err err;
    struct jv_doc doc;
    char *deep = malloc(2 * N + 1);
    ck_assert_ptr_nonnull(deep);
    memset(deep, '[', N);
    ck_assert_int_eq(jv_parse(&doc, deep, N, "deep", &err), DSV4_FAILED);
    memset(deep, '[', JV_MAX_DEPTH);
    memset(deep + JV_MAX_DEPTH, ']', JV_MAX_DEPTH);
    OK(jv_parse(&doc, deep, 2 * JV_MAX_DEPTH, "deep", &err));
    jv_free(&doc);
    memset(deep, '7', N);
    ck_assert_int_eq(jv_parse(&doc, deep, N, "long", &err), DSV4_FAILED);
    free(deep);
    struct bytes b = {0};
    OK(bytes_text(&b, "{", &err));
    for (int i = 0; i < 200000; i++)
        OK(bytes_printf(&b, &err, "%s\"k%d\":%d", i ? "," : "", i % 150000, i));
    OK(bytes_text(&b, "}", &err));
    OK(jv_parse(&doc, b.data, b.len, "wide", &err));
    ck_assert_uint_eq(doc.root->len, 150000);
    ck_assert_int_eq(atoi(jv_get(doc.root, "k7")->text), 150007);
    jv_free(&doc);
    free(b.data);
}
END_TEST

START_TEST(json_is_written_as_python_does)
{
    static const char *const pairs[][2] = {
        {"[1,2.50,1e5,1E+16,1e15,1e-5,0.0001,1e22,-0.0,-0,5e-324,1e400,-1e400,NaN]",
         "[1, 2.5, 100000.0, 1e+16, 1000000000000000.0, 1e-05, 0.0001, 1e+22, -0.0, 0, 5e-324, "
         "Infinity, -Infinity, NaN]"},
        {"[9007199254740993.0,5.684341886080802e-14,1.7976931348623157e308,0.1,"
         "123456789012345678901]",
         "[9007199254740992.0, 5.684341886080802e-14, 1.7976931348623157e+308, 0.1, "
         "123456789012345678901]"},
        {"{\"a\":1,\"b\":{},\"a\":[ ],\"c\":\"\\u0000\\u001F\\u007f\\/\\ud83d\\ude00\\ud83dx\"}",
         "{\"a\": [], \"b\": {}, \"c\": \"\\u0000\\u001f\x7f/\xf0\x9f\x98\x80\xef\xbf\xbdx\"}"},
        {" [ true , false , null ] ", "[true, false, null]"},
    };
    const char *saved = setlocale(LC_NUMERIC, "de_DE.UTF-8"); /* a comma, where there is one */
    (void)saved;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        dsv4_err err;
        struct jv_doc doc;
        struct bytes b = {0};
        OK(jv_parse(&doc, pairs[i][0], strlen(pairs[i][0]), "a test", &err));
        OK(jv_write(&b, doc.root, false, &err));
        ck_assert_str_eq(b.data, pairs[i][1]);
        free(b.data);
        jv_free(&doc);
    }
    setlocale(LC_NUMERIC, "C");
}
END_TEST

START_TEST(what_is_no_json_is_refused)
{
    static const char *const bad[] = {
        "",
        "01",
        "1.",
        ".5",
        "+1",
        "1e",
        "-",
        "[1,]",
        "[,1]",
        "{,}",
        "{1:2}",
        "{\"a\"}",
        "{\"a\":}",
        "[1 2]",
        "{\"a\":1,}",
        "\"",
        "\"\\x\"",
        "\"\\u12\"",
        "nul",
        "1 2",
        "\"\n\"",
        "'a'",
        "[}",
        ("\xef\xbb\xbf"
         "1"),
        "\"\xc0\x80\"",
        "\"\xed\xa0\x80\"",
        "\"\xf4\x90\x80\x80\"",
        "\"\xe2\x82\"",
        "tru",
        "--1",
        "-Inf",
    };
    dsv4_err err;
    struct jv_doc doc;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ck_assert_msg(jv_parse(&doc, bad[i], strlen(bad[i]), "x", &err) == DSV4_REFUSED, "%s",
                      bad[i]);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("chat");
    TCase *t = tcase_create("chat");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, v4_prompts);
    tcase_add_test(t, v41_prompts);
    tcase_add_test(t, typed_markers_are_no_control);
    tcase_add_test(t, images_and_their_places_agree);
    tcase_add_test(t, bad_requests_are_refused);
    tcase_add_test(t, deep_and_wide_json_ends);
    tcase_add_test(t, json_is_written_as_python_does);
    tcase_add_test(t, what_is_no_json_is_refused);
    suite_add_tcase(s, t);
    return run_suite(s);
}
