/* What a GGUF file says about its model and its tokenizer, as the texts of the files that an official directory
 * has: whoever reads those checks them. */
#include "gguf.h"

#include "src/text/text.h"

#include <math.h>
#include <string.h>

/* ------------------------------------------------------------------ config.json */

static int put(json_t *to, const char *name, json_t *value, dsv4_err *err)
{
    return json_object_set_new(to, name, value) == 0 ? 0 : err_memory(err, 64, "a config");
}

static int put_number(json_t *to, const struct gguf *g, const char *name, const char *key,
                      bool needed)
{
    double v;
    const struct gguf_meta *m = gguf_find(g, key);
    if (!m && !needed)
        return 0;
    if (!m || !gguf_number(g, m, 0, &v) || !isfinite(v))
        return gguf_missing(g, key);
    bool whole = m->type != GGUF_F32 && m->type != GGUF_F64 && fabs(v) < 0x1p53;
    return put(to, name, whole ? json_integer((json_int_t)v) : json_real(v), g->err);
}

#define AT(field) offsetof(struct config, field)

const struct gguf_number gguf_numbers[] = {
    {"hidden_size", GGUF_ARCH ".embedding_length", true, GGUF_U32, AT(d)},
    {"num_attention_heads", GGUF_ARCH ".attention.head_count", true, GGUF_U32, AT(n_heads)},
    {"head_dim", GGUF_ARCH ".attention.key_length", true, GGUF_U32, AT(head_dim)},
    {"q_lora_rank", GGUF_ARCH ".attention.q_lora_rank", true, GGUF_U32, AT(q_lora)},
    {"o_lora_rank", GGUF_ARCH ".attention.output_lora_rank", true, GGUF_U32, AT(o_lora)},
    {"o_groups", GGUF_ARCH ".attention.output_group_count", true, GGUF_U32, AT(o_groups)},
    {"qk_rope_head_dim", GGUF_ARCH ".rope.dimension_count", true, GGUF_U32, AT(rope_dim)},
    {"rope_theta", GGUF_ARCH ".rope.freq_base", true, GGUF_F64, AT(rope_theta)},
    {"compress_rope_theta", GGUF_ARCH ".attention.compress_rope_freq_base", true, GGUF_F64,
     AT(compress_theta)},
    {"sliding_window", GGUF_ARCH ".attention.sliding_window", true, GGUF_U32, AT(window)},
    {"max_position_embeddings", GGUF_ARCH ".context_length", true, GGUF_U32, AT(max_ctx)},
    {"rms_norm_eps", GGUF_ARCH ".attention.layer_norm_rms_epsilon", true, GGUF_F32, AT(eps)},
    {"index_n_heads", GGUF_ARCH ".attention.indexer.head_count", true, GGUF_U32, AT(index_heads)},
    {"index_head_dim", GGUF_ARCH ".attention.indexer.key_length", true, GGUF_U32, AT(index_dim)},
    {"index_topk", GGUF_ARCH ".attention.indexer.top_k", true, GGUF_U32, AT(index_topk)},
    {"hc_mult", GGUF_ARCH ".hyper_connection.count", true, GGUF_U32, AT(hc_mult)},
    {"hc_sinkhorn_iters", GGUF_ARCH ".hyper_connection.sinkhorn_iterations", true, GGUF_U32,
     AT(hc_iters)},
    {"hc_eps", GGUF_ARCH ".hyper_connection.epsilon", true, GGUF_F32, AT(hc_eps)},
    {"n_routed_experts", GGUF_ARCH ".expert_count", true, GGUF_U32, AT(n_experts)},
    {"num_experts_per_tok", GGUF_ARCH ".expert_used_count", true, GGUF_U32, AT(top_k)},
    {"n_shared_experts", GGUF_ARCH ".expert_shared_count", true, GGUF_U32, AT(n_shared)},
    {"moe_intermediate_size", GGUF_ARCH ".expert_feed_forward_length", true, GGUF_U32, AT(d_ff)},
    {"routed_scaling_factor", GGUF_ARCH ".expert_weights_scale", true, GGUF_F32, AT(routed_scale)},
    {"num_hash_layers", GGUF_ARCH ".hash_layer_count", true, GGUF_U32, AT(n_hash_layers)},
    {"bos_token_id", "tokenizer.ggml.bos_token_id", false, GGUF_I32, AT(bos)},
    {"eos_token_id", "tokenizer.ggml.eos_token_id", false, GGUF_I32, AT(eos)},
    {"pad_token_id", "tokenizer.ggml.padding_token_id", false, GGUF_I32, AT(pad)},
};
const size_t gguf_n_numbers = sizeof gguf_numbers / sizeof *gguf_numbers;

