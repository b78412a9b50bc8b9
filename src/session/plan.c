/* The memory plan, made before anything is read, and the data sheet of a checkpoint. Both are facts
 * about tensor names, config and options: nothing here touches a weight. */
#include "session.h"

#include <stdio.h>
#include <string.h>

enum { DEFAULT_BATCH = 256, DEFAULT_REWIND = 64, MAX_BATCH = 65536, MAX_SEQUENCES = 4096 };

bool class_is_used(enum tensor_class c)
{
    return c != CLASS_DRAFT && c != CLASS_VISION && c != CLASS_OTHER;
}

bool tensor_is_read(const struct tensor *t)
{
    enum tensor_class c = tensor_class_of(t->name);
    return class_is_used(c) && c != CLASS_ENGRAM_TABLE;
}

/* Numbers in a tensor, scales not counted; panels may have a few rows more than the matrix. */
static uint64_t tensor_weights(const struct checkpoint *c, const struct tensor *t)
{
    char weight[512], matrix[512];
    bool scale = scaled_name(t->name, weight, sizeof weight);
    if (scale && t->dtype == DTYPE_E8M0)
        return 0;
    bool named = matrix_name(scale ? weight : t->name, matrix, sizeof matrix);
    const struct wtype *type = named ? packing_type(c->cfg->packing, matrix) : NULL;
    if (t->blocks)
        return t->dim[0] * (t->rank > 1 ? t->dim[1] : 1);
    if (!type)
        return t->bytes / dtype_size(t->dtype) * (t->dtype == DTYPE_I8 ? 2 : 1);
    return scale ? 0 : t->bytes / wformat_row_bytes(type->format, GROUP) * GROUP;
}

/* Bytes of a matrix in the files, its scales included. */
static uint64_t stored_bytes(const struct wmat *w)
{
    uint64_t scales = w->scales ? (w->rows + w->block_rows - 1) / w->block_rows : 0;
    return (uint64_t)w->rows * w->code_ld + scales * w->scale_ld;
}

void checkpoint_classes(const struct checkpoint *c, struct class_sum out[N_CLASSES])
{
    memset(out, 0, N_CLASSES * sizeof *out);
    if (c->made) {
        memcpy(out, c->made->sum, sizeof c->made->sum);
        return;
    }
    for (size_t i = 0; i < store_count(c->store); i++) {
        const struct tensor *t = store_at(c->store, i);
        struct class_sum *s = &out[tensor_class_of(t->name)];
        s->tensors++;
        s->bytes += t->bytes;
        s->held += t->bytes;
        s->by_dtype[t->dtype] += t->bytes;
        s->weights += tensor_weights(c, t);
    }
    for (size_t i = 0; i < c->m->n_matrix;
         i++) { /* panels take the place of what they are made of */
        const struct matrix *w = c->m->matrix[i];
        if (!w->stored.panels)
            out[tensor_class_of(w->name)].held +=
                weights_bytes(&w->stored) - stored_bytes(&w->stored);
    }
}

/* The tokenizer and its tables, stacks of threads, the C library. */
static uint64_t other_bytes(const struct memory_plan *p, const struct config *c)
{
    return (48ull << 20) + (uint64_t)p->threads * (256u << 10) + (uint64_t)c->vocab * 256;
}

static void size_for(struct memory_plan *p, const struct checkpoint *c, uint32_t ctx)
{
    p->ctx = ctx;
    p->caches = p->sequences * cache_bytes(c->m, p->batch, p->rewind, ctx);
    p->scratch = batch_bytes(c->m, p->batch, p->sequences, p->threads);
}

static uint64_t own_bytes(const struct memory_plan *p)
{
    return p->caches + p->scratch + p->other;
}

static int check_options(const dsv4_options *o, const struct config *c, dsv4_err *err)
{
    if (o->ctx > c->max_ctx)
        return err_set(err, DSV4_USAGE, "a context of %u tokens; the model has at most %u", o->ctx,
                       c->max_ctx);
    if (o->batch > MAX_BATCH)
        return err_set(err, DSV4_USAGE, "batches of %u rows; at most %d", o->batch, MAX_BATCH);
    if (o->sequences > MAX_SEQUENCES)
        return err_set(err, DSV4_USAGE, "%u sequences; at most %d", o->sequences, MAX_SEQUENCES);
    if (o->rewind > (1u << 20))
        return err_set(err, DSV4_USAGE, "a rewind of %u tokens; at most %u", o->rewind, 1u << 20);
    return 0;
}

int plan_threads(struct placement *out, const dsv4_options *o, dsv4_err *err)
{
    struct placement_options p = {.cpus = o->cpus, .numa = o->numa};
    p.threads = o->threads > INT32_MAX ? INT32_MAX : (int)o->threads;
    return placement_here(out, &p, err);
}

/* The longest context whose caches and buffers fit into `room` bytes; 0 when none does. */
static uint32_t longest_context(struct memory_plan *p, const struct checkpoint *c, uint64_t room)
{
    uint32_t low = 0, high = c->cfg->max_ctx;
    while (low < high) {
        uint32_t mid = low + (high - low + 1) / 2;
        size_for(p, c, mid);
        if (own_bytes(p) <= room)
            low = mid;
        else
            high = mid - 1;
    }
    return low;
}

static int refuse(const struct memory_plan *p, dsv4_err *err)
{
    return err_set(
        err, DSV4_NO_MEMORY,
        "not enough memory: weights %.2f GiB + caches for %u tokens %.2f GiB + buffers and "
        "the rest %.2f GiB = %.2f GiB; available are %.2f GiB (a smaller --ctx or --batch "
        "helps; --paged reads weights from disk as needed)",
        gib(p->weights), p->ctx, gib(p->caches), gib(p->scratch + p->other),
        gib(p->weights + own_bytes(p)), gib(p->available));
}

int plan_make(struct memory_plan *p, const struct checkpoint *c, const dsv4_options *opt,
              const struct placement *place, bool anyway, dsv4_err *err)
{
    struct class_sum sum[N_CLASSES];
    TRY(check_options(opt, c->cfg, err));
    *p = (struct memory_plan){.batch = opt->batch ? opt->batch : DEFAULT_BATCH,
                              .sequences = opt->sequences ? opt->sequences : 1,
                              .rewind = opt->rewind ? opt->rewind : DEFAULT_REWIND,
                              .threads = place->n_lanes};
    checkpoint_classes(c, sum);
    for (int i = 0; i < N_CLASSES; i++) {
        if (i == CLASS_ENGRAM_TABLE)
            p->tables += sum[i].bytes;
        else if (!class_is_used((enum tensor_class)i))
            p->unused += sum[i].bytes;
        else
            p->weights += opt->paged ? sum[i].bytes : sum[i].held;
    }
    p->other = other_bytes(p, c->cfg);
    p->available = opt->max_memory ? opt->max_memory : mem_available();
    uint64_t weights = opt->paged ? 0 : p->weights;
    uint64_t room = p->available > weights ? p->available - weights : 0;
    uint32_t ctx = opt->ctx;
    if (ctx == 0) {
        ctx = longest_context(p, c, room);
        uint32_t least = c->cfg->max_ctx < 512 ? c->cfg->max_ctx : 512;
        ctx = ctx < least ? least : ctx; /* refused below, with figures */
    }
    size_for(p, c, ctx);
    return own_bytes(p) <= room || anyway ? 0 : refuse(p, err);
}
