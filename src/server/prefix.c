/* Sequences that were computed and may begin another prompt: in memory by least recent use, and as
 * snapshots in a directory.
 *
 * Prompts are compared as text: what a model generated is often not what encoding its text would
 * give, and a conversation that comes back as text must find the tokens it was computed with. */
#include "server.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* LEAST: tokens worth taking over. DISK_GAIN: tokens that a snapshot must save beyond what memory
 * has. SPARE: tokens of a kept sequence that may be lost when it is taken instead of forked. */
enum { LEAST = 16, DISK_GAIN = 256, SPARE = 64, MAX_FILES = 4096 };
static const double rest_seconds = 5; /* before a sequence is written to disk */
static const char suffix[] = ".dsv4seq";

struct entry {
    dsv4_seq *seq;
    uint64_t scope, used, bytes;
    double since;
    bool saved;
};

struct file {
    char *path;
    int32_t *ids;
    size_t n;
    uint64_t used, bytes;
};

struct prefix_store {
    const struct backend *b;
    struct sched_options opt;
    struct metrics *metrics;
    uint64_t clock;
    struct entry *entry;
    size_t n, cap;
    uint64_t bytes;
    struct file *file;
    size_t n_files, cap_files;
    uint64_t file_bytes;
};

/* ------------------------------------------------------------------ matching */

struct walk {
    const struct backend *b;
    const struct job *j;
    size_t at, span; /* in the text; the first span that ends behind `at` */
};

/* Whether the token stands in the text here. */
static bool step_over(struct walk *w, int32_t id)
{
    size_t len;
    bool marker;
    const char *bytes = w->b->text(w->b->self, id, &len, &marker);
    const struct job *j = w->j;
    if (!bytes || len == 0 || len > j->text_len - w->at || memcmp(j->text + w->at, bytes, len) != 0)
        return false;
    while (w->span < j->n_spans && j->spans[w->span].end <= w->at)
        w->span++;
    const dsv4_span *s = w->span < j->n_spans ? &j->spans[w->span] : NULL;
    if (marker ? !s || s->begin != w->at || s->end != w->at + len : s && s->begin < w->at + len)
        return false;
    w->at += len;
    return true;
}

/* Encoding never joins what stands on two sides of a control span's edge. */
static bool at_edge(const struct walk *w)
{
    const struct job *j = w->j;
    for (size_t i = w->span ? w->span - 1 : 0; i < j->n_spans && j->spans[i].begin <= w->at; i++)
        if (j->spans[i].begin == w->at || j->spans[i].end == w->at)
            return true;
    return w->at == j->text_len;
}

size_t prefix_match(const struct backend *b, const struct job *j, const int32_t *ids, size_t n,
                    size_t *from)
{
    size_t same = 0;
    while (same < n && same < j->n_prompt && ids[same] == j->prompt[same])
        same++;
    *from = same;
    if (!j->text || !b->text || same == n || same < LEAST)
        return same;
    struct walk stored = {.b = b, .j = j}, given = {.b = b, .j = j};
    for (size_t i = 0; i < same; i++)
        if (!step_over(&stored, ids[i]))
            return same;
    given = stored;
    size_t best = same, k = same;
    for (size_t i = same; i < n && step_over(&stored, ids[i]); i++) {
        if (!at_edge(&stored))
            continue;
        while (given.at < stored.at && k < j->n_prompt && step_over(&given, j->prompt[k]))
            k++;
        if (given.at != stored.at)
            break;
        best = i + 1;
        *from = k;
    }
    return best;
}

/* ------------------------------------------------------------------ memory */

static void forget(struct prefix_store *p, size_t i, bool close)
{
    p->bytes -= p->entry[i].bytes;
    if (close)
        p->b->close(p->b->self, p->entry[i].seq);
    p->entry[i] = p->entry[--p->n];
}

static void say(struct prefix_store *p, const dsv4_err *err)
{
    metric_add(p->metrics, COUNT_DISK_ERRORS, 1);
    if (p->opt.log)
        p->opt.log(p->opt.arg, err->text);
}

