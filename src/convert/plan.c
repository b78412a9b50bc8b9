/* What a conversion will do: a job for every tensor of the source, in the order in which they lie in its
 * files. Reads names, shapes and the config, no weight. */
#include "convert.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ one matrix */

/* Bytes a panel takes in a format: its scales included. */
static uint64_t panel_bytes(const struct wmat *w)
{
    struct wmat shape = panel_shape(w, PANEL);
    return (uint64_t)shape.code_ld + shape.scale_ld;
}

/* The source's own format as panels. */
static bool set_native(struct job *j)
{
    j->as_loaded = false;
    struct wmat plain = j->in;
    plain.panels = false;
    if (!panel_fits(&plain) || !(j->type = wtype_of(&plain)))
        return false;
    j->kind = j->in.panels ? JOB_PANELS : JOB_PACK;
    j->out = panel_shape(&plain, plain.rows);
    return true;
}

bool job_set_type(struct job *j, const struct wtype *type)
{
    bool exact = !j->in.blocks || block_exact(j->in.blocks);
    if (exact && (!type || type == wtype_of(&j->in)))
        return set_native(j);
    j->as_loaded = !type;
    type = type ? type : wtype_of(&j->in);
    struct wmat plain = plain_shape(type, j->in.rows, j->in.cols);
    if (!panel_fits(&plain))
        return false;
    j->kind = JOB_ENCODE;
    j->type = type;
    j->out = panel_shape(&plain, plain.rows);
    return true;
}

static bool smaller(const struct wmat *in, const struct wtype *type)
{
    struct wmat to = plain_shape(type, in->rows, in->cols);
    return !type || panel_bytes(&to) < panel_bytes(in);
}

/* Matrices of the model that are multiplied with; embeddings and tables are looked up by rows. */
static bool is_matrix(const struct source *s, const struct tensor *t, enum tensor_class c)
{
    const unsigned classes = 1u << CLASS_HEAD | 1u << CLASS_ATTENTION | 1u << CLASS_INDEXER |
                             1u << CLASS_EXPERTS | 1u << CLASS_SHARED | 1u << CLASS_ROUTER |
                             1u << CLASS_ENGRAM;
    char name[MATRIX_NAME];
    return t->rank == 2 && (classes >> c & 1) && matrix_name(t->name, name, sizeof name) &&
           matrix_packs(s->cfg, t->name);
}

static int add_matrix(struct plan *p, const struct source *s, struct rules *r,
                      const struct tensor *t, struct job *j, dsv4_err *err)
{
    char name[MATRIX_NAME];
    TRY(matrix_find(&j->in, s->store, s->cfg, t->name, 0, 0, err));
    matrix_name(t->name, name, sizeof name);
    struct rule *rule = rules_find(r, name, j->class);
    j->by_rule = rule != NULL;
    const struct wtype *type = rule ? rule->type : NULL;
    if (type && rule->if_smaller && !smaller(&j->in, type))
        type = NULL;
    if (!job_set_type(j, type) && !job_set_type(j, NULL))
        return 0; /* stays plain: a copy, its scales another */
    p->n++;
    return 0;
}

/* ------------------------------------------------------------------ all of them */

static int by_place(const void *a, const void *b)
{
    const struct tensor *x = ((const struct job *)a)->from, *y = ((const struct job *)b)->from;
    int c = strcmp(x->path, y->path);
    return c ? c : (x->data > y->data) - (x->data < y->data);
}

/* What a router has for every expert: its rows encoded, where that loses nothing or is asked for; otherwise they
 * stay plain, and so does all else. */
static int add_router(struct plan *p, const struct source *s, struct rules *r,
                      const struct tensor *t, uint32_t layer, dsv4_err *err)
{
    struct job *j = &p->job[p->n];
    size_t before = p->n;
    if (is_matrix(s, t, j->class)) {
        TRY(add_matrix(p, s, r, t, j, err));
        if (p->n > before && j->in.rows != p->pruning->before)
            return tensor_refuse(t, "a row for every expert", err);
        if (p->n > before && (j->kind == JOB_ENCODE || j->type->format == W_BF16)) {
            j->kind = JOB_ENCODE;
            j->pick = pruning_kept(p->pruning, layer);
            j->in.rows = j->out.rows = p->pruning->kept;
            return 0;
        }
    }
    p->n = before + 1;
    j->kind = JOB_ROUTER;
    j->type = NULL;
    TRY(pruning_made(p->pruning, s, t, &j->to, err));
    j->as = j->to->dtype;
    return 0;
}

