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

/* mHC coefficients of one site: fn [(2+hc)hc][hc*d] (the head: [hc][hc*d]). */
struct hc_site {
    struct wmat fn;
    float *base, *scale;
};

/* Pools `ratio` tokens into one entry of `width` channels. coff 2: with overlap (V4, ratio 4). */
struct compressor {
    uint32_t ratio, coff, width;
    struct wmat wkv, wgate; /* [coff*width][d]; no wgate at ratio 1 */
    float *ape;             /* [ratio][coff*width]; NULL in V4.1 */
    float *norm;            /* [width] */
};

struct indexer {
    struct wmat wq_b, weights_proj; /* [heads*dim][q_lora], [heads][d] */
    struct compressor own;          /* V4: keys have a compressor of their own (ratio 0: none) */
    struct wmat wk;                 /* V4.1 KV sources: keys from latents [dim][c] (rows 0: none) */
    float *k_norm;
};

struct expert {
    struct wmat w1, w2, w3;
};

struct moe {
    struct wmat gate;
    float *bias;            /* [E]; NULL in hash layers */
    const uint8_t *tid2eid; /* hash layers: [vocab][k] expert numbers in the checkpoint ... */
    size_t tid_bytes;       /* ... of 4 or 8 bytes each */
    struct expert *expert;  /* [E] */
    struct expert shared;   /* width n_shared * ff */
};

struct engram {
    struct wmat embed, wkv; /* [rows][dim], [(hc+1)*d][columns*dim] */
    float *qk;              /* [hc][d] q_weight * k_weight */
    uint64_t *prime;        /* [columns] */
    uint64_t *offset;       /* [columns] first row of each column's range */
    uint64_t *multiplier;   /* [ngram] */
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
    struct wmat wq_a, wq_b, wkv, wo_a, wo_b;
    float *q_norm, *kv_norm, *sink;
    struct compressor comp;
    struct indexer index;
    struct moe moe;
    struct engram *engram;
};

struct model {
    struct config *cfg;
    struct store *store;
    struct kernels k;
    struct layer *layer;
    struct wmat embed, head;
    float *norm;
    struct hc_site hc_head; /* V4 */
    float *freq[2];         /* rope frequencies [r/2]: plain, compressed */
    int32_t *engram_map;    /* token id -> compressed id; NULL without engram */
    struct rshape window_row, entry_row, key_row;
    void **owned; /* every block above that is ours */
    size_t n_owned, cap_owned;
};

/* Finds every tensor that the config asks for and checks its dtype and shape; decides what each
 * layer is. cache_quant: caches in the trained formats, otherwise in f32. */
int model_bind(struct model **out, struct config *cfg, struct store *store, bool cache_quant,
               dsv4_err *err);
void model_close(struct model *m); /* closes neither cfg nor store */

/* Zeroed memory that lives as long as the model. */
int model_own(struct model *m, void *out_pointer, size_t n, size_t size, const char *what,
              dsv4_err *err);

/* One named tensor as a matrix or as a vector of floats (bind_tensor.c). */
int bind_matrix(struct model *m, struct wmat *out, uint64_t rows, uint64_t cols, dsv4_err *err,
                const char *name, ...) PRINTF_LIKE(6, 7);
int bind_vector(struct model *m, float **out, uint64_t n, dsv4_err *err, const char *name, ...)
    PRINTF_LIKE(5, 6);
bool model_has(const struct model *m, const char *name, ...) PRINTF_LIKE(2, 3);

/* Refuses scales that are NaN (e8m0 255) in the tensors for which `wanted` says so (NULL: all). */
int model_check_scales(const struct model *m, bool (*wanted)(const struct tensor *t),
                       dsv4_err *err);

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

/* Rows that only grow, in chunks that never move. */
struct rowlist {
    struct rshape shape;
    uint8_t **chunk;
    size_t n_chunks, cap_chunks;
};

enum { CHUNK_ROWS = 1024 };

