/* Names of tensors: every spelling that has been released or exported -> the official one. Knows
 * the words of a name, not which tensors a model has. */
#include "load.h"

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
