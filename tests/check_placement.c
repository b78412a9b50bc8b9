/* Placement of threads on machines, all of them made up: sockets, nodes, slow cores, quotas, and those that
 * hwloc makes of a line of text. Reading of real ones: check_topology.c. */
#include "machines.h"
#include "suite.h"

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
#endif

int main(void)
{
    Suite *s = suite_create("placement");
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
#endif
    suite_add_tcase(s, t);
    return run_suite(s);
}
