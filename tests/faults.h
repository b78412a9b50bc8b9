/* faults.h - makes the n-th allocation, mapping, file operation or thread creation fail, and counts what a
 * run leaves behind. Definitions here take the place of the C library's for the whole program, so that
 * jansson, PCRE2 and utf8proc are hit too. Therefore a header, for exactly one .c file: as a member of
 * libtests.a it would slip into every test program.
 *
 * The thread that called faults_begin() is hit, or, between faults_all_begin() and faults_end(), all others;
 * never what the OpenMP runtime does for itself: that runtime ends the process when it gets no memory or no
 * thread, by its design. The library guards against it by a trial (pool.c), which is hit like everything else.
 *
 * AddressSanitizer keeps its view of the heap: there the calls are passed to its own functions. */
#ifndef TESTS_FAULTS_H
#define TESTS_FAULTS_H

#include <stdio.h>

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define NO_FAULTS "ThreadSanitizer has a heap of its own"
#endif
#endif
#ifdef __SANITIZE_THREAD__
#define NO_FAULTS "ThreadSanitizer has a heap of its own"
#endif
#ifndef __GLIBC__
#define NO_FAULTS "made for glibc"
#endif

#ifdef NO_FAULTS

/* The whole test then, behind this header. */
#define SKIP_FAULTS(name)                                                         \
    int main(void)                                                                \
    {                                                                             \
        printf("SKIP " name " (%s)\n0 passed, 0 failed, 1 skipped\n", NO_FAULTS); \
        return 0;                                                                 \
    }

#else

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "src/dsv4.h"

#if defined(__SANITIZE_ADDRESS__)
#define FAULTS_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FAULTS_ASAN 1
#endif
#endif

enum fault { FAULT_MEMORY, FAULT_MAP, FAULT_FILE, FAULT_THREAD, N_FAULTS };

enum {
    FAULTS_TABLE = 1 << 16, /* places for living blocks; a tiny engine has some thousands */
    FAULTS_SITES = 1 << 12, /* places for ways that lead to a call */
};

static struct {
    enum fault kind;
    uint64_t n, calls, fired;
    bool forever;
    atomic_bool relented;
    bool trickle; /* reads and writes are interrupted every other time, else have few bytes */
    uint64_t transfers;
    struct {
        uintptr_t at;
        const void *caller;
    } live[FAULTS_TABLE];
    size_t n_live;
    atomic_size_t n_maps;
    bool survey; /* note the first call of every way through the program that leads to one */
    uint64_t way[FAULTS_SITES], first[FAULTS_SITES];
    size_t n_first;  /* ascending */
    void *frame[24]; /* the way to the call that failed first */
    int n_frames;
    struct {
        uintptr_t begin, end;
    } runtime[8], loader[8]; /* segments of OpenMP's runtime and of the dynamic linker */
    size_t n_runtime, n_loader;
} faults;

static _Thread_local bool faults_armed;
static _Thread_local bool faults_spared; /* the thread that asked for all others to be hit */
static _Thread_local bool faults_begun;  /* in a function of the program, not on its way there */
static _Thread_local int faults_exempt;
static atomic_bool faults_all;
static atomic_flag faults_lock = ATOMIC_FLAG_INIT; /* around the blocks and the counts of calls */

/* For what is called before a sanitizer is ready. */
#define FAULTS_EARLY __attribute__((no_sanitize("address", "undefined")))

FAULTS_EARLY static void faults_enter(void)
{
    while (atomic_flag_test_and_set_explicit(&faults_lock, memory_order_acquire))
        sched_yield();
}

FAULTS_EARLY static void faults_leave(void)
{
    atomic_flag_clear_explicit(&faults_lock, memory_order_release);
}

/* Somebody is looked at. */
FAULTS_EARLY static bool faults_on(void)
{
    return faults_armed || atomic_load(&faults_all);
}

/* This thread is. What the C library and a sanitizer do before its first function is not ours to survive. */
FAULTS_EARLY static bool faults_counts(void)
{
    return faults_armed || (atomic_load(&faults_all) && !faults_spared && faults_begun);
}

/* ------------------------------------------------------------------ living blocks */

FAULTS_EARLY static size_t faults_slot(uintptr_t at)
{
    return (size_t)(at * 0x9e3779b97f4a7c15u >> 40) % FAULTS_TABLE;
}

