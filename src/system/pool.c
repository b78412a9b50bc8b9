/* The team of threads. OpenMP owns the threads (they stay between steps); we own which CPU each
 * runs on during a step, the split of the work and the barrier, so that a step costs one fork and a
 * few cheap meetings. */
#include "system.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Lanes meet in groups and the groups in one counter: 64 lanes that all change one word take turns
 * at it, across sockets too. */
enum { SPINS = 4000, GROUP_SHIFT = 4, GROUP_LANES = 1 << GROUP_SHIFT };

/* Sense by generation: the last lane to arrive opens the next generation of every group. On cache
 * lines of their own, as every lane polls its group's. */
struct meeting {
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_uint generation;
    atomic_int sleepers;
};

struct pool {
    int n, n_nodes;
    int spins;                /* polls before a lane sleeps */
    uint64_t *cut;            /* [n + 1] as in struct placement */
    struct placed_node *node; /* [n_nodes] */
    size_t mask_bytes;        /* 0: lanes are not bound */
    unsigned char *mask;      /* [n] affinity masks of lanes ... */
    unsigned char *before;    /* [n] ... and of their threads before the step */
    int n_groups;
    struct meeting *group; /* [n_groups] */
    struct meeting all;    /* generation and sleepers are not used */
};

/* ------------------------------------------------------------------ opening */

struct trial {
    pthread_mutex_t lock;
};

