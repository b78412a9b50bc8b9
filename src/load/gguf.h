/* gguf.h - the metadata of a GGUF file, for the files gguf*.c. */
#ifndef DSV4_LOAD_GGUF_H
#define DSV4_LOAD_GGUF_H

#include "parts.h"

/* Types of values. ORDER GGUF_TYPES (gguf.c) */
enum gguf_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64
};

/* A key with its value, or its list of n values of one type, which begin at a byte of the file. */
struct gguf_meta {
    struct slice key;
    uint32_t type;
    bool list;
    uint64_t n;
    size_t at;
};

/* A tensor as its file has it: what is fused is one. */
struct gguf_entry {
    struct slice name;
    uint64_t offset;
    struct tensor t; /* without names */
};

/* One file. */
struct gguf {
    const uint8_t *data;
    size_t len, at;
    const char *path;
    struct gguf_meta *meta; /* [n], ascending by key */
    size_t n, cap;
    struct gguf_entry *entry; /* [n_entries], as their data lie */
    uint64_t n_entries;
    dsv4_err *err;
};

/* Magic, version, metadata and the list of tensors, each inside the file and none over another. `err` is kept for
 * later calls. After a failure gguf_file_close() is still to be called. */
int gguf_file_read(struct gguf *g, const struct file_map *map, dsv4_err *err);
void gguf_file_close(struct gguf *g);

const struct gguf_meta *gguf_find(const struct gguf *g, const char *key);
/* Value i as a number; false: it is none, or there are fewer. */
bool gguf_number(const struct gguf *g, const struct gguf_meta *m, uint64_t i, double *out);
/* A string, or the next of a list: *at is 0 before the first. The caller counts. False: no strings. */
bool gguf_text(const struct gguf *g, const struct gguf_meta *m, size_t *at, struct slice *out);
/* A whole number from lo to hi; *out stays when the key is absent. */
int gguf_whole(const struct gguf *g, const char *key, uint32_t lo, uint32_t hi, uint32_t *out);
/* "PATH: KEY is missing or not as expected" */
int gguf_missing(const struct gguf *g, const char *key);

/* ------------------------------------------------------------------ gguf_model.c */

/* The files of one model, in their order. The first has the metadata. */
struct gguf_model {
    struct file_map *map; /* [n] */
    struct gguf *part;    /* [n] */
    uint32_t n;
    uint32_t layers; /* without those for drafting */
};

/* A file of architecture deepseek4, or any part of one: all parts are opened. */
int gguf_open(struct gguf_model *m, const char *path, dsv4_err *err);
void gguf_close(struct gguf_model *m);

/* ------------------------------------------------------------------ keys (gguf_config.c reads, gguf_write.c writes) */

#define GGUF_ARCHITECTURE "general.architecture"
#define GGUF_ARCH         "deepseek4"

#define GGUF_BLOCKS       GGUF_ARCH ".block_count"
#define GGUF_DRAFTS       GGUF_ARCH ".nextn_predict_layers"
#define GGUF_RATIOS       GGUF_ARCH ".attention.compress_ratios"
#define GGUF_CLAMP        GGUF_ARCH ".swiglu_clamp_exp"
#define GGUF_CLAMP_SHARED GGUF_ARCH ".swiglu_clamp_shexp"
#define GGUF_GATING       GGUF_ARCH ".expert_gating_func"
#define GGUF_NORM         GGUF_ARCH ".expert_weights_norm"
#define GGUF_SCALING      GGUF_ARCH ".rope.scaling.type"
#define GGUF_FACTOR       GGUF_ARCH ".rope.scaling.factor"
#define GGUF_ORIGINAL     GGUF_ARCH ".rope.scaling.original_context_length"
#define GGUF_BETA_FAST    GGUF_ARCH ".rope.scaling.yarn_beta_fast"
#define GGUF_BETA_SLOW    GGUF_ARCH ".rope.scaling.yarn_beta_slow"
#define GGUF_VOCAB        GGUF_ARCH ".vocab_size"
#define GGUF_MODEL        "tokenizer.ggml.model"
#define GGUF_PRE          "tokenizer.ggml.pre"
#define GGUF_TOKENS       "tokenizer.ggml.tokens"
#define GGUF_TYPES        "tokenizer.ggml.token_type"
#define GGUF_MERGES       "tokenizer.ggml.merges"
#define GGUF_TEMPERATURE  "general.sampling.temp"
#define GGUF_TOP_P        "general.sampling.top_p"
#define GGUF_TOP_K        "general.sampling.top_k"
#define GGUF_TEMPLATE     "tokenizer.chat_template"
#define GGUF_MODEL_BPE    "gpt2"
#define GGUF_PRE_V4 \
    "joyai-llm" /* the name that llama.cpp has for the split patterns of V3.1 and later */

/* llama.cpp's numbers of score functions */
enum { GGUF_SOFTMAX = 1, GGUF_SIGMOID = 2, GGUF_SQRTSOFTPLUS = 4 };

enum { TOKEN_NORMAL = 1, TOKEN_CONTROL = 3, TOKEN_USER = 4, TOKEN_UNUSED = 5 };

/* A number of config.json, its key, and where struct config has it. */
struct gguf_number {
    const char *name, *key;
    bool needed;
    enum gguf_type is; /* of the member: U32, I32 (-1: absent), F32, F64 (written as F32) */
    size_t at;         /* in struct config */
};
extern const struct gguf_number gguf_numbers[];
extern const size_t gguf_n_numbers;

/* ------------------------------------------------------------------ gguf_chat.c */

extern const char gguf_chat_template[];

/* ------------------------------------------------------------------ gguf_names.c */

enum { GGUF_VERSION = 3 };

/* Stands where the official name of one of a fused tensor has the number of its expert. */
#define GGUF_EXPERT "*"

/* The official name for that of a file, for a tensor of layers (*inner) what follows layers.N.; NULL: no such. */
const char *gguf_official(const char *stored, bool *inner, unsigned long *block);

/* The type of elements with this number; false: blocks, or not known. */
bool gguf_dtype(uint32_t id, enum dtype *out);

#endif
