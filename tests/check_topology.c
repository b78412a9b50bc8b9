/* Reading of machines and placement of threads on them: made-up ones through hwloc and through
 * trees that look like /sys, and this one. */
#include "suite.h"

#include "src/system/system.h"

#include <sched.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

/* ------------------------------------------------------------------ machines */

/* nodes x cores x pu, numbered as PCs are: first CPUs of all cores, then second ones. Of each
 * node's cores the last `slow` have the given speed. */
static struct topology machine(int nodes, int cores, int pu, int slow, int speed)
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

static struct placement place(const struct topology *t, int threads, const char *cpus,
                              const char *numa)
{
    dsv4_err err;
    struct placement p;
    struct placement_options o = {.threads = threads, .cpus = cpus, .numa = numa};
    OK(placement_make(&p, t, &o, &err));
    return p;
}

/* ------------------------------------------------------------------ what always holds */

static const struct cpu *cpu_at(const struct topology *t, int os)
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

static void check_all(const struct topology *t, const struct placement *p)
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

/* Places, checks what always holds, and tells what came out. */
static struct placement placed(const struct topology *t, int threads, const char *cpus,
                               const char *numa, int lanes, int nodes, enum bind bind)
{
    struct placement p = place(t, threads, cpus, numa);
    check_all(t, &p);
    ck_assert_int_eq(p.n_lanes, lanes);
    ck_assert_int_eq(p.n_nodes, nodes);
    ck_assert_int_eq((int)p.bind, (int)bind);
    return p;
}

static int cores_used(const struct placement *p)
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

/* ------------------------------------------------------------------ placement */

START_TEST(two_sockets)
{
    struct topology t = machine(2, 32, 2, 0, 0);
    struct placement p = placed(&t, 0, NULL, NULL, 64, 2, BIND_CPU);
    ck_assert_int_eq(cores_used(&p), 64);
    ck_assert_int_eq(p.node[0].n, 32);
    ck_assert_int_eq(p.node[0].os, 0);
    ck_assert_int_eq(p.node[1].os, 1);
    for (int i = 0; i < 64; i++)
        ck_assert_int_eq(p.lane[i].cpu, i); /* no second CPU of a core */
    placement_release(&p);

    p = placed(&t, 40, NULL, "auto", 40, 2, BIND_NODE); /* fewer: both nodes, free to move inside */
    ck_assert_int_eq(p.node[0].n, 20);
    ck_assert_int_eq(cores_used(&p), 40);
    ck_assert_int_eq(p.n_cpus, 128);
    placement_release(&p);

    p = placed(&t, 6, NULL, NULL, 6, 1, BIND_NODE); /* too few to feed on two */
    ck_assert_int_eq(p.node[0].os, 0);
    ck_assert_int_eq(p.n_cpus, 64);
    placement_release(&p);

    p = placed(&t, 96, NULL, NULL, 96, 2, BIND_CPU); /* second CPUs once cores are used up */
    ck_assert_int_eq(cores_used(&p), 64);
    ck_assert(!p.crowded);
    placement_release(&p);

    p = placed(&t, 200, NULL, NULL, 200, 2, BIND_NODE);
    ck_assert(p.crowded);
    placement_release(&p);

    p = placed(&t, 0, NULL, "off", 64, 1, BIND_CPU);
    ck_assert_int_eq(p.node[0].os, -1);
    placement_release(&p);

    p = placed(&t, 0, NULL, "1", 32, 1, BIND_CPU);
    ck_assert_int_eq(p.node[0].os, 1);
    ck_assert_int_eq(p.lane[0].cpu, 32);
    placement_release(&p);
    topology_release(&t);
}
END_TEST

START_TEST(four_nodes_and_clusters)
{
    struct topology t = machine(4, 16, 1, 0, 0); /* also two sockets with two clusters each */
    struct placement p = placed(&t, 0, NULL, NULL, 64, 4, BIND_CPU);
    placement_release(&p);
    p = placed(&t, 13, NULL, NULL, 13, 3, BIND_NODE); /* at least four lanes for each node */
    placement_release(&p);
    p = placed(&t, 50, NULL, NULL, 50, 4, BIND_NODE);
    placement_release(&p);
    p = placed(&t, 0, NULL, "1-2", 32, 2, BIND_CPU);
    ck_assert_int_eq(p.node[1].os, 2);
    placement_release(&p);
    p = placed(&t, 0, "0-7,16-23,63", NULL, 17, 3, BIND_CPU);
    ck_assert_int_eq(p.node[2].n, 1);
    ck_assert_int_eq(p.node[2].os, 3);
    placement_release(&p);
    topology_release(&t);
}
END_TEST

