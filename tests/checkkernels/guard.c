/* Operands between unreadable pages, and the faults of kernels that leave them. */
#include "check.h"

#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct block {
    struct block *next;
    const char *name;
    uint8_t *map; /* the accessible pages; one unreadable page on either side; NULL: plain memory */
    size_t mapped;
    bool sealed; /* read-only */
    uint8_t *data;
    size_t bytes;
};

enum { FILL = 0xa5 }; /* what lies between an operand and the edges of its pages */

static size_t page_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

static _Noreturn void die(const char *what)
{
    perror(what);
    exit(2);
}

static struct block *add_block(struct check *t, const char *name, size_t bytes)
{
    struct block *b = calloc(1, sizeof *b);
    if (!b)
        die("checkkernels: memory");
    *b = (struct block){.next = t->blocks, .name = name, .bytes = bytes};
    t->blocks = b;
    return b;
}

void *keep(struct check *t, size_t bytes)
{
    struct block *b = add_block(t, "", bytes);
    b->data = aligned_alloc(64, (bytes + 64) / 64 * 64);
    if (!b->data)
        die("checkkernels: memory");
    return memset(b->data, 0, bytes);
}

/* Mappings of cases that are over, by pages: most operands are small. */
enum { SPARE_SIZES = 64 };
static struct block *spare[SPARE_SIZES];

static void protect(struct block *b, int access)
{
    if (mprotect(b->map, b->mapped, access) != 0)
        die("checkkernels: mprotect");
    b->sealed = access == PROT_READ;
}

/* Accessible pages for a block that has none yet. */
static void map_pages(struct block *b, size_t pages)
{
    size_t page = page_size();
    b->mapped = pages * page;
    if (pages < SPARE_SIZES && spare[pages]) {
        struct block *old = spare[pages];
        spare[pages] = old->next;
        b->map = old->map;
        if (old->sealed)
            protect(b, PROT_READ | PROT_WRITE);
        free(old);
        return;
    }
    uint8_t *map = mmap(NULL, (pages + 2) * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        die("checkkernels: mmap");
    b->map = map + page;
    protect(b, PROT_READ | PROT_WRITE);
}

static void release(struct block *b)
{
    size_t page = page_size(), pages = b->mapped / page;
    if (b->map && pages < SPARE_SIZES) {
        b->next = spare[pages];
        spare[pages] = b;
        return;
    }
    if (b->map)
        munmap(b->map - page, b->mapped + 2 * page);
    else
        free(b->data);
    free(b);
}

void *guard_out(struct check *t, const char *name, const void *data, size_t bytes, size_t align,
                enum edge e)
{
    size_t page = page_size(), pages = (bytes + page - 1) / page + (e == EDGE_NONE || bytes == 0);
    struct block *b = add_block(t, name, bytes);
    map_pages(b, pages);
    size_t at = e == EDGE_END     ? (b->mapped - bytes) / align * align
                : e == EDGE_BEGIN ? 0
                                  : (1 + random_below(t, 63)) * align % page / align * align;
    if (at + bytes > b->mapped)
        at = 0;
    b->data = b->map + at;
    memset(b->map, FILL, at);
    memset(b->data + bytes, FILL, b->mapped - at - bytes);
    if (data && bytes > 0)
        memcpy(b->data, data, bytes);
    return b->data;
}

const void *guard_in(struct check *t, const char *name, const void *data, size_t bytes,
                     size_t align, enum edge e)
{
    const void *p = guard_out(t, name, data, bytes, align, e);
    protect(t->blocks, PROT_READ);
    return p;
}

static void check_fill(struct check *t, const struct block *b, const uint8_t *from,
                       const uint8_t *to, const char *where)
{
    for (; from < to; from++)
        if (*from != FILL) {
            check_fail(t, "wrote %s %s", where, b->name);
            return;
        }
}

void case_end(struct check *t)
{
    for (struct block *b = t->blocks, *next; b; b = next) {
        next = b->next;
        if (b->map) {
            check_fill(t, b, b->map, b->data, "before");
            check_fill(t, b, b->data + b->bytes, b->map + b->mapped, "behind");
        }
        release(b);
    }
    t->blocks = NULL;
}

/* ------------------------------------------------------------------ faults */

static sigjmp_buf back;
static volatile sig_atomic_t inside; /* a kernel runs */
static void *volatile address;

static void on_fault(int sig, siginfo_t *info, void *context)
{
    (void)context;
    if (!inside) { /* ours, not a kernel's: the default action on return */
        signal(sig, SIG_DFL);
        return;
    }
    inside = 0;
    address = info->si_addr;
    siglongjmp(back, sig);
}

void guard_install(void)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        struct sigaction a = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
        sigaction(signals[i], &a, NULL);
    }
}

static void report_fault(struct check *t, int sig)
{
    const uint8_t *at = address;
    size_t page = page_size();
    if (sig == SIGILL || sig == SIGFPE) {
        check_fail(t, "%s", sig == SIGILL ? "illegal instruction" : "arithmetic trap");
        return;
    }
    for (const struct block *b = t->blocks; b; b = b->next)
        if (b->map && at >= b->map - page && at < b->map + b->mapped + page) {
            if (at < b->map)
                check_fail(t, "access %td bytes before %s", b->data - at, b->name);
            else if (at >= b->map + b->mapped)
                check_fail(t, "access to byte %td of the %zu of %s", at - b->data, b->bytes,
                           b->name);
            else
                check_fail(t, "write to the input %s", b->name);
            return;
        }
    check_fail(t, "fault at %p, or an access that its instruction wants aligned", (const void *)at);
}

bool guard_call(struct check *t, void (*f)(void *), void *arg)
{
    int sig = sigsetjmp(back, 0);
    if (sig == 0) {
        inside = 1;
        f(arg);
        inside = 0;
        return true;
    }
    report_fault(t, sig);
    return false;
}
