/* Numbers between two bounds as texts: digit by digit, as long as the text agrees with a bound
 * it may not go past the bound's next digit. Exact for bounds of any written form, also for
 * fractions. */
#include "grammar_schema.h"

#include <stdlib.h>
#include <string.h>

/* Unbounded numbers have so many digits at most: enough for any 64-bit integer or double, and a
 * model cannot lose itself in one. */
enum { WHOLE = 18, FRACTION = 17, MAX_DIGITS = 400 };

/* A bound's absolute value: digits before the point (no zero in front, but for 0 itself) and behind
 * it (no zero at the end). */
struct decimal {
    bool negative, open; /* open: the bound itself is left out */
    size_t n_whole, n_part;
    char whole[MAX_DIGITS + 2], part[MAX_DIGITS + 2];
};

/* False: too long. */
static bool read_decimal(const struct jv *v, bool open, struct decimal *d)
{
    char digit[2 * MAX_DIGITS];
    size_t n = 0, i = 0;
    long point = -1, exponent = 0;
    *d = (struct decimal){.open = open};
    if (v->len > 0 && v->text[0] == '-') {
        d->negative = true;
        i++;
    }
    for (; i < v->len && v->text[i] != 'e' && v->text[i] != 'E'; i++) {
        if (v->text[i] == '.') {
            point = (long)n;
        } else if (v->text[i] < '0' || v->text[i] > '9' || n >= MAX_DIGITS) {
            return false; /* NaN and Infinity, too */
        } else {
            digit[n++] = v->text[i];
        }
    }
    if (i < v->len)
        exponent = v->len - i > 6 ? 100000 : strtol(v->text + i + 1, NULL, 10);
    point = (point < 0 ? (long)n : point) + exponent;
    if (point > MAX_DIGITS || point < -MAX_DIGITS / 2)
        return false;
    for (long k = point < 0 ? point : 0; k < (long)n || k < point; k++) {
        char c = k >= 0 && k < (long)n ? digit[k] : '0';
        if (k >= point && d->n_part <= MAX_DIGITS)
            d->part[d->n_part++] = c;
        else if (k < point && (d->n_whole > 0 || c != '0'))
            d->whole[d->n_whole++] = c;
    }
    while (d->n_part && d->part[d->n_part - 1] == '0')
        d->n_part--;
    if (d->n_whole == 0)
        d->whole[d->n_whole++] = '0';
    if (d->negative && d->n_part == 0 && d->whole[0] == '0')
        d->negative = false;
    return true;
}

/* Of absolute values: < 0, 0, > 0. */
static int compare(const struct decimal *a, const struct decimal *b)
{
    if (a->n_whole != b->n_whole)
        return a->n_whole < b->n_whole ? -1 : 1;
    int c = memcmp(a->whole, b->whole, a->n_whole);
    if (c != 0)
        return c;
    size_t n = a->n_part < b->n_part ? a->n_part : b->n_part;
    c = memcmp(a->part, b->part, n);
    return c != 0 ? c : (a->n_part > b->n_part) - (a->n_part < b->n_part);
}

/* Whether a leaves out more than b. */
static bool tighter(const struct decimal *a, const struct decimal *b, bool lower)
{
    int c = a->negative != b->negative ? (a->negative ? -1 : 1)
                                       : (a->negative ? -compare(a, b) : compare(a, b));
    return c == 0 ? a->open : lower ? c > 0 : c < 0;
}

/* ------------------------------------------------------------------ digits */

struct span {
    struct gbuild *b;
    const struct decimal *lo, *hi; /* of absolute values; hi NULL: none */
    size_t n_part;                 /* digits behind the point at most */
    struct garcs arcs;
    size_t places;
};

static int digit_of(const struct decimal *d, size_t n_whole, size_t at)
{
    if (at < n_whole)
        return d->whole[at] - '0';
    return at - n_whole < d->n_part ? d->part[at - n_whole] - '0' : 0;
}

/* Nothing but zeros from digit `at` on. */
static bool rest_is_zero(const struct decimal *d, size_t n_whole, size_t at)
{
    for (; at < n_whole + d->n_part; at++)
        if (digit_of(d, n_whole, at) != 0)
            return false;
    return true;
}

/* Numbers with n digits before the point. Places by digits read and by which bounds the text agrees
 * with so far; behind the point they are a second set. */
