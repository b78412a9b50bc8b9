/* From rules to one immutable grammar: every rule that the first one needs becomes an automaton,
 * their states are numbered through, what can never end is taken out, left recursion is refused,
 * and bytes that no edge tells apart become one class. */
#include "grammar.h"

#include <stdlib.h>
#include <string.h>

struct linker {
    struct gbuild *b;
    struct fa *fa;    /* of each rule that is needed ... */
    uint32_t *rule;   /* ... which one that is ... */
    uint32_t *base;   /* ... and its first state in the whole */
    uint32_t *number; /* of each rule of the builder: its place here; G_INF */
    size_t n, cap_fa, cap_rule, cap_base, cap_number;
    uint32_t n_states;
    size_t n_edges, n_calls, n_toks;
    uint8_t *alive;    /* [n_states] the end of its rule can be reached */
    uint8_t *nullable; /* [n] the rule may be empty */
    dsv4_grammar *g;
};

/* ------------------------------------------------------------------ automata of all rules */

static uint32_t need(struct linker *k, uint32_t rule)
{
    struct gbuild *b = k->b;
    size_t had = k->cap_number;
    if (b->rc == 0)
        b->rc = mem_grow(&k->number, &k->cap_number, b->n_rule, sizeof *k->number, "rules", b->err);
    if (b->rc != 0)
        return 0;
    for (size_t i = had; i < k->cap_number; i++)
        k->number[i] = G_INF;
    if (k->number[rule] != G_INF)
        return k->number[rule];
    b->rc = mem_grow(&k->rule, &k->cap_rule, k->n + 1, sizeof *k->rule, "rules", b->err);
    if (b->rc == 0)
        b->rc = mem_grow(&k->base, &k->cap_base, k->n + 1, sizeof *k->base, "rules", b->err);
    if (b->rc == 0)
        b->rc = mem_grow(&k->fa, &k->cap_fa, k->n + 1, sizeof *k->fa, "rules", b->err);
    if (b->rc != 0)
        return 0;
    k->fa[k->n] = (struct fa){0};
    k->rule[k->n] = rule;
    k->number[rule] = (uint32_t)k->n;
    return (uint32_t)k->n++;
}

static int build_all(struct linker *k, uint32_t root)
{
    struct gbuild *b = k->b;
    need(k, root);
    for (size_t i = 0; i < k->n && b->rc == 0; i++) {
        struct fa f;
        if (fa_build(b, b->rule[k->rule[i]].node, false, &f) != 0)
            break;
        k->fa[i] = f;
        k->base[i] = k->n_states;
        k->n_states += (uint32_t)f.n;
        k->n_edges += f.n_edge;
        k->n_calls += f.n_call;
        if (k->n_states > G_MAX_STATES)
            g_fail(b, DSV4_REFUSED, "grammar: too large (more than %u states)", G_MAX_STATES);
        for (size_t c = 0; c < f.n_call && b->rc == 0; c++) {
            struct gsym s = b->sym[f.call[c].sym];
            if (s.token != G_INF)
                k->n_toks++;
            else
                need(k, s.rule);
        }
    }
    return b->rc;
}

/* ------------------------------------------------------------------ what can end */

/* For each place something is reached from: the places that it comes from. */
struct back {
    uint32_t *begin; /* [n + 1] */
    uint32_t *from;
};

struct use {
    uint32_t state, to, rule; /* a call: where, what follows, whom (numbers of the linker) */
    uint32_t min;
};

/* Calls of all rules in one list, numbered states. */
static int all_uses(struct linker *k, struct use **out, size_t *n)
{
    struct gbuild *b = k->b;
    *n = 0;
    b->rc = mem_alloc(out, k->n_calls, sizeof **out, "a grammar", b->err);
    for (size_t i = 0; i < k->n && b->rc == 0; i++)
        for (uint32_t s = 0; s < k->fa[i].n; s++)
            for (uint32_t c = 0; c < k->fa[i].state[s].n_call; c++) {
                struct fcall call = k->fa[i].call[k->fa[i].state[s].call + c];
                struct gsym y = b->sym[call.sym];
                if (y.token == G_INF)
                    (*out)[(*n)++] = (struct use){k->base[i] + s, k->base[i] + call.to,
                                                  k->number[y.rule], y.min};
            }
    return b->rc;
}

