/* load.h - checkpoint directories: config.json -> numbers, safetensors -> tensors by official name.
 * Everything is checked here before anybody touches a weight; what the tensors mean for a layer
 * is src/model/bind.c's business. */
#ifndef DSV4_LOAD_H
#define DSV4_LOAD_H

#include "quant/quant.h"
#include "src/system/system.h"

/* ------------------------------------------------------------------ json.c */

struct json_t;

/* Parses `text` (any JSON value, no key twice). jansson stops at 2048 levels. */
int json_open(struct json_t **out, const char *text, size_t len, const char *where, dsv4_err *err);

/* A value as text, malloc'ed; flags as for json_dumpb. NULL is an error: a lack of memory on the way to it. Use
 * this and not json_dumps(): when its buffer cannot grow, jansson 2.14 may leave out a key and carry on. */
int json_write(char **out, const struct json_t *value, size_t flags, dsv4_err *err);

/* ------------------------------------------------------------------ config.c */

enum family { FAMILY_V4, FAMILY_V41 };
enum score_func { SCORE_SQRTSOFTPLUS, SCORE_SIGMOID, SCORE_SOFTMAX };

/* What config.json says, whatever its spelling (spec: checkpoints). All numbers are in range and
 * consistent with each other: no divisor is 0, every product used later fits size_t. */
struct config {
    enum family family;
    bool rev_0731; /* V4: the config carries dspark_* keys, so prompts follow the 0731 revision */

    uint32_t vocab, d, n_layers, n_heads, head_dim, rope_dim, q_lora;
    uint32_t o_groups, o_lora;
    uint32_t window;
    uint32_t max_ctx;
    float eps;

    uint32_t n_experts, top_k, d_ff,
        n_shared; /* d_ff: width of one expert (shared: n_shared * d_ff) */
    enum score_func score;
    bool norm_topk;
    float routed_scale, gate_temp; /* gate_temp 1 for V4 */
    float swiglu_limit;            /* 0: none */
    uint32_t n_hash_layers;        /* V4: the first so many layers route by token id */

    double rope_theta, compress_theta;
    double yarn_factor;     /* 1 when there is no scaling */
    uint32_t yarn_original; /* 0: no YaRN */
    double yarn_beta_fast, yarn_beta_slow;

    uint32_t *ratio; /* [n_layers]: 0 window only, 1, 2, 4, 128 */
    uint32_t index_heads, index_dim, index_topk;

    uint32_t hc_mult, hc_iters;
    float hc_eps;

    /* V4.1 only */
    int32_t *kv_source; /* [n_layers]: the layer whose compressed cache this one reads; -1 none */
    int32_t *index_source;    /* [n_layers]: the layer whose selection this one uses; -1 none */
    int32_t candidate_source; /* -1: none */
    uint32_t candidate_blocks, candidate_block;

    uint32_t n_engram;      /* 0: none */
    uint32_t *engram_layer; /* [n_engram], ascending */
    uint64_t *engram_rows;  /* [n_engram] rows of each table */
    uint64_t engram_vocab;  /* V0: primes start above V0 - 1 */
    uint32_t engram_ngram, engram_heads, engram_dim;
    uint32_t engram_compressed; /* distinct keys that the tokenizer has to give */
    int32_t engram_pad;

    uint32_t n_mtp;                                     /* drafting blocks in the checkpoint */
    uint32_t dspark_block, dspark_experts, dspark_topk; /* 0 when absent */
    bool has_vision;
    int32_t image_token; /* -1 */

    struct packing *packing; /* of a converted directory; NULL: an official one */
    uint32_t fp8_block;      /* B of weight_block_size; 128 (V4) or 32 (V4.1) when it is not said */
    int32_t bos, eos, pad;   /* -1 when absent */
};

/* Parses the text of a config.json. `where` names it in messages. */
int config_parse(struct config **out, const char *json, size_t len, const char *where,
                 dsv4_err *err);
void config_close(struct config *c);

/* How matrix NAME (the tensor NAME.weight) of a converted directory is packed; NULL: it is not. */
const struct wtype *packing_type(const struct packing *p, const char *name);
/* Its rows, where that is said: their panels may have more. 0: not said. */
uint32_t packing_rows(const struct packing *p, const char *name);

/* What generation_config.json says; fields keep their input value when the file does not have them. */
struct generation_defaults {
    bool do_sample;
    float temperature, top_p;
    int top_k;
    float repetition;
};
int generation_parse(struct generation_defaults *g, const char *json, size_t len, const char *where,
                     dsv4_err *err);

