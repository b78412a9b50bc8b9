/* Engines without a checkpoint, for measuring: a slice of a config, weights of src/model/synthetic.c. */
#include "session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ cutting a config */

/* Where the config's layer stands in the slice; -1. */
static int32_t place_of(const uint32_t *kept, uint32_t n, int64_t layer)
{
    for (uint32_t i = 0; i < n; i++)
        if (kept[i] == layer)
            return (int32_t)i;
    return -1;
}

/* source[i] becomes that of the kept layer i. */
static int cut_source(int32_t *source, const uint32_t *kept, uint32_t n, const char *what,
                      dsv4_err *err)
{
    for (uint32_t i = 0; i < n; i++) {
        int32_t from = source[kept[i]];
        int32_t to = from < 0 ? -1 : place_of(kept, n, from);
        if (from >= 0 && to < 0)
            return err_set(err, DSV4_USAGE,
                           "layer %u reads the %s of layer %d, which is not in the slice", kept[i],
                           what, from);
        source[i] = to; /* i <= kept[i]: what is still to be read stands behind */
    }
    return 0;
}

static void cut_engram(struct config *c, const uint32_t *kept, uint32_t n)
{
    uint32_t left = 0;
    for (uint32_t i = 0; i < c->n_engram; i++) {
        int32_t at = place_of(kept, n, c->engram_layer[i]);
        if (at < 0)
            continue;
        c->engram_layer[left] = (uint32_t)at;
        c->engram_rows[left++] = c->engram_rows[i];
    }
    c->n_engram = left;
}

static int cut_layers(struct config *c, const uint32_t *kept, uint32_t n, dsv4_err *err)
{
    uint32_t hashed = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (kept[i] >= c->n_layers || (i > 0 && kept[i] <= kept[i - 1]))
            return err_set(err, DSV4_USAGE,
                           "the layers of a slice are some of 0 to %u, in ascending order",
                           c->n_layers - 1);
        hashed += kept[i] < c->n_hash_layers;
    }
    TRY(cut_source(c->kv_source, kept, n, "compressed cache", err));
    TRY(cut_source(c->index_source, kept, n, "selection", err));
    cut_engram(c, kept, n);
    c->n_hash_layers = hashed;
    c->candidate_source = c->candidate_source < 0 ? -1 : place_of(kept, n, c->candidate_source);
    for (uint32_t i = 0; i < n; i++)
        c->ratio[i] = c->ratio[kept[i]];
    c->n_layers = n;
    return 0;
}

static int32_t cut_token(int32_t id, uint32_t vocab)
{
    return id < 0 || (uint32_t)id < vocab ? id : (int32_t)vocab - 1;
}

static int cut_counts(struct config *c, const dsv4_slice *s, dsv4_err *err)
{
    if (s->experts > c->n_experts || (s->experts > 0 && s->experts < c->top_k))
        return err_set(err, DSV4_USAGE, "%u experts; a slice has %u to %u", s->experts, c->top_k,
                       c->n_experts);
    if (s->vocab > c->vocab)
        return err_set(err, DSV4_USAGE, "a vocabulary of %u; the model's has %u", s->vocab,
                       c->vocab);
    c->n_experts = s->experts ? s->experts : c->n_experts;
    c->vocab = s->vocab ? s->vocab : c->vocab;
    if (s->held > c->n_experts)
        return err_set(err, DSV4_USAGE, "weights for %u of %u experts", s->held, c->n_experts);
    c->bos = cut_token(c->bos, c->vocab);
    c->eos = cut_token(c->eos, c->vocab);
    c->pad = cut_token(c->pad, c->vocab);
    c->engram_pad = cut_token(c->engram_pad, c->vocab);
    if (c->engram_compressed > c->vocab)
        c->engram_compressed = c->vocab;
    return 0;
}

