/* Names of tensors: every spelling that has been released or exported -> the official one, and what a
 * tensor of that name is for. Knows the words of a name, not which tensors a model has. */
#include "load.h"

#include <stdio.h>
#include <string.h>

/* One component of a name ("layers.3.self_attn.q_a_proj.weight" has five), where it stands for
 * another one everywhere. From the vendor's converter and early exports. */
static const struct {
    const char *old, *official;
} words[] = {
    {"self_attn", "attn"},
    {"mlp", "ffn"},
    {"embed_tokens", "embed"},
    {"lm_head", "head"},
    {"input_layernorm", "attn_norm"},
    {"post_attention_layernorm", "ffn_norm"},
    {"q_a_proj", "wq_a"},
    {"q_a_layernorm", "q_norm"},
    {"q_b_proj", "wq_b"},
    {"gate_proj", "w1"},
    {"down_proj", "w2"},
    {"up_proj", "w3"},
    {"weight_scale_inv", "scale"},
    {"e_score_correction_bias", "bias"},
    {"markov_w1", "embed"}, /* below mtp.K.markov_head */
    {"markov_w2", "head"},
};

static const char *official_word(const char *w, size_t n)
{
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strlen(words[i].old) == n && memcmp(words[i].old, w, n) == 0)
            return words[i].official;
    return NULL;
}

bool official_name(const char *stored, char *out, size_t cap)
{
    static const char prefix[] = "model.";
    if (strncmp(stored, prefix, sizeof prefix - 1) == 0)
        stored += sizeof prefix - 1;
    size_t o = 0;
    for (const char *p = stored;; p++) {
        size_t n = strcspn(p, ".");
        const char *w = official_word(p, n);
        size_t len = w ? strlen(w) : n;
        if (o >= cap || cap - o <= len)
            return false;
        memcpy(out + o, w ? w : p, len);
        o += len;
        p += n;
        out[o++] = *p;
        if (*p == 0)
            return true;
    }
}

/* ------------------------------------------------------------------ what a tensor is for */

/* ORDER CLASSES */
const char *tensor_class_name(enum tensor_class c)
{
    static const char *const name[N_CLASSES] = {
        "embedding",      "output head",        "attention",      "indexer and compressors",
        "routed experts", "shared experts",     "routers",        "norms and mHC",
        "Engram tables",  "Engram projections", "drafting heads", "vision",
        "other"};
    return name[c];
}

enum tensor_class tensor_class_of(const char *n)
{
    if (strncmp(n, "mtp.", 4) == 0)
        return CLASS_DRAFT;
    if (strncmp(n, "vision.", 7) == 0 || strncmp(n, "aligner.", 8) == 0 ||
        strncmp(n, "image_", 6) == 0)
        return CLASS_VISION;
    if (strncmp(n, "embed.", 6) == 0)
        return CLASS_EMBED;
    if (strncmp(n, "head.", 5) == 0)
        return CLASS_HEAD;
    if (strncmp(n, "norm.", 5) == 0 || strncmp(n, "hc_head", 7) == 0)
        return CLASS_SMALL;
    if (strncmp(n, "layers.", 7) != 0)
        return CLASS_OTHER;
    const char *p = strchr(n + 7, '.');
    if (!p)
        return CLASS_OTHER;
    p++;
    if (strncmp(p, "engram.embed.", 13) == 0)
        return CLASS_ENGRAM_TABLE;
    if (strncmp(p, "engram.", 7) == 0)
        return CLASS_ENGRAM;
    if (strncmp(p, "ffn.experts.", 12) == 0)
        return CLASS_EXPERTS;
    if (strncmp(p, "ffn.shared_experts.", 19) == 0)
        return CLASS_SHARED;
    if (strncmp(p, "ffn.gate.", 9) == 0)
        return CLASS_ROUTER;
    if (strncmp(p, "attn.compressor.", 16) == 0 || strncmp(p, "attn.indexer.", 13) == 0)
        return CLASS_INDEXER;
    if (strncmp(p, "attn.w", 6) == 0)
        return CLASS_ATTENTION;
    if (strncmp(p, "attn", 4) == 0 || strncmp(p, "ffn_norm", 8) == 0 || strncmp(p, "hc_", 3) == 0)
        return CLASS_SMALL;
    return CLASS_OTHER;
}

bool class_is_typed(enum tensor_class c)
{
    return c == CLASS_HEAD || c == CLASS_ATTENTION || c == CLASS_EXPERTS || c == CLASS_SHARED ||
           c == CLASS_ENGRAM;
}

/* ------------------------------------------------------------------ NAME.weight */

/* `name` with `tail` instead of `end`. */
static bool with_tail(const char *name, const char *end, const char *tail, char *out, size_t cap)
{
    size_t n = strlen(name), n_end = strlen(end), n_tail = strlen(tail);
    if (n <= n_end || strcmp(name + n - n_end, end) != 0 || n - n_end + n_tail >= cap)
        return false;
    memcpy(out, name, n - n_end);
    memcpy(out + n - n_end, tail, n_tail + 1);
    return true;
}

bool scale_name(const char *weight, char *out, size_t cap)
{
    return with_tail(weight, ".weight", ".scale", out, cap);
}

bool scaled_name(const char *scale, char *out, size_t cap)
{
    return with_tail(scale, ".scale", ".weight", out, cap);
}

bool matrix_name(const char *weight, char *out, size_t cap)
{
    return with_tail(weight, ".weight", "", out, cap);
}

void star_expert(char *out, const char *matrix)
{
    static const char mark[] = ".experts.";
    const char *at = strstr(matrix, mark);
    size_t digits = at ? strspn(at + sizeof mark - 1, "0123456789") : 0;
    if (digits == 0) {
        snprintf(out, MATRIX_NAME, "%s", matrix);
        return;
    }
    at += sizeof mark - 1;
    snprintf(out, MATRIX_NAME, "%.*s*%s", (int)(at - matrix), matrix, at + digits);
}
