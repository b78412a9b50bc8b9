/* The directory under way; a GGUF file is made in one, too. PATH.partial holds shards, finished and begun, and
 * convert.json, which says how far the work has come; what it says is on the disk already. The last steps are
 * index, config and the final name, in this order, so that a directory with a config is complete. */
#include "convert.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define STATE  "convert.json"
#define INDEX  "model.safetensors.index.json"
#define CONFIG "config.json"

enum { SMALL_FILE = 64 << 20 };

/* Files of a checkpoint beside config and weights; those that are there are carried along. */
static const char *const carried[] = {"tokenizer.json",
                                      "tokenizer_config.json",
                                      "generation_config.json",
                                      "special_tokens_map.json",
                                      "chat_template.jinja",
                                      "preprocessor_config.json",
                                      "processor_config.json",
                                      "README.md",
                                      "LICENSE",
                                      NULL};

static int path_in(char **out, const char *dir, const char *name, dsv4_err *err)
{
    struct bytes b = {0};
    int rc = bytes_printf(&b, err, "%s/%s", dir, name);
    if (rc != 0)
        free(b.data);
    else
        *out = b.data;
    return rc;
}

/* ------------------------------------------------------------------ what is done */

static int write_in(const struct output *o, const char *name, const void *data, size_t len,
                    dsv4_err *err)
{
    char *path;
    TRY(path_in(&path, o->partial, name, err));
    int rc = file_write_atomic(path, data, len, err);
    free(path);
    return rc;
}

static int write_state(const struct output *o, dsv4_err *err)
{
    char *text, id[17];
    snprintf(id, sizeof id, "%016llx", (unsigned long long)o->plan->identity);
    json_t *j = json_pack("{s:s, s:I, s:I, s:[]}", "plan", id, "shard", (json_int_t)o->shard,
                          "pieces", (json_int_t)o->pieces, "sums");
    bool whole = j != NULL;
    for (size_t i = 0; i < o->shard && whole; i++)
        whole = json_array_append_new(json_object_get(j, "sums"), json_string(o->sum[i])) == 0;
    int rc = json_write(&text, whole ? j : NULL, JSON_INDENT(1), err);
    json_decref(j);
    if (rc == 0) {
        rc = write_in(o, STATE, text, strlen(text), err);
        free(text);
    }
    return rc;
}

/* What convert.json says, if it is about this plan. */
static int use_state(struct output *o, const json_t *j, dsv4_err *err)
{
    char id[17];
    snprintf(id, sizeof id, "%016llx", (unsigned long long)o->plan->identity);
    const char *was = json_string_value(json_object_get(j, "plan"));
    json_int_t shard = json_integer_value(json_object_get(j, "shard"));
    json_int_t pieces = json_integer_value(json_object_get(j, "pieces"));
    const json_t *sums = json_object_get(j, "sums");
    if (!was || strcmp(was, id) != 0)
        return err_set(
            err, DSV4_REFUSED,
            "%s was begun from another source or with other options (--restart begins anew)",
            o->partial);
    if (shard < 0 || (size_t)shard > o->plan->n_shards || pieces < 0 ||
        json_array_size(sums) != (size_t)shard)
        return err_set(err, DSV4_REFUSED, "%s/%s is damaged (--restart begins anew)", o->partial,
                       STATE);
    for (size_t i = 0; i < (size_t)shard; i++) {
        const char *s = json_string_value(json_array_get(sums, i));
        free(o->sum[i]);
        if (!(o->sum[i] = strdup(s ? s : "")))
            return err_memory(err, 0, "a checksum");
    }
    o->shard = (size_t)shard;
    o->pieces = (uint64_t)pieces;
    return 0;
}

static int read_state(struct output *o, bool *found, dsv4_err *err)
{
    char *path, *text;
    size_t len;
    json_t *j;
    TRY(path_in(&path, o->partial, STATE, err));
    *found = access(path, F_OK) == 0;
    int rc = *found ? file_read(path, SMALL_FILE, &text, &len, err) : 0;
    if (rc == 0 && *found) {
        rc = json_open(&j, text, len, path, err);
        free(text);
        if (rc == 0) {
            rc = use_state(o, j, err);
            json_decref(j);
        }
    }
    free(path);
    return rc;
}

/* ------------------------------------------------------------------ the directory */

/* Is it a shard of the plan, or the state? Everything else is made again. */
static bool is_kept(const struct output *o, const char *name)
{
    if (strcmp(name, STATE) == 0)
        return true;
    for (size_t i = 0; i < o->plan->n_shards; i++)
        if (strcmp(name, o->plan->shard[i].name) == 0)
            return true;
    return false;
}

