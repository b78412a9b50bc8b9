/* Engines, sequences, sampling and generation through the public header alone. */
#include "suite.h"

#include "src/dsv4.h"

#include <jansson.h>
#include <math.h>
#include <unistd.h>

#define MODEL GOLDEN "v41-quant"

static dsv4_engine *open_model(uint32_t ctx, uint32_t batch)
{
    dsv4_err err;
    dsv4_engine *e;
    dsv4_options o = {.ctx = ctx, .batch = batch, .threads = 2, .sequences = 3};
    OK(dsv4_open(&e, MODEL, &o, &err));
    return e;
}

/* Some ids of the vocabulary, always the same. */
static int32_t token(size_t i)
{
    return (int32_t)((i * 7919 + 13) % 240);
}

START_TEST(rows_in_any_order_give_the_callers_order)
{
    dsv4_err err;
    dsv4_engine *e;
    /* exact: otherwise a row whose logits are not wanted is computed in another way */
    dsv4_options o = {.ctx = 512, .batch = 7, .threads = 2, .sequences = 3, .exact = true};
    OK(dsv4_open(&e, MODEL, &o, &err));
    size_t vocab = dsv4_engine_vocab(e);
    enum { SEQS = 5, EACH = 9 }; /* more sequences than were planned for, more rows than a step */
    float *alone = calloc(SEQS * EACH * vocab, sizeof *alone);
    float *mixed = calloc(SEQS * EACH * vocab, sizeof *mixed);
    dsv4_seq *s[SEQS];
    dsv4_row rows[SEQS * EACH];
    for (size_t k = 0; k < SEQS; k++) {
        OK(dsv4_seq_open(&s[k], e, &err));
        for (size_t i = 0; i < EACH; i++)
            rows[i] = (dsv4_row){s[k], token(k * 31 + i), true};
        OK(dsv4_eval(e, rows, EACH, alone + k * EACH * vocab, &err));
        OK(dsv4_seq_rewind(s[k], 0, &err));
    }
    size_t n = 0, wanted[SEQS * EACH], n_wanted = 0;
    for (size_t i = 0; i < EACH; i++)
        for (size_t k = 0; k < SEQS; k++) {
            size_t q = (k + i) % SEQS;
            bool want = (i + k) % 3 != 0;
            if (want)
                wanted[n_wanted++] = q * EACH + i;
            rows[n++] = (dsv4_row){s[q], token(q * 31 + i), want};
        }
    OK(dsv4_eval(e, rows, n, mixed, &err));
    for (size_t i = 0; i < n_wanted; i++)
        ck_assert_msg(memcmp(mixed + i * vocab, alone + wanted[i] * vocab, vocab * sizeof *alone) ==
                          0,
                      "row %zu", i);
    for (size_t k = 0; k < SEQS; k++) {
        ck_assert_uint_eq(dsv4_seq_len(s[k]), EACH);
        ck_assert_int_eq(dsv4_seq_tokens(s[k])[3], token(k * 31 + 3));
        dsv4_seq_close(s[k]);
    }
    free(alone);
    free(mixed);
    dsv4_close(e);
}
END_TEST

START_TEST(wrong_rows_change_nothing)
{
    dsv4_err err;
    dsv4_engine *e = open_model(16, 4), *other = open_model(16, 4);
    dsv4_seq *s, *foreign;
    OK(dsv4_seq_open(&s, e, &err));
    OK(dsv4_seq_open(&foreign, other, &err));
    float logits[1024];
    dsv4_row rows[17];
    for (size_t i = 0; i < 17; i++)
        rows[i] = (dsv4_row){s, token(i), false};
    ck_assert_int_eq(dsv4_eval(e, rows, 17, NULL, &err), DSV4_FAILED);
    ck_assert_ptr_nonnull(strstr(err.text, "holds 16"));
    rows[1].token = (int32_t)dsv4_engine_vocab(e);
    ck_assert_int_eq(dsv4_eval(e, rows, 2, NULL, &err), DSV4_USAGE);
    rows[1].token = -1;
    ck_assert_int_eq(dsv4_eval(e, rows, 2, NULL, &err), DSV4_USAGE);
    rows[1].token = 1;
    rows[1].logits = true;
    ck_assert_int_eq(dsv4_eval(e, rows, 2, NULL, &err), DSV4_USAGE);
    rows[1] = (dsv4_row){foreign, 1, false};
    ck_assert_int_eq(dsv4_eval(e, rows, 2, logits, &err), DSV4_USAGE);
    ck_assert_uint_eq(dsv4_seq_len(s), 0);
    ck_assert_uint_eq(dsv4_seq_len(foreign), 0);
    OK(dsv4_eval(e, rows, 0, NULL, &err));
    rows[1] = (dsv4_row){s, 1, false};
    OK(dsv4_eval(e, rows, 16, NULL, &err)); /* exactly full */
    ck_assert_int_eq(dsv4_eval(e, rows, 1, NULL, &err), DSV4_FAILED);
    dsv4_seq_close(s);
    dsv4_seq_close(foreign);
    dsv4_close(e);
    dsv4_close(other);
}
END_TEST

