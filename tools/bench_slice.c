/* Which part of a model is measured: layers of every kind it has, and experts as memory allows. */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

static double gb(uint64_t bytes)
{
    return (double)bytes * 1e-9;
}

/* ------------------------------------------------------------------ layers */

struct choice {
    const struct bench_model *m;
    bool *in; /* [n_layers] */
};

static void take(struct choice *c, int64_t layer)
{
    if (layer < 0 || c->in[layer])
        return;
    c->in[layer] = true;
    take(c, c->m->layer[layer].cache_of); /* at or before it */
    take(c, c->m->layer[layer].index_of);
}

/* Has an earlier layer what is special about this one? */
static bool is_new(const struct choice *c, uint32_t l)
{
    const struct bench_layer *a = &c->m->layer[l];
    bool attention = true, experts = true, engram = a->engram;
    for (uint32_t i = 0; i < l; i++) {
        const struct bench_layer *b = &c->m->layer[i];
        attention = attention && !(c->in[i] && strcmp(a->attention, b->attention) == 0);
        experts = experts && !(c->in[i] && strcmp(a->experts, b->experts) == 0);
        engram = engram && !(c->in[i] && b->engram);
    }
    return attention || experts || engram;
}

/* "3": the first three; "0,2-4": these. */
static int listed(struct choice *c, const char *text, dsv4_err *err)
{
    uint64_t n;
    int first, last, got;
    if (opt_number_u64(text, &n)) {
        if (n < 1 || n > c->m->n_layers)
            return err_set(err, DSV4_USAGE, "--layers %s: the model has 1 to %u", text,
                           c->m->n_layers);
        for (uint64_t i = 0; i < n; i++)
            c->in[i] = true;
        return 0;
    }
    const char *at = text;
    while ((got = cpu_list_next(&at, &first, &last)) == 1)
        for (int i = first; i <= last; i++) {
            if (i < 0 || (uint32_t)i >= c->m->n_layers)
                return err_set(err, DSV4_USAGE, "--layers %s: layers are 0 to %u", text,
                               c->m->n_layers - 1);
            c->in[i] = true;
        }
    return got == 0 && *text ? 0
                             : err_set(err, DSV4_USAGE,
                                       "--layers \"%s\" is neither a number nor like 0,2-4", text);
}

static int set_layers(struct bench_slice *out, const struct choice *c, dsv4_err *err)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->m->n_layers; i++)
        n += c->in[i];
    TRY(mem_alloc(&out->layers, n, sizeof *out->layers, "the layers of a slice", err));
    out->s.layers = out->layers;
    for (uint32_t i = 0; i < c->m->n_layers; i++)
        if (c->in[i])
            out->layers[out->s.n_layers++] = i;
    return 0;
}

/* ------------------------------------------------------------------ memory */

/* Half of what there is: the other half is for other programs, and for the pages of these. */
static uint64_t budget(const struct bench_model *whole)
{
    return whole->available / 2;
}

static uint64_t one_expert(const struct bench_model *m)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < m->n_layers; i++)
        sum += m->layer[i].expert_bytes;
    return sum;
}

static int too_large(const struct bench_model *m, uint64_t room, dsv4_err *err)
{
    return err_set(err, DSV4_NO_MEMORY,
                   "%u layers with %llu of %llu experts and %llu tokens of vocabulary need %.2f GB "
                   "(weights %.2f, caches %.2f, buffers %.2f); half of what is available are %.2f: "
                   "fewer --layers, --held, --vocab, --prefill or --depth help, or --max-memory",
                   m->n_layers, (unsigned long long)m->held, (unsigned long long)m->experts,
                   (unsigned long long)m->vocab, gb(m->needed), gb(m->weights), gb(m->caches),
                   gb(m->scratch), gb(room));
}

