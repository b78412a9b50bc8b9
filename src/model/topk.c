/* The k best of a stream of scores, in bounded memory.
 *
 * Scores better than the k-th best so far are collected; when the room is full, bisection over
 * the 32 bits of the scores finds the new k-th best and the rest is dropped. The cost is linear
 * for any order of scores. */
#include "model.h"

#include "simd/codes.h"

#include <math.h>

enum { MIN_ROOM = 256 };

static size_t room(size_t k)
{
    return k + (k > MIN_ROOM ? k : MIN_ROOM);
}

size_t best_words(size_t k)
{
    return 2 * room(k);
}

void best_open(struct best *t, size_t k, uint32_t *words)
{
    *t = (struct best){.key = words, .id = words + room(k), .k = k, .limit = -INFINITY};
}

/* Floats as integers in the same order; -0 counts as 0. */
static uint32_t key_of(float x)
{
    uint32_t u = bits_of_float(x + 0.0f);
    return u >> 31 ? ~u : u | 0x80000000u;
}

static float float_of_key(uint32_t key)
{
    return float_of_bits(key >> 31 ? key & 0x7fffffffu : ~key);
}

static size_t count_from(const uint32_t *key, size_t n, uint32_t least)
{
    uint32_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += key[i] >= least;
    return count;
}

/* Keeps the k best, of equal ones those that came first. Their order stays. */
static void prune(struct best *t)
{
    uint32_t least = 0;
    for (uint32_t bit = 1u << 31; bit; bit >>= 1)
        if (count_from(t->key, t->n, least | bit) >= t->k)
            least |= bit;
    size_t better = least == UINT32_MAX ? 0 : count_from(t->key, t->n, least + 1), n = 0;
    for (size_t i = 0, equal = t->k - better; i < t->n; i++) {
        if (t->key[i] < least || (t->key[i] == least && equal == 0))
            continue;
        equal -= t->key[i] == least;
        t->key[n] = t->key[i];
        t->id[n++] = t->id[i];
    }
    t->n = n;
    t->limit = float_of_key(least);
}

void best_add(struct best *t, const float *score, size_t n, uint32_t first)
{
    if (t->k == 0)
        return;
    for (size_t i = 0; i < n; i++) {
        if (!(score[i] > t->limit))
            continue;
        t->key[t->n] = key_of(score[i]);
        t->id[t->n++] = first + (uint32_t)i;
        if (t->n == room(t->k))
            prune(t);
    }
}

void best_merge(struct best *t, const uint32_t *key, const uint32_t *id, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float score = float_of_key(key[i]);
        best_add(t, &score, 1, id[i]);
    }
}

void best_close(struct best *t)
{
    if (t->n > t->k)
        prune(t);
}

size_t select_top(uint32_t *out, const float *score, size_t n, size_t k, uint32_t *words)
{
    struct best t;
    best_open(&t, k, words);
    best_add(&t, score, n, 0);
    best_close(&t);
    for (size_t i = 0; i < t.n; i++)
        out[i] = t.id[i];
    return t.n;
}
