/* A long text through a model, in windows that know nothing of each other. */
#include "session.h"

#include <stdlib.h>

static int run_window(dsv4_engine *e, const struct windows *w, size_t first, size_t n,
                      dsv4_row *row, float *logits, dsv4_err *err)
{
    dsv4_seq *s;
    TRY(dsv4_seq_open(&s, e, err));
    int rc = 0;
    size_t step = e->plan.batch, vocab = e->cp.cfg->vocab;
    for (size_t at = first; at < first + n && rc == 0; at += step) {
        size_t m = first + n - at < step ? first + n - at : step, wanted = 0;
        for (size_t i = 0; i < m; i++)
            row[i] = (dsv4_row){.seq = s, .token = w->ids[at + i], .logits = i % w->every == 0};
        rc = dsv4_eval(e, row, m, logits, err);
        for (size_t i = 0; i < m && rc == 0 && w->logits; i += w->every)
            w->logits(w->arg, at + i, logits + wanted++ * vocab);
    }
    dsv4_seq_close(s);
    return rc;
}

int windows_run(dsv4_engine *e, const struct windows *w, dsv4_err *err)
{
    dsv4_row *row = NULL;
    float *logits = NULL;
    size_t step = e->plan.batch, window = e->plan.ctx < w->window ? e->plan.ctx : w->window;
    int rc = mem_alloc(&row, step, sizeof *row, "rows", err);
    if (rc == 0)
        rc = mem_alloc(&logits, step / w->every + 1, e->cp.cfg->vocab * sizeof *logits, "logits",
                       err);
    for (size_t at = 0; at < w->n && rc == 0; at += window) {
        if (w->progress && w->progress(w->progress_arg, w->done + at, w->total))
            rc = err_set(err, DSV4_INTERRUPTED, "interrupted while reading the text");
        else
            rc = run_window(e, w, at, w->n - at < window ? w->n - at : window, row, logits, err);
    }
    free(row);
    free(logits);
    return rc;
}
