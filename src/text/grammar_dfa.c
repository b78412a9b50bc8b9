/* Automata over bytes alone: what patterns, formats, lengths and forbidden words of a string have
 * to do with each other is worked out here, on the string itself; how it is written in JSON comes
 * last. */
#include "grammar.h"

#include <stdlib.h>
#include <string.h>

/* Pairs (a state here, a state or number there) that become states of the result, in order. */
struct pairs {
    struct gbuild *b;
    uint64_t *v;
    size_t n, cap;
    struct slots slots;
};

static uint32_t pair(struct pairs *p, uint32_t x, uint32_t y)
{
    struct gbuild *b = p->b;
    uint64_t v = (uint64_t)x << 32 | y, h = (v ^ v >> 29) * 0x9e3779b97f4a7c15u;
    size_t at = SLOTS_BEGIN;
    if (b->rc != 0 || !g_work(b, 4))
        return 0;
    b->rc = slots_room(&p->slots, "an automaton", b->err);
    if (b->rc == 0)
        b->rc = mem_grow(&p->v, &p->cap, p->n + 1, sizeof *p->v, "an automaton", b->err);
    if (b->rc != 0)
        return 0;
    for (uint32_t i; (i = slots_next(&p->slots, h, &at)) != SLOTS_NONE;)
        if (p->v[i] == v)
            return i;
    slots_put(&p->slots, at, h, (uint32_t)p->n);
    p->v[p->n++] = v;
    return (uint32_t)p->n - 1;
}

static int finish(struct pairs *p, struct fa *out)
{
    free(p->v);
    free(p->slots.slot);
    if (p->b->rc != 0)
        fa_free(out);
    return p->b->rc;
}

/* The edge of `state` that covers `byte` or the first one behind it: its end in *hi. */
static uint32_t run(const struct fa *f, uint32_t state, unsigned byte, unsigned *hi)
{
    *hi = 255;
    if (state == G_INF)
        return G_INF;
    const uint32_t first = f->state[state].edge, end = first + f->state[state].n_edge;
    for (uint32_t i = first; i < end; i++) {
        const struct fedge *e = &f->edge[i];
        if (byte < e->lo) {
            *hi = e->lo - 1u;
            return G_INF;
        }
        if (byte <= e->hi) {
            *hi = e->hi;
            return e->to;
        }
    }
    return G_INF;
}

int dfa_combine(struct gbuild *b, const struct fa *x, const struct fa *y, enum dfa_op op,
                struct fa *out)
{
    struct pairs p = {.b = b};
    *out = (struct fa){0};
    pair(&p, 0, 0);
    for (size_t i = 0; i < p.n && b->rc == 0; i++) {
        uint32_t sx = (uint32_t)(p.v[i] >> 32), sy = (uint32_t)p.v[i];
        bool in_y = sy != G_INF && y->state[sy].final;
        fa_add_state(b, out, x->state[sx].final && (op == DFA_AND ? in_y : !in_y));
        unsigned hx, hy;
        for (unsigned lo = 0, hi; lo < 256 && b->rc == 0; lo = hi + 1) {
            uint32_t tx = run(x, sx, lo, &hx), ty = run(y, sy, lo, &hy);
            hi = hx < hy ? hx : hy;
            if (tx != G_INF && (ty != G_INF || op == DFA_MINUS))
                fa_add_edge(b, out, lo, hi, pair(&p, tx, ty));
        }
    }
    return finish(&p, out);
}

int dfa_limit(struct gbuild *b, const struct fa *x, uint32_t min, uint32_t max, struct fa *out)
{
    struct pairs p = {.b = b};
    *out = (struct fa){0};
    pair(&p, 0, 0);
    for (size_t i = 0; i < p.n && b->rc == 0; i++) {
        uint32_t s = (uint32_t)(p.v[i] >> 32), count = (uint32_t)p.v[i];
        uint32_t more = max == G_INF && count == min ? count : count + 1;
        fa_add_state(b, out, x->state[s].final && count >= min);
        struct fstate at = x->state[s];
        for (uint32_t k = 0; k < at.n_edge && b->rc == 0; k++) {
            struct fedge e = x->edge[at.edge + k];
            for (unsigned lo = e.lo, hi; lo <= e.hi && b->rc == 0; lo = hi + 1) {
                bool inside = lo >= 0x80 && lo < 0xC0;
                hi = lo < 0x80 ? 0x7F : inside ? 0xBF : 0xFF;
                hi = hi < e.hi ? hi : e.hi;
                if (inside || more <= max)
                    fa_add_edge(b, out, lo, hi, pair(&p, e.to, inside ? count : more));
            }
        }
    }
    return finish(&p, out);
}

