/* The work of a conversion: lanes take pieces of a shard in order, make them and write them where they
 * belong. What a piece is depends on the plan alone, and no piece on another one: the same bytes come of any
 * number of threads, and of a run that was interrupted and continued. */
#include "convert.h"

#include "simd/codes.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define STEP ((uint64_t)1 << 20) /* bytes of codes in a piece, or one panel */

enum { MARK_SECONDS = 10 };

/* What one lane works with. */
struct desk {
    _Atomic uint64_t at; /* no piece before this one is still in work here */
    uint8_t *codes, *scales;
    uint8_t *plain, *plain_scales; /* a panel's rows, encoded */
    uint8_t *read;                 /* elements that get another type */
    struct window window;
    struct encoder encoder;
};

struct run {
    struct output *out;
    const struct plan *plan;
    const dsv4_convert_options *opt;
    struct pool *pool;
    struct desk *desk; /* [lanes] */
    uint64_t *first;   /* [jobs of the largest shard + 1] number of a job's first piece */
    uint64_t pieces;   /* of the shard */
    _Atomic uint64_t next, done;
    uint64_t marked; /* bytes done at the last mark */
    double marked_time;
    _Atomic uint64_t zeroed; /* values that were NaN or infinite */
    atomic_bool stop;
    struct lane_failure failure;
};

/* ------------------------------------------------------------------ pieces */

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

