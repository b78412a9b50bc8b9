/* Memory with checked sizes, and what the machine has left. */
#include "system.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

void dsv4_free(void *p)
{
    free(p);
}

int mem_alloc(void *out_pointer, size_t n, size_t size, const char *what, dsv4_err *err)
{
    size_t bytes, padded;
    if (!size_mul(n, size, &bytes) || !size_add(bytes, 63, &padded))
        return err_set(err, DSV4_NO_MEMORY, "%zu x %zu bytes for %s do not fit this machine", n,
                       size, what);
    padded &= ~(size_t)63;
    void *p = NULL;
    if (posix_memalign(&p, 64, padded ? padded : 64) != 0)
        return err_memory(err, bytes, what);
    memset(p, 0, padded ? padded : 64);
    memcpy(out_pointer, &p, sizeof p);
    return 0;
}

int mem_grow(void *pointer, size_t *cap, size_t want, size_t size, const char *what, dsv4_err *err)
{
    if (want <= *cap)
        return 0;
    size_t n = *cap < 8 ? 8 : *cap, bytes;
    while (n < want)
        if (!size_mul(n, 2, &n))
            return err_set(err, DSV4_NO_MEMORY, "%zu elements for %s do not fit this machine", want,
                           what);
    if (!size_mul(n, size, &bytes))
        return err_set(err, DSV4_NO_MEMORY, "%zu x %zu bytes for %s do not fit this machine", n,
                       size, what);
    void *old, *p;
    memcpy(&old, pointer, sizeof old);
    if (!(p = realloc(old, bytes)))
        return err_memory(err, bytes, what);
    memcpy(pointer, &p, sizeof p);
    *cap = n;
    return 0;
}

int bytes_add(struct bytes *b, const void *data, size_t len, dsv4_err *err)
{
    size_t want;
    if (!size_add(b->len, len, &want) || !size_add(want, 1, &want))
        return err_memory(err, UINT64_MAX, "a text");
    TRY(mem_grow(&b->data, &b->cap, want, 1, "a text", err));
    if (len)
        memcpy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = 0;
    return 0;
}

int bytes_text(struct bytes *b, const char *text, dsv4_err *err)
{
    return bytes_add(b, text, strlen(text), err);
}

int bytes_printf(struct bytes *b, dsv4_err *err, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    va_list again;
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, format, ap);
    va_end(ap);
    int rc = 0;
    size_t want;
    if (n < 0 || !size_add(b->len, (size_t)n, &want) || !size_add(want, 1, &want))
        rc = err_set(err, DSV4_FAILED, "a text cannot be formatted");
    else
        rc = mem_grow(&b->data, &b->cap, want, 1, "a text", err);
    if (rc == 0) {
        vsnprintf(b->data + b->len, (size_t)n + 1, format, again);
        b->len += (size_t)n;
    }
    va_end(again);
    return rc;
}

/* The first number of a small file, or UINT64_MAX ("max" and absence are the same to us). */
static uint64_t read_number(const char *path)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return UINT64_MAX;
    unsigned long long v;
    int got = fscanf(f, "%llu", &v);
    fclose(f);
    return got == 1 ? v : UINT64_MAX;
}

static uint64_t meminfo_available(void)
{
    FILE *f = fopen("/proc/meminfo", "re");
    if (!f)
        return UINT64_MAX;
    char line[256];
    unsigned long long kib;
    uint64_t got = UINT64_MAX;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            got = (uint64_t)kib * 1024;
    fclose(f);
    return got;
}

/* What limit - usage leaves, 0 when it is used up; UINT64_MAX without a limit. */
static uint64_t left_of(uint64_t limit, uint64_t used)
{
    if (limit == UINT64_MAX || used == UINT64_MAX)
        return limit;
    return limit > used ? limit - used : 0;
}

/* The memory limits on the way from this process's cgroup up to the root. Page cache counts as
 * usage there although it can be dropped, so inactive file pages are given back. */
static uint64_t cgroup_left(void)
{
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (!f)
        return UINT64_MAX;
    char line[1024], path[1024] = "";
    bool v2 = false;
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, "0::", 3) == 0) {
            snprintf(path, sizeof path, "%s", line + 3);
            v2 = true;
        } else {
            const char *c = strstr(line, ":memory:");
            if (c && !v2)
                snprintf(path, sizeof path, "%s", c + 8);
        }
    }
    fclose(f);
    uint64_t least = UINT64_MAX;
    char file[1200];
    for (;;) {
        size_t n = strlen(path);
        while (n > 0 && path[n - 1] == '/')
            path[--n] = 0;
        const char *root = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
        snprintf(file, sizeof file, "%s%s/%s", root, path,
                 v2 ? "memory.max" : "memory.limit_in_bytes");
        uint64_t limit = read_number(file);
        if (limit < UINT64_MAX / 4) {
            snprintf(file, sizeof file, "%s%s/%s", root, path,
                     v2 ? "memory.current" : "memory.usage_in_bytes");
            uint64_t used = read_number(file), cache = 0;
            snprintf(file, sizeof file, "%s%s/memory.stat", root, path);
            FILE *s = fopen(file, "re");
            while (s && fgets(line, sizeof line, s)) {
                unsigned long long v;
                if (sscanf(line, v2 ? "inactive_file %llu" : "total_inactive_file %llu", &v) == 1)
                    cache = v;
            }
            if (s)
                fclose(s);
            uint64_t left =
                left_of(limit, used == UINT64_MAX ? used : used - (cache < used ? cache : used));
            least = left < least ? left : least;
        }
        char *slash = strrchr(path, '/');
        if (!slash)
            return least;
        *slash = 0;
    }
}

static uint64_t rlimit_left(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_AS, &r) != 0 || r.rlim_cur == RLIM_INFINITY)
        return UINT64_MAX;
    FILE *f = fopen("/proc/self/statm", "re");
    unsigned long long pages = 0;
    if (f) {
        if (fscanf(f, "%llu", &pages) != 1)
            pages = 0;
        fclose(f);
    }
    return left_of((uint64_t)r.rlim_cur, (uint64_t)pages * 4096);
}

uint64_t mem_available(void)
{
    uint64_t a = meminfo_available(), b = cgroup_left(), c = rlimit_left();
    a = a < b ? a : b;
    return a < c ? a : c;
}

uint64_t mem_peak(void)
{
    struct rusage u;
    if (getrusage(RUSAGE_SELF, &u) != 0)
        return 0;
    return (uint64_t)u.ru_maxrss * 1024;
}
