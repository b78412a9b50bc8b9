/* The metadata of a GGUF file, from the config and the tokenizer of an official directory: the keys that
 * gguf_config.c reads, and those that only llama.cpp asks for. */
#include "gguf.h"

#include "src/text/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Keys under construction. */
struct writer {
    struct bytes *out;
    uint64_t n;
    const struct gguf_about *a;
    dsv4_err *err;
};

/* ------------------------------------------------------------------ keys and values */

static int text(struct writer *w, const char *p, size_t len)
{
    uint64_t n = len;
    TRY(bytes_add(w->out, &n, sizeof n, w->err)); /* little endian, as the file */
    return bytes_add(w->out, p, len, w->err);
}

static int key(struct writer *w, const char *name, uint32_t type)
{
    w->n++;
    TRY(text(w, name, strlen(name)));
    return bytes_add(w->out, &type, sizeof type, w->err);
}

static int put_text(struct writer *w, const char *name, const char *value)
{
    TRY(key(w, name, GGUF_STRING));
    return text(w, value, strlen(value));
}

static int put_u32(struct writer *w, const char *name, uint32_t v)
{
    TRY(key(w, name, GGUF_U32));
    return bytes_add(w->out, &v, sizeof v, w->err);
}

static int put_f32(struct writer *w, const char *name, float v)
{
    TRY(key(w, name, GGUF_F32));
    return bytes_add(w->out, &v, sizeof v, w->err);
}

static int put_bool(struct writer *w, const char *name, bool v)
{
    uint8_t byte = v;
    TRY(key(w, name, GGUF_BOOL));
    return bytes_add(w->out, &byte, sizeof byte, w->err);
}

/* The values follow. */
static int put_list(struct writer *w, const char *name, uint32_t type, uint64_t n)
{
    TRY(key(w, name, GGUF_ARRAY));
    TRY(bytes_add(w->out, &type, sizeof type, w->err));
    return bytes_add(w->out, &n, sizeof n, w->err);
}

/* ------------------------------------------------------------------ the model */

static int put_number(struct writer *w, const struct gguf_number *x)
{
    const char *at = (const char *)w->a->cfg + x->at;
    uint32_t whole;
    int32_t id;
    float f;
    double d;
    switch (x->is) {
    case GGUF_U32: memcpy(&whole, at, sizeof whole); return put_u32(w, x->key, whole);
    case GGUF_I32: memcpy(&id, at, sizeof id); return id < 0 ? 0 : put_u32(w, x->key, (uint32_t)id);
    case GGUF_F32: memcpy(&f, at, sizeof f); return put_f32(w, x->key, f);
    default: memcpy(&d, at, sizeof d); return put_f32(w, x->key, (float)d);
    }
}

static int put_lists(struct writer *w)
{
    const struct config *c = w->a->cfg;
    static const char *const clamp[] = {GGUF_CLAMP, GGUF_CLAMP_SHARED};
    TRY(put_list(w, GGUF_RATIOS, GGUF_I32, c->n_layers));
    TRY(bytes_add(w->out, c->ratio, c->n_layers * sizeof *c->ratio, w->err));
    for (size_t k = 0; k < 2; k++) {
        TRY(put_list(w, clamp[k], GGUF_F32, c->n_layers));
        for (uint32_t i = 0; i < c->n_layers; i++)
            TRY(bytes_add(w->out, &c->swiglu_limit, sizeof c->swiglu_limit, w->err));
    }
    return 0;
}

static int put_scaling(struct writer *w)
{
    const struct config *c = w->a->cfg;
    if (c->yarn_original == 0)
        return put_text(w, GGUF_SCALING, "none");
    TRY(put_text(w, GGUF_SCALING, "yarn"));
    TRY(put_f32(w, GGUF_FACTOR, (float)c->yarn_factor));
    TRY(put_u32(w, GGUF_ORIGINAL, c->yarn_original));
    TRY(put_f32(w, GGUF_BETA_FAST, (float)c->yarn_beta_fast));
    return put_f32(w, GGUF_BETA_SLOW, (float)c->yarn_beta_slow);
}

