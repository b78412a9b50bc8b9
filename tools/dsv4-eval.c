/* The program dsv4-eval: how good a model is, and how far from another. Options and the order of things; the
 * measuring is in eval_text.c, eval_needle.c and eval_choice.c. */
#include "eval.h"

#include <stdlib.h>

/* ------------------------------------------------------------------ options */

#define C(name)   (1u << EVAL_##name)
#define ALL       ((1u << N_EVAL_COMMANDS) - 1)
#define AT(field) offsetof(struct eval_values, field)

static const char model_group[] = "Model";
static const char compare_group[] = "Comparison";
static const char task_group[] = "What is measured";
static const char output_group[] = "Input and output";

static const struct opt rows[] = {
    {model_group, 'm', "model", OPT_TEXT, "DIR", 0, 0, ALL, AT(a.model), "DSV4_MODEL",
     "$DSV4_MODEL, else the embedded model", "the model"},
    {model_group, 't', "threads", OPT_U32, "N", 1, 4096, ALL, AT(a.threads), "DSV4_THREADS",
     "$DSV4_THREADS, else one for each core",
     "threads that compute; the results do not depend on it"},
    {model_group, 0, "cpus", OPT_TEXT, "LIST", 0, 0, ALL, AT(a.cpus), NULL,
     "all that the process may use", "compute on these CPUs and no others: 0-7,16"},
    {model_group, 0, "numa", OPT_TEXT, "MODE", 0, 0, ALL, AT(a.numa), NULL, "auto",
     "auto, off, or nodes: 0-1 (as for dsv4)"},
    {model_group, 0, "batch", OPT_U32, "N", 1, 65536, ALL, AT(a.batch), NULL, "256",
     "tokens computed together; the results do not depend on it"},
    {model_group, 0, "max-memory", OPT_BYTES, "BYTES", 0, 0, ALL, AT(a.max_memory), NULL,
     "what the machine has free", "plan with so much memory (512M, 24G, ...)"},
    {model_group, 0, "paged", OPT_FLAG, NULL, 0, 0, ALL, AT(a.paged), NULL, NULL,
     "accept weights larger than memory: they are read from disk again and again"},
    {model_group, 0, "cache-quant", OPT_CHOICE, "on|off", 0, 0, ALL, AT(a.cache_quant), NULL, "on",
     "keep caches in the fp8 and fp4 the model was trained with, or in f32"},
    {model_group, 0, "exact", OPT_FLAG, NULL, 0, 0, ALL, AT(a.exact), NULL, NULL,
     "activations in f32 everywhere"},

    {compare_group, 0, "against", OPT_TEXT, "DIR", 0, 0, ALL, AT(against), NULL, NULL,
     "evaluate this model, too, and compare; for perplexity both are in memory at once"},
    {compare_group, 0, "against-exact", OPT_FLAG, NULL, 0, 0, ALL, AT(against_exact), NULL, NULL,
     "the other one computes as with --exact; without --against it is the same model"},
    {compare_group, 0, "save-logits", OPT_TEXT, "FILE", 0, 0, C(PERPLEXITY), AT(save_logits), NULL,
     NULL, "keep what --reference needs to compare other models with this one"},
    {compare_group, 0, "top", OPT_U32, "K", 1, KEPT_MAX, C(PERPLEXITY), AT(top), NULL, "256",
     "keep at most the K most likely tokens of a row"},
    {compare_group, 0, "reference", OPT_TEXT, "FILE", 0, 0, C(PERPLEXITY), AT(reference), NULL,
     NULL, "compare with what --save-logits kept of another model"},

    {task_group, 0, "context", OPT_U32, "N", 2, 1 << 24, C(PERPLEXITY) | C(CHOICE), AT(context),
     NULL, "512 for perplexity, 4096 for choice",
     "tokens of a window of text, or that a question may have; the beginning-of-sentence token "
     "counts"},
    {task_group, 0, "skip", OPT_U32, "N", 0, 1 << 24, C(PERPLEXITY), AT(skip), NULL, "0",
     "do not count the first N tokens of each window"},
    {task_group, 0, "lengths", OPT_TEXT, "LIST", 0, 0, C(NEEDLE), AT(lengths), NULL,
     "1024,2048,4096,8192", "tokens of the texts"},
    {task_group, 0, "depths", OPT_TEXT, "LIST", 0, 0, C(NEEDLE), AT(depths), NULL, "0,25,50,75,100",
     "where the needle is, in percent of the text"},
    {task_group, 0, "seeds", OPT_U32, "N", 1, 1000, C(NEEDLE), AT(seeds), NULL, "3",
     "different texts and needles for each length and depth"},
    {task_group, 0, "seed", OPT_U32, "N", 0, UINT32_MAX, C(NEEDLE), AT(first_seed), NULL, "1",
     "the first of them"},
    {task_group, 0, "answer-tokens", OPT_U32, "N", 1, 65536, C(NEEDLE), AT(answer_tokens), NULL,
     "32", "an answer has at most N tokens"},
    {task_group, 0, "raw", OPT_FLAG, NULL, 0, 0, C(NEEDLE), AT(raw), NULL, NULL,
     "no chat format: for base models"},

    {output_group, 0, "state", OPT_TEXT, "FILE", 0, 0, ALL, AT(state), NULL, NULL,
     "keep what is finished in FILE; the same command goes on from there"},
    {output_group, 0, "svg", OPT_TEXT, "FILE", 0, 0, C(NEEDLE), AT(svg), NULL, NULL,
     "draw the grid"},
    {output_group, 0, "json", OPT_FLAG, NULL, 0, 0, ALL, AT(a.json), NULL, NULL,
     "all results as JSON on standard output"},
    {output_group, 'q', "quiet", OPT_FLAG, NULL, 0, 0, ALL, AT(a.quiet), NULL, NULL,
     "no progress on the terminal"},
    {output_group, 0, "version", OPT_FLAG, NULL, 0, 0, ALL, AT(a.version), NULL, NULL,
     "the version"},
    {output_group, 'h', "help", OPT_FLAG, NULL, 0, 0, ALL, AT(a.help), NULL, NULL, "this help"},
};

