/* Names -> layers: finds every tensor that the config asks for and checks dtype and shape before
 * anything is computed. What a layer is (window only, compressed, hash-routed, with a memory) is
 * decided here once. */
#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int bind_site(struct model *m, struct hc_site *s, uint64_t coefficients, uint64_t n_scale,
                     const char *name, dsv4_err *err)
{
    const struct config *c = m->cfg;
    TRY(bind_matrix(m, &s->fn, coefficients, (uint64_t)c->hc_mult * c->d, err, "%s_fn", name));
    TRY(bind_vector(m, &s->base, coefficients, err, "%s_base", name));
    return bind_vector(m, &s->scale, n_scale, err, "%s_scale", name);
}

static int bind_compressor(struct model *m, struct compressor *p, uint32_t ratio, uint32_t width,
                           const char *name, dsv4_err *err)
{
    const struct config *c = m->cfg;
    p->ratio = ratio;
    p->coff = c->family == FAMILY_V4 && ratio == 4 ? 2 : 1;
    p->width = width;
    uint64_t out = (uint64_t)p->coff * width;
    TRY(bind_matrix(m, &p->wkv, out, c->d, err, "%s.wkv.weight", name));
    if (ratio > 1)
        TRY(bind_matrix(m, &p->wgate, out, c->d, err, "%s.wgate.weight", name));
    if (c->family == FAMILY_V4)
        TRY(bind_vector(m, &p->ape, ratio * out, err, "%s.ape", name));
    return bind_vector(m, &p->norm, width, err, "%s.norm.weight", name);
}

static int bind_indexer(struct model *m, struct layer *L, dsv4_err *err)
{
    const struct config *c = m->cfg;
    uint32_t l = L->id;
    struct indexer *x = &L->index;
    TRY(bind_matrix(m, &x->wq_b, (uint64_t)c->index_heads * c->index_dim, c->q_lora, err,
                    "layers.%u.attn.indexer.wq_b.weight", l));
    TRY(bind_matrix(m, &x->weights_proj, c->index_heads, c->d, err,
                    "layers.%u.attn.indexer.weights_proj.weight", l));
    if (c->family == FAMILY_V4) {
        char name[64];
        snprintf(name, sizeof name, "layers.%u.attn.indexer.compressor", l);
        return bind_compressor(m, &x->own, L->ratio, c->index_dim, name, err);
    }
    if (!L->kv_source)
        return 0;
    TRY(bind_matrix(m, &x->wk, c->index_dim, c->head_dim, err, "layers.%u.attn.indexer.wk.weight",
                    l));
    return bind_vector(m, &x->k_norm, c->index_dim, err, "layers.%u.attn.indexer.k_norm.weight", l);
}

static int bind_attention(struct model *m, struct layer *L, dsv4_err *err)
{
    const struct config *c = m->cfg;
    uint32_t l = L->id;
    uint64_t heads = (uint64_t)c->n_heads * c->head_dim, groups = (uint64_t)c->o_groups * c->o_lora;
    TRY(bind_matrix(m, &L->wq_a, c->q_lora, c->d, err, "layers.%u.attn.wq_a.weight", l));
    TRY(bind_vector(m, &L->q_norm, c->q_lora, err, "layers.%u.attn.q_norm.weight", l));
    TRY(bind_matrix(m, &L->wq_b, heads, c->q_lora, err, "layers.%u.attn.wq_b.weight", l));
    TRY(bind_matrix(m, &L->wkv, c->head_dim, c->d, err, "layers.%u.attn.wkv.weight", l));
    TRY(bind_vector(m, &L->kv_norm, c->head_dim, err, "layers.%u.attn.kv_norm.weight", l));
    TRY(bind_matrix(m, &L->wo_a, groups, heads / c->o_groups, err, "layers.%u.attn.wo_a.weight",
                    l));
    TRY(bind_matrix(m, &L->wo_b, c->d, groups, err, "layers.%u.attn.wo_b.weight", l));
    TRY(bind_vector(m, &L->sink, c->n_heads, err, "layers.%u.attn.attn_sink", l));
    if (L->kv_source) {
        char name[64];
        snprintf(name, sizeof name, "layers.%u.attn.compressor", l);
        TRY(bind_compressor(m, &L->comp, L->ratio, c->head_dim, name, err));
    }
    return L->index_source ? bind_indexer(m, L, err) : 0;
}

static int bind_expert(struct model *m, struct expert *e, uint64_t width, const char *name,
                       dsv4_err *err)
{
    TRY(bind_matrix(m, &e->w1, width, m->cfg->d, err, "%s.w1.weight", name));
    TRY(bind_matrix(m, &e->w3, width, m->cfg->d, err, "%s.w3.weight", name));
    return bind_matrix(m, &e->w2, m->cfg->d, width, err, "%s.w2.weight", name);
}

