/* Reading of machines: this one, by two readers, and trees that look like /sys; and what threads and memory
 * do on this one. Where threads are placed: check_placement.c. */
#include "machines.h"
#include "suite.h"

#include <sched.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

/* ------------------------------------------------------------------ two readers */

#ifdef HAVE_HWLOC
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
    tcase_add_test(t, sys_with_nodes);
    tcase_add_test(t, sys_with_classes);
    tcase_add_test(t, cgroup_quotas);
    tcase_add_test(t, threads_are_bound_only_during_a_step);
    tcase_add_test(t, lanes_in_groups_and_fewer_threads);
    tcase_add_test(t, mappings);
#ifdef HAVE_HWLOC
    tcase_add_test(t, hwloc_and_sys_agree);
#endif
    suite_add_tcase(s, t);
    return run_suite(s);
}
