/* Fewer experts: the same bytes where all stay, the same logits where only experts go that the text never chose, the
 * tables of layers that route by token id, and what is refused. */
#include "convert_case.h"
#include "src/convert/convert.h"

#include <math.h>
#include <stdarg.h>
#include <unistd.h>

#define TINY GOLDEN "v4-tiny"

/* ------------------------------------------------------------------ calibration */

/* The tokens that logits_of() computes, into TMP/importance. */
static const char *calibrated(const char *model, bool covariance)
{
    dsv4_err err;
    dsv4_engine *e;
    dsv4_options o = {.ctx = 64, .threads = 2, .exact = true};
    dsv4_calibrate_options how = {.covariance = covariance};
    int32_t id[N_IDS];
    char *json;
    static char path[256]; /* lives longer than in_tmp's */
    snprintf(path, sizeof path, "%s", in_tmp("importance"));
    OK(dsv4_open(&e, model, &o, &err));
    for (int i = 0; i < N_IDS; i++)
        id[i] = case_token(i, dsv4_engine_vocab(e));
    OK(dsv4_calibrate(e, id, N_IDS, path, &how, &json, &err));
    dsv4_free(json);
    dsv4_close(e);
    return path;
}

/* The most experts of a layer that the calibration's text chose. */
static uint32_t most_chosen(void)
{
    dsv4_err err;
    struct store *s;
    uint32_t most = 0;
    OK(store_open_file(&s, in_tmp("importance"), &err));
    for (size_t i = 0; i < store_count(s); i++) {
        const struct tensor *t = store_at(s, i);
        uint32_t n = 0;
        if (!strstr(t->name, ".ffn.experts.rows"))
            continue;
        for (uint64_t e = 0; e < t->dim[0]; e++) {
            int64_t rows;
            memcpy(&rows, t->data + 8 * e, sizeof rows);
            n += rows > 0;
        }
        most = n > most ? n : most;
    }
    store_close(s);
    return most;
}

static void same_logits(const char *a, const char *b, const char *what)
{
    for (int exact = 0; exact < 2; exact++) {
        size_t n[2];
        float *x = logits_of(a, exact, false, &n[0]), *y = logits_of(b, exact, false, &n[1]);
        ck_assert_uint_eq(n[0], n[1]);
        ck_assert_msg(memcmp(x, y, N_IDS * n[0] * sizeof *x) == 0, "%s: %s%s differs", b, what,
                      exact ? ", exact" : "");
        free(x);
        free(y);
    }
}

/* dsv4_convert_verify finds nothing. */
static void verified(const char *src, const char *dst)
{
    dsv4_err err;
    char *json;
    OK(dsv4_convert_verify(src, dst, NULL, &json, &err));
    dsv4_free(json);
}

/* ------------------------------------------------------------------ logits */

static const char *const models[] = {NANO, TINY, GOLDEN "v4-pro", GOLDEN "v4-oldnames",
                                     GOLDEN "v41-tiny"};

START_TEST(all_experts_are_the_model)
{
    dsv4_err err;
    dsv4_convert_options o = {.prune_experts = "100%", .importance = calibrated(models[_i], false)};
    OK(dsv4_convert(models[_i], in_tmp("out"), &o, &err));
    same_logits(models[_i], in_tmp("out"), "with all experts");
    verified(models[_i], in_tmp("out"));
}
END_TEST

START_TEST(what_was_never_chosen_is_not_missed)
{
    dsv4_err err;
    char count[16];
    dsv4_convert_options o = {.prune_experts = count, .importance = calibrated(models[_i], false)};
    uint32_t n = most_chosen();
    snprintf(count, sizeof count, "%u", n);
    OK(dsv4_convert(models[_i], in_tmp("out"), &o, &err));
    same_logits(models[_i], in_tmp("out"), "with the experts of the text");
    verified(models[_i], in_tmp("out"));
    /* panels as a source */
    OK(dsv4_convert(models[_i], in_tmp("packed"), NULL, &err));
    OK(dsv4_convert(in_tmp("packed"), in_tmp("again"), &o, &err));
    same_logits(models[_i], in_tmp("again"), "of panels");
    verified(in_tmp("packed"), in_tmp("again"));
}
END_TEST

