/* Types by what they cost: of every unit (the matrices of one class in a layer, or each matrix by itself) the type is
 * chosen so that the sum of expected divergences is least for the bytes that there are.
 *
 *   expected KL of a matrix in type T = s * its part of the group's products' energy * its relative error in T
 *
 * s is the sensitivity of the group (sensitivity.c), the error that of some rows, encoded and decoded. Of each unit
 * only types on the lower convex hull of (bytes, KL) count; beginning with the smallest everywhere, the
 * step that takes most divergence for a byte is taken first, until nothing fits any more. That is the
 * optimum but for what the last steps leave over. */
#include "convert.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ORDER TYPES: beside native, by size. Errors of normal numbers (docs/quantization.md), for plans without weights. */
static const struct {
    const char *name;
    double error;
} types[] = {{"q2", 0.10}, {"q3", 0.023}, {"q4nl", 0.0053}, {"q4", 0.0066}, {"q8", 2.7e-5}};

enum { N_TYPES = sizeof types / sizeof *types, NATIVE = N_TYPES };

/* A matrix that may have any type. */
struct free_matrix {
    struct job *job;
    char key[MATRIX_NAME];  /* with "*" for the number of an expert: its group */
    char unit[MATRIX_NAME]; /* what gets one type */
    double energy[N_TYPES], error[N_TYPES];
    double used;                 /* rows that it sees, of an expert */
    uint64_t bytes[N_TYPES + 1]; /* ORDER TYPES, then native; types that are not smaller: native */
    double kl[N_TYPES + 1];
};

/* A point of a unit: all its matrices in type `type`. */
struct point {
    int type;
    uint64_t bytes;
    double kl;
};

struct unit {
    size_t first, n; /* of the matrices, in order of key */
    struct point point[N_TYPES + 1];
    int n_points, at; /* on the hull, by bytes; the one that is chosen */
    bool full;        /* its next step did not fit */
};

struct choosing {
    const struct source *source;
    const struct choose_options *o;
    struct free_matrix *m;
    size_t n;
    struct unit *unit;
    size_t n_units, cap_units;
    uint64_t weights, budget, least, chosen; /* bytes of these matrices */
    double kl, kl_least;
};

/* ------------------------------------------------------------------ bytes */

static uint64_t out_bytes(const struct job *j)
{
    uint64_t part[2];
    job_sizes(j, part);
    return part[0] + part[1];
}

static void set_bytes(struct free_matrix *m)
{
    struct job other = *m->job;
    m->bytes[NATIVE] = out_bytes(m->job);
    for (int t = 0; t < N_TYPES; t++) {
        bool fits = job_set_type(&other, wtype_named(types[t].name));
        uint64_t n = fits ? out_bytes(&other) : m->bytes[NATIVE];
        m->bytes[t] = n < m->bytes[NATIVE] ? n : m->bytes[NATIVE];
    }
}

/* ------------------------------------------------------------------ what may be chosen */

/* "layers.3.ffn.experts.*.w1" -> "layers.3.ffn.experts" */
static void unit_name(char *out, const char *key)
{
    snprintf(out, MATRIX_NAME, "%s", key);
    char *cut = strstr(out, ".*.");
    if (!cut && strncmp(out, "layers.", 7) == 0)
        cut = strrchr(out, '.');
    if (cut)
        *cut = 0;
}

static int by_key(const void *a, const void *b)
{
    const struct free_matrix *x = a, *y = b;
    int c = strcmp(x->key, y->key);
    return c ? c : strcmp(x->job->name, y->job->name);
}

static int find_matrices(struct choosing *c, struct plan *p, dsv4_err *err)
{
    TRY(mem_alloc(&c->m, p->n, sizeof *c->m, "a choice of types", err));
    for (size_t i = 0; i < p->n; i++) {
        struct job *j = &p->job[i];
        struct free_matrix *m = &c->m[c->n];
        char name[MATRIX_NAME];
        if (!j->type || j->by_rule || !class_is_typed(j->class) ||
            !matrix_name(j->name, name, sizeof name))
            continue;
        *m = (struct free_matrix){.job = j, .used = 1};
        star_expert(m->key, name);
        if (c->o->each)
            memcpy(m->unit, name, sizeof name);
        else
            unit_name(m->unit, m->key);
        set_bytes(m);
        c->weights += (uint64_t)j->in.rows * j->in.cols;
        c->n++;
    }
    if (c->n == 0)
        return err_set(err, DSV4_USAGE, "no matrix is left whose type could be chosen");
    qsort(c->m, c->n, sizeof *c->m, by_key);
    return 0;
}

