/* Where everything stands in the output: shards, the places of tensors in them, headers, config and index.
 * Inside a shard tensors lie in the order of the alignment they need, so that every one has it without holes,
 * which readers of safetensors refuse. */
#include "convert.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { PAGE = 4096 };

/* ------------------------------------------------------------------ places */

/* ORDER PLACES: what stands before what in a shard. Codes of a panel are multiples of 64 bytes, f16 scales of
 * 32, those of fp4 of 16. */
enum place { PLACE_CODES, PLACE_HALVES, PLACE_FP4, PLACE_8, PLACE_4, PLACE_2, PLACE_1, N_PLACES };

static enum place place_of(const struct job *j, int part)
{
    if (!j->type) {
        size_t size = dtype_size(j->to->dtype);
        return size == 8 ? PLACE_8 : size == 4 ? PLACE_4 : size == 2 ? PLACE_2 : PLACE_1;
    }
    if (part == 0)
        return PLACE_CODES;
    return j->type->format == W_E4M3   ? PLACE_1
           : j->type->format == W_E2M1 ? PLACE_FP4
                                       : PLACE_HALVES;
}

static int dims(struct bytes *b, const uint64_t *dim, uint32_t rank, dsv4_err *err)
{
    for (uint32_t i = 0; i < rank; i++)
        TRY(bytes_printf(b, err, "%s%llu", i ? "," : "", (unsigned long long)dim[i]));
    return 0;
}

/* One line of a header: part 0 the codes or all data, part 1 the scales. */
static int entry(struct bytes *b, const struct job *j, int part, dsv4_err *err)
{
    char name[MATRIX_NAME];
    const char *dtype = "U8";
    uint64_t dim[TENSOR_MAX_RANK];
    uint32_t rank = 2;
    snprintf(name, sizeof name, "%s", j->name);
    if (!j->type) {
        const struct tensor *to = part ? j->to_scale : j->to;
        dtype = dtype_name(to->dtype);
        rank = to->rank;
        memcpy(dim, to->dim, sizeof dim);
    } else {
        dim[0] = panel_count(&j->out);
        dim[1] = part ? j->out.scale_ld : j->out.code_ld;
    }
    if (part == 1) {
        scale_name(j->name, name, sizeof name);
        if (j->type && j->type->format != W_E4M3) { /* there one scale serves 16 rows */
            rank = 3;
            dim[1] = j->out.cols / GROUP;
            dim[2] = PANEL;
            dtype = j->type->format == W_E2M1 ? "U8" : "F16";
        }
    }
    TRY(bytes_printf(b, err, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", b->len > 9 ? "," : "", name,
                     dtype));
    TRY(dims(b, dim, rank, err));
    return bytes_printf(b, err, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)j->at[part],
                        (unsigned long long)(j->at[part] + j->bytes[part]));
}

static int build_shard(struct plan *p, struct shard *s, dsv4_err *err)
{
    struct bytes b = {0};
    uint64_t at = 0;
    int rc = bytes_add(&b, "\0\0\0\0\0\0\0\0{", 9, err);
    for (int place = 0; place < N_PLACES; place++)
        for (size_t i = s->first; i < s->first + s->n_jobs && rc == 0; i++)
            for (int part = 0; part < 2 && rc == 0; part++) {
                struct job *j = &p->job[i];
                if ((part == 1 && j->bytes[1] == 0) || (int)place_of(j, part) != place)
                    continue;
                j->at[part] = at;
                at += j->bytes[part];
                rc = entry(&b, j, part, err);
            }
    if (rc == 0)
        rc = bytes_text(&b, "}", err);
    while (rc == 0 && b.len % PAGE != 0)
        rc = bytes_text(&b, " ", err);
    if (rc != 0) {
        free(b.data);
        return rc;
    }
    uint64_t n = b.len - 8;
    for (int i = 0; i < 8; i++)
        b.data[i] = (char)(n >> 8 * i & 255);
    s->header = b.data;
    s->header_len = b.len;
    s->bytes = b.len + at;
    p->bytes += s->bytes;
    return 0;
}

void job_sizes(const struct job *j, uint64_t bytes[2])
{
    if (!j->type) {
        bytes[0] = j->to->bytes;
        bytes[1] = j->to_scale ? j->to_scale->bytes : 0;
        return;
    }
    uint64_t panels = panel_count(&j->out);
    bytes[0] = panels * j->out.code_ld;
    bytes[1] = panels * j->out.scale_ld;
}

