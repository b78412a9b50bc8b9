/* The public side of conversions: from options to a plan, from a plan to a directory or a file. */
#include "convert.h"

#include <jansson.h>
#include <stdlib.h>

#define SHARD_BYTES ((uint64_t)4 << 30)

/* Source and plan of one conversion. */
struct conversion {
    struct source source;
    struct rules rules;
    struct store *importance; /* or NULL */
    struct pruning *pruning;  /* or NULL */
    struct plan plan;
    struct memory_beside beside; /* of plans, and where types were chosen */
    json_t *chosen;              /* or NULL: what types were chosen, and why */
};

static void conversion_close(struct conversion *c)
{
    json_decref(c->chosen);
    convert_plan_close(&c->plan);
    pruning_close(c->pruning);
    store_close(c->importance);
    rules_close(&c->rules);
    source_close(&c->source);
}

static bool chooses(const dsv4_convert_options *o)
{
    return o->fit > 0 || o->bits > 0;
}

static int check_options(const dsv4_convert_options *o, dsv4_err *err)
{
    if (o->effort == DSV4_EFFORT_HIGH && !o->importance)
        return err_set(err, DSV4_USAGE,
                       "high effort needs an importance file with covariances (dsv4-quantize "
                       "--calibrate TEXT --covariance)");
    if (o->gguf && o->shard_bytes)
        return err_set(err, DSV4_USAGE, "a GGUF file is one: --shard-size is for directories");
    if (o->prune_experts && !o->importance)
        return err_set(err, DSV4_USAGE,
                       "--prune-experts needs an importance file (dsv4-quantize --calibrate TEXT), "
                       "which says what experts are used for");
    if (chooses(o) && (o->preset || o->type))
        return err_set(
            err, DSV4_USAGE,
            "--fit and --bits choose types themselves: --preset and --type are no part of "
            "that (--experts, --dense, --head, --tensor say what is to stay)");
    if (chooses(o) && o->gguf)
        return err_set(err, DSV4_USAGE,
                       "--fit and --bits choose among types that GGUF does not have; for a GGUF "
                       "file say them (--experts, --dense, --head, --tensor)");
    if (!chooses(o) && (o->dynamic || o->sensitivity))
        return err_set(err, DSV4_USAGE, "%s is for --fit or --bits: how much may be spent?",
                       o->dynamic ? "--dynamic" : "a file of sensitivities");
    if (o->bits < 0 || o->bits > 32)
        return err_set(err, DSV4_USAGE, "--bits %g is no mean of bits a weight", o->bits);
    return 0;
}

/* Types for the matrices that no rule speaks of. */
static int choose(struct conversion *c, const dsv4_convert_options *o, dsv4_err *err)
{
    TRY(memory_beside(&c->beside, &c->source, o, err));
    const struct memory_beside *b = &c->beside;
    struct choose_options how = {.sensitivity = o->sensitivity,
                                 .fit = o->fit,
                                 .beside = b->caches + b->buffers + b->other,
                                 .ctx = b->ctx,
                                 .bits = o->bits,
                                 .each = o->dynamic,
                                 .threads = (int)(o->threads < MAX_LANES ? o->threads : MAX_LANES)};
    return choose_types(&c->plan, &c->source, c->importance, &how, &c->chosen, err);
}

static int read_importance(struct conversion *c, const dsv4_convert_options *o, dsv4_err *err)
{
    plan_mix(&c->plan, &o->effort, sizeof o->effort);
    if (!o->importance)
        return 0;
    return importance_join(c->importance, o->importance, &c->plan, o->effort == DSV4_EFFORT_HIGH,
                           err);
}

/* A file made with another number of experts knows others by the same names. */
static int check_experts(const struct conversion *c, const char *file, dsv4_err *err)
{
    const struct tensor *t = store_find(c->importance, "layers.0.ffn.experts.norm");
    if (!t || t->rank != 1 || t->dim[0] == c->source.cfg->n_experts)
        return 0;
    return err_set(err, DSV4_REFUSED, "%s: made of a model with %llu experts in a layer; %s has %u",
                   file, (unsigned long long)t->dim[0], c->source.dir, c->source.cfg->n_experts);
}

