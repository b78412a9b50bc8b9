/* The program dsv4-bench: what this machine makes of a model whose weights need not be there. Measures a
 * slice, says how near it came to the machine's own limits, and what the whole model would do. */
#include "bench.h"
#include "process.h"

#include <stdlib.h>
#include <sys/resource.h>

/* ------------------------------------------------------------------ options */

#define AT(field) offsetof(struct bench_values, field)
#define FORMATS   "official|mxfp4|q4|q3|q2|q8|e4m3|bf16" /* ORDER BENCH FORMATS */
static const char model_group[] = "Model";
static const char machine_group[] = "Machine";
static const char measure_group[] = "Measurement";
static const char output_group[] = "Output";

static const struct opt rows[] = {
    {model_group, 0, "as", OPT_TEXT, "MODEL", 0, 0, 1, AT(as), NULL, "v4-flash",
     "v4-flash, v4-pro, v4.1-flash, or the path of a config.json"},
    {model_group, 0, "layers", OPT_TEXT, "N|LIST", 0, 0, 1, AT(layers), NULL, "one of each kind",
     "layers of the slice: the first N, or 0,2-4"},
    {model_group, 0, "experts", OPT_U32, "N", 1, 65536, 1, AT(experts), NULL, "all",
     "experts a layer that the router chooses from"},
    {model_group, 0, "held", OPT_U32, "N", 1, 65536, 1, AT(held), NULL,
     "what half the memory holds",
     "of them, that have weights of their own; the others share theirs"},
    {model_group, 0, "vocab", OPT_U32, "N", 1, 1 << 24, 1, AT(vocab), NULL, "as memory allows",
     "tokens of the vocabulary"},
    {model_group, 0, "experts-format", OPT_CHOICE, FORMATS, 0, 0, 1, AT(expert_format), NULL,
     "official: mxfp4", "weights of the routed experts"},
    {model_group, 0, "dense-format", OPT_CHOICE, FORMATS, 0, 0, 1, AT(dense_format), NULL,
     "official: e4m3", "weights of attention and shared experts"},
    {model_group, 0, "exact", OPT_FLAG, NULL, 0, 0, 1, AT(exact), NULL, NULL,
     "activations in 32 bits instead of integers"},
    {model_group, 0, "cache-f32", OPT_FLAG, NULL, 0, 0, 1, AT(no_cache_quant), NULL, NULL,
     "caches in 32 bits instead of the trained formats"},

    {machine_group, 't', "threads", OPT_U32, "N", 1, 4096, 1, AT(threads), "DSV4_THREADS",
     "$DSV4_THREADS, else one for each core", "threads that compute"},
    {machine_group, 0, "cpus", OPT_TEXT, "LIST", 0, 0, 1, AT(cpus), NULL,
     "all that the process may use", "compute on these CPUs and no others: 0-7,16"},
    {machine_group, 0, "numa", OPT_TEXT, "MODE", 0, 0, 1, AT(numa), NULL, "auto",
     "auto, off, or nodes: 0-1 (as for dsv4)"},
    {machine_group, 0, "max-memory", OPT_BYTES, "BYTES", 0, 0, 1, AT(max_memory), NULL,
     "what the machine has free", "plan with so much memory; the slice takes half of it"},

    {measure_group, 0, "decode", OPT_U32, "N", 0, 100000, 1, AT(decode), NULL, "16",
     "generate N tokens at every depth; 0: none"},
    {measure_group, 0, "depth", OPT_TEXT, "LIST", 0, 0, 1, AT(depth), NULL, "0,4096",
     "tokens that are there already"},
    {measure_group, 0, "prefill", OPT_TEXT, "LIST", 0, 0, 1, AT(prefill), NULL, "512",
     "rows of a prompt that are computed together; an empty list: none"},
    {measure_group, 0, "reps", OPT_U32, "N", 1, 100, 1, AT(reps), NULL, "3",
     "repetitions, one of each measurement after the other"},
    {measure_group, 0, "check-prediction", OPT_FLAG, NULL, 0, 0, 1, AT(check), NULL, NULL,
     "measure a slice with twice the layers, too, and tell how wrong its prediction was"},

    {output_group, 0, "json", OPT_FLAG, NULL, 0, 0, 1, AT(json), NULL, NULL, "all results as JSON"},
    {output_group, 0, "csv", OPT_FLAG, NULL, 0, 0, 1, AT(csv), NULL, NULL,
     "a line for each measurement"},
    {output_group, 0, "compare", OPT_TEXT, "FILE", 0, 0, 1, AT(compare), NULL, NULL,
     "the results beside those of FILE, which --json wrote"},
    {output_group, 0, "svg", OPT_TEXT, "FILE", 0, 0, 1, AT(svg), NULL, NULL,
     "draw tokens a second over depth"},
    {output_group, 'q', "quiet", OPT_FLAG, NULL, 0, 0, 1, AT(quiet), NULL, NULL,
     "no progress on the terminal"},
    {output_group, 0, "version", OPT_FLAG, NULL, 0, 0, 1, AT(version), NULL, NULL, "the version"},
    {output_group, 'h', "help", OPT_FLAG, NULL, 0, 0, 1, AT(help), NULL, NULL, "this help"},
};

