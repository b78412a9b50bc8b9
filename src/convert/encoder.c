/* Rows of a matrix as floats -> codes and scales: with the importance of its columns and, where their covariance is
 * known and there is time for it, with error feedback. */
#include "convert.h"

#include <stdlib.h>
#include <string.h>

#define DAMPING 0.01f

/* The inputs of w2 are an expert's own, those of w1 and w3 are its layer's: factors of both kinds are kept. */
static int slot_of(const struct job *j)
{
    return strstr(j->name, ".experts.") && strstr(j->name, ".w2.") ? 1 : 0;
}

struct encoder_needs encoder_needs(const struct plan *p)
{
    struct encoder_needs n = {0};
    for (size_t i = 0; i < p->n; i++) {
        const struct job *j = &p->job[i];
        size_t cols = j->in.cols;
        if (j->kind != JOB_ENCODE && j->kind != JOB_TABLE)
            continue;
        n.widest = cols > n.widest ? cols : n.widest;
        if (j->covariance && cols > n.factor[slot_of(j)])
            n.factor[slot_of(j)] = cols;
    }
    n.bytes = 2 * PANEL * sizeof(float) * (uint64_t)n.widest;
    for (int i = 0; i < 2; i++)
        n.bytes += (uint64_t)n.factor[i] * n.factor[i] * sizeof(float);
    return n;
}

int encoder_open(struct encoder *x, const struct encoder_needs *n, const struct kernels *k,
                 dsv4_effort effort, dsv4_err *err)
{
    static const char what[] = "rows of a matrix";
    *x = (struct encoder){.k = k, .effort = effort};
    TRY(mem_alloc(&x->rows, n->widest, PANEL * sizeof *x->rows, what, err));
    TRY(mem_alloc(&x->errors, n->widest, PANEL * sizeof *x->errors, what, err));
    for (int i = 0; i < 2; i++)
        TRY(mem_alloc(&x->factor[i].at, n->factor[i], n->factor[i] * sizeof *x->factor[i].at,
                      "a covariance", err));
    return 0;
}

void encoder_close(struct encoder *x)
{
    free(x->rows);
    free(x->errors);
    free(x->factor[0].at);
    free(x->factor[1].at);
}

static const float *factor_of(struct encoder *x, const struct job *j)
{
    size_t cols = j->in.cols;
    struct factor *f = &x->factor[slot_of(j)];
    if (f->of != j->covariance) {
        memcpy(f->at, j->covariance, cols * cols * sizeof *f->at);
        feedback_factor(f->at, cols, DAMPING);
        f->of = j->covariance;
    }
    return f->at;
}

void encoder_panel(struct encoder *x, const struct job *j, const struct wmat *plain, uint8_t *codes,
                   uint8_t *scales)
{
    size_t cols = j->in.cols;
    if (j->covariance) {
        encode_feedback(x->k, codes, plain->code_ld, scales, plain->scale_ld, j->type, x->rows,
                        cols, plain->rows, cols, factor_of(x, j), x->errors);
        return;
    }
    for (size_t r = 0; r < plain->rows; r++)
        encode_row(x->k, codes + r * plain->code_ld, scales + r * plain->scale_ld, j->type,
                   x->rows + r * cols, cols, j->importance,
                   x->effort == DSV4_EFFORT_ABSMAX || j->as_loaded ? EFFORT_ABSMAX : EFFORT_SEARCH);
}
