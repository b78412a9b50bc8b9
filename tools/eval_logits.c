/* The file of kept rows that other models are compared with. Little-endian; the layout is told in
 * docs/evaluation.md. */
#include "eval.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEAD_BYTES = 64, BLOCK_BYTES = 16, VERSION = 1 };
static const char magic[8] = "DSV4LOG";

/* ------------------------------------------------------------------ numbers */

static uint8_t *put_u32(uint8_t *to, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        *to++ = (uint8_t)(v >> 8 * i);
    return to;
}

static uint8_t *put_u64(uint8_t *to, uint64_t v)
{
    return put_u32(put_u32(to, (uint32_t)v), (uint32_t)(v >> 32));
}

static uint8_t *put_f32(uint8_t *to, float v)
{
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    return put_u32(to, u);
}

static uint32_t get_u32(const uint8_t **from)
{
    uint32_t v = 0;
    for (int i = 0; i < 4; i++)
        v |= (uint32_t) * (*from)++ << 8 * i;
    return v;
}

static uint64_t get_u64(const uint8_t **from)
{
    uint64_t low = get_u32(from);
    return low | (uint64_t)get_u32(from) << 32;
}

static float get_f32(const uint8_t **from)
{
    uint32_t u = get_u32(from);
    float v;
    memcpy(&v, &u, sizeof v);
    return v;
}

/* ------------------------------------------------------------------ header and blocks */

static void write_head(uint8_t to[HEAD_BYTES], const struct logits_head *h)
{
    uint8_t *p = to + sizeof magic;
    memcpy(to, magic, sizeof magic);
    p = put_u32(p, VERSION);
    p = put_u32(p, h->vocab);
    p = put_u32(p, h->context);
    p = put_u32(p, h->skip);
    p = put_u32(p, h->top);
    p = put_u32(p, h->windows);
    p = put_u64(p, h->rows);
    p = put_u64(p, h->tokenizer);
    p = put_u64(p, h->ids);
    put_u64(p, eval_hash(EVAL_HASH_START, to, (size_t)(p - to)));
}

static int read_all(const struct logits_file *f, void *to, size_t n, dsv4_err *err)
{
    for (size_t done = 0; done < n;) {
        ssize_t k = read(f->fd, (char *)to + done, n - done);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return err_errno(err, DSV4_FAILED, f->path, "read");
        if (k == 0)
            return err_set(err, DSV4_REFUSED, "%s: ends in the middle; it was cut off", f->path);
        done += (size_t)k;
    }
    return 0;
}

static int read_head(struct logits_file *f, dsv4_err *err)
{
    uint8_t raw[HEAD_BYTES];
    const uint8_t *p = raw + sizeof magic;
    struct logits_head *h = &f->head;
    TRY(read_all(f, raw, sizeof raw, err));
    uint32_t version = get_u32(&p);
    if (memcmp(raw, magic, sizeof magic) != 0)
        return err_set(err, DSV4_REFUSED, "%s: not a file that --save-logits writes", f->path);
    if (version != VERSION)
        return err_set(err, DSV4_REFUSED, "%s: logits of version %u; this program reads version %d",
                       f->path, version, VERSION);
    h->vocab = get_u32(&p);
    h->context = get_u32(&p);
    h->skip = get_u32(&p);
    h->top = get_u32(&p);
    h->windows = get_u32(&p);
    h->rows = get_u64(&p);
    h->tokenizer = get_u64(&p);
    h->ids = get_u64(&p);
    uint64_t sum = eval_hash(EVAL_HASH_START, raw, (size_t)(p - raw));
    if (get_u64(&p) != sum || h->top == 0 || h->top > KEPT_MAX)
        return err_set(err, DSV4_REFUSED, "%s: damaged: the checksum of its header is wrong",
                       f->path);
    return 0;
}

struct block_head {
    uint32_t rows, bytes;
    uint64_t sum;
};

static int read_block_head(struct logits_file *f, struct block_head *b, dsv4_err *err)
{
    uint8_t raw[BLOCK_BYTES];
    const uint8_t *p = raw;
    TRY(read_all(f, raw, sizeof raw, err));
    b->rows = get_u32(&p);
    b->bytes = get_u32(&p);
    b->sum = get_u64(&p);
    return 0;
}

/* The number of the window belongs to the sum, so that blocks cannot change places. */
static uint64_t block_sum(uint32_t window, uint32_t rows, const void *data, size_t len)
{
    uint8_t raw[8];
    put_u32(put_u32(raw, window), rows);
    return eval_hash(eval_hash(EVAL_HASH_START, raw, sizeof raw), data, len);
}

