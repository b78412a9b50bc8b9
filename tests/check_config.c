/* config.json in every spelling, and every way in which it can be wrong. */
#include "suite.h"

#include "src/load/load.h"

#include <jansson.h>
#include <math.h>

static const char *const dirs[] = {"v4-mixed", "v4-oldnames", "v4-pro",   "v4-tiny",
                                   "v41-long", "v41-quant",   "v41-tiny", NULL};

static json_t *golden(const char *dir)
{
    char path[256];
    snprintf(path, sizeof path, GOLDEN "%s/config.json", dir);
    json_t *j = json_load_file(path, 0, NULL);
    ck_assert_msg(j != NULL, "%s", path);
    return j;
}

/* The object with the numbers: text_config or the whole. */
static json_t *text_of(json_t *root)
{
    json_t *t = json_object_get(root, "text_config");
    return t ? t : root;
}

static int parse(json_t *root, struct config **c, dsv4_err *err)
{
    char *text = json_dumps(root, 0);
    ck_assert_ptr_nonnull(text);
    err->status = 0;
    err->text[0] = 0;
    int rc = config_parse(c, text, strlen(text), "the/config.json", err);
    free(text);
    return rc;
}

/* ------------------------------------------------------------------ invariants */

#define HOLDS(x) ck_assert_msg(x, "%s: %s", what, #x)

static void sources_hold(const struct config *c, const char *what)
{
    for (uint32_t l = 0; l < c->n_layers; l++) {
        int32_t kv = c->kv_source[l], ix = c->index_source[l];
        if (c->ratio[l] == 0) {
            HOLDS(kv == -1 && ix == -1);
        } else if (c->family == FAMILY_V4) {
            HOLDS(kv == (int32_t)l && ix == (c->ratio[l] == 4 ? kv : -1));
        } else {
            HOLDS(kv >= 0 && kv <= (int32_t)l && c->ratio[kv] == c->ratio[l]);
            HOLDS(ix >= 0 && ix <= (int32_t)l && c->ratio[ix] == c->ratio[l]);
            HOLDS(c->kv_source[kv] == kv && c->index_source[ix] == ix);
            HOLDS(c->index_source[c->kv_source[ix]] == c->kv_source[ix]);
        }
        if (c->family == FAMILY_V4)
            HOLDS(c->ratio[l] == 0 || c->ratio[l] == 4 || c->ratio[l] == 128);
        else
            HOLDS(c->ratio[l] <= 2);
        if (c->family == FAMILY_V4 ? c->ratio[l] == 4 : c->ratio[l] > 0)
            HOLDS(c->index_heads > 0 && c->index_topk > 0 && c->index_dim >= 32);
    }
    HOLDS(c->candidate_source >= -1 && c->candidate_source < (int32_t)c->n_layers);
    if (c->candidate_source >= 0)
        HOLDS(c->candidate_block > 0 && c->candidate_blocks > 0 &&
              c->index_source[c->candidate_source] == c->candidate_source);
}

/* What struct config promises to the code that computes with it. */
static void invariants(const struct config *c, const char *what)
{
    HOLDS(c->vocab > 0 && c->d > 0 && c->n_layers > 0 && c->n_layers <= 1024);
    HOLDS(c->n_heads > 0 && c->o_groups > 0 && c->n_heads % c->o_groups == 0);
    HOLDS(c->rope_dim >= 2 && c->rope_dim % 2 == 0 && c->rope_dim <= c->head_dim);
    HOLDS(c->q_lora > 0 && c->o_lora > 0 && c->window > 0 && c->max_ctx > 0);
    HOLDS(c->max_ctx <= 1 << 24);
    HOLDS(c->eps > 0 && c->hc_eps > 0 && c->eps <= 1 && c->hc_eps <= 1);
    HOLDS(c->n_experts > 0 && c->top_k > 0 && c->top_k <= c->n_experts && c->top_k <= 256);
    HOLDS(c->d_ff > 0 && c->n_shared > 0 && c->n_hash_layers <= c->n_layers);
    HOLDS(isfinite(c->routed_scale) && c->routed_scale > 0 && c->gate_temp > 0);
    HOLDS(isfinite(c->swiglu_limit) && c->swiglu_limit >= 0);
    HOLDS(c->rope_theta >= 2 && c->compress_theta >= 2 && isfinite(c->compress_theta));
    HOLDS(c->yarn_factor >= 1 && c->yarn_beta_fast >= c->yarn_beta_slow && c->yarn_beta_slow > 0);
    HOLDS(c->hc_mult > 0 && c->hc_mult <= 16 && c->hc_iters > 0);
    HOLDS(c->index_dim % 32 == 0);
    HOLDS(c->family == FAMILY_V4 ? (c->head_dim - c->rope_dim) % 64 == 0 : c->head_dim % 32 == 0);
    HOLDS(c->family == FAMILY_V41 || c->index_dim == 0 || (c->index_dim & (c->index_dim - 1)) == 0);
    HOLDS(c->fp8_block > 0 && c->n_mtp <= 64);
    int32_t vocab = (int32_t)c->vocab;
    HOLDS(c->bos >= -1 && c->bos < vocab && c->eos >= -1 && c->eos < vocab);
    HOLDS(c->pad >= -1 && c->pad < vocab && c->image_token >= -1 && c->image_token < vocab);
    for (uint32_t i = 0; i < c->n_engram; i++) {
        HOLDS(c->engram_layer[i] < c->n_layers && c->engram_rows[i] > 0);
        HOLDS(i == 0 || c->engram_layer[i] > c->engram_layer[i - 1]);
    }
    if (c->n_engram)
        HOLDS(c->engram_vocab >= 2 && c->engram_ngram >= 2 && c->engram_heads > 0 &&
              c->engram_dim > 0 && c->engram_dim % 32 == 0 && c->engram_compressed > 0 &&
              c->engram_pad >= 0 && c->engram_pad < vocab);
    sources_hold(c, what);
}

