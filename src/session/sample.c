/* From logits to a token. Order: bias and penalties, temperature, top-k, top-p, min-p, draw. The same
 * seed gives the same choices whatever the number of threads, as logits have the same bits. */
#include "session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct dsv4_sampler {
    dsv4_sampling p;
    size_t vocab;
    dsv4_bias *bias;
    uint32_t *count; /* [vocab] how often a token stands in the text so far */
    int32_t *seen;   /* the tokens with a count */
    size_t n_seen;
    float *logit;      /* [vocab] after bias and penalties */
    float *weight;     /* [vocab] exp((logit - max) / temperature) */
    uint32_t *heap;    /* [vocab] */
    uint64_t state[4]; /* xoshiro256** */
};

static uint64_t rotate(uint64_t x, int k)
{
    return x << k | x >> (64 - k);
}

static uint64_t next_random(uint64_t s[4])
{
    uint64_t out = rotate(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 45);
    return out;
}

/* splitmix64 spreads any seed, 0 included, over the state. */
static void seed_random(uint64_t s[4], uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        uint64_t z = seed += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        s[i] = z ^ z >> 31;
    }
}

static int check(const dsv4_sampling *p, size_t vocab, dsv4_err *err)
{
    const struct {
        const char *name;
        double value, min, max;
    } range[] = {
        {"temperature", p->temperature, 0, 100},
        {"top_p", p->top_p, 0, 1},
        {"min_p", p->min_p, 0, 1},
        {"top_k", p->top_k, 0, INT32_MAX},
        {"repetition", p->repetition, 0.01, 100},
        {"presence", p->presence, -100, 100},
        {"frequency", p->frequency, -100, 100},
    };
    for (size_t i = 0; i < sizeof range / sizeof *range; i++)
        if (!(range[i].value >= range[i].min && range[i].value <= range[i].max))
            return err_set(err, DSV4_USAGE, "%s is %g; expected %g to %g", range[i].name,
                           range[i].value, range[i].min, range[i].max);
    for (size_t i = 0; i < p->n_bias; i++) {
        if (p->bias[i].token < 0 || (size_t)p->bias[i].token >= vocab)
            return err_set(err, DSV4_USAGE, "logit bias for token %d; ids are 0 to %zu",
                           p->bias[i].token, vocab - 1);
        if (isnan(p->bias[i].bias) || p->bias[i].bias == INFINITY)
            return err_set(err, DSV4_USAGE, "logit bias %g for token %d; expected a number or -inf",
                           (double)p->bias[i].bias, p->bias[i].token);
    }
    return 0;
}

int dsv4_sampler_open(dsv4_sampler **out, const dsv4_sampling *p, size_t vocab, dsv4_err *err)
{
    dsv4_sampler *s;
    *out = NULL;
    TRY(check(p, vocab, err));
    TRY(mem_alloc(&s, 1, sizeof *s, "a sampler", err));
    s->p = *p;
    s->vocab = vocab;
    seed_random(s->state, p->seed);
    int rc = mem_alloc(&s->bias, p->n_bias, sizeof *s->bias, "a sampler", err);
    if (rc == 0)
        rc = mem_alloc(&s->count, vocab, sizeof *s->count, "a sampler", err);
    if (rc == 0)
        rc = mem_alloc(&s->seen, vocab, sizeof *s->seen, "a sampler", err);
    if (rc == 0)
        rc = mem_alloc(&s->logit, vocab, sizeof *s->logit, "a sampler", err);
    if (rc == 0)
        rc = mem_alloc(&s->weight, vocab, sizeof *s->weight, "a sampler", err);
    if (rc == 0)
        rc = mem_alloc(&s->heap, vocab, sizeof *s->heap, "a sampler", err);
    if (rc != 0) {
        dsv4_sampler_close(s);
        return rc;
    }
    if (p->n_bias)
        memcpy(s->bias, p->bias, p->n_bias * sizeof *s->bias);
    s->p.bias = s->bias;
    *out = s;
    return 0;
}

void dsv4_sampler_close(dsv4_sampler *s)
{
    if (!s)
        return;
    free(s->bias);
    free(s->count);
    free(s->seen);
    free(s->logit);
    free(s->weight);
    free(s->heap);
    free(s);
}

void dsv4_sampler_accept(dsv4_sampler *s, int32_t token)
{
    if (token < 0 || (size_t)token >= s->vocab)
        return;
    if (s->count[token] == 0)
        s->seen[s->n_seen++] = token;
    if (s->count[token] < UINT32_MAX)
        s->count[token]++;
}

static void adjust(dsv4_sampler *s, const float *logits)
{
    memcpy(s->logit, logits, s->vocab * sizeof *logits);
    for (size_t i = 0; i < s->n_seen; i++) {
        float *l = &s->logit[s->seen[i]];
        *l = *l > 0 ? *l / s->p.repetition : *l * s->p.repetition;
        *l -= s->p.presence + s->p.frequency * (float)s->count[s->seen[i]];
    }
    for (size_t i = 0; i < s->p.n_bias; i++)
        s->logit[s->bias[i].token] += s->bias[i].bias;
}

/* Ties to the lower id; NaN never wins. */
static size_t best(const float *x, size_t n)
{
    size_t b = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[b] || isnan(x[b]))
            b = i;
    return b;
}

/* a goes before b: the larger weight, ties to the lower id. */
static bool before(const float *w, uint32_t a, uint32_t b)
{
    return w[a] > w[b] || (w[a] == w[b] && a < b);
}

