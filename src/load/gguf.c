/* One GGUF file: its metadata and the list of its tensors. Every length, count and offset is checked against the file
 * before it is followed; the data stays where it is in the mapping. */
#include "gguf.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT_MAX = 1 << 20, KEY_MAX = 1024, NAME_MAX_LEN = 127 };

static int refuse(const struct gguf *g, const char *what, uint64_t number)
{
    return err_set(g->err, DSV4_REFUSED, "%s: byte %zu: %s (%llu)", g->path, g->at, what,
                   (unsigned long long)number);
}

/* ------------------------------------------------------------------ reading */

static int take(struct gguf *g, void *out, size_t n)
{
    if (n > g->len - g->at)
        return refuse(g, "the file ends too early; bytes wanted", n);
    memcpy(out, g->data + g->at, n);
    g->at += n;
    return 0;
}

static int take_text(struct gguf *g, struct slice *out)
{
    uint64_t n = 0;
    TRY(take(g, &n, sizeof n));
    if (n > g->len - g->at)
        return refuse(g, "a string is longer than what is left of the file", n);
    *out = (struct slice){(const char *)g->data + g->at, (size_t)n};
    g->at += (size_t)n;
    return 0;
}

/* Bytes of a value; 0: strings, arrays and what is unknown. ORDER GGUF_TYPES */
static size_t value_size(uint32_t type)
{
    static const uint8_t size[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizeof size ? size[type] : 0;
}

static int skip_values(struct gguf *g, uint32_t type, uint64_t n)
{
    struct slice text;
    size_t size = value_size(type);
    if (size == 0 && type != GGUF_STRING)
        return refuse(g, "a value has a type that is not known", type);
    if (n > (g->len - g->at) / (size ? size : sizeof(uint64_t)))
        return refuse(g, "a list is longer than what is left of the file", n);
    if (size > 0) {
        g->at += (size_t)n * size;
        return 0;
    }
    for (uint64_t i = 0; i < n; i++)
        TRY(take_text(g, &text));
    return 0;
}

static int read_meta(struct gguf *g)
{
    struct gguf_meta m = {.n = 1};
    TRY(take_text(g, &m.key));
    if (m.key.n == 0 || m.key.n > KEY_MAX || memchr(m.key.p, 0, m.key.n))
        return refuse(g, "a key has no name, or one of too many bytes", m.key.n);
    TRY(take(g, &m.type, sizeof m.type));
    if ((m.list = m.type == GGUF_ARRAY)) {
        TRY(take(g, &m.type, sizeof m.type));
        TRY(take(g, &m.n, sizeof m.n));
    }
    m.at = g->at;
    TRY(skip_values(g, m.type, m.n));
    TRY(mem_grow(&g->meta, &g->cap, g->n + 1, sizeof *g->meta, "GGUF metadata", g->err));
    g->meta[g->n++] = m;
    return 0;
}

static int compare(struct slice a, struct slice b)
{
    size_t n = a.n < b.n ? a.n : b.n;
    int c = memcmp(a.p, b.p, n);
    return c ? c : (a.n > b.n) - (a.n < b.n);
}

static int by_key(const void *a, const void *b)
{
    return compare(((const struct gguf_meta *)a)->key, ((const struct gguf_meta *)b)->key);
}

const struct gguf_meta *gguf_find(const struct gguf *g, const char *key)
{
    const struct gguf_meta want = {.key = {key, strlen(key)}};
    return g->n ? bsearch(&want, g->meta, g->n, sizeof want, by_key) : NULL;
}

bool gguf_number(const struct gguf *g, const struct gguf_meta *m, uint64_t i, double *out)
{
    if (m->type == GGUF_STRING || i >= m->n)
        return false;
    size_t size = value_size(m->type);
    uint64_t u = 0;
    float f;
    memcpy(&u, g->data + m->at + i * size, size); /* little endian, as the file */
    switch (m->type) {
    case GGUF_F32:
        memcpy(&f, &u, sizeof f);
        *out = (double)f;
        return true;
    case GGUF_F64: memcpy(out, &u, sizeof *out); return true;
    case GGUF_I8: *out = (int8_t)u; return true;
    case GGUF_I16: *out = (int16_t)u; return true;
    case GGUF_I32: *out = (int32_t)u; return true;
    case GGUF_I64: *out = (double)(int64_t)u; return true;
    default: *out = (double)u; return true;
    }
}

bool gguf_text(const struct gguf *g, const struct gguf_meta *m, size_t *at, struct slice *out)
{
    uint64_t n;
    if (m->type != GGUF_STRING)
        return false;
    size_t from = *at ? *at : m->at;
    memcpy(&n, g->data + from, sizeof n); /* checked by skip_values() */
    *out = (struct slice){(const char *)g->data + from + sizeof n, (size_t)n};
    *at = from + sizeof n + (size_t)n;
    return true;
}

int gguf_missing(const struct gguf *g, const char *key)
{
    return err_set(g->err, DSV4_REFUSED, "%s: %s is missing or not as expected", g->path, key);
}

int gguf_whole(const struct gguf *g, const char *key, uint32_t lo, uint32_t hi, uint32_t *out)
{
    double v;
    const struct gguf_meta *m = gguf_find(g, key);
    if (!m)
        return 0;
    if (!gguf_number(g, m, 0, &v) || !(v >= lo && v <= hi) || v != floor(v))
        return gguf_missing(g, key);
    *out = (uint32_t)v;
    return 0;
}

bool gguf_is(const struct file_map *map)
{
    return map->len >= 4 && memcmp(map->data, "GGUF", 4) == 0;
}

static int read_head(struct gguf *g)
{
    uint32_t version = 0;
    uint64_t n_meta = 0;
    g->at = 4;
    TRY(take(g, &version, sizeof version));
    if (version != GGUF_VERSION)
        return refuse(g, "the version of the format is not 3", version);
    TRY(take(g, &g->n_entries, sizeof g->n_entries));
    TRY(take(g, &n_meta, sizeof n_meta));
    if (g->n_entries > g->len / 32) /* the least that one takes */
        return refuse(g, "more tensors than the file has room for", g->n_entries);
    if (n_meta > g->len / 12)
        return refuse(g, "more metadata than the file has room for", n_meta);
    for (uint64_t i = 0; i < n_meta; i++)
        TRY(read_meta(g));
    if (g->n > 0)
        qsort(g->meta, g->n, sizeof *g->meta, by_key);
    for (size_t i = 1; i < g->n; i++)
        if (by_key(&g->meta[i - 1], &g->meta[i]) == 0)
            return err_set(g->err, DSV4_REFUSED, "%s: %.*s is there twice", g->path,
                           (int)g->meta[i].key.n, g->meta[i].key.p);
    return 0;
}

/* ------------------------------------------------------------------ tensors */

static int set_type(struct gguf *g, struct gguf_entry *e, uint32_t type)
{
    struct tensor *t = &e->t;
    uint64_t inner = t->dim[t->rank - 1], cols = 1, bytes = 0;
    if (gguf_dtype(type, &t->dtype)) {
        bytes = dtype_size(t->dtype);
    } else {
        if (!(t->blocks = block_type_of(type)))
            return err_set(g->err, DSV4_REFUSED,
                           "%s: %.*s has the type %u of ggml, which is not known here", g->path,
                           (int)e->name.n, e->name.p, type);
        t->dtype = DTYPE_BLOCKS;
        cols = block_cols(t->blocks);
        bytes = block_row_bytes(t->blocks, (uint32_t)cols);
    }
    if (inner % cols != 0)
        return err_set(g->err, DSV4_REFUSED, "%s: %.*s has rows of %llu; expected a multiple of %u",
                       g->path, (int)e->name.n, e->name.p, (unsigned long long)inner,
                       (unsigned)cols);
    t->bytes = bytes;
    for (uint32_t i = 0; i < t->rank; i++) {
        uint64_t n = i + 1 == t->rank ? inner / cols : t->dim[i];
        if (n == 0 || n > g->len / t->bytes)
            return err_set(g->err, DSV4_REFUSED, "%s: %.*s is empty or larger than the file",
                           g->path, (int)e->name.n, e->name.p);
        t->bytes *= n;
    }
    return 0;
}

static int read_entry(struct gguf *g, struct gguf_entry *e, uint32_t align)
{
    uint32_t type = 0;
    *e = (struct gguf_entry){0};
    TRY(take_text(g, &e->name));
    if (e->name.n == 0 || e->name.n > NAME_MAX_LEN || memchr(e->name.p, 0, e->name.n))
        return refuse(g, "a tensor has no name, or one of too many bytes", e->name.n);
    TRY(take(g, &e->t.rank, sizeof e->t.rank));
    if (e->t.rank == 0 || e->t.rank > TENSOR_MAX_RANK)
        return refuse(g, "a tensor has a number of dimensions outside of 1 to 4", e->t.rank);
    for (uint32_t i = e->t.rank; i-- > 0;) /* the file has columns first */
        TRY(take(g, &e->t.dim[i], sizeof e->t.dim[i]));
    TRY(take(g, &type, sizeof type));
    TRY(take(g, &e->offset, sizeof e->offset));
    if (e->offset % align != 0)
        return refuse(g, "the data of a tensor is not aligned", e->offset);
    return set_type(g, e, type);
}

static int by_offset(const void *a, const void *b)
{
    const struct gguf_entry *x = a, *y = b;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

/* Inside the file, and no byte of two tensors. */
static int check_places(struct gguf *g, size_t base)
{
    struct gguf_entry *e = g->entry;
    size_t n = (size_t)g->n_entries;
    if (n > 0)
        qsort(e, n, sizeof *e, by_offset);
    for (size_t i = 0; i < n; i++) {
        uint64_t end = i + 1 < n ? e[i + 1].offset : g->len - base;
        if (e[i].offset > end || e[i].t.bytes > end - e[i].offset)
            return err_set(g->err, DSV4_REFUSED, "%s: %.*s reaches beyond %s", g->path,
                           (int)e[i].name.n, e[i].name.p,
                           i + 1 < n ? "the beginning of another tensor" : "the end of the file");
        e[i].t.data = g->data + base + e[i].offset;
    }
    return 0;
}

static int read_entries(struct gguf *g)
{
    uint32_t align = GGUF_ALIGNMENT;
    TRY(gguf_whole(g, "general.alignment", 1, ALIGNMENT_MAX, &align));
    if ((align & (align - 1)) != 0)
        return gguf_missing(g, "general.alignment (a power of two)");
    for (size_t i = 0; i < g->n_entries; i++)
        TRY(read_entry(g, &g->entry[i], align));
    size_t pad = (align - g->at % align) % align;
    if (pad > g->len - g->at)
        return refuse(g, "the file ends before its data", g->len);
    return check_places(g, g->at + pad);
}

/* ------------------------------------------------------------------ a file */

int gguf_file_read(struct gguf *g, const struct file_map *map, dsv4_err *err)
{
    *g = (struct gguf){.data = map->data, .len = map->len, .path = map->path, .err = err};
    if (!gguf_is(map))
        return err_set(err, DSV4_REFUSED, "%s: not a GGUF file", map->path);
    TRY(read_head(g));
    TRY(mem_alloc(&g->entry, (size_t)g->n_entries, sizeof *g->entry, "the list of tensors", err));
    return read_entries(g);
}

void gguf_file_close(struct gguf *g)
{
    free(g->meta);
    free(g->entry);
    *g = (struct gguf){0};
}
