/* model.h - a loaded model and one step over a batch of rows.
 *
 * Short names, the same everywhere
 *   d      width of a residual stream        hc     parallel residual streams (mHC)
 *   H, c   query heads, channels of one      r      rope channels, the last r of c
 *   t      absolute position of a row        n      rows of a batch
 *   E, k   experts, experts chosen per row   ff     width of one expert
 *   ratio  tokens per compressed entry       ld     distance between rows, in elements
 *
 * A batch is a list of rows (sequence, position, token), sequences one after the other. Results
 * of a row do not depend on the other rows. Nothing inside a step can fail: shapes were checked
 * when weights were bound, caches are reserved before the step. */
#ifndef DSV4_MODEL_H
#define DSV4_MODEL_H

#include "quant/quant.h"
#include "simd/simd.h"
#include "src/load/load.h"
#include "src/system/system.h"

/* ------------------------------------------------------------------ weights (bind.c) */

enum { MAX_HC = 16, MAX_ENGRAM_COLUMNS = 512 };

/* Rows first .. first + w.rows of a matrix as panels. */
struct part {
    struct wmat w;
    uint32_t first, node;
};

/* A weight matrix. After weights_load() most have parts, one a NUMA node, that together hold all rows;
 * the others are used as they lie in the checkpoint. Panels of a converted directory are a part from the
 * beginning, in the mapped file. */
struct matrix {
    uint32_t rows, cols;
    struct wmat stored; /* in the checkpoint */
    struct part *part;
    uint32_t n_parts;
    const char *name; /* in the checkpoint; NULL without one */
};

/* Inputs of weight matrices that the fast mode quantizes. ORDER ACTS: act_shape (linear.c) */
enum act {
    ACT_X,      /* [n][d] b->x */
    ACT_QR,     /* [n][q_lora] b->qr */
    ACT_O,      /* [n * o_groups][H * c / o_groups] b->o */
    ACT_Z,      /* [n][o_groups * o_lora] b->z */
    ACT_UP,     /* [n * k][ff] b->up, rows gathered by expert */
    ACT_SHARED, /* [n][n_shared * ff] b->shared */
    N_ACTS
};

/* mHC coefficients of one site: fn [(2+hc)hc][hc*d] (the head: [hc][hc*d]). */
struct hc_site {
    struct matrix fn;
    float *base, *scale;
};

/* Pools `ratio` tokens into one entry of `width` channels. coff 2: with overlap (V4, ratio 4). */
struct compressor {
    uint32_t ratio, coff, width;
    struct matrix wkv, wgate; /* [coff*width][d]; no wgate at ratio 1 */
    float *ape;               /* [ratio][coff*width]; NULL in V4.1 */
    float *norm;              /* [width] */
};

struct indexer {
    struct matrix wq_b, weights_proj; /* [heads*dim][q_lora], [heads][d] */
    struct compressor own;            /* V4: keys have a compressor of their own (ratio 0: none) */
    struct matrix wk; /* V4.1 KV sources: keys from latents [dim][c] (rows 0: none) */
    float *k_norm;
};

struct expert {
    struct matrix w1, w2, w3;
};

struct moe {
    struct matrix gate;
    float *bias;            /* [E]; NULL in hash layers */
    const uint8_t *tid2eid; /* hash layers: [vocab][k] expert numbers in the checkpoint ... */
    size_t tid_bytes;       /* ... of 4 or 8 bytes each */
    struct expert *expert;  /* [E] */
    struct expert shared;   /* width n_shared * ff */
};

struct engram {
    struct wmat embed;    /* [rows][dim] */
    struct matrix wkv;    /* [(hc+1)*d][columns*dim] */
    float *qk;            /* [hc][d] q_weight * k_weight */
    uint64_t *prime;      /* [columns] */
    uint64_t *offset;     /* [columns] first row of each column's range */
    uint64_t *multiplier; /* [ngram] */
};

struct layer {
    uint32_t id, ratio;
    bool kv_source, index_source; /* owns a compressed cache; chooses entries itself */
    bool selects;                 /* reads chosen entries; otherwise every visible one */
    bool candidates;              /* may only choose inside the candidate blocks */
    uint32_t kv_layer;            /* whose compressed cache it reads (ratio > 0) */
    int rope;                     /* 0 plain, 1 compressed table of the batch */
    bool hashed;

