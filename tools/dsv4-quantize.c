/* The program dsv4-quantize: a checkpoint becomes a directory that maps and starts at once, in the types that
 * were asked for. What is done stands in src/convert; here are options, progress and the tables for people. */
#include "process.h"
#include "quantize.h"

#include <stdio.h>
#include <stdlib.h>

/* ------------------------------------------------------------------ options */

enum { EFFORT_FAST, EFFORT_NORMAL, EFFORT_HIGH };
enum { TO_DIRECTORY, TO_GGUF };

struct values {
    bool help, version, json, quiet, dry_run, verify, allow_nan, restart, covariance;
    const char *preset, *type, *experts, *dense, *head, *rules_file, *importance, *prune, *as,
        *sensitivities, *engram;
    struct opt_list rules, texts, sensitivity;
    int effort, to;
    uint32_t threads, context;
    uint64_t shard_size, max_ram, fit;
    bool dynamic;
    float bits;
};

#define AT(field) offsetof(struct values, field)
#define TYPE      "TYPE"
static const char types_group[] = "Types";
static const char calibrate_group[] = "Calibration";
static const char work_group[] = "Work";
static const char output_group[] = "Output";

static const struct opt rows[] = {
    {types_group, 'p', "preset", OPT_TEXT, "NAME", 0, 0, 1, AT(preset), NULL, "lossless",
     "lossless, quality, balanced, small or tiny"},
    {types_group, 0, "type", OPT_TEXT, TYPE, 0, 0, 1, AT(type), NULL, NULL,
     "of all large matrices (q3, q2: of routed experts), where that makes them smaller"},
    {types_group, 0, "experts", OPT_TEXT, TYPE, 0, 0, 1, AT(experts), NULL, NULL,
     "of routed experts"},
    {types_group, 0, "dense", OPT_TEXT, TYPE, 0, 0, 1, AT(dense), NULL, NULL,
     "of attention and shared experts"},
    {types_group, 0, "head", OPT_TEXT, TYPE, 0, 0, 1, AT(head), NULL, NULL, "of the output head"},
    {types_group, 0, "engram", OPT_TEXT, TYPE, 0, 0, 1, AT(engram), NULL, NULL,
     "of Engram tables (V4.1): native, fp8 as released, or fp4, half of that on the disk"},
    {types_group, 0, "tensor", OPT_LIST, "PATTERN=TYPE", 0, 0, 1, AT(rules), NULL, NULL,
     "of the matrices whose names fit, as in 'layers.[0-2].*=q8'; may be repeated, the last that "
     "fits "
     "counts"},
    {types_group, 0, "rules", OPT_TEXT, "FILE", 0, 0, 1, AT(rules_file), NULL, NULL,
     "such patterns, one a line"},
    {types_group, 0, "fit", OPT_BYTES, "BYTES", 0, 0, 1, AT(fit), NULL, NULL,
     "choose types so that the model fits into this memory (24G, ...) with a context of --context "
     "tokens and loses as little as possible; says what it chose"},
    {types_group, 0, "bits", OPT_FLOAT, "N", 1, 16, 1, AT(bits), NULL, NULL,
     "choose types so that large matrices have N bits a weight on the average"},
    {types_group, 0, "dynamic", OPT_FLAG, NULL, 0, 0, 1, AT(dynamic), NULL, NULL,
     "with --fit or --bits: a type for each matrix, experts too, instead of one for a class of "
     "matrices in a layer"},
    {types_group, 0, "sensitivities", OPT_TEXT, "FILE", 0, 0, 1, AT(sensitivities), NULL,
     "figures of the embedded model",
     "with --fit or --bits: what --sensitivity measured on this model"},
    {types_group, 0, "effort", OPT_CHOICE, "fast|normal|high", 0, 0, 1, AT(effort), NULL, "normal",
     "scales from the largest value of a group, or those with the least error; high: rounding "
     "errors are carried "
     "into later columns, which needs --importance with covariances"},
    {types_group, 0, "importance", OPT_TEXT, "FILE", 0, 0, 1, AT(importance), NULL, NULL,
     "what --calibrate wrote: errors are weighed by what columns are multiplied with"},
    {types_group, 0, "prune-experts", OPT_TEXT, "N|N%", 0, 0, 1, AT(prune), NULL, NULL,
     "how many experts of every layer stay: those that gave most to the text of --importance"},
    {types_group, 0, "allow-nan", OPT_FLAG, NULL, 0, 0, 1, AT(allow_nan), NULL, NULL,
     "NaN and infinite weights become zeros instead of being refused"},

    {calibrate_group, 0, "calibrate", OPT_LIST, "TEXT", 0, 0, 1, AT(texts), NULL, NULL,
     "run this text through SOURCE and write what its matrices are multiplied with to the file "
     "DESTINATION; may be "
     "repeated"},
    {calibrate_group, 0, "sensitivity", OPT_LIST, "TEXT", 0, 0, 1, AT(sensitivity), NULL, NULL,
     "measure on this text which matrices of SOURCE suffer most from errors, and write that to the "
     "file DESTINATION, for --sensitivities; reads the text some hundred times: 1000 words are "
     "enough; interrupted, it begins anew"},
    {calibrate_group, 0, "covariance", OPT_FLAG, NULL, 0, 0, 1, AT(covariance), NULL, NULL,
     "with the covariances that --effort high needs: a large file"},

    {work_group, 't', "threads", OPT_U32, "N", 1, 1024, 1, AT(threads), "DSV4_THREADS",
     "$DSV4_THREADS, else one for each core", "threads that compute"},
    {work_group, 0, "max-ram", OPT_BYTES, "BYTES", 0, 0, 1, AT(max_ram), NULL,
     "a quarter of what is free", "memory for buffers"},
    {work_group, 0, "shard-size", OPT_BYTES, "BYTES", 0, 0, 1, AT(shard_size), NULL, "4G",
     "of one file; a larger tensor has a file of its own"},
    {work_group, 0, "restart", OPT_FLAG, NULL, 0, 0, 1, AT(restart), NULL, NULL,
     "begin anew instead of going on where an interrupted conversion stopped"},

    {output_group, 0, "to", OPT_CHOICE, "directory|gguf", 0, 0, 1, AT(to), NULL, "directory",
     "what DESTINATION becomes; gguf: a file that llama.cpp runs, of V4, in types native (fp8 as "
     "BF16), q8, q4, mxfp4, bf16"},
    {output_group, 'n', "dry-run", OPT_FLAG, NULL, 0, 0, 1, AT(dry_run), NULL, NULL,
     "only say what would become of SOURCE"},
    {output_group, 0, "as", OPT_TEXT, "MODEL", 0, 0, 1, AT(as), NULL, NULL,
     "--dry-run without a checkpoint: v4-flash, v4-pro, v4.1-flash or the path of a config.json"},
    {output_group, 0, "context", OPT_U32, "N", 1, 1 << 30, 1, AT(context), NULL,
     "32768, or the model's maximum", "tokens that the plan counts memory for"},
    {output_group, 0, "verify", OPT_FLAG, NULL, 0, 0, 1, AT(verify), NULL, NULL,
     "check DESTINATION's sums and compare every tensor with SOURCE; with one directory only its "
     "sums"},
    {output_group, 0, "json", OPT_FLAG, NULL, 0, 0, 1, AT(json), NULL, NULL, "results as JSON"},
    {output_group, 'q', "quiet", OPT_FLAG, NULL, 0, 0, 1, AT(quiet), NULL, NULL,
     "no progress, no table"},
    {output_group, 0, "version", OPT_FLAG, NULL, 0, 0, 1, AT(version), NULL, NULL, "the version"},
    {output_group, 'h', "help", OPT_FLAG, NULL, 0, 0, 1, AT(help), NULL, NULL, "this help"},
};