/* config: instead of a directory. */
static int conversion_open(struct conversion *c, const char *src, const char *config, size_t len,
                           const dsv4_convert_options *o, dsv4_err *err)
{
    *c = (struct conversion){0};
    TRY(check_options(o, err));
    int rc = rules_make(&c->rules, o, err);
    if (rc == 0)
        rc = config ? source_open_config(&c->source, config, len, err)
                    : source_open(&c->source, src, err);
    if (rc == 0 && o->importance)
        rc = store_open_file(&c->importance, o->importance, err);
    if (rc == 0 && o->importance)
        rc = check_experts(c, o->importance, err);
    if (rc == 0 && o->prune_experts)
        rc = pruning_choose(&c->pruning, &c->source, c->importance, o->prune_experts, err);
    if (rc == 0)
        rc = convert_plan(&c->plan, &c->source, &c->rules, c->pruning, err);
    if (rc == 0 && chooses(o))
        rc = choose(c, o, err);
    if (rc == 0 && o->gguf)
        rc = plan_gguf(&c->plan, err);
    else if (rc == 0)
        rc = plan_layout(&c->plan, o->shard_bytes ? o->shard_bytes : SHARD_BYTES, err);
    if (rc == 0)
        rc = read_importance(c, o, err);
    if (rc != 0)
        conversion_close(c);
    return rc;
}

static int describe(const char *src, const char *config, size_t len,
                    const dsv4_convert_options *opt, char **json, dsv4_err *err)
{
    static const dsv4_convert_options defaults;
    struct conversion c;
    *json = NULL;
    opt = opt ? opt : &defaults;
    if (config && opt->prune_experts)
        return err_set(err, DSV4_USAGE,
                       "which experts stay is decided by a checkpoint's routers, not by a config");
    TRY(conversion_open(&c, src, config, len, opt, err));
    int rc = chooses(opt) ? 0 : memory_beside(&c.beside, &c.source, opt, err);
    if (rc == 0)
        rc = convert_plan_json(&c.plan, &c.beside, c.chosen, json, err);
    conversion_close(&c);
    return rc;
}

int dsv4_convert_plan(const char *src, const dsv4_convert_options *opt, char **json, dsv4_err *err)
{
    return describe(src, NULL, 0, opt, json, err);
}

int dsv4_convert_plan_config(const char *config, size_t len, const dsv4_convert_options *opt,
                             char **json, dsv4_err *err)
{
    return describe(NULL, config, len, opt, json, err);
}

static int tell_decisions(const struct conversion *c, const dsv4_convert_options *o, dsv4_err *err)
{
    char *text;
    if (!o->decided || (!c->chosen && !c->pruning))
        return 0;
    json_t *j = json_object();
    bool whole = j && plan_decisions(&c->plan, c->chosen, j);
    int rc = whole ? json_write(&text, j, JSON_INDENT(1), err) : err_memory(err, 0, "a plan");
    json_decref(j);
    TRY(rc);
    o->decided(o->decided_arg, text);
    free(text);
    return 0;
}

int dsv4_convert(const char *src, const char *dst, const dsv4_convert_options *opt, dsv4_err *err)
{
    static const dsv4_convert_options defaults;
    struct conversion c;
    struct output out;
    opt = opt ? opt : &defaults;
    TRY(conversion_open(&c, src, NULL, 0, opt, err));
    int lanes, rc = tell_decisions(&c, opt, err);
    if (rc == 0)
        rc = convert_lanes(&c.plan, opt, &lanes, err);
    if (rc == 0)
        rc = output_open(&out, &c.plan, dst, opt->restart, err);
    if (rc == 0) {
        rc = convert_run(&out, opt, lanes, err);
        if (rc == 0)
            rc = output_finish(&out, err);
        output_close(&out);
    }
    conversion_close(&c);
    return rc;
}
