/* Pieces of a job: what they hold is read, made and written where it belongs. A piece depends on the plan alone,
 * and no piece on another one. */
#include "convert.h"

#include "simd/codes.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define STEP ((uint64_t)1 << 20) /* bytes of codes in a piece, or one panel */

/* ------------------------------------------------------------------ what a piece is */

static uint64_t ceil_div(uint64_t a, uint64_t b)
{
    return a / b + (a % b != 0);
}

static bool by_panels(const struct job *j)
{
    return j->kind == JOB_PACK || j->kind == JOB_ENCODE || j->rows;
}

/* Bytes of the codes of a panel, or of as many rows. */
static size_t panel_codes(const struct job *j)
{
    return j->rows ? PANEL * j->out.code_ld : j->out.code_ld;
}

static size_t panels_a_piece(const struct job *j)
{
    return STEP > panel_codes(j) ? (size_t)(STEP / panel_codes(j)) : 1;
}

/* Bytes of a row of JOB_FLOATS or of the codes of JOB_TABLE. */
static size_t row_of(const struct job *j)
{
    return wformat_row_bytes(j->table ? j->table->format : W_F32, j->in.cols);
}

static size_t rows_a_piece(const struct job *j)
{
    return STEP > row_of(j) ? (size_t)(STEP / row_of(j)) : 1;
}

uint64_t job_pieces(const struct job *j)
{
    if (by_panels(j))
        return ceil_div(panel_count(&j->out), panels_a_piece(j));
    if (j->kind == JOB_ROUTER)
        return 1;
    if (j->kind == JOB_FLOATS || j->kind == JOB_TABLE)
        return ceil_div(j->in.rows, rows_a_piece(j));
    return ceil_div(j->bytes[0], STEP) + ceil_div(j->bytes[1], STEP);
}

/* Bytes of the output in front of a place in the data of the shard. */
static uint64_t file_at(const struct making *m, uint64_t at)
{
    return m->plan->shard[m->out->shard].header_len + at;
}

/* ------------------------------------------------------------------ values that are no numbers */

static int refuse_bad(const struct job *j, size_t bad, dsv4_err *err)
{
    return err_set(
        err, DSV4_REFUSED,
        "%s: %s holds a NaN or an infinity (%zu where it was looked at last; --allow-nan "
        "makes zeros of them)",
        j->from->path, j->from->stored, bad);
}

/* What the bytes of codes (part 0) or scales of panels are to bad_values(). */
static enum dtype panel_dtype(enum wformat f, int part)
{
    switch (f) {
    case W_BF16: return DTYPE_BF16;
    case W_E4M3: return part ? DTYPE_E8M0 : DTYPE_E4M3;
    case W_E2M1: return part ? DTYPE_E8M0 : DTYPE_U8;
    default: return part ? DTYPE_F16 : DTYPE_U8;
    }
}

/* Looks for such values; `own` (the same bytes, ours) gets zeros where that is allowed. */
static int settle(struct making *m, const struct job *j, enum dtype t, const uint8_t *data,
                  size_t n, uint8_t *own, dsv4_err *err)
{
    size_t bad = bad_values(t, data, n, NULL);
    if (bad == 0)
        return 0;
    if (!m->opt->allow_nan)
        return refuse_bad(j, bad, err);
    bad_values(t, data, n, own);
    atomic_fetch_add(&m->zeroed, bad);
    return 0;
}

/* ------------------------------------------------------------------ making one */

static int cast(uint8_t *out, const struct job *j, const uint8_t *data, size_t n, dsv4_err *err)
{
    if (cast_values(out, j->as, data, j->to->dtype, n))
        return 0;
    return err_set(err, DSV4_REFUSED, "%s: %s has a number that does not fit %s", j->from->path,
                   j->from->stored, dtype_name(j->as));
}

/* Bytes from .. from + n of codes or scales that stay as they are. */
static int copy_piece(struct making *m, struct maker *by, const struct job *j, int part,
                      uint64_t from, size_t n, dsv4_err *err)
{
    const uint8_t *all = !j->type ? j->from->data : part ? j->in.scales : j->in.codes;
    enum dtype t = j->type ? panel_dtype(j->type->format, part) : j->from->dtype;
    TRY(store_read(m->plan->source->store, all + from, n, by->codes, err));
    TRY(settle(m, j, t, by->codes, n, by->codes, err));
    TRY(output_write(m->out, file_at(m, j->at[part] + from), by->codes, n, err));
    atomic_fetch_add(&m->done, n);
    return 0;
}

