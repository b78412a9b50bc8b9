/* Trees to deterministic automata: a tree becomes a nondeterministic automaton (Thompson), whose
 * sets of states become the states of a deterministic one. Calls of rules and tokens are symbols
 * like bytes. Small rules are put in where they are called, long repetitions become calls with a
 * counter. */
#include "grammar.h"

#include <stdlib.h>
#include <string.h>

#define NONE UINT32_MAX

/* A rule up to this size is put in; a repetition up to this size is written out. */
enum { INLINE_SIZE = 24, EXPAND_SIZE = 320, MAX_NEST = 400 };

enum { BEGIN, END }; /* places of every automaton */

enum nkind { N_EPS, N_BYTE, N_SYM };

struct nedge {
    enum nkind kind;
    uint32_t a, b; /* a byte a .. b; symbol a */
    uint32_t to, next;
};

struct nfa {
    uint32_t *first; /* of each state */
    struct nedge *edge;
    size_t n, n_edge, cap, cap_edge;
    bool flat;
};

/* ------------------------------------------------------------------ the finished ones */

void fa_free(struct fa *f)
{
    free(f->state);
    free(f->edge);
    free(f->call);
    *f = (struct fa){0};
}

static bool grow(struct gbuild *b, void *pool, size_t *cap, size_t want, size_t size)
{
    if (b->rc == 0)
        b->rc = mem_grow(pool, cap, want, size, "an automaton", b->err);
    return b->rc == 0;
}

uint32_t fa_add_state(struct gbuild *b, struct fa *f, bool final)
{
    if (f->n >= G_MAX_STATES)
        g_fail(b, DSV4_REFUSED, "grammar: too large (more than %u states)", G_MAX_STATES);
    if (!grow(b, &f->state, &f->cap, f->n + 1, sizeof *f->state))
        return 0;
    f->state[f->n] =
        (struct fstate){.edge = (uint32_t)f->n_edge, .call = (uint32_t)f->n_call, .final = final};
    return (uint32_t)f->n++;
}

void fa_add_edge(struct gbuild *b, struct fa *f, unsigned lo, unsigned hi, uint32_t to)
{
    if (b->rc != 0)
        return;
    struct fstate *s = &f->state[f->n - 1];
    struct fedge *last = s->n_edge ? &f->edge[f->n_edge - 1] : NULL;
    if (last && last->to == to && last->hi + 1u == lo) {
        last->hi = (uint8_t)hi;
        return;
    }
    if (!grow(b, &f->edge, &f->cap_edge, f->n_edge + 1, sizeof *f->edge))
        return;
    f->edge[f->n_edge++] = (struct fedge){(uint8_t)lo, (uint8_t)hi, to};
    f->state[f->n - 1].n_edge++;
}

static void add_call(struct gbuild *b, struct fa *f, uint32_t sym, uint32_t to)
{
    if (!grow(b, &f->call, &f->cap_call, f->n_call + 1, sizeof *f->call))
        return;
    f->call[f->n_call++] = (struct fcall){sym, to};
    f->state[f->n - 1].n_call++;
}

uint32_t fa_next(const struct fa *f, uint32_t state, unsigned byte)
{
    const uint32_t first = f->state[state].edge, end = first + f->state[state].n_edge;
    for (uint32_t i = first; i < end; i++)
        if (byte >= f->edge[i].lo && byte <= f->edge[i].hi)
            return f->edge[i].to;
    return NONE;
}

/* ------------------------------------------------------------------ measures of trees */

/* About how many edges a tree needs with the rules it calls put in, counted up to `limit`, which
 * recursion always reaches. */
