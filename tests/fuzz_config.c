/* Any text as config.json and as generation_config.json: refused with a message, or numbers that
 * keep the promises of struct config. Text that begins with a byte 1 to 5 is a list of edits to a
 * golden config instead (5: to one of a converted directory), so that what is tried is mostly JSON and
 * mostly consistent. */
#include "src/load/load.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool x)
{
    if (!x)
        abort();
}

static void check_layers(const struct config *c)
{
    for (uint32_t l = 0; l < c->n_layers; l++) {
        int32_t kv = c->kv_source[l], ix = c->index_source[l];
        if (c->family == FAMILY_V4) {
            must(c->ratio[l] == 0 || c->ratio[l] == 4 || c->ratio[l] == 128);
            must(ix == (c->ratio[l] == 4 ? (int32_t)l : -1));
            must(kv == (c->ratio[l] ? (int32_t)l : -1));
        } else if (c->ratio[l] == 0) {
            must(kv == -1 && ix == -1);
        } else {
            must(c->ratio[l] <= 2 && kv >= 0 && kv <= (int32_t)l && ix >= 0 && ix <= (int32_t)l);
            must(c->kv_source[kv] == kv && c->index_source[ix] == ix);
            must(c->ratio[kv] == c->ratio[l] && c->ratio[ix] == c->ratio[l]);
            must(c->index_heads > 0 && c->index_topk > 0 && c->index_dim >= 32);
        }
    }
    must(c->candidate_source < (int32_t)c->n_layers);
    must(c->candidate_source < 0 || (c->candidate_block > 0 && c->candidate_blocks > 0));
    for (uint32_t i = 0; i < c->n_engram; i++)
        must(c->engram_layer[i] < c->n_layers && c->engram_rows[i] > 0 && c->engram_dim >= 32 &&
             c->engram_heads > 0 && c->engram_ngram >= 2 && c->engram_compressed > 0);
}

/* Whatever the types of a converted directory say: a known one, with its table, or none. */
static void check_packing(const struct config *c)
{
    static const char *const names[] = {
        "head", "layers.1.ffn.experts.7.w1", "layers.1.attn.wq_a", "layers.1.2.3.4.5.6", "*", ""};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const struct wtype *t = packing_type(c->packing, names[i]);
        must(packing_rows(c->packing, names[i]) == 0 || t != NULL);
        if (!t)
            continue;
        must(wtype_named(t->name) != NULL && wtype_named(t->name)->format == t->format);
        must((wformat_table(t->format) > 0) == (t->table != NULL));
        for (size_t k = 0; k < wformat_table(t->format); k++)
            must(t->table[k] >= -127);
    }
}

static void check_config(const struct config *c)
{
    check_packing(c);
    must(c->vocab > 0 && c->d > 0 && c->n_layers > 0 && c->n_layers <= 1024 && c->window > 0);
    must(c->o_groups > 0 && c->n_heads % c->o_groups == 0 && c->top_k <= c->n_experts);
    must(c->rope_dim >= 2 && c->rope_dim % 2 == 0 && c->rope_dim <= c->head_dim);
    must(c->eps > 0 && c->hc_eps > 0 && c->routed_scale > 0 && c->gate_temp > 0);
    must(c->rope_theta >= 2 && c->compress_theta >= 2 && c->yarn_factor >= 1);
    must(isfinite(c->rope_theta) && isfinite(c->compress_theta) && isfinite(c->swiglu_limit));
    must(c->hc_mult > 0 && c->hc_mult <= 16 && c->hc_iters > 0 && c->fp8_block > 0);
    must(c->bos < (int32_t)c->vocab && c->eos < (int32_t)c->vocab && c->pad < (int32_t)c->vocab);
    must(c->n_mtp <= 64 && c->n_hash_layers <= c->n_layers);
    check_layers(c);
}

static void try_config(const char *text, size_t size)
{
    dsv4_err err = {0};
    struct config *c;
    int rc = config_parse(&c, text, size, "config.json", &err);
    must((rc == 0) == (c != NULL));
    if (rc == 0)
        check_config(c);
    else
        must(rc == DSV4_REFUSED && !strncmp(err.text, "config.json: ", 13));
    config_close(c);
}

