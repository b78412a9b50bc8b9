/* What a conversion reads: a directory with its config and its tensors, rows of matrices as floats, and a
 * look at values that are no numbers. */
#include "convert.h"

#include "src/session/session.h"

#include <stdlib.h>
#include <string.h>

static int read_config(struct source *s, dsv4_err *err)
{
    TRY(checkpoint_text(&s->config, s->dir, "config.json", true, err));
    return config_parse(&s->cfg, s->config.text, s->config.len, s->config.where, err);
}

int source_open_config(struct source *s, const char *config, size_t len, dsv4_err *err)
{
    struct checkpoint cp;
    *s = (struct source){.shapes = true, .config.len = len};
    kernels_init(&s->k, NULL);
    TRY(checkpoint_shapes(&cp, config, len, err));
    s->store = cp.store; /* which outlives the model that it was made from */
    cp.store = NULL;
    checkpoint_close(&cp);
    int rc = config_parse(&s->cfg, config, len, "config.json", err);
    if (rc == 0 &&
        (!(s->dir = strdup("config.json")) || !(s->config.where = strdup("config.json")) ||
         !(s->config.text = strndup(config, len))))
        rc = err_memory(err, len, "a config");
    if (rc != 0)
        source_close(s);
    return rc;
}

int source_open(struct source *s, const char *dir, dsv4_err *err)
{
    *s = (struct source){0};
    if (!*dir)
        return err_set(err, DSV4_USAGE, "the name of the source is empty");
    kernels_init(&s->k, NULL);
    if (!(s->dir = strdup(dir)))
        return err_memory(err, strlen(dir) + 1, "a path");
    int rc = read_config(s, err);
    if (rc == 0)
        rc = store_open(&s->store, dir, err);
    if (rc != 0)
        source_close(s);
    return rc;
}

void source_close(struct source *s)
{
    store_close(s->store);
    config_close(s->cfg);
    checkpoint_text_close(&s->config);
    free(s->dir);
    *s = (struct source){0};
}

void source_row(const struct source *s, const struct wmat *w, size_t r, float *out)
{
    row_floats(&s->k, out, w, r);
}

int tensor_read(struct tensor *out, uint8_t **data, const struct source *s, const struct tensor *t,
                const char *what, dsv4_err *err)
{
    TRY(mem_alloc(data, 1, (size_t)t->bytes, what, err));
    *out = *t;
    out->data = *data;
    int rc = store_read(s->store, t->data, (size_t)t->bytes, *data, err);
    if (rc != 0)
        free(*data);
    return rc;
}

int64_t integer_at(const struct tensor *t, uint64_t i)
{
    int64_t wide;
    int32_t narrow;
    if (t->dtype == DTYPE_I64) {
        memcpy(&wide, t->data + i * sizeof wide, sizeof wide);
        return wide;
    }
    memcpy(&narrow, t->data + i * sizeof narrow, sizeof narrow);
    return narrow;
}

/* ------------------------------------------------------------------ values that are no numbers */

/* Elements of `size` bytes whose bits `mask` are all set. */
static size_t all_ones(const uint8_t *p, size_t n, size_t size, uint64_t mask, uint8_t *zeroed)
{
    size_t bad = 0;
    for (size_t i = 0; i < n; i += size) {
        uint64_t v = 0;
        memcpy(&v, p + i, size);
        if ((v & mask) != mask)
            continue;
        bad++;
        if (zeroed)
            memset(zeroed + i, 0, size);
    }
    return bad;
}

/* The common case, no such value at all, at the speed of memory: the widest runs a compiler can see. */
static bool any_half(const uint8_t *p, size_t n, uint16_t mask)
{
    unsigned any = 0;
    for (size_t i = 0; i + 2 <= n; i += 2) {
        uint16_t v;
        memcpy(&v, p + i, 2);
        any |= (uint16_t)(v & mask) == mask;
    }
    return any;
}

size_t bad_values(enum dtype t, const uint8_t *data, size_t n, uint8_t *zeroed)
{
    switch (t) {
    case DTYPE_BF16: return any_half(data, n, 0x7f80) ? all_ones(data, n, 2, 0x7f80, zeroed) : 0;
    case DTYPE_F16: return any_half(data, n, 0x7c00) ? all_ones(data, n, 2, 0x7c00, zeroed) : 0;
    case DTYPE_F32: return all_ones(data, n, 4, 0x7f800000u, zeroed);
    case DTYPE_F64: return all_ones(data, n, 8, 0x7ff0000000000000ull, zeroed);
    case DTYPE_E4M3:
        return e4m3_has_nan(data, n & ~(size_t)7) || n % 8 ? all_ones(data, n, 1, 0x7f, zeroed) : 0;
    case DTYPE_E8M0: return memchr(data, 255, n) ? all_ones(data, n, 1, 0xff, zeroed) : 0;
    default: return 0;
    }
}