/* What llama.cpp's deepseek4 does one way only. */
int gguf_says(const struct config *c, const char *where, dsv4_err *err)
{
    if (c->family != FAMILY_V4)
        return err_set(err, DSV4_REFUSED,
                       "%s: a V4.1 model; GGUF files of architecture " GGUF_ARCH " hold V4 alone",
                       where);
    if (c->score != SCORE_SQRTSOFTPLUS || c->gate_temp != 1)
        return err_set(err, DSV4_REFUSED,
                       "%s: scoring_func is not \"sqrtsoftplus\", the only one that llama.cpp has "
                       "for " GGUF_ARCH,
                       where);
    for (uint32_t i = 0; i < c->n_layers; i++)
        if (c->ratio[i] != 0 && c->ratio[i] != 4 && c->ratio[i] != 128)
            return err_set(err, DSV4_REFUSED,
                           "%s: layer %u compresses by %u; llama.cpp has 0, 4 and 128", where,
                           (unsigned)i, (unsigned)c->ratio[i]);
    return 0;
}

static int put_model(struct writer *w)
{
    const struct gguf_about *a = w->a;
    TRY(put_text(w, GGUF_ARCHITECTURE, GGUF_ARCH));
    TRY(put_text(w, "general.type", "model"));
    TRY(put_text(w, "general.name", a->name));
    TRY(put_u32(w, "general.alignment", GGUF_ALIGNMENT));
    TRY(put_u32(w, "general.quantization_version", 2));
    TRY(put_u32(w, "general.file_type", a->file_type));
    TRY(put_u32(w, GGUF_BLOCKS, a->cfg->n_layers));
    for (size_t i = 0; i < gguf_n_numbers; i++)
        TRY(put_number(w, &gguf_numbers[i]));
    TRY(put_u32(w, GGUF_VOCAB, a->cfg->vocab));
    TRY(put_u32(w, GGUF_ARCH ".attention.head_count_kv", 1));
    TRY(put_u32(w, GGUF_ARCH ".attention.value_length", a->cfg->head_dim));
    TRY(put_u32(w, GGUF_GATING, GGUF_SQRTSOFTPLUS));
    TRY(put_bool(w, GGUF_NORM, a->cfg->norm_topk));
    TRY(put_lists(w));
    return put_scaling(w);
}

/* ------------------------------------------------------------------ the tokenizer */

struct listed {
    const char *text; /* NULL: no token has the number */
    size_t len;
    int32_t type;
};

static int strange(const struct writer *w, const char *what)
{
    return err_set(w->err, DSV4_REFUSED, "%s/tokenizer.json: %s", w->a->where, what);
}

/* Markers in their brackets control the model even where the file does not call them special: what a user
 * types must not become one. */
static bool is_marker(const char *p, size_t len)
{
    static const char open[] = "<\uff5c", close[] = "\uff5c>";
    size_t n = sizeof open - 1;
    return len > 2 * n && memcmp(p, open, n) == 0 && memcmp(p + len - n, close, n) == 0;
}

static int set_token(struct writer *w, struct listed *t, json_int_t id, const char *p, size_t len,
                     int32_t type)
{
    if (id < 0 || id >= (json_int_t)w->a->cfg->vocab)
        return err_set(w->err, DSV4_REFUSED, "%s/tokenizer.json: token %lld; vocab_size is %u",
                       w->a->where, (long long)id, (unsigned)w->a->cfg->vocab);
    t[id] = (struct listed){p, len, type};
    return 0;
}