/* Sorts `item` numbers by a key below n_keys. */
static int back_make(struct gbuild *b, struct back *k, const uint32_t *key, size_t n, size_t n_keys)
{
    *k = (struct back){0};
    b->rc = mem_alloc(&k->begin, n_keys + 2, sizeof *k->begin, "a grammar", b->err);
    if (b->rc == 0)
        b->rc = mem_alloc(&k->from, n, sizeof *k->from, "a grammar", b->err);
    if (b->rc != 0)
        return b->rc;
    for (size_t i = 0; i < n; i++)
        k->begin[key[i] + 2]++;
    for (size_t i = 2; i < n_keys + 2; i++)
        k->begin[i] += k->begin[i - 1];
    for (size_t i = 0; i < n; i++)
        k->from[k->begin[key[i] + 1]++] = (uint32_t)i;
    return 0;
}

static void back_free(struct back *k)
{
    free(k->begin);
    free(k->from);
}

/* A step of a state to another in its rule: by a byte or a token (rule G_INF), or over a call. */
struct step {
    uint32_t from, to, rule;
};

static int all_steps(struct linker *k, const struct use *use, size_t n_use, struct step **out,
                     size_t *n)
{
    struct gbuild *b = k->b;
    *n = 0;
    b->rc = mem_alloc(out, k->n_edges + k->n_calls, sizeof **out, "a grammar", b->err);
    for (size_t i = 0; i < k->n && b->rc == 0; i++)
        for (uint32_t s = 0; s < k->fa[i].n; s++) {
            struct fstate at = k->fa[i].state[s];
            for (uint32_t e = 0; e < at.n_edge; e++)
                (*out)[(*n)++] = (struct step){k->base[i] + s,
                                               k->base[i] + k->fa[i].edge[at.edge + e].to, G_INF};
            for (uint32_t c = 0; c < at.n_call; c++) {
                struct fcall call = k->fa[i].call[at.call + c];
                if (b->sym[call.sym].token != G_INF)
                    (*out)[(*n)++] = (struct step){k->base[i] + s, k->base[i] + call.to, G_INF};
            }
        }
    for (size_t i = 0; i < n_use && b->rc == 0; i++)
        (*out)[(*n)++] =
            (struct step){use[i].state, use[i].to, use[i].min == 0 ? G_INF : use[i].rule};
    return b->rc;
}

struct queue {
    uint32_t *v; /* [n_states]: each state once */
    size_t n;
};

static void enlive(struct linker *k, struct queue *q, uint32_t state)
{
    if (!k->alive[state]) {
        k->alive[state] = 1;
        q->v[q->n++] = state;
    }
}

/* Marks the states from which their rule can end: from its final ones backwards, over a call only
 * when the called rule can end. */
static void spread_life(struct linker *k, const struct step *step, const struct back *to,
                        const struct back *over, const uint32_t *rule_of, struct queue *q)
{
    for (size_t done = 0; done < q->n; done++) {
        uint32_t s = q->v[done], r = rule_of[s];
        for (uint32_t i = to->begin[s]; i < to->begin[s + 1]; i++) {
            const struct step *t = &step[to->from[i]];
            if (t->rule == G_INF || k->alive[k->base[t->rule]])
                enlive(k, q, t->from);
        }
        if (s != k->base[r])
            continue;
        for (uint32_t i = over->begin[r]; i < over->begin[r + 1]; i++) {
            const struct step *t = &step[over->from[i]];
            if (k->alive[t->to])
                enlive(k, q, t->from);
        }
    }
}

