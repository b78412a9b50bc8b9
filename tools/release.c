/* The configs of the released models, for those who describe or measure them without having them. */
#include "tools.h"

#include <stdlib.h>
#include <string.h>

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
} releases[] = {
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

int release_config(const char *as, char **text, size_t *len, dsv4_err *err)
{
    enum { MAX = 1 << 20 };
    for (size_t i = 0; i < sizeof releases / sizeof *releases; i++)
        if (strcmp(as, releases[i].name) == 0) {
            *len = strlen(releases[i].text);
            *text = strdup(releases[i].text);
            return *text ? 0 : err_memory(err, *len, "a config");
        }
    if (!strchr(as, '/') && !strchr(as, '.'))
        return err_set(err, DSV4_USAGE,
                       "--as %s: neither v4-flash, v4-pro or v4.1-flash nor the path of a "
                       "config.json (./%s)",
                       as, as);
    return file_read(as, MAX, text, len, err);
}
