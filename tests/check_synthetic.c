/* Engines without a checkpoint (dsv4_open_synthetic): that shapes and bytes are those of a checkpoint with the
 * same config, that slices are cut right or refused, and that histories, timings and roofs tell the truth. */
#include "suite.h"

#include "src/dsv4.h"

#include <jansson.h>
#include <math.h>
#include <time.h>

static dsv4_err err;

static char *config_of(const char *dir, size_t *len)
{
    char path[200];
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *f = fopen(path, "rb");
    ck_assert_msg(f, "%s", path);
    char *text = calloc(1, 1 << 16);
    *len = fread(text, 1, (1 << 16) - 1, f);
    fclose(f);
    return text;
}

static dsv4_options small_options(void)
{
    return (dsv4_options){.ctx = 512, .batch = 32, .threads = 2};
}

static dsv4_engine *open_slice(const char *dir, const dsv4_slice *s, const dsv4_options *o)
{
    dsv4_engine *e;
    size_t len;
    char *config = config_of(dir, &len);
    OK(dsv4_open_synthetic(&e, config, len, s, o, &err));
    free(config);
    return e;
}

static json_t *plan(const char *dir, const dsv4_slice *s)
{
    char *text;
    size_t len;
    json_error_t je;
    dsv4_options o = small_options();
    char *config = config_of(dir, &len);
    OK(dsv4_plan_synthetic(config, len, s, &o, &text, &err));
    free(config);
    json_t *j = json_loads(text, 0, &je);
    ck_assert(j);
    dsv4_free(text);
    return j;
}

static json_int_t item(const json_t *plan, const char *what)
{
    size_t i;
    const json_t *j;
    json_array_foreach(json_object_get(plan, "items"), i, j)
    {
        if (strcmp(json_string_value(json_object_get(j, "what")), what) == 0)
            return json_integer_value(json_object_get(j, "bytes"));
    }
    return 0;
}

/* n tokens one after the other, then as many at once; logits [vocab] of the last one. */
static float *decode(dsv4_engine *e, dsv4_seq *s, size_t n)
{
    float *logits = calloc(dsv4_engine_vocab(e), sizeof *logits);
    for (size_t i = 0; i < n; i++) {
        int32_t token = (int32_t)((i * 37 + 5) % dsv4_engine_vocab(e));
        dsv4_row row = {s, token, i + 1 == n};
        OK(dsv4_eval(e, &row, 1, logits, &err));
    }
    return logits;
}

static float *logits_of(const char *dir, const dsv4_slice *s, const dsv4_options *o, size_t *vocab)
{
    dsv4_seq *q;
    dsv4_engine *e = open_slice(dir, s, o);
    OK(dsv4_seq_open(&q, e, &err));
    float *logits = decode(e, q, 20);
    *vocab = dsv4_engine_vocab(e);
    dsv4_seq_close(q);
    dsv4_close(e);
    return logits;
}

/* Finite, and neither nothing nor an explosion: activations are near 1. */
static void sane(const float *x, size_t n, const char *what)
{
    double squares = 0;
    for (size_t i = 0; i < n; i++) {
        ck_assert_msg(isfinite(x[i]), "%s: logit %zu is %g", what, i, (double)x[i]);
        squares += (double)x[i] * (double)x[i];
    }
    double size = sqrt(squares / (double)n);
    ck_assert_msg(size > 0.05 && size < 20, "%s: logits are about %g", what, size);
}

/* ------------------------------------------------------------------ weights */

static const char *const dirs[] = {GOLDEN "v4-pro", GOLDEN "v4-tiny", GOLDEN "v41-tiny",
                                   "models/nano"};
static const dsv4_format formats[] = {
    DSV4_FORMAT_OFFICIAL, DSV4_MXFP4, DSV4_Q4, DSV4_Q8, DSV4_E4M3, DSV4_BF16, DSV4_Q3, DSV4_Q2};
enum { N_DIRS = 4, N_FORMATS = 8 };

START_TEST(every_format_computes)
{
    const char *dir = dirs[_i / N_FORMATS];
    dsv4_slice s = {.expert_format = formats[_i % N_FORMATS],
                    .dense_format = formats[(_i + 2) % N_FORMATS]};
    dsv4_options o = small_options();
    size_t vocab;
    float *fast = logits_of(dir, &s, &o, &vocab);
    sane(fast, vocab, dir);
    o.exact = true;
    o.threads = 1;
    float *exact = logits_of(dir, &s, &o, &vocab), *again;
    sane(exact, vocab, dir);
    o.threads = 3; /* the same weights, the same bits */
    again = logits_of(dir, &s, &o, &vocab);
    ck_assert_mem_eq(exact, again, vocab * sizeof *exact);
    free(fast);
    free(exact);
    free(again);
}
END_TEST

