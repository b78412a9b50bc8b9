/* Chat-completion bodies to prompts, against what the official serving library makes of them: where it
 * agrees with the released encoders its prompt and its marker ranges, elsewhere the encoders' prompt
 * (chat-encoding, section 10). */
#include "suite.h"

#include "src/text/chat_inner.h"

/* Sampling parameters, which the server judges. */
static const char *const not_ours[] = {"temperature-too-high", "top-p-zero", "top-p-neg",
                                       "max-tokens-zero", "n-two"};

static bool sampling(const struct jv *name)
{
    for (size_t i = 0; i < sizeof not_ours / sizeof *not_ours; i++)
        if (jv_equals(name, not_ours[i]))
            return true;
    return false;
}

static void check_ranges(const dsv4_prompt *p, const struct jv *ranges, const char *name)
{
    size_t i = 0;
    ck_assert_msg(p->n_control == ranges->len, "%s: %zu spans, not %zu", name, p->n_control,
                  ranges->len);
    for (const struct jv *r = ranges->first; r; r = r->next, i++) {
        ck_assert_msg(p->control[i].begin == strtoul(r->first->text, NULL, 10) &&
                          p->control[i].end == strtoul(r->last->text, NULL, 10),
                      "%s: span %zu", name, i);
    }
}

/* The prompt that we want: the library's, or the encoders', with a fresh header after an answer. */
static void want(struct bytes *out, const struct jv *c)
{
    dsv4_err err;
    bool agrees = jv_truth(jv_get(c, "agrees_with_reference"));
    const struct jv *p = jv_get(c, agrees ? "prompt" : "reference_prompt");
    OK(bytes_add(out, p->text, p->len, &err));
    const struct jv *last = jv_get(jv_get(c, "request"), "messages")->last;
    if (agrees || !jv_equals(jv_get(last, "role"), "assistant") || jv_truth(jv_get(last, "prefix")))
        return;
    bool off = jv_equals(jv_get(jv_get(jv_get(c, "request"), "thinking"), "type"), "disabled");
    OK(bytes_text(out, off ? M_ASSISTANT M_END_THINK : M_ASSISTANT M_THINK, &err));
}

static void run_case(const struct jv *c, dsv4_dialect d)
{
    char name[80];
    dsv4_err err = {0};
    struct bytes body = {0}, expected = {0};
    const struct jv *n = jv_get(c, "name");
    snprintf(name, sizeof name, "%.*s", (int)n->len, n->text);
    OK(jv_write(&body, jv_get(c, "request"), true, &err));
    char *json;
    dsv4_prompt *p = NULL;
    int rc = dsv4_request(d, body.data, body.len, &json, &err);
    if (rc == 0)
        rc = dsv4_render(d, json, strlen(json), &p, &err);
    dsv4_free(json);
    free(body.data);
    if (jv_get(c, "error") && !sampling(n)) {
        ck_assert_msg(rc == DSV4_REFUSED && err.text[0], "%s: accepted", name);
    } else if (!jv_get(c, "error") && jv_none(jv_get(c, "reference_prompt")) &&
               !jv_truth(jv_get(c, "agrees_with_reference"))) {
        ck_assert_msg(rc == 0 || rc == DSV4_REFUSED, "%s: %d", name, rc);
    } else if (!jv_get(c, "error")) {
        ck_assert_msg(rc == 0, "%s: %s", name, err.text);
        want(&expected, c);
        ck_assert_msg(p->len == expected.len && memcmp(p->text, expected.data, p->len) == 0,
                      "%s:\nwant %s\ngot  %s", name, expected.data, p->text);
        if (jv_truth(jv_get(c, "agrees_with_reference")))
            check_ranges(p, jv_get(c, "special_ranges"), name);
    }
    free(expected.data);
    dsv4_prompt_close(p);
}

static void run_file(const char *file, dsv4_dialect d)
{
    dsv4_err err;
    char path[128], *text;
    size_t len, n = 0;
    struct jv_doc doc;
    snprintf(path, sizeof path, "%schat/%s.json", GOLDEN, file);
    OK(file_read(path, 1 << 26, &text, &len, &err));
    OK(jv_parse(&doc, text, len, path, &err));
    for (const struct jv *c = jv_get(doc.root, "cases")->first; c; c = c->next, n++)
        run_case(c, d);
    ck_assert_uint_eq(n, 128);
    jv_free(&doc);
    free(text);
}

START_TEST(v4_requests)
{
    run_file("request_v4", DSV4_V4_0731);
}
END_TEST

START_TEST(v41_requests)
{
    run_file("request_v41", DSV4_V41);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("request");
    TCase *t = tcase_create("request");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, v4_requests);
    tcase_add_test(t, v41_requests);
    suite_add_tcase(s, t);
    return run_suite(s);
}
