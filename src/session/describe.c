/* Data sheet, memory plan and build facts as JSON text, for programs and for our own tables. */
#include "session.h"

#include <jansson.h>
#include <stdio.h>

/* jansson reports a lack of memory as NULL or -1 anywhere; one sticky flag says it at the end. */
struct out {
    json_t *root;
    bool failed;
};

static void put(struct out *o, json_t *object, const char *key, json_t *value)
{
    if (!value || json_object_set_new(object, key, value) != 0)
        o->failed = true;
}

static void put_int(struct out *o, json_t *object, const char *key, uint64_t v)
{
    put(o, object, key, json_integer((json_int_t)v));
}

/* Puts a new object or list there; NULL when that failed, as it is gone then. */
static json_t *child(struct out *o, json_t *object, const char *key, json_t *j)
{
    if (!j || json_object_set_new(object, key, j) != 0) {
        o->failed = true;
        return NULL;
    }
    return j;
}

static int finish(struct out *o, char **json, dsv4_err *err)
{
    int rc = json_write(json, o->failed ? NULL : o->root, JSON_INDENT(1), err);
    json_decref(o->root);
    return rc;
}

/* Bytes of weights that one token reads: everything once, of the routed experts its share. */
static uint64_t bytes_per_token(const struct config *c, const struct class_sum *s)
{
    uint64_t n = 0;
    for (int i = 0; i < N_CLASSES; i++)
        if (i == CLASS_EXPERTS)
            n += s[i].held / c->n_experts * c->top_k;
        else if (i != CLASS_EMBED && i != CLASS_ENGRAM_TABLE && class_is_used((enum tensor_class)i))
            n += s[i].held;
    return n + s[CLASS_EMBED].held / c->vocab;
}

static void put_sizes(struct out *o, const struct checkpoint *cp, const struct class_sum *s)
{
    const struct config *c = cp->cfg;
    uint64_t total = 0, active = 0, tables = s[CLASS_ENGRAM_TABLE].weights;
    for (int i = 0; i < N_CLASSES; i++) {
        if (!class_is_used((enum tensor_class)i))
            continue;
        total += s[i].weights;
        if (i == CLASS_EXPERTS)
            active += s[i].weights / c->n_experts * c->top_k;
        else if (i == CLASS_EMBED)
            active += c->d;
        else if (i != CLASS_ENGRAM_TABLE)
            active += s[i].weights;
    }
    uint64_t rows =
        c->n_engram ? (uint64_t)c->n_engram * (c->engram_ngram - 1) * c->engram_heads : 0;
    put_int(o, o->root, "parameters", total - tables);
    put_int(o, o->root, "engram_parameters", tables);
    put_int(o, o->root, "active_parameters", active + rows * c->engram_dim);
    put_int(o, o->root, "bytes_per_token", bytes_per_token(c, s));
    uint64_t k = cache_bytes(cp->m, 1, 0, CHUNK_ROWS * 1000) - cache_bytes(cp->m, 1, 0, 0);
    put_int(o, o->root, "cache_bytes_per_1000_tokens", k / CHUNK_ROWS);
    put_int(o, o->root, "cache_bytes_fixed", cache_bytes(cp->m, 256, 64, 0));
}

static void put_shape(struct out *o, const struct config *c)
{
    json_t *j = child(o, o->root, "shape", json_object());
    if (!j)
        return;
    const struct {
        const char *key;
        uint64_t v;
    } n[] = {{"layers", c->n_layers},         {"hidden", c->d},
             {"streams", c->hc_mult},         {"vocabulary", c->vocab},
             {"heads", c->n_heads},           {"head_dim", c->head_dim},
             {"rope_dim", c->rope_dim},       {"q_lora", c->q_lora},
             {"window", c->window},           {"experts", c->n_experts},
             {"experts_per_token", c->top_k}, {"shared_experts", c->n_shared},
             {"expert_width", c->d_ff},       {"hash_layers", c->n_hash_layers},
             {"index_heads", c->index_heads}, {"index_dim", c->index_dim},
             {"index_topk", c->index_topk},   {"engram_layers", c->n_engram},
             {"drafting_blocks", c->n_mtp}};
    for (size_t i = 0; i < sizeof n / sizeof *n; i++)
        put_int(o, j, n[i].key, n[i].v);
    json_t *ratios = child(o, j, "compress_ratios", json_array());
    for (uint32_t l = 0; ratios && l < c->n_layers; l++)
        if (json_array_append_new(ratios, json_integer(c->ratio[l])) != 0)
            o->failed = true;
}

