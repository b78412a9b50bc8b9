/* Byte-pair encoding of one piece: its bytes become tokens, then again and again the adjacent pair
 * with the lowest merge rank, leftmost first, becomes one, until no pair is in the list.
 *
 * Three ways with one result. Most pieces of ordinary text are words that encode to one token: a look
 * into a table. Short pieces search their pairs afresh after every merge: quadratic, but in two
 * small arrays. Long ones keep their pairs in a heap: n log n for any text.
 *
 * The hash tables come from a file and may have been made to collide: a search longer than any honest
 * table needs makes building fail, and so every later search can stop there too. */
#include "text.h"

#include <stdlib.h>
#include <string.h>

enum { SHORT = 64, PROBES = 256, PIECE_LONGEST = 1 << 29 };
#define NONE UINT32_MAX

/* ------------------------------------------------------------------ tables */

static uint64_t mix(uint64_t h)
{
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93u;
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93u;
    return h ^ h >> 32;
}

static uint64_t load(const char *p, size_t n)
{
    uint64_t v = 0;
    memcpy(&v, p, n);
    return v;
}

static uint64_t hash_word(const char *p, size_t len)
{
    uint64_t h = len * 0x9e3779b97f4a7c15u;
    if (len < 4)
        return mix(h ^ (uint64_t)(unsigned char)p[0] ^ (uint64_t)(unsigned char)p[len / 2] << 8 ^
                   (uint64_t)(unsigned char)p[len - 1] << 16);
    if (len < 8)
        return mix(h ^ load(p, 4) ^ load(p + len - 4, 4) << 32);
    for (; len > 8; p += 8, len -= 8)
        h = mix(h ^ load(p, 8));
    return mix(h ^ load(p + len - 8, 8)); /* the last eight bytes, some of them again */
}

static size_t hash_pair(int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
    return (size_t)(h ^ h >> 32);
}

/* A power of two, at least twice n. */
static size_t slots(size_t n)
{
    size_t size = 16;
    while (size / 2 < n)
        size *= 2;
    return size;
}

int bpe_init(struct bpe *b, size_t n_words, size_t n_merges, dsv4_err *err)
{
    size_t words = slots(n_words), pairs = slots(n_merges);
    TRY(mem_alloc(&b->word, words, sizeof *b->word, "the table of words", err));
    TRY(mem_alloc(&b->pair, pairs, sizeof *b->pair, "the table of merges", err));
    TRY(mem_alloc(&b->made, n_merges, sizeof *b->made, "the table of merges", err));
    TRY(mem_alloc(&b->maybe, pairs / 16, sizeof *b->maybe, "the table of merges", err));
    TRY(mem_alloc(&b->byte_rank, 65536, sizeof *b->byte_rank, "the table of merges", err));
    b->word_mask = words - 1;
    b->pair_mask = pairs - 1;
    b->maybe_mask = pairs / 16 - 1; /* four bits a slot: an eighth of the table's size */
    for (size_t i = 0; i < words; i++)
        b->word[i].id = -1;
    for (size_t i = 0; i < pairs; i++)
        b->pair[i].rank = NONE;
    return 0;
}

void bpe_close(struct bpe *b)
{
    free(b->word);
    free(b->pair);
    free(b->made);
    free(b->maybe);
    free(b->byte_rank);
}

bool bpe_add_word(struct bpe *b, int32_t id)
{
    const struct token *t = &b->token[id];
    uint64_t h = hash_word(b->text + t->at, t->len);
    size_t at = (size_t)h & b->word_mask;
    for (int probes = 0; b->word[at].id >= 0; at = (at + 1) & b->word_mask)
        if (++probes == PROBES)
            return false;
    b->word[at] = (struct word){.tag = (uint32_t)(h >> 32), .id = id};
    if (t->len > b->longest)
        b->longest = t->len;
    return true;
}