    struct hc_site hc_attn, hc_ffn;
    float *attn_norm, *ffn_norm; /* [d] */
    struct matrix wq_a, wq_b, wkv, wo_a, wo_b;
    float *q_norm, *kv_norm, *sink;
    struct compressor comp;
    struct indexer index;
    struct moe moe;
    struct engram *engram;
};

struct model {
    struct config *cfg;
    struct store *store;         /* NULL for synthetic models */
    struct synthetic *synthetic; /* NULL for all others */
    struct kernels k;
    struct layer *layer;
    struct wmat embed;
    struct matrix head;
    float *norm;
    struct hc_site hc_head; /* V4 */
    float *freq[2];         /* rope frequencies [r/2]: plain, compressed */
    int32_t *engram_map;    /* token id -> compressed id; NULL without engram */
    struct rshape window_row, entry_row, key_row;
    struct matrix **matrix; /* those that may become panels */
    size_t n_matrix, cap_matrix;
    unsigned act_kinds[N_ACTS]; /* bit 1 << qkind: some matrix with this input wants it */
    struct {
        void *at;
        size_t bytes;
    } * arena; /* [n_arenas] panels, a mapping a NUMA node */
    int n_arenas;
    void **owned; /* every block above that is ours */
    size_t n_owned, cap_owned;
};

/* The kernels of this machine, or those that the environment variable DSV4_SIMD names. */
int model_kernels(struct kernels *k, dsv4_err *err);

/* Finds every tensor that the config asks for and checks its dtype and shape; decides what each
 * layer is. cache_quant: caches in the trained formats, otherwise in f32. */
int model_bind(struct model **out, struct config *cfg, struct store *store, bool cache_quant,
               dsv4_err *err);
void model_close(struct model *m); /* closes neither cfg nor store */

/* The fast mode, before weights are loaded: activations are quantized for the matrices whose kernels take
 * integers. Otherwise everything is computed with floats. as_stored: weights_load() will not be called. */
void model_use_fast(struct model *m, bool as_stored);

/* Makes panels of the matrices, each lane the rows that it will read, and gives the pages of the
 * checkpoint back as it goes; `progress` hears of it. Refuses NaN scales. Panels of a converted directory are
 * copied to their nodes, or with one node stay where they are, unread. Without this call (weights larger
 * than memory) everything is computed from what the checkpoint has. */
int weights_load(struct model *m, struct pool *pool, dsv4_progress_fn progress, void *arg,
                 dsv4_err *err);

/* Bytes that weights_load() takes for the panels of a matrix stored as plain rows or blocks. */
uint64_t weights_bytes(const struct wmat *stored);

/* Zeroed memory that lives as long as the model. */
int model_own(struct model *m, void *out_pointer, size_t n, size_t size, const char *what,
              dsv4_err *err);

/* One named tensor as a matrix or as a vector of floats (bind_tensor.c). */
int bind_matrix(struct model *m, struct matrix *out, uint64_t rows, uint64_t cols, dsv4_err *err,
                const char *name, ...) PRINTF_LIKE(6, 7);
/* A matrix of which single rows are looked up: stays in the checkpoint. */
int bind_table(struct model *m, struct wmat *out, uint64_t rows, uint64_t cols, dsv4_err *err,
               const char *name, ...) PRINTF_LIKE(6, 7);
int bind_vector(struct model *m, float **out, uint64_t n, dsv4_err *err, const char *name, ...)
    PRINTF_LIKE(5, 6);
bool model_has(const struct model *m, const char *name, ...) PRINTF_LIKE(2, 3);

/* ------------------------------------------------------------------ without a checkpoint (synthetic.c) */

struct cache;

/* A tensor as a release has it, without data. Names last as long as the call that tells of it. */
struct made_tensor {
    struct tensor data, scale; /* scale.name NULL: none */
    uint64_t bytes;            /* that a synthetic model has of it */
    uint64_t weights;          /* numbers, without scales */
};

struct synthetic_options {
    enum wformat expert,
        dense; /* W_E2M1, W_Q4, W_Q8, W_E4M3, W_BF16: routed experts; other large matrices */
    uint32_t
        held; /* experts a layer that have weights of their own, the others share theirs; 0: all */
    bool shapes_only;                                     /* to be described, not loaded */
    void (*note)(void *arg, const struct made_tensor *t); /* hears of all tensors */
    void *arg;
};