/* A token with an expert that does not exist would index out of every table: look at all now. */
static int bind_hash(struct model *m, struct layer *L, dsv4_err *err)
{
    const struct config *c = m->cfg;
    char name[64], shape[128];
    if (m->synthetic)
        return synthetic_ids(m, L, err);
    snprintf(name, sizeof name, "layers.%u.ffn.gate.tid2eid", L->id);
    const struct tensor *t = store_find(m->store, name);
    if (!t)
        return err_set(err, DSV4_REFUSED, "the checkpoint has no tensor %s", name);
    if ((t->dtype != DTYPE_I64 && t->dtype != DTYPE_I32) || t->rank != 2 || t->dim[0] != c->vocab ||
        t->dim[1] != c->top_k) {
        tensor_shape_text(t, shape, sizeof shape);
        return err_set(err, DSV4_REFUSED, "%s: %s is %s; expected I64 or I32 [%u, %u]", t->path,
                       t->stored, shape, c->vocab, c->top_k);
    }
    L->moe.tid2eid = t->data;
    L->moe.tid_bytes = dtype_size(t->dtype);
    for (uint64_t i = 0; i < (uint64_t)c->vocab * c->top_k; i++) {
        int64_t id = 0;
        int32_t id32;
        if (L->moe.tid_bytes == 8) {
            memcpy(&id, t->data + 8 * i, sizeof id);
        } else {
            memcpy(&id32, t->data + 4 * i, sizeof id32);
            id = id32;
        }
        if (id < 0 || id >= c->n_experts)
            return err_set(
                err, DSV4_REFUSED, "%s: %s sends token %llu to expert %lld; there are %u", t->path,
                t->stored, (unsigned long long)(i / c->top_k), (long long)id, c->n_experts);
    }
    return 0;
}

static int bind_moe(struct model *m, struct layer *L, dsv4_err *err)
{
    const struct config *c = m->cfg;
    char name[80];
    TRY(bind_matrix(m, &L->moe.gate, c->n_experts, c->d, err, "layers.%u.ffn.gate.weight", L->id));
    if (L->hashed)
        TRY(bind_hash(m, L, err));
    else
        TRY(bind_vector(m, &L->moe.bias, c->n_experts, err, "layers.%u.ffn.gate.bias", L->id));
    TRY(model_own(m, &L->moe.expert, c->n_experts, sizeof *L->moe.expert, "experts", err));
    for (uint32_t e = 0; e < synthetic_experts(m); e++) {
        snprintf(name, sizeof name, "layers.%u.ffn.experts.%u", L->id, e);
        TRY(bind_expert(m, &L->moe.expert[e], c->d_ff, name, err));
    }
    snprintf(name, sizeof name, "layers.%u.ffn.shared_experts", L->id);
    return bind_expert(m, &L->moe.shared, (uint64_t)c->n_shared * c->d_ff, name, err);
}

static int bind_engram(struct model *m, struct layer *L, uint64_t rows, dsv4_err *err)
{
    const struct config *c = m->cfg;
    uint32_t l = L->id;
    uint64_t columns = (uint64_t)(c->engram_ngram - 1) * c->engram_heads;
    struct engram *e;
    if (columns > MAX_ENGRAM_COLUMNS)
        return err_set(err, DSV4_REFUSED, "config.json: engram needs %llu columns; at most %d",
                       (unsigned long long)columns, MAX_ENGRAM_COLUMNS);
    TRY(model_own(m, &L->engram, 1, sizeof *L->engram, "engram", err));
    e = L->engram;
    TRY(bind_table(m, &e->embed, rows, c->engram_dim, err, "layers.%u.engram.embed.weight", l));
    TRY(bind_matrix(m, &e->wkv, (uint64_t)(c->hc_mult + 1) * c->d, columns * c->engram_dim, err,
                    "layers.%u.engram.wkv.weight", l));
    float *k;
    uint64_t n = (uint64_t)c->hc_mult * c->d;
    TRY(bind_vector(m, &e->qk, n, err, "layers.%u.engram.q_weight", l));
    TRY(bind_vector(m, &k, n, err, "layers.%u.engram.k_weight", l));
    for (uint64_t i = 0; i < n; i++)
        e->qk[i] *= k[i];
    return 0;
}

static int bind_layer(struct model *m, struct layer *L, dsv4_err *err)
{
    const struct config *c = m->cfg;
    uint32_t l = L->id;
    char name[64];
    L->ratio = c->ratio[l];
    L->rope = L->ratio > 0;
    L->kv_source = c->kv_source[l] == (int32_t)l;
    L->index_source = c->index_source[l] == (int32_t)l;
    L->selects = c->index_source[l] >= 0;
    L->candidates = c->candidate_source >= 0 && (int32_t)l > c->candidate_source;
    L->kv_layer = L->ratio > 0 ? (uint32_t)c->kv_source[l] : l;
    L->hashed = l < c->n_hash_layers;

    uint64_t n = (2 + (uint64_t)c->hc_mult) * c->hc_mult;
    snprintf(name, sizeof name, "layers.%u.hc_attn", l);
    TRY(bind_site(m, &L->hc_attn, n, 3, name, err));
    snprintf(name, sizeof name, "layers.%u.hc_ffn", l);
    TRY(bind_site(m, &L->hc_ffn, n, 3, name, err));
    TRY(bind_vector(m, &L->attn_norm, c->d, err, "layers.%u.attn_norm.weight", l));
    TRY(bind_vector(m, &L->ffn_norm, c->d, err, "layers.%u.ffn_norm.weight", l));
    TRY(bind_attention(m, L, err));
    TRY(bind_moe(m, L, err));
    for (uint32_t i = 0; i < c->n_engram; i++)
        if (c->engram_layer[i] == l)
            TRY(bind_engram(m, L, c->engram_rows[i], err));
    return 0;
}