static const char *const examples[] = {
    "dsv4-bench",
    "what V4-Flash would do here, in a minute or two",
    "dsv4-bench --as v4-pro --depth 0,4096,65536 --svg pro.svg",
    "another model, over the depth of the context",
    "dsv4-bench --layers 8 --experts 48 --vocab 16384 --json >before.json",
    "a slice by hand, kept for ...",
    "dsv4-bench --layers 8 --experts 48 --vocab 16384 --compare before.json",
    "... a comparison",
    NULL};

static const struct opt_command commands[] = {
    {"dsv4-bench", "", "measure this machine with a model that need not be there",
     "Makes random weights with the dimensions of a model - a few of its layers, as many of its "
     "experts as fit -, measures decoding and prefill on them and, in the same minute, what the "
     "machine reads from memory and multiplies at most. Predicts the speed of the whole model from "
     "the time of each kind of layer.\n\n"
     "Decoding is a matter of reading weights: \"of read\" is the share of the bandwidth. Prefill "
     "is "
     "one of arithmetic: \"of int8\" is the share of the integer multiply-adds that the chosen "
     "instruction set does from registers.",
     examples, 0, 0}};

static const struct opt_note environment[] = {
    {"DSV4_THREADS", "threads where --threads is not given"},
    {"DSV4_SIMD", "caps the instruction set that kernels use (scalar, avx2, ...)"},
    {NULL, NULL}};
static const struct opt_note exits[] = {{"0", "measured"},
                                        {"1", "something failed"},
                                        {"2", "wrong arguments"},
                                        {"3", "the config is not acceptable"},
                                        {"4", "the slice does not fit into memory"},
                                        {"130", "interrupted by Ctrl-C"},
                                        {NULL, NULL}};

static const struct opt_set options = {
    .program = "dsv4-bench",
    .version = DSV4_VERSION,
    .brief = "what this machine makes of a DeepSeek-V4 model",
    .text = "",
    .command = commands,
    .n_commands = 1,
    .opt = rows,
    .n_opts = sizeof rows / sizeof *rows,
    .environment = environment,
    .exits = exits,
};

static const struct bench_values defaults = {
    .as = "v4-flash", .depth = "0,4096", .prefill = "512", .decode = 16, .reps = 3};

/* ------------------------------------------------------------------ results */

struct bench_all {
    struct bench_values v;
    char *config;
    size_t len;
    dsv4_options opt;
    struct bench_model whole, part;
    struct bench_slice slice;
    struct bench_run run;
    json_t *result;
};

/* Takes the reference of `value`. */
static int put(json_t *to, const char *key, json_t *value, dsv4_err *err)
{
    return value && json_object_set_new(to, key, value) == 0 ? 0 : json_made(NULL, err);
}