static int find_alive(struct linker *k, const struct use *use, size_t n_use,
                      const uint32_t *rule_of)
{
    struct gbuild *b = k->b;
    struct step *step = NULL;
    struct back to = {0}, over = {0};
    struct queue q = {0};
    uint32_t *key = NULL;
    size_t n = 0;
    if (all_steps(k, use, n_use, &step, &n) == 0)
        b->rc = mem_alloc(&key, n, sizeof *key, "a grammar", b->err);
    for (size_t i = 0; i < n && b->rc == 0; i++)
        key[i] = step[i].to;
    if (b->rc == 0 && back_make(b, &to, key, n, k->n_states) == 0) {
        for (size_t i = 0; i < n; i++) /* the key n stands for no call */
            key[i] = step[i].rule == G_INF ? (uint32_t)k->n : step[i].rule;
        back_make(b, &over, key, n, k->n + 1);
    }
    if (b->rc == 0)
        b->rc = mem_alloc(&q.v, k->n_states, sizeof *q.v, "a grammar", b->err);
    if (b->rc == 0)
        b->rc = mem_alloc(&k->alive, k->n_states, 1, "a grammar", b->err);
    if (b->rc == 0) {
        for (size_t i = 0; i < k->n; i++)
            for (uint32_t s = 0; s < k->fa[i].n; s++)
                if (k->fa[i].state[s].final)
                    enlive(k, &q, k->base[i] + s);
        spread_life(k, step, &to, &over, rule_of, &q);
    }
    back_free(&to);
    back_free(&over);
    free(q.v);
    free(key);
    free(step);
    return b->rc;
}

/* ------------------------------------------------------------------ left recursion */

/* States that their rule may be in before it has read anything: the reached ones. */
struct early {
    uint8_t *reached; /* [n_states] */
    struct queue q;
};

static void arrive(struct early *e, uint32_t state)
{
    if (!e->reached[state]) {
        e->reached[state] = 1;
        e->q.v[e->q.n++] = state;
    }
}

static bool is_final(const struct linker *k, uint32_t state, uint32_t rule)
{
    return k->fa[rule].state[state - k->base[rule]].final;
}

/* From each rule's start over calls of rules that may be empty; a rule found to be one lets all its
 * callers that wait go on. */
static void spread_early(struct linker *k, struct early *e, const struct use *use,
                         const struct back *at, const struct back *of, const uint32_t *rule_of)
{
    for (size_t i = 0; i < k->n; i++)
        arrive(e, k->base[i]);
    for (size_t done = 0; done < e->q.n; done++) {
        uint32_t s = e->q.v[done], r = rule_of[s];
        for (uint32_t i = at->begin[s]; i < at->begin[s + 1]; i++) {
            const struct use *u = &use[at->from[i]];
            if (u->min == 0 || k->nullable[u->rule])
                arrive(e, u->to);
        }
        if (!is_final(k, s, r) || k->nullable[r])
            continue;
        k->nullable[r] = 1;
        for (uint32_t i = of->begin[r]; i < of->begin[r + 1]; i++)
            if (e->reached[use[of->from[i]].state])
                arrive(e, use[of->from[i]].to);
    }
}

/* Depth first over "may begin with a call of"; a rule met again on its own path is left
 * recursive. */
static uint32_t find_cycle(const struct linker *k, const struct early *e, const struct use *use,
                           const struct back *of_rule, uint32_t *path, uint32_t *next,
                           uint8_t *seen)
{
    for (uint32_t root = 0; root < k->n; root++) {
        size_t depth = 0;
        if (seen[root])
            continue;
        path[depth++] = root;
        seen[root] = 1;
        next[root] = of_rule->begin[root];
        while (depth) {
            uint32_t r = path[depth - 1];
            if (next[r] == of_rule->begin[r + 1]) {
                seen[r] = 2;
                depth--;
                continue;
            }
            const struct use *u = &use[of_rule->from[next[r]++]];
            if (!e->reached[u->state])
                continue;
            if (seen[u->rule] == 1)
                return u->rule;
            if (seen[u->rule] == 0) {
                seen[u->rule] = 1;
                next[u->rule] = of_rule->begin[u->rule];
                path[depth++] = u->rule;
            }
        }
    }
    return G_INF;
}