static void add_length(struct span *s, size_t n)
{
    struct gbuild *b = s->b;
    bool at_lo = n == s->lo->n_whole, at_hi = s->hi && n == s->hi->n_whole;
    size_t base = s->places, all = n + s->n_part;
    s->places += 4 * (all + 2);
    garcs_add(b, &s->arcs, 0, base + (at_lo ? 2 : 0) + (at_hi ? 1 : 0), g_empty(b));
    for (size_t at = 0; at <= all && b->rc == 0; at++)
        for (unsigned tight = 0; tight < 4; tight++) {
            bool lo = tight & 2, hi = tight & 1;
            size_t here = base + 4 * (at + (at > n)) + tight;
            if ((lo && !at_lo) || (hi && !at_hi))
                continue;
            bool low_end = !lo || (rest_is_zero(s->lo, n, at) && !s->lo->open);
            bool high_end = !hi || !s->hi->open || !rest_is_zero(s->hi, n, at);
            if (at >= n && low_end && high_end)
                garcs_add(b, &s->arcs, here, 1, g_empty(b));
            if (at == all)
                continue;
            if (at == n) {
                garcs_add(b, &s->arcs, here, here + 4, g_text(b, "."));
                here += 4;
            }
            int from = lo ? digit_of(s->lo, n, at) : 0, to = hi ? digit_of(s->hi, n, at) : 9;
            if (at == 0 && n > 1 && from == 0)
                from = 1;
            for (int d = from; d <= to; d++) {
                bool l = lo && d == digit_of(s->lo, n, at), h = hi && d == digit_of(s->hi, n, at);
                unsigned c = (unsigned)('0' + d);
                garcs_add(b, &s->arcs, here,
                          base + 4 * (at + 1 + (at + 1 > n)) + (l ? 2 : 0) + (h ? 1 : 0),
                          g_range(b, c, c));
            }
        }
}

/* lo <= |x| <= hi */
static uint32_t magnitude(struct gbuild *b, const struct decimal *lo, const struct decimal *hi,
                          size_t n_part)
{
    struct span s = {.b = b, .lo = lo, .hi = hi, .n_part = n_part, .places = 2};
    size_t most = hi ? hi->n_whole : lo->n_whole + 1 > WHOLE ? lo->n_whole + 1 : WHOLE;
    if (hi && compare(lo, hi) > 0)
        return 0;
    for (size_t n = lo->n_whole; n <= most; n++)
        add_length(&s, n);
    uint32_t node = b->rc == 0 ? g_graph(b, s.arcs.v, s.arcs.n, s.places) : 0;
    free(s.arcs.v);
    return node;
}

/* ------------------------------------------------------------------ a schema's numbers */

struct bounds {
    struct decimal lo, hi;
    bool has_lo, has_hi;
    uint64_t multiple; /* 0: any */
    size_t n_part;
};

static int take_bound(struct schema *s, const struct jv *v, bool lower, bool open, struct bounds *n)
{
    struct decimal d;
    if (v->type != JV_NUMBER)
        return schema_refuse(s, v, "must be a number");
    if (!read_decimal(v, open, &d))
        return schema_refuse(s, v, "has more digits than can be enforced");
    /* Farther than any number that is allowed anyway. */
    if (d.n_whole > WHOLE && d.negative == lower)
        return 0;
    bool *has = lower ? &n->has_lo : &n->has_hi;
    struct decimal *old = lower ? &n->lo : &n->hi;
    if (!*has || tighter(&d, old, lower))
        *old = d;
    *has = true;
    return 0;
}

static int take_multiple(struct schema *s, const struct jv *v, struct bounds *n)
{
    struct decimal d;
    if (v->type != JV_NUMBER || !read_decimal(v, false, &d) || d.negative)
        return schema_refuse(s, v, "must be a number above 0");
    if (d.n_part == 0 && d.n_whole <= 3 && d.whole[0] != '0') {
        uint64_t k = 0, a, c, t;
        for (size_t i = 0; i < d.n_whole; i++)
            k = 10 * k + (uint64_t)(d.whole[i] - '0');
        for (a = n->multiple ? n->multiple : 1, c = k; c; t = a % c, a = c, c = t)
            ;
        n->multiple = (n->multiple ? n->multiple : 1) / a * k;
        n->n_part = 0;
        if (n->multiple <= 1000)
            return 0;
    }
    size_t zeros = 0;
    while (zeros < d.n_part && d.part[zeros] == '0')
        zeros++;
    if (d.n_part && d.whole[0] == '0' && zeros + 1 == d.n_part && d.part[zeros] == '1') {
        n->n_part = d.n_part < n->n_part ? d.n_part : n->n_part;
        return 0;
    }
    return schema_refuse(s, v, "cannot be enforced (only 1 to 999 and 0.1, 0.01, ...)");
}