/* Bytes from .. from + n of elements that get another type. */
static int cast_piece(struct making *m, struct maker *by, const struct job *j, uint64_t from,
                      size_t n, dsv4_err *err)
{
    size_t size = dtype_size(j->to->dtype), count = n / dtype_size(j->as);
    const uint8_t *data = j->from->data + from / dtype_size(j->as) * size;
    TRY(store_read(m->plan->source->store, data, count * size, by->read, err));
    TRY(cast(by->codes, j, by->read, count, err));
    TRY(settle(m, j, j->as, by->codes, n, by->codes, err));
    TRY(output_write(m->out, file_at(m, j->at[0] + from), by->codes, n, err));
    atomic_fetch_add(&m->done, n);
    return 0;
}

static int copy_numbered(struct making *m, struct maker *by, const struct job *j, uint64_t piece,
                         dsv4_err *err)
{
    uint64_t codes = ceil_div(j->bytes[0], STEP);
    int part = piece >= codes;
    uint64_t from = (piece - (part ? codes : 0)) * STEP, left = j->bytes[part] - from;
    size_t n = (size_t)(left < STEP ? left : STEP);
    if (!j->type && j->as != j->to->dtype)
        return cast_piece(m, by, j, from, n, err);
    return copy_piece(m, by, j, part, from, n, err);
}

static int router_piece(struct making *m, struct maker *by, const struct job *j, dsv4_err *err)
{
    size_t n = (size_t)j->bytes[0];
    uint8_t *data = by->codes;
    TRY(pruning_fill(data, m->plan->pruning, m->plan->source, j->from, j->to, err));
    if (j->as != j->to->dtype) {
        TRY(cast(by->plain, j, data, n / dtype_size(j->as), err));
        data = by->plain;
    }
    TRY(settle(m, j, j->as, data, n, data, err));
    TRY(output_write(m->out, file_at(m, j->at[0]), data, n, err));
    atomic_fetch_add(&m->done, n);
    return 0;
}

/* Row `row` of the matrix becomes row i of what is to be encoded. */
static int read_row(struct making *m, struct maker *by, const struct job *j, size_t row, size_t i,
                    dsv4_err *err)
{
    size_t cols = j->in.cols, bad = 0;
    float *x = by->encoder.rows + i * cols;
    struct wmat all = j->in;
    all.rows = j->pick ? m->plan->pruning->before : all.rows;
    TRY(window_floats(&by->window, m->plan->source, &all, j->pick ? j->pick[row] : row, x, err));
    for (size_t c = 0; c < cols; c++)
        bad += isfinite(x[c]) ? 0 : 1;
    if (bad > 0 && !m->opt->allow_nan)
        return refuse_bad(j, bad, err);
    for (size_t c = 0; bad > 0 && c < cols; c++)
        x[c] = isfinite(x[c]) ? x[c] : 0;
    atomic_fetch_add(&m->zeroed, bad);
    return 0;
}

/* BF16 holds the numbers that were read. */
static int check_exact(const struct job *j, const struct maker *by, const struct wmat *plain,
                       dsv4_err *err)
{
    size_t n = (size_t)plain->rows * plain->cols;
    const uint16_t *code = (const uint16_t *)(const void *)by->plain;
    for (size_t i = 0; i < n; i++)
        if (bf16_value(code[i]) != by->encoder.rows[i])
            return err_set(err, DSV4_REFUSED, "%s: %s has numbers that BF16 cannot hold exactly",
                           j->from->path, j->from->stored);
    return 0;
}

/* A row of a GGUF file as plain codes. */
static void unblock_row(uint8_t *codes, uint8_t *scales, const struct wmat *in, size_t row)
{
    enum { SPAN = 256 };
    size_t unit = wformat_has_halves(in->format) ? 2 : 1;
    for (size_t c = 0; c < in->cols; c += SPAN)
        block_encode_span(codes + wformat_row_bytes(in->format, c), scales + c / GROUP * unit, in,
                          row, c, in->cols - c < SPAN ? in->cols - c : SPAN);
}

/* The source's own codes, which are those of the output: the panel in the window. */
static void recode_rows(struct maker *by, const struct wmat *plain)
{
    const struct wmat *in = &by->window.m;
    if (in->panels) {
        panel_unpack(by->plain, plain->code_ld, by->plain_scales, plain->scale_ld, in, 0);
        return;
    }
    for (size_t i = 0; i < plain->rows; i++) {
        if (in->blocks) {
            unblock_row(by->plain + i * plain->code_ld, by->plain_scales + i * plain->scale_ld, in,
                        i);
            continue;
        }
        memcpy(by->plain + i * plain->code_ld, in->codes + i * in->code_ld, plain->code_ld);
        if (plain->scale_ld > 0)
            memcpy(by->plain_scales + i * plain->scale_ld, in->scales + i * in->scale_ld,
                   plain->scale_ld);
    }
}

