/* JSON in, for whom memory may be short at any time.
 *
 * jansson 2.14 does not get over that: when the buffer of a token cannot grow it loses a character, and if that
 * was the closing quote it reads and writes on behind the buffer. So its allocations do not fail while it reads:
 * what malloc() refuses comes from address space that was set aside before, as much as any text of that length
 * can need, of which nothing is used otherwise. What was read that way is thrown away. */
#include "server.h"

#include <stdlib.h>
#include <sys/mman.h>

enum {
    MAX_DEPTH = 128,
    SPARE_PER_BYTE = 128, /* "{}," takes 200 bytes, "[" 112, a long text 8 each */
    SPARE_BYTES = 256 << 10
};

static _Thread_local struct {
    char *data;
    size_t size, used;
    bool failed; /* malloc() refused something */
} spare;

static void *spare_alloc(size_t n)
{
    size_t take = (n + 15) & ~(size_t)15;
    void *p = malloc(n);
    if (p)
        return p;
    spare.failed = true;
    if (take < n || take > spare.size - spare.used)
        return NULL;
    p = spare.data + spare.used;
    spare.used += take;
    return p;
}

static void spare_free(void *p)
{
    uintptr_t at = (uintptr_t)p, base = (uintptr_t)spare.data;
    if (!spare.data || at < base || at - base >= spare.size)
        free(p);
}

void json_watch(void)
{
    json_set_alloc_funcs(spare_alloc, spare_free);
}

bool json_failed(void)
{
    bool was = spare.failed;
    spare.failed = false;
    return was;
}

int json_spare_begin(size_t len, dsv4_err *err)
{
    size_t size;
    if (__builtin_mul_overflow(len, SPARE_PER_BYTE, &size) ||
        __builtin_add_overflow(size, SPARE_BYTES, &size))
        return err_memory(err, len, "JSON");
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (p == MAP_FAILED)
        return err_memory(err, size, "JSON");
    spare.data = p;
    spare.size = size;
    spare.used = 0;
    return 0;
}

void json_spare_end(void)
{
    munmap(spare.data, spare.size);
    spare.data = NULL;
    spare.size = spare.used = 0;
}

/* ------------------------------------------------------------------ reading */

static int check_depth(const char *text, size_t len, dsv4_err *err)
{
    size_t depth = 0;
    bool string = false;
    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        if (string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                string = false;
        } else if (c == '"') {
            string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > MAX_DEPTH)
                return err_set(err, DSV4_REFUSED,
                               "the body is nested deeper than %d levels (at byte %zu)", MAX_DEPTH,
                               i);
        } else if ((c == ']' || c == '}') && depth > 0) {
            depth--;
        }
    }
    return 0;
}

int json_read(json_t **out, const char *text, size_t len, dsv4_err *err)
{
    json_error_t e;
    *out = NULL;
    TRY(check_depth(text, len, err));
    TRY(json_spare_begin(len, err));
    spare.failed = false;
    *out = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    bool failed = json_failed();
    if (failed) {
        json_decref(*out);
        *out = NULL;
    }
    json_spare_end();
    if (failed)
        return err_memory(err, len, "a JSON body");
    return *out ? 0
                : err_set(err, DSV4_REFUSED, "the body is not valid JSON: %s at byte %d", e.text,
                          e.position);
}