START_TEST(rewinding_has_a_floor)
{
    dsv4_err err;
    dsv4_engine *e = open_model(512, 0);
    dsv4_seq *s;
    dsv4_row rows[200];
    OK(dsv4_seq_open(&s, e, &err));
    for (size_t i = 0; i < 200; i++)
        rows[i] = (dsv4_row){s, token(i), false};
    OK(dsv4_eval(e, rows, 200, NULL, &err));
    ck_assert_uint_eq(dsv4_seq_rewind_floor(s), 200 - 64);
    ck_assert_int_eq(dsv4_seq_rewind(s, 201, &err), DSV4_USAGE);
    ck_assert_int_eq(dsv4_seq_rewind(s, 100, &err), DSV4_FAILED);
    ck_assert_ptr_nonnull(strstr(err.text, "136"));
    OK(dsv4_seq_rewind(s, 150, &err));
    OK(dsv4_eval(e, rows, 10, NULL, &err));
    ck_assert_uint_eq(dsv4_seq_len(s), 160);
    ck_assert_uint_eq(dsv4_seq_rewind_floor(s), 136); /* what is overwritten stays overwritten */
    OK(dsv4_seq_rewind(s, 0, &err));
    ck_assert_uint_eq(dsv4_seq_rewind_floor(s), 0);
    dsv4_seq_close(s);
    dsv4_close(e);
}
END_TEST

START_TEST(directories_that_are_refused)
{
    dsv4_err err;
    dsv4_engine *e = (dsv4_engine *)&err;
    char *json;
    ck_assert_int_eq(dsv4_open(&e, "/nowhere", NULL, &err), DSV4_REFUSED);
    ck_assert_ptr_null(e);
    ck_assert_ptr_nonnull(strstr(err.text, "/nowhere/config.json"));
    dsv4_options o = {.ctx = UINT32_MAX};
    ck_assert_int_eq(dsv4_open(&e, MODEL, &o, &err), DSV4_USAGE);
    o = (dsv4_options){.ctx = 1u << 20, .max_memory = 64 << 20};
    ck_assert_int_eq(dsv4_open(&e, MODEL, &o, &err), DSV4_NO_MEMORY);
    ck_assert_ptr_nonnull(strstr(err.text, "GiB"));
    OK(dsv4_plan(MODEL, &o, &json, &err)); /* a plan that does not fit is told, not refused */
    json_t *j = json_loads(json, 0, NULL);
    ck_assert(json_is_false(json_object_get(j, "fits")));
    json_decref(j);
    dsv4_free(json);
    o = (dsv4_options){.max_memory = 100 << 20}; /* no context given: the longest that fits */
    OK(dsv4_open(&e, MODEL, &o, &err));
    ck_assert_uint_lt(dsv4_engine_ctx(e), 1u << 20);
    ck_assert_uint_ge(dsv4_engine_ctx(e), 512);
    ck_assert_uint_le(dsv4_engine_memory(e), 100 << 20);
    dsv4_close(e);
    o = (dsv4_options){.threads = 5000};
    ck_assert_int_eq(dsv4_open(&e, MODEL, &o, &err), DSV4_USAGE);
}
END_TEST