static json_t *spread(const double *x, size_t n, double scale)
{
    double low = x[0], high = x[0];
    for (size_t i = 1; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    return json_pack("{s:f, s:f, s:f}", "min", low * scale, "median", bench_median(x, n) * scale,
                     "max", high * scale);
}

static json_t *layer_list(const struct bench_model *m)
{
    json_t *list = json_array();
    for (uint32_t i = 0; list && i < m->n_layers; i++)
        if (json_array_append_new(list, json_integer(m->layer[i].id)) != 0) {
            json_decref(list);
            return NULL;
        }
    return list;
}

static int put_slice(struct bench_all *a, dsv4_err *err)
{
    const struct bench_model *m = &a->part;
    json_t *j =
        json_pack("{s:o, s:I, s:I, s:I, s:s, s:s, s:b, s:I}", "layers", layer_list(m), "experts",
                  (json_int_t)m->experts, "held", (json_int_t)m->held, "vocabulary",
                  (json_int_t)m->vocab, "experts_format", bench_formats[a->v.expert_format].name,
                  "dense_format", bench_formats[a->v.dense_format].name, "exact", (int)a->v.exact,
                  "memory_bytes", (json_int_t)m->needed);
    return put(a->result, "slice", j, err);
}

static int put_roofs(struct bench_all *a, dsv4_err *err)
{
    const struct bench_run *r = &a->run;
    double read[100], copy[100], int8[100], f32[100], barrier[100];
    for (size_t i = 0; i < r->reps; i++) {
        read[i] = r->roof[i].read;
        copy[i] = r->roof[i].copy;
        int8[i] = r->roof[i].int8;
        f32[i] = r->roof[i].f32;
        barrier[i] = r->roof[i].barrier;
    }
    json_t *none = int8[0] > 0 ? spread(int8, r->reps, 1) : json_null();
    json_t *floats = f32[0] > 0 ? spread(f32, r->reps, 1) : json_null();
    json_t *meeting = barrier[0] > 0 ? spread(barrier, r->reps, 1) : json_null();
    return put(a->result, "roofs",
               json_pack("{s:o, s:o, s:o, s:o, s:o}", "read_bytes_per_second",
                         spread(read, r->reps, 1), "copy_bytes_per_second",
                         spread(copy, r->reps, 1), "int8_multiply_adds_per_second", none,
                         "f32_multiply_adds_per_second", floats, "barrier_seconds", meeting),
               err);
}

/* Seconds of a step by operator, all layers together. */
static json_t *operators(const struct bench_run *r, const struct bench_case *c)
{
    const double *spent = c->spent[bench_middle(c, r->reps)];
    json_t *j = json_object();
    for (size_t op = 0; j && op < r->n_ops; op++) {
        double sum = 0;
        for (uint32_t i = 0; i <= r->n_layers; i++)
            sum += spent[i * r->n_ops + op];
        if (json_object_set_new(j, r->op[op], json_real(sum)) != 0) {
            json_decref(j);
            return NULL;
        }
    }
    return j;
}

/* Speed against the roof measured in the same repetition. */
static int put_shares(json_t *j, const struct bench_all *a, const struct bench_case *c,
                      dsv4_err *err)
{
    const struct bench_run *r = &a->run;
    double bytes = (double)bench_bytes(&a->part, c->depth);
    double adds = bench_multiply_adds(&a->part, c->rows, c->depth), speed[100], share[100];
    bool known = c->prefill ? r->roof[0].int8 > 0 : true;
    for (size_t i = 0; i < r->reps; i++) {
        double roof = c->prefill ? r->roof[i].int8 : r->roof[i].read;
        speed[i] = (c->prefill ? adds : bytes) / c->seconds[i];
        share[i] = known ? speed[i] / roof : 0;
    }
    TRY(put(j, c->prefill ? "multiply_adds" : "bytes", json_real(c->prefill ? adds : bytes), err));
    TRY(put(j, c->prefill ? "multiply_adds_per_second" : "bytes_per_second",
            spread(speed, r->reps, 1), err));
    return put(j, c->prefill ? "share_of_int8" : "share_of_read",
               known ? spread(share, r->reps, 1) : json_null(), err);
}

static int put_case(json_t *list, const struct bench_all *a, const struct bench_case *c,
                    dsv4_err *err)
{
    const struct bench_run *r = &a->run;
    double rate[100];
    bool guessed;
    for (size_t i = 0; i < r->reps; i++)
        rate[i] = c->rows / c->seconds[i];
    double whole = bench_predict(r, c, &a->part, &a->whole, &guessed);
    json_t *j = json_pack(
        "{s:s, s:i, s:i, s:o, s:o, s:o, s:f, s:f, s:b}", "kind", c->prefill ? "prefill" : "decode",
        "rows", (int)c->rows, "depth", (int)c->depth, "seconds_per_step",
        spread(c->seconds, r->reps, 1), "tokens_per_second", spread(rate, r->reps, 1), "operators",
        operators(r, c), "barriers_per_layer", c->barriers / r->n_layers, "whole_tokens_per_second",
        c->rows / whole, "whole_has_unmeasured_kinds", (int)guessed);
    TRY(json_made(j, err));
    int rc = put_shares(j, a, c, err);
    if (rc != 0) {
        json_decref(j);
        return rc;
    }
    return json_array_append_new(list, j) == 0 ? 0 : json_made(NULL, err);
}

static int put_cases(struct bench_all *a, dsv4_err *err)
{
    json_t *list = json_array();
    TRY(put(a->result, "measured", list, err));
    for (size_t i = 0; i < a->run.n_cases; i++)
        TRY(put_case(list, a, &a->run.cases[i], err));
    return 0;
}

/* The whole model's memory, caches for one sequence of the deepest measurement and of the full context. */
static int put_whole(struct bench_all *a, dsv4_err *err)
{
    struct bench_model full;
    dsv4_options o = a->opt;
    const struct bench_model *w = &a->whole;
    dsv4_slice s = {.expert_format = a->slice.s.expert_format,
                    .dense_format = a->slice.s.dense_format};
    o.ctx = (uint32_t)w->context;
    TRY(bench_model_read(&full, a->config, a->len, &s, &o, err));
    json_t *j = json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "family", w->family,
        "layers", (json_int_t)w->n_layers, "weights_bytes", (json_int_t)w->weights,
        "engram_table_bytes", (json_int_t)w->tables, "context", (json_int_t)a->opt.ctx,
        "cache_bytes", (json_int_t)w->caches, "full_context", (json_int_t)w->context,
        "full_cache_bytes", (json_int_t)full.caches, "buffer_bytes",
        (json_int_t)(w->scratch + w->other), "available_bytes", (json_int_t)w->available,
        "bytes_per_token", (json_int_t)bench_bytes(w, 0), "fits", (int)(w->needed <= w->available));
    bench_model_release(&full);
    return put(a->result, "whole_model", j, err);
}