/* ------------------------------------------------------------------ what stays */

static const struct tensor *tensor_of(const struct source *s, const char *format, ...)
{
    char name[MATRIX_NAME];
    va_list ap;
    va_start(ap, format);
    vsnprintf(name, sizeof name, format, ap);
    va_end(ap);
    const struct tensor *t = store_find(s->store, name);
    ck_assert_msg(t != NULL, "%s has no %s", s->dir, name);
    return t;
}

START_TEST(the_largest_norms_stay)
{
    dsv4_err err;
    struct source s;
    struct store *c;
    struct pruning *p;
    OK(source_open(&s, TINY, &err));
    OK(store_open_file(&c, calibrated(TINY, false), &err));
    OK(pruning_choose(&p, &s, c, "37.5%", &err)); /* 3 of 8 */
    ck_assert_uint_eq(p->kept, 3);
    for (uint32_t l = 0; l < p->n_layers; l++) {
        char name[64];
        const float *norm;
        double least = INFINITY, sum = 0, all = 0;
        snprintf(name, sizeof name, "layers.%u.ffn.experts.norm", l);
        OK(importance_vector(&norm, c, name, p->before, &err));
        const uint32_t *kept = pruning_kept(p, l);
        for (uint32_t i = 0; i < p->kept; i++) {
            least = fmin(least, (double)norm[kept[i]]);
            sum += (double)norm[kept[i]];
            ck_assert(i == 0 || kept[i] > kept[i - 1]);
        }
        for (uint32_t e = 0, i = 0; e < p->before; e++) {
            all += (double)norm[e];
            if (i < p->kept && kept[i] == e)
                i++;
            else
                ck_assert(least >= (double)norm[e]);
        }
        ck_assert_double_eq_tol(p->share[l], sum / all, 1e-12);
    }
    pruning_close(p);
    store_close(c);
    source_close(&s);
}
END_TEST

static double likeness(const struct source *s, const struct wmat *gate, uint32_t a, uint32_t b)
{
    float x[512], y[512];
    double xy = 0, yy = 0;
    ck_assert_uint_le(gate->cols, 512);
    source_row(s, gate, a, x);
    source_row(s, gate, b, y);
    for (uint32_t c = 0; c < gate->cols; c++) {
        xy += (double)x[c] * (double)y[c];
        yy += (double)y[c] * (double)y[c];
    }
    return xy / sqrt(yy);
}

/* Tokens keep the experts that stay, in their places; in the others stand different ones, and none is left out that
 * is more like the expert that went. */
START_TEST(tokens_go_to_the_likest_experts)
{
    dsv4_err err;
    struct source s, d;
    struct pruning *p;
    dsv4_convert_options o = {.prune_experts = "4", .importance = calibrated(TINY, false)};
    OK(dsv4_convert(TINY, in_tmp("out"), &o, &err));
    OK(source_open(&s, TINY, &err));
    OK(source_open(&d, in_tmp("out"), &err));
    OK(pruning_read(&p, &d, &s, &err));
    ck_assert_ptr_nonnull(p);
    const uint32_t k = s.cfg->top_k;
    size_t moved = 0;
    for (uint32_t l = 0; l < s.cfg->n_hash_layers; l++) {
        const struct tensor *was = tensor_of(&s, "layers.%u.ffn.gate.tid2eid", l);
        const struct tensor *is = tensor_of(&d, "layers.%u.ffn.gate.tid2eid", l);
        const uint32_t *kept = pruning_kept(p, l);
        struct wmat gate;
        char name[64];
        snprintf(name, sizeof name, "layers.%u.ffn.gate.weight", l);
        OK(matrix_find(&gate, s.store, s.cfg, name, 0, 0, &err));
        ck_assert_uint_eq(is->bytes, was->bytes);
        size_t size = dtype_size(is->dtype);
        for (uint32_t token = 0; token < s.cfg->vocab; token++) {
            uint32_t old[8], new[8], has = 0; /* bits of the new numbers */
            for (uint32_t j = 0; j < k; j++) {
                memcpy(&old[j], was->data + (token * k + j) * size, sizeof *old);
                memcpy(&new[j], is->data + (token * k + j) * size, sizeof *new);
                ck_assert_uint_lt(new[j], 4);
                ck_assert(!(has >> new[j] & 1));
                has |= 1u << new[j];
            }
            for (uint32_t j = 0; j < k; j++) {
                bool stays = false;
                for (uint32_t i = 0; i < 4; i++)
                    stays |= kept[i] == old[j];
                if (stays) {
                    ck_assert_uint_eq(kept[new[j]], old[j]);
                    continue;
                }
                moved++;
                double like = likeness(&s, &gate, old[j], kept[new[j]]);
                for (uint32_t i = 0; i < 4; i++)
                    ck_assert(has >> i & 1 || likeness(&s, &gate, old[j], kept[i]) <= like);
            }
        }
    }
    ck_assert_uint_gt(moved, 100);
    pruning_close(p);
    source_close(&d);
    source_close(&s);
}
END_TEST

