/* Weights into memory: plain rows of the mapped checkpoint become panels, in parallel. Every lane packs what
 * it will read, so that the first touch puts a page near its reader, and gives the checkpoint's pages back.
 * Panels of a converted directory are copied to their nodes; with one node they are used where they are. */
#include "model.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ALIGN = 64, LOOK = 4 * PANEL };

struct loading {
    struct model *m;
    size_t order_n;
    struct matrix **order; /* as they lie in the files */
    uint64_t total;
    _Atomic uint64_t done;
    atomic_bool stop;
    _Atomic(const struct matrix *) bad; /* holds a NaN */
    dsv4_progress_fn progress;
    void *arg;
};

static int by_place(const void *a, const void *b)
{
    const uint8_t *x = (*(struct matrix *const *)a)->stored.codes;
    const uint8_t *y = (*(struct matrix *const *)b)->stored.codes;
    return (x > y) - (x < y);
}

static size_t aligned(size_t n)
{
    return (n + ALIGN - 1) & ~(size_t)(ALIGN - 1);
}

static size_t part_bytes(const struct wmat *w)
{
    size_t n = panel_count(w);
    return aligned(n * w->code_ld) + aligned(n * w->scale_ld);
}

/* ------------------------------------------------------------------ memory */

uint64_t weights_bytes(const struct wmat *stored)
{
    struct wmat w = panel_shape(stored, stored->rows);
    return part_bytes(&w);
}

/* Panels that serve as they are. */
static bool in_place(const struct matrix *w, const struct pool *pool)
{
    return w->stored.panels && pool_nodes(pool) == 1;
}

/* Parts of every matrix, one a node, and the bytes of each node. */
static int shape_parts(struct model *m, struct pool *pool, uint64_t *bytes, dsv4_err *err)
{
    uint32_t nodes = (uint32_t)pool_nodes(pool);
    struct part *part;
    size_t count;
    if (!size_mul(m->n_matrix, nodes, &count))
        return err_memory(err, UINT64_MAX, "weights");
    TRY(model_own(m, &part, count, sizeof *part, "weights", err));
    for (size_t i = 0; i < m->n_matrix; i++) {
        struct matrix *w = m->matrix[i];
        if (in_place(w, pool))
            continue;
        w->part = part;
        w->n_parts = 0;
        for (uint32_t k = 0; k < nodes; k++) {
            size_t from, to;
            node_split(pool, w->rows, ROW_UNIT, (int)k, &from, &to);
            if (from == to)
                continue;
            part->first = (uint32_t)from;
            part->node = k;
            part->w = panel_shape(&w->stored, to - from);
            bytes[k] += part_bytes(&part->w);
            part++;
            w->n_parts++;
        }
    }
    return 0;
}

/* One mapping a node holds its parts, one behind the other. */
static int place_parts(struct model *m, struct pool *pool, const uint64_t *bytes, dsv4_err *err)
{
    int nodes = pool_nodes(pool);
    TRY(model_own(m, &m->arena, (size_t)nodes, sizeof *m->arena, "weights", err));
    for (int k = 0; k < nodes; k++) {
        if (bytes[k] > SIZE_MAX)
            return err_memory(err, bytes[k], "weights");
        TRY(mem_map(&m->arena[k].at, (size_t)bytes[k], pool_node_os(pool, k), "weights", err));
        m->arena[k].bytes = (size_t)bytes[k];
        m->n_arenas++;
    }
    uint8_t *at[MAX_NODES];
    for (int k = 0; k < nodes; k++)
        at[k] = m->arena[k].at;
    for (size_t i = 0; i < m->n_matrix; i++) {
        struct matrix *w = m->matrix[i];
        if (in_place(w, pool))
            continue;
        for (uint32_t p = 0; p < w->n_parts; p++) {
            struct wmat *part = &w->part[p].w;
            uint8_t **room = &at[w->part[p].node];
            part->codes = *room;
            part->scales = *room + aligned(panel_count(part) * part->code_ld);
            *room += part_bytes(part);
        }
    }
    return 0;
}

/* ------------------------------------------------------------------ packing */

/* Advice on the whole pages inside a range of a mapped file. */
static void advise(const uint8_t *p, size_t n, int advice)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)p + page - 1) & ~(page - 1), to = ((uintptr_t)p + n) & ~(page - 1);
    if (from < to)
        madvise((void *)from, to - from, advice);
}

/* Bytes of the codes of so many rows, whole panels where there are panels. */
static size_t stored_bytes(const struct matrix *w, size_t rows)
{
    size_t units = w->stored.panels ? (rows + PANEL - 1) / PANEL : rows;
    return units * w->stored.code_ld;
}

/* Stored codes of the rows r0 .. r1, r0 where a panel begins. */
static void advise_rows(const struct matrix *w, size_t r0, size_t r1, int advice)
{
    advise(w->stored.codes + stored_bytes(w, r0), stored_bytes(w, r1 - r0), advice);
}