/* Which kernels, as dsv4_about says. */
static int put_head(struct bench_all *a, dsv4_err *err)
{
    char *text;
    json_error_t je;
    TRY(dsv4_about(&text, err));
    json_t *about = json_loads(text, 0, &je);
    dsv4_free(text);
    TRY(json_made(about, err));
    const char *kernels = json_string_value(json_object_get(about, "kernels"));
    a->result = json_pack("{s:s, s:s, s:s, s:I, s:I}", "version", DSV4_VERSION, "model", a->v.as,
                          "kernels", kernels ? kernels : "?", "threads", (json_int_t)a->run.threads,
                          "repetitions", (json_int_t)a->run.reps);
    json_decref(about);
    return json_made(a->result, err);
}

/* ------------------------------------------------------------------ checking the prediction */

/* How the machine differed between two runs, by the roof that bounds the case. */
static double machine_change(const struct bench_run *now, const struct bench_run *before,
                             bool prefill)
{
    double a[100], b[100];
    for (size_t i = 0; i < now->reps; i++) {
        a[i] = prefill ? now->roof[i].f32 : now->roof[i].read;
        b[i] = prefill ? before->roof[i].f32 : before->roof[i].read;
    }
    double was = bench_median(b, now->reps);
    return was > 0 ? bench_median(a, now->reps) / was - 1 : 0;
}

static int put_check(json_t *list, const struct bench_all *a, const struct bench_run *r, size_t i,
                     const struct bench_model *target, dsv4_err *err)
{
    const struct bench_case *c = &r->cases[i];
    bool guessed;
    double rows_per_step = c->rows;
    double said =
        rows_per_step / bench_predict(&a->run, &a->run.cases[i], &a->part, target, &guessed);
    double was = rows_per_step / bench_median(c->seconds, r->reps);
    json_t *j =
        json_pack("{s:s, s:i, s:i, s:f, s:f, s:f, s:f}", "kind", c->prefill ? "prefill" : "decode",
                  "rows", (int)c->rows, "depth", (int)c->depth, "predicted_tokens_per_second", said,
                  "measured_tokens_per_second", was, "error", said / was - 1, "machine_change",
                  machine_change(r, &a->run, c->prefill));
    return json_array_append_new(list, j) == 0 ? 0 : json_made(NULL, err);
}

static int check_prediction(struct bench_all *a, struct program *p, dsv4_err *err)
{
    struct bench_slice other;
    struct bench_model m = {0};
    struct bench_run r = {0};
    int rc = bench_slice_double(&other, &a->slice, a->config, a->len, &a->opt, &a->whole, err);
    if (rc == 0)
        rc = bench_model_read(&m, a->config, a->len, &other.s, &a->opt, err);
    if (rc == 0 && m.n_layers == a->part.n_layers)
        rc = err_set(err, DSV4_USAGE, "--check-prediction: the slice is the whole model already");
    if (rc == 0)
        rc = bench_cases(&r, &a->v, err);
    if (rc == 0)
        rc = bench_measure(&r, p, a->config, a->len, &other.s, &a->opt, err);
    json_t *list = json_array(), *j = NULL;
    if (rc == 0)
        rc = json_made(list, err);
    for (size_t i = 0; i < r.n_cases && rc == 0; i++)
        rc = put_check(list, a, &r, i, &m, err);
    if (rc == 0) {
        j = json_pack("{s:o, s:I, s:O}", "layers", layer_list(&m), "held", (json_int_t)m.held,
                      "measured", list);
        rc = put(a->result, "check", j, err);
    }
    json_decref(list);
    bench_run_release(&r);
    bench_model_release(&m);
    bench_slice_release(&other);
    return rc;
}

