/* The plan of a GGUF file for llama.cpp: which tensor is made of what, in which of its types, at which byte. Types
 * are those that hold the same numbers: MXFP4 for fp4, Q8_0 and Q4_0 for q8 and q4, BF16 for fp8 (four significant
 * bits times a power of two), floats and integers as they are or wider. Matrices of other types are refused. */
#include "convert.h"

#include "simd/codes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* llama.cpp's numbers for what most weights of a file are. */
static const struct {
    const char *type;
    uint32_t number;
} file_types[] = {{"f32", 0}, {"f16", 1}, {"q4", 2}, {"q8", 7}, {"bf16", 32}, {"e2m1", 38}};

/* A job and its place among the others of the file. */
struct slot {
    struct gguf_name name;
    struct job *job;
};

/* ------------------------------------------------------------------ one matrix */

/* What has no panels, as it is looked up by rows or for want of 32 columns or of whole groups, is a copy so far, its
 * scales another: it has a type all the same. */
static int find_matrix(const struct source *s, struct job *j, dsv4_err *err)
{
    char name[MATRIX_NAME];
    bool scaled =
        j->to->dtype == DTYPE_E4M3 || j->to->dtype == DTYPE_I8 || j->to->dtype == DTYPE_U8;
    if (j->kind == JOB_FLOATS && block_exact(j->in.blocks)) {
        j->kind = JOB_PACK;
        j->type = wtype_of(&j->in);
        return 0;
    }
    if (j->type || j->to != j->from || !scaled || !matrix_name(j->name, name, sizeof name))
        return 0;
    TRY(matrix_find(&j->in, s->store, s->cfg, j->from->name, 0, 0, err));
    j->kind = JOB_PACK;
    j->type = wtype_of(&j->in);
    return 0;
}

static int refuse_type(const struct plan *p, const struct job *j, dsv4_err *err)
{
    char name[MATRIX_NAME];
    matrix_name(j->from->name, name, sizeof name);
    return err_set(
        err, DSV4_REFUSED,
        "%s: %s would be %s, and GGUF has no type with the same numbers (it has those of "
        "native, q8, q4, mxfp4, bf16)",
        p->source->dir, name, j->type->name);
}

static int set_matrix(const struct plan *p, struct job *j, dsv4_err *err)
{
    if (j->type->format == W_E4M3) {
        j->kind = JOB_ENCODE;
        j->type = wtype_named("bf16");
        j->exact = true;
    }
    j->rows = true;
    j->blocks = block_type_as(j->type);
    if (!j->blocks && wformat_has_halves(j->type->format))
        return refuse_type(p, j, err);
    size_t ld = j->blocks ? (size_t)block_row_bytes(j->blocks, j->in.cols)
                          : wformat_row_bytes(j->type->format, j->in.cols);
    j->out = (struct wmat){
        .format = j->type->format, .rows = j->in.rows, .cols = j->in.cols, .code_ld = ld};
    j->bytes[0] = (uint64_t)ld * j->in.rows;
    return 0;
}

/* ------------------------------------------------------------------ all else */

/* Vectors are F32 everywhere in llama.cpp, integers I32. */
static int set_other(struct job *j, dsv4_err *err)
{
    const struct tensor *t = j->to;
    switch (t->dtype) {
    case DTYPE_F32:
    case DTYPE_I32: break;
    case DTYPE_F16:
    case DTYPE_BF16: j->as = t->rank < 2 ? DTYPE_F32 : t->dtype; break;
    case DTYPE_I64: j->as = DTYPE_I32; break;
    default: return tensor_refuse(t, "F32, F16, BF16, I32 or I64", err);
    }
    j->bytes[0] = t->bytes / dtype_size(t->dtype) * dtype_size(j->as);
    return 0;
}

bool cast_values(uint8_t *out, enum dtype to, const uint8_t *in, enum dtype from, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (to == DTYPE_I32) {
            int64_t v;
            memcpy(&v, in + i * sizeof v, sizeof v);
            int32_t narrow = (int32_t)v;
            if (narrow != v)
                return false;
            memcpy(out + i * sizeof narrow, &narrow, sizeof narrow);
        } else {
            uint16_t code;
            memcpy(&code, in + i * sizeof code, sizeof code);
            float f = from == DTYPE_F16 ? f16_value(code) : bf16_value(code);
            memcpy(out + i * sizeof f, &f, sizeof f);
        }
    }
    return true;
}

/* ------------------------------------------------------------------ all of them */

