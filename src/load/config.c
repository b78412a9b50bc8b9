/* config.json -> struct config. Every number has a range, stated in the tables below; where two
 * spellings of one thing are present they have to agree; what we do not compute is refused by
 * name. A field is required where a wrong guess would change results without anybody noticing:
 * only values that all releases and references share have a default. */
#include "parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The text of a config is at most this long: the released ones have 3 KB, some with a list of
 * quantized tensors a few hundred; a converted one with a line for each of 50 thousand experts 3 MB. Nested
 * lists take jansson 46 bytes for each of the text. */
#define CONFIG_MAX ((size_t)4 << 20)

/* With the ranges below the largest products (vocab * d, n_experts * d_ff * d, engram_rows *
 * engram_dim, n_layers * n_experts, each times 8 bytes) stay under 2^60. */
_Static_assert(sizeof(size_t) >= 8, "sizes of models need 64 bits");

/* ------------------------------------------------------------------ plain numbers */

enum kind { U32, U64, F32 };

struct row {
    const char *name;
    enum kind kind;
    size_t at; /* in struct config */
    double lo, hi;
    double missing; /* the value when it is missing; NAN: required */
};

#define REQUIRED   ((double)NAN)
#define AT(member) offsetof(struct config, member)

static const struct row base_rows[] = {
    {"vocab_size", U32, AT(vocab), 1, 1 << 24, REQUIRED},
    {"hidden_size", U32, AT(d), 1, 1 << 17, REQUIRED},
    {"num_hidden_layers", U32, AT(n_layers), 1, 1024, REQUIRED},
    {"num_attention_heads", U32, AT(n_heads), 1, 4096, REQUIRED},
    {"head_dim", U32, AT(head_dim), 2, 4096, REQUIRED},
    {"q_lora_rank", U32, AT(q_lora), 1, 1 << 17, REQUIRED},
    {"o_groups", U32, AT(o_groups), 1, 4096, REQUIRED},
    {"o_lora_rank", U32, AT(o_lora), 1, 1 << 16, REQUIRED},
    {"sliding_window", U32, AT(window), 1, 1 << 20, REQUIRED},
    /* Positions are exact in float32 up to 2^24, and rope needs that. */
    {"max_position_embeddings", U32, AT(max_ctx), 1, 1 << 24, REQUIRED},
    {"rms_norm_eps", F32, AT(eps), 1e-37, 1, REQUIRED},
    {"n_routed_experts", U32, AT(n_experts), 1, 1 << 16, REQUIRED},
    {"num_experts_per_tok", U32, AT(top_k), 1, 256, REQUIRED},
    {"moe_intermediate_size", U32, AT(d_ff), 1, 1 << 17, REQUIRED},
    {"n_shared_experts", U32, AT(n_shared), 1, 64, 1},
    {"routed_scaling_factor", F32, AT(routed_scale), 1e-6, 1e6, REQUIRED},
    {"swiglu_limit", F32, AT(swiglu_limit), 0, 1e6, REQUIRED},
    {"hc_mult", U32, AT(hc_mult), 1, 16, REQUIRED},
    {"hc_sinkhorn_iters", U32, AT(hc_iters), 1, 1000, 20},
    {"hc_eps", F32, AT(hc_eps), 1e-37, 1, 1e-6},
    {"num_nextn_predict_layers", U32, AT(n_mtp), 0, 64, 0},
    {"dspark_block_size", U32, AT(dspark_block), 0, 256, 0},
    {"dspark_n_routed_experts", U32, AT(dspark_experts), 0, 1 << 16, 0},
    {"dspark_num_experts_per_tok", U32, AT(dspark_topk), 0, 256, 0},
};

/* Where a layer selects compressed entries. */
static const struct row index_rows[] = {
    {"index_n_heads", U32, AT(index_heads), 1, 1024, REQUIRED},
    {"index_head_dim", U32, AT(index_dim), 32, 1024, REQUIRED},
    {"index_topk", U32, AT(index_topk), 1, 1 << 16, REQUIRED},
};

static const struct row v41_rows[] = {
    {"gate_temp", F32, AT(gate_temp), 1e-6, 1e6, 1},
};

static const struct row candidate_rows[] = {
    {"candidate_topk_blocks", U32, AT(candidate_blocks), 1, 1 << 20, REQUIRED},
    {"candidate_block_size", U32, AT(candidate_block), 1, 1 << 16, REQUIRED},
};