/* Every number the same, bit for bit (the layout has no holes that matter: mem_alloc zeroes). */
static void same(const struct config *a, const struct config *b, const char *what)
{
    struct config x = *a, y = *b;
    for (uint32_t l = 0; l < x.n_layers && x.n_layers == y.n_layers; l++)
        ck_assert_msg(x.ratio[l] == y.ratio[l] && x.kv_source[l] == y.kv_source[l] &&
                          x.index_source[l] == y.index_source[l],
                      "%s: layer %u", what, l);
    for (uint32_t i = 0; i < x.n_engram && x.n_engram == y.n_engram; i++)
        ck_assert_msg(x.engram_layer[i] == y.engram_layer[i] &&
                          x.engram_rows[i] == y.engram_rows[i],
                      "%s: engram %u", what, i);
    y.ratio = x.ratio;
    y.kv_source = x.kv_source;
    y.index_source = x.index_source;
    y.engram_layer = x.engram_layer;
    y.engram_rows = x.engram_rows;
    for (size_t i = 0; i < sizeof x; i++)
        ck_assert_msg(((unsigned char *)&x)[i] == ((unsigned char *)&y)[i], "%s: byte %zu differs",
                      what, i);
}

/* ------------------------------------------------------------------ good ones */

START_TEST(goldens_say_what_they_say)
{
    dsv4_err err;
    struct config *c;
    for (size_t i = 0; dirs[i]; i++) {
        json_t *j = golden(dirs[i]);
        OK(parse(j, &c, &err));
        invariants(c, dirs[i]);
        config_close(c);
        json_decref(j);
    }
    json_t *j = golden("v41-tiny");
    OK(parse(j, &c, &err));
    static const int32_t kv[] = {-1, -1, 2, 2, 4, 4, 6, 6, 6}, ix[] = {-1, -1, 2, 2, 4, 5, 6, 6, 8};
    for (uint32_t l = 0; l < 9; l++) {
        ck_assert_int_eq(c->kv_source[l], kv[l]);
        ck_assert_int_eq(c->index_source[l], ix[l]);
    }
    ck_assert_uint_eq(c->n_layers, 9);
    ck_assert_uint_eq(c->ratio[5], 2);
    ck_assert_uint_eq(c->ratio[8], 1);
    ck_assert_int_eq(c->candidate_source, 6);
    ck_assert_uint_eq(c->n_engram, 2);
    ck_assert_uint_eq(c->engram_layer[1], 4);
    ck_assert_uint_eq(c->engram_rows[1], 834);
    ck_assert_uint_eq(c->n_mtp, 3);
    ck_assert_uint_eq(c->fp8_block, 32);
    ck_assert(c->eps == 1e-20f && !c->rev_0731 && !c->has_vision && c->image_token == -1);
    ck_assert_int_eq(c->pad, 2);
    config_close(c);
    json_decref(j);
    j = golden("v4-tiny");
    OK(parse(j, &c, &err));
    ck_assert_uint_eq(c->n_hash_layers, 2);
    ck_assert_uint_eq(c->fp8_block, 128);
    ck_assert_uint_eq(c->n_mtp, 1);
    ck_assert(c->yarn_factor == 16 && c->yarn_original == 65536 && c->compress_theta == 160000);
    ck_assert(c->gate_temp == 1 && c->pad == -1 && c->eos == 1 && c->family == FAMILY_V4);
    config_close(c);
    json_decref(j);
}
END_TEST

/* A golden config with `patch` laid over its text model (null removes a field). */
static json_t *patched(const char *dir, const char *patch)
{
    json_t *j = golden(dir), *t = text_of(j);
    json_error_t e;
    json_t *p = json_loads(patch, 0, &e), *v;
    ck_assert_msg(p != NULL, "%s: %s", patch, e.text);
    const char *key;
    json_object_foreach(p, key, v)
    {
        if (json_is_null(v))
            json_object_del(t, key);
        else
            json_object_set(t, key, v);
    }
    json_decref(p);
    return j;
}