/* As model_bind, for a config alone. Weights are random, at any number of layers and experts. */
int model_bind_synthetic(struct model **out, struct config *cfg, const struct synthetic_options *o,
                         bool cache_quant, dsv4_err *err);
/* After weights_load: experts beyond those held get the weights of others. */
void synthetic_share(struct model *m);
/* The sequence becomes one of `len` random tokens, caches filled with random rows. */
int synthetic_history(struct cache *c, size_t len, dsv4_err *err);

/* For bind.c and bind_tensor.c. */
int synthetic_open(struct model *m, const struct synthetic_options *o, dsv4_err *err);
void synthetic_close(struct synthetic *s);         /* NULL is allowed */
uint32_t synthetic_experts(const struct model *m); /* held a layer; of any model */
int synthetic_matrix(struct model *m, struct wmat *w, const char *name, uint64_t rows,
                     uint64_t cols, bool table, dsv4_err *err);
int synthetic_vector(struct model *m, float **out, uint64_t n, const char *name, dsv4_err *err);
int synthetic_ids(struct model *m, struct layer *L, dsv4_err *err);
int synthetic_engram(struct model *m, dsv4_err *err);

/* f_i = theta^(-2i/r) and YaRN (spec: architecture, section 3), in float32 as the references do. */
void rope_frequencies(float *f, uint32_t r, double theta, double factor, uint32_t original,
                      double beta_fast, double beta_slow);

/* ------------------------------------------------------------------ engram addressing (engram_hash.c) */

/* Fills prime, offset and multiplier of every table; refuses when the totals are not those of the
 * config. `map` [vocab] with `distinct` different values comes from the tokenizer. */
int engram_address(struct model *m, int32_t *map, uint32_t distinct, dsv4_err *err);

/* Multipliers of layer `id`: NumPy's default_rng(10007 * id).integers(0, bound, n), doubled plus 1. */
void engram_multipliers(uint64_t *out, uint32_t n, uint64_t id, uint64_t bound);
uint64_t engram_bound(uint32_t compressed_vocab);
/* The next prime above x. */
uint64_t next_prime(uint64_t x);

/* Rows [columns] for the token at history[0]; history[-s] is the compressed id of s tokens back,
 * `have` tokens (this one included) exist before the sequence starts or an image interrupts. */
void engram_rows(uint64_t *row, const struct engram *e, uint32_t ngram, uint32_t heads,
                 const int32_t *history, uint32_t have, int32_t pad);

/* ------------------------------------------------------------------ caches (cache.c) */

enum { CHUNK_ROWS = 1024 };

/* CHUNK_ROWS rows. Several sequences that begin alike hold the same chunk; it is written only while one
 * holds it. Counts are plain: an engine and its sequences belong to one thread at a time. */
struct chunk {
    size_t holders;
    _Alignas(64) uint8_t rows[];
};

/* Rows that only grow, in chunks that never move. */
struct rowlist {
    struct rshape shape;
    struct chunk **chunk;
    size_t n_chunks, cap_chunks;
};

static inline uint8_t *rowlist_at(const struct rowlist *l, size_t i)
{
    return l->chunk[i / CHUNK_ROWS]->rows + i % CHUNK_ROWS * row_bytes(l->shape);
}

/* The last tokens' rows before pooling (k and gate), a ring over positions. */
struct open_group {
    uint32_t cap, width; /* positions, floats of k (and of gate) per token; cap 0: none */
    float *k, *gate;     /* [cap][width] */
};

struct layer_cache {
    uint8_t *window; /* ring of window_cap rows, position t at t % window_cap */
    struct rowlist entry, key;
    struct open_group open, key_open;
};

/* A copy of what the rings hold at a position: with it the rowlists suffice to go on from there.
 * Shared like chunks, never changed once it is made. */
struct savepoint {
    size_t pos, holders;
    _Alignas(64) uint8_t data[]; /* tail_bytes(m, pos, pos) */
};

/* Does it own index keys beside its entries? */
static inline bool layer_has_keys(const struct layer *L)
{
    return L->kv_source && (L->index.own.ratio > 0 || L->index.wk.rows > 0);
}