/* The golden and the embedded model store what the releases do: byte for byte the same sum. */
START_TEST(bytes_of_a_checkpoint)
{
    static const struct {
        const char *dir;
        json_int_t unread; /* bias_vl of the embedded model, which the engine does not know */
        json_int_t
            folded; /* Engram ids of 512 tokens, known with the tokenizer, which a plan does not read */
    } cases[] = {{GOLDEN "v4-pro", 0, 0}, {"models/nano", 8 * 16 * 4, 512 * 4}};
    for (size_t i = 0; i < 2; i++) {
        char *text;
        json_error_t je;
        dsv4_options o = small_options();
        OK(dsv4_plan(cases[i].dir, &o, &text, &err));
        json_t *real = json_loads(text, 0, &je), *made = plan(cases[i].dir, NULL);
        dsv4_free(text);
        ck_assert_int_eq(item(made, "weights") + cases[i].unread, item(real, "weights"));
        ck_assert_int_eq(item(made, "Engram tables"), item(real, "Engram tables"));
        ck_assert_int_eq(item(made, "caches"), item(real, "caches") + cases[i].folded);
        json_decref(real);
        json_decref(made);
    }
}
END_TEST

/* Layers, head, embedding and norm are all there is. */
START_TEST(layers_add_up)
{
    json_t *j = plan("models/nano", NULL);
    size_t i;
    const json_t *l;
    json_int_t bytes = json_integer_value(json_object_get(j, "head_bytes")), per = bytes;
    json_array_foreach(json_object_get(j, "layers"), i, l)
    {
        ck_assert_int_eq(json_integer_value(json_object_get(l, "layer")), (json_int_t)i);
        bytes += json_integer_value(json_object_get(l, "bytes"));
        per += json_integer_value(json_object_get(l, "bytes_per_token"));
    }
    ck_assert_uint_eq(i, 8);
    json_int_t rest = item(j, "weights") - bytes; /* embedding and final norm */
    ck_assert_int_eq(rest, 4096 * 128 * 2 + 128 * 2);
    json_int_t told = json_integer_value(json_object_get(j, "bytes_per_token"));
    ck_assert_int_eq(told - per, 128 * 2 + 128 * 2); /* one row of the embedding, the norm */
    json_decref(j);
}
END_TEST

/* ------------------------------------------------------------------ slices */

START_TEST(held_experts_share)
{
    dsv4_slice all = {0}, few = {.held = 3};
    dsv4_options o = small_options();
    dsv4_engine *a = open_slice("models/nano", &all, &o);
    dsv4_engine *b = open_slice("models/nano", &few, &o);
    dsv4_seq *s;
    /* 8 layers, 13 of 16 experts of 3 matrices [96][128] in mxfp4 */
    ck_assert_uint_eq(dsv4_engine_memory(a) - dsv4_engine_memory(b),
                      8 * 13 * 3 * 96 * 128 / 32 * 17);
    OK(dsv4_seq_open(&s, b, &err));
    float *x = decode(b, s, 30);
    sane(x, dsv4_engine_vocab(b), "shared experts");
    free(x);
    dsv4_seq_close(s);
    dsv4_close(a);
    dsv4_close(b);
}
END_TEST

START_TEST(chosen_layers)
{
    static const uint32_t layers[] = {0, 1, 2, 5, 6};
    dsv4_slice s = {.layers = layers, .n_layers = 5, .experts = 8, .vocab = 1000};
    dsv4_options o = small_options();
    size_t vocab;
    json_t *whole = plan("models/nano", NULL), *part = plan("models/nano", &s);
    for (size_t i = 0; i < 5; i++) {
        json_t *a = json_array_get(json_object_get(whole, "layers"), layers[i]);
        json_t *b = json_array_get(json_object_get(part, "layers"), i);
        static const char *const same[] = {"layer",    "attention", "engram",
                                           "cache_of", "index_of",  "expert_bytes"};
        for (size_t k = 0; k < sizeof same / sizeof *same; k++)
            ck_assert_msg(json_equal(json_object_get(a, same[k]), json_object_get(b, same[k])),
                          "layer %u: %s", layers[i], same[k]);
    }
    json_decref(whole);
    json_decref(part);
    float *x = logits_of("models/nano", &s, &o, &vocab);
    ck_assert_uint_eq(vocab, 1000);
    sane(x, vocab, "five layers");
    free(x);
}
END_TEST

