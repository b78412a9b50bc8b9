/* The embedded model: the engine has to write what the reference wrote with the shipped weights
 * (models/nano/eval), give its logits, and its perplexity. An answer counts when the choice at which
 * it first differs was clear: its margin above what a cache quantizer's rounding can move.
 * A sample of the evaluation set runs by default, all of it with CHECK_LONG=1. */
#include "suite.h"

#include "src/dsv4.h"
#include "src/load/load.h"

#include <jansson.h>
#include <math.h>
#include <stdbool.h>

#define NANO "models/nano"
#define EVAL NANO "/eval/"

enum { MAX_ANSWER = 2048 };

#define CLEAR 0.2f

static dsv4_engine *engine;

static void open_engine(void)
{
    dsv4_err err;
    dsv4_options o = {.ctx = 8192, .threads = 2, .exact = true};
    OK(dsv4_open(&engine, NANO, &o, &err));
}

static void close_engine(void)
{
    dsv4_close(engine);
}

struct answer {
    int32_t id[MAX_ANSWER];
    float margin[MAX_ANSWER]; /* best minus second logit */
    size_t n;
};

static bool keep(void *arg, const dsv4_token *t)
{
    struct answer *a = arg;
    ck_assert_uint_lt(a->n, MAX_ANSWER);
    a->margin[a->n] = t->top[0].logprob - t->top[1].logprob;
    a->id[a->n++] = t->chosen.token;
    return false;
}