/* Everything one sequence carries from step to step. */
struct cache {
    const struct model *m;
    struct layer_cache *layer;
    uint8_t *rings; /* the block that all windows and open groups are in */
    uint32_t window_cap, rewind;
    size_t len, high; /* tokens computed; the most there ever were since the last reset */
    size_t base;      /* the rings begin here: 0, or where they were filled from a copy */
    int32_t *token;   /* [len] ids, [cap_tokens] */
    int32_t *folded;  /* [len] compressed ids (engram), or NULL */
    size_t cap_tokens;
    struct savepoint **save; /* ascending; n_saved are made, the others are room for later */
    size_t n_save, n_saved, cap_save;
    size_t save_step; /* a savepoint at every multiple of this */
};

int cache_open(struct cache **out, const struct model *m, uint32_t batch, uint32_t rewind,
               dsv4_err *err);
/* A second cache that holds the first `len` tokens of `from`, cache_reusable(from, len) == len. */
int cache_fork(struct cache **out, const struct cache *from, size_t len, dsv4_err *err);
void cache_close(struct cache *c);
/* Room for `len` tokens in all; afterwards a step up to there cannot fail. What is shared and would be
 * written on the way becomes this cache's own. */
int cache_reserve(struct cache *c, size_t len, dsv4_err *err);
/* The same without room for savepoints: for those who bring their own. */
int cache_reserve_rows(struct cache *c, size_t len, dsv4_err *err);
/* The rings alone can return to this position and to those above it. */
size_t cache_floor(const struct cache *c);
/* The largest position up to `len` that can be returned to, by the rings or by a savepoint; or 0. */
size_t cache_reusable(const struct cache *c, size_t len);
/* Returns to `len`, cache_reusable(c, len) == len. Later savepoints are gone. */
void cache_rewind(struct cache *c, size_t len);

/* Bytes a sequence needs at `len` tokens, fixed parts included. */
uint64_t cache_bytes(const struct model *m, uint32_t batch, uint32_t rewind, uint64_t len);
/* Bytes this cache holds; of what it shares with others only its share. */
uint64_t cache_held(const struct cache *c);

/* ------------------------------------------------------------------ savepoints (savepoint.c) */

/* The tail [low, len) of a cache: all ring rows that are needed to stand at any position low .. len.
 * Calls fn with each of its pieces, in an order that depends on the model alone; stops at the first
 * result that is not 0 and returns it. low >= cache_floor(c), or the pieces are to be filled. */
typedef int (*tail_fn)(void *arg, void *piece, size_t bytes);
int cache_tail(const struct cache *c, size_t low, size_t len, tail_fn fn, void *arg);
uint64_t tail_bytes(const struct model *m, uint64_t low, uint64_t len);

/* Tokens between two savepoints: as many as make one cost at most 3 % of the rows they add. */
size_t savepoint_step(const struct model *m);
/* A new savepoint for a position, its data to be filled. */
int savepoint_open(struct savepoint **out, const struct model *m, size_t pos, dsv4_err *err);
void savepoint_close(struct savepoint *s);

/* Room for the savepoints between c->len and `len`. */
int savepoints_reserve(struct cache *c, size_t len, dsv4_err *err);
/* The position above c->len where a step has to end, so that savepoints_keep() sees it. */
size_t savepoints_next(const struct cache *c);
/* After a step: makes the savepoint that belongs here, if one does. */
void savepoints_keep(struct cache *c);
/* One at c->len, wherever that is. */
int savepoints_add(struct cache *c, dsv4_err *err);
/* The one at `pos`; NULL when there is none. */
/* Gives up the one at `pos`, unless it is one of the regular ones. */
void savepoints_remove(struct cache *c, size_t pos);
const struct savepoint *savepoints_find(const struct cache *c, size_t pos);
/* Forgets those above `len` and all room. */
void savepoints_drop(struct cache *c, size_t len);
/* Fills the rings. */
void savepoint_restore(struct cache *c, const struct savepoint *s);

/* ------------------------------------------------------------------ a step (batch.c, forward_*.c) */

/* Consecutive rows of one sequence. */
struct segment {
    struct cache *cache;
    size_t row, n; /* first row of the batch, number */
    size_t pos;    /* position of the first row */
};

/* For tests and comparisons: called on one lane at the points that the goldens name, with rows of
 * floats, or without any ("chosen", "experts") when the batch itself holds what was decided. */