/* Other ways to write the same model. */
static const struct {
    const char *dir, *patch;
} spellings[] = {
    {"v4-tiny", "{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 16.0, "
                "\"original_max_position_embeddings\": 65536}}"},
    {"v4-tiny", "{\"rope_scaling\": null, \"rope_parameters\": {\"rope_type\": \"yarn\", "
                "\"factor\": 16, \"original_max_position_embeddings\": 65536, "
                "\"attention_factor\": 1.0, \"rope_theta\": 10000.0}}"},
    {"v4-tiny",
     "{\"rope_scaling\": null, \"rope_theta\": null, \"compress_rope_theta\": null, "
     "\"qk_rope_head_dim\": null, \"partial_rotary_factor\": 0.3333333333333333, "
     "\"rope_parameters\": {\"main\": {\"rope_type\": \"default\", \"rope_theta\": 10000.0, "
     "\"partial_rotary_factor\": 0.3333333333333333}, \"compress\": {\"rope_type\": \"yarn\", "
     "\"rope_theta\": 160000.0, \"factor\": 16, \"beta_fast\": 32, \"beta_slow\": 1, "
     "\"original_max_position_embeddings\": 65536, \"partial_rotary_factor\": "
     "0.3333333333333333}}}"},
    {"v4-tiny",
     "{\"compress_ratios\": null, \"layer_types\": [\"sliding_attention\", "
     "\"compressed_sparse_attention\", \"heavily_compressed_attention\", "
     "\"compressed_sparse_attention\", \"sliding_attention\", \"heavily_compressed_attention\"], "
     "\"compress_rates\": {\"compressed_sparse_attention\": 4, "
     "\"heavily_compressed_attention\": 128}, \"compress_rate_csa\": 4, "
     "\"num_hash_layers\": null, \"mlp_layer_types\": [\"hash_moe\", \"hash_moe\", \"moe\", "
     "\"moe\", \"moe\", \"moe\"]}"},
    {"v4-tiny", "{\"head_dim\": 96.0, \"vocab_size\": 3.2e2, \"rope_theta\": 1e4}"},
    {"v4-tiny", "{\"compress_ratios\": [0, 4, 128, 4, 0, 128]}"},
    {"v4-tiny", "{\"hc_sinkhorn_iters\": null, \"hc_eps\": null, \"scoring_func\": null, "
                "\"norm_topk_prob\": null, \"n_shared_experts\": null, \"rope_theta\": null, "
                "\"num_key_value_heads\": null, \"topk_method\": null, \"hidden_act\": null}"},
    {"v4-tiny", "{\"eos_token_id\": [1, 5], \"chat_template\": \"{{ 1/0 }}\", "
                "\"auto_map\": {\"AutoModel\": \"evil.py\"}}"},
    {"v41-tiny", "{\"engram_pad_token_id\": null, \"engram_pad_id\": 2}"},
    {"v41-tiny", "{\"engram_pad_id\": 2}"},
    {"v41-tiny", "{\"engram_pad_token_id\": null}"},
    {"v41-tiny", "{\"candidate_source_layer_id\": null}"},
    {"v41-tiny", "{\"gate_temp\": 1, \"layer_types\": [\"whatever\"], \"num_hash_layers\": 0}"},
};

START_TEST(spellings_mean_the_same)
{
    dsv4_err err;
    for (size_t i = 0; i < sizeof spellings / sizeof *spellings; i++) {
        struct config *a, *b;
        json_t *j = golden(spellings[i].dir), *k = patched(spellings[i].dir, spellings[i].patch);
        OK(parse(j, &a, &err));
        OK(parse(k, &b, &err));
        same(a, b, spellings[i].patch);
        config_close(a);
        config_close(b);
        json_decref(j);
        json_decref(k);
    }
    /* V4.1 without the composite around it */
    struct config *a, *b;
    json_t *j = golden("v41-quant"), *flat = json_deep_copy(text_of(j));
    json_object_set(flat, "model_type", json_object_get(j, "model_type"));
    json_object_set(flat, "quantization_config", json_object_get(j, "quantization_config"));
    json_object_set(flat, "bos_token_id", json_object_get(j, "bos_token_id"));
    json_object_set(flat, "eos_token_id", json_object_get(j, "eos_token_id"));
    json_object_set(flat, "pad_token_id", json_object_get(j, "pad_token_id"));
    OK(parse(j, &a, &err));
    OK(parse(flat, &b, &err));
    same(a, b, "flat V4.1");
    config_close(a);
    config_close(b);
    json_decref(j);
    json_decref(flat);
}
END_TEST