int32_t bpe_word(const struct bpe *b, const char *text, size_t len)
{
    if (len == 0 || len > b->longest)
        return -1;
    uint64_t h = hash_word(text, len);
    size_t at = (size_t)h & b->word_mask;
    for (int probes = 0; probes < PROBES; probes++, at = (at + 1) & b->word_mask) {
        const struct word *w = &b->word[at];
        if (w->id < 0)
            break;
        if (w->tag == (uint32_t)(h >> 32) && b->token[w->id].len == len &&
            memcmp(b->text + b->token[w->id].at, text, len) == 0)
            return w->id;
    }
    return -1;
}

bool bpe_add_merge(struct bpe *b, int32_t left, int32_t right, int32_t made, bool *twice)
{
    size_t h = hash_pair(left, right), at = h & b->pair_mask;
    *twice = false;
    b->maybe[h >> 6 & b->maybe_mask] |= (uint64_t)1 << (h & 63);
    for (int probes = 0; b->pair[at].rank != NONE; at = (at + 1) & b->pair_mask) {
        if (b->pair[at].left == left && b->pair[at].right == right) {
            *twice = true;
            return true;
        }
        if (++probes == PROBES)
            return false;
    }
    b->pair[at] = (struct pair){.left = left, .right = right, .rank = (uint32_t)b->n_merges};
    b->made[b->n_merges++] = made;
    return true;
}

static inline uint32_t rank_of(const struct bpe *b, int32_t left, int32_t right)
{
    size_t h = hash_pair(left, right), at = h & b->pair_mask;
    if (!(b->maybe[h >> 6 & b->maybe_mask] >> (h & 63) & 1))
        return NONE;
    for (int probes = 0; probes < PROBES; probes++, at = (at + 1) & b->pair_mask) {
        const struct pair *p = &b->pair[at];
        if (p->rank == NONE || (p->left == left && p->right == right))
            return p->rank;
    }
    return NONE;
}

/* ------------------------------------------------------------------ merging */

static inline uint32_t byte_rank(const struct bpe *b, const char *pair)
{
    return b->byte_rank[(unsigned char)pair[0] << 8 | (unsigned char)pair[1]];
}

/* text[0..n), n <= SHORT, to ids; returns how many. rank[i] is that of the pair (i, i + 1). */
static size_t merge_short(const struct bpe *b, const char *text, size_t n, int32_t *id)
{
    uint32_t rank[SHORT];
    for (size_t i = 0; i < n; i++)
        id[i] = b->byte_id[(unsigned char)text[i]];
    for (size_t i = 0; i + 1 < n; i++)
        rank[i] = byte_rank(b, text + i);
    while (n > 1) {
        uint32_t best = NONE;
        for (size_t i = 0; i + 1 < n; i++)
            best = rank[i] < best ? rank[i] : best;
        if (best == NONE)
            break;
        size_t at = 0;
        while (rank[at] != best)
            at++;
        id[at] = b->made[best];
        n--;
        for (size_t i = at + 1; i < n; i++) {
            id[i] = id[i + 1];
            rank[i - 1] = rank[i];
        }
        if (at > 0)
            rank[at - 1] = rank_of(b, id[at - 1], id[at]);
        if (at + 1 < n)
            rank[at] = rank_of(b, id[at], id[at + 1]);
    }
    return n;
}

/* A long piece is a list of these; `rank` is that of the pair with the next one, so that a heap entry
 * that says otherwise is known to be out of date. */
struct symbol {
    int32_t id; /* -1: merged into the one before */
    uint32_t prev, next, rank;
};

/* Heap of rank << 32 | position: the lowest rank, then the leftmost, on top. */
static void heap_down(uint64_t *heap, size_t n, size_t at)
{
    uint64_t v = heap[at];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= n)
            break;
        if (child + 1 < n && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= v)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = v;
}

static void heap_push(uint64_t *heap, size_t *n, uint64_t v)
{
    size_t at = (*n)++;
    while (at > 0 && heap[(at - 1) / 2] > v) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = v;
}

static void pair_up(const struct bpe *b, struct bpe_work *w, size_t *n_heap, uint32_t at)
{
    struct symbol *s = &w->symbol[at];
    s->rank = s->next == NONE ? NONE : rank_of(b, s->id, w->symbol[s->next].id);
    if (s->rank != NONE)
        heap_push(w->heap, n_heap, (uint64_t)s->rank << 32 | at);
}

