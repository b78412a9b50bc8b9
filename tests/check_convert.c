/* Conversions: the same logits where nothing is lost, the same bytes for any number of threads and
 * interruptions, what rules decide, and what is refused, by the converter and by the loader. */
#include "convert_case.h"
#include "src/convert/convert.h"
#include "src/model/model.h"

#include <fcntl.h>
#include <jansson.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const lossless[] = {NANO,
                                       GOLDEN "v4-tiny",
                                       GOLDEN "v4-pro",
                                       GOLDEN "v4-oldnames",
                                       GOLDEN "v41-tiny",
                                       GOLDEN "v41-quant"};

START_TEST(native_keeps_logits)
{
    dsv4_err err;
    size_t vocab, n;
    dsv4_convert_options o = {.threads = 2, .shard_bytes = 1 << 18};
    OK(dsv4_convert(lossless[_i], in_tmp("out"), &o, &err));
    for (int mode = 0; mode < 2; mode++) {
        float *want = logits_of(lossless[_i], mode == 0, false, &vocab);
        for (int paged = 0; paged < 2; paged++) {
            float *got = logits_of(in_tmp("out"), mode == 0, paged, &n);
            ck_assert_uint_eq(n, vocab);
            ck_assert_msg(memcmp(got, want, N_IDS * vocab * sizeof *got) == 0, "%s: %s%s differs",
                          lossless[_i], mode ? "fast" : "exact", paged ? ", paged" : "");
            free(got);
        }
        free(want);
    }
    /* panels as a source */
    OK(dsv4_convert(in_tmp("out"), in_tmp("again"), &o, &err));
    float *want = logits_of(in_tmp("out"), false, false, &vocab);
    float *got = logits_of(in_tmp("again"), false, false, &n);
    ck_assert_int_eq(memcmp(got, want, N_IDS * vocab * sizeof *got), 0);
    free(got);
    free(want);
}
END_TEST

/* Logits of a directory on the lanes of a placement. */
static float *placed_logits(const char *dir, const char *machine, int nodes, size_t *vocab)
{
    dsv4_err err;
    struct topology t;
    struct placement p;
    struct placement_options po = {0};
    struct pool *pool;
    struct source s;
    struct model *m;
    struct cache *c;
    struct batch *b;
    OK(topology_synthetic(&t, machine, &err));
    OK(placement_make(&p, &t, &po, &err));
    p.bind = BIND_NONE; /* the machine is made up */
    for (int i = 0; i < p.n_nodes; i++)
        p.node[i].os = -1;
    OK(pool_open(&pool, &p, &err));
    ck_assert_int_eq(pool_nodes(pool), nodes);
    OK(source_open(&s, dir, &err));
    OK(model_bind(&m, s.cfg, s.store, true, &err));
    OK(weights_load(m, pool, NULL, NULL, &err));
    OK(cache_open(&c, m, N_IDS, 8, &err));
    OK(cache_reserve(c, N_IDS, &err));
    OK(batch_open(&b, m, N_IDS, 1, pool_threads(pool), &err));
    *vocab = s.cfg->vocab;
    float *x = calloc(N_IDS * *vocab, sizeof *x);
    batch_begin(b);
    for (int i = 0; i < N_IDS; i++)
        batch_add(b, c, case_token(i, *vocab), true);
    b->logits = x;
    forward(pool, b);
    batch_close(b);
    cache_close(c);
    model_close(m);
    source_close(&s);
    pool_close(pool);
    placement_release(&p);
    topology_release(&t);
    return x;
}

START_TEST(panels_are_copied_to_nodes)
{
    dsv4_err err;
    size_t vocab;
    OK(dsv4_convert(GOLDEN "v4-tiny", in_tmp("out"), NULL, &err));
    float *one = placed_logits(in_tmp("out"), "node:1 core:2 pu:1", 1, &vocab);
    float *two = placed_logits(in_tmp("out"), "node:2 core:1 pu:1", 2, &vocab);
    ck_assert_int_eq(memcmp(one, two, N_IDS * vocab * sizeof *one), 0);
    free(one);
    free(two);
}
END_TEST

/* ------------------------------------------------------------------ the same bytes */

