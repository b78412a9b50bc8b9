/* Opening of golden cases for the tests of the model (see golden_case.h). */
#include "golden_case.h"

#include "src/text/text.h"

static json_t *load_json(const char *dir, const char *file)
{
    char path[512];
    json_error_t e;
    snprintf(path, sizeof path, "%s/%s", dir, file);
    json_t *j = json_load_file(path, 0, &e);
    ck_assert_msg(j != NULL, "%s: %s", path, e.text);
    return j;
}

static void bind_tokens(struct golden *g, const char *dir)
{
    dsv4_err err;
    char path[600];
    dsv4_tokenizer *t;
    int32_t *map;
    uint32_t distinct;
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    OK(dsv4_tokenizer_open(&t, path, &err));
    OK(engram_map_build(t, &map, &distinct, &err));
    dsv4_tokenizer_close(t);
    OK(engram_address(g->m, map, distinct, &err));
}

static void open_case(struct golden *g, const char *name, int threads, bool plain)
{
    dsv4_err err;
    char path[600], model[512];
    *g = (struct golden){.plain = plain};
    snprintf(g->dir, sizeof g->dir, GOLDEN "%s", name);
    g->expect = load_json(g->dir, "expect.json");
    const char *where = json_string_value(json_object_get(g->expect, "model"));
    snprintf(model, sizeof model, "%s/%s", g->dir, where ? where : ".");
    json_t *q = json_object_get(g->expect, "quantizers");
    g->quant = json_is_true(json_object_get(q, "window_kv"));
    snprintf(path, sizeof path, "%s/expect.safetensors", g->dir);
    FILE *f = fopen(path, "rb");
    if (!f)
        snprintf(path, sizeof path, "%s/expect.safetensors", model);
    else
        fclose(f);
    OK(store_open_file(&g->want, path, &err));
    char *text;
    size_t len;
    snprintf(path, sizeof path, "%s/config.json", model);
    OK(file_read(path, 1 << 20, &text, &len, &err));
    OK(config_parse(&g->cfg, text, len, path, &err));
    free(text);
    OK(store_open(&g->store, model, &err));
    OK(model_bind(&g->m, g->cfg, g->store, g->quant, &err));
    if (g->cfg->n_engram)
        bind_tokens(g, model);
    OK(pool_open_threads(&g->pool, threads, &err));
    if (!g->plain)
        OK(weights_load(g->m, g->pool, NULL, NULL, &err));
}

void golden_open(struct golden *g, const char *name, int threads)
{
    open_case(g, name, threads, false);
}

void golden_open_plain(struct golden *g, const char *name, int threads)
{
    open_case(g, name, threads, true);
}

void golden_close(struct golden *g)
{
    pool_close(g->pool);
    model_close(g->m);
    store_close(g->store);
    config_close(g->cfg);
    store_close(g->want);
    json_decref(g->expect);
}

const struct tensor *golden_tensor(const struct golden *g, const char *name)
{
    const struct tensor *t = store_find(g->want, name);
    ck_assert_msg(t != NULL, "%s has no tensor %s", g->dir, name);
    return t;
}

float golden_f32(const struct tensor *t, size_t i)
{
    float v;
    ck_assert(t->dtype == DTYPE_F32 && 4 * i < t->bytes);
    memcpy(&v, t->data + 4 * i, sizeof v);
    return v;
}

int64_t golden_i64(const struct tensor *t, size_t i)
{
    int64_t v = 0;
    int32_t w;
    if (t->dtype == DTYPE_I64) {
        ck_assert(8 * i < t->bytes);
        memcpy(&v, t->data + 8 * i, sizeof v);
        return v;
    }
    ck_assert(t->dtype == DTYPE_I32 && 4 * i < t->bytes);
    memcpy(&w, t->data + 4 * i, sizeof w);
    return w;
}

int32_t *golden_prompt(const struct golden *g, size_t *n)
{
    const struct tensor *t = golden_tensor(g, "input_ids");
    *n = (size_t)t->dim[0];
    int32_t *ids = malloc(*n * sizeof *ids);
    for (size_t i = 0; i < *n; i++)
        ids[i] = (int32_t)golden_i64(t, i);
    return ids;
}

struct cache *golden_cache(const struct golden *g, size_t tokens)
{
    dsv4_err err;
    struct cache *c;
    OK(cache_open(&c, g->m, 512, 64, &err));
    OK(cache_reserve(c, tokens, &err));
    return c;
}

float *golden_run(const struct golden *g, struct cache *c, const int32_t *ids, size_t n,
                  const size_t *chunks, const struct tap *tap)
{
    dsv4_err err;
    struct batch *b;
    size_t vocab = g->cfg->vocab, at = 0;
    float *logits = malloc(n * vocab * sizeof *logits);
    OK(batch_open(&b, g->m, 512, 1, pool_threads(g->pool), &err));
    while (at < n) {
        size_t step = chunks && *chunks ? *chunks++ : n - at;
        ck_assert_uint_le(step, n - at);
        batch_begin(b);
        for (size_t i = 0; i < step; i++)
            batch_add(b, c, ids[at + i], true);
        b->logits = logits + at * vocab;
        b->tap = tap;
        forward(g->pool, b);
        at += step;
    }
    batch_close(b);
    return logits;
}