static int collect_tokens(struct writer *w, struct listed *t, const json_t *root)
{
    const json_t *vocab = json_object_get(json_object_get(root, "model"), "vocab");
    const json_t *added = json_object_get(root, "added_tokens"), *one;
    const char *word;
    json_t *id;
    size_t len, i;
    if (!json_is_object(vocab) || !json_is_array(added))
        return strange(w, "no model.vocab, or no added_tokens");
    json_object_keylen_foreach((json_t *)(uintptr_t)vocab, word, len, id)
    {
        TRY(set_token(w, t, json_is_integer(id) ? json_integer_value(id) : -1, word, len,
                      TOKEN_NORMAL));
    }
    json_array_foreach(added, i, one)
    {
        const json_t *text_of = json_object_get(one, "content");
        if (!json_is_string(text_of))
            return strange(w, "an added token without content");
        const char *p = json_string_value(text_of);
        size_t n = json_string_length(text_of);
        bool control = json_is_true(json_object_get(one, "special")) || is_marker(p, n);
        const json_t *number = json_object_get(one, "id");
        TRY(set_token(w, t, json_is_integer(number) ? json_integer_value(number) : -1, p, n,
                      control ? TOKEN_CONTROL : TOKEN_USER));
    }
    return 0;
}

static int put_tokens(struct writer *w, const struct listed *t)
{
    uint32_t n = w->a->cfg->vocab;
    char filler[32];
    TRY(put_list(w, GGUF_TOKENS, GGUF_STRING, n));
    for (uint32_t i = 0; i < n; i++) {
        int len = snprintf(filler, sizeof filler, "[PAD%u]", (unsigned)i);
        TRY(t[i].text ? text(w, t[i].text, t[i].len) : text(w, filler, (size_t)len));
    }
    TRY(put_list(w, GGUF_TYPES, GGUF_I32, n));
    for (uint32_t i = 0; i < n; i++) {
        int32_t type = t[i].text ? t[i].type : TOKEN_UNUSED;
        TRY(bytes_add(w->out, &type, sizeof type, w->err));
    }
    return 0;
}

/* "left right", or a list of both in newer files. */
static int put_merge(struct writer *w, const json_t *merge)
{
    const json_t *a = json_array_get(merge, 0), *b = json_array_get(merge, 1);
    if (json_is_string(merge))
        return text(w, json_string_value(merge), json_string_length(merge));
    if (!json_is_string(a) || !json_is_string(b) || json_array_size(merge) != 2)
        return strange(w, "a merge is no pair");
    uint64_t n = json_string_length(a) + 1 + json_string_length(b);
    TRY(bytes_add(w->out, &n, sizeof n, w->err));
    TRY(bytes_add(w->out, json_string_value(a), json_string_length(a), w->err));
    TRY(bytes_text(w->out, " ", w->err));
    return bytes_add(w->out, json_string_value(b), json_string_length(b), w->err);
}

static int put_merges(struct writer *w, const json_t *root)
{
    const json_t *merges = json_object_get(json_object_get(root, "model"), "merges"), *one;
    size_t i;
    if (!json_is_array(merges))
        return strange(w, "no model.merges");
    TRY(put_list(w, GGUF_MERGES, GGUF_STRING, json_array_size(merges)));
    json_array_foreach(merges, i, one)
    {
        TRY(put_merge(w, one));
    }
    return 0;
}

/* The name in tokenizer.ggml.pre stands for patterns that the file does not hold: they have to be those. */
static int check_patterns(const struct writer *w, const json_t *root)
{
    const json_t *list = json_object_get(json_object_get(root, "pre_tokenizer"), "pretokenizers");
    const json_t *one;
    size_t i, n = 0;
    json_array_foreach(list, i, one)
    {
        const json_t *p = json_object_get(json_object_get(one, "pattern"), "Regex");
        if (!p)
            continue; /* ByteLevel */
        const char *want = split_released(n), *have = json_string_value(p);
        if (!want || !have || strcmp(have, want) != 0)
            break;
        n++;
    }
    if (split_released(n) || i < json_array_size(list))
        return strange(w, "splits text otherwise than the releases; llama.cpp knows their way");
    return 0;
}

