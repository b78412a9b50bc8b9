/* Where Engram rows lie (spec: engram): buckets of prime size, multipliers from NumPy's generator,
 * the hash of the last tokens. Addresses depend on token ids alone. */
#include "model.h"

#include <stdlib.h>
#include <string.h>

typedef unsigned __int128 u128;

static uint64_t power_mod(uint64_t base, uint64_t e, uint64_t m)
{
    u128 r = 1, b = base % m;
    for (; e; e >>= 1) {
        if (e & 1)
            r = r * b % m;
        b = b * b % m;
    }
    return (uint64_t)r;
}

/* Miller-Rabin with the bases that decide every 64-bit number. */
static bool is_prime(uint64_t n)
{
    static const uint64_t base[] = {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37};
    enum { N = sizeof base / sizeof *base };
    if (n < 2)
        return false;
    for (int i = 0; i < N; i++)
        if (n % base[i] == 0)
            return n == base[i];
    uint64_t odd = n - 1;
    int twos = 0;
    for (; odd % 2 == 0; odd /= 2)
        twos++;
    for (int i = 0; i < N; i++) {
        u128 x = power_mod(base[i], odd, n);
        bool witness = x != 1 && x != n - 1;
        for (int j = 1; j < twos && witness; j++) {
            x = x * x % n;
            witness = x != n - 1;
        }
        if (witness)
            return false;
    }
    return true;
}

uint64_t next_prime(uint64_t x)
{
    do {
        x++;
    } while (!is_prime(x));
    return x;
}

/* NumPy's SeedSequence for a non-negative integer below 2^64: eight 32-bit words of state. */
static void seed_sequence(uint32_t out[8], uint64_t seed)
{
    uint32_t pool[4], hash = 0x43b0d7e5u;
    const uint32_t entropy[4] = {(uint32_t)seed, (uint32_t)(seed >> 32), 0, 0};
#define HASHMIX(v) ((v) ^= hash, hash *= 0x931e8875u, (v) *= hash, (v) ^= (v) >> 16)
    for (int i = 0; i < 4; i++) {
        uint32_t v = entropy[i];
        HASHMIX(v);
        pool[i] = v;
    }
    for (int from = 0; from < 4; from++)
        for (int to = 0; to < 4; to++) {
            if (from == to)
                continue;
            uint32_t v = pool[from];
            HASHMIX(v);
            uint32_t r = pool[to] * 0xca01f9ddu - v * 0x4973f715u;
            pool[to] = r ^ r >> 16;
        }
#undef HASHMIX
    hash = 0x8b51f9ddu;
    for (int i = 0; i < 8; i++) {
        uint32_t v = pool[i % 4] ^ hash;
        hash *= 0x58f38dedu;
        v *= hash;
        out[i] = v ^ v >> 16;
    }
}

/* PCG64, XSL-RR 128/64. */
struct pcg {
    u128 state, inc;
};

static void pcg_step(struct pcg *g)
{
    const u128 multiplier = (u128)0x2360ED051FC65DA4u << 64 | 0x4385DF649FCCF645u;
    g->state = g->state * multiplier + g->inc;
}

static void pcg_seed(struct pcg *g, uint64_t seed)
{
    uint32_t w[8];
    seed_sequence(w, seed);
    uint64_t v[4];
    for (int i = 0; i < 4; i++)
        v[i] = w[2 * i] | (uint64_t)w[2 * i + 1] << 32;
    g->inc = ((u128)v[2] << 64 | v[3]) << 1 | 1;
    g->state = 0;
    pcg_step(g);
    g->state += (u128)v[0] << 64 | v[1];
    pcg_step(g);
}

static uint64_t pcg_next(struct pcg *g)
{
    pcg_step(g);
    uint64_t x = (uint64_t)(g->state >> 64) ^ (uint64_t)g->state;
    unsigned turn = (unsigned)(g->state >> 122);
    return x >> turn | x << (-turn & 63);
}

