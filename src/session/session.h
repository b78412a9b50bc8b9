/* session.h - the inner side of engines and sequences (what programs see is dsv4.h). */
#ifndef DSV4_SESSION_H
#define DSV4_SESSION_H

#include "src/model/model.h"

/* A checkpoint directory, checked and bound, nothing of it read: what info and plan describe and what an
 * engine is made of. */
struct checkpoint {
    char *dir;
    struct config *cfg;
    struct store *store;
    struct model *m;
    struct made *made; /* instead of a store: what a synthetic model would have (synthetic.c) */
};

int checkpoint_open(struct checkpoint *c, const char *dir, bool cache_quant, dsv4_err *err);
void checkpoint_close(struct checkpoint *c);

/* ------------------------------------------------------------------ memory plan (plan.c) */

struct class_sum {
    uint64_t tensors, bytes, weights; /* bytes: of the files; weights: numbers, without scales */
    uint64_t held;                    /* bytes in memory once weights are loaded */
    uint64_t by_dtype[N_DTYPES];      /* bytes of the files */
};

bool class_is_used(enum tensor_class c);
/* Weights that every token may need: not the Engram tables, nor what is not used yet. */
bool tensor_is_read(const struct tensor *t);
void checkpoint_classes(const struct checkpoint *c, struct class_sum out[N_CLASSES]);

struct memory_plan {
    uint32_t ctx, batch, sequences, rewind;
    int threads;
    uint64_t weights; /* read for tokens: stay in memory, as they are there; paged: of the files */
    uint64_t tables;  /* Engram tables: mapped, paged in by row */
    uint64_t unused;  /* drafting heads, vision: never touched */
    uint64_t caches;  /* all sequences at ctx tokens */
    uint64_t scratch; /* buffers of a step */
    uint64_t other;   /* tokenizer, tables, threads: an estimate */
    uint64_t available;
};

/* Chooses what `opt` leaves open and refuses (DSV4_NO_MEMORY with figures) what does not fit. With
 * `anyway` a plan that does not fit is returned too. */
int plan_make(struct memory_plan *p, const struct checkpoint *c, const dsv4_options *opt,
              const struct placement *place, bool anyway, dsv4_err *err);
/* Threads on the cores of this machine, as `opt` wants them; placement_release(). */
int plan_threads(struct placement *out, const dsv4_options *opt, dsv4_err *err);

/* dsv4_plan for what is open already, with further members. */
int checkpoint_plan(const struct checkpoint *c, const dsv4_options *opt, char **json,
                    dsv4_err *err);

/* ------------------------------------------------------------------ synthetic models (synthetic.c) */

/* What the tensors of a layer add up to. */
struct made_layer {
    uint32_t id;                           /* its number in the config */
    uint64_t bytes, weights;               /* read for every token */
    uint64_t expert_bytes, expert_weights; /* of all routed experts that are held */
};

struct made {
    struct class_sum sum[N_CLASSES];
    uint32_t n_layers, held; /* experts held */
    struct made_layer *layer;
};

void made_close(struct made *m); /* NULL is allowed */

/* The model of a config.json's text without its weights: tensors with the names, types and shapes that a release of
 * it has (no drafting heads, no vision), all without data. */
int checkpoint_shapes(struct checkpoint *cp, const char *config, size_t len, dsv4_err *err);

/* ------------------------------------------------------------------ texts (windows.c) */

struct windows {
    const int32_t *ids;
    size_t n;
    size_t window; /* tokens of a piece; less where the engine's context is shorter */
    size_t every;  /* one row in so many computes logits, counted from the beginning of a step */
    void (*logits)(void *arg, size_t token, const float *row); /* hears of them; or NULL */
    void *arg;
    dsv4_progress_fn progress; /* of tokens: `done` before these of `total`; or NULL */
    void *progress_arg;
    uint64_t done, total;
};

int windows_run(dsv4_engine *e, const struct windows *w, dsv4_err *err);

/* ------------------------------------------------------------------ engine */

struct dsv4_engine {
    struct checkpoint cp;
    struct memory_plan plan;
    struct placement place;
    dsv4_tokenizer *tok;
    struct pool *pool;
    struct batch *batch;
    dsv4_sampling sampling;
    uint64_t fingerprint[2]; /* of the model, for snapshots; zero until it is asked for */
};

struct dsv4_seq {
    dsv4_engine *e;
    struct cache *cache;
    size_t pending; /* tokens of the running dsv4_eval */
    bool counted;
};

#endif