static void put_classes(struct out *o, const struct class_sum *s)
{
    json_t *list = child(o, o->root, "tensors", json_array());
    for (int i = 0; i < N_CLASSES && list; i++) {
        if (s[i].tensors == 0)
            continue;
        json_t *j = json_object();
        if (!j || json_array_append_new(list, j) != 0) {
            o->failed = true;
            return;
        }
        put(o, j, "class", json_string(tensor_class_name((enum tensor_class)i)));
        put_int(o, j, "tensors", s[i].tensors);
        put_int(o, j, "weights", s[i].weights);
        put_int(o, j, "bytes", s[i].bytes);
        put(o, j, "used", json_boolean(class_is_used((enum tensor_class)i)));
        json_t *d = child(o, j, "bytes_by_dtype", json_object());
        for (int t = 0; t < N_DTYPES && d; t++)
            if (s[i].by_dtype[t])
                put_int(o, d, dtype_name((enum dtype)t), s[i].by_dtype[t]);
    }
}

static const char *family_text(const struct config *c)
{
    return c->family == FAMILY_V41 ? "DeepSeek-V4.1" : "DeepSeek-V4";
}

int dsv4_info(const char *dir, char **json, dsv4_err *err)
{
    struct checkpoint cp;
    struct class_sum sum[N_CLASSES];
    *json = NULL;
    TRY(checkpoint_open(&cp, dir, true, err));
    checkpoint_classes(&cp, sum);
    struct out o = {.root = json_object()};
    const struct config *c = cp.cfg;
    put(&o, o.root, "directory", json_string(dir));
    put(&o, o.root, "family", json_string(family_text(c)));
    put(&o, o.root, "prompt_dialect",
        json_string(c->family == FAMILY_V41 ? "v41"
                    : c->rev_0731           ? "v4-0731"
                                            : "v4-preview"));
    put_int(&o, o.root, "context", c->max_ctx);
    put_int(&o, o.root, "shards", store_shards(cp.store));
    put_int(&o, o.root, "bytes", store_bytes(cp.store));
    put_sizes(&o, &cp, sum);
    put(&o, o.root, "vision", json_boolean(c->has_vision));
    put_shape(&o, c);
    put_classes(&o, sum);
    checkpoint_close(&cp);
    return finish(&o, json, err);
}

static void put_item(struct out *o, json_t *list, const char *what, const char *where,
                     uint64_t bytes, const char *why)
{
    if (bytes == 0)
        return;
    json_t *j = json_object();
    if (!j || json_array_append_new(list, j) != 0) {
        o->failed = true;
        return;
    }
    put(o, j, "what", json_string(what));
    put(o, j, "where", json_string(where));
    put_int(o, j, "bytes", bytes);
    put(o, j, "why", json_string(why));
}

/* What makes the attention of one layer cost what another's does not. */
static void layer_kind(char *out, size_t size, const struct layer *L)
{
    if (L->ratio == 0)
        snprintf(out, size, "window");
    else
        snprintf(out, size, "ratio %u%s%s%s", L->ratio, L->kv_source ? ", own cache" : "",
                 L->index_source ? ", own index"
                 : L->selects    ? ", chosen by others"
                                 : "",
                 L->candidates && L->index_source ? ", in blocks" : "");
}

/* The config's number of a layer of the slice; null for -1. */
static json_t *layer_number(const struct checkpoint *cp, int32_t at)
{
    return at < 0 ? json_null() : json_integer(cp->made->layer[at].id);
}

/* What a slice or a whole model reads and computes, layer by layer, for those who predict. */
static void put_made(struct out *o, const struct checkpoint *cp)
{
    const struct config *c = cp->cfg;
    json_t *list = child(o, o->root, "layers", json_array());
    for (uint32_t i = 0; list && i < cp->made->n_layers; i++) {
        const struct made_layer *m = &cp->made->layer[i];
        const struct layer *L = &cp->m->layer[i];
        uint64_t expert = m->expert_bytes / cp->made->held;
        json_t *j = json_object();
        char kind[64];
        if (!j || json_array_append_new(list, j) != 0) {
            o->failed = true;
            return;
        }
        layer_kind(kind, sizeof kind, L);
        put_int(o, j, "layer", m->id);
        put(o, j, "attention", json_string(kind));
        put(o, j, "experts", json_string(L->hashed ? "by token" : "by router"));
        put(o, j, "engram", json_boolean(L->engram != NULL));
        put_int(o, j, "bytes_per_token", m->bytes + expert * c->top_k);
        put_int(o, j, "expert_bytes", expert);
        put_int(o, j, "bytes", m->bytes + m->expert_bytes);
        put_int(o, j, "multiply_adds", m->weights + m->expert_weights / cp->made->held * c->top_k);
        put_int(o, j, "ratio", L->ratio);
        put(o, j, "cache_of", layer_number(cp, c->kv_source[i]));
        put(o, j, "index_of", layer_number(cp, c->index_source[i]));
        put_int(o, j, "chosen", L->selects ? c->index_topk : 0);
        put_int(o, j, "index_multiply_adds",
                L->index_source ? (uint64_t)c->index_heads * c->index_dim : 0);
    }
    put_int(o, o->root, "multiply_adds_per_entry", 2ull * c->n_heads * c->head_dim);
    put_int(o, o->root, "window", c->window);
    put_int(o, o->root, "window_row_bytes", row_bytes(cp->m->window_row));
    put_int(o, o->root, "entry_bytes", row_bytes(cp->m->entry_row));
    put_int(o, o->root, "key_bytes", c->index_dim ? row_bytes(cp->m->key_row) : 0);
    put_int(o, o->root, "vocabulary", c->vocab);
    put_int(o, o->root, "experts", c->n_experts);
    put_int(o, o->root, "experts_held", cp->made->held);
    put_int(o, o->root, "experts_per_token", c->top_k);
    put_int(o, o->root, "context", c->max_ctx);
    put_int(o, o->root, "head_bytes", cp->made->sum[CLASS_HEAD].bytes);
    put_int(o, o->root, "head_multiply_adds", cp->made->sum[CLASS_HEAD].weights);
}

