/* Names and types of the tensors of deepseek4 files, as llama.cpp has them, in both directions: reading looks for
 * the official name of what is in a file, writing for the name in a file of what is official. */
#include "gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ names */

/* In the file, official. blk.N. and layers.N. stand before those of layers. */
static const char *const top_names[][2] = {
    {"token_embd.weight", "embed.weight"},     {"output_norm.weight", "norm.weight"},
    {"output.weight", "head.weight"},          {"output_hc_fn.weight", "hc_head_fn"},
    {"output_hc_base.weight", "hc_head_base"}, {"output_hc_scale.weight", "hc_head_scale"},
};
static const char *const layer_names[][2] = {
    {"attn_q_a.weight", "attn.wq_a.weight"},
    {"attn_q_b.weight", "attn.wq_b.weight"},
    {"attn_kv.weight", "attn.wkv.weight"},
    {"attn_output_a.weight", "attn.wo_a.weight"},
    {"attn_output_b.weight", "attn.wo_b.weight"},
    {"attn_q_a_norm.weight", "attn.q_norm.weight"},
    {"attn_kv_a_norm.weight", "attn.kv_norm.weight"},
    {"attn_sinks.weight", "attn.attn_sink"},
    {"attn_norm.weight", "attn_norm.weight"},
    {"ffn_norm.weight", "ffn_norm.weight"},
    {"attn_compressor_kv.weight", "attn.compressor.wkv.weight"},
    {"attn_compressor_gate.weight", "attn.compressor.wgate.weight"},
    {"attn_compressor_ape.weight", "attn.compressor.ape"},
    {"attn_compressor_norm.weight", "attn.compressor.norm.weight"},
    {"indexer_compressor_kv.weight", "attn.indexer.compressor.wkv.weight"},
    {"indexer_compressor_gate.weight", "attn.indexer.compressor.wgate.weight"},
    {"indexer_compressor_ape.weight", "attn.indexer.compressor.ape"},
    {"indexer_compressor_norm.weight", "attn.indexer.compressor.norm.weight"},
    {"indexer.attn_q_b.weight", "attn.indexer.wq_b.weight"},
    {"indexer.proj.weight", "attn.indexer.weights_proj.weight"},
    {"hc_attn_fn.weight", "hc_attn_fn"},
    {"hc_attn_base.weight", "hc_attn_base"},
    {"hc_attn_scale.weight", "hc_attn_scale"},
    {"hc_ffn_fn.weight", "hc_ffn_fn"},
    {"hc_ffn_base.weight", "hc_ffn_base"},
    {"hc_ffn_scale.weight", "hc_ffn_scale"},
    {"ffn_gate_inp.weight", "ffn.gate.weight"},
    {"exp_probs_b.bias", "ffn.gate.bias"},
    {"ffn_gate_tid2eid.weight", "ffn.gate.tid2eid"},
    {"ffn_gate_shexp.weight", "ffn.shared_experts.w1.weight"},
    {"ffn_down_shexp.weight", "ffn.shared_experts.w2.weight"},
    {"ffn_up_shexp.weight", "ffn.shared_experts.w3.weight"},
    {"ffn_gate_exps.weight", "ffn.experts." GGUF_EXPERT ".w1.weight"},
    {"ffn_down_exps.weight", "ffn.experts." GGUF_EXPERT ".w2.weight"},
    {"ffn_up_exps.weight", "ffn.experts." GGUF_EXPERT ".w3.weight"},
};

enum { N_TOP = sizeof top_names / sizeof *top_names };
enum { N_LAYER = sizeof layer_names / sizeof *layer_names };

/* PREFIX and a number and a dot in front: the number and what follows; false: they are not there. */
static bool numbered(const char *name, const char *prefix, unsigned long *number, const char **rest)
{
    char *end;
    size_t n = strlen(prefix);
    if (strncmp(name, prefix, n) != 0 || name[n] < '0' || name[n] > '9')
        return false;
    *number = strtoul(name + n, &end, 10);
    *rest = end + 1;
    return *end == '.';
}

static const char *partner(const char *const (*table)[2], size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(table[i][0], name) == 0)
            return table[i][1];
    return NULL;
}

const char *gguf_official(const char *stored, bool *inner, unsigned long *block)
{
    const char *rest;
    *inner = numbered(stored, "blk.", block, &rest);
    return *inner ? partner(layer_names, N_LAYER, rest) : partner(top_names, N_TOP, stored);
}

/* Is `name` the pattern, with a number where that has GGUF_EXPERT? */
static bool fits(const char *pattern, const char *name, int64_t *expert)
{
    const char *mark = strstr(pattern, GGUF_EXPERT);
    char *end;
    *expert = -1;
    if (!mark)
        return strcmp(pattern, name) == 0;
    size_t n = (size_t)(mark - pattern);
    if (strncmp(pattern, name, n) != 0 || name[n] < '0' || name[n] > '9')
        return false;
    *expert = (int64_t)strtoul(name + n, &end, 10);
    return strcmp(end, mark + strlen(GGUF_EXPERT)) == 0;
}

bool gguf_name_of(struct gguf_name *out, const char *official)
{
    unsigned long layer = 0;
    const char *rest = official;
    bool inner = numbered(official, "layers.", &layer, &rest);
    const char *const(*table)[2] = inner ? layer_names : top_names;
    size_t n = inner ? N_LAYER : N_TOP, i = 0;
    while (i < n && !fits(table[i][1], rest, &out->expert))
        i++;
    if (i == n)
        return false;
    out->order = inner ? N_TOP + layer * N_LAYER + i : i;
    if (inner)
        snprintf(out->text, sizeof out->text, "blk.%lu.%s", layer, table[i][0]);
    else
        snprintf(out->text, sizeof out->text, "%s", table[i][0]);
    return true;
}

/* ------------------------------------------------------------------ types */

/* Types whose rows are no blocks (those: quant.h), by their numbers in the file. */
static const struct {
    uint32_t id;
    enum dtype dtype;
} plain[] = {{0, DTYPE_F32},  {1, DTYPE_F16},  {24, DTYPE_I8},  {25, DTYPE_I16},
             {26, DTYPE_I32}, {27, DTYPE_I64}, {28, DTYPE_F64}, {30, DTYPE_BF16}};

bool gguf_dtype(uint32_t id, enum dtype *out)
{
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (plain[i].id == id) {
            *out = plain[i].dtype;
            return true;
        }
    return false;
}

uint32_t gguf_type_id(enum dtype t)
{
    size_t i = 0;
    while (plain[i].dtype != t)
        i++;
    return plain[i].id;
}
