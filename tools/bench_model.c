/* What the library says about a model and its layers. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ what the library tells */

static uint64_t number(const json_t *j, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(j, key));
}

static void word(char *out, size_t size, const json_t *j, const char *key)
{
    const char *s = json_string_value(json_object_get(j, key));
    snprintf(out, size, "%s", s ? s : "");
}

static int64_t number_or_none(const json_t *j, const char *key)
{
    const json_t *v = json_object_get(j, key);
    return json_is_integer(v) ? (int64_t)json_integer_value(v) : -1;
}

static void read_layer(struct bench_layer *l, const json_t *j)
{
    l->id = (uint32_t)number(j, "layer");
    word(l->attention, sizeof l->attention, j, "attention");
    word(l->experts, sizeof l->experts, j, "experts");
    l->engram = json_is_true(json_object_get(j, "engram"));
    l->cache_of = number_or_none(j, "cache_of");
    l->index_of = number_or_none(j, "index_of");
    l->bytes_per_token = number(j, "bytes_per_token");
    l->expert_bytes = number(j, "expert_bytes");
    l->multiply_adds = number(j, "multiply_adds");
    l->ratio = number(j, "ratio");
    l->chosen = number(j, "chosen");
    l->index_multiply_adds = number(j, "index_multiply_adds");
    l->index = l->index_multiply_adds > 0;
}

static uint64_t item(const json_t *plan, const char *what)
{
    size_t i;
    const json_t *j;
    json_array_foreach(json_object_get(plan, "items"), i, j)
    {
        const char *name = json_string_value(json_object_get(j, "what"));
        if (name && strcmp(name, what) == 0)
            return number(j, "bytes");
    }
    return 0;
}

static int read_plan(struct bench_model *m, const json_t *j, dsv4_err *err)
{
    const json_t *list = json_object_get(j, "layers");
    TRY(mem_alloc(&m->layer, json_array_size(list), sizeof *m->layer, "layers", err));
    m->n_layers = (uint32_t)json_array_size(list);
    for (uint32_t i = 0; i < m->n_layers; i++)
        read_layer(&m->layer[i], json_array_get(list, i));
    word(m->family, sizeof m->family, j, "family");
    m->entry_multiply_adds = number(j, "multiply_adds_per_entry");
    m->window = number(j, "window");
    m->window_row_bytes = number(j, "window_row_bytes");
    m->entry_bytes = number(j, "entry_bytes");
    m->key_bytes = number(j, "key_bytes");
    m->vocab = number(j, "vocabulary");
    m->experts = number(j, "experts");
    m->held = number(j, "experts_held");
    m->top_k = number(j, "experts_per_token");
    m->context = number(j, "context");
    m->head_bytes = number(j, "head_bytes");
    m->head_multiply_adds = number(j, "head_multiply_adds");
    m->weights = item(j, "weights");
    m->tables = item(j, "Engram tables");
    m->caches = item(j, "caches");
    m->scratch = item(j, "buffers of a step");
    m->other = item(j, "the rest");
    m->needed = number(j, "needed");
    m->available = number(j, "available");
    return 0;
}

int bench_model_read(struct bench_model *m, const char *config, size_t len, const dsv4_slice *slice,
                     const dsv4_options *opt, dsv4_err *err)
{
    char *text;
    json_error_t je;
    *m = (struct bench_model){0};
    TRY(dsv4_plan_synthetic(config, len, slice, opt, &text, err));
    json_t *j = json_loads(text, 0, &je);
    dsv4_free(text);
    TRY(json_made(j, err));
    int rc = read_plan(m, j, err);
    json_decref(j);
    return rc;
}

void bench_model_release(struct bench_model *m)
{
    free(m->layer);
    *m = (struct bench_model){0};
}

/* ------------------------------------------------------------------ what a step costs at least */

/* Compressed entries that a row at position t attends in a layer. */
static uint64_t entries(const struct bench_layer *l, uint64_t t)
{
    uint64_t n = l->ratio ? (t + 1) / l->ratio : 0;
    return l->chosen && l->chosen < n ? l->chosen : n;
}

uint64_t bench_bytes(const struct bench_model *m, uint64_t depth)
{
    uint64_t sum = m->head_bytes, near = depth + 1 < m->window ? depth + 1 : m->window;
    for (uint32_t i = 0; i < m->n_layers; i++) {
        const struct bench_layer *l = &m->layer[i];
        sum += l->bytes_per_token + near * m->window_row_bytes + entries(l, depth) * m->entry_bytes;
        if (l->index)
            sum += (depth + 1) / l->ratio * m->key_bytes;
    }
    return sum;
}

double bench_multiply_adds(const struct bench_model *m, uint64_t rows, uint64_t depth)
{
    double sum = (double)m->head_multiply_adds; /* of one row */
    for (uint32_t i = 0; i < m->n_layers; i++) {
        const struct bench_layer *l = &m->layer[i];
        sum += (double)l->multiply_adds * (double)rows;
        for (uint64_t t = depth; t < depth + rows; t++) {
            uint64_t near = t + 1 < m->window ? t + 1 : m->window;
            sum += (double)((near + entries(l, t)) * m->entry_multiply_adds);
            if (l->index)
                sum += (double)((t + 1) / l->ratio * l->index_multiply_adds);
        }
    }
    return sum;
}