static int take_bounds(struct schema *s, const struct element *e, size_t n, struct bounds *out)
{
    for (size_t i = 0; i < n; i++)
        for (const struct jv *v = element_schema(e[i])->first; v; v = v->next) {
            bool open = schema_is(v, "exclusiveMinimum") || schema_is(v, "exclusiveMaximum");
            if (schema_is(v, "minimum") || schema_is(v, "exclusiveMinimum"))
                TRY(take_bound(s, v, true, open, out));
            else if (schema_is(v, "maximum") || schema_is(v, "exclusiveMaximum"))
                TRY(take_bound(s, v, false, open, out));
            else if (schema_is(v, "multipleOf"))
                TRY(take_multiple(s, v, out));
        }
    return 0;
}

/* Texts of digits that a number divides, with or without a sign. */
static uint32_t multiples(struct gbuild *b, uint64_t k)
{
    struct garcs arcs = {0};
    garcs_add(b, &arcs, 0, 2, g_opt(b, g_text(b, "-")));
    for (uint64_t r = 0; r < k; r++)
        for (unsigned d = 0; d < 10; d++)
            garcs_add(b, &arcs, 2 + r, 2 + (10 * r + d) % k, g_range(b, '0' + d, '0' + d));
    garcs_add(b, &arcs, 2, 1, g_empty(b));
    uint32_t node = b->rc == 0 ? g_graph(b, arcs.v, arcs.n, 2 + k) : 0;
    free(arcs.v);
    return node;
}

static uint32_t both(struct gbuild *b, uint32_t x, uint32_t y)
{
    struct fa fx = {0}, fy = {0}, out = {0};
    uint32_t node = 0;
    if (b->rc == 0 && fa_build(b, x, true, &fx) == 0 && fa_build(b, y, true, &fy) == 0 &&
        dfa_combine(b, &fx, &fy, DFA_AND, &out) == 0)
        node = dfa_node(b, &out, false);
    fa_free(&fx);
    fa_free(&fy);
    fa_free(&out);
    return node;
}

static uint32_t free_number(struct gbuild *b, bool integer)
{
    uint32_t digit = g_range(b, '0', '9'), minus = g_opt(b, g_text(b, "-")),
             whole =
                 g_alt(b, g_text(b, "0"),
                       g_seq(b, g_range(b, '1', '9'), g_repeat(b, G_REPEAT, digit, 0, WHOLE - 1)));
    if (integer)
        return g_seq(b, minus, whole);
    static const struct grange e[] = {{'E', 'E'}, {'e', 'e'}}, sign[] = {{'+', '+'}, {'-', '-'}};
    uint32_t part = g_seq(b, g_text(b, "."), g_repeat(b, G_REPEAT, digit, 1, FRACTION)),
             power = g_seq(b, g_class(b, e, 2, false), g_opt(b, g_class(b, sign, 2, false)),
                           g_repeat(b, G_REPEAT, digit, 1, 2));
    return g_seq(b, minus, whole, g_opt(b, part), g_opt(b, power));
}

uint32_t schema_number(struct schema *s, const struct element *e, size_t n, bool integer)
{
    static const struct decimal zero = {.n_whole = 1, .whole = "0"};
    struct gbuild *b = s->b;
    struct bounds *k = NULL;
    if (b->rc == 0)
        b->rc = mem_alloc(&k, 1, sizeof *k, "a schema", b->err);
    if (b->rc != 0)
        return 0;
    k->n_part = integer ? 0 : FRACTION;
    b->rc = take_bounds(s, e, n, k);
    uint32_t node = 0;
    if (b->rc == 0 && !k->has_lo && !k->has_hi && k->n_part == (integer ? 0 : FRACTION)) {
        node = free_number(b, integer);
    } else if (b->rc == 0) {
        struct decimal positive = zero; /* the negative ones begin behind 0: -0 is left out */
        positive.open = true;
        uint32_t below = 0, above = 0;
        if (!k->has_hi || !k->hi.negative)
            above = magnitude(b, k->has_lo && !k->lo.negative ? &k->lo : &zero,
                              k->has_hi ? &k->hi : NULL, k->n_part);
        if (!k->has_lo || k->lo.negative)
            below = magnitude(b, k->has_hi && k->hi.negative ? &k->hi : &positive,
                              k->has_lo ? &k->lo : NULL, k->n_part);
        node = g_alt(b, above, g_seq(b, g_text(b, "-"), below));
    }
    if (b->rc == 0 && k->multiple > 1)
        node = both(b, node, multiples(b, k->multiple));
    free(k);
    return node;
}
