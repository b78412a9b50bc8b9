/* parts.h - what the files of this folder share with each other and with nobody else: typed access
 * to JSON that cannot be trusted, and the contents of one safetensors file. */
#ifndef DSV4_LOAD_PARTS_H
#define DSV4_LOAD_PARTS_H

#include "load.h"

#include <jansson.h>

/* ------------------------------------------------------------------ json.c */

/* An object whose members are read by type. null counts as absent. */
struct fields {
    const json_t *object;
    const char *where;  /* the file, for messages */
    const char *prefix; /* "" or "text_config.", for messages */
};

/* NULL when absent or null. */
const json_t *field_get(const struct fields *f, const char *name);

/* "WHERE: PREFIXname is VALUE; expected ..."; v NULL: "is missing". Returns DSV4_REFUSED. */
int field_refuse(const struct fields *f, const char *name, const json_t *v, dsv4_err *err,
                 const char *expected, ...) PRINTF_LIKE(5, 6);

/* Each leaves *out alone when the member is absent; *found (may be NULL) says which. */
int field_whole(const struct fields *f, const char *name, int64_t lo, int64_t hi, int64_t *out,
                bool *found, dsv4_err *err);
int field_real(const struct fields *f, const char *name, double lo, double hi, double *out,
               bool *found, dsv4_err *err);
int field_bool(const struct fields *f, const char *name, bool *out, bool *found, dsv4_err *err);

/* Member `name`, an object or (`list`) a list; NULL when absent, refused when something else. */
int field_object(const struct fields *f, const char *name, const json_t **out, dsv4_err *err);
int field_list(const struct fields *f, const char *name, const json_t **out, dsv4_err *err);

/* True for a whole number, also when it is written 1.0. */
bool json_whole(const json_t *v, int64_t *out);

/* Member `name`, a list of `least` to `most` whole numbers from lo to hi, into *out (malloc'ed; NULL
 * and 0 when absent). */
int field_wholes(const struct fields *f, const char *name, size_t least, size_t most, int64_t lo,
                 int64_t hi, int64_t **out, size_t *n, dsv4_err *err);

/* field_refuse for item i of list `name`. */
int item_refuse(const struct fields *f, const char *name, size_t i, const json_t *v, dsv4_err *err,
                const char *expected, ...) PRINTF_LIKE(6, 7);

/* Walks the members of one JSON object in place, without building anything: memory stays that of
 * one member, whatever the length of the text. Keys and values are slices of the text; a value is
 * framed by its brackets only, so that whoever uses it still has to parse it. */
struct members {
    const char *at, *end; /* what is left */
    bool begun;
    const char *fault; /* what was wrong, when members_next returned -1 */
};

struct slice {
    const char *p;
    size_t n;
};

/* 1: a member; 0: the object has ended and m->at is behind it; -1: not JSON. A key has 1 to 255
 * printable ASCII characters, no quote, no backslash: anything else is no name of a tensor. */
int members_next(struct members *m, struct slice *key, struct slice *value);

/* The characters between the quotes when the value is a plain string as above. */
bool slice_plain_string(struct slice value, struct slice *out);

/* ------------------------------------------------------------------ config*.c */

/* A config being read: the object with the numbers of the text model, and the whole file. */
struct reader {
    struct config *c;
    struct fields text, root;
    dsv4_err *err;
};

/* Each reads one subject and checks it against what the earlier ones found. Order: as here, plain
 * numbers before all. */
int config_rope(const struct reader *r);
int config_ratios(const struct reader *r);
int config_engram_layers(const struct reader *r);
int config_sources(const struct reader *r);

/* ------------------------------------------------------------------ packing.c */

/* The quantization_config of a converted directory. What *out is set to is to be closed after a failure,
 * too. */
int packing_read(struct packing **out, const struct fields *f, dsv4_err *err);
void packing_close(struct packing *p); /* NULL is allowed */

/* ------------------------------------------------------------------ safetensors.c */

/* Texts that live as long as the store: blocks that never move. */
struct text_block;
int text_keep(struct text_block **list, const char *p, size_t n, const char **out, dsv4_err *err);
void text_free(struct text_block *list);

/* Growing list of tensors. */
struct tensors {
    struct tensor *t;
    size_t n, cap;
};

/* Checks the header of a mapped file and appends its tensors in the order of their data. */
int safetensors_read(struct tensors *out, struct text_block **texts, const struct file_map *map,
                     dsv4_err *err);

/* ------------------------------------------------------------------ gguf.c, gguf_model.c, gguf_config.c */

bool gguf_is(const struct file_map *map);
/* The tensors of a file and of all parts it belongs to, under official names, and their mappings, which become the
 * caller's. */
int gguf_read(struct tensors *out, struct text_block **texts, struct file_map **maps, size_t *n,
              const char *path, dsv4_err *err);
/* What stands in the metadata of a GGUF file instead of the file NAME of a directory: config.json, tokenizer.json,
 * generation_config.json, chat_template.jinja. malloc'ed; NULL: nothing. */
int gguf_file_text(char **out, const char *file, const char *name, dsv4_err *err);

/* ------------------------------------------------------------------ index.c */

/* One line of weight_map. */
struct place {
    struct slice name, shard;
};

/* All slices point into the mapped file. */
struct index {
    const char *path, *text;
    struct place *place; /* [n], ascending by name, none twice */
    size_t n;
    struct slice *shard; /* [n_shards], ascending, none twice */
    size_t n_shards;
    size_t cap;
};

/* After a failure index_close is still to be called. */
int index_read(struct index *x, const struct file_map *map, dsv4_err *err);
const struct place *index_find(const struct index *x, const char *name);
void index_close(struct index *x);

bool slice_is(struct slice s, const char *text);

#endif
