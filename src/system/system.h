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
    char *path; /* for messages */
};

/* Maps `name` inside the open directory dirfd (AT_FDCWD: a path as usual). With `beneath` the name
 * may not leave the directory: no '/', no "..", and a symbolic link only where Hugging Face's
 * cache puts one (../../blobs/HEX). FIFOs, devices and directories are refused; never blocks.
 * `shown` is the path for messages. */
int file_map_open(struct file_map *m, int dirfd, const char *name, bool beneath, const char *shown,
                  dsv4_err *err);
void file_map_close(struct file_map *m);

/* Reads a whole regular file (or stdin for "-") of at most `limit` bytes into malloc'ed memory with
 * a NUL behind it. */
int file_read(const char *path, size_t limit, char **data, size_t *len, dsv4_err *err);

/* Writes path aside, syncs, renames: afterwards the old or the new content is there, never a
 * mixture. */
int file_write_atomic(const char *path, const void *data, size_t len, dsv4_err *err);

/* write(2) until all is written or an error is met (EINTR and short writes handled). */
int file_write_all(int fd, const char *shown, const void *data, size_t len, dsv4_err *err);

/* Seconds of a clock that never jumps. */
double clock_seconds(void);

/* ------------------------------------------------------------------ threads (pool.c)
 * One team of threads an engine (OpenMP). A step is one parallel region: every lane runs the same
 * function and the lanes meet at barriers. Work is split statically, so that results do not
 * depend on timing. */

struct pool;

/* One thread's view of a running step. */
struct lane {
    int id, n; /* 0 <= id < n */
    struct pool *pool;
};

/* Cores this process may run on (affinity mask, cgroup quota rounded up); at least 1. */
int pool_cores(void);

/* threads 0: pool_cores(). Proves by a trial that so many threads can be created: the OpenMP
 * runtime would end the process when they cannot. */
int pool_open(struct pool **out, int threads, dsv4_err *err);
void pool_close(struct pool *p);
int pool_threads(const struct pool *p);

/* Runs fn(lane, arg) on every lane and returns when all have returned. */
void pool_run(struct pool *p, void (*fn)(const struct lane *l, void *arg), void *arg);

/* All lanes of the step meet here; memory written before is seen by all after. */
void lane_barrier(const struct lane *l);

/* This lane's share [*begin, *end) of n items, cut at multiples of `align` (>= 1). */
static inline void lane_split(const struct lane *l, size_t n, size_t align, size_t *begin,
                              size_t *end)
{
    size_t units = (n + align - 1) / align;
    size_t each = units / (size_t)l->n, rest = units % (size_t)l->n, id = (size_t)l->id;
    size_t from = each * id + (id < rest ? id : rest);
    size_t to = from + each + (id < rest ? 1 : 0);
    *begin = from * align < n ? from * align : n;
    *end = to * align < n ? to * align : n;
}

#endif
