/* Fewer experts in every layer. Those stay that gave most to a calibration text: the largest sums of the norms of
 * what experts give, weighted by the router, which is what a layer's output loses without them. The others' tensors
 * go, those that stay get new numbers in the old order, and the router keeps their rows and biases.
 *
 * In layers that route by token id a token keeps its experts that stay; in the place of each other one it gets the
 * expert, among those it has not, whose row of the router is most like (cosine) that of the one that goes. That row
 * is all such a layer learns about which inputs an expert is for: it decides how much an expert's output
 * counts, so the most similar one is weighted as the lost one was. */
#include "convert.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* An expert and what it is ranked by. */
struct rank {
    double value;
    uint32_t expert;
};

/* Largest first, NaN last, equal ones by number. */
static int by_rank(const void *a, const void *b)
{
    const struct rank *x = a, *y = b;
    if (isnan(x->value) || isnan(y->value))
        return isnan(x->value) - isnan(y->value);
    if (x->value != y->value)
        return x->value > y->value ? -1 : 1;
    return x->expert < y->expert ? -1 : x->expert > y->expert;
}

static int by_number(const void *a, const void *b)
{
    const uint32_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* The number that the expert has from now on; -1: it goes. */
static int64_t new_number(const struct pruning *p, uint32_t layer, uint32_t expert)
{
    const uint32_t *kept = pruning_kept(p, layer);
    const uint32_t *at = bsearch(&expert, kept, p->kept, sizeof *kept, by_number);
    return at ? at - kept : -1;
}

/* ------------------------------------------------------------------ who inherits a token */

/* Rows of a matrix, `pick`[n] of them (NULL: the first n), as floats. */
static int read_rows(float *out, const struct source *s, const struct wmat *w, const uint32_t *pick,
                     uint32_t n, dsv4_err *err)
{
    struct window window;
    size_t bytes[2] = {0, 0};
    window_needs(bytes, w);
    int rc = window_open(&window, bytes, err);
    for (uint32_t i = 0; i < n && rc == 0; i++)
        rc = window_floats(&window, s, w, pick ? pick[i] : i, out + (size_t)i * w->cols, err);
    window_close(&window);
    return rc;
}

static int router_rows(float **out, const struct source *s, uint32_t layer, dsv4_err *err)
{
    char name[MATRIX_NAME];
    struct wmat w;
    snprintf(name, sizeof name, "layers.%u.ffn.gate.weight", layer);
    TRY(matrix_find(&w, s->store, s->cfg, name, s->cfg->n_experts, s->cfg->d, err));
    TRY(mem_alloc(out, w.rows, w.cols * sizeof **out, "rows of a router", err));
    return read_rows(*out, s, &w, NULL, w.rows, err);
}

static double dot(const float *a, const float *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

/* Heirs of one expert, new numbers, the most similar first. */
static void rank_heirs(uint32_t *heir, struct rank *rank, const struct pruning *p, uint32_t layer,
                       uint32_t expert, const float *rows, size_t d)
{
    const uint32_t *kept = pruning_kept(p, layer);
    const float *x = rows + expert * d;
    for (uint32_t i = 0; i < p->kept; i++) {
        const float *y = rows + kept[i] * d;
        double size = sqrt(dot(y, y, d));
        rank[i] = (struct rank){size > 0 ? dot(x, y, d) / size : 0, i};
    }
    qsort(rank, p->kept, sizeof *rank, by_rank);
    for (uint32_t i = 0; i < p->kept; i++)
        heir[i] = rank[i].expert;
}

static int find_heirs(struct pruning *p, const struct source *s, dsv4_err *err)
{
    struct rank *rank = NULL;
    size_t table = (size_t)p->before * p->kept;
    p->n_hash = s->cfg->n_hash_layers;
    TRY(mem_alloc(&p->heir, p->n_hash * table, sizeof *p->heir, "heirs of experts", err));
    TRY(mem_alloc(&rank, p->kept, sizeof *rank, "heirs of experts", err));
    int rc = 0;
    for (uint32_t l = 0; l < p->n_hash && rc == 0; l++) {
        float *rows = NULL;
        rc = router_rows(&rows, s, l, err);
        for (uint32_t e = 0; e < p->before && rc == 0; e++)
            if (new_number(p, l, e) < 0)
                rank_heirs(p->heir + l * table + (size_t)e * p->kept, rank, p, l, e, rows,
                           s->cfg->d);
        free(rows);
    }
    free(rank);
    return rc;
}

/* ------------------------------------------------------------------ choosing */

/* "128" or "50%" of `all`, rounded up; 0: neither. */
static uint64_t parse_count(const char *text, uint32_t all)
{
    char *end;
    errno = 0;
    double x = strtod(text, &end);
    if (end == text || errno || !(x > 0) || x > UINT32_MAX)
        return 0;
    if (strcmp(end, "%") == 0)
        return x <= 100 ? (uint64_t)ceil(x * all / 100) : 0;
    return *end == 0 && x == floor(x) ? (uint64_t)x : 0;
}

static int check_count(uint64_t *kept, const char *want, const struct config *c, dsv4_err *err)
{
    *kept = parse_count(want, c->n_experts);
    if (*kept == 0 || *kept > c->n_experts)
        return err_set(err, DSV4_USAGE,
                       "--prune-experts: \"%.40s\"; expected how many of the %u experts of a layer "
                       "stay, as 1 to %u or as 1%% to 100%%",
                       want, c->n_experts, c->n_experts);
    if (*kept < c->top_k)
        return err_set(err, DSV4_USAGE,
                       "--prune-experts: \"%.40s\" is %llu of %u experts, but every token goes "
                       "to %u (num_experts_per_tok)",
                       want, (unsigned long long)*kept, c->n_experts, c->top_k);
    return 0;
}

static int choose_layer(struct pruning *p, struct rank *rank, uint32_t layer,
                        const struct store *calibration, dsv4_err *err)
{
    char name[MATRIX_NAME];
    const float *norm;
    double all = 0, stays = 0;
    uint32_t *kept = p->expert + (size_t)layer * p->kept;
    snprintf(name, sizeof name, "layers.%u.ffn.experts.norm", layer);
    TRY(importance_vector(&norm, calibration, name, p->before, err));
    for (uint32_t e = 0; e < p->before; e++) {
        rank[e] = (struct rank){(double)norm[e], e};
        all += (double)norm[e];
    }
    qsort(rank, p->before, sizeof *rank, by_rank);
    for (uint32_t i = 0; i < p->kept; i++) {
        kept[i] = rank[i].expert;
        stays += rank[i].value;
        p->unseen += rank[i].value == 0;
    }
    qsort(kept, p->kept, sizeof *kept, by_number);
    p->share[layer] = all > 0 ? stays / all : 1;
    return 0;
}

static int pruning_open(struct pruning **out, const struct config *c, uint64_t kept, dsv4_err *err)
{
    struct pruning *p;
    *out = NULL;
    TRY(mem_alloc(&p, 1, sizeof *p, "which experts stay", err));
    *p = (struct pruning){
        .before = c->n_experts,
        .kept = (uint32_t)kept,
        .n_layers = c->n_layers,
        /* DSpark blocks have experts and a count of their own; those of an MTP layer are as many
                           * as the others, but no calibration sees them. */
        .drafts_go = c->dspark_experts == 0};
    int rc = mem_alloc(&p->expert, (size_t)p->n_layers * p->kept, sizeof *p->expert,
                       "which experts stay", err);
    if (rc == 0)
        rc = mem_alloc(&p->share, p->n_layers, sizeof *p->share, "which experts stay", err);
    if (rc == 0)
        rc = mem_alloc(&p->made, p->n_layers, MADE_A_LAYER * sizeof *p->made, "routers", err);
    if (rc != 0)
        pruning_close(p);
    else
        *out = p;
    return rc;
}

int pruning_choose(struct pruning **out, const struct source *s, const struct store *calibration,
                   const char *want, dsv4_err *err)
{
    struct pruning *p;
    struct rank *rank = NULL;
    uint64_t kept;
    *out = NULL;
    TRY(check_count(&kept, want, s->cfg, err));
    TRY(pruning_open(&p, s->cfg, kept, err));
    int rc = mem_alloc(&rank, p->before, sizeof *rank, "which experts stay", err);
    for (uint32_t l = 0; l < p->n_layers && rc == 0; l++)
        rc = choose_layer(p, rank, l, calibration, err);
    free(rank);
    if (rc == 0)
        rc = find_heirs(p, s, err);
    if (rc != 0)
        pruning_close(p);
    else
        *out = p;
    return rc;
}

void pruning_close(struct pruning *p)
{
    if (!p)
        return;
    free(p->expert);
    free(p->share);
    free(p->heir);
    free(p->made);
    free(p);
}

const uint32_t *pruning_kept(const struct pruning *p, uint32_t layer)
{
    return p->expert + (size_t)layer * p->kept;
}

/* ------------------------------------------------------------------ what becomes of a tensor */

/* The number behind `prefix`, followed by a dot; where the name goes on, or NULL. */
static const char *number_after(const char *name, const char *prefix, uint32_t below, uint32_t *out)
{
    size_t n = strlen(prefix);
    if (strncmp(name, prefix, n) != 0)
        return NULL;
    name += n;
    n = strspn(name, "0123456789");
    if (n == 0 || n > 9 || name[n] != '.')
        return NULL;
    *out = (uint32_t)strtoul(name, NULL, 10);
    return *out < below ? name + n + 1 : NULL;
}

enum fate pruning_fate(const struct pruning *p, const char *name, uint32_t *layer, char *renamed)
{
    uint32_t expert;
    *layer = 0;
    if (p->drafts_go && tensor_class_of(name) == CLASS_DRAFT)
        return FATE_GOES;
    const char *in_layer = number_after(name, "layers.", p->n_layers, layer);
    if (!in_layer)
        return FATE_STAYS;
    if (strncmp(in_layer, "ffn.gate.", 9) == 0)
        return strcmp(in_layer + 9, "scale") == 0 ? FATE_GOES : FATE_ROUTER;
    const char *rest = number_after(in_layer, "ffn.experts.", UINT32_MAX, &expert);
    if (!rest)
        return FATE_STAYS;
    int64_t number = new_number(p, *layer, expert);
    if (number < 0)
        return FATE_GOES;
    snprintf(renamed, MATRIX_NAME, "layers.%u.ffn.experts.%u.%s", *layer, (unsigned)number, rest);
    return FATE_RENUMBERED;
}

/* ------------------------------------------------------------------ routers */

static bool is_hash(const struct tensor *t)
{
    const char *dot = strrchr(t->name, '.');
    return dot && strcmp(dot, ".tid2eid") == 0;
}

/* Rows of bytes that can be moved as they are. */
static bool is_plain(const struct tensor *t)
{
    return t->dtype == DTYPE_F32 || t->dtype == DTYPE_BF16 || t->dtype == DTYPE_F16;
}

int pruning_made(struct pruning *p, const struct source *s, const struct tensor *t,
                 const struct tensor **out, dsv4_err *err)
{
    if (p->n_made == (size_t)p->n_layers * MADE_A_LAYER)
        return err_set(err, DSV4_REFUSED, "%s: %s: more than %d tensors in each router", t->path,
                       t->stored, MADE_A_LAYER);
    struct tensor *m = &p->made[p->n_made];
    *m = *t;
    if (is_hash(t)) {
        if ((t->dtype != DTYPE_I64 && t->dtype != DTYPE_I32) || t->rank != 2 ||
            t->dim[1] != s->cfg->top_k)
            return tensor_refuse(t, "I64 or I32 [vocabulary, experts of a token]", err);
    } else if (is_plain(t)) {
        if (t->rank == 0 || t->dim[0] != p->before)
            return tensor_refuse(t, "a row for every expert", err);
        m->dim[0] = p->kept;
        m->bytes = t->bytes / p->before * p->kept;
    } else { /* rows that share scales: as floats */
        struct wmat w;
        TRY(matrix_find(&w, s->store, s->cfg, t->name, p->before, s->cfg->d, err));
        m->dtype = DTYPE_F32;
        m->blocks = NULL;
        m->rank = 2;
        m->dim[0] = p->kept;
        m->dim[1] = w.cols;
        m->bytes = (uint64_t)p->kept * w.cols * sizeof(float);
    }
    p->n_made++;
    *out = m;
    return 0;
}

static void put_id(uint8_t *out, const struct tensor *t, uint64_t i, uint32_t expert)
{
    const int64_t id = expert;
    const int32_t id32 = (int32_t)expert;
    if (t->dtype == DTYPE_I64)
        memcpy(out + 8 * i, &id, sizeof id);
    else
        memcpy(out + 4 * i, &id32, sizeof id32);
}

static bool is_among(const int64_t *x, size_t n, int64_t what)
{
    for (size_t i = 0; i < n; i++)
        if (x[i] == what)
            return true;
    return false;
}

/* The experts of tokens, in their new numbers; those that go are replaced by heirs. */
static int fill_hash(uint8_t *out, const struct pruning *p, const struct tensor *t, uint32_t layer,
                     dsv4_err *err)
{
    const size_t k = (size_t)t->dim[1];
    int64_t *chosen;
    if (layer >= p->n_hash)
        return err_set(err, DSV4_REFUSED, "%s: %s: by config.json only %u layers route by token id",
                       t->path, t->stored, p->n_hash);
    TRY(mem_alloc(&chosen, k, sizeof *chosen, "experts of a token", err));
    int rc = 0;
    for (uint64_t token = 0; token < t->dim[0] && rc == 0; token++) {
        for (size_t j = 0; j < k && rc == 0; j++) {
            int64_t id = integer_at(t, token * k + j);
            if (id < 0 || id >= p->before)
                rc = err_set(err, DSV4_REFUSED, "%s: %s sends token %llu to expert %lld of %u",
                             t->path, t->stored, (unsigned long long)token, (long long)id,
                             p->before);
            else
                chosen[j] = new_number(p, layer, (uint32_t)id);
        }
        for (size_t j = 0; j < k && rc == 0; j++) {
            const uint32_t *heir =
                p->heir +
                ((size_t)layer * p->before + (size_t)integer_at(t, token * k + j)) * p->kept;
            while (chosen[j] < 0) {
                if (!is_among(chosen, k, *heir))
                    chosen[j] = *heir;
                heir++; /* k of them are enough, and no fewer stay */
            }
            put_id(out, t, token * k + j, (uint32_t)chosen[j]);
        }
    }
    free(chosen);
    return rc;
}

int pruning_fill(uint8_t *out, const struct pruning *p, const struct source *s,
                 const struct tensor *t, const struct tensor *made, dsv4_err *err)
{
    uint32_t layer = 0;
    struct wmat w;
    number_after(t->name, "layers.", p->n_layers, &layer);
    if (is_hash(t)) {
        struct tensor read;
        uint8_t *data;
        TRY(tensor_read(&read, &data, s, t, "a router", err));
        int rc = fill_hash(out, p, &read, layer, err);
        free(data);
        return rc;
    }
    const uint32_t *kept = pruning_kept(p, layer);
    size_t row = (size_t)(made->bytes / p->kept);
    if (is_plain(t)) {
        for (uint32_t i = 0; i < p->kept; i++)
            TRY(store_read(s->store, t->data + kept[i] * row, row, out + i * row, err));
        return 0;
    }
    TRY(matrix_find(&w, s->store, s->cfg, t->name, p->before, s->cfg->d, err));
    return read_rows((float *)(void *)out, s, &w, kept, p->kept, err);
}

/* ------------------------------------------------------------------ config.json */

static const char section[] = "quantization_config", record[] = "pruned";

static json_t *kept_list(const struct pruning *p, uint32_t layer)
{
    json_t *list = json_array();
    for (uint32_t i = 0; list && i < p->kept; i++)
        if (json_array_append_new(list, json_integer(pruning_kept(p, layer)[i])) != 0) {
            json_decref(list);
            return NULL;
        }
    return list;
}

/* quantization_config.pruned: {"experts": before, "kept": a list for every layer} */
static bool write_record(const struct pruning *p, json_t *root)
{
    json_t *x = json_pack("{s:I, s:[]}", "experts", (json_int_t)p->before, "kept");
    for (uint32_t l = 0; x && l < p->n_layers; l++)
        if (json_array_append_new(json_object_get(x, "kept"), kept_list(p, l)) != 0) {
            json_decref(x);
            return false;
        }
    return x && json_object_set_new(json_object_get(root, section), record, x) == 0;
}

bool pruning_config(const struct pruning *p, json_t *root)
{
    json_t *text = json_object_get(root, "text_config"), *ratios;
    text = text ? text : root;
    if (json_object_set_new(text, "n_routed_experts", json_integer(p->kept)) != 0)
        return false;
    if (json_object_get(text, "num_local_experts") && /* another name that Transformers knows */
        json_object_set_new(text, "num_local_experts", json_integer(p->kept)) != 0)
        return false;
    if (p->drafts_go && json_object_get(text, "num_nextn_predict_layers") &&
        json_object_set_new(text, "num_nextn_predict_layers", json_integer(0)) != 0)
        return false;
    ratios = p->drafts_go ? json_object_get(text, "compress_ratios") : NULL;
    while (json_array_size(ratios) > p->n_layers) /* behind the layers' come the drafting blocks' */
        json_array_remove(ratios, json_array_size(ratios) - 1);
    return write_record(p, root);
}

static int read_layer(struct pruning *p, uint32_t layer, const json_t *list, const char *where,
                      dsv4_err *err)
{
    uint32_t *kept = p->expert + (size_t)layer * p->kept;
    bool good = json_array_size(list) == p->kept;
    for (uint32_t i = 0; good && i < p->kept; i++) {
        const json_t *v = json_array_get(list, i);
        json_int_t x = json_is_integer(v) ? json_integer_value(v) : -1;
        good = x >= (i > 0 ? (json_int_t)kept[i - 1] + 1 : 0) && x < p->before;
        kept[i] = (uint32_t)(good ? x : 0);
    }
    if (!good)
        return err_set(err, DSV4_REFUSED,
                       "%s/config.json: %s.%s.kept: layer %u: expected %u ascending numbers of "
                       "experts below %u",
                       where, section, record, layer, p->kept, p->before);
    return 0;
}

int pruning_read(struct pruning **out, const struct source *pruned, const struct source *before,
                 dsv4_err *err)
{
    json_t *root;
    struct pruning *p = NULL;
    *out = NULL;
    TRY(json_open(&root, pruned->config.text, pruned->config.len, pruned->config.where, err));
    const json_t *x = json_object_get(json_object_get(root, section), record);
    const json_t *kept = json_object_get(x, "kept");
    int rc = 0;
    if (!x || json_integer_value(json_object_get(x, "experts")) != before->cfg->n_experts) {
        json_decref(root); /* not pruned, or not when it was made of this source */
        return 0;
    }
    if (json_array_size(kept) != before->cfg->n_layers ||
        pruned->cfg->n_experts > before->cfg->n_experts)
        rc = err_set(err, DSV4_REFUSED,
                     "%s/config.json: %s.%s.kept: expected a list for each of %u"
                     " layers",
                     pruned->dir, section, record, before->cfg->n_layers);
    if (rc == 0)
        rc = pruning_open(&p, before->cfg, pruned->cfg->n_experts, err);
    for (uint32_t l = 0; rc == 0 && l < p->n_layers; l++)
        rc = read_layer(p, l, json_array_get(kept, l), pruned->dir, err);
    if (rc == 0)
        rc = find_heirs(p, before, err);
    json_decref(root);
    if (rc != 0)
        pruning_close(p);
    else
        *out = p;
    return rc;
}

json_t *pruning_json(const struct pruning *p, uint64_t drafts)
{
    double sum = 0;
    uint32_t worst = 0;
    for (uint32_t l = 0; l < p->n_layers; l++) {
        sum += p->share[l];
        worst = p->share[l] < p->share[worst] ? l : worst;
    }
    return json_pack("{s:I, s:I, s:f, s:f, s:I, s:I, s:I}", "experts", (json_int_t)p->before,
                     "kept", (json_int_t)p->kept, "norm_kept_mean", sum / p->n_layers,
                     "norm_kept_worst", p->share[worst], "worst_layer", (json_int_t)worst,
                     "kept_without_norm", (json_int_t)p->unseen, "drafting_tensors_left_out",
                     (json_int_t)drafts);
}
