/* From the command line to the library: which model, which options, which sampling; and what is told
 * about speed afterwards. */
#include "tools.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ------------------------------------------------------------------ finding the model */

static const char embedded_name[] = "nano";

/* Where the embedded model may be, seen from the program: in the tree (build/VARIANT/dsv4), or
 * installed (PREFIX/bin/dsv4). */
static const char *const embedded_places[] = {"../../models/", "../share/dsv4/models/"};

static int program_dir(char out[PATH_MAX], dsv4_err *err)
{
    ssize_t n = readlink("/proc/self/exe", out, PATH_MAX - 1);
    if (n <= 0 || n >= PATH_MAX - 1)
        return err_set(err, DSV4_USAGE, "no model: give -m DIR or set DSV4_MODEL");
    out[n] = 0;
    *strrchr(out, '/') = 0;
    return 0;
}

static int find_embedded(char **dir, dsv4_err *err)
{
    char here[PATH_MAX];
    TRY(program_dir(here, err));
    for (size_t i = 0; i < sizeof embedded_places / sizeof *embedded_places; i++) {
        struct bytes b = {0};
        int rc =
            bytes_printf(&b, err, "%s/%s%s/config.json", here, embedded_places[i], embedded_name);
        struct stat st;
        bool there = rc == 0 && stat(b.data, &st) == 0;
        if (there)
            *strrchr(b.data, '/') = 0;
        *dir = there ? realpath(b.data, NULL) : NULL;
        free(b.data);
        TRY(rc);
        if (*dir)
            return 0;
    }
    return err_set(err, DSV4_USAGE,
                   "no model: give -m DIR or set DSV4_MODEL (the embedded model is "
                   "not where the program expects it)");
}

int model_find(struct program *p, char **dir, bool *embedded, dsv4_err *err)
{
    *embedded = p->a.model == NULL;
    if (!p->a.model)
        return find_embedded(dir, err);
    if (!*p->a.model)
        return err_set(err, DSV4_USAGE, "--model: the name of the directory is empty");
    *dir = strdup(p->a.model);
    return *dir ? 0 : err_memory(err, strlen(p->a.model) + 1, "a path");
}

/* ------------------------------------------------------------------ loading */

struct loading {
    struct terminal *term;
    double begin;
};

static bool show_loading(void *arg, uint64_t done, uint64_t total)
{
    struct loading *l = arg;
    if (total > 0 && clock_seconds() - l->begin > 0.4)
        status_show(l->term, "loading [%s] %3.0f%%  %.1f of %.1f GB", status_bar(done, total).text,
                    100 * (double)done / (double)total, (double)done * 1e-9, (double)total * 1e-9);
    return interrupted();
}

dsv4_options engine_options(struct program *p)
{
    const struct args *a = &p->a;
    return (dsv4_options){.ctx = a->ctx,
                          .batch = a->batch,
                          .sequences = a->sequences,
                          .rewind = a->rewind,
                          .threads = a->threads,
                          .cpus = a->cpus,
                          .numa = a->numa,
                          .max_memory = a->max_memory,
                          .no_cache_quant = a->cache_quant == CACHE_QUANT_OFF,
                          .exact = a->exact,
                          .paged = a->paged};
}

int open_model(struct program *p, struct model_handle *m, dsv4_err *err)
{
    *m = (struct model_handle){0};
    TRY(model_find(p, &m->dir, &m->embedded, err));
    size_t n = strlen(m->dir);
    while (n > 1 && m->dir[n - 1] == '/')
        m->dir[--n] = 0;
    const char *slash = strrchr(m->dir, '/');
    m->name = slash && slash[1] ? slash + 1 : m->dir;
    struct loading l = {.term = &p->term, .begin = clock_seconds()};
    dsv4_options opt = engine_options(p);
    opt.progress = show_loading;
    opt.progress_arg = &l;
    int rc = dsv4_open(&m->engine, m->dir, &opt, err);
    status_clear(&p->term);
    if (rc != 0)
        close_model(m);
    return rc;
}

void close_model(struct model_handle *m)
{
    dsv4_close(m->engine);
    free(m->dir);
    *m = (struct model_handle){0};
}

int tokenizer_open(struct program *p, dsv4_tokenizer **out, dsv4_err *err)
{
    if (p->a.tokenizer)
        return dsv4_tokenizer_open(out, p->a.tokenizer, err);
    char *dir;
    bool embedded;
    TRY(model_find(p, &dir, &embedded, err));
    int rc = dsv4_tokenizer_of(out, dir, err);
    free(dir);
    return rc;
}

/* ------------------------------------------------------------------ sampling */

static int parse_bias(const char *text, dsv4_bias *b, dsv4_err *err)
{
    char id[16];
    uint64_t u;
    double d;
    const char *value = strchr(text, '=');
    size_t n = value ? (size_t)(value - text) : 0;
    bool ok = value && n < sizeof id;
    if (ok) {
        memcpy(id, text, n);
        id[n] = 0;
        ok = opt_number_u64(id, &u) && u <= INT32_MAX;
    }
    if (ok && strcmp(value + 1, "-inf") == 0)
        d = -INFINITY;
    else
        ok = ok && opt_number_double(value + 1, &d) && fabs(d) <= 1e6;
    if (!ok)
        return err_set(err, DSV4_USAGE, "--logit-bias: \"%s\" is not like 123=-2.5 or 123=-inf",
                       text);
    *b = (dsv4_bias){.token = (int32_t)u, .bias = (float)d};
    return 0;
}