bool gguf_leaves_out(const struct config *c, const char *name)
{
    unsigned layer;
    int end = 0;
    enum tensor_class class = tensor_class_of(name);
    if (class == CLASS_DRAFT || class == CLASS_VISION)
        return true;
    return sscanf(name, "layers.%u.ffn.gate.bias%n", &layer, &end) == 1 && end > 0 &&
           layer < c->n_hash_layers;
}

static int set_jobs(struct plan *p, dsv4_err *err)
{
    char weight[MATRIX_NAME];
    size_t kept = 0;
    for (size_t i = 0; i < p->n; i++) {
        struct job *j = &p->job[i];
        bool out = gguf_leaves_out(p->source->cfg, j->name);
        p->left_out += out;
        if (out || scaled_name(j->name, weight, sizeof weight)) /* which goes with its matrix */
            continue;
        TRY(find_matrix(p->source, j, err));
        TRY(j->type ? set_matrix(p, j, err) : set_other(j, err));
        p->job[kept++] = *j;
    }
    p->n = kept;
    return 0;
}

static int by_order(const void *a, const void *b)
{
    const struct slot *x = a, *y = b;
    if (x->name.order != y->name.order)
        return x->name.order < y->name.order ? -1 : 1;
    return (x->name.expert > y->name.expert) - (x->name.expert < y->name.expert);
}

static int set_slots(const struct plan *p, struct slot *slot, dsv4_err *err)
{
    for (size_t i = 0; i < p->n; i++) {
        slot[i].job = &p->job[i];
        if (!gguf_name_of(&slot[i].name, p->job[i].name))
            return err_set(err, DSV4_REFUSED, "%s: %s has no name in GGUF files",
                           p->job[i].from->path, p->job[i].from->stored);
    }
    qsort(slot, p->n, sizeof *slot, by_order);
    return 0;
}

/* ------------------------------------------------------------------ the header */

static uint32_t type_id(const struct job *j)
{
    if (!j->type)
        return gguf_type_id(j->as);
    if (j->blocks)
        return block_id(j->blocks);
    enum wformat f = j->type->format;
    return gguf_type_id(f == W_F32 ? DTYPE_F32 : f == W_F16 ? DTYPE_F16 : DTYPE_BF16);
}

/* Name, dimensions (columns first), type, place. */
static int add_entry(struct bytes *b, const struct slot *s, uint64_t experts, dsv4_err *err)
{
    const struct job *j = s->job;
    uint64_t dim[TENSOR_MAX_RANK], len = strlen(s->name.text);
    uint32_t rank = 0, id = type_id(j);
    if (j->type) {
        dim[rank++] = j->out.cols;
        dim[rank++] = j->out.rows;
    } else {
        for (uint32_t i = j->to->rank; i-- > 0;)
            dim[rank++] = j->to->dim[i];
    }
    if (s->name.expert >= 0)
        dim[rank++] = experts;
    TRY(bytes_add(b, &len, sizeof len, err));
    TRY(bytes_add(b, s->name.text, (size_t)len, err));
    TRY(bytes_add(b, &rank, sizeof rank, err));
    TRY(bytes_add(b, dim, rank * sizeof *dim, err));
    TRY(bytes_add(b, &id, sizeof id, err));
    return bytes_add(b, &j->at[0], sizeof j->at[0], err);
}

/* Experts lie one behind the other: all of them are there, alike. */
static int check_experts(const struct plan *p, const struct slot *s, size_t n, uint64_t experts,
                         dsv4_err *err)
{
    const struct job *first = s[0].job;
    for (size_t i = 0; i < n; i++) {
        const struct job *j = s[i].job;
        if (s[i].name.expert != (int64_t)i || n != experts || !j->type)
            return err_set(err, DSV4_REFUSED,
                           "%s: %s wants the matrices of %llu experts; there are %zu",
                           p->source->dir, s->name.text, (unsigned long long)experts, n);
        if (type_id(j) != type_id(first) || j->out.rows != first->out.rows ||
            j->out.cols != first->out.cols)
            return err_set(
                err, DSV4_REFUSED,
                "%s: %s and %s have another type or shape; in GGUF the experts of a layer "
                "are one tensor",
                p->source->dir, first->from->stored, j->from->stored);
    }
    return 0;
}