static const char *const examples[] = {
    "dsv4-quantize DeepSeek-V4-Flash flash",
    "repacked without any loss: starts in a second, same logits",
    "dsv4-quantize --dry-run --preset small DeepSeek-V4-Flash",
    "what that would take on disk and in memory",
    "dsv4-quantize --dry-run --as v4-pro --preset tiny --context 100000",
    "the same of a model that is not here",
    "dsv4-quantize --experts q3 --dense q8 --tensor 'layers.[0-2].*=q8' DeepSeek-V4-Flash mine",
    "a mix of one's own",
    "dsv4-quantize --calibrate text.txt DeepSeek-V4-Flash importance.safetensors",
    "what its matrices are multiplied with, from a text",
    "dsv4-quantize --type q4nl --importance importance.safetensors DeepSeek-V4-Flash q4",
    "errors where they matter least",
    "dsv4-quantize --to gguf --dense q8 DeepSeek-V4-Flash flash.gguf",
    "for llama.cpp: experts as they are, fp8 as Q8_0 (without --dense: BF16, exact)",
    "dsv4-quantize --verify DeepSeek-V4-Flash mine",
    "sums, and the error of every tensor",
    NULL};

static const struct opt_command commands[] = {
    {"dsv4-quantize", "[SOURCE [DESTINATION]]",
     "convert a checkpoint into a directory that maps at once",
     "SOURCE is an official or a converted directory or a GGUF file of V4, DESTINATION a directory "
     "that does not exist yet or is empty. It appears when it is complete; until then it is called "
     "DESTINATION.partial, and the "
     "same "
     "command goes on where an interrupted one stopped. With --to gguf it is a file for "
     "llama.cpp.\n\n"
     "Types: native (as in the source), q8, q4, q4nl, q3, q2, mxfp4, bf16. What no option speaks "
     "of stays "
     "native; docs/quantization.md has sizes and errors.",
     examples, 0, 2}};

