/* statistics.h - what the weight matrices of a model multiply with, gathered while it computes. */
#ifndef DSV4_STATISTICS_H
#define DSV4_STATISTICS_H

#include "src/model/model.h"

/* The inputs of one matrix. w3 of an expert has those of w1 and is not listed. */
struct inputs {
    const struct matrix *w;
    uint64_t rows;
    double *square;    /* [cols] sums of x^2 */
    float *covariance; /* [cols][cols] sums of x x^T, or NULL; may be that of another matrix too */
};

/* The experts of one layer. */
struct expert_use {
    const struct layer *L;
    uint64_t *rows; /* [E] */
    double *norm;   /* [E] sums of the norms of what experts gave, weighted by the router */
};

struct statistics {
    const struct model *m;
    struct inputs *in; /* [n] ascending by w */
    size_t n;
    struct expert_use *use; /* [n_layers] */
    struct observer observer;
};

/* For all matrices that can become panels. covariance: sums of x x^T too; one for all experts' w1 of a layer. */
int statistics_open(struct statistics **out, const struct model *m, bool covariance, dsv4_err *err);
void statistics_close(struct statistics *s); /* NULL is allowed */

/* NULL when there is none. */
const struct inputs *statistics_find(const struct statistics *s, const struct matrix *w);

/* The same for any matrix: an expert's w3 has the inputs of its w1. */
const struct inputs *statistics_inputs(const struct statistics *s, const struct matrix *w);

/* The layer of which a matrix is w1, w2 or w3 of a routed expert, and which of the three it is; else NULL. */
const struct layer *expert_layer(const struct model *m, const struct matrix *w, int *which);

#endif