struct batch;
struct tap {
    void (*fn)(void *arg, const struct batch *b, int layer, const char *what, const float *x,
               size_t rows, size_t width);
    void *arg;
};

/* For statistics of what matrices multiply with (src/session/statistics.c). */
struct observer {
    /* n rows x_i = x + (pick ? pick[i] : i) * ld of the activation `a` (N_ACTS: of none) meet a matrix. Called by all
     * lanes, each with columns of its own: together they hear of every column c0 .. c1 once. */
    void (*input)(void *arg, const struct batch *b, const struct matrix *w, enum act a,
                  const float *x, size_t ld, const uint32_t *pick, size_t n, size_t c0, size_t c1);
    /* On one lane: b->down holds what experts gave, weighted by the router, as b->expert_at sorts them. */
    void (*experts)(void *arg, const struct batch *b, const struct layer *L);
    void *arg;
};

/* What a step spends its time on. ORDER OPS: op_name (src/session/timing.c) */
enum op {
    OP_EMBED,
    OP_MHC_ATTENTION,
    OP_MHC_EXPERTS,
    OP_PROJECT,
    OP_QUERIES,
    OP_INDEX,
    OP_ATTEND,
    OP_OUTPUT,
    OP_ROUTER,
    OP_UP,
    OP_DOWN,
    OP_ENGRAM,
    OP_HEAD,
    N_OPS
};

struct batch {
    const struct model *m;
    size_t cap, cap_seq; /* rows, sequences */
    const struct tap *tap;
    const struct observer *observer;

    size_t n, n_seg;
    struct segment *seg; /* [cap_seq] */
    uint32_t *row_seg;   /* [cap] */
    size_t *pos;         /* [cap] */
    int32_t *token;      /* [cap] */
    uint32_t *want;      /* [n_want] rows whose logits are wanted */
    size_t n_want;
    bool *bulk; /* [cap] logits not wanted: the fast mode may use integers for fp8 weights */

    float *cs[2];             /* [cap][r] cos, sin pairs of both rope tables */
    float *h;                 /* [cap][hc][d] residual streams */
    float *x, *y;             /* [cap][d] input and output of a sublayer */
    float *hc_part;           /* [cap][hc_part_floats] sums over blocks of columns (hc.c) */
    float *mix;               /* [cap][(2+hc)hc] raw coefficients */
    float *pre, *post, *comb; /* [cap][hc], [cap][hc], [cap][hc][hc] */
    float *carried;           /* [cap][hc] V4.1: the pre of the site before */

    float *qr, *q, *z; /* [cap][q_lora], [cap][H*c] queries, then outputs, [cap][o_groups*o_lora] */
    float *qr_squares; /* [cap][q_lora/ROW_UNIT] of wq_a x */
    uint32_t *group_row;     /* [o_groups][cap] rows of ACT_O: group g of row i */
    float *kv;               /* [cap][c] */
    float *ck, *cg;          /* [cap][coff*c] rows of the compressor */
    float *ik, *ig;          /* [cap][coff*index_dim] rows of the indexer's compressor */
    float *iq, *iw;          /* [cap][index_heads*index_dim], [cap][index_heads] */
    uint32_t *piece;         /* [cap + lanes][piece_words] what lanes found best (indexer.c) */
    size_t *piece_end;       /* [lanes] where the scored units of a lane end */
    size_t *unit_end;        /* [cap] where those of a row end */
    uint32_t *sel, *n_sel;   /* [cap][index_topk], [cap]: chosen entries, ascending */
    uint32_t *cand, *n_cand; /* [cap][candidate_blocks], [cap] */

    float *router;         /* [cap][E] */
    uint32_t *pick;        /* [cap][k] chosen experts */
    float *pick_w;         /* [cap][k] */
    uint32_t *expert_at;   /* [E+1] first place of each expert in expert_row */
    uint32_t *expert_row;  /* [cap*k] rows gathered by expert */
    uint32_t *expert_slot; /* [cap*k] place of (row, j) in expert_row */
    uint32_t *identity;    /* [cap*k] 0, 1, 2, ... */
    float *expert_w;       /* [cap*k] */
    float *up, *shared;    /* [cap*k][ff], [cap][n_shared*ff]: silu(w1 x) * w3 x */
    float *gate;           /* [cap*(k+n_shared)][ff]: w1 x */
    float *down;           /* [cap*k][d] */