static void forget_file(struct prefix_store *p, size_t i, bool remove)
{
    struct file *f = &p->file[i];
    if (remove)
        unlink(f->path);
    p->file_bytes -= f->bytes;
    free(f->path);
    free(f->ids);
    *f = p->file[--p->n_files];
}

static uint64_t file_size(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 ? (uint64_t)st.st_size : 0;
}

/* Takes path and ids over. */
static int add_file(struct prefix_store *p, char *path, int32_t *ids, size_t n, dsv4_err *err)
{
    if (mem_grow(&p->file, &p->cap_files, p->n_files + 1, sizeof *p->file, "snapshots", err) != 0) {
        free(path);
        free(ids);
        return DSV4_NO_MEMORY;
    }
    struct file f = {.path = path, .ids = ids, .n = n, .used = ++p->clock};
    f.bytes = file_size(path);
    p->file_bytes += f.bytes;
    p->file[p->n_files++] = f;
    return 0;
}

static void bound_files(struct prefix_store *p)
{
    while (p->n_files > 0 && (p->file_bytes > p->opt.disk_bytes || p->n_files > MAX_FILES)) {
        size_t oldest = 0;
        for (size_t i = 1; i < p->n_files; i++)
            if (p->file[i].used < p->file[oldest].used)
                oldest = i;
        forget_file(p, oldest, true);
    }
}

static uint64_t hash_ids(const int32_t *ids, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (uint32_t)ids[i]) * 0x100000001b3u, h ^= h >> 29;
    return h;
}

static bool begins(const int32_t *a, size_t n, const int32_t *b, size_t m)
{
    return n <= m && memcmp(a, b, n * sizeof *a) == 0;
}

/* Writes a sequence; snapshots that are only its beginning go away. */
static int save_seq(struct prefix_store *p, const dsv4_seq *s, dsv4_err *err)
{
    size_t n;
    const int32_t *ids = p->b->tokens(p->b->self, s, &n);
    for (size_t i = 0; i < p->n_files; i++)
        if (begins(ids, n, p->file[i].ids, p->file[i].n)) {
            p->file[i].used = ++p->clock;
            return 0;
        }
    if (p->b->bytes(p->b->self, s) > p->opt.disk_bytes)
        return 0;
    struct bytes path = {0};
    int32_t *copy = NULL;
    int rc = bytes_printf(&path, err, "%s/%016llx-%zu%s", p->opt.cache_dir,
                          (unsigned long long)hash_ids(ids, n), n, suffix);
    if (rc == 0)
        rc = mem_alloc(&copy, n, sizeof *copy, "a snapshot's tokens", err);
    if (rc == 0)
        rc = p->b->save(p->b->self, s, path.data, err);
    if (rc != 0) {
        free(path.data);
        free(copy);
        return rc;
    }
    memcpy(copy, ids, n * sizeof *copy);
    for (size_t i = p->n_files; i-- > 0;)
        if (begins(p->file[i].ids, p->file[i].n, ids, n))
            forget_file(p, i, true);
    metric_add(p->metrics, COUNT_DISK_SAVES, 1);
    TRY(add_file(p, path.data, copy, n, err));
    bound_files(p);
    return 0;
}

static bool worth_saving(const struct prefix_store *p, const struct entry *e)
{
    size_t n;
    p->b->tokens(p->b->self, e->seq, &n);
    return p->opt.cache_dir && p->b->save && !e->saved && e->scope == 0 && n >= p->opt.disk_min;
}

static void save_entry(struct prefix_store *p, struct entry *e)
{
    dsv4_err err;
    e->saved = true; /* or will not succeed the next time either */
    if (save_seq(p, e->seq, &err) != 0)
        say(p, &err);
}

static size_t oldest_entry(const struct prefix_store *p)
{
    size_t oldest = 0;
    for (size_t i = 1; i < p->n; i++)
        if (p->entry[i].used < p->entry[oldest].used)
            oldest = i;
    return oldest;
}

