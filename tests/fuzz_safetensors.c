/* Any bytes as a safetensors file or as the index of shards: refused with a message, or something
 * that keeps every promise of load.h. The first byte says what the rest is:
 *   0  a file as it is
 *   1  a header, whose length is put before it; the byte after says how much data follows
 *   2  model.safetensors.index.json */
#include "src/load/parts.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool x)
{
    if (!x)
        abort();
}

static void check_refusal(int rc, const dsv4_err *err)
{
    must(rc == DSV4_REFUSED || rc == DSV4_NO_MEMORY);
    must(err->status == rc && err->text[0] != 0);
}

static void check_store(const struct store *s)
{
    uint64_t sum = 0;
    char shape[128], name[512];
    must(store_count(s) > 0);
    for (size_t i = 0; i < store_count(s); i++) {
        const struct tensor *t = store_at(s, i);
        uint64_t bytes = dtype_size(t->dtype);
        must(store_find(s, t->name) == t && t->rank <= TENSOR_MAX_RANK);
        must(i == 0 || strcmp(store_at(s, i - 1)->name, t->name) < 0);
        must(official_name(t->stored, name, sizeof name) && strcmp(name, t->name) == 0);
        for (uint32_t k = 0; k < t->rank; k++)
            bytes *= t->dim[k];
        must(bytes == t->bytes);
        volatile uint8_t last = bytes ? t->data[bytes - 1] : 0;
        (void)last;
        tensor_shape_text(t, shape, sizeof shape);
        sum += bytes;
    }
    must(sum == store_bytes(s));
    must(store_prefetch(s, NULL, NULL, NULL, NULL) == 0);
}

static void fuzz_file(const void *data, size_t size)
{
    char path[64];
    struct store *s;
    dsv4_err err = {0};
    int fd = memfd_create("fuzz", 0);
    must(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int rc = store_open_file(&s, path, &err);
    must((rc == 0) == (s != NULL));
    if (rc == 0)
        check_store(s);
    else
        check_refusal(rc, &err);
    store_close(s);
    close(fd);
}

static void fuzz_header(const uint8_t *text, size_t n, size_t extra)
{
    uint8_t *file = calloc(1, 8 + n + extra);
    must(file != NULL);
    for (int i = 0; i < 8; i++)
        file[i] = (uint8_t)((uint64_t)n >> 8 * i);
    if (n)
        memcpy(file + 8, text, n);
    fuzz_file(file, 8 + n + extra);
    free(file);
}

static void fuzz_index(const uint8_t *text, size_t n)
{
    static char path[] = "index.json";
    struct index x;
    dsv4_err err = {0};
    const struct file_map map = {.data = text, .len = n, .fd = -1, .path = path};
    int rc = index_read(&x, &map, &err);
    if (rc != 0)
        check_refusal(rc, &err);
    for (size_t i = 0; rc == 0 && i < x.n; i++) {
        char name[256];
        must(x.place[i].name.n < sizeof name);
        memcpy(name, x.place[i].name.p, x.place[i].name.n);
        name[x.place[i].name.n] = 0;
        must(index_find(&x, name) == &x.place[i]);
        size_t k = 0;
        while (k < x.n_shards && (x.shard[k].n != x.place[i].shard.n ||
                                  memcmp(x.shard[k].p, x.place[i].shard.p, x.shard[k].n) != 0))
            k++;
        must(k < x.n_shards && !memchr(x.shard[k].p, '/', x.shard[k].n));
    }
    index_close(&x);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    if (data[0] % 3 == 0)
        fuzz_file(data + 1, size - 1);
    else if (data[0] % 3 == 2)
        fuzz_index(data + 1, size - 1);
    else if (size > 1)
        fuzz_header(data + 2, size - 2, data[1]);
    return 0;
}
