/* Lanes on cores: how many, where, with how much of the work. A pure function of topology and
 * options (system.h says what it chooses); nothing here asks the machine. */
#include "system.h"

#include <stdlib.h>
#include <string.h>

/* A node's memory is not drawn upon by less than a few cores, while every node more makes barriers
 * dearer: with fewer lanes than this for each node, fewer nodes are used. A judgement. */
enum { PER_NODE = 4 };

/* A CPU that may be used. */
struct candidate {
    const struct cpu *cpu;
    int rank; /* among the candidates of its core: 0 is the first */
};

/* What one call works on. */
struct choice {
    const struct topology *t;
    const struct placement_options *o;
    struct candidate *cand; /* [n] in the order of the topology */
    size_t n;
    int n_cores;    /* candidates of rank 0 */
    int *per_node;  /* [t->n_nodes] lanes */
    int *of_node;   /* [t->n_nodes] candidates of rank 0 */
    int *on_core;   /* [cores] lanes, by core number */
    uint64_t *work; /* [n_lanes] weights */
    bool flat;      /* numa off */
};

/* ------------------------------------------------------------------ candidates */

/* Keeps those that are at least so fast, ranks them in their cores and counts. */
static void keep_fast(struct choice *c, int speed)
{
    size_t n = 0;
    c->n_cores = 0;
    memset(c->of_node, 0, c->t->n_nodes * sizeof *c->of_node);
    for (size_t i = 0; i < c->n; i++) {
        if (c->cand[i].cpu->speed < speed)
            continue;
        struct candidate k = c->cand[i];
        bool same = n > 0 && c->cand[n - 1].cpu->core == k.cpu->core;
        k.rank = same ? c->cand[n - 1].rank + 1 : 0;
        c->cand[n++] = k;
        c->n_cores += !same;
        c->of_node[k.cpu->node] += !same;
    }
    c->n = n;
}

/* The slowest class worth having; system.h says when one is. */
static int slowest_wanted(const struct choice *c)
{
    int64_t chosen = 0;
    int limit = SPEED_ONE + 1;
    for (;;) {
        int next = 0; /* the fastest class below the limit */
        int64_t sum = 0;
        for (size_t i = 0; i < c->n; i++)
            if (c->cand[i].rank == 0 && c->cand[i].cpu->speed < limit)
                next = c->cand[i].cpu->speed > next ? c->cand[i].cpu->speed : next;
        for (size_t i = 0; i < c->n; i++)
            sum += c->cand[i].rank == 0 && c->cand[i].cpu->speed == next ? next : 0;
        if (next == 0 || 2 * sum < chosen)
            return limit;
        chosen += sum;
        limit = next;
    }
}

static int cores_as_fast(const struct choice *c, int speed)
{
    int n = 0;
    for (size_t i = 0; i < c->n; i++)
        n += c->cand[i].rank == 0 && c->cand[i].cpu->speed >= speed;
    return n;
}

/* Of the classes that are worth having, those that are needed to give each lane a core: with fewer
 * lanes none shall wander to a slow one. */
static int slowest_needed(const struct choice *c, int lanes)
{
    int speed = SPEED_ONE;
    while (speed > 0 && cores_as_fast(c, speed) < lanes) {
        int next = 0;
        for (size_t i = 0; i < c->n; i++)
            if (c->cand[i].cpu->speed < speed && c->cand[i].cpu->speed > next)
                next = c->cand[i].cpu->speed;
        speed = next;
    }
    return speed;
}

static int count_lanes(const struct choice *c)
{
    if (c->o->threads)
        return c->o->threads;
    int n = c->n_cores < MAX_LANES ? c->n_cores : MAX_LANES;
    double quota = c->t->quota;
    return quota <= 0 || quota >= n ? n : quota < 1 ? 1 : (int)quota;
}

static int find_candidates(struct choice *c, int *lanes, dsv4_err *err)
{
    const struct topology *t = c->t;
    for (size_t i = 0; i < t->n_cpus; i++) {
        const struct cpu *p = &t->cpu[i];
        if (p->allowed && p->node < MAX_NODES && (!c->o->cpus || cpu_list_has(c->o->cpus, p->os)) &&
            (numa_is_word(c->o->numa) || cpu_list_has(c->o->numa, t->node[p->node].os)))
            c->cand[c->n++].cpu = p;
    }
    if (c->n == 0)
        return err_set(err, DSV4_USAGE, "--cpus %s and --numa %s have no usable cpu in common",
                       c->o->cpus ? c->o->cpus : "(all)", c->o->numa ? c->o->numa : "auto");
    keep_fast(c, 0);
    if (!c->o->cpus) {
        int speed = slowest_wanted(c);
        if (c->o->threads <= cores_as_fast(c, speed))
            keep_fast(c, speed);
    }
    *lanes = count_lanes(c);
    keep_fast(c, slowest_needed(c, *lanes));
    return 0;
}

