/* The embedded model: the engine has to write what the reference wrote with the shipped weights
 * (models/nano/eval). A prompt counts when every choice of the reference was clear, that is, when its
 * smallest margin between the best two logits is above what rounding can move. */
#include "suite.h"

#include "src/dsv4.h"

#include <jansson.h>

#define NANO "models/nano"
#define EVAL NANO "/eval/"

enum { MAX_ANSWER = 600 };

static dsv4_engine *engine;

static void open_engine(void)
{
    dsv4_err err;
    dsv4_options o = {.ctx = 8192, .threads = 2};
    OK(dsv4_open(&engine, NANO, &o, &err));
}

static void close_engine(void)
{
    dsv4_close(engine);
}

struct answer {
    int32_t id[MAX_ANSWER];
    size_t n;
};

static bool keep(void *arg, const dsv4_token *t)
{
    struct answer *a = arg;
    ck_assert_uint_lt(a->n, MAX_ANSWER);
    a->id[a->n++] = t->chosen.token;
    return false;
}

static void answer(struct answer *a, const int32_t *ids, size_t n, size_t most)
{
    dsv4_err err;
    dsv4_seq *s;
    dsv4_sampling greedy = dsv4_engine_sampling(engine);
    greedy.temperature = 0;
    dsv4_generate_options o = {.sampling = greedy, .max_tokens = most, .token = keep, .arg = a};
    a->n = 0;
    OK(dsv4_seq_open(&s, engine, &err));
    OK(dsv4_generate(engine, s, ids, n, &o, NULL, &err));
    dsv4_seq_close(s);
}

/* Lines of a .jsonl file, one after the other; NULL at the end. */
static json_t *next_line(FILE *f)
{
    json_error_t e;
    static char line[1 << 20];
    if (!fgets(line, sizeof line, f))
        return NULL;
    json_t *j = json_loads(line, 0, &e);
    ck_assert_msg(j != NULL, "%s", e.text);
    return j;
}

static FILE *open_eval(const char *name)
{
    char path[256];
    snprintf(path, sizeof path, EVAL "%s", name);
    FILE *f = fopen(path, "r");
    ck_assert_msg(f != NULL, "%s is missing", path);
    return f;
}

START_TEST(writes_what_the_reference_wrote)
{
    FILE *f = open_eval("greedy.jsonl");
    dsv4_err err;
    size_t same = 0, all = 0, unclear = 0;
    for (json_t *j; (j = next_line(f)); json_decref(j)) {
        json_t *want = json_object_get(j, "greedy_ids"), *prompt = json_object_get(j, "prompt");
        if (json_number_value(json_object_get(j, "min_margin")) < 0.01) {
            unclear++;
            continue;
        }
        int32_t *ids;
        size_t n;
        OK(dsv4_encode(dsv4_engine_tokenizer(engine), json_string_value(prompt),
                       json_string_length(prompt), true, &ids, &n, &err));
        struct answer a;
        answer(&a, ids, n, json_array_size(want));
        bool equal = a.n == json_array_size(want);
        for (size_t i = 0; equal && i < a.n; i++)
            equal = a.id[i] == json_integer_value(json_array_get(want, i));
        same += equal;
        all++;
        if (!equal)
            printf("   differs: %s\n", json_string_value(json_object_get(j, "id")));
        dsv4_free(ids);
    }
    fclose(f);
    printf("   %zu of %zu clear answers equal, %zu unclear ones left out\n", same, all, unclear);
    ck_assert_uint_ge(all, 15);
    ck_assert_msg((double)same >= 0.99 * (double)all, "%zu of %zu", same, all);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("nano");
    TCase *t = tcase_create("answers");
    tcase_set_timeout(t, 600);
    tcase_add_unchecked_fixture(t, NULL, NULL);
    tcase_add_checked_fixture(t, open_engine, close_engine);
    tcase_add_test(t, writes_what_the_reference_wrote);
    suite_add_tcase(s, t);
    return run_suite(s);
}