/* *kept: the config's numbers of the layers that are left, malloc'ed. */
static int cut_config(struct config *c, const dsv4_slice *s, uint32_t **kept, dsv4_err *err)
{
    uint32_t n = s->n_layers ? s->n_layers : c->n_layers, *list;
    if (n > c->n_layers)
        return err_set(err, DSV4_USAGE, "%u layers; the model has %u", n, c->n_layers);
    TRY(mem_alloc(&list, n, sizeof *list, "the layers of a slice", err));
    for (uint32_t i = 0; i < n; i++)
        list[i] = s->layers ? s->layers[i] : i;
    int rc = cut_layers(c, list, n, err);
    if (rc == 0)
        rc = cut_counts(c, s, err);
    if (rc != 0) {
        free(list);
        return rc;
    }
    *kept = list;
    return 0;
}

/* ------------------------------------------------------------------ sums */

static void add_tensor(void *arg, const struct made_tensor *t)
{
    struct made *m = arg;
    const char *name = t->data.name;
    enum tensor_class class = tensor_class_of(name);
    unsigned l;
    m->sum[class].tensors++;
    m->sum[class].bytes += t->bytes;
    m->sum[class].held += t->bytes;
    m->sum[class].weights += t->weights;
    if (class == CLASS_ENGRAM_TABLE || sscanf(name, "layers.%u.", &l) != 1 || l >= m->n_layers)
        return;
    struct made_layer *at = &m->layer[l];
    bool expert = class == CLASS_EXPERTS;
    *(expert ? &at->expert_bytes : &at->bytes) += strstr(name, "tid2eid") ? 0 : t->bytes;
    *(expert ? &at->expert_weights : &at->weights) += t->weights;
}

static int made_open(struct made **out, const struct config *c, const uint32_t *kept, uint32_t held,
                     dsv4_err *err)
{
    struct made *m;
    TRY(mem_alloc(&m, 1, sizeof *m, "a synthetic model", err));
    *out = m;
    m->held = held ? held : c->n_experts;
    m->n_layers = c->n_layers;
    TRY(mem_alloc(&m->layer, m->n_layers, sizeof *m->layer, "a synthetic model", err));
    for (uint32_t i = 0; i < m->n_layers; i++)
        m->layer[i].id = kept[i];
    return 0;
}

void made_close(struct made *m)
{
    if (m)
        free(m->layer);
    free(m);
}

/* ------------------------------------------------------------------ opening */

static const dsv4_options no_options;
static const dsv4_slice whole;

static int format(dsv4_format f, enum wformat official, enum wformat *out, dsv4_err *err)
{
    switch (f) {
    case DSV4_FORMAT_OFFICIAL: *out = official; return 0;
    case DSV4_MXFP4: *out = W_E2M1; return 0;
    case DSV4_Q4: *out = W_Q4; return 0;
    case DSV4_Q8: *out = W_Q8; return 0;
    case DSV4_E4M3: *out = W_E4M3; return 0;
    case DSV4_BF16: *out = W_BF16; return 0;
    case DSV4_Q3: *out = W_Q3; return 0;
    case DSV4_Q2: *out = W_Q2; return 0;
    }
    return err_set(err, DSV4_USAGE, "format %d of a slice is none", (int)f);
}

/* What a description gathers: sums and, where a store is wanted, the tensors themselves. */
struct gather {
    struct made *made;
    struct store *store; /* or NULL */
    int rc;
    dsv4_err err;
};

static void gather(void *arg, const struct made_tensor *t)
{
    struct gather *g = arg;
    add_tensor(g->made, t);
    if (g->store && g->rc == 0)
        g->rc = store_add_shape(g->store, &t->data, &g->err);
    if (g->store && g->rc == 0 && t->scale.name)
        g->rc = store_add_shape(g->store, &t->scale, &g->err);
}