/* The released sizes (spec/architecture.md), V4-Flash with the drafting blocks of 0731. */
START_TEST(released_sizes_are_in_range)
{
    static const char flash[] =
        "{\"vocab_size\": 129280, \"hidden_size\": 4096, \"num_hidden_layers\": 43, "
        "\"num_attention_heads\": 64, \"head_dim\": 512, \"qk_rope_head_dim\": 64, "
        "\"q_lora_rank\": 1024, \"o_groups\": 8, \"o_lora_rank\": 1024, \"n_routed_experts\": 256, "
        "\"num_experts_per_tok\": 6, \"moe_intermediate_size\": 2048, \"sliding_window\": 128, "
        "\"index_n_heads\": 64, \"index_head_dim\": 128, \"index_topk\": 512, "
        "\"num_hash_layers\": 3, \"swiglu_limit\": 10.0, \"dspark_block_size\": 5, "
        "\"dspark_noise_token_id\": 128799, \"dspark_target_layer_ids\": [40, 41, 42]}";
    static const char pro[] =
        "{\"vocab_size\": 129280, \"hidden_size\": 7168, \"num_hidden_layers\": 61, "
        "\"num_attention_heads\": 128, \"head_dim\": 512, \"qk_rope_head_dim\": 64, "
        "\"q_lora_rank\": 1536, \"o_groups\": 16, \"o_lora_rank\": 1024, "
        "\"n_routed_experts\": 384, \"moe_intermediate_size\": 3072, \"index_n_heads\": 64, "
        "\"index_head_dim\": 128, \"index_topk\": 1024, \"num_hash_layers\": 3}";
    static const char v41[] =
        "{\"vocab_size\": 129280, \"hidden_size\": 5120, \"num_hidden_layers\": 40, "
        "\"num_attention_heads\": 64, \"head_dim\": 512, \"qk_rope_head_dim\": 64, "
        "\"q_lora_rank\": 1280, \"o_groups\": 8, \"n_routed_experts\": 384, "
        "\"moe_intermediate_size\": 2304, \"index_n_heads\": 32, \"index_head_dim\": 128, "
        "\"index_topk\": 512, \"kv_source_layer_ids\": [2, 8, 14, 20], "
        "\"index_source_layer_ids\": [2, 8, 14, 20, 24, 28, 32, 36], "
        "\"candidate_source_layer_id\": 20, \"candidate_topk_blocks\": 2048, "
        "\"candidate_block_size\": 8, \"engram_layer_ids\": [1, 14], "
        "\"engram_vocab_size\": 16000000, \"engram_n_heads\": 8, \"engram_head_dim\": 256, "
        "\"engram_num_embeddings\": [384006168, 384016682], "
        "\"engram_compressed_vocab_size\": 99092, \"dspark_n_routed_experts\": 128, "
        "\"dspark_num_experts_per_tok\": 3}";
    const char *patch[] = {flash, pro, v41};
    dsv4_err err;
    for (int i = 0; i < 3; i++) {
        json_t *j = patched(i == 2 ? "v41-tiny" : "v4-tiny", patch[i]), *t = text_of(j);
        int n = i == 0 ? 43 : i == 1 ? 61 : 40;
        json_t *list = json_array();
        for (int l = 0; l < n; l++)
            json_array_append_new(list, json_integer(i == 2   ? (l < 2    ? 0
                                                                 : l < 20 ? 2
                                                                          : 1)
                                                     : i == 0 ? (l < 2   ? 0
                                                                 : l % 2 ? 128
                                                                         : 4)
                                                              : (l < 2 || l % 2 ? 128 : 4)));
        for (int k = 0; k < (i == 1 ? 1 : 3); k++)
            json_array_append_new(list, json_integer(0));
        json_object_set_new(t, "compress_ratios", list);
        if (i == 2) {
            json_object_set_new(j, "image_token_id", json_integer(129264));
            json_object_set_new(j, "vision_config", json_pack("{s:i}", "num_hidden_layers", 32));
        }
        struct config *c;
        OK(parse(j, &c, &err));
        invariants(c, patch[i]);
        ck_assert_uint_eq(c->n_mtp, i == 1 ? 1 : 3);
        ck_assert(c->rev_0731 == (i == 0) && c->has_vision == (i == 2));
        ck_assert_int_eq(c->image_token, i == 2 ? 129264 : -1);
        ck_assert_uint_eq(c->ratio[20], i == 0 || i == 1 ? 4 : 1);
        config_close(c);
        json_decref(j);
    }
}
END_TEST

/* ------------------------------------------------------------------ refusals */