static const struct opt_note environment[] = {
    {"DSV4_THREADS", "threads where --threads is not given"}, {NULL, NULL}};
static const struct opt_note exits[] = {{"0", "done; --verify: all is as it should be"},
                                        {"1", "something failed: disk, memory of the system"},
                                        {"2", "wrong arguments, or DESTINATION is not empty"},
                                        {"3", "the source is not acceptable; --verify: damage"},
                                        {"4", "not enough memory"},
                                        {"130", "interrupted by Ctrl-C"},
                                        {NULL, NULL}};

static const struct opt_set options = {
    .program = "dsv4-quantize",
    .version = DSV4_VERSION,
    .brief = "convert DeepSeek-V4 checkpoints for dsv4",
    .text = "",
    .command = commands,
    .n_commands = 1,
    .opt = rows,
    .n_opts = sizeof rows / sizeof *rows,
    .environment = environment,
    .exits = exits,
};

/* ------------------------------------------------------------------ progress */

struct watch {
    struct program *p;
    double begin, at; /* seconds: of the start, of the first report */
    uint64_t first;   /* bytes that were there then */
    bool begun;
};

static bool show_progress(void *arg, uint64_t done, uint64_t total)
{
    struct watch *w = arg;
    double now = clock_seconds();
    if (!w->begun) {
        w->begun = true;
        w->at = now;
        w->first = done;
    }
    double seconds = now - w->at, rate = seconds > 0.2 ? (double)(done - w->first) / seconds : 0;
    double left = rate > 0 ? (double)(total - done) / rate : 0;
    status_show(&w->p->term, "[%s] %.2f of %.2f GB, %.0f MB/s, %.0f:%02.0f left",
                status_bar(done, total).text, (double)done * 1e-9, (double)total * 1e-9,
                rate * 1e-6, (double)(int)(left / 60), (double)((int)left % 60));
    return interrupted();
}

static void show_pruning(struct program *p, const json_t *x)
{
    stream_printf(&p->term.err,
                  "%d of %d experts of a layer stay; they gave %.1f %% of the calibration's "
                  "router-weighted norm, %.1f %% in layer %d\n",
                  (int)json_integer_value(json_object_get(x, "kept")),
                  (int)json_integer_value(json_object_get(x, "experts")),
                  100 * json_real_value(json_object_get(x, "norm_kept_mean")),
                  100 * json_real_value(json_object_get(x, "norm_kept_worst")),
                  (int)json_integer_value(json_object_get(x, "worst_layer")));
}

/* Before a conversion begins. */
static void show_decisions(void *arg, const char *json)
{
    struct program *p = ((const struct watch *)arg)->p;
    json_t *j = json_loads(json, 0, NULL);
    const json_t *pruning = json_object_get(j, "pruning");
    json_t *choice = json_object_get(j, "choice");
    struct bytes b = {0};
    dsv4_err err;
    if (pruning && !p->term.quiet)
        show_pruning(p, pruning);
    if (choice && !p->term.quiet && report_text(choice, &b, &err) == 0)
        stream_bytes(&p->term.err, b.data, b.len);
    free(b.data);
    json_decref(j);
}

/* ------------------------------------------------------------------ what is to be done */

