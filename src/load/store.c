/* The tensors of a checkpoint: which files belong to it, one sorted table over all of them, and
 * reading them ahead. Owns the mappings and the names. What one file claims is checked in
 * safetensors.c, what a tensor should look like where weights are bound. */
#include "parts.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define INDEX        "model.safetensors.index.json"
#define SINGLE       "model.safetensors"
/* The largest release has 46 shards and 140 thousand names (about 15 MB of index). */
#define INDEX_MAX    (256u << 20)
#define SHARDS_MAX   10000u
#define METADATA_MAX (1u << 20)

struct store {
    struct file_map *shard;
    size_t n_shards;
    struct tensors list; /* ascending by official name */
    struct text_block *texts;
};

/* ------------------------------------------------------------------ the table */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

static int sort_tensors(struct store *s, dsv4_err *err)
{
    struct tensor *t = s->list.t;
    if (s->list.n > 0)
        qsort(t, s->list.n, sizeof *t, by_name);
    for (size_t i = 1; i < s->list.n; i++) {
        if (strcmp(t[i - 1].name, t[i].name) != 0)
            continue;
        if (strcmp(t[i - 1].stored, t[i].stored) == 0)
            return err_set(err, DSV4_REFUSED, "%s: %s is there twice (and in %s)", t[i].path,
                           t[i].stored, t[i - 1].path);
        return err_set(err, DSV4_REFUSED, "%s: %s and %s (in %s) are names of the same tensor",
                       t[i].path, t[i].stored, t[i - 1].stored, t[i - 1].path);
    }
    return 0;
}

const struct tensor *store_find(const struct store *s, const char *name)
{
    const struct tensor key = {.name = name};
    return s->list.n ? bsearch(&key, s->list.t, s->list.n, sizeof key, by_name) : NULL;
}

size_t store_count(const struct store *s)
{
    return s->list.n;
}

const struct tensor *store_at(const struct store *s, size_t i)
{
    return i < s->list.n ? &s->list.t[i] : NULL;
}

size_t store_shards(const struct store *s)
{
    return s->n_shards;
}

uint64_t store_bytes(const struct store *s)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < s->list.n; i++)
        sum += s->list.t[i].bytes; /* no overflow: every byte lies in a mapping */
    return sum;
}

/* ------------------------------------------------------------------ opening */

static int join(char **out, const char *dir, const char *name, size_t n, dsv4_err *err)
{
    struct bytes b = {0};
    int rc = bytes_printf(&b, err, "%s/%.*s", dir, (int)n, name);
    if (rc != 0)
        free(b.data);
    else
        *out = b.data;
    return rc;
}

/* Maps DIR/NAME, beneath the directory. */
static int map_in(struct file_map *map, int dirfd, const char *dir, struct slice name,
                  dsv4_err *err)
{
    char *path, plain[256];
    if (name.n >= sizeof plain)
        return err_set(err, DSV4_REFUSED, "%s: the name of a shard is longer than 255 bytes", dir);
    memcpy(plain, name.p, name.n);
    plain[name.n] = 0;
    TRY(join(&path, dir, name.p, name.n, err));
    int rc = file_map_open(map, dirfd, plain, true, path, err);
    free(path);
    return rc;
}

static int add_shard(struct store *s, int dirfd, const char *dir, struct slice name, dsv4_err *err)
{
    struct file_map *map = &s->shard[s->n_shards];
    TRY(map_in(map, dirfd, dir, name, err));
    s->n_shards++;
    return safetensors_read(&s->list, &s->texts, map, err);
}

/* Opens every shard that the index names. */
static int add_shards(struct store *s, int dirfd, const char *dir, const struct index *x,
                      dsv4_err *err)
{
    if (x->n_shards > SHARDS_MAX)
        return err_set(err, DSV4_REFUSED, "%s: %zu shards; expected at most %u", x->path,
                       x->n_shards, SHARDS_MAX);
    TRY(mem_alloc(&s->shard, x->n_shards, sizeof *s->shard, "the list of shards", err));
    for (size_t i = 0; i < x->n_shards; i++)
        TRY(add_shard(s, dirfd, dir, x->shard[i], err));
    return 0;
}

/* The last component of a path. */
static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* The index and the shards have to say the same. A tensor that only a shard has is refused too: it
 * means that files of two versions of a model lie in one directory. */