START_TEST(threads_do_not_matter)
{
    dsv4_err err;
    dsv4_convert_options o = {
        .type = "q4", .threads = 1, .shard_bytes = 1 << 20, .effort = DSV4_EFFORT_SEARCH};
    OK(dsv4_convert(NANO, in_tmp("one"), &o, &err));
    o.threads = 3;
    OK(dsv4_convert(NANO, in_tmp("three"), &o, &err));
    same_files(in_tmp("one"), in_tmp("three"));
}
END_TEST

START_TEST(goes_on_where_it_stopped)
{
    dsv4_err err;
    int left, tries = 0, rc;
    dsv4_convert_options o = {
        .type = "q4nl", .threads = 2, .shard_bytes = 3 << 20, .mark_bytes = 1 << 16};
    OK(dsv4_convert(NANO, in_tmp("whole"), &o, &err));
    o.progress = stop_after;
    o.progress_arg = &left;
    do {
        left = 20 + 15 * (tries % 3);
        o.threads =
            tries % 3 == 2 ? 2 : 1; /* alone it stops after so many pieces of the 500 or so */
        rc = dsv4_convert(NANO, in_tmp("parts"), &o, &err);
        if (rc != 0) {
            ck_assert_int_eq(rc, DSV4_INTERRUPTED);
            ck_assert_int_ne(access(in_tmp("parts"), F_OK), 0);
            ck_assert_int_eq(access(in_tmp("parts.partial/convert.json"), F_OK), 0);
        }
        ck_assert_int_lt(++tries, 500);
    } while (rc != 0);
    ck_assert_int_gt(tries, 2);
    same_files(in_tmp("whole"), in_tmp("parts"));
    ck_assert_int_ne(access(in_tmp("parts.partial"), F_OK), 0);
}
END_TEST

/* A source's file that somebody cuts to its half while it is read. */
struct cut {
    const char *path;
    int reports; /* until then */
};

static bool cut_after(void *arg, uint64_t done, uint64_t total)
{
    struct cut *c = arg;
    struct stat st;
    (void)done;
    (void)total;
    if (--c->reports == 0) {
        ck_assert_int_eq(stat(c->path, &st), 0);
        ck_assert_int_eq(truncate(c->path, st.st_size / 2), 0);
    }
    return false;
}

static const struct {
    const char *model;
    enum { OFFICIAL, PACKED, FILE_OF_GGUF } as; /* what the source is */
    const char *from, *file;
    const char *type;
} shrinking[] = {
    {NANO, OFFICIAL, "source", "source/model.safetensors", "native"},
    {NANO, OFFICIAL, "source", "source/model.safetensors", "q4"},
    {NANO, PACKED, "source", "source/model-00001-of-00001.safetensors", "q8"},
    {GOLDEN "v4-tiny", FILE_OF_GGUF, "source.gguf", "source.gguf", "native"},
};

START_TEST(a_source_that_shrinks)
{
    dsv4_err err;
    struct stat st;
    struct cut cut = {.reports = 6};
    char from[256], file[256], kept[256];
    snprintf(from, sizeof from, "%s", in_tmp(shrinking[_i].from));
    snprintf(file, sizeof file, "%s", in_tmp(shrinking[_i].file));
    snprintf(kept, sizeof kept, "%s", in_tmp("kept"));
    dsv4_convert_options o = {.gguf = shrinking[_i].as == FILE_OF_GGUF};
    if (shrinking[_i].as != OFFICIAL)
        OK(dsv4_convert(shrinking[_i].model, from, &o, &err));
    else
        copy_dir(shrinking[_i].model, from);
    o = (dsv4_convert_options){.type = shrinking[_i].type, .threads = 1, .mark_bytes = 1 << 16};
    OK(dsv4_convert(from, in_tmp("whole"), &o, &err));
    copy_dir(file, kept);
    ck_assert_int_eq(stat(file, &st), 0);

    cut.path = file;
    o.progress = cut_after;
    o.progress_arg = &cut;
    ck_assert_int_eq(dsv4_convert(from, in_tmp("out"), &o, &err), DSV4_FAILED);
    ck_assert_msg(strstr(err.text, file) && strstr(err.text, "shrank"), "%s", err.text);
    ck_assert_int_ne(access(in_tmp("out"), F_OK), 0);
    ck_assert_int_eq(access(in_tmp("out.partial/convert.json"), F_OK), 0);

    /* the same file again, with the time it had: the work goes on */
    copy_dir(kept, file);
    const struct timespec then[] = {st.st_atim, st.st_mtim};
    ck_assert_int_eq(utimensat(AT_FDCWD, file, then, 0), 0);
    OK(dsv4_convert(from, in_tmp("out"), &o, &err));
    same_files(in_tmp("whole"), in_tmp("out"));
}
END_TEST