/* The drafting layer of V4 has as many experts as the others, and its config may not say otherwise. */
START_TEST(drafts_that_no_text_measured_go)
{
    dsv4_err err;
    struct source d;
    dsv4_convert_options o = {.prune_experts = "4", .importance = calibrated(TINY, false)};
    OK(dsv4_convert(TINY, in_tmp("out"), &o, &err));
    OK(source_open(&d, in_tmp("out"), &err));
    ck_assert_uint_eq(d.cfg->n_experts, 4);
    ck_assert_uint_eq(d.cfg->n_mtp, 0);
    for (size_t i = 0; i < store_count(d.store); i++)
        ck_assert_int_ne(tensor_class_of(store_at(d.store, i)->name), CLASS_DRAFT);
    source_close(&d);
    o.importance = calibrated(GOLDEN "v41-tiny", false); /* DSpark: six of their own */
    OK(dsv4_convert(GOLDEN "v41-tiny", in_tmp("dspark"), &o, &err));
    OK(source_open(&d, in_tmp("dspark"), &err));
    ck_assert_uint_eq(d.cfg->n_experts, 4);
    ck_assert_uint_eq(d.cfg->n_mtp, 3);
    ck_assert_uint_eq(tensor_of(&d, "mtp.0.ffn.gate.weight")->dim[0], 6);
    source_close(&d);
}
END_TEST

/* ------------------------------------------------------------------ with all else */

static const struct {
    const char *preset, *type, *router;
} mixes[] = {{"balanced", NULL, NULL},
             {"small", NULL, NULL},
             {NULL, "q8", NULL},
             {NULL, "q4", "layers.*.ffn.gate=q8"},
             {NULL, "mxfp4", "layers.[0-3].ffn.gate=bf16"}};

START_TEST(works_with_every_type)
{
    dsv4_err err;
    const char *rule[] = {mixes[_i].router};
    dsv4_convert_options o = {.preset = mixes[_i].preset,
                              .type = mixes[_i].type,
                              .rules = rule,
                              .n_rules = rule[0] ? 1 : 0,
                              .effort = DSV4_EFFORT_HIGH,
                              .importance = calibrated(NANO, true),
                              .prune_experts = "10",
                              .threads = 1};
    OK(dsv4_convert(NANO, in_tmp("one"), &o, &err));
    verified(NANO, in_tmp("one"));
    /* in parts, by two threads */
    int left = 0, tries = 0, rc;
    o.threads = 2;
    o.mark_bytes = 1 << 16;
    o.progress = stop_after;
    o.progress_arg = &left;
    do {
        left = 30;
        rc = dsv4_convert(NANO, in_tmp("parts"), &o, &err);
        ck_assert(rc == 0 || rc == DSV4_INTERRUPTED);
        ck_assert_int_lt(++tries, 500);
    } while (rc != 0);
    same_files(in_tmp("one"), in_tmp("parts"));
    /* what is packed in other types, a router too, is a source like any other */
    dsv4_convert_options more = {.prune_experts = "5",
                                 .importance = calibrated(in_tmp("one"), false)};
    OK(dsv4_convert(in_tmp("one"), in_tmp("five"), &more, &err));
    verified(in_tmp("one"), in_tmp("five"));
    size_t vocab;
    free(logits_of(in_tmp("five"), false, false, &vocab));
}
END_TEST

