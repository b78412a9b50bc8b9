/* The public side of conversions: from options to a plan, from a plan to a directory. */
#include "convert.h"

#define SHARD_BYTES ((uint64_t)4 << 30)

/* Source and plan of one conversion. */
struct conversion {
    struct source source;
    struct rules rules;
    struct plan plan;
    struct store *importance; /* or NULL */
};

static void conversion_close(struct conversion *c)
{
    store_close(c->importance);
    convert_plan_close(&c->plan);
    rules_close(&c->rules);
    source_close(&c->source);
}

static int read_importance(struct conversion *c, const dsv4_convert_options *o, dsv4_err *err)
{
    bool high = o->effort == DSV4_EFFORT_HIGH;
    plan_mix(&c->plan, &o->effort, sizeof o->effort);
    if (o->importance)
        return importance_open(&c->importance, o->importance, &c->plan, high, err);
    if (high)
        return err_set(err, DSV4_USAGE,
                       "high effort needs an importance file with covariances (dsv4-quantize "
                       "--calibrate TEXT --covariance)");
    return 0;
}

static int conversion_open(struct conversion *c, const char *src, const dsv4_convert_options *o,
                           dsv4_err *err)
{
    *c = (struct conversion){0};
    int rc = rules_make(&c->rules, o, err);
    if (rc == 0)
        rc = source_open(&c->source, src, err);
    if (rc == 0)
        rc = convert_plan(&c->plan, &c->source, &c->rules, err);
    if (rc == 0)
        rc = plan_layout(&c->plan, o->shard_bytes ? o->shard_bytes : SHARD_BYTES, err);
    if (rc == 0)
        rc = read_importance(c, o, err);
    if (rc != 0)
        conversion_close(c);
    return rc;
}

int dsv4_convert_plan(const char *src, const dsv4_convert_options *opt, char **json, dsv4_err *err)
{
    static const dsv4_convert_options defaults;
    struct conversion c;
    *json = NULL;
    TRY(conversion_open(&c, src, opt ? opt : &defaults, err));
    int rc = convert_plan_json(&c.plan, json, err);
    conversion_close(&c);
    return rc;
}

int dsv4_convert(const char *src, const char *dst, const dsv4_convert_options *opt, dsv4_err *err)
{
    static const dsv4_convert_options defaults;
    struct conversion c;
    struct output out;
    opt = opt ? opt : &defaults;
    TRY(conversion_open(&c, src, opt, err));
    int lanes, rc = convert_lanes(&c.plan, opt, &lanes, err);
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