static size_t tree_size(const struct gbuild *b, uint32_t node, size_t limit, int depth)
{
    if (node == 0 || limit == 0 || depth > MAX_NEST)
        return depth > MAX_NEST ? limit : 0;
    const struct gnode *g = &b->node[node];
    size_t n = 0;
    switch (g->kind) {
    case G_NEVER:
    case G_EMPTY: return 1;
    case G_BYTES: return g->b < limit ? g->b : limit;
    case G_RANGE:
    case G_TOKEN: return 1;
    case G_CLASS:
        for (uint32_t i = 0; i < g->b && n < limit; i++)
            n += b->range[g->a + i].hi < 0x80 ? 1 : 5;
        return n;
    case G_CALL:
        n = 1 + tree_size(b, b->rule[g->a].node, limit - 1, depth + 1);
        return n < limit ? n : limit;
    case G_SEQ:
    case G_ALT:
        for (uint32_t i = 0; i < g->b && n < limit; i++)
            n += tree_size(b, b->kid[g->a + i], limit - n, depth + 1);
        return n < limit ? n : limit;
    case G_REPEAT:
    case G_COUNT: {
        size_t times = g->c == G_INF ? (size_t)g->b + 1 : g->c, each = limit;
        each = tree_size(b, g->a, limit, depth + 1);
        return each && times > limit / each ? limit : each * times;
    }
    case G_GRAPH:
        for (uint32_t i = 0; i < g->b && n < limit; i++)
            n += 1 + tree_size(b, b->arc[g->a + i].node, limit - n, depth + 1);
        return n < limit ? n : limit;
    }
    return limit;
}

/* Whether a tree may be empty; also when that is too deep to tell. */
static bool may_be_empty(const struct gbuild *b, uint32_t node, int depth, size_t *budget)
{
    if (node == 0)
        return false;
    if (depth > MAX_NEST || *budget == 0)
        return true;
    --*budget;
    const struct gnode *g = &b->node[node];
    switch (g->kind) {
    case G_NEVER:
    case G_BYTES:
    case G_RANGE:
    case G_CLASS:
    case G_TOKEN: return false;
    case G_EMPTY:
    case G_GRAPH: return true; /* graphs are not looked into: none of ours is repeated */
    case G_CALL: return may_be_empty(b, b->rule[g->a].node, depth + 1, budget);
    case G_SEQ:
        for (uint32_t i = 0; i < g->b; i++)
            if (!may_be_empty(b, b->kid[g->a + i], depth + 1, budget))
                return false;
        return true;
    case G_ALT:
        for (uint32_t i = 0; i < g->b; i++)
            if (may_be_empty(b, b->kid[g->a + i], depth + 1, budget))
                return true;
        return false;
    case G_REPEAT:
    case G_COUNT: return g->b == 0 || may_be_empty(b, g->a, depth + 1, budget);
    }
    return true;
}

/* ------------------------------------------------------------------ symbols */

static uint32_t add_sym(struct gbuild *b, struct gsym s)
{
    if (!grow(b, &b->sym, &b->cap_sym, b->n_sym + 1, sizeof *b->sym))
        return 0;
    b->sym[b->n_sym] = s;
    return (uint32_t)b->n_sym++;
}

static uint32_t rule_sym(struct gbuild *b, uint32_t rule)
{
    if (b->rule[rule].sym == 0) {
        uint32_t s = add_sym(b, (struct gsym){G_INF, rule, 1, 1});
        b->rule[rule].sym = s + 1;
    }
    return b->rule[rule].sym - 1;
}

/* One symbol a token, so that equal ones meet; there are few. */
static uint32_t token_sym(struct gbuild *b, uint32_t node)
{
    uint32_t token = b->node[node].a, s;
    if (b->node[node].sym == 0) {
        for (s = 0; s < b->n_sym && s < 256; s++)
            if (b->sym[s].token == token)
                break;
        if (s >= b->n_sym || s >= 256)
            s = add_sym(b, (struct gsym){token, 0, 0, 0});
        b->node[node].sym = s + 1;
    }
    return b->node[node].sym - 1;
}

/* The call with a counter that a repetition becomes. */
static uint32_t count_sym(struct gbuild *b, uint32_t node)
{
    if (b->node[node].sym == 0) {
        struct gnode g = b->node[node];
        if (b->node[g.a].unit == 0) {
            uint32_t rule = g_rule(b, "(repetition)", 12);
            g_set_rule(b, rule, g.a);
            if (b->rc != 0)
                return 0;
            b->rule[rule].counted = true;
            b->node[g.a].unit = rule + 1;
        }
        uint32_t s = add_sym(b, (struct gsym){G_INF, b->node[g.a].unit - 1, g.b, g.c});
        b->node[node].sym = s + 1;
    }
    return b->node[node].sym - 1;
}

/* ------------------------------------------------------------------ tree -> nondeterministic */