START_TEST(nodes_of_different_size)
{
    struct topology t = machine(2, 8, 1, 0, 0);
    for (size_t i = 0; i < t.n_cpus; i++) /* of node 1 only two cores are allowed */
        t.cpu[i].allowed = t.cpu[i].os < 10;
    struct placement p = placed(&t, 0, NULL, NULL, 10, 2, BIND_CPU);
    ck_assert_int_eq(p.node[0].n, 8);
    ck_assert_int_eq(p.node[1].n, 2);
    placement_release(&p);
    p = placed(&t, 5, NULL, NULL, 5, 1, BIND_NODE);
    ck_assert_int_eq(p.node[0].os, 0);
    placement_release(&p);
    topology_release(&t);
}
END_TEST

static int slow_lanes(const struct topology *t, const struct placement *p)
{
    int n = 0;
    for (int i = 0; i < p->n_lanes; i++)
        n += cpu_at(t, p->lane[i].cpu)->speed < SPEED_ONE;
    return n;
}

START_TEST(hybrid_cores)
{
    struct topology t = machine(1, 24, 1, 16, 512); /* 8 fast, 16 of half speed */
    struct placement p = placed(&t, 0, NULL, NULL, 24, 1, BIND_CPU);
    ck_assert_int_eq(slow_lanes(&t, &p), 16);
    uint64_t fast = p.cut[1] - p.cut[0], slow = p.cut[24] - p.cut[23];
    ck_assert_double_eq_tol((double)fast / (double)slow, 2, 1e-6);
    placement_release(&p);
    p = placed(&t, 8, NULL, NULL, 8, 1, BIND_CPU); /* no more than the fast ones: none may wander */
    ck_assert_int_eq(slow_lanes(&t, &p), 0);
    placement_release(&p);
    p = placed(&t, 5, NULL, NULL, 5, 1, BIND_NODE);
    ck_assert_int_eq(p.n_cpus, 8);
    placement_release(&p);
    p = placed(&t, 12, NULL, NULL, 12, 1, BIND_CPU); /* shares differ: each has to stay */
    ck_assert_int_eq(slow_lanes(&t, &p), 4);
    placement_release(&p);
    topology_release(&t);

    t = machine(1, 12, 1, 4, 400); /* 4 slow ones add too little to wait for */
    p = placed(&t, 0, NULL, NULL, 8, 1, BIND_CPU);
    ck_assert_int_eq(slow_lanes(&t, &p), 0);
    placement_release(&p);
    p = placed(&t, 12, NULL, NULL, 12, 1, BIND_CPU); /* unless asked for */
    ck_assert_int_eq(slow_lanes(&t, &p), 4);
    placement_release(&p);
    p = placed(&t, 0, "6-9", NULL, 4, 1, BIND_CPU); /* or named */
    ck_assert_int_eq(slow_lanes(&t, &p), 2);
    placement_release(&p);
    topology_release(&t);

    t = machine(1, 8, 1, 7, 950); /* one core that boosts higher is no class of its own */
    p = placed(&t, 0, NULL, NULL, 8, 1, BIND_CPU);
    ck_assert_uint_eq(p.cut[1], LANE_ONE / 8);
    placement_release(&p);
    topology_release(&t);
}
END_TEST

START_TEST(quotas)
{
    struct topology t = machine(2, 8, 2, 0, 0);
    static const struct {
        double quota;
        int lanes, nodes;
    } c[] = {{0.3, 1, 1}, {1, 1, 1}, {2.5, 2, 1}, {7.99, 7, 1}, {8, 8, 2}, {15.5, 15, 2}};
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        t.quota = c[i].quota;
        struct placement p = placed(&t, 0, NULL, NULL, c[i].lanes, c[i].nodes, BIND_NODE);
        placement_release(&p);
    }
    t.quota = 16;
    struct placement p = placed(&t, 0, NULL, NULL, 16, 2, BIND_CPU);
    placement_release(&p);
    t.quota = 2.5;
    p = placed(&t, 4, NULL, NULL, 4, 1, BIND_NODE); /* who asks gets */
    placement_release(&p);
    topology_release(&t);
}
END_TEST

