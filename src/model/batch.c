/* A batch: the rows of one step and the scratch that every operator works in. All memory is taken
 * once, sized by the largest step, so that a step allocates nothing. What only one part of a layer works
 * in lies where the other parts have theirs: every lane has left a part before any begins the next. */
#include "model.h"

#include <stdlib.h>
#include <string.h>

/* The part of a layer in which a buffer means something. */
enum stage { WHOLE_STEP, ATTENTION, EXPERTS, ENGRAM, N_STAGES };

/* Adds up, or takes: one list of buffers serves the plan and the allocation. */
struct taker {
    struct batch *b; /* NULL: only add up */
    uint64_t bytes[N_STAGES];
    uint8_t *shared; /* by the parts of a layer */
    int rc;
    dsv4_err *err;
};

static int own(struct batch *b, void *out_pointer, uint64_t n, size_t size, dsv4_err *err)
{
    void *p;
    TRY(mem_grow(&b->owned, &b->cap_owned, b->n_owned + 1, sizeof *b->owned, "a batch", err));
    TRY(mem_alloc(&p, n, size, "the buffers of a step", err));
    b->owned[b->n_owned++] = p;
    memcpy(out_pointer, &p, sizeof p);
    return 0;
}

static void take_in(struct taker *t, enum stage stage, void *out_pointer, uint64_t n, size_t size)
{
    uint64_t at = t->bytes[stage];
    t->bytes[stage] += (n * size + 63) & ~63ull;
    if (!t->b || t->rc != 0)
        return;
    if (stage == WHOLE_STEP) {
        t->rc = own(t->b, out_pointer, n, size, t->err);
        return;
    }
    void *p = t->shared + at;
    memcpy(out_pointer, &p, sizeof p);
}

static void take(struct taker *t, void *out_pointer, uint64_t n, size_t size)
{
    take_in(t, WHOLE_STEP, out_pointer, n, size);
}