/* A seed nobody chose. */
static uint64_t any_seed(void)
{
    uint64_t seed = 0;
    if (getentropy(&seed, sizeof seed) != 0)
        seed = (uint64_t)(clock_seconds() * 1e9) ^ (uint64_t)getpid() << 40;
    return seed >> 11; /* exact as a number in any JSON reader */
}

static void take(float *to, float given)
{
    if (!isnan(given))
        *to = given;
}

int sampling_options(struct program *p, const dsv4_engine *e, dsv4_sampling *s, dsv4_bias **bias,
                     dsv4_err *err)
{
    const struct args *a = &p->a;
    dsv4_bias *v = NULL;
    *bias = NULL;
    *s = e ? dsv4_engine_sampling(e) : (dsv4_sampling){0};
    take(&s->temperature, a->greedy ? 0 : a->temp);
    take(&s->top_p, a->top_p);
    take(&s->min_p, a->min_p);
    take(&s->repetition, a->repeat_penalty);
    take(&s->presence, a->presence_penalty);
    take(&s->frequency, a->frequency_penalty);
    if (a->top_k != UINT32_MAX)
        s->top_k = (int)a->top_k;
    s->seed = any_seed();
    if (a->seed && (!opt_number_u64(a->seed, &s->seed) || s->seed > INT64_MAX))
        return err_set(err, DSV4_USAGE, "--seed: \"%s\" is no whole number below 2^63", a->seed);
    if (a->logit_bias.n == 0)
        return 0;
    TRY(mem_alloc(&v, a->logit_bias.n, sizeof *v, "logit biases", err));
    for (size_t i = 0; i < a->logit_bias.n; i++) {
        int rc = parse_bias(a->logit_bias.item[i], &v[i], err);
        if (rc == 0 && e && (size_t)v[i].token >= dsv4_engine_vocab(e))
            rc = err_set(err, DSV4_USAGE, "--logit-bias: the model has no token %d (%zu in all)",
                         (int)v[i].token, dsv4_engine_vocab(e));
        if (rc != 0) {
            free(v);
            return rc;
        }
    }
    s->bias = *bias = v;
    s->n_bias = a->logit_bias.n;
    return 0;
}

/* ------------------------------------------------------------------ afterwards */

static double rate(size_t n, double seconds)
{
    return seconds > 0 ? (double)n / seconds : 0;
}

void statistics(struct program *p, const dsv4_generated *g)
{
    struct terminal *t = &p->term;
    if (!p->a.stats && (p->a.quiet || !t->err.tty))
        return;
    status_clear(t);
    stream_dim(&t->err, true);
    stream_printf(&t->err, "prompt %zu tokens, %.0f tokens/s; ", g->n_prompt,
                  rate(g->n_prompt, g->prompt_seconds));
    if (g->n_tokens > 0)
        stream_printf(&t->err, "answer %zu tokens, %.1f tokens/s; ", g->n_tokens,
                      rate(g->n_tokens, g->token_seconds));
    stream_printf(&t->err, "memory %.1f MB at most", (double)mem_peak() * 1e-6);
    stream_dim(&t->err, false);
    stream_text(&t->err, "\n");
    stream_flush(&t->err, &(dsv4_err){0});
}

int statistics_json(json_t *to, const dsv4_generated *g, dsv4_err *err)
{
    json_t *s =
        json_pack("{s:I, s:I, s:f, s:f, s:f, s:f, s:I}", "prompt_tokens", (json_int_t)g->n_prompt,
                  "generated_tokens", (json_int_t)g->n_tokens, "prompt_seconds", g->prompt_seconds,
                  "generated_seconds", g->token_seconds, "prompt_tokens_per_second",
                  rate(g->n_prompt, g->prompt_seconds), "generated_tokens_per_second",
                  rate(g->n_tokens, g->token_seconds), "memory_peak_bytes", (json_int_t)mem_peak());
    TRY(json_made(s, err));
    if (json_object_set_new(to, "statistics", s) != 0)
        return json_made(NULL, err);
    return 0;
}

/* The text of one token as UTF-8. */
static json_t *token_text(const dsv4_tokenizer *t, int32_t id)
{
    size_t len, n = 0;
    const char *bytes = dsv4_token_bytes(t, id, &len);
    char *out = malloc(len * 3 + 18);
    if (!out)
        return NULL;
    dsv4_utf8 u = {0};
    if (bytes)
        n = dsv4_utf8_push(&u, bytes, len, out);
    n += dsv4_utf8_flush(&u, out + n);
    json_t *v = json_stringn(out, n);
    free(out);
    return v;
}

static json_t *one_logprob(const dsv4_tokenizer *t, dsv4_logprob l)
{
    /* a forbidden token's logarithm is no number in JSON */
    json_t *p = isfinite(l.logprob) ? json_real((double)l.logprob) : json_null();
    return json_pack("{s:i, s:o, s:o}", "id", (int)l.token, "text", token_text(t, l.token),
                     "logprob", p);
}

json_t *logprob_json(const dsv4_tokenizer *t, const dsv4_token *token, size_t n_top)
{
    json_t *top = json_array(), *v = one_logprob(t, token->chosen);
    bool ok = top && v;
    for (size_t i = 0; ok && i < n_top && token->top; i++)
        ok = json_array_append_new(top, one_logprob(t, token->top[i])) == 0;
    if (ok && json_object_set(v, "top", top) == 0) {
        json_decref(top);
        return v;
    }
    json_decref(top);
    json_decref(v);
    return NULL;
}