/* Caches as the model was trained to see them, or plain floats. */
static void cache_shapes(struct model *m, bool quant)
{
    const struct config *c = m->cfg;
    bool v4 = c->family == FAMILY_V4;
    m->window_row = (struct rshape){v4 ? R_E4M3_64B : R_E4M3_32, c->head_dim, v4 ? c->rope_dim : 0};
    m->entry_row = v4 ? m->window_row : (struct rshape){R_E2M1_16, c->head_dim, 0};
    m->key_row = (struct rshape){R_E2M1_32, c->index_dim, 0};
    if (!quant) {
        m->window_row.format = m->entry_row.format = m->key_row.format = R_F32;
        m->window_row.rope = m->entry_row.rope = 0;
    }
}

static int bind_all(struct model *m, dsv4_err *err)
{
    const struct config *c = m->cfg;
    if (c->index_dim > INDEX_MAX_WIDTH)
        return err_set(err, DSV4_REFUSED, "config.json: index_head_dim is %u; at most %d",
                       c->index_dim, INDEX_MAX_WIDTH);
    if (c->hc_mult > MAX_HC)
        return err_set(err, DSV4_REFUSED, "config.json: hc_mult is %u; at most %d", c->hc_mult,
                       MAX_HC);
    TRY(bind_table(m, &m->embed, c->vocab, c->d, err, "embed.weight"));
    TRY(bind_matrix(m, &m->head, c->vocab, c->d, err, "head.weight"));
    TRY(bind_vector(m, &m->norm, c->d, err, "norm.weight"));
    if (c->family == FAMILY_V4)
        TRY(bind_site(m, &m->hc_head, c->hc_mult, 1, "hc_head", err));
    TRY(model_own(m, &m->layer, c->n_layers, sizeof *m->layer, "layers", err));
    for (uint32_t l = 0; l < c->n_layers; l++) {
        m->layer[l].id = l;
        TRY(bind_layer(m, &m->layer[l], err));
    }
    for (int i = 0; i < 2; i++)
        TRY(model_own(m, &m->freq[i], c->rope_dim / 2, sizeof(float), "rope", err));
    rope_frequencies(m->freq[0], c->rope_dim, c->rope_theta, 1, 0, 0, 0);
    rope_frequencies(m->freq[1], c->rope_dim, c->compress_theta, c->yarn_factor, c->yarn_original,
                     c->yarn_beta_fast, c->yarn_beta_slow);
    return 0;
}

int model_kernels(struct kernels *k, dsv4_err *err)
{
    const char *level = getenv("DSV4_SIMD"), *name;
    if (kernels_init(k, level))
        return 0;
    char have[128] = "";
    size_t len = 0;
    bool available;
    for (size_t i = 0; (name = kernels_level(i, &available)); i++)
        if (available && len < sizeof have)
            len += (size_t)snprintf(have + len, sizeof have - len, " %s", name);
    return err_set(err, DSV4_USAGE, "DSV4_SIMD=%s: this machine has%s", level, have);
}

static int bind_new(struct model **out, struct config *cfg, struct store *store,
                    const struct synthetic_options *made, bool cache_quant, dsv4_err *err)
{
    struct model *m;
    TRY(mem_alloc(&m, 1, sizeof *m, "a model", err));
    m->cfg = cfg;
    m->store = store;
    int rc = model_kernels(&m->k, err);
    if (rc == 0 && made)
        rc = synthetic_open(m, made, err);
    cache_shapes(m, cache_quant);
    if (rc == 0)
        rc = bind_all(m, err);
    if (rc == 0 && made)
        rc = synthetic_engram(m, err);
    if (rc != 0) {
        model_close(m);
        return rc;
    }
    *out = m;
    return 0;
}

int model_bind(struct model **out, struct config *cfg, struct store *store, bool cache_quant,
               dsv4_err *err)
{
    return bind_new(out, cfg, store, NULL, cache_quant, err);
}

int model_bind_synthetic(struct model **out, struct config *cfg, const struct synthetic_options *o,
                         bool cache_quant, dsv4_err *err)
{
    return bind_new(out, cfg, NULL, o, cache_quant, err);
}

void model_close(struct model *m)
{
    if (!m)
        return;
    for (int i = 0; i < m->n_arenas; i++)
        mem_unmap(m->arena[i].at, m->arena[i].bytes);
    for (size_t i = 0; i < m->n_owned; i++)
        free(m->owned[i]);
    free(m->owned);
    free(m->matrix);
    free(m->engram_map);
    synthetic_close(m->synthetic);
    free(m);
}