static void try_generation(const char *text, size_t size)
{
    struct generation_defaults g = {true, 1, 1, 0, 1};
    int rc = generation_parse(&g, text, size, "generation_config.json", NULL);
    must(rc == 0 || rc == DSV4_REFUSED);
    must(g.temperature >= 0 && g.top_p > 0 && g.top_p <= 1 && g.top_k >= 0 && g.repetition > 0);
}

/* A value from two bytes; NULL: delete. */
static json_t *value_of(uint8_t kind, uint8_t x)
{
    switch (kind % 12) {
    case 0: return NULL;
    case 1: return json_integer(x);
    case 2: return json_integer(x * 32);
    case 3: return json_integer((json_int_t)(UINT64_C(1) << x % 64));
    case 4: return json_integer(-(json_int_t)x);
    case 5: return json_real(x / 16.0);
    case 6: return json_real(ldexp(1, x - 128));
    case 7: return x % 2 ? json_true() : json_false();
    case 8: return json_string(x % 2 ? "yarn" : "sliding_attention");
    case 9: return json_null();
    case 10: return json_array();
    default: return json_pack("[i,i]", x, x + 1);
    }
}

/* One edit, three bytes: which member of `object`, and a value for it or for an item of it. */
static void edit(json_t *object, const uint8_t *e)
{
    size_t n = json_object_size(object), at = n ? e[0] % n : 0;
    void *it = json_object_iter(object);
    while (it && at-- > 0)
        it = json_object_iter_next(object, it);
    if (!it)
        return;
    json_t *old = json_object_iter_value(it), *v = value_of(e[1] % 16, e[2]);
    if (json_is_array(old) && json_array_size(old) && e[1] & 16) {
        size_t item = (e[1] >> 5 | e[2] >> 4) % json_array_size(old);
        if (v)
            json_array_set_new(old, item, v);
        else
            json_array_remove(old, item);
    } else if (v) {
        json_object_iter_set_new(object, it, v);
    } else {
        json_object_del(object, json_object_iter_key(it));
    }
}

static const char packed[] = "{\"quant_method\": \"dsv4\", \"layout\": 1, \"panel\": 16, "
                             "\"group\": 32, \"weight_block_size\": [32, 32],"
                             " \"tables\": {\"q4\": [-8,-7,-6,-5,-4,-3,-2,-1,0,1,2,3,4,5,6,7]},"
                             " \"types\": {\"head\": \"q8\", \"layers.*.ffn.experts.*.w1\": "
                             "\"q4\", \"layers.1.attn.wq_a\": \"e4m3\"},"
                             " \"rows\": {\"head\": 33}}";

static void fuzz_edits(const uint8_t *data, size_t size)
{
    static const char *const bases[] = {"v4-tiny", "v4-pro", "v41-tiny", "v41-long", "v41-tiny"};
    char path[64];
    snprintf(path, sizeof path, "tests/golden/%s/config.json", bases[data[0] - 1]);
    json_t *root = json_load_file(path, 0, NULL);
    if (!root)
        return; /* not run from the top of the tree */
    if (data[0] == 5)
        json_object_set_new(root, "quantization_config", json_loads(packed, 0, NULL));
    for (size_t i = 1; i + 4 <= size && i < 64; i += 4) {
        json_t *object = data[i] % 8 == 0 ? root : json_object_get(root, "text_config");
        if (!object)
            object = root;
        if (data[i] % 8 == 1)
            object = json_object_get(object, "rope_scaling");
        static const char *const part[] = {"", "tables", "types", "rows"};
        if (data[0] == 5 && data[i] >= 128) {
            object = json_object_get(root, "quantization_config");
            if (data[i] % 4 > 0)
                object = json_object_get(object, part[data[i] % 4]);
        }
        if (json_is_object(object))
            edit(object, data + i + 1);
    }
    char *text = json_dumps(root, 0);
    must(text != NULL);
    try_config(text, strlen(text));
    free(text);
    json_decref(root);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 0 && data[0] >= 1 && data[0] <= 5) {
        fuzz_edits(data, size);
        return 0;
    }
    char *text = malloc(size ? size : 1); /* exactly as long: reads behind the end are caught */
    must(text != NULL);
    if (size)
        memcpy(text, data, size);
    try_config(text, size);
    try_generation(text, size);
    free(text);
    return 0;
}