static int check_left(struct linker *k, const struct use *use, size_t n, const uint32_t *rule_of)
{
    struct gbuild *b = k->b;
    struct early e = {0};
    struct back at = {0}, of = {0}, in = {0};
    uint32_t *key = NULL, *path = NULL, *next = NULL;
    uint8_t *seen = NULL;
    b->rc = mem_alloc(&key, n, sizeof *key, "a grammar", b->err);
    for (int pass = 0; pass < 3 && b->rc == 0; pass++) {
        for (size_t i = 0; i < n; i++)
            key[i] = pass == 0 ? use[i].state : pass == 1 ? use[i].rule : rule_of[use[i].state];
        back_make(b, pass == 0 ? &at : pass == 1 ? &of : &in, key, n, pass ? k->n : k->n_states);
    }
    if (b->rc == 0)
        b->rc = mem_alloc(&e.reached, k->n_states, 1, "a grammar", b->err);
    if (b->rc == 0)
        b->rc = mem_alloc(&e.q.v, k->n_states, sizeof *e.q.v, "a grammar", b->err);
    if (b->rc == 0)
        b->rc = mem_alloc(&k->nullable, k->n, 1, "a grammar", b->err);
    if (b->rc == 0)
        b->rc = mem_alloc(&path, k->n, sizeof *path, "a grammar", b->err);
    if (b->rc == 0)
        b->rc = mem_alloc(&next, k->n, sizeof *next, "a grammar", b->err);
    if (b->rc == 0)
        b->rc = mem_alloc(&seen, k->n, 1, "a grammar", b->err);
    if (b->rc == 0) {
        spread_early(k, &e, use, &at, &of, rule_of);
        uint32_t r = find_cycle(k, &e, use, &in, path, next, seen);
        if (r != G_INF) {
            const struct grule *name = &b->rule[k->rule[r]];
            int shown = name->name_len < 100 ? (int)name->name_len : 100;
            g_fail(b, DSV4_REFUSED, "grammar: rule %.*s begins with itself (left recursion)", shown,
                   b->text.data + name->name);
        }
    }
    back_free(&at);
    back_free(&of);
    back_free(&in);
    free(e.reached);
    free(e.q.v);
    free(key);
    free(path);
    free(next);
    free(seen);
    return b->rc;
}

/* ------------------------------------------------------------------ the whole */

/* A call that cannot end is left out, and so is what leads nowhere. */
static bool leads_on(const struct linker *k, uint32_t base, struct fcall c)
{
    struct gsym y = k->b->sym[c.sym];
    return k->alive[base + c.to] &&
           (y.token != G_INF || y.min == 0 || k->alive[k->base[k->number[y.rule]]]);
}

static void fill_state(struct linker *k, size_t i, uint32_t s)
{
    dsv4_grammar *g = k->g;
    uint32_t base = k->base[i], id = base + s;
    const struct fa *f = &k->fa[i];
    struct fstate at = f->state[s];
    struct cstate *c = &g->state[id], *end = c + 1;
    c->rule = (uint32_t)i;
    c->final = at.final;
    *end = (struct cstate){.edge = c->edge, .call = c->call, .tok = c->tok};
    for (uint32_t e = 0; e < at.n_edge && k->alive[id]; e++) {
        struct fedge d = f->edge[at.edge + e];
        if (k->alive[base + d.to])
            g->edge[end->edge++] = (struct cedge){d.lo, d.hi, base + d.to};
    }
    for (uint32_t e = 0; e < at.n_call && k->alive[id]; e++) {
        struct fcall d = f->call[at.call + e];
        struct gsym y = k->b->sym[d.sym];
        if (!leads_on(k, base, d))
            continue;
        if (y.token != G_INF)
            g->tok[end->tok++] = (struct ctok){(int32_t)y.token, base + d.to};
        else
            g->call[end->call++] = (struct ccall){k->number[y.rule], y.min, y.max, base + d.to};
    }
    c->silent = at.final && end->edge == c->edge && end->call == c->call && end->tok == c->tok;
}

static int fill(struct linker *k)
{
    dsv4_grammar *g = k->g;
    dsv4_err *err = k->b->err;
    TRY(mem_alloc(&g->state, k->n_states + 1u, sizeof *g->state, "a grammar", err));
    TRY(mem_alloc(&g->edge, k->n_edges, sizeof *g->edge, "a grammar", err));
    TRY(mem_alloc(&g->call, k->n_calls, sizeof *g->call, "a grammar", err));
    TRY(mem_alloc(&g->tok, k->n_toks, sizeof *g->tok, "a grammar", err));
    TRY(mem_alloc(&g->rule, k->n, sizeof *g->rule, "a grammar", err));
    g->n = k->n_states;
    g->n_rules = (uint32_t)k->n;
    for (size_t i = 0; i < k->n; i++) {
        g->rule[i].start = k->base[i];
        g->rule[i].counted = k->b->rule[k->rule[i]].counted;
        for (uint32_t s = 0; s < k->fa[i].n; s++)
            fill_state(k, i, s);
    }
    return 0;
}