/* Is it the scales of a matrix that is packed? Then they are part of that job. */
static bool belongs_to(const struct plan *p, const struct source *s, const struct tensor *t)
{
    char name[MATRIX_NAME];
    if (!scaled_name(t->name, name, sizeof name))
        return false;
    const struct tensor *w = store_find(s->store, name);
    for (size_t lo = 0, hi = p->n; w && lo < hi;) { /* jobs are still ascending by name */
        size_t mid = lo + (hi - lo) / 2;
        int c = strcmp(p->job[mid].name, name);
        if (c == 0)
            return p->job[mid].type != NULL || p->job[mid].kind == JOB_TABLE;
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return false;
}

static int add_floats(struct plan *p, const struct source *s, const struct tensor *t, dsv4_err *err)
{
    struct job *j = &p->job[p->n];
    struct tensor *to = &p->made[p->n_made];
    TRY(matrix_find(&j->in, s->store, s->cfg, t->name, 0, 0, err));
    *to = *t;
    to->dtype = DTYPE_F32;
    to->blocks = NULL;
    to->bytes = (uint64_t)j->in.rows * j->in.cols * sizeof(float);
    j->kind = JOB_FLOATS;
    j->to = to;
    j->as = to->dtype;
    p->n_made++;
    p->n++;
    return 0;
}

static bool is_table(const struct tensor *t)
{
    char name[MATRIX_NAME];
    return tensor_class_of(t->name) == CLASS_ENGRAM_TABLE && t->rank == 2 &&
           matrix_name(t->name, name, sizeof name);
}

/* An Engram table in another type, stored as a release would store it; nothing is added where it has that already. */
static int add_table(struct plan *p, const struct source *s, const struct wtype *type,
                     const struct tensor *t, dsv4_err *err)
{
    struct job *j = &p->job[p->n];
    struct tensor *to = &p->made[p->n_made], *scale = to + 1;
    TRY(matrix_find(&j->in, s->store, s->cfg, t->name, 0, 0, err));
    if (j->in.format == type->format)
        return 0;
    if (j->in.cols % GROUP != 0)
        return tensor_refuse(t, "rows of a multiple of 32 columns, which --engram needs", err);
    bool fp4 = type->format == W_E2M1;
    *to = *scale = *t;
    to->dtype = fp4 ? DTYPE_I8 : DTYPE_E4M3;
    to->dim[1] = wformat_row_bytes(type->format, j->in.cols);
    scale->dtype = DTYPE_E8M0;
    scale->dim[1] = j->in.cols / GROUP;
    to->bytes = to->dim[0] * to->dim[1];
    scale->bytes = scale->dim[0] * scale->dim[1];
    j->kind = JOB_TABLE;
    j->table = type;
    j->to = to;
    j->to_scale = scale;
    j->as = to->dtype;
    p->n_made += 2;
    p->n++;
    return 0;
}

static int add_tensor(struct plan *p, const struct source *s, struct rules *r,
                      const struct tensor *t, dsv4_err *err)
{
    struct job *j = &p->job[p->n];
    char renamed[MATRIX_NAME];
    uint32_t layer;
    *j = (struct job){.class = tensor_class_of(t->name), .name = t->name, .from = t, .to = t};
    enum fate fate = p->pruning ? pruning_fate(p->pruning, t->name, &layer, renamed) : FATE_STAYS;
    if (fate == FATE_GOES) {
        p->drafts += j->class == CLASS_DRAFT;
        return 0;
    }
    if (fate == FATE_ROUTER)
        return add_router(p, s, r, t, layer, err);
    if (is_matrix(s, t, j->class)) {
        size_t before = p->n;
        TRY(add_matrix(p, s, r, t, j, err));
        if (p->n > before)
            return 0;
    }
    if (r->engram && is_table(t)) {
        size_t before = p->n;
        TRY(add_table(p, s, r->engram, t, err));
        if (p->n > before)
            return 0;
    }
    if (t->blocks)
        return add_floats(p, s, t, err);
    j->kind = JOB_COPY;
    j->as = t->dtype;
    p->n++;
    return 0;
}

static size_t distance_to(const char *a, const char *b)
{
    size_t row[MATRIX_NAME + 1], n = strnlen(b, MATRIX_NAME);
    for (size_t j = 0; j <= n; j++)
        row[j] = j;
    for (size_t i = 1; *a; a++, i++) {
        size_t before = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            size_t best = before + (*a != b[j - 1]);
            before = row[j];
            best = before + 1 < best ? before + 1 : best;
            row[j] = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
        }
    }
    return row[n];
}

