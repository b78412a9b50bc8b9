/* The tokens that may follow: one pass over the trie of the vocabulary for each state on top of a
 * stack, kept in the grammar for all timelines. What such a pass cannot know is what follows when
 * the state's rule ends inside a token; it notes the nodes of the trie where that happened, and for
 * these the pass goes on from whatever really lies below. */
#include "grammar_match.h"

#include <stdlib.h>
#include <string.h>

/* With more tops than this one pass with all of them is cheaper. */
enum { MANY_TOPS = 24, DENSE = 1024 };

static void set_bits(const struct vocab *v, int32_t id, uint32_t *bits)
{
    for (; id >= 0; id = v->same[id])
        bits[id >> 5] |= (uint32_t)1 << (id & 31);
}

/* Marks the tokens of the subtree `at` that fit from `set`, the set behind its first byte. */
static void walk(struct dsv4_matcher *m, uint32_t at, uint32_t set, uint32_t *bits)
{
    const struct vocab *v = m->g->vocab;
    const uint8_t *class = m->g->class;
    uint32_t *path = m->path;
    path[v->node[at].depth] = set;
    set_bits(v, v->node[at].token, bits);
    for (uint32_t i = at + 1, end = v->node[at].end; i < end;) {
        const struct vnode *n = &v->node[i];
        uint32_t next = sets_step(&m->s, path[n->depth - 1], class[n->byte]);
        if (next == SET_NONE) {
            i = n->end;
            continue;
        }
        path[n->depth] = next;
        set_bits(v, n->token, bits);
        i++;
    }
}

/* ------------------------------------------------------------------ one state */

/* The family whose characters all fit in this state, -1, and how many of them. */
static int slice_of(const dsv4_grammar *g, const struct centry *e, unsigned *level)
{
    const struct cstate *s = &g->state[e->state];
    const struct crule *r = &g->rule[s->rule];
    unsigned bits = s->slices;
    *level = 254;
    if (bits == 0 && r->counted && r->start == e->state) {
        bits = r->slices;
        *level = e->hi < 254 ? e->hi : 254;
    }
    for (int f = 0; f<N_SLICES && * level> 0; f++)
        if (bits & 1u << f)
            return f;
    return -1;
}

/* Tokens of at most `level` characters of the family; the most that were added. */
static unsigned add_slice(const struct vocab *v, int family, unsigned level, uint32_t *bits)
{
    int step = 0;
    while (step + 1 < SLICE_STEPS && slice_step(step + 1) <= level)
        step++;
    for (uint32_t i = 0; i < v->n_words; i++)
        bits[i] |= v->slice[family][step][i];
    if (family != SLICE_PLAIN)
        return slice_step(step);
    for (size_t i = 0; i < v->n_wide; i++) /* between the steps */
        if (v->node[v->wide[i]].level[SLICE_PLAIN] <= level)
            set_bits(v, v->node[v->wide[i]].token, bits);
    return level;
}

static void add_escapes(struct dsv4_matcher *m, const struct vnode *node, uint32_t at)
{
    for (uint32_t c = at + 1; c < node[at].end && m->s.rc == 0; c = node[c].end) {
        m->s.rc = mem_grow(&m->esc, &m->cap_esc, m->n_esc + 1, sizeof *m->esc, "a mask", m->s.err);
        if (m->s.rc == 0)
            m->esc[m->n_esc++] = node[c].main;
    }
}

/* The pass over the whole trie; escapes are noted in m->esc. Where PLAIN characters fit, tokens of
 * nothing else are known: the mixed ones are looked at. */
static void walk_state(struct dsv4_matcher *m, struct centry *e, uint32_t set, uint32_t *bits)
{
    const struct vocab *v = m->g->vocab;
    const struct vnode *node = v->node;
    size_t n_nodes = v->n_nodes;
    unsigned level, skip = 0;
    int family = slice_of(m->g, e, &level);
    if (family >= 0)
        skip = add_slice(v, family, level, bits);
    if (family == SLICE_PLAIN) {
        node = v->mixed;
        n_nodes = v->n_mixed;
        e->left_plain = level < 254;
        skip = 0;
    }
    m->path[0] = set;
    for (uint32_t i = 1; i < n_nodes && m->s.rc == 0;) {
        const struct vnode *n = &node[i];
        if (skip && n->level[family] <= skip) {
            i = n->end;
            continue;
        }
        uint32_t next = sets_step(&m->s, m->path[n->depth - 1], m->g->class[n->byte]);
        if (next == SET_NONE) {
            i = n->end;
            continue;
        }
        m->path[n->depth] = next;
        set_bits(v, n->token, bits);
        if (m->s.set[next].end)
            add_escapes(m, node, i);
        i++;
    }
}