static int read_block(struct logits_file *f, dsv4_err *err)
{
    struct block_head b;
    TRY(read_block_head(f, &b, err));
    TRY(mem_grow(&f->block.data, &f->block.cap, (size_t)b.bytes + 1, 1, "kept logits", err));
    TRY(read_all(f, f->block.data, b.bytes, err));
    if (block_sum(f->window, b.rows, f->block.data, b.bytes) != b.sum)
        return err_set(err, DSV4_REFUSED, "%s: damaged: the checksum of window %u is wrong",
                       f->path, f->window);
    f->block.len = b.bytes;
    f->at = 0;
    f->rows = b.rows;
    f->window++;
    return 0;
}

static int skip_block(struct logits_file *f, uint64_t *rows, dsv4_err *err)
{
    struct block_head b;
    TRY(read_block_head(f, &b, err));
    if (lseek(f->fd, (off_t)b.bytes, SEEK_CUR) < 0)
        return err_errno(err, DSV4_FAILED, f->path, "read");
    *rows += b.rows;
    return 0;
}

/* ------------------------------------------------------------------ writing */

/* FILE.part of an earlier run: `done` good windows of the same rows, and nothing behind them. */
static int take_up(struct logits_file *f, const struct logits_head *h, uint32_t done, dsv4_err *err)
{
    TRY(read_head(f, err));
    TRY(logits_fits(f, h, err));
    while (f->window < done)
        TRY(read_block(f, err));
    off_t end = lseek(f->fd, 0, SEEK_CUR);
    if (end < 0 || ftruncate(f->fd, end) != 0)
        return err_errno(err, DSV4_FAILED, f->path, "cut");
    f->block.len = 0;
    f->rows = 0;
    return 0;
}

/* The run had been finished before, all but its report. */
static int is_finished(struct logits_file *f, const char *path, const struct logits_head *h,
                       uint32_t done, dsv4_err *err)
{
    struct stat st;
    if (done < h->windows || stat(f->aside, &st) == 0)
        return 0;
    logits_close(f);
    TRY(logits_open(f, path, err));
    int rc = logits_fits(f, h, err);
    if (rc != 0)
        logits_close(f);
    return rc != 0 ? rc : 1;
}

int logits_create(struct logits_file *f, const char *path, const struct logits_head *h,
                  uint32_t done, dsv4_err *err)
{
    struct bytes aside = {0};
    uint8_t raw[HEAD_BYTES];
    *f = (struct logits_file){.head = *h, .fd = -1};
    if (!*path)
        return err_set(err, DSV4_USAGE, "--save-logits: the name of the file is empty");
    TRY(file_replaceable(path, err));
    int rc = bytes_printf(&aside, err, "%s.part", path);
    f->aside = aside.data;
    if (rc == 0 && !(f->path = strdup(path)))
        rc = err_memory(err, strlen(path) + 1, "a path");
    if (rc == 0)
        rc = is_finished(f, path, h, done, err);
    if (rc == 1)
        return 0;
    if (rc == 0 &&
        (f->fd = open(f->aside, O_RDWR | O_CLOEXEC | (done ? 0 : O_CREAT | O_TRUNC), 0666)) < 0)
        rc = err_errno(err, DSV4_FAILED, f->aside, "open");
    if (rc == 0 && done) {
        rc = take_up(f, h, done, err);
    } else if (rc == 0) {
        write_head(raw, h);
        rc = file_write_all(f->fd, f->aside, raw, sizeof raw, err);
    }
    if (rc != 0)
        logits_close(f);
    return rc;
}

int logits_add(struct logits_file *f, const struct kept_row *r, dsv4_err *err)
{
    size_t tokens = (size_t)r->n_top + r->n_samples;
    TRY(mem_grow(&f->block.data, &f->block.cap, f->block.len + 12 + 8 * tokens, 1, "kept logits",
                 err));
    uint8_t *p = (uint8_t *)f->block.data + f->block.len;
    p = put_f32(p, r->nll);
    p = put_f32(p, r->log_tail);
    p = put_u32(p, r->n_top | (uint32_t)r->n_samples << 16);
    for (size_t i = 0; i < tokens; i++) {
        const struct kept_token *t = i < r->n_top ? &r->top[i] : &r->sample[i - r->n_top];
        p = put_f32(put_u32(p, (uint32_t)t->id), t->logp);
    }
    f->block.len = (size_t)(p - (uint8_t *)f->block.data);
    f->rows++;
    return 0;
}

int logits_end_window(struct logits_file *f, dsv4_err *err)
{
    uint8_t raw[BLOCK_BYTES];
    if (f->block.len > UINT32_MAX)
        return err_set(err, DSV4_USAGE,
                       "--save-logits: a window's logits take %zu bytes, more than 4 GiB: take a "
                       "smaller --context or --top",
                       f->block.len);
    put_u64(put_u32(put_u32(raw, f->rows), (uint32_t)f->block.len),
            block_sum(f->window, f->rows, f->block.data, f->block.len));
    TRY(file_write_all(f->fd, f->aside, raw, sizeof raw, err));
    TRY(file_write_all(f->fd, f->aside, f->block.data, f->block.len, err));
    f->block.len = 0;
    f->rows = 0;
    f->window++;
    return 0;
}

