/* bench.h - what the files of the program dsv4-bench share: which slice of which model is measured, how, and
 * what came of it. Results are one JSON object, from which text, CSV and SVG are made. */
#ifndef DSV4_BENCH_H
#define DSV4_BENCH_H

#include "tools.h"

struct bench_values {
    bool help, version, json, csv, quiet, exact, check, no_cache_quant;
    const char *as, *layers, *depth, *prefill, *cpus, *numa, *compare, *svg;
    uint32_t experts, held, vocab, threads, decode, reps;
    uint64_t max_memory;
    int expert_format, dense_format;
};

/* ------------------------------------------------------------------ bench_model.c */

/* A layer as dsv4_plan_synthetic tells of it. */
struct bench_layer {
    uint32_t id;
    char attention[64], experts[16]; /* kinds: what costs the same has the same name */
    bool engram, index;
    int64_t cache_of, index_of; /* layers whose cache and selection it reads; -1 */
    uint64_t bytes_per_token, expert_bytes, multiply_adds, ratio, chosen, index_multiply_adds;
};

struct bench_model {
    struct bench_layer *layer;
    uint32_t n_layers;
    char family[32];
    uint64_t entry_multiply_adds, window, window_row_bytes, entry_bytes, key_bytes;
    uint64_t vocab, experts, held, top_k, context, head_bytes, head_multiply_adds;
    uint64_t weights, tables, caches, scratch, other, needed, available;
};

/* Weights that a slice can have, by the words of --experts-format and --dense-format. ORDER BENCH FORMATS */
extern const struct bench_format {
    const char *name;
    dsv4_format format;
} bench_formats[];

int bench_model_read(struct bench_model *m, const char *config, size_t len, const dsv4_slice *slice,
                     const dsv4_options *opt, dsv4_err *err);
void bench_model_release(struct bench_model *m);

/* What a decoded token at this depth reads; what a step of `rows` rows there multiplies. */
uint64_t bench_bytes(const struct bench_model *m, uint64_t depth);
double bench_multiply_adds(const struct bench_model *m, uint64_t rows, uint64_t depth);

/* ------------------------------------------------------------------ bench_slice.c */

/* A slice, its list of layers malloc'ed. */
struct bench_slice {
    dsv4_slice s;
    uint32_t *layers;
};

/* What the options leave open: a layer of each kind, and as many experts as half of the memory holds. */
int bench_slice_choose(struct bench_slice *out, const struct bench_values *v, const char *config,
                       size_t len, const dsv4_options *opt, const struct bench_model *whole,
                       dsv4_err *err);
/* As many layers again, with the experts that then fit. */
int bench_slice_double(struct bench_slice *out, const struct bench_slice *from, const char *config,
                       size_t len, const dsv4_options *opt, const struct bench_model *whole,
                       dsv4_err *err);
void bench_slice_release(struct bench_slice *s);

/* ------------------------------------------------------------------ bench_run.c */

/* One thing that is measured: steps of `rows` rows behind `depth` tokens. */
struct bench_case {
    bool prefill;
    uint32_t rows, depth;
    double *seconds; /* [reps] of one step */
    double **spent;  /* [reps] [layers + 1][operators] of one step */
    double barriers; /* of one step */
};

struct bench_run {
    struct bench_case *cases;
    size_t n_cases;
    uint32_t reps, decode;
    dsv4_roof *roof; /* [reps] */
    char **op;       /* [n_ops] names of operators */
    size_t n_ops, threads;
    uint32_t n_layers;
};

/* Lists like "0,4096" into the cases of the options. */
int bench_cases(struct bench_run *r, const struct bench_values *v, dsv4_err *err);
/* Measures all cases on a slice, a repetition of each after the other; roofs in between. */
int bench_measure(struct bench_run *r, struct program *p, const char *config, size_t len,
                  const dsv4_slice *slice, const dsv4_options *opt, dsv4_err *err);
void bench_run_release(struct bench_run *r);

double bench_median(const double *x, size_t n);
/* The repetition whose time is the median (of an even number the faster one). */
size_t bench_middle(const struct bench_case *c, size_t reps);

/* Seconds of a step of `target`, from what each operator took in layers of the same kind. *guessed: a kind
 * was not measured and counts as the mean of the others. */
double bench_predict(const struct bench_run *r, const struct bench_case *c,
                     const struct bench_model *measured, const struct bench_model *target,
                     bool *guessed);

/* ------------------------------------------------------------------ bench_report.c */

int bench_text(struct program *p, const json_t *result, dsv4_err *err);
int bench_csv(struct program *p, const json_t *result, dsv4_err *err);
int bench_svg(const char *path, const json_t *result, dsv4_err *err);
int bench_compare(struct program *p, const json_t *result, const char *path, dsv4_err *err);

#endif