/* Calls fn for every name in the directory; stops at what is not 0. */
static int each_name(struct output *o, int (*fn)(struct output *o, const char *name, dsv4_err *e),
                     dsv4_err *err)
{
    DIR *d = opendir(o->partial);
    if (!d)
        return err_errno(err, DSV4_FAILED, o->partial, "read the directory");
    int rc = 0;
    for (const struct dirent *x; rc == 0 && (x = readdir(d));)
        if (strcmp(x->d_name, ".") != 0 && strcmp(x->d_name, "..") != 0)
            rc = fn(o, x->d_name, err);
    closedir(d);
    return rc;
}

static int remove_name(struct output *o, const char *name, dsv4_err *err)
{
    return unlinkat(o->dir, name, 0) == 0 ? 0 : err_errno(err, DSV4_FAILED, o->partial, "clear");
}

static int remove_strange(struct output *o, const char *name, dsv4_err *err)
{
    return is_kept(o, name) ? 0 : remove_name(o, name, err);
}

/* Without a state: nothing but the state's own first steps may be there. */
static int refuse_strange(struct output *o, const char *name, dsv4_err *err)
{
    if (strncmp(name, STATE ".", sizeof STATE) == 0)
        return remove_name(o, name, err);
    return err_set(err, DSV4_REFUSED, "%s exists and was not made by a conversion (%s is in it)",
                   o->partial, name);
}

/* All is done but the last renaming: the state is gone and the config is there. */
static bool is_complete(const struct output *o)
{
    char *path, *text = NULL;
    size_t len = 0;
    dsv4_err ignored;
    if (o->plan->gguf || path_in(&path, o->partial, CONFIG, &ignored) != 0)
        return false;
    bool same = access(path, F_OK) == 0 &&
                file_read(path, SMALL_FILE, &text, &len, &ignored) == 0 &&
                strcmp(text, o->plan->config) == 0;
    free(text);
    free(path);
    return same;
}

static int resume(struct output *o, bool restart, dsv4_err *err)
{
    bool found;
    if (restart)
        TRY(each_name(o, remove_name, err));
    TRY(read_state(o, &found, err));
    if (found)
        return each_name(o, remove_strange, err);
    if (is_complete(o)) {
        o->shard = o->plan->n_shards;
        return 0;
    }
    TRY(each_name(o, refuse_strange, err));
    return write_state(o, err);
}

/* Room for what is still to be written. */
static int check_room(const struct output *o, dsv4_err *err)
{
    struct statvfs fs;
    uint64_t need = 0;
    for (size_t i = o->shard; i < o->plan->n_shards; i++) {
        struct stat st;
        uint64_t have =
            fstatat(o->dir, o->plan->shard[i].name, &st, 0) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
        need += o->plan->shard[i].bytes > have ? o->plan->shard[i].bytes - have : 0;
    }
    if (fstatvfs(o->dir, &fs) != 0)
        return 0; /* writing will tell */
    uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (need <= room)
        return 0;
    return err_set(err, DSV4_FAILED,
                   "%s: %.2f GiB are to be written, %.2f GiB are free on that disk", o->final,
                   gib(need), gib(room));
}