/* Sorts m->esc by byte, in the order of the trie, into e. */
static int pack_escapes(struct dsv4_matcher *m, struct centry *e)
{
    const struct vnode *node = m->g->vocab->node;
    uint32_t at[257] = {0};
    TRY(mem_alloc(&e->esc, m->n_esc, sizeof *e->esc, "a mask", m->s.err));
    for (size_t i = 0; i < m->n_esc; i++)
        at[node[m->esc[i]].byte + 1]++;
    for (int c = 1; c < 257; c++)
        at[c] += at[c - 1];
    memcpy(e->esc_at, at, sizeof at);
    for (size_t i = 0; i < m->n_esc; i++)
        e->esc[at[node[m->esc[i]].byte]++] = m->esc[i];
    e->n_esc = (uint32_t)m->n_esc;
    return 0;
}

/* Takes over `bits`, or frees them when a list is shorter. */
static int pack_bits(struct dsv4_matcher *m, struct centry *e, uint32_t *bits)
{
    uint32_t n = 0, n_words = m->g->vocab->n_words;
    for (uint32_t i = 0; i < n_words; i++)
        n += (uint32_t)__builtin_popcount(bits[i]);
    e->bits = bits;
    if (n > DENSE)
        return 0;
    TRY(mem_alloc(&e->ids, n, sizeof *e->ids, "a mask", m->s.err));
    for (uint32_t i = 0; i < n_words; i++)
        for (uint32_t w = bits[i]; w; w &= w - 1)
            e->ids[e->n_ids++] = 32 * i + (uint32_t)__builtin_ctz(w);
    free(bits);
    e->bits = NULL;
    return 0;
}

static struct centry *make_entry(struct dsv4_matcher *m, const struct centry *key)
{
    struct sets *s = &m->s;
    struct centry *e = NULL;
    uint32_t *bits = NULL;
    uint32_t set = sets_single(s, (struct mnode){key->state, key->lo, key->hi, SET_END});
    m->n_esc = 0;
    if (s->rc == 0)
        s->rc = mem_alloc(&e, 1, sizeof *e, "a mask", s->err);
    if (s->rc == 0)
        s->rc = mem_alloc(&bits, m->g->vocab->n_words, sizeof *bits, "a mask", s->err);
    if (s->rc == 0) {
        *e = *key;
        walk_state(m, e, set, bits);
    }
    if (s->rc == 0)
        s->rc = pack_escapes(m, e);
    if (s->rc == 0) {
        s->rc = pack_bits(m, e, bits);
        bits = NULL;
    }
    if (s->rc == 0)
        return e;
    free(bits);
    centry_free(e);
    return NULL;
}

/* The entry of a state from the grammar's table, into which it is put when it is not there. *mine:
 * the table takes no more and the entry must be freed. */
static struct centry *entry_of(struct dsv4_matcher *m, const struct mnode *n, bool *mine)
{
    const dsv4_grammar *g = m->g;
    uint32_t most = g->vocab->depth + 1; /* no token has more repetitions */
    struct centry key = {.state = n->state,
                         .lo = n->lo < most ? n->lo : most,
                         .hi = n->hi == G_INF || n->hi < most ? n->hi : most},
                  *made = NULL;
    uint64_t h =
        ((uint64_t)key.state << 20 ^ (uint64_t)key.lo << 10 ^ key.hi) * 0x9e3779b97f4a7c15u;
    *mine = false;
    for (uint32_t probe = 0; probe < 32; probe++) {
        _Atomic(struct centry *) *slot = &g->cache[((h >> 32) + probe) & (g->cache_size - 1)];
        struct centry *e = atomic_load_explicit(slot, memory_order_acquire);
        if (!e && !made) {
            made = make_entry(m, &key);
            if (!made)
                return NULL;
            size_t bytes = sizeof *made + 4 * ((size_t)made->n_ids + made->n_esc) +
                           (made->bits ? 4 * (size_t)g->vocab->n_words : 0);
            /* Counted first: threads that race must not all be the last one that fits. */
            atomic_size_t *sum = (atomic_size_t *)(uintptr_t)&g->cache_bytes;
            if (atomic_fetch_add(sum, bytes) + bytes > G_CACHE_BYTES) {
                atomic_fetch_sub(sum, bytes);
                break;
            }
        }
        if (!e && atomic_compare_exchange_strong(slot, &e, made))
            return made;
        if (e->state == key.state && e->lo == key.lo && e->hi == key.hi) {
            centry_free(made); /* another thread was faster */
            return e;
        }
    }
    *mine = true;
    return made ? made : make_entry(m, &key);
}

