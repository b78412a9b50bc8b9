/* Which model: the configs of the releases, and what the library says about every layer. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ configs of the releases */

/* Members that are the same in all. */
#define COMMON                                                                                  \
    "\"vocab_size\":129280,\"head_dim\":512,\"qk_rope_head_dim\":64,\"o_lora_rank\":1024,"      \
    "\"sliding_window\":128,\"max_position_embeddings\":1048576,\"n_shared_experts\":1,"        \
    "\"num_experts_per_tok\":6,\"scoring_func\":\"sqrtsoftplus\",\"topk_method\":\"noaux_tc\"," \
    "\"norm_topk_prob\":true,\"num_key_value_heads\":1,\"hidden_act\":\"silu\","                \
    "\"swiglu_limit\":10.0,\"hc_mult\":4,\"hc_sinkhorn_iters\":20,\"hc_eps\":1e-06,"            \
    "\"index_head_dim\":128,\"rope_theta\":10000,\"compress_rope_theta\":160000,"               \
    "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":16,\"beta_fast\":32,\"beta_slow\":1,"       \
    "\"original_max_position_embeddings\":65536}"

#define PAIRS(n) n "," n "," n "," n "," n
#define FP8(side) \
    "\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[" side "," side "]}"

static const struct {
    const char *name, *text;
} presets[] = {
    {"v4-flash", "{\"model_type\":\"deepseek_v4\"," COMMON
                 "," FP8("128") ",\"bos_token_id\":0,\"eos_token_id\":1,\"hidden_size\":4096,\"num_"
                                "hidden_layers\":43,"
                                "\"num_attention_heads\":64,\"q_lora_rank\":1024,\"o_groups\":8,"
                                "\"rms_norm_eps\":1e-06,"
                                "\"n_routed_experts\":256,\"moe_intermediate_size\":2048,\"routed_"
                                "scaling_factor\":1.5,"
                                "\"num_hash_layers\":3,\"index_n_heads\":64,\"index_topk\":512,"
                                "\"compress_ratios\":[0,0," PAIRS("4,128") "," PAIRS(
                                    "4,128") "," PAIRS("4,128") "," PAIRS("4,128") ",4]}"},
    {"v4-pro",
     "{\"model_type\":\"deepseek_v4\"," COMMON "," FP8(
         "128") ",\"bos_token_id\":0,\"eos_token_id\":1,\"hidden_size\":7168,\"num_hidden_layers\":"
                "61,"
                "\"num_attention_heads\":128,\"q_lora_rank\":1536,\"o_groups\":16,\"rms_norm_eps\":"
                "1e-06,"
                "\"n_routed_experts\":384,\"moe_intermediate_size\":3072,\"routed_scaling_factor\":"
                "2.5,"
                "\"num_hash_layers\":3,\"index_n_heads\":64,\"index_topk\":1024,\"compress_"
                "ratios\":[128,128," PAIRS("4,128") "," PAIRS("4,128") "," PAIRS("4,128") "," PAIRS(
                    "4,128") "," PAIRS("4,128") ",4,128,4,128,4,128,4,128,4]}"},
    {"v4.1-flash",
     "{\"model_type\":\"deepseek_v41\",\"bos_token_id\":0,\"eos_token_id\":1,\"pad_token_id\":"
     "2," FP8(
         "32") ",\"text_config\":{\"model_type\":\"deepseek_v41_text\"," COMMON
               ",\"hidden_size\":5120,\"num_hidden_layers\":40,\"num_attention_heads\":64,"
               "\"q_lora_rank\":1280,\"o_groups\":8,\"rms_norm_eps\":1e-20,\"n_routed_experts\":"
               "384,"
               "\"moe_intermediate_size\":2304,\"routed_scaling_factor\":1.5,\"index_n_heads\":32,"
               "\"index_topk\":512,\"compress_ratios\":[0,0,2,2,2," PAIRS("2,2,2") "," PAIRS(
                   "1,1,1,1") "],\"kv_source_layer_ids\":[2,8,14,20],"
                              "\"index_source_layer_ids\":[2,8,14,20,24,28,32,36],\"candidate_"
                              "source_layer_id\":20,"
                              "\"candidate_topk_blocks\":2048,\"candidate_block_size\":8,\"engram_"
                              "layer_ids\":[1,14],"
                              "\"engram_num_embeddings\":[384006168,384016682],\"engram_max_ngram_"
                              "size\":4,"
                              "\"engram_vocab_size\":16000000,\"engram_n_heads\":8,\"engram_head_"
                              "dim\":256,"
                              "\"engram_pad_token_id\":2,\"engram_compressed_vocab_size\":99092}}"},
};

int bench_config(const char *as, char **text, size_t *len, dsv4_err *err)
{
    enum { MAX = 1 << 20 };
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++)
        if (strcmp(as, presets[i].name) == 0) {
            *len = strlen(presets[i].text);
            *text = strdup(presets[i].text);
            return *text ? 0 : err_memory(err, *len, "a config");
        }
    if (!strchr(as, '/') && !strchr(as, '.'))
        return err_set(err, DSV4_USAGE,
                       "--as %s: neither v4-flash, v4-pro or v4.1-flash nor the path of a "
                       "config.json (./%s)",
                       as, as);
    return file_read(as, MAX, text, len, err);
}