bool prefix_drop(struct prefix_store *p)
{
    if (p->n == 0)
        return false;
    size_t i = oldest_entry(p);
    if (worth_saving(p, &p->entry[i]))
        save_entry(p, &p->entry[i]);
    forget(p, i, true);
    metric_add(p->metrics, COUNT_CACHE_EVICTIONS, 1);
    return true;
}

void prefix_give(struct prefix_store *p, dsv4_seq *s, uint64_t scope)
{
    dsv4_err err;
    size_t n, m;
    const int32_t *ids = p->b->tokens(p->b->self, s, &n);
    struct entry e = {.seq = s, .scope = scope, .used = ++p->clock, .since = clock_seconds()};
    bool keep = n >= LEAST && p->opt.cache_bytes > 0;
    for (size_t i = p->n; keep && i-- > 0;) {
        if (p->entry[i].scope != scope)
            continue;
        const int32_t *other = p->b->tokens(p->b->self, p->entry[i].seq, &m);
        if (begins(ids, n, other, m)) {
            p->entry[i].used = p->clock;
            keep = false;
        } else if (begins(other, m, ids, n)) {
            forget(p, i, true);
        }
    }
    if (!keep ||
        mem_grow(&p->entry, &p->cap, p->n + 1, sizeof *p->entry, "kept sequences", &err) != 0) {
        p->b->close(p->b->self, s);
        return;
    }
    e.bytes = p->b->bytes(p->b->self, s);
    p->bytes += e.bytes;
    p->entry[p->n++] = e;
    while (p->n > 0 && p->bytes > p->opt.cache_bytes)
        prefix_drop(p);
}

bool prefix_idle(struct prefix_store *p)
{
    double now = clock_seconds();
    for (size_t i = 0; i < p->n; i++)
        if (now - p->entry[i].since >= rest_seconds && worth_saving(p, &p->entry[i])) {
            save_entry(p, &p->entry[i]);
            return true;
        }
    return false;
}

void prefix_info(const struct prefix_store *p, struct sched_info *info)
{
    info->stored = p->n;
    info->stored_bytes = p->bytes;
    info->stored_disk = p->n_files;
    info->stored_disk_bytes = p->file_bytes;
}

/* ------------------------------------------------------------------ taking */

/* Where the best beginning is. */
struct found {
    enum { NOWHERE, STORED, LIVE, ON_DISK } where;
    size_t i;
    size_t match, from; /* ids[0..match) stand for prompt[0..from) */
    size_t use;         /* of them can be taken over */
    size_t common; /* tokens of the prompt that some sequence has, if only it could be left there */
};

/* At least one token has to be computed: its logits are wanted. */
static size_t usable(const struct job *j, size_t match, size_t from)
{
    return from < j->n_prompt ? match : match > 0 ? match - 1 : 0;
}

static void consider(struct prefix_store *p, const struct job *j, const dsv4_seq *s, struct found f,
                     struct found *best)
{
    size_t n;
    const int32_t *ids = p->b->tokens(p->b->self, s, &n);
    f.match = prefix_match(p->b, j, ids, n, &f.from);
    f.common = best->common = f.from > best->common ? f.from : best->common;
    if (f.match < LEAST || f.match <= best->use)
        return;
    bool fork = f.where == LIVE || n - f.match > SPARE;
    f.use = p->b->reusable(p->b->self, s, usable(j, f.match, f.from), fork);
    if (f.use >= LEAST && f.use > best->use)
        *best = f;
}

static void consider_files(struct prefix_store *p, const struct job *j, struct found *best)
{
    if (!p->b->load || j->scope != 0)
        return;
    for (size_t i = 0; i < p->n_files; i++) {
        struct found f = {.where = ON_DISK, .i = i, .common = best->common};
        f.match = prefix_match(p->b, j, p->file[i].ids, p->file[i].n, &f.from);
        f.use = usable(j, f.match, f.from);
        if (f.use > best->use + DISK_GAIN)
            *best = f;
    }
}