static bool stop_at_once(void *arg, uint64_t done, uint64_t total)
{
    (void)done;
    (void)total;
    ++*(int *)arg;
    return true;
}

START_TEST(loading_can_be_stopped)
{
    dsv4_err err;
    dsv4_engine *e;
    int calls = 0;
    dsv4_options o = {.ctx = 64, .progress = stop_at_once, .progress_arg = &calls};
    ck_assert_int_eq(dsv4_open(&e, MODEL, &o, &err), DSV4_INTERRUPTED);
    ck_assert_int_ge(calls, 1);
}
END_TEST

/* ------------------------------------------------------------------ sampler */

static dsv4_sampler *sampler(dsv4_sampling p, size_t vocab)
{
    dsv4_err err;
    dsv4_sampler *s;
    OK(dsv4_sampler_open(&s, &p, vocab, &err));
    return s;
}

static const dsv4_sampling plain = {.temperature = 1, .top_p = 1, .repetition = 1};

/* How often each of 4 tokens is drawn. */
static void histogram(dsv4_sampling p, const float *logits, double share[4])
{
    enum { DRAWS = 20000 };
    dsv4_sampler *s = sampler(p, 4);
    for (int i = 0; i < 4; i++)
        share[i] = 0;
    for (int i = 0; i < DRAWS; i++)
        share[dsv4_sample(s, logits, NULL, 0).token] += 1.0 / DRAWS;
    dsv4_sampler_close(s);
}

START_TEST(shares_follow_the_distribution)
{
    const float logits[4] = {logf(0.4f), logf(0.3f), logf(0.2f), logf(0.1f)};
    const struct {
        float temperature, top_p, min_p;
        int top_k;
        double want[4];
    } c[] = {
        {1, 1, 0, 0, {.4, .3, .2, .1}},
        {0, 1, 0, 0, {1, 0, 0, 0}},
        {0.5f, 1, 0, 0, {16 / 30., 9 / 30., 4 / 30., 1 / 30.}},
        {1, 1, 0, 2, {4 / 7., 3 / 7., 0, 0}},
        {1, 0.6f, 0, 0, {4 / 7., 3 / 7., 0, 0}},
        {1, 0.75f, 0, 0, {4 / 9., 3 / 9., 2 / 9., 0}},
        {1, 1, 0.4f, 0, {4 / 9., 3 / 9., 2 / 9., 0}},
        {1, 0.5f, 0, 3, {4 / 7., 3 / 7., 0, 0}},
        {1, 0, 0, 0, {1, 0, 0, 0}},
        {1, 1, 1, 0, {1, 0, 0, 0}},
    };
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        dsv4_sampling p = plain;
        double share[4];
        p.temperature = c[i].temperature;
        p.top_p = c[i].top_p;
        p.min_p = c[i].min_p;
        p.top_k = c[i].top_k;
        p.seed = i;
        histogram(p, logits, share);
        for (int k = 0; k < 4; k++) {
            double e = fabs(share[k] - c[i].want[k]);
            ck_assert_msg(c[i].want[k] == 0 ? share[k] == 0 : e < 0.02,
                          "case %zu token %d: %g, expected %g", i, k, share[k], c[i].want[k]);
        }
    }
}
END_TEST

START_TEST(bias_and_penalties)
{
    const float logits[4] = {2, 1.5f, 1, -1};
    dsv4_sampling p = plain;
    p.temperature = 0;
    dsv4_bias bias[2] = {{0, -INFINITY}, {2, 0.6f}};
    p.bias = bias;
    p.n_bias = 2;
    dsv4_sampler *s = sampler(p, 4);
    dsv4_logprob top[5], got = dsv4_sample(s, logits, top, 5);
    ck_assert_int_eq(got.token, 2);
    /* log-probabilities are the model's own, best first */
    double sum = exp(2) + exp(1.5) + exp(1) + exp(-1);
    ck_assert(fabs((double)got.logprob - (1 - log(sum))) < 1e-5);
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(top[i].token, i);
        ck_assert(fabs((double)top[i].logprob - ((double)logits[i] - log(sum))) < 1e-5);
    }
    ck_assert_int_eq(top[4].token, -1);
    dsv4_sampler_close(s);
    const struct {
        float repetition, presence, frequency;
        int seen0, want;
    } c[] = {{1, 0, 0, 3, 0},
             {1.5f, 0, 0, 1, 1},
             {1, 0.6f, 0, 1, 1},
             {1, 0, 0.3f, 1, 0},
             {1, 0, 0.3f, 2, 1}};
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        p = plain;
        p.temperature = 0;
        p.repetition = c[i].repetition;
        p.presence = c[i].presence;
        p.frequency = c[i].frequency;
        s = sampler(p, 4);
        for (int k = 0; k < c[i].seen0; k++)
            dsv4_sampler_accept(s, 0);
        dsv4_sampler_accept(s, -5);
        dsv4_sampler_accept(s, 4);
        ck_assert_msg(dsv4_sample(s, logits, NULL, 0).token == c[i].want, "case %zu", i);
        dsv4_sampler_close(s);
    }
}
END_TEST

