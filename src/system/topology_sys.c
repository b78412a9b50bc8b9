/* The machine as Linux tells it in /sys: CPUs that are online, cores, packages, NUMA nodes, speeds
 * of classes; and the CPU quota of control groups. All paths stand behind `root`, so that tests can
 * show other machines. */
#include "system.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE = 4096, MAX_CPUS = 1 << 16, MAX_SYS_NODES = 1024 };

#define CPUS  "/sys/devices/system/cpu/"
#define NODES "/sys/devices/system/node/"

/* What a small file holds, cut off at LINE - 1 bytes. Not by stdio, which allocates. */
static bool read_text(char text[LINE], const char *path)
{
    size_t n = 0;
    ssize_t got = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    while (n < LINE - 1 &&
           ((got = read(fd, text + n, LINE - 1 - n)) > 0 || (got < 0 && errno == EINTR)))
        n += got > 0 ? (size_t)got : 0;
    close(fd);
    text[n] = 0;
    return got >= 0;
}

/* The first line of root + a path without its newline; false when there is none. */
static bool read_line_v(char line[LINE], const char *root, const char *format, va_list ap)
{
    char path[LINE];
    int n = snprintf(path, sizeof path, "%s", root);
    if (n < 0 || n >= LINE)
        return false;
    vsnprintf(path + n, sizeof path - (size_t)n, format, ap);
    if (!read_text(line, path))
        return false;
    line[strcspn(line, "\n")] = 0;
    return true;
}

static bool PRINTF_LIKE(3, 4) read_line(char line[LINE], const char *root, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    bool got = read_line_v(line, root, format, ap);
    va_end(ap);
    return got;
}

/* The first number there, or `otherwise`. */
static int PRINTF_LIKE(3, 4) read_int(const char *root, int otherwise, const char *format, ...)
{
    char line[LINE];
    int v;
    va_list ap;
    va_start(ap, format);
    bool got = read_line_v(line, root, format, ap) && sscanf(line, "%d", &v) == 1;
    va_end(ap);
    return got ? v : otherwise;
}

/* ------------------------------------------------------------------ CPUs */

/* How many numbers a list holds; -1 when it is no list or too long. */
static int list_count(const char *list)
{
    int a, b, n = 0, got;
    while ((got = cpu_list_next(&list, &a, &b)) == 1) {
        if (b >= MAX_CPUS)
            return -1;
        n += b - a + 1;
        if (n > MAX_CPUS)
            return -1;
    }
    return got == 0 ? n : -1;
}

static int core_of(const char *root, int os)
{
    char line[LINE];
    int a, b;
    const char *at = line;
    if (!read_line(line, root, CPUS "cpu%d/topology/core_cpus_list", os) &&
        !read_line(line, root, CPUS "cpu%d/topology/thread_siblings_list", os))
        return os;
    return cpu_list_next(&at, &a, &b) == 1 ? a : os; /* a core is named by its first CPU */
}

/* Speed by what the kernel knows: capacities (ARM, and hybrid x86 since 6.12); else Intel's list of
 * efficiency cores, taken as half as fast as the others; else the highest frequency. 0: unknown. */
static int speed_of(const char *root, int os, const char *atoms)
{
    int v = read_int(root, 0, CPUS "cpu%d/cpu_capacity", os);
    if (v > 0)
        return v;
    if (*atoms)
        return cpu_list_has(atoms, os) ? SPEED_ONE / 2 : SPEED_ONE;
    v = read_int(root, 0, CPUS "cpu%d/cpufreq/cpuinfo_max_freq", os) / 1000;
    return v > 0 ? v : 0;
}

static void read_cpus(struct topology *t, const char *root, const char *online)
{
    char atoms[LINE];
    int a, b;
    if (!read_line(atoms, root, "/sys/devices/cpu_atom/cpus") || list_count(atoms) < 0)
        atoms[0] = 0;
    while (cpu_list_next(&online, &a, &b) == 1)
        for (int os = a; os <= b; os++)
            t->cpu[t->n_cpus++] = (struct cpu){
                .os = os,
                .core = core_of(root, os),
                .package = read_int(root, 0, CPUS "cpu%d/topology/physical_package_id", os),
                .speed = speed_of(root, os, atoms),
                .allowed = true,
            };
}

/* ------------------------------------------------------------------ nodes */