/* Names like the pattern, for whoever mistyped it. */
static int refuse_unmatched(const struct plan *p, const struct rule *rule, dsv4_err *err)
{
    enum { SHOWN = 3 };
    const char *near[SHOWN] = {0};
    size_t how_far[SHOWN];
    char name[MATRIX_NAME], list[SHOWN * (MATRIX_NAME + 2)] = "";
    for (size_t i = 0; i < p->n; i++) {
        if (!p->job[i].type)
            continue;
        matrix_name(p->job[i].name, name, sizeof name);
        size_t d = distance_to(name, rule->pattern), at = SHOWN;
        while (at > 0 && (!near[at - 1] || how_far[at - 1] > d))
            at--;
        if (at == SHOWN)
            continue;
        memmove(near + at + 1, near + at, (SHOWN - 1 - at) * sizeof *near);
        memmove(how_far + at + 1, how_far + at, (SHOWN - 1 - at) * sizeof *how_far);
        near[at] = p->job[i].name;
        how_far[at] = d;
    }
    for (int i = 0; i < SHOWN && near[i]; i++) {
        matrix_name(near[i], name, sizeof name);
        strcat(strcat(list, i ? ", " : ""), name);
    }
    return err_set(err, DSV4_USAGE, "the rule \"%.80s\" fits no matrix; near are %s", rule->text,
                   list);
}

/* The numbers that experts have from now on; none has more digits than before. */
static int renumber(struct plan *p, dsv4_err *err)
{
    char renamed[MATRIX_NAME];
    uint32_t layer;
    size_t bytes = 0;
    for (size_t i = 0; i < p->n; i++)
        bytes += strlen(p->job[i].name) + 1;
    TRY(mem_alloc(&p->names, bytes, 1, "names", err));
    char *at = p->names;
    for (size_t i = 0; i < p->n; i++) {
        if (pruning_fate(p->pruning, p->job[i].name, &layer, renamed) != FATE_RENUMBERED)
            continue;
        p->job[i].name = at;
        at = stpcpy(at, renamed) + 1;
    }
    return 0;
}

int convert_plan(struct plan *p, const struct source *s, struct rules *r, struct pruning *pruning,
                 dsv4_err *err)
{
    size_t n = store_count(s->store), kept = 0;
    *p = (struct plan){.source = s, .pruning = pruning, .source_bytes = store_bytes(s->store)};
    size_t made = 0, tables = 0;
    for (size_t i = 0; i < n; i++) {
        const struct tensor *t = store_at(s->store, i);
        tables += is_table(t);
        made += t->blocks && !is_matrix(s, t, tensor_class_of(t->name));
    }
    if (r->engram && tables == 0)
        return err_set(err, DSV4_USAGE, "--engram: %s has no Engram tables", s->dir);
    made += r->engram ? 2 * tables : 0;
    TRY(mem_alloc(&p->job, n, sizeof *p->job, "a plan", err));
    int rc = mem_alloc(&p->made, made, sizeof *p->made, "a plan", err);
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = add_tensor(p, s, r, store_at(s->store, i), err);
    for (size_t i = 0; i < r->n && rc == 0; i++)
        if (r->rule[i].must_match && !r->rule[i].matched)
            rc = refuse_unmatched(p, &r->rule[i], err);
    for (size_t i = 0; i < p->n; i++) /* looks at jobs by name: marks first, then closes the gaps */
        if (p->job[i].kind == JOB_COPY && belongs_to(p, s, p->job[i].from))
            p->job[i].from = NULL;
    for (size_t i = 0; i < p->n; i++)
        if (p->job[i].from)
            p->job[kept++] = p->job[i];
    p->n = kept;
    if (rc == 0 && pruning)
        rc = renumber(p, err);
    if (rc != 0) {
        convert_plan_close(p);
        return rc;
    }
    qsort(p->job, p->n, sizeof *p->job, by_place);
    return 0;
}

void convert_plan_close(struct plan *p)
{
    for (size_t i = 0; i < p->n_shards; i++) {
        free(p->shard[i].name);
        free(p->shard[i].header);
    }
    free(p->shard);
    free(p->config);
    free(p->names);
    free(p->made);
    free(p->job);
    *p = (struct plan){0};
}

/* ------------------------------------------------------------------ told */

