/* Rotary positions in config.json, in four spellings:
 *   V4 and V4.1 as released   rope_theta, compress_rope_theta, rope_scaling {"type": "yarn", ...}
 *   newer                     the same with "rope_type"
 *   Transformers, flat        rope_parameters {"rope_type": "yarn", ...}
 *   Transformers, nested      rope_parameters {"main": {...}, "compress": {...}}
 * "main" turns layers without a compressed branch and is never scaled. Several spellings may stand
 * in one file, but have to agree. */
#include "parts.h"

#include <math.h>
#include <string.h>

/* What one spelling says; NAN where it says nothing. */
struct rope {
    double main_theta, compress_theta;
    double partial; /* rope_dim / head_dim */
    bool scaling;   /* the following five were given, factor 1 and original 0 without YaRN */
    double factor, original, fast, slow;
};

static const struct rope nothing = {.main_theta = NAN, .compress_theta = NAN, .partial = NAN};

static int read_theta(const struct fields *f, const char *name, double *out, dsv4_err *err)
{
    return field_real(f, name, 2, 1e12, out, NULL, err);
}

/* One object {"rope_type", "factor", ...}. */
static int read_scaling(const struct fields *f, struct rope *p, dsv4_err *err)
{
    const json_t *type = field_get(f, "rope_type");
    const char *key = type ? "rope_type" : "type";
    if (!type)
        type = field_get(f, "type");
    const char *name = json_string_value(type);
    p->scaling = true;
    p->factor = 1;
    p->original = 0;
    p->fast = 32;
    p->slow = 1;
    if (name ? strcmp(name, "default") == 0 : !type && !field_get(f, "factor"))
        return 0;
    if (!name || strcmp(name, "yarn") != 0)
        return field_refuse(f, key, type, err, "\"yarn\" or \"default\"");
    /* The released code never applies YaRN's attention factor. */
    double attention = 1;
    bool found;
    int64_t original = 0;
    TRY(field_real(f, "attention_factor", 1, 1, &attention, NULL, err));
    TRY(field_real(f, "factor", 1, 1e6, &p->factor, &found, err));
    if (!found)
        return field_refuse(f, "factor", NULL, err, "a number from 1 to 1e6");
    TRY(field_whole(f, "original_max_position_embeddings", 1, 1 << 24, &original, &found, err));
    if (!found)
        return field_refuse(f, "original_max_position_embeddings", NULL, err,
                            "a whole number from 1 to %d", 1 << 24);
    p->original = (double)original;
    TRY(field_real(f, "beta_fast", 1e-3, 1e6, &p->fast, NULL, err));
    TRY(field_real(f, "beta_slow", 1e-3, 1e6, &p->slow, NULL, err));
    if (p->slow > p->fast)
        return field_refuse(f, "beta_slow", field_get(f, "beta_slow"), err,
                            "at most beta_fast (%g)", p->fast);
    return 0;
}

static int read_partial(const struct fields *f, struct rope *p, dsv4_err *err)
{
    return field_real(f, "partial_rotary_factor", 1e-4, 1, &p->partial, NULL, err);
}

/* rope_parameters {"main": ..., "compress": ...}. */
static int read_nested(const struct fields *f, const json_t *main, const json_t *compress,
                       struct rope *p, dsv4_err *err)
{
    struct rope plain = nothing;
    struct fields in = {main, f->where, "rope_parameters.main."};
    TRY(read_scaling(&in, &plain, err));
    if (plain.factor != 1 || plain.original != 0)
        return field_refuse(&in, "rope_type", field_get(&in, "rope_type"), err, "\"default\"");
    TRY(read_theta(&in, "rope_theta", &p->main_theta, err));
    TRY(read_partial(&in, p, err));
    in = (struct fields){compress, f->where, "rope_parameters.compress."};
    TRY(read_scaling(&in, p, err));
    TRY(read_theta(&in, "rope_theta", &p->compress_theta, err));
    return read_partial(&in, &plain, err);
}