/* Sixteen rows from `row` on, or as many as there are, as plain codes and scales of the output. */
static struct wmat rows_shape(const struct job *j, size_t row)
{
    size_t left = j->in.rows - row;
    return plain_shape(j->type, (uint32_t)(left < PANEL ? left : PANEL), j->in.cols);
}

static int make_plain(struct making *m, struct maker *by, const struct job *j, size_t row,
                      struct wmat *plain, dsv4_err *err)
{
    *plain = rows_shape(j, row);
    plain->codes = by->plain;
    plain->scales = by->plain_scales;
    if (j->kind != JOB_ENCODE) {
        size_t at;
        TRY(window_row(&by->window, m->plan->source, &j->in, row, &at, err));
        recode_rows(by, plain);
        enum wformat f = j->type->format;
        TRY(settle(m, j, panel_dtype(f, 0), by->plain, plain->rows * plain->code_ld, by->plain,
                   err));
        return settle(m, j, panel_dtype(f, 1), by->plain_scales, plain->rows * plain->scale_ld,
                      by->plain_scales, err);
    }
    for (size_t i = 0; i < plain->rows; i++)
        TRY(read_row(m, by, j, row + i, i, err));
    encoder_panel(&by->encoder, j, plain, by->plain, by->plain_scales);
    return j->exact ? check_exact(j, by, plain, err) : 0;
}

/* One behind the other, as blocks where the file has such. */
static void lay_rows(uint8_t *out, const struct job *j, const struct wmat *plain)
{
    for (size_t i = 0; i < plain->rows; i++) {
        const uint8_t *codes = plain->codes + i * plain->code_ld;
        uint8_t *to = out + i * j->out.code_ld;
        if (j->blocks)
            block_row(j->blocks, to, codes, plain->scales + i * plain->scale_ld, plain->cols);
        else
            memcpy(to, codes, plain->code_ld);
    }
}

/* A panel of the output, or its rows. */
static int make_panel(struct making *m, struct maker *by, const struct job *j, size_t row,
                      uint8_t *codes, uint8_t *scales, dsv4_err *err)
{
    struct wmat plain;
    if (j->kind == JOB_PACK && !j->rows) {
        size_t at;
        TRY(window_row(&by->window, m->plan->source, &j->in, row, &at, err));
        panel_pack(codes, scales, &by->window.m, 0);
        return 0;
    }
    TRY(make_plain(m, by, j, row, &plain, err));
    if (j->rows)
        lay_rows(codes, j, &plain);
    else
        panel_pack(codes, scales, &plain, 0);
    return 0;
}

static int panels_piece(struct making *m, struct maker *by, const struct job *j, uint64_t piece,
                        dsv4_err *err)
{
    size_t each = panels_a_piece(j), first = (size_t)piece * each, all = panel_count(&j->out);
    size_t n = all - first < each ? all - first : each;
    uint64_t at = first * panel_codes(j), left = j->bytes[0] - at;
    size_t bytes[2] = {n * panel_codes(j), n * j->out.scale_ld};
    bytes[0] = left < bytes[0] ? (size_t)left : bytes[0]; /* rows: the last panel may have fewer */
    for (size_t i = 0; i < n; i++)
        TRY(make_panel(m, by, j, (first + i) * PANEL, by->codes + i * panel_codes(j),
                       by->scales + i * j->out.scale_ld, err));
    enum wformat f = j->type->format;
    if (j->kind == JOB_PACK && !j->rows) {
        TRY(settle(m, j, panel_dtype(f, 0), by->codes, bytes[0], by->codes, err));
        TRY(settle(m, j, panel_dtype(f, 1), by->scales, bytes[1], by->scales, err));
    }
    TRY(output_write(m->out, file_at(m, j->at[0] + at), by->codes, bytes[0], err));
    TRY(output_write(m->out, file_at(m, j->at[1] + first * j->out.scale_ld), by->scales, bytes[1],
                     err));
    atomic_fetch_add(&m->done, bytes[0] + bytes[1]);
    return 0;
}

static int floats_piece(struct making *m, struct maker *by, const struct job *j, uint64_t piece,
                        dsv4_err *err)
{
    size_t each = rows_a_piece(j), first = (size_t)piece * each, row = row_of(j);
    size_t n = j->in.rows - first < each ? j->in.rows - first : each;
    for (size_t i = 0; i < n; i++)
        TRY(window_floats(&by->window, m->plan->source, &j->in, first + i,
                          (float *)(void *)(by->codes + i * row), err));
    TRY(settle(m, j, DTYPE_F32, by->codes, n * row, by->codes, err));
    TRY(output_write(m->out, file_at(m, j->at[0] + first * row), by->codes, n * row, err));
    atomic_fetch_add(&m->done, n * row);
    return 0;
}

