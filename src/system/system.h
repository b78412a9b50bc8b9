/* system.h - what every other folder stands on: errors, checked memory, files, threads.
 * Knows nothing about models. */
#ifndef DSV4_SYSTEM_H
#define DSV4_SYSTEM_H

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../dsv4.h"

/* ------------------------------------------------------------------ errors (err.c)
 * Functions that can fail take a dsv4_err and return 0 or a negative dsv4_status. */

#if defined(__GNUC__)
#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))
#else
#define PRINTF_LIKE(f, a)
#endif

/* Forwards a failure. */
#define TRY(call)             \
    do {                      \
        int try_rc_ = (call); \
        if (try_rc_ != 0)     \
            return try_rc_;   \
    } while (0)

/* Fills err (NULL is allowed) and returns `status`: `return err_set(err, DSV4_REFUSED, "...", ...)`.
 * Bytes of foreign strings that would upset a terminal are shown as \xNN. */
int err_set(dsv4_err *err, int status, const char *format, ...) PRINTF_LIKE(3, 4);

/* The message of errno after `what` failed on `path`: "PATH: cannot WHAT: REASON". */
int err_errno(dsv4_err *err, int status, const char *path, const char *what);

/* "out of memory: N bytes for WHAT". */
int err_memory(dsv4_err *err, uint64_t bytes, const char *what);

/* ------------------------------------------------------------------ memory (mem.c)
 * Sizes are products checked for overflow; all blocks are released with free(). */

/* n * size zeroed bytes, 64-byte aligned, never NULL on success (0 bytes give a valid block). */
int mem_alloc(void *out_pointer, size_t n, size_t size, const char *what, dsv4_err *err);

/* Grows *(T **)pointer from `*cap` elements to at least `want` (by doubling), keeping the content. The
 * block must come from mem_grow or be NULL. On failure nothing has changed. */
int mem_grow(void *pointer, size_t *cap, size_t want, size_t size, const char *what, dsv4_err *err);

