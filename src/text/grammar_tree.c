/* Trees of a grammar: nodes, and the rules that name them. Nothing is ever taken back; a tree may
 * use another one several times. */
#include "grammar.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void g_free(struct gbuild *b)
{
    free(b->node);
    free(b->text.data);
    free(b->range);
    free(b->kid);
    free(b->arc);
    free(b->rule);
    free(b->sym);
}

uint32_t g_fail(struct gbuild *b, int status, const char *format, ...)
{
    if (b->rc != 0)
        return 0;
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    b->rc = err_set(b->err, status, "%s", text);
    return 0;
}

bool g_work(struct gbuild *b, size_t n)
{
    b->work += n;
    if (b->work > G_MAX_WORK)
        g_fail(b, DSV4_REFUSED, "grammar: too large; it takes more than %u steps to compile",
               G_MAX_WORK);
    return b->rc == 0;
}

/* Room for n more of a pool; false (and a failure) when there is none. */
static bool room(struct gbuild *b, void *pool, size_t *cap, size_t have, size_t n, size_t size)
{
    if (b->rc != 0)
        return false;
    if (n > 16 * (size_t)G_MAX_NODES - have) {
        g_fail(b, DSV4_REFUSED, "grammar: too large");
        return false;
    }
    b->rc = mem_grow(pool, cap, have + n, size, "a grammar", b->err);
    return b->rc == 0;
}

static uint32_t add(struct gbuild *b, enum gkind kind, uint32_t a, uint32_t second, uint32_t c)
{
    if (b->n_node >= G_MAX_NODES)
        return g_fail(b, DSV4_REFUSED, "grammar: too large (more than %u parts)", G_MAX_NODES);
    if (!room(b, &b->node, &b->cap_node, b->n_node, 2, sizeof *b->node))
        return 0;
    if (b->n_node == 0)
        b->node[b->n_node++] = (struct gnode){.kind = G_NEVER};
    b->node[b->n_node] = (struct gnode){.kind = kind, .a = a, .b = second, .c = c};
    return (uint32_t)b->n_node++;
}

uint32_t g_empty(struct gbuild *b)
{
    return add(b, G_EMPTY, 0, 0, 0);
}

uint32_t g_bytes(struct gbuild *b, const void *text, size_t len)
{
    if (b->rc != 0)
        return 0;
    if (len > G_MAX_NODES || b->text.len > 64 * (size_t)G_MAX_NODES)
        return g_fail(b, DSV4_REFUSED, "grammar: too large (a literal of %zu bytes)", len);
    uint32_t at = (uint32_t)b->text.len;
    b->rc = bytes_add(&b->text, text, len, b->err);
    return len ? add(b, G_BYTES, at, (uint32_t)len, 0) : g_empty(b);
}

uint32_t g_text(struct gbuild *b, const char *text)
{
    return g_bytes(b, text, strlen(text));
}

uint32_t g_range(struct gbuild *b, unsigned lo, unsigned hi)
{
    return add(b, G_RANGE, lo, hi, 0);
}

static int by_low(const void *a, const void *b)
{
    uint32_t x = ((const struct grange *)a)->lo, y = ((const struct grange *)b)->lo;
    return (x > y) - (x < y);
}

static void add_range(struct gbuild *b, uint32_t lo, uint32_t hi)
{
    /* Surrogates are no characters. */
    if (lo < 0xD800 && hi >= 0xD800) {
        add_range(b, lo, 0xD7FF);
        lo = 0xE000;
    } else if (lo >= 0xD800 && lo < 0xE000) {
        lo = 0xE000;
    }
    if (hi >= 0xD800 && hi < 0xE000)
        hi = 0xD7FF;
    if (lo <= hi && room(b, &b->range, &b->cap_range, b->n_range, 1, sizeof *b->range))
        b->range[b->n_range++] = (struct grange){lo, hi};
}