START_TEST(settings_out_of_range_are_refused)
{
    dsv4_err err;
    dsv4_sampler *s;
    for (int i = 0; i < 12; i++) {
        dsv4_sampling p = plain;
        dsv4_bias bias = {0, 1};
        p.bias = &bias;
        float bad[] = {-1, NAN, INFINITY};
        float *field[] = {&p.temperature, &p.top_p, &p.min_p, &p.repetition};
        *field[i % 4] = bad[i / 4];
        ck_assert_int_eq(dsv4_sampler_open(&s, &p, 10, &err), DSV4_USAGE);
        ck_assert_ptr_null(s);
        p = plain;
        p.top_k = -1;
        ck_assert_int_eq(dsv4_sampler_open(&s, &p, 10, &err), DSV4_USAGE);
        p = plain;
        p.bias = &bias;
        p.n_bias = 1;
        bias.token = 10;
        ck_assert_int_eq(dsv4_sampler_open(&s, &p, 10, &err), DSV4_USAGE);
        bias = (dsv4_bias){0, NAN};
        ck_assert_int_eq(dsv4_sampler_open(&s, &p, 10, &err), DSV4_USAGE);
    }
}
END_TEST

/* Logits that no sound model makes still give a token of the vocabulary. */
START_TEST(logits_that_are_no_numbers)
{
    float bad[4][4] = {{NAN, NAN, NAN, NAN},
                       {-INFINITY, -INFINITY, -INFINITY, -INFINITY},
                       {NAN, 1, NAN, 2},
                       {INFINITY, 1, 2, NAN}};
    for (int i = 0; i < 4; i++)
        for (int mode = 0; mode < 3; mode++) {
            dsv4_sampling p = plain;
            p.temperature = mode == 0 ? 0 : 1;
            p.top_p = mode == 2 ? 0.5f : 1;
            dsv4_sampler *s = sampler(p, 4);
            dsv4_logprob top[2], got = dsv4_sample(s, bad[i], top, 2);
            ck_assert(got.token >= 0 && got.token < 4);
            if (i == 2)
                ck_assert(got.token == 1 || got.token == 3);
            dsv4_sampler_close(s);
        }
}
END_TEST

/* ------------------------------------------------------------------ generation */

struct heard {
    char text[4096];
    size_t len, tokens, stop_after;
    int32_t id[512];
};

static bool hear(void *arg, const dsv4_token *t)
{
    struct heard *h = arg;
    memcpy(h->text + h->len, t->text, t->len);
    h->len += t->len;
    h->text[h->len] = 0;
    h->id[h->tokens++] = t->chosen.token;
    return h->stop_after && h->tokens == h->stop_after;
}

static int generate(dsv4_engine *e, struct heard *h, dsv4_generate_options o, dsv4_generated *out,
                    dsv4_err *err)
{
    dsv4_seq *s;
    int32_t ids[20];
    for (size_t i = 0; i < 20; i++)
        ids[i] = token(i);
    h->len = h->tokens = 0;
    o.token = hear;
    o.arg = h;
    ck_assert_int_eq(dsv4_seq_open(&s, e, err), 0);
    int rc = dsv4_generate(e, s, ids, 20, &o, out, err);
    dsv4_seq_close(s);
    return rc;
}