START_TEST(small_machines_and_many_threads)
{
    struct topology t = machine(1, 1, 1, 0, 0);
    struct placement p = placed(&t, 0, NULL, NULL, 1, 1, BIND_CPU);
    ck_assert_int_eq(p.node[0].os, -1);
    placement_release(&p);
    p = placed(&t, 5, NULL, NULL, 5, 1, BIND_NONE);
    placement_release(&p);
    topology_release(&t);

    t = machine(1, 2, 1, 0, 0);
    p = placed(&t, 7, NULL, NULL, 7, 1, BIND_NONE);
    ck_assert(p.crowded);
    placement_release(&p);
    p = placed(&t, 1, NULL, NULL, 1, 1, BIND_NONE);
    placement_release(&p);
    topology_release(&t);

    t = machine(1, 2, 2, 0, 0); /* three threads: two of them share a core and its speed */
    p = placed(&t, 3, NULL, NULL, 3, 1, BIND_CPU);
    ck_assert_int_eq(cores_used(&p), 2);
    ck_assert_uint_eq(p.cut[3] - p.cut[0], LANE_ONE);
    placement_release(&p);
    p = placed(&t, 0, "1,3", NULL, 1, 1, BIND_CPU); /* one core, named twice */
    placement_release(&p);
    p = placed(&t, 2, "1,3", NULL, 2, 1, BIND_CPU);
    placement_release(&p);
    topology_release(&t);

    t = machine(8, 256, 2, 0, 0); /* more than a team can be */
    p = placed(&t, 0, NULL, NULL, MAX_LANES, 8, BIND_NODE);
    placement_release(&p);
    topology_release(&t);
    t = machine(100, 2, 1, 0, 0); /* more nodes than there may be */
    p = placed(&t, 0, NULL, NULL, 2 * MAX_NODES, MAX_NODES, BIND_CPU);
    placement_release(&p);
    topology_release(&t);
}
END_TEST