FAULTS_EARLY static void faults_add(const void *p, const void *caller)
{
    if (!p || !faults_counts() || faults_exempt)
        return;
    if (faults.n_live >= FAULTS_TABLE / 2)
        abort(); /* the table is too small for this test */
    faults_enter();
    size_t i = faults_slot((uintptr_t)p);
    while (faults.live[i].at)
        i = (i + 1) % FAULTS_TABLE;
    faults.live[i].at = (uintptr_t)p;
    faults.live[i].caller = caller;
    faults.n_live++;
    faults_leave();
}

FAULTS_EARLY static void faults_drop(const void *p)
{
    size_t i = faults_slot((uintptr_t)p);
    while (faults.live[i].at && faults.live[i].at != (uintptr_t)p)
        i = (i + 1) % FAULTS_TABLE;
    if (!faults.live[i].at)
        return; /* older than faults_begin() */
    faults.n_live--;
    /* What was pushed on by this entry moves back, so that no search ends at the gap. */
    for (size_t k = (i + 1) % FAULTS_TABLE; faults.live[k].at; k = (k + 1) % FAULTS_TABLE) {
        size_t home = faults_slot(faults.live[k].at);
        if ((k - home) % FAULTS_TABLE < (k - i) % FAULTS_TABLE)
            continue;
        faults.live[i] = faults.live[k];
        i = k;
    }
    faults.live[i].at = 0;
}

/* Whoever frees it. */
FAULTS_EARLY static void faults_remove(const void *p)
{
    if (!p || !faults_on() || faults.n_live == 0)
        return;
    faults_enter();
    faults_drop(p);
    faults_leave();
}

/* ------------------------------------------------------------------ what is hit */

FAULTS_EARLY static bool faults_within(const void *p, bool runtime)
{
    uintptr_t at = (uintptr_t)p;
    for (size_t i = 0; i < (runtime ? faults.n_runtime : faults.n_loader); i++)
        if (at >= (runtime ? faults.runtime : faults.loader)[i].begin &&
            at < (runtime ? faults.runtime : faults.loader)[i].end)
            return true;
    return false;
}

static void faults_note(void)
{
    void *frame[10]; /* far enough out to tell ways apart, but not who began them */
    uint64_t way = 1;
    int n = backtrace(frame, 10);
    for (int i = 0; i < n; i++)
        way = (way ^ (uintptr_t)frame[i]) * 0x9e3779b97f4a7c15u;
    size_t i = (size_t)(way >> 40) % FAULTS_SITES;
    while (faults.way[i] && faults.way[i] != way)
        i = (i + 1) % FAULTS_SITES;
    if (faults.way[i] == way || faults.n_first == FAULTS_SITES / 2)
        return;
    faults.way[i] = way;
    faults.first[faults.n_first++] = faults.calls;
}

FAULTS_EARLY static bool faults_hit(enum fault kind, const void *caller, int why)
{
    if (!faults_counts() || faults_exempt || faults.relented || kind != faults.kind ||
        faults_within(caller, true))
        return false;
    faults_exempt++;
    faults_enter();
    faults.calls++;
    if (faults.survey)
        faults_note();
    bool hit =
        faults.n > 0 && (faults.forever ? faults.calls >= faults.n : faults.calls == faults.n);
    if (hit && faults.fired++ == 0)
        faults.n_frames = backtrace(faults.frame, sizeof faults.frame / sizeof *faults.frame);
    faults_leave();
    faults_exempt--;
    if (hit)
        errno = why;
    return hit;
}

/* The dynamic linker's blocks belong to threads, whose stacks the C library keeps for later. */
FAULTS_EARLY static void *faults_kept(void *p, const void *caller)
{
    if (faults_counts() && !faults_within(caller, true) && !faults_within(caller, false))
        faults_add(p, caller);
    return p;
}

#define CALLER() __builtin_return_address(0)

/* ------------------------------------------------------------------ the heap */

#ifdef FAULTS_ASAN
#define HEAP(name) __interceptor_##name
#else
#define HEAP(name) __libc_##name
#endif

#ifdef FAULTS_ASAN
/* What is left behind is counted here; its own search would blame us for what the dynamic linker keeps. */
const char *__asan_default_options(void);
DSV4_API FAULTS_EARLY const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}
#endif