static int table_piece(struct making *m, struct maker *by, const struct job *j, uint64_t piece,
                       dsv4_err *err)
{
    size_t each = rows_a_piece(j), first = (size_t)piece * each, row = row_of(j);
    size_t n = j->in.rows - first < each ? j->in.rows - first : each, scales = j->in.cols / GROUP;
    for (size_t i = 0; i < n; i++) {
        TRY(read_row(m, by, j, first + i, 0, err));
        encode_row(&m->plan->source->k, by->codes + i * row, by->scales + i * scales, j->table,
                   by->encoder.rows, j->in.cols, NULL,
                   m->opt->effort == DSV4_EFFORT_ABSMAX ? EFFORT_ABSMAX : EFFORT_SEARCH);
    }
    TRY(output_write(m->out, file_at(m, j->at[0] + first * row), by->codes, n * row, err));
    TRY(output_write(m->out, file_at(m, j->at[1] + first * scales), by->scales, n * scales, err));
    atomic_fetch_add(&m->done, n * (row + scales));
    return 0;
}

int job_make(struct making *m, struct maker *by, const struct job *j, uint64_t piece, dsv4_err *err)
{
    if (j->kind == JOB_ROUTER)
        return router_piece(m, by, j, err);
    if (j->kind == JOB_FLOATS)
        return floats_piece(m, by, j, piece, err);
    if (j->kind == JOB_TABLE)
        return table_piece(m, by, j, piece, err);
    return by_panels(j) ? panels_piece(m, by, j, piece, err) : copy_numbered(m, by, j, piece, err);
}

/* ------------------------------------------------------------------ what a lane needs */

static void raise(size_t *a, size_t b)
{
    *a = *a > b ? *a : b;
}

struct maker_needs maker_needs(const struct plan *p)
{
    struct maker_needs n = {.codes = STEP, .encoder = encoder_needs(p)};
    for (size_t i = 0; i < p->n; i++) {
        const struct job *j = &p->job[i];
        if (j->kind == JOB_ROUTER) {
            raise(&n.codes, (size_t)j->to->bytes);
            raise(&n.plain, (size_t)j->bytes[0]);
        }
        if (j->kind == JOB_COPY && j->as != j->to->dtype)
            raise(&n.read, (size_t)STEP / dtype_size(j->as) * dtype_size(j->to->dtype));
        if (by_panels(j) || j->kind == JOB_FLOATS || j->kind == JOB_TABLE)
            window_needs(n.window, &j->in);
        if (j->kind == JOB_FLOATS || j->kind == JOB_TABLE)
            raise(&n.codes, rows_a_piece(j) * row_of(j));
        if (j->kind == JOB_TABLE)
            raise(&n.scales, rows_a_piece(j) * (j->in.cols / GROUP));
        if (!by_panels(j))
            continue;
        raise(&n.codes, panels_a_piece(j) * panel_codes(j));
        raise(&n.scales, panels_a_piece(j) * j->out.scale_ld);
        if (j->kind != JOB_ENCODE && !j->rows)
            continue;
        struct wmat plain = rows_shape(j, 0);
        raise(&n.plain, PANEL * plain.code_ld);
        raise(&n.plain_scales, PANEL * plain.scale_ld);
    }
    return n;
}

uint64_t maker_bytes(const struct maker_needs *n)
{
    return n->codes + n->scales + n->plain + n->plain_scales + n->read + n->window[0] +
           n->window[1] + n->encoder.bytes;
}

int maker_open(struct maker *by, const struct maker_needs *n, const struct kernels *k,
               dsv4_effort effort, dsv4_err *err)
{
    static const char what[] = "a thread's part of a matrix";
    *by = (struct maker){0};
    TRY(mem_alloc(&by->codes, n->codes, 1, what, err));
    TRY(mem_alloc(&by->scales, n->scales, 1, what, err));
    TRY(mem_alloc(&by->plain, n->plain, 1, what, err));
    TRY(mem_alloc(&by->plain_scales, n->plain_scales, 1, what, err));
    TRY(mem_alloc(&by->read, n->read, 1, what, err));
    TRY(window_open(&by->window, n->window, err));
    return encoder_open(&by->encoder, &n->encoder, k, effort, err);
}

void maker_close(struct maker *by)
{
    free(by->codes);
    free(by->scales);
    free(by->plain);
    free(by->plain_scales);
    free(by->read);
    window_close(&by->window);
    encoder_close(&by->encoder);
}