static void answer(struct answer *a, const int32_t *ids, size_t n, size_t most)
{
    dsv4_err err;
    dsv4_seq *s;
    dsv4_sampling greedy = dsv4_engine_sampling(engine);
    greedy.temperature = 0;
    dsv4_generate_options o = {
        .sampling = greedy, .max_tokens = most, .n_top = 2, .token = keep, .arg = a};
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

/* What became of an answer. */
enum outcome { SAME, UNCLEAR, DIFFERENT };

static enum outcome compare(const struct answer *a, const json_t *want)
{
    for (size_t i = 0; i < json_array_size(want); i++)
        if (i >= a->n || a->id[i] != json_integer_value(json_array_get(want, i)))
            return i < a->n && a->margin[i] < CLEAR ? UNCLEAR : DIFFERENT;
    return SAME;
}

START_TEST(writes_what_the_reference_wrote)
{
    FILE *f = open_eval("greedy.jsonl");
    dsv4_err err;
    size_t count[3] = {0};
    for (json_t *j; (j = next_line(f)); json_decref(j)) {
        json_t *want = json_object_get(j, "greedy_ids"), *prompt = json_object_get(j, "prompt");
        int32_t *ids;
        size_t n;
        OK(dsv4_encode(dsv4_engine_tokenizer(engine), json_string_value(prompt),
                       json_string_length(prompt), true, &ids, &n, &err));
        struct answer a;
        answer(&a, ids, n, json_array_size(want));
        enum outcome o = compare(&a, want);
        count[o]++;
        if (o != SAME)
            printf("   %s: %s\n", o == UNCLEAR ? "unclear" : "differs",
                   json_string_value(json_object_get(j, "id")));
        dsv4_free(ids);
    }
    fclose(f);
    printf("   %zu answers equal, %zu unclear, %zu different\n", count[SAME], count[UNCLEAR],
           count[DIFFERENT]);
    ck_assert_uint_ge(count[SAME], 10);
    ck_assert_uint_eq(count[DIFFERENT], 0);
}
END_TEST

/* One skill: greedy answers to (some of) its prompts, and how many are exactly right. */
static void run_skill(const char *skill, bool all, size_t count[3])
{
    char name[64];
    snprintf(name, sizeof name, "%s.jsonl", skill);
    FILE *f = open_eval(name);
    size_t exact = 0, reference = 0, n_run = 0;
    int32_t ids[16384];
    for (json_t *j; (j = next_line(f)); json_decref(j)) {
        json_t *prompt = json_object_get(j, "prompt_ids"), *want = json_object_get(j, "greedy_ids");
        size_t n = json_array_size(prompt);
        if (json_array_size(want) == 0 || n == 0 || n > (all ? 8000u : 700u) ||
            (!all && n_run == 2))
            continue;
        for (size_t i = 0; i < n; i++)
            ids[i] = (int32_t)json_integer_value(json_array_get(prompt, i));
        struct answer a;
        answer(&a, ids, n, json_array_size(want));
        enum outcome o = compare(&a, want);
        count[o]++;
        n_run++;
        reference += json_is_true(json_object_get(j, "exact"));
        exact += o == SAME && json_is_true(json_object_get(j, "exact"));
    }
    fclose(f);
    if (n_run)
        printf("   %-20s %3zu run, right: %zu here, %zu by the reference\n", skill, n_run, exact,
               reference);
}

START_TEST(scores_are_reproduced)
{
    json_error_t e;
    json_t *scores = json_load_file(EVAL "scores.json", 0, &e), *v;
    ck_assert_msg(scores != NULL, "%s", e.text);
    const char *skill;
    size_t count[3] = {0};
    bool all = getenv("CHECK_LONG") != NULL;
    json_object_foreach(scores, skill, v)
    {
        char path[256];
        snprintf(path, sizeof path, EVAL "%s.jsonl", skill);
        FILE *f = fopen(path, "r");
        if (!f)
            continue; /* an entry that is no skill (perplexity) */
        fclose(f);
        run_skill(skill, all, count);
    }
    json_decref(scores);
    printf("   %zu answers equal, %zu unclear, %zu different\n", count[SAME], count[UNCLEAR],
           count[DIFFERENT]);
    ck_assert_uint_ge(count[SAME], 20);
    ck_assert_msg((double)count[SAME] >= 0.99 * (double)(count[SAME] + count[DIFFERENT]),
                  "%zu of %zu clear answers differ", count[DIFFERENT],
                  count[SAME] + count[DIFFERENT]);
}
END_TEST

/* Rows of logits that the reference stored. */
START_TEST(logits_of_the_reference)
{
    static const char *const id[] = {"eval-facts-0", "eval-arithmetic_thinking-3",
                                     "eval-tools_call-1", "eval-needle_1024-0"};
    dsv4_err err;
    struct store *s;
    size_t vocab = dsv4_engine_vocab(engine), cases = 0;
    OK(store_open_file(&s, EVAL "logits.safetensors", &err));
    for (size_t k = 0; k < sizeof id / sizeof *id; k++) {
        char name[64];
        snprintf(name, sizeof name, "%s.ids", id[k]);
        const struct tensor *ids = store_find(s, name);
        snprintf(name, sizeof name, "%s.rows", id[k]);
        const struct tensor *at = store_find(s, name);
        snprintf(name, sizeof name, "%s.logits", id[k]);
        const struct tensor *want = store_find(s, name);
        if (!ids || !at || !want)
            continue; /* the set may have been regenerated with other examples */
        cases++;
        size_t n = (size_t)ids->dim[0], n_rows = (size_t)at->dim[0], close = 0;
        dsv4_row *rows = calloc(n, sizeof *rows);
        float *got = malloc(n * vocab * sizeof *got);
        dsv4_seq *seq;
        OK(dsv4_seq_open(&seq, engine, &err));
        for (size_t i = 0; i < n; i++) {
            memcpy(&rows[i].token, ids->data + 4 * i, 4);
            rows[i].seq = seq;
            rows[i].logits = true;
        }
        OK(dsv4_eval(engine, rows, n, got, &err));
        float worst = 0;
        for (size_t r = 0; r < n_rows; r++) {
            int32_t row;
            float top = 0;
            memcpy(&row, at->data + 4 * r, 4);
            for (size_t v = 0; v < vocab; v++) {
                float w;
                memcpy(&w, want->data + 4 * (r * vocab + v), 4);
                top = fmaxf(top, fabsf(w - got[(size_t)row * vocab + v]));
            }
            close += top < 1e-3f;
            worst = fmaxf(worst, top);
        }
        printf("   %-30s %zu of %zu rows within 1e-3, worst %.3g\n", id[k], close, n_rows,
               (double)worst);
        /* A rounding of a cache quantizer that falls the other way moves all rows after it: short
         * texts have none, long ones stay far below the spread of the logits (4). */
        ck_assert_msg(n < 100 ? close == n_rows : worst < 0.2f, "%s", id[k]);
        dsv4_seq_close(seq);
        free(rows);
        free(got);
    }
    ck_assert_uint_ge(cases, 1);
    store_close(s);
}
END_TEST

/* exp of the mean loss over windows of 511 tokens after a BOS each, as the recipe measures it. */
START_TEST(perplexity_of_the_reference)
{
    enum { WINDOW = 511 };
    dsv4_err err;
    char *text;
    size_t len, n, vocab = dsv4_engine_vocab(engine), counted = 0;
    int32_t *ids;
    double loss = 0;
    json_error_t e;
    json_t *want = json_load_file(EVAL "perplexity.json", 0, &e);
    ck_assert_msg(want != NULL, "%s", e.text);
    OK(file_read(EVAL "text.txt", 1 << 24, &text, &len, &err));
    OK(dsv4_encode(dsv4_engine_tokenizer(engine), text, len, false, &ids, &n, &err));
    float *logits = malloc((WINDOW + 1) * vocab * sizeof *logits);
    dsv4_row rows[WINDOW + 1];
    dsv4_seq *s;
    OK(dsv4_seq_open(&s, engine, &err));
    for (size_t at = 0; at < n; at += WINDOW) {
        size_t m = n - at < WINDOW ? n - at : WINDOW;
        rows[0] = (dsv4_row){s, dsv4_engine_bos(engine), true};
        for (size_t i = 0; i < m; i++)
            rows[i + 1] = (dsv4_row){s, ids[at + i], true};
        OK(dsv4_eval(engine, rows, m, logits, &err));
        for (size_t i = 0; i < m; i++) {
            double sum = 0;
            for (size_t v = 0; v < vocab; v++)
                sum += exp((double)logits[i * vocab + v]);
            loss += log(sum) - (double)logits[i * vocab + (size_t)ids[at + i]];
        }
        counted += m;
        OK(dsv4_seq_rewind(s, 0, &err));
    }
    double got = exp(loss / (double)counted);
    double reference = json_number_value(json_object_get(want, "shipped"));
    printf("   perplexity %.5f, reference %.5f over %zu tokens\n", got, reference, counted);
    ck_assert(fabs(got / reference - 1) < 1e-3);
    json_decref(want);
    dsv4_seq_close(s);
    free(logits);
    free(ids);
    free(text);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("nano");
    TCase *t = tcase_create("answers");
    tcase_set_timeout(t, getenv("CHECK_LONG") ? 7200 : 600);
    tcase_add_checked_fixture(t, open_engine, close_engine);
    tcase_add_test(t, writes_what_the_reference_wrote);
    tcase_add_test(t, logits_of_the_reference);
    const char *quick = getenv("CHECK_QUICK"); /* sanitizers: the same code, ten times slower */
    if (!quick || !*quick) {
        tcase_add_test(t, scores_are_reproduced);
        tcase_add_test(t, perplexity_of_the_reference);
    } else {
        printf("SKIP check_nano scores and perplexity: CHECK_QUICK\n");
    }
    suite_add_tcase(s, t);
    return run_suite(s);
}