/* One of the two is cut while they are compared: an error that names the file, whichever it is and whatever it holds. */
START_TEST(verifying_what_shrinks)
{
    static const char *const what[] = {"source/model.safetensors",
                                       "made/model-00001-of-00001.safetensors", "made.gguf"};
    dsv4_err err;
    char from[256], to[256], file[256], *json;
    struct cut cut = {.path = file, .reports = 3};
    bool gguf = _i == 2;
    snprintf(from, sizeof from, "%s", in_tmp("source"));
    snprintf(to, sizeof to, "%s", in_tmp(gguf ? "made.gguf" : "made"));
    snprintf(file, sizeof file, "%s", in_tmp(what[_i]));
    copy_dir(gguf ? GOLDEN "v4-tiny" : NANO, from);
    dsv4_convert_options o = {.gguf = gguf, .threads = 1};
    OK(dsv4_convert(from, to, &o, &err));
    OK(dsv4_convert_verify(from, to, &o, &json, &err));
    dsv4_free(json);
    o.progress = cut_after;
    o.progress_arg = &cut;
    ck_assert_int_eq(dsv4_convert_verify(from, to, &o, &json, &err), DSV4_FAILED);
    ck_assert_msg(strstr(err.text, file) && strstr(err.text, "shrank"), "%s", err.text);
}
END_TEST

/* Rows read into memory are the rows in place, whatever blocks their scales are for. */
START_TEST(windows_show_the_rows)
{
    enum { ROWS = 75, COLS = 64 };
    static const uint32_t blocks[] = {1, 5, 16, 24, 32, 100};
    static uint8_t codes[ROWS * COLS], scales[ROWS * COLS];
    struct source s = {0};
    dsv4_err err;
    kernels_init(&s.k, NULL);
    OK(store_open_shapes(&s.store, &err));
    for (int i = 0; i < ROWS * COLS; i++) {
        codes[i] = (uint8_t)(i * 7 % 120);
        scales[i] = (uint8_t)(120 + i % 11);
    }
    const uint32_t block = blocks[_i];
    const struct wmat m = {.format = W_E4M3,
                           .rows = ROWS,
                           .cols = COLS,
                           .block_rows = block,
                           .block_cols = 32,
                           .codes = codes,
                           .code_ld = COLS,
                           .scales = scales,
                           .scale_ld = COLS / 32};
    struct window w;
    size_t bytes[2] = {0};
    window_needs(bytes, &m);
    OK(window_open(&w, bytes, &err));
    for (size_t i = 0; i < 3 * ROWS; i++) {
        float want[COLS], got[COLS];
        size_t row = i < ROWS ? i : i * 31 % ROWS;
        source_row(&s, &m, row, want);
        OK(window_floats(&w, &s, &m, row, got, &err));
        ck_assert_msg(memcmp(got, want, sizeof got) == 0, "row %zu of blocks of %u", row, block);
        if (i % 3 == 0)
            OK(window_sample(&w, &s, &m, row, got, &err));
        ck_assert_msg(memcmp(got, want, sizeof got) == 0, "row %zu alone, %u", row, block);
    }
    window_close(&w);
    store_close(s.store);
}
END_TEST