/* ------------------------------------------------------------------ all stacks */

/* Whether a PLAIN character may follow. */
static bool plain_follows(struct dsv4_matcher *m, uint32_t set)
{
    for (unsigned c = 0x20; c < 0xF5; c++)
        if (c != '"' && c != '\\' && c != '<' && c != 0x7F && (c < 0x80 || c >= 0xC2) &&
            sets_step(&m->s, set, m->g->class[c]) != SET_NONE)
            return true;
    return false;
}

static void add_entry(struct dsv4_matcher *m, const struct centry *e, const struct mnode *top,
                      uint32_t *bits)
{
    uint32_t below = top->below;
    if (e->bits)
        for (uint32_t i = 0; i < m->g->vocab->n_words; i++)
            bits[i] |= e->bits[i];
    for (uint32_t i = 0; i < e->n_ids; i++)
        bits[e->ids[i] >> 5] |= (uint32_t)1 << (e->ids[i] & 31);
    if (e->n_esc == 0 && !e->left_plain)
        return;
    uint32_t set = sets_popped(&m->s, below);
    if (e->left_plain && plain_follows(m, set)) {
        walk(m, 0, sets_single(&m->s, *top), bits);
        return;
    }
    for (unsigned c = 0; c < 256 && m->s.rc == 0; c++) {
        if (e->esc_at[c] == e->esc_at[c + 1])
            continue;
        uint32_t next = sets_step(&m->s, set, m->g->class[c]);
        for (uint32_t i = e->esc_at[c]; next != SET_NONE && i < e->esc_at[c + 1]; i++)
            walk(m, e->esc[i], next, bits);
    }
}

static void add_tokens(struct dsv4_matcher *m, const struct mnode *n, uint32_t *bits)
{
    const struct cstate *c = &m->g->state[n->state];
    for (uint32_t k = c[0].tok; k < c[1].tok; k++) {
        int32_t id = m->g->tok[k].token;
        if ((uint32_t)id < m->g->vocab->n_tokens)
            bits[id >> 5] |= (uint32_t)1 << (id & 31);
    }
}

static void compute(struct dsv4_matcher *m, uint32_t *bits)
{
    struct sets *s = &m->s;
    struct mset x = s->set[m->now];
    bool many = x.n > MANY_TOPS;
    if (many)
        walk(m, 0, m->now, bits);
    for (uint32_t i = 0; i < x.n && s->rc == 0; i++) {
        struct mnode n = s->node[x.first + i];
        bool mine;
        if (n.state == STATE_END)
            continue;
        add_tokens(m, &n, bits);
        if (many || m->g->state[n.state].edge == m->g->state[n.state + 1].edge)
            continue;
        struct centry *e = entry_of(m, &n, &mine);
        if (e)
            add_entry(m, e, &n, bits);
        if (mine)
            centry_free(e);
    }
    int32_t eos = m->g->vocab->eos;
    if (x.end && eos >= 0)
        bits[eos >> 5] |= (uint32_t)1 << (eos & 31);
}

const uint32_t *matcher_mask(struct dsv4_matcher *m)
{
    size_t n_words = m->g->vocab->n_words;
    for (unsigned i = 0; i < KEPT_MASKS; i++)
        if (m->kept[i].bits && m->kept[i].set == m->now)
            return m->kept[i].bits;
    unsigned at = m->next_kept;
    uint32_t **bits = &m->kept[at].bits;
    if (!*bits)
        m->s.rc = mem_alloc(bits, n_words, sizeof **bits, "a mask", m->s.err);
    if (m->s.rc != 0)
        return NULL;
    m->next_kept = (at + 1) % KEPT_MASKS;
    memset(*bits, 0, n_words * sizeof **bits);
    m->kept[at].set = SET_NONE; /* until it is complete */
    compute(m, *bits);
    if (m->s.rc != 0)
        return NULL;
    m->kept[at].set = m->now;
    return *bits;
}