static int make_directory(struct output *o, dsv4_err *err)
{
    if (mkdir(o->partial, 0777) != 0 && errno != EEXIST)
        return err_errno(err, DSV4_FAILED, o->partial, "create");
    o->dir = open(o->partial, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (o->dir < 0)
        return err_errno(err, DSV4_FAILED, o->partial, "open");
    if (flock(o->dir, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return err_set(err, DSV4_FAILED, "%s: another process is converting into it", o->partial);
    return 0;
}

/* PATH without slashes at its end. */
static int set_paths(struct output *o, const char *path, dsv4_err *err)
{
    struct bytes b = {0};
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    if (!(o->final = strndup(path, n)))
        return err_memory(err, n, "a path");
    int rc = bytes_printf(&b, err, "%s.partial", o->final);
    o->partial = b.data;
    return rc;
}

static int open_all(struct output *o, const char *path, bool restart, dsv4_err *err)
{
    TRY(mem_alloc(&o->sum, o->plan->n_shards, sizeof *o->sum, "checksums", err));
    TRY(set_paths(o, path, err));
    TRY(destination_check(o->final, o->plan->source->dir, o->plan->gguf, err));
    TRY(make_directory(o, err));
    TRY(resume(o, restart, err));
    return check_room(o, err);
}

int output_open(struct output *o, const struct plan *p, const char *path, bool restart,
                dsv4_err *err)
{
    *o = (struct output){.plan = p, .dir = -1, .fd = -1};
    int rc = open_all(o, path, restart, err);
    if (rc != 0)
        output_close(o);
    return rc;
}

void output_close(struct output *o)
{
    if (o->fd >= 0)
        close(o->fd);
    if (o->dir >= 0)
        close(o->dir);
    for (size_t i = 0; o->sum && i < o->plan->n_shards; i++)
        free(o->sum[i]);
    free(o->sum);
    free(o->partial);
    free(o->final);
    *o = (struct output){.dir = -1, .fd = -1};
}

/* ------------------------------------------------------------------ one shard */

int output_begin(struct output *o, dsv4_err *err)
{
    const struct shard *s = &o->plan->shard[o->shard];
    o->fd = openat(o->dir, s->name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (o->fd < 0)
        return err_errno(err, DSV4_FAILED, s->name, "create");
    if (ftruncate(o->fd, (off_t)s->bytes) != 0)
        return err_errno(err, DSV4_FAILED, s->name, "make it so long");
#ifdef __linux__ /* a full disk is found now, and blocks lie side by side */
    if (fallocate(o->fd, 0, 0, (off_t)s->bytes) != 0 && errno != EOPNOTSUPP && errno != EINTR)
        return err_errno(err, DSV4_FAILED, s->name, "reserve its space");
#endif
    return output_write(o, 0, s->header, s->header_len, err);
}

int output_write(const struct output *o, uint64_t at, const void *data, size_t n, dsv4_err *err)
{
    const uint8_t *p = data;
    while (n > 0) {
        ssize_t k = pwrite(o->fd, p, n, (off_t)at);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return err_errno(err, DSV4_FAILED, o->plan->shard[o->shard].name, "write");
        p += k;
        at += (uint64_t)k;
        n -= (size_t)k;
    }
    return 0;
}

int output_mark(struct output *o, uint64_t pieces, dsv4_err *err)
{
    if (fsync(o->fd) != 0)
        return err_errno(err, DSV4_FAILED, o->plan->shard[o->shard].name, "sync");
    o->pieces = pieces;
    return write_state(o, err);
}

int output_end(struct output *o, dsv4_err *err)
{
    const char *name = o->plan->shard[o->shard].name;
    char *path;
    TRY(path_in(&path, o->partial, name, err));
    int rc = file_sum(&o->sum[o->shard], path, NULL, NULL, err);
    free(path);
    TRY(rc);
    if (fsync(o->fd) != 0)
        return err_errno(err, DSV4_FAILED, name, "sync");
    rc = close(o->fd);
    o->fd = -1;
    if (rc != 0)
        return err_errno(err, DSV4_FAILED, name, "close");
    o->shard++;
    o->pieces = 0;
    return write_state(o, err);
}

/* ------------------------------------------------------------------ the last steps */

/* Everybody may read what was written aside as well who may read the shards. */
static int open_to_others(const struct output *o, const char *name, dsv4_err *err)
{
    struct stat st;
    if (fstatat(o->dir, o->plan->shard[0].name, &st, 0) != 0 ||
        fchmodat(o->dir, name, st.st_mode & 0777, 0) != 0)
        return err_errno(err, DSV4_FAILED, name, "set its mode");
    return 0;
}

static int carry(const struct output *o, const char *name, dsv4_err *err)
{
    struct checkpoint_text t;
    TRY(checkpoint_text(&t, o->plan->source->dir, name, false, err));
    int rc = 0;
    if (t.text && (rc = write_in(o, name, t.text, t.len, err)) == 0)
        rc = open_to_others(o, name, err);
    checkpoint_text_close(&t);
    return rc;
}

static int write_rest(const struct output *o, dsv4_err *err)
{
    struct bytes index = {0};
    for (size_t i = 0; carried[i]; i++)
        TRY(carry(o, carried[i], err));
    int rc = plan_index(o->plan, o->sum, &index, err);
    if (rc == 0)
        rc = write_in(o, INDEX, index.data, index.len, err);
    if (rc == 0)
        rc = open_to_others(o, INDEX, err);
    free(index.data);
    TRY(rc);
    TRY(write_in(o, CONFIG, o->plan->config, strlen(o->plan->config), err));
    TRY(open_to_others(o, CONFIG, err));
    if (unlinkat(o->dir, STATE, 0) != 0)
        return err_errno(err, DSV4_FAILED, o->partial, "clear");
    return 0;
}

/* The one file leaves the directory, which goes with what it says of the work. */
static int finish_file(struct output *o, dsv4_err *err)
{
    TRY(destination_check(o->final, o->plan->source->dir, o->plan->gguf, err));
    if (renameat(o->dir, o->plan->shard[0].name, AT_FDCWD, o->final) != 0)
        return err_errno(err, DSV4_FAILED, o->final, "give the finished file its name");
    file_sync_directory_of(o->final);
    if (unlinkat(o->dir, STATE, 0) != 0 || rmdir(o->partial) != 0)
        return err_errno(err, DSV4_FAILED, o->partial, "clear");
    return 0;
}

int output_finish(struct output *o, dsv4_err *err)
{
    if (o->plan->gguf)
        return finish_file(o, err);
    if (!is_complete(o) || faccessat(o->dir, STATE, F_OK, 0) == 0)
        TRY(write_rest(o, err));
    if (fsync(o->dir) != 0 && errno != EINVAL)
        return err_errno(err, DSV4_FAILED, o->partial, "sync");
    if (rename(o->partial, o->final) != 0)
        return err_errno(err, DSV4_FAILED, o->final, "give the finished directory its name");
    file_sync_directory_of(o->final);
    return 0;
}
