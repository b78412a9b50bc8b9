/* GGUF files of architecture deepseek4: the parts of a model, and its tensors under their official names, one for
 * every expert of a fused one (docs/gguf.md has the table). */
#include "gguf.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PARTS_MAX = 10000, LAYERS_MAX = 65536, EXPERTS_MAX = 65536, NAME_CAP = 256 };

/* ------------------------------------------------------------------ parts */

/* What the name of part i (from 0) of n ends with. */
static void part_suffix(char *out, size_t cap, uint32_t i, uint32_t n)
{
    snprintf(out, cap, "-%05u-of-%05u.gguf", i + 1, n);
}

/* Where a part stands, by its own word. */
struct place_of_part {
    uint32_t no, count, tensors; /* tensors: of all parts */
};

static int read_place(const struct gguf *g, struct place_of_part *p)
{
    *p = (struct place_of_part){.count = 1};
    TRY(gguf_whole(g, "split.count", 0, PARTS_MAX, &p->count));
    if (p->count <= 1)
        return 0;
    TRY(gguf_whole(g, "split.no", 0, p->count - 1, &p->no));
    return gguf_whole(g, "split.tensors.count", 0, INT32_MAX, &p->tensors);
}

static int open_part(struct gguf_model *m, const char *path, dsv4_err *err)
{
    TRY(file_map_open(&m->map[m->n], AT_FDCWD, path, false, path, err));
    struct gguf *g = &m->part[m->n++];
    return gguf_file_read(g, &m->map[m->n - 1], err);
}

static int add_part(struct gguf_model *m, const char *stem, int n_stem, uint32_t i, uint32_t count,
                    dsv4_err *err)
{
    struct bytes path = {0};
    struct place_of_part p;
    char suffix[64];
    part_suffix(suffix, sizeof suffix, i, count);
    int rc = bytes_printf(&path, err, "%.*s%s", n_stem, stem, suffix);
    if (rc == 0)
        rc = open_part(m, path.data, err);
    if (rc == 0)
        rc = read_place(&m->part[i], &p);
    if (rc == 0 && (p.no != i || p.count != count))
        rc = err_set(err, DSV4_REFUSED, "%s: part %u of %u by its metadata, %u of %u by its name",
                     path.data, p.no + 1, p.count, i + 1, count);
    free(path.data);
    return rc;
}

/* All parts of the model that `path` is one of. */
static int open_parts(struct gguf_model *m, const char *path, const struct place_of_part *p,
                      dsv4_err *err)
{
    char suffix[64];
    uint64_t tensors = 0;
    size_t n = strlen(path);
    part_suffix(suffix, sizeof suffix, p->no, p->count);
    if (n < strlen(suffix) || strcmp(path + n - strlen(suffix), suffix) != 0)
        return err_set(err, DSV4_REFUSED,
                       "%s: part %u of %u of a model; expected a name that ends with %s", path,
                       p->no + 1, p->count, suffix);
    TRY(mem_alloc(&m->map, p->count, sizeof *m->map, "the parts of a model", err));
    TRY(mem_alloc(&m->part, p->count, sizeof *m->part, "the parts of a model", err));
    for (uint32_t i = 0; i < p->count; i++) {
        TRY(add_part(m, path, (int)(n - strlen(suffix)), i, p->count, err));
        tensors += m->part[i].n_entries;
    }
    if (p->tensors && tensors != p->tensors)
        return err_set(err, DSV4_REFUSED, "%s: its parts have %llu tensors; it says %u", path,
                       (unsigned long long)tensors, p->tensors);
    return 0;
}

/* ------------------------------------------------------------------ a model */

static bool has_entry(const struct gguf_model *m, const char *name)
{
    for (uint32_t i = 0; i < m->n; i++)
        for (uint64_t k = 0; k < m->part[i].n_entries; k++)
            if (slice_is(m->part[i].entry[k].name, name))
                return true;
    return false;
}

/* block_count may count the layers for drafting or not: they are there when the first of them is. */
static int count_layers(struct gguf_model *m)
{
    char name[64];
    uint32_t blocks = 0, draft = 0;
    const struct gguf *g = &m->part[0];
    TRY(gguf_whole(g, GGUF_BLOCKS, 1, LAYERS_MAX, &blocks));
    if (blocks == 0)
        return gguf_missing(g, GGUF_BLOCKS);
    TRY(gguf_whole(g, GGUF_DRAFTS, 0, blocks - 1, &draft));
    snprintf(name, sizeof name, "blk.%u.nextn.eh_proj.weight", blocks - draft);
    m->layers = draft > 0 && has_entry(m, name) ? blocks - draft : blocks;
    return 0;
}

