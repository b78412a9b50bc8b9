/* One named tensor of a checkpoint, with its scales, as a matrix that kernels read in place. The dtype and
 * the shape in the file decide, never the name: fp8 and fp4 bring their scales, BF16, F16 and F32 are
 * welcome everywhere. What a converted directory has packed is there as panels (simd.h), byte for byte. */
#include "parts.h"

#include <stdio.h>
#include <string.h>

enum { NAME_CAP = 256, SHAPE_CAP = 128, ALIGN_CODES = 64, ALIGN_SCALES = 16 };

int tensor_refuse(const struct tensor *t, const char *want, dsv4_err *err)
{
    char shape[SHAPE_CAP];
    tensor_shape_text(t, shape, sizeof shape);
    return err_set(err, DSV4_REFUSED, "%s: %s is %s; expected %s", t->path, t->stored, shape, want);
}

static int lookup(const struct store *s, const struct tensor **out, const char *name, dsv4_err *err)
{
    if (!(*out = store_find(s, name)))
        return err_set(err, DSV4_REFUSED, "the checkpoint has no tensor %s", name);
    return 0;
}

static int lookup_scale(const struct store *s, const struct tensor **out, const struct tensor *t,
                        dsv4_err *err)
{
    char name[NAME_CAP];
    if (!scale_name(t->name, name, sizeof name))
        return tensor_refuse(t, "BF16, F16 or F32 (a name without .weight has no scale)", err);
    return lookup(s, out, name, err);
}

/* ------------------------------------------------------------------ plain */

static int plain_scale(struct wmat *w, const struct store *store, const struct tensor *t,
                       uint64_t block_rows, uint64_t block_cols, dsv4_err *err)
{
    char want[SHAPE_CAP];
    const struct tensor *s;
    TRY(lookup_scale(store, &s, t, err));
    uint64_t rows = (w->rows + block_rows - 1) / block_rows;
    uint64_t cols = (w->cols + block_cols - 1) / block_cols;
    if ((s->dtype != DTYPE_E8M0 && s->dtype != DTYPE_U8) || s->rank != 2 || s->dim[0] != rows ||
        s->dim[1] != cols) {
        snprintf(want, sizeof want, "F8_E8M0 [%llu, %llu]", (unsigned long long)rows,
                 (unsigned long long)cols);
        return tensor_refuse(s, want, err);
    }
    w->block_rows = (uint32_t)block_rows;
    w->block_cols = (uint32_t)block_cols;
    w->scales = s->data;
    w->scale_ld = (size_t)cols;
    return 0;
}

static int plain_matrix(struct wmat *w, const struct store *s, const struct config *c,
                        const struct tensor *t, uint64_t rows, uint64_t cols, dsv4_err *err)
{
    char want[SHAPE_CAP];
    bool fp4 = t->dtype == DTYPE_I8 || t->dtype == DTYPE_U8;
    if (t->rank == 2 && rows == 0) {
        rows = t->dim[0];
        cols = fp4 ? t->dim[1] * 2 : t->dim[1]; /* a byte each: no overflow */
    }
    snprintf(want, sizeof want, "[%llu, %llu] (fp4 packed: I8 [%llu, %llu])",
             (unsigned long long)rows, (unsigned long long)cols, (unsigned long long)rows,
             (unsigned long long)cols / 2);
    if (t->rank != 2 || t->dim[0] != rows || t->dim[1] != (fp4 ? cols / 2 : cols) ||
        (fp4 && cols % GROUP != 0) || rows > UINT32_MAX || cols > UINT32_MAX)
        return tensor_refuse(t, want, err);
    if (t->blocks) {
        if (!matrix_packs(c, t->name))
            return tensor_refuse(t, "F32, F16 or BF16 (o_lora_rank is no multiple of 32)", err);
        *w = block_matrix(t->blocks, t->data, (uint32_t)rows, (uint32_t)cols);
        return 0;
    }
    *w = (struct wmat){.rows = (uint32_t)rows, .cols = (uint32_t)cols, .codes = t->data};
    w->code_ld = (size_t)(t->dim[1] * dtype_size(t->dtype));
    switch (t->dtype) {
    case DTYPE_F32: w->format = W_F32; return 0;
    case DTYPE_F16: w->format = W_F16; return 0;
    case DTYPE_BF16: w->format = W_BF16; return 0;
    case DTYPE_E4M3:
        w->format = W_E4M3;
        /* Engram tables are looked up by row, so every row has scales of its own. */
        if (tensor_class_of(t->name) == CLASS_ENGRAM_TABLE)
            return plain_scale(w, s, t, 1, GROUP, err);
        return plain_scale(w, s, t, c->fp8_block, c->fp8_block, err);
    case DTYPE_I8:
    case DTYPE_U8: w->format = W_E2M1; return plain_scale(w, s, t, 1, GROUP, err);
    default: return tensor_refuse(t, "F32, F16, BF16, F8_E4M3 or I8 (packed fp4)", err);
    }
}