/* What does not fit together, and the words that the message has to hold. */
static const struct {
    const char *dir, *patch, *words;
} refused[] = {
    {"v4-tiny", "{\"model_type\": \"llama\"}", "model_type is \"llama\"; expected \"deepseek_v4\""},
    {"v4-tiny", "{\"model_type\": null}", "model_type is missing"},
    {"v4-tiny", "{\"num_attention_heads\": 0}",
     "num_attention_heads is 0; expected a whole number from 1 to 4096"},
    {"v4-tiny", "{\"num_hidden_layers\": 1000000000}", "num_hidden_layers is 1000000000; expected"},
    {"v4-tiny", "{\"num_hidden_layers\": 8}", "compress_ratios is a list of 7; expected"},
    {"v4-tiny", "{\"vocab_size\": \"320\"}", "vocab_size is \"320\"; expected"},
    {"v4-tiny", "{\"vocab_size\": 320.5}", "vocab_size is 320.5; expected"},
    {"v4-tiny", "{\"vocab_size\": true}", "vocab_size is true; expected"},
    {"v4-tiny", "{\"rms_norm_eps\": 0}", "rms_norm_eps is 0; expected a number from 1e-37 to 1"},
    {"v4-tiny", "{\"rms_norm_eps\": 1e-50}", "rms_norm_eps is 1e-50"},
    {"v4-tiny", "{\"o_groups\": 3}", "o_groups is 3; expected a divisor of num_attention_heads"},
    {"v4-tiny", "{\"num_experts_per_tok\": 9}", "num_experts_per_tok is 9; expected at most"},
    {"v4-tiny", "{\"qk_rope_head_dim\": 33}", "qk_rope_head_dim gives 33"},
    {"v4-tiny", "{\"qk_rope_head_dim\": 98}", "qk_rope_head_dim is 98"},
    {"v4-tiny", "{\"qk_rope_head_dim\": 30}", "head_dim is 96; expected a multiple of 64 more"},
    {"v4-tiny", "{\"qk_rope_head_dim\": null}", "qk_rope_head_dim is missing"},
    {"v4-tiny", "{\"partial_rotary_factor\": 0.5}", "do not say the same"},
    {"v4-tiny", "{\"index_head_dim\": 96}", "index_head_dim is 96; expected a power of 2"},
    {"v4-tiny", "{\"index_head_dim\": 48}", "index_head_dim is 48; expected a multiple of 32"},
    {"v4-tiny", "{\"index_topk\": null}", "index_topk is missing"},
    {"v4-tiny", "{\"compress_ratios\": [0, 4, 128, 4, 2, 0]}",
     "compress_ratios[4] is 2; expected 0, 4 or 128"},
    {"v4-tiny", "{\"compress_ratios\": [0, 4, 128, 4, \"0\", 0]}", "compress_ratios[4] is \"0\""},
    {"v4-tiny", "{\"compress_ratios\": null}", "compress_ratios is missing"},
    {"v4-tiny", "{\"compress_rope_theta\": null}", "compress_rope_theta is missing"},
    {"v4-tiny", "{\"layer_types\": [\"sliding_attention\"]}", "layer_types is a list of 1"},
    {"v4-tiny",
     "{\"layer_types\": [\"sliding_attention\", \"sliding_attention\", \"sliding_attention\", "
     "\"sliding_attention\", \"sliding_attention\", \"sliding_attention\"]}",
     "layer_types[1] is \"sliding_attention\"; expected the layer type of ratio 4"},
    {"v4-tiny",
     "{\"compress_ratios\": null, \"layer_types\": [\"a\", \"b\", \"c\", \"d\", \"e\", \"f\"]}",
     "layer_types[0] is \"a\""},
    {"v4-tiny",
     "{\"compress_rates\": {\"compressed_sparse_attention\": 8}, \"compress_ratios\": null, "
     "\"layer_types\": [\"sliding_attention\", \"sliding_attention\", \"sliding_attention\", "
     "\"sliding_attention\", \"sliding_attention\", \"sliding_attention\"]}",
     "compress_rates.compressed_sparse_attention is 8"},
    {"v4-tiny", "{\"num_hash_layers\": null}", "num_hash_layers is missing"},
    {"v4-tiny", "{\"num_hash_layers\": 7}", "num_hash_layers is 7"},
    {"v4-tiny",
     "{\"mlp_layer_types\": [\"hash_moe\", \"moe\", \"moe\", \"moe\", \"moe\", \"moe\"]}",
     "num_hash_layers is 2; expected 1, as mlp_layer_types says"},
    {"v4-tiny",
     "{\"mlp_layer_types\": [\"hash_moe\", \"moe\", \"hash_moe\", \"moe\", \"moe\", \"moe\"]}",
     "mlp_layer_types[2] is \"hash_moe\""},
    {"v4-tiny", "{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}}",
     "rope_scaling.type is \"linear\"; expected \"yarn\""},
    {"v4-tiny", "{\"rope_scaling\": {\"factor\": 2}}", "rope_scaling.type is missing"},
    {"v4-tiny", "{\"rope_scaling\": {\"type\": \"yarn\"}}", "rope_scaling.factor is missing"},
    {"v4-tiny", "{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2}}",
     "rope_scaling.original_max_position_embeddings is missing"},
    {"v4-tiny",
     "{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2, \"beta_slow\": 40, "
     "\"original_max_position_embeddings\": 4096}}",
     "rope_scaling.beta_slow is 40; expected at most beta_fast"},
    {"v4-tiny",
     "{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2, \"attention_factor\": 1.2, "
     "\"original_max_position_embeddings\": 4096}}",
     "rope_scaling.attention_factor is 1.2"},
    {"v4-tiny",
     "{\"rope_parameters\": {\"type\": \"yarn\", \"factor\": 8, "
     "\"original_max_position_embeddings\": 65536}}",
     "rope_scaling and rope_parameters do not say the same"},
    {"v4-tiny",
     "{\"rope_parameters\": {\"type\": \"yarn\", \"factor\": 16, \"beta_fast\": 31, "
     "\"original_max_position_embeddings\": 65536}}",
     "rope_scaling and rope_parameters do not say the same"},
    {"v4-tiny", "{\"rope_parameters\": {\"type\": \"default\"}}",
     "rope_scaling and rope_parameters do not say the same"},
    {"v4-tiny",
     "{\"rope_scaling\": null, \"rope_parameters\": {\"main\": {\"rope_theta\": 500}, "
     "\"compress\": {}}}",
     "rope_theta and rope_parameters do not say the same"},
    {"v4-tiny",
     "{\"rope_scaling\": null, \"rope_parameters\": {\"main\": {\"rope_type\": \"yarn\", "
     "\"factor\": 2, \"original_max_position_embeddings\": 4096}, \"compress\": {}}}",
     "rope_parameters.main.rope_type is \"yarn\"; expected \"default\""},
    {"v4-tiny", "{\"rope_theta\": 1}", "rope_theta is 1"},
    {"v4-tiny", "{\"scoring_func\": \"relu\"}", "scoring_func is \"relu\""},
    {"v4-tiny", "{\"hidden_act\": \"gelu\"}", "hidden_act is \"gelu\"; expected \"silu\""},
    {"v4-tiny", "{\"attention_bias\": true}", "attention_bias is true"},
    {"v4-tiny", "{\"tie_word_embeddings\": true}", "tie_word_embeddings is true"},
    {"v4-tiny", "{\"num_key_value_heads\": 2}", "num_key_value_heads is 2"},
    {"v4-tiny", "{\"quantization_config\": {\"quant_method\": \"gptq\"}}",
     "quantization_config.quant_method is \"gptq\""},
    {"v4-tiny", "{\"quantization_config\": {\"weight_block_size\": [128, 64]}}",
     "quantization_config.weight_block_size is a list of 2"},
    {"v4-tiny", "{\"quantization_config\": {\"weight_block_size\": [0, 0]}}", "weight_block_size"},
    {"v4-tiny", "{\"bos_token_id\": 320}",
     "bos_token_id is 320; expected a token id from 0 to 319"},
    {"v4-tiny", "{\"eos_token_id\": []}", "eos_token_id is a list of 0"},
    {"v4-tiny", "{\"eos_token_id\": [\"x\"]}", "eos_token_id"},
    {"v4-tiny", "{\"routed_scaling_factor\": 0}", "routed_scaling_factor is 0"},
    {"v4-tiny", "{\"swiglu_limit\": -1}", "swiglu_limit is -1"},
    {"v41-tiny", "{\"compress_ratios\": [0, 0, 2, 2, 2, 2, 1, 1, 4]}",
     "text_config.compress_ratios[8] is 4; expected 0, 1 or 2"},
    {"v41-tiny", "{\"kv_source_layer_ids\": [2, 4, 4]}", "kv_source_layer_ids[2] is 4"},
    {"v41-tiny", "{\"kv_source_layer_ids\": [4, 2, 6]}", "kv_source_layer_ids[1] is 2"},
    {"v41-tiny", "{\"kv_source_layer_ids\": [2, 4, 9]}", "kv_source_layer_ids[2] is 9"},
    {"v41-tiny", "{\"kv_source_layer_ids\": [-1, 4, 6]}", "kv_source_layer_ids[0] is -1"},
    {"v41-tiny", "{\"kv_source_layer_ids\": [1, 2, 6]}",
     "kv_source_layer_ids[0] is 1; expected a layer of a ratio above 0"},
    {"v41-tiny", "{\"kv_source_layer_ids\": [2, 4]}",
     "kv_source_layer_ids is a list of 2; expected a source of ratio 1 at or before layer 6"},
    {"v41-tiny", "{\"kv_source_layer_ids\": null}", "kv_source_layer_ids is missing"},
    {"v41-tiny", "{\"kv_source_layer_ids\": [3, 4, 6]}", "at or before layer 2"},
    {"v41-tiny", "{\"index_source_layer_ids\": [2, 5, 6, 8]}",
     "to hold 4, the KV source of index source 5"},
    {"v41-tiny", "{\"index_source_layer_ids\": [2, 4, 5]}", "index_source_layer_ids is a list"},
    {"v41-tiny", "{\"index_source_layer_ids\": []}", "index_source_layer_ids is a list of 0"},
    {"v41-tiny", "{\"candidate_source_layer_id\": 7}", "candidate_source_layer_id is 7"},
    {"v41-tiny", "{\"candidate_source_layer_id\": 9}", "candidate_source_layer_id is 9"},
    {"v41-tiny", "{\"candidate_source_layer_id\": 4}",
     "candidate_source_layer_id is 4; expected a layer of the ratio"},
    {"v41-tiny", "{\"candidate_block_size\": 0}", "candidate_block_size is 0"},
    {"v41-tiny", "{\"candidate_topk_blocks\": null}", "candidate_topk_blocks is missing"},
    {"v41-tiny", "{\"head_dim\": 80, \"o_groups\": 2}",
     "head_dim is 80; expected a multiple of 32"},
    {"v41-tiny", "{\"qk_rope_head_dim\": 64}", "index_head_dim is 32; expected at least"},
    {"v41-tiny", "{\"num_hash_layers\": 1}", "num_hash_layers is 1"},
    {"v41-tiny", "{\"gate_temp\": 0}", "gate_temp is 0"},
    {"v41-tiny", "{\"engram_layer_ids\": [4, 1]}", "engram_layer_ids[1] is 1"},
    {"v41-tiny", "{\"engram_layer_ids\": [1, 9]}", "engram_layer_ids[1] is 9"},
    {"v41-tiny", "{\"engram_num_embeddings\": [630]}", "engram_num_embeddings is a list of 1"},
    {"v41-tiny", "{\"engram_num_embeddings\": null}", "engram_num_embeddings is missing"},
    {"v41-tiny", "{\"engram_num_embeddings\": {\"1\": 630}}", "engram_num_embeddings is an object"},
    {"v41-tiny", "{\"engram_num_embeddings\": [630, 0]}", "engram_num_embeddings[1] is 0"},
    {"v41-tiny", "{\"engram_pad_id\": 3}", "engram_pad_id is 3; expected 2"},
    {"v41-tiny", "{\"engram_pad_token_id\": 272}", "engram_pad_token_id is 272"},
    {"v41-tiny", "{\"engram_head_dim\": 40}", "engram_head_dim is 40"},
    {"v41-tiny", "{\"engram_compressed_vocab_size\": 300}", "engram_compressed_vocab_size is 300"},
    {"v41-tiny", "{\"engram_max_ngram_size\": 1}", "engram_max_ngram_size is 1"},
    {"v41-tiny", "{\"dspark_num_experts_per_tok\": 7}", "dspark_num_experts_per_tok is 7"},
};

