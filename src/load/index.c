/* model.safetensors.index.json: which shard holds which tensor. Checks the text and the names in it;
 * whether the shards agree is store.c's business. */
#include "parts.h"

#include <stdlib.h>
#include <string.h>

/* The largest releases have 140 thousand names, about 15 MB. */
#define INDEX_MAX    (256u << 20)
#define METADATA_MAX (1u << 20)

static int slice_order(struct slice a, struct slice b)
{
    int c = memcmp(a.p, b.p, a.n < b.n ? a.n : b.n);
    return c ? c : (a.n > b.n) - (a.n < b.n);
}

static int by_place_name(const void *a, const void *b)
{
    return slice_order(((const struct place *)a)->name, ((const struct place *)b)->name);
}

static int by_slice(const void *a, const void *b)
{
    return slice_order(*(const struct slice *)a, *(const struct slice *)b);
}

const struct place *index_find(const struct index *x, const char *name)
{
    const struct place key = {.name = {name, strlen(name)}};
    return bsearch(&key, x->place, x->n, sizeof key, by_place_name);
}

/* A letter or digit, then letters, digits and . _ -, at last .safetensors: no name of that kind
 * leads out of a directory. */
static bool shard_name(struct slice s)
{
    static const char end[] = ".safetensors";
    static const char ok[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    const size_t n_end = sizeof end - 1;
    if (s.n <= n_end || memcmp(s.p + s.n - n_end, end, n_end) != 0)
        return false;
    for (size_t i = 0; i < s.n; i++)
        if (!memchr(ok, s.p[i], sizeof ok - 1))
            return false;
    return s.p[0] != '.' && s.p[0] != '-' && s.p[0] != '_';
}

bool slice_is(struct slice s, const char *text)
{
    return s.n == strlen(text) && memcmp(s.p, text, s.n) == 0;
}

static int index_broken(const struct index *x, const struct members *m, dsv4_err *err)
{
    return err_set(err, DSV4_REFUSED, "%s: not valid at byte %zu: %s", x->path,
                   (size_t)(m->at - x->text), m->fault);
}

static int read_weight_map(struct index *x, struct slice text, dsv4_err *err)
{
    struct members m = {.at = text.p, .end = text.p + text.n};
    struct place p;
    struct slice value;
    int more;
    while ((more = members_next(&m, &p.name, &value)) > 0) {
        if (!slice_plain_string(value, &p.shard) || !shard_name(p.shard))
            return err_set(err, DSV4_REFUSED,
                           "%s: weight_map: %.*s is in %.*s; expected the name of a .safetensors "
                           "file in the same directory",
                           x->path, (int)p.name.n, p.name.p, (int)(value.n < 80 ? value.n : 80),
                           value.p);
        TRY(mem_grow(&x->place, &x->cap, x->n + 1, sizeof p, "the index", err));
        x->place[x->n++] = p;
    }
    if (more < 0)
        return index_broken(x, &m, err);
    if (x->n == 0)
        return err_set(err, DSV4_REFUSED, "%s: weight_map is empty", x->path);
    qsort(x->place, x->n, sizeof p, by_place_name);
    for (size_t i = 1; i < x->n; i++)
        if (by_place_name(&x->place[i - 1], &x->place[i]) == 0)
            return err_set(err, DSV4_REFUSED, "%s: weight_map: %.*s is there twice", x->path,
                           (int)x->place[i].name.n, x->place[i].name.p);
    return 0;
}

/* Members besides weight_map are not used; they only have to be JSON of a modest size. */
static int skip_member(const struct index *x, struct slice key, struct slice value, dsv4_err *err)
{
    if (value.n > METADATA_MAX)
        return err_set(err, DSV4_REFUSED, "%s: %.*s has more than 1 MiB", x->path, (int)key.n,
                       key.p);
    json_t *v;
    TRY(json_open(&v, value.p, value.n, x->path, err));
    json_decref(v);
    return 0;
}

/* The names of the shards, each once. */
static int list_shards(struct index *x, dsv4_err *err)
{
    TRY(mem_alloc(&x->shard, x->n, sizeof *x->shard, "the index", err));
    for (size_t i = 0; i < x->n; i++)
        x->shard[i] = x->place[i].shard;
    qsort(x->shard, x->n, sizeof *x->shard, by_slice);
    for (size_t i = 0; i < x->n; i++)
        if (i == 0 || slice_order(x->shard[x->n_shards - 1], x->shard[i]) != 0)
            x->shard[x->n_shards++] = x->shard[i];
    return 0;
}

int index_read(struct index *x, const struct file_map *map, dsv4_err *err)
{
    *x = (struct index){.path = map->path, .text = (const char *)map->data};
    if (map->len > INDEX_MAX)
        return err_set(err, DSV4_REFUSED, "%s: %zu bytes; expected at most %u", x->path, map->len,
                       INDEX_MAX);
    struct members m = {.at = x->text, .end = x->text + map->len};
    struct slice key, value;
    bool seen = false;
    int more;
    while ((more = members_next(&m, &key, &value)) > 0) {
        if (!slice_is(key, "weight_map")) {
            TRY(skip_member(x, key, value, err));
            continue;
        }
        if (seen)
            return err_set(err, DSV4_REFUSED, "%s: weight_map is there twice", x->path);
        seen = true;
        TRY(read_weight_map(x, value, err));
    }
    if (more < 0)
        return index_broken(x, &m, err);
    for (; m.at < m.end; m.at++)
        if (!strchr(" \t\r\n", *m.at) || *m.at == 0)
            return err_set(err, DSV4_REFUSED, "%s: text follows the object at byte %zu", x->path,
                           (size_t)(m.at - x->text));
    if (!seen)
        return err_set(err, DSV4_REFUSED, "%s: weight_map is missing", x->path);
    return list_shards(x, err);
}

void index_close(struct index *x)
{
    free(x->place);
    free(x->shard);
    *x = (struct index){0};
}