static void sink(uint32_t *heap, size_t n, size_t i, const float *w)
{
    for (;;) {
        size_t c = 2 * i + 1;
        if (c >= n)
            return;
        if (c + 1 < n && before(w, heap[c + 1], heap[c]))
            c++;
        if (!before(w, heap[c], heap[i]))
            return;
        uint32_t t = heap[i];
        heap[i] = heap[c];
        heap[c] = t;
        i = c;
    }
}

/* Moves the largest of the first n to place n - 1. */
static void pop(uint32_t *heap, size_t n, const float *w)
{
    uint32_t top = heap[0];
    heap[0] = heap[n - 1];
    heap[n - 1] = top;
    sink(heap, n - 1, 0, w);
}

static void make_heap(uint32_t *heap, size_t n, const float *w)
{
    for (size_t i = 0; i < n; i++)
        heap[i] = (uint32_t)i;
    for (size_t i = n / 2; i-- > 0;)
        sink(heap, n, i, w);
}

/* Draws from the kept tokens: the most likely ones first, as far as top-k, top-p and min-p go. */
static size_t draw_filtered(dsv4_sampler *s, double total, double u)
{
    size_t n = s->vocab, kept = 0;
    size_t most = s->p.top_k > 0 && (size_t)s->p.top_k < n ? (size_t)s->p.top_k : n;
    make_heap(s->heap, n, s->weight);
    float floor = s->p.min_p * s->weight[s->heap[0]];
    if (most < n) { /* top-p counts what top-k has left */
        total = 0;
        for (size_t i = 0; i < most; i++) {
            total += (double)s->weight[s->heap[0]];
            pop(s->heap, n - i, s->weight);
        }
        kept = most;
    }
    double sum = 0, limit = (double)s->p.top_p * total;
    size_t used = 0;
    while (used < most) {
        if (used >= kept)
            pop(s->heap, n - kept++, s->weight);
        float w = s->weight[s->heap[n - 1 - used]];
        if (used > 0 && (w < floor || w <= 0))
            break;
        sum += (double)w;
        used++;
        if (sum >= limit)
            break;
    }
    u *= sum;
    for (size_t i = 0; i < used; i++) {
        u -= (double)s->weight[s->heap[n - 1 - i]];
        if (u < 0)
            return s->heap[n - 1 - i];
    }
    return s->heap[n - used];
}

static size_t draw(dsv4_sampler *s)
{
    size_t top = best(s->logit, s->vocab);
    float max = s->logit[top];
    if (s->p.temperature == 0 || !(fabsf(max) < INFINITY))
        return top;
    double total = 0;
    for (size_t i = 0; i < s->vocab; i++) {
        float w = expf((s->logit[i] - max) / s->p.temperature);
        s->weight[i] = w > 0 ? w : 0; /* NaN becomes 0 */
        total += (double)s->weight[i];
    }
    double u = (double)(next_random(s->state) >> 11) * 0x1p-53;
    if (s->p.top_k > 0 || s->p.top_p < 1 || s->p.min_p > 0)
        return draw_filtered(s, total, u);
    u *= total;
    for (size_t i = 0; i < s->vocab; i++) {
        u -= (double)s->weight[i];
        if (u < 0)
            return i;
    }
    return top;
}

/* log softmax of the model's own distribution */
static double log_sum(const float *logits, size_t n)
{
    double max = (double)logits[best(logits, n)], sum = 0;
    for (size_t i = 0; i < n; i++)
        if (!isnan(logits[i]))
            sum += exp((double)logits[i] - max);
    return max + log(sum);
}

static bool allowed(const uint32_t *allow, size_t id)
{
    return allow[id / 32] >> id % 32 & 1;
}

/* Takes the others out, a word at a time where it can. */
static void forbid(dsv4_sampler *s, const uint32_t *allow)
{
    for (size_t i = 0; i < s->vocab; i += 32) {
        size_t end = s->vocab - i < 32 ? s->vocab : i + 32;
        if (allow[i / 32] == UINT32_MAX)
            continue;
        for (size_t id = i; id < end; id++)
            if (!allowed(allow, id))
                s->logit[id] = -INFINITY;
    }
}

/* The choice when bias or a broken model left no allowed token a chance: the first one. */
static size_t first_allowed(const uint32_t *allow, size_t n)
{
    for (size_t id = 0; id < n; id++)
        if (allowed(allow, id))
            return id;
    return 0;
}

dsv4_logprob dsv4_sample(dsv4_sampler *s, const float *logits, dsv4_logprob *top, size_t n_top)
{
    return dsv4_sample_masked(s, logits, NULL, top, n_top);
}

dsv4_logprob dsv4_sample_masked(dsv4_sampler *s, const float *logits, const uint32_t *allow,
                                dsv4_logprob *top, size_t n_top)
{
    adjust(s, logits);
    if (allow)
        forbid(s, allow);
    size_t id = draw(s);
    if (allow && !allowed(allow, id))
        id = first_allowed(allow, s->vocab);
    double norm = log_sum(logits, s->vocab);
    if (top && n_top > 0) {
        make_heap(s->heap, s->vocab, logits);
        for (size_t i = 0; i < n_top && i < s->vocab; i++) {
            uint32_t t = s->heap[0];
            top[i] = (dsv4_logprob){(int32_t)t, (float)((double)logits[t] - norm)};
            pop(s->heap, s->vocab - i, logits);
        }
        for (size_t i = s->vocab; i < n_top; i++)
            top[i] = (dsv4_logprob){-1, -INFINITY};
    }
    return (dsv4_logprob){(int32_t)id, (float)((double)logits[id] - norm)};
}