uint32_t g_class(struct gbuild *b, const struct grange *range, size_t n, bool negate)
{
    struct grange *sorted;
    if (b->rc != 0)
        return 0;
    b->rc = mem_alloc(&sorted, n, sizeof *sorted, "a grammar", b->err);
    if (b->rc != 0)
        return 0;
    if (n)
        memcpy(sorted, range, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, by_low);
    size_t at = b->n_range;
    uint32_t next = 0; /* the first code point not decided yet */
    for (size_t i = 0; i < n;) {
        uint32_t lo = sorted[i].lo, hi = sorted[i].hi;
        for (i++; i < n && sorted[i].lo <= hi + 1; i++)
            hi = sorted[i].hi > hi ? sorted[i].hi : hi;
        if (!negate)
            add_range(b, lo, hi);
        else if (lo > next)
            add_range(b, next, lo - 1);
        next = hi + 1;
    }
    if (negate && next <= 0x10FFFF)
        add_range(b, next, 0x10FFFF);
    free(sorted);
    size_t count = b->n_range - at;
    return count ? add(b, G_CLASS, (uint32_t)at, (uint32_t)count, 0) : 0;
}

uint32_t g_token(struct gbuild *b, int32_t token)
{
    return add(b, G_TOKEN, (uint32_t)token, 0, 0);
}

uint32_t g_call(struct gbuild *b, uint32_t rule)
{
    return add(b, G_CALL, rule, 0, 0);
}

uint32_t g_list(struct gbuild *b, enum gkind kind, const uint32_t *node, size_t n)
{
    if (n == 1)
        return node[0];
    if (n == 0)
        return kind == G_SEQ ? g_empty(b) : 0;
    if (!room(b, &b->kid, &b->cap_kid, b->n_kid, n, sizeof *b->kid))
        return 0;
    size_t at = b->n_kid;
    memcpy(b->kid + at, node, n * sizeof *node);
    b->n_kid += n;
    return add(b, kind, (uint32_t)at, (uint32_t)n, 0);
}

uint32_t g_repeat(struct gbuild *b, enum gkind kind, uint32_t node, uint32_t min, uint32_t max)
{
    if (min > max)
        return 0;
    if (max == 0 || (b->rc == 0 && node == 0 && min == 0))
        return g_empty(b);
    return add(b, kind, node, min, max);
}

uint32_t g_graph(struct gbuild *b, const struct garc *arc, size_t n, size_t n_places)
{
    if (n == 0)
        return 0;
    if (!room(b, &b->arc, &b->cap_arc, b->n_arc, n, sizeof *b->arc))
        return 0;
    size_t at = b->n_arc;
    memcpy(b->arc + at, arc, n * sizeof *arc);
    b->n_arc += n;
    return add(b, G_GRAPH, (uint32_t)at, (uint32_t)n, (uint32_t)n_places);
}

uint32_t g_rule(struct gbuild *b, const char *name, size_t len)
{
    if (b->n_rule >= G_MAX_RULES)
        return g_fail(b, DSV4_REFUSED, "grammar: more than %u rules", G_MAX_RULES);
    if (!room(b, &b->rule, &b->cap_rule, b->n_rule, 1, sizeof *b->rule))
        return 0;
    uint32_t at = (uint32_t)b->text.len;
    b->rc = bytes_add(&b->text, name, len, b->err);
    b->rule[b->n_rule] = (struct grule){.name = at, .name_len = (uint32_t)len};
    return (uint32_t)b->n_rule++;
}

void g_set_rule(struct gbuild *b, uint32_t rule, uint32_t node)
{
    if (b->rc != 0)
        return;
    b->rule[rule].node = node;
    b->rule[rule].set = true;
}

void glist_add(struct gbuild *b, struct glist *l, uint32_t node)
{
    if (room(b, &l->v, &l->cap, l->n, 1, sizeof *l->v))
        l->v[l->n++] = node;
}

void garcs_add(struct gbuild *b, struct garcs *l, size_t from, size_t to, uint32_t node)
{
    if (room(b, &l->v, &l->cap, l->n, 1, sizeof *l->v))
        l->v[l->n++] = (struct garc){(uint32_t)from, (uint32_t)to, node};
}
