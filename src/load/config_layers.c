/* What each layer is, as config.json says it: compression ratios and hash routing in both
 * spellings, who owns the shared caches and selections of V4.1, and where Engram tables stand. */
#include "parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Lists hold an entry for each drafting block behind those of the layers; more would be a mistake. */
#define TRAILING_MAX 64

/* ------------------------------------------------------------------ ratios */

static bool ratio_known(enum family family, int64_t ratio)
{
    if (family == FAMILY_V4)
        return ratio == 0 || ratio == 4 || ratio == 128;
    return ratio >= 0 && ratio <= 2;
}

/* compress_ratios: one number a layer, then those of the drafting blocks. */
static int read_ratio_list(const struct reader *r, bool *found)
{
    static const char name[] = "compress_ratios";
    struct config *c = r->c;
    int64_t *list;
    size_t n;
    TRY(field_wholes(&r->text, name, c->n_layers, c->n_layers + TRAILING_MAX, 0, 1 << 20, &list, &n,
                     r->err));
    *found = list != NULL;
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++) {
        if (!ratio_known(c->family, list[i]))
            rc = item_refuse(&r->text, name, i, json_array_get(field_get(&r->text, name), i),
                             r->err, c->family == FAMILY_V4 ? "0, 4 or 128" : "0, 1 or 2");
        else if (i < c->n_layers)
            c->ratio[i] = (uint32_t)list[i];
    }
    /* The V4 releases with DSpark count their drafting blocks here and nowhere else. */
    if (c->family == FAMILY_V4 && c->dspark_block && n > c->n_layers + c->n_mtp)
        c->n_mtp = (uint32_t)(n - c->n_layers);
    free(list);
    return rc;
}

/* The rate of a layer type of V4: compress_rates, an older single number, or the usual one. */
static int read_rate(const struct reader *r, const char *type, const char *older, uint32_t rate)
{
    const json_t *rates;
    TRY(field_object(&r->text, "compress_rates", &rates, r->err));
    struct fields in = {rates, r->text.where, "compress_rates."};
    int64_t x = rate;
    if (rates)
        TRY(field_whole(&in, type, rate, rate, &x, NULL, r->err));
    return field_whole(&r->text, older, rate, rate, &x, NULL, r->err);
}

/* layer_types of V4, in the words of Transformers. */
static int read_layer_types(const struct reader *r, bool *found, bool have_ratios)
{
    static const struct {
        const char *type;
        uint32_t ratio;
    } types[] = {
        {"sliding_attention", 0},
        {"compressed_sparse_attention", 4},
        {"heavily_compressed_attention", 128},
    };
    static const char name[] = "layer_types";
    struct config *c = r->c;
    const json_t *list;
    TRY(field_list(&r->text, name, &list, r->err));
    *found = list != NULL;
    if (!list)
        return 0;
    if (json_array_size(list) < c->n_layers || json_array_size(list) > c->n_layers + TRAILING_MAX)
        return field_refuse(&r->text, name, list, r->err, "a list of %u, one a layer", c->n_layers);
    TRY(read_rate(r, types[1].type, "compress_rate_csa", types[1].ratio));
    TRY(read_rate(r, types[2].type, "compress_rate_hca", types[2].ratio));
    for (uint32_t l = 0; l < c->n_layers; l++) {
        const json_t *v = json_array_get(list, l);
        size_t k = 0;
        while (k < 3 && (!json_is_string(v) || strcmp(json_string_value(v), types[k].type) != 0))
            k++;
        if (k == 3)
            return item_refuse(&r->text, name, l, v, r->err,
                               "sliding_attention, compressed_sparse_attention or "
                               "heavily_compressed_attention");
        if (have_ratios && c->ratio[l] != types[k].ratio)
            return item_refuse(&r->text, name, l, v, r->err,
                               "the layer type of ratio %u, as compress_ratios says", c->ratio[l]);
        c->ratio[l] = types[k].ratio;
    }
    return 0;
}

/* ------------------------------------------------------------------ hash routing */