/* "Node 0 MemTotal:       24689236 kB" */
static uint64_t node_bytes(const char *root, int os)
{
    char line[LINE];
    unsigned long long kib;
    const char *total;
    if (!read_line(line, root, NODES "node%d/meminfo", os) || !(total = strstr(line, "MemTotal:")))
        return 0;
    return sscanf(total, "MemTotal: %llu kB", &kib) == 1 ? (uint64_t)kib << 10 : 0;
}

static void read_nodes(struct topology *t, const char *root, const char *nodes)
{
    char cpus[LINE];
    int a, b;
    while (cpu_list_next(&nodes, &a, &b) == 1)
        for (int os = a; os <= b; os++) {
            t->node[t->n_nodes] = (struct numa_node){.os = os, .bytes = node_bytes(root, os)};
            if (read_line(cpus, root, NODES "node%d/cpulist", os))
                for (size_t i = 0; i < t->n_cpus; i++)
                    if (cpu_list_has(cpus, t->cpu[i].os))
                        t->cpu[i].node = (int)t->n_nodes;
            t->n_nodes++;
        }
}

int topology_sys(struct topology *t, const char *root, dsv4_err *err)
{
    char online[LINE], nodes[LINE];
    int n = read_line(online, root, CPUS "online") ? list_count(online) : -1;
    if (n <= 0)
        return err_set(err, DSV4_FAILED, "%s" CPUS "online cannot be read", root);
    int k = read_line(nodes, root, NODES "online") ? list_count(nodes) : 0;
    if (k <= 0 || k > MAX_SYS_NODES) /* a kernel without NUMA */
        nodes[0] = 0;
    TRY(topology_room(t, (size_t)n, nodes[0] ? (size_t)k : 1, err));
    t->source = "/sys";
    read_cpus(t, root, online);
    read_nodes(t, root, nodes);
    if (t->n_nodes == 0)
        t->n_nodes = 1;
    topology_settle(t);
    return 0;
}

/* ------------------------------------------------------------------ quota */

static double least(double a, double b)
{
    return a == 0 ? b : b == 0 ? a : a < b ? a : b;
}

/* Version 2: "MAX PERIOD" or "max PERIOD" in cpu.max. */
static double quota_v2(const char *root, const char *group)
{
    char line[LINE], path[LINE];
    long long quota, period;
    snprintf(path, sizeof path, "%s/sys/fs/cgroup%s", root, group);
    if (!read_line(line, path, "/cpu.max") || sscanf(line, "%lld %lld", &quota, &period) != 2)
        return 0;
    return quota > 0 && period > 0 ? (double)quota / (double)period : 0;
}

static double quota_v1(const char *root, const char *group)
{
    static const char *const mounts[] = {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"};
    for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
        char path[LINE];
        snprintf(path, sizeof path, "%s%s%s", root, mounts[i], group);
        int quota = read_int(path, -1, "/cpu.cfs_quota_us");
        int period = read_int(path, -1, "/cpu.cfs_period_us");
        if (quota > 0 && period > 0)
            return (double)quota / period;
    }
    return 0;
}

/* A group and all above it, the root too: inside a container that is its own group. */
static double quota_above(const char *root, char *group, double (*one)(const char *, const char *))
{
    double q = 0;
    for (;;) {
        size_t n = strlen(group);
        while (n > 0 && group[n - 1] == '/')
            group[--n] = 0;
        q = least(q, one(root, group));
        char *slash = strrchr(group, '/');
        if (!slash)
            return q;
        *slash = 0;
    }
}

/* "4:cpu,cpuacct:/a/b": is `cpu` among the controllers? */
static bool names_cpu(const char *line)
{
    const char *p = strchr(line, ':'), *end = p ? strchr(p + 1, ':') : NULL;
    while (p && p < end) {
        const char *word = p + 1;
        size_t n = strcspn(word, ",:");
        if (n == 3 && memcmp(word, "cpu", 3) == 0)
            return true;
        p = word + n;
    }
    return false;
}

double cgroup_quota(const char *root)
{
    char path[LINE], text[LINE];
    double q = 0;
    int len = snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    if (len < 0 || len >= LINE || !read_text(text, path))
        return 0;
    for (char *line = text, *next; *line; line = next) {
        next = line + strcspn(line, "\n");
        if (*next)
            *next++ = 0;
        char *last = strrchr(line, ':');
        if (strncmp(line, "0::", 3) == 0)
            q = least(q, quota_above(root, line + 3, quota_v2));
        else if (last && names_cpu(line))
            q = least(q, quota_above(root, last + 1, quota_v1));
    }
    return q;
}