START_TEST(others_partial_work_is_refused)
{
    dsv4_err err;
    int left = 1;
    dsv4_convert_options o = {.progress = stop_after, .progress_arg = &left};
    ck_assert_int_eq(dsv4_convert(NANO, in_tmp("out"), &o, &err), DSV4_INTERRUPTED);
    dsv4_convert_options other = {.type = "q4"};
    ck_assert_int_eq(dsv4_convert(NANO, in_tmp("out"), &other, &err), DSV4_REFUSED);
    ck_assert_msg(strstr(err.text, "other options") != NULL, "%s", err.text);
    other.restart = true;
    OK(dsv4_convert(NANO, in_tmp("out"), &other, &err));
    ck_assert_int_eq(mkdir(in_tmp("mine.partial"), 0777), 0);
    spill(in_tmp("mine.partial"), "thesis.tex", "x", 1);
    ck_assert_int_eq(dsv4_convert(NANO, in_tmp("mine"), NULL, &err), DSV4_REFUSED);
    ck_assert_msg(strstr(err.text, "thesis.tex") != NULL, "%s", err.text);
}
END_TEST

START_TEST(the_last_step_alone_is_made_up)
{
    dsv4_err err;
    OK(dsv4_convert(GOLDEN "v4-tiny", in_tmp("whole"), NULL, &err));
    copy_dir(in_tmp("whole"), in_tmp("late.partial")); /* killed before the renaming */
    OK(dsv4_convert(GOLDEN "v4-tiny", in_tmp("late"), NULL, &err));
    same_files(in_tmp("whole"), in_tmp("late"));
}
END_TEST

/* ------------------------------------------------------------------ rules */

/* The type of a matrix in a converted directory; NULL: plain. */
static const char *type_in(const char *dir, const char *name)
{
    struct source s;
    dsv4_err err;
    OK(source_open(&s, dir, &err));
    const struct wtype *t = packing_type(s.cfg->packing, name);
    static char type[16];
    snprintf(type, sizeof type, "%s", t ? t->name : "plain");
    source_close(&s);
    return type;
}