static const struct row engram_rows[] = {
    /* Fewer than 2^40 primes are drawn above it, all far below 2^63. */
    {"engram_vocab_size", U64, AT(engram_vocab), 2, 1ull << 40, REQUIRED},
    {"engram_max_ngram_size", U32, AT(engram_ngram), 2, 16, REQUIRED},
    {"engram_n_heads", U32, AT(engram_heads), 1, 64, REQUIRED},
    {"engram_head_dim", U32, AT(engram_dim), 32, 1 << 16, REQUIRED},
    {"engram_compressed_vocab_size", U32, AT(engram_compressed), 1, 1 << 24, REQUIRED},
};

static void put(void *to, enum kind kind, double x)
{
    if (kind == U32)
        *(uint32_t *)to = (uint32_t)x;
    else if (kind == U64)
        *(uint64_t *)to = (uint64_t)x;
    else
        *(float *)to = (float)x;
}

static int read_row(const struct reader *r, const struct row *row)
{
    bool found;
    double x = row->missing;
    if (row->kind == F32) {
        TRY(field_real(&r->text, row->name, row->lo, row->hi, &x, &found, r->err));
    } else {
        int64_t whole = 0;
        TRY(field_whole(&r->text, row->name, (int64_t)row->lo, (int64_t)row->hi, &whole, &found,
                        r->err));
        if (found)
            x = (double)whole;
    }
    if (!found && isnan(x))
        return field_refuse(&r->text, row->name, NULL, r->err, "a %snumber from %.12g to %.12g",
                            row->kind == F32 ? "" : "whole ", row->lo, row->hi);
    put((char *)r->c + row->at, row->kind, x); /* aligned: row->at is that of a member */
    return 0;
}

#define READ(r, rows) read_rows(r, rows, sizeof(rows) / sizeof *(rows))

static int read_rows(const struct reader *r, const struct row *rows, size_t n)
{
    for (size_t i = 0; i < n; i++)
        TRY(read_row(r, &rows[i]));
    return 0;
}

/* ------------------------------------------------------------------ words and switches */

/* What could be asked for and is not computed by us: absent or exactly this. */
static int check_fixed(const struct fields *f, dsv4_err *err)
{
    static const struct {
        const char *name, *value; /* as JSON */
    } fixed[] = {
        {"hidden_act", "\"silu\""},  {"topk_method", "\"noaux_tc\""},  {"num_key_value_heads", "1"},
        {"attention_bias", "false"}, {"tie_word_embeddings", "false"}, {"mlp_bias", "false"},
    };
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) {
        const json_t *v = field_get(f, fixed[i].name);
        json_t *want;
        TRY(json_open(&want, fixed[i].value, strlen(fixed[i].value), f->where, err));
        bool same = !v || json_equal(v, want);
        json_decref(want);
        if (!same)
            return field_refuse(f, fixed[i].name, v, err, "%s", fixed[i].value);
    }
    return 0;
}

static int read_score_func(const struct reader *r)
{
    static const char *const names[] = {"sqrtsoftplus", "sigmoid",
                                        "softmax"}; /* ORDER score_func */
    const json_t *v = field_get(&r->text, "scoring_func");
    if (!v)
        return 0;
    for (int i = 0; json_is_string(v) && i < 3; i++) {
        if (strcmp(json_string_value(v), names[i]) == 0) {
            r->c->score = (enum score_func)i;
            return 0;
        }
    }
    return field_refuse(&r->text, "scoring_func", v, r->err,
                        "\"sqrtsoftplus\", \"sigmoid\" or \"softmax\"");
}

/* Ids of special tokens stand beside text_config or in it. A list (several ends) gives its first. */
static int read_token(const struct reader *r, const char *name, int32_t *out)
{
    *out = -1;
    const struct fields *f = field_get(&r->root, name) ? &r->root : &r->text;
    const json_t *v = field_get(f, name), *whole = v;
    if (!v)
        return 0;
    if (json_is_array(v))
        v = json_array_get(v, 0);
    int64_t x;
    if (!json_whole(v, &x) || x < 0 || x >= r->c->vocab)
        return field_refuse(f, name, json_is_array(whole) && v ? v : whole, r->err,
                            "a token id from 0 to %u", r->c->vocab - 1);
    *out = (int32_t)x;
    return 0;
}