/* mlp_layer_types: hash_moe up to some layer, moe from there. */
static int read_mlp_types(const struct reader *r, bool *found)
{
    static const char name[] = "mlp_layer_types";
    struct config *c = r->c;
    const json_t *list;
    TRY(field_list(&r->text, name, &list, r->err));
    *found = list != NULL;
    if (!list)
        return 0;
    if (json_array_size(list) < c->n_layers || json_array_size(list) > c->n_layers + TRAILING_MAX)
        return field_refuse(&r->text, name, list, r->err, "a list of %u, one a layer", c->n_layers);
    c->n_hash_layers = 0;
    for (uint32_t l = 0; l < c->n_layers; l++) {
        const json_t *v = json_array_get(list, l);
        const char *type = json_string_value(v);
        if (type && strcmp(type, "hash_moe") == 0 && c->n_hash_layers == l)
            c->n_hash_layers++;
        else if (!type || strcmp(type, "moe") != 0)
            return item_refuse(&r->text, name, l, v, r->err,
                               "moe, or hash_moe in the first layers only");
    }
    return 0;
}

static int read_hash_layers(const struct reader *r)
{
    static const char name[] = "num_hash_layers";
    struct config *c = r->c;
    int64_t n = 0;
    bool number, list;
    /* V4.1 has none; a file that asks for some is not of this family. */
    TRY(field_whole(&r->text, name, 0, c->family == FAMILY_V4 ? c->n_layers : 0, &n, &number,
                    r->err));
    if (c->family == FAMILY_V41)
        return 0;
    TRY(read_mlp_types(r, &list));
    if (!number && !list)
        return field_refuse(&r->text, name, NULL, r->err, "a whole number from 0 to %u",
                            c->n_layers);
    if (number && list && n != c->n_hash_layers)
        return field_refuse(&r->text, name, field_get(&r->text, name), r->err,
                            "%u, as mlp_layer_types says", c->n_hash_layers);
    if (number)
        c->n_hash_layers = (uint32_t)n;
    return 0;
}

int config_ratios(const struct reader *r)
{
    struct config *c = r->c;
    bool list, types = false;
    TRY(mem_alloc(&c->ratio, c->n_layers, sizeof *c->ratio, "the layers' ratios", r->err));
    TRY(read_ratio_list(r, &list));
    /* V4.1 derives its layer_types from the sources: nothing new stands there. */
    if (c->family == FAMILY_V4)
        TRY(read_layer_types(r, &types, list));
    if (!list && !types)
        return field_refuse(&r->text, "compress_ratios", NULL, r->err,
                            "a list of %u, one a layer (or layer_types)", c->n_layers);
    bool compressed = false;
    for (uint32_t l = 0; l < c->n_layers; l++)
        compressed = compressed || c->ratio[l] != 0;
    if (compressed && isnan(c->compress_theta))
        return field_refuse(&r->text, "compress_rope_theta", NULL, r->err,
                            "a number from 2 to 1e12");
    if (isnan(c->compress_theta))
        c->compress_theta = c->rope_theta;
    return read_hash_layers(r);
}

/* ------------------------------------------------------------------ Engram */

int config_engram_layers(const struct reader *r)
{
    static const char ids[] = "engram_layer_ids", rows[] = "engram_num_embeddings";
    struct config *c = r->c;
    int64_t *layer, *row = NULL, pad = 2, also = 2;
    size_t n, n_row;
    TRY(field_wholes(&r->text, ids, 0, c->n_layers, 0, c->n_layers - 1, &layer, &n, r->err));
    if (n == 0) {
        free(layer);
        return 0;
    }
    int rc = field_wholes(&r->text, rows, n, n, 1, INT64_C(1) << 40, &row, &n_row, r->err);
    if (rc == 0 && n_row != n)
        rc = field_refuse(&r->text, rows, NULL, r->err, "a list of %zu, one a layer of %s", n, ids);
    if (rc == 0)
        rc = mem_alloc(&c->engram_layer, n, sizeof *c->engram_layer, "the config", r->err);
    if (rc == 0)
        rc = mem_alloc(&c->engram_rows, n, sizeof *c->engram_rows, "the config", r->err);
    for (size_t i = 0; i < n && rc == 0; i++) {
        if (i > 0 && layer[i] <= layer[i - 1])
            rc = item_refuse(&r->text, ids, i, json_array_get(field_get(&r->text, ids), i), r->err,
                             "more than the one before");
        c->engram_layer[i] = (uint32_t)layer[i];
        c->engram_rows[i] = (uint64_t)row[i];
    }
    free(layer);
    free(row);
    if (rc != 0)
        return rc;
    c->n_engram = (uint32_t)n;
    bool a, b;
    TRY(field_whole(&r->text, "engram_pad_token_id", 0, c->vocab - 1, &pad, &a, r->err));
    TRY(field_whole(&r->text, "engram_pad_id", 0, c->vocab - 1, &also, &b, r->err));
    if (a && b && pad != also)
        return field_refuse(&r->text, "engram_pad_id", field_get(&r->text, "engram_pad_id"), r->err,
                            "%lld, as engram_pad_token_id says", (long long)pad);
    c->engram_pad = (int32_t)(b ? also : pad);
    if (c->engram_pad >= (int64_t)c->vocab)
        return field_refuse(&r->text, "engram_pad_token_id", NULL, r->err,
                            "a token id from 0 to %u", c->vocab - 1);
    return 0;
}