START_TEST(what_does_not_fit_is_refused)
{
    dsv4_err err;
    struct config *c;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        json_t *j = patched(refused[i].dir, refused[i].patch);
        int rc = parse(j, &c, &err);
        ck_assert_msg(rc == DSV4_REFUSED && c == NULL, "%s: status %d", refused[i].patch, rc);
        ck_assert_msg(strstr(err.text, refused[i].words) &&
                          !strncmp(err.text, "the/config.json: ", 17),
                      "%s: %s", refused[i].patch, err.text);
        json_decref(j);
    }
}
END_TEST

START_TEST(texts_that_are_no_config_are_refused)
{
    static const struct {
        const char *text, *words;
    } bad[] = {
        {"", "not valid JSON"},
        {"{", "not valid JSON at line 1"},
        {"[]", "expected a JSON object"},
        {"null", "expected a JSON object"},
        {"\"deepseek_v4\"", "expected a JSON object"},
        {"{}", "model_type is missing"},
        {"{\"model_type\": NaN}", "not valid JSON"},
        {"{\"model_type\": 1e999}", "not valid JSON"},
        {"{\"model_type\": 99999999999999999999}", "not valid JSON"},
        {"{\"model_type\": \"deepseek_v4\", \"model_type\": \"deepseek_v4\"}", "not valid JSON"},
        {"{\"model_type\": \"deepseek_v41\", \"text_config\": 3}", "text_config is 3"},
        {"{\"model_type\": \"deepseek_v4\"} x", "not valid JSON"},
        {"{\"model_type\": \"\xff\"}", "not valid JSON"},
        {"{\"model_type\": \"\\u0000\"}", "not valid JSON"},
    };
    dsv4_err err;
    struct config *c;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_int_eq(config_parse(&c, bad[i].text, strlen(bad[i].text), "x", &err),
                         DSV4_REFUSED);
        ck_assert_msg(c == NULL && strstr(err.text, bad[i].words), "%s: %s", bad[i].text, err.text);
    }
    size_t n = 1000000;
    char *deep = malloc(n);
    ck_assert_ptr_nonnull(deep);
    memset(deep, '[', n);
    ck_assert_int_eq(config_parse(&c, deep, n, "x", &err), DSV4_REFUSED);
    ck_assert(strstr(err.text, "not valid JSON"));
    free(deep);
    char *large = calloc(1, ((size_t)4 << 20) + 1);
    ck_assert_ptr_nonnull(large);
    ck_assert_int_eq(config_parse(&c, large, ((size_t)4 << 20) + 1, "x", &err), DSV4_REFUSED);
    ck_assert(strstr(err.text, "expected at most"));
    free(large);
}
END_TEST

