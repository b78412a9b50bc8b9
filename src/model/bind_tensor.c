/* One named tensor of a checkpoint -> a matrix the kernels read in place, or a vector of floats.
 * The dtype and the shape in the file decide, never the name: fp8 and fp4 bring their scales,
 * BF16, F16 and F32 are welcome everywhere. */
#include "model.h"

#include "simd/codes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_CAP = 256, SHAPE_CAP = 128, FP4_GROUP = 32 };

int model_own(struct model *m, void *out_pointer, size_t n, size_t size, const char *what,
              dsv4_err *err)
{
    void *p;
    TRY(mem_grow(&m->owned, &m->cap_owned, m->n_owned + 1, sizeof *m->owned, "a model", err));
    TRY(mem_alloc(&p, n, size, what, err));
    m->owned[m->n_owned++] = p;
    memcpy(out_pointer, &p, sizeof p);
    return 0;
}

static int lookup(const struct model *m, const struct tensor **out, const char *name, dsv4_err *err)
{
    if (!(*out = store_find(m->store, name)))
        return err_set(err, DSV4_REFUSED, "the checkpoint has no tensor %s", name);
    return 0;
}

/* "PATH: NAME is DTYPE [..]; config.json says WANT" */
static int misfit(dsv4_err *err, const struct tensor *t, const char *want)
{
    char shape[SHAPE_CAP];
    tensor_shape_text(t, shape, sizeof shape);
    return err_set(err, DSV4_REFUSED, "%s: %s is %s; expected %s", t->path, t->stored, shape, want);
}

/* The scale of a quantized tensor NAME.weight is NAME.scale. */
static int bind_scale(const struct model *m, struct wmat *w, const struct tensor *t,
                      uint64_t block_rows, uint64_t block_cols, dsv4_err *err)
{
    char name[NAME_CAP], want[SHAPE_CAP];
    size_t n = strlen(t->name);
    static const char tail[] = "weight";
    if (n < sizeof tail || n >= NAME_CAP || strcmp(t->name + n - (sizeof tail - 1), tail) != 0)
        return misfit(err, t, "BF16, F16 or F32 (a name without .weight has no scale)");
    snprintf(name, sizeof name, "%.*sscale", (int)(n - (sizeof tail - 1)), t->name);
    const struct tensor *s;
    TRY(lookup(m, &s, name, err));
    uint64_t rows = (w->rows + block_rows - 1) / block_rows;
    uint64_t cols = (w->cols + block_cols - 1) / block_cols;
    if ((s->dtype != DTYPE_E8M0 && s->dtype != DTYPE_U8) || s->rank != 2 || s->dim[0] != rows ||
        s->dim[1] != cols) {
        snprintf(want, sizeof want, "F8_E8M0 [%llu, %llu]", (unsigned long long)rows,
                 (unsigned long long)cols);
        return misfit(err, s, want);
    }
    w->block_rows = (uint32_t)block_rows;
    w->block_cols = (uint32_t)block_cols;
    w->scales = s->data;
    w->scale_ld = (size_t)cols;
    return 0;
}

static int bind_found(struct model *m, struct wmat *w, const struct tensor *t, uint64_t rows,
                      uint64_t cols, dsv4_err *err)
{
    char want[SHAPE_CAP];
    bool packed = t->dtype == DTYPE_I8 || t->dtype == DTYPE_U8;
    snprintf(want, sizeof want, "[%llu, %llu] (fp4 packed: I8 [%llu, %llu])",
             (unsigned long long)rows, (unsigned long long)cols, (unsigned long long)rows,
             (unsigned long long)cols / 2);
    if (t->rank != 2 || t->dim[0] != rows || t->dim[1] != (packed ? cols / 2 : cols) ||
        (packed && cols % FP4_GROUP != 0) || rows > UINT32_MAX || cols > UINT32_MAX)
        return misfit(err, t, want);
    *w = (struct wmat){.rows = (uint32_t)rows, .cols = (uint32_t)cols, .codes = t->data};
    w->code_ld = (size_t)(t->dim[1] * dtype_size(t->dtype));
    switch (t->dtype) {
    case DTYPE_F32: w->format = W_F32; return 0;
    case DTYPE_F16: w->format = W_F16; return 0;
    case DTYPE_BF16: w->format = W_BF16; return 0;
    case DTYPE_E4M3:
        w->format = W_E4M3;
        /* Engram tables are looked up by row, so every row has scales of its own. */
        if (strstr(t->name, ".engram.embed."))
            return bind_scale(m, w, t, 1, 32, err);
        return bind_scale(m, w, t, m->cfg->fp8_block, m->cfg->fp8_block, err);
    case DTYPE_I8:
    case DTYPE_U8: w->format = W_E2M1; return bind_scale(m, w, t, 1, FP4_GROUP, err);
    default: return misfit(err, t, "F32, F16, BF16, F8_E4M3 or I8 (packed fp4)");
    }
}