void *HEAP(malloc)(size_t n);
void *HEAP(calloc)(size_t n, size_t size);
void *HEAP(realloc)(void *p, size_t n);
void *HEAP(memalign)(size_t align, size_t n);
void HEAP(free)(void *p);

DSV4_API FAULTS_EARLY void *malloc(size_t n)
{
    return faults_hit(FAULT_MEMORY, CALLER(), ENOMEM) ? NULL
                                                      : faults_kept(HEAP(malloc)(n), CALLER());
}

DSV4_API FAULTS_EARLY void *calloc(size_t n, size_t size)
{
    return faults_hit(FAULT_MEMORY, CALLER(), ENOMEM)
               ? NULL
               : faults_kept(HEAP(calloc)(n, size), CALLER());
}

DSV4_API FAULTS_EARLY void *realloc(void *p, size_t n)
{
    if (faults_hit(FAULT_MEMORY, CALLER(), ENOMEM))
        return NULL;
    faults_remove(p); /* first: the address may be another thread's at once */
    void *q = HEAP(realloc)(p, n);
    if (!q && n > 0) {
        faults_kept(p, CALLER());
        return NULL;
    }
    return faults_kept(q, CALLER());
}

DSV4_API FAULTS_EARLY void *memalign(size_t align, size_t n)
{
    return faults_hit(FAULT_MEMORY, CALLER(), ENOMEM)
               ? NULL
               : faults_kept(HEAP(memalign)(align, n), CALLER());
}

DSV4_API FAULTS_EARLY void *aligned_alloc(size_t align, size_t n)
{
    return faults_hit(FAULT_MEMORY, CALLER(), ENOMEM)
               ? NULL
               : faults_kept(HEAP(memalign)(align, n), CALLER());
}

DSV4_API FAULTS_EARLY int posix_memalign(void **out, size_t align, size_t n)
{
    if (faults_hit(FAULT_MEMORY, CALLER(), ENOMEM))
        return ENOMEM;
    void *p = faults_kept(HEAP(memalign)(align, n), CALLER());
    if (!p)
        return ENOMEM;
    *out = p;
    return 0;
}

DSV4_API FAULTS_EARLY void free(void *p)
{
    faults_remove(p);
    HEAP(free)(p);
}

DSV4_API FAULTS_EARLY char *strdup(const char *text)
{
    size_t n = strlen(text) + 1;
    if (faults_hit(FAULT_MEMORY, CALLER(), ENOMEM))
        return NULL;
    char *p = faults_kept(HEAP(malloc)(n), CALLER());
    return p ? memcpy(p, text, n) : NULL;
}

/* ------------------------------------------------------------------ mappings, files, threads */

