/* One safetensors file: u64 length, a JSON header, the data. Every claim of the header is checked
 * against the file and against the other claims before anybody may follow an offset. Which files
 * make a model, and finding a tensor by name, is store.c's business. */
#include "parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The limit of the reference implementation. */
#define HEADER_MAX   100000000u
/* One entry is about 100 bytes; __metadata__ is free text of whoever wrote the file. */
#define ENTRY_MAX    4096u
#define METADATA_MAX (1u << 20)

/* ORDER DTYPES (enum dtype) */
static const struct {
    const char *name;
    size_t size;
} dtypes[N_DTYPES] = {
    {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F8_E4M3", 1}, {"F8_E8M0", 1}, {"F8_E5M2", 1},
    {"I8", 1},  {"U8", 1},  {"I16", 2}, {"I32", 4},  {"I64", 8},     {"BOOL", 1},    {"blocks", 1},
};

const char *dtype_name(enum dtype t)
{
    return dtypes[t].name;
}

size_t dtype_size(enum dtype t)
{
    return dtypes[t].size;
}

void tensor_shape_text(const struct tensor *t, char *out, size_t cap)
{
    size_t o = 0;
    int n = snprintf(out, cap, "%s [", t->blocks ? block_name(t->blocks) : dtypes[t->dtype].name);
    for (uint32_t i = 0; i < t->rank && n >= 0 && (o += (size_t)n) < cap; i++)
        n = snprintf(out + o, cap - o, "%s%llu", i ? ", " : "", (unsigned long long)t->dim[i]);
    if (n >= 0 && (o += (size_t)n) < cap)
        snprintf(out + o, cap - o, "]");
}

/* ------------------------------------------------------------------ texts */

struct text_block {
    struct text_block *next;
    size_t used, cap;
    char data[];
};

int text_keep(struct text_block **list, const char *p, size_t n, const char **out, dsv4_err *err)
{
    struct text_block *b = *list;
    if (!b || b->cap - b->used <= n) {
        size_t cap = n < 65000 ? 65000 : n + 1;
        if (!(b = malloc(sizeof *b + cap)))
            return err_memory(err, sizeof *b + cap, "names of tensors");
        *b = (struct text_block){.next = *list, .cap = cap};
        *list = b;
    }
    char *to = b->data + b->used;
    memcpy(to, p, n);
    to[n] = 0;
    b->used += n + 1;
    *out = to;
    return 0;
}

void text_free(struct text_block *list)
{
    while (list) {
        struct text_block *next = list->next;
        free(list);
        list = next;
    }
}

/* ------------------------------------------------------------------ one entry */

/* What is being read, for messages: "PATH: NAME: ...". */
struct entry {
    const char *path, *name;
    const uint8_t *data; /* of the file, behind the header */
    uint64_t data_len;
    dsv4_err *err;
};

static int entry_refuse(const struct entry *e, const char *what)
{
    return err_set(e->err, DSV4_REFUSED, "%s: %s: %s", e->path, e->name, what);
}

static int read_dtype(const struct entry *e, const json_t *v, struct tensor *t)
{
    if (!json_is_string(v))
        return entry_refuse(e, "dtype is missing or not a string");
    for (int i = 0; i < DTYPE_BLOCKS; i++) {
        if (strcmp(json_string_value(v), dtypes[i].name) == 0) {
            t->dtype = (enum dtype)i;
            return 0;
        }
    }
    return err_set(e->err, DSV4_REFUSED, "%s: %s: dtype \"%.40s\" is not known", e->path, e->name,
                   json_string_value(v));
}

/* Sets rank, dim and bytes. */
static int read_shape(const struct entry *e, const json_t *v, struct tensor *t)
{
    if (!json_is_array(v))
        return entry_refuse(e, "shape is missing or not a list");
    if (json_array_size(v) > TENSOR_MAX_RANK)
        return err_set(e->err, DSV4_REFUSED,
                       "%s: %s: shape has %zu dimensions; expected at most %d", e->path, e->name,
                       json_array_size(v), TENSOR_MAX_RANK);
    t->rank = (uint32_t)json_array_size(v);
    t->bytes = dtypes[t->dtype].size;
    for (uint32_t i = 0; i < t->rank; i++) {
        const json_t *x = json_array_get(v, i);
        if (!json_is_integer(x) || json_integer_value(x) < 0)
            return entry_refuse(e, "shape has an entry that is no whole number >= 0");
        t->dim[i] = (uint64_t)json_integer_value(x);
    }
    /* A 0 makes the product 0 whatever the order, so it must not hide an overflow of the others. */
    for (uint32_t i = 0; i < t->rank; i++)
        if (__builtin_mul_overflow(t->bytes, t->dim[i] ? t->dim[i] : 1, &t->bytes))
            return entry_refuse(e, "the bytes of its shape do not fit 64 bits");
    for (uint32_t i = 0; i < t->rank; i++)
        if (t->dim[i] == 0)
            t->bytes = 0;
    return 0;
}

/* Sets data. */
static int read_span(const struct entry *e, const json_t *v, struct tensor *t)
{
    const json_t *a = json_array_get(v, 0), *b = json_array_get(v, 1);
    if (json_array_size(v) != 2 || !json_is_integer(a) || !json_is_integer(b) ||
        json_integer_value(a) < 0 || json_integer_value(b) < json_integer_value(a))
        return entry_refuse(e, "data_offsets is not a list of two ascending whole numbers >= 0");
    uint64_t begin = (uint64_t)json_integer_value(a), end = (uint64_t)json_integer_value(b);
    if (end > e->data_len)
        return err_set(e->err, DSV4_REFUSED,
                       "%s: %s: data_offsets end at %llu; the file has %llu bytes of data "
                       "(an incomplete download?)",
                       e->path, e->name, (unsigned long long)end, (unsigned long long)e->data_len);
    if (end - begin != t->bytes) {
        char shape[128];
        tensor_shape_text(t, shape, sizeof shape);
        return err_set(e->err, DSV4_REFUSED,
                       "%s: %s: data_offsets span %llu bytes; expected %llu for %s", e->path,
                       e->name, (unsigned long long)(end - begin), (unsigned long long)t->bytes,
                       shape);
    }
    t->data = e->data + begin;
    return 0;
}

static int read_entry(const struct entry *e, struct slice value, struct tensor *t)
{
    if (value.n > ENTRY_MAX)
        return entry_refuse(e, "an entry of more than 4096 bytes");
    char where[768];
    snprintf(where, sizeof where, "%s: %s", e->path, e->name);
    json_t *v;
    TRY(json_open(&v, value.p, value.n, where, e->err));
    int rc = 0;
    if (!json_is_object(v))
        rc = entry_refuse(e, "not an object");
    if (rc == 0)
        rc = read_dtype(e, json_object_get(v, "dtype"), t);
    if (rc == 0)
        rc = read_shape(e, json_object_get(v, "shape"), t);
    if (rc == 0)
        rc = read_span(e, json_object_get(v, "data_offsets"), t);
    if (rc == 0 && json_object_size(v) != 3)
        rc = entry_refuse(e, "has members besides dtype, shape and data_offsets");
    json_decref(v);
    return rc;
}

/* ------------------------------------------------------------------ the header */

/* Free text that nothing here uses; still it has to be JSON: an object of strings. */
static int check_metadata(const char *path, struct slice value, dsv4_err *err)
{
    if (value.n > METADATA_MAX)
        return err_set(err, DSV4_REFUSED, "%s: __metadata__ has more than 1 MiB", path);
    json_t *v;
    TRY(json_open(&v, value.p, value.n, path, err));
    bool good = json_is_object(v);
    const char *key;
    json_t *x;
    json_object_foreach(v, key, x) good = good && json_is_string(x);
    json_decref(v);
    return good ? 0 : err_set(err, DSV4_REFUSED, "%s: __metadata__ is no object of strings", path);
}

/* The name as stored and as official, in one copy where the official one is the end of it. */
static int keep_names(struct tensor *t, struct text_block **texts, struct slice key, dsv4_err *err)
{
    char official[512];
    TRY(text_keep(texts, key.p, key.n, &t->stored, err));
    if (!official_name(t->stored, official, sizeof official))
        return err_set(err, DSV4_REFUSED, "%s: %s: the name is too long", t->path, t->stored);
    size_t n = strlen(official);
    if (n <= key.n && strcmp(t->stored + key.n - n, official) == 0) {
        t->name = t->stored + key.n - n;
        return 0;
    }
    return text_keep(texts, official, n, &t->name, err);
}

static int by_data(const void *a, const void *b)
{
    const struct tensor *x = a, *y = b;
    if (x->data != y->data)
        return x->data < y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* The spans have to cover the data exactly: from 0, without holes or overlaps, to the end. What
 * no tensor covers could be anything (a second file format, what was in memory of the writer). */
static int check_cover(struct tensor *t, size_t n, const struct entry *e)
{
    qsort(t, n, sizeof *t, by_data);
    uint64_t at = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t begin = (uint64_t)(t[i].data - e->data);
        if (begin != at)
            return err_set(
                e->err, DSV4_REFUSED,
                "%s: %s: its data begins at %llu, but what comes before ends at %llu: %s", e->path,
                t[i].stored, (unsigned long long)begin, (unsigned long long)at,
                begin < at ? "tensors overlap" : "there is a hole");
        at += t[i].bytes;
    }
    if (at != e->data_len)
        return err_set(e->err, DSV4_REFUSED,
                       "%s: %llu bytes of data, but the last tensor ends at %llu", e->path,
                       (unsigned long long)e->data_len, (unsigned long long)at);
    return 0;
}

/* Splits the file into the text of its header and its data. */
static int frame(const struct file_map *map, struct slice *header, struct entry *e)
{
    if (map->len < 8)
        return err_set(e->err, DSV4_REFUSED, "%s: %zu bytes are too few for a safetensors file",
                       map->path, map->len);
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | map->data[i];
    if (n > map->len - 8 || n > HEADER_MAX)
        return err_set(e->err, DSV4_REFUSED,
                       "%s: the header claims %llu bytes; expected at most %llu, the %s (not a "
                       "safetensors file, or an incomplete download?)",
                       map->path, (unsigned long long)n,
                       (unsigned long long)(map->len - 8 < HEADER_MAX ? map->len - 8 : HEADER_MAX),
                       map->len - 8 < HEADER_MAX ? "rest of the file" : "limit");
    *header = (struct slice){(const char *)map->data + 8, (size_t)n};
    e->data = map->data + 8 + n;
    e->data_len = map->len - 8 - n;
    return 0;
}

static int read_member(struct tensors *out, struct text_block **texts, struct entry *e,
                       struct slice key, struct slice value)
{
    static const char metadata[] = "__metadata__";
    if (key.n == sizeof metadata - 1 && memcmp(key.p, metadata, key.n) == 0)
        return check_metadata(e->path, value, e->err);
    TRY(mem_grow(&out->t, &out->cap, out->n + 1, sizeof *out->t, "the list of tensors", e->err));
    struct tensor *t = &out->t[out->n];
    *t = (struct tensor){.path = e->path};
    TRY(keep_names(t, texts, key, e->err));
    e->name = t->stored;
    TRY(read_entry(e, value, t));
    out->n++;
    return 0;
}

int safetensors_read(struct tensors *out, struct text_block **texts, const struct file_map *map,
                     dsv4_err *err)
{
    struct entry e = {.path = map->path, .err = err};
    struct slice header = {0}, key, value;
    TRY(frame(map, &header, &e));
    size_t first = out->n;
    struct members m = {.at = header.p, .end = header.p + header.n};
    int more;
    while ((more = members_next(&m, &key, &value)) > 0)
        TRY(read_member(out, texts, &e, key, value));
    /* The format lets the header be padded with spaces. */
    while (more == 0 && m.at < m.end && *m.at == ' ')
        m.at++;
    if (more < 0 || m.at < m.end)
        return err_set(err, DSV4_REFUSED, "%s: the header is not valid at byte %zu: %s", map->path,
                       (size_t)(m.at - header.p), more < 0 ? m.fault : "text follows the object");
    if (out->n == first)
        return err_set(err, DSV4_REFUSED, "%s: the file holds no tensor", map->path);
    return check_cover(out->t + first, out->n - first, &e);
}
