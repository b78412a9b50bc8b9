/* convert.h - a checkpoint becomes a converted directory (docs/quantization.md): safetensors shards whose
 * matrices are the panels that kernels stream, so that an engine maps them and starts; or a GGUF file.
 *
 *   source   what is read: a directory or GGUF file, its config, its tensors
 *   prune    which experts stay, where fewer are asked for
 *   plan     which output tensor is made of what, in which type, at which byte of which shard; a list of
 *            jobs that may be changed until plan_layout()
 *   choose   types for what no rule speaks of, by what they are expected to cost (sensitivity, sample)
 *   pieces   a piece of a job: read, made, written where it belongs
 *   run      lanes take pieces of jobs in order
 *   output   the directory under way: what is finished, how to go on, its last step
 */
#ifndef DSV4_CONVERT_H
#define DSV4_CONVERT_H

#include "quant/quant.h"
#include "src/load/load.h"
#include "src/system/system.h"

/* ------------------------------------------------------------------ source.c */

struct source {
    char *dir;
    struct checkpoint_text config;
    bool shapes; /* tensors without data: to be planned for only */
    struct config *cfg;
    struct store *store;
    struct kernels k;
};

int source_open(struct source *s, const char *dir, dsv4_err *err);
/* The text of a config.json alone: the tensors that a release of it has, without data (`shapes`). */
int source_open_config(struct source *s, const char *config, size_t len, dsv4_err *err);
void source_close(struct source *s);

/* Row r of a matrix of the source as floats [w->cols]. */
void source_row(const struct source *s, const struct wmat *w, size_t r, float *out);

/* Values in n bytes of a tensor that are NaN or infinite (e8m0: 255). With `zeroed` (a copy of the bytes)
 * they are replaced by zeros. */
size_t bad_values(enum dtype t, const uint8_t *data, size_t n, uint8_t *zeroed);

/* t with its data, all of it, read into memory of ours: *data, to be freed; `what` for messages. */
int tensor_read(struct tensor *out, uint8_t **data, const struct source *s, const struct tensor *t,
                const char *what, dsv4_err *err);

/* Number i of a tensor of I64 or I32. */
int64_t integer_at(const struct tensor *t, uint64_t i);

/* ------------------------------------------------------------------ memory.c */

/* Bytes of memory that an engine takes beside its weights, with one sequence of ctx tokens. */
struct memory_beside {
    uint32_t ctx;
    uint64_t caches, buffers, other;
};

int memory_beside(struct memory_beside *out, const struct source *s, const dsv4_convert_options *o,
                  dsv4_err *err);

/* ------------------------------------------------------------------ window.c */

/* A panel of a matrix of the source, PANEL rows or the last few: read, not mapped. */
struct window {
    struct wmat m;     /* these rows */
    const uint8_t *of; /* codes of the matrix they are of; NULL: empty */
    size_t from;       /* its row that m begins with */
    uint8_t *data[2];
};

/* Raises the bytes of codes and scales to what a window on m takes. */
void window_needs(size_t bytes[2], const struct wmat *m);
int window_open(struct window *w, const size_t bytes[2], dsv4_err *err);
void window_close(struct window *w); /* after a failure, too */
/* Row `row` of m is row *at of w->m from then on; read unless it is there. m: of the source, as matrix_find() fills it.
 * DSV4_FAILED: a file that cannot be read any more. */
int window_row(struct window *w, const struct source *s, const struct wmat *m, size_t row,
               size_t *at, dsv4_err *err);
/* Row `row` of m as floats [m->cols], with all of its panel read: for rows that follow each other. */
int window_floats(struct window *w, const struct source *s, const struct wmat *m, size_t row,
                  float *out, dsv4_err *err);
/* The same, but of plain rows only this one is read: for rows here and there. */
int window_sample(struct window *w, const struct source *s, const struct wmat *m, size_t row,
                  float *out, dsv4_err *err);

/* ------------------------------------------------------------------ rules.c */