int checkpoint_plan(const struct checkpoint *cp, const dsv4_options *opt, char **json,
                    dsv4_err *err)
{
    static const dsv4_options defaults;
    struct memory_plan p;
    struct class_sum sum[N_CLASSES];
    struct placement place;
    opt = opt ? opt : &defaults;
    TRY(plan_threads(&place, opt, err));
    int rc = plan_make(&p, cp, opt, &place, true, err);
    placement_release(&place);
    TRY(rc);
    checkpoint_classes(cp, sum);
    struct out o = {.root = json_object()};
    if (cp->dir)
        put(&o, o.root, "directory", json_string(cp->dir));
    put(&o, o.root, "family", json_string(family_text(cp->cfg)));
    put_int(&o, o.root, "ctx", p.ctx);
    put_int(&o, o.root, "batch", p.batch);
    put_int(&o, o.root, "sequences", p.sequences);
    put_int(&o, o.root, "threads", (uint64_t)p.threads);
    json_t *list = child(&o, o.root, "items", json_array());
    if (list) {
        put_item(&o, list, "weights", opt->paged ? "disk, mapped" : "memory, mapped", p.weights,
                 "read as tokens are computed");
        put_item(&o, list, "Engram tables", "disk, mapped", p.tables,
                 "a few rows a token; the page cache keeps the hot ones");
        put_item(&o, list, "unused tensors", "disk", p.unused,
                 "drafting heads and vision: recognised, not used yet");
        put_item(&o, list, "caches", "memory", p.caches,
                 "window, compressed entries and index keys at full context");
        put_item(&o, list, "buffers of a step", "memory", p.scratch, "grow with --batch");
        put_item(&o, list, "the rest", "memory", p.other, "tokenizer, threads (an estimate)");
    }
    uint64_t need = p.caches + p.scratch + p.other + (opt->paged ? 0 : p.weights);
    uint64_t per_token = bytes_per_token(cp->cfg, sum);
    put_int(&o, o.root, "needed", need);
    put_int(&o, o.root, "available", p.available);
    put(&o, o.root, "fits", json_boolean(need <= p.available));
    put_int(&o, o.root, "bytes_per_token", per_token);
    /* No machine generates faster than it reads the weights of a token. */
    put(&o, o.root, "tokens_per_second_per_10_GB_per_s", json_real(1e10 / (double)per_token));
    if (cp->made)
        put_made(&o, cp);
    return finish(&o, json, err);
}

int dsv4_plan(const char *dir, const dsv4_options *opt, char **json, dsv4_err *err)
{
    struct checkpoint cp;
    *json = NULL;
    TRY(checkpoint_open(&cp, dir, !opt || !opt->no_cache_quant, err));
    int rc = checkpoint_plan(&cp, opt, json, err);
    checkpoint_close(&cp);
    return rc;
}

int dsv4_about(char **json, dsv4_err *err)
{
    struct kernels k;
    *json = NULL;
    TRY(model_kernels(&k, err));
    struct out o = {.root = json_object()};
    put(&o, o.root, "version", json_string(DSV4_VERSION));
    put(&o, o.root, "kernels", json_string(k.level));
    put_int(&o, o.root, "cores", (uint64_t)pool_cores());
#ifdef __VERSION__
    put(&o, o.root, "compiler", json_string(__VERSION__));
#endif
#ifdef HAVE_PCRE2
    put(&o, o.root, "pcre2", json_true());
#else
    put(&o, o.root, "pcre2", json_false());
#endif
#ifdef HAVE_UTF8PROC
    put(&o, o.root, "utf8proc", json_true());
#else
    put(&o, o.root, "utf8proc", json_false());
#endif
#ifdef HAVE_HWLOC
    put(&o, o.root, "hwloc", json_true());
#else
    put(&o, o.root, "hwloc", json_false());
#endif
#ifdef HAVE_XXHASH
    put(&o, o.root, "xxhash", json_true());
#else
    put(&o, o.root, "xxhash", json_false());
#endif
    put(&o, o.root, "jansson", json_string(JANSSON_VERSION));
    return finish(&o, json, err);
}