/* ------------------------------------------------------------------ safetensors.c, names.c */

enum dtype {
    DTYPE_F64,
    DTYPE_F32,
    DTYPE_F16,
    DTYPE_BF16,
    DTYPE_E4M3, /* F8_E4M3 */
    DTYPE_E8M0, /* F8_E8M0 */
    DTYPE_E5M2,
    DTYPE_I8,
    DTYPE_U8,
    DTYPE_I16,
    DTYPE_I32,
    DTYPE_I64,
    DTYPE_BOOL,
    DTYPE_BLOCKS, /* of a GGUF file: tensor.blocks says which */
    N_DTYPES
};

const char *dtype_name(enum dtype t); /* as safetensors spells it */
size_t dtype_size(enum dtype t);      /* bytes of one element; blocks: 1 */

enum { TENSOR_MAX_RANK = 4 };

/* One tensor of a shard; data points into the mapping (any alignment). */
struct tensor {
    const char *name;   /* official name (names.c) */
    const char *stored; /* the name in the file, for messages */
    const char *path;   /* the shard, for messages */
    enum dtype dtype;
    uint32_t rank;
    uint64_t dim[TENSOR_MAX_RANK];
    const uint8_t *data;
    uint64_t bytes; /* == product of dims x dtype size, but for blocks */
    const struct block_type *blocks;
};

/* All tensors of a checkpoint directory or of a single .safetensors file. */
struct store;

/* Opens DIR/model.safetensors or the shards of DIR/model.safetensors.index.json; every header is
 * checked (spans inside the file, sizes equal shape x dtype, contiguous from 0 without holes or
 * overlaps, no name twice, index and shards agree). Nothing of the data is read. */
int store_open(struct store **out, const char *dir, dsv4_err *err);
/* A single safetensors or GGUF file; store_open() takes one, too. */
int store_open_file(struct store **out, const char *file, dsv4_err *err);
void store_close(struct store *s);

/* A store of tensors that are not there: an empty one; a tensor without data, its name copied; at the end they are
 * brought into order, and names that come twice refused. */
int store_open_shapes(struct store **out, dsv4_err *err);
int store_add_shape(struct store *s, const struct tensor *t, dsv4_err *err);
int store_sort_shapes(struct store *s, dsv4_err *err);

/* One of the small files of a checkpoint. */
struct checkpoint_text {
    char *text; /* NUL behind it; NULL: the checkpoint has no such file */
    size_t len;
    char *where; /* for messages */
};

/* NAME (config.json, tokenizer.json, ...) of a directory, or what the metadata of a GGUF file says in its place. With
 * `needed` its absence is refused. At most 256 MiB. After a failure there is nothing to close. */
int checkpoint_text(struct checkpoint_text *t, const char *checkpoint, const char *name,
                    bool needed, dsv4_err *err);
void checkpoint_text_close(struct checkpoint_text *t);
/* A GGUF file and no directory? */
bool checkpoint_is_file(const char *checkpoint);

/* The other way: texts of an official directory -> metadata of a GGUF file. */
struct gguf_about {
    const char *name;         /* of the model */
    const struct config *cfg; /* V4 */
    const char *tokenizer;    /* the text of tokenizer.json; NULL: a file without */
    const char *settings;     /* of tokenizer_config.json; NULL: there is none */
    const char *chat;         /* of chat_template.jinja; NULL: one of ours */
    const char *generation;   /* of generation_config.json; NULL: there is none */
    const char *where;        /* the directory, for messages */
    uint32_t file_type;       /* llama.cpp's number for what most weights are */
};

/* Whether llama.cpp runs what the config says. */
int gguf_says(const struct config *c, const char *where, dsv4_err *err);
/* Appends keys and values and counts them in *n. DSV4_REFUSED: llama.cpp splits text otherwise than this tokenizer. */
int gguf_metadata(struct bytes *out, uint64_t *n, const struct gguf_about *a, dsv4_err *err);
/* "GGUF", version and counts, what a file begins with. */
int gguf_begin(struct bytes *out, uint64_t tensors, uint64_t keys, dsv4_err *err);

enum { GGUF_NAME_CAP = 64, GGUF_ALIGNMENT = 32 };

/* What a tensor is called in a GGUF file. */
struct gguf_name {
    char text[GGUF_NAME_CAP];
    int64_t expert; /* its place in a fused tensor; -1: it is one by itself */
    uint64_t order; /* in which tensors stand in files */
};