START_TEST(the_last_rule_that_fits_counts)
{
    dsv4_err err;
    const char *rule[] = {"layers.1.ffn.experts.*=native", "layers.[0-1].ffn.experts.3.w2=q8"};
    dsv4_convert_options o = {
        .type = "q8", .dense = "q4", .head = "q4nl", .rules = rule, .n_rules = 2};
    OK(dsv4_convert(NANO, in_tmp("out"), &o, &err));
    const struct {
        const char *name, *type;
    } want[] = {
        {"layers.0.ffn.experts.2.w2", "e2m1"}, /* q8 would be larger */
        {"layers.0.ffn.experts.3.w2", "q8"},
        {"layers.1.ffn.experts.3.w2", "q8"},
        {"layers.1.ffn.experts.4.w1", "e2m1"},
        {"layers.1.attn.wq_b", "q4"},
        {"layers.1.ffn.shared_experts.w3", "q4"},
        {"layers.1.engram.wkv", "q4"},
        {"head", "q4nl"},
        {"layers.2.ffn.gate", "bf16"},
        {"layers.2.attn.indexer.wq_b", "e4m3"},
        {"embed", "plain"},
        {"layers.1.engram.embed", "plain"},
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        ck_assert_msg(strcmp(type_in(in_tmp("out"), want[i].name), want[i].type) == 0, "%s is %s",
                      want[i].name, type_in(in_tmp("out"), want[i].name));
    size_t vocab;
    free(logits_of(in_tmp("out"), false, false, &vocab)); /* it runs */
}
END_TEST

START_TEST(a_file_of_rules)
{
    dsv4_err err;
    static const char text[] = "# a comment\n\n  layers.0.attn.wq_a=q8   # and why\nhead=q4\n";
    spill(in_tmp("."), "rules", text, sizeof text - 1);
    dsv4_convert_options o = {.rules_file = in_tmp("rules")};
    OK(dsv4_convert(NANO, in_tmp("out"), &o, &err));
    ck_assert_str_eq(type_in(in_tmp("out"), "layers.0.attn.wq_a"), "q8");
    ck_assert_str_eq(type_in(in_tmp("out"), "head"), "q4");
    spill(in_tmp("."), "rules", "head=q4\nhead q5\n", 16);
    ck_assert_int_eq(dsv4_convert(NANO, in_tmp("no"), &o, &err), DSV4_USAGE);
    ck_assert_msg(strstr(err.text, "line 2") != NULL, "%s", err.text);
}
END_TEST

/* ------------------------------------------------------------------ refused */

START_TEST(wrong_options)
{
    const char *far[] = {"layers.9.ffn.experts.3.w1=q4"}, *strange[] = {"head=q5"};
    const char *shapeless[] = {"head"};
    refuse(NANO, NANO, NULL, DSV4_USAGE, "the same directory");
    ck_assert_int_eq(mkdir(in_tmp("full"), 0777), 0);
    spill(in_tmp("full"), "a", "a", 1);
    refuse(NANO, in_tmp("full"), NULL, DSV4_USAGE, "not empty");
    refuse(NANO, in_tmp("full/a"), NULL, DSV4_USAGE, "not a directory");
    refuse(NANO, in_tmp("no/such/place"), NULL, DSV4_FAILED, "cannot create");
    refuse(in_tmp("none"), in_tmp("out"), NULL, DSV4_REFUSED, "none/config.json");
    refuse(NANO, in_tmp("out"), &(dsv4_convert_options){.type = "q5"}, DSV4_USAGE,
           "unknown type \"q5\"");
    refuse(NANO, in_tmp("out"), &(dsv4_convert_options){.preset = "huge"}, DSV4_USAGE, "\"huge\"");
    refuse(NANO, in_tmp("out"), &(dsv4_convert_options){.rules = far, .n_rules = 1}, DSV4_USAGE,
           "near are layers.0.ffn.experts.3.w1");
    refuse(NANO, in_tmp("out"), &(dsv4_convert_options){.rules = strange, .n_rules = 1}, DSV4_USAGE,
           "q5");
    refuse(NANO, in_tmp("out"), &(dsv4_convert_options){.rules = shapeless, .n_rules = 1},
           DSV4_USAGE, "PATTERN=TYPE");
    refuse(NANO, in_tmp("out"), &(dsv4_convert_options){.max_ram = 100}, DSV4_NO_MEMORY,
           "100 may be used");
}
END_TEST

/* A copy of the embedded model with some bytes of a tensor replaced. */
static void damage(const char *name, const void *bytes, size_t n)
{
    struct store *s;
    dsv4_err err;
    copy_dir(NANO, in_tmp("bad"));
    OK(store_open(&s, in_tmp("bad"), &err));
    const struct tensor *t = store_find(s, name);
    ck_assert_ptr_nonnull(t);
    size_t len;
    char *file = slurp(in_tmp("bad"), "model.safetensors", &len);
    const struct tensor *first = store_at(s, 0);
    for (size_t i = 0; i < store_count(s); i++)
        first = store_at(s, i)->data < first->data ? store_at(s, i) : first;
    size_t header = len - (size_t)store_bytes(s);
    memcpy(file + header + (t->data - first->data) + 64, bytes, n);
    store_close(s);
    spill(in_tmp("bad"), "model.safetensors", file, len);
    free(file);
}

static const struct {
    const char *tensor, *type, *bytes;
    size_t n;
} no_number[] = {
    {"layers.3.attn.wq_b.weight", NULL, "\x7f", 1},       /* e4m3 NaN, packed */
    {"layers.3.attn.wq_b.weight", "q4", "\x7f", 1},       /* encoded */
    {"layers.3.ffn.experts.2.w1.scale", NULL, "\xff", 1}, /* e8m0 */
    {"head.weight", NULL, "\x80\x7f", 2},                 /* an infinity in bf16 */
    {"embed.weight", NULL, "\xc0\xff", 2},                /* a NaN in what is copied */
    {"layers.0.hc_attn_fn", NULL, "\x00\x00\x80\x7f", 4}, /* f32 */
    {"layers.1.engram.embed.scale", NULL, "\xff", 1},     /* scales that are copied */
};

START_TEST(weights_that_are_no_numbers)
{
    dsv4_err err;
    const char *text = no_number[_i].tensor;
    dsv4_convert_options o = {.type = no_number[_i].type};
    char matrix[128];
    snprintf(matrix, sizeof matrix, "%s", text);
    damage(no_number[_i].tensor, no_number[_i].bytes, no_number[_i].n);
    char *scale = strstr(matrix, ".experts.") ? strstr(matrix, ".scale") : NULL;
    if (scale)
        strcpy(scale, ".weight"); /* the matrix is named */
    refuse(in_tmp("bad"), in_tmp("out"), &o, DSV4_REFUSED, matrix);
    uint64_t zeroed = 0;
    o.allow_nan = true;
    o.zeroed = &zeroed;
    OK(dsv4_convert(in_tmp("bad"), in_tmp("out"), &o, &err));
    ck_assert_uint_eq(zeroed, 1);
    OK(dsv4_convert(in_tmp("out"), in_tmp("again"), NULL, &err)); /* none is left */
}
END_TEST

/* The converted config with one member of quantization_config replaced. */
static void edit(const char *key, const char *value)
{
    size_t len;
    char *text = slurp(in_tmp("out"), "config.json", &len);
    json_t *j = json_loadb(text, len, 0, NULL);
    ck_assert_ptr_nonnull(j);
    json_t *q = json_object_get(j, "quantization_config");
    json_t *v = json_loads(value, JSON_DECODE_ANY, NULL);
    ck_assert_ptr_nonnull(v);
    if (json_is_object(v) && json_is_object(json_object_get(q, key)))
        json_object_update_new(json_object_get(q, key), v);
    else
        json_object_set_new(q, key, v);
    free(text);
    text = json_dumps(j, 0);
    spill(in_tmp("out"), "config.json", text, strlen(text));
    free(text);
    json_decref(j);
}

static const struct {
    const char *key, *value, *says;
} configs[] = {
    {"layout", "2", "layout is 2; expected 1"},
    {"layout", "null", "layout is missing"},
    {"panel", "32", "panel is 32"},
    {"group", "\"a\"", "group is \"a\""},
    {"types", "7", "types is 7"},
    {"types", "{\"head\": \"q17\"}", "types.head is \"q17\""},
    {"types", "{\"head\": 4}", "types.head is 4"},
    {"types", "{\"head\": \"e2m1\"}", "head.weight"},
    {"types", "{\"embed\": \"bf16\"}", "embed.weight"},
    {"types", "{\"layers.0.attn.wq_b\": \"q8\"}", "layers.0.attn.wq_b"},
    {"tables", "{\"q4\": [1, 2, 3]}", "tables.q4 is a list of 3"},
    {"tables", "{\"q4\": [-128,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]}", "tables.q4"},
    {"tables", "null", "tables.q4 is missing"},
    {"rows", "{\"layers.2.attn.indexer.weights_proj\": -1}", "weights_proj is -1"},
    {"quant_method", "\"gptq\"", "\"fp8\" or \"dsv4\""},
};

START_TEST(configs_that_lie)
{
    dsv4_err err;
    dsv4_engine *e;
    OK(dsv4_convert(NANO, in_tmp("out"), &(dsv4_convert_options){.dense = "q4"}, &err));
    edit(configs[_i].key, configs[_i].value);
    int rc = dsv4_open(&e, in_tmp("out"), NULL, &err);
    ck_assert_int_eq(rc, DSV4_REFUSED);
    ck_assert_msg(strstr(err.text, configs[_i].says) != NULL, "%s", err.text);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("convert");
    TCase *t = tcase_create("convert");
    tcase_add_checked_fixture(t, make_tmp, remove_tmp);
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, native_keeps_logits, 0, sizeof lossless / sizeof *lossless);
    tcase_add_test(t, panels_are_copied_to_nodes);
    tcase_add_test(t, threads_do_not_matter);
    tcase_add_test(t, goes_on_where_it_stopped);
    tcase_add_loop_test(t, a_source_that_shrinks, 0, sizeof shrinking / sizeof *shrinking);
    tcase_add_loop_test(t, verifying_what_shrinks, 0, 3);
    tcase_add_loop_test(t, windows_show_the_rows, 0, 6);
    tcase_add_test(t, others_partial_work_is_refused);
    tcase_add_test(t, the_last_step_alone_is_made_up);
    tcase_add_test(t, the_last_rule_that_fits_counts);
    tcase_add_test(t, a_file_of_rules);
    tcase_add_test(t, wrong_options);
    tcase_add_loop_test(t, weights_that_are_no_numbers, 0, sizeof no_number / sizeof *no_number);
    tcase_add_loop_test(t, configs_that_lie, 0, sizeof configs / sizeof *configs);
    suite_add_tcase(s, t);
    return run_suite(s);
}