static void classes(dsv4_grammar *g)
{
    bool cut[257] = {false};
    for (uint32_t e = 0; e < g->state[g->n].edge; e++)
        cut[g->edge[e].lo] = cut[g->edge[e].hi + 1] = true;
    unsigned n = 0;
    for (unsigned c = 0; c < 256; c++) {
        if (c == 0 || cut[c])
            g->sample[n++] = (uint8_t)c;
        g->class[c] = (uint8_t)(n - 1);
    }
    g->n_classes = n;
}

/* ------------------------------------------------------------------ slices */

/* The characters of the families as bytes. ORDER PLAIN: level_of in grammar_vocab.c */
struct char_bytes {
    uint8_t n;
    uint8_t range[5][2]; /* the last is never used: it shows the compiler that n ends before it */
};

static const struct char_bytes plain_char[] = {
    {1, {{0x20, '!'}}},
    {1, {{'#', ';'}}},
    {1, {{'=', '['}}},
    {1, {{']', 0x7E}}},
    {2, {{0xC2, 0xDF}, {0x80, 0xBF}}},
    {3, {{0xE0, 0xE0}, {0xA0, 0xBF}, {0x80, 0xBF}}},
    {3, {{0xE1, 0xEC}, {0x80, 0xBF}, {0x80, 0xBF}}},
    {3, {{0xED, 0xED}, {0x80, 0x9F}, {0x80, 0xBF}}},
    {3, {{0xEE, 0xEE}, {0x80, 0xBF}, {0x80, 0xBF}}},
    {3, {{0xEF, 0xEF}, {0x80, 0xBC}, {0x80, 0xBF}}},
    {3, {{0xEF, 0xEF}, {0xBD, 0xBD}, {0x80, 0x9B}}},
    {3, {{0xEF, 0xEF}, {0xBD, 0xBD}, {0x9D, 0xBF}}},
    {3, {{0xEF, 0xEF}, {0xBE, 0xBF}, {0x80, 0xBF}}},
    {4, {{0xF0, 0xF0}, {0x90, 0xBF}, {0x80, 0xBF}, {0x80, 0xBF}}},
    {4, {{0xF1, 0xF3}, {0x80, 0xBF}, {0x80, 0xBF}, {0x80, 0xBF}}},
    {4, {{0xF4, 0xF4}, {0x80, 0x8F}, {0x80, 0xBF}, {0x80, 0xBF}}},
};
static const struct char_bytes word_char[] = {
    {1, {{'0', '9'}}},
    {1, {{'A', 'Z'}}},
    {1, {{'_', '_'}}},
    {1, {{'a', 'z'}}},
};

/* Every such byte string leads from the state to one with `good`. */
static bool leads_to(const dsv4_grammar *g, uint32_t state, const struct char_bytes *c, unsigned at,
                     const uint8_t *good, uint8_t bit)
{
    if (at == c->n)
        return good[state] & bit;
    unsigned next = c->range[at][0];
    const struct cstate *s = &g->state[state];
    for (uint32_t e = s[0].edge; e < s[1].edge && next <= c->range[at][1]; e++) {
        if (g->edge[e].hi < next)
            continue;
        if (g->edge[e].lo > next || !leads_to(g, g->edge[e].to, c, at + 1, good, bit))
            return false;
        next = g->edge[e].hi + 1u;
    }
    return next > c->range[at][1];
}

static bool all_lead_to(const dsv4_grammar *g, uint32_t state, int family, const uint8_t *good,
                        uint8_t bit)
{
    const struct char_bytes *c = family == SLICE_PLAIN ? plain_char : word_char;
    size_t n = family == SLICE_PLAIN ? sizeof plain_char / sizeof *plain_char
                                     : sizeof word_char / sizeof *word_char;
    for (size_t i = 0; i < n; i++)
        if (!leads_to(g, state, &c[i], 0, good, bit))
            return false;
    return true;
}

/* The greatest set of states that a family never leaves: what fails is taken out until nothing
 * does. */
