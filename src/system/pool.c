/* The team of threads. OpenMP owns the threads (they stay between steps); we own the split of the
 * work and the barrier, so that a step costs one fork and a few cheap meetings. */
#include "system.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { MAX_THREADS = 1024, SPINS = 4000 };

/* Sense by generation: the last lane to arrive opens the next generation. On its own cache lines,
 * as every lane polls it. */
struct pool {
    int n;
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_uint generation;
    atomic_int sleepers;
};

/* ceil(quota / period) of the innermost cgroup that has one; 0 without. */
static int cgroup_cores(void)
{
    long long quota, period;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (f) {
        int got = fscanf(f, "%lld %lld", &quota, &period);
        fclose(f);
        if (got == 2 && quota > 0 && period > 0)
            return (int)((quota + period - 1) / period);
        return 0;
    }
    FILE *q = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "re");
    FILE *p = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "re");
    int n = 0;
    if (q && p && fscanf(q, "%lld", &quota) == 1 && fscanf(p, "%lld", &period) == 1 && quota > 0 &&
        period > 0)
        n = (int)((quota + period - 1) / period);
    if (q)
        fclose(q);
    if (p)
        fclose(p);
    return n;
}

int pool_cores(void)
{
    cpu_set_t set;
    int n = 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        n = CPU_COUNT(&set);
    else
        n = omp_get_num_procs();
    int quota = cgroup_cores();
    if (quota > 0 && quota < n)
        n = quota;
    return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n;
}

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

int pool_open(struct pool **out, int threads, dsv4_err *err)
{
    int n = threads == 0 ? pool_cores() : threads;
    if (n < 1 || n > MAX_THREADS)
        return err_set(err, DSV4_USAGE, "%d threads asked for; 1 to %d are possible", threads,
                       MAX_THREADS);
    TRY(try_threads(n - 1, err));
    struct pool *p;
    TRY(mem_alloc(&p, 1, sizeof *p, "the thread pool", err));
    p->n = n;
    atomic_init(&p->arrived, 0);
    atomic_init(&p->generation, 0);
    atomic_init(&p->sleepers, 0);
    *out = p;
    return 0;
}

void pool_close(struct pool *p)
{
    free(p);
}

int pool_threads(const struct pool *p)
{
    return p->n;
}

void pool_run(struct pool *p, void (*fn)(const struct lane *l, void *arg), void *arg)
{
    if (p->n == 1) {
        struct lane only = {.id = 0, .n = 1, .pool = p};
        fn(&only, arg);
        return;
    }
#pragma omp parallel num_threads(p->n)
    {
        /* A runtime may hand out fewer threads than asked for (limits of its own). */
        struct lane l = {.id = omp_get_thread_num(), .n = omp_get_num_threads(), .pool = p};
        fn(&l, arg);
    }
}

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
static void sleep_until_changed(struct pool *p, unsigned mine)
{
#ifdef __linux__
    atomic_fetch_add_explicit(&p->sleepers, 1, memory_order_seq_cst);
    syscall(SYS_futex, &p->generation, FUTEX_WAIT_PRIVATE, mine, NULL, NULL, 0);
    atomic_fetch_sub_explicit(&p->sleepers, 1, memory_order_relaxed);
#else
    (void)p;
    (void)mine;
    sched_yield();
#endif
}

static void wake_sleepers(struct pool *p)
{
#ifdef __linux__
    if (atomic_load_explicit(&p->sleepers, memory_order_seq_cst) > 0)
        syscall(SYS_futex, &p->generation, FUTEX_WAKE_PRIVATE, MAX_THREADS, NULL, NULL, 0);
#else
    (void)p;
#endif
}

void lane_barrier(const struct lane *l)
{
    if (l->n == 1)
        return;
    struct pool *p = l->pool;
    unsigned mine = atomic_load_explicit(&p->generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&p->arrived, 1, memory_order_acq_rel) == l->n - 1) {
        atomic_store_explicit(&p->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&p->generation, mine + 1, memory_order_seq_cst);
        wake_sleepers(p);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&p->generation, memory_order_acquire) == mine;) {
        if (++spins < SPINS)
            relax();
        else
            sleep_until_changed(p, mine);
    }
}