START_TEST(slices_that_are_none)
{
    static const uint32_t down[] = {1, 0}, far[] = {0, 8}, orphan[] = {0, 3};
    const dsv4_slice wrong[] = {{.layers = down, .n_layers = 2},
                                {.layers = far, .n_layers = 2},
                                {.layers = orphan, .n_layers = 2},
                                {.n_layers = 9},
                                {.experts = 17},
                                {.experts = 1},
                                {.held = 17},
                                {.experts = 4, .held = 5},
                                {.vocab = 4097},
                                {.expert_format = (dsv4_format)99}};
    size_t len;
    char *config = config_of("models/nano", &len);
    dsv4_options o = small_options();
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        dsv4_engine *e = (dsv4_engine *)&o;
        char *json = (char *)&o;
        int rc = dsv4_open_synthetic(&e, config, len, &wrong[i], &o, &err);
        ck_assert_msg(rc == DSV4_USAGE && !e && err.text[0], "slice %zu: %d", i, rc);
        rc = dsv4_plan_synthetic(config, len, &wrong[i], &o, &json, &err);
        ck_assert_msg(rc == DSV4_USAGE && !json, "plan of slice %zu: %d", i, rc);
    }
    dsv4_engine *e;
    o.paged = true;
    ck_assert_int_eq(dsv4_open_synthetic(&e, config, len, NULL, &o, &err), DSV4_USAGE);
    o.paged = false;
    o.max_memory = 1 << 20;
    ck_assert_int_eq(dsv4_open_synthetic(&e, config, len, NULL, &o, &err), DSV4_NO_MEMORY);
    o.max_memory = 0;
    ck_assert_int_eq(dsv4_open_synthetic(&e, "{}", 2, NULL, &o, &err), DSV4_REFUSED);
    free(config);
}
END_TEST

/* ------------------------------------------------------------------ histories */

START_TEST(a_pretended_history)
{
    const char *dir = dirs[_i];
    dsv4_options o = small_options();
    o.ctx = 5000;
    dsv4_engine *e = open_slice(dir, NULL, &o);
    dsv4_seq *s;
    OK(dsv4_seq_open(&s, e, &err));
    static const size_t lengths[] = {4000, 0, 77, 1};
    for (size_t i = 0; i < 4; i++) {
        OK(dsv4_seq_pretend(s, lengths[i], &err));
        ck_assert_uint_eq(dsv4_seq_len(s), lengths[i]);
        for (size_t k = 0; k < lengths[i]; k++)
            ck_assert(dsv4_seq_tokens(s)[k] >= 0 &&
                      (size_t)dsv4_seq_tokens(s)[k] < dsv4_engine_vocab(e));
        float *x = decode(e, s, 10);
        sane(x, dsv4_engine_vocab(e), dir);
        ck_assert_uint_eq(dsv4_seq_len(s), lengths[i] + 10);
        OK(dsv4_seq_rewind(s, lengths[i] + 3, &err));
        free(x);
    }
    ck_assert_int_eq(dsv4_seq_pretend(s, 5001, &err), DSV4_USAGE);
    dsv4_seq_close(s);
    dsv4_close(e);
}
END_TEST

/* ------------------------------------------------------------------ timings, roofs */

static double clock_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static json_t *timings(dsv4_engine *e)
{
    char *text;
    json_error_t je;
    OK(dsv4_timings(e, &text, &err));
    json_t *j = json_loads(text, 0, &je);
    ck_assert(j);
    dsv4_free(text);
    return j;
}

