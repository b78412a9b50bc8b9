/* Opening and closing of engines: config, tensors, memory plan, tokenizer, weights, threads, in the order
 * in which a mistake is cheapest to find. */
#include "session.h"

#include "src/text/text.h"

#include <stdlib.h>
#include <string.h>

static int read_config(struct config **cfg, const char *dir, dsv4_err *err)
{
    struct checkpoint_text t;
    TRY(checkpoint_text(&t, dir, "config.json", true, err));
    int rc = config_parse(cfg, t.text, t.len, t.where, err);
    checkpoint_text_close(&t);
    return rc;
}

int checkpoint_open(struct checkpoint *c, const char *dir, bool cache_quant, dsv4_err *err)
{
    *c = (struct checkpoint){0};
    if (!(c->dir = strdup(dir)))
        return err_memory(err, strlen(dir) + 1, "a path");
    int rc = read_config(&c->cfg, dir, err);
    if (rc == 0)
        rc = store_open(&c->store, dir, err);
    if (rc == 0)
        rc = model_bind(&c->m, c->cfg, c->store, cache_quant, err);
    if (rc != 0)
        checkpoint_close(c);
    return rc;
}

void checkpoint_close(struct checkpoint *c)
{
    model_close(c->m);
    store_close(c->store);
    config_close(c->cfg);
    made_close(c->made);
    free(c->dir);
    *c = (struct checkpoint){0};
}

/* generation_config.json is optional; what it leaves open is the release's default. */
static int read_sampling(dsv4_engine *e, dsv4_err *err)
{
    struct generation_defaults g = {
        .do_sample = true, .temperature = 1, .top_p = 1, .top_k = 0, .repetition = 1};
    struct checkpoint_text t;
    TRY(checkpoint_text(&t, e->cp.dir, "generation_config.json", false, err));
    int rc = t.text ? generation_parse(&g, t.text, t.len, t.where, err) : 0;
    checkpoint_text_close(&t);
    e->sampling = (dsv4_sampling){.temperature = g.do_sample ? g.temperature : 0,
                                  .top_p = g.top_p,
                                  .top_k = g.top_k,
                                  .repetition = g.repetition};
    return rc;
}

static int read_tokenizer(dsv4_tokenizer **out, const char *model, uint32_t vocab, dsv4_err *err)
{
    struct checkpoint_text t;
    TRY(checkpoint_text(&t, model, "tokenizer.json", true, err));
    int rc = tokenizer_parse(out, t.text, t.len, t.where, err);
    if (rc == 0 && dsv4_tokenizer_size(*out) > vocab)
        rc = err_set(err, DSV4_REFUSED, "%s: %zu tokens; config.json says vocab_size %u", t.where,
                     dsv4_tokenizer_size(*out), vocab);
    checkpoint_text_close(&t);
    return rc;
}

int dsv4_tokenizer_of(dsv4_tokenizer **out, const char *model, dsv4_err *err)
{
    return read_tokenizer(out, model, UINT32_MAX, err);
}

static int open_tokenizer(dsv4_engine *e, dsv4_err *err)
{
    const struct config *c = e->cp.cfg;
    TRY(read_tokenizer(&e->tok, e->cp.dir, c->vocab, err));
    if (c->n_engram == 0)
        return 0;
    /* Ids beyond the tokenizer (a padded vocabulary) have no text: they fold like the pad token. */
    int32_t *map, *all;
    uint32_t distinct;
    TRY(engram_map_build(e->tok, &map, &distinct, err));
    int rc = mem_alloc(&all, c->vocab, sizeof *all, "the Engram vocabulary", err);
    if (rc != 0) {
        free(map);
        return rc;
    }
    size_t n = dsv4_tokenizer_size(e->tok);
    if ((size_t)c->engram_pad >= n) {
        free(map);
        free(all);
        return err_set(err, DSV4_REFUSED,
                       "config.json: engram_pad_token_id is %d; the tokenizer has %zu tokens",
                       c->engram_pad, n);
    }
    for (size_t i = 0; i < c->vocab; i++)
        all[i] = map[i < n ? i : (size_t)c->engram_pad];
    free(map);
    return engram_address(e->cp.m, all, distinct, err);
}

static int open_parts(dsv4_engine *e, const char *dir, const dsv4_options *opt, dsv4_err *err)
{
    if (opt->paged && checkpoint_is_file(dir))
        return err_set(err, DSV4_USAGE, "%s: the weights of a GGUF file have to be loaded", dir);
    TRY(checkpoint_open(&e->cp, dir, !opt->no_cache_quant, err));
    if (!opt->exact)
        model_use_fast(e->cp.m, opt->paged);
    TRY(plan_threads(&e->place, opt, err));
    TRY(plan_make(&e->plan, &e->cp, opt, &e->place, false, err));
    TRY(open_tokenizer(e, err));
    TRY(read_sampling(e, err));
    TRY(pool_open(&e->pool, &e->place, err));
    const struct memory_plan *p = &e->plan;
    if (!opt->paged)
        TRY(weights_load(e->cp.m, e->pool, opt->progress, opt->progress_arg, err));
    return batch_open(&e->batch, e->cp.m, p->batch, p->sequences, p->threads, err);
}

int dsv4_open(dsv4_engine **out, const char *dir, const dsv4_options *opt, dsv4_err *err)
{
    dsv4_engine *e;
    static const dsv4_options defaults;
    *out = NULL;
    TRY(mem_alloc(&e, 1, sizeof *e, "an engine", err));
    int rc = open_parts(e, dir, opt ? opt : &defaults, err);
    if (rc != 0) {
        dsv4_close(e);
        return rc;
    }
    *out = e;
    return 0;
}

void dsv4_close(dsv4_engine *e)
{
    if (!e)
        return;
    batch_close(e->batch);
    pool_close(e->pool);
    placement_release(&e->place);
    dsv4_tokenizer_close(e->tok);
    checkpoint_close(&e->cp);
    free(e);
}

const dsv4_tokenizer *dsv4_engine_tokenizer(const dsv4_engine *e)
{
    return e->tok;
}

dsv4_dialect dsv4_engine_dialect(const dsv4_engine *e)
{
    const struct config *c = e->cp.cfg;
    return c->family == FAMILY_V41 ? DSV4_V41 : c->rev_0731 ? DSV4_V4_0731 : DSV4_V4_PREVIEW;
}

size_t dsv4_engine_vocab(const dsv4_engine *e)
{
    return e->cp.cfg->vocab;
}

size_t dsv4_engine_ctx(const dsv4_engine *e)
{
    return e->plan.ctx;
}

size_t dsv4_engine_threads(const dsv4_engine *e)
{
    return (size_t)e->plan.threads;
}

uint64_t dsv4_engine_memory(const dsv4_engine *e)
{
    const struct memory_plan *p = &e->plan;
    return p->weights + p->caches + p->scratch + p->other;
}

int32_t dsv4_engine_eos(const dsv4_engine *e)
{
    return e->cp.cfg->eos;
}

int32_t dsv4_engine_bos(const dsv4_engine *e)
{
    return e->cp.cfg->bos;
}

dsv4_sampling dsv4_engine_sampling(const dsv4_engine *e)
{
    return e->sampling;
}