static int put_ratios(json_t *to, const struct gguf *g, uint32_t layers)
{
    double v;
    json_t *list = json_array();
    const struct gguf_meta *m = gguf_find(g, GGUF_RATIOS);
    TRY(put(to, "compress_ratios", list, g->err));
    for (uint32_t i = 0; i < layers; i++) {
        if (!m || !gguf_number(g, m, i, &v) || v < 0 || v > 1e6)
            return gguf_missing(g, GGUF_RATIOS);
        if (json_array_append_new(list, json_integer((json_int_t)v)) != 0)
            return err_memory(g->err, 64, "a config");
    }
    return 0;
}

/* One limit for all layers, routed experts and shared ones alike: the official config has no other. */
static int put_limit(json_t *to, const struct gguf *g)
{
    static const char *const key[] = {GGUF_CLAMP, GGUF_CLAMP_SHARED};
    double limit = 0, v;
    for (size_t k = 0; k < 2; k++) {
        const struct gguf_meta *m = gguf_find(g, key[k]);
        for (uint64_t i = 0; m && i < m->n; i++) {
            if (!gguf_number(g, m, i, &v) || (limit != 0 && v != limit))
                return gguf_missing(g, key[k]);
            limit = v;
        }
    }
    return put(to, "swiglu_limit", json_real(limit), g->err);
}

static int put_scores(json_t *to, const struct gguf *g)
{
    double f = GGUF_SQRTSOFTPLUS, norm = 1;
    const struct gguf_meta *m = gguf_find(g, GGUF_GATING);
    if (m && !gguf_number(g, m, 0, &f))
        f = 0;
    const char *name = f == GGUF_SOFTMAX        ? "softmax"
                       : f == GGUF_SIGMOID      ? "sigmoid"
                       : f == GGUF_SQRTSOFTPLUS ? "sqrtsoftplus"
                                                : NULL;
    if (!name)
        return gguf_missing(g, GGUF_GATING);
    TRY(put(to, "scoring_func", json_string(name), g->err));
    m = gguf_find(g, GGUF_NORM);
    if (m && !gguf_number(g, m, 0, &norm))
        return gguf_missing(g, GGUF_NORM);
    return put(to, "norm_topk_prob", json_boolean(norm != 0), g->err);
}

static int put_scaling(json_t *to, const struct gguf *g)
{
    struct slice type = {"none", 4};
    size_t at = 0;
    const struct gguf_meta *m = gguf_find(g, GGUF_SCALING);
    if (m)
        gguf_text(g, m, &at, &type);
    if (!slice_is(type, "yarn"))
        return slice_is(type, "none") ? 0 : gguf_missing(g, GGUF_SCALING);
    json_t *s = json_object();
    TRY(put(to, "rope_scaling", s, g->err));
    TRY(put(s, "type", json_string("yarn"), g->err));
    TRY(put_number(s, g, "factor", GGUF_FACTOR, true));
    TRY(put_number(s, g, "original_max_position_embeddings", GGUF_ORIGINAL, true));
    TRY(put_number(s, g, "beta_fast", GGUF_BETA_FAST, false));
    return put_number(s, g, "beta_slow", GGUF_BETA_SLOW, false);
}