static const char *const perplexity_examples[] = {
    "dsv4-eval -m FLASH --save-logits flash.logits wiki.txt",
    "the full model, once",
    "dsv4-eval -m FLASH-Q4 --reference flash.logits wiki.txt",
    "what a smaller one lost",
    "dsv4-eval --against-exact models/nano/eval/text.txt",
    "what activations of 8 bits cost",
    NULL};
static const char *const needle_examples[] = {
    "dsv4-eval needle --lengths 128,256,512 --seeds 5 --svg grid.svg", "the embedded model",
    "dsv4-eval needle -m FLASH --lengths 8192,65536,262144 --state needle.state",
    "hours of work that may be interrupted", NULL};
static const char *const choice_examples[] = {
    "dsv4-eval choice -m FLASH-Q4 --against FLASH questions.jsonl",
    "two models, the same questions", NULL};

/* ORDER enum eval_command */
static const struct opt_command commands[] = {
    {"perplexity", "TEXT...",
     "perplexity of texts, and divergence from another model (the default command)",
     "Evaluates a model. The default command, perplexity, cuts texts into windows that each begin "
     "with the beginning-of-sentence token and takes exp of the mean negative log-likelihood of "
     "their tokens. With --reference, --against or --against-exact also the Kullback-Leibler "
     "divergence of the other model's distributions from this one's, and how often both find the "
     "same token most likely.",
     perplexity_examples, 1, -1},
    {"needle", "", "is a sentence found again at any depth of long texts",
     "Hides a sentence with a number in a text without meaning and asks for the number at its end, "
     "for all lengths and depths. An answer counts when the number is in it.",
     needle_examples, 0, 0},
    {"choice", "FILE.jsonl", "which of several continuations is the most likely one",
     "A line of FILE is a question: {\"context\": TEXT, \"choices\": [TEXT, ...], \"answer\": N}, "
     "and "
     "perhaps \"id\" and \"markers\": true (control tokens in the texts count as such). A model "
     "answers with the choice of the highest log-likelihood, plain and for each byte of its text.",
     choice_examples, 1, 1},
};