/* A place in the prompt that was marked is returned to from farther than the rings reach, and the answer
 * that follows is the one that comes without; when it is given up, everything is computed again. */
START_TEST(prompts_are_marked)
{
    enum { N = 20, MARK = 13 };
    dsv4_err err;
    dsv4_generated out;
    struct heard first = {.len = 0}, again = {.len = 0};
    dsv4_generate_options o = {
        .sampling = plain, .max_tokens = 100, .ignore_eos = true, .mark = MARK, .token = hear};
    o.sampling.seed = 42;
    dsv4_engine *e = open_model(256, 0);
    dsv4_seq *s;
    int32_t ids[N];
    for (size_t i = 0; i < N; i++)
        ids[i] = token(i);
    OK(dsv4_seq_open(&s, e, &err));
    o.arg = &first;
    OK(dsv4_generate(e, s, ids, N, &o, &out, &err));
    ck_assert_uint_eq(out.n_prompt, N);
    ck_assert_uint_gt(dsv4_seq_rewind_floor(s), N);
    ck_assert_uint_eq(dsv4_seq_reusable(s, N), MARK);
    OK(dsv4_seq_rewind(s, MARK, &err));
    o.arg = &again;
    o.mark = 0;
    OK(dsv4_generate(e, s, ids + MARK, N - MARK, &o, &out, &err));
    ck_assert_uint_eq(out.n_prompt, N - MARK);
    ck_assert_uint_eq(again.tokens, first.tokens);
    ck_assert_mem_eq(again.id, first.id, first.tokens * sizeof *first.id);
    dsv4_seq_unmark(s, MARK + 1); /* none there */
    ck_assert_uint_eq(dsv4_seq_reusable(s, N), MARK);
    uint64_t before = dsv4_seq_bytes(s);
    dsv4_seq_unmark(s, MARK);
    ck_assert_uint_eq(dsv4_seq_reusable(s, N), 0);
    ck_assert_uint_lt(dsv4_seq_bytes(s), before);
    dsv4_seq_close(s);
    dsv4_close(e);
}
END_TEST

START_TEST(same_seed_same_text)
{
    dsv4_err err;
    dsv4_generated out;
    struct heard a = {.len = 0}, b = {.len = 0};
    dsv4_generate_options o = {.sampling = plain, .max_tokens = 60, .ignore_eos = true};
    o.sampling.seed = 42;
    dsv4_engine *e = open_model(256, 0);
    OK(generate(e, &a, o, &out, &err));
    ck_assert_uint_eq(out.n_prompt, 20);
    ck_assert_uint_eq(out.n_tokens, 60);
    ck_assert_int_eq(out.stop, DSV4_STOP_LIMIT);
    dsv4_close(e);
    dsv4_options more = {.ctx = 256, .threads = 5, .batch = 3};
    OK(dsv4_open(&e, MODEL, &more, &err));
    OK(generate(e, &b, o, &out, &err));
    ck_assert(memcmp(a.id, b.id, sizeof a.id) == 0);
    o.sampling.seed = 43;
    OK(generate(e, &b, o, &out, &err));
    ck_assert(memcmp(a.id, b.id, sizeof a.id) != 0);
    dsv4_close(e);
}
END_TEST

/* Any substring of the text as a stop string: what comes out ends right before it. */
START_TEST(stop_strings_lie_across_tokens)
{
    dsv4_err err;
    dsv4_generated out;
    struct heard all = {.len = 0}, h = {.len = 0};
    dsv4_engine *e = open_model(256, 0);
    dsv4_generate_options o = {.sampling = plain, .max_tokens = 40, .ignore_eos = true};
    o.sampling.temperature = 0;
    OK(generate(e, &all, o, &out, &err));
    ck_assert_uint_gt(all.len, 8);
    for (size_t at = 0; at + 3 < all.len && at < 12; at++) {
        char stop[8] = {0};
        memcpy(stop, all.text + at, 3);
        const char *stops[] = {"never in this text", stop, ""};
        o.stops = stops;
        o.n_stops = 3;
        OK(generate(e, &h, o, &out, &err));
        char *first = strstr(all.text, stop);
        ck_assert_msg(first && h.len == (size_t)(first - all.text), "stop '%s': %zu bytes", stop,
                      h.len);
        ck_assert(memcmp(h.text, all.text, h.len) == 0);
        ck_assert_int_eq(out.stop, DSV4_STOP_STRING);
    }
    const char *half[] = {"\x01\x02"};
    o.stops = half; /* held back text comes out at the end */
    o.n_stops = 1;
    OK(generate(e, &h, o, &out, &err));
    ck_assert_str_eq(h.text, all.text);
    dsv4_close(e);
}
END_TEST