/* ------------------------------------------------------------------ errors */

/* Some rows of each matrix in every type. */
static int measure_all(struct choosing *c, dsv4_err *err)
{
    const struct wtype *type[N_TYPES];
    struct sample *sample;
    for (int t = 0; t < N_TYPES; t++)
        type[t] = wtype_named(types[t].name);
    TRY(mem_alloc(&sample, c->n, sizeof *sample, "a choice of types", err));
    for (size_t i = 0; i < c->n; i++)
        sample[i] = (struct sample){c->m[i].job, c->m[i].error, c->m[i].energy};
    int rc = sample_errors(sample, c->n, type, N_TYPES, c->source, c->o->threads, err);
    free(sample);
    for (size_t i = 0; i < c->n; i++) /* NaN and infinite weights are the conversion's to refuse */
        for (int t = 0; t < N_TYPES; t++)
            if (!(c->m[i].error[t] < 1e30) || !(c->m[i].energy[t] < 1e30))
                c->m[i].error[t] = c->m[i].energy[t] = 1;
    return rc;
}

/* Errors of normal numbers, for weights that are not here. */
static void assume_all(struct choosing *c)
{
    for (size_t i = 0; i < c->n; i++)
        for (int t = 0; t < N_TYPES; t++) {
            c->m[i].energy[t] = 1;
            c->m[i].error[t] = types[t].error;
        }
}

/* Matrices first .. end of one group: errors become expected divergences. */
static int expect_group(struct choosing *c, size_t first, size_t end, const struct sensitivity *s,
                        dsv4_err *err)
{
    double factor;
    TRY(sensitivity_find(s, c->m[first].key, &factor, err));
    for (int t = 0; t < N_TYPES; t++) {
        double energy = 0;
        for (size_t i = first; i < end; i++)
            energy += c->m[i].used * c->m[i].energy[t];
        for (size_t i = first; i < end && energy > 0; i++)
            if (c->m[i].bytes[t] < c->m[i].bytes[NATIVE])
                c->m[i].kl[t] = factor * c->m[i].used * c->m[i].error[t] / energy;
    }
    return 0;
}

static int expect_all(struct choosing *c, const struct sensitivity *s, dsv4_err *err)
{
    for (size_t i = 0, end; i < c->n; i = end) {
        for (end = i + 1; end < c->n && strcmp(c->m[i].key, c->m[end].key) == 0;)
            end++;
        TRY(expect_group(c, i, end, s, err));
    }
    return 0;
}

/* ------------------------------------------------------------------ hulls */

/* Adds a point at the right end; what then lies above the hull goes. */
static void add_point(struct unit *u, struct point p)
{
    while (u->n_points > 0) {
        const struct point *b = &u->point[u->n_points - 1], *a = b - 1;
        bool above = p.kl <= b->kl && p.bytes <= b->bytes;
        if (!above && p.kl >= b->kl)
            return; /* larger and no better */
        if (!above && u->n_points > 1) {
            double slope_ab = (a->kl - b->kl) / (double)(b->bytes - a->bytes);
            double slope_bp = (b->kl - p.kl) / (double)(p.bytes - b->bytes);
            above = slope_bp >= slope_ab;
        }
        if (!above)
            break;
        u->n_points--;
    }
    u->point[u->n_points++] = p;
}

static int by_bytes(const void *a, const void *b)
{
    const struct point *x = a, *y = b;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    return x->kl != y->kl ? (x->kl < y->kl ? -1 : 1) : x->type - y->type;
}

static void make_hull(const struct choosing *c, struct unit *u)
{
    struct point all[N_TYPES + 1];
    for (int t = 0; t <= N_TYPES; t++) {
        all[t] = (struct point){.type = t};
        for (size_t i = u->first; i < u->first + u->n; i++) {
            all[t].bytes += c->m[i].bytes[t];
            all[t].kl += c->m[i].kl[t];
        }
    }
    qsort(all, N_TYPES + 1, sizeof *all, by_bytes);
    for (int t = 0; t <= N_TYPES; t++)
        add_point(u, all[t]);
}