/* What a source tensor is called where a type stands. */
static const char *source_type(const struct job *j)
{
    if (j->from->blocks)
        return block_name(j->from->blocks);
    return j->type ? wformat_name(j->in.format) : dtype_name(j->from->dtype);
}

static const char *output_type(const struct job *j)
{
    if (j->type)
        return j->blocks ? block_name(j->blocks) : j->type->name;
    if (j->table)
        return j->table->name;
    return j->to == j->from && j->as == j->from->dtype ? "as it is" : dtype_name(j->as);
}

/* Jobs of one class with the same types before and after. */
struct line {
    enum tensor_class class;
    const char *from, *to;
    uint64_t count, before, after;
};

static uint64_t bytes_before(const struct plan *p, const struct job *j)
{
    char name[MATRIX_NAME];
    const struct tensor *s = NULL;
    if ((j->type || j->table) && scale_name(j->from->name, name, sizeof name))
        s = store_find(p->source->store, name);
    return j->from->bytes + (s ? s->bytes : 0);
}

static int add_line(struct line **line, size_t *n, size_t *cap, const struct plan *p,
                    const struct job *j, dsv4_err *err)
{
    const char *from = source_type(j), *to = output_type(j);
    size_t i = 0;
    while (i < *n && ((*line)[i].class != j->class || strcmp((*line)[i].from, from) != 0 ||
                      strcmp((*line)[i].to, to) != 0))
        i++;
    if (i == *n) {
        TRY(mem_grow(line, cap, *n + 1, sizeof **line, "a plan", err));
        (*line)[(*n)++] = (struct line){.class = j->class, .from = from, .to = to};
    }
    (*line)[i].count++;
    (*line)[i].before += bytes_before(p, j);
    (*line)[i].after += j->bytes[0] + j->bytes[1];
    return 0;
}

static int by_class(const void *a, const void *b)
{
    const struct line *x = a, *y = b;
    if (x->class != y->class)
        return x->class < y->class ? -1 : 1;
    return x->after > y->after ? -1 : x->after < y->after;
}

bool job_in_memory(const struct job *j)
{
    return j->class != CLASS_ENGRAM_TABLE && j->class < CLASS_DRAFT;
}

bool plan_decisions(const struct plan *p, json_t *chosen, json_t *to)
{
    if (chosen && json_object_set(to, "choice", chosen) != 0)
        return false;
    return !p->pruning ||
           json_object_set_new(to, "pruning", pruning_json(p->pruning, p->drafts)) == 0;
}

int convert_plan_json(const struct plan *p, const struct memory_beside *beside, json_t *chosen,
                      char **json, dsv4_err *err)
{
    struct line *line = NULL;
    size_t n = 0, cap = 0;
    uint64_t memory = 0;
    for (size_t i = 0; i < p->n; i++) {
        const struct job *j = &p->job[i];
        memory += job_in_memory(j) ? j->bytes[0] + j->bytes[1] : 0;
        int rc = add_line(&line, &n, &cap, p, j, err);
        if (rc != 0) {
            free(line);
            return rc;
        }
    }
    if (n > 1)
        qsort(line, n, sizeof *line, by_class);
    json_t *root = json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:[]}", "source", p->source->dir,
        "source_bytes", (json_int_t)p->source_bytes, "bytes", (json_int_t)p->bytes, "shards",
        (json_int_t)p->n_shards, "bytes_of_weights", (json_int_t)memory, "context",
        (json_int_t)beside->ctx, "bytes_of_caches", (json_int_t)beside->caches, "bytes_of_buffers",
        (json_int_t)(beside->buffers + beside->other), "bytes_needed_in_memory",
        (json_int_t)(memory + beside->caches + beside->buffers + beside->other), "tensors");
    json_t *list = json_object_get(root, "tensors");
    bool whole = list != NULL;
    for (size_t i = 0; i < n && whole; i++)
        whole = json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:I, s:I, s:I}", "class",
                                                      tensor_class_name(line[i].class), "from",
                                                      line[i].from, "to", line[i].to, "tensors",
                                                      (json_int_t)line[i].count, "bytes_before",
                                                      (json_int_t)line[i].before, "bytes",
                                                      (json_int_t)line[i].after)) == 0;
    free(line);
    if (whole && p->left_out)
        whole = json_object_set_new(root, "left_out", json_integer((json_int_t)p->left_out)) == 0;
    whole = whole && plan_decisions(p, chosen, root);
    int rc = whole ? json_write(json, root, JSON_INDENT(1), err) : err_memory(err, 0, "a plan");
    json_decref(root);
    return rc;
}
