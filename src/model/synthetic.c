/* Models without a checkpoint: shapes from a config, weights made up. A whole matrix is never made: its rows
 * overlap in a small block of random numbers, and packing copies them apart, so that panels have their
 * real size and lie in memory of their own. Scales are chosen so that activations stay near 1.
 *
 * Blocks are shared mappings: loading gives pages of a checkpoint back, and these have to survive that. */
#include "model.h"

#include "simd/codes.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { BLOCK = 4 << 20, TABLE = 1 << 30, NAME = 256, MAX_BLOCKS = 64 };

/* Numbers for rows of `cols` columns in one format. */
struct block {
    enum wformat format;
    uint32_t cols;
    uint8_t *codes; /* a mapping of `bytes` */
    size_t bytes;
    uint8_t *scales; /* those of one row, which all share */
};

struct synthetic {
    struct synthetic_options o;
    struct block block[MAX_BLOCKS];
    size_t n_blocks;
    void *table; /* zeros behind the Engram tables, never more than the zero page */
    uint64_t state;
};

/* ------------------------------------------------------------------ random numbers */

static uint64_t draw(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u; /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Near a standard normal: the sum of four uniform numbers. */
static float normal(uint64_t *state)
{
    uint64_t u = draw(state);
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (float)(u >> 16 * i & 0xffff) / 65536.0f - 0.5f;
    return sum * 1.7320508f;
}

/* ------------------------------------------------------------------ blocks */

/* The values of a format that has a table: those of the first type in it. */
static const int8_t *table_of(enum wformat f)
{
    const struct wtype *t = wtype_at(0);
    for (size_t i = 1; t && t->format != f; i++)
        t = wtype_at(i);
    return t ? t->table : NULL;
}

/* The root of the mean square of uniformly drawn codes. */
static double code_size(enum wformat f)
{
    const int8_t *table = table_of(f);
    const size_t values = wformat_table(f);
    double sum = 0;
    int n = 0;
    for (int i = 0; i < 256; i++) {
        double v = f == W_E4M3 ? (i & 0x7f) == 0x7f ? 0 : (double)e4m3_value[i]
                   : f == W_Q8 ? i - 128
                   : table     ? table[(size_t)i % values]
                               : (double)e2m1_value[i & 15];
        sum += v * v;
        n += f != W_E4M3 || (i & 0x7f) != 0x7f;
    }
    return sqrt(sum / n);
}

static void fill_codes(struct block *b, uint64_t *state)
{
    if (b->format == W_BF16) {
        float size = 1.0f / sqrtf((float)b->cols);
        for (size_t i = 0; i + 2 <= b->bytes; i += 2) {
            uint16_t code = bf16_code(size * normal(state));
            memcpy(b->codes + i, &code, 2);
        }
        return;
    }
    for (size_t i = 0; i + 8 <= b->bytes; i += 8) {
        uint64_t v = draw(state);
        if (b->format == W_E4M3) /* 0x7f and 0xff are NaN */
            for (int k = 0; k < 64; k += 8)
                v ^= (v >> k & 0x7f) == 0x7f ? (uint64_t)1 << k : 0;
        memcpy(b->codes + i, &v, 8);
    }
}

/* One row of scales; 2^-14 is the least normal f16, and powers of two are exact in it. */
static void fill_scales(struct block *b, size_t n)
{
    double size = 1 / (sqrt(b->cols) * code_size(b->format));
    int e = (int)lrint(log2(size));
    bool half = wformat_has_halves(b->format);
    uint16_t f16 = (uint16_t)((e < -14 ? 1 : e > 0 ? 15 : e + 15) << 10);
    for (size_t i = 0; i < n; i++)
        if (half)
            memcpy(b->scales + 2 * i, &f16, 2);
        else
            b->scales[i] = (uint8_t)(127 + e);
}

static int make_block(struct model *m, struct block *b, dsv4_err *err)
{
    struct synthetic *s = m->synthetic;
    size_t n = b->cols / GROUP + 1;
    b->bytes = BLOCK + ((wformat_row_bytes(b->format, b->cols) + 7) & ~(size_t)7);
    TRY(model_own(m, &b->scales, n, 2, "synthetic weights", err));
    void *p = mmap(NULL, b->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return err_memory(err, b->bytes, "synthetic weights");
    b->codes = p;
    s->n_blocks++;
    if (s->o.shapes_only)
        return 0;
    fill_codes(b, &s->state);
    if (b->format != W_BF16)
        fill_scales(b, n);
    return 0;
}

static int find_block(struct model *m, struct block **out, enum wformat f, uint32_t cols,
                      dsv4_err *err)
{
    struct synthetic *s = m->synthetic;
    for (size_t i = 0; i < s->n_blocks; i++)
        if (s->block[i].format == f && s->block[i].cols == cols) {
            *out = &s->block[i];
            return 0;
        }
    if (s->n_blocks == MAX_BLOCKS)
        return err_set(err, DSV4_REFUSED, "synthetic weights: more than %d shapes", MAX_BLOCKS);
    *out = &s->block[s->n_blocks];
    **out = (struct block){.format = f, .cols = cols};
    return make_block(m, *out, err);
}

/* ------------------------------------------------------------------ tensors */

/* What the released checkpoints store a tensor as, and where the options choose. */
static enum wformat format_of(const struct model *m, const char *name, uint64_t cols)
{
    static const char *const plain[] = {"embed.weight", "head.weight", "weights_proj",
                                        "compressor.",  ".ffn.gate.",  NULL};
    const struct synthetic_options *o = &m->synthetic->o;
    enum wformat f = o->dense;
    if (strstr(name, "hc_"))
        return W_F32;
    if (strstr(name, ".engram.embed."))
        return W_E4M3;
    if (strstr(name, ".ffn.experts."))
        f = o->expert;
    for (size_t i = 0; plain[i]; i++)
        if (strstr(name, plain[i]))
            f = W_BF16;
    return cols % GROUP == 0 ? f : W_BF16;
}

static struct tensor shape(const char *name, enum dtype t, uint64_t rows, uint64_t cols)
{
    return (struct tensor){.name = name,
                           .stored = name,
                           .path = "config.json",
                           .dtype = t,
                           .rank = 2,
                           .dim = {rows, cols},
                           .bytes = rows * cols * dtype_size(t)};
}

static void note(const struct model *m, const struct made_tensor *t)
{
    const struct synthetic_options *o = &m->synthetic->o;
    if (o->note)
        o->note(o->arg, t);
}

/* A matrix in a format; rows of Engram tables have scales of their own. panels: the bytes that it takes as panels;
 * 0: it stays as it is stored. */
static void note_matrix(const struct model *m, const char *name, enum wformat f, uint64_t rows,
                        uint64_t cols, uint64_t panels, bool held)
{
    bool own = strstr(name, ".engram.embed.") || f != W_E4M3;
    uint64_t block = m->cfg->fp8_block;
    char scale[NAME];
    struct made_tensor t = {.weights = rows * cols};
    switch (f) {
    case W_F32: t.data = shape(name, DTYPE_F32, rows, cols); break;
    case W_E4M3: t.data = shape(name, DTYPE_E4M3, rows, cols); break;
    case W_Q8: t.data = shape(name, DTYPE_I8, rows, cols); break;
    case W_E2M1:
    case W_Q4:
    case W_Q3:
    case W_Q2: t.data = shape(name, DTYPE_I8, rows, wformat_row_bytes(f, cols)); break;
    default: t.data = shape(name, DTYPE_BF16, rows, cols);
    }
    if (f != W_F32 && f != W_BF16 && scale_name(name, scale, sizeof scale))
        t.scale = shape(scale, wformat_has_halves(f) ? DTYPE_F16 : DTYPE_E8M0,
                        own ? rows : (rows + block - 1) / block,
                        own ? cols / GROUP : (cols + block - 1) / block);
    if (held)
        t.bytes = panels ? panels : t.data.bytes + t.scale.bytes;
    note(m, &t);
}

static void note_vector(const struct model *m, const char *name, enum dtype dtype, uint64_t n,
                        uint64_t weights)
{
    struct made_tensor t = {.data = shape(name, dtype, n, 1), .weights = weights};
    t.data.rank = 1;
    t.bytes = t.data.bytes;
    note(m, &t);
}

/* Memory of its own for a matrix that is used as it lies: real bytes are read from it. */
static int own_rows(struct model *m, struct wmat *w, const struct block *b, dsv4_err *err)
{
    struct synthetic *s = m->synthetic;
    uint8_t *p;
    size_t row = wformat_row_bytes(w->format, w->cols);
    TRY(model_own(m, &p, w->rows, row, "synthetic weights", err));
    w->codes = p;
    w->code_ld = row;
    if (w->format == W_F32) {
        float size = 1.0f / sqrtf((float)w->cols);
        for (size_t i = 0; i < (size_t)w->rows * w->cols; i++) {
            float v = size * normal(&s->state);
            memcpy(p + i * sizeof v, &v, sizeof v);
        }
        return 0;
    }
    for (size_t r = 0; r < w->rows; r++)
        memcpy(p + r * row, b->codes + r * 8 % BLOCK, row);
    return 0;
}

/* Rows at the largest distance that keeps all of them inside the block. */
static void share_rows(struct wmat *w, const struct block *b)
{
    size_t step = BLOCK / (size_t)w->rows & ~(size_t)7;
    size_t row = wformat_row_bytes(w->format, w->cols);
    w->codes = b->codes;
    w->code_ld = step < row ? step : row;
}

static int engram_table(struct model *m, struct wmat *w, dsv4_err *err)
{
    struct synthetic *s = m->synthetic;
    if (!s->table) {
        void *p = mmap(NULL, TABLE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
            return err_memory(err, TABLE, "an Engram table's addresses");
        s->table = p;
    }
    size_t row = w->cols + w->cols / GROUP, step = TABLE / w->rows;
    step = step < row ? step : row;
    w->block_rows = 1;
    w->block_cols = GROUP;
    w->codes = s->table;
    w->scales = s->table;
    w->code_ld = w->scale_ld = (TABLE - row) / w->rows < step ? (TABLE - row) / w->rows : step;
    return 0;
}

int synthetic_matrix(struct model *m, struct wmat *w, const char *name, uint64_t rows,
                     uint64_t cols, bool table, dsv4_err *err)
{
    const struct config *c = m->cfg;
    struct synthetic *s = m->synthetic;
    struct block *b = NULL;
    enum wformat f = format_of(m, name, cols);
    if (rows == 0 || cols == 0 || rows > UINT32_MAX || cols > UINT32_MAX)
        return err_set(err, DSV4_REFUSED, "%s: [%llu, %llu] is too large", name,
                       (unsigned long long)rows, (unsigned long long)cols);
    *w = (struct wmat){.format = f, .rows = (uint32_t)rows, .cols = (uint32_t)cols};
    bool engram = strstr(name, ".engram.embed.") != NULL;
    if (engram) {
        note_matrix(m, name, f, rows, cols, 0, true);
        return engram_table(m, w, err);
    }
    if (f != W_F32)
        TRY(find_block(m, &b, f, w->cols, err));
    if (f == W_E4M3)
        w->block_rows = w->block_cols = c->fp8_block;
    if (f == W_E2M1) {
        w->block_rows = 1;
        w->block_cols = GROUP;
    }
    w->table = table_of(f);
    w->scales = b ? b->scales : NULL;
    if (b)
        share_rows(w, b);
    bool stays = table || !panel_fits(w) || !matrix_packs(c, name);
    note_matrix(m, name, f, rows, cols, stays ? 0 : weights_bytes(w), !table || s->o.shapes_only);
    return stays && !table && !s->o.shapes_only ? own_rows(m, w, b, err) : 0;
}

int synthetic_vector(struct model *m, float **out, uint64_t n, const char *name, dsv4_err *err)
{
    float *v, mean = strstr(name, "norm.weight") ? 1.0f : 0.0f;
    size_t len = strlen(name);
    bool scale = len > 6 && strcmp(name + len - 6, "_scale") == 0;
    if (scale || strstr(name, ".engram.")) /* mHC scales; weights of queries and keys */
        mean = 1;
    TRY(model_own(m, &v, (size_t)n, sizeof *v, name, err));
    for (uint64_t i = 0; i < n; i++)
        v[i] = mean + 0.1f * normal(&m->synthetic->state);
    /* norms and these are bf16 in a checkpoint */
    bool half = strstr(name, "norm.weight") || strstr(name, ".engram.");
    note_vector(m, name, half ? DTYPE_BF16 : DTYPE_F32, n, n);
    *out = v;
    return 0;
}

int synthetic_ids(struct model *m, struct layer *L, dsv4_err *err)
{
    const struct config *c = m->cfg;
    uint64_t n = (uint64_t)c->vocab * c->top_k;
    char name[NAME];
    snprintf(name, sizeof name, "layers.%u.ffn.gate.tid2eid", L->id);
    note_vector(m, name, DTYPE_I32, n, 0);
    L->moe.tid_bytes = sizeof(int32_t);
    if (m->synthetic->o.shapes_only)
        return 0;
    int32_t *id;
    TRY(model_own(m, &id, (size_t)n, sizeof *id, "experts of tokens", err));
    for (uint64_t t = 0; t < c->vocab; t++) /* different ones: a random first, then every step-th */
        for (uint64_t k = 0, at = draw(&m->synthetic->state); k < c->top_k; k++)
            id[t * c->top_k + k] =
                (int32_t)((at % c->n_experts + k * (c->n_experts / c->top_k)) % c->n_experts);
    L->moe.tid2eid = (const uint8_t *)id;
    return 0;
}

/* ------------------------------------------------------------------ engram */

/* Buckets and multipliers as in engram_hash.c. A slice may lack earlier tables, whose primes would be
 * skipped: the addresses are others then, and as good. */
int synthetic_engram(struct model *m, dsv4_err *err)
{
    const struct config *c = m->cfg;
    uint32_t columns = (c->engram_ngram - 1) * c->engram_heads;
    if (c->n_engram == 0)
        return 0;
    TRY(mem_alloc(&m->engram_map, c->vocab, sizeof *m->engram_map, "the Engram vocabulary", err));
    for (uint32_t i = 0; i < c->vocab; i++)
        m->engram_map[i] = (int32_t)(i % c->engram_compressed);
    for (uint32_t t = 0; t < c->n_engram; t++) {
        struct engram *e = m->layer[c->engram_layer[t]].engram;
        uint64_t prime = c->engram_vocab - 1, total = 0;
        TRY(model_own(m, &e->prime, columns, sizeof *e->prime, "engram primes", err));
        TRY(model_own(m, &e->offset, columns, sizeof *e->offset, "engram offsets", err));
        TRY(model_own(m, &e->multiplier, c->engram_ngram, sizeof *e->multiplier, "engram", err));
        for (uint32_t i = 0; i < columns; i++) {
            prime = next_prime(prime);
            e->prime[i] = prime;
            e->offset[i] = total;
            total += prime;
            if (total > e->embed.rows) { /* a table too small for its columns: all begin at 0 */
                e->offset[i] = 0;
                e->prime[i] = prime < e->embed.rows ? prime : e->embed.rows;
            }
        }
        engram_multipliers(e->multiplier, c->engram_ngram, c->engram_layer[t],
                           engram_bound(c->engram_compressed));
    }
    return 0;
}

/* ------------------------------------------------------------------ the model */

int synthetic_open(struct model *m, const struct synthetic_options *o, dsv4_err *err)
{
    struct synthetic *s;
    TRY(mem_alloc(&s, 1, sizeof *s, "synthetic weights", err));
    s->o = *o;
    s->state = 1;
    m->synthetic = s;
    return 0;
}

void synthetic_close(struct synthetic *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->n_blocks; i++)
        munmap(s->block[i].codes, s->block[i].bytes);
    if (s->table)
        munmap(s->table, TABLE);
    free(s);
}

uint32_t synthetic_experts(const struct model *m)
{
    uint32_t all = m->cfg->n_experts, held = m->synthetic ? m->synthetic->o.held : 0;
    return held > 0 && held < all ? held : all;
}

void synthetic_share(struct model *m)
{
    uint32_t held = synthetic_experts(m);
    for (uint32_t l = 0; l < m->cfg->n_layers; l++)
        for (uint32_t e = held; e < m->cfg->n_experts; e++)
            m->layer[l].moe.expert[e] = m->layer[l].moe.expert[e % held];
}

/* ------------------------------------------------------------------ histories */

enum { PATTERNS = 64 };

/* Rows as a cache holds them, of random values. */
static int make_patterns(uint8_t **out, struct rshape s, uint64_t *state, dsv4_err *err)
{
    float *x;
    uint8_t *p;
    TRY(mem_alloc(&p, PATTERNS, row_bytes(s), "a synthetic history", err));
    int rc = mem_alloc(&x, s.width, sizeof *x, "a synthetic history", err);
    if (rc != 0) {
        free(p);
        return rc;
    }
    for (size_t i = 0; i < PATTERNS; i++) {
        for (size_t k = 0; k < s.width; k++)
            x[k] = normal(state);
        row_encode(p + i * row_bytes(s), x, s);
    }
    free(x);
    *out = p;
    return 0;
}

struct patterns {
    uint8_t *window, *entry, *key;
    uint64_t state;
};

static const uint8_t *pattern(struct patterns *p, const uint8_t *rows, struct rshape s)
{
    return rows + draw(&p->state) % PATTERNS * row_bytes(s);
}

static void fill_list(struct patterns *p, struct rowlist *l, const uint8_t *rows, size_t n)
{
    for (size_t i = 0; i < n; i++)
        memcpy(rowlist_at(l, i), pattern(p, rows, l->shape), row_bytes(l->shape));
}

static void fill_group(struct patterns *p, struct open_group *g)
{
    for (size_t i = 0; i < (size_t)g->cap * g->width; i++) {
        g->k[i] = normal(&p->state);
        g->gate[i] = normal(&p->state);
    }
}

static void fill_cache(struct cache *c, struct patterns *p, size_t len)
{
    const struct model *m = c->m;
    for (size_t i = 0; i < len; i++) {
        c->token[i] = (int32_t)(draw(&p->state) % m->cfg->vocab);
        if (c->folded)
            c->folded[i] = m->engram_map[c->token[i]];
    }
    for (uint32_t l = 0; l < m->cfg->n_layers; l++) {
        const struct layer *L = &m->layer[l];
        struct layer_cache *lc = &c->layer[l];
        for (size_t i = 0; i < c->window_cap; i++)
            memcpy(lc->window + i * row_bytes(m->window_row), pattern(p, p->window, m->window_row),
                   row_bytes(m->window_row));
        if (L->kv_source)
            fill_list(p, &lc->entry, p->entry, len / L->ratio);
        if (layer_has_keys(L))
            fill_list(p, &lc->key, p->key, len / L->ratio);
        fill_group(p, &lc->open);
        fill_group(p, &lc->key_open);
    }
}

int synthetic_history(struct cache *c, size_t len, dsv4_err *err)
{
    const struct model *m = c->m;
    struct patterns p = {.state = 7};
    bool keys = m->key_row.width > 0;
    cache_rewind(c, 0);
    int rc = cache_reserve_rows(c, len, err);
    if (rc == 0)
        rc = make_patterns(&p.window, m->window_row, &p.state, err);
    if (rc == 0)
        rc = make_patterns(&p.entry, m->entry_row, &p.state, err);
    if (rc == 0 && keys)
        rc = make_patterns(&p.key, m->key_row, &p.state, err);
    if (rc == 0) {
        fill_cache(c, &p, len);
        c->len = c->high = c->base = len;
    }
    free(p.window);
    free(p.entry);
    free(p.key);
    return rc;
}
