/* Conversions to GGUF files: the same logits, the same bytes for any number of threads and interruptions, what is
 * refused. What other readers make of the files is tried in test_gguf.sh. */
#include "convert_case.h"
#include "src/system/system.h"

#include <math.h>
#include <unistd.h>

static const char *const models[] = {GOLDEN "v4-tiny", GOLDEN "v4-pro", GOLDEN "v4-oldnames"};

static void same_logits(const char *a, const char *b, bool exact)
{
    size_t vocab, n;
    float *want = logits_of(a, exact, false, &vocab), *got = logits_of(b, exact, false, &n);
    ck_assert_uint_eq(n, vocab);
    ck_assert_msg(memcmp(got, want, N_IDS * vocab * sizeof *got) == 0, "%s: %s differs from %s",
                  exact ? "exact" : "fast", b, a);
    free(got);
    free(want);
}

/* The same weights, but kernels add those of BF16 in another order than those of fp8: within what the goldens
 * allow for that. */
static void near_logits(const char *a, const char *b)
{
    size_t vocab, n;
    float *want = logits_of(a, true, false, &vocab), *got = logits_of(b, true, false, &n);
    float far = 0;
    ck_assert_uint_eq(n, vocab);
    for (size_t i = 0; i < N_IDS * vocab; i++)
        far = fabsf(got[i] - want[i]) > far ? fabsf(got[i] - want[i]) : far;
    ck_assert_msg(far < 1e-3f, "%s and %s: %g apart", a, b, (double)far);
    free(got);
    free(want);
}

static void same_bytes(const char *a, const char *b)
{
    size_t na, nb;
    char *x = slurp("", a, &na), *y = slurp("", b, &nb);
    ck_assert_msg(na == nb && memcmp(x, y, na) == 0, "%s and %s differ", a, b);
    free(x);
    free(y);
}

/* From the official directory, from a converted one, from the file itself. */
START_TEST(native_keeps_logits)
{
    dsv4_err err;
    dsv4_convert_options o = {.threads = 2, .gguf = true}, dir = {.threads = 2};
    OK(dsv4_convert(models[_i], in_tmp("a.gguf"), &o, &err));
    near_logits(models[_i], in_tmp("a.gguf"));
    OK(dsv4_convert(models[_i], in_tmp("packed"), &dir, &err));
    OK(dsv4_convert(in_tmp("packed"), in_tmp("b.gguf"), &o, &err));
    same_logits(in_tmp("a.gguf"), in_tmp("b.gguf"), true);
    OK(dsv4_convert(in_tmp("a.gguf"), in_tmp("c.gguf"), &o, &err));
    same_logits(in_tmp("a.gguf"), in_tmp("c.gguf"), true);
    same_logits(in_tmp("a.gguf"), in_tmp("c.gguf"), false);
}
END_TEST

static const char *const types[] = {"q8", "q4", "mxfp4", "bf16"};

/* What is encoded is what a directory gets, in blocks or not. */
START_TEST(encoded_as_in_a_directory)
{
    dsv4_err err;
    const char *rules[] = {"layers.*.attn.w*=", "layers.*.ffn.*w?="};
    char text[2][64];
    const char *rule[2] = {text[0], text[1]};
    for (int i = 0; i < 2; i++)
        snprintf(text[i], sizeof text[i], "%s%s", rules[i], types[_i]);
    dsv4_convert_options o = {.threads = 2, .rules = rule, .n_rules = 2};
    OK(dsv4_convert(GOLDEN "v4-tiny", in_tmp("packed"), &o, &err));
    o.gguf = true;
    OK(dsv4_convert(GOLDEN "v4-tiny", in_tmp("a.gguf"), &o, &err));
    same_logits(in_tmp("packed"), in_tmp("a.gguf"), true);
    dsv4_convert_options native = {.threads = 2, .gguf = true};
    OK(dsv4_convert(in_tmp("packed"), in_tmp("b.gguf"), &native, &err));
    same_logits(in_tmp("a.gguf"), in_tmp("b.gguf"), true);
}
END_TEST

/* Experts of several types can be one tensor of the widest. */
START_TEST(mixed_experts)
{
    dsv4_err err;
    dsv4_convert_options o = {.threads = 2, .gguf = true, .experts = "bf16"};
    OK(dsv4_convert(GOLDEN "v4-mixed", in_tmp("a.gguf"), &o, &err));
    near_logits(GOLDEN "v4-mixed", in_tmp("a.gguf"));
}
END_TEST