/* State i: the last i bytes are the first of the word. */
static void search(struct gbuild *b, const char *word, size_t n, struct fa *out)
{
    for (size_t i = 0; i < n && b->rc == 0; i++) {
        fa_add_state(b, out, true);
        for (unsigned c = 0; c < 256; c++) {
            size_t k = i + 1; /* the longest beginning that the i bytes and c end with */
            for (; k > 0; k--)
                if ((unsigned char)word[k - 1] == c && memcmp(word, word + i + 1 - k, k - 1) == 0)
                    break;
            if (k < n)
                fa_add_edge(b, out, c, c, (uint32_t)k);
        }
    }
}

int dfa_without(struct gbuild *b, const char *word, struct fa *out)
{
    struct fa found = {0}, any = {0};
    *out = (struct fa){0};
    search(b, word, strlen(word), &found);
    uint32_t text = g_repeat(b, G_REPEAT, g_class(b, NULL, 0, true), 0, G_INF);
    if (b->rc == 0 && fa_build(b, text, true, &any) == 0)
        dfa_combine(b, &found, &any, DFA_AND, out);
    fa_free(&found);
    fa_free(&any);
    return b->rc;
}

bool dfa_match(const struct fa *f, const char *text, size_t len)
{
    uint32_t s = 0;
    for (size_t i = 0; i < len && s != G_INF; i++)
        s = fa_next(f, s, (unsigned char)text[i]);
    return s != G_INF && f->state[s].final;
}

/* ------------------------------------------------------------------ as a node */

/* Place 1 of a graph is its end. */
static size_t place(uint32_t state)
{
    return state == 0 ? 0 : state + 1u;
}

/* The escapes that lead from a state: \" \\ \/ \b \f \n \r \t and \u00XX for the other controls. */
static void add_escapes(struct gbuild *b, const struct fa *f, uint32_t s, struct garcs *arcs,
                        size_t *n_places)
{
    static const char letter[] = "\"\\/bfnrt", byte[] = "\"\\/\b\f\n\r\t";
    size_t after = 0, hex[2] = {0};
    for (unsigned c = 0; c < 0x60 && b->rc == 0; c++) {
        const char *known = c ? strchr(byte, (int)c) : NULL;
        uint32_t to = c < 0x20 || known ? fa_next(f, s, c) : G_INF;
        if (to == G_INF)
            continue;
        if (after == 0) {
            after = (*n_places)++;
            garcs_add(b, arcs, place(s), after, g_text(b, "\\"));
        }
        if (known) {
            unsigned char l = (unsigned char)letter[known - byte];
            garcs_add(b, arcs, after, place(to), g_range(b, l, l));
            continue;
        }
        if (hex[c >> 4] == 0) {
            hex[c >> 4] = (*n_places)++;
            garcs_add(b, arcs, after, hex[c >> 4], g_text(b, c >> 4 ? "u001" : "u000"));
        }
        unsigned digit = c & 15, h = digit < 10 ? '0' + digit : 'a' + digit - 10;
        garcs_add(b, arcs, hex[c >> 4], place(to), g_range(b, h, h));
    }
}

uint32_t dfa_node(struct gbuild *b, const struct fa *f, bool escaped)
{
    struct garcs arcs = {0};
    size_t n_places = f->n + 1;
    for (uint32_t s = 0; s < f->n && b->rc == 0; s++) {
        struct fstate at = f->state[s];
        if (at.final)
            garcs_add(b, &arcs, place(s), 1, g_empty(b));
        for (uint32_t k = 0; k < at.n_edge; k++) {
            struct fedge e = f->edge[at.edge + k];
            for (unsigned lo = e.lo, hi; lo <= e.hi; lo = hi + 1) {
                bool skip = escaped && (lo < 0x20 || lo == '"' || lo == '\\');
                hi = !escaped ? 255 : lo < 0x20 ? 31 : lo < '"' ? '!' : lo == '"' ? '"' : 255;
                if (escaped && lo > '"')
                    hi = lo < '\\' ? '\\' - 1 : lo == '\\' ? '\\' : 255;
                hi = hi < e.hi ? hi : e.hi;
                if (!skip)
                    garcs_add(b, &arcs, place(s), place(e.to), g_range(b, lo, hi));
            }
        }
        if (escaped)
            add_escapes(b, f, s, &arcs, &n_places);
    }
    uint32_t node = b->rc == 0 ? g_graph(b, arcs.v, arcs.n, n_places) : 0;
    free(arcs.v);
    return node;
}