static uint32_t new_state(struct gbuild *b, struct nfa *m)
{
    if (m->n >= 4 * (size_t)G_MAX_NODES)
        g_fail(b, DSV4_REFUSED, "grammar: too large");
    if (!grow(b, &m->first, &m->cap, m->n + 1, sizeof *m->first))
        return 0;
    m->first[m->n] = NONE;
    return (uint32_t)m->n++;
}

static void link(struct gbuild *b, struct nfa *m, uint32_t from, struct nedge e)
{
    if (m->n_edge >= 8 * (size_t)G_MAX_NODES)
        g_fail(b, DSV4_REFUSED, "grammar: too large");
    if (!grow(b, &m->edge, &m->cap_edge, m->n_edge + 1, sizeof *m->edge))
        return;
    e.next = m->first[from];
    m->edge[m->n_edge] = e;
    m->first[from] = (uint32_t)m->n_edge++;
}

static void link_bytes(struct gbuild *b, struct nfa *m, uint32_t from, unsigned lo, unsigned hi,
                       uint32_t to)
{
    link(b, m, from, (struct nedge){.kind = N_BYTE, .a = lo, .b = hi, .to = to});
}

static void skip(struct gbuild *b, struct nfa *m, uint32_t from, uint32_t to)
{
    link(b, m, from, (struct nedge){.kind = N_EPS, .to = to});
}

/* States that read 1, 2, 3 more continuation bytes of any value and lead to `to`, made when
 * needed. */
struct tails {
    uint32_t to, state[4];
};

static uint32_t tail(struct gbuild *b, struct nfa *m, struct tails *t, unsigned n)
{
    if (n == 0)
        return t->to;
    if (t->state[n] == 0) {
        uint32_t s = new_state(b, m), next = tail(b, m, t, n - 1);
        if (b->rc != 0)
            return 0;
        link_bytes(b, m, s, 0x80, 0xBF, next);
        t->state[n] = s;
    }
    return t->state[n];
}

/* Bytes lo[0..n] to hi[0..n] of characters with n + 1 bytes. The middle of the range shares its
 * tails. */
static void put_utf8(struct gbuild *b, struct nfa *m, uint32_t from, const unsigned char *lo,
                     const unsigned char *hi, unsigned n, struct tails *t)
{
    if (n == 0) {
        link_bytes(b, m, from, lo[0], hi[0], t->to);
        return;
    }
    static const unsigned char least[4] = {0x80, 0x80, 0x80, 0x80},
                               most[4] = {0xBF, 0xBF, 0xBF, 0xBF};
    bool open_lo = memcmp(lo + 1, least, n) == 0, open_hi = memcmp(hi + 1, most, n) == 0;
    unsigned a = lo[0], z = hi[0];
    if (a == z && !(open_lo && open_hi)) {
        uint32_t s = new_state(b, m);
        if (b->rc != 0)
            return;
        link_bytes(b, m, from, a, a, s);
        put_utf8(b, m, s, lo + 1, hi + 1, n - 1, t);
        return;
    }
    if (!open_lo) {
        unsigned char top[4];
        top[0] = (unsigned char)a++;
        memcpy(top + 1, most, n);
        put_utf8(b, m, from, lo, top, n, t);
    }
    if (!open_hi) {
        unsigned char low[4];
        low[0] = (unsigned char)z--;
        memcpy(low + 1, least, n);
        put_utf8(b, m, from, low, hi, n, t);
    }
    if (a <= z)
        link_bytes(b, m, from, a, z, tail(b, m, t, n));
}

static void put_class(struct gbuild *b, struct nfa *m, const struct gnode *g, uint32_t from,
                      uint32_t to)
{
    static const uint32_t last[4] = {0x7F, 0x7FF, 0xFFFF, 0x10FFFF};
    struct tails t = {.to = to};
    for (uint32_t i = 0; i < g->b && b->rc == 0; i++) {
        uint32_t lo = b->range[g->a + i].lo, hi = b->range[g->a + i].hi;
        for (unsigned n = 0; n < 4 && lo <= hi; n++) {
            if (lo > last[n])
                continue;
            uint32_t end = hi < last[n] ? hi : last[n];
            char first[4], final[4];
            utf8_encode(lo, first);
            utf8_encode(end, final);
            put_utf8(b, m, from, (unsigned char *)first, (unsigned char *) final, n, &t);
            lo = end + 1;
        }
    }
}