START_TEST(threads_and_interruptions)
{
    dsv4_err err;
    dsv4_convert_options o = {.threads = 1, .gguf = true, .experts = "q8"};
    OK(dsv4_convert(GOLDEN "v4-tiny", in_tmp("one.gguf"), &o, &err));
    o.threads = 3;
    OK(dsv4_convert(GOLDEN "v4-tiny", in_tmp("three.gguf"), &o, &err));
    same_bytes(in_tmp("one.gguf"), in_tmp("three.gguf"));
    int rc, left, runs = 0;
    o.threads = 1; /* the first lane reports: it is to see every piece */
    o.mark_bytes = 1;
    o.progress = stop_after;
    o.progress_arg = &left;
    do {
        left = 30;
        rc = dsv4_convert(GOLDEN "v4-tiny", in_tmp("stops.gguf"), &o, &err);
        ck_assert_msg(rc == 0 || rc == DSV4_INTERRUPTED, "%d: %s", rc, err.text);
        ck_assert_int_eq(access(in_tmp("stops.gguf"), F_OK) == 0, rc == 0);
    } while (rc != 0 && ++runs < 100);
    ck_assert_int_ge(runs, 2);
    same_bytes(in_tmp("one.gguf"), in_tmp("stops.gguf"));
    ck_assert_int_ne(access(in_tmp("stops.gguf.partial"), F_OK), 0);
}
END_TEST

START_TEST(refused)
{
    dsv4_convert_options o = {.threads = 1, .gguf = true};
    const char *out = in_tmp("out.gguf"), *tiny = GOLDEN "v4-tiny";
    refuse(GOLDEN "v41-tiny", out, &o, DSV4_REFUSED, "V4.1");
    o.type = "q4nl";
    refuse(tiny, out, &o, DSV4_REFUSED, "would be q4nl");
    o.type = NULL;
    const char *one[] = {"layers.2.ffn.experts.3.w1=q8"};
    o.rules = one;
    o.n_rules = 1;
    refuse(tiny, out, &o, DSV4_REFUSED, "are one tensor");
    o.n_rules = 0;
    refuse(GOLDEN "v4-mixed", out, &o, DSV4_REFUSED, "are one tensor"); /* fp4 and BF16 */
    o.shard_bytes = 1 << 20;
    refuse(tiny, out, &o, DSV4_USAGE, "--shard-size");
    o.shard_bytes = 0;
    o.bits = 4;
    refuse(tiny, out, &o, DSV4_USAGE, "--bits choose");
    o.bits = 0;
    spill(in_tmp(""), "out.gguf", "mine", 4);
    refuse(tiny, out, &o, DSV4_USAGE, "exists");
    ck_assert_int_ne(access(in_tmp("out.gguf.partial"), F_OK), 0);

    copy_dir(tiny, in_tmp("copy"));
    unlink(in_tmp("copy/tokenizer.json"));
    refuse(in_tmp("copy"), in_tmp("a.gguf"), &o, DSV4_REFUSED, "tokenizer.json");
}
END_TEST

/* A change of the text of tiny's FILE. */
static void with_change(const char *file, const char *old, const char *new, const char *message)
{
    dsv4_convert_options o = {.threads = 1, .gguf = true};
    size_t n;
    copy_dir(GOLDEN "v4-tiny", in_tmp("copy"));
    char *text = slurp(in_tmp("copy"), file, &n), *at = strstr(text, old);
    ck_assert_ptr_nonnull(at);
    struct bytes b = {0};
    dsv4_err err;
    OK(bytes_add(&b, text, (size_t)(at - text), &err));
    OK(bytes_text(&b, new, &err));
    OK(bytes_text(&b, at + strlen(old), &err));
    spill(in_tmp("copy"), file, b.data, b.len);
    refuse(in_tmp("copy"), in_tmp("a.gguf"), &o, DSV4_REFUSED, message);
    ck_assert_int_ne(access(in_tmp("a.gguf"), F_OK), 0);
    free(b.data);
    free(text);
    char command[300];
    snprintf(command, sizeof command, "rm -rf %s", in_tmp("copy"));
    ck_assert_int_eq(system(command), 0);
}

START_TEST(strange_sources)
{
    with_change("config.json", "\"sqrtsoftplus\"", "\"sigmoid\"", "scoring_func");
    with_change("tokenizer.json", "\\\\p{N}{1,3}", "\\\\p{N}", "splits text otherwise");
    with_change("tokenizer.json", "\"id\": 319", "\"id\": 320", "vocab_size is 320");
    with_change("tokenizer.json", "\"content\": \"<think>\"", "\"content\": 7", "without content");
    with_change("tokenizer.json", "\"merges\"", "\"murges\"", "no model.merges");
    with_change("tokenizer.json", "{", "[", "tokenizer.json");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("to-gguf");
    TCase *t = tcase_create("to-gguf");
    tcase_set_timeout(t, 120);
    tcase_add_checked_fixture(t, make_tmp, remove_tmp);
    tcase_add_loop_test(t, native_keeps_logits, 0, sizeof models / sizeof *models);
    tcase_add_loop_test(t, encoded_as_in_a_directory, 0, sizeof types / sizeof *types);
    tcase_add_test(t, mixed_experts);
    tcase_add_test(t, threads_and_interruptions);
    tcase_add_test(t, refused);
    tcase_add_test(t, strange_sources);
    suite_add_tcase(s, t);
    return run_suite(s);
}