/* The side B of the tiles that share one scale in fp8 matrices; what is packed in a converted directory. */
static int read_quantization(const struct reader *r)
{
    static const char name[] = "quantization_config";
    r->c->fp8_block = r->c->family == FAMILY_V4 ? 128 : 32;
    const struct fields *f = field_get(&r->root, name) ? &r->root : &r->text;
    const json_t *q, *b;
    TRY(field_object(f, name, &q, r->err));
    if (!q)
        return 0;
    struct fields in = {.object = q, .where = f->where, .prefix = "quantization_config."};
    const json_t *method = field_get(&in, "quant_method");
    const char *word = json_string_value(method);
    if (word && strcmp(word, "dsv4") == 0)
        TRY(packing_read(&r->c->packing, &in, r->err));
    else if (method && (!word || strcmp(word, "fp8") != 0))
        return field_refuse(&in, "quant_method", method, r->err, "\"fp8\" or \"dsv4\"");
    TRY(field_list(&in, "weight_block_size", &b, r->err));
    if (!b)
        return 0;
    int64_t x, y;
    if (json_array_size(b) != 2 || !json_whole(json_array_get(b, 0), &x) ||
        !json_whole(json_array_get(b, 1), &y) || x != y || x < 1 || x > 4096)
        return field_refuse(&in, "weight_block_size", b, r->err,
                            "two equal whole numbers from 1 to 4096");
    r->c->fp8_block = (uint32_t)x;
    return 0;
}

static int read_words(const struct reader *r)
{
    struct config *c = r->c;
    c->norm_topk = true;
    c->image_token = -1;
    TRY(check_fixed(&r->text, r->err));
    TRY(check_fixed(&r->root, r->err)); /* beside text_config, where there is one */
    TRY(read_score_func(r));
    TRY(field_bool(&r->text, "norm_topk_prob", &c->norm_topk, NULL, r->err));
    TRY(read_quantization(r));
    TRY(read_token(r, "bos_token_id", &c->bos));
    TRY(read_token(r, "eos_token_id", &c->eos));
    TRY(read_token(r, "pad_token_id", &c->pad));
    if (c->family == FAMILY_V4)
        return 0;
    TRY(read_token(r, "image_token_id", &c->image_token));
    const json_t *vision;
    TRY(field_object(&r->root, "vision_config", &vision, r->err));
    struct fields in = {.object = vision, .where = r->root.where, .prefix = "vision_config."};
    int64_t layers = vision ? 1 : 0;
    if (vision)
        TRY(field_whole(&in, "num_hidden_layers", 0, 1024, &layers, NULL, r->err));
    c->has_vision = layers > 0;
    return 0;
}

/* ------------------------------------------------------------------ all together */

static bool has_ratio(const struct config *c, uint32_t least, uint32_t most)
{
    for (uint32_t l = 0; l < c->n_layers; l++)
        if (c->ratio[l] >= least && c->ratio[l] <= most)
            return true;
    return false;
}

static int inconsistent(const struct reader *r, const char *name, const char *expected, uint32_t x)
{
    return field_refuse(&r->text, name, field_get(&r->text, name), r->err, expected, x);
}

static bool power_of_two(uint32_t x)
{
    return x && !(x & (x - 1));
}

/* Numbers that are fine alone but not together. */
static int check_together(const struct reader *r)
{
    const struct config *c = r->c;
    if (c->n_heads % c->o_groups)
        return inconsistent(r, "o_groups", "a divisor of num_attention_heads (%u)", c->n_heads);
    if (c->top_k > c->n_experts)
        return inconsistent(r, "num_experts_per_tok", "at most n_routed_experts (%u)",
                            c->n_experts);
    if (c->dspark_experts && c->dspark_topk > c->dspark_experts)
        return inconsistent(r, "dspark_num_experts_per_tok", "at most dspark_n_routed_experts (%u)",
                            c->dspark_experts);
    /* The cache quantizers work in blocks of channels: V4 64 before the rope part, V4.1 32. */
    if (c->family == FAMILY_V4 && (c->head_dim - c->rope_dim) % 64)
        return inconsistent(r, "head_dim", "a multiple of 64 more than the rope part (%u)",
                            c->rope_dim);
    if (c->family == FAMILY_V41 && c->head_dim % 32)
        return inconsistent(r, "head_dim", "a multiple of %u", 32);
    if (c->index_dim % 32)
        return inconsistent(r, "index_head_dim", "a multiple of %u", 32);
    if (c->index_dim && c->family == FAMILY_V4 && !power_of_two(c->index_dim))
        return inconsistent(r, "index_head_dim", "a power of %u (Hadamard rotation)", 2);
    if (c->index_dim && c->index_dim < c->rope_dim)
        return inconsistent(r, "index_head_dim", "at least the rope part (%u)", c->rope_dim);
    if (c->n_engram && c->engram_dim % 32)
        return inconsistent(r, "engram_head_dim", "a multiple of %u", 32);
    if (c->n_engram && c->engram_compressed > c->vocab)
        return inconsistent(r, "engram_compressed_vocab_size", "at most vocab_size (%u)", c->vocab);
    return 0;
}