static void put(struct gbuild *b, struct nfa *m, uint32_t node, uint32_t from, uint32_t to,
                int depth);

static void put_bytes(struct gbuild *b, struct nfa *m, const struct gnode *g, uint32_t from,
                      uint32_t to)
{
    for (uint32_t i = 0; i < g->b && b->rc == 0; i++) {
        uint32_t next = i + 1 < g->b ? new_state(b, m) : to;
        unsigned char c = (unsigned char)b->text.data[g->a + i];
        link_bytes(b, m, from, c, c, next);
        from = next;
    }
}

static void put_repeat(struct gbuild *b, struct nfa *m, uint32_t node, uint32_t from, uint32_t to,
                       int depth)
{
    struct gnode g = b->node[node];
    size_t budget = 1000;
    bool endless = g.c == G_INF, empty = may_be_empty(b, g.a, 0, &budget);
    size_t times = endless ? g.b : g.c;
    size_t each = tree_size(b, g.a, EXPAND_SIZE, 0);
    bool count = !m->flat && times > 1 && (g.kind == G_COUNT || times > EXPAND_SIZE / (each + 1));
    if (count && empty && times > EXPAND_SIZE) {
        g_fail(b, DSV4_REFUSED, "grammar: up to %zu repetitions of something that may be empty",
               times);
        return;
    }
    if (count && !empty) {
        link(b, m, from, (struct nedge){.kind = N_SYM, .a = count_sym(b, node), .to = to});
        return;
    }
    for (size_t i = 0; i < times && b->rc == 0; i++) {
        if (i >= g.b)
            skip(b, m, from, to);
        uint32_t next = new_state(b, m);
        put(b, m, g.a, from, next, depth + 1);
        from = next;
    }
    if (endless) {
        uint32_t loop = new_state(b, m);
        if (b->rc != 0)
            return;
        skip(b, m, from, loop);
        put(b, m, g.a, loop, loop, depth + 1);
        from = loop;
    }
    if (b->rc == 0)
        skip(b, m, from, to);
}

static void put_graph(struct gbuild *b, struct nfa *m, const struct gnode *g, uint32_t from,
                      uint32_t to, int depth)
{
    /* Places of their own even for the two ends: arcs may lead back to them. */
    uint32_t base = (uint32_t)m->n;
    for (uint32_t i = 0; i < g->c && b->rc == 0; i++)
        new_state(b, m);
    if (b->rc != 0)
        return;
    skip(b, m, from, base);
    skip(b, m, base + 1, to);
    for (uint32_t i = 0; i < g->b && b->rc == 0; i++) {
        struct garc a = b->arc[g->a + i];
        put(b, m, a.node, base + a.from, base + a.to, depth + 1);
    }
}

static void put_call(struct gbuild *b, struct nfa *m, uint32_t rule, uint32_t from, uint32_t to,
                     int depth)
{
    size_t limit = m->flat ? G_MAX_NODES : INLINE_SIZE;
    if (tree_size(b, b->rule[rule].node, limit, 0) < limit)
        put(b, m, b->rule[rule].node, from, to, depth + 1);
    else if (m->flat)
        g_fail(b, DSV4_REFUSED, "grammar: a pattern that calls itself");
    else
        link(b, m, from, (struct nedge){.kind = N_SYM, .a = rule_sym(b, rule), .to = to});
}