/* False when the product or sum does not fit. */
static inline bool size_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool size_add(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

/* For messages. */
static inline double gib(uint64_t bytes)
{
    return (double)bytes / (double)(1ull << 30);
}

/* Bytes this process may still use without swapping: the least of MemAvailable and what the
 * cgroup (v1, v2) and RLIMIT_AS leave. UINT64_MAX when nothing can be found out. */
uint64_t mem_available(void);

/* Peak resident memory of the process in bytes; 0 when unknown. */
uint64_t mem_peak(void);

/* A growing byte string. Zero-initialise; free(b.data). data is NUL-terminated after any append. */
struct bytes {
    char *data;
    size_t len, cap;
};

int bytes_add(struct bytes *b, const void *data, size_t len, dsv4_err *err);
int bytes_text(struct bytes *b, const char *text, dsv4_err *err);
int bytes_printf(struct bytes *b, dsv4_err *err, const char *format, ...) PRINTF_LIKE(3, 4);

/* ------------------------------------------------------------------ files (file.c) */

/* A read-only mapping of a whole regular file. */
struct file_map {
    const uint8_t *data;
    size_t len;
    int fd;     /* the same file, for file_map_read() */
    char *path; /* for messages */
};

/* Maps `name` inside the open directory dirfd (AT_FDCWD: a path as usual). With `beneath` the name
 * may not leave the directory: no '/', no "..", and a symbolic link only where Hugging Face's
 * cache puts one (../../blobs/HEX). FIFOs, devices and directories are refused; never blocks.
 * `shown` is the path for messages. */
int file_map_open(struct file_map *m, int dirfd, const char *name, bool beneath, const char *shown,
                  dsv4_err *err);
void file_map_close(struct file_map *m);
/* Bytes at .. at + n of it, inside the mapping, as pread() finds them. Where the file has been cut since, touching the
 * mapping ends the process; this is DSV4_FAILED with a message that names the file. */
int file_map_read(const struct file_map *m, size_t at, void *out, size_t n, dsv4_err *err);

/* As many open files as the system allows this process, instead of the usual 1,024; how many that are. For programs. */
size_t descriptors_raise(void);

/* Reads a whole regular file (or stdin for "-") of at most `limit` bytes into malloc'ed memory with
 * a NUL behind it. */
int file_read(const char *path, size_t limit, char **data, size_t *len, dsv4_err *err);
/* The same from an open descriptor, which stays open; `shown` stands in messages. */
int file_read_fd(int fd, const char *shown, size_t limit, char **data, size_t *len, dsv4_err *err);

/* Writes path aside, syncs, renames: afterwards the old or the new content is there, never a
 * mixture. */
int file_write_atomic(const char *path, const void *data, size_t len, dsv4_err *err);

/* Makes a rename to `path` survive a power loss; best effort, some file systems refuse it. */
void file_sync_directory_of(const char *path);

/* Whether a file may be renamed to `path`: nothing is there, or a regular file. For root a rename replaces devices, too. */
int file_replaceable(const char *path, dsv4_err *err);

/* A file that is written aside and appears under its name when it is complete. */
struct file_aside {
    int fd;
    char *path, *aside;
};
/* Refuses what is not file_replaceable(). To be opened before long work that it is for. */
int file_aside_open(struct file_aside *f, const char *path, dsv4_err *err);
/* rc: of the writing. 0: syncs and renames; otherwise, and when that fails, nothing is left. Returns the first failure. */
int file_aside_close(struct file_aside *f, int rc, dsv4_err *err);

/* write(2) until all is written or an error is met (EINTR and short writes handled). */
int file_write_all(int fd, const char *shown, const void *data, size_t len, dsv4_err *err);

/* Seconds of a clock that never jumps. */
double clock_seconds(void);

/* ------------------------------------------------------------------ CPUs (topology*.c, cpu_list.c)
 * What the machine is made of, and which of it this process may use. */

/* Speed of the fastest class of cores; slower ones have less. */
enum { SPEED_ONE = 1024 };

/* One logical CPU. */
struct cpu {
    int os;   /* the system's number */
    int core; /* CPUs with the same number here share a core */
    int node; /* index into topology.node */
    int package;
    int speed;    /* of its class (performance, efficiency), 1 .. SPEED_ONE */
    bool allowed; /* by the affinity mask */
};

struct numa_node {
    int os;         /* the system's number */
    uint64_t bytes; /* of memory; 0 when unknown */
};

struct topology {
    struct cpu *cpu; /* [n_cpus] that are online, by node, core, os */
    size_t n_cpus;
    struct numa_node *node; /* [n_nodes] that have CPUs, by os */
    size_t n_nodes;
    double quota;       /* CPUs' worth of time that cgroups grant; 0: no limit */
    const char *source; /* "/sys", "hwloc", "affinity", "synthetic" */
};

/* This machine. Linux: from /sys, in a millisecond; hwloc, whose plugins alone may take half a
 * second, elsewhere and where /sys is not readable; as a last resort CPUs without any structure. */
int topology_read(struct topology *t, dsv4_err *err);

/* A made-up machine, all of it allowed: hwloc's synthetic syntax ("package:2 core:32 pu:2",
 * "node:4 core:8 pu:1") and behind it, optionally, "slow:LIST" (cores of half speed) and "quota:N".
 * DSV4_USAGE for another text, DSV4_FAILED in builds without hwloc. */
int topology_synthetic(struct topology *t, const char *text, dsv4_err *err);
void topology_release(struct topology *t);

/* The parts of topology_read, for tests. `root` stands before /sys and /proc ("" is this machine).
 * topology_sys allows every CPU; DSV4_FAILED where there is no such folder. */
int topology_sys(struct topology *t, const char *root, dsv4_err *err);
int topology_hwloc(struct topology *t, dsv4_err *err);
/* The least CPU quota on the way from this process's cgroup (v1, v2) to the root; 0 without any. */
double cgroup_quota(const char *root);

/* For those who read one: room for CPUs and nodes; then classes, order, nodes without CPUs. */
int topology_room(struct topology *t, size_t cpus, size_t nodes, dsv4_err *err);
void topology_settle(struct topology *t);

/* Takes "3" or "4-7" off the front of a list "0-1,3": 1; 0 at its end; -1 when it is no list. */
int cpu_list_next(const char **at, int *first, int *last);
bool cpu_list_has(const char *list, int cpu);
/* n numbers, sorted in place, as a list; one too long for `room` (>= 40) ends with "...". */
void cpu_list_text(char *out, size_t room, int *number, size_t n);

/* Bytes of an affinity mask of this kernel; 0 where threads cannot be bound. */
size_t affinity_bytes(void);

/* ------------------------------------------------------------------ placement (placement.c)
 * Which lane computes where, and how large its share of the work is: a pure function of topology
 * and options, so that it can be tested for machines nobody has. */

enum { MAX_LANES = 1024, MAX_NODES = 64 }; /* nodes beyond these are not used */

struct placement_options {
    int threads;      /* 0: chosen */
    const char *cpus; /* "0-7,16": these CPUs and no others; NULL: all that are allowed */
    const char
        *numa; /* "auto" or NULL; "off": memory and work know no nodes; "0" or "0-1": these */
};

/* One thread of the team. */
struct placed_lane {
    int cpu;  /* the system's number; a suggestion unless bind is BIND_CPU */
    int core; /* as in struct cpu */
    int node; /* index into placement.node */
};

/* The lanes first .. first + n share the memory of a node. */
struct placed_node {
    int os; /* the system's number; -1: there is only one, or it does not matter */
    int first, n;
};

/* A CPU that lanes may run on. */
struct placed_cpu {
    int os, node; /* index into placement.node */
};

enum bind {
    BIND_NONE, /* threads stay where the system puts them */
    BIND_NODE, /* each to the usable CPUs of its node */
    BIND_CPU,  /* each to its CPU */
};

struct placement {
    int n_lanes, n_nodes, n_cpus;
    struct placed_lane *lane; /* [n_lanes], those of a node one after the other */
    struct placed_node *node; /* [n_nodes] */
    struct placed_cpu *cpu;   /* [n_cpus] */
    uint64_t *cut;            /* [n_lanes + 1] lane i works on cut[i] .. cut[i + 1] of LANE_ONE */
    enum bind bind;
    bool crowded; /* more lanes than CPUs */
};

/* Chooses
 *   lanes    one for each usable core, no more than the quota holds in whole CPUs: lanes that wait
 *            for each other gain nothing from a part of one, and overdrawing stops all of them for
 *            the rest of a period
 *   cores    the fast ones; a slower class joins when all its cores together have at least half
 *            the speed of those already chosen, or when it was asked for (threads, cpus). Second
 *            CPUs of a core come when cores are used up
 *   nodes    all when cores are; with fewer lanes as many as get PER_NODE lanes each
 *   binding  to a CPU when every usable core has a lane, `cpus` names them or shares differ; else
 *            to a node: two processes that take the first cores of a machine would share these and
 *            leave the rest idle
 *   shares   by speed. Lanes on one core share its speed; if lanes outnumber CPUs all get the same
 * DSV4_USAGE: CPUs or nodes that are not there or not allowed, too many threads. */
int placement_make(struct placement *out, const struct topology *t,
                   const struct placement_options *o, dsv4_err *err);
/* The part of it that looks at the options alone (cpu_list.c). */
int placement_check(const struct topology *t, const struct placement_options *o, dsv4_err *err);
bool numa_is_word(const char *numa); /* NULL, "auto" or "off": no list of nodes */
/* For this machine: topology_read and placement_make. */
int placement_here(struct placement *out, const struct placement_options *o, dsv4_err *err);
void placement_release(struct placement *p);

/* ------------------------------------------------------------------ memory of nodes (map.c) */

/* `bytes` zeroed bytes of their own mapping: from 2 MiB on at a multiple of that, with large pages
 * where there are any, and in the memory of node `node_os` (-1: anywhere). Where that cannot be had
 * the system takes other memory, silently. */
int mem_map(void *out_pointer, size_t bytes, int node_os, const char *what, dsv4_err *err);
/* With the same `bytes`; NULL is allowed. */
void mem_unmap(void *p, size_t bytes);

/* ------------------------------------------------------------------ threads (pool.c)
 * One team of threads an engine (OpenMP). A step is one parallel region: every lane runs the same
 * function and the lanes meet at barriers. Work is split statically, so that results do not
 * depend on timing. Threads, the caller's too, are bound only while a step runs. */

struct pool;

#define LANE_ONE ((uint64_t)1 << 32)

/* One thread's view of a running step. */
struct lane {
    int id, n; /* 0 <= id < n */
    int node;  /* index, below pool_nodes(); of its first item if OpenMP gave fewer threads */
    uint64_t from, to; /* its share of all work, of LANE_ONE */
    struct pool *pool;
};

/* Allowed CPUs, no more than the quota holds in whole CPUs; at least 1. */
int pool_cores(void);

/* Proves by a trial that so many threads can be created: the OpenMP runtime would end the process
 * when they cannot. Keeps nothing of `place`. */
int pool_open(struct pool **out, const struct placement *place, dsv4_err *err);
/* Equal lanes, bound to nothing, one node. threads 0: pool_cores(). */
int pool_open_threads(struct pool **out, int threads, dsv4_err *err);
void pool_close(struct pool *p);
int pool_threads(const struct pool *p);
int pool_nodes(const struct pool *p);
int pool_node_os(const struct pool *p, int node); /* for mem_map */

/* Runs fn(lane, arg) on every lane and returns when all have returned. */
void pool_run(struct pool *p, void (*fn)(const struct lane *l, void *arg), void *arg);

/* All lanes of the step meet here; memory written before is seen by all after. */
void lane_barrier(const struct lane *l);
/* How often all lanes met so far, modulo 2^32; one lane alone meets nobody. Between steps. */
unsigned pool_barriers(const struct pool *p);

/* What went wrong on lanes, which return nothing: the first of it stays. {0}: nothing. */
struct lane_failure {
    atomic_bool any;
    int rc;
    dsv4_err err;
};

void lane_fail(struct lane_failure *f, int rc, const dsv4_err *err);
/* Its status and message, after pool_run(); 0: nothing went wrong. */
int lane_failed(const struct lane_failure *f, dsv4_err *err);

/* The only lane of a step that has just one. */
static inline struct lane lane_alone(struct pool *p)
{
    return (struct lane){.n = 1, .to = LANE_ONE, .pool = p};
}

/* floor(units * cut / LANE_ONE) */
static inline size_t lane_cut(uint64_t units, uint64_t cut)
{
    return (size_t)((units >> 32) * cut + ((units & (LANE_ONE - 1)) * cut >> 32));
}

/* Items [*begin, *end) of n between two cuts, both at multiples of `align` (>= 1) or n. */
static inline void cut_split(uint64_t from, uint64_t to, size_t n, size_t align, size_t *begin,
                             size_t *end)
{
    size_t units = n / align + (n % align != 0);
    size_t a = lane_cut(units, from), b = lane_cut(units, to);
    *begin = a == units ? n : a * align;
    *end = b == units ? n : b * align;
}

/* This lane's share [*begin, *end) of n items: all lanes together have every item once. */
static inline void lane_split(const struct lane *l, size_t n, size_t align, size_t *begin,
                              size_t *end)
{
    cut_split(l->from, l->to, n, align, begin, end);
}

/* What the lanes of a node (an index) have together. */
void node_split(const struct pool *p, size_t n, size_t align, int node, size_t *begin, size_t *end);

#endif