/* ------------------------------------------------------------------ refused */

START_TEST(wrong_wishes)
{
    dsv4_err err;
    static const char *const counts[] = {"",   "0",   "17",  "101%", "0%",   "-1", "8x",
                                         "8 ", "8.5", "nan", "inf",  "1e99", "%"};
    dsv4_convert_options o = {.importance = calibrated(NANO, false)};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        o.prune_experts = counts[i];
        refuse(NANO, in_tmp("out"), &o, DSV4_USAGE, "1 to 16");
    }
    o.prune_experts = "1";
    refuse(NANO, in_tmp("out"), &o, DSV4_USAGE, "every token goes to 2");
    o.prune_experts = "6.25%";
    refuse(NANO, in_tmp("out"), &o, DSV4_USAGE, "is 1 of 16 experts");
    o.prune_experts = "4";
    refuse(TINY, in_tmp("out"), &o, DSV4_REFUSED, "16 experts in a layer; " TINY " has 8");
    OK(dsv4_convert(NANO, in_tmp("four"), &o, &err));
    o.prune_experts = NULL;
    o.type = "q8"; /* experts have other numbers now */
    refuse(in_tmp("four"), in_tmp("out"), &o, DSV4_REFUSED, "16 experts in a layer");
    o.importance = NANO "/model.safetensors";
    o.prune_experts = "4";
    refuse(NANO, in_tmp("out"), &o, DSV4_REFUSED, "has no layers.0.ffn.experts.norm");
    o.importance = NULL;
    refuse(NANO, in_tmp("out"), &o, DSV4_USAGE, "needs an importance file");
    ck_assert_int_ne(access(in_tmp("out.partial"), F_OK), 0);
}
END_TEST

/* Edits TMP/four/config.json, whose record of what stays is no longer what it was. */
static const struct {
    const char *from, *to;
} lies[] = {{"\"experts\": 16", "\"experts\": 12"},
            {"\"kept\": [", "\"kept\": [[0, 1, 2, 3], "},
            {"\"kept\": [", "\"kept\": 3, \"was\": ["},
            {"\"n_routed_experts\": 4", "\"n_routed_experts\": 5"}};

START_TEST(records_that_lie)
{
    dsv4_err err;
    size_t len;
    char *json;
    dsv4_convert_options o = {.prune_experts = "4", .importance = calibrated(NANO, false)};
    OK(dsv4_convert(NANO, in_tmp("four"), &o, &err));
    char *text = slurp(in_tmp("four"), "config.json", &len), *at = strstr(text, lies[_i].from);
    char *edited = malloc(len + 64);
    ck_assert_ptr_nonnull(at);
    int n = sprintf(edited, "%.*s%s%s", (int)(at - text), text, lies[_i].to,
                    at + strlen(lies[_i].from));
    spill(in_tmp("four"), "config.json", edited, (size_t)n);
    ck_assert_int_eq(dsv4_convert_verify(NANO, in_tmp("four"), NULL, &json, &err), DSV4_REFUSED);
    dsv4_free(json);
    free(edited);
    free(text);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("prune");
    TCase *t = tcase_create("prune");
    tcase_add_checked_fixture(t, make_tmp, remove_tmp);
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, all_experts_are_the_model, 0, sizeof models / sizeof *models);
    tcase_add_loop_test(t, what_was_never_chosen_is_not_missed, 0, sizeof models / sizeof *models);
    tcase_add_test(t, the_largest_norms_stay);
    tcase_add_test(t, tokens_go_to_the_likest_experts);
    tcase_add_test(t, drafts_that_no_text_measured_go);
    tcase_add_loop_test(t, works_with_every_type, 0, sizeof mixes / sizeof *mixes);
    tcase_add_test(t, wrong_wishes);
    tcase_add_loop_test(t, records_that_lie, 0, sizeof lies / sizeof *lies);
    suite_add_tcase(s, t);
    return run_suite(s);
}