/* Lets `node` lead from one state to another. */
static void put(struct gbuild *b, struct nfa *m, uint32_t node, uint32_t from, uint32_t to,
                int depth)
{
    if (b->rc != 0 || node == 0)
        return;
    if (depth > MAX_NEST) {
        g_fail(b, DSV4_REFUSED, "grammar: nested more than %d deep", MAX_NEST);
        return;
    }
    struct gnode g = b->node[node];
    switch (g.kind) {
    case G_NEVER: break;
    case G_EMPTY: skip(b, m, from, to); break;
    case G_BYTES: put_bytes(b, m, &g, from, to); break;
    case G_RANGE: link_bytes(b, m, from, g.a, g.b, to); break;
    case G_CLASS: put_class(b, m, &g, from, to); break;
    case G_TOKEN:
        link(b, m, from, (struct nedge){.kind = N_SYM, .a = token_sym(b, node), .to = to});
        break;
    case G_CALL: put_call(b, m, g.a, from, to, depth); break;
    case G_SEQ:
        for (uint32_t i = 0; i < g.b && b->rc == 0; i++) {
            uint32_t next = i + 1 < g.b ? new_state(b, m) : to;
            put(b, m, b->kid[g.a + i], from, next, depth + 1);
            from = next;
        }
        break;
    case G_ALT:
        for (uint32_t i = 0; i < g.b; i++)
            put(b, m, b->kid[g.a + i], from, to, depth + 1);
        break;
    case G_REPEAT:
    case G_COUNT: put_repeat(b, m, node, from, to, depth); break;
    case G_GRAPH: put_graph(b, m, &g, from, to, depth); break;
    }
}

/* ------------------------------------------------------------------ -> deterministic */

struct list {
    uint32_t *v;
    size_t n, cap;
};

/* The construction: sets of states of the nondeterministic automaton, numbered as they are
 * found. */
struct subsets {
    struct gbuild *b;
    const struct nfa *m;
    struct list pool;      /* all sets, one after the other */
    struct list at;        /* where set i begins; it ends where the next one does */
    struct slots slots;    /* of the sets */
    uint32_t *mark, stamp; /* [m->n] */
    struct list now, stack;
    struct nedge *edge; /* leaving the set at hand */
    size_t n_edge, cap_edge;
};

static void push(struct subsets *s, struct list *l, uint32_t v)
{
    if (grow(s->b, &l->v, &l->cap, l->n + 1, sizeof *l->v))
        l->v[l->n++] = v;
}

/* Adds a state and what is reached from it without a symbol; keeps those that lead on or end. */
static void reach(struct subsets *s, uint32_t state)
{
    push(s, &s->stack, state);
    while (s->stack.n && s->b->rc == 0) {
        state = s->stack.v[--s->stack.n];
        if (s->mark[state] == s->stamp)
            continue;
        s->mark[state] = s->stamp;
        bool keep = state == END;
        for (uint32_t e = s->m->first[state]; e != NONE; e = s->m->edge[e].next)
            if (s->m->edge[e].kind == N_EPS)
                push(s, &s->stack, s->m->edge[e].to);
            else
                keep = true;
        if (keep)
            push(s, &s->now, state);
    }
}