static int bind_slice(struct checkpoint *cp, const char *config, size_t len, const dsv4_slice *s,
                      bool cache_quant, bool shapes_only, dsv4_err *err)
{
    uint32_t *kept = NULL;
    struct gather g = {.store = cp->store};
    struct synthetic_options o = {
        .held = s->held, .shapes_only = shapes_only, .note = gather, .arg = &g};
    TRY(format(s->expert_format, W_E2M1, &o.expert, err));
    TRY(format(s->dense_format, W_E4M3, &o.dense, err));
    TRY(config_parse(&cp->cfg, config, len, "config.json", err));
    TRY(cut_config(cp->cfg, s, &kept, err));
    int rc = made_open(&cp->made, cp->cfg, kept, s->held, err);
    free(kept);
    g.made = cp->made;
    if (rc == 0)
        rc = model_bind_synthetic(&cp->m, cp->cfg, &o, cache_quant, err);
    if (rc == 0 && g.rc != 0)
        *err = g.err;
    return rc != 0 ? rc : g.rc;
}

int checkpoint_shapes(struct checkpoint *cp, const char *config, size_t len, dsv4_err *err)
{
    *cp = (struct checkpoint){0};
    int rc = store_open_shapes(&cp->store, err);
    if (rc == 0)
        rc = bind_slice(cp, config, len, &whole, true, true, err);
    if (rc == 0)
        rc = store_sort_shapes(cp->store, err);
    if (rc != 0)
        checkpoint_close(cp);
    return rc;
}

static int open_parts(dsv4_engine *e, const char *config, size_t len, const dsv4_slice *slice,
                      const dsv4_options *opt, dsv4_err *err)
{
    if (opt->paged)
        return err_set(err, DSV4_USAGE, "weights that are made up cannot be paged from disk");
    TRY(bind_slice(&e->cp, config, len, slice, !opt->no_cache_quant, false, err));
    if (!opt->exact)
        model_use_fast(e->cp.m, false);
    TRY(plan_threads(&e->place, opt, err));
    TRY(plan_make(&e->plan, &e->cp, opt, &e->place, false, err));
    TRY(pool_open(&e->pool, &e->place, err));
    TRY(weights_load(e->cp.m, e->pool, opt->progress, opt->progress_arg, err));
    synthetic_share(e->cp.m);
    const struct memory_plan *p = &e->plan;
    e->sampling = (dsv4_sampling){.top_p = 1, .repetition = 1};
    TRY(batch_open(&e->batch, e->cp.m, p->batch, p->sequences, p->threads, err));
    return batch_time(e->batch, err);
}

int dsv4_open_synthetic(dsv4_engine **out, const char *config, size_t len, const dsv4_slice *slice,
                        const dsv4_options *opt, dsv4_err *err)
{
    dsv4_engine *e;
    *out = NULL;
    TRY(mem_alloc(&e, 1, sizeof *e, "an engine", err));
    int rc = open_parts(e, config, len, slice ? slice : &whole, opt ? opt : &no_options, err);
    if (rc != 0) {
        dsv4_close(e);
        return rc;
    }
    *out = e;
    return 0;
}

int dsv4_plan_synthetic(const char *config, size_t len, const dsv4_slice *slice,
                        const dsv4_options *opt, char **json, dsv4_err *err)
{
    struct checkpoint cp = {0};
    *json = NULL;
    opt = opt ? opt : &no_options;
    int rc = bind_slice(&cp, config, len, slice ? slice : &whole, !opt->no_cache_quant, true, err);
    if (rc == 0)
        rc = checkpoint_plan(&cp, opt, json, err);
    checkpoint_close(&cp);
    return rc;
}

int dsv4_seq_pretend(dsv4_seq *s, size_t len, dsv4_err *err)
{
    if (!s->e->cp.made)
        return err_set(err, DSV4_USAGE, "only sequences of synthetic engines can pretend");
    if (len > s->e->plan.ctx)
        return err_set(err, DSV4_USAGE, "a history of %zu tokens; the context holds %u", len,
                       s->e->plan.ctx);
    return synthetic_history(s->cache, len, err);
}
