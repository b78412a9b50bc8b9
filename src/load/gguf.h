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

struct gguf {
    const uint8_t *data;
    size_t len, at;
    const char *path;
    struct gguf_meta *meta; /* [n], ascending by key */
    size_t n, cap;
    uint64_t n_tensors;
    dsv4_err *err;
};

/* Magic, version, metadata, architecture. `err` is kept for later calls. */
int gguf_open(struct gguf *g, const struct file_map *map, dsv4_err *err);
void gguf_close(struct gguf *g);

const struct gguf_meta *gguf_find(const struct gguf *g, const char *key);
/* Value i as a number; false: it is none, or there are fewer. */
bool gguf_number(const struct gguf *g, const struct gguf_meta *m, uint64_t i, double *out);
/* A string, or the next of a list: *at is 0 before the first. The caller counts. False: no strings. */
bool gguf_text(const struct gguf *g, const struct gguf_meta *m, size_t *at, struct slice *out);
/* Layers of the model, without those for drafting. */
int gguf_layers(const struct gguf *g, uint32_t *out);

/* ------------------------------------------------------------------ gguf_names.c */

enum { GGUF_VERSION = 3 };

/* Stands where the official name of one of a fused tensor has the number of its expert. */
#define GGUF_EXPERT "*"

/* The official name for that of a file, for a tensor of layers (*inner) what follows layers.N.; NULL: no such. */
const char *gguf_official(const char *stored, bool *inner, unsigned long *block);

/* The type of elements with this number; false: blocks, or not known. */
bool gguf_dtype(uint32_t id, enum dtype *out);

#endif