/* ------------------------------------------------------------------ sources of V4.1 */

/* Fills `source` [n_layers] from the ascending list `name`: the last listed layer up to each one,
 * of the same ratio; -1 at ratio 0. */
static int read_sources(const struct reader *r, const char *name, int32_t *source)
{
    const struct config *c = r->c;
    int64_t *list;
    size_t n;
    TRY(field_wholes(&r->text, name, 0, c->n_layers, 0, c->n_layers - 1, &list, &n, r->err));
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++) {
        const json_t *v = json_array_get(field_get(&r->text, name), i);
        if (i > 0 && list[i] <= list[i - 1])
            rc = item_refuse(&r->text, name, i, v, r->err, "more than the one before");
        else if (c->ratio[list[i]] == 0)
            rc = item_refuse(&r->text, name, i, v, r->err, "a layer of a ratio above 0");
    }
    size_t next = 0;
    for (uint32_t l = 0; l < c->n_layers && rc == 0; l++) {
        while (next < n && list[next] <= (int64_t)l)
            next++;
        source[l] = c->ratio[l] == 0 ? -1 : next == 0 ? -2 : (int32_t)list[next - 1];
        if (source[l] == -2 || (source[l] >= 0 && c->ratio[source[l]] != c->ratio[l]))
            rc = field_refuse(&r->text, name, field_get(&r->text, name), r->err,
                              "a source of ratio %u at or before layer %u", c->ratio[l], l);
    }
    free(list);
    return rc;
}

static bool is_source(const int32_t *source, uint32_t layer)
{
    return source[layer] == (int32_t)layer;
}

/* The layer whose best blocks bound all later selections; as in Transformers the last KV source
 * when nothing is said, none when negative. */
static int read_candidate(const struct reader *r)
{
    static const char name[] = "candidate_source_layer_id";
    struct config *c = r->c;
    int64_t id = -1;
    bool found;
    TRY(field_whole(&r->text, name, INT32_MIN, c->n_layers - 1, &id, &found, r->err));
    for (uint32_t l = 0; l < c->n_layers && !found; l++)
        if (is_source(c->kv_source, l))
            id = l;
    c->candidate_source = id < 0 ? -1 : (int32_t)id;
    if (id < 0)
        return 0;
    if (!is_source(c->index_source, (uint32_t)id))
        return field_refuse(&r->text, name, field_get(&r->text, name), r->err,
                            "one of index_source_layer_ids");
    for (uint32_t l = (uint32_t)id; l < c->n_layers; l++)
        if (is_source(c->index_source, l) && c->ratio[l] != c->ratio[id])
            return field_refuse(&r->text, name, field_get(&r->text, name), r->err,
                                "a layer of the ratio of the later index source %u", l);
    return 0;
}

int config_sources(const struct reader *r)
{
    struct config *c = r->c;
    TRY(mem_alloc(&c->kv_source, c->n_layers, sizeof *c->kv_source, "the config", r->err));
    TRY(mem_alloc(&c->index_source, c->n_layers, sizeof *c->index_source, "the config", r->err));
    c->candidate_source = -1;
    if (c->family == FAMILY_V4) {
        for (uint32_t l = 0; l < c->n_layers; l++) {
            c->kv_source[l] = c->ratio[l] ? (int32_t)l : -1;
            c->index_source[l] = c->ratio[l] == 4 ? (int32_t)l : -1;
        }
        return 0;
    }
    TRY(read_sources(r, "kv_source_layer_ids", c->kv_source));
    TRY(read_sources(r, "index_source_layer_ids", c->index_source));
    /* Index keys lie in the indexer of the KV source, which has one only if it selects itself. */
    for (uint32_t l = 0; l < c->n_layers; l++)
        if (is_source(c->index_source, l) && !is_source(c->index_source, (uint32_t)c->kv_source[l]))
            return field_refuse(&r->text, "index_source_layer_ids",
                                field_get(&r->text, "index_source_layer_ids"), r->err,
                                "to hold %d, the KV source of index source %u", c->kv_source[l], l);
    return read_candidate(r);
}