/* ------------------------------------------------------------------ nodes and cores */

/* How many nodes: as many as give each lane a core, more while each gets PER_NODE lanes. */
static int count_nodes(const struct choice *c, int lanes)
{
    int room = 0, needed = 0, with = 0, want = lanes / PER_NODE;
    int limit = INT32_MAX, cores = lanes < c->n_cores ? lanes : c->n_cores;
    for (size_t i = 0; i < c->t->n_nodes; i++)
        with += c->of_node[i] > 0;
    while (room < cores) { /* the largest nodes first; those of one size at a time */
        int most = 0;
        for (size_t i = 0; i < c->t->n_nodes; i++)
            if (c->of_node[i] < limit && c->of_node[i] > most)
                most = c->of_node[i];
        for (size_t i = 0; i < c->t->n_nodes && room < cores; i++)
            if (c->of_node[i] == most) {
                room += most;
                needed++;
            }
        limit = most;
    }
    int n = needed > want ? needed : want;
    return n < with ? n : with;
}

/* Gives each lane to the node that is least full then; only the `nodes` largest take part. */
static void share_lanes(struct choice *c, int lanes)
{
    int nodes = count_nodes(c, lanes);
    size_t n_nodes = c->t->n_nodes;
    for (size_t i = 0; i < n_nodes; i++) {
        int larger = 0;
        for (size_t j = 0; j < n_nodes; j++)
            larger += c->of_node[j] > c->of_node[i] || (c->of_node[j] == c->of_node[i] && j < i);
        if (larger >= nodes)
            c->per_node[i] = -1;
    }
    for (int k = 0; k < lanes; k++) {
        size_t best = n_nodes;
        for (size_t i = 0; i < n_nodes; i++)
            if (c->of_node[i] > 0 && c->per_node[i] >= 0 &&
                (best == n_nodes || (int64_t)(c->per_node[i] + 1) * c->of_node[best] <
                                        (int64_t)(c->per_node[best] + 1) * c->of_node[i]))
                best = i;
        c->per_node[best]++;
    }
}

/* First CPUs of cores before second ones, fast before slow, then as they lie. */
static int by_use(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->cpu->node != y->cpu->node)
        return x->cpu->node < y->cpu->node ? -1 : 1;
    if (x->rank != y->rank)
        return x->rank < y->rank ? -1 : 1;
    if (x->cpu->speed != y->cpu->speed)
        return x->cpu->speed > y->cpu->speed ? -1 : 1;
    return (x->cpu > y->cpu) - (x->cpu < y->cpu);
}

static void place_lanes(struct placement *p, struct choice *c)
{
    qsort(c->cand, c->n, sizeof *c->cand, by_use);
    size_t from = 0;
    for (size_t node = 0; node < c->t->n_nodes; node++) {
        size_t to = from;
        while (to < c->n && c->cand[to].cpu->node == (int)node)
            to++;
        int lanes = c->per_node[node];
        if (lanes > 0 && (p->n_nodes == 0 || !c->flat))
            p->node[p->n_nodes++] =
                (struct placed_node){.os = c->t->node[node].os, .first = p->n_lanes};
        for (int i = 0; i < lanes; i++) {
            const struct cpu *cpu = c->cand[from + (size_t)i % (to - from)].cpu;
            p->lane[p->n_lanes] =
                (struct placed_lane){.cpu = cpu->os, .core = cpu->core, .node = p->n_nodes - 1};
            c->work[p->n_lanes++] = (uint64_t)cpu->speed;
            c->on_core[cpu->core]++;
            p->node[p->n_nodes - 1].n++;
        }
        for (size_t i = from; lanes > 0 && i < to; i++)
            p->cpu[p->n_cpus++] = (struct placed_cpu){c->cand[i].cpu->os, p->n_nodes - 1};
        from = to;
    }
    if (p->n_nodes == 1 && (c->flat || c->t->n_nodes == 1))
        p->node[0].os = -1;
}