static uint64_t pieces_of(const struct job *j)
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
static uint64_t file_at(const struct run *r, uint64_t at)
{
    return r->plan->shard[r->out->shard].header_len + at;
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
static int settle(struct run *r, const struct job *j, enum dtype t, const uint8_t *data, size_t n,
                  uint8_t *own, dsv4_err *err)
{
    size_t bad = bad_values(t, data, n, NULL);
    if (bad == 0)
        return 0;
    if (!r->opt->allow_nan)
        return refuse_bad(j, bad, err);
    bad_values(t, data, n, own);
    atomic_fetch_add(&r->zeroed, bad);
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
static int copy_piece(struct run *r, struct desk *d, const struct job *j, int part, uint64_t from,
                      size_t n, dsv4_err *err)
{
    const uint8_t *all = !j->type ? j->from->data : part ? j->in.scales : j->in.codes;
    enum dtype t = j->type ? panel_dtype(j->type->format, part) : j->from->dtype;
    TRY(store_read(r->plan->source->store, all + from, n, d->codes, err));
    TRY(settle(r, j, t, d->codes, n, d->codes, err));
    TRY(output_write(r->out, file_at(r, j->at[part] + from), d->codes, n, err));
    atomic_fetch_add(&r->done, n);
    return 0;
}

/* Bytes from .. from + n of elements that get another type. */
static int cast_piece(struct run *r, struct desk *d, const struct job *j, uint64_t from, size_t n,
                      dsv4_err *err)
{
    size_t size = dtype_size(j->to->dtype), count = n / dtype_size(j->as);
    const uint8_t *data = j->from->data + from / dtype_size(j->as) * size;
    TRY(store_read(r->plan->source->store, data, count * size, d->read, err));
    TRY(cast(d->codes, j, d->read, count, err));
    TRY(settle(r, j, j->as, d->codes, n, d->codes, err));
    TRY(output_write(r->out, file_at(r, j->at[0] + from), d->codes, n, err));
    atomic_fetch_add(&r->done, n);
    return 0;
}

static int copy_numbered(struct run *r, struct desk *d, const struct job *j, uint64_t piece,
                         dsv4_err *err)
{
    uint64_t codes = ceil_div(j->bytes[0], STEP);
    int part = piece >= codes;
    uint64_t from = (piece - (part ? codes : 0)) * STEP, left = j->bytes[part] - from;
    size_t n = (size_t)(left < STEP ? left : STEP);
    if (!j->type && j->as != j->to->dtype)
        return cast_piece(r, d, j, from, n, err);
    return copy_piece(r, d, j, part, from, n, err);
}

static int router_piece(struct run *r, struct desk *d, const struct job *j, dsv4_err *err)
{
    size_t n = (size_t)j->bytes[0];
    uint8_t *data = d->codes;
    TRY(pruning_fill(data, r->plan->pruning, r->plan->source, j->from, j->to, err));
    if (j->as != j->to->dtype) {
        TRY(cast(d->plain, j, data, n / dtype_size(j->as), err));
        data = d->plain;
    }
    TRY(settle(r, j, j->as, data, n, data, err));
    TRY(output_write(r->out, file_at(r, j->at[0]), data, n, err));
    atomic_fetch_add(&r->done, n);
    return 0;
}

/* Row `row` of the matrix becomes row i of what is to be encoded. */
static int read_row(struct run *r, struct desk *d, const struct job *j, size_t row, size_t i,
                    dsv4_err *err)
{
    size_t cols = j->in.cols, bad = 0;
    float *x = d->encoder.rows + i * cols;
    struct wmat m = j->in;
    m.rows = j->pick ? r->plan->pruning->before : m.rows;
    TRY(window_floats(&d->window, r->plan->source, &m, j->pick ? j->pick[row] : row, x, err));
    for (size_t c = 0; c < cols; c++)
        bad += isfinite(x[c]) ? 0 : 1;
    if (bad > 0 && !r->opt->allow_nan)
        return refuse_bad(j, bad, err);
    for (size_t c = 0; bad > 0 && c < cols; c++)
        x[c] = isfinite(x[c]) ? x[c] : 0;
    atomic_fetch_add(&r->zeroed, bad);
    return 0;
}

/* BF16 holds the numbers that were read. */
static int check_exact(const struct job *j, const struct desk *d, const struct wmat *plain,
                       dsv4_err *err)
{
    size_t n = (size_t)plain->rows * plain->cols;
    const uint16_t *code = (const uint16_t *)(const void *)d->plain;
    for (size_t i = 0; i < n; i++)
        if (bf16_value(code[i]) != d->encoder.rows[i])
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
static void recode_rows(struct desk *d, const struct wmat *plain)
{
    const struct wmat *in = &d->window.m;
    if (in->panels) {
        panel_unpack(d->plain, plain->code_ld, d->plain_scales, plain->scale_ld, in, 0);
        return;
    }
    for (size_t i = 0; i < plain->rows; i++) {
        if (in->blocks) {
            unblock_row(d->plain + i * plain->code_ld, d->plain_scales + i * plain->scale_ld, in,
                        i);
            continue;
        }
        memcpy(d->plain + i * plain->code_ld, in->codes + i * in->code_ld, plain->code_ld);
        if (plain->scale_ld > 0)
            memcpy(d->plain_scales + i * plain->scale_ld, in->scales + i * in->scale_ld,
                   plain->scale_ld);
    }
}

/* Sixteen rows from `row` on, or as many as there are, as plain codes and scales of the output. */
static struct wmat rows_shape(const struct job *j, size_t row)
{
    size_t left = j->in.rows - row;
    return plain_shape(j->type, (uint32_t)(left < PANEL ? left : PANEL), j->in.cols);
}

static int make_plain(struct run *r, struct desk *d, const struct job *j, size_t row,
                      struct wmat *plain, dsv4_err *err)
{
    *plain = rows_shape(j, row);
    plain->codes = d->plain;
    plain->scales = d->plain_scales;
    if (j->kind != JOB_ENCODE) {
        size_t at;
        TRY(window_row(&d->window, r->plan->source, &j->in, row, &at, err));
        recode_rows(d, plain);
        enum wformat f = j->type->format;
        TRY(settle(r, j, panel_dtype(f, 0), d->plain, plain->rows * plain->code_ld, d->plain, err));
        return settle(r, j, panel_dtype(f, 1), d->plain_scales, plain->rows * plain->scale_ld,
                      d->plain_scales, err);
    }
    for (size_t i = 0; i < plain->rows; i++)
        TRY(read_row(r, d, j, row + i, i, err));
    encoder_panel(&d->encoder, j, plain, d->plain, d->plain_scales);
    return j->exact ? check_exact(j, d, plain, err) : 0;
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
static int make_panel(struct run *r, struct desk *d, const struct job *j, size_t row,
                      uint8_t *codes, uint8_t *scales, dsv4_err *err)
{
    struct wmat plain;
    if (j->kind == JOB_PACK && !j->rows) {
        size_t at;
        TRY(window_row(&d->window, r->plan->source, &j->in, row, &at, err));
        panel_pack(codes, scales, &d->window.m, 0);
        return 0;
    }
    TRY(make_plain(r, d, j, row, &plain, err));
    if (j->rows)
        lay_rows(codes, j, &plain);
    else
        panel_pack(codes, scales, &plain, 0);
    return 0;
}

static int panels_piece(struct run *r, struct desk *d, const struct job *j, uint64_t piece,
                        dsv4_err *err)
{
    size_t each = panels_a_piece(j), first = (size_t)piece * each, all = panel_count(&j->out);
    size_t n = all - first < each ? all - first : each;
    uint64_t at = first * panel_codes(j), left = j->bytes[0] - at;
    size_t bytes[2] = {n * panel_codes(j), n * j->out.scale_ld};
    bytes[0] = left < bytes[0] ? (size_t)left : bytes[0]; /* rows: the last panel may have fewer */
    for (size_t i = 0; i < n; i++)
        TRY(make_panel(r, d, j, (first + i) * PANEL, d->codes + i * panel_codes(j),
                       d->scales + i * j->out.scale_ld, err));
    enum wformat f = j->type->format;
    if (j->kind == JOB_PACK && !j->rows) {
        TRY(settle(r, j, panel_dtype(f, 0), d->codes, bytes[0], d->codes, err));
        TRY(settle(r, j, panel_dtype(f, 1), d->scales, bytes[1], d->scales, err));
    }
    TRY(output_write(r->out, file_at(r, j->at[0] + at), d->codes, bytes[0], err));
    TRY(output_write(r->out, file_at(r, j->at[1] + first * j->out.scale_ld), d->scales, bytes[1],
                     err));
    atomic_fetch_add(&r->done, bytes[0] + bytes[1]);
    return 0;
}

static int floats_piece(struct run *r, struct desk *d, const struct job *j, uint64_t piece,
                        dsv4_err *err)
{
    size_t each = rows_a_piece(j), first = (size_t)piece * each, row = row_of(j);
    size_t n = j->in.rows - first < each ? j->in.rows - first : each;
    for (size_t i = 0; i < n; i++)
        TRY(window_floats(&d->window, r->plan->source, &j->in, first + i,
                          (float *)(void *)(d->codes + i * row), err));
    TRY(settle(r, j, DTYPE_F32, d->codes, n * row, d->codes, err));
    TRY(output_write(r->out, file_at(r, j->at[0] + first * row), d->codes, n * row, err));
    atomic_fetch_add(&r->done, n * row);
    return 0;
}

static int table_piece(struct run *r, struct desk *d, const struct job *j, uint64_t piece,
                       dsv4_err *err)
{
    size_t each = rows_a_piece(j), first = (size_t)piece * each, row = row_of(j);
    size_t n = j->in.rows - first < each ? j->in.rows - first : each, scales = j->in.cols / GROUP;
    for (size_t i = 0; i < n; i++) {
        TRY(read_row(r, d, j, first + i, 0, err));
        encode_row(&r->plan->source->k, d->codes + i * row, d->scales + i * scales, j->table,
                   d->encoder.rows, j->in.cols, NULL,
                   r->opt->effort == DSV4_EFFORT_ABSMAX ? EFFORT_ABSMAX : EFFORT_SEARCH);
    }
    TRY(output_write(r->out, file_at(r, j->at[0] + first * row), d->codes, n * row, err));
    TRY(output_write(r->out, file_at(r, j->at[1] + first * scales), d->scales, n * scales, err));
    atomic_fetch_add(&r->done, n * (row + scales));
    return 0;
}

/* ------------------------------------------------------------------ all of them */

static int make_piece(struct run *r, struct desk *d, uint64_t piece, dsv4_err *err)
{
    const struct shard *s = &r->plan->shard[r->out->shard];
    size_t lo = 0, hi = s->n_jobs;
    while (hi - lo > 1) {
        size_t mid = lo + (hi - lo) / 2;
        if (r->first[mid] <= piece)
            lo = mid;
        else
            hi = mid;
    }
    const struct job *j = &r->plan->job[s->first + lo];
    piece -= r->first[lo];
    if (j->kind == JOB_ROUTER)
        return router_piece(r, d, j, err);
    if (j->kind == JOB_FLOATS)
        return floats_piece(r, d, j, piece, err);
    if (j->kind == JOB_TABLE)
        return table_piece(r, d, j, piece, err);
    return by_panels(j) ? panels_piece(r, d, j, piece, err) : copy_numbered(r, d, j, piece, err);
}

/* Every piece before this one is written. */
static uint64_t all_written(struct run *r)
{
    uint64_t least = atomic_load(&r->next);
    for (int i = 1; i < pool_threads(r->pool); i++) {
        uint64_t at = atomic_load(&r->desk[i].at);
        least = at < least ? at : least;
    }
    return least < r->pieces ? least : r->pieces;
}

/* Between its pieces the first lane reports, and sees to it that not too much work would be lost. */
static int look_up(struct run *r, dsv4_err *err)
{
    double now = clock_seconds();
    uint64_t done = atomic_load(&r->done), every = r->opt->mark_bytes;
    if (r->opt->progress && r->opt->progress(r->opt->progress_arg, done, r->plan->bytes))
        return err_set(err, DSV4_INTERRUPTED, "interrupted; the same command goes on from here");
    if (now - r->marked_time < MARK_SECONDS && !(every > 0 && done - r->marked >= every))
        return 0;
    r->marked_time = now;
    r->marked = done;
    return output_mark(r->out, all_written(r), err);
}

static void work(const struct lane *l, void *arg)
{
    struct run *r = arg;
    struct desk *d = &r->desk[l->id];
    dsv4_err err;
    while (!atomic_load(&r->stop)) {
        atomic_store(&d->at, atomic_load(&r->next)); /* whatever is taken now is not before this */
        uint64_t piece = atomic_fetch_add(&r->next, 1);
        if (piece >= r->pieces)
            break;
        int rc = make_piece(r, d, piece, &err);
        if (rc == 0 && l->id == 0)
            rc = look_up(r, &err);
        if (rc != 0) {
            lane_fail(&r->failure, rc, &err);
            atomic_store(&r->stop, true);
            return;
        }
    }
    atomic_store(&d->at, UINT64_MAX);
}

static int run_shard(struct run *r, dsv4_err *err)
{
    const struct shard *s = &r->plan->shard[r->out->shard];
    r->pieces = 0;
    for (size_t i = 0; i < s->n_jobs; i++) {
        r->first[i] = r->pieces;
        r->pieces += pieces_of(&r->plan->job[s->first + i]);
    }
    uint64_t begin = r->out->pieces < r->pieces ? r->out->pieces : r->pieces;
    atomic_store(&r->next, begin);
    for (int i = 0; i < pool_threads(r->pool); i++)
        atomic_store(&r->desk[i].at, begin);
    TRY(output_begin(r->out, err));
    pool_run(r->pool, work, r);
    TRY(lane_failed(&r->failure, err));
    return output_end(r->out, err);
}

/* ------------------------------------------------------------------ what lanes need */

/* The largest of every buffer over all jobs. */
struct needs {
    size_t codes, scales, plain, plain_scales, read, window[2];
    struct encoder_needs encoder;
};

static void raise(size_t *a, size_t b)
{
    *a = *a > b ? *a : b;
}

static struct needs needs_of(const struct plan *p)
{
    struct needs n = {.codes = STEP, .encoder = encoder_needs(p)};
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

int convert_lanes(const struct plan *p, const dsv4_convert_options *opt, int *lanes, dsv4_err *err)
{
    struct needs n = needs_of(p);
    uint64_t each = n.codes + n.scales + n.plain + n.plain_scales + n.read + n.window[0] +
                    n.window[1] + n.encoder.bytes;
    uint64_t room = opt->max_ram ? opt->max_ram : mem_available() / 4;
    *lanes =
        opt->threads ? (int)(opt->threads < MAX_LANES ? opt->threads : MAX_LANES) : pool_cores();
    if (room < each)
        return err_set(err, DSV4_NO_MEMORY,
                       "a thread needs %llu bytes for its part of a matrix; %llu may be used",
                       (unsigned long long)each, (unsigned long long)room);
    if (room / each < (uint64_t)*lanes)
        *lanes = (int)(room / each);
    return 0;
}

static int open_desks(struct run *r, const struct needs *n, int lanes, dsv4_err *err)
{
    static const char what[] = "a thread's part of a matrix";
    size_t most = 0;
    for (size_t i = 0; i < r->plan->n_shards; i++)
        raise(&most, r->plan->shard[i].n_jobs);
    TRY(mem_alloc(&r->first, most, sizeof *r->first, "pieces", err));
    TRY(mem_alloc(&r->desk, (size_t)lanes, sizeof *r->desk, what, err));
    for (int i = 0; i < lanes; i++) {
        struct desk *d = &r->desk[i];
        TRY(mem_alloc(&d->codes, n->codes, 1, what, err));
        TRY(mem_alloc(&d->scales, n->scales, 1, what, err));
        TRY(mem_alloc(&d->plain, n->plain, 1, what, err));
        TRY(mem_alloc(&d->plain_scales, n->plain_scales, 1, what, err));
        TRY(mem_alloc(&d->read, n->read, 1, what, err));
        TRY(window_open(&d->window, n->window, err));
        TRY(encoder_open(&d->encoder, &n->encoder, &r->plan->source->k, r->opt->effort, err));
    }
    return 0;
}

static void close_desks(struct run *r, int lanes)
{
    for (int i = 0; r->desk && i < lanes; i++) {
        struct desk *d = &r->desk[i];
        free(d->codes);
        free(d->scales);
        free(d->plain);
        free(d->plain_scales);
        free(d->read);
        window_close(&d->window);
        encoder_close(&d->encoder);
    }
    free(r->desk);
    free(r->first);
}

int convert_run(struct output *o, const dsv4_convert_options *opt, int lanes, dsv4_err *err)
{
    struct run r = {.out = o, .plan = o->plan, .opt = opt, .marked_time = clock_seconds()};
    struct needs n = needs_of(o->plan);
    for (size_t i = 0; i < o->shard; i++)
        r.done += o->plan->shard[i].bytes;
    int rc = pool_open_threads(&r.pool, lanes, err);
    if (rc == 0)
        rc = open_desks(&r, &n, lanes, err);
    while (rc == 0 && o->shard < o->plan->n_shards)
        rc = run_shard(&r, err);
    if (rc == 0 && opt->progress)
        opt->progress(opt->progress_arg, o->plan->bytes, o->plan->bytes);
    close_desks(&r, lanes);
    pool_close(r.pool);
    return rc;
}