/* The family, and where the numbers of the text model stand: V4 flat, V4.1 in text_config. */
static int find_text(struct reader *r)
{
    const json_t *type = field_get(&r->root, "model_type"), *text;
    const char *name = json_string_value(type);
    if (name && strcmp(name, "deepseek_v4") == 0)
        r->c->family = FAMILY_V4;
    else if (name && (strcmp(name, "deepseek_v41") == 0 || strcmp(name, "deepseek_v41_text") == 0))
        r->c->family = FAMILY_V41;
    else
        return field_refuse(&r->root, "model_type", type, r->err,
                            "\"deepseek_v4\" or \"deepseek_v41\"");
    r->text = r->root;
    if (r->c->family == FAMILY_V4)
        return 0;
    TRY(field_object(&r->root, "text_config", &text, r->err));
    if (text)
        r->text = (struct fields){text, r->root.where, "text_config."};
    return 0;
}

/* The 0731 revision of V4 ships with DSpark blocks, and nothing else tells it apart. */
static bool has_dspark(const struct fields *f)
{
    const char *key;
    const json_t *v;
    json_object_foreach((json_t *)(uintptr_t)f->object, key,
                        v) if (strncmp(key, "dspark_", 7) == 0) return true;
    return false;
}

static int read_config(struct reader *r)
{
    struct config *c = r->c;
    TRY(find_text(r));
    c->gate_temp = 1;
    c->rev_0731 = c->family == FAMILY_V4 && has_dspark(&r->text);
    TRY(READ(r, base_rows));
    if (c->dspark_block == 0)
        c->dspark_experts = c->dspark_topk = 0;
    TRY(read_words(r));
    TRY(config_rope(r));
    TRY(config_ratios(r));
    if (c->family == FAMILY_V41) {
        TRY(READ(r, v41_rows));
        TRY(config_engram_layers(r));
        if (c->n_engram)
            TRY(READ(r, engram_rows));
    }
    TRY(config_sources(r));
    if (c->candidate_source >= 0)
        TRY(READ(r, candidate_rows));
    /* V4 selects at ratio 4 only, V4.1 wherever there is a compressed branch. */
    if (c->family == FAMILY_V4 ? has_ratio(c, 4, 4) : has_ratio(c, 1, UINT32_MAX))
        TRY(READ(r, index_rows));
    return check_together(r);
}

int config_parse(struct config **out, const char *json, size_t len, const char *where,
                 dsv4_err *err)
{
    *out = NULL;
    if (len > CONFIG_MAX)
        return err_set(err, DSV4_REFUSED, "%s: %zu bytes; expected at most %zu", where, len,
                       CONFIG_MAX);
    json_t *root;
    TRY(json_open(&root, json, len, where, err));
    struct reader r = {.root = {root, where, ""}, .err = err};
    int rc = 0;
    if (!json_is_object(root))
        rc = err_set(err, DSV4_REFUSED, "%s: expected a JSON object", where);
    if (rc == 0)
        rc = mem_alloc(&r.c, 1, sizeof *r.c, "the config", err);
    if (rc == 0)
        rc = read_config(&r);
    json_decref(root);
    if (rc != 0)
        config_close(r.c);
    else
        *out = r.c;
    return rc;
}

void config_close(struct config *c)
{
    if (!c)
        return;
    packing_close(c->packing);
    free(c->ratio);
    free(c->kv_source);
    free(c->index_source);
    free(c->engram_layer);
    free(c->engram_rows);
    free(c);
}