static void *wait_for_lock(void *arg)
{
    struct trial *t = arg;
    pthread_mutex_lock(&t->lock);
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

/* Creates n threads that live at the same time and ends them again. */
static int try_threads(int n, dsv4_err *err)
{
    pthread_t *id = calloc((size_t)n + 1, sizeof *id);
    if (!id)
        return err_memory(err, (size_t)n * sizeof *id, "threads");
    struct trial t;
    pthread_mutex_init(&t.lock, NULL);
    pthread_mutex_lock(&t.lock);
    int made = 0, rc = 0;
    while (made < n && (rc = pthread_create(&id[made], NULL, wait_for_lock, &t)) == 0)
        made++;
    pthread_mutex_unlock(&t.lock);
    for (int i = 0; i < made; i++)
        pthread_join(id[i], NULL);
    pthread_mutex_destroy(&t.lock);
    free(id);
    if (rc != 0)
        return err_set(err, DSV4_FAILED, "only %d of %d threads can be created (%s); ask for fewer",
                       made + 1, n + 1, strerror(rc));
    return 0;
}

/* The masks of all lanes; without BIND_*, or where there are no masks, none. */
static int make_masks(struct pool *p, const struct placement *place, dsv4_err *err)
{
    size_t bytes = place->bind == BIND_NONE ? 0 : affinity_bytes();
    if (bytes == 0)
        return 0;
    TRY(mem_alloc(&p->mask, (size_t)p->n, bytes, "the thread pool", err));
    TRY(mem_alloc(&p->before, (size_t)p->n, bytes, "the thread pool", err));
    p->mask_bytes = bytes;
#ifdef __linux__
    for (int i = 0; i < p->n; i++) {
        cpu_set_t *mask = (cpu_set_t *)(void *)(p->mask + (size_t)i * bytes);
        if (place->bind == BIND_CPU)
            CPU_SET_S((size_t)place->lane[i].cpu, bytes, mask);
        for (int c = 0; place->bind == BIND_NODE && c < place->n_cpus; c++)
            if (place->cpu[c].node == place->lane[i].node)
                CPU_SET_S((size_t)place->cpu[c].os, bytes, mask);
    }
#endif
    return 0;
}

static int open_parts(struct pool *p, const struct placement *place, dsv4_err *err)
{
    static const char what[] = "the thread pool";
    size_t n = (size_t)place->n_lanes, nodes = (size_t)place->n_nodes;
    p->n = place->n_lanes;
    p->n_nodes = place->n_nodes;
    p->n_groups = (p->n + GROUP_LANES - 1) >> GROUP_SHIFT;
    p->spins = place->crowded ? 0 : SPINS;
    TRY(mem_alloc(&p->cut, n + 1, sizeof *p->cut, what, err));
    memcpy(p->cut, place->cut, (n + 1) * sizeof *p->cut);
    TRY(mem_alloc(&p->node, nodes, sizeof *p->node, what, err));
    memcpy(p->node, place->node, nodes * sizeof *p->node);
    TRY(mem_alloc(&p->group, (size_t)p->n_groups, sizeof *p->group, what, err));
    return make_masks(p, place, err);
}

int pool_open(struct pool **out, const struct placement *place, dsv4_err *err)
{
    struct pool *p;
    TRY(try_threads(place->n_lanes - 1, err));
    TRY(mem_alloc(&p, 1, sizeof *p, "the thread pool", err));
    int rc = open_parts(p, place, err);
    if (rc != 0) {
        pool_close(p);
        return rc;
    }
    *out = p;
    return 0;
}

int pool_open_threads(struct pool **out, int threads, dsv4_err *err)
{
    int cores = pool_cores(), n = threads == 0 ? cores : threads;
    struct placed_node all = {.os = -1, .n = n};
    struct placement place = {.n_lanes = n, .n_nodes = 1, .node = &all, .crowded = n > cores};
    if (n < 1 || n > MAX_LANES)
        return err_set(err, DSV4_USAGE, "%d threads asked for; 1 to %d are possible", threads,
                       MAX_LANES);
    TRY(mem_alloc(&place.cut, (size_t)n + 1, sizeof *place.cut, "the thread pool", err));
    for (int i = 0; i <= n; i++)
        place.cut[i] = ((uint64_t)i * LANE_ONE + (uint64_t)n - 1) / (uint64_t)n;
    int rc = pool_open(out, &place, err);
    free(place.cut);
    return rc;
}

void pool_close(struct pool *p)
{
    if (!p)
        return;
    free(p->cut);
    free(p->node);
    free(p->group);
    free(p->mask);
    free(p->before);
    free(p);
}

int pool_threads(const struct pool *p)
{
    return p->n;
}

int pool_nodes(const struct pool *p)
{
    return p->n_nodes;
}

int pool_node_os(const struct pool *p, int node)
{
    return p->node[node].os;
}

void node_split(const struct pool *p, size_t n, size_t align, int node, size_t *begin, size_t *end)
{
    const struct placed_node *k = &p->node[node];
    cut_split(p->cut[k->first], p->cut[k->first + k->n], n, align, begin, end);
}

/* ------------------------------------------------------------------ a step */

/* Binds the calling thread to its lane's CPUs; true when unbind() has to undo it. Not being allowed
 * to (sandboxes, a cpuset that has shrunk) costs speed only. */
static bool bind_lane(struct pool *p, int id)
{
#ifdef __linux__
    size_t bytes = p->mask_bytes;
    if (bytes == 0)
        return false;
    cpu_set_t *mask = (cpu_set_t *)(void *)(p->mask + (size_t)id * bytes);
    cpu_set_t *before = (cpu_set_t *)(void *)(p->before + (size_t)id * bytes);
    return sched_getaffinity(0, bytes, before) == 0 && !CPU_EQUAL_S(bytes, mask, before) &&
           sched_setaffinity(0, bytes, mask) == 0;
#else
    (void)p;
    (void)id;
    return false;
#endif
}

static void unbind_lane(struct pool *p, int id)
{
#ifdef __linux__
    sched_setaffinity(0, p->mask_bytes,
                      (cpu_set_t *)(void *)(p->before + (size_t)id * p->mask_bytes));
#else
    (void)p;
    (void)id;
#endif
}

static int node_of_lane(const struct pool *p, int lane)
{
    int k = 0;
    while (k + 1 < p->n_nodes && lane >= p->node[k + 1].first)
        k++;
    return k;
}

/* Lane `id` of the n that OpenMP gave us: n is p->n, or less by limits of the runtime's own; then
 * each takes the work of several planned lanes. */
static void run_lane(struct pool *p, int id, int n, void (*fn)(const struct lane *l, void *arg),
                     void *arg)
{
    int first = (int)((int64_t)id * p->n / n), end = (int)((int64_t)(id + 1) * p->n / n);
    struct lane l = {.id = id,
                     .n = n,
                     .node = node_of_lane(p, first),
                     .from = p->cut[first],
                     .to = p->cut[end],
                     .pool = p};
    bool bound = bind_lane(p, first);
    fn(&l, arg);
    if (bound)
        unbind_lane(p, first);
}

void pool_run(struct pool *p, void (*fn)(const struct lane *l, void *arg), void *arg)
{
    if (p->n == 1) {
        run_lane(p, 0, 1, fn, arg);
        return;
    }
#pragma omp parallel num_threads(p->n)
    run_lane(p, omp_get_thread_num(), omp_get_num_threads(), fn, arg);
}

/* ------------------------------------------------------------------ barrier */

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

/* Spinning is right while every lane has a core. On a crowded machine the core is given away; a
 * yield would hand it to a stranger for a whole time slice, a futex is woken when it matters. */
static void sleep_until_changed(struct meeting *m, unsigned mine)
{
#ifdef __linux__
    atomic_fetch_add_explicit(&m->sleepers, 1, memory_order_seq_cst);
    syscall(SYS_futex, &m->generation, FUTEX_WAIT_PRIVATE, mine, NULL, NULL, 0);
    atomic_fetch_sub_explicit(&m->sleepers, 1, memory_order_relaxed);
#else
    (void)m;
    (void)mine;
    sched_yield();
#endif
}

static void open_generation(struct meeting *m)
{
    atomic_fetch_add_explicit(&m->generation, 1, memory_order_seq_cst);
#ifdef __linux__
    if (atomic_load_explicit(&m->sleepers, memory_order_seq_cst) > 0)
        syscall(SYS_futex, &m->generation, FUTEX_WAKE_PRIVATE, GROUP_LANES, NULL, NULL, 0);
#endif
}

/* True for the last of `all` that come; the counter then is ready for the next time. */
static bool last_to_arrive(struct meeting *m, int all)
{
    if (atomic_fetch_add_explicit(&m->arrived, 1, memory_order_acq_rel) != all - 1)
        return false;
    atomic_store_explicit(&m->arrived, 0, memory_order_relaxed);
    return true;
}

void lane_fail(struct lane_failure *f, int rc, const dsv4_err *err)
{
    if (atomic_exchange(&f->any, true))
        return;
    f->rc = rc;
    f->err = *err;
}

int lane_failed(const struct lane_failure *f, dsv4_err *err)
{
    if (f->rc != 0 && err)
        *err = f->err;
    return f->rc;
}

unsigned pool_barriers(const struct pool *p)
{
    return atomic_load_explicit(&p->group[0].generation, memory_order_relaxed);
}

void lane_barrier(const struct lane *l)
{
    if (l->n == 1)
        return;
    struct pool *p = l->pool;
    int mine = l->id >> GROUP_SHIFT, groups = (l->n + GROUP_LANES - 1) >> GROUP_SHIFT;
    int left = l->n - (mine << GROUP_SHIFT);
    struct meeting *g = &p->group[mine];
    unsigned now = atomic_load_explicit(&g->generation, memory_order_relaxed);
    if (last_to_arrive(g, left < GROUP_LANES ? left : GROUP_LANES) &&
        (groups == 1 || last_to_arrive(&p->all, groups))) {
        for (int i = 0; i < groups; i++)
            open_generation(&p->group[i]);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&g->generation, memory_order_acquire) == now;) {
        if (++spins < p->spins)
            relax();
        else
            sleep_until_changed(g, now);
    }
}