/* Cuts a sequence that is ours now. */
static dsv4_seq *cut(struct prefix_store *p, dsv4_seq *s, size_t len, dsv4_err *err)
{
    size_t n;
    p->b->tokens(p->b->self, s, &n);
    if (len < n && p->b->rewind(p->b->self, s, len, err) != 0) {
        p->b->close(p->b->self, s);
        return NULL;
    }
    return s;
}

static dsv4_seq *take_file(struct prefix_store *p, struct found *f)
{
    dsv4_seq *s = NULL;
    dsv4_err err;
    size_t n;
    struct file *file = &p->file[f->i];
    if (p->b->load(p->b->self, &s, file->path, &err) != 0) {
        say(p, &err);
        if (err.status != DSV4_NO_MEMORY)
            forget_file(p, f->i, false);
        return NULL;
    }
    file->used = ++p->clock;
    const int32_t *ids = p->b->tokens(p->b->self, s, &n);
    if (n != file->n || memcmp(ids, file->ids, n * sizeof *ids) != 0) {
        p->b->close(p->b->self, s); /* the file was exchanged meanwhile */
        forget_file(p, f->i, false);
        return NULL;
    }
    metric_add(p->metrics, COUNT_DISK_LOADS, 1);
    f->use = p->b->reusable(p->b->self, s, f->use, false);
    return cut(p, s, f->use, &err);
}

static dsv4_seq *take_entry(struct prefix_store *p, const struct found *f)
{
    struct entry *e = &p->entry[f->i];
    dsv4_seq *s = e->seq, *fork = NULL;
    dsv4_err err;
    size_t n;
    p->b->tokens(p->b->self, s, &n);
    e->used = ++p->clock;
    if (n - f->match > SPARE && p->b->fork(p->b->self, &fork, s, f->use, &err) == 0)
        return fork;
    forget(p, f->i, false);
    return cut(p, s, f->use, &err);
}

/* The tokens behind the cut as they were computed, then what is new. */
static bool join_rest(const struct prefix_store *p, const struct job *j, const struct found *best,
                      const int32_t *ids, struct taken *out)
{
    dsv4_err err;
    size_t n_new = j->n_prompt - best->from;
    if (best->match + n_new >= p->b->ctx ||
        mem_alloc(&out->rest, best->match + n_new, sizeof *out->rest, "a prompt", &err) != 0)
        return false;
    memcpy(out->rest, ids, best->match * sizeof *ids);
    memcpy(out->rest + best->match, j->prompt + best->from, n_new * sizeof *ids);
    out->n_rest = best->match + n_new;
    return true;
}

/* The `cached` tokens are there; the others have to be computed. */
static void settle(struct taken *out, const struct found *best)
{
    out->cached = best->use;
    out->fork = best->match - best->use;
    out->shift = (ptrdiff_t)out->fork - (ptrdiff_t)best->from;
    out->n_rest -= best->use;
    memmove(out->rest, out->rest + best->use, out->n_rest * sizeof *out->rest);
}

void prefix_take(struct prefix_store *p, const struct job *j, dsv4_seq *const *live,
                 const uint64_t *scope, size_t n_live, struct taken *out)
{
    struct found best = {.where = NOWHERE};
    dsv4_err err;
    size_t n;
    *out = (struct taken){.seq = NULL};
    for (size_t i = 0; i < p->n; i++)
        if (p->entry[i].scope == j->scope)
            consider(p, j, p->entry[i].seq, (struct found){.where = STORED, .i = i}, &best);
    for (size_t i = 0; i < n_live; i++)
        if (scope[i] == j->scope)
            consider(p, j, live[i], (struct found){.where = LIVE, .i = i}, &best);
    consider_files(p, j, &best);
    metric_add(p->metrics, best.where == NOWHERE ? COUNT_CACHE_MISSES : COUNT_CACHE_HITS, 1);
    out->fork = best.common;
    if (best.where == NOWHERE)
        return;
    const dsv4_seq *s = best.where == LIVE     ? live[best.i]
                        : best.where == STORED ? p->entry[best.i].seq
                                               : NULL;
    const int32_t *ids = s ? p->b->tokens(p->b->self, s, &n) : p->file[best.i].ids;
    if (!join_rest(p, j, &best, ids, out))
        return;
    if (best.where == ON_DISK)
        out->seq = take_file(p, &best);
    else if (best.where == STORED)
        out->seq = take_entry(p, &best);
    else if (p->b->fork(p->b->self, &out->seq, s, best.use, &err) != 0)
        out->seq = NULL;
    if (out->seq) {
        settle(out, &best);
    } else {
        free(out->rest);
        out->rest = NULL;
    }
}