static void set_begin(struct subsets *s)
{
    s->now.n = 0;
    s->stamp++;
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* The number of the set `now`; NONE for the empty one. */
static uint32_t set_end(struct subsets *s)
{
    size_t n = s->now.n;
    if (n == 0 || !g_work(s->b, n + 4))
        return NONE;
    if (n > 1)
        qsort(s->now.v, n, sizeof *s->now.v, by_value);
    s->b->rc = slots_room(&s->slots, "an automaton", s->b->err);
    if (s->b->rc != 0)
        return NONE;
    uint64_t h = 0;
    for (size_t k = 0; k < n; k++)
        h = (h ^ s->now.v[k]) * 0x9e3779b97f4a7c15u;
    size_t at = SLOTS_BEGIN;
    for (uint32_t i; (i = slots_next(&s->slots, h, &at)) != SLOTS_NONE;) {
        uint32_t begin = s->at.v[i];
        if (s->at.v[i + 1] - begin == n &&
            memcmp(s->pool.v + begin, s->now.v, n * sizeof *s->now.v) == 0)
            return i;
    }
    for (size_t k = 0; k < n; k++)
        push(s, &s->pool, s->now.v[k]);
    push(s, &s->at, (uint32_t)s->pool.n);
    if (s->at.n > G_MAX_STATES)
        g_fail(s->b, DSV4_REFUSED, "grammar: too large (more than %u states)", G_MAX_STATES);
    if (s->b->rc != 0)
        return NONE;
    slots_put(&s->slots, at, h, (uint32_t)s->at.n - 2);
    return (uint32_t)s->at.n - 2;
}

static int by_symbol(const void *a, const void *b)
{
    const struct nedge *x = a, *y = b;
    if (x->kind != y->kind)
        return x->kind < y->kind ? -1 : 1;
    return (x->a > y->a) - (x->a < y->a);
}

/* Bytes: the ranges are cut where any of them begins or ends. */
static void byte_edges(struct subsets *s, struct fa *out, size_t n)
{
    bool cut[257] = {false};
    for (size_t i = 0; i < n; i++)
        cut[s->edge[i].a] = cut[s->edge[i].b + 1] = true;
    size_t from = 0; /* edges before it end below lo */
    for (unsigned lo = 0; lo < 256 && s->b->rc == 0;) {
        unsigned hi = lo + 1;
        while (hi < 256 && !cut[hi])
            hi++;
        set_begin(s);
        while (from < n && s->edge[from].b < lo)
            from++;
        size_t i = from;
        for (; i < n && s->edge[i].a <= lo; i++)
            if (s->edge[i].b >= lo)
                reach(s, s->edge[i].to);
        if (!g_work(s->b, i - from + 1))
            return;
        uint32_t to = set_end(s);
        if (to != NONE)
            fa_add_edge(s->b, out, lo, hi - 1, to);
        lo = hi;
    }
}

static void symbol_edges(struct subsets *s, struct fa *out, size_t from)
{
    for (size_t i = from; i < s->n_edge && s->b->rc == 0;) {
        uint32_t sym = s->edge[i].a;
        set_begin(s);
        for (; i < s->n_edge && s->edge[i].a == sym; i++)
            reach(s, s->edge[i].to);
        uint32_t to = set_end(s);
        if (to != NONE)
            add_call(s->b, out, sym, to);
    }
}

static void expand(struct subsets *s, uint32_t set, struct fa *out)
{
    bool final = false;
    s->n_edge = 0;
    for (size_t k = s->at.v[set]; k < s->at.v[set + 1]; k++) {
        uint32_t state = s->pool.v[k];
        final = final || state == END;
        for (uint32_t e = s->m->first[state]; e != NONE; e = s->m->edge[e].next) {
            if (s->m->edge[e].kind == N_EPS)
                continue;
            if (!grow(s->b, &s->edge, &s->cap_edge, s->n_edge + 1, sizeof *s->edge))
                return;
            s->edge[s->n_edge++] = s->m->edge[e];
        }
    }
    fa_add_state(s->b, out, final);
    if (s->n_edge > 1)
        qsort(s->edge, s->n_edge, sizeof *s->edge, by_symbol);
    size_t bytes = 0;
    while (bytes < s->n_edge && s->edge[bytes].kind == N_BYTE)
        bytes++;
    if (bytes == 1) {
        set_begin(s);
        reach(s, s->edge[0].to);
        uint32_t to = set_end(s);
        if (to != NONE)
            fa_add_edge(s->b, out, s->edge[0].a, s->edge[0].b, to);
    } else if (bytes) {
        byte_edges(s, out, bytes);
    }
    symbol_edges(s, out, bytes);
}

static int determine(struct gbuild *b, const struct nfa *m, struct fa *out)
{
    struct subsets s = {.b = b, .m = m};
    b->rc = mem_alloc(&s.mark, m->n, sizeof *s.mark, "an automaton", b->err);
    push(&s, &s.at, 0);
    set_begin(&s);
    if (b->rc == 0)
        reach(&s, BEGIN);
    if (set_end(&s) == NONE && b->rc == 0)
        fa_add_state(b, out, false); /* nothing fits */
    for (uint32_t i = 0; i + 1 < s.at.n && b->rc == 0; i++)
        expand(&s, i, out);
    free(s.mark);
    free(s.pool.v);
    free(s.at.v);
    free(s.slots.slot);
    free(s.now.v);
    free(s.stack.v);
    free(s.edge);
    return b->rc;
}

int fa_build(struct gbuild *b, uint32_t node, bool flat, struct fa *out)
{
    struct nfa m = {.flat = flat};
    *out = (struct fa){0};
    new_state(b, &m);
    new_state(b, &m);
    put(b, &m, node, BEGIN, END, 0);
    if (b->rc == 0)
        determine(b, &m, out);
    free(m.first);
    free(m.edge);
    if (b->rc != 0)
        fa_free(out);
    return b->rc;
}