static const struct opt_note environment[] = {
    {"DSV4_MODEL", "the model's directory where -m is not given"},
    {"DSV4_THREADS", "threads where --threads is not given"},
    {"DSV4_SIMD", "caps the instruction set that kernels use (scalar, avx2, ...)"},
    {NULL, NULL}};
static const struct opt_note exits[] = {
    {"0", "measured"},
    {"1", "something failed"},
    {"2", "wrong arguments"},
    {"3", "a model, text, reference or state is not acceptable"},
    {"4", "not enough memory"},
    {"130", "interrupted by Ctrl-C; with --state the same command goes on"},
    {NULL, NULL}};

_Static_assert(sizeof commands / sizeof *commands == N_EVAL_COMMANDS, "a row for each command");

static const struct opt_set options = {
    .program = "dsv4-eval",
    .version = DSV4_VERSION,
    .brief = "how good a model is, and how far from another",
    .text = "",
    .command = commands,
    .n_commands = N_EVAL_COMMANDS,
    .opt = rows,
    .n_opts = sizeof rows / sizeof *rows,
    .environment = environment,
    .exits = exits,
};

static struct eval_values eval_defaults(void)
{
    return (struct eval_values){.a = args_defaults(),
                                .lengths = "1024,2048,4096,8192",
                                .depths = "0,25,50,75,100",
                                .seeds = 3,
                                .first_seed = 1,
                                .answer_tokens = 32,
                                .top = 256};
}

/* ------------------------------------------------------------------ a run */

/* ORDER enum eval_command */
static const struct {
    int (*run)(struct eval *e, dsv4_err *err);
    void (*show)(struct stream *out, const json_t *result);
    uint32_t context;
} task[N_EVAL_COMMANDS] = {{eval_perplexity, show_perplexity, 512},
                           {eval_needle, show_needle, 0},
                           {eval_choice, show_choice, 4096}};

static int check(const struct eval_values *v, dsv4_err *err)
{
    if (v->reference && eval_has_other(v))
        return err_set(err, DSV4_USAGE, "--reference and --against exclude each other");
    if (v->a.exact && v->against_exact && !v->against)
        return err_set(err, DSV4_USAGE,
                       "--exact and --against-exact compare a model with itself: leave one out");
    return 0;
}

static int evaluate(struct eval *e, enum eval_command command, dsv4_err *err)
{
    TRY(check(&e->v, err));
    if (e->v.context == 0)
        e->v.context = task[command].context;
    e->task = json_pack("{s:i, s:s}", "dsv4-eval", 1, "command", commands[command].name);
    TRY(json_made(e->task, err));
    TRY(eval_put_models(e, err));
    TRY(json_made(e->result = json_object(), err));
    int rc = task[command].run(e, err);
    status_clear(&e->p.term);
    TRY(rc);
    TRY(eval_put(e->result, "task", json_incref(e->task), err));
    if (e->v.a.json)
        return json_print(&e->p, json_incref(e->result), err);
    task[command].show(&e->p.term.out, e->result);
    return stream_flush(&e->p.term.out, err);
}

static int run(struct eval *e, int argc, char **argv, dsv4_err *err)
{
    const struct process_options o = {&options, &e->v, &e->v.a.help, &e->v.a.version};
    struct process_parsed parsed;
    TRY(process_parse(&o, &e->p.term, argc, argv, &parsed, err));
    if (parsed.done)
        return 0;
    e->p.term.quiet = e->v.a.quiet;
    e->p.argv = argv + 1;
    e->p.argc = parsed.n_args;
    return evaluate(e, (enum eval_command)parsed.command, err);
}

int main(int argc, char **argv)
{
    static struct eval e; /* its streams hold buffers */
    dsv4_err err = {0};
    process_begin(&e.p.term, options.program);
    interrupt_catch();
    e.v = eval_defaults();
    int rc = run(&e, argc, argv, &err);
    int code = process_end(&e.p.term, rc, &err);
    opt_release(&options, &e.v);
    json_decref(e.task);
    json_decref(e.result);
    return code;
}