/* Formats a tensor name; the formats and numbers are ours, so it always fits. */
#define FORMAT_NAME(buffer, format)                    \
    do {                                               \
        va_list ap_;                                   \
        va_start(ap_, format);                         \
        vsnprintf(buffer, sizeof buffer, format, ap_); \
        va_end(ap_);                                   \
    } while (0)

static int bind_named(struct model *m, struct wmat *w, uint64_t rows, uint64_t cols, bool table,
                      const char *name, dsv4_err *err)
{
    const struct tensor *t;
    if (m->synthetic)
        return synthetic_matrix(m, w, name, rows, cols, table, err);
    TRY(lookup(m, &t, name, err));
    return bind_found(m, w, t, rows, cols, err);
}

int bind_table(struct model *m, struct wmat *out, uint64_t rows, uint64_t cols, dsv4_err *err,
               const char *format, ...)
{
    char name[NAME_CAP];
    FORMAT_NAME(name, format);
    return bind_named(m, out, rows, cols, true, name, err);
}

int bind_matrix(struct model *m, struct matrix *out, uint64_t rows, uint64_t cols, dsv4_err *err,
                const char *format, ...)
{
    char name[NAME_CAP];
    FORMAT_NAME(name, format);
    TRY(bind_named(m, &out->plain, rows, cols, false, name, err));
    out->rows = out->plain.rows;
    out->cols = out->plain.cols;
    if (!panel_fits(&out->plain))
        return 0;
    TRY(mem_grow(&m->matrix, &m->cap_matrix, m->n_matrix + 1, sizeof *m->matrix, "a model", err));
    m->matrix[m->n_matrix++] = out;
    return 0;
}

int bind_vector(struct model *m, float **out, uint64_t n, dsv4_err *err, const char *format, ...)
{
    char name[NAME_CAP], want[SHAPE_CAP];
    FORMAT_NAME(name, format);
    if (m->synthetic)
        return synthetic_vector(m, out, n, name, err);
    const struct tensor *t;
    TRY(lookup(m, &t, name, err));
    uint64_t have = 1;
    for (uint32_t i = 0; i < t->rank; i++)
        have *= t->dim[i]; /* load checked the product */
    bool plain = t->dtype == DTYPE_F32 || t->dtype == DTYPE_F16 || t->dtype == DTYPE_BF16;
    if (have != n || !plain || n > UINT32_MAX) {
        snprintf(want, sizeof want, "%llu values of BF16, F16 or F32", (unsigned long long)n);
        return misfit(err, t, want);
    }
    float *v;
    TRY(model_own(m, &v, (size_t)n, sizeof *v, t->name, err));
    struct wmat w = {.format = t->dtype == DTYPE_F32   ? W_F32
                               : t->dtype == DTYPE_F16 ? W_F16
                                                       : W_BF16,
                     .rows = 1,
                     .cols = (uint32_t)n,
                     .codes = t->data};
    m->k.decode(v, &w, 0);
    *out = v;
    return 0;
}

bool model_has(const struct model *m, const char *format, ...)
{
    char name[NAME_CAP];
    FORMAT_NAME(name, format);
    return store_find(m->store, name) != NULL;
}

int model_check_scales(const struct model *m, bool (*wanted)(const struct tensor *t), dsv4_err *err)
{
    for (size_t i = 0; i < store_count(m->store); i++) {
        const struct tensor *t = store_at(m->store, i);
        if (t->dtype != DTYPE_E8M0 || (wanted && !wanted(t)))
            continue;
        const uint8_t *bad = memchr(t->data, 255, (size_t)t->bytes);
        if (bad)
            return err_set(err, DSV4_REFUSED, "%s: %s: the scale at byte %zu is NaN (255)", t->path,
                           t->stored, (size_t)(bad - t->data));
    }
    return 0;
}