START_TEST(where_time_goes)
{
    dsv4_options o = small_options();
    o.threads = 1;
    dsv4_engine *e = open_slice("models/nano", NULL, &o);
    dsv4_seq *s;
    size_t i, k;
    const json_t *layer, *x;
    OK(dsv4_seq_open(&s, e, &err));
    free(decode(e, s, 5));
    dsv4_timings_reset(e);
    json_t *j = timings(e);
    ck_assert_int_eq(json_integer_value(json_object_get(j, "steps")), 0);
    ck_assert_int_eq(json_integer_value(json_object_get(j, "barriers")), 0);
    ck_assert_double_eq(json_number_value(json_object_get(j, "seconds")), 0);
    json_decref(j);
    double begin = clock_now();
    free(decode(e, s, 40));
    double wall = clock_now() - begin;
    j = timings(e);
    double sum = 0;
    size_t ops = json_array_size(json_object_get(j, "operators"));
    ck_assert_int_eq(json_integer_value(json_object_get(j, "steps")), 40);
    ck_assert_int_eq(json_integer_value(json_object_get(j, "rows")), 40);
    ck_assert_uint_eq(json_array_size(json_object_get(j, "layers")), 9);
    json_array_foreach(json_object_get(j, "layers"), i, layer)
    {
        ck_assert_uint_eq(json_array_size(layer), ops);
        double of_layer = 0;
        json_array_foreach(layer, k, x) of_layer += json_number_value(x);
        ck_assert_msg(of_layer > 0, "layer %zu took no time", i);
        sum += of_layer;
    }
    double told = json_number_value(json_object_get(j, "seconds"));
    ck_assert_double_eq_tol(sum, told, 1e-9);
    ck_assert_msg(told <= wall && told > wall / 4, "%g s of %g s are accounted for", told, wall);
    json_decref(j);
    dsv4_seq_close(s);
    dsv4_close(e);
}
END_TEST

START_TEST(roofs_of_this_machine)
{
    dsv4_roof r = {0}, scalar = {0};
    dsv4_options o = {.threads = 2};
    OK(dsv4_roofs(&o, 0.4, &r, &err));
    ck_assert_msg(r.read > 1e7 && r.read < 1e13, "reads %g bytes/s", r.read);
    ck_assert_msg(r.copy > 1e7 && r.copy < 1e13, "copies %g bytes/s", r.copy);
    ck_assert_uint_ge(r.bytes, 1 << 20);
    ck_assert_msg(r.barrier > 1e-9 && r.barrier < 1, "a barrier takes %g s", r.barrier);
    o.cpus = "nonsense";
    ck_assert_int_eq(dsv4_roofs(&o, 0.1, &r, &err), DSV4_USAGE);
    o.cpus = NULL;
    setenv("DSV4_SIMD", "scalar", 1); /* the test runs in a process of its own */
    OK(dsv4_roofs(&o, 0.1, &scalar, &err));
    ck_assert(scalar.int8 == 0 && scalar.f32 == 0 && scalar.read > 0);
    setenv("DSV4_SIMD", "fast", 1);
    ck_assert_int_eq(dsv4_roofs(&o, 0.1, &scalar, &err), DSV4_USAGE);
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        ck_assert_msg(r.int8 > 1e7 && r.f32 > 1e7, "%g and %g multiply-adds/s", r.int8, r.f32);
#endif
}
END_TEST

/* ------------------------------------------------------------------ what such engines cannot */

START_TEST(not_for_text)
{
    dsv4_options o = small_options();
    dsv4_engine *e = open_slice("models/nano", NULL, &o), *real;
    dsv4_seq *s;
    char *json;
    dsv4_generate_options g = {.max_tokens = 3};
    int32_t id = 1;
    OK(dsv4_seq_open(&s, e, &err));
    ck_assert(!dsv4_engine_tokenizer(e));
    ck_assert_int_eq(dsv4_generate(e, s, &id, 1, &g, NULL, &err), DSV4_USAGE);
    free(decode(e, s, 3));
    ck_assert_int_lt(dsv4_seq_save(s, "/nonexistent/file", &err), 0);
    dsv4_seq_close(s);
    dsv4_close(e);
    OK(dsv4_open(&real, "models/nano", &o, &err));
    OK(dsv4_seq_open(&s, real, &err));
    ck_assert_int_eq(dsv4_seq_pretend(s, 10, &err), DSV4_USAGE);
    ck_assert_int_eq(dsv4_timings(real, &json, &err), DSV4_USAGE);
    dsv4_timings_reset(real); /* does nothing */
    dsv4_seq_close(s);
    dsv4_close(real);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("synthetic");
    TCase *t = tcase_create("synthetic");
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, every_format_computes, 0, N_DIRS * N_FORMATS);
    tcase_add_test(t, bytes_of_a_checkpoint);
    tcase_add_test(t, layers_add_up);
    tcase_add_test(t, held_experts_share);
    tcase_add_test(t, chosen_layers);
    tcase_add_test(t, slices_that_are_none);
    tcase_add_loop_test(t, a_pretended_history, 0, N_DIRS);
    tcase_add_test(t, where_time_goes);
    tcase_add_test(t, roofs_of_this_machine);
    tcase_add_test(t, not_for_text);
    suite_add_tcase(s, t);
    return run_suite(s);
}
