/* eval.h - what the files of the program dsv4-eval share. A run is a list of units (a window of text, a
 * needle, a question); each gives one JSON object, and the result is made of those objects alone. So a run
 * that was interrupted and goes on ends like one that was not. */
#ifndef DSV4_EVAL_H
#define DSV4_EVAL_H

#include "process.h"

struct eval_values {
    struct args a; /* first: what the files of all programs read */
    const char *against, *state, *save_logits, *reference, *svg, *lengths, *depths;
    bool against_exact, raw;
    uint32_t context, skip, top, seeds, first_seed, answer_tokens;
};

enum eval_command { EVAL_PERPLEXITY, EVAL_NEEDLE, EVAL_CHOICE, N_EVAL_COMMANDS };

/* One run of the program. */
struct eval {
    struct program p;
    struct eval_values v;
    json_t *task;   /* what is evaluated; what a state file is recognised by */
    json_t *result; /* what --json prints */
};

int eval_perplexity(struct eval *e, dsv4_err *err);
int eval_needle(struct eval *e, dsv4_err *err);
int eval_choice(struct eval *e, dsv4_err *err);

/* ------------------------------------------------------------------ eval_state.c */

/* Finished units, in memory and, where `path` was given, in a file: a line of JSON for the task, then one a
 * unit, each written whole before the next unit begins. A last line that is not whole is cut off. */
struct eval_state {
    json_t *units;
    char *path; /* NULL: in memory only */
    int fd;
};
/* Reads what is there already. DSV4_REFUSED: no state file, or one of another task (the message names what
 * differs). */
int eval_state_open(struct eval_state *s, const char *path, const json_t *task, dsv4_err *err);
/* Takes the reference of `unit`. */
int eval_state_add(struct eval_state *s, json_t *unit, dsv4_err *err);
void eval_state_close(struct eval_state *s);

/* ------------------------------------------------------------------ eval_model.c */

/* The model of the run, or (`other`) the one that --against and --against-exact name. */
int eval_open(struct eval *e, bool other, uint32_t ctx, uint32_t sequences, struct model_handle *m,
              dsv4_err *err);
bool eval_has_other(const struct eval_values *v);

/* Members "model" and, if there is another, "against" of a task: names, sizes and times of the files, and
 * how the model computes. */
int eval_put_models(struct eval *e, dsv4_err *err);

/* FNV-1a of 64 bits, for recognising files and damage; not against malice. */
#define EVAL_HASH_START UINT64_C(0xcbf29ce484222325)
uint64_t eval_hash(uint64_t h, const void *data, size_t len);
/* Over the bytes of all tokens. */
uint64_t eval_hash_tokenizer(const dsv4_tokenizer *t);
json_t *eval_hash_json(uint64_t h);

/* Rows of one call whose logits fit 32 MB: at least one, at most the batch. */
size_t eval_rows(const struct eval *e, const dsv4_engine *m);

/* Sets a member. Takes the reference of `value`. */
int eval_put(json_t *to, const char *key, json_t *value, dsv4_err *err);
/* Sum of a member over all units. */
double eval_sum(const json_t *units, const char *key);

/* A bar with rate and time left, for `done` of `total` units of work of which `before` were not done by
 * this run. */
struct eval_progress {
    struct terminal *term;
    const char *what;
    double begin;
    uint64_t before, total;
};
void eval_progress_show(const struct eval_progress *g, uint64_t done, const char *format, ...)
    PRINTF_LIKE(3, 4);

/* Where Ctrl-C was pressed: DSV4_INTERRUPTED, with what --state means for it. */
int eval_stopped(const struct eval *e, dsv4_err *err);

/* ------------------------------------------------------------------ eval_stats.c
 * Logits of one row to numbers. All logarithms are natural, all sums in double and in the order of ids, so
 * that nothing depends on how rows were grouped. */

/* The most likely token, the first of several. */
int32_t row_best(const float *logits, size_t n);
/* KL(P || Q) of two rows in nats. */
double row_kl(const float *p, const float *q, size_t n);

/* What is kept of a row P to compare others with: the most likely tokens, the logarithm of the mass of all
 * others, and a few of those, drawn by their probability. */
struct kept_token {
    int32_t id;
    float logp;
};
enum { KEPT_MAX = 4096, KEPT_SAMPLES = 4 };
struct kept_row {
    float nll;      /* of the token that came next */
    float log_tail; /* -INFINITY: there are no others */
    uint16_t n_top, n_samples;
    struct kept_token *top;
    struct kept_token sample[KEPT_SAMPLES];
};

/* Keeps at most `most` tokens, fewer when the rest weighs below 1e-6. `top` of r has room for them. `key`
 * determines the draws. */
void row_keep(struct kept_row *r, const float *p, size_t n, int32_t next, size_t most,
              uint64_t key);

/* KL(P || Q) from what was kept of P. `kl` has the right mean over the draws, with `variance`; `low` is
 * never above the truth: it takes all tokens that were not kept for one. */
struct kl_estimate {
    double kl, variance, low;
};
struct kl_estimate row_kl_kept(const struct kept_row *r, const float *q, size_t n);

/* The smallest of x that `part` of all are not above; sorts x. */
double quantile(double *x, size_t n, double part);

/* ------------------------------------------------------------------ eval_logits.c
 * A file of kept rows (docs/evaluation.md): a header, then a block with a checksum for each window. */

struct logits_head {
    uint32_t vocab, context, skip, top, windows;
    uint64_t rows;
    uint64_t tokenizer, ids; /* hashes: of all tokens, of all windows' ids */
};

struct logits_file {
    struct logits_head head;
    int fd;
    char *path, *aside; /* aside: while it is being written */
    struct bytes block; /* a window: being made, or read */
    size_t at;          /* in a block that is read */
    uint32_t window, rows;
};

/* Writes FILE.part, which becomes FILE at the end. `done` windows are there already and are kept: the file
 * is cut behind them. DSV4_REFUSED: they are not. */
int logits_create(struct logits_file *f, const char *path, const struct logits_head *h,
                  uint32_t done, dsv4_err *err);
int logits_add(struct logits_file *f, const struct kept_row *r, dsv4_err *err);
int logits_end_window(struct logits_file *f, dsv4_err *err);
/* `keep`: every window was written, the file gets its name. Otherwise FILE.part stays if `resumable`. */
int logits_finish(struct logits_file *f, bool keep, bool resumable, dsv4_err *err);

int logits_open(struct logits_file *f, const char *path, dsv4_err *err);
/* Whether it belongs to this text, tokenizer and windows; says what differs. */
int logits_fits(const struct logits_file *f, const struct logits_head *want, dsv4_err *err);
/* Goes to a window (they are read in order; earlier ones are skipped over) and checks it. */
int logits_window(struct logits_file *f, uint32_t window, dsv4_err *err);
/* The next row of the window; r->top has room for head.top. */
int logits_next(struct logits_file *f, struct kept_row *r, dsv4_err *err);
void logits_close(struct logits_file *f);

/* ------------------------------------------------------------------ eval_report.c */

void show_perplexity(struct stream *out, const json_t *result);
void show_needle(struct stream *out, const json_t *result);
void show_choice(struct stream *out, const json_t *result);
/* The grid of needles as a picture. */
int needle_svg(const char *path, const json_t *result, dsv4_err *err);

#endif
