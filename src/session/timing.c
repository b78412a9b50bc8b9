/* Where the time of steps goes: what batch.c adds up, as JSON text. */
#include "session.h"

#include <jansson.h>

/* ORDER OPS: enum op (model.h) */
static const char *const op_name[N_OPS] = {
    "embedding",     "mHC attention", "mHC experts", "attention in", "queries", "index", "attend",
    "attention out", "router",        "experts up",  "experts down", "Engram",  "head"};

static json_t *seconds_of(const double *spent)
{
    json_t *list = json_array();
    for (int i = 0; list && i < N_OPS; i++)
        if (json_array_append_new(list, json_real(spent[i])) != 0) {
            json_decref(list);
            return NULL;
        }
    return list;
}

static json_t *timings_json(const struct batch *b)
{
    uint32_t n = b->m->cfg->n_layers + 1;
    double seconds = 0;
    for (size_t i = 0; i < (size_t)n * N_OPS; i++)
        seconds += b->spent[i];
    json_t *names = json_array(), *layers = json_array();
    bool ok = names && layers;
    for (int i = 0; ok && i < N_OPS; i++)
        ok = json_array_append_new(names, json_string(op_name[i])) == 0;
    for (uint32_t i = 0; ok && i < n; i++)
        ok = json_array_append_new(layers, seconds_of(b->spent + (size_t)i * N_OPS)) == 0;
    json_t *j =
        ok ? json_pack("{s:I, s:I, s:I, s:f, s:O, s:O}", "steps", (json_int_t)b->steps, "rows",
                       (json_int_t)b->rows_timed, "barriers", (json_int_t)b->barriers, "seconds",
                       seconds, "operators", names, "layers", layers)
           : NULL;
    json_decref(names);
    json_decref(layers);
    return j;
}

int dsv4_timings(const dsv4_engine *e, char **json, dsv4_err *err)
{
    *json = NULL;
    if (!e->batch->spent)
        return err_set(err, DSV4_USAGE, "only synthetic engines keep timings");
    json_t *j = timings_json(e->batch);
    int rc = json_write(json, j, JSON_COMPACT, err);
    json_decref(j);
    return rc;
}

void dsv4_timings_reset(dsv4_engine *e)
{
    struct batch *b = e->batch;
    for (size_t i = 0; b->spent && i < ((size_t)b->m->cfg->n_layers + 1) * N_OPS; i++)
        b->spent[i] = 0;
    b->steps = b->rows_timed = b->barriers = 0;
}
