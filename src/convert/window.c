/* A panel of the source in memory of ours: conversions read instead of looking at the mapped file, so that a source
 * that is cut or whose disk fails under the work is an error that names it, and not the end of the process. */
#include "convert.h"

#include <stdlib.h>

/* Bytes of the codes and scales of the rows from .. to. */
static void span_of(const struct wmat *m, size_t from, size_t to, size_t at[2], size_t bytes[2])
{
    size_t unit = m->panels ? PANEL : 1, block = m->panels ? PANEL : m->block_rows;
    at[0] = from / unit * m->code_ld;
    bytes[0] = ((to - 1) / unit - from / unit + 1) * m->code_ld;
    at[1] = bytes[1] = 0;
    if (!m->scales)
        return;
    at[1] = from / block * m->scale_ld;
    bytes[1] = ((to - 1) / block - from / block + 1) * m->scale_ld;
}

/* Rows, of which nothing is read, in front of the panel at `from`: those of its first block of scales, where blocks
 * are no whole panels. */
static size_t lead_of(const struct wmat *m, size_t from)
{
    return m->panels || !m->scales || m->block_rows % PANEL == 0 ? 0 : from % m->block_rows;
}

static size_t end_of_panel(const struct wmat *m, size_t from)
{
    return m->rows - from < PANEL ? m->rows : from + PANEL;
}

void window_needs(size_t bytes[2], const struct wmat *m)
{
    size_t at[2], need[2];
    span_of(m, 0, end_of_panel(m, 0), at, need);
    if (m->scales && m->block_rows > 1 && lead_of(m, m->block_rows - 1) > 0) {
        need[0] += (size_t)(m->block_rows - 1) * m->code_ld;
        need[1] += m->scale_ld; /* a panel that begins within a block reaches one further */
    }
    for (int i = 0; i < 2; i++)
        bytes[i] = need[i] > bytes[i] ? need[i] : bytes[i];
}

int window_open(struct window *w, const size_t bytes[2], dsv4_err *err)
{
    static const char what[] = "a part of the source";
    *w = (struct window){0};
    TRY(mem_alloc(&w->data[0], bytes[0], 1, what, err));
    return mem_alloc(&w->data[1], bytes[1], 1, what, err);
}

void window_close(struct window *w)
{
    free(w->data[0]);
    free(w->data[1]);
    *w = (struct window){0};
}

/* Rows from .. to, behind `lead` others of which nothing is read. */
static int read_rows(struct window *w, const struct source *s, const struct wmat *m, size_t from,
                     size_t to, size_t lead, dsv4_err *err)
{
    size_t at[2], bytes[2];
    w->of = NULL; /* a failure leaves none */
    w->m = *m;
    w->m.rows = (uint32_t)(lead + to - from);
    w->m.codes = w->data[0];
    w->m.scales = m->scales ? w->data[1] : NULL;
    span_of(m, from, to, at, bytes);
    TRY(store_read(s->store, m->codes + at[0], bytes[0], w->data[0] + lead * m->code_ld, err));
    if (m->scales)
        TRY(store_read(s->store, m->scales + at[1], bytes[1], w->data[1], err));
    return 0;
}

int window_row(struct window *w, const struct source *s, const struct wmat *m, size_t row,
               size_t *at, dsv4_err *err)
{
    size_t from = row / PANEL * PANEL, lead = lead_of(m, from);
    *at = lead + row - from;
    if (w->of == m->codes && w->from == from)
        return 0;
    TRY(read_rows(w, s, m, from, end_of_panel(m, from), lead, err));
    w->of = m->codes;
    w->from = from;
    return 0;
}

int window_floats(struct window *w, const struct source *s, const struct wmat *m, size_t row,
                  float *out, dsv4_err *err)
{
    size_t at;
    TRY(window_row(w, s, m, row, &at, err));
    source_row(s, &w->m, at, out);
    return 0;
}

int window_sample(struct window *w, const struct source *s, const struct wmat *m, size_t row,
                  float *out, dsv4_err *err)
{
    if (m->panels)
        return window_floats(w, s, m, row, out, err);
    TRY(read_rows(w, s, m, row, row + 1, 0, err));
    source_row(s, &w->m, 0, out);
    return 0;
}
