/* What machine this is: chooses a reader (/sys, hwloc, the affinity mask alone), and adds what no
 * reader knows: which CPUs this process may use, and how much of their time. */
#include "system.h"

#include <limits.h>
#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ------------------------------------------------------------------ putting in order */

static int by_place(const void *a, const void *b)
{
    const struct cpu *x = a, *y = b;
    if (x->node != y->node)
        return x->node < y->node ? -1 : 1;
    if (x->core != y->core)
        return x->core < y->core ? -1 : 1;
    return (x->os > y->os) - (x->os < y->os);
}

/* Speeds that differ by less than an eighth are one class: makers tell apart cores that merely
 * boost a little higher when alone. */
static void settle_speeds(struct topology *t)
{
    int most = 1;
    for (size_t i = 0; i < t->n_cpus; i++)
        most = t->cpu[i].speed > most ? t->cpu[i].speed : most;
    for (size_t i = 0; i < t->n_cpus; i++) {
        struct cpu *c = &t->cpu[i];
        int64_t s = (int64_t)(c->speed > 0 ? c->speed : most) * SPEED_ONE / most;
        c->speed = s > SPEED_ONE * 7 / 8 ? SPEED_ONE : s < 1 ? 1 : (int)s;
    }
}

void topology_settle(struct topology *t)
{
    size_t used = 0;
    for (size_t n = 0; n < t->n_nodes; n++) { /* nodes without CPUs (expanders of memory) go */
        bool has = false;
        for (size_t i = 0; i < t->n_cpus; i++)
            has |= t->cpu[i].node == (int)n;
        if (!has)
            continue;
        for (size_t i = 0; i < t->n_cpus; i++)
            if (t->cpu[i].node == (int)n)
                t->cpu[i].node = (int)used;
        t->node[used++] = t->node[n];
    }
    t->n_nodes = used;
    settle_speeds(t);
    qsort(t->cpu, t->n_cpus, sizeof *t->cpu, by_place);
}

void topology_release(struct topology *t)
{
    free(t->cpu);
    free(t->node);
    *t = (struct topology){0};
}

/* ------------------------------------------------------------------ what is allowed */

#ifdef __linux__
size_t affinity_bytes(void)
{
    for (size_t bytes = 128; bytes <= 1 << 16; bytes *= 2) {
        cpu_set_t *set = malloc(bytes);
        bool fits = set && sched_getaffinity(0, bytes, set) == 0;
        free(set);
        if (fits)
            return bytes;
    }
    return 0;
}

/* With OMP_PROC_BIND the runtime has bound the calling thread to a place of its own when the
 * program started: then all its places count, not the mask. */
static void add_omp_places(cpu_set_t *set, size_t bytes)
{
    if (omp_get_proc_bind() == omp_proc_bind_false)
        return;
    int places = omp_get_num_places();
    for (int p = 0; p < places; p++) {
        int n = omp_get_place_num_procs(p);
        int *id = n > 0 ? malloc((size_t)n * sizeof *id) : NULL;
        if (!id)
            continue;
        omp_get_place_proc_ids(p, id);
        for (int i = 0; i < n; i++)
            CPU_SET_S((size_t)id[i], bytes, set);
        free(id);
    }
}

/* The CPUs of the mask; NULL where it cannot be read. *bytes is its size. */
static cpu_set_t *allowed_set(size_t *bytes)
{
    *bytes = affinity_bytes();
    cpu_set_t *set = *bytes ? calloc(1, *bytes) : NULL;
    if (!set || sched_getaffinity(0, *bytes, set) != 0) {
        free(set);
        return NULL;
    }
    add_omp_places(set, *bytes);
    return set;
}

static void apply_affinity(struct topology *t)
{
    size_t bytes, n = 0;
    cpu_set_t *set = allowed_set(&bytes);
    if (!set)
        return;
    for (size_t i = 0; i < t->n_cpus; i++) {
        t->cpu[i].allowed = CPU_ISSET_S((size_t)t->cpu[i].os, bytes, set);
        n += t->cpu[i].allowed;
    }
    free(set);
    for (size_t i = 0; n == 0 && i < t->n_cpus; i++) /* a sandbox that numbers CPUs its own way */
        t->cpu[i].allowed = true;
}

static int usable_cpus(void)
{
    size_t bytes;
    cpu_set_t *set = allowed_set(&bytes);
    int n = set ? CPU_COUNT_S(bytes, set) : omp_get_num_procs();
    free(set);
    return n;
}
#else
size_t affinity_bytes(void)
{
    return 0;
}

static void apply_affinity(struct topology *t)
{
    (void)t;
}

static int usable_cpus(void)
{
    return omp_get_num_procs();
}
#endif

int pool_cores(void)
{
    int n = usable_cpus();
    double quota = cgroup_quota("");
    if (quota > 0 && quota < n)
        n = (int)quota;
    return n < 1 ? 1 : n > MAX_LANES ? MAX_LANES : n;
}

/* ------------------------------------------------------------------ reading */

int topology_room(struct topology *t, size_t cpus, size_t nodes, dsv4_err *err)
{
    *t = (struct topology){0};
    TRY(mem_alloc(&t->cpu, cpus, sizeof *t->cpu, "the CPUs of this machine", err));
    int rc = mem_alloc(&t->node, nodes, sizeof *t->node, "the NUMA nodes of this machine", err);
    if (rc != 0)
        topology_release(t);
    return rc;
}

/* As many CPUs as may be used, each a core. Numbers are those of the mask where there is one. */
static int topology_plain(struct topology *t, dsv4_err *err)
{
    int n = usable_cpus(), at = 0;
    TRY(topology_room(t, (size_t)n, 1, err));
    t->n_nodes = 1;
    t->source = "affinity";
#ifdef __linux__
    size_t bytes;
    cpu_set_t *set = allowed_set(&bytes);
    for (size_t os = 0; set && os < bytes * CHAR_BIT && at < n; os++)
        if (CPU_ISSET_S(os, bytes, set))
            t->cpu[at++] = (struct cpu){.os = (int)os};
    free(set);
#endif
    for (; at < n; at++)
        t->cpu[at].os = at;
    t->n_cpus = (size_t)n;
    for (int i = 0; i < n; i++) {
        t->cpu[i].core = i;
        t->cpu[i].speed = SPEED_ONE;
        t->cpu[i].allowed = true;
    }
    return 0;
}

int topology_read(struct topology *t, dsv4_err *err)
{
    bool sys = access("/sys/devices/system/cpu/online", R_OK) == 0;
    int rc = sys ? topology_sys(t, "", err) : topology_hwloc(t, err);
    if (rc == DSV4_FAILED)
        rc = topology_plain(t, err);
    TRY(rc);
    apply_affinity(t);
    t->quota = cgroup_quota("");
    return 0;
}