    float *memory; /* [cap][columns*dim] engram rows */
    float *mkv;    /* [cap][(hc+1)*d] */

    struct qrows quant[N_ACTS][Q_KINDS]; /* by kind; code NULL where no matrix wants it */

    double *spent; /* [n_layers + 1][N_OPS] seconds (the last row: no layer), or NULL: not wanted */
    double lap;    /* when the running operator began */
    size_t steps, rows_timed, barriers;

    float *logits;  /* [n_want][vocab], the caller's */
    float *scratch; /* [lanes][scratch_ld] */
    size_t scratch_ld;

    void **owned;
    size_t n_owned, cap_owned;
};

int batch_open(struct batch **out, const struct model *m, size_t rows, size_t seqs, int lanes,
               dsv4_err *err);
void batch_close(struct batch *b);
/* Bytes that batch_open would take. */
uint64_t batch_bytes(const struct model *m, size_t rows, size_t seqs, int lanes);

/* Empties the batch; then rows are added, those of one sequence one after the other, at most
 * b->cap rows of b->cap_seq sequences; the caches have room for them (cache_reserve). */
void batch_begin(struct batch *b);
void batch_add(struct batch *b, struct cache *cache, int32_t token, bool want_logits);
/* Asks for the logits of a row that was added without; once a row, in the order of the logits. */
void batch_want(struct batch *b, size_t row);

/* Computes b->n rows on every lane of the pool; caches grow, logits of b->want are written. */
void forward(struct pool *pool, struct batch *b);

/* The pages: one step of a family, run by every lane. */
void forward_v4(const struct lane *l, struct batch *b);
void forward_v41(const struct lane *l, struct batch *b);

/* ------------------------------------------------------------------ operators */
/* All are called by every lane with the same arguments, take any number of rows, and end at a
 * barrier, but attention(), moe() and hc_project(): each lane has then written its columns of b->y
 * (lane_split by DOT_BLOCK) or its sums, and goes on with those. */

void embed(const struct lane *l, struct batch *b);
void sinkhorn(float *pre, float *post, float *comb, const float *m, const float *scale,
              const float *base, size_t n, size_t iterations, float eps);
void hc_pre(const struct lane *l, struct batch *b, const struct hc_site *s, const float *norm,
            int layer, bool ffn);
/* `next`: the site that reads the streams next (NULL: something else changes them before). */
void hc_post(const struct lane *l, struct batch *b, const struct hc_site *next, int layer,
             bool ffn);
/* This lane's part of the projections that hc_pre and hc_head begin with. */
void hc_project(const struct lane *l, struct batch *b, const struct hc_site *s);
/* The same as a phase of its own, where no hc_post comes before. */
void hc_start(const struct lane *l, struct batch *b, const struct hc_site *s);
size_t hc_part_floats(const struct config *c);
void hc_head(const struct lane *l, struct batch *b);
void head(const struct lane *l, struct batch *b);
void attention(const struct lane *l, struct batch *b, const struct layer *L);

/* What the norm of qr multiplies a row by; its weights are in b->qr already. */
float query_scale(const struct batch *b, size_t row);

/* The three parts of the compressed branch, as attention() interleaves them; no barriers inside. */
void compress_project(const struct lane *l, struct batch *b, const struct layer *L);
void compress_entries(const struct lane *l, struct batch *b, const struct layer *L);
void compress_remember(const struct lane *l, struct batch *b, const struct layer *L);

/* Index scores of every row: fills b->piece. */
void choose_entries(const struct lane *l, struct batch *b, const struct layer *L);
/* The chosen entries of a row, ascending, to sel [index_topk]; returns how many. With `publish` (one
 * lane a row) b->sel, b->n_sel and the candidate blocks are filled too. words: merge_words(). */
size_t merge_entries(struct batch *b, const struct layer *L, size_t row, bool publish,
                     uint32_t *sel, uint32_t *words);

/* Words (floats or uint32_t) of a lane's scratch; of a piece. */
size_t compress_words(const struct config *c);
size_t choose_words(const struct config *c);
size_t merge_words(const struct config *c);
size_t attend_words(const struct config *c);
size_t piece_words(const struct config *c);

void moe(const struct lane *l, struct batch *b, const struct layer *L);
void engram(const struct lane *l, struct batch *b, const struct layer *L);