/* FNV-1a */
static uint64_t mix(uint64_t h, const void *data, size_t n)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

void plan_mix(struct plan *p, const void *data, size_t n)
{
    p->identity = mix(p->identity, data, n);
}

/* Size and time of every file that is read. */
static int mix_sources(struct plan *p, dsv4_err *err)
{
    for (size_t i = 0; i < p->n; i++) {
        const char *path = p->job[i].from->path;
        struct stat st;
        if (p->source->shapes || (i > 0 && strcmp(path, p->job[i - 1].from->path) == 0))
            continue;
        if (stat(path, &st) != 0)
            return err_errno(err, DSV4_REFUSED, path, "look at");
        const uint64_t n[] = {(uint64_t)st.st_size, (uint64_t)st.st_mtim.tv_sec,
                              (uint64_t)st.st_mtim.tv_nsec};
        p->identity = mix(p->identity, n, sizeof n);
    }
    return 0;
}

int plan_layout(struct plan *p, uint64_t shard_bytes, dsv4_err *err)
{
    size_t cap = 0;
    uint64_t size = 0;
    for (size_t i = 0; i < p->n; i++) {
        struct job *j = &p->job[i];
        job_sizes(j, j->bytes);
        uint64_t n = j->bytes[0] + j->bytes[1];
        if (p->n_shards == 0 || (size > 0 && size + n > shard_bytes)) {
            TRY(mem_grow(&p->shard, &cap, p->n_shards + 1, sizeof *p->shard, "shards", err));
            p->shard[p->n_shards++] = (struct shard){.first = i};
            size = 0;
        }
        j->shard = (uint32_t)(p->n_shards - 1);
        p->shard[j->shard].n_jobs++;
        size += n;
    }
    for (size_t i = 0; i < p->n_shards; i++) {
        struct bytes name = {0};
        int rc = bytes_printf(&name, err, "model-%05zu-of-%05zu.safetensors", i + 1, p->n_shards);
        p->shard[i].name = name.data;
        TRY(rc);
        TRY(build_shard(p, &p->shard[i], err));
    }
    TRY(plan_config(p, err));
    return plan_identify(p, err);
}

int plan_identify(struct plan *p, dsv4_err *err)
{
    p->identity = 0xcbf29ce484222325u;
    for (size_t i = 0; i < p->n_shards; i++)
        plan_mix(p, p->shard[i].header, p->shard[i].header_len);
    if (p->config)
        plan_mix(p, p->config, strlen(p->config));
    return mix_sources(p, err);
}

/* ------------------------------------------------------------------ config.json */

/* A matrix, or a tensor that could be mistaken for one by a pattern. */
struct named {
    char key[MATRIX_NAME]; /* with "*" for the number of an expert */
    const struct job *job;
};

static int by_key(const void *a, const void *b)
{
    const struct named *x = a, *y = b;
    int c = strcmp(x->key, y->key);
    return c ? c : strcmp(x->job->name, y->job->name);
}

/* Adds NAME: type, and its rows where the panels have more. */
static bool put(json_t *types, json_t *rows, const char *name, const struct job *j)
{
    if (json_object_set_new(types, name, json_string(j->type->name)) != 0)
        return false;
    return j->out.rows % PANEL == 0 ||
           json_object_set_new(rows, name, json_integer(j->out.rows)) == 0;
}

static bool same(const struct job *a, const struct job *b)
{
    return a->type == b->type && (!a->type || a->out.rows == b->out.rows);
}

/* Names of one key: by the key where all are packed, those that differ from the first by their own. */
static bool put_group(json_t *types, json_t *rows, const struct named *x, size_t n)
{
    char name[MATRIX_NAME];
    bool all = n > 1;
    for (size_t i = 0; i < n; i++)
        all = all && x[i].job->type;
    if (all && !put(types, rows, x[0].key, x[0].job))
        return false;
    for (size_t i = 0; i < n; i++)
        if (x[i].job->type && !(all && same(x[0].job, x[i].job)))
            if (!matrix_name(x[i].job->name, name, sizeof name) ||
                !put(types, rows, name, x[i].job))
                return false;
    return true;
}

