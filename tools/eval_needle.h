/* eval_needle.h - the text of a needle test: hay, needle and question. */
#ifndef DSV4_EVAL_NEEDLE_H
#define DSV4_EVAL_NEEDLE_H

#include <stdio.h>

#include "eval.h"

struct needle {
    char statement[96], question[96], answer[16];
};

/* The needle of a seed. */
void filler_needle(struct needle *n, uint64_t seed);
/* Appends the next sentence, with a blank in front; *state begins with the seed. */
int filler_sentence(struct bytes *b, uint64_t *state, dsv4_err *err);

#endif