static int slices(dsv4_grammar *g, dsv4_err *err)
{
    uint8_t *good;
    TRY(mem_alloc(&good, g->n, 1, "a grammar", err));
    for (uint32_t s = 0; s < g->n; s++) /* most states have no edge that is wide enough */
        for (uint32_t e = g->state[s].edge; e < g->state[s + 1].edge; e++)
            if (g->edge[e].lo <= 'a' && g->edge[e].hi >= 'z')
                good[s] = (1 << N_SLICES) - 1;
    for (int f = 0; f < N_SLICES; f++) {
        uint8_t bit = (uint8_t)(1 << f);
        bool changed = true;
        for (int pass = 0; changed; pass++) {
            changed = false;
            for (uint32_t s = 0; s < g->n; s++)
                if (good[s] & bit && (pass == 100 || !all_lead_to(g, s, f, good, bit))) {
                    good[s] &= (uint8_t)~bit;
                    changed = true;
                }
        }
        for (uint32_t s = 0; s < g->n; s++)
            g->state[s].slices |= good[s] & bit;
    }
    for (uint32_t s = 0; s < g->n; s++)
        good[s] = g->state[s].silent;
    for (uint32_t r = 0; r < g->n_rules; r++)
        for (int f = 0; f < N_SLICES; f++)
            if (g->rule[r].counted && all_lead_to(g, g->rule[r].start, f, good, 1))
                g->rule[r].slices |= (uint8_t)(1 << f);
    free(good);
    return 0;
}

/* ------------------------------------------------------------------ the interface */

static int open_cache(dsv4_grammar *g, dsv4_err *err)
{
    uint32_t n = 256;
    while (n < 16384 && n < 2 * g->n)
        n *= 2;
    TRY(mem_alloc(&g->cache, n, sizeof *g->cache, "a grammar", err));
    g->cache_size = n;
    return 0;
}

static int link_grammar(struct linker *k, const uint32_t *rule_of)
{
    struct use *use = NULL;
    size_t n = 0;
    int rc = all_uses(k, &use, &n);
    if (rc == 0)
        rc = check_left(k, use, n, rule_of);
    if (rc == 0)
        rc = find_alive(k, use, n, rule_of);
    free(use);
    TRY(rc);
    if (!k->alive[0])
        return err_set(k->b->err, DSV4_REFUSED, "grammar: no text fits");
    TRY(fill(k));
    classes(k->g);
    TRY(slices(k->g, k->b->err));
    TRY(open_cache(k->g, k->b->err));
    return vocab_of(k->b->t, &k->g->vocab, k->b->err);
}

int grammar_link(struct gbuild *b, uint32_t root, dsv4_grammar **out)
{
    struct linker k = {.b = b};
    uint32_t *rule_of = NULL;
    *out = NULL;
    int rc = b->rc != 0 ? b->rc : build_all(&k, root);
    if (rc == 0)
        rc = mem_alloc(&k.g, 1, sizeof *k.g, "a grammar", b->err);
    if (rc == 0)
        rc = mem_alloc(&rule_of, k.n_states, sizeof *rule_of, "a grammar", b->err);
    if (rc == 0) {
        for (size_t i = 0; i < k.n; i++)
            for (uint32_t s = 0; s < k.fa[i].n; s++)
                rule_of[k.base[i] + s] = (uint32_t)i;
        k.g->t = b->t;
        rc = link_grammar(&k, rule_of);
    }
    if (rc == 0)
        *out = k.g;
    else
        dsv4_grammar_close(k.g);
    for (size_t i = 0; i < k.n; i++)
        fa_free(&k.fa[i]);
    free(rule_of);
    free(k.fa);
    free(k.rule);
    free(k.base);
    free(k.number);
    free(k.alive);
    free(k.nullable);
    return rc;
}

void centry_free(struct centry *e)
{
    if (!e)
        return;
    free(e->ids);
    free(e->bits);
    free(e->esc);
    free(e);
}

void dsv4_grammar_close(dsv4_grammar *g)
{
    if (!g)
        return;
    for (uint32_t i = 0; i < g->cache_size; i++)
        centry_free(g->cache[i]);
    free(g->cache);
    free(g->state);
    free(g->edge);
    free(g->call);
    free(g->tok);
    free(g->rule);
    free(g);
}