static int put_vocab(json_t *to, const struct gguf *g)
{
    const struct gguf_meta *m = gguf_find(g, GGUF_TOKENS);
    if (gguf_find(g, GGUF_VOCAB))
        return put_number(to, g, "vocab_size", GGUF_VOCAB, true);
    if (!m || m->n > INT32_MAX)
        return gguf_missing(g, GGUF_TOKENS);
    return put(to, "vocab_size", json_integer((json_int_t)m->n), g->err);
}

static int fill_config(json_t *to, const struct gguf *g, uint32_t layers)
{
    TRY(put(to, "model_type", json_string("deepseek_v4"), g->err));
    TRY(put(to, "num_hidden_layers", json_integer(layers), g->err));
    for (size_t i = 0; i < gguf_n_numbers; i++)
        TRY(put_number(to, g, gguf_numbers[i].name, gguf_numbers[i].key, gguf_numbers[i].needed));
    TRY(put_vocab(to, g));
    TRY(put_ratios(to, g, layers));
    TRY(put_limit(to, g));
    TRY(put_scores(to, g));
    return put_scaling(to, g);
}

/* ------------------------------------------------------------------ tokenizer.json */

static int append(json_t *list, json_t *value, dsv4_err *err)
{
    return json_array_append_new(list, value) == 0 ? 0 : err_memory(err, 64, "a tokenizer");
}

static int put_token(json_t *vocab, json_t *added, const struct gguf *g, struct slice text,
                     uint64_t id, double type)
{
    if (!utf8_valid(text.p, text.n))
        return err_set(g->err, DSV4_REFUSED, "%s: token %llu is not UTF-8", g->path,
                       (unsigned long long)id);
    if (type == TOKEN_NORMAL) {
        json_t *number = json_integer((json_int_t)id);
        int rc = json_object_setn_new_nocheck(vocab, text.p, text.n, number);
        return rc == 0 ? 0 : err_memory(g->err, text.n, "a tokenizer");
    }
    return append(added,
                  json_pack("{sI so sb sb sb sb sb}", "id", (json_int_t)id, "content",
                            json_stringn_nocheck(text.p, text.n), "single_word", 0, "lstrip", 0,
                            "rstrip", 0, "normalized", 0, "special", type == TOKEN_CONTROL),
                  g->err);
}

static int put_tokens(json_t *vocab, json_t *added, const struct gguf *g)
{
    const struct gguf_meta *m = gguf_find(g, GGUF_TOKENS);
    const struct gguf_meta *k = gguf_find(g, GGUF_TYPES);
    struct slice text;
    size_t at = 0;
    double type;
    if (!m || m->type != GGUF_STRING)
        return gguf_missing(g, GGUF_TOKENS);
    if (!k || k->type == GGUF_STRING || k->n != m->n)
        return gguf_missing(g, GGUF_TYPES);
    uint64_t n = m->n;
    while (n > 0 && gguf_number(g, k, n - 1, &type) && type == TOKEN_UNUSED)
        n--; /* filled up to the width of the head */
    for (uint64_t i = 0; i < n; i++) {
        gguf_text(g, m, &at, &text);
        gguf_number(g, k, i, &type);
        TRY(put_token(vocab, added, g, text, i, type));
    }
    return 0;
}

static int put_merges(json_t *list, const struct gguf *g)
{
    const struct gguf_meta *m = gguf_find(g, GGUF_MERGES);
    struct slice text;
    size_t at = 0;
    if (!m || m->type != GGUF_STRING)
        return gguf_missing(g, GGUF_MERGES);
    for (uint64_t i = 0; i < m->n; i++) {
        gguf_text(g, m, &at, &text);
        if (!utf8_valid(text.p, text.n))
            return err_set(g->err, DSV4_REFUSED, "%s: merge %llu is not UTF-8", g->path,
                           (unsigned long long)i);
        TRY(append(list, json_stringn_nocheck(text.p, text.n), g->err));
    }
    return 0;
}

