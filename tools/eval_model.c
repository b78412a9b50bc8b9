/* What every kind of evaluation needs: the model or two, what they are recognised by, progress, and sums over
 * finished units. */
#include "eval.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ------------------------------------------------------------------ hashes */

uint64_t eval_hash(uint64_t h, const void *data, size_t len)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < len; i++)
        h = (h ^ p[i]) * UINT64_C(0x100000001b3);
    return h;
}

uint64_t eval_hash_tokenizer(const dsv4_tokenizer *t)
{
    uint64_t h = EVAL_HASH_START;
    size_t n = dsv4_tokenizer_size(t), len;
    for (size_t i = 0; i < n; i++) {
        const char *bytes = dsv4_token_bytes(t, (int32_t)i, &len);
        uint8_t size[4] = {(uint8_t)len, (uint8_t)(len >> 8), (uint8_t)(len >> 16),
                           dsv4_token_special(t, (int32_t)i)};
        h = eval_hash(h, size, sizeof size);
        h = eval_hash(h, bytes, bytes ? len : 0);
    }
    return h;
}

json_t *eval_hash_json(uint64_t h)
{
    char text[20];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)h);
    return json_string(text);
}

/* ------------------------------------------------------------------ models */

bool eval_has_other(const struct eval_values *v)
{
    return v->against || v->against_exact;
}

/* The arguments as they are for one of the two. */
static struct args args_of(const struct eval *e, bool other)
{
    struct args a = e->v.a;
    if (other && e->v.against)
        a.model = e->v.against;
    if (other && e->v.against_exact)
        a.exact = true;
    return a;
}

int eval_open(struct eval *e, bool other, uint32_t ctx, uint32_t sequences, struct model_handle *m,
              dsv4_err *err)
{
    e->p.a = args_of(e, other);
    e->p.a.ctx = ctx;
    e->p.a.sequences = sequences;
    TRY(open_model(&e->p, m, err));
    int rc = 0;
    if (dsv4_engine_ctx(m->engine) < ctx)
        rc = err_set(err, DSV4_USAGE, "%s: its context holds %zu tokens and this needs %u", m->name,
                     dsv4_engine_ctx(m->engine), ctx);
    if (rc != 0)
        close_model(m);
    return rc;
}

static uint64_t hash_file(uint64_t h, const char *dir, const char *name)
{
    char path[4096];
    struct stat st;
    int n = snprintf(path, sizeof path, "%s%s%s", dir, *name ? "/" : "", name);
    if (n < 0 || (size_t)n >= sizeof path || stat(path, &st) != 0 || !S_ISREG(st.st_mode))
        return h;
    int64_t number[2] = {(int64_t)st.st_size, (int64_t)st.st_mtime};
    return eval_hash(eval_hash(h, name, strlen(name) + 1), number, sizeof number);
}

/* Names, sizes and times of a model's files; or of the one file it is. */
static uint64_t hash_files(const char *dir)
{
    struct dirent **list;
    uint64_t h = hash_file(EVAL_HASH_START, dir, "");
    int n = scandir(dir, &list, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        h = hash_file(h, dir, list[i]->d_name);
        free(list[i]);
    }
    if (n >= 0)
        free(list);
    return h;
}

static int put_model(struct eval *e, bool other, dsv4_err *err)
{
    char *dir;
    bool embedded;
    e->p.a = args_of(e, other);
    TRY(model_find(&e->p, &dir, &embedded, err));
    json_t *j = json_pack("{s:s, s:o, s:b, s:b}", "path", dir, "files",
                          eval_hash_json(hash_files(dir)), "exact", (int)e->p.a.exact,
                          "cache_quant", (int)(e->p.a.cache_quant == CACHE_QUANT_ON));
    free(dir);
    return eval_put(e->task, other ? "against" : "model", j, err);
}

int eval_put_models(struct eval *e, dsv4_err *err)
{
    TRY(put_model(e, false, err));
    return eval_has_other(&e->v) ? put_model(e, true, err) : 0;
}

size_t eval_rows(const struct eval *e, const dsv4_engine *m)
{
    size_t most = e->v.a.batch ? e->v.a.batch : 256;
    size_t n = ((size_t)32 << 20) / sizeof(float) / dsv4_engine_vocab(m);
    return n < 1 ? 1 : n < most ? n : most;
}

/* ------------------------------------------------------------------ JSON */

int eval_put(json_t *to, const char *key, json_t *value, dsv4_err *err)
{
    return value && json_object_set_new(to, key, value) == 0 ? 0 : json_made(NULL, err);
}

double eval_sum(const json_t *units, const char *key)
{
    double sum = 0;
    size_t i;
    const json_t *u;
    json_array_foreach(units, i, u) sum += real_of(u, key);
    return sum;
}

/* ------------------------------------------------------------------ progress */

static void duration(double seconds, char to[32])
{
    if (seconds < 100)
        snprintf(to, 32, "%.0f s", seconds);
    else if (seconds < 6000)
        snprintf(to, 32, "%.0f min", seconds / 60);
    else
        snprintf(to, 32, "%.1f h", seconds / 3600);
}

void eval_progress_show(const struct eval_progress *g, uint64_t done, const char *format, ...)
{
    char left[32] = "", text[96];
    double part = g->total ? (double)done / (double)g->total : 1, now = clock_seconds() - g->begin;
    if (done > g->before)
        duration(now * (double)(g->total - done) / (double)(done - g->before), left);
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    status_show(g->term, "%s [%s] %3.0f%%%s%s%s  %s", g->what, status_bar(done, g->total).text,
                100 * part, *left ? ", " : "", left, *left ? " left" : "", text);
}

int eval_stopped(const struct eval *e, dsv4_err *err)
{
    if (!interrupted())
        return 0;
    return err_set(err, DSV4_INTERRUPTED, "interrupted%s",
                   e->v.state ? "; the same command goes on from here" : "");
}
