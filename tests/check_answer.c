/* What becomes of the tokens of an answer, whatever the model says: reasoning, text, calls; calls that nobody
 * offered, that are broken or cut; blocks and texts that do not end. */
#include "suite.h"

#include "src/server/turn.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK(calls)       "\n\n<｜DSML｜tool_calls>\n" calls "</｜DSML｜tool_calls>"
#define INVOKE(name, args) "<｜DSML｜invoke name=\"" name "\">\n" args "</｜DSML｜invoke>\n"
#define TEXT(name, value) \
    "<｜DSML｜parameter name=\"" name "\" string=\"true\">" value "</｜DSML｜parameter>\n"
#define JSON(name, value) \
    "<｜DSML｜parameter name=\"" name "\" string=\"false\">" value "</｜DSML｜parameter>\n"

static dsv4_tokenizer *tok;
static struct metrics metrics;

/* What a client that reads the stream has put together. */
struct heard {
    struct out reasoning, content, calls; /* calls: name(arguments) each */
};

static void hear(void *arg, unsigned choice, const struct piece *p)
{
    struct heard *h = arg;
    ck_assert_uint_eq(choice, 0);
    switch (p->kind) {
    case PIECE_REASONING: out_add(&h->reasoning, p->text, p->len); break;
    case PIECE_CONTENT: out_add(&h->content, p->text, p->len); break;
    case PIECE_CALL:
        out_add(&h->calls, p->text, p->len);
        out_text(&h->calls, "(");
        break;
    case PIECE_ARGUMENTS: out_add(&h->calls, p->text, p->len); break;
    case PIECE_CALL_END: out_text(&h->calls, ")"); break;
    }
}

static void equal(const struct out *o, const char *text)
{
    ck_assert_msg(o->b.len == strlen(text) &&
                      memcmp(o->b.data ? o->b.data : "", text, o->b.len) == 0,
                  "'%.*s' is not '%s'", (int)o->b.len, o->b.data ? o->b.data : "", text);
}

static struct answer_options usual(void)
{
    static json_t *names; /* kept until the program ends */
    if (!names)
        names = json_pack("{s:b, s:b}", "f", 1, "g", 1);
    return (struct answer_options){.tok = tok,
                                   .dialect = DSV4_V41,
                                   .eos = dsv4_token_find(tok, "<｜end▁of▁sentence｜>"),
                                   .metrics = &metrics,
                                   .tools = true,
                                   .parallel = true,
                                   .names = names};
}

/* The model says `text`, and is cut there or ends by itself: what is heard then, whole and streamed. */
static void say(const struct answer_options *opt, const char *text, bool cut, const char *reasoning,
                const char *content, const char *calls, enum finish finish)
{
    struct heard h = {.calls = {.failed = false}};
    struct answer *a;
    dsv4_err err;
    int32_t *ids, forced;
    size_t n;
    OK(answer_open(&a, opt, 0, hear, &h, &err));
    OK(dsv4_encode(tok, text, strlen(text), true, &ids, &n, &err));
    bool end = false;
    for (size_t i = 0; i < n && !end; i++) {
        dsv4_logprob p = {ids[i], 0};
        while (!end && answer_forced(a, &forced))
            end = answer_token(a, (dsv4_logprob){forced, 0}, NULL);
        if (!end)
            end = answer_token(a, p, NULL);
    }
    if (!end && !cut)
        end = answer_token(a, (dsv4_logprob){opt->eos, 0}, NULL);
    answer_end(a, end ? ENDED_BY_JOB : ENDED_LIMIT);
    struct result *r = answer_result(a);
    equal(&h.reasoning, reasoning);
    equal(&h.content, content);
    equal(&h.calls, calls);
    equal(&r->reasoning, reasoning); /* whole and streamed are the same */
    equal(&r->content, content);
    ck_assert_int_eq(r->finish, finish);
    ck_assert(!answer_failed(a));
    answer_close(a);
    dsv4_free(ids);
    out_free(&h.reasoning);
    out_free(&h.content);
    out_free(&h.calls);
}

static uint64_t quarantined(void)
{
    return metrics.count[COUNT_TOOL_QUARANTINED];
}

START_TEST(test_calls)
{
    struct answer_options o = usual();
    say(&o, "Hello.", false, "", "Hello.", "", FINISH_STOP);
    say(&o, "Hello.", true, "", "Hello.", "", FINISH_LENGTH);
    say(&o, "I look." BLOCK(INVOKE("f", TEXT("a", "x \"y\"") JSON("b", "[1, 2]"))), false, "",
        "I look.", "f({\"a\": \"x \\\"y\\\"\", \"b\": [1, 2]})", FINISH_CALLS);
    say(&o, BLOCK(INVOKE("f", "") INVOKE("g", TEXT("a", ""))), false, "", "",
        "f({})g({\"a\": \"\"})", FINISH_CALLS);
    o.parallel = false; /* the first one counts */
    say(&o, BLOCK(INVOKE("f", "") INVOKE("g", "")), false, "", "", "f({})", FINISH_CALLS);
    ck_assert_uint_eq(quarantined(), 0);
}
END_TEST