static int check_model(const struct gguf *g)
{
    struct slice text = {0};
    size_t at = 0;
    const struct gguf_meta *m = gguf_find(g, GGUF_MODEL);
    if (!m || !gguf_text(g, m, &at, &text) || !slice_is(text, GGUF_MODEL_BPE))
        return gguf_missing(g, GGUF_MODEL " (\"" GGUF_MODEL_BPE "\")");
    at = 0;
    m = gguf_find(g, GGUF_PRE);
    if (!m || !gguf_text(g, m, &at, &text) ||
        !(slice_is(text, GGUF_PRE_V4) || (text.n >= 8 && memcmp(text.p, "deepseek", 8) == 0)))
        return gguf_missing(g, GGUF_PRE " (\"" GGUF_PRE_V4 "\" or \"deepseek...\")");
    return 0;
}

static int put_splits(json_t *list, dsv4_err *err)
{
    for (size_t i = 0; split_released(i); i++)
        TRY(append(list,
                   json_pack("{ss s{ss} ss sb}", "type", "Split", "pattern", "Regex",
                             split_released(i), "behavior", "Isolated", "invert", 0),
                   err));
    return append(list,
                  json_pack("{ss sb sb sb}", "type", "ByteLevel", "add_prefix_space", 0,
                            "trim_offsets", 1, "use_regex", 0),
                  err);
}

static int fill_tokenizer(json_t *to, const struct gguf *g)
{
    json_t *model = json_pack("{ss s{} s[]}", "type", "BPE", "vocab", "merges");
    json_t *added = json_array();
    json_t *pre = json_pack("{ss s[]}", "type", "Sequence", "pretokenizers");
    int rc = put(to, "model", model, g->err) | put(to, "added_tokens", added, g->err) |
             put(to, "pre_tokenizer", pre, g->err) |
             put(to, "decoder", json_pack("{ss}", "type", "ByteLevel"), g->err);
    if (rc != 0) /* and some of them are gone */
        return err_memory(g->err, 64, "a tokenizer");
    TRY(check_model(g));
    TRY(put_splits(json_object_get(pre, "pretokenizers"), g->err));
    TRY(put_tokens(json_object_get(model, "vocab"), added, g));
    return put_merges(json_object_get(model, "merges"), g);
}

/* ------------------------------------------------------------------ other files */

/* How the makers sample, where the file says it. */
static int fill_generation(json_t *to, const struct gguf *g)
{
    TRY(put(to, "do_sample", json_true(), g->err));
    TRY(put_number(to, g, "temperature", GGUF_TEMPERATURE, false));
    TRY(put_number(to, g, "top_p", GGUF_TOP_P, false));
    return put_number(to, g, "top_k", GGUF_TOP_K, false);
}

static int put_text(char **out, const struct gguf *g, const char *key)
{
    struct slice text;
    size_t at = 0;
    const struct gguf_meta *m = gguf_find(g, key);
    if (!m || !gguf_text(g, m, &at, &text))
        return 0;
    if (memchr(text.p, 0, text.n))
        return gguf_missing(g, key);
    *out = strndup(text.p, text.n);
    return *out ? 0 : err_memory(g->err, text.n, "a text");
}

int gguf_file_text(char **out, const char *file, const char *name, dsv4_err *err)
{
    struct gguf_model m;
    *out = NULL;
    TRY(gguf_open(&m, file, err));
    const struct gguf *g = &m.part[0];
    json_t *to = NULL;
    int rc = 0;
    if (strcmp(name, "chat_template.jinja") == 0)
        rc = put_text(out, g, GGUF_TEMPLATE);
    else if (strcmp(name, "config.json") == 0)
        rc = fill_config(to = json_object(), g, m.layers);
    else if (strcmp(name, "tokenizer.json") == 0)
        rc = fill_tokenizer(to = json_object(), g);
    else if (strcmp(name, "generation_config.json") == 0 && gguf_find(g, GGUF_TEMPERATURE))
        rc = fill_generation(to = json_object(), g);
    if (rc == 0 && to)
        rc = json_write(out, to, JSON_INDENT(1), err);
    json_decref(to);
    gguf_close(&m);
    return rc;
}