static int check_index(const struct store *s, const struct index *x, dsv4_err *err)
{
    size_t found = 0;
    for (size_t i = 0; i < s->list.n; i++) {
        const struct tensor *t = &s->list.t[i];
        const struct place *p = index_find(x, t->stored);
        if (!p)
            return err_set(err, DSV4_REFUSED, "%s: %s is not in the model's index (%s)", t->path,
                           t->stored, x->path);
        if (!slice_is(p->shard, base_name(t->path)))
            return err_set(err, DSV4_REFUSED, "%s: %s is here, but %s places it in %.*s", t->path,
                           t->stored, x->path, (int)p->shard.n, p->shard.p);
        found++;
    }
    /* Tensors have distinct names and each has its own line; so lines left over have no tensor. */
    for (size_t i = 0; i < x->n && found < x->n; i++) {
        char name[256], official[512];
        memcpy(name, x->place[i].name.p, x->place[i].name.n);
        name[x->place[i].name.n] = 0;
        const struct tensor *t =
            official_name(name, official, sizeof official) ? store_find(s, official) : NULL;
        if (!t || strcmp(t->stored, name) != 0)
            return err_set(err, DSV4_REFUSED, "%s: %s is not in %.*s, where the index places it",
                           x->path, name, (int)x->place[i].shard.n, x->place[i].shard.p);
    }
    return 0;
}

static int open_sharded(struct store *s, int dirfd, const char *dir, dsv4_err *err)
{
    struct file_map map = {0};
    struct index x = {0};
    int rc = map_in(&map, dirfd, dir, (struct slice){INDEX, sizeof INDEX - 1}, err);
    if (rc == 0)
        rc = index_read(&x, &map, err);
    if (rc == 0)
        rc = add_shards(s, dirfd, dir, &x, err);
    if (rc == 0)
        rc = sort_tensors(s, err);
    if (rc == 0)
        rc = check_index(s, &x, err);
    index_close(&x);
    file_map_close(&map);
    return rc;
}

static int open_single(struct store *s, int dirfd, const char *dir, dsv4_err *err)
{
    TRY(mem_alloc(&s->shard, 1, sizeof *s->shard, "the list of shards", err));
    TRY(add_shard(s, dirfd, dir, (struct slice){SINGLE, sizeof SINGLE - 1}, err));
    return sort_tensors(s, err);
}

static bool exists(int dirfd, const char *name)
{
    struct stat st;
    return fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) == 0;
}

int store_open(struct store **out, const char *dir, dsv4_err *err)
{
    *out = NULL;
    int fd;
    do {
        fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0 && errno == ENOTDIR)
        return store_open_file(out, dir, err);
    if (fd < 0)
        return err_errno(err, DSV4_REFUSED, dir, "open the directory");
    struct store *s = NULL;
    int rc = mem_alloc(&s, 1, sizeof *s, "the list of tensors", err);
    /* Where both are there, Transformers takes the single file as well. */
    if (rc == 0 && exists(fd, SINGLE))
        rc = open_single(s, fd, dir, err);
    else if (rc == 0 && exists(fd, INDEX))
        rc = open_sharded(s, fd, dir, err);
    else if (rc == 0)
        rc = err_set(err, DSV4_REFUSED, "%s: neither %s nor %s is here", dir, SINGLE, INDEX);
    close(fd);
    if (rc != 0)
        store_close(s);
    else
        *out = s;
    return rc;
}

static int open_file(struct store *s, const char *file, dsv4_err *err)
{
    struct file_map map;
    TRY(file_map_open(&map, AT_FDCWD, file, false, file, err));
    if (gguf_is(&map)) {
        file_map_close(&map);
        return gguf_read(&s->list, &s->texts, &s->shard, &s->n_shards, file, err);
    }
    int rc = mem_alloc(&s->shard, 1, sizeof *s->shard, "the list of shards", err);
    if (rc != 0) {
        file_map_close(&map);
        return rc;
    }
    s->shard[s->n_shards++] = map;
    return safetensors_read(&s->list, &s->texts, &s->shard[0], err);
}

int store_open_file(struct store **out, const char *file, dsv4_err *err)
{
    *out = NULL;
    struct store *s;
    TRY(mem_alloc(&s, 1, sizeof *s, "the list of tensors", err));
    int rc = open_file(s, file, err);
    if (rc == 0)
        rc = sort_tensors(s, err);
    if (rc != 0)
        store_close(s);
    else
        *out = s;
    return rc;
}