static dsv4_convert_options convert_options(const struct values *v, struct watch *w)
{
    return (dsv4_convert_options){
        .preset = v->preset,
        .type = v->type,
        .experts = v->experts,
        .dense = v->dense,
        .head = v->head,
        .engram = v->engram,
        .rules_file = v->rules_file,
        .rules = v->rules.item,
        .n_rules = v->rules.n,
        .effort = v->effort == EFFORT_FAST   ? DSV4_EFFORT_ABSMAX
                  : v->effort == EFFORT_HIGH ? DSV4_EFFORT_HIGH
                                             : DSV4_EFFORT_SEARCH,
        .importance = v->importance,
        .prune_experts = v->prune,
        .ctx = v->context,
        .fit = v->fit,
        .bits = (double)v->bits,
        .dynamic = v->dynamic,
        .sensitivity = v->sensitivities,
        .decided = show_decisions,
        .decided_arg = w,
        .shard_bytes = v->shard_size,
        .gguf = v->to == TO_GGUF,
        .max_ram = v->max_ram,
        .threads = v->threads,
        .allow_nan = v->allow_nan,
        .restart = v->restart,
        .progress = show_progress,
        .progress_arg = w,
    };
}

static int dry_run(struct program *p, const char *src, const dsv4_convert_options *o, dsv4_err *err)
{
    char *json;
    TRY(dsv4_convert_plan(src, o, &json, err));
    return show_json(p, json, err);
}

/* The same for a model that is not here. */
static int dry_run_as(struct program *p, const char *as, const dsv4_convert_options *o,
                      dsv4_err *err)
{
    char *config, *json;
    size_t len;
    TRY(release_config(as, &config, &len, err));
    int rc = dsv4_convert_plan_config(config, len, o, &json, err);
    free(config);
    TRY(rc);
    return show_json(p, json, err);
}

static int convert(struct program *p, const char *src, const char *dst,
                   const dsv4_convert_options *o, struct watch *w, dsv4_err *err)
{
    uint64_t zeroed = 0;
    dsv4_convert_options counting = *o;
    counting.zeroed = &zeroed;
    w->begin = clock_seconds();
    int rc = dsv4_convert(src, dst, &counting, err);
    status_clear(&p->term);
    if (zeroed > 0)
        complain(&p->term, "%llu weights were NaN or infinite and are 0 now",
                 (unsigned long long)zeroed);
    TRY(rc);
    if (!p->term.quiet)
        stream_printf(&p->term.err, "%s in %.1f s\n", dst, clock_seconds() - w->begin);
    return 0;
}

static int verify(struct program *p, const char *src, const char *dst,
                  const dsv4_convert_options *o, dsv4_err *err)
{
    char *json;
    dsv4_err later;
    int rc = dsv4_convert_verify(src, dst, o, &json, err);
    status_clear(&p->term);
    int shown = json ? show_json(p, json, rc == 0 ? err : &later) : 0;
    return rc != 0 ? rc : shown;
}

static int run(struct values *v, struct program *p, int argc, char **argv, dsv4_err *err)
{
    struct process_options parse = {&options, v, &v->help, &v->version};
    struct watch w = {.p = p};
    struct process_parsed parsed;
    TRY(process_parse(&parse, &p->term, argc, argv, &parsed, err));
    if (parsed.done)
        return 0;
    p->term.quiet = v->quiet;
    p->a.json = v->json;
    dsv4_convert_options o = convert_options(v, &w);
    const char *src = parsed.n_args > 0 ? argv[1] : NULL, *dst = parsed.n_args > 1 ? argv[2] : NULL;
    if (v->as && (!v->dry_run || src))
        return err_set(err, DSV4_USAGE, "--as is for --dry-run, in place of SOURCE");
    if (v->as)
        return dry_run_as(p, v->as, &o, err);
    if (!src)
        return err_set(err, DSV4_USAGE, "what is to be converted? SOURCE DESTINATION");
    if (v->dry_run)
        return dry_run(p, src, &o, err);
    if (v->verify)
        return dst ? verify(p, src, dst, &o, err) : verify(p, NULL, src, &o, err);
    if (!dst)
        return err_set(err, DSV4_USAGE, "where to? SOURCE DESTINATION, or --dry-run SOURCE");
    if (v->texts.n > 0 || v->sensitivity.n > 0) {
        bool s = v->sensitivity.n > 0;
        struct calibration c = {
            src, dst, s ? &v->sensitivity : &v->texts, v->covariance, s, v->type, v->threads};
        return calibrate(p, &c, err);
    }
    return convert(p, src, dst, &o, &w, err);
}

int main(int argc, char **argv)
{
    static struct program p; /* its streams hold buffers */
    static struct values v;
    dsv4_err err = {0};
    v.effort = EFFORT_NORMAL;
    process_begin(&p.term, options.program);
    interrupt_catch();
    int code = process_end(&p.term, run(&v, &p, argc, argv, &err), &err);
    opt_release(&options, &v);
    return code;
}
