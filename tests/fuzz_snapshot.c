/* Any bytes as a snapshot file: refused with a message, or a sequence that can go on, go back, be
 * shared and saved. The first byte says what the rest is:
 *   even  a file as it is
 *   odd   a file whose checksums, length and fingerprint are made right: its numbers are believed */
#include "src/session/snapshot.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#ifdef HAVE_XXHASH

#include <xxhash.h>

static void must(bool x)
{
    if (!x)
        abort();
}

static dsv4_engine *engine(void)
{
    static dsv4_engine *e; /* opened once; a fuzzer never closes it */
    dsv4_err err;
    dsv4_options o = {.ctx = 64, .batch = 8, .threads = 1, .rewind = 4};
    if (!e)
        must(dsv4_open(&e, "tests/golden/v41-quant", &o, &err) == 0);
    return e;
}

/* The file of `size` bytes believes in itself afterwards. */
static void seal(uint8_t *file, size_t size)
{
    struct snapshot_head h;
    dsv4_err err;
    memcpy(&h, file, sizeof h);
    memcpy(h.magic, SNAPSHOT_MAGIC, sizeof h.magic);
    h.order = SNAPSHOT_ORDER;
    h.version = SNAPSHOT_VERSION;
    must(snapshot_fingerprint(h.model, engine(), &err) == 0);
    h.bytes = size;
    size_t left = size - sizeof h, index = 0;
    if (h.len <= left / 4 && h.n_saved <= (left - h.len * 4) / 8)
        index = (size_t)(h.len * 4 + h.n_saved * 8);
    h.index = XXH3_64bits(file + sizeof h, index);
    h.hash = snapshot_head_hash(&h);
    memcpy(file, &h, sizeof h);
    if (left - index < sizeof(uint64_t))
        return;
    uint64_t body = XXH3_64bits(file + sizeof h + index, left - index - sizeof body);
    memcpy(file + size - sizeof body, &body, sizeof body);
}

static void use(dsv4_seq *s)
{
    static float logits[4096];
    dsv4_err err;
    dsv4_engine *e = engine();
    dsv4_seq *f;
    size_t len = dsv4_seq_len(s), low = dsv4_seq_reusable(s, len / 2);
    must(len <= dsv4_engine_ctx(e) && dsv4_engine_vocab(e) <= 4096 && low <= len / 2);
    must(dsv4_seq_fork(&f, s, low, &err) == 0);
    dsv4_row rows[2] = {{f, 5, true}, {f, 6, false}};
    must(dsv4_eval(e, rows, 2, logits, &err) == 0);
    dsv4_seq_close(f);
    rows[0].seq = s;
    must(len == dsv4_engine_ctx(e) || dsv4_eval(e, rows, 1, logits, &err) == 0);
    must(dsv4_seq_rewind(s, low, &err) == 0);
    must(dsv4_eval(e, rows, 1, logits, &err) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    size_t n = size - 1;
    uint8_t *file = malloc(n ? n : 1);
    must(file != NULL);
    if (n)
        memcpy(file, data + 1, n);
    if (data[0] % 2 && n >= sizeof(struct snapshot_head))
        seal(file, n);
    char path[64];
    int fd = memfd_create("fuzz", 0);
    must(fd >= 0 && write(fd, file, n) == (ssize_t)n);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);

    dsv4_err err = {0};
    int32_t *ids;
    size_t n_ids;
    dsv4_seq *s;
    int rc = dsv4_snapshot_tokens(path, &ids, &n_ids, &err);
    must((rc == 0) == (ids != NULL) && (rc == 0 || (err.status == rc && err.text[0])));
    dsv4_free(ids);
    int loaded = dsv4_seq_load(&s, engine(), path, &err);
    must((loaded == 0) == (s != NULL));
    must(loaded == 0 || ((loaded == DSV4_REFUSED || loaded == DSV4_FAILED) && err.text[0]));
    must(rc == 0 || loaded != 0); /* what is no list of ids is no sequence */
    if (s)
        use(s);
    dsv4_seq_close(s);
    close(fd);
    free(file);
    return 0;
}

#else

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    (void)data, (void)size;
    return 0;
}

#endif
