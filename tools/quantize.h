/* quantize.h - the parts of dsv4-quantize beside its options. */
#ifndef DSV4_QUANTIZE_H
#define DSV4_QUANTIZE_H

#include "tools.h"

struct calibration {
    const char *model, *file;     /* what to run, what to write */
    const struct opt_list *texts; /* files; "-": stdin */
    bool covariance, sensitivity; /* sensitivity: instead of the inputs' statistics */
    const char *type; /* sensitivity: that matrices are put into; NULL: the library's choice */
    uint32_t threads;
};

/* Runs the texts, one behind the other, writes the file, shows what experts saw. */
int calibrate(struct program *p, const struct calibration *c, dsv4_err *err);

#endif