/* False: deepseek4 files have no tensor like that. */
bool gguf_name_of(struct gguf_name *out, const char *official);
/* The number of a type of elements in GGUF files, which have F32 F16 BF16 F64 I8 I16 I32 I64. */
uint32_t gguf_type_id(enum dtype t);

/* NULL when there is none. O(1) or O(log n). */
const struct tensor *store_find(const struct store *s, const char *name);
size_t store_count(const struct store *s);
const struct tensor *store_at(const struct store *s, size_t i); /* ascending by name */
uint64_t store_bytes(const struct store *s);                    /* tensor data in all shards */
size_t store_shards(const struct store *s);

/* Copies n bytes of tensor data by reading them from their file: one that was cut since it was opened is DSV4_FAILED
 * with its name, where looking at p would end the process. What lies in no shard is copied from p. */
int store_read(const struct store *s, const uint8_t *p, size_t n, uint8_t *out, dsv4_err *err);

/* n bytes of tensor data will not be read soon: their pages are no longer counted as this process's. What lies in
 * no shard (memory of the caller) is left alone. */
void store_release(const struct store *s, const uint8_t *p, size_t n);

/* Reads the pages of the tensors for which `wanted` says so (NULL: all), in the order of the files,
 * so that a slow disk is felt here and not at the first token. `progress` hears of every 64 MB or
 * so and can stop it. */
int store_prefetch(const struct store *s, bool (*wanted)(const struct tensor *t),
                   dsv4_progress_fn progress, void *arg, dsv4_err *err);

/* The official name of a stored name: no `model.` prefix, no old spelling (spec: checkpoints).
 * Writes at most cap bytes with NUL; false when it does not fit. */
bool official_name(const char *stored, char *out, size_t cap);

/* "F8_E4M3 [512, 7168]" */
void tensor_shape_text(const struct tensor *t, char *out, size_t cap);

/* "PATH: NAME is DTYPE [..]; expected WANT". Returns DSV4_REFUSED. */
int tensor_refuse(const struct tensor *t, const char *want, dsv4_err *err);

/* What tensors of a checkpoint are for. ORDER CLASSES: tensor_class_name (names.c) */
enum tensor_class {
    CLASS_EMBED,
    CLASS_HEAD,
    CLASS_ATTENTION,
    CLASS_INDEXER, /* and compressors */
    CLASS_EXPERTS,
    CLASS_SHARED,
    CLASS_ROUTER,
    CLASS_SMALL, /* norms, mHC */
    CLASS_ENGRAM_TABLE,
    CLASS_ENGRAM,
    CLASS_DRAFT,  /* mtp.*: recognised, not used yet */
    CLASS_VISION, /* likewise */
    CLASS_OTHER,
    N_CLASSES
};

enum tensor_class tensor_class_of(const char *official_name);
/* Large matrices that take any type: attention, experts, Engram projections, head. The others decide by comparing
 * (routers, indexer), or are small. */
bool class_is_typed(enum tensor_class c);
const char *tensor_class_name(enum tensor_class c);

/* ------------------------------------------------------------------ matrix.c */

/* Tensor NAME with its scales as the matrix [rows][cols] that kernels read in place: plain, or the panels
 * of a converted directory. rows and cols 0: as they are in the file (panels: rows a multiple of 16, unless
 * the config says how many). Dtype and shape are checked, nothing of the data is read. */
int matrix_find(struct wmat *out, const struct store *s, const struct config *c, const char *name,
                uint64_t rows, uint64_t cols, dsv4_err *err);

/* Whether a matrix may be packed at all: not where its rows are used in groups that are no panels. */
bool matrix_packs(const struct config *c, const char *name);

/* The name of a matrix's scales, NAME.scale for NAME.weight; false when it has none or does not fit. */
bool scale_name(const char *weight, char *out, size_t cap);
/* The other way round: NAME.weight for NAME.scale; false when it is no such name or does not fit. */
bool scaled_name(const char *scale, char *out, size_t cap);
/* NAME without .weight, as the types of a converted directory call it; false as above. */
bool matrix_name(const char *weight, char *out, size_t cap);

enum { MATRIX_NAME = 256 };

/* The name of a matrix with "*" for the number of an expert; out has room for MATRIX_NAME bytes. */
void star_expert(char *out, const char *matrix);

#endif