/* The places of all data, and in `out` what the file says of them; *n tensors. */
static int place_tensors(struct plan *p, struct slot *slot, struct bytes *out, uint64_t *n,
                         uint64_t *end, dsv4_err *err)
{
    uint64_t experts = p->pruning ? p->pruning->kept : p->source->cfg->n_experts;
    *n = *end = 0;
    for (size_t i = 0, next; i < p->n; i = next) {
        for (next = i + 1; next < p->n && slot[next].name.order == slot[i].name.order;)
            next++;
        if (slot[i].name.expert >= 0)
            TRY(check_experts(p, slot + i, next - i, experts, err));
        *end = (*end + GGUF_ALIGNMENT - 1) / GGUF_ALIGNMENT * GGUF_ALIGNMENT;
        for (size_t k = i; k < next; k++) {
            slot[k].job->at[0] = *end;
            *end += slot[k].job->bytes[0];
        }
        TRY(add_entry(out, &slot[i], experts, err));
        ++*n;
    }
    return 0;
}

/* The type of the routed experts, which are most of a model. */
static uint32_t file_type(const struct plan *p)
{
    for (size_t i = 0; i < p->n; i++)
        for (size_t k = 0; k < sizeof file_types / sizeof *file_types; k++)
            if (p->job[i].class == CLASS_EXPERTS &&
                strcmp(p->job[i].type->name, file_types[k].type) == 0)
                return file_types[k].number;
    return 0;
}

static int add_metadata(const struct plan *p, struct bytes *out, uint64_t *keys, dsv4_err *err)
{
    enum { FILES = 4 };
    static const char *const file[FILES] = {"tokenizer.json", "tokenizer_config.json",
                                            "chat_template.jinja", "generation_config.json"};
    const struct source *s = p->source;
    const char *slash = strrchr(s->dir, '/');
    struct checkpoint_text text[FILES] = {0};
    struct config c = *s->cfg;
    c.n_experts = p->pruning ? p->pruning->kept : c.n_experts;
    int rc = 0;
    for (size_t i = 0; i < FILES && rc == 0 && !s->shapes; i++)
        rc = checkpoint_text(&text[i], s->dir, file[i], i == 0, err);
    struct gguf_about about = {.name = slash && slash[1] ? slash + 1 : s->dir,
                               .cfg = &c,
                               .tokenizer = text[0].text,
                               .settings = text[1].text,
                               .chat = text[2].text,
                               .generation = text[3].text,
                               .where = s->dir,
                               .file_type = file_type(p)};
    if (rc == 0)
        rc = gguf_metadata(out, keys, &about, err);
    for (size_t i = 0; i < FILES; i++)
        checkpoint_text_close(&text[i]);
    return rc;
}

/* All that stands in front of the data, as a multiple of the alignment. */
static int make_header(const struct plan *p, struct bytes *out, const struct bytes *entries,
                       uint64_t tensors, dsv4_err *err)
{
    struct bytes meta = {0};
    uint64_t keys = 0;
    int rc = add_metadata(p, &meta, &keys, err);
    if (rc == 0)
        rc = gguf_begin(out, tensors, keys, err);
    if (rc == 0)
        rc = bytes_add(out, meta.data, meta.len, err);
    if (rc == 0)
        rc = bytes_add(out, entries->data, entries->len, err);
    while (rc == 0 && out->len % GGUF_ALIGNMENT != 0)
        rc = bytes_add(out, "", 1, err);
    free(meta.data);
    return rc;
}

static int make_file(struct plan *p, struct slot *slot, dsv4_err *err)
{
    struct bytes entries = {0}, header = {0};
    struct shard *s = p->shard;
    uint64_t tensors, end;
    TRY(set_slots(p, slot, err));
    int rc = place_tensors(p, slot, &entries, &tensors, &end, err);
    if (rc == 0)
        rc = make_header(p, &header, &entries, tensors, err);
    free(entries.data);
    s->header = header.data;
    s->header_len = header.len;
    s->n_jobs = p->n;
    s->bytes = p->bytes = header.len + end;
    return rc;
}

int plan_gguf(struct plan *p, dsv4_err *err)
{
    struct slot *slot;
    p->gguf = true;
    TRY(gguf_says(p->source->cfg, p->source->dir, err));
    TRY(set_jobs(p, err));
    TRY(mem_alloc(&p->shard, 1, sizeof *p->shard, "a file", err));
    p->n_shards = 1;
    if (!(p->shard->name = strdup("model.gguf")))
        return err_memory(err, 16, "a name");
    TRY(mem_alloc(&slot, p->n, sizeof *slot, "the list of tensors", err));
    int rc = make_file(p, slot, err);
    free(slot);
    return rc == 0 ? plan_identify(p, err) : rc;
}