/* Member `name` (rope_scaling or rope_parameters) of the text model. */
static int read_object(const struct reader *r, const char *name, const char *prefix, struct rope *p)
{
    const json_t *object, *main, *compress;
    TRY(field_object(&r->text, name, &object, r->err));
    if (!object)
        return 0;
    struct fields in = {object, r->text.where, prefix};
    TRY(field_object(&in, "main", &main, r->err));
    TRY(field_object(&in, "compress", &compress, r->err));
    if (main && compress)
        return read_nested(&in, main, compress, p, r->err);
    TRY(read_scaling(&in, p, r->err));
    TRY(read_theta(&in, "rope_theta", &p->main_theta, r->err));
    return read_partial(&in, p, r->err);
}

/* Takes over what `more` says; false when both say something and it differs. */
static bool merge(double *x, double more)
{
    if (isnan(*x))
        *x = more;
    return isnan(more) || *x == more;
}

static int disagree(const struct reader *r, const char *a, const char *b)
{
    return err_set(r->err, DSV4_REFUSED, "%s: %s%s and %s%s do not say the same", r->text.where,
                   r->text.prefix, a, r->text.prefix, b);
}

/* qk_rope_head_dim, or partial_rotary_factor of head_dim. */
static int read_rope_dim(const struct reader *r, double partial)
{
    struct config *c = r->c;
    const char *name = "qk_rope_head_dim";
    double product = partial * c->head_dim;
    int64_t dim = 0;
    bool found;
    TRY(field_whole(&r->text, name, 2, c->head_dim, &dim, &found, r->err));
    if (!found && isnan(partial))
        return field_refuse(&r->text, name, NULL, r->err, "an even number from 2 to %u",
                            c->head_dim);
    if (found && !isnan(partial) && fabs(product - (double)dim) > 0.01)
        return disagree(r, name, "partial_rotary_factor");
    if (!found) {
        name = "partial_rotary_factor";
        dim = (int64_t)floor(product + 0.01);
    }
    if (dim < 2 || dim % 2)
        return err_set(r->err, DSV4_REFUSED,
                       "%s: %s%s gives %lld rope channels; expected an even number from 2 to %u",
                       r->text.where, r->text.prefix, name, (long long)dim, c->head_dim);
    c->rope_dim = (uint32_t)dim;
    return 0;
}

int config_rope(const struct reader *r)
{
    struct config *c = r->c;
    struct rope top = nothing, old = nothing, new = nothing;
    TRY(read_theta(&r->text, "rope_theta", &top.main_theta, r->err));
    TRY(read_theta(&r->text, "compress_rope_theta", &top.compress_theta, r->err));
    TRY(read_partial(&r->text, &top, r->err));
    TRY(read_object(r, "rope_scaling", "rope_scaling.", &old));
    TRY(read_object(r, "rope_parameters", "rope_parameters.", &new));
    if (!merge(&top.main_theta, old.main_theta) || !merge(&top.main_theta, new.main_theta))
        return disagree(r, "rope_theta", "rope_parameters");
    if (!merge(&top.compress_theta, old.compress_theta) ||
        !merge(&top.compress_theta, new.compress_theta))
        return disagree(r, "compress_rope_theta", "rope_parameters");
    if (!merge(&top.partial, old.partial) || !merge(&top.partial, new.partial))
        return disagree(r, "partial_rotary_factor", "rope_parameters");
    if (old.scaling && new.scaling &&
        (old.factor != new.factor || old.original != new.original || old.fast != new.fast ||
         old.slow != new.slow))
        return disagree(r, "rope_scaling", "rope_parameters");
    const struct rope *s = new.scaling ? &new : &old;
    c->rope_theta = isnan(top.main_theta) ? 10000 : top.main_theta;
    c->compress_theta = top.compress_theta; /* NAN: config_ratios says whether it is needed */
    c->yarn_factor = s->scaling ? s->factor : 1;
    c->yarn_original = s->scaling ? (uint32_t)s->original : 0;
    c->yarn_beta_fast = s->scaling ? s->fast : 32;
    c->yarn_beta_slow = s->scaling ? s->slow : 1;
    return read_rope_dim(r, top.partial);
}