/* ------------------------------------------------------------------ one field at a time */

/* Read by nobody here: any value will do. */
static bool unread(const char *key)
{
    static const char *const keys[] = {
        "architectures", "attention_dropout", "initializer_range",     "torch_dtype",
        "use_cache",     "expert_dtype",      "transformers_version",  "scale_fmt",
        "dtype",         "activation_scheme", "dspark_noise_token_id", "dspark_target_layer_ids",
        "fmt",           "dspark_markov_rank"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strcmp(key, keys[i]) == 0)
            return true;
    return false;
}

/* What all goldens have and no guess may replace. */
static bool required(const char *key)
{
    static const char *const keys[] = {"vocab_size",
                                       "hidden_size",
                                       "num_hidden_layers",
                                       "num_attention_heads",
                                       "head_dim",
                                       "qk_rope_head_dim",
                                       "q_lora_rank",
                                       "o_groups",
                                       "o_lora_rank",
                                       "sliding_window",
                                       "max_position_embeddings",
                                       "rms_norm_eps",
                                       "n_routed_experts",
                                       "num_experts_per_tok",
                                       "moe_intermediate_size",
                                       "routed_scaling_factor",
                                       "swiglu_limit",
                                       "hc_mult",
                                       "compress_ratios",
                                       "compress_rope_theta",
                                       "num_hash_layers",
                                       "index_n_heads",
                                       "index_head_dim",
                                       "index_topk",
                                       "kv_source_layer_ids",
                                       "index_source_layer_ids",
                                       "candidate_topk_blocks",
                                       "candidate_block_size",
                                       "engram_num_embeddings",
                                       "engram_vocab_size",
                                       "engram_max_ngram_size",
                                       "engram_n_heads",
                                       "engram_head_dim",
                                       "engram_compressed_vocab_size",
                                       "factor",
                                       "original_max_position_embeddings"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strcmp(key, keys[i]) == 0)
            return true;
    return false;
}

static const char *const values[] = {"0",
                                     "-1",
                                     "1",
                                     "2",
                                     "3",
                                     "7",
                                     "31",
                                     "32",
                                     "33",
                                     "64",
                                     "2147483648",
                                     "4294967296",
                                     "9007199254740993",
                                     "9223372036854775807",
                                     "-9223372036854775808",
                                     "0.5",
                                     "1e300",
                                     "-1e300",
                                     "1e-300",
                                     "16777216",
                                     "16777217",
                                     "true",
                                     "false",
                                     "\"\"",
                                     "\"128\"",
                                     "null",
                                     "[]",
                                     "{}",
                                     "[0]",
                                     "[1, 2, 3]",
                                     "[[]]",
                                     "{\"a\": 1}",
                                     "\"a\\u001b[2Jb\""};

/* A value of a type that the field never has. */
static bool wrong_type(const json_t *was, const json_t *now)
{
    if (json_is_null(now))
        return false;
    return json_is_number(was) ? !json_is_number(now) && !json_is_array(now)
                               : json_typeof(was) != json_typeof(now) &&
                                     !(json_is_boolean(was) && json_is_boolean(now));
}

static void try_variant(json_t *root, const char *key, bool must_refuse, const char *what)
{
    dsv4_err err;
    struct config *c;
    int rc = parse(root, &c, &err);
    if (rc == 0) {
        ck_assert_msg(!must_refuse, "%s: accepted", what);
        invariants(c, what);
        config_close(c);
        return;
    }
    ck_assert_msg(rc == DSV4_REFUSED && c == NULL, "%s: status %d: %s", what, rc, err.text);
    ck_assert_msg(!strncmp(err.text, "the/config.json: ", 17), "%s: %s", what, err.text);
    if (must_refuse)
        ck_assert_msg(strstr(err.text, key) != NULL, "%s: %s", what, err.text);
}

