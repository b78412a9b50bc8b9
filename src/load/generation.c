/* generation_config.json: how the makers of a model sample from it. */
#include "parts.h"

#define GENERATION_MAX ((size_t)1 << 20)

static int read_generation(struct generation_defaults *g, const struct fields *f, dsv4_err *err)
{
    double temperature = (double)g->temperature, top_p = (double)g->top_p,
           repetition = (double)g->repetition;
    int64_t top_k = g->top_k;
    bool do_sample = g->do_sample;
    TRY(field_bool(f, "do_sample", &do_sample, NULL, err));
    TRY(field_real(f, "temperature", 0, 100, &temperature, NULL, err));
    TRY(field_real(f, "top_p", 1e-6, 1, &top_p, NULL, err));
    TRY(field_whole(f, "top_k", 0, INT32_MAX, &top_k, NULL, err));
    TRY(field_real(f, "repetition_penalty", 1e-3, 1e3, &repetition, NULL, err));
    *g = (struct generation_defaults){do_sample, (float)temperature, (float)top_p, (int)top_k,
                                      (float)repetition};
    return 0;
}

int generation_parse(struct generation_defaults *g, const char *json, size_t len, const char *where,
                     dsv4_err *err)
{
    if (len > GENERATION_MAX)
        return err_set(err, DSV4_REFUSED, "%s: %zu bytes; expected at most %zu", where, len,
                       GENERATION_MAX);
    json_t *root;
    TRY(json_open(&root, json, len, where, err));
    struct fields f = {root, where, ""};
    int rc = json_is_object(root) ? read_generation(g, &f, err)
                                  : err_set(err, DSV4_REFUSED, "%s: expected a JSON object", where);
    json_decref(root);
    return rc;
}