/* Which type matrices get; later rules win. */
struct rule {
    const char *pattern;      /* glob for names without .weight; NULL: by class */
    unsigned classes;         /* bits 1 << tensor_class */
    const struct wtype *type; /* NULL: as in the source */
    bool if_smaller;          /* only where the result takes fewer bytes than the source's format */
    bool must_match;          /* a rule that a person wrote for something */
    const char *text;         /* for messages */
    bool matched;
};

struct rules {
    const struct wtype *engram; /* of Engram tables; NULL: as in the source */
    struct rule *rule;
    size_t n, cap;
    char **owned;
    size_t n_owned, cap_owned;
};

/* What the options say, in the order: preset, type, classes, file of rules, patterns. */
int rules_make(struct rules *r, const dsv4_convert_options *o, dsv4_err *err);
void rules_close(struct rules *r);
/* The rule that decides about a matrix; NULL: none does. */
struct rule *rules_find(struct rules *r, const char *name, enum tensor_class c);

/* ------------------------------------------------------------------ prune.c */

enum { MADE_A_LAYER = 4 };

/* Fewer experts in every layer, as many in each. */
struct pruning {
    uint32_t before, kept, n_layers;
    uint32_t *expert; /* [n_layers][kept], ascending: the source's numbers of those that stay */
    double *
        share; /* [n_layers] part of the router-weighted norm that those have, 0 .. 1; when chosen */
    uint64_t unseen; /* experts that stay though the calibration's text gave them nothing */
    uint32_t n_hash; /* layers that route by token id: the first */
    uint32_t *heir;  /* [n_hash][before][kept] new numbers: who gets the tokens of one that goes */
    bool drafts_go; /* drafting layers share the count of experts, but no calibration sees theirs */
    struct tensor *
        made; /* [n_layers][MADE_A_LAYER] tensors of routers as they will be; their data: the source's */
    size_t n_made;
};

/* want: "128" or "50%" of every layer's experts stay, those with the largest norms of a calibration file.
 * DSV4_USAGE: no such number, or fewer than a token has; DSV4_REFUSED: the file does not have them. */
int pruning_choose(struct pruning **out, const struct source *s, const struct store *calibration,
                   const char *want, dsv4_err *err);
/* As the config of a converted directory says it was pruned when it was made of `before`; NULL: it was not. */
int pruning_read(struct pruning **out, const struct source *pruned, const struct source *before,
                 dsv4_err *err);
void pruning_close(struct pruning *p);

/* The experts of a layer that stay, [p->kept] ascending. */
const uint32_t *pruning_kept(const struct pruning *p, uint32_t layer);

enum fate {
    FATE_STAYS,
    FATE_GOES,
    FATE_RENUMBERED, /* an expert's that stays */
    FATE_ROUTER,     /* has something for every expert */
};

/* What becomes of a tensor of the source. *layer: of experts' and routers'; renamed, MATRIX_NAME bytes: for
 * FATE_RENUMBERED. */
enum fate pruning_fate(const struct pruning *p, const char *name, uint32_t *layer, char *renamed);

/* A router's tensor as it will be, p's: rows, biases, token ids; rows that are not plain become F32. */
int pruning_made(struct pruning *p, const struct source *s, const struct tensor *t,
                 const struct tensor **out, dsv4_err *err);
/* Its data, made->bytes of them. */
int pruning_fill(uint8_t *out, const struct pruning *p, const struct source *s,
                 const struct tensor *t, const struct tensor *made, dsv4_err *err);

struct json_t;
/* The number of experts in config.json, and what was done, which pruning_read() reads; false: no memory. */
bool pruning_config(const struct pruning *p, struct json_t *root);
/* What stays, in figures; NULL: no memory. */
struct json_t *pruning_json(const struct pruning *p, uint64_t drafting_tensors);

/* ------------------------------------------------------------------ plan.c */

enum job_kind {
    JOB_COPY,   /* the bytes of the source */
    JOB_ROUTER, /* what pruning makes of them, in one piece */
    JOB_PANELS, /* panels of the source stay: their bytes, codes and scales */
    JOB_PACK,   /* plain rows of the source in the same format, as panels */
    JOB_ENCODE, /* rows as floats, encoded, as panels */
    JOB_FLOATS, /* rows of blocks that are looked up one by one, as F32 */
    JOB_TABLE,  /* rows that are looked up one by one, encoded as fp8 or fp4, plain */
};