/* Every member of `object` (part of root) deleted and set to every value of the table. */
static void vary_object(json_t *root, json_t *object, size_t *n)
{
    json_t *copy = json_deep_copy(object), *was;
    const char *key;
    char what[256];
    json_object_foreach(copy, key, was)
    {
        json_object_del(object, key);
        snprintf(what, sizeof what, "%s deleted", key);
        try_variant(root, key, required(key), what);
        for (size_t i = 0; i < sizeof values / sizeof *values; i++, ++*n) {
            json_t *v = json_loads(values[i], JSON_DECODE_ANY, NULL);
            ck_assert_ptr_nonnull(v);
            snprintf(what, sizeof what, "%s = %s", key, values[i]);
            bool must = !unread(key) && wrong_type(was, v);
            /* inside text_config nobody asks for the type again */
            if (strcmp(key, "model_type") == 0 && object != root)
                must = false;
            json_object_set_new(object, key, v);
            try_variant(root, key, must, what);
        }
        json_object_set(object, key, was);
        if (!json_is_array(was))
            continue;
        json_t *list = json_object_get(object, key);
        for (size_t at = 0; at < json_array_size(was); at++) {
            for (size_t i = 0; i < sizeof values / sizeof *values; i++, ++*n) {
                json_t *changed = json_copy(list);
                json_array_set_new(changed, at, json_loads(values[i], JSON_DECODE_ANY, NULL));
                json_object_set_new(object, key, changed);
                snprintf(what, sizeof what, "%s[%zu] = %s", key, at, values[i]);
                try_variant(root, key, false, what);
            }
            json_t *shorter = json_copy(was);
            json_array_remove(shorter, at);
            json_object_set_new(object, key, shorter);
            snprintf(what, sizeof what, "%s without [%zu]", key, at);
            try_variant(root, key, false, what);
            json_object_set(object, key, was);
            list = json_object_get(object, key);
        }
    }
    json_decref(copy);
}

START_TEST(any_field_may_be_anything)
{
    json_t *root = golden(dirs[_i]);
    size_t n = 0;
    vary_object(root, root, &n); /* puts copies of its members back */
    if (text_of(root) != root)
        vary_object(root, text_of(root), &n);
    vary_object(root, json_object_get(root, "quantization_config"), &n);
    vary_object(root, json_object_get(text_of(root), "rope_scaling"), &n);
    ck_assert_uint_gt(n, 1000);
    json_decref(root);
}
END_TEST

/* ------------------------------------------------------------------ memory, generation */

static size_t until; /* allocations that still succeed */
static bool for_ever;

static void *rationed(size_t n)
{
    if (until == 0 && for_ever)
        return NULL;
    return until-- == 0 ? NULL : malloc(n);
}

/* jansson's n-th allocation fails, alone or with all after it: an error or the whole config, never
 * one that lacks something. */
START_TEST(jansson_may_run_out_of_memory)
{
    dsv4_err err;
    struct config *c, *whole;
    json_t *j = golden(_i < 2 ? "v41-tiny" : "v4-pro");
    char *text = json_dumps(j, 0);
    ck_assert_ptr_nonnull(text);
    OK(parse(j, &whole, &err));
    json_decref(j);
    json_set_alloc_funcs(rationed, free);
    for_ever = _i % 2;
    size_t failures = 0, n = 0;
    for (size_t good = 0; good < 10; n++) {
        until = n;
        int rc = config_parse(&c, text, strlen(text), "x", &err);
        ck_assert_msg(rc == 0 || (rc == DSV4_NO_MEMORY && c == NULL), "%zu: status %d: %s", n, rc,
                      err.text);
        failures += rc != 0;
        good = rc == 0 ? good + 1 : 0;
        if (rc == 0)
            same(c, whole, "with little memory");
        config_close(c);
    }
    ck_assert_uint_gt(failures, 100);
    config_close(whole);
    free(text);
}
END_TEST

START_TEST(generation_defaults)
{
    static const char good[] = "{\"do_sample\": true, \"temperature\": 0.6, \"top_p\": 0.95, "
                               "\"top_k\": null, \"eos_token_id\": [1]}";
    dsv4_err err;
    struct generation_defaults g = {false, 1, 1, 7, 1};
    OK(generation_parse(&g, good, strlen(good), "g.json", &err));
    ck_assert(g.do_sample && g.temperature == 0.6f && g.top_p == 0.95f && g.top_k == 7);
    static const char *const bad[] = {"{\"temperature\": -1}",
                                      "{\"temperature\": \"hot\"}",
                                      "{\"top_p\": 0}",
                                      "{\"top_p\": 1.5}",
                                      "{\"top_k\": -1}",
                                      "{\"top_k\": 1.5}",
                                      "{\"repetition_penalty\": 0}",
                                      "{\"do_sample\": 1}",
                                      "[]",
                                      "{\"top_k\": 1e99}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct generation_defaults was = g;
        ck_assert_int_eq(generation_parse(&g, bad[i], strlen(bad[i]), "g.json", &err),
                         DSV4_REFUSED);
        ck_assert_msg(!strncmp(err.text, "g.json: ", 8), "%s", err.text);
        ck_assert(g.temperature == was.temperature && g.top_k == was.top_k);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("config");
    TCase *t = tcase_create("all");
    tcase_set_timeout(t, 300);
    tcase_add_test(t, goldens_say_what_they_say);
    tcase_add_test(t, spellings_mean_the_same);
    tcase_add_test(t, released_sizes_are_in_range);
    tcase_add_test(t, what_does_not_fit_is_refused);
    tcase_add_test(t, texts_that_are_no_config_are_refused);
    tcase_add_loop_test(t, any_field_may_be_anything, 0, 7);
    tcase_add_loop_test(t, jansson_may_run_out_of_memory, 0, 4);
    tcase_add_test(t, generation_defaults);
    suite_add_tcase(s, t);
    return run_suite(s);
}