START_TEST(wrong_options_are_refused)
{
    struct topology t = machine(2, 2, 1, 0, 0);
    t.cpu[3].allowed = false;
    static const struct {
        int threads;
        const char *cpus, *numa, *says;
    } bad[] = {
        {-1, NULL, NULL, "1 to 1024"},
        {1025, NULL, NULL, "1 to 1024"},
        {0, "0-99", NULL, "this machine has cpus 0-3"},
        {0, "3", NULL, "may only use cpus 0-2"},
        {0, "", NULL, "no list"},
        {0, "1-", NULL, "no list"},
        {0, "2-1", NULL, "no list"},
        {0, "1;2", NULL, "no list"},
        {0, "-1", NULL, "no list"},
        {0, "99999999999999999999", NULL, "no list"},
        {0, "0-2147483647", NULL, "this machine has cpus 0-3"},
        {0, NULL, "2", "this machine has NUMA nodes 0-1"},
        {0, NULL, "", "auto, off"},
        {0, NULL, "on", "auto, off"},
        {0, "0", "1", "no usable cpu in common"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        dsv4_err err;
        struct placement p;
        struct placement_options o = {bad[i].threads, bad[i].cpus, bad[i].numa};
        ck_assert_int_eq(placement_make(&p, &t, &o, &err), DSV4_USAGE);
        ck_assert_msg(strstr(err.text, bad[i].says) != NULL, "%s", err.text);
    }
    topology_release(&t);
}
END_TEST

START_TEST(lists_are_written_and_read)
{
    char out[64];
    int n[] = {9, 3, 1, 2, 7, 8};
    cpu_list_text(out, sizeof out, n, 6);
    ck_assert_str_eq(out, "1-3,7-9");
    ck_assert(cpu_list_has(out, 8) && !cpu_list_has(out, 4) && !cpu_list_has(out, 10));
    cpu_list_text(out, sizeof out, n, 0);
    ck_assert_str_eq(out, "");
    int many[200];
    for (int i = 0; i < 200; i++)
        many[i] = i * 1000003;
    cpu_list_text(out, sizeof out, many, 200);
    ck_assert_str_eq(out + strlen(out) - 4, ",...");
}
END_TEST

/* Equal lanes get what an equal division would give them: sizes differ by one unit at most. */
START_TEST(equal_lanes_are_equal)
{
    dsv4_err err;
    for (int n = 1; n <= 130; n += n < 20 ? 1 : 37) {
        struct topology t = machine(1, n, 1, 0, 0);
        struct placement p = place(&t, 0, NULL, NULL);
        for (size_t units = 0; units < 3000; units += units < 300 ? 1 : 97) {
            size_t least = units + 1, most = 0;
            for (int i = 0; i < n; i++) {
                struct lane l = {.id = i, .n = n, .from = p.cut[i], .to = p.cut[i + 1]};
                size_t a, b;
                lane_split(&l, units, 1, &a, &b);
                ck_assert_uint_eq(a, units * (size_t)i / (size_t)n);
                ck_assert_uint_eq(b, units * (size_t)(i + 1) / (size_t)n);
                least = b - a < least ? b - a : least;
                most = b - a > most ? b - a : most;
            }
            ck_assert_uint_le(most - least, 1);
        }
        placement_release(&p);
        topology_release(&t);
    }
    struct pool *pool; /* sizes near the end of what a size can be */
    OK(pool_open_threads(&pool, 3, &err));
    size_t a, b, n = SIZE_MAX - 5;
    node_split(pool, n, 7, 0, &a, &b);
    ck_assert_uint_eq(a, 0);
    ck_assert_uint_eq(b, n);
    pool_close(pool);
}
END_TEST

/* ------------------------------------------------------------------ hwloc's machines */

#ifdef HAVE_HWLOC
START_TEST(synthetic_machines)
{
    static const struct {
        const char *text;
        size_t cpus, nodes;
        int lanes, slow;
    } c[] = {{"package:2 core:32 pu:2", 128, 1, 64, 0},
             {"package:2 [numa] core:32 pu:1", 64, 2, 64, 0},
             {"node:4 core:8 pu:2", 64, 4, 32, 0},
             {"package:2 node:2 core:12 pu:2", 96, 4, 48, 0},
             {"core:24 pu:1 slow:8-23", 24, 1, 24, 16},
             {"core:10 pu:1 slow:8-9", 10, 1, 8, 0},
             {"core:1 pu:1", 1, 1, 1, 0},
             {"core:16 pu:2 quota:2.5", 32, 1, 2, 0},
             {"core:24 pu:1 slow:8-23 quota:30", 24, 1, 24, 16}};
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        dsv4_err err;
        struct topology t;
        OK(topology_synthetic(&t, c[i].text, &err));
        ck_assert_uint_eq(t.n_cpus, c[i].cpus);
        ck_assert_uint_eq(t.n_nodes, c[i].nodes);
        struct placement p = place(&t, 0, NULL, NULL);
        check_all(&t, &p);
        ck_assert_int_eq(p.n_lanes, c[i].lanes);
        ck_assert_int_eq(p.n_nodes, (int)c[i].nodes);
        ck_assert_int_eq(slow_lanes(&t, &p), c[i].slow);
        ck_assert_int_eq(cores_used(&p), c[i].lanes);
        placement_release(&p);
        topology_release(&t);
    }
    static const char *const bad[] = {"",
                                      "x",
                                      "core:0",
                                      "core:4 slow:9",
                                      "core:4 slow:0-3",
                                      "core:4 quota:x",
                                      "core:4 quota:-1",
                                      "core:4 slow:x"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        dsv4_err err;
        struct topology t;
        ck_assert_int_eq(topology_synthetic(&t, bad[i], &err), DSV4_USAGE);
    }
}
END_TEST

/* Two readers, one machine. */
START_TEST(hwloc_and_sys_agree)
{
    dsv4_err err;
    struct topology s, h;
    int rc = topology_sys(&s, "", &err);
    if (rc == DSV4_FAILED) {
        printf("SKIP check_topology hwloc_and_sys_agree: %s\n", err.text);
        return;
    }
    OK(rc);
    OK(topology_hwloc(&h, &err));
    ck_assert_uint_eq(s.n_cpus, h.n_cpus);
    ck_assert_uint_eq(s.n_nodes, h.n_nodes);
    for (size_t i = 0; i < s.n_nodes; i++)
        ck_assert_int_eq(s.node[i].os, h.node[i].os);
    for (size_t i = 0; i < s.n_cpus; i++) {
        ck_assert_int_eq(cpu_at(&s, h.cpu[i].os)->node, h.cpu[i].node);
        for (size_t k = 0; k < i; k++)
            ck_assert_int_eq(cpu_at(&s, h.cpu[i].os)->core == cpu_at(&s, h.cpu[k].os)->core,
                             h.cpu[i].core == h.cpu[k].core);
    }
    topology_release(&s);
    topology_release(&h);
}
END_TEST
#endif