/* One tensor of the output, or a matrix NAME.weight with its NAME.scale. */
struct job {
    enum job_kind kind;
    bool by_rule; /* somebody said what type it gets */
    enum tensor_class class;
    const char *name;          /* of the tensor (a matrix: NAME.weight) */
    const struct tensor *from; /* in the source, where experts may have other numbers */
    const struct tensor *to; /* no matrix: dtype and shape of what is written; most often `from` */
    struct wmat
        in; /* matrices, JOB_FLOATS and JOB_TABLE: the source; .rows, .cols are those of the output, too */
    const uint32_t *pick;      /* [in.rows] rows of the source that JOB_ENCODE takes; NULL: all */
    const struct wtype *type;  /* matrices: of the output; NULL for copies */
    const struct wtype *table; /* JOB_TABLE: what rows become */
    const struct tensor *to_scale; /* JOB_TABLE: their scales, as `to` has the codes */
    bool as_loaded;  /* JOB_ENCODE of blocks: as an engine does that loads the source */
    struct wmat out; /* matrices: panels without addresses; rows: code_ld bytes each, no scales */
    enum dtype as;   /* no matrix: what its elements become */
    /* plan_gguf() */
    bool rows; /* matrices: plain rows, one behind the other, instead of panels */
    const struct block_type *blocks; /* of which they are made; NULL: of numbers */
    bool exact;                      /* what is encoded has to stay the same numbers */
    /* importance_join(): of the inputs, [cols] and [cols][cols], or NULL */
    const float *importance, *covariance;
    /* plan_layout() */
    uint32_t shard;
    uint64_t at[2], bytes[2]; /* of codes (or all data) and scales, in the shard's data */
};

struct shard {
    char *name, *header; /* the file; length, JSON and spaces up to the data */
    size_t header_len;
    uint64_t bytes;       /* with the header */
    size_t first, n_jobs; /* of plan.job */
};

struct plan {
    const struct source *source;
    struct pruning *pruning; /* not the plan's; or NULL */
    char *names;             /* of renumbered experts */
    struct tensor *made;     /* what JOB_FLOATS and JOB_TABLE write */
    size_t n_made;
    uint64_t drafts;   /* tensors of drafting layers that pruning leaves out */
    bool gguf;         /* one shard, a GGUF file */
    uint64_t left_out; /* tensors of the source that such a file has no place for */
    struct job *job;   /* in the order of reading */
    size_t n;
    struct shard *shard;
    size_t n_shards;
    char *config; /* config.json of the output */
    uint64_t bytes, source_bytes;
    uint64_t identity; /* of source and plan: what a conversion under way can be continued with */
};

/* All tensors of the source with what the rules say, but for those that pruning (NULL: none) takes away. */
int convert_plan(struct plan *p, const struct source *s, struct rules *r, struct pruning *pruning,
                 dsv4_err *err);
/* Sets the type of a matrix; false when it cannot be packed like that (columns no multiple of 32). */
bool job_set_type(struct job *j, const struct wtype *type);
void convert_plan_close(struct plan *p);
/* Is it a weight that stays in memory? */
bool job_in_memory(const struct job *j);
/* Adds the members "choice" (chosen: of choose_types(), or NULL) and "pruning"; false: no memory. */
bool plan_decisions(const struct plan *p, struct json_t *chosen, struct json_t *to);
/* What it amounts to, as JSON text. */
int convert_plan_json(const struct plan *p, const struct memory_beside *beside,
                      struct json_t *chosen, char **json, dsv4_err *err);

/* ------------------------------------------------------------------ sensitivity.c */

struct sensitivity;

/* file: of dsv4_sensitivity(); NULL: the figures that are shipped. cfg lives longer. */
int sensitivity_open(struct sensitivity **out, const char *file, const struct config *cfg,
                     dsv4_err *err);
void sensitivity_close(struct sensitivity *s); /* NULL is allowed */
/* Nats for a relative error of 1 of the products of a matrix; name with "*" for the number of an expert, of all
 * experts of a layer together. */
int sensitivity_find(const struct sensitivity *s, const char *name, double *out, dsv4_err *err);