/* Fills s->held (0: chosen) so that the slice fits. */
static int choose_held(dsv4_slice *s, const char *config, size_t len, const dsv4_options *opt,
                       uint64_t room, dsv4_err *err)
{
    struct bench_model m;
    uint32_t asked = s->held;
    dsv4_slice least = *s;
    if (!asked) /* a token's experts have to be different ones */
        least.held = 1;
    TRY(bench_model_read(&m, config, len, &least, opt, err));
    uint64_t each = one_expert(&m), base = m.needed - each * m.held;
    uint64_t fit = m.needed > room ? 0 : each ? (room - base) / each : m.experts;
    uint64_t n = fit < m.experts ? fit : m.experts;
    if (asked)
        n = m.needed > room ? 0 : asked;
    else if (n < m.top_k) {
        m.held = m.top_k;
        m.needed = base + each * m.top_k;
        m.weights += each * (m.top_k - 1);
        n = 0;
    }
    int rc = n == 0 ? too_large(&m, room, err) : 0;
    s->held = (uint32_t)n;
    bench_model_release(&m);
    return rc;
}

/* A vocabulary that leaves memory for the rest: its head takes as long as it is large. */
static uint32_t choose_vocab(const struct bench_model *whole, uint64_t room)
{
    uint64_t vocab = whole->vocab;
    while (vocab > 1024 && whole->head_bytes / whole->vocab * vocab > room / 8)
        vocab /= 2;
    return (uint32_t)vocab;
}

/* ------------------------------------------------------------------ choosing */

/* ORDER BENCH FORMATS */
const struct bench_format bench_formats[] = {{"official", DSV4_FORMAT_OFFICIAL},
                                             {"mxfp4", DSV4_MXFP4},
                                             {"q4", DSV4_Q4},
                                             {"q3", DSV4_Q3},
                                             {"q2", DSV4_Q2},
                                             {"q8", DSV4_Q8},
                                             {"e4m3", DSV4_E4M3},
                                             {"bf16", DSV4_BF16}};

int bench_slice_choose(struct bench_slice *out, const struct bench_values *v, const char *config,
                       size_t len, const dsv4_options *opt, const struct bench_model *whole,
                       dsv4_err *err)
{
    struct choice c = {.m = whole};
    *out = (struct bench_slice){0};
    TRY(mem_alloc(&c.in, whole->n_layers, sizeof *c.in, "the layers of a slice", err));
    int rc = 0;
    if (v->layers)
        rc = listed(&c, v->layers, err);
    else
        for (uint32_t i = 0; i < whole->n_layers; i++)
            if (is_new(&c, i))
                take(&c, i);
    if (rc == 0)
        rc = set_layers(out, &c, err);
    free(c.in);
    TRY(rc);
    out->s.experts = v->experts;
    out->s.held = v->held;
    out->s.vocab = v->vocab ? v->vocab : choose_vocab(whole, budget(whole));
    out->s.expert_format = bench_formats[v->expert_format].format;
    out->s.dense_format = bench_formats[v->dense_format].format;
    return choose_held(&out->s, config, len, opt, budget(whole), err);
}

int bench_slice_double(struct bench_slice *out, const struct bench_slice *from, const char *config,
                       size_t len, const dsv4_options *opt, const struct bench_model *whole,
                       dsv4_err *err)
{
    struct choice c = {.m = whole};
    uint32_t left = from->s.n_layers;
    *out = (struct bench_slice){.s = from->s};
    out->s.n_layers = out->s.held = 0;
    TRY(mem_alloc(&c.in, whole->n_layers, sizeof *c.in, "the layers of a slice", err));
    for (uint32_t i = 0; i < from->s.n_layers; i++)
        c.in[from->layers[i]] = true;
    for (uint32_t i = 0; i < whole->n_layers && left > 0; i++)
        if (!c.in[i]) {
            take(&c, i);
            left--;
        }
    int rc = set_layers(out, &c, err);
    free(c.in);
    return rc != 0 ? rc : choose_held(&out->s, config, len, opt, budget(whole), err);
}

void bench_slice_release(struct bench_slice *s)
{
    free(s->layers);
    *s = (struct bench_slice){0};
}