/* ------------------------------------------------------------------ shares and binding */

/* 2^32 times the sum of the lanes before over the sum of all, rounded up: with equal lanes
 * floor(units * cut / 2^32) is then floor(units * i / n): shares differ by one unit at most. */
static void make_cuts(struct placement *p, struct choice *c)
{
    enum { DIVISIBLE = 2520 }; /* by 1 to 10: lanes on one core */
    uint64_t total = 0, before = 0;
    for (int i = 0; i < p->n_lanes; i++) {
        uint64_t w = c->work[i] * DIVISIBLE / (uint64_t)c->on_core[p->lane[i].core];
        c->work[i] = p->crowded ? 1 : w < 1 ? 1 : w;
        total += c->work[i];
    }
    for (int i = 0; i < p->n_lanes; i++) { /* below 2^32: 1024 lanes of 2^22 at most */
        p->cut[i] = (before * LANE_ONE + total - 1) / total;
        before += c->work[i];
    }
    p->cut[p->n_lanes] = LANE_ONE;
}

static enum bind choose_bind(const struct placement *p, const struct choice *c)
{
    bool equal = true;
    size_t allowed = 0;
    for (int i = 1; i < p->n_lanes; i++)
        equal = equal && c->work[i] == c->work[0];
    if (!p->crowded && (c->o->cpus || p->n_lanes >= c->n_cores || !equal))
        return BIND_CPU;
    for (size_t i = 0; i < c->t->n_cpus; i++)
        allowed += c->t->cpu[i].allowed;
    return p->n_nodes == 1 && (size_t)p->n_cpus == allowed ? BIND_NONE : BIND_NODE;
}

static int room(struct placement *p, struct choice *c, dsv4_err *err)
{
    static const char what[] = "the placement of threads";
    size_t lanes = c->o->threads ? (size_t)c->o->threads : MAX_LANES, nodes = c->t->n_nodes;
    size_t cores = 1;
    for (size_t i = 0; i < c->t->n_cpus; i++)
        cores = (size_t)c->t->cpu[i].core >= cores ? (size_t)c->t->cpu[i].core + 1 : cores;
    TRY(mem_alloc(&c->cand, c->t->n_cpus, sizeof *c->cand, what, err));
    TRY(mem_alloc(&c->per_node, nodes, sizeof *c->per_node, what, err));
    TRY(mem_alloc(&c->of_node, nodes, sizeof *c->of_node, what, err));
    TRY(mem_alloc(&c->on_core, cores, sizeof *c->on_core, what, err));
    TRY(mem_alloc(&c->work, lanes, sizeof *c->work, what, err));
    TRY(mem_alloc(&p->lane, lanes, sizeof *p->lane, what, err));
    TRY(mem_alloc(&p->cut, lanes + 1, sizeof *p->cut, what, err));
    TRY(mem_alloc(&p->node, nodes, sizeof *p->node, what, err));
    return mem_alloc(&p->cpu, c->t->n_cpus, sizeof *p->cpu, what, err);
}

int placement_make(struct placement *out, const struct topology *t,
                   const struct placement_options *o, dsv4_err *err)
{
    struct choice c = {.t = t, .o = o, .flat = o->numa && strcmp(o->numa, "off") == 0};
    struct placement p = {0};
    TRY(placement_check(t, o, err));
    int rc = room(&p, &c, err);
    int lanes = 0;
    if (rc == 0)
        rc = find_candidates(&c, &lanes, err);
    if (rc == 0) {
        share_lanes(&c, lanes);
        place_lanes(&p, &c);
        p.crowded = lanes > p.n_cpus;
        make_cuts(&p, &c);
        p.bind = choose_bind(&p, &c);
        *out = p;
    } else {
        placement_release(&p);
    }
    free(c.cand);
    free(c.per_node);
    free(c.of_node);
    free(c.on_core);
    free(c.work);
    return rc;
}

int placement_here(struct placement *out, const struct placement_options *o, dsv4_err *err)
{
    struct topology t;
    TRY(topology_read(&t, err));
    int rc = placement_make(out, &t, o, err);
    topology_release(&t);
    return rc;
}

void placement_release(struct placement *p)
{
    free(p->lane);
    free(p->node);
    free(p->cpu);
    free(p->cut);
    *p = (struct placement){0};
}