/* ------------------------------------------------------------------ sample.c */

/* Sums over some rows of a matrix, for each of several types. */
struct sample {
    const struct job *job;
    double *error,
        *energy; /* [n_types] squares of errors and of rows, weighted by the importance; added to */
};

/* The same for any number of threads (0: one for each core). DSV4_FAILED: the source cannot be read any more. */
int sample_errors(struct sample *sample, size_t n, const struct wtype *const *type, size_t n_types,
                  const struct source *source, int threads, dsv4_err *err);

/* ------------------------------------------------------------------ choose.c */

enum { MAX_LAYERS_TOLD = 256 };

struct choose_options {
    const char *sensitivity; /* a file, or NULL */
    uint64_t fit;            /* bytes of memory for weights and `beside`; 0: any */
    uint64_t beside;         /* what an engine needs with ctx tokens beside weights */
    uint32_t ctx;
    double bits; /* mean bits of the matrices that are chosen for, scales included; 0: any */
    bool each;   /* every matrix by itself; otherwise those of one class in a layer together */
    int threads; /* 0: one for each core */
};

/* Changes the types of the jobs about which no rule decided, within these limits; the same for any number of threads.
 * importance: a calibration file or NULL. *told is JSON for people and programs: what was chosen, and why. DSV4_NO_MEMORY:
 * not even the smallest types fit. */
int choose_types(struct plan *p, const struct source *source, const struct store *importance,
                 const struct choose_options *o, struct json_t **told, dsv4_err *err);

/* ------------------------------------------------------------------ layout.c */

/* Bytes that the data of a job have in a directory: codes or all, scales. */
void job_sizes(const struct job *j, uint64_t bytes[2]);

/* Shards of about so many bytes, the place of everything in them, their headers. */
int plan_layout(struct plan *p, uint64_t shard_bytes, dsv4_err *err);
/* The output's config.json: the source's, with what is packed how. */
int plan_config(struct plan *p, dsv4_err *err);
/* The output's model.safetensors.index.json; sum[i] of shard i ("" : none). */
int plan_index(const struct plan *p, char *const *sum, struct bytes *out, dsv4_err *err);

/* What else the output depends on, beside source and plan. */
void plan_mix(struct plan *p, const void *data, size_t n);

/* Source and plan in one number, p->identity. */
int plan_identify(struct plan *p, dsv4_err *err);

/* ------------------------------------------------------------------ gguf.c */

/* Instead of plan_layout(): the plan of one GGUF file. DSV4_REFUSED: what such a file has no way to say, or no exact
 * type for. */
int plan_gguf(struct plan *p, dsv4_err *err);

/* Drafting layers and vision have files of their own in llama.cpp, and layers that route by token id no biases. */
bool gguf_leaves_out(const struct config *c, const char *name);

/* n elements in another type: what GGUF files have floats of 16 bits and integers of 64 become. False: one does not fit. */
bool cast_values(uint8_t *out, enum dtype to, const uint8_t *in, enum dtype from, size_t n);

/* ------------------------------------------------------------------ importance.c */

/* Tells the jobs of a plan that encode what a calibration file knows about their inputs; they point into the store
 * from then on. Refuses one that does not fit them, that knows none of them, or (covariance) has no covariances.
 * What it says becomes part of the plan's identity. `file` is for messages. */
int importance_join(const struct store *s, const char *file, struct plan *p, bool covariance,
                    dsv4_err *err);

/* A tensor of it: F32, n values, none of them negative or not finite. */
int importance_vector(const float **out, const struct store *s, const char *name, uint64_t n,
                      dsv4_err *err);

/* Points a job to the importance of its inputs, where the file has it; *used: of an expert, how many rows it saw. */
int importance_of(const struct store *s, struct job *j, double *used, dsv4_err *err);

/* ------------------------------------------------------------------ encoder.c */

/* What one lane encodes panels with. */
struct encoder {
    const struct kernels *k;
    dsv4_effort effort;
    float *rows; /* [PANEL][cols], to be filled */
    float *errors;
    struct factor {
        const float *of; /* the covariance it was made of */
        float *at;
    } factor[2];
};