START_TEST(test_quarantine)
{
    struct answer_options o = usual();
    const char *unknown = "[A call of a tool was left out: there is no tool of that name.]",
               *broken = "[A call of a tool was left out: its arguments were not valid JSON.]",
               *incomplete = "[A call of a tool was left out: it was not complete.]";
    uint64_t before = quarantined();
    say(&o, BLOCK(INVOKE("rm", TEXT("a", "x"))), false, "", unknown, "", FINISH_STOP);
    say(&o, BLOCK(INVOKE("f", JSON("a", "{\"x\": "))), false, "", broken, "", FINISH_STOP);
    say(&o, BLOCK(INVOKE("f", JSON("a", "1, \"a\": 2"))), false, "", broken, "", FINISH_STOP);
    ck_assert_uint_eq(quarantined(), before + 3);
    /* one that is right beside it goes out */
    say(&o, BLOCK(INVOKE("rm", "") INVOKE("f", JSON("a", "1"))), false, "", unknown,
        "f({\"a\": 1})", FINISH_CALLS);
    /* the end of max_tokens in the middle of a call, and of a tag */
    say(&o,
        "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" "
        "string=\"true\">x",
        true, "", incomplete, "", FINISH_LENGTH);
    say(&o, "Text.\n\n<｜DSML｜tool_calls>\n<｜DSML｜inv", true, "", "Text.", "", FINISH_LENGTH);
    say(&o, "Text.\n\n<｜DSML｜", true, "", "Text.", "", FINISH_LENGTH);
    /* a block that nobody asked for is not shown as text either: there are no tools at all */
    o.names = json_pack("{}");
    say(&o, BLOCK(INVOKE("f", TEXT("a", "x"))), false, "", unknown, "", FINISH_STOP);
    json_decref((json_t *)(uintptr_t)o.names);
}
END_TEST

START_TEST(test_reasoning)
{
    struct answer_options o = usual();
    o.thinking = true;
    say(&o, "A thought.</think>Text.", false, "A thought.", "Text.", "", FINISH_STOP);
    say(&o, "A thought", true, "A thought", "", "", FINISH_LENGTH);
    say(&o, "A thought.</thi", true, "A thought.</thi", "", "", FINISH_LENGTH);
    say(&o, "A thought.</think>" BLOCK(INVOKE("f", "")), false, "A thought.", "", "f({})",
        FINISH_CALLS);
    o.budget = 1; /* closed for the model, which goes on as if nothing had been */
    struct answer *a;
    dsv4_err err;
    int32_t forced, one = dsv4_token_find(tok, "<think>");
    struct heard h = {.calls = {.failed = false}};
    OK(answer_open(&a, &o, 0, hear, &h, &err));
    ck_assert(!answer_forced(a, &forced));
    ck_assert(!answer_token(a, (dsv4_logprob){one, 0}, NULL));
    ck_assert(answer_forced(a, &forced));
    ck_assert_int_eq(forced, dsv4_token_find(tok, "</think>"));
    ck_assert(!answer_forced(a, &forced)); /* once */
    answer_close(a);
    out_free(&h.reasoning);
}
END_TEST

START_TEST(test_ends)
{
    struct answer_options o = usual();
    static const char *const stops[] = {"stop here", "END"};
    o.stops = stops;
    o.n_stops = 2;
    say(&o, "Go on and stop here, please.", false, "", "Go on and ", "", FINISH_STOP_STRING);
    say(&o, "Go on and stop", false, "", "Go on and stop", "", FINISH_STOP);
    say(&o, "stop herestop here", false, "", "", "", FINISH_STOP_STRING);
    /* not in calls */
    say(&o, BLOCK(INVOKE("f", TEXT("a", "END"))), false, "", "", "f({\"a\": \"END\"})",
        FINISH_CALLS);
    /* a role's token ends the answer as its own end does */
    o.n_stops = 0;
    say(&o, "Text.<｜User｜>And now I ask", true, "", "Text.", "", FINISH_STOP);
    o.loop_limit = 64;
    struct out same = {0};
    for (int i = 0; i < 400; i++)
        out_text(&same, "a ");
    struct answer *a;
    dsv4_err err;
    struct heard h = {.calls = {.failed = false}};
    int32_t *ids;
    size_t n, i = 0;
    OK(dsv4_encode(tok, same.b.data, same.b.len, false, &ids, &n, &err));
    OK(answer_open(&a, &o, 0, hear, &h, &err));
    while (i < n && !answer_token(a, (dsv4_logprob){ids[i], 0}, NULL))
        i++;
    ck_assert_msg(i < n, "%zu tokens", n);
    ck_assert_int_eq(answer_result(a)->finish, FINISH_LENGTH);
    answer_close(a);
    dsv4_free(ids);
    out_free(&h.content);
    out_free(&same);
}
END_TEST

START_TEST(test_block_limit)
{
    struct answer_options o = usual();
    struct out text = {0};
    dsv4_err err;
    o.block_limit = 40;
    out_text(&text,
             "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" "
             "string=\"true\">");
    for (int i = 0; i < 300; i++)
        out_text(&text, "never ending ");
    OK(bytes_add(&text.b, "", 1, &err));
    say(&o, text.b.data, true, "", "[A call of a tool was left out: it was not complete.]", "",
        FINISH_LENGTH);
    out_free(&text);
}
END_TEST

int main(void)
{
    dsv4_err err;
    Suite *s = suite_create("answer");
    TCase *t = tcase_create("answer");
    if (dsv4_tokenizer_open(&tok, "models/nano/tokenizer.json", &err) != 0)
        return 1;
    tcase_add_test(t, test_calls);
    tcase_add_test(t, test_quarantine);
    tcase_add_test(t, test_reasoning);
    tcase_add_test(t, test_ends);
    tcase_add_test(t, test_block_limit);
    suite_add_tcase(s, t);
    int rc = run_suite(s);
    dsv4_tokenizer_close(tok);
    return rc;
}
