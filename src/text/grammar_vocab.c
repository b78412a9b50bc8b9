/* A vocabulary as a trie in preorder, so that one pass over it with a stack of states finds the
 * tokens that may follow, and a subtree is skipped by going on behind its end. Most tokens consist
 * of ordinary characters, which inside a string all fit: masks of these by their number of
 * characters, and what is the most of a subtree, let a pass look at the others alone. */
#include "grammar.h"

#include <stdlib.h>
#include <string.h>

/* Longer ones are never allowed: no vocabulary has any that would be missed. */
enum { MAX_TOKEN = 1024 };

/* Characters of the family; 255: not all of them are. PLAIN leaves out what strings of JSON escape
 * and what tags begin with (ORDER PLAIN: plain_char in grammar_link.c). */
static uint8_t level_of(const char *text, size_t len, int family)
{
    size_t n = 0, size;
    if (len > 250 || !utf8_valid(text, len))
        return 255;
    for (size_t i = 0; i < len; i += size, n++) {
        uint32_t c = utf8_decode((const unsigned char *)text + i, &size);
        bool word =
            (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_';
        bool plain = c >= 0x20 && c != '"' && c != '\\' && c != '<' && c != 0x7F && c != 0xFF5C;
        if (!(family == SLICE_WORD ? word : plain))
            return 255;
    }
    return (uint8_t)n;
}

static int add_node(struct vocab *v, uint16_t depth, uint8_t byte, uint32_t *at, dsv4_err *err)
{
    TRY(mem_grow(&v->node, &v->cap_nodes, v->n_nodes + 1, sizeof *v->node, "a vocabulary", err));
    *at = (uint32_t)v->n_nodes++;
    v->node[*at] = (struct vnode){.main = *at, .token = -1, .depth = depth, .byte = byte};
    return 0;
}

struct entry {
    const char *text;
    uint32_t len;
    int32_t id;
};

static int by_text(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    size_t n = x->len < y->len ? x->len : y->len;
    int c = memcmp(x->text, y->text, n);
    if (c == 0 && x->len != y->len)
        return x->len < y->len ? -1 : 1;
    return c != 0 ? c : (x->id > y->id) - (x->id < y->id);
}

/* The subtrees of path[from..to] end here. */
static void close_nodes(struct vocab *v, const uint32_t *path, uint32_t from, uint32_t to)
{
    for (uint32_t d = from; d <= to; d++)
        v->node[path[d]].end = (uint32_t)v->n_nodes;
}

/* Entries in order: each shares a beginning with the path of the one before. */
static int add_entries(struct vocab *v, const struct entry *e, size_t n, uint32_t *path,
                       dsv4_err *err)
{
    TRY(add_node(v, 0, 0, &path[0], err));
    for (size_t i = 0; i < n; i++) {
        uint32_t shared = 0;
        if (i > 0)
            while (shared < e[i - 1].len && shared < e[i].len &&
                   e[i - 1].text[shared] == e[i].text[shared])
                shared++;
        if (i > 0)
            close_nodes(v, path, shared + 1, e[i - 1].len);
        for (uint32_t d = shared; d < e[i].len; d++)
            TRY(add_node(v, (uint16_t)(d + 1), (uint8_t)e[i].text[d], &path[d + 1], err));
        struct vnode *last = &v->node[path[e[i].len]];
        v->same[e[i].id] = last->token;
        last->token = e[i].id;
        v->depth = e[i].len > v->depth ? e[i].len : v->depth;
    }
    close_nodes(v, path, 0, n ? e[n - 1].len : 0);
    return 0;
}

static void set_bit(uint32_t *bits, int32_t id)
{
    bits[id >> 5] |= (uint32_t)1 << (id & 31);
}

static void add_slices(struct vocab *v, const struct vnode *node)
{
    for (int f = 0; f < N_SLICES; f++)
        for (int i = 0; i < SLICE_STEPS; i++)
            if (node->level[f] <= slice_step(i))
                for (int32_t id = node->token; id >= 0; id = v->same[id])
                    set_bit(v->slice[f][i], id);
}

/* The most of each subtree, from the back. */
static void finish(struct vocab *v, const dsv4_tokenizer *t)
{
    for (size_t i = v->n_nodes; i-- > 0;) {
        struct vnode *n = &v->node[i];
        if (n->token >= 0) {
            const struct token *token = &t->token[n->token];
            for (int f = 0; f < N_SLICES; f++)
                n->level[f] = level_of(t->text + token->at, token->len, f);
            add_slices(v, n);
        }
        for (size_t c = i + 1; c < n->end; c = v->node[c].end)
            for (int f = 0; f < N_SLICES; f++)
                if (v->node[c].level[f] > n->level[f])
                    n->level[f] = v->node[c].level[f];
    }
}

/* Copies the nodes that lead to tokens which are not all PLAIN, and lists the others' long
 * tokens. */
static int split(struct vocab *v, dsv4_err *err)
{
    uint32_t *path;
    TRY(mem_alloc(&path, v->depth + 1u, sizeof *path, "a vocabulary", err));
    int rc = 0;
    for (uint32_t i = 0; i < v->n_nodes && rc == 0; i++) {
        const struct vnode *n = &v->node[i];
        unsigned level = n->level[SLICE_PLAIN];
        if (i > 0 && level < 255 && n->token >= 0 && level > slice_step(SLICE_STEPS - 2)) {
            rc = mem_grow(&v->wide, &v->cap_wide, v->n_wide + 1, sizeof *v->wide, "a vocabulary",
                          err);
            if (rc == 0)
                v->wide[v->n_wide++] = i;
        }
        if (i > 0 && level < 255)
            continue;
        rc = mem_grow(&v->mixed, &v->cap_mixed, v->n_mixed + 1, sizeof *n, "a vocabulary", err);
        if (rc != 0)
            break;
        /* A node's end is the next one of the same depth or less. */
        v->mixed[v->n_mixed] = *n;
        v->mixed[v->n_mixed].end = 0;
        for (uint32_t d = n->depth; d <= v->depth && path[d]; d++) {
            v->mixed[path[d] - 1].end = (uint32_t)v->n_mixed;
            path[d] = 0;
        }
        path[n->depth] = (uint32_t)++v->n_mixed;
    }
    for (uint32_t d = 0; d <= v->depth && rc == 0; d++)
        if (path[d])
            v->mixed[path[d] - 1].end = (uint32_t)v->n_mixed;
    free(path);
    return rc;
}

static int build(struct vocab *v, const dsv4_tokenizer *t, dsv4_err *err)
{
    struct entry *entry;
    uint32_t *path, longest = 0;
    size_t n = 0;
    v->n_tokens = t->n;
    v->n_words = (t->n + 31) / 32;
    v->eos = dsv4_token_find(t, M_EOS);
    TRY(mem_alloc(&v->same, t->n, sizeof *v->same, "a vocabulary", err));
    for (int f = 0; f < N_SLICES; f++)
        for (int i = 0; i < SLICE_STEPS; i++)
            TRY(mem_alloc(&v->slice[f][i], v->n_words, sizeof(uint32_t), "a vocabulary", err));
    TRY(mem_alloc(&entry, t->n, sizeof *entry, "a vocabulary", err));
    for (uint32_t id = 0; id < t->n; id++) {
        const struct token *k = &t->token[id];
        v->same[id] = -1;
        if (k->flags & TOKEN_ADDED || k->len == 0 || k->len > MAX_TOKEN)
            continue;
        entry[n++] = (struct entry){t->text + k->at, k->len, (int32_t)id};
        longest = k->len > longest ? k->len : longest;
    }
    qsort(entry, n, sizeof *entry, by_text);
    int rc = mem_alloc(&path, longest + 1u, sizeof *path, "a vocabulary", err);
    if (rc == 0) {
        rc = add_entries(v, entry, n, path, err);
        free(path);
    }
    free(entry);
    if (rc != 0)
        return rc;
    finish(v, t);
    return split(v, err);
}

void vocab_close(struct vocab *v)
{
    if (!v)
        return;
    for (int f = 0; f < N_SLICES; f++)
        for (int i = 0; i < SLICE_STEPS; i++)
            free(v->slice[f][i]);
    free(v->same);
    free(v->wide);
    free(v->mixed);
    free(v->node);
    free(v);
}

int vocab_of(const dsv4_tokenizer *t, const struct vocab **out, dsv4_err *err)
{
    /* The tokenizer was made by malloc: that others see it as const does not make it so. */
    _Atomic(struct vocab *) *kept = &((dsv4_tokenizer *)(uintptr_t)t)->vocab;
    struct vocab *v = atomic_load_explicit(kept, memory_order_acquire), *none = NULL;
    if (!v) {
        TRY(mem_alloc(&v, 1, sizeof *v, "a vocabulary", err));
        int rc = build(v, t, err);
        if (rc != 0) {
            vocab_close(v);
            return rc;
        }
        if (!atomic_compare_exchange_strong(kept, &none, v)) { /* another thread was faster */
            vocab_close(v);
            v = none;
        }
    }
    *out = v;
    return 0;
}