struct encoder_needs {
    size_t widest;    /* columns */
    size_t factor[2]; /* columns of the largest covariance of each kind */
    uint64_t bytes;
};

struct encoder_needs encoder_needs(const struct plan *p);
int encoder_open(struct encoder *x, const struct encoder_needs *n, const struct kernels *k,
                 dsv4_effort effort, dsv4_err *err);
void encoder_close(struct encoder *x);
/* x->rows, plain->rows of them -> plain codes and scales as `plain` says (its addresses do not count). */
void encoder_panel(struct encoder *x, const struct job *j, const struct wmat *plain, uint8_t *codes,
                   uint8_t *scales);

/* ------------------------------------------------------------------ output.c */

/* The directory under way: PATH.partial until it is complete. A GGUF file leaves it in the end. */
struct output {
    const struct plan *plan;
    char *final, *partial;
    int dir;         /* PATH.partial, locked */
    int fd;          /* the shard being written */
    size_t shard;    /* its number: those before are complete */
    uint64_t pieces; /* of it that are written for certain */
    char **sum;      /* [n_shards] of complete shards */
};

/* Creates the directory, or finds out how far an earlier run has come. Refuses a destination that exists and
 * is not empty, a partial one of another plan, one that another process is writing, a disk too small. */
int output_open(struct output *o, const struct plan *p, const char *path, bool restart,
                dsv4_err *err);
/* The shard o->shard, at its full size and with its header. */
int output_begin(struct output *o, dsv4_err *err);
int output_write(const struct output *o, uint64_t at, const void *data, size_t n, dsv4_err *err);
/* Everything before piece `pieces` of the shard is on the disk from here on. */
int output_mark(struct output *o, uint64_t pieces, dsv4_err *err);
/* The shard is complete: sum, sync; on to the next. */
int output_end(struct output *o, dsv4_err *err);
/* All shards are complete: tokenizer and other files, index, config, and the final name. */
int output_finish(struct output *o, dsv4_err *err);
/* What is not finished stays, to be continued. */
void output_close(struct output *o);

/* ------------------------------------------------------------------ destination.c */

/* PATH (without slashes at its end) may be absent or an empty directory, never the source, and a finished directory or
 * `file` can be renamed to it. */
int destination_check(const char *path, const char *source, bool file, dsv4_err *err);

/* ------------------------------------------------------------------ sum.c */

/* The checksum of a file as "xxh128:HEX"; empty in builds without xxHash. Reads it all. */
int file_sum(char **out, const char *path, dsv4_progress_fn progress, void *arg, dsv4_err *err);

/* ------------------------------------------------------------------ pieces.c */

/* What pieces are made of, and what was made: by all lanes. */
struct making {
    const struct plan *plan;
    const dsv4_convert_options *opt;
    struct output *out;
    _Atomic uint64_t done;   /* bytes */
    _Atomic uint64_t zeroed; /* values that were NaN or infinite */
};

/* What one lane works with. */
struct maker {
    uint8_t *codes, *scales;
    uint8_t *plain, *plain_scales; /* a panel's rows, encoded */
    uint8_t *read;                 /* elements that get another type */
    struct window window;
    struct encoder encoder;
};

/* The largest of every buffer over all jobs. */
struct maker_needs {
    size_t codes, scales, plain, plain_scales, read, window[2];
    struct encoder_needs encoder;
};
struct maker_needs maker_needs(const struct plan *p);
uint64_t maker_bytes(const struct maker_needs *n);
int maker_open(struct maker *by, const struct maker_needs *n, const struct kernels *k,
               dsv4_effort effort, dsv4_err *err);
void maker_close(struct maker *by); /* after a failure, too */

/* A job is made in so many pieces, in any order. */
uint64_t job_pieces(const struct job *j);
int job_make(struct making *m, struct maker *by, const struct job *j, uint64_t piece,
             dsv4_err *err);

/* ------------------------------------------------------------------ run.c */

/* As many lanes as asked for, fewer where their buffers would take too much memory. */
int convert_lanes(const struct plan *p, const dsv4_convert_options *opt, int *lanes, dsv4_err *err);
int convert_run(struct output *o, const dsv4_convert_options *opt, int lanes, dsv4_err *err);

#endif
