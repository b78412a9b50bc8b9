/* Sets of stacks: one step of all stacks by a byte or a token, and their storage, where every set
 * is kept once. Sets of many ways to read a text stay small, as stacks with the same top share one
 * node and what is below them becomes one set. */
#include "grammar_match.h"

#include <stdlib.h>
#include <string.h>

/* More than this is no grammar for a text any more. Calls deeper than MAX_DEPTH do not fit. */
enum {
    MAX_DEPTH = 1200,
    MAX_FOUND = 1 << 14,
    MOST_SETS = 1 << 20,
    MOST_NODES = 1 << 22,
    N_UNITED = 4096
};

static bool grow(struct sets *s, void *pool, size_t *cap, size_t want, size_t size)
{
    if (s->rc == 0)
        s->rc = mem_grow(pool, cap, want, size, "a matcher", s->err);
    return s->rc == 0;
}

static void too_ambiguous(struct sets *s)
{
    if (s->rc == 0)
        s->rc = err_set(s->err, DSV4_FAILED,
                        "grammar: too ambiguous; the text can be read in too many ways");
}

static bool same(const struct mnode *a, const struct mnode *b)
{
    return a->state == b->state && a->lo == b->lo && a->hi == b->hi && a->below == b->below;
}

static uint64_t hash(uint64_t h, const struct mnode *n)
{
    h = (h ^ n->state) * 0x9e3779b97f4a7c15u;
    h = (h ^ n->lo ^ (uint64_t)n->hi << 32) * 0x9e3779b97f4a7c15u;
    h = (h ^ n->below ^ h >> 31) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

static uint64_t hash_all(const struct mnode *n, size_t count)
{
    uint64_t h = count;
    for (size_t i = 0; i < count; i++)
        h = hash(h, &n[i]);
    return h;
}

/* ------------------------------------------------------------------ storage */

/* The set of n nodes, sorted and different; they lie outside s->node. */
static uint32_t intern(struct sets *s, const struct mnode *nodes, size_t n)
{
    if (n == 0 || s->rc != 0)
        return SET_NONE;
    s->rc = slots_room(&s->slots, "a matcher", s->err);
    if (s->rc != 0)
        return SET_NONE;
    uint64_t h = hash_all(nodes, n);
    size_t at = SLOTS_BEGIN;
    for (uint32_t id; (id = slots_next(&s->slots, h, &at)) != SLOTS_NONE;) {
        const struct mset *x = &s->set[id];
        size_t i = 0;
        while (x->n == n && i < n && same(&s->node[x->first + i], &nodes[i]))
            i++;
        if (x->n == n && i == n)
            return id;
    }
    if (s->n_sets >= MOST_SETS || s->n_nodes + n > MOST_NODES) {
        too_ambiguous(s);
        return SET_NONE;
    }
    if (!grow(s, &s->node, &s->cap_nodes, s->n_nodes + n, sizeof *s->node) ||
        !grow(s, &s->set, &s->cap_sets, s->n_sets + 1, sizeof *s->set))
        return SET_NONE;
    struct mset x = {
        .first = (uint32_t)s->n_nodes, .n = (uint32_t)n, .row = UNKNOWN, .popped = UNKNOWN};
    for (size_t i = 0; i < n; i++) {
        uint32_t depth = s->set[nodes[i].below].depth + 1;
        x.depth = depth > x.depth ? depth : x.depth;
        x.end = x.end || nodes[i].state == STATE_END;
        s->node[s->n_nodes++] = nodes[i];
    }
    s->set[s->n_sets] = x;
    slots_put(&s->slots, at, h, (uint32_t)s->n_sets);
    return (uint32_t)s->n_sets++;
}

static int by_top(const struct mnode *a, const struct mnode *b)
{
    if (a->state != b->state)
        return a->state < b->state ? -1 : 1;
    if (a->lo != b->lo)
        return a->lo < b->lo ? -1 : 1;
    return (a->hi > b->hi) - (a->hi < b->hi);
}

static int by_all(const void *a, const void *b)
{
    const struct mnode *x = a, *y = b;
    int c = by_top(x, y);
    return c != 0 ? c : (x->below > y->below) - (x->below < y->below);
}

/* As deep as its stacks at most: where two tops agree, what is below them is united too. */
uint32_t sets_union(struct sets *s, uint32_t x, uint32_t y)
{
    if (x == y || y == SET_NONE)
        return x;
    if (x == SET_NONE)
        return y;
    if (!s->united && s->rc == 0)
        s->rc = mem_alloc(&s->united, N_UNITED, sizeof *s->united, "a matcher", s->err);
    if (s->rc != 0)
        return SET_NONE;
    size_t kept = (x * 0x9e3779b1u ^ y * 0x85ebca6bu) >> 20 & (N_UNITED - 1);
    if (s->united[kept].x == x && s->united[kept].y == y)
        return s->united[kept].both;
    size_t begin = s->n_merge, i = 0, k = 0;
    while (s->rc == 0) {
        const struct mset *a = &s->set[x], *b = &s->set[y];
        if (i == a->n && k == b->n)
            break;
        struct mnode p = s->node[a->first + (i < a->n ? i : 0)],
                     q = s->node[b->first + (k < b->n ? k : 0)];
        int c = i == a->n ? 1 : k == b->n ? -1 : by_top(&p, &q);
        if (c == 0)
            p.below = sets_union(s, p.below, q.below);
        i += c <= 0;
        k += c >= 0;
        if (grow(s, &s->merge, &s->cap_merge, s->n_merge + 1, sizeof *s->merge))
            s->merge[s->n_merge++] = c > 0 ? q : p;
    }
    uint32_t id = intern(s, s->merge + begin, s->n_merge - begin);
    s->n_merge = begin;
    if (s->rc == 0)
        s->united[kept] = (struct set_pair){x, y, id};
    return id;
}

/* ------------------------------------------------------------------ one step */

static void step_begin(struct sets *s)
{
    s->n_todo = s->n_found = s->n_seen = 0;
    if (++s->step == 0 && s->seen_at) { /* the counter went round */
        memset(s->seen_at, 0, s->n_seen_slots * sizeof *s->seen_at);
        s->step = 1;
    }
}

static bool more_seen(struct sets *s)
{
    size_t n = s->n_seen_slots ? 2 * s->n_seen_slots : 256;
    struct mnode *seen = NULL;
    uint32_t *at = NULL;
    s->rc = mem_alloc(&at, n, sizeof *at, "a matcher", s->err);
    if (s->rc == 0)
        s->rc = mem_alloc(&seen, n, sizeof *seen, "a matcher", s->err);
    if (s->rc != 0) {
        free(at);
        return false;
    }
    for (size_t i = 0; i < s->n_seen_slots; i++) {
        if (s->seen_at[i] != s->step)
            continue;
        size_t k = hash(0, &s->seen[i]) & (n - 1);
        while (at[k] == s->step)
            k = (k + 1) & (n - 1);
        at[k] = s->step;
        seen[k] = s->seen[i];
    }
    free(s->seen);
    free(s->seen_at);
    s->seen = seen;
    s->seen_at = at;
    s->n_seen_slots = n;
    return true;
}

/* False when the node was met before in this step. */
static bool first_time(struct sets *s, const struct mnode *n)
{
    if (2 * s->n_seen >= s->n_seen_slots && !more_seen(s))
        return false;
    size_t k = hash(0, n) & (s->n_seen_slots - 1);
    for (; s->seen_at[k] == s->step; k = (k + 1) & (s->n_seen_slots - 1))
        if (same(&s->seen[k], n))
            return false;
    s->seen_at[k] = s->step;
    s->seen[k] = *n;
    s->n_seen++;
    return true;
}

static void later(struct sets *s, struct mnode n)
{
    if (s->n_todo > MAX_FOUND)
        too_ambiguous(s);
    if (grow(s, &s->todo, &s->cap_todo, s->n_todo + 1, sizeof *s->todo))
        s->todo[s->n_todo++] = n;
}

/* A rule has ended: its caller goes on. */
static void pop(struct sets *s, uint32_t below)
{
    struct mset x = s->set[below];
    for (uint32_t i = 0; i < x.n && s->rc == 0; i++)
        later(s, s->node[x.first + i]);
}

/* Between two repetitions, or before the first: lo more must follow, up to hi may. */
static void between(struct sets *s, uint32_t rule, uint32_t lo, uint32_t hi, uint32_t below)
{
    if (lo == 0)
        pop(s, below);
    if (hi > 0)
        later(s, (struct mnode){s->g->rule[rule].start, lo, hi, below});
}

static void call(struct sets *s, const struct mnode *n, const struct ccall *c)
{
    const dsv4_grammar *g = s->g;
    uint32_t below = n->below;
    /* A call at the very end of a rule returns to the rule's caller at once: lists that are written
     * with recursion do not grow the stack. */
    if (!g->state[c->to].silent || g->rule[g->state[c->to].rule].counted) {
        if (s->set[below].depth >= MAX_DEPTH)
            return;
        below = intern(s, &(struct mnode){c->to, n->lo, n->hi, below}, 1);
    }
    if (s->rc != 0)
        return;
    if (g->rule[c->rule].counted)
        between(s, c->rule, c->min, c->max, below);
    else
        later(s, (struct mnode){g->rule[c->rule].start, 0, 0, below});
}

static void ended(struct sets *s, const struct mnode *n)
{
    uint32_t rule = s->g->state[n->state].rule;
    if (s->g->rule[rule].counted)
        between(s, rule, n->lo ? n->lo - 1 : 0, n->hi == G_INF ? G_INF : n->hi - 1, n->below);
    else
        pop(s, n->below);
}

static void keep(struct sets *s, const struct mnode *n)
{
    if (s->n_found >= MAX_FOUND)
        too_ambiguous(s);
    if (grow(s, &s->found, &s->cap_found, s->n_found + 1, sizeof *s->found))
        s->found[s->n_found++] = *n;
}

/* Follows calls and ends of rules from the nodes put aside until each waits for a byte or a token;
 * the set of all. */
static uint32_t settle(struct sets *s)
{
    while (s->n_todo && s->rc == 0) {
        struct mnode n = s->todo[--s->n_todo];
        if (!first_time(s, &n))
            continue;
        if (n.state == STATE_END) {
            keep(s, &n);
            continue;
        }
        const struct cstate *c = &s->g->state[n.state];
        if (c[0].edge < c[1].edge || c[0].tok < c[1].tok)
            keep(s, &n);
        if (c->final)
            ended(s, &n);
        for (uint32_t i = c[0].call; i < c[1].call && s->rc == 0; i++)
            call(s, &n, &s->g->call[i]);
    }
    if (s->rc != 0)
        return SET_NONE;
    if (s->n_found > 1)
        qsort(s->found, s->n_found, sizeof *s->found, by_all);
    size_t n = 0;
    for (size_t i = 0; i < s->n_found; i++)
        if (n > 0 && by_top(&s->found[n - 1], &s->found[i]) == 0)
            s->found[n - 1].below = sets_union(s, s->found[n - 1].below, s->found[i].below);
        else
            s->found[n++] = s->found[i];
    return intern(s, s->found, n);
}

/* The state after a byte; STATE_END: none. *lo and *hi are narrowed to the bytes that lead to the
 * same. */
static uint32_t edge_to(const dsv4_grammar *g, uint32_t state, unsigned byte, unsigned *lo,
                        unsigned *hi)
{
    uint32_t first = g->state[state].edge, end = g->state[state + 1].edge, at = first, to = end;
    while (at < to) {
        uint32_t mid = at + (to - at) / 2;
        if (g->edge[mid].hi < byte)
            at = mid + 1;
        else
            to = mid;
    }
    bool found = at < end && g->edge[at].lo <= byte;
    unsigned from = found        ? g->edge[at].lo
                    : at > first ? g->edge[at - 1].hi + 1u
                                 : 0,
             last = found      ? g->edge[at].hi
                    : at < end ? g->edge[at].lo - 1u
                               : 255;
    *lo = from > *lo ? from : *lo;
    *hi = last < *hi ? last : *hi;
    return found ? g->edge[at].to : STATE_END;
}

static bool add_row(struct sets *s, uint32_t set)
{
    size_t n = s->g->n_classes;
    if (!grow(s, &s->row, &s->cap_rows, (s->n_rows + 1) * n, sizeof *s->row))
        return false;
    memset(s->row + s->n_rows * n, 0xFF, n * sizeof *s->row);
    s->set[set].row = (uint32_t)s->n_rows++;
    return true;
}

/* All stacks that go on, put aside; *lo and *hi are the bytes with which they do the same. */
static void advance(struct sets *s, const struct mset *x, unsigned byte, unsigned *lo, unsigned *hi)
{
    step_begin(s);
    for (uint32_t i = 0; i < x->n; i++) {
        struct mnode n = s->node[x->first + i];
        if (n.state == STATE_END)
            continue;
        n.state = edge_to(s->g, n.state, byte, lo, hi);
        if (n.state != STATE_END)
            later(s, n);
    }
}

uint32_t sets_compute(struct sets *s, uint32_t set, unsigned class)
{
    const dsv4_grammar *g = s->g;
    unsigned lo = 0, hi = 255;
    uint32_t next;
    if (s->rc != 0 || (s->set[set].row == UNKNOWN && !add_row(s, set)))
        return SET_NONE;
    struct mset x = s->set[set];
    advance(s, &x, g->sample[class], &lo, &hi);
    const struct cstate *c = s->n_todo == 1 ? &g->state[s->todo[0].state] : NULL;
    if (s->rc == 0 && c && !c->final && c[0].call == c[1].call) /* by far the most frequent case */
        next = intern(
            s, &(struct mnode){s->todo[0].state, s->todo[0].lo, s->todo[0].hi, s->todo[0].below},
            1);
    else
        next = settle(s);
    if (s->rc != 0)
        return SET_NONE;
    uint32_t *row = s->row + (size_t)s->set[set].row * g->n_classes;
    for (unsigned k = g->class[lo]; k <= g->class[hi]; k++)
        row[k] = next;
    return next;
}

uint32_t sets_token(struct sets *s, uint32_t set, int32_t token)
{
    const dsv4_grammar *g = s->g;
    struct mset x = s->set[set];
    step_begin(s);
    for (uint32_t i = 0; i < x.n; i++) {
        struct mnode n = s->node[x.first + i];
        if (n.state == STATE_END)
            continue;
        const struct cstate *c = &g->state[n.state];
        for (uint32_t k = c[0].tok; k < c[1].tok; k++)
            if (g->tok[k].token == token)
                later(s, (struct mnode){g->tok[k].to, n.lo, n.hi, n.below});
    }
    return settle(s);
}

uint32_t sets_popped(struct sets *s, uint32_t set)
{
    if (s->set[set].popped != UNKNOWN || s->rc != 0)
        return s->rc == 0 ? s->set[set].popped : SET_NONE;
    step_begin(s);
    pop(s, set);
    uint32_t id = settle(s);
    if (s->rc == 0)
        s->set[set].popped = id;
    return id;
}

uint32_t sets_single(struct sets *s, struct mnode n)
{
    return intern(s, &n, 1);
}

uint32_t sets_start(struct sets *s)
{
    step_begin(s);
    later(s, (struct mnode){s->g->rule[s->g->root].start, 0, 0, SET_END});
    return settle(s);
}

/* ------------------------------------------------------------------ life */

int sets_open(struct sets *s, const dsv4_grammar *g, dsv4_err *err)
{
    *s = (struct sets){.g = g, .err = err};
    if (grow(s, &s->set, &s->cap_sets, 2, sizeof *s->set)) {
        s->set[0] = (struct mset){.row = UNKNOWN, .popped = UNKNOWN};
        s->n_sets = 1;
        sets_single(s, (struct mnode){STATE_END, 0, 0, SET_NONE});
    }
    if (s->rc != 0)
        sets_close(s);
    return s->rc;
}

void sets_close(struct sets *s)
{
    free(s->node);
    free(s->set);
    free(s->slots.slot);
    free(s->row);
    free(s->todo);
    free(s->found);
    free(s->merge);
    free(s->seen);
    free(s->seen_at);
    free(s->united);
    int rc = s->rc;
    *s = (struct sets){.rc = rc};
}

/* What lies below a set has a smaller number: downwards to find what is needed, upwards to copy. */
uint32_t sets_copy(struct sets *to, const struct sets *from, uint32_t set)
{
    uint32_t *id;
    to->rc =
        to->rc != 0 ? to->rc : mem_alloc(&id, (size_t)set + 1, sizeof *id, "a matcher", to->err);
    if (to->rc != 0)
        return SET_NONE;
    id[set] = UNKNOWN;
    for (uint32_t i = set; i > SET_END; i--)
        for (uint32_t k = 0; id[i] == UNKNOWN && k < from->set[i].n; k++) {
            uint32_t below = from->node[from->set[i].first + k].below;
            if (below > SET_END)
                id[below] = UNKNOWN;
        }
    id[SET_NONE] = SET_NONE;
    if (set >= SET_END)
        id[SET_END] = SET_END;
    for (uint32_t i = SET_END + 1; i <= set && to->rc == 0; i++) {
        if (id[i] != UNKNOWN)
            continue;
        to->n_merge = 0;
        for (uint32_t k = 0; k < from->set[i].n; k++) {
            struct mnode n = from->node[from->set[i].first + k];
            n.below = id[n.below];
            if (grow(to, &to->merge, &to->cap_merge, to->n_merge + 1, sizeof n))
                to->merge[to->n_merge++] = n;
        }
        id[i] = intern(to, to->merge, to->n_merge);
        to->n_merge = 0;
    }
    uint32_t out = to->rc == 0 ? id[set] : SET_NONE;
    free(id);
    return out;
}