static int merge_long(const struct bpe *b, struct bpe_work *w, const char *text, size_t len,
                      struct ids *out, dsv4_err *err)
{
    if (len > PIECE_LONGEST)
        return err_set(err, DSV4_FAILED, "a word of %zu bytes; at most %d can be encoded", len,
                       PIECE_LONGEST);
    /* At most len - 1 pairs at first, and two more for each of at most len - 1 merges. */
    TRY(mem_grow(&w->symbol, &w->symbol_cap, len, sizeof *w->symbol, "merging", err));
    TRY(mem_grow(&w->heap, &w->heap_cap, 3 * len, sizeof *w->heap, "merging", err));
    size_t n_heap = 0;
    for (uint32_t i = 0; i < len; i++)
        w->symbol[i] = (struct symbol){.id = b->byte_id[(unsigned char)text[i]],
                                       .prev = i ? i - 1 : NONE,
                                       .next = i + 1 < len ? i + 1 : NONE};
    for (uint32_t i = 0; i < len; i++)
        pair_up(b, w, &n_heap, i);
    while (n_heap > 0) {
        uint32_t at = (uint32_t)w->heap[0], rank = (uint32_t)(w->heap[0] >> 32);
        w->heap[0] = w->heap[--n_heap];
        if (n_heap > 0)
            heap_down(w->heap, n_heap, 0);
        struct symbol *s = &w->symbol[at];
        if (s->id < 0 || s->rank != rank)
            continue;
        struct symbol *gone = &w->symbol[s->next];
        s->id = b->made[rank];
        s->next = gone->next;
        gone->id = -1;
        if (s->next != NONE)
            w->symbol[s->next].prev = at;
        pair_up(b, w, &n_heap, at);
        if (s->prev != NONE)
            pair_up(b, w, &n_heap, s->prev);
    }
    size_t n = 0;
    for (uint32_t i = 0; i != NONE; i = w->symbol[i].next)
        n++;
    TRY(mem_grow(&out->v, &out->cap, out->n + n, sizeof *out->v, "token ids", err));
    for (uint32_t i = 0; i != NONE; i = w->symbol[i].next)
        out->v[out->n++] = w->symbol[i].id;
    return 0;
}

static int merge(const struct bpe *b, struct bpe_work *w, const char *text, size_t len,
                 struct ids *out, dsv4_err *err)
{
    if (len > SHORT)
        return merge_long(b, w, text, len, out, err);
    TRY(mem_grow(&out->v, &out->cap, out->n + len, sizeof *out->v, "token ids", err));
    out->n += merge_short(b, text, len, out->v + out->n);
    return 0;
}

int bpe_encode(const struct bpe *b, struct bpe_work *w, const char *text, size_t len,
               struct ids *out, dsv4_err *err)
{
    int32_t id = bpe_word(b, text, len);
    if (id < 0 || !(b->ignore_merges || b->token[id].flags & TOKEN_WHOLE))
        return merge(b, w, text, len, out, err);
    TRY(mem_grow(&out->v, &out->cap, out->n + 1, sizeof *out->v, "token ids", err));
    out->v[out->n++] = id;
    return 0;
}

int bpe_finish(struct bpe *b, struct token *token, size_t n, dsv4_err *err)
{
    struct bpe_work work = {0};
    struct ids ids = {0};
    int rc = 0;
    for (size_t i = 0; i < 65536; i++)
        b->byte_rank[i] = rank_of(b, b->byte_id[i >> 8], b->byte_id[i & 255]);
    for (size_t i = 0; i < n && rc == 0; i++) {
        if (token[i].flags & TOKEN_ADDED)
            continue;
        ids.n = 0;
        rc = merge(b, &work, b->text + token[i].at, token[i].len, &ids, err);
        if (rc == 0 && ids.n == 1 && ids.v[0] == (int32_t)i)
            token[i].flags |= TOKEN_WHOLE;
    }
    bpe_work_close(&work);
    free(ids.v);
    return rc;
}

void bpe_work_close(struct bpe_work *w)
{
    free(w->symbol);
    free(w->heap);
}