static int put_vocabulary(struct writer *w, const json_t *root)
{
    struct listed *t;
    TRY(check_patterns(w, root));
    TRY(mem_alloc(&t, w->a->cfg->vocab, sizeof *t, "a vocabulary", w->err));
    int rc = collect_tokens(w, t, root);
    if (rc == 0)
        rc = put_text(w, GGUF_MODEL, GGUF_MODEL_BPE);
    if (rc == 0)
        rc = put_text(w, GGUF_PRE, GGUF_PRE_V4);
    if (rc == 0)
        rc = put_tokens(w, t);
    free(t);
    return rc == 0 ? put_merges(w, root) : rc;
}

/* ------------------------------------------------------------------ tokenizer_config.json */

static int put_settings(struct writer *w, const json_t *root)
{
    static const char *const adds[][2] = {{"add_bos_token", "tokenizer.ggml.add_bos_token"},
                                          {"add_eos_token", "tokenizer.ggml.add_eos_token"}};
    const char *chat = w->a->chat;
    for (size_t i = 0; i < 2; i++) {
        const json_t *v = json_object_get(root, adds[i][0]);
        if (json_is_boolean(v))
            TRY(put_bool(w, adds[i][1], json_is_true(v)));
    }
    if (!chat)
        chat = json_string_value(json_object_get(root, "chat_template"));
    return put_text(w, GGUF_TEMPLATE, chat ? chat : gguf_chat_template);
}

/* ------------------------------------------------------------------ generation_config.json */

static int put_sampling(struct writer *w, const json_t *root)
{
    static const char *const real[][2] = {{"temperature", GGUF_TEMPERATURE}, {"top_p", GGUF_TOP_P}};
    const json_t *k = json_object_get(root, "top_k");
    if (json_is_false(json_object_get(root, "do_sample")))
        return 0;
    for (size_t i = 0; i < 2; i++) {
        const json_t *v = json_object_get(root, real[i][0]);
        if (json_is_number(v))
            TRY(put_f32(w, real[i][1], (float)json_number_value(v)));
    }
    if (!json_is_integer(k))
        return 0;
    int32_t top_k = (int32_t)json_integer_value(k);
    TRY(key(w, GGUF_TOP_K, GGUF_I32));
    return bytes_add(w->out, &top_k, sizeof top_k, w->err);
}

/* ------------------------------------------------------------------ all */

static int with_json(struct writer *w, const char *content, const char *file,
                     int (*put)(struct writer *w, const json_t *root))
{
    struct bytes path = {0};
    json_t *root = NULL;
    int rc = bytes_printf(&path, w->err, "%s/%s", w->a->where, file);
    if (rc == 0 && content)
        rc = json_open(&root, content, strlen(content), path.data, w->err);
    if (rc == 0)
        rc = put(w, root);
    json_decref(root);
    free(path.data);
    return rc;
}

int gguf_metadata(struct bytes *out, uint64_t *n, const struct gguf_about *a, dsv4_err *err)
{
    struct writer w = {.out = out, .a = a, .err = err};
    TRY(put_model(&w));
    if (a->tokenizer)
        TRY(with_json(&w, a->tokenizer, "tokenizer.json", put_vocabulary));
    TRY(with_json(&w, a->settings, "tokenizer_config.json", put_settings));
    TRY(with_json(&w, a->generation, "generation_config.json", put_sampling));
    *n += w.n;
    return 0;
}

int gguf_begin(struct bytes *out, uint64_t tensors, uint64_t keys, dsv4_err *err)
{
    uint32_t version = GGUF_VERSION;
    TRY(bytes_add(out, "GGUF", 4, err));
    TRY(bytes_add(out, &version, sizeof version, err));
    TRY(bytes_add(out, &tensors, sizeof tensors, err));
    return bytes_add(out, &keys, sizeof keys, err);
}