/* Rows r0 .. r1 of a matrix, inside its part. */
static void pack_rows(const struct matrix *w, const struct part *p, size_t r0, size_t r1)
{
    for (size_t r = r0; r < r1; r += PANEL) {
        size_t panel = (r - p->first) / PANEL, from = r / PANEL;
        uint8_t *codes = (uint8_t *)(uintptr_t)p->w.codes + panel * p->w.code_ld;
        uint8_t *scales = (uint8_t *)(uintptr_t)p->w.scales + panel * p->w.scale_ld;
        if (!w->stored.panels) {
            panel_pack(codes, scales, &w->stored, r);
            continue;
        }
        memcpy(codes, w->stored.codes + from * w->stored.code_ld, p->w.code_ld);
        if (p->w.scale_ld > 0)
            memcpy(scales, w->stored.scales + from * w->stored.scale_ld, p->w.scale_ld);
    }
}

/* Whether n bytes of f16 hold a NaN or an infinity. */
static bool half_has_nan(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i + 2 <= n; i += 2) {
        uint16_t v;
        memcpy(&v, p + i, sizeof v);
        if ((v & 0x7c00) == 0x7c00)
            return true;
    }
    return false;
}

/* Looks at rows that were just packed, while they are in the cache. */
static bool has_nan(const struct part *p, bool blocks, size_t r0, size_t r1)
{
    size_t first = (r0 - p->first) / PANEL, n = (r1 - r0 + PANEL - 1) / PANEL;
    const struct wmat *w = &p->w;
    if (blocks && wformat_has_halves(w->format))
        return half_has_nan(w->scales + first * w->scale_ld, n * w->scale_ld);
    if (w->format == W_E4M3 && e4m3_has_nan(w->codes + first * w->code_ld, n * w->code_ld))
        return true;
    return (w->format == W_E4M3 || w->format == W_E2M1) &&
           memchr(w->scales + first * w->scale_ld, 255, n * w->scale_ld);
}

static void pack_share(const struct lane *l, struct loading *s, const struct matrix *w)
{
    size_t r0, r1;
    lane_split(l, w->rows, ROW_UNIT, &r0, &r1);
    for (uint32_t i = 0; i < w->n_parts; i++) {
        const struct part *p = &w->part[i];
        size_t end = p->first + p->w.rows;
        size_t from = r0 > p->first ? r0 : p->first, to = r1 < end ? r1 : end;
        if (from >= to)
            continue;
        for (size_t r = from; r < to; r += LOOK) {
            size_t stop = to - r < LOOK ? to : r + LOOK;
            pack_rows(w, p, r, stop);
            if (has_nan(p, w->stored.blocks != NULL, r, stop))
                atomic_store(&s->bad, w);
        }
        advise_rows(w, from, to, MADV_DONTNEED);
        atomic_fetch_add(&s->done, stored_bytes(w, to - from));
    }
}

static void pack(const struct lane *l, void *arg)
{
    struct loading *s = arg;
    uint64_t next = 0;
    for (size_t i = 0; i < s->order_n && !atomic_load(&s->stop); i++) {
        if (i + 1 < s->order_n) { /* read ahead while this one is packed */
            const struct matrix *w = s->order[i + 1];
            size_t r0, r1;
            lane_split(l, w->rows, ROW_UNIT, &r0, &r1);
            advise_rows(w, r0, r1, MADV_WILLNEED);
        }
        pack_share(l, s, s->order[i]);
        uint64_t done = atomic_load(&s->done);
        if (l->id == 0 && s->progress && (done >= next || done == s->total)) {
            next = done + (64u << 20);
            if (s->progress(s->arg, done, s->total))
                atomic_store(&s->stop, true);
        }
    }
}

static int outcome(const struct loading *s, dsv4_err *err)
{
    const struct matrix *bad = atomic_load(&s->bad);
    const struct tensor *t = bad ? store_find(s->m->store, bad->name) : NULL;
    if (t)
        return err_set(err, DSV4_REFUSED, "%s: %s holds a NaN, in its codes or its scales", t->path,
                       t->stored);
    if (atomic_load(&s->stop))
        return err_set(err, DSV4_INTERRUPTED, "interrupted while reading weights");
    if (s->progress)
        s->progress(s->arg, s->total, s->total);
    return 0;
}

int weights_load(struct model *m, struct pool *pool, dsv4_progress_fn progress, void *arg,
                 dsv4_err *err)
{
    struct loading s = {.m = m, .progress = progress, .arg = arg};
    uint64_t bytes[MAX_NODES] = {0};
    TRY(shape_parts(m, pool, bytes, err));
    TRY(place_parts(m, pool, bytes, err));
    TRY(mem_alloc(&s.order, m->n_matrix, sizeof *s.order, "the order of reading", err));
    for (size_t i = 0; i < m->n_matrix; i++) {
        if (in_place(m->matrix[i], pool))
            continue;
        s.order[s.order_n++] = m->matrix[i];
        s.total += stored_bytes(m->matrix[i], m->matrix[i]->rows);
    }
    qsort(s.order, s.order_n, sizeof *s.order, by_place); /* disks like their order */
    if (s.order_n > 0)
        pool_run(pool, pack, &s);
    free(s.order);
    return s.order_n > 0 ? outcome(&s, err) : 0;
}