int logits_finish(struct logits_file *f, bool keep, bool resumable, dsv4_err *err)
{
    int rc = 0;
    if (f->aside && f->fd >= 0) {
        if (keep && fsync(f->fd) != 0)
            rc = err_errno(err, DSV4_FAILED, f->aside, "sync");
        if (keep && rc == 0 && rename(f->aside, f->path) != 0)
            rc = err_errno(err, DSV4_FAILED, f->path, "rename into place");
        if ((!keep || rc != 0) && !resumable)
            unlink(f->aside);
    }
    logits_close(f);
    return rc;
}

/* ------------------------------------------------------------------ reading */

/* All windows are there, and nothing else. */
static int check_length(struct logits_file *f, dsv4_err *err)
{
    uint64_t rows = 0;
    struct stat st;
    for (uint32_t i = 0; i < f->head.windows; i++)
        TRY(skip_block(f, &rows, err));
    off_t end = lseek(f->fd, 0, SEEK_CUR);
    if (fstat(f->fd, &st) != 0 || end < 0)
        return err_errno(err, DSV4_FAILED, f->path, "read");
    if (end != st.st_size || rows != f->head.rows)
        return err_set(err, DSV4_REFUSED,
                       "%s: damaged: %lld bytes and %llu rows instead of %lld and %llu", f->path,
                       (long long)st.st_size, (unsigned long long)rows, (long long)end,
                       (unsigned long long)f->head.rows);
    if (lseek(f->fd, HEAD_BYTES, SEEK_SET) < 0)
        return err_errno(err, DSV4_FAILED, f->path, "read");
    return 0;
}

int logits_open(struct logits_file *f, const char *path, dsv4_err *err)
{
    *f = (struct logits_file){.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    int rc = f->fd < 0 ? err_errno(err, DSV4_REFUSED, path, "open") : 0;
    if (rc == 0 && !(f->path = strdup(path)))
        rc = err_memory(err, strlen(path) + 1, "a path");
    if (rc == 0)
        rc = read_head(f, err);
    if (rc == 0)
        rc = check_length(f, err);
    if (rc != 0)
        logits_close(f);
    return rc;
}

int logits_fits(const struct logits_file *f, const struct logits_head *want, dsv4_err *err)
{
    const struct logits_head *h = &f->head;
    if (h->tokenizer != want->tokenizer || h->vocab != want->vocab)
        return err_set(err, DSV4_REFUSED,
                       "%s: made with another tokenizer (vocabulary %u, here %u)", f->path,
                       h->vocab, want->vocab);
    if (h->context != want->context || h->skip != want->skip)
        return err_set(err, DSV4_REFUSED,
                       "%s: made with --context %u --skip %u; this run has %u and %u", f->path,
                       h->context, h->skip, want->context, want->skip);
    if (h->ids != want->ids || h->windows != want->windows || h->rows != want->rows)
        return err_set(err, DSV4_REFUSED, "%s: made of another text (%llu rows, here %llu)",
                       f->path, (unsigned long long)h->rows, (unsigned long long)want->rows);
    return 0;
}

int logits_window(struct logits_file *f, uint32_t window, dsv4_err *err)
{
    uint64_t rows = 0;
    for (; f->window < window; f->window++)
        TRY(skip_block(f, &rows, err));
    return read_block(f, err);
}

static bool read_token(struct kept_token *t, const uint8_t **from, uint32_t vocab)
{
    uint32_t id = get_u32(from);
    *t = (struct kept_token){(int32_t)id, get_f32(from)};
    return id < vocab && isfinite(t->logp);
}

int logits_next(struct logits_file *f, struct kept_row *r, dsv4_err *err)
{
    const uint8_t *p = (const uint8_t *)f->block.data + f->at;
    size_t left = f->block.len - f->at;
    bool ok = left >= 12;
    if (ok) {
        r->nll = get_f32(&p);
        r->log_tail = get_f32(&p);
        uint32_t n = get_u32(&p);
        r->n_top = (uint16_t)n;
        r->n_samples = (uint16_t)(n >> 16);
        ok = r->n_top <= f->head.top && r->n_samples <= KEPT_SAMPLES &&
             left - 12 >= 8 * ((size_t)r->n_top + r->n_samples);
    }
    for (size_t i = 0; ok && i < r->n_top; i++)
        ok = read_token(&r->top[i], &p, f->head.vocab);
    for (size_t i = 0; ok && i < r->n_samples; i++)
        ok = read_token(&r->sample[i], &p, f->head.vocab);
    if (!ok)
        return err_set(err, DSV4_REFUSED, "%s: window %u does not hold what its header says",
                       f->path, f->window - 1);
    f->at = (size_t)(p - (const uint8_t *)f->block.data);
    return 0;
}

void logits_close(struct logits_file *f)
{
    if (f->fd >= 0)
        close(f->fd);
    free(f->path);
    free(f->aside);
    free(f->block.data);
    *f = (struct logits_file){.fd = -1};
}