/* ------------------------------------------------------------------ a run */

static void set_options(struct bench_all *a)
{
    const struct bench_values *v = &a->v;
    uint32_t batch = 1, deepest = 0;
    for (size_t i = 0; i < a->run.n_cases; i++) {
        const struct bench_case *c = &a->run.cases[i];
        uint32_t end = c->depth + (c->prefill ? c->rows : v->decode) + 8;
        batch = c->rows > batch ? c->rows : batch;
        deepest = end > deepest ? end : deepest;
    }
    a->opt = (dsv4_options){.ctx = deepest > 512 ? deepest : 512,
                            .batch = batch,
                            .threads = v->threads,
                            .cpus = v->cpus,
                            .numa = v->numa,
                            .max_memory = v->max_memory,
                            .no_cache_quant = v->no_cache_quant,
                            .exact = v->exact};
}

/* The whole model's plan first: how many layers of which kind there are, and what memory there is. */
static int look(struct bench_all *a, dsv4_err *err)
{
    dsv4_slice s = {.expert_format = bench_formats[a->v.expert_format].format,
                    .dense_format = bench_formats[a->v.dense_format].format};
    TRY(release_config(a->v.as, &a->config, &a->len, err));
    TRY(bench_cases(&a->run, &a->v, err));
    set_options(a);
    TRY(bench_model_read(&a->whole, a->config, a->len, &s, &a->opt, err));
    TRY(bench_slice_choose(&a->slice, &a->v, a->config, a->len, &a->opt, &a->whole, err));
    return bench_model_read(&a->part, a->config, a->len, &a->slice.s, &a->opt, err);
}

static int show(struct bench_all *a, struct program *p, dsv4_err *err)
{
    if (a->v.svg)
        TRY(bench_svg(a->v.svg, a->result, err));
    if (a->v.json)
        return json_print(p, json_incref(a->result), err);
    if (a->v.csv)
        return bench_csv(p, a->result, err);
    TRY(bench_text(p, a->result, err));
    return a->v.compare ? bench_compare(p, a->result, a->v.compare, err) : 0;
}

static int measure(struct bench_all *a, struct program *p, dsv4_err *err)
{
    TRY(look(a, err));
    TRY(bench_measure(&a->run, p, a->config, a->len, &a->slice.s, &a->opt, err));
    TRY(put_head(a, err));
    TRY(put_slice(a, err));
    TRY(put_roofs(a, err));
    TRY(put_cases(a, err));
    TRY(put_whole(a, err));
    if (a->v.check)
        TRY(check_prediction(a, p, err));
    return show(a, p, err);
}

static int run(struct bench_all *a, struct program *p, int argc, char **argv, dsv4_err *err)
{
    const struct process_options o = {&options, &a->v, &a->v.help, &a->v.version};
    struct process_parsed parsed;
    TRY(process_parse(&o, &p->term, argc, argv, &parsed, err));
    if (parsed.done)
        return 0;
    p->term.quiet = a->v.quiet;
    if (a->v.json && a->v.csv)
        return err_set(err, DSV4_USAGE, "--json and --csv exclude each other");
    if (a->v.compare && (a->v.json || a->v.csv))
        return err_set(err, DSV4_USAGE, "--compare goes without --json and --csv");
    return measure(a, p, err);
}

int main(int argc, char **argv)
{
    static struct program p; /* its streams hold buffers */
    static struct bench_all a;
    dsv4_err err = {0};
    process_begin(&p.term, options.program);
    interrupt_catch();
    a.v = defaults;
    /* A competing job makes threads that wait for each other look ten times slower; where the system does not
     * allow this, it stays as it is. */
    (void)setpriority(PRIO_PROCESS, 0, -10);
    int rc = run(&a, &p, argc, argv, &err);
    int code = process_end(&p.term, rc, &err);
    opt_release(&options, &a.v);
    json_decref(a.result);
    bench_run_release(&a.run);
    bench_slice_release(&a.slice);
    bench_model_release(&a.whole);
    bench_model_release(&a.part);
    free(a.config);
    return code;
}