static uint64_t max2(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t max4(uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    return max2(max2(a, b), max2(c, d));
}

/* Floats each lane needs for itself: an expanded row of any matrix, a tile of attention, the
 * compressors' running sums, an indexer's query and its best entries, weights that products take apart. */
static uint64_t scratch_floats(const struct config *c)
{
    uint64_t columns = (uint64_t)(c->n_engram ? c->engram_ngram - 1 : 0) * c->engram_heads;
    uint64_t row =
        max4((uint64_t)c->hc_mult * c->d, (uint64_t)c->n_heads * c->head_dim / c->o_groups,
             (uint64_t)c->o_groups * c->o_lora,
             max4(c->q_lora, (uint64_t)c->d_ff * max2(c->n_shared, 1), c->head_dim,
                  columns * c->engram_dim));
    uint64_t most = max4(row, attend_words(c), compress_words(c), choose_words(c));
    return (max2(most, FAST_TMP / sizeof(float)) + 15) & ~15ull;
}

static uint64_t shared_bytes(const struct taker *t)
{
    return max2(max2(t->bytes[ATTENTION], t->bytes[EXPERTS]), t->bytes[ENGRAM]);
}

/* ORDER ACTS */
static const enum stage stage_of_act[N_ACTS] = {WHOLE_STEP, ATTENTION, ATTENTION,
                                                ATTENTION,  EXPERTS,   EXPERTS};

static void take_quantized(struct taker *t, enum stage stage, struct qrows *q, enum qkind kind,
                           uint64_t rows, uint64_t cols)
{
    q->kind = kind;
    q->cols = (size_t)cols;
    take_in(t, stage, &q->code, rows * cols, kind == Q_8 ? 1 : 2);
    take_in(t, stage, &q->scale, rows * (cols / GROUP), sizeof *q->scale);
    take_in(t, stage, &q->sum, rows * (cols / GROUP), sizeof *q->sum);
}

static void layout(struct taker *t, const struct model *m, uint64_t n, uint64_t seqs, int lanes,
                   struct batch *b)
{
    const struct config *c = m->cfg;
    uint64_t hc = c->hc_mult, d = c->d, heads = (uint64_t)c->n_heads * c->head_dim, k = c->top_k;
    uint64_t coff = c->family == FAMILY_V4 ? 2 : 1, columns = 0;
    if (c->n_engram)
        columns = (uint64_t)(c->engram_ngram - 1) * c->engram_heads;
    b->scratch_ld = (size_t)scratch_floats(c);

    take(t, &b->seg, seqs, sizeof *b->seg);
    take(t, &b->row_seg, n, sizeof *b->row_seg);
    take(t, &b->pos, n, sizeof *b->pos);
    take(t, &b->token, n, sizeof *b->token);
    take(t, &b->want, n, sizeof *b->want);
    take(t, &b->bulk, n, sizeof *b->bulk);
    take(t, &b->sel, n * c->index_topk, sizeof *b->sel);
    take(t, &b->n_sel, n, sizeof *b->n_sel);
    take(t, &b->piece_end, (uint64_t)lanes, sizeof *b->piece_end);
    take(t, &b->unit_end, n, sizeof *b->unit_end);
    take(t, &b->piece, c->index_topk ? (n + (uint64_t)lanes) * piece_words(c) : 0,
         sizeof *b->piece);
    take(t, &b->cand, n * c->candidate_blocks, sizeof *b->cand);
    take(t, &b->n_cand, n, sizeof *b->n_cand);
    take(t, &b->group_row, n * c->o_groups, sizeof *b->group_row);
    take(t, &b->pick, n * k, sizeof *b->pick);
    take(t, &b->expert_at, (uint64_t)c->n_experts + 1, sizeof *b->expert_at);
    take(t, &b->expert_row, n * k, sizeof *b->expert_row);
    take(t, &b->expert_slot, n * k, sizeof *b->expert_slot);
    take(t, &b->identity, n * k, sizeof *b->identity);

    const struct {
        enum stage stage;
        float **at;
        uint64_t floats;
    } f[] = {
        {WHOLE_STEP, &b->cs[0], n * c->rope_dim},
        {WHOLE_STEP, &b->cs[1], n * c->rope_dim},
        {WHOLE_STEP, &b->h, n * hc * d},
        {WHOLE_STEP, &b->x, n * d},
        {WHOLE_STEP, &b->y, n * d},
        {WHOLE_STEP, &b->hc_part, n * hc_part_floats(c)},
        {WHOLE_STEP, &b->mix, n * (2 + hc) * hc},
        {WHOLE_STEP, &b->pre, n * hc},
        {WHOLE_STEP, &b->post, n * hc},
        {WHOLE_STEP, &b->comb, n * hc * hc},
        {WHOLE_STEP, &b->carried, n * hc},
        {ATTENTION, &b->qr, n * c->q_lora},
        {ATTENTION, &b->qr_squares, n * (((uint64_t)c->q_lora + ROW_UNIT - 1) / ROW_UNIT)},
        {ATTENTION, &b->q, n * heads},
        {ATTENTION, &b->z, n * c->o_groups * c->o_lora},
        {ATTENTION, &b->kv, n * c->head_dim},
        {ATTENTION, &b->ck, n * coff * c->head_dim},
        {ATTENTION, &b->cg, n * coff * c->head_dim},
        {ATTENTION, &b->ik, n * coff * c->index_dim},
        {ATTENTION, &b->ig, n * coff * c->index_dim},
        {ATTENTION, &b->iq, n * c->index_heads * c->index_dim},
        {ATTENTION, &b->iw, n * c->index_heads},
        {EXPERTS, &b->router, n * c->n_experts},
        {EXPERTS, &b->pick_w, n * k},
        {EXPERTS, &b->expert_w, n * k},
        {EXPERTS, &b->up, n * k * c->d_ff},
        {EXPERTS, &b->shared, n * c->n_shared * c->d_ff},
        {EXPERTS, &b->gate, n * (k + c->n_shared) * c->d_ff},
        {EXPERTS, &b->down, n * k * d},
        {ENGRAM, &b->memory, n * columns * c->engram_dim},
        {ENGRAM, &b->mkv, columns ? n * (hc + 1) * d : 0},
        {WHOLE_STEP, &b->scratch, (uint64_t)lanes * b->scratch_ld},
    };
    for (size_t i = 0; i < sizeof f / sizeof *f; i++)
        take_in(t, f[i].stage, f[i].at, f[i].floats, sizeof(float));
    for (int a = 0; a < N_ACTS; a++)
        for (int kind = Q_8; kind < Q_KINDS; kind++)
            if (m->act_kinds[a] >> kind & 1)
                take_quantized(t, stage_of_act[a], &b->quant[a][kind], (enum qkind)kind,
                               n * act_rows(c, (enum act)a), act_width(c, (enum act)a));
}

uint64_t batch_bytes(const struct model *m, size_t rows, size_t seqs, int lanes)
{
    struct batch unused = {0};
    struct taker t = {0};
    layout(&t, m, rows, seqs, lanes, &unused);
    return sizeof unused + t.bytes[WHOLE_STEP] + shared_bytes(&t);
}

static int take_all(struct batch *b, size_t rows, size_t seqs, int lanes, dsv4_err *err)
{
    struct taker sizes = {0}, t = {.b = b, .err = err};
    layout(&sizes, b->m, rows, seqs, lanes, b);
    TRY(own(b, &t.shared, shared_bytes(&sizes), 1, err));
    layout(&t, b->m, rows, seqs, lanes, b);
    return t.rc;
}

int batch_open(struct batch **out, const struct model *m, size_t rows, size_t seqs, int lanes,
               dsv4_err *err)
{
    struct batch *b;
    TRY(mem_alloc(&b, 1, sizeof *b, "a batch", err));
    b->m = m;
    b->cap = rows;
    b->cap_seq = seqs;
    int rc = take_all(b, rows, seqs, lanes, err);
    if (rc != 0) {
        batch_close(b);
        return rc;
    }
    for (uint32_t g = 0; g < m->cfg->o_groups; g++)
        for (size_t i = 0; i < rows; i++)
            b->group_row[g * rows + i] = (uint32_t)i * m->cfg->o_groups + g;
    for (size_t i = 0; i < rows * m->cfg->top_k; i++)
        b->identity[i] = (uint32_t)i;
    *out = b;
    return 0;
}

void batch_close(struct batch *b)
{
    if (!b)
        return;
    for (size_t i = 0; i < b->n_owned; i++)
        free(b->owned[i]);
    free(b->owned);
    free(b);
}

void batch_begin(struct batch *b)
{
    b->n = b->n_seg = b->n_want = 0;
}

void batch_add(struct batch *b, struct cache *cache, int32_t token, bool want_logits)
{
    if (b->n_seg == 0 || b->seg[b->n_seg - 1].cache != cache)
        b->seg[b->n_seg++] = (struct segment){.cache = cache, .row = b->n, .pos = cache->len};
    struct segment *s = &b->seg[b->n_seg - 1];
    size_t pos = s->pos + s->n++;
    b->row_seg[b->n] = (uint32_t)(b->n_seg - 1);
    b->pos[b->n] = pos;
    b->token[b->n] = token;
    cache->token[pos] = token;
    if (cache->folded)
        cache->folded[pos] = b->m->engram_map[token];
    b->bulk[b->n++] = true;
    if (want_logits)
        batch_want(b, b->n - 1);
}

void batch_want(struct batch *b, size_t row)
{
    b->bulk[row] = false;
    b->want[b->n_want++] = (uint32_t)row;
}

/* Streams start as copies of the token's embedding; rope tables of the step. */
void embed(const struct lane *l, struct batch *b)
{
    const struct config *c = b->m->cfg;
    size_t hc = c->hc_mult, d = c->d, r0, r1;
    lane_split(l, b->n, 1, &r0, &r1);
    for (size_t r = r0; r < r1; r++) {
        float *h = b->h + r * hc * d;
        row_floats(&b->m->k, h, &b->m->embed, (size_t)b->token[r]);
        for (size_t s = 1; s < hc; s++)
            memcpy(h + s * d, h, d * sizeof *h);
        for (size_t s = 0; s < hc; s++)
            b->carried[r * hc + s] = s == 0;
        for (int i = 0; i < 2; i++)
            rope_pairs(b->cs[i] + r * c->rope_dim, b->m->freq[i], c->rope_dim, b->pos[r]);
    }
    lane_barrier(l);
    lap(l, b, -1, OP_EMBED);
}

/* b->x (rows whose logits are wanted) -> logits. */
void head(const struct lane *l, struct batch *b)
{
    const struct config *c = b->m->cfg;
    size_t d = c->d, r0, r1;
    lane_split(l, b->n_want, 1, &r0, &r1);
    for (size_t r = r0; r < r1; r++) {
        rms(&b->m->k, b->x + r * d, b->x + r * d, b->m->norm, d, c->eps);
        act_ready(b, ACT_X, r, 0, d);
    }
    lane_barrier(l);
    TAP(l, b, -1, "final_norm", b->x, b->n_want, d);
    if (b->m->k.fast[b->m->head.stored.format] == Q_16) /* rows are those of b->want here */
        linear(l, b, b->logits, c->vocab, b->x, d, b->n_want, &b->m->head);
    else
        linear_act(l, b, b->logits, c->vocab, ACT_X, b->n_want, &b->m->head);
    lane_barrier(l);
    lap(l, b, -1, OP_HEAD);
}

static void run(const struct lane *l, void *arg)
{
    struct batch *b = arg;
    if (b->m->cfg->family == FAMILY_V4)
        forward_v4(l, b);
    else
        forward_v41(l, b);
}

int batch_time(struct batch *b, dsv4_err *err)
{
    TRY(mem_grow(&b->owned, &b->cap_owned, b->n_owned + 1, sizeof *b->owned, "a batch", err));
    TRY(mem_alloc(&b->spent, (size_t)b->m->cfg->n_layers + 1, N_OPS * sizeof *b->spent, "timings",
                  err));
    b->owned[b->n_owned++] = b->spent;
    return 0;
}

void lap_end(struct batch *b, int layer, enum op op)
{
    double now = clock_seconds();
    size_t row = layer < 0 ? b->m->cfg->n_layers : (size_t)layer;
    b->spent[row * N_OPS + op] += now - b->lap;
    b->lap = now;
}

void forward(struct pool *pool, struct batch *b)
{
    if (b->spent) {
        b->lap = clock_seconds();
        b->steps++;
        b->rows_timed += b->n;
    }
    unsigned before = pool_barriers(pool);
    pool_run(pool, run, b);
    b->barriers += pool_barriers(pool) - before;
    for (size_t i = 0; i < b->n_seg; i++) {
        struct cache *c = b->seg[i].cache;
        c->len += b->seg[i].n;
        c->high = c->len > c->high ? c->len : c->high;
    }
}