void engram_multipliers(uint64_t *out, uint32_t n, uint64_t id, uint64_t bound)
{
    struct pcg g;
    pcg_seed(&g, 10007 * id);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t draw = 0;
        if (bound > 1) { /* Lemire's bounded draw; NumPy draws nothing for a single value */
            u128 m = (u128)pcg_next(&g) * bound;
            uint64_t reject = -bound % bound;
            while ((uint64_t)m < reject)
                m = (u128)pcg_next(&g) * bound;
            draw = (uint64_t)(m >> 64);
        }
        out[i] = 2 * draw + 1;
    }
}

uint64_t engram_bound(uint32_t compressed_vocab)
{
    uint64_t bound = (uint64_t)INT64_MAX / compressed_vocab / 2;
    return bound > 1 ? bound : 1;
}

/* The primes of one n-gram size of a table; primes rise, so "not used before" means above `used`'s
 * matches: every earlier draw of this or another size is looked up. */
static uint64_t draw_prime(uint64_t from, const uint64_t *used, size_t n_used)
{
    uint64_t p = from;
    for (;;) {
        p = next_prime(p);
        bool taken = false;
        for (size_t i = 0; i < n_used && !taken; i++)
            taken = used[i] == p;
        if (!taken)
            return p;
    }
}

static int address_table(struct model *m, struct engram *e, uint32_t table, uint64_t *used,
                         size_t *n_used, dsv4_err *err)
{
    const struct config *c = m->cfg;
    uint32_t heads = c->engram_heads, columns = (c->engram_ngram - 1) * heads;
    TRY(model_own(m, &e->prime, columns, sizeof *e->prime, "engram primes", err));
    TRY(model_own(m, &e->offset, columns, sizeof *e->offset, "engram offsets", err));
    TRY(model_own(m, &e->multiplier, c->engram_ngram, sizeof *e->multiplier, "engram", err));
    uint64_t total = 0;
    for (uint32_t i = 0; i < columns; i++) {
        uint64_t from = i % heads == 0 ? c->engram_vocab - 1 : e->prime[i - 1];
        e->prime[i] = draw_prime(from, used, *n_used);
        used[(*n_used)++] = e->prime[i];
        e->offset[i] = total;
        total += e->prime[i];
    }
    if (total != c->engram_rows[table])
        return err_set(err, DSV4_REFUSED,
                       "config.json: engram_num_embeddings[%u] is %llu; its bucket sizes add up to "
                       "%llu",
                       table, (unsigned long long)c->engram_rows[table], (unsigned long long)total);
    engram_multipliers(e->multiplier, c->engram_ngram, c->engram_layer[table],
                       engram_bound(c->engram_compressed));
    return 0;
}

int engram_address(struct model *m, int32_t *map, uint32_t distinct, dsv4_err *err)
{
    const struct config *c = m->cfg;
    m->engram_map = map;
    if (distinct != c->engram_compressed)
        return err_set(err, DSV4_REFUSED,
                       "tokenizer.json: its tokens fold to %u different texts; config.json's "
                       "engram_compressed_vocab_size is %u, so every Engram row would be a wrong "
                       "one",
                       distinct, c->engram_compressed);
    uint64_t *used;
    size_t n_used = 0, all = (size_t)c->n_engram * (c->engram_ngram - 1) * c->engram_heads;
    TRY(mem_alloc(&used, all, sizeof *used, "engram primes", err));
    int rc = 0;
    for (uint32_t i = 0; i < c->n_engram && rc == 0; i++)
        rc = address_table(m, m->layer[c->engram_layer[i]].engram, i, used, &n_used, err);
    free(used);
    return rc;
}

void engram_rows(uint64_t *row, const struct engram *e, uint32_t ngram, uint32_t heads,
                 const int32_t *history, uint32_t have, int32_t pad)
{
    uint64_t x = (uint64_t)(have > 0 ? history[0] : pad) * e->multiplier[0];
    for (uint32_t s = 1; s < ngram; s++) {
        int64_t token = s < have ? history[-(ptrdiff_t)s] : pad;
        x ^= (uint64_t)token * e->multiplier[s];
        for (uint32_t h = 0; h < heads; h++) {
            uint32_t i = (s - 1) * heads + h;
            row[i] = x % e->prime[i] + e->offset[i];
        }
    }
}