static int open_model(struct gguf_model *m, const char *path, dsv4_err *err)
{
    struct slice name;
    struct place_of_part p;
    size_t at = 0;
    TRY(mem_alloc(&m->map, 1, sizeof *m->map, "a file", err));
    TRY(mem_alloc(&m->part, 1, sizeof *m->part, "a file", err));
    TRY(open_part(m, path, err));
    TRY(read_place(&m->part[0], &p));
    if (p.count > 1) {
        gguf_close(m);
        TRY(open_parts(m, path, &p, err));
    }
    const struct gguf *g = &m->part[0];
    const struct gguf_meta *a = gguf_find(g, GGUF_ARCHITECTURE);
    if (!a || !gguf_text(g, a, &at, &name) || !slice_is(name, GGUF_ARCH))
        return err_set(err, DSV4_REFUSED, "%s: " GGUF_ARCHITECTURE " is not \"" GGUF_ARCH "\"",
                       g->path);
    return count_layers(m);
}

int gguf_open(struct gguf_model *m, const char *path, dsv4_err *err)
{
    *m = (struct gguf_model){0};
    int rc = open_model(m, path, err);
    if (rc != 0)
        gguf_close(m);
    return rc;
}

void gguf_close(struct gguf_model *m)
{
    for (uint32_t i = 0; i < m->n; i++) {
        gguf_file_close(&m->part[i]);
        if (m->map)
            file_map_close(&m->map[i]);
    }
    free(m->part);
    free(m->map);
    *m = (struct gguf_model){0};
}

/* ------------------------------------------------------------------ tensors */

static int add(struct tensors *out, struct text_block **texts, const struct tensor *t,
               const char *name, dsv4_err *err)
{
    TRY(mem_grow(&out->t, &out->cap, out->n + 1, sizeof *out->t, "the list of tensors", err));
    out->t[out->n] = *t;
    TRY(text_keep(texts, name, strlen(name), &out->t[out->n].name, err));
    out->n++;
    return 0;
}

/* One tensor for every expert of a fused one; `official` has a mark where its number is to stand. */
static int add_experts(struct tensors *out, struct text_block **texts, const struct tensor *t,
                       unsigned long layer, const char *official, dsv4_err *err)
{
    char name[NAME_CAP];
    if (t->rank != 3 || t->dim[0] > EXPERTS_MAX)
        return tensor_refuse(t, "three dimensions, experts outermost", err);
    struct tensor one = *t;
    one.rank = 2;
    one.dim[0] = t->dim[1];
    one.dim[1] = t->dim[2];
    one.bytes = t->bytes / t->dim[0];
    const char *mark = strstr(official, GGUF_EXPERT);
    for (uint64_t i = 0; i < t->dim[0]; i++, one.data += one.bytes) {
        snprintf(name, sizeof name, "layers.%lu.%.*s%llu%s", layer, (int)(mark - official),
                 official, (unsigned long long)i, mark + strlen(GGUF_EXPERT));
        TRY(add(out, texts, &one, name, err));
    }
    return 0;
}

static int add_entry(const struct gguf_model *m, const struct gguf *g, const struct gguf_entry *e,
                     struct tensors *out, struct text_block **texts, dsv4_err *err)
{
    char name[NAME_CAP];
    unsigned long layer = 0;
    bool inner;
    struct tensor t = e->t;
    t.path = g->path;
    TRY(text_keep(texts, e->name.p, e->name.n, &t.stored, err));
    const char *to = gguf_official(t.stored, &inner, &layer);
    if (inner && layer >= m->layers) /* for drafting: not used */
        return 0;
    if (!to)
        return err_set(err, DSV4_REFUSED, "%s: a " GGUF_ARCH " file has no tensor %s", g->path,
                       t.stored);
    if (strstr(to, GGUF_EXPERT))
        return add_experts(out, texts, &t, layer, to, err);
    if (inner)
        snprintf(name, sizeof name, "layers.%lu.%s", layer, to);
    return add(out, texts, &t, inner ? name : to, err);
}

int gguf_read(struct tensors *out, struct text_block **texts, struct file_map **maps, size_t *n,
              const char *path, dsv4_err *err)
{
    struct gguf_model m;
    int rc = gguf_open(&m, path, err);
    for (uint32_t i = 0; i < m.n && rc == 0; i++)
        for (uint64_t k = 0; k < m.part[i].n_entries && rc == 0; k++)
            rc = add_entry(&m, &m.part[i], &m.part[i].entry[k], out, texts, err);
    if (rc == 0) { /* names in messages are those of the mappings */
        *maps = m.map;
        *n = m.n;
        m.map = NULL;
    }
    gguf_close(&m);
    return rc;
}