START_TEST(generation_ends_in_order)
{
    dsv4_err err;
    dsv4_generated out;
    struct heard h = {.len = 0};
    dsv4_engine *e = open_model(32, 0);
    dsv4_generate_options o = {.sampling = plain, .ignore_eos = true};
    OK(generate(e, &h, o, &out,
                &err)); /* until the context is full: the last token needs no room */
    ck_assert_int_eq(out.stop, DSV4_STOP_CTX);
    ck_assert_uint_eq(out.n_tokens, 32 - 20 + 1);
    h.stop_after = 3;
    ck_assert_int_eq(generate(e, &h, o, &out, &err), DSV4_INTERRUPTED);
    ck_assert_uint_eq(h.tokens, 3);
    h.stop_after = 0;
    dsv4_bias bias = {dsv4_engine_eos(e), 1000};
    o.sampling.bias = &bias;
    o.sampling.n_bias = 1;
    o.ignore_eos = false;
    OK(generate(e, &h, o, &out, &err));
    ck_assert_int_eq(out.stop, DSV4_STOP_EOS);
    ck_assert_uint_eq(out.n_tokens, 1);
    ck_assert_uint_eq(h.len, 0);
    dsv4_seq *s;
    int32_t ids[33] = {0};
    OK(dsv4_seq_open(&s, e, &err));
    ck_assert_int_eq(dsv4_generate(e, s, ids, 0, &o, &out, &err), DSV4_USAGE);
    ck_assert_int_eq(dsv4_generate(e, s, ids, 33, &o, &out, &err), DSV4_FAILED);
    ck_assert_ptr_nonnull(strstr(err.text, "33 tokens"));
    ck_assert_uint_eq(dsv4_seq_len(s), 0);
    dsv4_seq_close(s);
    dsv4_close(e);
}
END_TEST

START_TEST(descriptions_are_json)
{
    dsv4_err err;
    char *text;
    OK(dsv4_info(MODEL, &text, &err));
    json_t *j = json_loads(text, 0, NULL);
    ck_assert_str_eq(json_string_value(json_object_get(j, "family")), "DeepSeek-V4.1");
    ck_assert_int_gt(json_integer_value(json_object_get(j, "active_parameters")), 0);
    ck_assert_int_lt(json_integer_value(json_object_get(j, "active_parameters")),
                     json_integer_value(json_object_get(j, "parameters")) +
                         json_integer_value(json_object_get(j, "engram_parameters")));
    json_decref(j);
    dsv4_free(text);
    OK(dsv4_about(&text, &err));
    j = json_loads(text, 0, NULL);
    ck_assert_str_eq(json_string_value(json_object_get(j, "version")), DSV4_VERSION);
    json_decref(j);
    dsv4_free(text);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("session");
    TCase *t = tcase_create("all");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, rows_in_any_order_give_the_callers_order);
    tcase_add_test(t, wrong_rows_change_nothing);
    tcase_add_test(t, rewinding_has_a_floor);
    tcase_add_test(t, prompts_are_marked);
    tcase_add_test(t, directories_that_are_refused);
    tcase_add_test(t, loading_can_be_stopped);
    tcase_add_test(t, shares_follow_the_distribution);
    tcase_add_test(t, bias_and_penalties);
    tcase_add_test(t, settings_out_of_range_are_refused);
    tcase_add_test(t, logits_that_are_no_numbers);
    tcase_add_test(t, same_seed_same_text);
    tcase_add_test(t, stop_strings_lie_across_tokens);
    tcase_add_test(t, generation_ends_in_order);
    tcase_add_test(t, descriptions_are_json);
    suite_add_tcase(s, t);
    return run_suite(s);
}