static inline uint8_t *rowlist_at(const struct rowlist *l, size_t i)
{
    return l->chunk[i / CHUNK_ROWS] + i % CHUNK_ROWS * row_bytes(l->shape);
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

/* Everything one sequence carries from step to step. */
struct cache {
    const struct model *m;
    struct layer_cache *layer;
    uint32_t window_cap, rewind;
    size_t len, high; /* tokens computed; the most there ever were since the last reset */
    int32_t *token;   /* [len] ids, [cap_tokens] */
    int32_t *folded;  /* [len] compressed ids (engram), or NULL */
    size_t cap_tokens;
};

int cache_open(struct cache **out, const struct model *m, uint32_t batch, uint32_t rewind,
               dsv4_err *err);
void cache_close(struct cache *c);
/* Room for `len` tokens in all; afterwards a step up to there cannot fail. */
int cache_reserve(struct cache *c, size_t len, dsv4_err *err);
/* Positions below this cannot be returned to (0 always can). */
size_t cache_floor(const struct cache *c);
void cache_rewind(struct cache *c, size_t len);

/* Bytes a sequence needs at `len` tokens, fixed parts included. */
uint64_t cache_bytes(const struct model *m, uint32_t batch, uint32_t rewind, uint64_t len);

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

struct batch {
    const struct model *m;
    size_t cap, cap_seq; /* rows, sequences */
    const struct tap *tap;

    size_t n, n_seg;
    struct segment *seg; /* [cap_seq] */
    uint32_t *row_seg;   /* [cap] */
    size_t *pos;         /* [cap] */
    int32_t *token;      /* [cap] */
    uint32_t *want;      /* [n_want] rows whose logits are wanted */
    size_t n_want;

    float *cs[2];             /* [cap][r] cos, sin pairs of both rope tables */
    float *h;                 /* [cap][hc][d] residual streams */
    float *x, *y;             /* [cap][d] input and output of a sublayer */
    float *mix;               /* [cap][(2+hc)hc] raw coefficients */
    float *pre, *post, *comb; /* [cap][hc], [cap][hc], [cap][hc][hc] */
    float *carried;           /* [cap][hc] V4.1: the pre of the site before */

    float *qr, *q, *o, *z; /* [cap][q_lora], [cap][H*c] x 2, [cap][o_groups*o_lora] */
    float *kv;             /* [cap][c] */
    float *ck, *cg;        /* [cap][coff*c] rows of the compressor */
    float *ik, *ig;        /* [cap][coff*index_dim] rows of the indexer's compressor */
    float *latent, *lkey;  /* [cap][c], [cap][index_dim] entries closed in this step (V4.1) */
    float *iq, *iw;        /* [cap][index_heads*index_dim], [cap][index_heads] */
    float *score;          /* [score_rows][score_ld] */
    size_t score_rows, score_ld;
    uint32_t *sel, *n_sel;   /* [cap][index_topk], [cap]: chosen entries, ascending */
    uint32_t *cand, *n_cand; /* [cap][candidate_blocks], [cap] */

    float *router;         /* [cap][E] */
    uint32_t *pick;        /* [cap][k] chosen experts */
    float *pick_w;         /* [cap][k] */
    uint32_t *expert_at;   /* [E+1] first place of each expert in expert_row */
    uint32_t *expert_row;  /* [cap*k] rows gathered by expert */
    uint32_t *expert_slot; /* [cap*k] place of (row, j) in expert_row */
    float *expert_w;       /* [cap*k] */
    float *up, *gate;      /* [cap*(k+n_shared)][ff]: silu(w1 x) * w3 x, and w1 x */
    float *down;           /* [cap*k][d] */

    float *memory; /* [cap][columns*dim] engram rows */
    float *mkv;    /* [cap][(hc+1)*d] */

    float *logits;  /* [n_want][vocab], the caller's */
    float *scratch; /* [lanes][scratch_ld] */
    size_t scratch_ld;

    void **owned;
    size_t n_owned, cap_owned;
};

int batch_open(struct batch **out, const struct model *m, size_t rows, size_t seqs, size_t max_ctx,
               int lanes, dsv4_err *err);
void batch_close(struct batch *b);
/* Bytes that batch_open would take. */
uint64_t batch_bytes(const struct model *m, size_t rows, size_t seqs, size_t max_ctx, int lanes);

/* Empties the batch; then rows are added, those of one sequence one after the other, at most
 * b->cap rows of b->cap_seq sequences; the caches have room for them (cache_reserve). */
void batch_begin(struct batch *b);
void batch_add(struct batch *b, struct cache *cache, int32_t token, bool want_logits);

/* Computes b->n rows on every lane of the pool; caches grow, logits of b->want are written. */
void forward(struct pool *pool, struct batch *b);

/* The pages: one step of a family, run by every lane. */
void forward_v4(const struct lane *l, struct batch *b);
void forward_v41(const struct lane *l, struct batch *b);

/* ------------------------------------------------------------------ operators */
/* All are called by every lane with the same arguments, take any number of rows, and end at a barrier. */

void embed(const struct lane *l, struct batch *b);
void sinkhorn(float *pre, float *post, float *comb, const float *m, const float *scale,
              const float *base, size_t n, size_t iterations, float eps);
void hc_pre(const struct lane *l, struct batch *b, const struct hc_site *s, const float *norm,
            int layer, bool ffn);
void hc_post(const struct lane *l, struct batch *b, int layer, bool ffn);
void hc_head(const struct lane *l, struct batch *b);
void head(const struct lane *l, struct batch *b);
void attention(const struct lane *l, struct batch *b, const struct layer *L);

/* The three parts of the compressed branch, as attention() interleaves them; no barriers inside. */
void compress_project(const struct lane *l, struct batch *b, const struct layer *L);
void compress_pool(const struct lane *l, struct batch *b, const struct layer *L);
void compress_keys(const struct lane *l, struct batch *b, const struct layer *L);
void compress_store(const struct lane *l, struct batch *b, const struct layer *L);

/* Index scores and top-k for every row: fills b->sel, b->n_sel. */
void choose_entries(const struct lane *l, struct batch *b, const struct layer *L);
void moe(const struct lane *l, struct batch *b, const struct layer *L);
void engram(const struct lane *l, struct batch *b, const struct layer *L);

/* y[i] = W x_i, rows of W split over lanes; no barrier, so that several can share one phase. */
void linear(const struct lane *l, const struct batch *b, float *y, size_t ldy, const float *x,
            size_t ldx, size_t n, const struct wmat *w);

/* x * (mean(x^2) + eps)^-1/2 * weight (NULL: 1), in place or not. */
/* The k largest of score[0..n) (never -inf or NaN), ties to the lower index: indices ascending in
 * out, returns how many. heap: k floats. */
size_t select_top(uint32_t *out, const float *score, size_t n, size_t k, float *heap);

/* Router weights of a row from its raw scores z [E], in place: s = score function. Then the k best of
 * s + bias (bias NULL: `chosen` holds the experts already), ascending, and their weights. */
void route(const struct config *c, float *z, const float *bias, uint32_t *chosen, float *weight);

/* silu(min(g, limit)) * clamp(u, -limit, limit); limit 0: none. */
float swiglu(float g, float u, float limit);

/* Hidden gates of one row: h_i += sigmoid(signed sqrt of the scaled dot) * value (engram.c). */
void engram_gate(const struct kernels *k, float *h, const float *kv, const float *qk, size_t hc,
                 size_t d, float eps, float *dot, float *gate);

void rms(const struct kernels *k, float *out, const float *x, const float *weight, size_t n,
         float eps);

/* Rotates the last r channels of x [c] by the pairs (cos, sin) in cs [r]; inverse: by -sin. */
void rope(float *x, size_t c, size_t r, const float *cs, bool inverse);
void rope_pairs(float *cs, const float *freq, size_t r, size_t pos);

float *lane_scratch(const struct lane *l, const struct batch *b);

void tap_rows(const struct lane *l, const struct batch *b, int layer, const char *what,
              const float *x, size_t rows, size_t width);
#define TAP(l, b, layer, what, x, rows, width)           \
    do {                                                 \
        if ((b)->tap)                                    \
            tap_rows(l, b, layer, what, x, rows, width); \
    } while (0)

#endif