/* ------------------------------------------------------------------ products (linear.c) */

/* y[i] = W x_i, rows of W split over lanes; no barrier, so that several can share one phase. */
void linear(const struct lane *l, const struct batch *b, float *y, size_t ldy, const float *x,
            size_t ldx, size_t n, const struct matrix *w);
/* One row by this lane alone: small matrices of which a phase of their own would cost more. */
void linear_alone(const struct lane *l, const struct batch *b, float *y, const float *x,
                  const struct matrix *w);

/* The same for an input that is quantized in the fast mode: act_ready() has been called for its rows. */
void linear_act(const struct lane *l, const struct batch *b, float *y, size_t ldy, enum act a,
                size_t n, const struct matrix *w);

/* Rows r0 .. r1 of the product for the input rows pick[i] (NULL: i) of an activation; r0 and r1 are
 * multiples of ROW_UNIT or w->rows. */
void product(const struct lane *l, const struct batch *b, float *y, size_t ldy, enum act a,
             const uint32_t *pick, size_t n, const struct matrix *w, size_t r0, size_t r1);
enum { ROW_UNIT = GROUP };

/* Floats c0 .. c1 (multiples of GROUP, or the end) of a row of an activation are written: quantizes them
 * when the step needs that. */
void act_ready(const struct batch *b, enum act a, size_t row, size_t c0, size_t c1);

/* Width of a row of the activation, and how many there are for one row of the batch. */
size_t act_width(const struct config *c, enum act a);
size_t act_rows(const struct config *c, enum act a);

/* ------------------------------------------------------------------ the k best of a stream (topk.c) */

struct best {
    uint32_t *key, *id; /* scores as integers of the same order, their numbers ascending */
    size_t n, k;
    float limit; /* what is not above this is not among the k best */
};

/* words: best_words(k) of them. Scores are never -inf or NaN; numbers come in ascending order. */
size_t best_words(size_t k);
void best_open(struct best *t, size_t k, uint32_t *words);
/* Scores of the numbers first, first + 1, ... */
void best_add(struct best *t, const float *score, size_t n, uint32_t first);
void best_merge(struct best *t, const uint32_t *key, const uint32_t *id, size_t n);
/* At most k are left. */
void best_close(struct best *t);

/* The k largest of score[0..n) (never -inf or NaN), ties to the lower index: indices ascending in
 * out, returns how many. */
size_t select_top(uint32_t *out, const float *score, size_t n, size_t k, uint32_t *words);

/* Router weights of a row from its raw scores z [E], in place: s = score function. Then the k best of
 * s + bias (bias NULL: `chosen` holds the experts already), ascending, and their weights. */
void route(const struct config *c, float *z, const float *bias, uint32_t *chosen, float *weight);

/* Hidden gates of one row: h_i += sigmoid(signed sqrt of the scaled dot) * value (engram.c). */
void engram_gate(const struct kernels *k, float *h, const float *kv, const float *qk, size_t hc,
                 size_t d, float eps, float *dot, float *gate);

/* x * (mean(x^2) + eps)^-1/2 * weight (NULL: 1), in place or not. */
void rms(const struct kernels *k, float *out, const float *x, const float *weight, size_t n,
         float eps);

/* Rotates the last r channels of x [c] by the pairs (cos, sin) in cs [r]; inverse: by -sin. */
void rope(float *x, size_t c, size_t r, const float *cs, bool inverse);
void rope_pairs(float *cs, const float *freq, size_t r, size_t pos);

float *lane_scratch(const struct lane *l, const struct batch *b);

/* From now on b->spent adds up. */
int batch_time(struct batch *b, dsv4_err *err);
void lap_end(struct batch *b, int layer, enum op op);
/* Lane 0 has finished an operator (layer -1: of none). What it waited for others counts to where it waited. */
static inline void lap(const struct lane *l, struct batch *b, int layer, enum op op)
{
    if (b->spent && l->id == 0)
        lap_end(b, layer, op);
}

void tap_rows(const struct lane *l, const struct batch *b, int layer, const char *what,
              const float *x, size_t rows, size_t width);
#define TAP(l, b, layer, what, x, rows, width)           \
    do {                                                 \
        if ((b)->tap)                                    \
            tap_rows(l, b, layer, what, x, rows, width); \
    } while (0)

#endif