/* The C library's own function; a union because ISO C keeps data and code apart. */
#define NEXT(result, name, ...)      \
    union {                          \
        void *data;                  \
        result (*call)(__VA_ARGS__); \
    } next_ = {.data = dlsym(RTLD_NEXT, #name)}

DSV4_API FAULTS_EARLY void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset)
{
    NEXT(void *, mmap, void *, size_t, int, int, int, off_t);
    if (faults_hit(FAULT_MAP, CALLER(), ENOMEM))
        return MAP_FAILED;
    void *p = next_.call(at, n, prot, flags, fd, offset);
    if (p != MAP_FAILED && faults_on() && !faults_exempt)
        faults.n_maps++;
    return p;
}

DSV4_API FAULTS_EARLY int munmap(void *at, size_t n)
{
    NEXT(int, munmap, void *, size_t);
    if (faults_on() && !faults_exempt)
        faults.n_maps--;
    return next_.call(at, n);
}

DSV4_API int openat(int dir, const char *path, int flags, ...)
{
    va_list ap;
    va_start(ap, flags);
    mode_t mode = flags & O_CREAT ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    NEXT(int, openat, int, const char *, int, mode_t);
    return faults_hit(FAULT_FILE, CALLER(), EMFILE) ? -1 : next_.call(dir, path, flags, mode);
}

DSV4_API int open(const char *path, int flags, ...)
{
    va_list ap;
    va_start(ap, flags);
    mode_t mode = flags & O_CREAT ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    NEXT(int, openat, int, const char *, int, mode_t);
    return faults_hit(FAULT_FILE, CALLER(), EMFILE) ? -1 : next_.call(AT_FDCWD, path, flags, mode);
}

DSV4_API FILE *fopen(const char *path, const char *mode)
{
    NEXT(FILE *, fopen, const char *, const char *);
    return faults_hit(FAULT_FILE, CALLER(), EMFILE) ? NULL : next_.call(path, mode);
}

DSV4_API int fstat(int fd, struct stat *st)
{
    return faults_hit(FAULT_FILE, CALLER(), EIO) ? -1 : fstatat(fd, "", st, AT_EMPTY_PATH);
}

/* A transfer of *n bytes is interrupted (true), or has fewer. */
static bool faults_trickles(size_t *n)
{
    enum { FEW = 777 };
    if (!faults_counts() || !faults.trickle)
        return false;
    if (faults.transfers++ % 2) {
        errno = EINTR;
        return true;
    }
    *n = *n > FEW ? FEW : *n;
    return false;
}

DSV4_API ssize_t read(int fd, void *to, size_t n)
{
    NEXT(ssize_t, read, int, void *, size_t);
    if (faults_hit(FAULT_FILE, CALLER(), EIO))
        return -1;
    if (faults_trickles(&n))
        return -1;
    return next_.call(fd, to, n);
}

DSV4_API ssize_t write(int fd, const void *from, size_t n)
{
    NEXT(ssize_t, write, int, const void *, size_t);
    if (faults_hit(FAULT_FILE, CALLER(), ENOSPC))
        return -1;
    if (faults_trickles(&n))
        return -1;
    return next_.call(fd, from, n);
}

DSV4_API ssize_t pwrite(int fd, const void *from, size_t n, off_t at)
{
    NEXT(ssize_t, pwrite, int, const void *, size_t, off_t);
    if (faults_hit(FAULT_FILE, CALLER(), ENOSPC))
        return -1;
    if (faults_trickles(&n))
        return -1;
    return next_.call(fd, from, n, at);
}

DSV4_API int ftruncate(int fd, off_t n)
{
    NEXT(int, ftruncate, int, off_t);
    return faults_hit(FAULT_FILE, CALLER(), EFBIG) ? -1 : next_.call(fd, n);
}

DSV4_API int fallocate(int fd, int mode, off_t at, off_t n)
{
    NEXT(int, fallocate, int, int, off_t, off_t);
    return faults_hit(FAULT_FILE, CALLER(), ENOSPC) ? -1 : next_.call(fd, mode, at, n);
}

DSV4_API int mkdir(const char *path, mode_t mode)
{
    NEXT(int, mkdir, const char *, mode_t);
    return faults_hit(FAULT_FILE, CALLER(), EACCES) ? -1 : next_.call(path, mode);
}

DSV4_API int unlinkat(int dir, const char *path, int flags)
{
    NEXT(int, unlinkat, int, const char *, int);
    return faults_hit(FAULT_FILE, CALLER(), EACCES) ? -1 : next_.call(dir, path, flags);
}

DSV4_API int mkstemp(char *path)
{
    NEXT(int, mkstemp, char *);
    return faults_hit(FAULT_FILE, CALLER(), EROFS) ? -1 : next_.call(path);
}

/* One that does not fail does nothing: thousands of runs would wait for the disk. */
DSV4_API int fsync(int fd)
{
    NEXT(int, fsync, int);
    if (faults_hit(FAULT_FILE, CALLER(), EIO))
        return -1;
    return faults_counts() ? 0 : next_.call(fd);
}

DSV4_API int rename(const char *from, const char *to)
{
    NEXT(int, rename, const char *, const char *);
    return faults_hit(FAULT_FILE, CALLER(), EACCES) ? -1 : next_.call(from, to);
}

struct faults_thread {
    void *(*fn)(void *);
    void *arg;
};

static void *faults_thread(void *arg)
{
    struct faults_thread t = *(struct faults_thread *)arg;
    HEAP(free)(arg);
    faults_begun = true;
    void *result = t.fn(t.arg);
    faults_begun = false;
    return result;
}

DSV4_API int pthread_create(pthread_t *id, const pthread_attr_t *attr, void *(*fn)(void *),
                            void *arg)
{
    NEXT(int, pthread_create, pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    bool runtime = faults_within(CALLER(), true);
    if (faults_hit(FAULT_THREAD, CALLER(), EAGAIN))
        return EAGAIN;
    struct faults_thread *t = HEAP(malloc)(sizeof *t);
    if (!t)
        return EAGAIN;
    *t = (struct faults_thread){.fn = fn, .arg = arg};
    faults_exempt += runtime;
    int rc = next_.call(id, attr, faults_thread, t);
    faults_exempt -= runtime;
    if (rc)
        HEAP(free)(t);
    return rc;
}

/* ------------------------------------------------------------------ begin and end */

static int faults_find(struct dl_phdr_info *info, size_t size, void *arg)
{
    (void)size, (void)arg;
    const char *slash = strrchr(info->dlpi_name, '/'), *name = slash ? slash + 1 : info->dlpi_name;
    bool runtime = strncmp(name, "libgomp", 7) == 0 || strncmp(name, "libomp", 6) == 0 ||
                   strncmp(name, "libiomp", 7) == 0;
    bool loader = strncmp(name, "ld-", 3) == 0 || strncmp(name, "ld64", 4) == 0;
    for (int i = 0; (runtime || loader) && i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type != PT_LOAD || !(info->dlpi_phdr[i].p_flags & PF_X))
            continue;
        uintptr_t begin = (uintptr_t)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
        uintptr_t end = begin + (uintptr_t)info->dlpi_phdr[i].p_memsz;
        size_t *n = runtime ? &faults.n_runtime : &faults.n_loader;
        if (*n == sizeof faults.loader / sizeof *faults.loader)
            continue;
        (runtime ? faults.runtime : faults.loader)[*n].begin = begin;
        (runtime ? faults.runtime : faults.loader)[(*n)++].end = end;
    }
    return 0;
}

/* The next run is looked at: faults.first[0..n_first) will hold the calls reached in a new way. */
static inline void faults_survey(bool on)
{
    faults.survey = on;
    if (!on)
        return;
    memset(faults.way, 0, sizeof faults.way);
    faults.n_first = 0;
}

static void faults_prepare(enum fault kind, uint64_t n, bool forever)
{
    if (faults.n_runtime == 0 && faults.n_loader == 0) {
        void *frame[1];
        dl_iterate_phdr(faults_find, NULL);
        (void)!backtrace(frame, 1); /* loads what it needs */
    }
    if (faults.n_live)
        memset(faults.live, 0, sizeof faults.live);
    faults.kind = kind;
    faults.n = n;
    faults.forever = forever;
    faults.relented = false;
    faults.n_maps = 0;
    faults.calls = faults.fired = faults.n_live = 0;
    faults.n_frames = 0;
}

/* From now on this thread's n-th call (0: none) of that kind fails, with `forever` all later ones too. */
static inline void faults_begin(enum fault kind, uint64_t n, bool forever)
{
    faults_prepare(kind, n, forever);
    faults_armed = true;
}

/* The same for the n-th call of all threads but this one, behind faults_resume(); what they allocate before
 * it is counted already. */
static inline void faults_all_begin(enum fault kind, uint64_t n, bool forever)
{
    faults_prepare(kind, n, forever);
    faults.relented = true;
    faults_spared = true;
    faults_all = true;
}

static inline void faults_resume(void)
{
    faults.relented = false;
}

/* Nothing fails any more; what the run leaves behind is still counted. */
static inline void faults_relent(void)
{
    faults.relented = true;
}

static inline void faults_end(void)
{
    faults_armed = false;
    faults_all = false;
}

/* The way to the call that failed first, for addr2line, and who asked for the blocks that are left. */
static void faults_show(void)
{
    fflush(stdout);
    backtrace_symbols_fd(faults.frame, faults.n_frames, STDOUT_FILENO);
    for (size_t i = 0, shown = 0; i < FAULTS_TABLE && shown < 10; i++)
        if (faults.live[i].at) {
            printf("left by %p\n", faults.live[i].caller);
            shown++;
        }
    fflush(stdout);
}

/* Open descriptors of the process; the one that looks is among them each time. */
static inline size_t faults_descriptors(void)
{
    size_t n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

#endif
#endif