/* ------------------------------------------------------------------ opening */

enum kind { OTHER, SNAPSHOT, LEFTOVER };

/* NAME.dsv4seq, and what a server that was killed left of writing one: NAME.dsv4seq.XXXXXX (file_aside). */
static enum kind kind_of(const char *name)
{
    enum { ASIDE = 7 };
    size_t len = strlen(name), n = sizeof suffix - 1;
    if (len > n && strcmp(name + len - n, suffix) == 0)
        return SNAPSHOT;
    if (len > n + ASIDE && memcmp(name + len - n - ASIDE, suffix, n) == 0 &&
        name[len - ASIDE] == '.')
        return LEFTOVER;
    return OTHER;
}

/* Unless it is being written now, by another server. */
static void remove_leftover(const char *path)
{
    enum { OLD = 600 }; /* seconds */
    struct stat st;
    if (lstat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_mtime + OLD < time(NULL))
        unlink(path);
}

static int read_directory(struct prefix_store *p, dsv4_err *err)
{
    DIR *d = opendir(p->opt.cache_dir);
    if (!d && errno == ENOENT && mkdir(p->opt.cache_dir, 0700) == 0)
        d = opendir(p->opt.cache_dir);
    if (!d)
        return err_errno(err, DSV4_FAILED, p->opt.cache_dir, "open the directory");
    int rc = 0;
    for (struct dirent *e; rc == 0 && (e = readdir(d)) != NULL;) {
        size_t n;
        enum kind kind = kind_of(e->d_name);
        if (kind == OTHER)
            continue;
        struct bytes path = {0};
        int32_t *ids;
        dsv4_err why;
        rc = bytes_printf(&path, err, "%s/%s", p->opt.cache_dir, e->d_name);
        if (kind == LEFTOVER) {
            if (rc == 0)
                remove_leftover(path.data);
            free(path.data);
            continue;
        }
        if (rc == 0 && p->b->peek(p->b->self, path.data, &ids, &n, &why) == 0) {
            rc = add_file(p, path.data, ids, n, err);
            continue;
        }
        if (rc == 0)
            say(p, &why);
        free(path.data);
    }
    closedir(d);
    if (rc == 0)
        bound_files(p);
    return rc;
}

int prefix_open(struct prefix_store **out, const struct backend *b, const struct sched_options *opt,
                struct metrics *m, dsv4_err *err)
{
    struct prefix_store *p;
    *out = NULL;
    TRY(mem_alloc(&p, 1, sizeof *p, "the prefix cache", err));
    p->b = b;
    p->opt = *opt;
    p->metrics = m;
    int rc = opt->cache_dir && b->peek ? read_directory(p, err) : 0;
    if (rc != 0) {
        prefix_close(p);
        return rc;
    }
    *out = p;
    return 0;
}

void prefix_close(struct prefix_store *p)
{
    if (!p)
        return;
    while (p->n > 0) {
        if (worth_saving(p, &p->entry[p->n - 1]))
            save_entry(p, &p->entry[p->n - 1]);
        forget(p, p->n - 1, true);
    }
    while (p->n_files > 0)
        forget_file(p, p->n_files - 1, false);
    free(p->entry);
    free(p->file);
    free(p);
}