/* ------------------------------------------------------------------ panels */

bool matrix_packs(const struct config *c, const char *name)
{
    /* Groups of o_lora rows each see the heads of their own. */
    return c->o_lora % GROUP == 0 || !strstr(name, ".attn.wo_a.");
}

/* A tensor of panels: [panels, ...] with so many bytes each, at an address kernels can read. */
static int check_panels(const struct tensor *t, enum dtype dtype, size_t panels, size_t bytes,
                        size_t align, dsv4_err *err)
{
    char want[SHAPE_CAP];
    if (t->dtype != dtype || t->rank < 2 || t->dim[0] != panels ||
        t->bytes != (uint64_t)panels * bytes) {
        snprintf(want, sizeof want, "%s, %zu panels of %zu bytes", dtype_name(dtype), panels,
                 bytes);
        return tensor_refuse(t, want, err);
    }
    if ((uintptr_t)t->data % align != 0)
        return err_set(err, DSV4_REFUSED,
                       "%s: %s: packed data begins %zu bytes behind a multiple of %zu", t->path,
                       t->stored, (size_t)((uintptr_t)t->data % align), align);
    return 0;
}

/* Columns of a row whose panel has so many bytes; 0: none has. */
static uint64_t panel_cols(enum wformat f, uint64_t bytes)
{
    uint64_t unit = (uint64_t)wformat_row_bytes(f, GROUP) * PANEL;
    return bytes % unit == 0 ? bytes / unit * GROUP : 0;
}

static int packed_matrix(struct wmat *w, const struct store *store, const struct config *c,
                         const struct tensor *t, const struct wtype *type, const char *name,
                         uint64_t rows, uint64_t cols, dsv4_err *err)
{
    const struct tensor *s;
    if (rows == 0 && t->rank == 2) {
        rows = packing_rows(c->packing, name);
        rows = rows ? rows : t->dim[0] > UINT32_MAX / PANEL ? UINT32_MAX : t->dim[0] * PANEL;
        cols = panel_cols(type->format, t->dim[1]);
    }
    struct wmat plain = {.format = type->format,
                         .rows = (uint32_t)rows,
                         .cols = (uint32_t)cols,
                         .block_rows = type->format == W_E4M3 ? c->fp8_block : 1,
                         .block_cols = type->format == W_E4M3 ? c->fp8_block : GROUP,
                         .table = type->table};
    if (rows == 0 || rows > UINT32_MAX || cols > UINT32_MAX || !panel_fits(&plain) ||
        !matrix_packs(c, t->name))
        return err_set(err, DSV4_REFUSED, "%s: %s [%llu, %llu] cannot be packed as %s", t->path,
                       t->stored, (unsigned long long)rows, (unsigned long long)cols, type->name);
    *w = panel_shape(&plain, rows);
    size_t panels = panel_count(w);
    TRY(check_panels(t, DTYPE_U8, panels, w->code_ld, ALIGN_CODES, err));
    w->codes = t->data;
    if (w->scale_ld == 0)
        return 0;
    TRY(lookup_scale(store, &s, t, err));
    bool bytes = type->format == W_E4M3 || type->format == W_E2M1;
    TRY(check_panels(s, bytes ? DTYPE_U8 : DTYPE_F16, panels, w->scale_ld,
                     type->format == W_E4M3 ? 1 : ALIGN_SCALES, err));
    w->scales = s->data;
    return 0;
}

int matrix_find(struct wmat *out, const struct store *s, const struct config *c, const char *name,
                uint64_t rows, uint64_t cols, dsv4_err *err)
{
    char base[NAME_CAP];
    const struct tensor *t;
    TRY(lookup(s, &t, name, err));
    const struct wtype *type =
        matrix_name(name, base, sizeof base) ? packing_type(c->packing, base) : NULL;
    return type ? packed_matrix(out, s, c, t, type, base, rows, cols, err)
                : plain_matrix(out, s, c, t, rows, cols, err);
}
