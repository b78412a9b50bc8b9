/* Made-up machines, placements on them, and the rules that each of these has to keep. */
#include "machines.h"
#include "suite.h"

/* ------------------------------------------------------------------ machines */

struct topology machine(int nodes, int cores, int pu, int slow, int speed)
{
    dsv4_err err;
    struct topology t;
    OK(topology_room(&t, (size_t)(nodes * cores * pu), (size_t)nodes, &err));
    t.source = "test";
    for (int n = 0; n < nodes; n++)
        t.node[t.n_nodes++] = (struct numa_node){.os = n};
    for (int p = 0; p < pu; p++)
        for (int c = 0; c < nodes * cores; c++)
            t.cpu[t.n_cpus++] = (struct cpu){.os = p * nodes * cores + c,
                                             .core = c,
                                             .node = c / cores,
                                             .package = c / cores,
                                             .speed = c % cores >= cores - slow ? speed : SPEED_ONE,
                                             .allowed = true};
    topology_settle(&t);
    return t;
}

struct placement place(const struct topology *t, int threads, const char *cpus, const char *numa)
{
    dsv4_err err;
    struct placement p;
    struct placement_options o = {.threads = threads, .cpus = cpus, .numa = numa};
    OK(placement_make(&p, t, &o, &err));
    return p;
}

/* ------------------------------------------------------------------ what always holds */

const struct cpu *cpu_at(const struct topology *t, int os)
{
    for (size_t i = 0; i < t->n_cpus; i++)
        if (t->cpu[i].os == os)
            return &t->cpu[i];
    ck_abort_msg("cpu %d is not there", os);
}

/* The share that a lane should have by the speed of its core. */
static double due(const struct topology *t, const struct placement *p, int lane)
{
    double mine = 0, all = 0;
    for (int i = 0; i < p->n_lanes; i++) {
        int on = 0;
        for (int k = 0; k < p->n_lanes; k++)
            on += p->lane[k].core == p->lane[i].core;
        double w = p->crowded ? 1 : (double)cpu_at(t, p->lane[i].cpu)->speed / on;
        all += w;
        mine = i == lane ? w : mine;
    }
    return mine / all;
}

/* A lane's rows: cut at units, and near the share that is due: within 2 % when it is large,
 * otherwise within a unit at either end. */
static void check_share(size_t begin, size_t end, size_t rows, size_t align, double part)
{
    double want = (double)rows * part, got = (double)(end - begin), unit = (double)align;
    double slack = want >= 100 * unit ? 0.02 * want : 2 * unit;
    ck_assert_uint_le(begin, end);
    ck_assert_uint_le(end, rows);
    ck_assert(begin % align == 0 || begin == rows);
    ck_assert_double_le(got, want + slack);
    ck_assert_double_ge(got, want - slack);
}

/* Every row of a matrix once and in order; a node's slice is exactly what its lanes read, and these
 * run on CPUs of that node. */
static void check_rows(const struct topology *t, const struct placement *p, struct pool *pool,
                       size_t rows, size_t align, const double *part)
{
    size_t at = 0;
    for (int k = 0; k < p->n_nodes; k++) {
        size_t slice, slice_end, begin, end;
        node_split(pool, rows, align, k, &slice, &slice_end);
        ck_assert_uint_eq(at, slice < slice_end ? slice : at);
        for (int i = p->node[k].first; i < p->node[k].first + p->node[k].n; i++) {
            struct lane l = {.id = i, .n = p->n_lanes, .from = p->cut[i], .to = p->cut[i + 1]};
            lane_split(&l, rows, align, &begin, &end);
            check_share(begin, end, rows, align, part[i]);
            if (begin < end)
                ck_assert_uint_eq(begin, at);
            at = begin < end ? end : at;
            ck_assert_int_eq(p->lane[i].node, k);
            if (p->node[k].os >= 0)
                ck_assert_int_eq(t->node[cpu_at(t, p->lane[i].cpu)->node].os, p->node[k].os);
        }
        ck_assert_uint_eq(at, slice < slice_end ? slice_end : at);
    }
    ck_assert_uint_eq(at, rows);
}

void check_all(const struct topology *t, const struct placement *p)
{
    static const size_t rows[] = {0, 1, 2, 3, 15, 16, 17, 256, 1000, 2048, 7168, 129280, 4000037};
    int lanes = 0;
    double part[MAX_LANES];
    ck_assert_uint_eq(p->cut[0], 0);
    ck_assert_uint_eq(p->cut[p->n_lanes], LANE_ONE);
    for (int k = 0; k < p->n_nodes; k++) {
        ck_assert_int_eq(p->node[k].first, lanes);
        ck_assert_int_gt(p->node[k].n, 0);
        lanes += p->node[k].n;
    }
    ck_assert_int_eq(lanes, p->n_lanes);
    for (int i = 0; i < p->n_lanes; i++) {
        ck_assert(cpu_at(t, p->lane[i].cpu)->allowed);
        part[i] = due(t, p, i);
    }
    if (p->n_lanes > 300) /* so many threads are not made here */
        return;
    dsv4_err err;
    struct pool *pool;
    OK(pool_open(&pool, p, &err));
    ck_assert_int_eq(pool_nodes(pool), p->n_nodes);
    for (int k = 0; k < p->n_nodes; k++)
        ck_assert_int_eq(pool_node_os(pool, k), p->node[k].os);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_rows(t, p, pool, rows[i], 1, part);
        check_rows(t, p, pool, rows[i], 16, part);
    }
    pool_close(pool);
}

struct placement placed(const struct topology *t, int threads, const char *cpus, const char *numa,
                        int lanes, int nodes, enum bind bind)
{
    struct placement p = place(t, threads, cpus, numa);
    check_all(t, &p);
    ck_assert_int_eq(p.n_lanes, lanes);
    ck_assert_int_eq(p.n_nodes, nodes);
    ck_assert_int_eq((int)p.bind, (int)bind);
    return p;
}

int cores_used(const struct placement *p)
{
    int n = 0;
    for (int i = 0; i < p->n_lanes; i++) {
        bool first = true;
        for (int k = 0; k < i; k++)
            first = first && p->lane[k].core != p->lane[i].core;
        n += first;
    }
    return n;
}