static bool put_types(const struct plan *p, json_t *types, json_t *rows, struct named *x)
{
    size_t n = 0;
    for (size_t i = 0; i < p->n; i++) {
        char name[MATRIX_NAME];
        if (!matrix_name(p->job[i].name, name, sizeof name))
            continue;
        x[n].job = &p->job[i];
        star_expert(x[n++].key, name);
    }
    if (n > 0)
        qsort(x, n, sizeof *x, by_key);
    for (size_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && strcmp(x[i].key, x[end].key) == 0;)
            end++;
        if (!put_group(types, rows, x + i, end - i))
            return false;
    }
    return true;
}

static json_t *table_list(const struct wtype *t)
{
    json_t *list = json_array();
    for (size_t k = 0; k < wformat_table(t->format); k++)
        if (json_array_append_new(list, json_integer(t->table[k])) != 0) {
            json_decref(list);
            return NULL;
        }
    return list;
}

/* The values of every table that is used. */
static bool put_tables(const struct plan *p, json_t *tables)
{
    for (size_t i = 0; i < p->n; i++) {
        const struct wtype *t = p->job[i].type;
        if (!t || wformat_table(t->format) == 0 || json_object_get(tables, t->name))
            continue;
        if (json_object_set_new(tables, t->name, table_list(t)) != 0)
            return false;
    }
    return true;
}

/* The quantization_config, or NULL: out of memory. */
static json_t *packed_how(const struct plan *p, struct named *x)
{
    int block = (int)p->source->cfg->fp8_block;
    json_t *q = json_pack("{s:s, s:i, s:i, s:i, s:[i,i], s:{}, s:{}, s:{}}", "quant_method", "dsv4",
                          "layout", 1, "panel", (int)PANEL, "group", (int)GROUP,
                          "weight_block_size", block, block, "tables", "rows", "types");
    json_t *rows = json_object_get(q, "rows");
    if (!q || !put_tables(p, json_object_get(q, "tables")) ||
        !put_types(p, json_object_get(q, "types"), rows, x)) {
        json_decref(q);
        return NULL;
    }
    if (json_object_size(rows) == 0)
        json_object_del(q, "rows");
    return q;
}

int plan_config(struct plan *p, dsv4_err *err)
{
    const struct source *s = p->source;
    static const char key[] = "quantization_config";
    json_t *root;
    struct named *x;
    TRY(mem_alloc(&x, p->n, sizeof *x, "names", err));
    int rc = json_open(&root, s->config.text, s->config.len, s->config.where, err);
    if (rc != 0) {
        free(x);
        return rc;
    }
    json_t *q = packed_how(p, x), *text = json_object_get(root, "text_config");
    free(x);
    if (text)
        json_object_del(text, key); /* it stands beside the text model's numbers */
    if (!q || json_object_set_new(root, key, q) != 0 ||
        (p->pruning && !pruning_config(p->pruning, root)))
        rc = err_memory(err, 0, "a config");
    free(p->config);
    p->config = NULL;
    if (rc == 0)
        rc = json_write(&p->config, root, JSON_INDENT(1), err);
    json_decref(root);
    return rc;
}

/* ------------------------------------------------------------------ model.safetensors.index.json */

static int index_line(const struct plan *p, const char *name, uint32_t shard, bool first,
                      struct bytes *out, dsv4_err *err)
{
    return bytes_printf(out, err, "%s\n  \"%s\": \"%s\"", first ? "" : ",", name,
                        p->shard[shard].name);
}

int plan_index(const struct plan *p, char *const *sum, struct bytes *out, dsv4_err *err)
{
    char name[MATRIX_NAME];
    uint64_t total = 0;
    for (size_t i = 0; i < p->n; i++)
        total += p->job[i].bytes[0] + p->job[i].bytes[1];
    TRY(bytes_printf(out, err, "{\n \"metadata\": {\n  \"total_size\": %llu,\n  \"sums\": {",
                     (unsigned long long)total));
    const char *comma = "";
    for (size_t i = 0; i < p->n_shards; i++)
        if (sum[i][0]) {
            TRY(bytes_printf(out, err, "%s\n   \"%s\": \"%s\"", comma, p->shard[i].name, sum[i]));
            comma = ",";
        }
    TRY(bytes_text(out, "\n  }\n },\n \"weight_map\": {", err));
    for (size_t i = 0; i < p->n; i++) {
        const struct job *j = &p->job[i];
        TRY(index_line(p, j->name, j->shard, i == 0, out, err));
        if (j->bytes[1] > 0 && scale_name(j->name, name, sizeof name))
            TRY(index_line(p, name, j->shard, false, out, err));
    }
    return bytes_text(out, "\n }\n}\n", err);
}