/* ------------------------------------------------------------------ trees that look like /sys */

static char top[] = "/tmp/dsv4-check.XXXXXX";

static void make_top(void)
{
    strcpy(top, "/tmp/dsv4-check.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(top));
}

static void remove_top(void)
{
    char cmd[64];
    snprintf(cmd, sizeof cmd, "rm -rf %s", top);
    ck_assert_int_eq(system(cmd), 0);
}

/* A file of the tree, with the folders above it. */
static void put(const char *text, const char *format, ...) PRINTF_LIKE(2, 3);
static void put(const char *text, const char *format, ...)
{
    char path[300];
    va_list ap;
    int n = snprintf(path, sizeof path, "%s", top);
    va_start(ap, format);
    vsnprintf(path + n, sizeof path - (size_t)n, format, ap);
    va_end(ap);
    for (char *slash = path + n + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        mkdir(path, 0700);
        *slash = '/';
    }
    FILE *f = fopen(path, "w");
    ck_assert_msg(f != NULL, "%s", path);
    fprintf(f, "%s\n", text);
    fclose(f);
}

static struct topology read_top(void)
{
    dsv4_err err;
    struct topology t;
    OK(topology_sys(&t, top, &err));
    return t;
}

#define CPU "/sys/devices/system/cpu/"

START_TEST(sys_with_nodes)
{
    make_top();
    put("0-3,6-7", CPU "online"); /* 4 and 5 are switched off */
    for (int i = 0; i < 8; i++) {
        char siblings[32];
        snprintf(siblings, sizeof siblings, "%d,%d", i % 2 + i / 4 * 4, i % 2 + i / 4 * 4 + 2);
        put(siblings, CPU "cpu%d/topology/thread_siblings_list", i);
        put(i < 4 ? "0" : "1", CPU "cpu%d/topology/physical_package_id", i);
    }
    put("0,2-3", "/sys/devices/system/node/online");
    put("0-3", "/sys/devices/system/node/node0/cpulist");
    put("", "/sys/devices/system/node/node2/cpulist"); /* memory alone */
    put("4-7", "/sys/devices/system/node/node3/cpulist");
    put("Node 0 MemTotal:       1024 kB", "/sys/devices/system/node/node0/meminfo");
    struct topology t = read_top();
    ck_assert_uint_eq(t.n_cpus, 6);
    ck_assert_uint_eq(t.n_nodes, 2);
    ck_assert_int_eq(t.node[1].os, 3);
    ck_assert_uint_eq(t.node[0].bytes, 1 << 20);
    ck_assert_int_eq(cpu_at(&t, 6)->node, 1);
    ck_assert_int_eq(cpu_at(&t, 6)->package, 1);
    ck_assert_int_eq(cpu_at(&t, 0)->core, cpu_at(&t, 2)->core);
    ck_assert_int_ne(cpu_at(&t, 0)->core, cpu_at(&t, 1)->core);
    struct placement p = placed(&t, 0, NULL, NULL, 4, 2, BIND_CPU);
    ck_assert_int_eq(p.node[1].os, 3);
    placement_release(&p);
    topology_release(&t);
    remove_top();
}
END_TEST

START_TEST(sys_with_classes)
{
    make_top();
    put("0-5", CPU "online");
    put("4-5", "/sys/devices/cpu_atom/cpus");
    struct topology t = read_top(); /* Intel, an old kernel; no nodes, no cores told */
    ck_assert_uint_eq(t.n_nodes, 1);
    ck_assert_int_eq(cpu_at(&t, 0)->speed, SPEED_ONE);
    ck_assert_int_eq(cpu_at(&t, 5)->speed, SPEED_ONE / 2);
    topology_release(&t);
    for (int i = 0; i < 6; i++) /* capacities know better */
        put(i < 2 ? "446" : i < 5 ? "1000" : "1024", CPU "cpu%d/cpu_capacity", i);
    t = read_top();
    ck_assert_int_eq(cpu_at(&t, 0)->speed, 446);
    ck_assert_int_eq(cpu_at(&t, 2)->speed, SPEED_ONE); /* near enough */
    ck_assert_int_eq(cpu_at(&t, 5)->speed, SPEED_ONE);
    topology_release(&t);
    remove_top();
    make_top();
    put("0-1", CPU "online");
    put("2000000", CPU "cpu0/cpufreq/cpuinfo_max_freq");
    put("4000000", CPU "cpu1/cpufreq/cpuinfo_max_freq");
    t = read_top();
    ck_assert_int_eq(cpu_at(&t, 0)->speed, SPEED_ONE / 2);
    topology_release(&t);
    dsv4_err err;
    static const char *const broken[] = {"", "x", "0-", "3-1", "0-99999999", "0,1,,2"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        put(broken[i], CPU "online");
        ck_assert_int_eq(topology_sys(&t, top, &err), DSV4_FAILED);
    }
    remove_top();
    ck_assert_int_eq(topology_sys(&t, "/nowhere", &err), DSV4_FAILED);
}
END_TEST

START_TEST(cgroup_quotas)
{
    make_top();
    ck_assert_double_eq(cgroup_quota(top), 0);
    put("0::/a/b", "/proc/self/cgroup");
    ck_assert_double_eq(cgroup_quota(top), 0);
    put("max 100000", "/sys/fs/cgroup/a/b/cpu.max");
    ck_assert_double_eq(cgroup_quota(top), 0);
    put("350000 100000", "/sys/fs/cgroup/a/cpu.max"); /* the group above binds too */
    ck_assert_double_eq(cgroup_quota(top), 3.5);
    put("25000 50000", "/sys/fs/cgroup/cpu.max"); /* a container sees its own group as the root */
    ck_assert_double_eq(cgroup_quota(top), 0.5);
    put("200000 100000", "/sys/fs/cgroup/cpu.max");
    put("150000 100000", "/sys/fs/cgroup/a/b/cpu.max");
    ck_assert_double_eq(cgroup_quota(top), 1.5);
    remove_top();
    make_top();
    put("5:cpuset:/x\n4:cpu,cpuacct:/docker/1\n0::/", "/proc/self/cgroup");
    put("-1", "/sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us");
    put("100000", "/sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us");
    ck_assert_double_eq(cgroup_quota(top), 0);
    put("250000", "/sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us");
    ck_assert_double_eq(cgroup_quota(top), 2.5);
    remove_top();
}
END_TEST

/* ------------------------------------------------------------------ this machine */

static bool same_mask(void *saved, size_t bytes)
{
    unsigned char now[1 << 10] = {0};
    ck_assert_uint_le(bytes, sizeof now);
    ck_assert_int_eq(sched_getaffinity(0, bytes, (cpu_set_t *)(void *)now), 0);
    return memcmp(now, saved, bytes) == 0;
}

struct where {
    const struct placement *p;
    atomic_int wrong;
};

/* Inside a step every lane's mask is its CPU alone. */
static void look(const struct lane *l, void *arg)
{
    struct where *w = arg;
    _Alignas(8) unsigned char now[1 << 10] = {0};
    size_t bytes = affinity_bytes();
    cpu_set_t *set = (cpu_set_t *)(void *)now;
    if (sched_getaffinity(0, bytes, set) != 0 || CPU_COUNT_S(bytes, set) != 1 ||
        !CPU_ISSET_S((size_t)w->p->lane[l->id].cpu, bytes, set))
        atomic_fetch_add(&w->wrong, 1);
    lane_barrier(l);
}

START_TEST(threads_are_bound_only_during_a_step)
{
    dsv4_err err;
    struct placement p;
    struct placement_options o = {0};
    struct pool *pool;
    _Alignas(8) unsigned char before[1 << 10] = {0};
    size_t bytes = affinity_bytes();
    if (bytes == 0 || bytes > sizeof before) {
        printf("SKIP check_topology threads_are_bound: no affinity masks here\n");
        return;
    }
    ck_assert_int_eq(sched_getaffinity(0, bytes, (cpu_set_t *)(void *)before), 0);
    OK(placement_here(&p, &o, &err));
    p.bind = BIND_CPU; /* whatever the machine would choose */
    OK(pool_open(&pool, &p, &err));
    struct where w = {.p = &p};
    for (int i = 0; i < 20; i++) {
        pool_run(pool, look, &w);
        ck_assert(same_mask(before, bytes));
    }
    ck_assert_int_eq(w.wrong, 0);
    pool_close(pool);
    p.lane[0].cpu = (int)bytes * 8 - 1; /* a CPU that cannot be had costs nothing but speed */
    OK(pool_open(&pool, &p, &err));
    pool_run(pool, look, &w);
    ck_assert(same_mask(before, bytes));
    pool_close(pool);
    placement_release(&p);
}
END_TEST

struct tally {
    size_t n;
    unsigned char *seen;
    atomic_size_t in_order;
};

static void count(const struct lane *l, void *arg)
{
    struct tally *s = arg;
    size_t a, b;
    lane_split(l, s->n, 16, &a, &b);
    for (size_t i = a; i < b; i++)
        s->seen[i]++;
    for (int i = 0; i < 50; i++)
        lane_barrier(l);
}

/* 40 lanes meet in three groups; also where OpenMP gives fewer threads than were asked for. */
START_TEST(lanes_in_groups_and_fewer_threads)
{
    dsv4_err err;
    unsigned char seen[5000];
    struct topology t = machine(2, 20, 1, 4, 512);
    struct placement p = place(&t, 40, NULL, NULL);
    struct pool *pool;
    p.bind = BIND_NONE;
    p.crowded = true; /* they share what this machine has */
    OK(pool_open(&pool, &p, &err));
    for (size_t n = 0; n < sizeof seen; n += 311) {
        struct tally s = {.n = n, .seen = seen};
        memset(seen, 0, sizeof seen);
        pool_run(pool, count, &s);
#pragma omp parallel num_threads(2)
        { /* nested: OpenMP gives one thread, which is all lanes */
#pragma omp single
            pool_run(pool, count, &s);
        }
        for (size_t i = 0; i < sizeof seen; i++)
            ck_assert_int_eq(seen[i], i < n ? 2 : 0);
    }
    pool_close(pool);
    placement_release(&p);
    topology_release(&t);
}
END_TEST

START_TEST(mappings)
{
    dsv4_err err;
    static const size_t sizes[] = {0, 1, 4096, 100000, (2 << 20) - 1, 2 << 20, (5 << 20) + 17};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int node = -1; node <= 2000; node += node < 1 ? 1 : 1999) {
            unsigned char *p;
            OK(mem_map(&p, sizes[i], node, "a test", &err));
            if (sizes[i] >= 2 << 20)
                ck_assert_uint_eq((uintptr_t)p % (2 << 20), 0);
            for (size_t k = 0; k < sizes[i]; k += 997)
                ck_assert_uint_eq(p[k]++, 0);
            if (sizes[i])
                ck_assert_uint_le(p[sizes[i] - 1]++, 1);
            mem_unmap(p, sizes[i]);
        }
    void *p;
    ck_assert_int_eq(mem_map(&p, SIZE_MAX, -1, "a test", &err), DSV4_NO_MEMORY);
    ck_assert_int_eq(mem_map(&p, SIZE_MAX / 2, -1, "a test", &err), DSV4_NO_MEMORY);
    mem_unmap(NULL, 17);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("topology");
    TCase *t = tcase_create("all");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, two_sockets);
    tcase_add_test(t, four_nodes_and_clusters);
    tcase_add_test(t, nodes_of_different_size);
    tcase_add_test(t, hybrid_cores);
    tcase_add_test(t, quotas);
    tcase_add_test(t, small_machines_and_many_threads);
    tcase_add_test(t, wrong_options_are_refused);
    tcase_add_test(t, lists_are_written_and_read);
    tcase_add_test(t, equal_lanes_are_equal);
#ifdef HAVE_HWLOC
    tcase_add_test(t, synthetic_machines);
    tcase_add_test(t, hwloc_and_sys_agree);
#endif
    tcase_add_test(t, sys_with_nodes);
    tcase_add_test(t, sys_with_classes);
    tcase_add_test(t, cgroup_quotas);
    tcase_add_test(t, threads_are_bound_only_during_a_step);
    tcase_add_test(t, lanes_in_groups_and_fewer_threads);
    tcase_add_test(t, mappings);
    suite_add_tcase(s, t);
    return run_suite(s);
}
