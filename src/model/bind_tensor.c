/* One named tensor of a checkpoint, or a made-up one, as a matrix or a vector of floats of the model. */
#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_CAP = 256 };

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
    if (m->synthetic)
        return synthetic_matrix(m, w, name, rows, cols, table, err);
    return matrix_find(w, m->store, m->cfg, name, rows, cols, err);
}

int bind_table(struct model *m, struct wmat *out, uint64_t rows, uint64_t cols, dsv4_err *err,
               const char *format, ...)
{
    char name[NAME_CAP];
    FORMAT_NAME(name, format);
    TRY(bind_named(m, out, rows, cols, true, name, err));
    if (out->panels)
        return err_set(err, DSV4_REFUSED,
                       "config.json: %s is packed; its rows are looked up one by one", name);
    return 0;
}

/* Packing looks for NaNs; matrices that stay plain are looked at here. */
static int check_scales(const struct matrix *w, const struct tensor *t, dsv4_err *err)
{
    const struct wmat *s = &w->stored;
    if (!t || (s->format != W_E4M3 && s->format != W_E2M1))
        return 0;
    size_t rows = (s->rows + s->block_rows - 1) / s->block_rows;
    const uint8_t *bad = memchr(s->scales, 255, rows * s->scale_ld);
    if (!bad)
        return 0;
    return err_set(err, DSV4_REFUSED, "%s: the scales of %s: byte %zu is NaN (255)", t->path,
                   t->stored, (size_t)(bad - s->scales));
}

int bind_matrix(struct model *m, struct matrix *out, uint64_t rows, uint64_t cols, dsv4_err *err,
                const char *format, ...)
{
    char name[NAME_CAP];
    FORMAT_NAME(name, format);
    TRY(bind_named(m, &out->stored, rows, cols, false, name, err));
    const struct tensor *t = m->synthetic ? NULL : store_find(m->store, name);
    out->name = t ? t->name : NULL;
    out->rows = out->stored.rows;
    out->cols = out->stored.cols;
    if (out->stored.panels) {
        TRY(model_own(m, &out->part, 1, sizeof *out->part, "weights", err));
        out->part->w = out->stored;
        out->n_parts = 1;
    } else if (!panel_fits(&out->stored) || !matrix_packs(m->cfg, name)) {
        return check_scales(out, t, err);
    }
    TRY(mem_grow(&m->matrix, &m->cap_matrix, m->n_matrix + 1, sizeof *m->matrix, "a model", err));
    m->matrix[m->n_matrix++] = out;
    return 0;
}

int bind_vector(struct model *m, float **out, uint64_t n, dsv4_err *err, const char *format, ...)
{
    char name[NAME_CAP], want[128];
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
        return tensor_refuse(t, want, err);
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