int store_open_shapes(struct store **out, dsv4_err *err)
{
    return mem_alloc(out, 1, sizeof **out, "the list of tensors", err);
}

int store_add_shape(struct store *s, const struct tensor *t, dsv4_err *err)
{
    struct tensor copy = *t;
    TRY(mem_grow(&s->list.t, &s->list.cap, s->list.n + 1, sizeof *s->list.t, "tensors", err));
    TRY(text_keep(&s->texts, t->name, strlen(t->name), &copy.name, err));
    copy.stored = copy.name;
    copy.data = NULL;
    s->list.t[s->list.n++] = copy;
    return 0;
}

int store_sort_shapes(struct store *s, dsv4_err *err)
{
    return sort_tensors(s, err);
}

void store_close(struct store *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->n_shards; i++)
        file_map_close(&s->shard[i]);
    free(s->shard);
    free(s->list.t);
    text_free(s->texts);
    free(s);
}

/* ------------------------------------------------------------------ reading, reading ahead, letting go */

/* The shard in whose mapping p lies; NULL: in none. */
static const struct file_map *shard_of(const struct store *s, const uint8_t *p)
{
    for (size_t i = 0; i < s->n_shards; i++) {
        uintptr_t first = (uintptr_t)s->shard[i].data, at = (uintptr_t)p;
        if (at >= first && at - first < s->shard[i].len)
            return &s->shard[i];
    }
    return NULL;
}

int store_read(const struct store *s, const uint8_t *p, size_t n, uint8_t *out, dsv4_err *err)
{
    const struct file_map *m = shard_of(s, p);
    if (m)
        return file_map_read(m, (size_t)(p - m->data), out, n, err);
    if (n > 0)
        memcpy(out, p, n);
    return 0;
}

/* Whole pages around the range: a neighbour that is still read finds its page in the system's cache. */
void store_release(const struct store *s, const uint8_t *p, size_t n)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)p;
    uintptr_t from = at & ~(page - 1);
    if (n > 0 && shard_of(s, p))
        madvise((void *)from, at + n - from, MADV_DONTNEED);
}

#define STEP ((size_t)64 << 20)

static int by_place(const void *a, const void *b)
{
    const struct tensor *x = *(const struct tensor *const *)a,
                        *y = *(const struct tensor *const *)b;
    return (x->data > y->data) - (x->data < y->data);
}

/* Touches one tensor's pages, piece by piece; *since counts bytes since the last report. */
static bool touch(const struct tensor *t, uint64_t *done, uint64_t *since, uint64_t total,
                  dsv4_progress_fn progress, void *arg)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    volatile uint8_t sink = 0;
    for (uint64_t at = 0; at < t->bytes; at += STEP) {
        size_t n = t->bytes - at < STEP ? (size_t)(t->bytes - at) : STEP;
        /* Only advice, for whole pages: when it is not taken, touching reads all the same. */
        const uint8_t *from = t->data + at - (uintptr_t)(t->data + at) % page;
        madvise((void *)(uintptr_t)from, (size_t)(t->data + at + n - from), MADV_WILLNEED);
        for (size_t k = 0; k < n; k += page)
            sink = t->data[at + k];
        sink = t->data[at + n - 1];
        *done += n;
        *since += n;
        if (*since < STEP && *done < total)
            continue;
        *since = 0;
        if (progress && progress(arg, *done, total))
            return true;
    }
    (void)sink;
    return false;
}

int store_prefetch(const struct store *s, bool (*wanted)(const struct tensor *t),
                   dsv4_progress_fn progress, void *arg, dsv4_err *err)
{
    const struct tensor **list;
    uint64_t done = 0, since = 0, total = 0;
    size_t n = 0;
    int rc = 0;
    TRY(mem_alloc(&list, store_count(s), sizeof *list, "the order of reading", err));
    for (size_t i = 0; i < store_count(s); i++) {
        const struct tensor *t = store_at(s, i);
        if (wanted && !wanted(t))
            continue;
        list[n++] = t;
        total += t->bytes;
    }
    qsort(list, n, sizeof *list, by_place); /* disks like their order */
    for (size_t i = 0; i < n && rc == 0; i++)
        if (touch(list[i], &done, &since, total, progress, arg))
            rc = err_set(err, DSV4_INTERRUPTED, "interrupted while reading %s", list[i]->path);
    free(list);
    return rc;
}