static int make_units(struct choosing *c, dsv4_err *err)
{
    for (size_t i = 0, end; i < c->n; i = end) {
        for (end = i + 1; end < c->n && strcmp(c->m[i].unit, c->m[end].unit) == 0;)
            end++;
        TRY(mem_grow(&c->unit, &c->cap_units, c->n_units + 1, sizeof *c->unit, "units", err));
        struct unit *u = &c->unit[c->n_units++];
        *u = (struct unit){.first = i, .n = end - i};
        make_hull(c, u);
        c->least += u->point[0].bytes;
        c->kl_least += u->point[0].kl;
    }
    return 0;
}

/* ------------------------------------------------------------------ spending */

struct step {
    size_t unit;
    int to;
    uint64_t bytes; /* more than the point before */
    double gain;    /* divergence a byte */
};

static int by_gain(const void *a, const void *b)
{
    const struct step *x = a, *y = b;
    if (x->gain != y->gain)
        return x->gain > y->gain ? -1 : 1;
    if (x->unit != y->unit)
        return x->unit < y->unit ? -1 : 1;
    return x->to - y->to;
}

static int spend(struct choosing *c, dsv4_err *err)
{
    struct step *step;
    size_t n = 0;
    c->chosen = c->least;
    c->kl = c->kl_least;
    TRY(mem_alloc(&step, c->n_units * N_TYPES, sizeof *step, "steps", err));
    for (size_t i = 0; i < c->n_units; i++)
        for (int k = 1; k < c->unit[i].n_points; k++) {
            const struct point *a = &c->unit[i].point[k - 1], *b = a + 1;
            uint64_t bytes = b->bytes - a->bytes;
            step[n++] = (struct step){i, k, bytes, (a->kl - b->kl) / (double)bytes};
        }
    if (n > 0)
        qsort(step, n, sizeof *step, by_gain);
    for (size_t i = 0; i < n; i++) {
        struct unit *u = &c->unit[step[i].unit];
        if (u->full || u->at != step[i].to - 1)
            continue;
        u->full = step[i].bytes > c->budget - c->chosen;
        if (u->full)
            continue;
        c->chosen += step[i].bytes;
        c->kl += u->point[step[i].to].kl - u->point[u->at].kl;
        u->at = step[i].to;
    }
    free(step);
    return 0;
}

/* What may be spent on these matrices. */
static int set_budget(struct choosing *c, const struct plan *p, dsv4_err *err)
{
    const struct choose_options *o = c->o;
    uint64_t others = o->beside;
    c->budget = UINT64_MAX;
    for (size_t i = 0; i < p->n; i++)
        if (job_in_memory(&p->job[i]))
            others += out_bytes(&p->job[i]);
    for (size_t i = 0; i < c->n; i++)
        others -= c->m[i].bytes[NATIVE];
    if (o->fit > 0)
        c->budget = o->fit > others ? o->fit - others : 0;
    if (o->fit > 0 && c->budget < c->least)
        return err_set(
            err, DSV4_NO_MEMORY,
            "with the smallest types %.3f GiB are needed (weights %.3f GiB, the rest for a "
            "context of %u tokens); --fit %.3f GiB is less%s",
            gib(others + c->least), gib(others + c->least - o->beside), o->ctx, gib(o->fit),
            ": a smaller --context or --prune-experts helps");
    double most = o->bits / 8 * (double)c->weights;
    if (o->bits > 0 && most < (double)c->least)
        return err_set(err, DSV4_USAGE, "--bits %.3g: the smallest types have %.3f bits on average",
                       o->bits, 8 * (double)c->least / (double)c->weights);
    if (o->bits > 0 && most < (double)c->budget)
        c->budget = (uint64_t)most;
    return 0;
}

/* A matrix stays native where the type of its unit would not make it smaller. */
static int type_of(const struct unit *u, const struct free_matrix *m)
{
    int t = u->point[u->at].type;
    return m->bytes[t] < m->bytes[NATIVE] ? t : NATIVE;
}

static void set_types(struct choosing *c)
{
    for (size_t i = 0; i < c->n_units; i++) {
        const struct unit *u = &c->unit[i];
        for (size_t k = u->first; k < u->first + u->n; k++) {
            int t = type_of(u, &c->m[k]);
            if (t < NATIVE)
                job_set_type(c->m[k].job, wtype_named(types[t].name));
        }
    }
}

/* ------------------------------------------------------------------ told */

/* Matrices of one class with the same type. */
struct chosen {
    uint64_t tensors, weights, bytes;
    double kl;
    bool layer[MAX_LAYERS_TOLD];
};