/* ------------------------------------------------------------------ what the library tells */

static uint64_t number(const json_t *j, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(j, key));
}

static void word(char *out, size_t size, const json_t *j, const char *key)
{
    const char *s = json_string_value(json_object_get(j, key));
    snprintf(out, size, "%s", s ? s : "");
}

static int64_t number_or_none(const json_t *j, const char *key)
{
    const json_t *v = json_object_get(j, key);
    return json_is_integer(v) ? (int64_t)json_integer_value(v) : -1;
}

static void read_layer(struct bench_layer *l, const json_t *j)
{
    l->id = (uint32_t)number(j, "layer");
    word(l->attention, sizeof l->attention, j, "attention");
    word(l->experts, sizeof l->experts, j, "experts");
    l->engram = json_is_true(json_object_get(j, "engram"));
    l->cache_of = number_or_none(j, "cache_of");
    l->index_of = number_or_none(j, "index_of");
    l->bytes_per_token = number(j, "bytes_per_token");
    l->expert_bytes = number(j, "expert_bytes");
    l->multiply_adds = number(j, "multiply_adds");
    l->ratio = number(j, "ratio");
    l->chosen = number(j, "chosen");
    l->index_multiply_adds = number(j, "index_multiply_adds");
    l->index = l->index_multiply_adds > 0;
}

static uint64_t item(const json_t *plan, const char *what)
{
    size_t i;
    const json_t *j;
    json_array_foreach(json_object_get(plan, "items"), i, j)
    {
        const char *name = json_string_value(json_object_get(j, "what"));
        if (name && strcmp(name, what) == 0)
            return number(j, "bytes");
    }
    return 0;
}

static int read_plan(struct bench_model *m, const json_t *j, dsv4_err *err)
{
    const json_t *list = json_object_get(j, "layers");
    TRY(mem_alloc(&m->layer, json_array_size(list), sizeof *m->layer, "layers", err));
    m->n_layers = (uint32_t)json_array_size(list);
    for (uint32_t i = 0; i < m->n_layers; i++)
        read_layer(&m->layer[i], json_array_get(list, i));
    word(m->family, sizeof m->family, j, "family");
    m->entry_multiply_adds = number(j, "multiply_adds_per_entry");
    m->window = number(j, "window");
    m->window_row_bytes = number(j, "window_row_bytes");
    m->entry_bytes = number(j, "entry_bytes");
    m->key_bytes = number(j, "key_bytes");
    m->vocab = number(j, "vocabulary");
    m->experts = number(j, "experts");
    m->held = number(j, "experts_held");
    m->top_k = number(j, "experts_per_token");
    m->context = number(j, "context");
    m->head_bytes = number(j, "head_bytes");
    m->head_multiply_adds = number(j, "head_multiply_adds");
    m->weights = item(j, "weights");
    m->tables = item(j, "Engram tables");
    m->caches = item(j, "caches");
    m->scratch = item(j, "buffers of a step");
    m->other = item(j, "the rest");
    m->needed = number(j, "needed");
    m->available = number(j, "available");
    return 0;
}

int bench_model_read(struct bench_model *m, const char *config, size_t len, const dsv4_slice *slice,
                     const dsv4_options *opt, dsv4_err *err)
{
    char *text;
    json_error_t je;
    *m = (struct bench_model){0};
    TRY(dsv4_plan_synthetic(config, len, slice, opt, &text, err));
    json_t *j = json_loads(text, 0, &je);
    dsv4_free(text);
    TRY(json_made(j, err));
    int rc = read_plan(m, j, err);
    json_decref(j);
    return rc;
}

void bench_model_release(struct bench_model *m)
{
    free(m->layer);
    *m = (struct bench_model){0};
}

/* ------------------------------------------------------------------ what a step costs at least */

/* Compressed entries that a row at position t attends in a layer. */
static uint64_t entries(const struct bench_layer *l, uint64_t t)
{
    uint64_t n = l->ratio ? (t + 1) / l->ratio : 0;
    return l->chosen && l->chosen < n ? l->chosen : n;
}

uint64_t bench_bytes(const struct bench_model *m, uint64_t depth)
{
    uint64_t sum = m->head_bytes, near = depth + 1 < m->window ? depth + 1 : m->window;
    for (uint32_t i = 0; i < m->n_layers; i++) {
        const struct bench_layer *l = &m->layer[i];
        sum += l->bytes_per_token + near * m->window_row_bytes + entries(l, depth) * m->entry_bytes;
        if (l->index)
            sum += (depth + 1) / l->ratio * m->key_bytes;
    }
    return sum;
}

double bench_multiply_adds(const struct bench_model *m, uint64_t rows, uint64_t depth)
{
    double sum = (double)m->head_multiply_adds; /* of one row */
    for (uint32_t i = 0; i < m->n_layers; i++) {
        const struct bench_layer *l = &m->layer[i];
        sum += (double)l->multiply_adds * (double)rows;
        for (uint64_t t = depth; t < depth + rows; t++) {
            uint64_t near = t + 1 < m->window ? t + 1 : m->window;
            sum += (double)((near + entries(l, t)) * m->entry_multiply_adds);
            if (l->index)
                sum += (double)((t + 1) / l->ratio * l->index_multiply_adds);
        }
    }
    return sum;
}
