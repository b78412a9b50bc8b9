/* What a relative error of a matrix's products costs, in nats: measured by dsv4_sensitivity on the model itself, or
 * the shipped figures of another one. */
#include "convert.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_LIMIT = 64 << 20 };

/* Where nothing was measured: sums over all layers of the embedded model (models/nano, 8 layers, on 2106 tokens of
 * eval/text.txt), of which every layer gets an equal part. Another model's are others; what they share is that
 * the head and what a block gives (wo, w2) count for more than most of what goes into it. */
static const struct {
    const char *kind;
    double sum;
} shipped[] = {
    {"head", 1.5},
    {"attn.wq_a", 0.21},
    {"attn.wq_b", 0.092},
    {"attn.wkv", 0.55},
    {"attn.wo_a", 0.43},
    {"attn.wo_b", 0.52},
    {"ffn.experts.*.w1", 0.017},
    {"ffn.experts.*.w3", 0.27},
    {"ffn.experts.*.w2", 0.081},
    {"ffn.shared_experts.w1", 0.032},
    {"ffn.shared_experts.w3", 0.20},
    {"ffn.shared_experts.w2", 0.35},
    {"engram.wkv", 0.19},
};

struct sensitivity {
    const char *file; /* NULL: the shipped figures */
    const struct config *cfg;
    json_t *by_name; /* of a file: {"layers.0.attn.wq_a": 0.01} */
    double least;
};

/* ------------------------------------------------------------------ a file */

static int refuse(const struct sensitivity *s, const char *what, dsv4_err *err)
{
    return err_set(err, DSV4_REFUSED, "%s: %s; expected a file of dsv4-quantize --sensitivity",
                   s->file, what);
}

/* What was measured as nothing was too small to be seen in so short a text: a hundredth of the mean. */
static int read_list(struct sensitivity *s, const json_t *list, dsv4_err *err)
{
    double sum = 0;
    size_t i;
    json_t *item;
    if (json_array_size(list) == 0)
        return refuse(s, "no list \"matrices\"", err);
    json_array_foreach(list, i, item)
    {
        const char *name = json_string_value(json_object_get(item, "matrix"));
        const json_t *v = json_object_get(item, "sensitivity");
        double x = json_number_value(v);
        if (!name || !json_is_number(v) || !(x >= 0) || !isfinite(x))
            return refuse(s, "an item of \"matrices\" has no name or no sensitivity >= 0", err);
        if (json_object_set_new(s->by_name, name, json_real(x)) != 0)
            return err_memory(err, 0, "sensitivities");
        sum += x;
    }
    s->least = sum / (double)json_array_size(list) / 100;
    return 0;
}

static int read_file(struct sensitivity *s, dsv4_err *err)
{
    char *text;
    size_t len;
    json_t *j = NULL;
    TRY(file_read(s->file, FILE_LIMIT, &text, &len, err));
    int rc = json_open(&j, text, len, s->file, err);
    free(text);
    TRY(rc);
    const char *format = json_string_value(json_object_get(j, "format"));
    if (!format || strcmp(format, "dsv4-sensitivity") != 0 ||
        json_integer_value(json_object_get(j, "version")) != 1)
        rc = refuse(s, "no \"format\": \"dsv4-sensitivity\" of version 1", err);
    else if (!(s->by_name = json_object()))
        rc = err_memory(err, 0, "sensitivities");
    else
        rc = read_list(s, json_object_get(j, "matrices"), err);
    json_decref(j);
    return rc;
}

int sensitivity_open(struct sensitivity **out, const char *file, const struct config *cfg,
                     dsv4_err *err)
{
    struct sensitivity *s;
    TRY(mem_alloc(&s, 1, sizeof *s, "sensitivities", err));
    s->file = file;
    s->cfg = cfg;
    int rc = file ? read_file(s, err) : 0;
    if (rc != 0)
        sensitivity_close(s);
    else
        *out = s;
    return rc;
}

void sensitivity_close(struct sensitivity *s)
{
    if (!s)
        return;
    json_decref(s->by_name);
    free(s);
}

/* ------------------------------------------------------------------ asking it */

static int find_shipped(const struct sensitivity *s, const char *name, double *out, dsv4_err *err)
{
    unsigned layer;
    int n = 0;
    bool head = sscanf(name, "layers.%u.%n", &layer, &n) != 1 || n == 0;
    const char *kind = head ? name : name + n;
    for (size_t i = 0; i < sizeof shipped / sizeof *shipped; i++) {
        if (strcmp(shipped[i].kind, kind) != 0)
            continue;
        uint32_t parts = head                               ? 1
                         : strncmp(kind, "engram.", 7) == 0 ? s->cfg->n_engram
                                                            : s->cfg->n_layers;
        *out = shipped[i].sum / (parts ? parts : 1);
        return 0;
    }
    return err_set(err, DSV4_REFUSED, "no shipped figure says how sensitive %s is", name);
}

int sensitivity_find(const struct sensitivity *s, const char *name, double *out, dsv4_err *err)
{
    if (!s->file)
        return find_shipped(s, name, out, err);
    const json_t *v = json_object_get(s->by_name, name);
    if (!v)
        return err_set(err, DSV4_REFUSED, "%s: knows nothing of %s: was it measured on this model?",
                       s->file, name);
    *out = fmax(json_real_value(v), s->least);
    return 0;
}