/* "0-2,5" */
static void layers_text(char *out, size_t size, const bool *layer)
{
    size_t at = 0;
    out[0] = 0;
    for (int i = 0; i < MAX_LAYERS_TOLD; i++) {
        int last = i;
        if (!layer[i])
            continue;
        while (last + 1 < MAX_LAYERS_TOLD && layer[last + 1])
            last++;
        if (at + 16 < size)
            at += (size_t)snprintf(out + at, size - at, last > i ? "%s%d-%d" : "%s%d",
                                   at ? "," : "", i, last);
        i = last;
    }
}

static void gather(const struct choosing *c, enum tensor_class class, int type, struct chosen *out)
{
    *out = (struct chosen){0};
    for (size_t i = 0; i < c->n_units; i++) {
        const struct unit *u = &c->unit[i];
        for (size_t k = u->first; k < u->first + u->n; k++) {
            const struct free_matrix *m = &c->m[k];
            unsigned l;
            if (m->job->class != class || type_of(u, m) != type)
                continue;
            out->tensors++;
            out->weights += (uint64_t)m->job->in.rows * m->job->in.cols;
            out->bytes += m->bytes[type];
            out->kl += m->kl[type];
            if (sscanf(m->key, "layers.%u.", &l) == 1 && l < MAX_LAYERS_TOLD)
                out->layer[l] = true;
        }
    }
}

static bool add_chosen(const struct choosing *c, json_t *list, enum tensor_class class, int type)
{
    struct chosen x;
    char layers[256];
    gather(c, class, type, &x);
    if (x.tensors == 0)
        return true;
    layers_text(layers, sizeof layers, x.layer);
    return json_array_append_new(
               list,
               json_pack("{s:s, s:s, s:s, s:I, s:I, s:f, s:f}", "class", tensor_class_name(class),
                         "type", type == NATIVE ? "native" : types[type].name, "layers", layers,
                         "tensors", (json_int_t)x.tensors, "bytes", (json_int_t)x.bytes, "bits",
                         8 * (double)x.bytes / (double)x.weights, "kl", x.kl)) == 0;
}

static int tell(const struct choosing *c, json_t **out, dsv4_err *err)
{
    json_t *list = json_array();
    bool whole = list != NULL;
    for (int class = 0; class < N_CLASSES; class ++)
        for (int t = NATIVE; t >= 0 && whole; t--)
            whole = add_chosen(c, list, (enum tensor_class) class, t);
    *out = whole
               ? json_pack("{s:s, s:s, s:I, s:f, s:f, s:f, s:O}", "sensitivity",
                           c->o->sensitivity ? c->o->sensitivity
                                             : "shipped: of the embedded model, a guess for others",
                           "errors",
                           c->source->shapes ? "of normal numbers, no weights are here"
                                             : "of the weights, by samples of rows",
                           "bytes", (json_int_t)c->chosen, "bits",
                           8 * (double)c->chosen / (double)c->weights, "expected_kl",
                           fmax(c->kl, 0), /* sums of differences may end below */
                           "expected_kl_of_smallest", c->kl_least, "types", list)
               : NULL;
    json_decref(list);
    return *out ? 0 : err_memory(err, 0, "a choice of types");
}

/* ------------------------------------------------------------------ all */

static int choose(struct choosing *c, struct plan *p, const struct store *importance,
                  const struct sensitivity *s, json_t **told, dsv4_err *err)
{
    TRY(find_matrices(c, p, err));
    for (size_t i = 0; i < c->n && importance; i++)
        TRY(importance_of(importance, c->m[i].job, &c->m[i].used, err));
    if (c->source->shapes)
        assume_all(c);
    else
        TRY(measure_all(c, err));
    TRY(expect_all(c, s, err));
    TRY(make_units(c, err));
    TRY(set_budget(c, p, err));
    TRY(spend(c, err));
    set_types(c);
    return tell(c, told, err);
}

int choose_types(struct plan *p, const struct source *source, const struct store *importance,
                 const struct choose_options *o, json_t **told, dsv4_err *err)
{
    struct choosing c = {.source = source, .o = o};
    struct sensitivity *s;
    TRY(sensitivity_open(&s, o->sensitivity, source->cfg, err));
    int rc = choose(&c, p, importance, s, told, err);
    free(c.unit);
    free(c.m);
    sensitivity_close(s);
    return rc;
}
